// Threads, instruction sets and version for Python. Types are checked by the Python side.
#include "tidegate/settings.h"

#include "tidegate/limits.h"

#include <pybind11/stl.h>

#include "module.h"

namespace tidegate::bindings {

void bind_settings(pybind11::module_& m) {
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads);
  m.def("set_thread_num_threads", &set_thread_num_threads);
  m.def("num_threads_reason", &num_threads_reason);
  m.def("isa", &isa);
  m.def("available_isas", &available_isas);
  m.def("select_isa", &select_isa);
  m.def("select_division", &select_division);
  m.def("fma_rate", &fma_rate, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("read_rate", &read_rate, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("version", &version);
  m.def("compiler", &compiler);
}

}  // namespace tidegate::bindings
