// Safetensors files: any file as named tensors, and files of layers, whose configuration is in the
// metadata. Files are not trusted: any defect throws a std::invalid_argument that names the file,
// the key and the reason, and no allocation exceeds the size of the file, except where a function
// says so. An error of the operating system throws a std::system_error that names the path.
//
// The format: 8 bytes, the length of the header (little-endian); the header, a JSON object of
// tensors; their data, each little-endian and row-major, one after the other without holes.
//
// Layers: `__metadata__` contains "tidegate.format": "1", and for each layer "tidegate.layer.NAME";
// the single layer of a file may instead have no name, as "tidegate.layer". The value is again a
// JSON object: "kind" ("LSTM", "GRU", "MGU", "Linear" or "Dropout"), and the options of Python's
// constructor that differ from their defaults. The layer's tensors are NAME.PARAMETER, or
// PARAMETER, all of F32 or all of F64.
//
// A layer in low precision (precision.h) also has the option "precision", which is "bfloat16",
// "bfloat16-dot" or "int8". Its matrices (the parameters with two axes) are then of BF16 or I8; in
// "int8" each of them has a tensor NAME.PARAMETER_scale, the scales of its rows, (rows,) of F32.
// Its vectors are of F32.
//
// Besides layers, such a file may contain arrays and texts under other names:
// "tidegate.array.NAME", whose value is empty, declares the tensor NAME as an array; the value of
// "tidegate.text.NAME" is a text.
#ifndef TIDEGATE_SAFETENSORS_H_
#define TIDEGATE_SAFETENSORS_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tidegate/config.h"
#include "tidegate/export.h"
#include "tidegate/linear.h"
#include "tidegate/model.h"
#include "tidegate/precision.h"

namespace tidegate {

// ---- Files of tensors ----

struct Tensor {
  std::string name;
  std::string dtype;  // as the format writes it: "F32", "BF16", "I64", ...
  std::vector<Index> shape;
  Index bytes = 0;
  Index offset = 0;  // position of its first byte in the file
};

using Metadata = std::vector<std::pair<std::string, std::string>>;  // in the order of the file

// The greatest accepted size of a header, in bytes.
constexpr Index kMaxSafetensorsHeader = Index{8} << 20;

// A file whose header has been read and checked. Any number of threads may use it concurrently.
class TIDEGATE_EXPORT Safetensors {
 public:
  // Keeps the file open, and reads data on request.
  explicit Safetensors(const std::string& path);
  // A file in memory, which must outlive this object. `name` is for messages.
  Safetensors(const void* data, std::size_t size, std::string name = "memory");
  Safetensors(Safetensors&&) noexcept;
  Safetensors& operator=(Safetensors&&) noexcept;
  ~Safetensors();

  const std::string& name() const;  // the path
  const Metadata& metadata() const;
  const std::vector<Tensor>& tensors() const;           // in the order of their data
  const Tensor* find(const std::string& tensor) const;  // null if there is no such tensor
  // Copies a tensor's data to `destination`, whose size must be the tensor's.
  void read(const std::string& tensor, void* destination, std::size_t size) const;

  struct TIDEGATE_HIDDEN Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

// A tensor to write: its name, dtype and shape (`bytes` and `offset` are ignored), and its data.
struct TensorData {
  Tensor tensor;
  const void* data = nullptr;
};

// Writes a file with the tensors in this order, completely or not at all: it writes a temporary
// file in the same folder and renames it. Links are followed. A file that replaces another one gets
// that file's permissions, and its group if the system allows it.
TIDEGATE_EXPORT void write_safetensors(const std::string& path,
                                       const std::vector<TensorData>& tensors,
                                       const Metadata& metadata);

// ---- Files of layers ----

enum class LayerKind { recurrent, linear, dropout };

// The description of a layer in a file.
struct LayerInfo {
  std::string name;  // empty: the only layer of the file
  LayerKind kind = LayerKind::recurrent;
  // "F32" or "F64", for all its tensors; in low precision "F32"; empty for a Dropout, which has
  // none.
  std::string dtype;

