// How many threads a call is worth, and how they divide it.
#ifndef TIDEGATE_CORE_PLAN_H_
#define TIDEGATE_CORE_PLAN_H_

#include "core/share.h"
#include "tidegate/config.h"

namespace tidegate {

enum class Work {
  forward,
  backward,
  step,  // forward, of a stream, whose calls stand ready
};

struct Plan {
  int threads = 1;
  int groups = 1;          // 2: the two directions of a layer run side by side
  bool by_units = false;   // threads of a group divide units rather than rows
  double nanoseconds = 0;  // estimated

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

// Whether several threads could pay, were the machine at its best: without asking it.
bool may_pay(const Config& config, Work work, Index steps, Index batch, Index element_size,
             int threads);

// The best use of at most `threads` threads.
Plan make_plan(const Config& config, Work work, Index steps, Index batch, Index element_size,
               int threads);

// The threads, at most `threads`, that a product of this many flops is worth, for elements of this
// many bytes.
int product_threads(double flops, Index element_size, int threads);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_PLAN_H_
