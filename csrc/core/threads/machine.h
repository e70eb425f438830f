// What this machine gives to the threads of a call: a table of plain figures, how it is measured,
// and the time. What follows for a call is decided in plan.cc.
//
// Figures are measured when a plan first needs them and kept for the process. A rate of reading is
// the greatest of all readings. Those of teams of threads are measured again after a while: the
// host of a virtual machine moves its processors about, now on cores of their own, now both on one.
#ifndef TIDEGATE_CORE_THREADS_MACHINE_H_
#define TIDEGATE_CORE_THREADS_MACHINE_H_

#include <cstdint>

#include "tidegate/config.h"

namespace tidegate {

std::int64_t nanoseconds_now();

// How many processors this process may run on, as of `stale` nanoseconds before `now` at most; 0:
// the system does not say.
int processors_at(std::int64_t now, std::int64_t stale);

struct Machine {
  static constexpr int kTeams = 9;  // 1, 2, 4, ... 256 threads
  static constexpr int kSizes = 8;  // arrays of 256 kB, 512 kB, ... 32 MB
  static constexpr double kLeastSize = 256 * 1024;

  // Some threads that work at the same time.
  struct Team {
    double barrier;  // nanoseconds until all have met, when one of them comes late
    double speedup;  // of arithmetic that they divide: less than their count on shared cores
    // Bytes a nanosecond that each of them reads of its part of an array of each size, again and
    // again.
    double read_rate[kSizes];
  };

  double fma_rate;    // float flops a nanosecond of one thread
  int teams;          // how many of those below are given
  Team team[kTeams];  // of 1, 2, 4, ... threads

  // Figures of other counts lie on a line through the neighbours', or through the last two.
  double barrier(int threads) const;
  double speedup(int threads) const;  // at least 1
  // The closest size stands for `bytes`.
  double read_rate(double bytes, int threads) const;

 private:
  template <class Figure>
  double interpolated(int threads, bool beyond_last, const Figure& figure) const;
};

// Packed weights that a measurement may read; their values do not matter.
struct WeightsMemory {
  const void* data = nullptr;
  Index bytes = 0;
  Index element_size = sizeof(float);
};

// Float flops a nanosecond of one thread; measured at the first call, in 100 us.
double fma_rate_now();

// The figures for calls of up to `threads` threads, as far as they were measured; careful guesses
// for the others.
Machine machine_now(int threads);

// Measures what machine_now() lacks, or what is older than `stale` nanoseconds at time `now`, for
// calls of up to `threads` threads that read `bytes` of their weights again and again; returns
// whether there was anything to measure. At first it takes 50 to 400 us for each count of threads,
// and two passes or more over the weights; later 50 to 200 us now and then. It wakes the team,
// makes threads that are missing, and allocates nothing else. It skips what another thread is
// measuring, and what needs threads that are not available.
bool measure_machine(int threads, double bytes, const WeightsMemory& weights, std::int64_t now,
                     std::int64_t stale);

// Whether the figures of two threads are missing, or older than `stale` nanoseconds at time `now`.
bool pair_is_stale(std::int64_t now, std::int64_t stale);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_MACHINE_H_
