// The machine's peak rates, with which `tidegate bench` compares speeds, and its figures for
// planning, which `tidegate config` shows; all measured in this process. For the bindings and
// benchmarks: exported, but not installed.
#ifndef TIDEGATE_CORE_MACHINE_SPEED_H_
#define TIDEGATE_CORE_MACHINE_SPEED_H_

#include <string>
#include <vector>

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

// The peak, in flops or operations on integers per nanosecond, of the products of a precision
// ("float32", "float64", "bfloat16", "bfloat16-dot" or "int8") with the current instruction set: of
// multiply steps on registers (of fused multiply-adds for float and double), on the calling thread,
// the best of about twenty rounds of about a millisecond. Throws std::invalid_argument for another
// name.
TIDEGATE_EXPORT double product_rate(const std::string& precision);

// The bytes per nanosecond (GB/s) at which the calling thread reads an array of `bytes` bytes,
// forwards and backwards alternately: the bandwidth of the cache that holds the array. An array
// about as large as a cache is read partly from the next level. Throws std::invalid_argument below
// 1024 bytes.
TIDEGATE_EXPORT double read_rate(Index bytes);

// The figures of this machine from which the number of threads of a call is chosen. Each is
// measured when a call first needs it, and kept for the process; figures of teams are measured
// again at intervals.
struct MachineFigures {
  // Threads that work at the same time.
  struct Team {
    int threads;     // 2, 4, 8, ...
    double barrier;  // nanoseconds of a barrier at which one thread arrives late
    double speedup;  // of arithmetic divided among them
  };
  // Threads that repeatedly read an array of `bytes` bytes, each thread its own part.
  struct ReadRate {
    Index bytes;
    int threads;
    double rate;  // bytes per nanosecond of each thread
  };

  double fma_rate;  // float flops per nanosecond of one thread; 0: not yet measured
  std::vector<Team> teams;
  std::vector<ReadRate> read_rates;
};

// The figures measured so far. With `measure`, first measures all others that calls of
// num_threads() threads may need, which takes about 50 ms and an array of 32 MB.
TIDEGATE_EXPORT MachineFigures machine_figures(bool measure);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_MACHINE_SPEED_H_
