// Fibers on stacks of their own, announced to ASan and TSan. x86-64 switches in a few instructions, others by ucontext.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(SIMT_ADDRESS)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SIMT_THREAD)
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {

constexpr size_t kStack = 256 * 1024;  // reserved; only what is touched takes memory

// A scheduler is a fiber too: the one without a stack of its own.
struct Fiber {
  void* pointer = nullptr;
  char* stack = nullptr;
#if !defined(__x86_64__)
  ucontext_t context;
#endif
#if defined(SIMT_ADDRESS)
  void* fake = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
#endif
  void* thread = nullptr;  // TSan's
};

inline void order_release(const void* address) {
#if defined(SIMT_THREAD)
  __tsan_release(const_cast<void*>(address));
#else
  (void)address;
#endif
}

inline void order_acquire(const void* address) {
#if defined(SIMT_THREAD)
  __tsan_acquire(const_cast<void*>(address));
#else
  (void)address;
#endif
}

#if defined(__x86_64__)
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size simt_switch, .-simt_switch
)");
#endif

inline Fiber* arriving_from;

// First thing after a switch, on the stack that was switched to.
inline void arrive(Fiber& here) {
#if defined(SIMT_ADDRESS)
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(here.fake, &bottom, &size);
  if (!arriving_from->stack) arriving_from->bottom = bottom, arriving_from->size = size;
#endif
  (void)here;
}

__attribute__((noinline)) inline void switch_fiber(Fiber& from, Fiber& to) {
  arriving_from = &from;
#if defined(SIMT_ADDRESS)
  __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.size);
#endif
#if defined(SIMT_THREAD)
  __tsan_switch_to_fiber(to.thread, 1);  // 1: the switch itself orders nothing
#endif
#if defined(__x86_64__)
  simt_switch(&from.pointer, to.pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
  arrive(from);
}

inline std::vector<char*> spare_stacks;

inline char* take_stack() {
  if (!spare_stacks.empty()) {
    char* stack = spare_stacks.back();
    spare_stacks.pop_back();
    return stack;
  }
  void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) std::abort();
  return static_cast<char*>(stack);
}

inline void create_fiber(Fiber& fiber, void (*entry)()) {
  fiber.stack = take_stack();
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(fiber.stack + kStack) - 2;
  top[0] = reinterpret_cast<void*>(entry);  // entry finds the stack as after a call
  top[1] = nullptr;
  fiber.pointer = top - 6;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  makecontext(&fiber.context, entry, 0);
#endif
#if defined(SIMT_ADDRESS)
  fiber.bottom = fiber.stack;
  fiber.size = kStack;
#endif
#if defined(SIMT_THREAD)
  fiber.thread = __tsan_create_fiber(0);
#endif
}

inline void destroy_fiber(Fiber& fiber) {
#if defined(SIMT_THREAD)
  __tsan_destroy_fiber(fiber.thread);
#endif
#if defined(SIMT_THREAD)
  munmap(fiber.stack, kStack);  // a stack used again would look shared
#else
  spare_stacks.push_back(fiber.stack);
#endif
}

inline void enter_scheduler(Fiber& fiber) {
#if defined(SIMT_THREAD)
  fiber.thread = __tsan_get_current_fiber();
#else
  (void)fiber;
#endif
}

}  // namespace simt
