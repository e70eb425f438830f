// The tensors of a layer in a file, and where their elements are in the layer's parameters: the one
// list by which files are checked, read and written.
#ifndef TIDEGATE_CORE_FILES_LAYER_TENSORS_H_
#define TIDEGATE_CORE_FILES_LAYER_TENSORS_H_

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tidegate/safetensors.h"

namespace tidegate {

// The parts of a layer's parameters: the flat vector, or the vectors of QuantizedParameters.
enum class Part { flat, bfloat16, int8, scales, vectors };

struct LayerTensor {
  Tensor tensor;  // without bytes and offset; the dtype is empty if the layer's is not known
  Part part;
  Index begin, end;  // its elements in that part
};

// Throws std::length_error if the sizes overflow.
std::vector<LayerTensor> tensors_of(const LayerInfo& layer);

// The data of a tensor of these parameters, of which those are given that are of its part.
const void* data_of(const LayerTensor& tensor, const void* flat,
                    const QuantizedParameters* quantized);

// The layer's parameters, named as messages name their tensors.
std::vector<Parameter> named_layout(const LayerInfo& layer);

// Throws std::invalid_argument that names the dtype, if the layer cannot have it.
void check_dtype(const LayerInfo& layer);

inline bool is_low(std::optional<Precision> precision) {
  return precision.value_or(Precision::exact) != Precision::exact;
}

// Throws std::invalid_argument that names the file.
[[noreturn]] void refuse(const Safetensors& file, const std::string& reason);

// Calls f(), and adds the name of the file to its refusal.
template <class F>
void refuse_as_of(const Safetensors& file, const F& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    refuse(file, error.what());
  }
}

}  // namespace tidegate

#endif  // TIDEGATE_CORE_FILES_LAYER_TENSORS_H_
