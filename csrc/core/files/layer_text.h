// A layer's kind and options as a JSON text, for files and for the C API. Nothing about tensors.
#ifndef TIDEGATE_CORE_FILES_LAYER_TEXT_H_
#define TIDEGATE_CORE_FILES_LAYER_TEXT_H_

#include <string>
#include <string_view>

#include "tidegate/safetensors.h"

namespace tidegate {

// The layer that this text describes, without name and dtype. num_layers may be at most
// `most_layers`, because the caller then lists the parameters of all layers. Throws
// std::invalid_argument that names the option.
LayerInfo parse_layer(std::string_view text, Index most_layers);

std::string layer_text(const LayerInfo& layer);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_FILES_LAYER_TEXT_H_
