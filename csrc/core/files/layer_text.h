// What a file, or a C program, says of a layer: its kind and options as a JSON text. No tensors.
#ifndef TIDEGATE_CORE_FILES_LAYER_TEXT_H_
#define TIDEGATE_CORE_FILES_LAYER_TEXT_H_

#include <string>
#include <string_view>

#include "tidegate/safetensors.h"

namespace tidegate {

// The layer of this text, without name and dtype. `most_layers` bounds its num_layers, for all
// parameters of all of them are about to be listed. Throws std::invalid_argument that names the
// option.
LayerInfo parse_layer(std::string_view text, Index most_layers);

std::string layer_text(const LayerInfo& layer);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_FILES_LAYER_TEXT_H_
