// Files of layers and of tensors, read into Python objects and written from them. Paths are bytes,
// as from os.fsencode; an error of the operating system is raised as an OSError with the path.
#include "tidegate/safetensors.h"

#include <pybind11/stl.h>

#include <list>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "arrays.h"
#include "gil.h"
#include "module.h"
#include "precision.h"

namespace tidegate::bindings {
namespace {

// Returns f(), which accesses the file, run without the GIL; Ctrl-C ends it. Raises OSError for a
// std::system_error.
template <class F>
auto on_disk(const std::string& path, const F& f) {
  try {
    return release_gil(true, f);
  } catch (const std::system_error& error) {
    const py::object filename = py::reinterpret_steal<py::object>(
        PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size())));
    errno = error.code().value();
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, filename.ptr());
    throw py::error_already_set();
  }
}

// A path as text, for messages.
std::string as_text(const std::string& path) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(path.data(), static_cast<Py_ssize_t>(path.size()), "replace"));
}

Safetensors open(const std::string& path) {
  return on_disk(path, [&] { return Safetensors(path); });
}

constexpr int kMaxAxes = 32;  // the limit of NumPy 1

// The format's and NumPy's names of the dtypes that NumPy has.
constexpr std::pair<const char*, const char*> kNumpyDtypes[] = {
    {"BOOL", "bool"},    {"U8", "uint8"},    {"I8", "int8"},     {"U16", "uint16"},
    {"I16", "int16"},    {"U32", "uint32"},  {"I32", "int32"},   {"U64", "uint64"},
    {"I64", "int64"},    {"F16", "float16"}, {"F32", "float32"}, {"F64", "float64"},
    {"C64", "complex64"}};

py::dtype numpy_dtype(const LayerInfo& layer) {
  return layer.dtype == "F32" ? py::dtype::of<float>() : py::dtype::of<double>();
}

// An entry in Python is a tuple (name, kind, options, data). For a layer, `kind` is its class, and
// `data` is the flat vector of its parameters, or a dict of those in low precision (precision.h),
// or None for a Dropout; `options` is (config, batch_first, dropout) for a recurrent layer,
// (in_features, out_features, bias) for a Linear, and (p,) for a Dropout. The kinds "array" and
// "text" have no options.
constexpr const char* kArray = "array";
constexpr const char* kText = "text";

py::tuple options_of(const LayerInfo& layer) {
  switch (layer.kind) {
    case LayerKind::linear:
      return py::make_tuple(layer.in_features, layer.out_features, layer.bias);
    case LayerKind::dropout:
      return py::make_tuple(layer.p);
    default:
      return py::make_tuple(layer.config, layer.batch_first, layer.dropout);
  }
}

// Without dtype and precision.
LayerInfo layer_of(const std::string& name, const std::string& kind, const py::tuple& options) {
  LayerInfo layer;
  layer.name = name;
  if (kind == "Dropout") {
    layer.kind = LayerKind::dropout;
    layer.p = options[0].cast<double>();
    return layer;
  }
  if (kind == "Linear") {
    layer.kind = LayerKind::linear;
    layer.in_features = options[0].cast<Index>();
    layer.out_features = options[1].cast<Index>();
    layer.bias = options[2].cast<bool>();
  } else {
    layer.config = options[0].cast<Config>();
    layer.batch_first = options[1].cast<bool>();
    layer.dropout = options[2].cast<double>();
  }
  return layer;
}

// The layer with its parameters. Those in low precision are appended to `quantized`, which must
// outlive the result.
EntryData layer_data(LayerInfo layer, const py::object& data,
                     std::list<QuantizedParameters>& quantized) {
  if (data.is_none()) return {layer};
  if (py::isinstance<py::dict>(data)) {
    quantized.push_back(read_quantized(data.cast<py::dict>()));
    layer.dtype = "F32";
    layer.precision = quantized.back().precision;
    return {layer, nullptr, &quantized.back()};
  }
  const auto flat = data.cast<py::array>();
  layer.dtype = flat.dtype().equal(py::dtype::of<float>()) ? "F32" : "F64";
  if (!flat.dtype().equal(numpy_dtype(layer)) || flat.ndim() != 1 ||
      flat.size() != parameter_count(layer) || (flat.flags() & py::array::c_style) == 0) {
    throw std::invalid_argument("flat: wanted a contiguous vector of the layer's parameters");
  }
  return {layer, flat.data()};
}

Tensor tensor_of(const std::string& name, const py::array& array) {
  const std::string where = "layers[" + std::string(py::repr(py::str(name))) + "]: ";
  Tensor tensor;
  tensor.name = name;
  for (const auto& [dtype, numpy_name] : kNumpyDtypes) {
    if (array.dtype().equal(py::dtype(numpy_name))) tensor.dtype = dtype;
  }
  if (tensor.dtype.empty()) {
    throw py::type_error(where + "got dtype " + std::string(py::str(array.dtype())) +
                         ", wanted bool, an integer, float16, float32, float64 or complex64");
  }
  if ((array.flags() & py::array::c_style) == 0)
    throw std::invalid_argument(where + "wanted a contiguous array");
  if (array.ndim() > kMaxAxes) {
    throw std::invalid_argument(where + "got " + std::to_string(array.ndim()) +
                                " axes, wanted at most " + std::to_string(kMaxAxes));
  }
  tensor.shape.assign(array.shape(), array.shape() + array.ndim());
  return tensor;
}

