// The base class of layers with parameters, which Python reads and writes.
#include "parameters.h"

#include "module.h"

namespace tidegate::bindings {

void bind_parameters(py::module_& m) {
  bind_class<Parameters>(m, "Parameters")
      .def_property_readonly("dtype", &Parameters::dtype)
      .def_property_readonly(
          "flat", [](const py::object& self) { return self.cast<const Parameters&>().flat(self); })
      .def("write", &Parameters::write)
      .def_property_readonly("precision", &Parameters::precision)
      .def_property_readonly("quantized", &Parameters::quantized)
      .def("quantize", &Parameters::quantize);
}

}  // namespace tidegate::bindings
