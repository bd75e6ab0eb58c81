// What a projection launches: kernels, grids, shared memory and workspace. Arithmetic on numbers and addresses only.
//
// The twin of cga_lightning/ops/_plan.py, which the NVRTC path uses and the tests run on the CPU; a test holds the two
// together, launch by launch.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../kernels/problem.cuh"

namespace cga::cuda {

constexpr int64_t kSlotUnit = 4096;                  // shortest slot, in columns
constexpr int64_t kSlots = 1024;                     // beyond so many they grow longer instead,
constexpr int64_t kLongestSlot = 4;                  // up to so many units
constexpr int kManyRows = 40;                        // from so many rows on: their totals in a slot may be float32
constexpr int64_t kCooperativeBytes = 20'000'000;    // below this, one cooperative launch serves both passes
constexpr double kExactBelow = 1e-6;                 // ridge below which products are formed in float64
constexpr double kDependent = 1e-14;
constexpr uint64_t kAlignment = 16;

struct Launch {
  std::string kernel;
  int64_t grid;
  int block;
  int64_t shared_bytes;
  bool cooperative;
  Problem problem;
  std::vector<Table> table;  // one, for prepare
};

struct Device {
  int major, minor, processors;
};

struct Addresses {
  std::vector<uint64_t> rows;
  uint64_t own, workspace, dual, status, gram;
};

struct Gram {
  std::string kernel;
  int threads;
  int64_t work_bytes;  // shared memory of its own
  int tiles;           // blocks that share a slot
};

class Plan {
 public:
  Plan(std::string dtype, int item_bytes, std::vector<int64_t> bounds, Device device, Addresses addresses)
      : dtype_(std::move(dtype)), item_bytes_(item_bytes), bounds_(std::move(bounds)), device_(device),
        addresses_(std::move(addresses)), cross_(static_cast<int>(addresses_.rows.size())) {
    const int64_t units = std::max<int64_t>(1, divide(bounds_.back(), kSlots * kSlotUnit));
    slot_length_ = kSlotUnit * (cross_ < kManyRows ? units : std::min(units, kLongestSlot));
    first_slot_.push_back(0);
    for (size_t i = 0; i + 1 < bounds_.size(); ++i)
      first_slot_.push_back(first_slot_.back() +
                            std::max<int64_t>(1, divide(bounds_[i + 1] - bounds_[i], slot_length_)));
  }

  double margin = 0, ridge = 0;
  bool exact = false;
  int passes = 0;  // 1: cooperative, 2: two launches, 0: what suits the size

  int64_t segments() const { return static_cast<int64_t>(bounds_.size()) - 1; }
  int64_t slots() const { return first_slot_.back(); }
  int64_t workspace_bytes() const { return layout().gram + 8 * segments() * (cross_ + 1) * (cross_ + 1); }
  void set_workspace(uint64_t address) { addresses_.workspace = address; }

  Gram gram() const {
    const int rows = cross_ + 1;
    if (dtype_ == "f64" || exact || ridge < kExactBelow || !aligned()) return tile("exact");
    if (rows <= 9) {
      const int wide = rows <= 3 ? 3 : rows <= 5 ? 5 : 9;
      return {"gram_rows" + std::to_string(wide) + "_" + dtype_, 256, 8 * 8 * wide * (wide + 1) / 2, 1};
    }
    if (device_.major < 8) return tile("tile");
    const int blocks = rows <= 16 ? 2 : rows <= 24 ? 3 : rows <= 40 ? 5 : 9;
    const int tiles = (blocks / 2) * (blocks - blocks / 2 + 1) + blocks % 2;
    return {"gram_mma" + std::to_string(blocks) + "_" + dtype_, 128, 4 * tiles * 128 * (blocks == 9 ? 4 : 8), 1};
  }

  bool cooperative() const {
    const std::string kernel = gram().kernel;
    if (kernel.find("rows") == std::string::npos && kernel.find("mma") == std::string::npos) return false;
    return passes == 1 || (passes == 0 && (cross_ + 1) * bounds_.back() * item_bytes_ <= kCooperativeBytes);
  }

  std::vector<Launch> project() const {
    std::vector<Launch> launches = prepare();
    launches.push_back(gram_launch(cooperative() ? kSolve | kCombine : kSolve));
    if (!cooperative()) launches.push_back(combine_launch());
    return launches;
  }

  std::vector<Launch> products() const {
    std::vector<Launch> launches = prepare();
    launches.push_back(gram_launch(0));
    return launches;
  }

  std::vector<Launch> solve() const { return {{"solve", segments(), 256, solver_bytes(), false, problem(kSolve), {}}}; }

  std::vector<Launch> combine() const {
    std::vector<Launch> launches = prepare();
    launches.push_back(combine_launch());
    return launches;
  }

 private:
  struct Layout {
    int64_t offsets, first_slot, slot_arrivals, segment_arrivals, ready, partials, gram;
  };

