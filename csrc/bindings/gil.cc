// Reacquiring the GIL, and threads that Python ends meanwhile.
#include "gil.h"

#include <chrono>
#include <thread>

#include "module.h"

namespace tidegate::bindings {
namespace {

// threading.main_thread, looked up when this module is imported: a later import might wait for
// another thread.
PyObject* main_thread;

}  // namespace

void UnwindGuard::park() noexcept {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

void GilRelease::reacquire(PyThreadState* state) {
  UnwindGuard guard;
  PyEval_RestoreThread(state);
  guard.returned();
}

bool GilRelease::check_signals() noexcept {
  reacquire(state_);
  const bool raised = PyErr_CheckSignals() != 0;
  state_ = PyEval_SaveThread();
  return raised;
}

bool handles_signals() {
  PyObject* const thread = calling_python([] { return PyObject_CallNoArgs(main_thread); });
  if (thread == nullptr) throw py::error_already_set();
  const py::object ident = py::reinterpret_steal<py::object>(thread).attr("ident");
  return ident.equal(py::int_(PyThread_get_thread_ident()));
}

void bind_gil(py::module_& /*m*/) {
  main_thread = py::object(py::module_::import("threading").attr("main_thread")).release().ptr();
}

}  // namespace tidegate::bindings
