// Threads, instruction sets and version for Python. The Python package checks the types of
// arguments.
#include "tidegate/settings.h"

#include <pybind11/stl.h>

#include "core/machine_speed.h"
#include "core/switches.h"
#include "gil.h"
#include "module.h"
#include "tidegate/precision.h"

namespace tidegate::bindings {

namespace {

py::dict machine_figures_dict(bool measure) {
  MachineFigures figures;
  {
    const GilRelease release;
    figures = machine_figures(measure);
  }
  py::list teams, read_rates;
  for (const MachineFigures::Team& team : figures.teams) {
    teams.append(py::dict(py::arg("threads") = team.threads, py::arg("barrier_ns") = team.barrier,
                          py::arg("speedup") = team.speedup));
  }
  for (const MachineFigures::ReadRate& read : figures.read_rates) {
    read_rates.append(py::dict(py::arg("bytes") = read.bytes, py::arg("threads") = read.threads,
                               py::arg("gb_per_s") = read.rate));
  }
  return py::dict(py::arg("gflop_per_s") = figures.fma_rate, py::arg("teams") = teams,
                  py::arg("read_rates") = read_rates);
}

}  // namespace

void bind_settings(py::module_& m) {
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads);
  m.def("set_thread_num_threads", &set_thread_num_threads);
  m.def("num_threads_reason", &num_threads_reason);
  m.def("thread_runtime", &thread_runtime);
  m.def("isa", &isa);
  m.def("available_isas", &available_isas);
  m.def("select_isa", &select_isa);
  m.def("select_division", &select_division);
  m.def("fastest_bfloat16", [] { return precision_name<float>(fastest_bfloat16()); });
  m.def("product_rate", &product_rate, py::call_guard<GilRelease>());
  m.def("read_rate", &read_rate, py::call_guard<GilRelease>());
  m.def("machine_figures", &machine_figures_dict);
  m.def("version", &version);
  m.def("compiler", &compiler);
}

}  // namespace tidegate::bindings
