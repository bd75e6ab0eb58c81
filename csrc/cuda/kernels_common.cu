// The kernels that no element type concerns.
#define CGA_TYPE 0
#include "../kernels/kernels.cuh"
#include "launch.h"

namespace cga::cuda {

const std::vector<Kernel> kernels_common = {
    CGA_KERNELS_0(CGA_KERNEL_ADDRESS)
    {"prepare", reinterpret_cast<const void*>(::prepare)},
};

}  // namespace cga::cuda
