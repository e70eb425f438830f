// A thread's share of a direction's work.
#ifndef TIDEGATE_CORE_SHARE_H_
#define TIDEGATE_CORE_SHARE_H_

#include "core/interruption.h"
#include "core/slices.h"
#include "core/threads/threads.h"

namespace tidegate {

// The threads of one direction divide either the rows of the batch, without a barrier in the time
// loop, or the units of every step, with a barrier after each phase. Only outputs are divided,
// never sums, so the results are bitwise the same. Units ascend with the index of the thread.
class Share {
 public:
  // Thread `index` of `count`. Its sorted rows are `rows`; if by_units, these are all rows, and the
  // thread has a part of the units. `interruption`: null if the call never ends early.
  Share(int index, int count, bool by_units, Range rows, Barrier& barrier,
        Interruption* interruption = nullptr)
      : index_(index),
        count_(count),
        by_units_(by_units),
        rows_(rows),
        barrier_(barrier),
        interruption_(interruption) {}

  Range rows() const { return rows_; }
  Interruption* interruption() const { return interruption_; }
  // This thread's rows among the first `active` sorted rows.
  Range active_rows(Index active) const {
    const Index end = active < rows_.end ? active : rows_.end;
    return {rows_.begin, end > rows_.begin ? end : rows_.begin};
  }
  Range slices(Index units, Index width) const {
    const Index all = slice_count(units, width);
    return by_units_ ? part_of(all, index_, count_) : Range{0, all};
  }
  // The units of slices().
  Range units(Index units, Index width) const {
    const Range s = slices(units, width);
    const Index end = s.end * width;
    const Index begin = s.begin * width;
    return {begin < units ? begin : units, end < units ? end : units};
  }
  // This thread's part of [0, size), for work outside the time loop.
  Range part(Index size) const { return part_of(size, index_, count_); }

  // Barrier after a phase: when it returns, the units of all threads have been written.
  void barrier_wait_if_by_units() const {
    if (by_units_) barrier_wait();
  }
  void barrier_wait() const { barrier_.wait(index_); }

  // The same barrier in parts, for callers that can compute in between: arrival, after this thread
  // has written its units; waiting for the threads with the units below its own; for those with the
  // units above.
  void arrive_if_by_units() const {
    if (by_units_) barrier_.arrive(index_);
  }
  void await_below_if_by_units() const {
    if (by_units_) barrier_.await(index_, 0, index_);
  }
  void await_above_if_by_units() const {
    if (by_units_) barrier_.await(index_, index_ + 1, count_);
  }
  void await_all_if_by_units() const {
    if (by_units_) barrier_.await(index_, 0, count_);
  }
  // Whether the call ends early, to be checked before each step: if so, this thread leaves the time
  // loop. Threads that divide units all leave before the same step; each may then have arrived at
  // the barrier once without having awaited the others. Threads that divide rows leave
  // independently.
  bool stops() const {
    if (interruption_ == nullptr) return false;
    const bool requested = interruption_->requested();
    if (!by_units_) return requested;
    if (requested && index_ == 0) barrier_.stop();
    return barrier_.stopped(index_, 1);
  }
  // barrier_wait(), then whether the call ends early, which is the same for all threads.
  bool barrier_wait_then_stops() const {
    if (interruption_ != nullptr && index_ == 0 && interruption_->requested()) barrier_.stop();
    barrier_wait();
    return barrier_.stopped(index_);
  }

  // Whether other threads have units above this thread's.
  bool awaits_above() const { return by_units_ && index_ + 1 < count_; }

 private:
  int index_;
  int count_;
  bool by_units_;
  Range rows_;
  Barrier& barrier_;
  Interruption* interruption_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_SHARE_H_
