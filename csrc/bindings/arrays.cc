// Checks of NumPy arrays, and views of them. No layers, no call into the core.
#include "arrays.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <utility>
#include <vector>

namespace tidegate::bindings {
namespace {

template <class T>
constexpr const char* dtype_name() {
  return sizeof(T) == 4 ? "float32" : "float64";
}

// NumPy uses one descriptor object per native dtype, so that nearly every check is one comparison
// of pointers.
template <class T>
const py::dtype& native_dtype() {
  static const py::dtype* dtype = new py::dtype(py::dtype::of<T>());
  return *dtype;
}

// Whether the core's views can express the array: their strides are in elements, and the last is 1.
template <class T>
bool viewable(const py::array& array) {
  if (array.size() == 0) return true;
  if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) != 0) return false;
  const int last = static_cast<int>(array.ndim()) - 1;
  for (int axis = 0; axis <= last; ++axis) {
    if (array.shape(axis) == 1) continue;  // its stride is never used
    if (array.strides(axis) % static_cast<py::ssize_t>(sizeof(T)) != 0) return false;
    if (axis == last && array.strides(axis) != static_cast<py::ssize_t>(sizeof(T))) return false;
  }
  return true;
}

// The lowest address of an array, and the first address beyond it.
std::pair<std::uintptr_t, std::uintptr_t> bounds(const py::array& array) {
  std::uintptr_t low = reinterpret_cast<std::uintptr_t>(array.data());
  std::uintptr_t high = low + static_cast<std::uintptr_t>(array.itemsize());
  for (int axis = 0; axis < array.ndim(); ++axis) {
    const py::ssize_t extent = (array.shape(axis) - 1) * array.strides(axis);
    (extent < 0 ? low : high) += static_cast<std::uintptr_t>(extent);
  }
  return {low, high};
}

// False only if elements cannot overlap: if, with axes sorted by stride, the stride of each axis
// exceeds the extent of the axes before it. True without overlap for interleaved strides alone,
// which slicing and transposing never produce.
bool may_overlap_itself(const py::array& array) {
  if (array.size() == 0) return false;
  std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;  // |stride|, size
  for (int axis = 0; axis < array.ndim(); ++axis) {
    if (array.shape(axis) > 1) axes.emplace_back(std::abs(array.strides(axis)), array.shape(axis));
  }
  std::sort(axes.begin(), axes.end());
  py::ssize_t reach = array.itemsize();
  for (const auto& [stride, size] : axes) {
    if (stride < reach) return true;
    reach += stride * (size - 1);
  }
  return false;
}

// A view whose axes 0 and 1 are the axes `first` and `second` (-1: length 1) of `array`, with its
// strides. For an axis of length 1, whose stride in NumPy is arbitrary, that of a contiguous array.
template <class T>
View<T> strided_view(const py::array& array, int first, int second) {
  T* const data = const_cast<T*>(static_cast<const T*>(array.data()));
  const int last = static_cast<int>(array.ndim()) - 1;
  View<T> v = tidegate::view(data, array.shape(first), second < 0 ? 1 : array.shape(second),
                             array.shape(last));
  const auto take = [&](int to, int from) {
    if (from >= 0 && array.shape(from) > 1)
      v.stride[to] = array.strides(from) / py::ssize_t{sizeof(T)};
  };
  take(0, first);
  take(1, second);
  return v;
}

}  // namespace

Shape::Shape(std::initializer_list<Index> sizes) {
  for (const Index size : sizes) sizes_[ndim_++] = size;
}

bool Shape::operator==(const Shape& other) const {
  return std::equal(begin(), end(), other.begin(), other.end());
}

std::string Shape::text() const {
  std::string text = "(";
  for (int axis = 0; axis < ndim_; ++axis) {
    text += (axis > 0 ? ", " : "") + std::to_string(sizes_[axis]);
  }
  return text + (ndim_ == 1 ? ",)" : ")");
}

Shape Layout::sequence(Index steps, Index batch, Index features) const {
  if (!batched) return {steps, features};
  if (batch_first) return {batch, steps, features};
  return {steps, batch, features};
}

Shape Layout::state(Index rows, Index batch, Index features) const {
  if (!batched) return {rows, features};
  return {rows, batch, features};
}

Shape Layout::mask(Index steps, Index batch) const {
  if (!batched) return {steps};
  if (batch_first) return {batch, steps};
  return {steps, batch};
}

std::string Layout::hint(Index rows, Index steps, Index batch) const {
  if (!batched || rows != steps || steps == batch) return "";
  return batch_first ? "; if x is (T, N, I), the layer needs batch_first=False"
                     : "; if x is (N, T, I), the layer needs batch_first=True";
}

