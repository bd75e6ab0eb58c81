// Equally spaced levels of a float32 vector, and a memory of what they lose: one pass over memory each way. In plain
// torch, cga_lightning/compression/levels.py and feedback.py, the same takes a dozen.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>

#include "../checks.h"
#include "parallel.h"
#include "vectors.h"

namespace cga::cpu {
namespace {

constexpr int64_t kBucket = 256;          // elements that share a scale
constexpr int64_t kChunk = 20 * kBucket;  // that one task takes; whole bytes of every code, and they stay in L1 or L2

// Codes 0, ..., base - 1 stand for the levels -kLevels, ..., and as many as fit are the digits of a byte.
template <int base>
struct Digits {
  static constexpr int kLevels = (base - 1) / 2;
  static constexpr int kPerByte = base == 3 ? 5 : base == 4 ? 4 : base == 16 ? 2 : 1;
  static_assert(kChunk % kPerByte == 0);

  static int64_t bytes(int64_t count) { return (count + kPerByte - 1) / kPerByte; }

  // `codes` is zero from `count` to the end of its last byte.
  static void pack(const uint8_t* codes, int64_t count, uint8_t* packed) {
    for (int64_t i = 0; i < bytes(count); ++i) {
      int byte = 0;
      for (int digit = kPerByte - 1; digit >= 0; --digit) byte = byte * base + codes[i * kPerByte + digit];
      packed[i] = static_cast<uint8_t>(byte);
    }
  }

  // Writes to the end of the last byte. Bits are shifted, which the compiler does in vectors, and other digits looked up.
  static void unpack(const uint8_t* packed, int64_t count, uint8_t* codes) {
    for (int64_t i = 0; i < bytes(count); ++i) {
      for (int digit = 0; digit < kPerByte; ++digit) {
        constexpr int kBits = 8 / kPerByte;
        const uint8_t code = base == 3 ? kDigits[packed[i]][digit] : packed[i] >> (kBits * digit) & (base - 1);
        codes[i * kPerByte + digit] = code;
      }
    }
  }

  static constexpr std::array<std::array<uint8_t, kPerByte>, 256> kDigits = [] {
    std::array<std::array<uint8_t, kPerByte>, 256> digits{};
    for (int byte = 0; byte < 256; ++byte) {
      for (int digit = 0, left = byte; digit < kPerByte; ++digit, left /= base) digits[byte][digit] = left % base;
    }
    return digits;
  }();
};

using Codes = std::array<uint8_t, kChunk + 8>;

// The largest scale whose last level is finite.
float largest_scale(int levels) {
  const float scale = std::numeric_limits<float>::max() / static_cast<float>(levels);
  return std::isfinite(scale * static_cast<float>(levels)) ? scale : std::nextafter(scale, 0.0f);
}

// The largest modulus over the number of levels; infinite if an element is not finite.
float scale_of(const float* values, int64_t count, int levels) {
  uint32_t largest = 0;  // of the bits without sign, which are in the order of what they stand for, NaN last
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu);
  const float scale = std::bit_cast<float>(largest) / static_cast<float>(levels);
  return std::isfinite(scale) ? std::min(scale, largest_scale(levels)) : std::numeric_limits<float>::infinity();
}

// The nearest level of every element, to even ones in the middle; 0 where the scale is 0 or infinite.
void round(const float* values, int64_t count, float scale, int levels, uint8_t* codes) {
  if (!(scale > 0 && std::isfinite(scale))) {
    std::fill(codes, codes + count, static_cast<uint8_t>(levels));
    return;
  }
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: a sum with it has no bits for fractions
  for (int64_t i = 0; i < count; ++i) {
    const int level = std::bit_cast<int32_t>(values[i] / scale + kShift) - std::bit_cast<int32_t>(kShift);
    codes[i] = static_cast<uint8_t>(std::clamp(level, -levels, levels) + levels);
  }
}

template <class Body>
void for_each_chunk(int64_t length, const Body& body) {
  parallel_for((length + kChunk - 1) / kChunk, 1, [&](int64_t chunk) {
    body(chunk * kChunk, std::min(length, (chunk + 1) * kChunk));
  });
}

template <class Body>
void for_each_bucket(int64_t first, int64_t last, const Body& body) {
  for (int64_t begin = first; begin < last; begin += kBucket) body(begin, std::min(kBucket, last - begin));
}

// body(Digits<base>{})
template <class Body>
void with_digits(const char* op, int64_t base, const Body& body) {
  if (base == 3) return body(Digits<3>{});
  if (base == 4) return body(Digits<4>{});
  if (base == 16) return body(Digits<16>{});
  CGA_CHECK(base == 256, op, ": base must be 3, 4, 16 or 256, found ", base);
  body(Digits<256>{});
}

int64_t buckets(int64_t length) { return (length + kBucket - 1) / kBucket; }

// The scales of all buckets of values [length], float32 [ceil(length / 256)], and their codes, packed uint8.
// prepare(begin, count) is called ahead of every bucket and coded(begin, count, codes, levels, scale) after it.
template <class Prepare, class Coded>
std::tuple<Tensor, Tensor> encode(const char* op, const float* values, int64_t length, int64_t base,
                                  const Prepare& prepare, const Coded& coded) {
  Tensor scales = empty_vector(buckets(length), ScalarType::Float), packed;
  float* scale = scales.mutable_data_ptr<float>();
  with_digits(op, base, [&](auto digits) {
    packed = empty_vector(digits.bytes(length), ScalarType::Byte);
    uint8_t* bytes = packed.mutable_data_ptr<uint8_t>();
    for_each_chunk(length, [&](int64_t first, int64_t last) {
      Codes codes{};
      for_each_bucket(first, last, [&](int64_t begin, int64_t count) {
        prepare(begin, count);
        const float step = scale_of(values + begin, count, digits.kLevels);
        uint8_t* own = &codes[begin - first];
        round(values + begin, count, step, digits.kLevels, own);
        scale[begin / kBucket] = step;
        coded(begin, count, own, digits.kLevels, step);
      });
      digits.pack(codes.data(), last - first, bytes + first / digits.kPerByte);
    });
  });
  return {scales, packed};
}

}  // namespace

