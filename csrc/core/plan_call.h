// The plan of a call in the present state of this process: its threads that are awake, the figures
// measured so far, and the corrections learnt from earlier calls.
#ifndef TIDEGATE_CORE_PLAN_CALL_H_
#define TIDEGATE_CORE_PLAN_CALL_H_

#include "core/plan.h"

namespace tidegate {

// A plan, with what is needed to compare the call's time with the estimate.
struct PlannedCall : Plan {
  int call_class = -1;     // -1: the time is not recorded
  std::int64_t begin = 0;  // the time of planning, in nanoseconds

  // Records the time of the call, which has ended.
  void record() const;
  // The same, unless the call ran on another number of threads than planned.
  void record(int actual_threads) const {
    if (actual_threads == threads) record();
  }
};

// Whether TIDEGATE_PLAN=explain is in the environment: then plan_call() prints each choice to
// standard error, once, with the estimates on which it is based.
bool explains_plans();

// Whether a plan for more than one thread is possible at all. Takes little time.
bool may_pay(const Call& call, int threads);

// The best plan for at most `threads` threads. May measure the machine with `weights`, and wake
// threads.
PlannedCall plan_call(const Call& call, int threads, const WeightsMemory& weights);

// The same if only `threads` of the planned threads were available. Neither measures nor wakes.
PlannedCall plan_again(const Call& call, int threads, const PlannedCall& planned);

// The same for even work. May measure barriers and shared cores, and wake threads.
PlannedCall plan_even_work(const EvenWork& work, int threads);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_PLAN_CALL_H_
