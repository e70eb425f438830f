// tidegate._core: the table of contents.
#include "module.h"

#include "tidegate/settings.h"

namespace tidegate::bindings {
namespace {

newfunc new_instance_of_bound;

// tp_new of the base class and of all bound classes.
PyObject* new_instance(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  try {
    if (!py::detail::all_type_info(type).empty()) return new_instance_of_bound(type, args, kwargs);
    // copyreg passes the object that it is to pickle.
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
