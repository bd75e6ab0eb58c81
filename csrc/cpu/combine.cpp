#include <algorithm>

#include "parallel.h"
#include "problem.h"

namespace cga::cpu {
namespace {

constexpr int64_t kBlock = 2048;  // elements of the own gradient that stay in the L1 cache while rows are added
constexpr int kSweep = 4;         // rows added in one sweep over a block

// Weights outside this range are applied in double.
constexpr double kFloatMin = 0x1p-96, kFloatMax = 0x1p96;

// The rows with a weight in one segment.
struct Active {
  std::vector<const char*> rows;
  std::vector<double> weights;

  Active(const Problem& problem, const double* dual) {
    for (int k = 0; k + 1 < problem.count(); ++k) {
      if (dual[k] == 0) continue;
      rows.push_back(static_cast<const char*>(problem.rows[k]));
      weights.push_back(dual[k]);
    }
  }

  bool fits_float() const {
    return std::all_of(weights.begin(), weights.end(), [](double w) { return kFloatMin < w && w < kFloatMax; });
  }
};

// A block of memory as W: itself, or a copy in `buffer`.
template <class W>
W* as(const Problem& problem, const void* from, W* buffer, int64_t n) {
  if (problem.is_native<W>()) return static_cast<W*>(const_cast<void*>(from));
  kernels().loops<W>().load(problem.element, from, buffer, n);
  return buffer;
}

template <class W>
void add_block(const Problem& problem, const Active& active, int64_t start, int64_t n, W* buffer) {
  const Loops<W>& loops = kernels().loops<W>();
  void* target = static_cast<char*>(problem.own) + start * problem.bytes();
  W* own = as(problem, target, buffer + kSweep * kBlock, n);
  for (size_t first = 0; first < active.rows.size(); first += kSweep) {
    const int count = static_cast<int>(std::min<size_t>(kSweep, active.rows.size() - first));
    const W* rows[kSweep];
    W weights[kSweep];
    for (int k = 0; k < count; ++k) {
      rows[k] = as(problem, active.rows[first + k] + start * problem.bytes(), buffer + k * kBlock, n);
      weights[k] = static_cast<W>(active.weights[first + k]);
    }
    loops.add(own, rows, weights, count, n);
  }
  if (!problem.is_native<W>()) loops.store(problem.element, own, target, n);
}

template <class W>
void add_rows(const Problem& problem, const Active& active, const Slot& slot) {
  std::vector<W> buffer(problem.is_native<W>() ? 0 : (kSweep + 1) * kBlock);
  for (int64_t start = slot.start; start < slot.stop; start += kBlock) {
    add_block(problem, active, start, std::min(kBlock, slot.stop - start), buffer.data());
  }
}

}  // namespace

void combine(const Problem& problem, const double* dual) {
  const std::vector<Slot> parts = slots(problem);
  parallel_for(parts.size(), 1, [&](int64_t index) {
    const Slot& part = parts[parts.size() - 1 - index];  // backwards: the inner products left the end in the cache
    const Active active(problem, dual + part.segment * (problem.count() - 1));
    if (active.rows.empty()) return;
    if (problem.element != Element::float64 && active.fits_float()) {
      add_rows<float>(problem, active, part);
    } else {
      add_rows<double>(problem, active, part);
    }
  });
}

}  // namespace cga::cpu
