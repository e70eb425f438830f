// When a call gives up the GIL, and what becomes of it when Python ends or is interrupted
// meanwhile.
#ifndef TIDEGATE_BINDINGS_GIL_H_
#define TIDEGATE_BINDINGS_GIL_H_

#include <pybind11/pybind11.h>

#include <exception>

#include "tidegate/errors.h"
#include "tidegate/interrupt.h"

namespace tidegate::bindings {

// Around a call into Python in which Python may end the thread, as it does with daemon threads that
// want the GIL after the interpreter has begun to shut down. Up to Python 3.13 that is a
// pthread_exit(): it unwinds the stack, and would run destructors of Python objects without the GIL
// or end the program at the first noexcept function. Here the thread is parked instead, as Python
// 3.14 does itself; the end of the process ends it. Exceptions of C++ pass.
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

// f(), which may run Python code; the guard is the first to be unwound if f holds no objects.
template <class Function>
auto calling_python(const Function& f) {
  UnwindGuard guard;
  auto result = f();
  guard.returned();
  return result;
}

// Releases the GIL while it lives.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() { take(state_); }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

  // Runs the handlers of signals that have arrived; true: one has raised, which is set as the
  // thread's exception. For the thread that released.
  bool check_signals() noexcept;

 private:
  static void take(PyThreadState* state);

  PyThreadState* state_;
};

// Releasing and taking it again costs a fraction of a microsecond when no one wants it, and a wait
// of up to Python's switch interval when someone does. A call of this many nanoseconds is worth it.
constexpr double kWorthReleasing = 20e3;

// A call of this many nanoseconds, by an estimate that may be wrong by a factor of a hundred, looks
// for signals.
constexpr double kWorthInterrupting = 1e6;

// Whether this is the thread in which Python handles signals.
bool handles_signals();

// f() without the GIL. If `interruptible`, and this thread handles signals, a handler that raises
// (a Ctrl-C) ends f() early, and its exception is thrown.
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
