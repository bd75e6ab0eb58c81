// The executor: threads as fibers, barriers, warp collectives, fences, and the scheduler. Never instrumented itself;
// SIMT_ADDRESS and SIMT_THREAD say which sanitizer watches the kernels.
#include "simt.h"

#include <array>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

Dim threadIdx, blockIdx, blockDim, gridDim;

namespace simt {
namespace {

enum class State { kReady, kBarrier, kCollective, kPaused, kDone };
enum Order { kForward, kReverse, kRandom };

// Lanes that name the same mask meet here. Values are kept for two generations: a lane that is ahead by one cannot
// overwrite what a slow one still has to read, and none can be ahead by two.
struct Collective {
  unsigned mask = 0, arrived = 0, generation = 0;
  const char* where = nullptr;
  Values value[2][32];
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
  std::vector<Thread> threads;
  std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, std::free};
  size_t shared_bytes;
  std::vector<std::array<Collective, 4>> collectives;  // by warp
  unsigned at_barrier = 0, done = 0, generation = 0;
  const char* barrier = nullptr;
  bool votes = false, voted = false;  // of this barrier so far; of the last
  const void* observed = nullptr;  // the last atomic: a __threadfence from now on sees what its writers had done
  char order[2];
};

Thread* current;
std::function<void()> kernel;
Fiber scheduler;
std::string failure;
char launch_order, exit_order;

[[noreturn]] void fail(const std::string& what) {
  failure = what + " (block " + std::to_string(current->block->index) + ", thread " + std::to_string(current->index) +
            ")";
  switch_fiber(current->fiber, scheduler);
  std::abort();
}

void yield(State state) {
  current->state = state;
  switch_fiber(current->fiber, scheduler);
}

bool differ(const char* a, const char* b) { return a != b && std::strcmp(a, b) != 0; }

Collective& collective(unsigned mask, const char* where) {
  for (Collective& one : current->block->collectives[current->index / 32]) {
    if (one.mask == 0) one.mask = mask;
    if (one.mask == mask) return one;
  }
  fail(std::string("more than four masks in one warp at ") + where);
}

void check_mask(unsigned mask, const char* where) {
  const unsigned lane = current->index % 32, warp = current->index / 32 * 32;
  if (!(mask >> lane & 1)) fail(std::string("lane not in its own mask at ") + where);
  if (blockDim.x - warp < 32 && mask >> (blockDim.x - warp) != 0)
    fail(std::string("mask names a missing lane at ") + where);
  for (unsigned other = 0; current->block->done != 0 && other < 32; ++other)
    if (mask >> other & 1 && current->block->threads[warp + other].state == State::kDone)
      fail(std::string("mask names a lane that has left, at ") + where);
}

}  // namespace

void refuse(const char* what) { fail(what); }

unsigned char* shared_memory() { return current->block->shared.get(); }

size_t shared_bytes() { return current->block->shared_bytes; }

bool barrier(const char* where, bool vote) {
  Block& block = *current->block;
  if (block.done != 0) fail(std::string("barrier at ") + where + " after a thread has left the kernel");
  if (block.at_barrier != 0 && differ(block.barrier, where))
    fail(std::string("divergent barrier: ") + where + " while others wait at " + block.barrier);
  block.barrier = where;
  char* order = &block.order[block.generation % 2];
  order_release(order);
  block.votes |= vote;
  if (++block.at_barrier == block.threads.size()) {
    block.at_barrier = 0;
    block.voted = std::exchange(block.votes, false);
    ++block.generation;
    for (Thread& thread : block.threads)
      if (thread.state == State::kBarrier) thread.state = State::kReady;
  } else {
    yield(State::kBarrier);
  }
  order_acquire(order);
  return block.voted;
}

const Values* meet(unsigned mask, const Values& mine, const char* where, bool orders) {
  check_mask(mask, where);
  Collective& here = collective(mask, where);
  if (here.arrived != 0 && differ(here.where, where))
    fail(std::string("divergent collective: ") + where + " while others wait at " + here.where);
  here.where = where;
  const unsigned slot = here.generation % 2, lane = current->index % 32;
  here.value[slot][lane] = mine;
  if (orders) order_release(&here.order[slot]);
  here.arrived |= 1u << lane;
  if (here.arrived == mask) {
    here.arrived = 0;
    ++here.generation;
    for (unsigned other = 0; other < 32; ++other)
      if (mask >> other & 1 && other != lane)
        current->block->threads[current->index / 32 * 32 + other].state = State::kReady;
  } else {
    yield(State::kCollective);
  }
  if (orders) order_acquire(&here.order[slot]);
  return here.value[slot];
}

void check_source(unsigned mask, unsigned source, const char* where) {
  if (!(mask >> source & 1)) fail(std::string("shuffle reads a lane outside the mask at ") + where);
}

