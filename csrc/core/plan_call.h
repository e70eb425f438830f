// The plan of a call in this process, now: with the threads that are awake, the figures that were
// measured, and what earlier calls have taught.
#ifndef TIDEGATE_CORE_PLAN_CALL_H_
#define TIDEGATE_CORE_PLAN_CALL_H_

#include "core/plan.h"

namespace tidegate {

// A plan whose call's time is compared with the estimate.
struct PlannedCall : Plan {
  int call_class = -1;     // -1: its time is not recorded
  std::int64_t begin = 0;  // when it was planned

  // The call has ended.
  void record() const;
  // It has ended, on this many threads.
  void record(int actual_threads) const {
    if (actual_threads == threads) record();
  }
};

// Whether TIDEGATE_PLAN=explain is in the environment: then plan_call() prints each choice to the
// standard error, once, with the estimates that it rests on.
bool explains_plans();

// Whether to ask for a plan at all: quick.
bool may_pay(const Call& call, int threads);

// The best use of at most `threads` threads. May measure the machine with `weights`, and wake
// threads.
PlannedCall plan_call(const Call& call, int threads, const WeightsMemory& weights);

// The same, if just `threads` of the planned threads were available. Neither measures nor wakes.
PlannedCall plan_again(const Call& call, int threads, const PlannedCall& planned);

// The same for even work. May measure barriers and shared cores, and wake threads.
PlannedCall plan_even_work(const EvenWork& work, int threads);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_PLAN_CALL_H_
