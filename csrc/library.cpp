// Registration of the CPU kernels. The schemas are defined in Python, where they exist without this library too.
#include <torch/csrc/stable/library.h>

#include "cpu/operators.h"

STABLE_TORCH_LIBRARY_IMPL(cga_lightning, CPU, library) {
  library.impl("gram", TORCH_BOX(&cga::cpu::gram));
  library.impl("solve", TORCH_BOX(&cga::cpu::solve));
  library.impl("combine_", TORCH_BOX(&cga::cpu::combine_));
  library.impl("project_", TORCH_BOX(&cga::cpu::project_));
}
