// What each file of this folder adds to the module.
#ifndef TIDEGATE_BINDINGS_MODULE_H_
#define TIDEGATE_BINDINGS_MODULE_H_

#include <pybind11/pybind11.h>

#include <string>

namespace tidegate::bindings {

namespace py = pybind11;

template <class T>
void* refuse_uninitialised(std::size_t) {
  throw py::type_error(py::type::of<T>().attr("__name__").template cast<std::string>() +
                       ": __init__() of this object has not been called, or has failed");
}

// Every class of the module is made by this. pybind11 would hand out uninitialised memory where an
// object is used that __new__ has made and __init__ has not: the one place where it takes such
// memory refuses.
template <class T, class... Bases>
py::class_<T, Bases...> bind_class(py::module_& m, const char* name, const char* doc = "") {
  py::class_<T, Bases...> bound(m, name, doc);
  auto* const type = reinterpret_cast<PyTypeObject*>(bound.ptr());
  py::detail::get_type_info(type)->operator_new = &refuse_uninitialised<T>;
  return bound;
}

// pybind11's base of all bound classes has no instances; making one, as copyreg does to pickle with
// protocols 0 and 1, would throw a C++ exception through Python. Called before any class is bound,
// since classes inherit what is set here.
void guard_base_class();

// While it lives, what is bound has no signature by pybind11, which Python cannot read: the
// docstring begins with one that it can, "name(self, x)\n--\n\n".
class NoSignatures {
 public:
  NoSignatures() { options_.disable_function_signatures(); }

 private:
  py::options options_;
};

void bind_gil(py::module_& m);          // what gil.h needs
void bind_settings(py::module_& m);     // threads, instruction sets, version
void bind_memory(py::module_& m);       // other libraries' memory as arrays
void bind_config(py::module_& m);       // Config: what a layer is
void bind_parameters(py::module_& m);   // Parameters: the base of Model and Linear
void bind_tape(py::module_& m);         // Tape: what backward needs
void bind_model(py::module_& m);        // Model: run, record, backward
void bind_stream(py::module_& m);       // Stream: live input
void bind_linear(py::module_& m);       // Linear: rows in, rows out
void bind_losses(py::module_& m);       // losses and their gradients
void bind_optimizers(py::module_& m);   // steps of optimisers, norms of gradients
void bind_safetensors(py::module_& m);  // files of layers and of tensors

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_MODULE_H_
