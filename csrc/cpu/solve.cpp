// Lawson-Hanson, as in cga_lightning/ops/_qp.py, on a Cholesky factor that grows with the active set.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"
#include "problem.h"

namespace cga::cpu {
namespace {

// All apply to a problem of unit diagonal and unit linear term. A Schur complement below the first is rounding: the
// row depends on the active ones. A slope above the second plus the third times the largest weight is rounding too:
// the row is optimal.
constexpr double kDependent = 1e-14;
constexpr double kOptimal = -1e-12;
constexpr double kOptimalPerWeight = -1e-14;

// min over w >= 0 of 1/2 w'Aw + q'w.
class Minimiser {
 public:
  // problem: rows of [A, q], rows x (rows + 1).
  Minimiser(int rows, const std::vector<double>& problem)
      : rows_(rows), problem_(problem), factor_(rows * (rows + 1)), schur_(rows), weights_(rows), target_(rows),
        slope_(rows) {
    restart();
  }

  double weight(int i) const { return weights_[i]; }

  // Whether the optimum was reached; otherwise the weights are the last feasible ones.
  bool minimise() {
    for (int step = 0; step < 10 * rows_ + 20; ++step) {
      find_target();
      const int leaving = advance();
      if (leaving >= 0) {
        drop(leaving);
        continue;
      }
      const int entering = most_violated();
      if (entering < 0) return true;
      eliminate(entering);
    }
    return false;
  }

 private:
  const double* original(int i) const { return &problem_[i * (rows_ + 1)]; }
  double* factor(int r) { return &factor_[r * (rows_ + 1)]; }
  bool is_active(int i) const { return std::find(active_.begin(), active_.end(), i) != active_.end(); }

  void restart() {
    active_.clear();
    for (int i = 0; i < rows_; ++i) schur_[i] = original(i)[i];
  }

  // One more row of the factor L^-1 [A, q] of the active rows, where LL' = A on them in the order of entry.
  void eliminate(int row) {
    const int last = static_cast<int>(active_.size());
    double* line = factor(last);
    std::copy_n(original(row), rows_ + 1, line);
    for (int r = 0; r < last; ++r) {
      const double* above = factor(r);
      const double share = above[row];
      for (int j = 0; j <= rows_; ++j) line[j] -= share * above[j];
    }
    const double pivot = std::sqrt(schur_[row]);
    for (int j = 0; j <= rows_; ++j) line[j] /= pivot;
    line[row] = pivot;
    for (int j = 0; j < rows_; ++j) schur_[j] -= line[j] * line[j];
    active_.push_back(row);
  }

  // Eliminates the other active rows again: taking one out of the factor would lose digits.
  void drop(int row) {
    const std::vector<int> before = active_;
    restart();
    for (int i : before) {
      if (i != row) eliminate(i);
    }
  }

  // The minimiser on the active rows by back substitution, and the slope Aw + q there.
  void find_target() {
    std::fill(target_.begin(), target_.end(), 0.0);
    for (int r = static_cast<int>(active_.size()) - 1; r >= 0; --r) {
      const double* line = factor(r);
      double value = -line[rows_];
      for (size_t t = r + 1; t < active_.size(); ++t) value -= line[active_[t]] * target_[active_[t]];
      target_[active_[r]] = value / line[active_[r]];
    }
    for (int i = 0; i < rows_; ++i) {
      slope_[i] = original(i)[rows_];
      for (int j : active_) slope_[i] += original(i)[j] * target_[j];
    }
  }

  // Moves the weights to the target or up to the first active row that would turn negative; returns that row or -1. A
  // row that just entered has a positive target, so every blocked move has a positive length: no cycles.
  int advance() {
    double fraction = 1;
    int blocking = -1;
    for (int i : active_) {
      if (target_[i] > 0) continue;
      const double part = weights_[i] / std::max(weights_[i] - target_[i], std::numeric_limits<double>::min());
      if (blocking < 0 || part < fraction || (part == fraction && i < blocking)) fraction = part, blocking = i;
    }
    if (blocking < 0) {
      weights_ = target_;
      return blocking;
    }
    for (int i : active_) weights_[i] = std::max(weights_[i] + fraction * (target_[i] - weights_[i]), 0.0);
    weights_[blocking] = 0;
    return blocking;
  }

  int most_violated() {
    double least = kOptimal + kOptimalPerWeight * *std::max_element(weights_.begin(), weights_.end());
    int row = -1;
    for (int i = 0; i < rows_; ++i) {
      if (schur_[i] > kDependent && slope_[i] < least && !is_active(i)) least = slope_[i], row = i;
    }
    return row;
  }

  int rows_;
  const std::vector<double>& problem_;
  std::vector<int> active_;  // in the order of entry
  std::vector<double> factor_;
  std::vector<double> schur_;  // what is left of the diagonal of A when the active rows are eliminated
  std::vector<double> weights_;
  std::vector<double> target_;
  std::vector<double> slope_;
};

}  // namespace

int32_t solve(const double* products, int count, double margin, double ridge, double* dual) {
  const auto product = [&](int i, int j) { return products[i * (count + 1) + j]; };
  const auto usable = [&](int i) { return std::isfinite(product(i, i)) && std::isfinite(product(count, count)); };
  std::vector<double> scale(count), linear(count);
  double peak = 0;
  bool excluded = false;
  for (int i = 0; i < count; ++i) {
    excluded |= !usable(i);
    if (!usable(i)) continue;
    double sum = 0;
    for (int j = 0; j < count; ++j) sum += usable(j) ? product(i, j) : 0;
    scale[i] = product(i, i) > 0 ? 1 / std::sqrt(product(i, i)) : 0;
    linear[i] = scale[i] * (product(i, count) + margin * sum);
    peak = std::max(peak, std::abs(linear[i]));
  }
  std::vector<double> problem(count * (count + 1));
  const auto entry = [&](int i, int j) -> double& { return problem[i * (count + 1) + j]; };
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < count; ++j) entry(i, j) = usable(i) && usable(j) ? product(i, j) * scale[i] * scale[j] : 0;
    entry(i, i) = 1 + ridge;
    entry(i, count) = peak > 0 ? linear[i] / peak : 0;
  }
  Minimiser minimiser(count, problem);
  const bool converged = minimiser.minimise();
  for (int i = 0; i < count; ++i) dual[i] = usable(i) ? margin + peak * scale[i] * minimiser.weight(i) : 0;
  return excluded ? 2 : converged ? 0 : 1;
}

void solve_all(const double* products, int64_t segments, int count, double margin, double ridge, double* dual,
               int32_t* status) {
  const int64_t size = int64_t(count + 1) * (count + 1);
  parallel_for(segments, 8, [&](int64_t segment) {
    status[segment] = solve(products + segment * size, count, margin, ridge, dual + segment * count);
  });
}

}  // namespace cga::cpu
