// NumPy arrays as arguments and results: their dtype, shape, strides and overlap, checked by hand,
// and the views that the core takes. Nothing here knows what a layer is.
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

// An array's shape. Never more than the four axes of a dropout scale.
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
  // What to add to the refusal of an array of `rows` rows beside x of `steps` and `batch`: where x
  // would have as many rows in the other layout, what to do. Empty otherwise.
  std::string hint(Index rows, Index steps, Index batch) const;
};

// f(), whose memory depends on what `got()` describes, as "batch: got 7": where memory cannot hold
// it, a MemoryError that begins with this.
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

// ValueError if `array` is a numpy.ma one with masked elements: its mask would be ignored.
void check_unmasked(const char* argument, py::handle array);

// TypeError unless `object` is an array of T in the machine's byte order; ValueError if elements
// are masked.
template <class T>
py::array read_array(const char* argument, py::handle object);

// Likewise for an array of booleans.
py::array read_mask(const char* argument, py::handle object);

// f.template operator()<T>(), T the type of an array's elements. TypeError unless that is float32
// or float64.
template <class F>
auto with_element_type(const char* argument, py::handle object, const F& f) {
  const py::object dtype = py::getattr(object, "dtype", py::none());
  if (dtype.equal(py::dtype::of<float>())) return f.template operator()<float>();
  if (dtype.equal(py::dtype::of<double>())) return f.template operator()<double>();
  throw py::type_error(std::string(argument) + ": got " + type_name(object) + " of dtype " +
                       std::string(py::str(dtype)) + ", wanted an array of float32 or float64");
}

// The memory of an argument as the core can read it: what the caller passed, or a contiguous copy
// of it where the innermost axis is not contiguous, a stride is no multiple of the element or the
// data are not aligned.
template <class T>
py::array readable(const py::array& array);

// The same, contiguous as a whole, of elements of any type.
py::array contiguous(const py::array& array);

// Views of a readable or fresh array of the layout's shape, with time or layers first.
template <class T>
View<T> sequence_view(const py::array& array, Layout layout);
template <class T>
View<T> state_view(const py::array& array, Layout layout);
MaskView mask_view(const py::array& array, Layout layout);

// Uninitialised. MemoryError, naming `result` and its bytes, if memory cannot hold it.
template <class T>
py::array new_array(const char* result, const Shape& shape);

// Makes the arrays that a call returns. Their memory is NumPy's, or that of a tensor: the Python
// function `empty`, called with a shape, returns a contiguous tensor of that shape and the call's
// dtype, with a method `data_ptr`. It becomes the array's base.
class ResultMemory {
 public:
  explicit ResultMemory(py::handle empty) : empty_(empty) {}  // None: NumPy's memory

  bool is_of_tensors() const { return !empty_.is_none(); }

  // Uninitialised; `result` is the name for messages.
  template <class T>
  py::array make(const char* result, const Shape& shape) const;

 private:
  py::handle empty_;
};

// Checks an array that a call shall write: T, shape, writable, innermost axis contiguous, whole
// elements as strides, aligned, and no two elements at one address.
template <class T>
py::array read_output(const char* argument, py::handle object, const Shape& wanted);

// ValueError if an array that a call shall write shares memory with `input`, if that is an array.
void check_no_overlap(const char* argument, const py::array& output, const char* input_name,
                      py::handle input);

// The data of a native, aligned, C-contiguous array of shape (rows, columns), writable if asked, or
// null: one glance for the calls where a nanosecond counts. Null says "look closer", not "wrong".
template <class T>
T* plain_matrix(py::handle object, Index rows, Index columns, bool writable);

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_ARRAYS_H_
