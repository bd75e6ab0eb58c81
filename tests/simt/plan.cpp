// The launch plan of the extension, as text and bytes for a test to compare with the Python one.
#include "../../csrc/cuda/plan.h"

#include <cstring>

namespace {

std::string hex(const void* data, size_t size) {
  std::string text;
  for (size_t i = 0; i < size; ++i) {
    const unsigned byte = static_cast<const unsigned char*>(data)[i];
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

}  // namespace

extern "C" const char* plan_text(const char* dtype, int item_bytes, const int64_t* bounds, int64_t segments,
                                 const uint64_t* rows, int cross, const uint64_t* others, const int* device,
                                 double margin, double ridge, int exact, int passes, int part) {
  using namespace cga::cuda;
  Plan plan(dtype, item_bytes, {bounds, bounds + segments + 1}, {device[0], device[1], device[2]},
            {{rows, rows + cross}, others[0], others[1], others[2], others[3], others[4]});
  plan.margin = margin;
  plan.ridge = ridge;
  plan.exact = exact;
  plan.passes = passes;
  static std::string text;
  text = std::to_string(plan.workspace_bytes()) + "\n";
  const auto launches = part == 0 ? plan.project() : part == 1 ? plan.products() : part == 2 ? plan.solve() : plan.combine();
  for (const Launch& launch : launches) {
    text += launch.kernel + " " + std::to_string(launch.grid) + " " + std::to_string(launch.block) + " " +
            std::to_string(launch.shared_bytes) + " " + std::to_string(launch.cooperative) + " " +
            hex(&launch.problem, sizeof(cga::Problem));
    if (!launch.table.empty()) text += " " + hex(launch.table.data(), sizeof(cga::Table));
    text += "\n";
  }
  return text.c_str();
}
