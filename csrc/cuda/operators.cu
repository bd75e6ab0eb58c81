// The operators for CUDA tensors; cga_lightning/ops/_library.py documents their schemas.
//
// The workspace comes from torch's caching allocator: no call to the driver once warm, and during graph capture from
// the graph's own pool. Its contents do not matter, so nothing has to be cleared or kept.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../checks.h"
#include "launch.h"

namespace cga::cuda {
namespace {

uint64_t address(const Tensor& tensor) { return reinterpret_cast<uint64_t>(tensor.const_data_ptr()); }

Tensor empty(std::vector<int64_t> shape, ScalarType type, const Tensor& like) {
  return torch::stable::empty(shape, type, std::nullopt, like.device());
}

std::string name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return "f64";
    case ScalarType::Half:
      return "f16";
    case ScalarType::BFloat16:
      return "bf16";
    default:
      return "f32";
  }
}

cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// A plan with a workspace of its own, which lives until the launches are queued: the allocator gives memory out again
// in the order of the stream.
struct Work {
  Plan plan;
  Tensor workspace;

  Work(const std::vector<Tensor>& rows, const Tensor& own, std::vector<int64_t> bounds, const Tensor* dual,
       const Tensor* status, const Tensor* gram)
      : plan(name_of(own.scalar_type()), static_cast<int>(own.element_size()), std::move(bounds),
             device_of(own.get_device_index()), addresses(rows, own, dual, status, gram)),
        workspace(empty({plan.workspace_bytes()}, ScalarType::Byte, own)) {
    plan.set_workspace(address(workspace));
  }

  static Addresses addresses(const std::vector<Tensor>& rows, const Tensor& own, const Tensor* dual,
                             const Tensor* status, const Tensor* gram) {
    const auto given = [](const Tensor* tensor) { return tensor ? address(*tensor) : 0; };
    Addresses all{{}, address(own), 0, given(dual), given(status), given(gram)};
    for (const Tensor& row : rows) all.rows.push_back(address(row));
    return all;
  }
};

std::vector<int64_t> bounds_of(const Tensor& offsets) {
  const int64_t* values = offsets.const_data_ptr<int64_t>();
  return {values, values + offsets.numel()};
}

}  // namespace

Tensor gram(const std::vector<Tensor>& rows, const Tensor& own, const Tensor& offsets, bool exact) {
  check_rows("gram", rows, own, false);
  check_offsets("gram", offsets, own.numel());
  const torch::stable::accelerator::DeviceGuard guard(own.get_device_index());
  const int64_t size = static_cast<int64_t>(rows.size()) + 1;
  Tensor products = empty({offsets.numel() - 1, size, size}, ScalarType::Double, own);
  Work work(rows, own, bounds_of(offsets), nullptr, nullptr, &products);
  work.plan.exact = exact;
  work.plan.ridge = kExactBelow;
  run(work.plan.products(), stream_of(own));
  return products;
}

std::tuple<Tensor, Tensor> solve(const Tensor& products, double margin, double eps) {
  check_products("solve", products);
  check_scalar("solve", "margin", margin);
  check_scalar("solve", "eps", eps);
  const torch::stable::accelerator::DeviceGuard guard(products.get_device_index());
  const int64_t segments = products.size(0), count = products.size(1) - 1;
  Tensor dual = empty({segments, count}, ScalarType::Double, products);
  Tensor status = empty({segments}, ScalarType::Int, products);
  if (segments == 0) return {dual, status};
  const Addresses addresses{std::vector<uint64_t>(count), 0, 0, address(dual), address(status), address(products)};
  Plan plan("f64", 8, std::vector<int64_t>(segments + 1), device_of(products.get_device_index()), addresses);
  plan.margin = margin;
  plan.ridge = eps;
  run(plan.solve(), stream_of(products));
  return {dual, status};
}

void combine_(const std::vector<Tensor>& rows, const Tensor& own, const Tensor& offsets, const Tensor& dual) {
  check_rows("combine_", rows, own, true);
  check_offsets("combine_", offsets, own.numel());
  check_dual("combine_", dual, own, offsets.numel() - 1, static_cast<int64_t>(rows.size()));
  const torch::stable::accelerator::DeviceGuard guard(own.get_device_index());
  Work work(rows, own, bounds_of(offsets), &dual, nullptr, nullptr);
  run(work.plan.combine(), stream_of(own));
}

std::tuple<Tensor, Tensor> project_(const std::vector<Tensor>& rows, const Tensor& own, const Tensor& offsets,
                                    double margin, double eps) {
  check_rows("project_", rows, own, true);
  check_offsets("project_", offsets, own.numel());
  check_scalar("project_", "margin", margin);
  check_scalar("project_", "eps", eps);
  const torch::stable::accelerator::DeviceGuard guard(own.get_device_index());
  const int64_t segments = offsets.numel() - 1;
  Tensor dual = empty({segments, static_cast<int64_t>(rows.size())}, ScalarType::Double, own);
  Tensor status = empty({segments}, ScalarType::Int, own);
  Work work(rows, own, bounds_of(offsets), &dual, &status, nullptr);
  work.plan.margin = margin;
  work.plan.ridge = eps;
  // A device shared with other work may have less room than its attributes say.
  if (!fits(work.plan.project(), device_of(own.get_device_index()))) work.plan.passes = 2;
  run(work.plan.project(), stream_of(own));
  return {dual, status};
}

}  // namespace cga::cuda

STABLE_TORCH_LIBRARY_IMPL(cga_lightning, CUDA, library) {
  library.impl("gram", TORCH_BOX(&cga::cuda::gram));
  library.impl("solve", TORCH_BOX(&cga::cuda::solve));
  library.impl("combine_", TORCH_BOX(&cga::cuda::combine_));
  library.impl("project_", TORCH_BOX(&cga::cuda::project_));
}
