// Pass 2: own += sum over the rows with v_k != 0 of v_k g_k, in place. Other rows are not read: one with NaN stays out.
#pragma once
#include "element.cuh"
#include "problem.cuh"

namespace cga {

// The rows with a weight, in shared memory behind the 16 bytes of the arrival flag.
struct ActiveRows {
  double* weight;  // [K]
  float* narrow;   // [K] the same in float32
  int* row;        // [K]
  int* count;      // [1]
  int* wide;       // [1] a weight is outside the range in which its product with a float32 can be formed in float32

  __device__ __forceinline__ explicit ActiveRows(int rows) {
    weight = reinterpret_cast<double*>(shared_memory() + 16);
    narrow = reinterpret_cast<float*>(weight + rows);
    row = reinterpret_cast<int*>(narrow + rows);
    count = row + rows;
    wide = count + 1;
  }

  // By the first warp; a barrier follows.
  __device__ __forceinline__ void collect(const double* dual, int rows) const {
    if (threadIdx.x >= 32) return;
    int found = 0;
    bool outside = false;
    for (int base = 0; base < rows; base += 32) {
      const int k = base + static_cast<int>(threadIdx.x);
      const double value = k < rows ? __ldcg(dual + k) : 0;
      const unsigned active = __ballot_sync(0xffffffffu, value != 0);
      if (value != 0) {
        const int place = found + __popc(active & ((1u << threadIdx.x) - 1));
        weight[place] = value;
        narrow[place] = static_cast<float>(value);
        row[place] = k;
        outside |= !(value > 0x1p-96 && value < 0x1p96);
      }
      found += __popc(active);
    }
    outside = __ballot_sync(0xffffffffu, outside) != 0;
    if (threadIdx.x == 0) {
      *count = found;
      *wide = outside;
    }
  }
};

// 16 bytes at a time, streaming: nothing here is read again.
template <typename T>
__device__ __forceinline__ void combine_vectors(const Problem& problem, const ActiveRows& active, long long begin,
                                                long long end) {
  constexpr int kPerVector = Element<T>::kPerVector, kPerWord = Element<T>::kPerWord;
  T* own = static_cast<T*>(problem.own);
  const int count = *active.count;
  for (long long column = begin + threadIdx.x * kPerVector; column < end; column += blockDim.x * kPerVector) {
    float sum[4][kPerWord];
    const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(own + column));
#pragma unroll
    for (int w = 0; w < 4; ++w) Element<T>::unpack(word(raw, w), sum[w]);
#pragma unroll 4
    for (int a = 0; a < count; ++a) {
      const T* row = static_cast<const T*>(problem.rows[active.row[a]]);
      const uint4 other = __ldcs(reinterpret_cast<const uint4*>(row + column));
      const float weight = active.narrow[a];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float value[kPerWord];
        Element<T>::unpack(word(other, w), value);
#pragma unroll
        for (int e = 0; e < kPerWord; ++e) sum[w][e] += weight * value[e];
      }
    }
    __stcs(reinterpret_cast<uint4*>(own + column), make_uint4(Element<T>::pack(sum[0]), Element<T>::pack(sum[1]),
                                                              Element<T>::pack(sum[2]), Element<T>::pack(sum[3])));
  }
}

// One element at a time in float64: ragged ends, unaligned rows, extreme weights, float64 rows.
template <typename T>
__device__ __forceinline__ void combine_elements(const Problem& problem, const ActiveRows& active, long long begin,
                                                 long long end) {
  T* own = static_cast<T*>(problem.own);
  const int count = *active.count;
  for (long long column = begin + threadIdx.x; column < end; column += blockDim.x) {
    double sum = static_cast<double>(Element<T>::widen(own[column]));
#pragma unroll 4
    for (int a = 0; a < count; ++a) {
      const T* row = static_cast<const T*>(problem.rows[active.row[a]]);
      sum += active.weight[a] * static_cast<double>(Element<T>::widen(row[column]));
    }
    own[column] = Element<T>::narrow(sum);
  }
}

template <typename T>
struct Combine {
  static __device__ __forceinline__ void run(const Problem& problem, const ActiveRows& active, const Slot& slot) {
    const bool vectors = problem.aligned && !*active.wide;
    const long long whole = (slot.end - slot.begin) / Element<T>::kPerVector * Element<T>::kPerVector;
    const long long middle = vectors ? slot.begin + whole : slot.begin;
    combine_vectors<T>(problem, active, slot.begin, middle);
    combine_elements<T>(problem, active, middle, slot.end);
  }
};

template <>
struct Combine<double> {
  static __device__ __forceinline__ void run(const Problem& problem, const ActiveRows& active, const Slot& slot) {
    combine_elements<double>(problem, active, slot.begin, slot.end);
  }
};

template <typename T>
__device__ __forceinline__ void combine_slot(const Problem& problem, const Slot& slot) {
  const ActiveRows active(problem.cross);
  active.collect(problem.dual + static_cast<long long>(slot.segment) * problem.cross, problem.cross);
  __syncthreads();
  if (*active.count != 0) Combine<T>::run(problem, active, slot);
}

// A block a slot, from the last to the first: what pass 1 read last is still in the cache.
template <typename T>
__device__ __forceinline__ void combine(const Problem& problem) {
  combine_slot<T>(problem, find_slot(problem, problem.slots - 1 - blockIdx.x));
}

// The second half of a cooperative launch: this block's slots again, each as soon as its segment is solved. No block
// waits before all its own slots are done, and all blocks are resident.
template <typename T>
__device__ __forceinline__ void combine_when_ready(const Problem& problem) {
  for (long long index = blockIdx.x; index < problem.slots; index += gridDim.x) {
    const Slot slot = find_slot(problem, index);
    if (threadIdx.x == 0) {
      while (load_acquire(problem.ready + slot.segment) == 0) pause();
    }
    __syncthreads();  // also: all have read the list of the slot before
    combine_slot<T>(problem, slot);
  }
}

}  // namespace cga
