// Files of layers: every tensor of such a file belongs to a layer or is an array.
#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "core/files/json.h"
#include "core/files/layer_tensors.h"
#include "core/files/layer_text.h"
#include "core/files/tensor_dtype.h"
#include "core/memory.h"
#include "tidegate/safetensors.h"

namespace tidegate {
namespace {

constexpr std::string_view kPrefix = "tidegate.";
constexpr std::string_view kFormat = "tidegate.format";
constexpr std::string_view kLayer = "tidegate.layer";
constexpr std::string_view kArray = "tidegate.array";
constexpr std::string_view kText = "tidegate.text";
constexpr std::string_view kVersion = "1";

bool begins_with(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

// The part before the last point: names of parameters contain no point.
std::string_view layer_of(std::string_view tensor) {
  const std::size_t point = tensor.rfind('.');
  return tensor.substr(0, point == std::string_view::npos ? 0 : point);
}

// "layer "NAME": ", or "layer: " for one without a name.
std::string where_layer(const LayerInfo& layer) {
  return layer.name.empty() ? "layer: " : "layer " + quoted_name(layer.name) + ": ";
}

// A list of names for a message, of which the first few are shown.
class Names {
 public:
  void add(const std::string& name) {
    constexpr int kMost = 8;
    if (++count_ <= kMost) text_ += (count_ > 1 ? ", " : "") + quoted_name(name);
    if (count_ == kMost + 1) text_ += ", ...";
  }
  bool empty() const { return count_ == 0; }
  const std::string& text() const { return text_; }

 private:
  int count_ = 0;
  std::string text_;
};

const std::string& name_of(const Entry& entry) {
  return std::visit([](const auto& value) -> const std::string& { return value.name; }, entry);
}

// The layer that this text of the metadata describes. `most_layers`: see parse_layer().
LayerInfo layer_of_metadata(const Safetensors& file, const std::string& where,
                            const std::string& text, Index most_layers) {
  try {
    return parse_layer(text, most_layers);
  } catch (const std::invalid_argument& error) {
    refuse(file, where + error.what());
  } catch (const std::length_error&) {
    refuse(file, where + "the sizes overflow");
  }
}

// The tensor of an array. The metadata give only its name, with an empty text.
Tensor array_of_metadata(const Safetensors& file, const std::string& where, const std::string& name,
                         const std::string& text) {
  if (!text.empty()) refuse(file, where + "got " + quoted_name(text) + ", wanted an empty text");
  const Tensor* const tensor = file.find(name);
  if (tensor == nullptr) refuse(file, "missing tensors " + quoted_name(name));
  return *tensor;
}

// The entries that the metadata describe, in their order. Tensors of layers are not checked yet.
std::vector<Entry> entries_of_metadata(const Safetensors& file) {
  std::map<std::string_view, Index> tensor_counts;
  for (const Tensor& tensor : file.tensors()) ++tensor_counts[layer_of(tensor.name)];
  std::vector<Entry> entries;
  std::set<std::string> names;
  bool has_format = false;
  for (const auto& [key, value] : file.metadata()) {
    if (!begins_with(key, kPrefix)) continue;
    const std::string where = "metadata " + quoted_name(key) + ": ";
    if (key == kFormat) {
      if (value != kVersion)
        refuse(file,
               where + "got " + quoted_name(value) + ", wanted \"" + std::string(kVersion) + "\"");
      has_format = true;
      continue;
    }
    const std::size_t point = key.find('.', kPrefix.size());
    const std::string what = key.substr(0, point);
    const std::string name = point == std::string::npos ? "" : key.substr(point + 1);
    const bool unnamed_layer = key == kLayer;
    const bool known = what == kLayer || what == kArray || what == kText;
    if (!known || (name.empty() && !unnamed_layer))
      refuse(file, where + "a key that this version does not know");
    if (what == kLayer) {
      const auto count = tensor_counts.find(name);
      const Index most_layers = count == tensor_counts.end() ? 1 : count->second;
      LayerInfo layer = layer_of_metadata(file, where, value, most_layers);
      layer.name = name;
      entries.emplace_back(std::move(layer));
    } else if (what == kArray) {
      entries.emplace_back(array_of_metadata(file, where, name, value));
    } else {
      entries.emplace_back(Text{name, value});
    }
    if (!names.insert(name).second) refuse(file, where + "another entry has this name");
  }
  if (!has_format)
    refuse(file, "\"" + std::string(kFormat) + "\" is missing in the metadata: no file of layers");
  if (entries.empty()) refuse(file, "the metadata name no layer");
  if (names.count("") > 0 && entries.size() > 1)
    refuse(file, "a layer without a name beside others");
  return entries;
}

// Checks that the layer's tensors have the shapes and dtypes that follow from its options, and sets
// the layer's dtype, which is that of its first tensor unless the layer is in low precision. Adds
// the names of all its tensors to `known`, and those that the file does not have to `missing`.
void check_tensors(const Safetensors& file, LayerInfo& layer, std::set<std::string>& known,
                   Names& missing) {
  if (is_low(layer.precision)) layer.dtype = "F32";
  std::vector<LayerTensor> all;
  try {
    all = tensors_of(layer);
  } catch (const std::length_error&) {
    refuse(file, "layer " + quoted_name(layer.name) + ": the sizes overflow");
  }
  for (const LayerTensor& layer_tensor : all) {
    const Tensor& wanted = layer_tensor.tensor;
    known.insert(wanted.name);
    const Tensor* const tensor = file.find(wanted.name);
    if (tensor == nullptr) {
      missing.add(wanted.name);
      continue;
    }
    const std::string where = "tensor " + quoted_name(wanted.name) + ": ";
    const auto require_dtype = [&](bool holds, const std::string& wanted_dtype) {
      if (!holds) refuse(file, where + "got dtype " + tensor->dtype + ", wanted " + wanted_dtype);
    };
    if (is_low(layer.precision)) {
      require_dtype(tensor->dtype == wanted.dtype, wanted.dtype + " in a layer of the precision " +
                                                       precision_name<float>(layer.precision));
    } else {
      require_dtype(tensor->dtype == "F32" || tensor->dtype == "F64", "F32 or F64");
      if (layer.dtype.empty()) layer.dtype = tensor->dtype;
      require_dtype(tensor->dtype == layer.dtype, layer.dtype + " as in the rest of its layer");
    }
    if (tensor->shape != wanted.shape) {
      refuse(file, where + "got shape " + size_list(tensor->shape) + ", wanted " +
                       size_list(wanted.shape) + " by the layer's options");
    }
  }
}

// Refuses parameters that are not in the layer's precision, or have values that no layer has.
void check_parameters(const LayerInfo& layer, const QuantizedParameters* quantized) {
  const Precision got = quantized ? quantized->precision : Precision::exact;
  if (got != layer.precision) {
    throw std::invalid_argument(std::string("parameters: got some in ") +
                                precision_name<float>(got) + ", wanted the layer's precision, " +
                                precision_name<float>(layer.precision));
  }
  if (quantized) check_quantized(parameters(layer), *quantized);
}

// Refuses a layer that a reader of the file would refuse.
void check_writable(const LayerInfo& layer, const QuantizedParameters* quantized) {
  const std::string where = where_layer(layer);
  try {
    // Options that its cell does not have must have their defaults.
    if (layer.kind == LayerKind::recurrent) layer.config.validate();
    parse_layer(layer_text(layer), layer.config.num_layers);
    if (!parameters(layer).empty()) check_dtype(layer);
    check_parameters(layer, quantized);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(where + error.what());
  } catch (const std::length_error&) {
    throw std::invalid_argument(where + "the sizes overflow");
  }
}

// Collects what is written for each entry: its line of the metadata, and its tensors with their
// data.
struct FileContents {
  Metadata& metadata;
  std::vector<TensorData>& tensors;

  void add(const LayerInfo& layer, const EntryData& data) {
    check_writable(layer, data.quantized);
    metadata.emplace_back(std::string(kLayer) + (layer.name.empty() ? "" : ".") + layer.name,
                          layer_text(layer));
    for (const LayerTensor& tensor : tensors_of(layer))
      tensors.push_back({tensor.tensor, data_of(tensor, data.data, data.quantized)});
  }
  void add(const Tensor& array, const EntryData& data) {
    metadata.emplace_back(std::string(kArray) + "." + array.name, "");
    tensors.push_back({array, data.data});
  }
  void add(const Text& text, const EntryData&) {
    metadata.emplace_back(std::string(kText) + "." + text.name, text.value);
  }
};

// Refuses an array that has the name of a layer's parameter.
void check_arrays_beside_layers(const std::vector<EntryData>& entries) {
  std::map<std::string, std::string> layer_names;  // by the name of a tensor
  for (const EntryData& data : entries) {
    const auto* const layer = std::get_if<LayerInfo>(&data.entry);
    if (layer == nullptr) continue;
    for (const LayerTensor& tensor : tensors_of(*layer))
      layer_names[tensor.tensor.name] = layer->name;
  }
  for (const EntryData& data : entries) {
    const auto* const array = std::get_if<Tensor>(&data.entry);
    if (array == nullptr) continue;
    const auto found = layer_names.find(array->name);
    if (found == layer_names.end()) continue;
    throw std::invalid_argument("entries: the name " + quoted_name(array->name) +
                                " of an array is also that of a parameter of the layer " +
                                quoted_name(found->second) + "; rename one of them");
  }
}

template <class T>
constexpr const char* kDtype = sizeof(T) == 4 ? "F32" : "F64";

// Refuses a layer from which no layer of T can be made in this precision.
template <class T>
void check_loadable(const Safetensors& file, const LayerInfo& layer,
                    std::optional<Precision> precision) {
  const auto refuse_layer = [&](const std::string& reason) {
    refuse(file, where_layer(layer) + reason);
  };
  if (is_low(precision) && std::is_same_v<T, double>) {
    refuse_layer(std::string("got the precision ") + precision_name<T>(*precision) +
                 " for a layer of double, wanted none; load it as a layer of float");
  }
  const std::string name = precision_name<float>(layer.precision);
  if (layer.dtype != kDtype<T>) {
    refuse_layer("got " + layer.dtype +
                 (is_low(layer.precision) ? " in the precision " + name : "") + ", wanted " +
                 kDtype<T> + (is_low(precision) ? "; convert it to F32 before it is saved" : ""));
  }
  if (precision && is_low(layer.precision) && !have_same_parameters(*precision, layer.precision)) {
    refuse_layer(
        "got a layer in " + name + ", wanted " + precision_name<T>(*precision) +
        "; load it without a precision, or save the layer of float32 from which it was made");
  }
}

// The layer of this name, or the only one if the name is empty, among the layers of this kind,
// which messages call `kinds`.
LayerInfo find_layer(const Safetensors& file, const std::string& name, LayerKind kind,
                     const std::string& kinds) {
  const std::vector<LayerInfo> layers = read_layers(file);
  std::vector<const LayerInfo*> found;
  Names names;
  for (const LayerInfo& candidate : layers) {
    if (candidate.kind != kind) continue;
    names.add(candidate.name);
    if (name.empty() || candidate.name == name) found.push_back(&candidate);
  }
  if (found.size() != 1) {
    refuse(file, (name.empty() ? "layer: wanted the name of one"
                               : "layer: got " + quoted_name(name) + ", wanted one") +
                     " of the " + kinds +
                     " of this file: " + (names.empty() ? "there is none" : names.text()));
  }
  return *found[0];
}

// Makes a Model or a Linear of T, whose constructor takes these options, with the parameters of
// `layer`. `precision`: see load_model().
template <class Made, class T, class... Options>
std::shared_ptr<Made> load(const Safetensors& file, const LayerInfo& layer,
                           std::optional<Precision> precision, const Options&... options) {
  check_loadable<T>(file, layer, precision);
  if (is_low(layer.precision)) {
    QuantizedParameters quantized = read_quantized(file, layer);
    if (precision) quantized.precision = *precision;
    return std::make_shared<Made>(options..., std::move(quantized));
  }
  std::vector<T> flat(static_cast<std::size_t>(parameter_count(layer)));
  read_parameters(file, layer, flat.data());
  if constexpr (std::is_same_v<T, float>) {
    if (is_low(precision)) {
      QuantizedParameters quantized;
      refuse_as_of(file,
                   [&] { quantized = quantize(named_layout(layer), flat.data(), *precision); });
      return std::make_shared<Made>(options..., std::move(quantized));
    }
  }
  auto made = std::make_shared<Made>(options...);
  made->write_parameters(0, flat.data(), made->parameter_count());
  return made;
}

}  // namespace

std::vector<Entry> read_entries(const Safetensors& file) {
  std::vector<Entry> entries = entries_of_metadata(file);
  Names missing, surplus;
  std::set<std::string> known;
  for (Entry& entry : entries) {
    if (auto* const layer = std::get_if<LayerInfo>(&entry))
      check_tensors(file, *layer, known, missing);
  }
  for (const Entry& entry : entries) {
    const auto* const array = std::get_if<Tensor>(&entry);
    if (array != nullptr && !known.insert(array->name).second)
      refuse(file,
             "tensor " + quoted_name(array->name) + ": an array that is a layer's parameter too");
  }
  for (const Tensor& tensor : file.tensors()) {
    if (known.count(tensor.name) == 0) surplus.add(tensor.name);
  }
  std::string problem;
  if (!missing.empty()) problem = "missing tensors " + missing.text();
  if (!surplus.empty())
    problem += (problem.empty() ? "" : "; ") + ("surplus tensors " + surplus.text());
  if (!problem.empty()) refuse(file, problem);
  return entries;
}

std::vector<LayerInfo> read_layers(const Safetensors& file) {
  std::vector<LayerInfo> layers;
  for (Entry& entry : read_entries(file)) {
    if (auto* const layer = std::get_if<LayerInfo>(&entry)) layers.push_back(std::move(*layer));
  }
  return layers;
}

template <class T>
std::shared_ptr<Model<T>> load_model(const Safetensors& file, const std::string& layer,
                                     std::optional<Precision> precision) {
  const LayerInfo info = find_layer(file, layer, LayerKind::recurrent, "recurrent layers");
  return load<Model<T>, T>(file, info, precision, info.config);
}

template <class T>
std::shared_ptr<Linear<T>> load_linear(const Safetensors& file, const std::string& layer,
                                       std::optional<Precision> precision) {
  const LayerInfo info = find_layer(file, layer, LayerKind::linear, "Linear layers");
  auto linear =
      load<Linear<T>, T>(file, info, precision, info.in_features, info.out_features, info.bias);
  linear->run(nullptr, 0, nullptr, 0, 0, 1);  // No rows: packs the weights.
  return linear;
}

void write_entries(const std::string& path, const std::vector<EntryData>& entries) {
  if (entries.empty()) throw std::invalid_argument("entries: got none, wanted at least one");
  Metadata metadata = {{std::string(kFormat), std::string(kVersion)}};
  std::vector<TensorData> tensors;
  FileContents contents{metadata, tensors};
  std::set<std::string> names;
  for (const EntryData& data : entries) {
    const std::string& name = name_of(data.entry);
    if (name.empty() && (entries.size() > 1 || !std::holds_alternative<LayerInfo>(data.entry)))
      throw std::invalid_argument("entries: got an empty name, wanted one for each");
    if (!names.insert(name).second)
      throw std::invalid_argument("entries: the name " + quoted_name(name) + " is given twice");
    std::visit([&](const auto& entry) { contents.add(entry, data); }, data.entry);
  }
  check_arrays_beside_layers(entries);
  // Tensors with large elements first, so that all data are aligned.
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorData& a, const TensorData& b) {
    return element_bits(a.tensor.dtype) > element_bits(b.tensor.dtype);
  });
  write_safetensors(path, tensors, metadata);
}

void write_layers(const std::string& path, const std::vector<LayerData>& layers) {
  std::vector<EntryData> entries;
  for (const LayerData& layer : layers)
    entries.push_back({layer.info, layer.flat, layer.quantized});
  write_entries(path, entries);
}

template std::shared_ptr<Model<float>> load_model(const Safetensors&, const std::string&,
                                                  std::optional<Precision>);
template std::shared_ptr<Model<double>> load_model(const Safetensors&, const std::string&,
                                                   std::optional<Precision>);
template std::shared_ptr<Linear<float>> load_linear(const Safetensors&, const std::string&,
                                                    std::optional<Precision>);
template std::shared_ptr<Linear<double>> load_linear(const Safetensors&, const std::string&,
                                                     std::optional<Precision>);

}  // namespace tidegate
