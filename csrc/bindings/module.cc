// tidegate._core: the table of contents.
#include "module.h"

#include "tidegate/settings.h"

namespace tidegate::bindings {
namespace {

newfunc new_instance_of_bound;

// The tp_new of the base class and of all bound classes.
PyObject* new_instance(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  try {
    if (!py::detail::all_type_info(type).empty()) return new_instance_of_bound(type, args, kwargs);
    // copyreg passes the object to pickle.
    PyObject* const base = py::detail::get_internals().instance_base;
    PyObject* const first = PyTuple_GET_SIZE(args) > 0 ? PyTuple_GET_ITEM(args, 0) : nullptr;
    const bool pickles =
        first != nullptr && PyObject_TypeCheck(first, reinterpret_cast<PyTypeObject*>(base));
    PyErr_Format(PyExc_TypeError,
                 pickles ? "cannot pickle '%s' object" : "cannot create '%s' instances",
                 pickles ? Py_TYPE(first)->tp_name : type->tp_name);
  } catch (...) {
    py::detail::try_translate_exceptions();
  }
  return nullptr;
}

}  // namespace

void guard_base_class() {
  auto* const base = reinterpret_cast<PyTypeObject*>(py::detail::get_internals().instance_base);
  if (base->tp_new == &new_instance) return;
  new_instance_of_bound = base->tp_new;
  base->tp_new = &new_instance;
}

}  // namespace tidegate::bindings

namespace {

// If the C++ runtime is linked statically into both this module and the core's library, both copies
// unwind an exception of the core. Each copy initialises its tables at its own first throw, and
// aborts without them.
void prepare_unwinder() {
  try {
    throw 0;
  } catch (int) {
  }
}

}  // namespace

// The module does not need the GIL: models and layers have their own locks, a stream refuses a
// second thread, and no other object is modified after its construction.
PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() = "The C++ core of tidegate: use the classes of the package, which are built on these.";
  prepare_unwinder();
  tidegate::isa();  // an unknown or unavailable TIDEGATE_ISA fails at import, not in the first call

  tidegate::bindings::guard_base_class();
  tidegate::bindings::bind_gil(m);
  tidegate::bindings::bind_settings(m);
  tidegate::bindings::bind_memory(m);
  tidegate::bindings::bind_config(m);
  tidegate::bindings::bind_parameters(m);
  tidegate::bindings::bind_tape(m);
  tidegate::bindings::bind_model(m);
  tidegate::bindings::bind_stream(m);
  tidegate::bindings::bind_linear(m);
  tidegate::bindings::bind_losses(m);
  tidegate::bindings::bind_optimizers(m);
  tidegate::bindings::bind_safetensors(m);
}
