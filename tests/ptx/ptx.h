// What PTX instructions do, by the PTX manual (ISA 9.0). Registers hold bits; the type of an instruction reads them.
//
// Threads, barriers and warps are those of tests/simt, and so are the tensor-core steps. Every access of global memory
// is checked against the arrays that the test has announced, and for the alignment that its width asks for.
#pragma once
#include <cmath>
#include <type_traits>
#include <vector>

#include "simt_intrinsics.h"

using b8 = uint8_t; using u8 = uint8_t; using s8 = int8_t;
using b16 = uint16_t; using u16 = uint16_t; using s16 = int16_t;
using b32 = uint32_t; using u32 = uint32_t; using s32 = int32_t;
using b64 = uint64_t; using u64 = uint64_t; using s64 = int64_t;
using f16 = _Float16; using f32 = float; using f64 = double;
using pred = bool;
struct tf32; struct bf16;

// Stops the launch if [address, address + bytes) is in no array.
void check_memory(u64 address, u64 bytes);

template <class T>
T as(u64 bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <>
inline bool as<bool>(u64 bits) { return bits & 1; }
template <class T>
u64 bits(T value) {
  u64 result = 0;
  std::memcpy(&result, &value, sizeof(T));
  return result;
}
inline u64 address(const void* array) { return reinterpret_cast<u64>(array); }

template <class T>
void check_aligned(u64 address, int count) {
  if (address % (count * sizeof(T)) != 0) simt::refuse("misaligned access");
}
template <class T>
u8* in_memory(u64 address, int count) {
  check_aligned<T>(address, count);
  check_memory(address, count * sizeof(T));
  return reinterpret_cast<u8*>(address);
}
template <class T>
u8* in_shared(u64 address, int count) {
  const u32 offset = static_cast<u32>(address);
  check_aligned<T>(offset, count);
  if (offset + count * sizeof(T) > simt::shared_bytes()) simt::refuse("access beyond the shared memory asked for");
  return simt::shared_memory() + offset;
}
// A wider register than the value: sign or zeros in front.
template <class T>
u64 load(const u8* from, int index) {
  T value;
  std::memcpy(&value, from + index * sizeof(T), sizeof(T));
  if constexpr (std::is_integral_v<T> && std::is_signed_v<T>) return static_cast<u64>(static_cast<s64>(value));
  return bits(value);
}
template <class T>
void store(u8* to, int index, u64 value) { std::memcpy(to + index * sizeof(T), &value, sizeof(T)); }

#define PTX_UNARY(name, expression)                          \
  template <class T>                                         \
  u64 name(u64 x) {                                          \
    const T a = as<T>(x);                                    \
    return bits<T>(static_cast<T>(expression));              \
  }
#define PTX_BINARY(name, expression)                         \
  template <class T>                                         \
  u64 name(u64 x, u64 y) {                                   \
    const T a = as<T>(x), b = as<T>(y);                      \
    return bits<T>(static_cast<T>(expression));              \
  }
// Integers wrap around.
template <class T> constexpr bool kFloat = std::is_same_v<T, f32> || std::is_same_v<T, f64>;
template <class T> using Wrapping = std::conditional_t<kFloat<T>, T, u64>;
#define PTX_WRAPPING(a) static_cast<Wrapping<T>>(a)

PTX_UNARY(mov, a)
PTX_UNARY(cvta, a)
PTX_UNARY(cvta_to, a)
PTX_UNARY(neg, PTX_WRAPPING(0) - PTX_WRAPPING(a))
PTX_UNARY(abs, a < 0 ? -a : a)
PTX_UNARY(sqrt, std::sqrt(a))
PTX_UNARY(rcp, 1 / a)
PTX_UNARY(popc, __builtin_popcountll(a))
PTX_BINARY(add, PTX_WRAPPING(a) + PTX_WRAPPING(b))
PTX_BINARY(sub, PTX_WRAPPING(a) - PTX_WRAPPING(b))
PTX_BINARY(mul, a * b)
PTX_BINARY(mul_lo, u64(a) * u64(b))
PTX_BINARY(div, a / b)
PTX_BINARY(rem, a % b)
PTX_BINARY(and_, a & b)
PTX_BINARY(or_, a | b)
PTX_BINARY(xor_, a ^ b)
template <class T>
u64 not_(u64 x) {
  if constexpr (std::is_same_v<T, bool>) return !as<bool>(x);
  else return bits<T>(static_cast<T>(~as<T>(x)));
}
// Of a number and a NaN, the number.
template <class T>
u64 max(u64 x, u64 y) {
  const T a = as<T>(x), b = as<T>(y);
  if constexpr (kFloat<T>) return bits<T>(std::fmax(a, b));
  else return bits<T>(a > b ? a : b);
}
template <class T>
u64 min(u64 x, u64 y) {
  const T a = as<T>(x), b = as<T>(y);
  if constexpr (kFloat<T>) return bits<T>(std::fmin(a, b));
  else return bits<T>(a < b ? a : b);
}
template <class T> struct Twice;
template <> struct Twice<s16> { using type = s32; };
template <> struct Twice<u16> { using type = u32; };
template <> struct Twice<s32> { using type = s64; };
template <> struct Twice<u32> { using type = u64; };
template <class T> using Wide = typename Twice<T>::type;
template <class T>
u64 mul_wide(u64 x, u64 y) { return bits<Wide<T>>(Wide<T>(as<T>(x)) * Wide<T>(as<T>(y))); }
template <class T>
u64 mul_hi(u64 x, u64 y) { return bits<T>(static_cast<T>(Wide<T>(as<T>(x)) * Wide<T>(as<T>(y)) >> 8 * sizeof(T))); }
template <class T>
u64 mad_lo(u64 x, u64 y, u64 z) { return add<T>(mul_lo<T>(x, y), z); }
template <class T>
u64 mad_wide(u64 x, u64 y, u64 z) { return add<Wide<T>>(mul_wide<T>(x, y), z); }
template <class T>
u64 fma(u64 x, u64 y, u64 z) { return bits<T>(std::fma(as<T>(x), as<T>(y), as<T>(z))); }

template <class T>
u64 shl(u64 x, u64 by) { return as<u32>(by) >= 8 * sizeof(T) ? 0 : bits<T>(static_cast<T>(as<T>(x) << as<u32>(by))); }
template <class T>
u64 shr(u64 x, u64 by) {
  const u32 most = 8 * sizeof(T) - 1, count = as<u32>(by);
  if (count > most) return as<T>(x) < 0 ? bits<T>(static_cast<T>(-1)) : 0;
  return bits<T>(static_cast<T>(as<T>(x) >> count));
}
template <class T>
u64 selp(u64 x, u64 y, u64 chosen) { return bits<T>(as<T>(chosen ? x : y)); }
template <class T>
u64 bfi(u64 field, u64 into, u64 start, u64 length) {
  const u64 mask = (length >= 64 ? ~u64{0} : (u64{1} << length) - 1) << start;
  return bits<T>(as<T>((into & ~mask) | (field << start & mask)));
}
template <class T>
u64 prmt(u64 x, u64 y, u64 selector) {
  const u64 source = as<u32>(x) | u64{as<u32>(y)} << 32;
  u64 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u64 pick = selector >> 4 * i & 15, byte = source >> 8 * (pick & 7) & 255;
    result |= (pick & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * i;
  }
  return result;
}
template <class To, class From>
u64 cvt(u64 x) {
  if constexpr (std::is_same_v<To, tf32>) return cga::round_to_tf32(as<f32>(x));
  else return bits<To>(static_cast<To>(as<From>(x)));
}

// Ordered comparisons are false for a NaN; those that end in u are true.
#define PTX_COMPARE(name, operation)                                                    \
  template <class T>                                                                    \
  u64 setp_##name(u64 x, u64 y) {                                                       \
    const T a = as<T>(x), b = as<T>(y);                                                 \
    return a == a && b == b && a operation b;                                           \
  }                                                                                     \
  template <class T>                                                                    \
  u64 setp_##name##u(u64 x, u64 y) {                                                    \
    const T a = as<T>(x), b = as<T>(y);                                                 \
    return a != a || b != b || a operation b;                                           \
  }
