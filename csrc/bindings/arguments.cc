// Reads and checks arguments that are not plain arrays of numbers. No call into the core.
#include "arguments.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "gil.h"

namespace tidegate::bindings {
namespace {

py::object given(py::handle object) {
  return object.is_none() ? py::object() : py::reinterpret_borrow<py::object>(object);
}

// Whether the object can be converted by its __index__. That of NumPy's arrays and booleans raises
// unless the array is one integer.
bool has_index(py::handle object) {
  if (PyBool_Check(object.ptr()) || !PyIndex_Check(object.ptr())) return false;
  if (py::isinstance<py::array>(object)) {
    const auto array = py::reinterpret_borrow<py::array>(object);
    const char kind = array.dtype().kind();
    return array.ndim() == 0 && (kind == 'i' || kind == 'u');
  }
  return !py::isinstance(object, py::dtype::of<bool>().attr("type"));
}

// An integer, clamped to the range of Py_ssize_t. TypeError if the object is not an integer, or
// True or False; an exception of its __index__ propagates.
Py_ssize_t read_integer(const char* argument, py::handle object, const char* wanted) {
  if (!PyLong_CheckExact(object.ptr()) && !has_index(object)) {
    throw py::type_error(std::string(argument) + ": got " + type_name(object) + ", wanted " +
                         wanted);
  }
  const Py_ssize_t integer =
      calling_python([object] { return PyNumber_AsSsize_t(object.ptr(), nullptr); });
  if (integer == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return integer;
}

std::string text(py::handle object) { return py::repr(object); }

[[noreturn]] void fail_length(const std::string& got, const std::string& place, Index steps) {
  throw py::value_error("lengths: got " + got + place + ", wanted 0.." + std::to_string(steps));
}

}  // namespace

Index read_index(const char* argument, py::handle object, Index least, Index most) {
  const Py_ssize_t index = read_integer(argument, object, "an integer");
  if (index >= least && index <= most) return index;
  throw py::value_error(std::string(argument) + ": got " + text(object) + ", wanted " +
                        (most == std::numeric_limits<Index>::max()
                             ? "an integer >= " + std::to_string(least)
                             : std::to_string(least) + ".." + std::to_string(most)));
}

bool read_bool(const char* argument, py::handle object) {
  if (PyBool_Check(object.ptr())) return object.ptr() == Py_True;
  if (py::isinstance(object, py::dtype::of<bool>().attr("type"))) return object.cast<bool>();
  throw py::type_error(std::string(argument) + ": got " + type_name(object) +
                       ", wanted True or False");
}

std::string largest_size(const Config& config) {
  const std::pair<const char*, Index> sizes[] = {{"hidden_size", config.hidden_size},
                                                 {"input_size", config.input_size},
                                                 {"num_layers", config.num_layers}};
  const auto* const largest = std::max_element(std::begin(sizes), std::end(sizes),
                                               [](auto a, auto b) { return a.second < b.second; });
  return std::string(largest->first) + ": got " + std::to_string(largest->second);
}

int read_num_threads(py::handle object) {
  if (object.is_none()) return 0;
  const Py_ssize_t count = read_integer("num_threads", object, "an integer of at least 1, or None");
  if (count < 1 || count > std::numeric_limits<int>::max()) {
    throw py::value_error("num_threads: got " + text(object) + ", wanted an integer of at least 1");
  }
  return static_cast<int>(count);
}

StateObjects read_state(const Config& config, const std::string& argument, py::handle object) {
  const bool gradient = argument[0] == 'd';
  StateObjects state;
  if (!config.has_cell_state()) {
    state.h_name = gradient ? "dstate" : "state";
    state.h = given(object);
    return state;
  }
  state.h_name = gradient ? "dstate[0]" : "state[0]";
  state.c_name = gradient ? "dstate[1]" : "state[1]";
  if (object.is_none()) return state;
  if (!py::isinstance<py::tuple>(object) && !py::isinstance<py::list>(object)) {
    throw py::type_error(argument + ": got " + type_name(object) + ", wanted a pair (h, c)");
  }
  const auto pair = py::reinterpret_borrow<py::sequence>(object);
  if (pair.size() != 2) {
    throw py::value_error(argument + ": got " + std::to_string(pair.size()) +
                          " items, wanted a pair (h, c)");
  }
  state.h = given(py::object(pair[0]));
  state.c = given(py::object(pair[1]));
  return state;
}

template <class T>
Input<T> sequence_input(const py::array& array, Layout layout) {
  const py::array memory = readable<T>(array);
  return {array, memory, sequence_view<const T>(memory, layout)};
}

template <class T>
Input<T> read_state_array(const char* argument, const py::object& object, Layout layout, Index rows,
                          Index batch, Index features, Index steps) {
  if (!object) return {};
  const py::array array = read_array<T>(argument, object);
  const Index got = array.ndim() == 3 ? array.shape(1) : 0;
  check_shape(argument, array, layout.state(rows, batch, features), layout.hint(got, steps, batch));
  const py::array memory = readable<T>(array);
  return {array, memory, state_view<const T>(memory, layout)};
}

template <class T>
Input<T> read_sequence(const char* argument, py::handle object, Layout layout, Index steps,
                       Index batch, Index features) {
  if (object.is_none()) return {};
  const py::array array = read_array<T>(argument, object);
  check_shape(argument, array, layout.sequence(steps, batch, features));
  return sequence_input<T>(array, layout);
}

std::vector<Index> read_lengths(py::handle object, Layout layout, Index steps, Index batch) {
  if (object.is_none()) return {};
  if (!py::isinstance<py::array>(object)) {
    if (layout.batched)
      throw py::type_error("lengths: got " + type_name(object) + ", wanted an array of integers");
    const Py_ssize_t length = read_integer("lengths", object, "an integer");
    if (length < 0 || length > steps) fail_length(text(object), "", steps);
    return {length};
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u') {
    throw py::type_error("lengths: got dtype " + std::string(py::str(array.dtype())) +
                         ", wanted integers");
  }
  check_unmasked("lengths", array);
  const Index got = array.ndim() == 1 ? array.shape(0) : 0;
  check_shape("lengths", array, layout.batched ? Shape{batch} : Shape{},
              layout.hint(got, steps, batch));
  // A uint64 beyond int64 wraps to a negative number, which is refused as well.
  using Integers = py::array_t<Index, py::array::c_style | py::array::forcecast>;
  const auto integers = Integers::ensure(array);
  if (!integers) throw py::error_already_set();
  std::vector<Index> lengths(integers.data(), integers.data() + integers.size());
  for (std::size_t n = 0; n < lengths.size(); ++n) {
    if (lengths[n] >= 0 && lengths[n] <= steps) continue;
    const py::object item = array.attr("item")(n);
    fail_length(text(item), layout.batched ? " at row " + std::to_string(n) : "", steps);
  }
  return lengths;
}

std::vector<Index> read_rows(py::handle object, Index batch) {
  std::vector<Index> rows;
  if (object.is_none()) {
    rows.resize(static_cast<std::size_t>(batch));
    std::iota(rows.begin(), rows.end(), Index{0});
    return rows;
  }
  const char* const wanted = "a list or an array (n,) of integers";
  if (!py::isinstance<py::array>(object) && !py::isinstance<py::list>(object) &&
      !py::isinstance<py::tuple>(object)) {
    // The kinds of objects that are accepted as lengths, such as a pandas Series or a tensor.
    const auto check = py::module_::import("tidegate.checks").attr("check_integers");
    const py::object integers = check("rows", object);
    if (!py::isinstance<py::array>(integers))
      throw py::type_error("rows: got " + type_name(object) + ", wanted " + wanted);
    return read_rows(integers, batch);
  }
  if (py::isinstance<py::array>(object)) {
    const auto array = py::reinterpret_borrow<py::array>(object);
    const char kind = array.dtype().kind();
    if (kind != 'i' && kind != 'u') {
      throw py::type_error("rows: got dtype " + std::string(py::str(array.dtype())) +
                           ", wanted integers");
    }
    check_unmasked("rows", array);
    if (array.ndim() != 1) fail_shape("rows", array, "(n,)");
    const py::object list = array.attr("tolist")();
    return read_rows(list, batch);
  }
  std::vector<bool> seen(static_cast<std::size_t>(batch));
  for (const py::handle item : object) {
    const Py_ssize_t row = read_integer("rows", item, wanted);
    if (row < 0 || row >= batch) {
      throw py::value_error("rows: got " + text(item) + ", wanted 0.." + std::to_string(batch - 1) +
                            " (the stream has " + std::to_string(batch) + " rows)");
    }
    if (seen[static_cast<std::size_t>(row)])
      throw py::value_error("rows: got " + text(item) + " twice, wanted different rows");
    seen[static_cast<std::size_t>(row)] = true;
    rows.push_back(row);
  }
  return rows;
}

Packing read_batch_sizes(py::handle object, Index rows) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error("batch_sizes: got " + type_name(object) + ", wanted an array of integers");
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (array.dtype().kind() != 'i') {
    throw py::type_error("batch_sizes: got dtype " + std::string(py::str(array.dtype())) +
                         ", wanted integers");
  }
  check_unmasked("batch_sizes", array);
  if (array.ndim() != 1 || array.size() == 0)
    fail_shape("batch_sizes", array, "(T,), T at least 1");
  using Integers = py::array_t<Index, py::array::c_style | py::array::forcecast>;
  const auto sizes = Integers::ensure(array);
  if (!sizes) throw py::error_already_set();