// The scales of all buckets of x [d], float32 [ceil(d / 256)], and its codes, packed uint8.
std::tuple<Tensor, Tensor> encode_levels(const Tensor& x, int64_t base) {
  const int64_t length = x.numel();
  check_vector("encode_levels", "x", x, ScalarType::Float, length);
  const auto nothing = [](auto...) {};
  return encode("encode_levels", x.const_data_ptr<float>(), length, base, nothing, nothing);
}

// The same for memory + x; in memory stays what the code loses, 0 if that is not finite.
std::tuple<Tensor, Tensor> encode_levels_(const Tensor& memory, const Tensor& x, int64_t base) {
  const int64_t length = memory.numel();
  check_vector("encode_levels_", "memory", memory, ScalarType::Float, length);
  check_vector("encode_levels_", "x", x, ScalarType::Float, length);
  float* values = memory.mutable_data_ptr<float>();
  const float* added = x.const_data_ptr<float>();
  const auto add = [=](int64_t begin, int64_t count) {
    for (int64_t i = begin; i < begin + count; ++i) values[i] += added[i];
  };
  const auto keep = [=](int64_t begin, int64_t count, const uint8_t* codes, int levels, float scale) {
    for (int64_t i = 0; i < count; ++i) {
      const float left = values[begin + i] - static_cast<float>(codes[i] - levels) * scale;
      values[begin + i] = std::fabs(left) <= std::numeric_limits<float>::max() ? left : 0.0f;
    }
  };
  return encode("encode_levels_", values, length, base, add, keep);
}

// Each level times the scale of its bucket, float32 [length].
Tensor decode_levels(const Tensor& scales, const Tensor& packed, int64_t length, int64_t base) {
  CGA_CHECK(length >= 0, "decode_levels: length must be at least 0, found ", length);
  check_vector("decode_levels", "scales", scales, ScalarType::Float, buckets(length));
  Tensor out = empty_vector(length, ScalarType::Float);
  float* values = out.mutable_data_ptr<float>();
  const float* scale = scales.const_data_ptr<float>();
  with_digits("decode_levels", base, [&](auto digits) {
    check_vector("decode_levels", "packed", packed, ScalarType::Byte, digits.bytes(length));
    const uint8_t* bytes = packed.const_data_ptr<uint8_t>();
    for_each_chunk(length, [&](int64_t first, int64_t last) {
      Codes codes;
      digits.unpack(bytes + first / digits.kPerByte, last - first, codes.data());
      for_each_bucket(first, last, [&](int64_t begin, int64_t count) {
        const float step = scale[begin / kBucket];
        const uint8_t* own = &codes[begin - first];
        for (int64_t i = 0; i < count; ++i) values[begin + i] = static_cast<float>(own[i] - digits.kLevels) * step;
      });
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(cga_lightning, library) {
  library.def("encode_levels(Tensor x, int base) -> (Tensor, Tensor)");
  library.def("encode_levels_(Tensor(a!) memory, Tensor x, int base) -> (Tensor, Tensor)");
  library.def("decode_levels(Tensor scales, Tensor packed, int length, int base) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(cga_lightning, CPU, library) {
  library.impl("encode_levels", TORCH_BOX(&encode_levels));
  library.impl("encode_levels_", TORCH_BOX(&encode_levels_));
  library.impl("decode_levels", TORCH_BOX(&decode_levels));
}

}  // namespace cga::cpu
