#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "problem.h"

namespace cga::cpu {
namespace {

constexpr int64_t kChunk = 4096;  // elements of each row between two visits of a tile: all rows stay in the L2 cache
constexpr int64_t kSlot = 16 * kChunk;
constexpr int64_t kMaxSlots = 512;  // per segment: bounds the memory for partial sums

// A product of floats under 2^-126 is lost; so many of them must not matter to a sum of squares.
constexpr double kLost = 0x1p-103;

template <class W>
void add_products(const Problem& problem, const Slot& slot, double* totals) {
  const Loops<W>& loops = kernels().loops<W>();
  const int count = problem.count();
  const bool native = problem.is_native<W>();
  std::vector<W> copies(native ? 0 : count * kChunk);
  std::vector<const W*> rows(count);
  for (int64_t start = slot.start; start < slot.stop; start += kChunk) {
    const int64_t n = std::min(kChunk, slot.stop - start);
    for (int k = 0; k < count; ++k) {
      const auto* from = static_cast<const char*>(problem.rows[k]) + start * problem.bytes();
      rows[k] = native ? reinterpret_cast<const W*>(from) : &copies[k * kChunk];
      if (!native) loops.load(problem.element, from, &copies[k * kChunk], n);
    }
    loops.gram(rows.data(), count, n, totals);
  }
}

// The sums of the slots of each segment, in their order, and the lower triangle.
void reduce(const Problem& problem, const std::vector<Slot>& parts, const std::vector<double>& partial,
            double* products) {
  const int count = problem.count();
  const int64_t size = int64_t(count) * count;
  for (size_t part = 0; part < parts.size(); ++part) {
    double* total = products + parts[part].segment * size;
    for (int64_t x = 0; x < size; ++x) total[x] += partial[part * size + x];
  }
}

template <class W>
void products_of(const Problem& problem, const std::vector<Slot>& parts, double* products) {
  const int count = problem.count();
  const int64_t size = int64_t(count) * count;
  std::vector<double> partial(parts.size() * size);
  parallel_for(parts.size(), 1, [&](int64_t part) { add_products<W>(problem, parts[part], &partial[part * size]); });
  for (const Slot& part : parts) std::fill_n(products + part.segment * size, size, 0.0);
  reduce(problem, parts, partial, products);
  for (const Slot& part : parts) {
    double* total = products + part.segment * size;
    for (int i = 0; i < count; ++i) {
      for (int j = 0; j < i; ++j) total[i * count + j] = total[j * count + i];
    }
  }
}

// Whether no square of a float overflowed in a segment, and none that matters was lost.
bool is_safe(const Problem& problem, const double* products, int64_t segment) {
  const int count = problem.count();
  for (int k = 0; k < count; ++k) {
    const double square = products[(segment * count + k) * count + k];
    if (!std::isfinite(square) || square < kLost * double(problem.length(segment))) return false;
  }
  return true;
}

}  // namespace

std::vector<Slot> slots(const Problem& problem) {
  std::vector<Slot> result;
  for (int64_t segment = 0; segment < problem.segments; ++segment) {
    const int64_t begin = problem.offsets[segment], end = problem.offsets[segment + 1];
    const int64_t least = (end - begin + kMaxSlots - 1) / kMaxSlots;
    const int64_t step = std::max(kSlot, (least + kChunk - 1) / kChunk * kChunk);
    for (int64_t start = begin; start < end; start += step) {
      result.push_back({segment, start, std::min(start + step, end)});
    }
  }
  return result;
}

void gram(const Problem& problem, bool exact, double* products) {
  std::fill_n(products, problem.segments * problem.count() * problem.count(), 0.0);
  std::vector<Slot> parts = slots(problem);
  if (exact || problem.element == Element::float64) return products_of<double>(problem, parts, products);
  products_of<float>(problem, parts, products);
  std::erase_if(parts, [&](const Slot& part) { return is_safe(problem, products, part.segment); });
  if (!parts.empty()) products_of<double>(problem, parts, products);
}

}  // namespace cga::cpu