  Packing packing;
  packing.steps = sizes.size();
  packing.batch = sizes.at(0);
  for (Index t = 0; t < packing.steps; ++t) {
    const Index size = sizes.at(t);
    if (size < 1 || (t > 0 && size > sizes.at(t - 1)) || size > rows - packing.rows) {
      throw py::value_error("batch_sizes: got " + std::to_string(size) + " at step " +
                            std::to_string(t) + ", wanted at least 1, no more than at the step " +
                            "before, and a sum of " + std::to_string(rows) + ", the rows of x");
    }
    packing.first_row.push_back(packing.rows);
    packing.rows += size;
  }
  if (packing.rows != rows) {
    throw py::value_error("batch_sizes: got a sum of " + std::to_string(packing.rows) +
                          ", wanted " + std::to_string(rows) + ", the rows of x");
  }
  packing.lengths.resize(static_cast<std::size_t>(packing.batch));
  for (Index t = 0; t < packing.steps; ++t)
    std::fill_n(packing.lengths.begin(), sizes.at(t), t + 1);
  return packing;
}

template <class T>
Input<T> read_packed(const char* argument, py::handle object, const Packing& packing,
                     Index features) {
  if (object.is_none()) return {};
  const py::array array = read_array<T>(argument, object);
  check_shape(argument, array, {packing.rows, features});
  Input<T> input = sequence_input<T>(array, {false, false});
  input.view = packing.sequence(input.view);
  return input;
}

MaskView read_reset(py::handle object, Layout layout, Index steps, Index batch) {
  if (object.is_none()) return {};
  const py::array array = read_mask("reset", object);
  check_shape("reset", array, layout.mask(steps, batch));
  return mask_view(array, layout);
}

#define TIDEGATE_INSTANTIATE(T)                                                               \
  template Input<T> sequence_input<T>(const py::array&, Layout);                              \
  template Input<T> read_state_array<T>(const char*, const py::object&, Layout, Index, Index, \
                                        Index, Index);                                        \
  template Input<T> read_packed<T>(const char*, py::handle, const Packing&, Index);           \
  template Input<T> read_sequence<T>(const char*, py::handle, Layout, Index, Index, Index);
TIDEGATE_INSTANTIATE(float)
TIDEGATE_INSTANTIATE(double)
#undef TIDEGATE_INSTANTIATE

}  // namespace tidegate::bindings
