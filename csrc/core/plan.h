// The cost model: the best number of threads for a call on a machine of given figures, and the best
// division of the call among them. It is independent of the process's threads, see plan_call.h.
#ifndef TIDEGATE_CORE_PLAN_H_
#define TIDEGATE_CORE_PLAN_H_

#include <string>

#include "core/corrections.h"
#include "core/threads/machine.h"
#include "kernels/table.h"
#include "tidegate/config.h"

namespace tidegate {

enum class Work {
  forward,
  backward,
  step,  // forward, of a stream, whose kernel calls are assembled beforehand
};

struct Call {
  const Config& config;
  Work work;
  Index steps;
  Index batch;
  StorageCost cost;  // of the weights
};

struct Plan {
  int threads = 1;
  int groups = 1;          // 2: the two directions of a layer run at the same time
  bool by_units = false;   // the threads of a group divide units instead of rows
  double nanoseconds = 0;  // the estimate with its correction
  double uncorrected = 0;  // the estimate without it

  int group_of(int thread) const { return groups == 1 || thread < first_group() ? 0 : 1; }
  int index_in_group(int thread) const {
    return group_of(thread) == 0 ? thread : thread - first_group();
  }
  int group_size(int group) const {
    return groups == 1 ? threads : (group == 0 ? first_group() : threads - first_group());
  }

 private:
  int first_group() const { return (threads + 1) / 2; }
};

// A second thread is used if the call then takes less than this part of the time.
constexpr double kWorthwhile = 0.8;

// The estimates of one call.
class CostModel {
 public:
  explicit CostModel(const Call& call);

  // The time on one thread if it reads its weights from the nearest cache: a lower bound.
  double least_serial_nanoseconds(double fma_rate) const;

  // Whether several threads could be faster if the call were divided perfectly. Takes little time,
  // because it runs before each small call.
  bool may_pay(int threads, double fma_rate) const;

  // The bytes of weights that one direction reads repeatedly.
  double working_set() const { return working_set_; }

  // The class of this call, whose corrections apply to it.
  int call_class(const Machine& machine) const;

  // The plan for one thread.
  Plan serial_plan(const Machine& machine, const Corrections& corrections) const;

  // See make_plan().
  Plan best_plan(int threads, const Machine& machine, const Corrections& corrections) const;

  // A line of text: the call, the plan, and the best estimates for one thread, for threads that
  // divide rows, and for threads that divide units.
  std::string explain(int threads, const Machine& machine, const Corrections& corrections,
                      const Plan& plan) const;

 private:
  // The time of a step of one direction of the average layer, for `rows` rows and a part `part` of
  // the units.
  double step_nanoseconds(double rows, double part, double fma_rate, double read_rate) const;
  double serial_nanoseconds(double fma_rate, double read_rate) const;
  // Calls visit(plan) for each useful way to divide the call among 2 to `threads` threads.
  template <class Visit>
  void for_each_division(int threads, const Machine& machine, const Corrections& corrections,
                         const Visit& visit) const;

  const Call call_;
  double directions_;
  double layer_steps_;  // steps of one direction, in all layers
  double row_flops_;    // float flops of one row of a step
  double bytes_;        // of the weights that a step reads
  double working_set_;  // bytes, of one direction
};

// The best plan for at most `threads` threads, which must be available and awake.
inline Plan make_plan(const Call& call, int threads, const Machine& machine,
                      const Corrections& corrections = {}) {
  return CostModel(call).best_plan(threads, machine, corrections);
}

// Work that can be divided evenly among any number of threads, without a barrier: a product, or a
// pass over arrays.
struct EvenWork {
  double flops = 0;  // float flops of multiply-adds, or of as many as take the same time
  double bytes = 0;  // read and written; each access counts

  // As in CostModel.
  double least_serial_nanoseconds(double fma_rate) const;
  bool may_pay(int threads, double fma_rate) const;
  int call_class(const Machine& machine) const;
  Plan serial_plan(const Machine& machine, const Corrections& corrections) const;
  Plan best_plan(int threads, const Machine& machine, const Corrections& corrections) const;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_PLAN_H_
