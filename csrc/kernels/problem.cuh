// What every kernel works on, and how a block finds its part of it.
//
// The K cross-gradients and the own gradient (row K) are flat buffers, cut into segments: independent problems. Each
// segment is cut into slots, the unit of work of a block. The cut depends on the lengths and K alone, never on the
// device, and every sum is taken in the order of the slots: results are the same on every GPU and in every run.
#pragma once
#include "intrinsics.cuh"

namespace cga {

constexpr int kRowAddresses = 72;         // 64 cross-gradients and the own, rounded up to blocks of 8
constexpr int kSlotsPerGroup = 32;   // partial sums of so many slots are added by one block
constexpr int kTableValues = 384;    // segment table entries that travel in one launch

enum Phases { kSolve = 1, kCombine = 2 };  // what a Gram kernel goes on to do

// Passed by value: nothing to upload, nothing to keep alive during graph capture. The launch plan fills the same bytes.
struct Problem {
  const void* rows[kRowAddresses];  // K cross-gradients, the own gradient, and the own again in all that follow
  void* own;                   // overwritten by the combination
  long long* offsets;          // [segments + 1] bounds of the segments
  long long* first_slot;       // [segments + 1] index of their first slot
  unsigned* slot_arrivals;     // [slots] blocks done, counted at the first slot of each group
  unsigned* segment_arrivals;  // [segments] groups done
  unsigned* ready;             // [segments] 1: the dual variables are written
  double* partials;            // [slots, pairs] inner products of a slot
  double* gram;                // [segments, K + 1, K + 1]
  double* dual;                // [segments, K]
  int* status;                 // [segments]
  double margin;
  double ridge;
  double floor;                // a Schur complement up to this is rounding: the row depends on the active ones
  long long slot_length;
  long long slots;
  int cross;                   // K
  int segments;
  int phases;
  int aligned;                 // every row and every segment starts at a multiple of 16 bytes
};

// A piece of the segment table: offsets, then first_slot, starting at entry `first`.
struct Table {
  long long first, count;
  long long values[kTableValues];
};

struct Slot {
  long long index;         // among all slots
  long long first, count;  // the slots of its segment
  long long begin, end;    // its columns
  int segment;
};

// Entries (i, j), i <= j, of a symmetric matrix, packed by columns: rows can be left off without renumbering.
__device__ __forceinline__ int pair_index(int i, int j) { return j * (j + 1) / 2 + i; }

__device__ __forceinline__ int pair_count(const Problem& problem) { return pair_index(0, problem.cross + 1); }

__device__ __forceinline__ Slot find_slot(const Problem& problem, long long index) {
  int low = 0, high = problem.segments - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (problem.first_slot[middle] <= index) low = middle;
    else high = middle - 1;
  }
  Slot slot;
  slot.index = index;
  slot.segment = low;
  slot.first = problem.first_slot[low];
  slot.count = problem.first_slot[low + 1] - slot.first;
  slot.begin = problem.offsets[low] + (index - slot.first) * problem.slot_length;
  const long long limit = problem.offsets[low + 1];
  slot.end = slot.begin + problem.slot_length < limit ? slot.begin + problem.slot_length : limit;
  return slot;
}

// First launch of every projection: a workspace carries nothing over from one call, stream or replay to the next.
__device__ __forceinline__ void prepare(const Problem& problem, const Table& table) {
  // offsets and first_slot lie one behind the other.
  for (int i = threadIdx.x; i < table.count; i += blockDim.x) problem.offsets[table.first + i] = table.values[i];
  if (table.first != 0) return;
  for (long long i = threadIdx.x; i < problem.slots; i += blockDim.x) problem.slot_arrivals[i] = 0;
  for (int i = threadIdx.x; i < problem.segments; i += blockDim.x) {
    problem.segment_arrivals[i] = 0;
    problem.ready[i] = 0;
  }
}

}  // namespace cga
