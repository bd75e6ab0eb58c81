// AVX-512 of x86-64-v4.
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif
#define CGA_SET avx512
#define CGA_VECTOR_BYTES 64
#define CGA_TILE 5  // 32 registers
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
