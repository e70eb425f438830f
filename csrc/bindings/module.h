// What each file of this folder adds to the module.
#ifndef TIDEGATE_BINDINGS_MODULE_H_
#define TIDEGATE_BINDINGS_MODULE_H_

#include <pybind11/pybind11.h>

namespace tidegate::bindings {

void bind_settings(pybind11::module_& m);     // threads, instruction sets, version
void bind_config(pybind11::module_& m);       // Config: what a layer is
void bind_tape(pybind11::module_& m);         // Tape: what backward needs
void bind_model(pybind11::module_& m);        // Model: parameters; run, record, backward
void bind_stream(pybind11::module_& m);       // Stream: live input
void bind_linear(pybind11::module_& m);       // Linear: rows in, rows out
void bind_safetensors(pybind11::module_& m);  // files of layers and of tensors

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_MODULE_H_
