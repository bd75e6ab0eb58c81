// The kernels for float16.
#define CGA_TYPE 2
#include "../kernels/kernels.cuh"
#include "launch.h"

namespace cga::cuda {

const std::vector<Kernel> kernels_f16 = {
    CGA_KERNELS_2(CGA_KERNEL_ADDRESS)
};

}  // namespace cga::cuda
