// The kernels for float32.
#define CGA_TYPE 1
#include "../kernels/kernels.cuh"
#include "launch.h"

namespace cga::cuda {

const std::vector<Kernel> kernels_f32 = {
    CGA_KERNELS_1(CGA_KERNEL_ADDRESS)
};

}  // namespace cga::cuda
