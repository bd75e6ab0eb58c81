// The operators for CPU tensors; cga_lightning/ops/_library.py documents their schemas.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

namespace cga::cpu {

using torch::stable::Tensor;

Tensor gram(const std::vector<Tensor>& rows, const Tensor& own, const Tensor& offsets, bool exact);
std::tuple<Tensor, Tensor> solve(const Tensor& products, double margin, double eps);
void combine_(const std::vector<Tensor>& rows, const Tensor& own, const Tensor& offsets, const Tensor& dual);
std::tuple<Tensor, Tensor> project_(const std::vector<Tensor>& rows, const Tensor& own, const Tensor& offsets,
                                    double margin, double eps);

}  // namespace cga::cpu
