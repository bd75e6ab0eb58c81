// Torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace cga::cpu {

// body(index) for every index below `size`; at least `grain` of them per thread.
template <class Body>
void parallel_for(int64_t size, int64_t grain, const Body& body) {
  torch::stable::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) body(index);
  });
}

}  // namespace cga::cpu
