// Every kernel by name: the launch plan, the extension, the NVRTC path and the tests all go by this list.
//
// CGA_TYPE selects one element type and what to put behind the names, so that each is a translation unit of its own:
// 0 the kernels that no type concerns, 1 float32, 2 float16, 3 bfloat16, 4 float64.
#pragma once
#include "gram_mma.cuh"
#include "gram_rows.cuh"
#include "gram_tile.cuh"

// KERNEL(name, threads, blocks per SM that the registers must allow, body)
#define CGA_COMMON_KERNELS(KERNEL) KERNEL(solve, 256, 2, cga::solve_segment(problem, blockIdx.x, cga::shared_memory()))

#define CGA_TILE_KERNELS(KERNEL, suffix, T) KERNEL(gram_tile_##suffix, 256, 1, cga::gram_tile<T, float>(problem))

#define CGA_EXACT_KERNELS(KERNEL, suffix, T)                                    \
  KERNEL(gram_exact_##suffix, 256, 1, cga::gram_tile<T, double>(problem))       \
  KERNEL(combine_##suffix, 256, 4, cga::combine<T>(problem))

#define CGA_FAST_KERNELS(KERNEL, suffix, T)                                     \
  KERNEL(gram_rows3_##suffix, 256, 3, cga::gram_rows<T, 3>(problem))            \
  KERNEL(gram_rows5_##suffix, 256, 2, cga::gram_rows<T, 5>(problem))            \
  KERNEL(gram_rows9_##suffix, 256, 2, cga::gram_rows<T, 9>(problem))            \
  KERNEL(gram_mma2_##suffix, 128, 4, cga::gram_mma<T, 2>(problem))              \
  KERNEL(gram_mma3_##suffix, 128, 3, cga::gram_mma<T, 3>(problem))              \
  KERNEL(gram_mma5_##suffix, 128, 3, cga::gram_mma<T, 5>(problem))              \
  KERNEL(gram_mma9_##suffix, 128, 2, cga::gram_mma<T, 9>(problem))

#define CGA_HALF_OR_FLOAT(KERNEL, suffix, T) \
  CGA_FAST_KERNELS(KERNEL, suffix, T)        \
  CGA_TILE_KERNELS(KERNEL, suffix, T)        \
  CGA_EXACT_KERNELS(KERNEL, suffix, T)

#define CGA_KERNELS_0(KERNEL) CGA_COMMON_KERNELS(KERNEL)
#define CGA_KERNELS_1(KERNEL) CGA_HALF_OR_FLOAT(KERNEL, f32, float)
#define CGA_KERNELS_2(KERNEL) CGA_HALF_OR_FLOAT(KERNEL, f16, cga::float16)
#define CGA_KERNELS_3(KERNEL) CGA_HALF_OR_FLOAT(KERNEL, bf16, cga::bfloat16)
#define CGA_KERNELS_4(KERNEL) CGA_EXACT_KERNELS(KERNEL, f64, double)

#define CGA_DEFINE(name, threads, blocks, ...)                            \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(     \
      const __grid_constant__ cga::Problem problem) {                     \
    __VA_ARGS__;                                                          \
  }

#ifdef CGA_TYPE
#if CGA_TYPE == 0
CGA_KERNELS_0(CGA_DEFINE)
extern "C" __global__ void __launch_bounds__(256) prepare(const __grid_constant__ cga::Problem problem,
                                                          const __grid_constant__ cga::Table table) {
  cga::prepare(problem, table);
}
#elif CGA_TYPE == 1
CGA_KERNELS_1(CGA_DEFINE)
#elif CGA_TYPE == 2
CGA_KERNELS_2(CGA_DEFINE)
#elif CGA_TYPE == 3
CGA_KERNELS_3(CGA_DEFINE)
#elif CGA_TYPE == 4
CGA_KERNELS_4(CGA_DEFINE)
#endif
#endif