void fail_memory(const std::string& message) {
  PyErr_SetString(PyExc_MemoryError, message.c_str());
  throw py::error_already_set();
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

void fail_shape(const char* argument, const py::array& got, const std::string& wanted) {
  throw py::value_error(std::string(argument) + ": got shape " +
                        std::string(py::str(got.attr("shape"))) + ", wanted " + wanted);
}

void check_shape(const char* argument, const py::array& got, const Shape& wanted,
                 const std::string& hint) {
  if (got.ndim() != wanted.ndim() || !std::equal(wanted.begin(), wanted.end(), got.shape())) {
    fail_shape(argument, got, wanted.text() + hint);
  }
}

void check_unmasked(const char* argument, py::handle array) {
  if (Py_TYPE(array.ptr()) == py::detail::npy_api::get().PyArray_Type_) return;
  // A masked array's module has been imported.
  const auto ma = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("numpy.ma").ptr()));
  if (!ma) {
    PyErr_Clear();
    return;
  }
  if (py::isinstance(array, ma.attr("MaskedArray")) && ma.attr("is_masked")(array).cast<bool>()) {
    throw py::value_error(std::string(argument) +
                          ": got a masked array with masked elements, whose mask would be ignored; "
                          "wanted a plain array, as array.filled(value) gives");
  }
}

template <class T>
py::array read_array(const char* argument, py::handle object) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(std::string(argument) + ": got " + type_name(object) +
                         ", wanted an array of " + dtype_name<T>());
  }
  auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  if (!dtype.is(native_dtype<T>()) && !dtype.equal(native_dtype<T>())) {
    throw py::type_error(std::string(argument) + ": got dtype " + std::string(py::str(dtype)) +
                         ", wanted " + dtype_name<T>());
  }
  check_unmasked(argument, array);
  return array;
}

py::array read_mask(const char* argument, py::handle object) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(std::string(argument) + ": got " + type_name(object) +
                         ", wanted an array of bool");
  }
  auto array = py::reinterpret_borrow<py::array>(object);
  if (array.dtype().kind() != 'b') {
    throw py::type_error(std::string(argument) + ": got dtype " +
                         std::string(py::str(array.dtype())) + ", wanted bool");
  }
  check_unmasked(argument, array);
  return array;
}

py::array contiguous(const py::array& array) {
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  constexpr int kWanted = py::array::c_style | kAligned;
  if ((array.flags() & kWanted) == kWanted) return array;
  py::array copy = py::array::ensure(array, kWanted);
  if (!copy) {  // out of memory; ensure() clears the error
    const std::string what = "a contiguous copy of the array of shape " +
                             std::string(py::str(array.attr("shape"))) + " and " +
                             std::string(py::str(array.dtype()));
    fail_memory(OutOfMemory(what.c_str(), array.nbytes()).what());
  }
  return copy;
}

template <class T>
py::array readable(const py::array& array) {
  return viewable<T>(array) ? array : contiguous(array);
}

template <class T>
View<T> sequence_view(const py::array& array, Layout layout) {
  if (!layout.batched) return strided_view<T>(array, 0, -1);
  return layout.batch_first ? strided_view<T>(array, 1, 0) : strided_view<T>(array, 0, 1);
}

template <class T>
View<T> state_view(const py::array& array, Layout layout) {
  return strided_view<T>(array, 0, layout.batched ? 1 : -1);
}

MaskView mask_view(const py::array& array, Layout layout) {
  MaskView v;
  v.data = static_cast<const std::uint8_t*>(array.data());
  v.given = true;
  const int time = layout.batched && layout.batch_first ? 1 : 0;
  v.shape[0] = array.shape(time);
  v.stride[0] = array.strides(time);
  v.shape[1] = layout.batched ? array.shape(1 - time) : 1;
  v.stride[1] = layout.batched ? array.strides(1 - time) : 0;
  return v;
}

template <class T>
py::array new_array(const char* result, const Shape& shape) {
  const auto fail = [&](Index bytes) {
    const std::string array =
        std::string(result) + ": an array of shape " + shape.text() + " and " + dtype_name<T>();
    fail_memory(OutOfMemory(array.c_str(), bytes).what());
  };
  Index bytes = sizeof(T);
  for (const Index size : shape) {
    if (size > 0 && bytes > std::numeric_limits<Index>::max() / size) fail(-1);
    bytes *= std::max<Index>(size, 1);
  }
  // Like py::array's constructor, but without its two temporary vectors.
  const auto& numpy = py::detail::npy_api::get();
  PyObject* const array =
      numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, native_dtype<T>().inc_ref().ptr(),
                                  shape.ndim(), shape.begin(), nullptr, nullptr, 0, nullptr);
  if (array == nullptr && PyErr_ExceptionMatches(PyExc_MemoryError) != 0) {
    PyErr_Clear();
    fail(bytes);
  }
  if (array == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::array>(array);
}

