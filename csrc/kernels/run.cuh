// A run: the columns a warp adds up in float32 before the sums are widened to float64.
//
// Squares of float32 leave its range beyond 1e19 and lose bits below 1e-19. A run in which that can matter is added
// again in float64, slowly: gradients of that size are rare, but a wrong projection would not be noticed.
#pragma once
#include "element.cuh"

namespace cga {

constexpr unsigned kWarp = 0xffffffffu;  // mask of all lanes

__device__ __forceinline__ int lane_index() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / 32; }

struct Run {
  long long begin, end;  // first column; end of the slot
  long long stride;      // from one step to the next
  int width;             // columns of a step
  int steps;
};

template <typename V>
__device__ __forceinline__ V warp_sum(V value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kWarp, value, offset);
  return value;
}

// A sum of squares in this range has lost nothing that shows: so have, by Cauchy-Schwarz, the products between rows.
__device__ __forceinline__ bool is_safe(double squares) { return squares >= 1e-27 && squares <= 1e37; }
__device__ __forceinline__ bool is_safe(float squares) { return squares >= 1e-27f && squares <= 1e37f; }

template <typename T>
__device__ __noinline__ double wide_product(const T* a, const T* b, const Run& run) {
  double sum = 0;
  for (int step = 0; step < run.steps; ++step) {
    const long long base = run.begin + step * run.stride;
    const long long stop = base + run.width < run.end ? base + run.width : run.end;
    for (long long column = base + lane_index(); column < stop; column += 32) {
      sum += static_cast<double>(Element<T>::widen(a[column])) * static_cast<double>(Element<T>::widen(b[column]));
    }
  }
  return warp_sum(sum);
}

// Whether a row of the run has a sum of squares outside the safe range. A row of zeros is exact as it is.
template <typename T>
__device__ __noinline__ bool is_delicate(const void* const* rows, int count, const Run& run) {
  bool delicate = false;
  for (int i = 0; i < count; ++i) {
    const T* row = static_cast<const T*>(rows[i]);
    const double squares = wide_product(row, row, run);
    delicate |= squares != 0 && !is_safe(squares);
  }
  return delicate;
}

}  // namespace cga
