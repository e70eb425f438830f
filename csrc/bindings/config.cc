// Config for Python: keyword arguments in, read-only attributes out, compared by value.
#include "tidegate/config.h"

#include <stdexcept>
#include <string>
#include <tuple>

#include "module.h"

namespace tidegate::bindings {
namespace {

namespace py = pybind11;

CellKind read_cell(const std::string& name) {
  if (name == "lstm") return CellKind::lstm;
  if (name == "gru") return CellKind::gru;
  throw std::invalid_argument("cell: got '" + name + "', wanted 'lstm' or 'gru'");
}

std::string cell_name(const Config& config) {
  return config.cell == CellKind::lstm ? "lstm" : "gru";
}

UpdateGate read_update_gate(const std::string& name) {
  if (name == "carry") return UpdateGate::carry;
  if (name == "write") return UpdateGate::write;
  throw std::invalid_argument("update_gate: got '" + name + "', wanted 'carry' or 'write'");
}

std::string update_gate_name(const Config& config) {
  return config.update_gate == UpdateGate::carry ? "carry" : "write";
}

auto members(const Config& c) {
  return std::tie(c.cell, c.input_size, c.hidden_size, c.num_layers, c.bias, c.bidirectional,
                  c.reverse, c.proj_size, c.peephole, c.reset_after, c.update_gate);
}

Config make_config(const std::string& cell, Index input_size, Index hidden_size, Index num_layers,
                   bool bias, bool bidirectional, bool reverse, Index proj_size, bool peephole,
                   bool reset_after, const std::string& update_gate) {
  Config config;
  config.cell = read_cell(cell);
  config.input_size = input_size;
  config.hidden_size = hidden_size;
  config.num_layers = num_layers;
  config.bias = bias;
  config.bidirectional = bidirectional;
  config.reverse = reverse;
  config.proj_size = proj_size;
  config.peephole = peephole;
  config.reset_after = reset_after;
  config.update_gate = read_update_gate(update_gate);
  config.validate();
  return config;
}

}  // namespace

void bind_config(py::module_& m) {
  const Config defaults;
  py::class_<Config>(m, "Config")
      .def(py::init(&make_config), py::kw_only(), py::arg("cell"), py::arg("input_size"),
           py::arg("hidden_size"), py::arg("num_layers") = defaults.num_layers,
           py::arg("bias") = defaults.bias, py::arg("bidirectional") = defaults.bidirectional,
           py::arg("reverse") = defaults.reverse, py::arg("proj_size") = defaults.proj_size,
           py::arg("peephole") = defaults.peephole, py::arg("reset_after") = defaults.reset_after,
           py::arg("update_gate") = update_gate_name(defaults))
      .def_property_readonly("cell", &cell_name)
      .def_readonly("input_size", &Config::input_size)
      .def_readonly("hidden_size", &Config::hidden_size)
      .def_readonly("num_layers", &Config::num_layers)
      .def_readonly("bias", &Config::bias)
      .def_readonly("bidirectional", &Config::bidirectional)
      .def_readonly("reverse", &Config::reverse)
      .def_readonly("proj_size", &Config::proj_size)
      .def_readonly("peephole", &Config::peephole)
      .def_readonly("reset_after", &Config::reset_after)
      .def_property_readonly("update_gate", &update_gate_name)
      .def(
          "__eq__", [](const Config& a, const Config& b) { return members(a) == members(b); },
          py::is_operator());
}

}  // namespace tidegate::bindings
