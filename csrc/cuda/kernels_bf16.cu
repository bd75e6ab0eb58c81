// The kernels for bfloat16.
#define CGA_TYPE 3
#include "../kernels/kernels.cuh"
#include "launch.h"

namespace cga::cuda {

const std::vector<Kernel> kernels_bf16 = {
    CGA_KERNELS_3(CGA_KERNEL_ADDRESS)
};

}  // namespace cga::cuda
