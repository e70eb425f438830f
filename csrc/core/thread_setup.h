// The configuration of a thread for its part of a call.
#ifndef TIDEGATE_CORE_THREAD_SETUP_H_
#define TIDEGATE_CORE_THREAD_SETUP_H_

#include "core/float_control.h"

namespace tidegate {

// Configures the thread while it lives, and restores the thread's own configuration afterwards.
// Everything that a thread sets for its part of a call and restores after it belongs here, and
// nowhere else. The calling thread has one for each call, a worker of the team one for its whole
// life.
class ThreadSetup {
 public:
  ThreadSetup() = default;

  // The present configuration of the calling thread, see below.
  struct Saved {
    FloatControl::Register float_control;
  };
  static Saved saved() { return {FloatControl::read()}; }

  // Restores a configuration that saved() returned, for a callback to the caller's code in a call.
  explicit ThreadSetup(const Saved& saved) : float_control_(saved.float_control) {}

 private:
  const FloatControl float_control_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREAD_SETUP_H_
