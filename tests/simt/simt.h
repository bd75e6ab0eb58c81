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
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct uint4 {
  alignas(16) unsigned x;
  unsigned y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct Dim { unsigned x; };
extern Dim threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

struct Launch {
  unsigned grid, block;
  size_t shared_bytes;
  unsigned resident;
  int order;  // Order
  unsigned seed;
};

struct Entry {
  const char* name;
  void (*call)(const void* const* arguments);
};

// Up to 192 bits of every lane.
struct Values { uint64_t word[3]; };

// Runs a kernel of the list; null, or what went wrong.
const char* run_kernel(const Entry* entries, size_t count, const char* name, const Launch& launch,
                       const void* const* arguments);

// Stops the launch with a message.
[[noreturn]] void refuse(const char* what);
unsigned char* shared_memory();
size_t shared_bytes();
// Waits for the whole block and returns whether any thread voted.
bool barrier(const char* where, bool vote = false);
// Meets the other lanes of the mask and returns the values of all 32; `orders`: their memory accesses too.
const Values* meet(unsigned mask, const Values& mine, const char* where, bool orders);
void check_source(unsigned mask, unsigned source, const char* where);
void fence();
unsigned atomic_add(unsigned* address, unsigned value);
unsigned load_acquire(const unsigned* address);
void store_release(unsigned* address, unsigned value);
void pause();  // lets others run; a launch in which all pause is stuck

template <typename V>
V shuffle(unsigned mask, V value, unsigned source, const char* where) {
  Values mine = {};
  std::memcpy(mine.word, &value, sizeof(V));
  const Values* values = meet(mask, mine, where, false);
  check_source(mask, source, where);
  std::memcpy(&value, values[source].word, sizeof(V));
  return value;
}

inline unsigned ballot(unsigned mask, bool vote, const char* where) {
  const Values* values = meet(mask, {{vote}}, where, false);
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1 && values[lane].word[0]) result |= 1u << lane;
  return result;
}

}  // namespace simt

#define SIMT_TEXT_(x) #x
#define SIMT_TEXT(x) SIMT_TEXT_(x)
#define SIMT_HERE __FILE__ ":" SIMT_TEXT(__LINE__)

#define __syncthreads() ((void)simt::barrier(SIMT_HERE))
#define __syncthreads_or(vote) simt::barrier(SIMT_HERE, vote)
#define __syncwarp(mask) ((void)simt::meet(mask, {}, SIMT_HERE, true))
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
