// Which rows are active at each time step, the order of the steps in a direction, and the steps at
// which states begin, end, or are zeroed.
#ifndef TIDEGATE_CORE_SCHEDULE_H_
#define TIDEGATE_CORE_SCHEDULE_H_

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "core/memory.h"
#include "tidegate/model.h"

namespace tidegate {

// The rows of a batch, sorted by descending length, so that at each time the active rows come
// first. Inactive rows are skipped, never multiplied by zero. Without lengths, the order is that of
// the caller, and nothing is allocated.
class Schedule {
 public:
  Schedule() = default;
  Schedule(Index steps, Index batch, const Index* lengths, const MaskView& reset)
      : steps_(steps), batch_(batch), reset_(reset) {
    if (!lengths || batch == 0) return;
    order_.resize(static_cast<std::size_t>(batch));
    std::iota(order_.begin(), order_.end(), Index{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](Index a, Index b) { return lengths[a] > lengths[b]; });
    for (const Index row : order_) lengths_.push_back(lengths[row]);
    active_.resize(static_cast<std::size_t>(steps));
    for (const Index length : lengths_) {
      for (Index t = 0; t < length; ++t) ++active_[static_cast<std::size_t>(t)];
    }
  }

  // A copy that does not refer to the caller's memory.
  Schedule owned() const {
    Schedule copy = *this;
    if (reset_.given && batch_ > 0) {
      copy.reset_copy_.resize(static_cast<std::size_t>(checked_size(steps_, batch_)));
      for (Index t = 0; t < steps_; ++t) {
        for (Index n = 0; n < batch_; ++n) {
          copy.reset_copy_[static_cast<std::size_t>(t * batch_ + n)] = reset_.at(t, n);
        }
      }
    }
    return copy;
  }

  Index steps() const { return steps_; }
  Index batch() const { return batch_; }
  bool ragged() const { return !lengths_.empty(); }
  // Whether there are lengths, and those of the caller's rows descend.
  bool longest_first() const { return ragged() && std::is_sorted(order_.begin(), order_.end()); }
  // The number that sorted row n has in the caller's arrays.
  Index caller_row(Index n) const {
    return order_.empty() ? n : order_[static_cast<std::size_t>(n)];
  }
  Index length(Index n) const { return ragged() ? lengths_[static_cast<std::size_t>(n)] : steps_; }
  // The number of rows that are active at time t: those longer than t.
  Index active(Index t) const {
    if (t < 0 || t >= steps_) return 0;
    return ragged() ? active_[static_cast<std::size_t>(t)] : batch_;
  }
  bool has_reset() const { return reset_.given; }
  // Whether sorted row n has a boundary between t-1 and t.
  bool reset(Index t, Index n) const {
    const Index row = caller_row(n);
    return reset_copy_.empty() ? reset_.at(t, row)
                               : reset_copy_[static_cast<std::size_t>(t * batch_ + row)] != 0;
  }

 private:
  Index steps_ = 0;
  Index batch_ = 0;
  MaskView reset_;
  std::vector<std::uint8_t> reset_copy_;
  std::vector<Index> order_;
  std::vector<Index> lengths_;
  std::vector<Index> active_;
};

// A schedule in the order of one direction: step s is time s, or time T-1-s in reverse.
class Timeline {
 public:
  Timeline(const Schedule& schedule, bool reversed) : schedule_(schedule), reversed_(reversed) {}

  const Schedule& schedule() const { return schedule_; }
  // 0 for an empty batch, whatever T is.
  Index steps() const { return schedule_.batch() > 0 ? schedule_.steps() : 0; }
  Index time(Index s) const { return reversed_ ? schedule_.steps() - 1 - s : s; }
  Index active(Index s) const { return schedule_.active(time(s)); }

  // The sorted rows [first, second) whose first, or last, step is s.
  std::pair<Index, Index> starting(Index s) const { return inactive_at(s - 1, s); }
  std::pair<Index, Index> ending(Index s) const { return inactive_at(s + 1, s); }

  // Whether row n's state is zeroed before step s.
  bool zeroed(Index s, Index n) const {
    const Index t = time(s);
    if (!reversed_) return schedule_.reset(t, n);
    return t + 1 < schedule_.length(n) && schedule_.reset(t + 1, n);
  }

 private:
  // The rows that are active at step s, but not at the neighbouring step `other`.
  std::pair<Index, Index> inactive_at(Index other, Index s) const {
    const bool inside = other >= 0 && other < schedule_.steps();
    if (inside && !schedule_.ragged()) return {0, 0};
    return {std::min(active(other), active(s)), active(s)};
  }

  const Schedule& schedule_;
  bool reversed_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_SCHEDULE_H_
