// The machine's limits as measured now, on the calling thread, with the instruction set in force:
// what figures of speed are held against.
#ifndef TIDEGATE_LIMITS_H_
#define TIDEGATE_LIMITS_H_

#include <vector>

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

// Flops a nanosecond (GFLOP/s) of fused multiply-adds on registers, for elements of 4 (float) or 8
// (double) bytes. The best of some twenty rounds of about a millisecond; std::invalid_argument for
// another size.
TIDEGATE_EXPORT double fma_rate(Index element_size);

// Bytes a nanosecond (GB/s) of reading an array of `bytes` bytes again and again, forwards and
// backwards in turn: bandwidth of the cache it fits in, and of the two beside it near that border.
TIDEGATE_EXPORT double read_rate(Index bytes);

// What the choice of threads rests on: figures of this machine, each measured when a call first
// needs it and kept for the process. Those of teams are measured again now and then.
struct MachineFigures {
  // Some threads that work at the same time.
  struct Team {
    int threads;     // 2, 4, 8, ...
    double barrier;  // nanoseconds until all have met, when one comes late
    double speedup;  // of arithmetic that they divide
  };
  // Threads that read an array of `bytes` bytes again and again, each a part of its own.
  struct ReadRate {
    Index bytes;
    int threads;
    double rate;  // bytes a nanosecond, each thread's
  };

  double fma_rate;  // float flops a nanosecond of one thread; 0: not yet measured
  std::vector<Team> teams;
  std::vector<ReadRate> read_rates;
};

// Those measured so far; with `measure` also all others that calls of num_threads() threads may
// need, in some 50 ms and an array of 32 MB.
TIDEGATE_EXPORT MachineFigures machine_figures(bool measure);

}  // namespace tidegate

#endif  // TIDEGATE_LIMITS_H_
