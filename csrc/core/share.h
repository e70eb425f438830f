// A thread's share of a direction's work.
#ifndef TIDEGATE_CORE_SHARE_H_
#define TIDEGATE_CORE_SHARE_H_

#include "core/interruption.h"
#include "core/slices.h"
#include "core/threads/threads.h"

namespace tidegate {

// The threads of one direction divide either the rows of the batch, and need not wait for each
// other within the time loop, or the units of every step, and meet after each phase. Outputs are
// divided, never sums: the bits do not change. Thread by thread the units ascend.
class Share {
 public:
  // Thread `index` of `count`, working on sorted rows `rows`; by_units: on all of them, but on its
  // part of the units. `interruption`: null if the call never ends early.
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
  // Of `live` sorted rows, this thread's.
  Range live_rows(Index live) const {
    const Index end = live < rows_.end ? live : rows_.end;
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
  // For work after the time loop: a part of anything.
  Range part(Index size) const { return part_of(size, index_, count_); }

  // After a phase: the others' units are there.
  void meet_if_by_units() const {
    if (by_units_) meet();
  }
  void meet() const { barrier_.wait(index_); }

  // The same in parts, for callers that can compute meanwhile: this thread's units are there;
  // those below its own are; those above.
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
  // Whether the call ends early, asked before each step: then this thread leaves the loop over
  // time. Threads that divide units all leave before the same step; a thread may then have arrived
  // at the barrier once without having awaited the others. Threads that divide rows leave
  // independently of each other.
  bool leaves() const {
    if (interruption_ == nullptr) return false;
    const bool requested = interruption_->requested();
    if (!by_units_) return requested;
    if (requested && index_ == 0) barrier_.stop();
    return barrier_.stopped(index_, 1);
  }
  // meet(), and whether the call ends early: all threads get the same answer.
  bool meet_and_leave() const {
    if (interruption_ != nullptr && index_ == 0 && interruption_->requested()) barrier_.stop();
    meet();
    return barrier_.stopped(index_);
  }

  // Whether there are threads whose units are above this one's.
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