  static int64_t divide(int64_t value, int64_t by) { return (value + by - 1) / by; }
  static int64_t padded(int64_t bytes) { return divide(bytes, 256) * 256; }

  int64_t pairs() const { return int64_t{cross_ + 1} * (cross_ + 2) / 2; }
  int64_t solver_bytes() const {
    const int64_t size = cross_ + 1;
    return 8 * (size * size + size + 2 * cross_ + 1) + 4 * (cross_ + 1);
  }
  int64_t combine_bytes() const { return 16 * cross_ + 8; }

  Gram tile(const char* kind) const {
    const int blocks = cross_ / 8 + 1;
    return {std::string("gram_") + kind + "_" + dtype_, 256, 8 * 64 * 8, blocks * (blocks + 1) / 2};
  }

  bool aligned() const {
    const auto whole = [](uint64_t bytes) { return bytes % kAlignment == 0; };
    return whole(addresses_.own) && std::all_of(addresses_.rows.begin(), addresses_.rows.end(), whole) &&
           std::all_of(bounds_.begin(), bounds_.end() - 1, [&](int64_t bound) { return whole(bound * item_bytes_); });
  }

  Layout layout() const {
    Layout layout{};
    layout.first_slot = 8 * (segments() + 1);
    layout.slot_arrivals = padded(16 * (segments() + 1));
    layout.segment_arrivals = layout.slot_arrivals + padded(4 * slots());
    layout.ready = layout.segment_arrivals + padded(4 * segments());
    layout.partials = layout.ready + padded(4 * segments());
    layout.gram = layout.partials + padded(8 * slots() * pairs());
    return layout;
  }

  template <typename T>
  static T* pointer(uint64_t address) { return reinterpret_cast<T*>(address); }

  Problem problem(int phases) const {
    const Layout at = layout();
    const uint64_t base = addresses_.workspace;
    Problem problem{};
    for (int i = 0; i < kRowAddresses; ++i) problem.rows[i] = pointer<void>(i < cross_ ? addresses_.rows[i] : addresses_.own);
    problem.own = pointer<void>(addresses_.own);
    problem.offsets = pointer<long long>(base + at.offsets);
    problem.first_slot = pointer<long long>(base + at.first_slot);
    problem.slot_arrivals = pointer<unsigned>(base + at.slot_arrivals);
    problem.segment_arrivals = pointer<unsigned>(base + at.segment_arrivals);
    problem.ready = pointer<unsigned>(base + at.ready);
    problem.partials = pointer<double>(base + at.partials);
    problem.gram = pointer<double>(addresses_.gram ? addresses_.gram : base + at.gram);
    problem.dual = pointer<double>(addresses_.dual);
    problem.status = pointer<int>(addresses_.status);
    problem.margin = margin;
    problem.ridge = ridge;
    // A ridge keeps every Schur complement above it; far below it there is only rounding.
    problem.floor = std::max(kDependent, ridge >= kExactBelow ? ridge / 4 : 0.0);
    problem.slot_length = slot_length_;
    problem.slots = slots();
    problem.cross = cross_;
    problem.segments = static_cast<int>(segments());
    problem.phases = phases;
    problem.aligned = aligned();
    return problem;
  }

  std::vector<Launch> prepare() const {
    std::vector<int64_t> values = bounds_;
    values.insert(values.end(), first_slot_.begin(), first_slot_.end());
    const int64_t count = static_cast<int64_t>(values.size());
    std::vector<Launch> launches;
    for (int64_t first = 0; first < count; first += kTableValues) {
      Table table{};
      table.first = first;
      table.count = std::min<int64_t>(kTableValues, count - first);
      std::copy_n(values.begin() + first, table.count, table.values);
      launches.push_back({"prepare", 1, 256, 0, false, problem(0), {table}});
    }
    return launches;
  }

  Launch gram_launch(int phases) const {
    const Gram kernel = gram();
    const int64_t shared = 16 + std::max({kernel.work_bytes, solver_bytes(), combine_bytes()});
    // The registers of these kernels allow two blocks on a processor, and so does this much shared memory.
    const int64_t resident = int64_t{device_.processors} * (shared <= 48 * 1024 ? 2 : 1);
    const bool together = phases & kCombine;
    const int64_t grid = together ? std::min(slots(), resident) : slots() * kernel.tiles;
    return {kernel.kernel, grid, kernel.threads, shared, together, problem(phases), {}};
  }

  Launch combine_launch() const {
    return {"combine_" + dtype_, slots(), 256, 16 + combine_bytes(), false, problem(kCombine), {}};
  }

  std::string dtype_;
  int item_bytes_;
  std::vector<int64_t> bounds_, first_slot_;
  Device device_;
  Addresses addresses_;
  int cross_;
  int64_t slot_length_;
};

}  // namespace cga::cuda
