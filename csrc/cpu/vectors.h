// What the operators of compressors ask of their vectors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"

namespace cga::cpu {

inline void check_vector(const char* op, const char* name, const Tensor& tensor, ScalarType type, int64_t length) {
  CGA_CHECK(tensor.is_cpu() && tensor.scalar_type() == type && tensor.dim() == 1 && tensor.numel() == length &&
                tensor.is_contiguous(),
            op, ": ", name, " must be contiguous ", type, " [", length, "] on the CPU, found ", tensor.scalar_type(),
            " with ", tensor.numel(), " elements");
}

inline Tensor empty_vector(int64_t length, ScalarType type) {
  return torch::stable::empty({length}, type, std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

}  // namespace cga::cpu