  Config config;             // recurrent
  bool batch_first = false;  // recurrent: Python's layout of sequences; the core's is time-major
  double dropout = 0;        // recurrent: between layers, in training

  Index in_features = 0;   // Linear: weight (out_features, in_features), bias (out_features,)
  Index out_features = 0;  // Linear
  bool bias = true;        // Linear

  double p = 0.5;  // Dropout: the probability that an element is zeroed in training

  Precision precision = Precision::exact;  // recurrent, Linear
};

struct Text {
  std::string name;
  std::string value;
};

// An entry of a file of layers, with a name: a layer, an array or a text.
using Entry = std::variant<LayerInfo, Tensor, Text>;

// The name of the layer's class: "Linear", "Dropout", or that of its cell.
TIDEGATE_EXPORT const char* kind_name(const LayerInfo& layer);

// The parameters of a layer, in the order of its flat vector.
TIDEGATE_EXPORT std::vector<Parameter> parameters(const LayerInfo& layer);
// The number of elements of the flat vector.
TIDEGATE_EXPORT Index parameter_count(const LayerInfo& layer);

// All entries of a file of layers, in the order of its metadata. Refuses a file with an unknown
// version, kind or option, or with tensors that are missing, surplus, or of a dtype or shape other
// than the options require.
TIDEGATE_EXPORT std::vector<Entry> read_entries(const Safetensors& file);

// The layers among the entries.
TIDEGATE_EXPORT std::vector<LayerInfo> read_layers(const Safetensors& file);

// Copies the parameters of a layer of this file to a flat vector of parameter_count() elements of
// the layer's dtype. Those in low precision are dequantised, so the vector may be larger than the
// file.
TIDEGATE_EXPORT void read_parameters(const Safetensors& file, const LayerInfo& layer, void* flat);

// The parameters of a layer in low precision, as the file has them. Refuses a layer in exact
// precision, and values that check_quantized() refuses.
TIDEGATE_EXPORT QuantizedParameters read_quantized(const Safetensors& file, const LayerInfo& layer);

// The recurrent layer named `layer`; if that is empty, the only recurrent layer of the file. T must
// be its dtype.
//
// Without `precision`, the model has the precision of the file's layer. Otherwise it has this
// precision: a layer of F32 is quantised as by quantize(); one in another low precision is refused.
template <class T>
TIDEGATE_EXPORT std::shared_ptr<Model<T>> load_model(
    const Safetensors& file, const std::string& layer = "",
    std::optional<Precision> precision = std::nullopt);

// The Linear named `layer`; if that is empty, the only Linear of the file. T must be its dtype;
// `precision` is as in load_model(). Its weights are already packed, so that even the first run()
// does not allocate, except in low precision; packing takes memory for all of them in T.
template <class T>
TIDEGATE_EXPORT std::shared_ptr<Linear<T>> load_linear(
    const Safetensors& file, const std::string& layer = "",
    std::optional<Precision> precision = std::nullopt);

struct EntryData {
  Entry entry;
  // A layer's parameters, as read_parameters() gives them; an array's elements, row-major.
  const void* data = nullptr;
  // Instead of `data`, the parameters of a layer in low precision.
  const QuantizedParameters* quantized = nullptr;
};

// Writes entries with distinct names, or one layer without a name. Refuses entries that
// read_entries() would refuse.
TIDEGATE_EXPORT void write_entries(const std::string& path, const std::vector<EntryData>& entries);

struct LayerData {
  LayerInfo info;
  const void* flat = nullptr;  // its parameters, as read_parameters() gives them
  const QuantizedParameters* quantized = nullptr;  // instead of `flat`, those in low precision
};

// Writes a file of layers only.
TIDEGATE_EXPORT void write_layers(const std::string& path, const std::vector<LayerData>& layers);

}  // namespace tidegate

#endif  // TIDEGATE_SAFETENSORS_H_
