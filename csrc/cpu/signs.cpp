// Signs of a float32 vector, one bit per element, and a memory of what they lose: two passes over memory. In plain
// torch, cga_lightning/compression/sign.py and feedback.py, the same takes eight.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "../checks.h"
#include "parallel.h"
#include "vectors.h"

namespace cga::cpu {
namespace {

constexpr int64_t kChunk = 1 << 14;  // elements that one task takes; whole bytes of signs, and they stay in L1 or L2

// The parts of a vector of `length` elements that have a scale each, in ascending order.
struct Parts {
  const int64_t* starts;
  const int64_t* sizes;
  int64_t count;

  // body(part, begin, end) for what every part covers of one chunk.
  template <class Body>
  void within(int64_t first, int64_t last, const Body& body) const {
    int64_t i = std::max<int64_t>(0, std::upper_bound(starts, starts + count, first) - starts - 1);
    for (; i < count && starts[i] < last; ++i) {
      const int64_t begin = std::max(first, starts[i]), end = std::min(last, starts[i] + sizes[i]);
      if (begin < end) body(i, begin, end);
    }
  }
};

Parts parts_of(const char* op, const Tensor& parts, int64_t length) {
  CGA_CHECK(parts.scalar_type() == ScalarType::Long && parts.is_cpu() && parts.dim() == 2 && parts.size(0) == 2 &&
                parts.is_contiguous(),
            op, ": parts must be contiguous int64 [2, s] on the CPU, starts and sizes");
  const int64_t* starts = parts.const_data_ptr<int64_t>();
  const Parts found{starts, starts + parts.size(1), parts.size(1)};
  for (int64_t i = 0; i < found.count; ++i) {
    const int64_t least = i == 0 ? 0 : starts[i - 1] + found.sizes[i - 1];
    CGA_CHECK(starts[i] >= least && found.sizes[i] >= 0 && found.sizes[i] <= length - starts[i], op,
              ": parts must follow each other within d = ", length, ", part ", i, " starts at ", starts[i], " and has ",
              found.sizes[i], " elements");
  }
  return found;
}

int64_t chunks(int64_t length) { return (length + kChunk - 1) / kChunk; }

// In 16 sums of at most kChunk / 16 terms, which the compiler keeps in vectors.
double norm(const float* values, int64_t count) {
  float sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (int lane = 0; lane < 16; ++lane) sums[lane] += std::fabs(values[i + lane]);
  }
  for (; i < count; ++i) sums[0] += std::fabs(values[i]);
  double total = 0;
  for (const float sum : sums) total += sum;
  return total;
}

void pack(const float* values, int64_t count, uint8_t* packed) {
  for (int64_t i = 0; i < count; i += 8) {
    uint32_t byte = 0;
    for (int64_t lane = 0; lane < std::min<int64_t>(8, count - i); ++lane) {
      byte |= std::bit_cast<uint32_t>(values[i + lane]) >> 31 << lane;
    }
    packed[i / 8] = static_cast<uint8_t>(byte);
  }
}

// The sign bits of the eight elements of every byte: a load where shifts would keep the compiler from using vectors.
using SignBits = std::array<std::array<uint32_t, 8>, 256>;

constexpr SignBits kSignBits = [] {
  SignBits bits{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    for (uint32_t lane = 0; lane < 8; ++lane) bits[byte][lane] = (byte >> lane & 1) << 31;
  }
  return bits;
}();

// update(element, its sign times scale) for elements begin to end.
template <class Update>
void each(float* values, const uint8_t* packed, float scale, int64_t begin, int64_t end, const Update& update) {
  const uint32_t magnitude = std::bit_cast<uint32_t>(scale);
  while (begin < end) {
    const int64_t lane = begin % 8, last = std::min(end, begin - lane + 8);
    const std::array<uint32_t, 8>& bits = kSignBits[packed[begin / 8]];
    if (last - begin == 8) {
      for (int64_t i = 0; i < 8; ++i) update(values[begin + i], std::bit_cast<float>(magnitude ^ bits[i]));
    } else {
      for (int64_t i = begin; i < last; ++i) update(values[i], std::bit_cast<float>(magnitude ^ bits[i - begin + lane]));
    }
    begin = last;
  }
}

}  // namespace

