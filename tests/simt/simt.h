// Runs CUDA kernels on the CPU: one fiber for every CUDA thread, all on one OS thread. A fiber runs until it waits.
//
// g++ compiles the kernels after this header, which gives CUDA's names their meaning. The executor keeps the rules that
// a GPU leaves undefined when they are broken, and stops with a message: barriers reached at different lines or after a
// thread has left, warp collectives whose mask does not fit, shared memory beyond the size asked for (with ASan), and
// launches that cannot go on. Blocks and threads run in an order of choice, `resident` blocks at a time.
//
// Under TSan every CUDA thread counts as a thread of its own. What orders their accesses is what CUDA promises and no
// more: barriers, __syncwarp, and atomics with a __threadfence on both sides. Shuffles and ballots order nothing.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define SIMT_OPAQUE __attribute__((noinline)) SIMT_UNWATCHED

struct uint4 {
  alignas(16) unsigned x;
  unsigned y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct Dim { unsigned x; };
inline Dim threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

enum class State { kReady, kBarrier, kCollective, kPaused, kDone };
enum Order { kForward, kReverse, kRandom };

struct Launch {
  unsigned grid, block;
  size_t shared_bytes;
  unsigned resident;
  Order order;
  unsigned seed;
};

// Lanes that name the same mask meet here. Values are kept for two generations: a lane that is ahead by one cannot
// overwrite what a slow one still has to read, and none can be ahead by two.
struct Collective {
  unsigned mask, arrived = 0, generation = 0;
  const char* where = nullptr;
  uint64_t value[2][32][3];
  char order[2];  // stands for what __syncwarp orders
};

struct Block;

struct Thread {
  Fiber fiber;
  Block* block;
  unsigned index;
  State state = State::kReady;
  bool fenced = false;  // a __threadfence since the last atomic
};

struct Block {
  unsigned index;
  std::vector<std::unique_ptr<Thread>> threads;
  std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, std::free};
  std::vector<std::vector<std::unique_ptr<Collective>>> collectives;  // by warp
  unsigned at_barrier = 0, done = 0, generation = 0;
  const char* barrier = nullptr;
  const void* observed = nullptr;  // the last atomic: a __threadfence from now on sees what its writers had done
  char order[2];
};

inline Thread* current;
inline std::function<void()> kernel;
inline Fiber scheduler;
inline std::string failure;
inline char launch_order, exit_order;

[[noreturn]] SIMT_OPAQUE inline void fail(const std::string& what) {
  failure = what + " (block " + std::to_string(current->block->index) + ", thread " + std::to_string(current->index) + ")";
  switch_fiber(current->fiber, scheduler);
  std::abort();
}

SIMT_OPAQUE inline void yield(State state) {
  Thread* self = current;
  self->state = state;
  switch_fiber(self->fiber, scheduler);
}

#define SIMT_TEXT_(x) #x
#define SIMT_TEXT(x) SIMT_TEXT_(x)
#define SIMT_HERE __FILE__ ":" SIMT_TEXT(__LINE__)

SIMT_OPAQUE inline void barrier(const char* where) {
  Block& block = *current->block;
  if (block.done != 0) fail(std::string("barrier at ") + where + " after a thread has left the kernel");
  if (block.at_barrier != 0 && block.barrier != where && std::strcmp(block.barrier, where) != 0)
    fail(std::string("divergent barrier: ") + where + " while others wait at " + block.barrier);
  block.barrier = where;
  char* order = &block.order[block.generation % 2];
  order_release(order);
  if (++block.at_barrier == block.threads.size()) {
    block.at_barrier = 0;
    ++block.generation;
    for (auto& thread : block.threads)
      if (thread->state == State::kBarrier) thread->state = State::kReady;
  } else {
    yield(State::kBarrier);
  }
  order_acquire(order);
}

SIMT_OPAQUE inline Collective& collective(unsigned mask) {
  auto& all = current->block->collectives[current->index / 32];
  for (auto& one : all)
    if (one->mask == mask) return *one;
  all.push_back(std::make_unique<Collective>());
  all.back()->mask = mask;
  return *all.back();
}

// Meets the other lanes of the mask; returns their values.
SIMT_OPAQUE inline uint64_t (*meet(unsigned mask, const uint64_t (&value)[3], const char* where, bool orders))[3] {
  Thread* self = current;
  const unsigned lane = self->index % 32, warp = self->index / 32 * 32;
  if (!(mask >> lane & 1)) fail(std::string("lane not in its own mask at ") + where);
  if (blockDim.x - warp < 32 && mask >> (blockDim.x - warp) != 0)
    fail(std::string("mask names a missing lane at ") + where);
  for (unsigned other = 0; self->block->done != 0 && other < 32; ++other)
    if (mask >> other & 1 && self->block->threads[warp + other]->state == State::kDone)
      fail(std::string("mask names a lane that has left, at ") + where);
  Collective& here = collective(mask);
  if (here.arrived != 0 && here.where != where && std::strcmp(here.where, where) != 0)
    fail(std::string("divergent collective: ") + where + " while others wait at " + here.where);
  here.where = where;
  const unsigned slot = here.generation % 2;
  std::memcpy(here.value[slot][lane], value, sizeof(value));
  if (orders) order_release(&here.order[slot]);
  here.arrived |= 1u << lane;
  if (here.arrived == mask) {
    here.arrived = 0;
    ++here.generation;
    for (unsigned other = 0; other < 32; ++other)
      if (mask >> other & 1 && other != lane) self->block->threads[warp + other]->state = State::kReady;
  } else {
    yield(State::kCollective);
  }
  if (orders) order_acquire(&here.order[slot]);
  return here.value[slot];
}

template <typename V>
SIMT_OPAQUE V shuffle(unsigned mask, V value, unsigned source, const char* where) {
  uint64_t bits[3] = {};
  std::memcpy(bits, &value, sizeof(V));
  auto* values = meet(mask, bits, where, false);
  if (!(mask >> source & 1)) fail(std::string("shuffle reads a lane outside the mask at ") + where);
  std::memcpy(&value, values[source], sizeof(V));
  return value;
}

SIMT_OPAQUE inline unsigned ballot(unsigned mask, bool vote, const char* where) {
  auto* values = meet(mask, {vote, 0, 0}, where, false);
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1 && values[lane][0]) result |= 1u << lane;
  return result;
}

SIMT_OPAQUE inline void fence() {
  current->fenced = true;
  if (current->block->observed) order_acquire(current->block->observed);
}

SIMT_OPAQUE inline unsigned atomic_add(unsigned* address, unsigned value) {
  if (current->fenced) order_release(address);
  current->fenced = false;
  current->block->observed = address;
  const unsigned before = *address;
  *address = before + value;
  return before;
}

}  // namespace simt

#define __syncthreads() simt::barrier(SIMT_HERE)
#define __syncwarp(mask) ((void)simt::meet(mask, {0, 0, 0}, SIMT_HERE, true))
#define __shfl_xor_sync(mask, value, lanes) simt::shuffle(mask, value, (threadIdx.x % 32) ^ (lanes), SIMT_HERE)
#define __ballot_sync(mask, vote) simt::ballot(mask, vote, SIMT_HERE)
#define __threadfence() simt::fence()

inline unsigned atomicAdd(unsigned* address, unsigned value) { return simt::atomic_add(address, value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline double __ldcg(const double* address) { return *address; }
inline uint4 __ldcs(const uint4* address) { return *address; }
inline void __stcs(uint4* address, uint4 value) { *address = value; }
inline float __uint_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
inline unsigned __float_as_uint(float value) { unsigned bits; std::memcpy(&bits, &value, 4); return bits; }
