// AVX2 with FMA: x86-64 since 2013.
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define CGA_SET avx2
#define CGA_VECTOR_BYTES 32
#define CGA_TILE 3  // 16 registers
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
