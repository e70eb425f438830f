// Schedule and Timeline: which rows are active at each time step, and where states begin, end and
// are zeroed.
#include "core/schedule.h"

#include <vector>

#include "arrays.h"
#include "check.h"

namespace {

using namespace tidegate;
using test::Random;

MaskView mask_view(const std::vector<std::uint8_t>& mask, Index steps, Index batch) {
  MaskView view;
  view.data = mask.data();
  view.shape[0] = steps, view.shape[1] = batch;
  view.stride[0] = batch, view.stride[1] = 1;
  view.given = true;
  return view;
}

// A row as a direction processes it, computed without sorting or steps: the times at which it is
// active, in order.
struct RowHistory {
  Index length;
  bool reversed;

  bool lives(Index t) const { return t < length; }
  Index first() const { return reversed ? length - 1 : 0; }
  Index last() const { return reversed ? 0 : length - 1; }
  // Whether the state that enters time t is zero. In the forward direction it comes from t - 1,
  // across the boundary at t; in reverse from t + 1, across the boundary at t + 1.
  template <class Reset>
  bool zeroed(Index t, const Reset& reset) const {
    if (!reversed) return reset(t);
    return t + 1 < length && reset(t + 1);
  }
};

void check_timeline(const Schedule& schedule, const std::vector<Index>& lengths,
                    const std::vector<std::uint8_t>& mask, bool reversed) {
  const Timeline timeline(schedule, reversed);
  const Index steps = schedule.steps();
  const Index batch = schedule.batch();
  CHECK(timeline.steps() == (batch > 0 ? steps : 0));
  for (Index s = 0; s < steps; ++s) {
    const Index t = timeline.time(s);
    CHECK(t == (reversed ? steps - 1 - s : s));
    const auto [starting, starting_end] = timeline.starting(s);
    const auto [ending, ending_end] = timeline.ending(s);
    for (Index n = 0; n < batch; ++n) {
      const Index row = schedule.caller_row(n);
      const RowHistory history = {lengths[static_cast<std::size_t>(row)], reversed};
      const bool lives = history.lives(t);
      CHECK((n < timeline.active(s)) == lives);
      CHECK((n >= starting && n < starting_end) == (lives && t == history.first()));
      CHECK((n >= ending && n < ending_end) == (lives && t == history.last()));
      if (!schedule.has_reset() || !lives) continue;
      const auto reset = [&](Index at) {
        return mask[static_cast<std::size_t>(at * batch + row)] != 0;
      };
      CHECK(timeline.zeroed(s, n) == history.zeroed(t, reset));
    }
  }
}

void check_schedule(const Schedule& schedule, const std::vector<Index>& lengths,
                    const std::vector<std::uint8_t>& mask) {
  const Index steps = schedule.steps();
  const Index batch = schedule.batch();
  std::vector<int> seen(static_cast<std::size_t>(batch));
  for (Index n = 0; n < batch; ++n) {
    const Index row = schedule.caller_row(n);
    ++seen[static_cast<std::size_t>(row)];
    CHECK(schedule.length(n) == lengths[static_cast<std::size_t>(row)]);
    if (n == 0) continue;
    // The longest first; rows of equal length in the caller's order.
    CHECK(schedule.length(n - 1) >= schedule.length(n));
    if (schedule.length(n - 1) == schedule.length(n)) CHECK(schedule.caller_row(n - 1) < row);
  }
  for (const int count : seen) CHECK(count == 1);
  for (Index t = -1; t <= steps; ++t) {
    Index active = 0;
    for (const Index length : lengths) active += t >= 0 && t < length;
    CHECK(schedule.active(t) == active);
  }
  check_timeline(schedule, lengths, mask, false);
  check_timeline(schedule, lengths, mask, true);
}

}  // namespace

TEST(without_lengths_the_order_is_the_callers) {
  const Schedule schedule(4, 3, nullptr, MaskView{});
  CHECK(schedule.steps() == 4);
  CHECK(schedule.batch() == 3);
  CHECK(!schedule.ragged());
  CHECK(!schedule.has_reset());
  check_schedule(schedule, {4, 4, 4}, {});
}

