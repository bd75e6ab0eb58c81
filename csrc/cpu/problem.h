// The projection on the CPU, without torch tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace cga::cpu {

// K cross-gradients and the own gradient (last) in memory, cut into segments with a quadratic program each.
struct Problem {
  std::vector<const void*> rows;  // K + 1
  void* own;
  Element element;
  const int64_t* offsets;  // segments + 1
  int64_t segments;

  int count() const { return static_cast<int>(rows.size()); }
  int64_t length(int64_t segment) const { return offsets[segment + 1] - offsets[segment]; }
  int64_t bytes() const { return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2; }

  // Whether loops over W can read and write the rows themselves.
  template <class W>
  bool is_native() const {
    return element == (sizeof(W) == sizeof(float) ? Element::float32 : Element::float64);
  }
};

// Part of a segment: the unit of work of a thread. Slots depend on the problem alone, never on the number of threads.
struct Slot {
  int64_t segment;
  int64_t start;
  int64_t stop;
};

std::vector<Slot> slots(const Problem& problem);

// Inner products of all rows in each segment, [segments, K + 1, K + 1] to `products`. Bitwise the same for any number
// of threads. `exact`: form them in double; float32 and half rows are otherwise accurate to 1e-6 of the row norms.
void gram(const Problem& problem, bool exact, double* products);

// min over v >= margin of 1/2 v'Hv + c'v for one segment with `count` rows; products: [count + 1, count + 1].
// Returns the status: 0 exact, 1 iteration cap, 2 non-finite rows were excluded.
int32_t solve(const double* products, int count, double margin, double ridge, double* dual);

// The same for every segment: dual [segments, K], status [segments].
void solve_all(const double* products, int64_t segments, int count, double margin, double ridge, double* dual,
               int32_t* status);

// own += sum of dual[segment, k] * row k; rows of weight 0 are not read.
void combine(const Problem& problem, const double* dual);

}  // namespace cga::cpu
