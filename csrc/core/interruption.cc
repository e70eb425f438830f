// The threads' polls, and the times at which they are called.
#include "core/interruption.h"

namespace tidegate {
namespace {

// The current poll of this thread.
struct Poll {
  InterruptPoll::Function function = nullptr;
  void* context = nullptr;
};
thread_local Poll current_poll;

// The time at which this thread polled last, or its poll was set. Kept between calls, so that a
// sequence of short calls is polled, too.
thread_local std::chrono::steady_clock::time_point last_poll;

// A poll may wait for a lock (Python's GIL), so polls must be rare; but a user should not notice
// the delay.
constexpr std::chrono::milliseconds kBetweenPolls{100};

// The intended time between two readings of the clock: short steps do not read it each time. The
// greatest number of checks between two readings bounds the delay if steps become longer.
constexpr std::chrono::milliseconds kBetweenReadings{10};
constexpr int kMaxChecksBetweenReadings = 1024;

}  // namespace

InterruptPoll::InterruptPoll(Function poll, void* context) noexcept
    : outer_poll_(current_poll.function), outer_context_(current_poll.context) {
  current_poll = {poll, context};
  last_poll = std::chrono::steady_clock::now();
}

InterruptPoll::~InterruptPoll() { current_poll = {outer_poll_, outer_context_}; }

Interruption::Interruption() noexcept
    : poll_(current_poll.function),
      context_(current_poll.context),
      caller_(poll_ ? std::this_thread::get_id() : std::thread::id()),
      callers_setup_(ThreadSetup::saved()) {
  if (poll_) last_reading_ = Clock::now();
}

bool Interruption::check_clock() noexcept {
  const Clock::time_point now = Clock::now();
  const Clock::duration passed = now - last_reading_;
  last_reading_ = now;
  if (passed > kBetweenReadings) {
    interval_ = interval_ > 1 ? interval_ / 2 : 1;
  } else if (passed < kBetweenReadings / 2 && interval_ < kMaxChecksBetweenReadings) {
    interval_ *= 2;
  }
  countdown_ = interval_;
  if (now - last_poll < kBetweenPolls) return false;

  bool end = false;
  {
    const ThreadSetup callers(callers_setup_);
    const InterruptPoll none(nullptr, nullptr);  // calls that the poll makes are not polled
    end = poll_(context_);
  }
  last_reading_ = last_poll = Clock::now();
  if (end) requested_.store(true, std::memory_order_relaxed);
  return end;
}

}  // namespace tidegate
