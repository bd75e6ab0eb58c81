// Launches on a stream. Nothing here allocates or waits, so a CUDA graph can record it.
#include "launch.h"

#include <torch/headeronly/util/Exception.h>

namespace cga::cuda {
namespace {

// In the words of cga_lightning/ops/_choice.py.
constexpr const char* kAdvice =
    "; set CGA_LIGHTNING_BACKEND=cupy or CGA_LIGHTNING_BACKEND=torch to choose another (python -m cga_lightning info "
    "shows what is there).";

void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // the next call starts clean
  STD_TORCH_CHECK(false, "cga_lightning: the backend cuda has failed at ", what, ": ", cudaGetErrorString(error),
                  kAdvice);
}

const void* find(const std::string& name) {
  for (const auto* list : {&kernels_common, &kernels_f32, &kernels_f16, &kernels_bf16, &kernels_f64})
    for (const Kernel& kernel : *list)
      if (name == kernel.name) return kernel.function;
  STD_TORCH_CHECK(false, "cga_lightning: the backend cuda has no kernel ", name, kAdvice);
}

// Beyond 48 KB a kernel has to ask for its shared memory.
const void* prepared(const Launch& launch) {
  const void* function = find(launch.kernel);
  if (launch.shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(launch.shared_bytes)),
          launch.kernel + " cannot have " + std::to_string(launch.shared_bytes) + " bytes of shared memory");
  }
  return function;
}

}  // namespace

bool fits(const std::vector<Launch>& launches, const Device& device) {
  for (const Launch& launch : launches) {
    if (!launch.cooperative) continue;
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, prepared(launch), launch.block, launch.shared_bytes),
          launch.kernel);
    if (int64_t{blocks} * device.processors < launch.grid) return false;
  }
  return true;
}

void run(const std::vector<Launch>& launches, cudaStream_t stream) {
  for (const Launch& launch : launches) {
    const void* function = prepared(launch);
    const dim3 grid(static_cast<unsigned>(launch.grid)), block(launch.block);
    void* arguments[2] = {const_cast<Problem*>(&launch.problem),
                          launch.table.empty() ? nullptr : const_cast<Table*>(launch.table.data())};
    check(launch.cooperative
              ? cudaLaunchCooperativeKernel(function, grid, block, arguments, launch.shared_bytes, stream)
              : cudaLaunchKernel(function, grid, block, arguments, launch.shared_bytes, stream),
          launch.kernel);
  }
}

Device device_of(int index) {
  const auto attribute = [index](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, index), "device attribute");
    return value;
  };
  return {attribute(cudaDevAttrComputeCapabilityMajor), attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMultiProcessorCount)};
}

}  // namespace cga::cuda
