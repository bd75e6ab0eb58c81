// The scheduler of the executor: starts blocks, lets their threads take turns, and finds out when none can go on.
#pragma once
#include "simt.h"

namespace simt {

struct Entry {
  const char* name;
  void (*call)(const void* const* arguments);
};

SIMT_UNWATCHED inline void thread_entry() {
  arrive(current->fiber);
  order_acquire(&launch_order);
  kernel();
  Block& block = *current->block;
  if (block.at_barrier != 0) fail(std::string("a thread left while others wait at ") + block.barrier);
  ++block.done;
  order_release(&exit_order);
  yield(State::kDone);
}

SIMT_UNWATCHED inline std::unique_ptr<Block> start_block(unsigned index, const Launch& launch) {
  auto block = std::make_unique<Block>();
  block->index = index;
  // Exactly the size asked for, and nothing in it that looks like a number.
  block->shared.reset(static_cast<unsigned char*>(std::malloc(launch.shared_bytes ? launch.shared_bytes : 1)));
  std::memset(block->shared.get(), 0xff, launch.shared_bytes);
  block->collectives.resize((launch.block + 31) / 32);
  for (unsigned i = 0; i < launch.block; ++i) {
    auto thread = std::make_unique<Thread>();
    thread->block = block.get();
    thread->index = i;
    create_fiber(thread->fiber, thread_entry);
    block->threads.push_back(std::move(thread));
  }
  return block;
}

SIMT_UNWATCHED inline std::vector<unsigned> ordered(unsigned count, const Launch& launch, std::mt19937& random) {
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = launch.order == kReverse ? count - 1 - i : i;
  if (launch.order == kRandom)
    for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

// Lets every thread that can run do so once; returns whether one did more than pause.
SIMT_UNWATCHED inline bool run_block(Block& block, const std::vector<unsigned>& order) {
  bool progress = false;
  for (unsigned i : order) {
    Thread& thread = *block.threads[i];
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

SIMT_UNWATCHED inline void run_grid(const Launch& launch) {
  std::mt19937 random(launch.seed);
  std::vector<unsigned> waiting = ordered(launch.grid, launch, random);
  std::vector<std::unique_ptr<Block>> live;
  size_t next = 0;
  while (next < waiting.size() || !live.empty()) {
    while (next < waiting.size() && live.size() < launch.resident) live.push_back(start_block(waiting[next++], launch));
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
    for (size_t i = live.size(); i-- > 0;) {
      if (live[i]->done != launch.block) continue;
      for (auto& thread : live[i]->threads) destroy_fiber(thread->fiber);
      live.erase(live.begin() + i);
    }
  }
}

// Returns null, or what went wrong. After a failure the fibers are left where they stand.
SIMT_UNWATCHED inline const char* run_kernel(const Entry* entries, size_t count, const char* name, const Launch& launch,
                                             const void* const* arguments) {
  failure.clear();
  const Entry* entry = nullptr;
  for (size_t i = 0; i < count; ++i)
    if (std::strcmp(entries[i].name, name) == 0) entry = &entries[i];
  if (!entry) return (failure = std::string("no kernel ") + name).c_str();
  kernel = [entry, arguments] { entry->call(arguments); };
  blockDim.x = launch.block;
  gridDim.x = launch.grid;
#if defined(__SANITIZE_THREAD__)
  scheduler.thread = __tsan_get_current_fiber();
#endif
  order_release(&launch_order);
  run_grid(launch);
  order_acquire(&exit_order);
  return failure.empty() ? nullptr : failure.c_str();
}

}  // namespace simt
