// Kernels that break a rule of CUDA each: the executor must notice.
#include <iterator>

#include "simt.h"

namespace {

int* numbers() { return reinterpret_cast<int*>(simt::shared_memory()); }

void divergent_barrier(const void* const*) {
  if (threadIdx.x < 32) __syncthreads();
  else
    __syncthreads();
}

void early_exit(const void* const*) {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

void exit_before_barrier(const void* const*) {
  if (threadIdx.x == 0) return;
  __syncthreads();
}

void lane_outside_mask(const void* const*) { __ballot_sync(0xffu, true); }

void missing_lane(const void* const*) {
  if (threadIdx.x >= 32) __ballot_sync(0xffffffffu, true);
}

void divergent_shuffle(const void* const*) {
  if (threadIdx.x % 2) __shfl_xor_sync(0xffffffffu, 1, 1);
  else
    __shfl_xor_sync(0xffffffffu, 2, 1);
}

void shuffle_from_outside(const void* const*) {
  if (threadIdx.x < 8) __shfl_xor_sync(0xffu, 1, 8);
}

void waits_for_ever(const void* const*) {
  while (numbers()[0] != 1) simt::pause();
}

void half_a_warp_waits(const void* const*) {
  if (threadIdx.x < 16) __syncwarp(0xffffffffu);
  else
    __syncthreads();
}

void reads_unset_shared_memory(const void* const* arguments) {
  if (threadIdx.x == 0) *const_cast<int*>(static_cast<const int*>(arguments[0])) = numbers()[1];
}

// Not faults: masks of half a warp at a time, and values that travel.
void sums_by_halves(const void* const* arguments) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
  int value = threadIdx.x;
  for (unsigned offset = 8; offset > 0; offset /= 2) value += __shfl_xor_sync(mask, value, offset);
  numbers()[threadIdx.x] = value;
  __syncthreads();
  const_cast<int*>(static_cast<const int*>(arguments[0]))[threadIdx.x] = numbers()[(threadIdx.x + 16) % blockDim.x];
}

#define SIMT_FAULT(name) {#name, name},
const simt::Entry kEntries[] = {
    SIMT_FAULT(divergent_barrier) SIMT_FAULT(early_exit) SIMT_FAULT(exit_before_barrier) SIMT_FAULT(lane_outside_mask)
    SIMT_FAULT(missing_lane) SIMT_FAULT(divergent_shuffle) SIMT_FAULT(shuffle_from_outside)
    SIMT_FAULT(waits_for_ever) SIMT_FAULT(half_a_warp_waits) SIMT_FAULT(reads_unset_shared_memory)
    SIMT_FAULT(sums_by_halves)};

}  // namespace

extern "C" const char* simt_launch(const char* name, simt::Launch launch, const void* const* arguments) {
  return simt::run_kernel(kEntries, std::size(kEntries), name, launch, arguments);
}

extern "C" size_t simt_size(int) { return 0; }
