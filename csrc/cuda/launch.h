// From the launches of a plan to the CUDA runtime.
#pragma once
#include <cuda_runtime.h>

#include <vector>

#include "plan.h"

namespace cga::cuda {

struct Kernel {
  const char* name;
  const void* function;
};

#define CGA_KERNEL_ADDRESS(name, threads, blocks, ...) {#name, reinterpret_cast<const void*>(name)},

// One list for every translation unit of kernels.
extern const std::vector<Kernel> kernels_common, kernels_f32, kernels_f16, kernels_bf16, kernels_f64;

// Whether all blocks of the cooperative launch among these fit on the device at once.
bool fits(const std::vector<Launch>& launches, const Device& device);
void run(const std::vector<Launch>& launches, cudaStream_t stream);
Device device_of(int index);

}  // namespace cga::cuda