template <class T>
py::array read_output(const char* argument, py::handle object, const Shape& wanted) {
  py::array array = read_array<T>(argument, object);
  check_shape(argument, array, wanted);
  const auto refuse = [argument](const char* reason) {
    throw py::value_error(std::string(argument) + ": " + reason);
  };
  if (!array.writeable()) refuse("got a read-only array, wanted a writable one");
  if (!viewable<T>(array)) {
    refuse(
        "got strides that cannot be written to, wanted aligned data with a contiguous last axis");
  }
  if (may_overlap_itself(array))
    refuse("got an array whose elements overlap one another in memory");
  return array;
}

template <class T>
py::array ResultMemory::make(const char* result, const Shape& shape) const {
  if (empty_.is_none()) return new_array<T>(result, shape);
  py::tuple sizes(static_cast<std::size_t>(shape.ndim()));
  bool has_elements = true;
  for (int axis = 0; axis < shape.ndim(); ++axis) {
    sizes[static_cast<std::size_t>(axis)] = py::int_(shape[axis]);
    has_elements = has_elements && shape[axis] > 0;
  }
  py::object tensor = empty_(sizes);
  static T dummy = 0;  // the address of arrays without elements
  void* data = &dummy;
  if (has_elements)
    data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
  const auto& numpy = py::detail::npy_api::get();
  auto array = py::reinterpret_steal<py::array>(numpy.PyArray_NewFromDescr_(
      numpy.PyArray_Type_, native_dtype<T>().inc_ref().ptr(), shape.ndim(), shape.begin(), nullptr,
      data, py::detail::npy_api::NPY_ARRAY_WRITEABLE_, nullptr));
  if (!array || numpy.PyArray_SetBaseObject_(array.ptr(), tensor.release().ptr()) != 0)
    throw py::error_already_set();
  return array;
}

void check_no_overlap(const char* argument, const py::array& output, const char* input_name,
                      py::handle input) {
  if (!input || !py::isinstance<py::array>(input) || output.size() == 0) return;
  const auto other = py::reinterpret_borrow<py::array>(input);
  if (other.size() == 0) return;
  const auto [low, high] = bounds(output);
  const auto [other_low, other_high] = bounds(other);
  if (high <= other_low || other_high <= low) return;
  // The address ranges overlap. Whether elements overlap is an integer problem, which NumPy solves
  // with a bounded amount of work.
  const py::module_ numpy = py::module_::import("numpy");
  constexpr int max_work = 100000;
  bool shared = true;
  try {
    shared =
        numpy.attr("shares_memory")(output, other, py::arg("max_work") = max_work).cast<bool>();
  } catch (py::error_already_set& error) {
    if (!error.matches(py::module_::import("numpy.exceptions").attr("TooHardError"))) throw;
  }
  if (shared)
    throw py::value_error(std::string(argument) + ": overlaps " + input_name + " in memory");
}

template <class T>
T* plain_matrix(py::handle object, Index rows, Index columns, bool writable) {
  using Api = py::detail::npy_api;
  if (Py_TYPE(object.ptr()) != Api::get().PyArray_Type_) return nullptr;
  const auto* const array = py::detail::array_proxy(object.ptr());
  const int flags = Api::NPY_ARRAY_C_CONTIGUOUS_ | Api::NPY_ARRAY_ALIGNED_ |
                    (writable ? Api::NPY_ARRAY_WRITEABLE_ : 0);
  if (array->descr != native_dtype<T>().ptr() || (array->flags & flags) != flags ||
      array->nd != 2 || array->dimensions[0] != rows || array->dimensions[1] != columns) {
    return nullptr;
  }
  return reinterpret_cast<T*>(array->data);
}

#define TIDEGATE_INSTANTIATE(T)                                              \
  template py::array read_array<T>(const char*, py::handle);                 \
  template py::array readable<T>(const py::array&);                          \
  template View<T> sequence_view<T>(const py::array&, Layout);               \
  template View<const T> sequence_view<const T>(const py::array&, Layout);   \
  template View<T> state_view<T>(const py::array&, Layout);                  \
  template View<const T> state_view<const T>(const py::array&, Layout);      \
  template py::array new_array<T>(const char*, const Shape&);                \
  template py::array read_output<T>(const char*, py::handle, const Shape&);  \
  template py::array ResultMemory::make<T>(const char*, const Shape&) const; \
  template T* plain_matrix<T>(py::handle, Index, Index, bool);
TIDEGATE_INSTANTIATE(float)
TIDEGATE_INSTANTIATE(double)
#undef TIDEGATE_INSTANTIATE

}  // namespace tidegate::bindings
