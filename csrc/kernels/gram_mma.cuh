// Pass 1 for 9 rows and more on tensor cores (sm_80 and up).
//
// In G G' the left and the right fragment of a block of 8 rows are the same registers, and the order of the columns is
// free. So a lane loads 16 contiguous bytes of one row straight from global memory: no shared memory, no transposition,
// no barrier in the main loop, and every element is read once. float32 goes in as two tf32 numbers, high and low part,
// and three products: the fourth, low by low, is below the rounding of the sum.
#pragma once
#include "combine.cuh"
#include "reduce.cuh"
#include "run.cuh"

namespace cga {

constexpr int kMmaThreads = 128;
constexpr int kMmaWarps = kMmaThreads / 32;

// B: blocks of 8 rows. Tiles of 16 x 8 products on and above the diagonal: left blocks (a, a + 1), a even; right block
// j >= a.
template <int B>
constexpr int kMmaTiles = (B / 2) * (B - B / 2 + 1) + B % 2;

// Float64 totals of all warps would not fit the shared memory of every device beyond 5 blocks.
template <int B>
struct MmaTotal { using Type = double; };
template <>
struct MmaTotal<9> { using Type = float; };

// Tensor cores cut off what they cannot hold when they add, so runs are short; shorter still for float32, which has
// more digits to lose.
template <typename T>
struct Fragments {
  using Mma = Bfloat16Mma;
  static constexpr int kRun = 64;  // steps before the sums are widened
};
template <>
struct Fragments<float16> {
  using Mma = Float16Mma;
  static constexpr int kRun = 64;
};
template <>
struct Fragments<float> {
  static constexpr int kRun = 8;
};

// Where the product of rows i <= j is kept: tile, register and lane of a warp, as one index.
template <int B>
__device__ __forceinline__ int fragment_index(int i, int j) {
  const int pair = i / 16, right = j / 8;
  const int tile = pair * (B - pair + 1) + right - 2 * pair;
  const int reg = i / 8 % 2 * 2 + j % 2;
  const int lane = i % 8 * 4 + j % 8 / 2;
  return (tile * 4 + reg) * 32 + lane;
}

template <typename T, int B>
struct MmaProducts {
  using Total = typename MmaTotal<B>::Type;
  static constexpr int kTiles = kMmaTiles<B>;
  static constexpr int kTotals = kTiles * 4 * 32;  // of one warp

  float sum[kTiles][4];
  Total* totals;  // [kTotals], this warp's

  __device__ __forceinline__ explicit MmaProducts(Total* totals) : totals(totals) {
    clear();
    for (int i = lane_index(); i < kTotals; i += 32) totals[i] = 0;  // those that this lane will add to
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sum[t][r] = 0;
    }
  }

  // Two steps of depth: words 0 and 1 of every lane, then words 2 and 3.
  template <typename Mma>
  __device__ __forceinline__ void add_words(const unsigned (&left)[B][2], const unsigned (&right)[B][2]) {
    int tile = 0;
#pragma unroll
    for (int a = 0; a < B; a += 2) {
      const int below = a + 1 < B ? a + 1 : a;  // an odd last block is paired with itself, and the repeat not used
      const unsigned rows[4] = {left[a][0], left[below][0], left[a][1], left[below][1]};
#pragma unroll
      for (int j = a; j < B; ++j) Mma::run(sum[tile++], rows, right[j]);
    }
  }

  __device__ __forceinline__ void add(const uint4 (&raw)[B]) { add_fragments(raw, T()); }

  template <typename Half>
  __device__ __forceinline__ void add_fragments(const uint4 (&raw)[B], Half) {
#pragma unroll
    for (int w = 0; w < 4; w += 2) {
      unsigned rows[B][2];
#pragma unroll
      for (int b = 0; b < B; ++b) {
        rows[b][0] = word(raw[b], w);
        rows[b][1] = word(raw[b], w + 1);
      }
      add_words<typename Fragments<Half>::Mma>(rows, rows);
    }
  }

