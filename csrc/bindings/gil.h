// When a call gives up the GIL.
#ifndef TIDEGATE_BINDINGS_GIL_H_
#define TIDEGATE_BINDINGS_GIL_H_

#include <pybind11/pybind11.h>

namespace tidegate::bindings {

// Releasing and taking it again costs a fraction of a microsecond when no one wants it, and a wait
// of up to Python's switch interval when someone does. A call of this many nanoseconds is worth it.
constexpr double kWorthReleasing = 20e3;

template <class Function>
void without_gil(double nanoseconds, const Function& function) {
  if (nanoseconds < kWorthReleasing) {
    function();
  } else {
    const pybind11::gil_scoped_release release;
    function();
  }
}

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_GIL_H_
