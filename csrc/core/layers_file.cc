// Files of layers: which tensors belong to which layer, all of them, and nothing else.
#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/layer_text.h"
#include "core/memory.h"
#include "tidegate/safetensors.h"

namespace tidegate {
namespace {

constexpr std::string_view kOurs = "tidegate.";
constexpr std::string_view kFormat = "tidegate.format";
constexpr std::string_view kLayer = "tidegate.layer";
constexpr std::string_view kVersion = "1";

bool begins_with(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

[[noreturn]] void fail(const Safetensors& file, const std::string& reason) {
  throw std::invalid_argument(as_utf8(file.name()) + ": " + reason);
}

std::string tensor_name(const LayerInfo& layer, const std::string& parameter) {
  return layer.name.empty() ? parameter : layer.name + "." + parameter;
}

// What stands before the last point: parameters' names have none.
std::string_view layer_of(std::string_view tensor) {
  const std::size_t point = tensor.rfind('.');
  return tensor.substr(0, point == std::string_view::npos ? 0 : point);
}

std::vector<Index> shape_of(const Parameter& parameter) {
  if (parameter.columns == 0) return {parameter.rows};
  return {parameter.rows, parameter.columns};
}

// Names for a message: not more of them than one can read.
class Names {
 public:
  void add(const std::string& name) {
    constexpr int kMost = 8;
    if (++count_ <= kMost) text_ += (count_ > 1 ? ", " : "") + shown(name);
    if (count_ == kMost + 1) text_ += ", ...";
  }
  bool empty() const { return count_ == 0; }
  const std::string& text() const { return text_; }

 private:
  int count_ = 0;
  std::string text_;
};

// The layers that the metadata tell of, their options read, in order.
std::vector<LayerInfo> described_layers(const Safetensors& file) {
  std::map<std::string_view, Index> tensor_counts;
  for (const Tensor& tensor : file.tensors()) ++tensor_counts[layer_of(tensor.name)];
  std::vector<LayerInfo> layers;
  bool has_format = false;
  for (const auto& [key, value] : file.metadata()) {
    if (!begins_with(key, kOurs)) continue;
    const std::string where = "metadata " + shown(key) + ": ";
    if (key == kFormat) {
      if (value != kVersion)
        fail(file, where + "got " + shown(value) + ", wanted \"" + std::string(kVersion) + "\"");
      has_format = true;
      continue;
    }
    const bool unnamed = key == kLayer;
    const std::string name = unnamed ? "" : key.substr(std::min(key.size(), kLayer.size() + 1));
    if (!unnamed && (!begins_with(key, std::string(kLayer) + ".") || name.empty()))
      fail(file, where + "a key that this version does not know");
    const auto count = tensor_counts.find(name);
    const Index most_layers = count == tensor_counts.end() ? 1 : count->second;
    try {
      layers.push_back(parse_layer(value, most_layers));
    } catch (const std::invalid_argument& error) {
      fail(file, where + error.what());
    } catch (const std::length_error&) {
      fail(file, where + "the sizes overflow");
    }
    layers.back().name = name;
  }
  if (!has_format)
    fail(file, "\"" + std::string(kFormat) + "\" is missing in the metadata: no file of layers");
  if (layers.empty()) fail(file, "the metadata name no layer");
  for (const LayerInfo& layer : layers) {
    if (layer.name.empty() && layers.size() > 1) fail(file, "a layer without a name beside others");
  }
  return layers;
}

// The layer's tensors have the shapes that its options say, and are of one dtype, which it takes.
// Adds the names of all to `known`, and of those that are not there to `missing`.
void check_tensors(const Safetensors& file, LayerInfo& layer, std::set<std::string>& known,
                   Names& missing) {
  std::vector<Parameter> wanted;
  try {
    wanted = parameters(layer);
  } catch (const std::length_error&) {
    fail(file, "layer " + shown(layer.name) + ": the sizes overflow");
  }
  for (const Parameter& parameter : wanted) {
    const std::string name = tensor_name(layer, parameter.name);
    known.insert(name);
    const Tensor* const tensor = file.find(name);
    if (tensor == nullptr) {
      missing.add(name);
      continue;
    }
    const std::string where = "tensor " + shown(name) + ": ";
    if (tensor->dtype != "F32" && tensor->dtype != "F64")
      fail(file, where + "got dtype " + tensor->dtype + ", wanted F32 or F64");
    if (layer.dtype.empty()) layer.dtype = tensor->dtype;
    if (tensor->dtype != layer.dtype) {
      fail(file, where + "got dtype " + tensor->dtype + ", wanted " + layer.dtype +
                     " as in the rest of its layer");
    }
    if (tensor->shape != shape_of(parameter)) {
      fail(file, where + "got shape " + shown(tensor->shape) + ", wanted " +
                     shown(shape_of(parameter)) + " by the layer's options");
    }
  }
}

Index element_size(const LayerInfo& layer) {
  if (layer.dtype == "F32") return 4;
  if (layer.dtype == "F64") return 8;
  throw std::invalid_argument("dtype: got " + shown(layer.dtype) + ", wanted F32 or F64");
}

// The layer is one that would be read again as it is.
void check_writable(const LayerInfo& layer) {
  const std::string who = layer.name.empty() ? "layer: " : "layer " + shown(layer.name) + ": ";
  try {
    if (layer.kind != LayerKind::linear) {
      const bool is_gru = layer.config.cell == CellKind::gru;
      if ((layer.kind == LayerKind::gru) != is_gru) {
        throw std::invalid_argument(std::string("kind: got ") + kind_name(layer.kind) +
                                    " with the config of the other cell");
      }
      // What this kind has no option for must be as without.
      layer.config.validate();
    }
    parse_layer(layer_text(layer), layer.config.num_layers);
    element_size(layer);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(who + error.what());
  } catch (const std::length_error&) {
    throw std::invalid_argument(who + "the sizes overflow");
  }
}

template <class T>
constexpr const char* kDtype = sizeof(T) == 4 ? "F32" : "F64";

}  // namespace

std::vector<LayerInfo> read_layers(const Safetensors& file) {
  std::vector<LayerInfo> layers = described_layers(file);
  Names missing, surplus;
  std::set<std::string> known;
  for (LayerInfo& layer : layers) check_tensors(file, layer, known, missing);
  for (const Tensor& tensor : file.tensors()) {
    if (known.count(tensor.name) == 0) surplus.add(tensor.name);
  }
  std::string problem;
  if (!missing.empty()) problem = "missing tensors " + missing.text();
  if (!surplus.empty())
    problem += (problem.empty() ? "" : "; ") + ("surplus tensors " + surplus.text());
  if (!problem.empty()) fail(file, problem);
  return layers;
}

void read_parameters(const Safetensors& file, const LayerInfo& layer, void* flat) {
  const Index size = element_size(layer);
  for (const Parameter& parameter : parameters(layer)) {
    file.read(tensor_name(layer, parameter.name),
              static_cast<std::byte*>(flat) + parameter.offset * size,
              static_cast<std::size_t>(parameter.size() * size));
  }
}

template <class T>
std::shared_ptr<Model<T>> load_model(const Safetensors& file, const std::string& layer) {
  const std::vector<LayerInfo> layers = read_layers(file);
  std::vector<const LayerInfo*> found;
  Names names;
  for (const LayerInfo& candidate : layers) {
    if (candidate.kind == LayerKind::linear) continue;
    names.add(candidate.name);
    if (layer.empty() || candidate.name == layer) found.push_back(&candidate);
  }
  if (found.size() != 1) {
    fail(file, (layer.empty() ? "layer: wanted the name of one"
                              : "layer: got " + shown(layer) + ", wanted one") +
                   " of the LSTMs and GRUs of this file: " +
                   (names.empty() ? "there is none" : names.text()));
  }
  if (found[0]->dtype != kDtype<T>) {
    fail(file,
         "layer " + shown(found[0]->name) + ": got " + found[0]->dtype + ", wanted " + kDtype<T>);
  }
  auto model = std::make_shared<Model<T>>(found[0]->config);
  std::vector<T> flat(static_cast<std::size_t>(model->parameter_count()));
  read_parameters(file, *found[0], flat.data());
  model->write_parameters(0, flat.data(), model->parameter_count());
  return model;
}

void write_layers(const std::string& path, const std::vector<LayerData>& layers) {
  if (layers.empty()) throw std::invalid_argument("layers: got none, wanted at least one");
  Metadata metadata = {{std::string(kFormat), std::string(kVersion)}};
  std::vector<TensorData> tensors;
  for (const LayerData& layer : layers) {
    if (layer.info.name.empty() && layers.size() > 1)
      throw std::invalid_argument("layers: got an empty name, wanted one for each layer");
    check_writable(layer.info);
    metadata.emplace_back(
        std::string(kLayer) + (layer.info.name.empty() ? "" : ".") + layer.info.name,
        layer_text(layer.info));
  }
  // Large elements first, so that all are aligned.
  for (const char* dtype : {"F64", "F32"}) {
    for (const LayerData& layer : layers) {
      const Index size = element_size(layer.info);
      if (layer.info.dtype != dtype) continue;
      for (const Parameter& parameter : parameters(layer.info)) {
        Tensor tensor;
        tensor.name = tensor_name(layer.info, parameter.name);
        tensor.dtype = dtype;
        tensor.shape = shape_of(parameter);
        tensors.push_back(
            {tensor, static_cast<const std::byte*>(layer.flat) + parameter.offset * size});
      }
    }
  }
  write_safetensors(path, tensors, metadata);
}

template std::shared_ptr<Model<float>> load_model(const Safetensors&, const std::string&);
template std::shared_ptr<Model<double>> load_model(const Safetensors&, const std::string&);

}  // namespace tidegate
