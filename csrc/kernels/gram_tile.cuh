// Pass 1 for any number of rows, any alignment and any device: a block forms the products of 8 rows with 8 rows, column
// by column. With Sum = double this is the exact path (float64 rows, small ridge, unaligned rows); with Sum = float it
// serves more than 8 rows on devices without tensor cores for these types.
#pragma once
#include "reduce.cuh"
#include "run.cuh"

namespace cga {

constexpr int kTileThreads = 256;
constexpr int kTileRun = 256;  // steps before the sums are widened: terms in float32
constexpr int kTile = 8;

template <typename Sum>
constexpr bool kIsFloat = false;
template <>
constexpr bool kIsFloat<float> = true;

template <typename T, typename Sum>
struct TileProducts {
  static constexpr int kPairs = kTile * kTile;
  static constexpr int kOwned = kPairs / 32;

  Sum sum[kTile][kTile];
  double total[kOwned];

  __device__ __forceinline__ TileProducts() {
    clear();
#pragma unroll
    for (int o = 0; o < kOwned; ++o) total[o] = 0;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) sum[p / kTile][p % kTile] = 0;
  }

  __device__ __forceinline__ void add(const Sum (&x)[kTile], const Sum (&y)[kTile]) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) sum[p / kTile][p % kTile] += x[p / kTile] * y[p % kTile];
  }

  __device__ __forceinline__ void close() {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const Sum found = warp_sum(sum[p / kTile][p % kTile]);
      if (lane_index() == p % 32) total[p / 32] += found;
    }
    clear();
  }

  // All columns are in: what float32 could not hold is done again. Products between rows may cancel; then the squares
  // turn out to be safe.
  __device__ __forceinline__ void check(const void* const* left, const void* const* right, const Run& run) {
    bool unsafe = false;
#pragma unroll
    for (int o = 0; o < kOwned; ++o) unsafe |= !is_safe(fabs(total[o]));
    if (__ballot_sync(kWarp, unsafe) == 0) return;
    if (is_delicate<T>(left, kTile, run) || is_delicate<T>(right, kTile, run)) multiply_wide(left, right, run);
  }

  __device__ __forceinline__ void multiply_wide(const void* const* left, const void* const* right, const Run& run) {
    for (int p = 0; p < kPairs; ++p) {
      const double product =
          wide_product(static_cast<const T*>(left[p / kTile]), static_cast<const T*>(right[p % kTile]), run);
#pragma unroll
      for (int o = 0; o < kOwned; ++o) {
        if (lane_index() + 32 * o == p) total[o] = product;
      }
    }
  }
};

template <typename T, typename Sum>
__device__ __forceinline__ TileProducts<T, Sum> multiply_tile(const void* const* left, const void* const* right,
                                                              const Slot& slot) {
  TileProducts<T, Sum> products;
  const int warp = warp_index(), lane = lane_index();
  const long long begin = slot.begin + warp * 32;
  int steps = 0;
  for (long long base = begin; base < slot.end; base += kTileThreads) {
    const long long column = base + lane;
    Sum x[kTile], y[kTile];
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const bool inside = column < slot.end;
      x[i] = inside ? static_cast<Sum>(Element<T>::widen(static_cast<const T*>(left[i])[column])) : 0;
      y[i] = inside ? static_cast<Sum>(Element<T>::widen(static_cast<const T*>(right[i])[column])) : 0;
    }
    products.add(x, y);
    if (++steps % kTileRun == 0) products.close();
  }
  products.close();
  if (kIsFloat<Sum> && Element<T>::kDelicate) products.check(left, right, {begin, slot.end, kTileThreads, 32});
  return products;
}

template <typename T, typename Sum>
__device__ __forceinline__ void store_tile(const Problem& problem, const Slot& slot, int i0, int j0,
                                           const TileProducts<T, Sum>& products) {
  constexpr int kPairs = TileProducts<T, Sum>::kPairs;
  double* totals = shared_work<double>();
  const int warp = warp_index(), lane = lane_index();
#pragma unroll
  for (int o = 0; o < TileProducts<T, Sum>::kOwned; ++o) totals[warp * kPairs + lane + 32 * o] = products.total[o];
  __syncthreads();
  for (int p = threadIdx.x; p < kPairs; p += kTileThreads) {
    const int i = i0 + p / kTile, j = j0 + p % kTile;
    double sum = 0;
    for (int w = 0; w < kTileThreads / 32; ++w) sum += totals[w * kPairs + p];
    if (i <= j && j <= problem.cross) {
      problem.partials[slot.index * pair_count(problem) + pair_index(i, j)] = sum;
    }
  }
}

// Block b of the grid: tile b % tiles of slot b / tiles. Tiles are packed by columns, as pairs are.
template <typename T, typename Sum>
__device__ __forceinline__ void gram_tile(const Problem& problem) {
  const int tiles = pair_index(0, problem.cross / kTile + 1);
  int left = blockIdx.x % tiles, right = 0;
  while (left > right) left -= ++right;
  const Slot slot = find_slot(problem, blockIdx.x / tiles);
  store_tile(problem, slot, left * kTile, right * kTile,
             multiply_tile<T, Sum>(problem.rows + left * kTile, problem.rows + right * kTile, slot));
  finish_slot(problem, slot, tiles);
}

}  // namespace cga
