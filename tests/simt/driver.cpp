// The executor as a library: launches a kernel of csrc/kernels by its name, as a GPU driver would.
#include <iterator>

#include "simt.h"

#define __noinline__ __attribute__((noinline))
#include "kernels.cuh"

CGA_KERNELS_0(CGA_DEFINE)
CGA_KERNELS_1(CGA_DEFINE)
CGA_KERNELS_2(CGA_DEFINE)
CGA_KERNELS_3(CGA_DEFINE)
CGA_KERNELS_4(CGA_DEFINE)

#define SIMT_ENTRY(name, threads, blocks, ...) \
  {#name, [](const void* const* arguments) { name(*static_cast<const cga::Problem*>(arguments[0])); }},
const simt::Entry kEntries[] = {
    CGA_KERNELS_0(SIMT_ENTRY) CGA_KERNELS_1(SIMT_ENTRY) CGA_KERNELS_2(SIMT_ENTRY) CGA_KERNELS_3(SIMT_ENTRY)
    CGA_KERNELS_4(SIMT_ENTRY)
    {"prepare", [](const void* const* arguments) {
       cga::prepare(*static_cast<const cga::Problem*>(arguments[0]), *static_cast<const cga::Table*>(arguments[1]));
     }},
};

extern "C" const char* simt_launch(const char* name, simt::Launch launch, const void* const* arguments) {
  return simt::run_kernel(kEntries, std::size(kEntries), name, launch, arguments);
}

extern "C" size_t simt_size(int table) { return table ? sizeof(cga::Table) : sizeof(cga::Problem); }
