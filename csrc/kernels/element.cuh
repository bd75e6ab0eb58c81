// Element types and 16-byte loads: float, float16, bfloat16 and double, without CUDA's headers for them.
#pragma once
#include "intrinsics.cuh"

namespace cga {

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

__device__ __forceinline__ unsigned word(const uint4& raw, int index) {
  return index == 0 ? raw.x : index == 1 ? raw.y : index == 2 ? raw.z : raw.w;
}

// Sum: type in which products of T are added. kPerWord: elements in 32 bits. kDelicate: the range of T reaches beyond
// that of a float32 square, so that a sum must be checked for products lost or overflowed.
template <typename T>
struct Element;

template <>
struct Element<float> {
  using Sum = float;
  static constexpr int kPerVector = 4, kPerWord = 1;
  static constexpr bool kDelicate = true;
  static __device__ __forceinline__ float widen(float value) { return value; }
  static __device__ __forceinline__ unsigned bits(float value) { return __float_as_uint(value); }
  static __device__ __forceinline__ void unpack(unsigned word, float (&out)[1]) { out[0] = __uint_as_float(word); }
  static __device__ __forceinline__ unsigned pack(const float* value) { return __float_as_uint(value[0]); }
  static __device__ __forceinline__ float narrow(double value) { return static_cast<float>(value); }
};

template <>
struct Element<float16> {
  using Sum = float;
  static constexpr int kPerVector = 8, kPerWord = 2;
  static constexpr bool kDelicate = false;
  static __device__ __forceinline__ float widen(float16 value) { return half_to_float(value.bits); }
  static __device__ __forceinline__ unsigned bits(float16 value) { return value.bits; }
  static __device__ __forceinline__ void unpack(unsigned word, float (&out)[2]) {
    out[0] = half_to_float(static_cast<unsigned short>(word & 0xffffu));
    out[1] = half_to_float(static_cast<unsigned short>(word >> 16));
  }
  static __device__ __forceinline__ unsigned pack(const float* value) {
    return float_to_half(value[0]) | static_cast<unsigned>(float_to_half(value[1])) << 16;
  }
  static __device__ __forceinline__ float16 narrow(double value) { return float16{double_to_half(value)}; }
};

template <>
struct Element<bfloat16> {
  using Sum = float;
  static constexpr int kPerVector = 8, kPerWord = 2;
  static constexpr bool kDelicate = true;
  static __device__ __forceinline__ float widen(bfloat16 value) { return __uint_as_float(value.bits * 65536u); }
  static __device__ __forceinline__ unsigned bits(bfloat16 value) { return value.bits; }
  static __device__ __forceinline__ void unpack(unsigned word, float (&out)[2]) {
    out[0] = __uint_as_float(word << 16);
    out[1] = __uint_as_float(word & 0xffff0000u);
  }
  // To the nearest, ties to even; a NaN stays one.
  static __device__ __forceinline__ unsigned short round(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return static_cast<unsigned short>(bits >> 16 | 0x40u);
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  static __device__ __forceinline__ unsigned pack(const float* value) {
    return round(value[0]) | static_cast<unsigned>(round(value[1])) << 16;
  }
  static __device__ __forceinline__ bfloat16 narrow(double value) { return bfloat16{round(static_cast<float>(value))}; }
};

template <>
struct Element<double> {
  using Sum = double;
  static constexpr bool kDelicate = false;
  static __device__ __forceinline__ double widen(double value) { return value; }
  static __device__ __forceinline__ double narrow(double value) { return value; }
};

// 16 bytes of a row at a column whose address is aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ uint4 load_vector(const T* row, long long column) {
  return *reinterpret_cast<const uint4*>(row + column);
}

// The same at the end of a slot: columns from `end` on read as zero, and their memory is not touched.
template <typename T>
__device__ __forceinline__ uint4 load_tail(const T* row, long long column, long long end) {
  constexpr int kPerWord = Element<T>::kPerWord;
  unsigned words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < Element<T>::kPerVector; ++i) {
    if (column + i < end) words[i / kPerWord] |= Element<T>::bits(row[column + i]) << (i % kPerWord * 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace cga
