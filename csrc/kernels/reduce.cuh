// From the partial sums of the slots to the Gram matrix of a segment, in float64 and always in the same order. The
// block that finishes last does the work: no launch and no host in between, and no atomic addition of floats.
#pragma once
#include "problem.cuh"
#include "solve.cuh"

namespace cga {

// Dynamic shared memory: 16 bytes for a flag, then what the current step needs.
template <typename V>
__device__ __forceinline__ V* shared_work() {
  return reinterpret_cast<V*>(shared_memory() + 16);
}

// Whether this block is the last of `expected` to arrive; if so, it sees what the others wrote before.
__device__ __forceinline__ bool arrives_last(unsigned* arrivals, unsigned expected) {
  unsigned* flag = reinterpret_cast<unsigned*>(shared_memory());
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *flag = atomicAdd(arrivals, 1u) + 1 == expected;
  __syncthreads();
  const bool last = *flag != 0;
  if (last) __threadfence();
  return last;
}

// Sum of entry p over `count` partials, the slots `stride` apart.
__device__ __forceinline__ double sum_partials(const Problem& problem, long long first, long long count, int stride,
                                               int p) {
  const int pairs = pair_count(problem);
  const double* partial = problem.partials + first * pairs + p;
  double sum = 0;
#pragma unroll 8
  for (long long s = 0; s < count; ++s) sum += __ldcg(partial + s * stride * pairs);
  return sum;
}

__device__ __forceinline__ void store_gram(const Problem& problem, const Slot& slot, long long groups) {
  const int rows = problem.cross + 1;
  double* gram = problem.gram + static_cast<long long>(slot.segment) * rows * rows;
  for (int entry = threadIdx.x; entry < rows * rows; entry += blockDim.x) {
    const int i = entry / rows, j = entry % rows;
    if (i > j) continue;
    const double sum = sum_partials(problem, slot.first, groups, kSlotsPerGroup, pair_index(i, j));
    gram[i * rows + j] = sum;
    gram[j * rows + i] = sum;
  }
}

// Called by every block once its partial of a slot is written; `blocks` of them share a slot. The sums of a group of
// slots replace the partial of its first slot, and the last group of a segment goes on to solve.
inline __device__ __noinline__ void finish_slot(const Problem& problem, const Slot& slot, int blocks) {
  const long long place = (slot.index - slot.first) / kSlotsPerGroup * kSlotsPerGroup;
  const long long left = slot.count - place;
  const long long count = left < kSlotsPerGroup ? left : kSlotsPerGroup;
  const long long first = slot.first + place;
  if (!arrives_last(problem.slot_arrivals + first, static_cast<unsigned>(count * blocks))) return;
  for (int p = threadIdx.x; p < pair_count(problem); p += blockDim.x) {
    problem.partials[first * pair_count(problem) + p] = sum_partials(problem, first, count, 1, p);
  }
  const long long groups = (slot.count + kSlotsPerGroup - 1) / kSlotsPerGroup;
  if (!arrives_last(problem.segment_arrivals + slot.segment, static_cast<unsigned>(groups))) return;
  store_gram(problem, slot, groups);
  __syncthreads();
  if (problem.phases & kSolve) solve_segment(problem, slot.segment, shared_memory() + 16);
  if (problem.phases & kCombine) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) store_release(problem.ready + slot.segment, 1u);
  }
}

}  // namespace cga
