// Files of layers and of tensors: what is in them as Python's objects, and back. Paths are bytes,
// as os.fsencode gives them; what the system refuses is an OSError with the path.
#include "tidegate/safetensors.h"

#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "arrays.h"
#include "module.h"

namespace tidegate::bindings {
namespace {

// f() without the GIL.
template <class F>
auto on_disk(const std::string& path, const F& f) {
  try {
    const py::gil_scoped_release release;
    return f();
  } catch (const std::system_error& error) {
    const py::object filename = py::reinterpret_steal<py::object>(
        PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size())));
    errno = error.code().value();
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, filename.ptr());
    throw py::error_already_set();
  }
}

// For messages.
std::string as_text(const std::string& path) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(path.data(), static_cast<Py_ssize_t>(path.size()), "replace"));
}

Safetensors open(const std::string& path) {
  return on_disk(path, [&] { return Safetensors(path); });
}

py::dtype numpy_dtype(const LayerInfo& layer) {
  return layer.dtype == "F32" ? py::dtype::of<float>() : py::dtype::of<double>();
}

// (name, kind, options, flat): options are (config, batch_first, dropout) of a recurrent layer,
// (in_features, out_features, bias) of a Linear; flat has all its parameters.
py::list load_layers(const std::string& path) {
  const Safetensors file = open(path);
  py::list layers;
  for (const LayerInfo& layer : on_disk(path, [&] { return read_layers(file); })) {
    py::array flat(numpy_dtype(layer), parameter_count(layer));
    void* const data = flat.mutable_data();
    on_disk(path, [&] { read_parameters(file, layer, data); });
    py::tuple options = py::make_tuple(layer.config, layer.batch_first, layer.dropout);
    if (layer.kind == LayerKind::linear)
      options = py::make_tuple(layer.in_features, layer.out_features, layer.bias);
    layers.append(py::make_tuple(layer.name, kind_name(layer.kind), options, flat));
  }
  return layers;
}

void save_layers(const std::string& path, const py::list& entries) {
  std::vector<LayerData> layers;
  for (const py::handle entry : entries) {
    const auto [name, kind, options, flat] =
        entry.cast<std::tuple<std::string, std::string, py::tuple, py::array>>();
    LayerData layer;
    layer.info.name = name;
    layer.info.dtype = flat.dtype().equal(py::dtype::of<float>()) ? "F32" : "F64";
    if (kind == kind_name(LayerKind::linear)) {
      layer.info.kind = LayerKind::linear;
      layer.info.in_features = options[0].cast<Index>();
      layer.info.out_features = options[1].cast<Index>();
      layer.info.bias = options[2].cast<bool>();
    } else {
      layer.info.config = options[0].cast<Config>();
      layer.info.batch_first = options[1].cast<bool>();
      layer.info.dropout = options[2].cast<double>();
      layer.info.kind = layer.info.config.cell == CellKind::lstm ? LayerKind::lstm : LayerKind::gru;
    }
    if (!flat.dtype().equal(numpy_dtype(layer.info)) || flat.ndim() != 1 ||
        flat.size() != parameter_count(layer.info) || (flat.flags() & py::array::c_style) == 0) {
      throw std::invalid_argument("flat: wanted a contiguous vector of the layer's parameters");
    }
    layer.flat = flat.data();
    layers.push_back(std::move(layer));
  }
  on_disk(path, [&] { write_layers(path, layers); });
}

// NumPy's names of the dtypes that it has.
constexpr std::pair<const char*, const char*> kNumpyDtypes[] = {
    {"BOOL", "bool"},    {"U8", "uint8"},    {"I8", "int8"},     {"U16", "uint16"},
    {"I16", "int16"},    {"U32", "uint32"},  {"I32", "int32"},   {"U64", "uint64"},
    {"I64", "int64"},    {"F16", "float16"}, {"F32", "float32"}, {"F64", "float64"},
    {"C64", "complex64"}};

// Python's Safetensors.
class TensorFile {
 public:
  explicit TensorFile(const std::string& path) : file_(open(path)) {}

  py::dict metadata() const;
  py::dict tensors() const;
  py::array read(const std::string& name) const;
  py::array read_bytes(const std::string& name) const;

 private:
  const Tensor& find(const std::string& name) const;
  py::array copied(const Tensor& tensor, const char* dtype, const std::vector<Index>& shape) const;

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

// A copy of one tensor. KeyError without it; TypeError if NumPy has no such dtype.
py::array TensorFile::read(const std::string& name) const {
  constexpr std::size_t kMostAxes = 32;  // of an array of NumPy 1
  const Tensor& tensor = find(name);
  if (tensor.shape.size() > kMostAxes) {
    throw py::value_error(as_text(file_.name()) + ": tensor \"" + name + "\": got " +
                          std::to_string(tensor.shape.size()) + " axes, wanted at most " +
                          std::to_string(kMostAxes));
  }
  for (const auto& [dtype, numpy_name] : kNumpyDtypes) {
    if (tensor.dtype == dtype) return copied(tensor, numpy_name, tensor.shape);
  }
  throw py::type_error(name + ": got " + tensor.dtype + ", wanted a dtype that NumPy has");
}

// The same as bytes, whatever the dtype.
py::array TensorFile::read_bytes(const std::string& name) const {
  const Tensor& tensor = find(name);
  return copied(tensor, "uint8", {tensor.bytes});
}

}  // namespace

void bind_safetensors(py::module_& m) {
  py::class_<TensorFile>(m, "Safetensors")
      .def(py::init<const std::string&>())
      .def_property_readonly("metadata", &TensorFile::metadata)
      .def_property_readonly("tensors", &TensorFile::tensors)
      .def("read", &TensorFile::read)
      .def("read_bytes", &TensorFile::read_bytes);
  m.def("load_layers", &load_layers);
  m.def("save_layers", &save_layers);
}

}  // namespace tidegate::bindings
