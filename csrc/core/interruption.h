// Requests that a running call end early. The thread that made the call polls for them; all threads
// of the call see them. share.h makes the threads leave their loops together.
#ifndef TIDEGATE_CORE_INTERRUPTION_H_
#define TIDEGATE_CORE_INTERRUPTION_H_

#include <atomic>
#include <chrono>
#include <thread>

#include "core/thread_setup.h"
#include "tidegate/interrupt.h"

namespace tidegate {

// The state of one call. The thread that makes the call constructs it.
class Interruption {
 public:
  Interruption() noexcept;
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;

  // Whether the calling thread has an InterruptPoll. Without one the other functions cost nothing.
  bool possible() const { return poll_ != nullptr; }

  // Whether an early end was requested. All threads of the call may check often; in the calling
  // thread, the check polls if the last poll was long ago.
  bool requested() noexcept {
    if (!possible()) return false;
    if (requested_.load(std::memory_order_relaxed)) return true;
    return std::this_thread::get_id() == caller_ && --countdown_ <= 0 && check_clock();
  }

  // The same, for use between pieces of work that take milliseconds: reads the clock each time.
  bool requested_now() noexcept {
    if (possible() && std::this_thread::get_id() == caller_) countdown_ = 1;
    return requested();
  }

  // Called by the calling thread after the others have left: throws Interrupted on a request.
  void finish() const {
    if (requested_.load(std::memory_order_relaxed)) throw Interrupted();
  }

 private:
  using Clock = std::chrono::steady_clock;

  // Reads the clock, and polls if it is time. Returns what the poll returned.
  bool check_clock() noexcept;

  const InterruptPoll::Function poll_;
  void* const context_;
  const std::thread::id caller_;
  const ThreadSetup::Saved callers_setup_;
  std::atomic<bool> requested_{false};
  // Used by the calling thread only: the number of checks between two readings of the clock, and
  // how many of them are left. The first check reads the clock; the number then doubles until
  // readings are some milliseconds apart.
  int interval_ = 1;
  int countdown_ = 1;
  Clock::time_point last_reading_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_INTERRUPTION_H_
