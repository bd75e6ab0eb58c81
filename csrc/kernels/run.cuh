// The columns of a slot that one warp adds up, and what to do where float32 does not suffice.
//
// Squares of float32 leave its range beyond 1e19 and lose bits below 1e-19. Where that can matter the block adds its
// slot again in float64, slowly: gradients of that size are rare, but a wrong projection would not be noticed.
#pragma once
#include "element.cuh"
#include "problem.cuh"

namespace cga {

constexpr unsigned kWarp = 0xffffffffu;  // mask of all lanes

__device__ __forceinline__ int lane_index() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / 32; }

struct Run {
  long long begin, end;  // first column; end of the slot
  long long stride;      // from one step to the next
  int width;             // columns of a step
};

// The warps of a block take turns.
__device__ __forceinline__ Run warp_run(const Slot& slot, int width) {
  return {slot.begin + warp_index() * width, slot.end, static_cast<long long>(blockDim.x / 32 * width), width};
}

template <typename V>
__device__ __forceinline__ V warp_sum(V value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kWarp, value, offset);
  return value;
}

// A sum of squares in this range has lost nothing that shows: nor have, by Cauchy-Schwarz, the products between rows.
// A product below 1e-38 can be lost; there are up to 1e6 of them.
__device__ __forceinline__ bool is_safe(double squares) { return squares >= 1e-24 && squares <= 1e37; }

template <typename T>
__device__ __noinline__ double wide_product(const T* a, const T* b, const Run& run) {
  double sum = 0;
  for (long long base = run.begin; base < run.end; base += run.stride) {
    const long long stop = base + run.width < run.end ? base + run.width : run.end;
    for (long long column = base + lane_index(); column < stop; column += 32) {
      sum += static_cast<double>(Element<T>::widen(a[column])) * static_cast<double>(Element<T>::widen(b[column]));
    }
  }
  return warp_sum(sum);
}

// Whether the warp's columns of a row hold anything but zeros. Steps start at multiples of 16 bytes, so this takes an
// eighth of the loads of a look at every element.
template <typename T>
__device__ __noinline__ bool has_bits(const T* row, const Run& run) {
  constexpr int kPerVector = Element<T>::kPerVector;
  constexpr unsigned kMagnitude = Element<T>::kPerWord == 1 ? 0x7fffffffu : 0x7fff7fffu;
  const int vectors = run.width / kPerVector;  // of a step; the lanes take as many steps at once as they can
  const long long stride = 32 / vectors * run.stride;
  unsigned found = 0;
#pragma unroll 4
  for (long long base = run.begin + lane_index() / vectors * run.stride; base < run.end; base += stride) {
    const long long column = base + lane_index() % vectors * kPerVector;
    const uint4 raw =
        column + kPerVector <= run.end ? load_vector(row, column) : load_tail(row, column, run.end);
    found |= raw.x | raw.y | raw.z | raw.w;
  }
  return __ballot_sync(kWarp, (found & kMagnitude) != 0) != 0;
}

// Whether a row whose sum of squares is not safe in float32 is outside the safe range in float64 too. A row of zeros is
// exact as it is, and one with NaN or Inf is left out later.
template <typename T>
__device__ __noinline__ bool is_delicate(const T* row, const Run& run) {
  const double squares = wide_product(row, row, run);
  return squares != 0 && squares - squares == 0 && !is_safe(squares);
}

// Whether one of the rows from `first` on is delicate. Masks by row tell whose sum of squares is not safe, or is zero;
// the others need no second look.
template <typename T>
__device__ __forceinline__ bool any_is_delicate(const Problem& problem, const Run& run, int first, unsigned unsafe,
                                                unsigned zero) {
  bool delicate = false;
  for (int i = 0; i < 32 && !delicate && first + i <= problem.cross; ++i) {
    const T* row = static_cast<const T*>(problem.rows[first + i]);
    if (unsafe >> i & 1) delicate = zero >> i & 1 ? has_bits(row, run) : is_delicate(row, run);
  }
  return delicate;
}

// The products of rows [i0, i1) with rows [j0, j1) over a slot in float64, by the whole block: a warp a product.
template <typename T>
__device__ __noinline__ void store_wide(const Problem& problem, const Slot& slot, int i0, int i1, int j0, int j1) {
  const Run run = {slot.begin, slot.end, 32, 32};
  const int warps = blockDim.x / 32;
  int turn = 0;
  for (int j = j0; j < j1 && j <= problem.cross; ++j) {
    for (int i = i0; i < i1 && i <= j; ++i) {
      if (turn++ % warps != warp_index()) continue;
      const double product =
          wide_product(static_cast<const T*>(problem.rows[i]), static_cast<const T*>(problem.rows[j]), run);
      if (lane_index() == 0) problem.partials[slot.index * pair_count(problem) + pair_index(i, j)] = product;
    }
  }
}

}  // namespace cga
