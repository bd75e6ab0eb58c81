// Pass 1 for few rows (K <= 8): a lane owns 16 bytes of columns and keeps all products of its columns in registers.
// Every element is read once, and nothing is staged in shared memory.
#pragma once
#include "combine.cuh"
#include "reduce.cuh"
#include "run.cuh"

namespace cga {

constexpr int kRowsThreads = 256;
constexpr int kRowsRun = 16;  // steps before the sums are widened: 64 terms of float32, whose equal sums keep 1e-6

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

  // Whether the warp's columns hold what float32 cannot.
  __device__ __forceinline__ bool are_delicate(const Problem& problem, const Run& run) const {
    unsigned unsafe = 0, zero = 0;  // by row
#pragma unroll
    for (int i = 0; i < M; ++i) {
      const int p = i * (i + 1) / 2 + i;
      const bool mine = lane_index() == p % 32;
      unsafe |= (__ballot_sync(kWarp, mine && !is_safe(total[p / 32])) != 0) << i;
      zero |= (__ballot_sync(kWarp, mine && total[p / 32] == 0) != 0) << i;
    }
    return any_is_delicate<T>(problem, run, 0, unsafe, zero);
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
__device__ __forceinline__ void multiply_rows(const Problem& problem, const Run& run, RowProducts<T, M>& products) {
  int steps = 0;
  for (long long base = run.begin; base < run.end; base += run.stride) {
    uint4 raw[M];
    const long long column = base + lane_index() * Element<T>::kPerVector;
    load_rows<T>(raw, problem, column, run.end, base + run.width <= run.end);
    products.add(raw);
    if (++steps % kRowsRun == 0) products.close();
  }
  products.close();
}

// Adds the totals of the warps in their order.
template <typename T, int M>
__device__ __forceinline__ void store_rows(const Problem& problem, const Slot& slot, const RowProducts<T, M>& products,
                                           bool delicate) {
  constexpr int kPairs = RowProducts<T, M>::kPairs;
  double* totals = shared_work<double>();
  const int warp = warp_index(), lane = lane_index();
#pragma unroll
  for (int o = 0; o < RowProducts<T, M>::kOwned; ++o) {
    if (lane + 32 * o < kPairs) totals[warp * kPairs + lane + 32 * o] = products.total[o];
  }
  if (__syncthreads_or(delicate)) return store_wide<T>(problem, slot, 0, M, 0, M);
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
    const Run run = warp_run(slot, 32 * Element<T>::kPerVector);
    RowProducts<T, M> products;
    multiply_rows(problem, run, products);
    store_rows(problem, slot, products, Element<T>::kDelicate && products.are_delicate(problem, run));
    finish_slot(problem, slot, 1);
  }
  if (problem.phases & kCombine) combine_when_ready<T>(problem);
}

}  // namespace cga
