// Twins of csrc/kernels/intrinsics.cuh. A tensor-core step adds exact products in float64 and rounds once; a GPU cuts
// off more than that, which this cannot show.
#pragma once
#include "simt.h"

namespace cga {

inline unsigned char* shared_memory() { return simt::shared_memory(); }

inline float half_to_float(unsigned short bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

template <typename V>
unsigned short to_half(V value) {
  const _Float16 half = static_cast<_Float16>(value);
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline unsigned short float_to_half(float value) { return to_half(value); }
inline unsigned short double_to_half(double value) { return to_half(value); }

using simt::load_acquire;
using simt::pause;
using simt::store_release;

inline unsigned round_to_tf32(float value) {
  unsigned bits = __float_as_uint(value);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits += 0x1000u;  // ties away from zero
  return bits & 0xffffe000u;
}

struct Bfloat16Decode {
  static constexpr int kPerWord = 2;
  static float value(unsigned word, int i) { return __uint_as_float(i ? word & 0xffff0000u : word << 16); }
};
struct Float16Decode {
  static constexpr int kPerWord = 2;
  static float value(unsigned word, int i) { return half_to_float(static_cast<unsigned short>(word >> 16 * i)); }
};
struct Tf32Decode {
  static constexpr int kPerWord = 1;
  static float value(unsigned word, int) { return __uint_as_float(word & 0xffffe000u); }
};

// m16n8k16 (or k8 for tf32), fragments as in the PTX manual: lane 4 g + t holds rows g and g + 8 of A in words 0/2 and
// 1/3, column g of B in words 0 and 1, and entries (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) of D.
template <typename Decode>
struct Mma {
  static void run(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    const simt::Values mine = {
        {a[0] | uint64_t(a[1]) << 32, a[2] | uint64_t(a[3]) << 32, b[0] | uint64_t(b[1]) << 32}};
    const simt::Values* lanes = simt::meet(0xffffffffu, mine, "mma", false);
    const unsigned g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int r = 0; r < 4; ++r) {
      double sum = d[r];
      for (unsigned quarter = 0; quarter < 4; ++quarter) {
        const uint64_t* left = lanes[4 * g + quarter].word;
        const uint64_t* right = lanes[4 * (2 * t + r % 2) + quarter].word;
        for (int depth = 0; depth < 2; ++depth) {
          const unsigned x = static_cast<unsigned>(left[depth] >> (r / 2 * 32));
          const unsigned y = static_cast<unsigned>(right[2] >> (depth * 32));
          for (int i = 0; i < Decode::kPerWord; ++i) sum += double(Decode::value(x, i)) * Decode::value(y, i);
        }
      }
      d[r] = static_cast<float>(sum);
    }
  }
};
using Bfloat16Mma = Mma<Bfloat16Decode>;
using Float16Mma = Mma<Float16Decode>;
using Tf32Mma = Mma<Tf32Decode>;

}  // namespace cga