// memory += x; returns the 1-norm of every part, float64 [s], and the signs of all elements, uint8 [ceil(d / 8)].
std::tuple<Tensor, Tensor> add_signs_(const Tensor& memory, const Tensor& x, const Tensor& parts) {
  const int64_t length = memory.numel();
  check_vector("add_signs_", "memory", memory, ScalarType::Float, length);
  check_vector("add_signs_", "x", x, ScalarType::Float, length);
  const Parts of = parts_of("add_signs_", parts, length);
  Tensor norms = empty_vector(of.count, ScalarType::Double);
  Tensor packed = empty_vector((length + 7) / 8, ScalarType::Byte);
  float* sum = memory.mutable_data_ptr<float>();
  const float* added = x.const_data_ptr<float>();
  uint8_t* signs = packed.mutable_data_ptr<uint8_t>();
  std::vector<std::vector<std::pair<int64_t, double>>> found(chunks(length));
  parallel_for(chunks(length), 1, [&](int64_t chunk) {
    const int64_t first = chunk * kChunk, last = std::min(length, first + kChunk);
    for (int64_t i = first; i < last; ++i) sum[i] += added[i];
    pack(sum + first, last - first, signs + first / 8);
    of.within(first, last, [&](int64_t part, int64_t begin, int64_t end) {
      found[chunk].emplace_back(part, norm(sum + begin, end - begin));
    });
  });
  double* total = norms.mutable_data_ptr<double>();
  std::fill(total, total + of.count, 0.0);
  for (const auto& chunk : found) {
    for (const auto& [part, value] : chunk) total[part] += value;
  }
  return {norms, packed};
}

// Each part of out [d] becomes its signs times its scale, float32 [s], and the rest 0; or, to subtract, these are taken
// from out, and what is not finite becomes 0.
void scale_signs_(const Tensor& out, const Tensor& packed, const Tensor& scales, const Tensor& parts, bool subtract) {
  const int64_t length = out.numel();
  const Parts of = parts_of("scale_signs_", parts, length);
  check_vector("scale_signs_", "out", out, ScalarType::Float, length);
  check_vector("scale_signs_", "packed", packed, ScalarType::Byte, (length + 7) / 8);
  check_vector("scale_signs_", "scales", scales, ScalarType::Float, of.count);
  float* values = out.mutable_data_ptr<float>();
  const uint8_t* signs = packed.const_data_ptr<uint8_t>();
  const float* scale = scales.const_data_ptr<float>();
  const auto write = [](float& value, float signed_scale) { value = signed_scale; };
  const auto take = [](float& value, float signed_scale) {
    const float left = value - signed_scale;
    value = std::fabs(left) <= std::numeric_limits<float>::max() ? left : 0.0f;
  };
  parallel_for(chunks(length), 1, [&](int64_t chunk) {
    const int64_t first = chunk * kChunk, last = std::min(length, first + kChunk);
    if (!subtract) std::fill(values + first, values + last, 0.0f);
    of.within(first, last, [&](int64_t part, int64_t begin, int64_t end) {
      if (subtract) each(values, signs, scale[part], begin, end, take);
      else each(values, signs, scale[part], begin, end, write);
    });
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(cga_lightning, library) {
  library.def("add_signs_(Tensor(a!) memory, Tensor x, Tensor parts) -> (Tensor, Tensor)");
  library.def("scale_signs_(Tensor(a!) out, Tensor packed, Tensor scales, Tensor parts, bool subtract) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(cga_lightning, CPU, library) {
  library.impl("add_signs_", TORCH_BOX(&add_signs_));
  library.impl("scale_signs_", TORCH_BOX(&scale_signs_));
}

}  // namespace cga::cpu
