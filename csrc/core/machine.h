// What the machine gives two threads, as it is now: the host of a virtual one moves its processors
// about, now on cores of their own, now both on one. What was found out counts for a while. What
// follows for a call is in plan.cc.
#ifndef TIDEGATE_CORE_MACHINE_H_
#define TIDEGATE_CORE_MACHINE_H_

#include <cstdint>

namespace tidegate {

std::int64_t nanoseconds_now();

// How many processors this process may run on; 0: the system does not say.
int processors_now();

// What two threads are to each other.
struct Pair {
  double meeting;  // nanoseconds, as one of them comes late
  double speedup;  // of work that they divide: 2, or less where they share a core
};

// `measures` allows to measure, in 20 to 100 us if two threads are awake. Before the first time,
// and where no second thread is to be had, a careful guess.
Pair pair_of_threads(bool measures);
bool pair_is_stale();

}  // namespace tidegate

#endif  // TIDEGATE_CORE_MACHINE_H_