PTX_COMPARE(eq, ==)
PTX_COMPARE(ne, !=)
PTX_COMPARE(lt, <)
PTX_COMPARE(le, <=)
PTX_COMPARE(gt, >)
PTX_COMPARE(ge, >=)
template <class T>
u64 setp_nan(u64 x, u64 y) { return as<T>(x) != as<T>(x) || as<T>(y) != as<T>(y); }
template <class T>
u64 setp_num(u64 x, u64 y) { return !setp_nan<T>(x, y); }

// A wide register from its halves, low first, and back.
template <class T>
void whole(u64& wide, u64 low, u64 high) { wide = low | high << 4 * sizeof(T); }
template <class T>
void halves(u64& low, u64& high, u64 wide) {
  const u64 mask = (u64{1} << 4 * sizeof(T)) - 1;
  high = wide >> 4 * sizeof(T) & mask;
  low = wide & mask;
}

template <class T>
u64 atom_add(u64 at, u64 value) {
  static_assert(sizeof(T) == 4);
  return simt::atomic_add(reinterpret_cast<u32*>(in_memory<u32>(at, 1)), as<u32>(value));
}
inline void membar_gl() { simt::fence(); }
template <class T>
void nanosleep(u64) { simt::pause(); }

inline void bar(const char* where, u64) { simt::barrier(where); }
template <class T>
u64 bar_red_or(const char* where, u64, u64 vote) { return simt::barrier(where, vote); }
inline void bar_warp(const char* where, u64 mask) { simt::meet(as<u32>(mask), {}, where, true); }
template <class T>
u64 vote_ballot(const char* where, u64 vote, u64 mask) { return simt::ballot(as<u32>(mask), vote, where); }
template <class T>
u64 shfl_bfly(const char* where, u64& valid, u64 value, u64 by, u64 clamp, u64 mask) {
  const u32 lane = threadIdx.x % 32, segment = clamp >> 8 & 31, last = (lane & segment) | (clamp & 31 & ~segment);
  valid = (lane ^ (by & 31)) <= last;
  return simt::shuffle(as<u32>(mask), as<u32>(value), valid ? lane ^ (by & 31) : lane, where);
}

