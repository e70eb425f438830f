// Arrays of memory that another library owns. The caller is responsible for how they are used.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "module.h"
#include "tidegate/view.h"

namespace tidegate::bindings {
namespace {

constexpr Index kMaxAxes = 8;

// An array of `shape` with `strides` in elements, whose first element is at `address` and which
// keeps `owner` alive; messages call it `name`. ValueError for a negative stride, or if an element
// would lie outside the `room` bytes that begin at `address`.
py::array array_at(const std::string& name, const py::dtype& dtype, std::uintptr_t address,
                   Index room, const py::tuple& shape, const py::tuple& strides,
                   const py::object& owner) {
  const auto axes = static_cast<Index>(shape.size());
  if (axes > kMaxAxes || strides.size() != shape.size()) {
    throw py::value_error(
        name + ": got " + std::to_string(axes) + " axes and " + std::to_string(strides.size()) +
        " strides, wanted one stride per axis, and at most " + std::to_string(kMaxAxes) + " axes");
  }
  const Index item = dtype.itemsize();
  Index sizes[kMaxAxes], steps[kMaxAxes];
  Index reach = item;  // bytes from `address` to the end of the last element
  bool is_empty = false, fits = true;
  for (Index axis = 0; axis < axes; ++axis) {
    sizes[axis] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape.ptr(), axis));
    const Index stride = PyLong_AsSsize_t(PyTuple_GET_ITEM(strides.ptr(), axis));
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (sizes[axis] < 0 || stride < 0)
      throw py::value_error(name + ": got a negative size or stride");
    is_empty = is_empty || sizes[axis] == 0;
    Index extent = 0;
    fits = !__builtin_mul_overflow(stride, item, &steps[axis]) &&
           !__builtin_mul_overflow(steps[axis], sizes[axis] - 1, &extent) &&
           !__builtin_add_overflow(reach, extent, &reach) && fits;
  }
  static double dummy = 0;  // the address of arrays without elements
  void* data = &dummy;
  if (!is_empty) {
    if (!fits || reach > room || address == 0) {
      throw py::value_error(name + ": got a storage of " + std::to_string(room) +
                            " bytes for the shape " + std::string(py::str(shape)) + ", wanted " +
                            (fits ? "at least " + std::to_string(reach) : std::string("more")));
    }
    data = reinterpret_cast<void*>(address);
  }
  const auto& numpy = py::detail::npy_api::get();
  const auto array = py::reinterpret_steal<py::array>(numpy.PyArray_NewFromDescr_(
      numpy.PyArray_Type_, dtype.inc_ref().ptr(), static_cast<int>(axes), sizes, steps, data,
      py::detail::npy_api::NPY_ARRAY_WRITEABLE_, nullptr));
  if (!array || numpy.PyArray_SetBaseObject_(array.ptr(), owner.inc_ref().ptr()) != 0)
    throw py::error_already_set();
  return array;
}

}  // namespace

void bind_memory(py::module_& m) {
  m.def("array_at", &array_at, py::arg("name"), py::arg("dtype"), py::arg("address"),
        py::arg("room"), py::arg("shape"), py::arg("strides"), py::arg("owner"));
}

}  // namespace tidegate::bindings