TEST(rows_are_sorted_by_length) {
  const std::vector<Index> lengths = {2, 5, 0, 5, 3, 2, 1};
  const Schedule schedule(5, 7, lengths.data(), MaskView{});
  CHECK(schedule.ragged());
  const Index order[] = {1, 3, 4, 0, 5, 6, 2};
  for (Index n = 0; n < 7; ++n) CHECK(schedule.caller_row(n) == order[n]);
  check_schedule(schedule, lengths, {});
}

TEST(no_row_is_as_long_as_the_sequence) {
  const std::vector<Index> lengths = {1, 2};
  check_schedule(Schedule(5, 2, lengths.data(), MaskView{}), lengths, {});
}

TEST(nothing_at_all) {
  check_schedule(Schedule(), {}, {});
  check_schedule(Schedule(0, 2, nullptr, MaskView{}), {0, 0}, {});
  check_schedule(Schedule(3, 0, nullptr, MaskView{}), {}, {});
  const std::vector<Index> zeros = {0, 0, 0};
  check_schedule(Schedule(4, 3, zeros.data(), MaskView{}), zeros, {});
  check_schedule(Schedule(0, 3, zeros.data(), MaskView{}), zeros, {});
}

TEST(random_lengths_and_resets) {
  Random random(1);
  for (int trial = 0; trial < 200; ++trial) {
    const Index steps = 1 + random.below(7);
    const Index batch = 1 + random.below(9);
    std::vector<Index> lengths;
    for (Index n = 0; n < batch; ++n) lengths.push_back(random.below(steps + 1));
    std::vector<std::uint8_t> mask;
    for (Index i = 0; i < steps * batch; ++i) {
      mask.push_back(static_cast<std::uint8_t>(random.below(3) == 0 ? 1 + random.below(255) : 0));
    }
    check_schedule(Schedule(steps, batch, lengths.data(), mask_view(mask, steps, batch)), lengths,
                   mask);
    const std::vector<Index> whole(static_cast<std::size_t>(batch), steps);
    check_schedule(Schedule(steps, batch, nullptr, mask_view(mask, steps, batch)), whole, mask);
  }
}

TEST(a_mask_of_any_strides) {
  const std::vector<std::uint8_t> mask = {1, 0, 0, 1, 1, 0};  // (T, N) = (3, 2)
  const std::vector<std::uint8_t> backwards(mask.rbegin(), mask.rend());
  MaskView view = mask_view(backwards, 3, 2);
  view.data += 5;
  view.stride[0] = -2, view.stride[1] = -1;
  check_schedule(Schedule(3, 2, nullptr, view), {3, 3}, mask);

  // The same for each row.
  const std::vector<std::uint8_t> column = {0, 1, 0};
  view = mask_view(column, 3, 2);
  view.stride[0] = 1, view.stride[1] = 0;
  check_schedule(Schedule(3, 2, nullptr, view), {3, 3}, {0, 0, 1, 1, 0, 0});
}

TEST(an_owned_copy_keeps_nothing_of_the_callers) {
  std::vector<Index> lengths = {1, 3, 2};
  std::vector<std::uint8_t> mask = {1, 0, 0, 0, 1, 1, 1, 0, 1};
  const std::vector<Index> lengths_then = lengths;
  const std::vector<std::uint8_t> mask_then = mask;
  const Schedule owned = Schedule(3, 3, lengths.data(), mask_view(mask, 3, 3)).owned();
  for (Index& length : lengths) length = 0;
  for (std::uint8_t& reset : mask) reset = !reset;
  CHECK(owned.has_reset());
  check_schedule(owned, lengths_then, mask_then);

  const Schedule plain = Schedule(3, 3, nullptr, MaskView{}).owned();
  CHECK(!plain.has_reset());
  check_schedule(plain, {3, 3, 3}, {});
}

TEST(resets_that_no_memory_holds) {
  const std::uint8_t reset = 0;
  MaskView view;  // one byte, with strides of zero
  view.data = &reset;
  view.shape[0] = view.shape[1] = Index{1} << 32;
  view.given = true;
  bool thrown = false;
  try {
    Schedule(view.shape[0], view.shape[1], nullptr, view).owned();
  } catch (const std::length_error&) {
    thrown = true;
  }
  CHECK(thrown);
}