template <class Step>
void mma(u64 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const u64 (&c)[4]) {
  f32 sums[4] = {as<f32>(c[0]), as<f32>(c[1]), as<f32>(c[2]), as<f32>(c[3])};
  Step::run(sums, a, b);
  for (int i = 0; i < 4; ++i) d[i] = bits(sums[i]);
}
template <class Left> struct StepOf;
template <> struct StepOf<tf32> { using type = cga::Tf32Mma; };
template <> struct StepOf<f16> { using type = cga::Float16Mma; };
template <> struct StepOf<bf16> { using type = cga::Bfloat16Mma; };
#define PTX_MMA(name)                                                                                             \
  template <class D, class A, class B, class C>                                                                   \
  void name(const char*, u64& d0, u64& d1, u64& d2, u64& d3, u64 a0, u64 a1, u64 a2, u64 a3, u64 b0, u64 b1, u64 c0, \
            u64 c1, u64 c2, u64 c3) {                                                                             \
    u64 d[4];                                                                                                     \
    mma<typename StepOf<A>::type>(d, {u32(a0), u32(a1), u32(a2), u32(a3)}, {u32(b0), u32(b1)}, {c0, c1, c2, c3}); \
    d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];                                                                   \
  }
PTX_MMA(mma_m16n8k8_row_col)
PTX_MMA(mma_m16n8k16_row_col)
