// What one instruction set offers to the projection on the CPU. kernels.inl is compiled once per set.
#pragma once

#include <cstdint>

namespace cga::cpu {

// Elements of a row in memory.
enum class Element { float32, float64, float16, bfloat16 };

// Loops over n elements. W is the type of products and sums: float, or double where float would not do.
template <class W>
struct Loops {
  // Adds the inner products of `count` rows to totals[i * count + j] for i <= j, rounded to float64 every few terms.
  void (*gram)(const W* const* rows, int count, int64_t n, double* totals);
  // own += weights[0] * rows[0] + weights[1] * rows[1] + ...
  void (*add)(W* own, const W* const* rows, const W* weights, int count, int64_t n);
  // Conversions from and to what is in memory, round to nearest even.
  void (*load)(Element element, const void* from, W* to, int64_t n);
  void (*store)(Element element, const W* from, void* to, int64_t n);
};

struct Kernels {
  Loops<float> narrow;
  Loops<double> wide;

  template <class W>
  const Loops<W>& loops() const {
    if constexpr (sizeof(W) == sizeof(float)) {
      return narrow;
    } else {
      return wide;
    }
  }
};

extern const Kernels baseline;  // SSE2 on x86-64, NEON on aarch64
#if defined(__x86_64__)
extern const Kernels avx2;
extern const Kernels avx512;
#endif

// The best set of this CPU; ATEN_CPU_CAPABILITY (default, avx2, avx512) lowers it, as it does for torch.
const Kernels& kernels();

}  // namespace cga::cpu
