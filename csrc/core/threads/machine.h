// The speed of this machine for the threads of a call: a table of figures, their measurement, and
// the clock. What follows from the figures for a call is decided in plan.cc.
//
// A figure is measured when a plan first needs it, and kept for the process. For the rate of
// reading, the greatest value measured is kept. Figures of teams of threads are measured again at
// intervals, because the host of a virtual machine moves its processors: sometimes each has a core
// of its own, sometimes two share one.
#ifndef TIDEGATE_CORE_THREADS_MACHINE_H_
#define TIDEGATE_CORE_THREADS_MACHINE_H_

#include <cstdint>

#include "tidegate/config.h"

namespace tidegate {

std::int64_t nanoseconds_now();

// How many processors this process may run on: a figure at most `stale` nanoseconds old at time
// `now`. 0: the system does not say.
int processors_at(std::int64_t now, std::int64_t stale);

struct Machine {
  static constexpr int kTeams = 9;  // 1, 2, 4, ... 256 threads
  static constexpr int kSizes = 8;  // arrays of 256 kB, 512 kB, ... 32 MB
  static constexpr double kLeastSize = 256 * 1024;

  // Threads that work at the same time.
  struct Team {
    double barrier;  // nanoseconds of a barrier at which one thread arrives late
    double speedup;  // of arithmetic that they divide: less than their number on shared cores
    // Bytes a nanosecond that each thread reads when it repeatedly reads its part of an array of
    // this size.
    double read_rate[kSizes];
  };

  double fma_rate;    // float flops a nanosecond of one thread
  int teams;          // team[0, teams) are set
  Team team[kTeams];  // of 1, 2, 4, ... threads

  // Other numbers of threads: interpolated linearly, or extrapolated from the last two teams.
  double barrier(int threads) const;
  double speedup(int threads) const;  // at least 1
  // The rate for the array size closest to `bytes`; that of the last team for more threads.
  double read_rate(double bytes, int threads) const;

 private:
  template <class Figure>
  double interpolated(int threads, bool beyond_last, const Figure& figure) const;
};

// Packed weights that a measurement may read. It does not use their values.
struct WeightsMemory {
  const void* data = nullptr;
  Index bytes = 0;
  Index element_size = sizeof(float);
};

// Float flops a nanosecond of one thread. The first call measures it, in 100 us.
double fma_rate_now();

// The figures for calls of up to `threads` threads. A figure that has not been measured is
// estimated, in favour of fewer threads.
Machine machine_now(int threads);

// Measures the figures for calls of up to `threads` threads that repeatedly read `bytes` bytes of
// their weights, as far as they are missing or older than `stale` nanoseconds at time `now`.
// Returns whether any was. A first measurement takes 50 to 400 us for each team and two or more
// passes over the weights; later ones take 50 to 200 us at intervals. Wakes the team and makes
// missing threads; allocates nothing else. Skips figures that another thread is measuring, and
// those that need more threads than are available.
bool measure_machine(int threads, double bytes, const WeightsMemory& weights, std::int64_t now,
                     std::int64_t stale);

// Whether the figures of two threads are missing, or older than `stale` nanoseconds at time `now`.
bool pair_is_stale(std::int64_t now, std::int64_t stale);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_MACHINE_H_
