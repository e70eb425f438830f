// How much longer than estimated calls have taken lately, by a coarse class of call and by how the
// call was divided. The estimates themselves are in plan.cc.
#ifndef TIDEGATE_CORE_CORRECTIONS_H_
#define TIDEGATE_CORE_CORRECTIONS_H_

#include <atomic>
#include <cstdint>

namespace tidegate {

// How a call is divided, as far as corrections tell divisions apart: one thread; rows or units
// among 2, 3 or 4, 5 to 8, or more threads.
int division_class(int threads, bool by_units);
constexpr int kDivisionClasses = 1 + 2 * 4;

// Factors on the estimates of one class of calls.
struct Corrections {
  float factor[kDivisionClasses] = {1, 1, 1, 1, 1, 1, 1, 1, 1};

  double of(int threads, bool by_units) const {
    return static_cast<double>(factor[division_class(threads, by_units)]);
  }
};

// A class of calls: those of about the same time in all (estimated, on one thread) and for each
// step, in the same direction, and with few or many rows. Within one, the same resource decides.
struct CallClass {
  static constexpr int kWorks = 4;   // those of Work (plan.h), and even work
  static constexpr int kTotals = 8;  // below 10 us, 40 us, 160 us, ...
  static constexpr int kSteps = 8;   // below 1 us, 4 us, 16 us, ...
  static constexpr int kRows = 2;    // below kManyRows: a step waits for its weights
  static constexpr int kCount = kWorks * kTotals * kSteps * kRows;

  static int of(int work, double total_nanoseconds, double step_nanoseconds, std::int64_t rows);
};

// Learns from the calls' times. Of fixed size; reading and writing take no lock and never wait.
//
// A correction follows times that are shorter than expected faster than longer ones, for what
// disturbs a call makes it longer; a single time moves it by a quarter at most. What is not renewed
// fades within seconds, so that a division that was once found slow is tried again.
class CorrectionTable {
 public:
  // At time `now`, in nanoseconds. A division of which nothing is known is taken to be as fast as
  // the best that is known, if that is faster than estimated: then the estimates are too long.
  Corrections at(int call_class, std::int64_t now) const;

  // A call has taken `ratio` times its uncorrected estimate.
  void record(int call_class, int division, double ratio, std::int64_t now);

 private:
  // A factor and the time of its last update, in one word.
  struct Entry {
    float factor;
    std::uint32_t milliseconds;
  };

  // How much of the entry's correction is left, 0 to 1.
  static double weight_of(Entry entry, std::int64_t now);

  std::atomic<std::uint64_t> entries_[CallClass::kCount][kDivisionClasses] = {};
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_CORRECTIONS_H_
