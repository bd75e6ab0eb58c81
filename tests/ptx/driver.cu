// The host code of the extension as nvcc compiles it, from a plan to the launches of a part of a projection.
#include "../../csrc/cuda/launch.cu"

extern "C" const char* ptx_run(const char* dtype, int item_bytes, const int64_t* bounds, int64_t segments,
                               const uint64_t* rows, int cross, const uint64_t* others, const int* device,
                               double margin, double ridge, int passes, const char* part) {
  using namespace cga::cuda;
  static std::string error;
  error.clear();
  const Device on{device[0], device[1], device[2]};
  Plan plan(dtype, item_bytes, {bounds, bounds + segments + 1}, on,
            {{rows, rows + cross}, others[0], others[1], others[2], others[3], others[4]});
  plan.margin = margin;
  plan.ridge = ridge;
  plan.passes = passes;
  try {
    if (part == std::string("project") && !fits(plan.project(), on)) plan.passes = 2;
    run(part == std::string("project")    ? plan.project()
        : part == std::string("products") ? plan.products()
        : part == std::string("solve")    ? plan.solve()
                                          : plan.combine(),
        nullptr);
  } catch (const std::exception& caught) {
    error = caught.what();
  }
  return error.c_str();
}