  __device__ __forceinline__ void add_fragments(const uint4 (&raw)[B], float) {
#pragma unroll
    for (int w = 0; w < 4; w += 2) {
      unsigned high[B][2], low[B][2];
#pragma unroll
      for (int b = 0; b < B; ++b) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float value = __uint_as_float(word(raw[b], w + e));
          high[b][e] = round_to_tf32(value);
          low[b][e] = round_to_tf32(value - __uint_as_float(high[b][e]));
        }
      }
      add_words<Tf32Mma>(low, high);
      add_words<Tf32Mma>(high, low);
      add_words<Tf32Mma>(high, high);
    }
  }

  __device__ __forceinline__ void close() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int r = 0; r < 4; ++r) totals[(t * 4 + r) * 32 + lane_index()] += sum[t][r];
    }
    clear();
  }

  // Whether the warp's columns hold what float32 cannot.
  __device__ __forceinline__ bool are_delicate(const Problem& problem, const Run& run) const {
    __syncwarp(kWarp);  // the totals of other lanes are read
    bool delicate = false;
    for (int first = 0; first <= problem.cross; first += 32) {
      const int i = first + lane_index();
      const double squares = i <= problem.cross ? totals[fragment_index<B>(i, i)] : 1;
      const unsigned unsafe = __ballot_sync(kWarp, !is_safe(squares)), zero = __ballot_sync(kWarp, squares == 0);
      delicate = delicate || any_is_delicate<T>(problem, run, first, unsafe, zero);
    }
    return delicate;
  }
};

template <typename T, int B>
__device__ __forceinline__ void load_blocks(uint4 (&raw)[B], const T* const (&rows)[B], long long column,
                                            long long end, bool whole) {
  if (whole) {
#pragma unroll
    for (int b = 0; b < B; ++b) raw[b] = load_vector(rows[b], column);
  } else {
#pragma unroll
    for (int b = 0; b < B; ++b) raw[b] = load_tail(rows[b], column, end);
  }
}

// Lane l holds row l / 4 of every block, 16 bytes of it: four lanes cover 64 bytes. The next step is loaded while this
// one is multiplied.
template <typename T, int B>
__device__ __forceinline__ void multiply_blocks(const Problem& problem, const Run& run, MmaProducts<T, B>& products) {
  const int lane = lane_index();
  const T* rows[B];
#pragma unroll
  for (int b = 0; b < B; ++b) rows[b] = static_cast<const T*>(problem.rows[8 * b + lane / 4]);
  const int shift = lane % 4 * Element<T>::kPerVector;
  int steps = 0;
  uint4 now[B], next[B];
  if (run.begin < run.end) load_blocks(now, rows, run.begin + shift, run.end, run.begin + run.width <= run.end);
  for (long long base = run.begin; base < run.end; base += run.stride) {
    const long long following = base + run.stride;
    if (following < run.end) load_blocks(next, rows, following + shift, run.end, following + run.width <= run.end);
    products.add(now);
    if (++steps % Fragments<T>::kRun == 0) products.close();
#pragma unroll
    for (int b = 0; b < B; ++b) now[b] = next[b];
  }
  products.close();
}

// Adds the totals of the warps in their order.
template <typename T, int B, typename Total>
__device__ __forceinline__ void store_blocks(const Problem& problem, const Slot& slot, const Total* totals,
                                             bool delicate) {
  constexpr int kTotals = kMmaTiles<B> * 4 * 32;
  if (__syncthreads_or(delicate)) return store_wide<T>(problem, slot, 0, 8 * B, 0, 8 * B);
  for (int entry = threadIdx.x; entry < 64 * B * B; entry += kMmaThreads) {
    const int i = entry / (8 * B), j = entry % (8 * B);
    if (i > j || j > problem.cross) continue;
    double sum = 0;
    for (int w = 0; w < kMmaWarps; ++w) sum += totals[w * kTotals + fragment_index<B>(i, j)];
    problem.partials[slot.index * pair_count(problem) + pair_index(i, j)] = sum;
  }
}

template <typename T, int B>
__device__ __forceinline__ void gram_mma(const Problem& problem) {
  using Products = MmaProducts<T, B>;
  typename Products::Total* totals = shared_work<typename Products::Total>();
  for (long long index = blockIdx.x; index < problem.slots; index += gridDim.x) {
    const Slot slot = find_slot(problem, index);
    const Run run = warp_run(slot, 4 * Element<T>::kPerVector);
    Products products(totals + warp_index() * Products::kTotals);
    multiply_blocks<T, B>(problem, run, products);
    store_blocks<T, B>(problem, slot, totals, Element<T>::kDelicate && products.are_delicate(problem, run));
    finish_slot(problem, slot, 1);
  }
  if (problem.phases & kCombine) combine_when_ready<T>(problem);
}

}  // namespace cga
