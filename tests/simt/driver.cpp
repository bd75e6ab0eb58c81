// The executor as a library: launches a kernel of csrc/kernels by its name, as a GPU driver would.
#include "simt.h"

#define __noinline__ __attribute__((noinline))
#include "kernels.cuh"

CGA_KERNELS_0(CGA_DEFINE)
CGA_KERNELS_1(CGA_DEFINE)
CGA_KERNELS_2(CGA_DEFINE)
CGA_KERNELS_3(CGA_DEFINE)
CGA_KERNELS_4(CGA_DEFINE)

namespace simt {

struct Entry {
  const char* name;
  void (*call)(const void* const* arguments);
};

#define SIMT_ENTRY(name, threads, blocks, ...) \
  {#name, [](const void* const* arguments) { name(*static_cast<const cga::Problem*>(arguments[0])); }},
const Entry kEntries[] = {
    CGA_KERNELS_0(SIMT_ENTRY) CGA_KERNELS_1(SIMT_ENTRY) CGA_KERNELS_2(SIMT_ENTRY) CGA_KERNELS_3(SIMT_ENTRY)
    CGA_KERNELS_4(SIMT_ENTRY)
    {"prepare", [](const void* const* arguments) {
       cga::prepare(*static_cast<const cga::Problem*>(arguments[0]), *static_cast<const cga::Table*>(arguments[1]));
     }},
};

SIMT_UNWATCHED void thread_entry() {
  arrive(current->fiber);
  order_acquire(&launch_order);
  kernel();
  Block& block = *current->block;
  if (block.at_barrier != 0) fail(std::string("a thread left while others wait at ") + block.barrier);
  ++block.done;
  order_release(&exit_order);
  yield(State::kDone);
}

SIMT_UNWATCHED std::unique_ptr<Block> start_block(unsigned index, const Launch& launch) {
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

SIMT_UNWATCHED std::vector<unsigned> ordered(unsigned count, const Launch& launch, std::mt19937& random) {
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = launch.order == kReverse ? count - 1 - i : i;
  if (launch.order == kRandom)
    for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

// Lets every thread that can run do so once; returns whether one did more than pause.
SIMT_UNWATCHED bool run_block(Block& block, const std::vector<unsigned>& order) {
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

SIMT_UNWATCHED void run_grid(const Launch& launch) {
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

}  // namespace simt

// Returns null, or what went wrong. After a failure the fibers are left where they stand.
extern "C" SIMT_UNWATCHED const char* simt_launch(const char* name, simt::Launch launch,
                                                  const void* const* arguments) {
  using namespace simt;
  failure.clear();
  const Entry* entry = nullptr;
  for (const Entry& one : kEntries)
    if (std::strcmp(one.name, name) == 0) entry = &one;
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

extern "C" size_t simt_size(int table) { return table ? sizeof(cga::Table) : sizeof(cga::Problem); }
