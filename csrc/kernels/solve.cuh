// The quadratic program of a segment, min over v >= margin of 1/2 v'Hv + c'v, by one block in float64.
//
// Lawson and Hanson (1974) on the tableau [A q; q' 0] of the Jacobi-scaled problem: sweeping row j moves it into the
// solution with one rank-1 update. The last column always holds the answer: the minimiser on the active rows with its
// sign flipped, and the reduced gradient of the others. The whole block updates; the first warp decides.
#pragma once
#include "problem.cuh"
#include "run.cuh"

namespace cga {

enum RowState { kFree, kActive, kBlocked, kExcluded };
constexpr double kOptimal = -1e-12;  // reduced gradients above are rounding: max |q| is 1

struct Solver {
  int rows;         // K
  double* tableau;  // [K + 1, K + 1]
  double* column;   // [K + 1] copy of the pivot column
  double* weight;   // [K] w, the feasible iterate
  double* scale;    // [K] 1 / |g_k|, or 0
  double* peak;     // [1] max |q| before q is divided by it
  int* state;       // [K] RowState
  int* pick;        // [1] the row that enters or leaves, or -1

  __device__ __forceinline__ Solver(int rows, unsigned char* memory) : rows(rows) {
    tableau = reinterpret_cast<double*>(memory);
    column = tableau + (rows + 1) * (rows + 1);
    weight = column + rows + 1;
    scale = weight + rows;
    peak = scale + rows;
    state = reinterpret_cast<int*>(peak + 1);
    pick = state + rows;
  }

  __device__ __forceinline__ double& at(int i, int j) const { return tableau[i * (rows + 1) + j]; }
};

__device__ __forceinline__ bool is_finite(double value) { return value - value == 0; }

// The smallest value over the warp with the index of its row; ties go to the lowest index.
__device__ __forceinline__ int warp_argmin(double& value, int index) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const double other = __shfl_xor_sync(kWarp, value, offset);
    const int at = __shfl_xor_sync(kWarp, index, offset);
    if (other < value || (other == value && at < index)) {
      value = other;
      index = at;
    }
  }
  return index;
}

// Scales: zero rows and rows with NaN or Inf get none. Nothing is usable if the own gradient is not finite.
__device__ __forceinline__ void scale_rows(const Solver& solver, const double* gram) {
  const int size = solver.rows + 1;
  const bool own = is_finite(gram[size * size - 1]);
  for (int k = threadIdx.x; k < solver.rows; k += blockDim.x) {
    const double square = gram[k * size + k];
    const bool usable = own && is_finite(square);
    solver.state[k] = !usable ? kExcluded : square > 0 ? kFree : kBlocked;
    solver.scale[k] = usable && square > 0 ? 1 / sqrt(square) : 0;
    solver.weight[k] = 0;
  }
}

__device__ __forceinline__ double linear_term(const Solver& solver, const double* gram, int k, double margin) {
  const int size = solver.rows + 1;
  if (solver.scale[k] == 0) return 0;
  double sum = gram[k * size + solver.rows];
  for (int l = 0; l < solver.rows; ++l) {
    if (solver.scale[l] != 0) sum += margin * gram[k * size + l];
  }
  return sum * solver.scale[k];
}

__device__ __forceinline__ void fill_tableau(const Solver& solver, const double* gram, double ridge) {
  const int rows = solver.rows, size = rows + 1;
  for (int entry = threadIdx.x; entry < rows * rows; entry += blockDim.x) {
    const int i = entry / rows, j = entry % rows;
    const double scale = solver.scale[i] * solver.scale[j];
    solver.at(i, j) = i == j ? 1 + ridge : scale == 0 ? 0 : gram[i * size + j] * solver.scale[i] * solver.scale[j];
  }
  const double peak = *solver.peak;
  for (int k = threadIdx.x; k <= rows; k += blockDim.x) {
    const double value = k < rows && peak > 0 ? solver.column[k] / peak : 0;
    solver.at(k, rows) = value;
    solver.at(rows, k) = value;
  }
}

__device__ __forceinline__ void set_up(const Solver& solver, const double* gram, double margin, double ridge) {
  scale_rows(solver, gram);
  __syncthreads();
  for (int k = threadIdx.x; k < solver.rows; k += blockDim.x) {
    solver.column[k] = linear_term(solver, gram, k, margin);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    double peak = 0;
    for (int k = threadIdx.x; k < solver.rows; k += 32) peak = fmax(peak, fabs(solver.column[k]));
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) peak = fmax(peak, __shfl_xor_sync(kWarp, peak, offset));
    if (threadIdx.x == 0) *solver.peak = peak;
  }
  __syncthreads();
  fill_tableau(solver, gram, ridge);
}

