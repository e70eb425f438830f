// Reads, writes, updates and quantises a layer's parameters. A `Layer` is a Model or a Linear.
#ifndef TIDEGATE_BINDINGS_PARAMETERS_H_
#define TIDEGATE_BINDINGS_PARAMETERS_H_

#include <functional>
#include <string>

#include "arrays.h"
#include "gil.h"
#include "precision.h"

namespace tidegate::bindings {

// The base of the classes that have parameters.
class Parameters {
 public:
  virtual ~Parameters() = default;
  virtual py::dtype dtype() const = 0;
  // A read-only, live view; it keeps `owner`, the Python object of this layer, alive. In low
  // precision, a read-only copy of the dequantised parameters.
  virtual py::array flat(const py::object& owner) const = 0;
  virtual void write(Index offset, py::handle values) = 0;

  // The name of the precision, also of the exact one.
  virtual const char* precision() const = 0;
  // The parameters in low precision (bindings/precision.h), or None if the precision is exact.
  virtual py::object quantized() const = 0;
  // The exact parameters in the low precision of this name.
  virtual py::dict quantize(const std::string& name) const = 0;
};

// The second base class of layers whose parameters are of type T: functions for the bindings alone.
template <class T>
class TypedParameters {
 public:
  virtual ~TypedParameters() = default;
  virtual Index parameter_count() const = 0;
  virtual void update_parameters(const std::function<void(T* parameters)>& update) = 0;
};

// The implementation of Parameters::flat().
template <class T, class Layer>
py::array flat_parameters(const Layer& layer, const py::object& owner) {
  py::array array;
  if (layer.precision() == Precision::exact) {
    array = py::array_t<T>({layer.parameter_count()}, layer.parameters(), owner);
  } else {
    array = new_array<T>("flat", {layer.parameter_count()});
    layer.read_parameters(static_cast<T*>(const_cast<void*>(array.data())));
  }
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

// The implementations of Parameters::quantized() and quantize().
template <class Layer>
py::object quantized_parameters(const Layer& layer) {
  const QuantizedParameters* const parameters = layer.quantized();
  return parameters ? py::object(quantized_dict(*parameters)) : py::none();
}
template <class Layer>
py::dict quantize_parameters(const Layer& layer, const std::string& name) {
  const Precision precision = read_precision(name);
  const auto made = release_gil(true, [&] { return layer.quantize(precision); });
  return quantized_dict(*made->quantized());
}

template <class T, class Layer>
void write_parameters(Layer& layer, Index offset, py::handle values) {
  const py::array array = read_array<T>("values", values);
  const Index count = layer.parameter_count();
  if (array.ndim() != 1) fail_shape("values", array, "one axis");
  if (offset < 0 || offset > count || array.size() > count - offset) {
    throw py::value_error("offset: got " + std::to_string(offset) + " for " +
                          std::to_string(array.size()) + " values, wanted a range within " +
                          std::to_string(count) + " parameters");
  }
  const py::array memory = readable<T>(array);
  const double copying = static_cast<double>(memory.nbytes()) / 10;  // at 10 bytes per nanosecond
  without_gil(copying, [&] {
    layer.write_parameters(offset, static_cast<const T*>(memory.data()), memory.size());
  });
}

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_PARAMETERS_H_
