// The cost model: how many threads a call is worth on a machine of given figures, and how they
// divide it. It knows nothing of the process's threads; plan_call.h does.
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
  StorageCost cost;  // of its weights
};

struct Plan {
  int threads = 1;
  int groups = 1;          // 2: the two directions of a layer run side by side
  bool by_units = false;   // threads of a group divide units rather than rows
  double nanoseconds = 0;  // estimated, with the correction
  double uncorrected = 0;  // estimated

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

// A second thread is worth it if the call then takes less than this part of the time.
constexpr double kWorthwhile = 0.8;

// The estimates of one call.
class CostModel {
 public:
  explicit CostModel(const Call& call);

  // One thread's time if its weights come from the nearest cache.
  double least_serial_nanoseconds(double fma_rate) const;

  // Whether several threads could pay if the machine divided the call perfectly. Quick: it is asked
  // before each small call.
  bool may_pay(int threads, double fma_rate) const;

  // The bytes of weights that one direction reads again and again.
  double working_set() const { return working_set_; }

  // The class of calls whose corrections hold for this one.
  int call_class(const Machine& machine) const;

  // One thread for all of it.
  Plan serial_plan(const Machine& machine, const Corrections& corrections) const;

  // See make_plan().
  Plan best_plan(int threads, const Machine& machine, const Corrections& corrections) const;

  // A line of text: the call, the plan, and the best estimates of one thread, of threads that
  // divide rows, and of threads that divide units.
  std::string explain(int threads, const Machine& machine, const Corrections& corrections,
                      const Plan& plan) const;

 private:
  // A step of the average layer's direction: `rows` rows, `part` of its units.
  double step_nanoseconds(double rows, double part, double fma_rate, double read_rate) const;
  double serial_nanoseconds(double fma_rate, double read_rate) const;
  // Calls visit(plan) for each useful way to divide the call among 2 to `threads` threads.
  template <class Visit>
  void for_each_division(int threads, const Machine& machine, const Corrections& corrections,
                         const Visit& visit) const;

  const Call call_;
  double directions_;
  double layer_steps_;  // of all layers, each direction's
  double row_flops_;    // of a step, in float flops
  double bytes_;        // of weights that a step reads
  double working_set_;  // of one direction
};

// The best use of at most `threads` threads, which must be available and awake.
inline Plan make_plan(const Call& call, int threads, const Machine& machine,
                      const Corrections& corrections = {}) {
  return CostModel(call).best_plan(threads, machine, corrections);
}

// Work that any number of threads divide evenly, without a barrier: a product, or a pass over
// arrays.
struct EvenWork {
  double flops = 0;  // of multiply-adds in float; other arithmetic counts by the time that it takes
  double bytes = 0;  // read and written, each access counted

  // The same questions as to a CostModel.
  double least_serial_nanoseconds(double fma_rate) const;
  bool may_pay(int threads, double fma_rate) const;
  int call_class(const Machine& machine) const;
  Plan serial_plan(const Machine& machine, const Corrections& corrections) const;
  Plan best_plan(int threads, const Machine& machine, const Corrections& corrections) const;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_PLAN_H_
