// Config for Python: constructed from keyword arguments, read-only attributes, compared by value.
#include "tidegate/config.h"

#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "arguments.h"
#include "module.h"

namespace tidegate::bindings {
namespace {

UpdateGate read_update_gate(const std::string& name) {
  if (name == "carry") return UpdateGate::carry;
  if (name == "write") return UpdateGate::write;
  throw std::invalid_argument("update_gate: got '" + name + "', wanted 'carry' or 'write'");
}

std::string update_gate_name(const Config& config) {
  return config.update_gate == UpdateGate::carry ? "carry" : "write";
}

// An activation in Python: its name, or (name, alpha) or (name, alpha, beta).
Activation read_activation(const char* argument, const py::object& given) {
  const auto wanted = [&](const std::string& what) {
    return std::string(argument) + ": got " + py::repr(given).cast<std::string>() + ", wanted " +
           what;
  };
  const bool tuple = py::isinstance<py::tuple>(given);
  const py::tuple parts = tuple ? py::tuple(given) : py::make_tuple(given);
  if (parts.empty() || !py::isinstance<py::str>(parts[0]))
    throw py::type_error(wanted("a name, (name, alpha) or (name, alpha, beta)"));
  const std::string name = parts[0].cast<std::string>();
  std::string names;
  for (const ActivationInfo& info : kActivations) {
    names += std::string(names.empty() ? "" : ", ") + info.name;
    if (name != info.name) continue;
    if (static_cast<int>(parts.size()) > 1 + info.parameters)
      throw std::invalid_argument(
          wanted("at most " + std::to_string(info.parameters) + " parameters"));
    Activation activation = info.kind;
    double* const parameters[] = {&activation.alpha, &activation.beta};
    for (std::size_t i = 1; i < parts.size(); ++i) {
      const py::object number = parts[i];
      if (!PyNumber_Check(number.ptr()) || py::isinstance<py::bool_>(number))
        throw py::type_error(wanted("numbers as parameters"));
      *parameters[i - 1] = number.cast<double>();
    }
    return activation;
  }
  throw std::invalid_argument(wanted("one of " + names));
}

py::object show_activation(const Activation& activation) {
  const ActivationInfo& info = activation_info(activation.kind);
  if (activation == Activation(activation.kind)) return py::str(info.name);
  if (info.parameters == 1) return py::make_tuple(info.name, activation.alpha);
  return py::make_tuple(info.name, activation.alpha, activation.beta);
}

auto members(const Config& c) {
  return std::tie(c.cell, c.input_size, c.hidden_size, c.num_layers, c.bias, c.bidirectional,
                  c.reverse, c.proj_size, c.peephole, c.reset_after, c.update_gate, c.activations);
}

Config make_config(const std::string& cell, Index input_size, Index hidden_size, Index num_layers,
                   bool bias, bool bidirectional, bool reverse, Index proj_size, bool peephole,
                   bool reset_after, const std::string& update_gate,
                   const py::object& recurrent_activation, const py::object& activation,
                   const py::object& output_activation, std::optional<double> clip,
                   bool input_forget) {
  Config config;
  config.cell = cell_of_name(cell);
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
  config.activations.gate = read_activation("recurrent_activation", recurrent_activation);
  config.activations.candidate = read_activation("activation", activation);
  if (!output_activation.is_none()) {
    config.activations.output = read_activation("output_activation", output_activation);
  } else if (has_output_activation(config.cell)) {
    config.activations.output = config.activations.candidate;
  }
  if (clip && !(*clip > 0))
    throw std::invalid_argument("clip: got " + std::to_string(*clip) + ", wanted a number > 0");
  config.activations.clip = clip.value_or(0);
  config.activations.input_forget = input_forget;
  with_memory_for([&] { return largest_size(config); }, [&] { config.validate(); });
  return config;
}

}  // namespace

void bind_config(py::module_& m) {
  const Config defaults;
  bind_class<Config>(m, "Config")
      .def(py::init(&make_config), py::kw_only(), py::arg("cell"), py::arg("input_size"),
           py::arg("hidden_size"), py::arg("num_layers") = defaults.num_layers,
           py::arg("bias") = defaults.bias, py::arg("bidirectional") = defaults.bidirectional,
           py::arg("reverse") = defaults.reverse, py::arg("proj_size") = defaults.proj_size,
           py::arg("peephole") = defaults.peephole, py::arg("reset_after") = defaults.reset_after,
           py::arg("update_gate") = update_gate_name(defaults),
           py::arg("recurrent_activation") = show_activation(defaults.activations.gate),
           py::arg("activation") = show_activation(defaults.activations.candidate),
           py::arg("output_activation") = py::none(), py::arg("clip") = py::none(),
           py::arg("input_forget") = defaults.activations.input_forget)
      .def_property_readonly("cell", [](const Config& c) { return cell_name(c.cell); })
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
      .def_property_readonly("recurrent_activation",
                             [](const Config& c) { return show_activation(c.activations.gate); })
      .def_property_readonly(
          "activation", [](const Config& c) { return show_activation(c.activations.candidate); })
      // None if it equals `activation`, or if the cell has none.
      .def_property_readonly("output_activation",
                             [](const Config& c) -> py::object {
                               const CellActivations& a = c.activations;
                               if (!has_output_activation(c.cell) || a.output == a.candidate)
                                 return py::none();
                               return show_activation(a.output);
                             })
      .def_property_readonly("clip",
                             [](const Config& c) {
                               return c.activations.clip > 0
                                          ? std::optional<double>(c.activations.clip)
                                          : std::nullopt;
                             })
      .def_property_readonly("input_forget",
                             [](const Config& c) { return c.activations.input_forget; })
      .def(
          "__eq__", [](const Config& a, const Config& b) { return members(a) == members(b); },
          py::is_operator());
}

}  // namespace tidegate::bindings
