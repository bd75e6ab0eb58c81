#include "kernels.h"

#include <cstdlib>
#include <string_view>

namespace cga::cpu {
namespace {

const Kernels& choose() {
#if defined(__x86_64__)
  const char* given = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view limit = given == nullptr ? "" : given;
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && limit != "default" && limit != "avx2") return avx512;
  if (has_avx2 && limit != "default") return avx2;
#endif
  return baseline;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace cga::cpu
