// Argument checks of every backend. A message names the operator, the argument, the rule and what was found, in the
// words of cga_lightning/ops/_checks.py.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace cga {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxRows = 64;

#define CGA_CHECK(condition, ...) STD_TORCH_CHECK(condition, "cga_lightning::", __VA_ARGS__, ".")

inline std::string dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    default:
      return torch::headeronly::toString(tensor.scalar_type());
  }
}

template <class Value>
std::string listed(const Tensor& tensor, const Value& value) {
  std::string text;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) text += (axis ? ", " : "") + std::to_string(value(axis));
  return "[" + text + "]";
}

inline std::string shape_of(const Tensor& tensor) {
  return listed(tensor, [&](int64_t axis) { return tensor.size(axis); });
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return (tensor.is_cuda() ? "cuda:" : "another device, ") + std::to_string(tensor.get_device_index());
}

inline void check_contiguous(const char* op, const std::string& name, const Tensor& tensor) {
  CGA_CHECK(tensor.is_contiguous(), op, ": ", name, " must be contiguous, found stride ",
            listed(tensor, [&](int64_t axis) { return tensor.stride(axis); }), "; call .contiguous()");
}

inline void check_own(const char* op, const Tensor& own) {
  const ScalarType type = own.scalar_type();
  CGA_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                type == ScalarType::BFloat16,
            op, ": own must be float32, float16, bfloat16 or float64, found ", dtype_of(own));
  CGA_CHECK(own.dim() == 1 && own.numel() > 0, op, ": own must have shape [d] with d >= 1, found ", shape_of(own));
  check_contiguous(op, "own", own);
}

// Two tensors share no memory; both are contiguous and of one type.
inline bool are_disjoint(const Tensor& a, const Tensor& b) {
  const auto begin = [](const Tensor& x) { return reinterpret_cast<uintptr_t>(x.const_data_ptr()); };
  const auto end = [&](const Tensor& x) { return begin(x) + x.numel() * x.element_size(); };
  return end(a) <= begin(b) || end(b) <= begin(a);
}

inline void check_device(const char* op, const std::string& name, const Tensor& tensor, const Tensor& own) {
  CGA_CHECK(tensor.device() == own.device(), op, ": ", name, " must be on the device of own, ", device_of(own),
            ", found ", device_of(tensor));
}

inline void check_row(const char* op, const std::string& name, const Tensor& row, const Tensor& own) {
  CGA_CHECK(row.scalar_type() == own.scalar_type(), op, ": ", name, " must have the dtype of own, ", dtype_of(own),
            ", found ", dtype_of(row));
  CGA_CHECK(row.dim() == 1 && row.numel() == own.numel(), op, ": ", name, " must have the shape of own, ",
            shape_of(own), ", found ", shape_of(row));
  check_device(op, name, row, own);
  check_contiguous(op, name, row);
}

inline void check_rows(const char* op, const std::vector<Tensor>& rows, const Tensor& own, bool overwrites_own) {
  check_own(op, own);
  const int64_t count = static_cast<int64_t>(rows.size());
  CGA_CHECK(count >= 1 && count <= kMaxRows, op, ": rows must have 1 to ", kMaxRows, " rows, found ", count);
  for (int64_t k = 0; k < count; ++k) {
    const std::string name = "rows[" + std::to_string(k) + "]";
    check_row(op, name, rows[k], own);
    CGA_CHECK(!overwrites_own || are_disjoint(rows[k], own), op, ": ", name, " must not share memory with own");
  }
}

// offsets: segment bounds on the CPU.
inline void check_offsets(const char* op, const Tensor& offsets, int64_t length) {
  CGA_CHECK(offsets.scalar_type() == ScalarType::Long, op, ": offsets must be an int64 tensor, found ",
            dtype_of(offsets));
  CGA_CHECK(offsets.is_cpu(), op, ": offsets must be on the CPU, found ", device_of(offsets),
            ": reading its values would wait for the device");
  CGA_CHECK(offsets.dim() == 1 && offsets.numel() >= 2, op, ": offsets must have shape [s + 1] with s >= 1, found ",
            shape_of(offsets));
  check_contiguous(op, "offsets", offsets);
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

inline void check_float64(const char* op, const char* name, const Tensor& tensor) {
  CGA_CHECK(tensor.scalar_type() == ScalarType::Double, op, ": ", name, " must be float64, found ", dtype_of(tensor));
}

inline void check_products(const char* op, const Tensor& products) {
  check_float64(op, "products", products);
  CGA_CHECK(products.dim() == 3 && products.size(1) == products.size(2) && products.size(1) >= 2 &&
                products.size(1) <= kMaxRows + 1,
            op, ": products must have shape [s, K + 1, K + 1] with 1 <= K <= ", kMaxRows, ", found ",
            shape_of(products));
  check_contiguous(op, "products", products);
}

inline void check_dual(const char* op, const Tensor& dual, const Tensor& own, int64_t segments, int64_t count) {
  check_float64(op, "dual", dual);
  CGA_CHECK(dual.dim() == 2 && dual.size(0) == segments && dual.size(1) == count, op,
            ": dual must have shape [s, K] = [", segments, ", ", count, "], found ", shape_of(dual));
  check_device(op, "dual", dual, own);
  check_contiguous(op, "dual", dual);
}

}  // namespace cga
