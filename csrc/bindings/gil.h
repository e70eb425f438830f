// When a call releases the GIL, and how it ends if Python shuts down or is interrupted meanwhile.
#ifndef TIDEGATE_BINDINGS_GIL_H_
#define TIDEGATE_BINDINGS_GIL_H_

#include <pybind11/pybind11.h>

#include <exception>

#include "tidegate/errors.h"
#include "tidegate/interrupt.h"

namespace tidegate::bindings {

// Guards a call into Python in which Python may end the thread, as it ends daemon threads that
// acquire the GIL after the interpreter has begun to shut down. Up to Python 3.13, it calls
// pthread_exit(), which unwinds the stack: that would run destructors of Python objects without the
// GIL, or terminate the program at the first noexcept function. The guard instead parks the thread
// until the process ends, as Python 3.14 does itself. C++ exceptions propagate.
class UnwindGuard {
 public:
  UnwindGuard() : exceptions_(std::uncaught_exceptions()) {}
  ~UnwindGuard() {
    if (!returned_ && std::uncaught_exceptions() == exceptions_) park();
  }
  UnwindGuard(const UnwindGuard&) = delete;
  UnwindGuard& operator=(const UnwindGuard&) = delete;

  void returned() { returned_ = true; }

 private:
  [[noreturn]] static void park() noexcept;

  const int exceptions_;
  bool returned_ = false;
};

// Returns f(), which may run Python code. f must hold no objects, so that the guard is unwound
// first.
template <class Function>
auto calling_python(const Function& f) {
  UnwindGuard guard;
  auto result = f();
  guard.returned();
  return result;
}

// Releases the GIL for its lifetime.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() { reacquire(state_); }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

  // Runs the Python handlers of signals that have arrived. Returns true if one has raised an
  // exception, which is then the thread's current exception. For the thread that released the GIL.
  bool check_signals() noexcept;

 private:
  static void reacquire(PyThreadState* state);

  PyThreadState* state_;
};

// Releasing and reacquiring the GIL costs a fraction of a microsecond without contention; with
// contention it waits up to Python's switch interval. Calls of at least this many nanoseconds
// release it.
constexpr double kWorthReleasing = 20e3;

// Calls of at least this many nanoseconds check for signals. The estimate of a call's duration may
// be wrong by a factor of a hundred.
constexpr double kWorthInterrupting = 1e6;

// Whether Python handles signals in the calling thread.
bool handles_signals();

// Returns f(), run without the GIL. If `interruptible`, and Python handles signals in this thread,
// a handler that raises (on Ctrl-C) ends f() early, and its exception is thrown.
template <class Function>
auto release_gil(bool interruptible, const Function& f) {
  const bool checks = interruptible && handles_signals();
  try {
    GilRelease release;
    if (!checks) return f();
    const InterruptPoll poll(
        [](void* released) noexcept { return static_cast<GilRelease*>(released)->check_signals(); },
        &release);
    return f();
  } catch (const Interrupted&) {
    throw pybind11::error_already_set();
  }
}

template <class Function>
void without_gil(double nanoseconds, const Function& f) {
  if (nanoseconds < kWorthReleasing) {
    f();
  } else {
    release_gil(nanoseconds >= kWorthInterrupting, f);
  }
}

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_GIL_H_
