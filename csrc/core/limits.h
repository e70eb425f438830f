// The speed limits of the machine, as measured now: what `tidegate bench` compares speeds with, and
// what `tidegate config` shows. For the bindings and benchmarks: exported, but not installed.
#ifndef TIDEGATE_CORE_LIMITS_H_
#define TIDEGATE_CORE_LIMITS_H_

#include <vector>

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

// Flops a nanosecond (GFLOP/s) of fused multiply-adds on registers, on the calling thread, with the
// instruction set in use, for elements of 4 (float) or 8 (double) bytes. The best of about twenty
// rounds of about a millisecond. Throws std::invalid_argument for another size.
TIDEGATE_EXPORT double fma_rate(Index element_size);

// Bytes a nanosecond (GB/s) that the calling thread reads of an array of `bytes` bytes, forwards
// and backwards alternately: the bandwidth of the cache that holds the array. An array about as
// large as a cache is read partly from the next level.
TIDEGATE_EXPORT double read_rate(Index bytes);

// The figures of this machine by which the number of threads of a call is chosen. Each is measured
// when a call first needs it, and kept for the process; those of teams are measured again at
// intervals.
struct MachineFigures {
  // Threads that work at the same time.
  struct Team {
    int threads;     // 2, 4, 8, ...
    double barrier;  // nanoseconds of a barrier at which one thread arrives late
    double speedup;  // of arithmetic that they divide
  };
  // Threads that repeatedly read an array of `bytes` bytes, each its own part.
  struct ReadRate {
    Index bytes;
    int threads;
    double rate;  // bytes a nanosecond, each thread's
  };

  double fma_rate;  // float flops a nanosecond of one thread; 0: not yet measured
  std::vector<Team> teams;
  std::vector<ReadRate> read_rates;
};

// The figures measured so far. With `measure`, first measures all others that calls of
// num_threads() threads may need, which takes about 50 ms and an array of 32 MB.
TIDEGATE_EXPORT MachineFigures machine_figures(bool measure);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_LIMITS_H_
