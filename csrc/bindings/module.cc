// tidegate._core: the table of contents.
#include "module.h"

#include "tidegate/settings.h"

namespace {

// Where the C++ runtime is linked statically into this module and into the core's library, an
// exception of the core is unwound by both copies. Each sets up its tables at its own first throw,
// and aborts without them.
void prepare_unwinder() {
  try {
    throw 0;
  } catch (int) {
  }
}

}  // namespace

// Free of the GIL: models and layers have locks of their own, a stream refuses a second thread, and
// nothing else here is written after it was made.
PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() = "The C++ core of tidegate: use the classes of the package, which are made of these.";
  prepare_unwinder();
  tidegate::isa();  // a TIDEGATE_ISA that is unknown or unavailable fails the import, not the first
                    // call

  tidegate::bindings::bind_gil(m);
  tidegate::bindings::bind_settings(m);
  tidegate::bindings::bind_memory(m);
  tidegate::bindings::bind_config(m);
  tidegate::bindings::bind_tape(m);
  tidegate::bindings::bind_model(m);
  tidegate::bindings::bind_stream(m);
  tidegate::bindings::bind_linear(m);
  tidegate::bindings::bind_safetensors(m);
}