void save_entries(const std::string& path, const py::list& given) {
  std::vector<EntryData> entries;
  std::list<QuantizedParameters> quantized;
  for (const py::handle entry : given) {
    const auto [name, kind, options, data] =
        entry.cast<std::tuple<std::string, std::string, py::tuple, py::object>>();
    if (kind == kText) {
      entries.push_back({Text{name, data.cast<std::string>()}});
    } else if (kind == kArray) {
      const auto array = data.cast<py::array>();
      entries.push_back({tensor_of(name, array), array.data()});
    } else {
      entries.push_back(layer_data(layer_of(name, kind, options), data, quantized));
    }
  }
  on_disk(path, [&] { write_entries(path, entries); });
}

// The class that Python sees as Safetensors.
class TensorFile {
 public:
  explicit TensorFile(const std::string& path) : file_(open(path)) {}

  py::dict metadata() const;
  py::dict tensors() const;
  py::list entries() const;
  py::array read(const std::string& name) const;
  py::array read_bytes(const std::string& name) const;

 private:
  const Tensor& find(const std::string& name) const;
  py::array copied(const Tensor& tensor, const char* dtype, const std::vector<Index>& shape) const;
  py::tuple as_python(const LayerInfo& layer) const;
  py::tuple as_python(const Tensor& array) const;
  py::tuple as_python(const Text& text) const;

  Safetensors file_;
};

py::dict TensorFile::metadata() const {
  py::dict metadata;
  for (const auto& [key, value] : file_.metadata()) metadata[py::str(key)] = value;
  return metadata;
}

// Names -> (dtype, shape).
py::dict TensorFile::tensors() const {
  py::dict tensors;
  for (const Tensor& tensor : file_.tensors())
    tensors[py::str(tensor.name)] = py::make_tuple(tensor.dtype, py::tuple(py::cast(tensor.shape)));
  return tensors;
}

const Tensor& TensorFile::find(const std::string& name) const {
  const Tensor* const tensor = file_.find(name);
  if (tensor == nullptr) throw py::key_error(name);
  return *tensor;
}

py::array TensorFile::copied(const Tensor& tensor, const char* dtype,
                             const std::vector<Index>& shape) const {
  py::array array(py::dtype(dtype), shape);
  void* const data = array.mutable_data();
  on_disk(file_.name(),
          [&] { file_.read(tensor.name, data, static_cast<std::size_t>(tensor.bytes)); });
  return array;
}

// A copy of a tensor. KeyError if there is none of this name; TypeError if NumPy lacks its dtype.
py::array TensorFile::read(const std::string& name) const {
  const Tensor& tensor = find(name);
  if (tensor.shape.size() > std::size_t{kMaxAxes}) {
    throw py::value_error(as_text(file_.name()) + ": tensor \"" + name + "\": got " +
                          std::to_string(tensor.shape.size()) + " axes, wanted at most " +
                          std::to_string(kMaxAxes));
  }
  for (const auto& [dtype, numpy_name] : kNumpyDtypes) {
    if (tensor.dtype == dtype) return copied(tensor, numpy_name, tensor.shape);
  }
  throw py::type_error(name + ": got " + tensor.dtype + ", wanted a dtype that NumPy has");
}

// A copy of a tensor's bytes, for any dtype.
py::array TensorFile::read_bytes(const std::string& name) const {
  const Tensor& tensor = find(name);
  return copied(tensor, "uint8", {tensor.bytes});
}

py::tuple TensorFile::as_python(const LayerInfo& layer) const {
  py::object data = py::none();
  if (layer.precision != Precision::exact) {
    const auto read = [&] { return tidegate::read_quantized(file_, layer); };
    data = quantized_dict(on_disk(file_.name(), read));
  } else if (const Index count = parameter_count(layer); count > 0) {
    py::array flat(numpy_dtype(layer), count);
    void* const values = flat.mutable_data();
    on_disk(file_.name(), [&] { read_parameters(file_, layer, values); });
    data = flat;
  }
  return py::make_tuple(layer.name, kind_name(layer), options_of(layer), data);
}

py::tuple TensorFile::as_python(const Tensor& array) const {
  return py::make_tuple(array.name, kArray, py::tuple(), read(array.name));
}

py::tuple TensorFile::as_python(const Text& text) const {
  return py::make_tuple(text.name, kText, py::tuple(), text.value);
}

// The entries that tidegate.save has written, in its order.
py::list TensorFile::entries() const {
  py::list entries;
  for (const Entry& entry : on_disk(file_.name(), [&] { return read_entries(file_); }))
    entries.append(std::visit([&](const auto& value) { return as_python(value); }, entry));
  return entries;
}

}  // namespace

void bind_safetensors(py::module_& m) {
  bind_class<TensorFile>(m, "Safetensors")
      .def(py::init<const std::string&>())
      .def_property_readonly("metadata", &TensorFile::metadata)
      .def_property_readonly("tensors", &TensorFile::tensors)
      .def("read", &TensorFile::read)
      .def("read_bytes", &TensorFile::read_bytes)
      .def("entries", &TensorFile::entries);
  m.def("save_entries", &save_entries);
}

}  // namespace tidegate::bindings
