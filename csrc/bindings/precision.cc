// Parameters in low precision as Python objects.
#include "precision.h"

#include <optional>
#include <vector>

namespace tidegate::bindings {
namespace {

template <class T>
py::array_t<T> copied(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<Index>(values.size()), values.data());
}

// The contiguous vector given["name"].
template <class T>
std::vector<T> vector_of(const py::dict& given, const char* name) {
  if (!given.contains(name) || !py::isinstance<py::array>(given[name]))
    throw py::value_error("quantized: wanted an array \"" + std::string(name) + "\"");
  const auto array = py::cast<py::array>(given[name]);
  if (!array.dtype().equal(py::dtype::of<T>()) || array.ndim() != 1 ||
      (array.flags() & py::array::c_style) == 0) {
    throw py::value_error(std::string(name) + ": wanted a contiguous vector of " +
                          std::string(py::str(py::dtype::of<T>())));
  }
  const auto* const data = static_cast<const T*>(array.data());
  return {data, data + array.size()};
}

}  // namespace

Precision read_precision(const std::string& name) {
  if (const std::optional<Precision> precision = low_precision(name)) return *precision;
  throw py::value_error("precision: got '" + name +
                        "', wanted 'bfloat16', 'bfloat16-dot' or 'int8'");
}

Precision read_products_precision(py::handle name) {
  if (name.is_none()) return Precision::exact;
  const char* const wanted = ", wanted 'bfloat16', 'bfloat16-dot' or None";
  if (!py::isinstance<py::str>(name))
    throw py::type_error("precision: got " + type_name(name) + wanted);
  const std::string text = py::cast<std::string>(name);
  const std::optional<Precision> precision = low_precision(text);
  if (precision && *precision != Precision::int8) return *precision;
  throw py::value_error("precision: got '" + text + "'" + wanted);
}

py::dict quantized_dict(const QuantizedParameters& parameters) {
  py::dict result;
  result["precision"] = precision_name<float>(parameters.precision);
  if (parameters.precision == Precision::int8) {
    result["int8"] = copied(parameters.int8);
    result["scales"] = copied(parameters.scales);
  } else {
    result["bfloat16"] = copied(parameters.bfloat16);
  }
  result["vectors"] = copied(parameters.vectors);
  return result;
}

QuantizedParameters read_quantized(const py::dict& given) {
  QuantizedParameters parameters;
  if (!given.contains("precision") || !py::isinstance<py::str>(given["precision"]))
    throw py::value_error("quantized: wanted a str \"precision\"");
  parameters.precision = read_precision(py::cast<std::string>(given["precision"]));
  if (parameters.precision == Precision::int8) {
    parameters.int8 = vector_of<std::int8_t>(given, "int8");
    parameters.scales = vector_of<float>(given, "scales");
  } else {
    parameters.bfloat16 = vector_of<std::uint16_t>(given, "bfloat16");
  }
  parameters.vectors = vector_of<float>(given, "vectors");
  return parameters;
}

}  // namespace tidegate::bindings
