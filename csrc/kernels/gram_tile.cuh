// Pass 1 for any number of rows, any alignment and any device: a block forms the products of 8 rows with 8 rows, column
// by column. With Sum = double this is the exact path (float64 rows, small ridge, unaligned rows); with Sum = float it
// serves more than 8 rows on devices without tensor cores for these types.
#pragma once
#include "reduce.cuh"
#include "run.cuh"

namespace cga {

constexpr int kTileThreads = 256;
constexpr int kTileRun = 64;  // steps before the sums are widened: terms in float32
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

  // Whether the warp's columns hold what float32 cannot. Products between rows may cancel; then the squares turn out to
  // be safe.
  __device__ __forceinline__ bool are_delicate(const void* const* left, const void* const* right,
                                               const Run& run) const {
    bool unsafe = false;
#pragma unroll
    for (int o = 0; o < kOwned; ++o) unsafe |= !is_safe(fabs(total[o]));
    if (__ballot_sync(kWarp, unsafe) == 0) return false;
    bool delicate = false;
    for (int i = 0; i < kTile; ++i) {
      delicate |= is_delicate(static_cast<const T*>(left[i]), run) || is_delicate(static_cast<const T*>(right[i]), run);
    }
    return delicate;
  }
};

template <typename T, typename Sum>
__device__ __forceinline__ void multiply_tile(const void* const* left, const void* const* right, const Run& run,
                                              TileProducts<T, Sum>& products) {
  int steps = 0;
  for (long long base = run.begin; base < run.end; base += run.stride) {
    const long long column = base + lane_index();
    Sum x[kTile], y[kTile];
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const bool inside = column < run.end;
      x[i] = inside ? static_cast<Sum>(Element<T>::widen(static_cast<const T*>(left[i])[column])) : 0;
      y[i] = inside ? static_cast<Sum>(Element<T>::widen(static_cast<const T*>(right[i])[column])) : 0;
    }
    products.add(x, y);
    if (++steps % kTileRun == 0) products.close();
  }
  products.close();
}

// Adds the totals of the warps in their order: products of rows i0 and on with rows j0 and on.
template <typename T, typename Sum>
__device__ __forceinline__ void store_tile(const Problem& problem, const Slot& slot, int i0, int j0,
                                           const TileProducts<T, Sum>& products, bool delicate) {
  constexpr int kPairs = TileProducts<T, Sum>::kPairs;
  double* totals = shared_work<double>();
  const int warp = warp_index(), lane = lane_index();
#pragma unroll
  for (int o = 0; o < TileProducts<T, Sum>::kOwned; ++o) totals[warp * kPairs + lane + 32 * o] = products.total[o];
  if (__syncthreads_or(delicate)) return store_wide<T>(problem, slot, i0, i0 + kTile, j0, j0 + kTile);
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
  int i0 = blockIdx.x % tiles, j0 = 0;
  while (i0 > j0) i0 -= ++j0;
  i0 *= kTile;
  j0 *= kTile;
  const Slot slot = find_slot(problem, blockIdx.x / tiles);
  const Run run = warp_run(slot, 32);
  const void* const* left = problem.rows + i0;
  const void* const* right = problem.rows + j0;
  TileProducts<T, Sum> products;
  multiply_tile(left, right, run, products);
  const bool delicate = kIsFloat<Sum> && Element<T>::kDelicate && products.are_delicate(left, right, run);
  store_tile(problem, slot, i0, j0, products, delicate);
  finish_slot(problem, slot, tiles);
}

}  // namespace cga
