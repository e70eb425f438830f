// tidegate._core: the table of contents.
#include "module.h"

#include "tidegate/settings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of tidegate: use the classes of the package, which are made of these.";
  tidegate::isa();  // a TIDEGATE_ISA that is unknown or unavailable fails the import, not the first
                    // call

  tidegate::bindings::bind_gil(m);
  tidegate::bindings::bind_settings(m);
  tidegate::bindings::bind_config(m);
  tidegate::bindings::bind_tape(m);
  tidegate::bindings::bind_model(m);
  tidegate::bindings::bind_stream(m);
  tidegate::bindings::bind_linear(m);
  tidegate::bindings::bind_safetensors(m);
}
