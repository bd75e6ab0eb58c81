// The operators for CPU tensors.
#include "operators.h"

#include <torch/csrc/stable/ops.h>

#include "../checks.h"
#include "problem.h"

namespace cga::cpu {
namespace {

// Below this ridge the rounding of a float product would decide which cross-gradients are dependent.
constexpr double kExactBelow = 1e-6;

Element element_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return Element::float64;
    case ScalarType::Half:
      return Element::float16;
    case ScalarType::BFloat16:
      return Element::bfloat16;
    default:
      return Element::float32;
  }
}

Problem problem_of(const std::vector<Tensor>& rows, const Tensor& own, const Tensor& offsets) {
  Problem problem;
  for (const Tensor& row : rows) problem.rows.push_back(row.const_data_ptr());
  problem.rows.push_back(own.const_data_ptr());
  problem.own = own.mutable_data_ptr();
  problem.element = element_of(own.scalar_type());
  problem.offsets = offsets.const_data_ptr<int64_t>();
  problem.segments = offsets.numel() - 1;
  return problem;
}

Tensor empty(std::vector<int64_t> shape, ScalarType type) {
  return torch::stable::empty(shape, type, std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

}  // namespace

Tensor gram(const std::vector<Tensor>& rows, const Tensor& own, const Tensor& offsets, bool exact) {
  check_rows("gram", rows, own, false);
  check_offsets("gram", offsets, own.numel());
  const Problem problem = problem_of(rows, own, offsets);
  Tensor products = empty({problem.segments, problem.count(), problem.count()}, ScalarType::Double);
  gram(problem, exact, products.mutable_data_ptr<double>());
  return products;
}

std::tuple<Tensor, Tensor> solve(const Tensor& products, double margin, double eps) {
  check_products("solve", products);
  check_scalar("solve", "margin", margin);
  check_scalar("solve", "eps", eps);
  const int64_t segments = products.size(0), count = products.size(1) - 1;
  Tensor dual = empty({segments, count}, ScalarType::Double), status = empty({segments}, ScalarType::Int);
  solve_all(products.const_data_ptr<double>(), segments, static_cast<int>(count), margin, eps,
            dual.mutable_data_ptr<double>(), status.mutable_data_ptr<int32_t>());
  return {dual, status};
}

void combine_(const std::vector<Tensor>& rows, const Tensor& own, const Tensor& offsets, const Tensor& dual) {
  check_rows("combine_", rows, own, true);
  check_offsets("combine_", offsets, own.numel());
  const Problem problem = problem_of(rows, own, offsets);
  check_dual("combine_", dual, own, problem.segments, problem.count() - 1);
  combine(problem, dual.const_data_ptr<double>());
}

std::tuple<Tensor, Tensor> project_(const std::vector<Tensor>& rows, const Tensor& own, const Tensor& offsets,
                                    double margin, double eps) {
  check_rows("project_", rows, own, true);
  check_offsets("project_", offsets, own.numel());
  check_scalar("project_", "margin", margin);
  check_scalar("project_", "eps", eps);
  const Problem problem = problem_of(rows, own, offsets);
  const int count = problem.count() - 1;
  std::vector<double> products(problem.segments * (count + 1) * (count + 1));
  Tensor dual = empty({problem.segments, count}, ScalarType::Double), status = empty({problem.segments}, ScalarType::Int);
  gram(problem, eps < kExactBelow, products.data());
  solve_all(products.data(), problem.segments, count, margin, eps, dual.mutable_data_ptr<double>(),
            status.mutable_data_ptr<int32_t>());
  combine(problem, dual.const_data_ptr<double>());
  return {dual, status};
}

}  // namespace cga::cpu
