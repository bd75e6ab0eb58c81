// The kernels for float64.
#define CGA_TYPE 4
#include "../kernels/kernels.cuh"
#include "launch.h"

namespace cga::cuda {

const std::vector<Kernel> kernels_f64 = {
    CGA_KERNELS_4(CGA_KERNEL_ADDRESS)
};

}  // namespace cga::cuda
