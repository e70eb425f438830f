// The list of a layer's tensors, and the reading of its parameters by it.
#include "core/files/layer_tensors.h"

#include <array>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/files/json.h"
#include "core/files/tensor_dtype.h"

namespace tidegate {
namespace {

std::string tensor_name(const LayerInfo& layer, const std::string& parameter) {
  return layer.name.empty() ? parameter : layer.name + "." + parameter;
}

std::vector<Index> shape_of(const Parameter& parameter) {
  if (parameter.columns == 0) return {parameter.rows};
  return {parameter.rows, parameter.columns};
}

Index element_size(const LayerTensor& tensor) { return element_bits(tensor.tensor.dtype) / 8; }

// The first element of a tensor. Both Bytes and Quantized are const, or neither is.
template <class Bytes, class Quantized>
Bytes* begin_of(const LayerTensor& tensor, Bytes* flat, Quantized* quantized) {
  const auto at = [&](auto& values) {
    return reinterpret_cast<Bytes*>(values.data() + tensor.begin);
  };
  switch (tensor.part) {
    case Part::bfloat16:
      return at(quantized->bfloat16);
    case Part::int8:
      return at(quantized->int8);
    case Part::scales:
      return at(quantized->scales);
    case Part::vectors:
      return at(quantized->vectors);
    default:
      return flat + tensor.begin * element_size(tensor);
  }
}

void read_tensors(const Safetensors& file, const std::vector<LayerTensor>& tensors, void* flat,
                  QuantizedParameters* quantized) {
  for (const LayerTensor& tensor : tensors) {
    const Index bytes = (tensor.end - tensor.begin) * element_size(tensor);
    file.read(tensor.tensor.name, begin_of(tensor, static_cast<std::byte*>(flat), quantized),
              static_cast<std::size_t>(bytes));
  }
}

}  // namespace

std::vector<LayerTensor> tensors_of(const LayerInfo& layer) {
  std::vector<LayerTensor> tensors;
  std::array<Index, 5> sizes = {};  // of the parts, up to the next tensor
  const auto add = [&](const std::string& name, const std::string& dtype, std::vector<Index> shape,
                       Part part, Index elements) {
    Index& size = sizes[static_cast<std::size_t>(part)];
    tensors.push_back({{name, dtype, std::move(shape)}, part, size, size + elements});
    size += elements;
  };
  for (const Parameter& parameter : parameters(layer)) {
    const std::string name = tensor_name(layer, parameter.name);
    const std::vector<Index> shape = shape_of(parameter);
    if (!is_low(layer.precision)) {
      add(name, layer.dtype, shape, Part::flat, parameter.size());
    } else if (parameter.columns == 0) {
      add(name, "F32", shape, Part::vectors, parameter.size());
    } else if (layer.precision == Precision::int8) {
      add(name, "I8", shape, Part::int8, parameter.size());
      add(name + "_scale", "F32", {parameter.rows}, Part::scales, parameter.rows);
    } else {
      add(name, "BF16", shape, Part::bfloat16, parameter.size());
    }
  }
  return tensors;
}

const void* data_of(const LayerTensor& tensor, const void* flat,
                    const QuantizedParameters* quantized) {
  return begin_of(tensor, static_cast<const std::byte*>(flat), quantized);
}

std::vector<Parameter> named_layout(const LayerInfo& layer) {
  std::vector<Parameter> layout = parameters(layer);
  for (Parameter& parameter : layout)
    parameter.name = "tensor " + quoted_name(tensor_name(layer, parameter.name));
  return layout;
}

void check_dtype(const LayerInfo& layer) {
  const bool low = is_low(layer.precision);
  if (layer.dtype == "F32" || (layer.dtype == "F64" && !low)) return;
  throw std::invalid_argument("dtype: got " + quoted_name(layer.dtype) + ", wanted F32" +
                              (low ? " in low precision" : " or F64"));
}

void refuse(const Safetensors& file, const std::string& reason) {
  throw std::invalid_argument(as_utf8(file.name()) + ": " + reason);
}

void read_parameters(const Safetensors& file, const LayerInfo& layer, void* flat) {
  if (!parameters(layer).empty()) check_dtype(layer);
  if (is_low(layer.precision)) {
    dequantize(parameters(layer), read_quantized(file, layer), static_cast<float*>(flat));
  } else {
    read_tensors(file, tensors_of(layer), flat, nullptr);
  }
}

QuantizedParameters read_quantized(const Safetensors& file, const LayerInfo& layer) {
  if (!is_low(layer.precision)) {
    throw std::invalid_argument("layer: got " + quoted_name(layer.name) + ", which is in " +
                                layer.dtype + ", wanted one in low precision");
  }
  QuantizedParameters read;
  read.precision = layer.precision;
  const std::vector<LayerTensor> tensors = tensors_of(layer);
  const auto resize = [&](Part part, auto& values) {
    Index size = 0;
    for (const LayerTensor& tensor : tensors) {
      if (tensor.part == part) size = tensor.end;
    }
    values.resize(static_cast<std::size_t>(size));
  };
  resize(Part::bfloat16, read.bfloat16);
  resize(Part::int8, read.int8);
  resize(Part::scales, read.scales);
  resize(Part::vectors, read.vectors);
  read_tensors(file, tensors, nullptr, &read);
  refuse_as_of(file, [&] { check_quantized(named_layout(layer), read); });
  return read;
}

}  // namespace tidegate