// Moves row j into the solution, or out of it (sign = -1). Two barriers.
__device__ __forceinline__ void sweep(const Solver& solver, int j, double sign) {
  const int size = solver.rows + 1;
  for (int i = threadIdx.x; i < size; i += blockDim.x) solver.column[i] = solver.at(i, j);
  __syncthreads();
  const double* column = solver.column;
  const double inverse = 1 / column[j];
  for (int entry = threadIdx.x; entry < size * size; entry += blockDim.x) {
    const int i = entry / size, l = entry % size;
    if (i == j && l == j) solver.tableau[entry] = -inverse;
    else if (i == j || l == j) solver.tableau[entry] = sign * column[i == j ? l : i] * inverse;
    else solver.tableau[entry] -= column[i] * column[l] * inverse;
  }
  __syncthreads();
}

// First warp: the free row with the least reduced gradient, or -1 if none is below zero.
__device__ __forceinline__ void choose(const Solver& solver, double floor) {
  double least = kOptimal;
  int row = solver.rows;
  for (int k = threadIdx.x; k < solver.rows; k += 32) {
    const double reduced = solver.at(k, solver.rows);
    if (solver.state[k] == kFree && solver.at(k, k) > floor && reduced < least) {
      least = reduced;
      row = k;
    }
  }
  row = warp_argmin(least, row);
  const bool found = row < solver.rows;
  if (threadIdx.x == 0) *solver.pick = found ? row : -1;
  if (found && static_cast<int>(threadIdx.x) == row % 32) solver.state[row] = kActive;
}

// First warp: moves the weights towards the minimiser on the active rows, up to the first that would turn negative.
// That one is picked to leave; -1 if the minimiser was reached.
__device__ __forceinline__ void advance(const Solver& solver, int entered) {
  double fraction = 2;
  int leaves = solver.rows;
  for (int k = threadIdx.x; k < solver.rows; k += 32) {
    if (solver.state[k] != kActive) continue;
    const double target = -solver.at(k, solver.rows), weight = solver.weight[k];
    if (target > 0) continue;
    const double ratio = weight > 0 ? weight / (weight - target) : 0;
    if (ratio < fraction) {
      fraction = ratio;
      leaves = k;
    }
  }
  leaves = warp_argmin(fraction, leaves);
  for (int k = threadIdx.x; k < solver.rows; k += 32) {
    const double target = -solver.at(k, solver.rows), weight = solver.weight[k];
    if (solver.state[k] == kActive) {
      solver.weight[k] = fraction > 1 ? target : k == leaves ? 0 : fmax(weight + fraction * (target - weight), 0.0);
    }
    // A row that leaves as soon as it entered is set aside until something changes: no cycles.
    if (k == leaves) solver.state[k] = k == entered && fraction == 0 ? kBlocked : kFree;
    else if (fraction > 0 && solver.state[k] == kBlocked && solver.scale[k] != 0) solver.state[k] = kFree;
  }
  if (threadIdx.x == 0) *solver.pick = fraction > 1 ? -1 : leaves;
}

// Returns whether the optimum was reached within the cap. At most K + 1 pivots in practice. Barriers come before the
// first look at the tableau and after the last change of a weight.
__device__ __forceinline__ bool pivot(const Solver& solver, double floor) {
  int entered = -1;
  for (int step = 0; step < 10 * solver.rows + 20; ++step) {
    // With a row just swept, the weights may first have to give way.
    if (threadIdx.x < 32 && entered >= 0) advance(solver, entered);
    __syncthreads();
    const int leaves = entered >= 0 ? *solver.pick : -1;
    __syncthreads();
    if (leaves >= 0) {
      sweep(solver, leaves, -1);
      continue;
    }
    if (threadIdx.x < 32) choose(solver, floor);
    __syncthreads();
    entered = *solver.pick;
    if (entered < 0) return true;
    sweep(solver, entered, 1);
  }
  return false;
}

inline __device__ __noinline__ void solve_segment(const Problem& problem, int segment,
                                                  unsigned char* memory) {
  const int rows = problem.cross, size = rows + 1;
  const double* gram = problem.gram + static_cast<long long>(segment) * size * size;
  const Solver solver(rows, memory);
  set_up(solver, gram, problem.margin, problem.ridge);
  const bool converged = *solver.peak > 0 ? pivot(solver, problem.floor) : true;
  for (int k = threadIdx.x; k < rows; k += blockDim.x) {
    const double weight = *solver.peak * solver.scale[k] * solver.weight[k];
    problem.dual[static_cast<long long>(segment) * rows + k] =
        solver.state[k] == kExcluded ? 0 : problem.margin + weight;
  }
  if (threadIdx.x == 0) {
    bool finite = is_finite(gram[size * size - 1]);
    for (int k = 0; k < rows; ++k) finite = finite && solver.state[k] != kExcluded;
    problem.status[segment] = !finite ? 2 : converged ? 0 : 1;
  }
}

}  // namespace cga
