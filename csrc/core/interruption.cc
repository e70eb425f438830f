// The polls of threads, and when they are called.
#include "core/interruption.h"

namespace tidegate {
namespace {

// The poll in force on this thread.
struct Poll {
  InterruptPoll::Function function = nullptr;
  void* context = nullptr;
};
thread_local Poll poll_in_force;

// When this thread polled last, or its poll came into force. Kept beyond a call, so that many short
// ones are polled, too.
thread_local std::chrono::steady_clock::time_point last_poll;

// A poll may wait for a lock (Python's GIL), so that it must be rare; a user should not notice that
// it is.
constexpr std::chrono::milliseconds kBetweenPolls{100};

// The clock is read less often than steps may be short, and often enough if they become longer.
constexpr std::chrono::milliseconds kBetweenLooks{10};
constexpr int kMostBetweenLooks = 1024;

}  // namespace

InterruptPoll::InterruptPoll(Function poll, void* context) noexcept
    : outer_poll_(poll_in_force.function), outer_context_(poll_in_force.context) {
  poll_in_force = {poll, context};
  last_poll = std::chrono::steady_clock::now();
}

InterruptPoll::~InterruptPoll() { poll_in_force = {outer_poll_, outer_context_}; }

Interruption::Interruption() noexcept
    : poll_(poll_in_force.function),
      context_(poll_in_force.context),
      caller_(poll_ ? std::this_thread::get_id() : std::thread::id()),
      callers_setup_(ThreadSetup::saved()) {
  if (poll_) last_look_ = Clock::now();
}

bool Interruption::look() noexcept {
  const Clock::time_point now = Clock::now();
  const Clock::duration passed = now - last_look_;
  last_look_ = now;
  if (passed > kBetweenLooks) {
    interval_ = interval_ > 1 ? interval_ / 2 : 1;
  } else if (passed < kBetweenLooks / 2 && interval_ < kMostBetweenLooks) {
    interval_ *= 2;
  }
  countdown_ = interval_;
  if (now - last_poll < kBetweenPolls) return false;

  bool end = false;
  {
    const ThreadSetup callers(callers_setup_);
    const InterruptPoll none(nullptr, nullptr);  // calls of the poll's own are not polled
    end = poll_(context_);
  }
  last_look_ = last_poll = Clock::now();
  if (end) requested_.store(true, std::memory_order_relaxed);
  return end;
}

}  // namespace tidegate
