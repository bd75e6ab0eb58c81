// Stands in for the CUDA runtime: what nvcc's host code registers are the translated kernels, by their names in PTX.
#include <map>
#include <string>
#include <utility>

#include "ptx.h"

// Of all translated units.
std::vector<simt::Entry> ptx_all();

// As cuda_runtime_api.h declares them, whose vectors are those of simt.h here.
struct dim3 { unsigned x, y, z; };
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDeviceFunction = 98, cudaErrorNoDevice = 100,
                   cudaErrorLaunchFailure = 719, cudaErrorUnknown = 999 };

namespace {

std::map<const void*, std::string>& registered() {
  static std::map<const void*, std::string> kernels;
  return kernels;
}

struct Array { u64 begin, end; };
std::vector<Array> arrays;
u64 accesses[17];  // of arrays, by bytes
simt::Launch schedule{};
std::string failure, launched;

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared, bool together) {
  const auto found = registered().find(function);
  if (found == registered().end()) return cudaErrorInvalidDeviceFunction;
  launched += found->second + " ";
  simt::Launch shape{grid.x, block.x, shared, together ? grid.x : schedule.resident, schedule.order, schedule.seed};
  static const std::vector<simt::Entry> kernels = ptx_all();
  const char* error = simt::run_kernel(kernels.data(), kernels.size(), found->second.c_str(), shape, arguments);
  failure = error ? error : "";
  return error ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t known(const void* function) {
  return registered().count(function) ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}

}  // namespace

void check_memory(u64 address, u64 bytes) {
  for (const Array& array : arrays)
    if (address >= array.begin && address + bytes <= array.end) return void(++accesses[bytes]);
  // What is local to a thread, its parameters too, is on the stack.
  const u64 here = reinterpret_cast<u64>(__builtin_frame_address(0));
  if (address > here && address < here + 256 * 1024) return;
  simt::refuse("access outside of every array");
}

extern "C" {

void ptx_schedule(int order, unsigned seed, unsigned resident) {
  schedule.order = order;
  schedule.seed = seed;
  schedule.resident = resident;
}
void ptx_forget() { arrays.clear(); }
void ptx_announce(const void* begin, u64 bytes) { arrays.push_back({address(begin), address(begin) + bytes}); }
u64 ptx_accesses(int bytes) { return std::exchange(accesses[bytes], 0); }
const char* ptx_launched() { return launched.c_str(); }

void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, dim3*, dim3*,
                            int*) {
  registered()[function] = name;
}
// Of the launches with <<<>>>, of which there is none.
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return 1; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorUnknown; }
cudaError_t __cudaGetKernel(void*, const void*) { return cudaErrorUnknown; }
cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, void*) { return cudaErrorUnknown; }

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             void* /* stream */) {
  return launch(function, grid, block, arguments, shared, false);
}
cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                                        void* /* stream */) {
  return launch(function, grid, block, arguments, shared, true);
}
cudaError_t cudaFuncSetAttribute(const void* function, int, int) { return known(function); }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int, size_t) {
  *blocks = 2;
  return known(function);
}
cudaError_t cudaDeviceGetAttribute(int*, int, int) { return cudaErrorNoDevice; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDeviceFunction ? "invalid device function" : failure.c_str();
}
}
