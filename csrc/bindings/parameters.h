// The flat vector of a layer's parameters, as Python reads, writes and updates it. A layer is
// anything with parameter_count(), parameters(), write_parameters() and update_parameters().
#ifndef TIDEGATE_BINDINGS_PARAMETERS_H_
#define TIDEGATE_BINDINGS_PARAMETERS_H_

#include <functional>
#include <string>

#include "arrays.h"
#include "gil.h"

namespace tidegate::bindings {

// The base of the classes that have parameters.
class Parameters {
 public:
  virtual ~Parameters() = default;
  virtual py::dtype dtype() const = 0;
  // Read-only and live; `owner` is the Python object of this layer, which the array keeps alive.
  virtual py::array flat(const py::object& owner) const = 0;
  virtual void write(Index offset, py::handle values) = 0;
};

// The other base of those whose parameters are T: what is not for Python.
template <class T>
class TypedParameters {
 public:
  virtual ~TypedParameters() = default;
  virtual Index parameter_count() const = 0;
  virtual void update_parameters(const std::function<void(T* parameters)>& update) = 0;
};

// A read-only, live view, which keeps `owner`, the Python object of the layer, alive.
template <class T, class Layer>
py::array flat_parameters(const Layer& layer, const py::object& owner) {
  py::array_t<T> array({layer.parameter_count()}, layer.parameters(), owner);
  array.attr("setflags")(py::arg("write") = false);
  return array;
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
  const double copying = static_cast<double>(memory.nbytes()) / 10;  // 10 bytes a nanosecond
  without_gil(copying, [&] {
    layer.write_parameters(offset, static_cast<const T*>(memory.data()), memory.size());
  });
}

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_PARAMETERS_H_
