// Whether a running call shall end early: asked by the thread that made the call, known to all of
// its threads. How they leave together is the business of share.h.
#ifndef TIDEGATE_CORE_INTERRUPTION_H_
#define TIDEGATE_CORE_INTERRUPTION_H_

#include <atomic>
#include <chrono>
#include <thread>

#include "core/thread_setup.h"
#include "tidegate/interrupt.h"

namespace tidegate {

// The state of one call; the thread that makes the call constructs it.
class Interruption {
 public:
  Interruption() noexcept;
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;

  // Whether the calling thread has an InterruptPoll. Without one the rest costs nothing.
  bool possible() const { return poll_ != nullptr; }

  // For all threads of the call, often. In the calling thread it polls, if the last time is long
  // ago.
  bool requested() noexcept {
    if (!possible()) return false;
    if (requested_.load(std::memory_order_relaxed)) return true;
    return std::this_thread::get_id() == caller_ && --countdown_ <= 0 && look();
  }

  // The same between pieces of work that take milliseconds: looks at the clock each time.
  bool requested_now() noexcept {
    if (possible() && std::this_thread::get_id() == caller_) countdown_ = 1;
    return requested();
  }

  // For the calling thread, when the others have left: throws Interrupted if it was requested.
  void finish() const {
    if (requested_.load(std::memory_order_relaxed)) throw Interrupted();
  }

 private:
  using Clock = std::chrono::steady_clock;

  bool look() noexcept;

  const InterruptPoll::Function poll_;
  void* const context_;
  const std::thread::id caller_;
  const ThreadSetup::Saved callers_setup_;
  std::atomic<bool> requested_{false};
  // The caller's: questions between two looks at the clock, and how many of them are left. The
  // first question looks, and the number then doubles until a look is some milliseconds away.
  int interval_ = 1;
  int countdown_ = 1;
  Clock::time_point last_look_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_INTERRUPTION_H_
