// Pass 1 for few rows (K <= 8): a lane owns 16 bytes of columns and keeps all products of its columns in registers.
// Every element is read once, and nothing is staged in shared memory.
#pragma once
#include "combine.cuh"
#include "reduce.cuh"
#include "run.cuh"

namespace cga {

constexpr int kRowsThreads = 256;
constexpr int kRowsRun = 64;  // steps before the sums are widened: 256 or 512 terms in float32

// Products of M rows. Fewer rows than M are given: the last ones are then repeats of the own gradient, and not used.
template <typename T, int M>
struct RowProducts {
  static constexpr int kPairs = M * (M + 1) / 2;
  static constexpr int kOwned = (kPairs + 31) / 32;  // sums that a lane keeps in float64

  float sum[kPairs];
  double total[kOwned];

  __device__ __forceinline__ RowProducts() {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) sum[p] = 0;
#pragma unroll
    for (int o = 0; o < kOwned; ++o) total[o] = 0;
  }

  __device__ __forceinline__ void add(const uint4 (&raw)[M]) {
    constexpr int kPerWord = Element<T>::kPerWord;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float x[M][kPerWord];
#pragma unroll
      for (int i = 0; i < M; ++i) Element<T>::unpack(word(raw[i], w), x[i]);
#pragma unroll
      for (int e = 0; e < kPerWord; ++e) {
#pragma unroll
        for (int j = 0; j < M; ++j) {
#pragma unroll
          for (int i = 0; i <= j; ++i) sum[j * (j + 1) / 2 + i] += x[i][e] * x[j][e];
        }
      }
    }
  }

  // Adds the sums of the warp to the float64 totals: pair p is kept by lane p % 32.
  __device__ __forceinline__ void close() {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      sum[p] = warp_sum(sum[p]);
      if (lane_index() == p % 32) total[p / 32] += sum[p];
      sum[p] = 0;
    }
  }

  // All columns are in: what float32 could not hold is done again.
  __device__ __forceinline__ void check(const Problem& problem, const Run& run) {
    bool unsafe = false;
#pragma unroll
    for (int i = 0; i < M; ++i) {
      const int p = i * (i + 1) / 2 + i;
      if (lane_index() == p % 32) unsafe |= !is_safe(total[p / 32]);
    }
    if (__ballot_sync(kWarp, unsafe) != 0 && is_delicate<T>(problem.rows, M, run)) multiply_wide(problem, run);
  }

  __device__ __forceinline__ void multiply_wide(const Problem& problem, const Run& run) {
    for (int j = 0; j < M; ++j) {
      for (int i = 0; i <= j; ++i) {
        const double product = wide_product(static_cast<const T*>(problem.rows[i]),
                                            static_cast<const T*>(problem.rows[j]), run);
#pragma unroll
        for (int o = 0; o < kOwned; ++o) {
          if (lane_index() + 32 * o == pair_index(i, j)) total[o] = product;
        }
      }
    }
  }
};

template <typename T, int M>
__device__ __forceinline__ void load_rows(uint4 (&raw)[M], const Problem& problem, long long column, long long end,
                                          bool whole) {
  if (whole) {
#pragma unroll
    for (int i = 0; i < M; ++i) raw[i] = load_vector(static_cast<const T*>(problem.rows[i]), column);
  } else {
#pragma unroll
    for (int i = 0; i < M; ++i) raw[i] = load_tail(static_cast<const T*>(problem.rows[i]), column, end);
  }
}

template <typename T, int M>
__device__ __forceinline__ RowProducts<T, M> multiply_rows(const Problem& problem, const Slot& slot) {
  constexpr int kStep = 32 * Element<T>::kPerVector;
  RowProducts<T, M> products;
  const int warp = warp_index(), lane = lane_index();
  constexpr long long kStride = kRowsThreads / 32 * kStep;
  const long long begin = slot.begin + warp * kStep;
  int steps = 0;
  for (long long base = begin; base < slot.end; base += kStride) {
    uint4 raw[M];
    load_rows<T>(raw, problem, base + lane * Element<T>::kPerVector, slot.end, base + kStep <= slot.end);
    products.add(raw);
    if (++steps % kRowsRun == 0) products.close();
  }
  products.close();
  if (Element<T>::kDelicate) products.check(problem, {begin, slot.end, kStride, kStep});
  return products;
}

// Adds the totals of the warps in their order.
template <typename T, int M>
__device__ __forceinline__ void store_rows(const Problem& problem, const Slot& slot,
                                           const RowProducts<T, M>& products) {
  constexpr int kPairs = RowProducts<T, M>::kPairs;
  double* totals = shared_work<double>();
  const int warp = warp_index(), lane = lane_index();
#pragma unroll
  for (int o = 0; o < RowProducts<T, M>::kOwned; ++o) {
    if (lane + 32 * o < kPairs) totals[warp * kPairs + lane + 32 * o] = products.total[o];
  }
  __syncthreads();
  for (int p = threadIdx.x; p < pair_count(problem); p += kRowsThreads) {
    double sum = 0;
    for (int w = 0; w < kRowsThreads / 32; ++w) sum += totals[w * kPairs + p];
    problem.partials[slot.index * pair_count(problem) + p] = sum;
  }
}

template <typename T, int M>
__device__ __forceinline__ void gram_rows(const Problem& problem) {
  for (long long index = blockIdx.x; index < problem.slots; index += gridDim.x) {
    const Slot slot = find_slot(problem, index);
    store_rows(problem, slot, multiply_rows<T, M>(problem, slot));
    finish_slot(problem, slot, 1);
  }
  if (problem.phases & kCombine) combine_when_ready<T>(problem);
}

}  // namespace cga
