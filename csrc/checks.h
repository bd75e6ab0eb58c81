// Argument checks of every backend. A message names the operator, the argument, the rule and what was found.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace cga {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxRows = 64;

#define CGA_CHECK(condition, ...) STD_TORCH_CHECK(condition, "cga_lightning::", __VA_ARGS__)

inline void check_own(const char* op, const Tensor& own) {
  const ScalarType type = own.scalar_type();
  CGA_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                type == ScalarType::BFloat16,
            op, ": own must be float32, float16, bfloat16 or float64, found ", type);
  CGA_CHECK(own.dim() == 1 && own.numel() > 0, op, ": own must have shape [d] with d >= 1, found ", own.dim(),
            " axes and ", own.numel(), " elements");
  CGA_CHECK(own.is_contiguous(), op, ": own must be contiguous, found stride ", own.stride(0));
}

// Two tensors share no memory; both are contiguous and of one type.
inline bool are_disjoint(const Tensor& a, const Tensor& b) {
  const auto begin = [](const Tensor& x) { return reinterpret_cast<uintptr_t>(x.const_data_ptr()); };
  const auto end = [&](const Tensor& x) { return begin(x) + x.numel() * x.element_size(); };
  return end(a) <= begin(b) || end(b) <= begin(a);
}

inline void check_rows(const char* op, const std::vector<Tensor>& rows, const Tensor& own, bool overwrites_own) {
  const int64_t count = static_cast<int64_t>(rows.size());
  CGA_CHECK(count >= 1 && count <= kMaxRows, op, ": rows must hold 1 to ", kMaxRows, " tensors, found ", count);
  check_own(op, own);
  for (int64_t k = 0; k < count; ++k) {
    const Tensor& row = rows[k];
    CGA_CHECK(row.scalar_type() == own.scalar_type(), op, ": rows[", k, "] must have the dtype of own, ",
              own.scalar_type(), ", found ", row.scalar_type());
    CGA_CHECK(row.dim() == 1 && row.numel() == own.numel(), op, ": rows[", k, "] must have the shape of own, [",
              own.numel(), "], found ", row.dim(), " axes and ", row.numel(), " elements");
    CGA_CHECK(row.device() == own.device(), op, ": rows[", k, "] must be on the device of own");
    CGA_CHECK(row.is_contiguous(), op, ": rows[", k, "] must be contiguous, found stride ", row.stride(0));
    CGA_CHECK(!overwrites_own || are_disjoint(row, own), op, ": rows[", k, "] must not share memory with own");
  }
}

// offsets: segment bounds on the CPU.
inline void check_offsets(const char* op, const Tensor& offsets, int64_t length) {
  CGA_CHECK(offsets.scalar_type() == ScalarType::Long, op, ": offsets must be int64, found ", offsets.scalar_type());
  CGA_CHECK(offsets.is_cpu(), op, ": offsets must be on the CPU");
  CGA_CHECK(offsets.dim() == 1 && offsets.numel() >= 2 && offsets.is_contiguous(), op,
            ": offsets must be contiguous, of shape [s + 1] with s >= 1, found ", offsets.dim(), " axes and ",
            offsets.numel(), " elements");
  const int64_t* bounds = offsets.const_data_ptr<int64_t>();
  const int64_t last = offsets.numel() - 1;
  CGA_CHECK(bounds[0] == 0, op, ": offsets must start at 0, found ", bounds[0]);
  CGA_CHECK(bounds[last] == length, op, ": offsets must end at d = ", length, ", found ", bounds[last]);
  for (int64_t i = 0; i < last; ++i) {
    CGA_CHECK(bounds[i] <= bounds[i + 1], op, ": offsets must not decrease, found offsets[", i, "] = ", bounds[i],
              ", offsets[", i + 1, "] = ", bounds[i + 1]);
  }
}

inline void check_scalar(const char* op, const char* name, double value) {
  CGA_CHECK(std::isfinite(value) && value >= 0, op, ": ", name, " must be finite and at least 0, found ", value);
}

// A matrix of K numbers per segment (dual), or of (K + 1) x (K + 1) (products): float64 and contiguous.
inline void check_float64(const char* op, const char* name, const Tensor& tensor, int64_t axes) {
  CGA_CHECK(tensor.scalar_type() == ScalarType::Double, op, ": ", name, " must be float64, found ",
            tensor.scalar_type());
  CGA_CHECK(tensor.dim() == axes && tensor.is_contiguous(), op, ": ", name, " must be contiguous with ", axes,
            " axes, found ", tensor.dim());
}

inline void check_products(const char* op, const Tensor& products) {
  check_float64(op, "products", products, 3);
  const int64_t size = products.size(1);
  CGA_CHECK(size == products.size(2) && size >= 2 && size <= kMaxRows + 1, op,
            ": products must have shape [s, K + 1, K + 1] with 1 <= K <= ", kMaxRows, ", found ", size, " x ",
            products.size(2));
}

inline void check_dual(const char* op, const Tensor& dual, int64_t segments, int64_t count) {
  check_float64(op, "dual", dual, 2);
  CGA_CHECK(dual.size(0) == segments && dual.size(1) == count, op, ": dual must have shape [s, K] = [", segments, ", ",
            count, "], found [", dual.size(0), ", ", dual.size(1), "]");
}

}  // namespace cga
