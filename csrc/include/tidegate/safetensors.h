// Safetensors files: any, as named tensors; and those that hold layers, whose configuration stands
// in the metadata. Files are taken for hostile: whatever is wrong with one is a
// std::invalid_argument that names the file, the key and the reason, and nothing is allocated that
// the file is not itself large enough for. What the system refuses is a std::system_error that
// names the path.
//
// The format: 8 bytes, the length of the header (little-endian); the header, a JSON object of
// tensors; their data, each little-endian and row-major, one after the other without holes.
//
// Layers: `__metadata__` holds "tidegate.format": "1", and for each layer "tidegate.layer.NAME", or
// "tidegate.layer" for the one layer of a file that has no name. Its value is a JSON object again:
// "kind" ("LSTM", "GRU", "MGU", "Linear" or "Dropout"), and the options of Python's constructor
// that differ from their defaults. Its tensors are NAME.PARAMETER, or PARAMETER.
//
// Beside layers, such a file may hold arrays and texts under other names: "tidegate.array.NAME",
// whose value is empty, says that the tensor NAME is an array; "tidegate.text.NAME" has the text.
#ifndef TIDEGATE_SAFETENSORS_H_
#define TIDEGATE_SAFETENSORS_H_

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tidegate/config.h"
#include "tidegate/export.h"
#include "tidegate/linear.h"
#include "tidegate/model.h"

namespace tidegate {

// ---- Files of tensors ----

struct Tensor {
  std::string name;
  std::string dtype;  // as the format writes it: "F32", "BF16", "I64", ...
  std::vector<Index> shape;
  Index bytes = 0;
  Index offset = 0;  // of its first byte, from the beginning of the file
};

using Metadata = std::vector<std::pair<std::string, std::string>>;  // in the order of the file

// A header of more bytes is refused.
constexpr Index kMaxSafetensorsHeader = Index{8} << 20;

// A file, its header read and checked. Any number of threads may use it at once.
class TIDEGATE_EXPORT Safetensors {
 public:
  // Keeps the file open, and reads data as they are asked for.
  explicit Safetensors(const std::string& path);
  // A file in memory, which must stay there. `name` is for messages.
  Safetensors(const void* data, std::size_t size, std::string name = "memory");
  Safetensors(Safetensors&&) noexcept;
  Safetensors& operator=(Safetensors&&) noexcept;
  ~Safetensors();

  const std::string& name() const;  // the path
  const Metadata& metadata() const;
  const std::vector<Tensor>& tensors() const;           // in the order of their data
  const Tensor* find(const std::string& tensor) const;  // null: there is none
  // Copies a tensor's data out; `size` is that of the destination, and must be the tensor's.
  void read(const std::string& tensor, void* destination, std::size_t size) const;

  struct TIDEGATE_HIDDEN Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

// A tensor to be written: its name, dtype and shape (`bytes` and `offset` follow), and its data.
struct TensorData {
  Tensor tensor;
  const void* data = nullptr;
};

// Writes a file with the tensors in this order, completely or not at all: to a temporary file in
// the same folder, which is then renamed. Links are followed. A file that replaces another one gets
// its permissions, and its group if the system allows that.
TIDEGATE_EXPORT void write_safetensors(const std::string& path,
                                       const std::vector<TensorData>& tensors,
                                       const Metadata& metadata);

// ---- Files of layers ----

enum class LayerKind { recurrent, linear, dropout };

// What a file says of one layer.
struct LayerInfo {
  std::string name;  // empty: the only layer of the file
  LayerKind kind = LayerKind::recurrent;
  std::string dtype;  // of all its tensors: "F32" or "F64"; empty for a Dropout, which has none

  Config config;             // recurrent
  bool batch_first = false;  // recurrent: how Python lays out sequences; the core's are time-major
  double dropout = 0;        // recurrent: between layers, in training

  Index in_features = 0;   // Linear: weight (out_features, in_features), bias (out_features,)
  Index out_features = 0;  // Linear
  bool bias = true;        // Linear

  double p = 0.5;  // Dropout: the probability that an element is zeroed in training
};

struct Text {
  std::string name;
  std::string value;
};

// What a file of layers holds under one name: a layer, an array or a text.
using Entry = std::variant<LayerInfo, Tensor, Text>;

// The layer's class: "Linear", "Dropout", or that of its cell.
TIDEGATE_EXPORT const char* kind_name(const LayerInfo& layer);

// The parameters of a layer, in the order of its flat vector.
TIDEGATE_EXPORT std::vector<Parameter> parameters(const LayerInfo& layer);
// Elements of the flat vector.
TIDEGATE_EXPORT Index parameter_count(const LayerInfo& layer);

// All entries of a file of layers, in the order of its metadata. Refuses a file of which anything
// is not understood: a version, kind or option that is not known; tensors that are missing,
// surplus, or of another dtype or shape than the options say.
TIDEGATE_EXPORT std::vector<Entry> read_entries(const Safetensors& file);

// The layers among them.
TIDEGATE_EXPORT std::vector<LayerInfo> read_layers(const Safetensors& file);

// Copies the parameters of a layer of this file into its flat vector: as many elements as
// parameters() has, of the layer's dtype.
TIDEGATE_EXPORT void read_parameters(const Safetensors& file, const LayerInfo& layer, void* flat);

// The recurrent layer of this name; without one, the only recurrent one of the file. T must be its
// dtype.
template <class T>
TIDEGATE_EXPORT std::shared_ptr<Model<T>> load_model(const Safetensors& file,
                                                     const std::string& layer = "");

// The Linear of this name; without one, the only Linear of the file. T must be its dtype. Its
// weights are packed, so that not even the first run() of it allocates.
template <class T>
TIDEGATE_EXPORT std::shared_ptr<Linear<T>> load_linear(const Safetensors& file,
                                                       const std::string& layer = "");

struct EntryData {
  Entry entry;
  // A layer's parameters, as read_parameters() gives them; an array's elements, row-major.
  const void* data = nullptr;
};

// Writes entries with different names, or one layer without a name. Refuses what read_entries()
// would.
TIDEGATE_EXPORT void write_entries(const std::string& path, const std::vector<EntryData>& entries);

struct LayerData {
  LayerInfo info;
  const void* flat = nullptr;  // its parameters, as read_parameters() gives them
};

// Writes layers alone.
TIDEGATE_EXPORT void write_layers(const std::string& path, const std::vector<LayerData>& layers);

}  // namespace tidegate

#endif  // TIDEGATE_SAFETENSORS_H_
