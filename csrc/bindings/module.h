// The functions by which each file of this folder adds its classes and functions to the module.
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

// Binds a class; used for every class of the module. If an object is used whose __init__ has not
// been called after __new__, pybind11 would allocate uninitialised memory for it; the allocation
// function installed here throws instead.
template <class T, class... Bases>
py::class_<T, Bases...> bind_class(py::module_& m, const char* name, const char* doc = "") {
  py::class_<T, Bases...> bound(m, name, doc);
  auto* const type = reinterpret_cast<PyTypeObject*>(bound.ptr());
  py::detail::get_type_info(type)->operator_new = &refuse_uninitialised<T>;
  return bound;
}

// pybind11's common base of bound classes has no instances; creating one, as copyreg does for
// pickle protocols 0 and 1, would throw a C++ exception through Python. This function replaces its
// tp_new. Called before any class is bound, since classes inherit tp_new.
void guard_base_class();

// Disables, for its lifetime, pybind11's signatures in docstrings, which Python cannot parse. The
// docstrings begin with a signature that it can parse, "name(self, x)\n--\n\n".
class NoSignatures {
 public:
  NoSignatures() { options_.disable_function_signatures(); }

 private:
  py::options options_;
};

void bind_gil(py::module_& m);          // initialises gil.cc
void bind_settings(py::module_& m);     // threads, instruction sets, version
void bind_memory(py::module_& m);       // other libraries' memory as arrays
void bind_config(py::module_& m);       // Config: a layer's configuration
void bind_parameters(py::module_& m);   // Parameters: the base of Model and Linear
void bind_tape(py::module_& m);         // Tape: the record for backward
void bind_model(py::module_& m);        // Model: run, record, backward
void bind_stream(py::module_& m);       // Stream: live input
void bind_linear(py::module_& m);       // Linear and its tape
void bind_losses(py::module_& m);       // losses and their gradients
void bind_optimizers(py::module_& m);   // steps of optimisers, norms of gradients
void bind_safetensors(py::module_& m);  // files of layers and of tensors

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_MODULE_H_
