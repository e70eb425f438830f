// NumPy arrays as arguments and results: checks of their dtype, shape, strides and overlap, and the
// views that the core takes. Nothing here depends on layers.
#ifndef TIDEGATE_BINDINGS_ARRAYS_H_
#define TIDEGATE_BINDINGS_ARRAYS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>

#include "tidegate/errors.h"
#include "tidegate/view.h"

namespace tidegate::bindings {

namespace py = pybind11;

// An array's shape, of at most four axes (those of a dropout scale).
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<Index> sizes);

  int ndim() const { return ndim_; }
  Index operator[](int axis) const { return sizes_[axis]; }
  const Index* begin() const { return sizes_; }
  const Index* end() const { return sizes_ + ndim_; }
  bool operator==(const Shape& other) const;
  std::string text() const;  // as Python writes a tuple

 private:
  int ndim_ = 0;
  Index sizes_[4] = {};
};

// How the caller's axes map to the core's (T, N, features) and (L*D, N, features).
struct Layout {
  bool batched = true;
  bool batch_first = false;

  Shape sequence(Index steps, Index batch, Index features) const;
  Shape state(Index rows, Index batch, Index features) const;
  Shape mask(Index steps, Index batch) const;
  // Advice for the message that refuses an array of `rows` rows given with x of `steps` and
  // `batch`: if x has that many rows in the other layout, to change batch_first. Empty otherwise.
  std::string hint(Index rows, Index steps, Index batch) const;
};

// Returns f(), whose memory depends on an argument that `got()` describes, as "batch: got 7". If
// memory does not suffice, throws a MemoryError whose message begins with that description.
[[noreturn]] void fail_memory(const std::string& message);
template <class Got, class F>
auto with_memory_for(const Got& got, const F& f) {
  try {
    return f();
  } catch (const OutOfMemory& error) {
    fail_memory(got() + ", but " + error.what());
  } catch (const std::bad_alloc&) {
    fail_memory(got() + ", but the system gives no more memory");
  } catch (const std::length_error&) {
    fail_memory(got() + ", but that would take more bytes than can be addressed");
  }
}

// Python's name of the type of `object`, for messages.
std::string type_name(py::handle object);
[[noreturn]] void fail_shape(const char* argument, const py::array& got, const std::string& wanted);
void check_shape(const char* argument, const py::array& got, const Shape& wanted,
                 const std::string& hint = "");

// ValueError if `array` is a numpy.ma array with masked elements, because the mask would be
// ignored.
void check_unmasked(const char* argument, py::handle array);

// TypeError unless `object` is an array of T in the machine's byte order; ValueError if elements
// are masked.
template <class T>
py::array read_array(const char* argument, py::handle object);

// TypeError unless `object` is an array of booleans; ValueError if elements are masked.
py::array read_mask(const char* argument, py::handle object);

// Returns f.template operator()<T>(), where T is the type of an array's elements. TypeError unless
// that is float32 or float64.
template <class F>
auto with_element_type(const char* argument, py::handle object, const F& f) {
  const py::object dtype = py::getattr(object, "dtype", py::none());
  if (dtype.equal(py::dtype::of<float>())) return f.template operator()<float>();
  if (dtype.equal(py::dtype::of<double>())) return f.template operator()<double>();
  throw py::type_error(std::string(argument) + ": got " + type_name(object) + " of dtype " +
                       std::string(py::str(dtype)) + ", wanted an array of float32 or float64");
}

// An argument in a form that the core can read: the caller's array, or a contiguous copy if its
// innermost axis is not contiguous, a stride is not a multiple of the element size or the data are
// not aligned.
template <class T>
py::array readable(const py::array& array);

// An array of any element type as a contiguous one: the caller's array, or a copy.
py::array contiguous(const py::array& array);

// Views of a readable or new array of the layout's shape, with time or layers as the first axis.
template <class T>
View<T> sequence_view(const py::array& array, Layout layout);
template <class T>
View<T> state_view(const py::array& array, Layout layout);
MaskView mask_view(const py::array& array, Layout layout);

// An uninitialised array. MemoryError, naming `result` and its bytes, if memory does not suffice.
template <class T>
py::array new_array(const char* result, const Shape& shape);

// Allocates the arrays that a call returns, in NumPy's memory or in that of tensors: the Python
// function `empty`, called with a shape, returns a contiguous tensor of that shape and the call's
// dtype, with a method `data_ptr`. The tensor becomes the array's base.
class ResultMemory {
 public:
  explicit ResultMemory(py::handle empty) : empty_(empty) {}  // None: NumPy's memory

  bool is_of_tensors() const { return !empty_.is_none(); }

  // An uninitialised array; `result` is its name in messages.
  template <class T>
  py::array make(const char* result, const Shape& shape) const;

 private:
  py::handle empty_;
};

// Checks an array that a call will write: elements of T, the shape, writable, aligned, its
// innermost axis contiguous, strides of whole elements, and no two elements at one address.
template <class T>
py::array read_output(const char* argument, py::handle object, const Shape& wanted);

// ValueError if an array that a call will write shares memory with `input`, if that is an array.
void check_no_overlap(const char* argument, const py::array& output, const char* input_name,
                      py::handle input);

// The data of a native, aligned, C-contiguous array of shape (rows, columns), which is also
// writable if `writable`; null for any other object. The fast path of calls in which a nanosecond
// counts: null is not an error, but means that the full checks are needed.
template <class T>
T* plain_matrix(py::handle object, Index rows, Index columns, bool writable);

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_ARRAYS_H_