void fence() {
  current->fenced = true;
  if (current->block->observed) order_acquire(current->block->observed);
}

unsigned atomic_add(unsigned* address, unsigned value) {
  if (current->fenced) order_release(address);
  current->fenced = false;
  current->block->observed = address;
  const unsigned before = *address;
  *address = before + value;
  return before;
}

unsigned load_acquire(const unsigned* address) {
  order_acquire(address);
  return *address;
}

void store_release(unsigned* address, unsigned value) {
  order_release(address);
  *address = value;
}

void pause() { yield(State::kPaused); }

namespace {

void thread_entry() {
  arrive(current->fiber);
  order_acquire(&launch_order);
  kernel();
  Block& block = *current->block;
  if (block.at_barrier != 0) fail(std::string("a thread left while others wait at ") + block.barrier);
  ++block.done;
  order_release(&exit_order);
  yield(State::kDone);
}

std::unique_ptr<Block> start_block(unsigned index, const Launch& launch) {
  auto block = std::make_unique<Block>();
  block->index = index;
  block->shared_bytes = launch.shared_bytes;
  // Exactly the size asked for, and nothing in it that looks like a number.
  block->shared.reset(static_cast<unsigned char*>(std::malloc(launch.shared_bytes ? launch.shared_bytes : 1)));
  std::memset(block->shared.get(), 0xff, launch.shared_bytes);
  block->collectives.resize((launch.block + 31) / 32);
  block->threads.resize(launch.block);
  for (unsigned i = 0; i < launch.block; ++i) {
    block->threads[i].block = block.get();
    block->threads[i].index = i;
    create_fiber(block->threads[i].fiber, thread_entry);
  }
  return block;
}

std::vector<unsigned> ordered(unsigned count, const Launch& launch, std::mt19937& random) {
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = launch.order == kReverse ? count - 1 - i : i;
  if (launch.order == kRandom)
    for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

// Lets every thread that can run do so once; returns whether one did more than pause.
bool run_block(Block& block, const std::vector<unsigned>& order) {
  bool progress = false;
  for (unsigned i : order) {
    Thread& thread = block.threads[i];
    if (thread.state != State::kReady && thread.state != State::kPaused) continue;
    const bool waited = thread.state == State::kPaused;
    current = &thread;
    threadIdx.x = i;
    blockIdx.x = block.index;
    switch_fiber(scheduler, thread.fiber);
    if (!failure.empty()) return false;
    progress |= !(waited && thread.state == State::kPaused);
  }
  return progress;
}

using Blocks = std::vector<std::unique_ptr<Block>>;

// Ended blocks are kept to the end of the launch: to TSan, freeing is an access too.
void retire(Blocks& live, Blocks& ended, unsigned threads) {
  for (size_t i = live.size(); i-- > 0;) {
    if (live[i]->done != threads) continue;
    for (Thread& thread : live[i]->threads) destroy_fiber(thread.fiber);
    ended.push_back(std::move(live[i]));
    live.erase(live.begin() + i);
  }
}

void run_grid(const Launch& launch, Blocks& live, Blocks& ended) {
  std::mt19937 random(launch.seed);
  const std::vector<unsigned> blocks = ordered(launch.grid, launch, random);
  size_t next = 0;
  while (next < blocks.size() || !live.empty()) {
    while (next < blocks.size() && live.size() < launch.resident) live.push_back(start_block(blocks[next++], launch));
    bool progress = false;
    for (unsigned i : ordered(live.size(), launch, random)) {
      progress |= run_block(*live[i], ordered(launch.block, launch, random));
      if (!failure.empty()) return;
    }
    if (!progress) {
      failure = "deadlock: no thread of block " + std::to_string(live[0]->index) + " and " +
                std::to_string(live.size() - 1) + " others can go on";
      return;
    }
    retire(live, ended, launch.block);
  }
}

}  // namespace

// After a failure the fibers are left where they stand.
const char* run_kernel(const Entry* entries, size_t count, const char* name, const Launch& launch,
                       const void* const* arguments) {
  failure.clear();
  const Entry* entry = nullptr;
  for (size_t i = 0; i < count; ++i)
    if (std::strcmp(entries[i].name, name) == 0) entry = &entries[i];
  if (!entry) return (failure = std::string("no kernel ") + name).c_str();
  kernel = [entry, arguments] { entry->call(arguments); };
  blockDim.x = launch.block;
  gridDim.x = launch.grid;
  enter_scheduler(scheduler);
  order_release(&launch_order);
  Blocks live, ended;
  run_grid(launch, live, ended);
  order_acquire(&exit_order);
  return failure.empty() ? nullptr : failure.c_str();
}

}  // namespace simt
