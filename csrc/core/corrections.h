// The recent ratios of measured to estimated times, for each coarse class of calls and each way to
// divide a call. The estimates themselves are in plan.cc.
#ifndef TIDEGATE_CORE_CORRECTIONS_H_
#define TIDEGATE_CORE_CORRECTIONS_H_

#include <atomic>
#include <cstdint>

namespace tidegate {

// The class of a division; the corrections distinguish one thread, and rows or units divided among
// 2, 3 to 4, 5 to 8, or more threads.
int division_class(int threads, bool by_units);
constexpr int kDivisionClasses = 1 + 2 * 4;

// The factors on the estimates of one class of calls.
struct Corrections {
  float factor[kDivisionClasses] = {1, 1, 1, 1, 1, 1, 1, 1, 1};

  double of(int threads, bool by_units) const {
    return static_cast<double>(factor[division_class(threads, by_units)]);
  }
};

// A class of calls of the same work, with about the same estimated time on one thread, in total and
// per step, and with few or many rows. The calls of a class are bound by the same resource.
struct CallClass {
  static constexpr int kWorks = 4;   // the values of Work (plan.h), and even work
  static constexpr int kTotals = 8;  // below 10 us, 40 us, 160 us, ...
  static constexpr int kSteps = 8;   // below 1 us, 4 us, 16 us, ...
  static constexpr int kRows = 2;    // few rows, bound by reading weights; or at least kManyRows
  static constexpr int kCount = kWorks * kTotals * kSteps * kRows;

  static int of(int work, double total_nanoseconds, double step_nanoseconds, std::int64_t rows);
};

// The corrections of all classes, learnt from the calls' times. The table has a fixed size; reads
// and writes are lock-free and never wait.
//
// A correction follows times that are shorter than expected faster than longer ones, because
// disturbances make calls longer. A single time changes it by at most a quarter. A correction that
// is not renewed fades within seconds, so that a division once measured as slow is tried again.
class CorrectionTable {
 public:
  // The corrections at time `now`, in nanoseconds. A division without a record gets the smallest
  // recorded factor, if that is below 1: then the estimates of the class are too long.
  Corrections at(int call_class, std::int64_t now) const;

  // Records that a call took `ratio` times its uncorrected estimate.
  void record(int call_class, int division, double ratio, std::int64_t now);

 private:
  // A factor and the time of its last update, in one word.
  struct Entry {
    float factor;
    std::uint32_t milliseconds;
  };

  // The weight of the entry, which decreases from 1 to 0 as it fades.
  static double weight_of(Entry entry, std::int64_t now);

  std::atomic<std::uint64_t> entries_[CallClass::kCount][kDivisionClasses] = {};
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_CORRECTIONS_H_
