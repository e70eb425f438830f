// Live input: one step in as few operations as Python allows.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <utility>

#include "arguments.h"
#include "gil.h"
#include "model.h"
#include "module.h"

namespace tidegate::bindings {
namespace {

// A stream has one state and no lock: whoever finds it in use is told so.
class Use {
 public:
  explicit Use(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true, std::memory_order_acquire)) {
      throw std::runtime_error(
          "stream: in use by another thread; a stream serves one thread at a time");
    }
  }
  ~Use() { busy_.store(false, std::memory_order_release); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  std::atomic<bool>& busy_;
};

template <class T>
class TypedStream final : public Stream {
 public:
  TypedStream(std::shared_ptr<const tidegate::Model<T>> model, Index batch)
      : stream_(std::move(model), batch),
        input_size_(stream_.config().input_size),
        output_size_(stream_.config().output_size()),
        step_cost_(stream_.step_cost()) {}

  Index batch() const override { return stream_.batch(); }

  py::object step(py::handle x, py::handle out) override {
    const Use use(busy_);
    const Index n = stream_.batch();
    const T* const x_data = plain_matrix<T>(x, n, input_size_, false);
    if (x_data == nullptr) return step_any(x, out);
    if (out.is_none()) {
      py::array y = new_array<T>("y", {n, output_size_});
      advance(x_data, static_cast<T*>(y.mutable_data()));
      return y;
    }
    T* const y_data = plain_matrix<T>(out, n, output_size_, true);
    if (y_data == nullptr ||
        !(y_data + n * output_size_ <= x_data || x_data + n * input_size_ <= y_data)) {
      return step_any(x, out);
    }
    advance(x_data, y_data);
    return py::reinterpret_borrow<py::object>(out);
  }

  py::object run(py::handle x, py::handle out, py::handle num_threads) override {
    const Use use(busy_);
    const int threads = read_num_threads(num_threads);
    const py::array array = read_array<T>("x", x);
    if (array.ndim() != 3 || array.shape(1) != batch() || array.shape(2) != input_size_) {
      fail_shape("x", array,
                 "(T, " + std::to_string(batch()) + ", " + std::to_string(input_size_) + ")");
    }
    const Layout time_major;
    const auto input = sequence_input<T>(array, time_major);
    const Index steps = array.shape(0);
    const py::array y = read_or_make_output(out, array, {steps, batch(), output_size_});
    const View<T> y_view = sequence_view<T>(y, time_major);
    without_gil(static_cast<double>(steps) * step_cost_,
                [&] { stream_.run(input.view, y_view, threads); });
    return y;
  }

  void reset() override {
    const Use use(busy_);
    stream_.reset();
  }

  py::object state() override {
    const Use use(busy_);
    const py::array h = new_array<T>("state", state_shape(stream_.config().state_size()));
    std::copy_n(stream_.h(), h.size(), static_cast<T*>(const_cast<void*>(h.data())));
    if (!stream_.config().has_cell_state()) return h;
    const py::array c = new_array<T>("state", state_shape(stream_.config().hidden_size));
    std::copy_n(stream_.c(), c.size(), static_cast<T*>(const_cast<void*>(c.data())));
    return py::make_tuple(h, c);
  }

  void set_state(py::handle state) override {
    const Use use(busy_);
    const Config& config = stream_.config();
    const StateObjects given = read_state(config, "state", state);
    const auto h = read_state_array<T>(given.h_name, given.h, {}, config.num_layers, batch(),
                                       config.state_size());
    const auto c = read_state_array<T>(given.c_name, given.c, {}, config.num_layers, batch(),
                                       config.hidden_size);
    assign(h.view, config.state_size(), stream_.h());
    if (config.has_cell_state()) assign(c.view, config.hidden_size, stream_.c());
  }

 private:
  void advance(const T* x, T* y) { advance(x, input_size_, y, output_size_); }

  void advance(const T* x, Index x_stride, T* y, Index y_stride) {
    without_gil(step_cost_, [&] { stream_.step(x, x_stride, y, y_stride); });
  }

  // A step whose arguments are anything but plain: says what is wrong with them, or copes.
  py::object step_any(py::handle x, py::handle out) {
    const Layout rows{false, false};  // (batch, features): the batch is the only axis that counts
    const py::array array = read_array<T>("x", x);
    check_shape("x", array, {batch(), input_size_});
    const auto input = sequence_input<T>(array, rows);
    const py::array y = read_or_make_output(out, array, {batch(), output_size_});
    const View<T> y_view = sequence_view<T>(y, rows);
    advance(input.view.data, input.view.stride[0], y_view.data, y_view.stride[0]);
    return y;
  }

  static py::array read_or_make_output(py::handle out, const py::array& x, const Shape& shape) {
    if (out.is_none()) return new_array<T>("y", shape);
    py::array y = read_output<T>("out", out, shape);
    check_no_overlap("out", y, "x", x);
    return y;
  }

  Shape state_shape(Index features) const {
    return {stream_.config().num_layers, batch(), features};
  }

  // Copies a state, or zeros where none is given.
  void assign(const View<const T>& from, Index features, T* to) const {
    const Index rows = stream_.config().num_layers;
    for (Index row = 0; row < rows; ++row) {
      for (Index n = 0; n < batch(); ++n, to += features) {
        if (from.given) {
          std::copy_n(from.row(row, n), features, to);
        } else {
          std::fill_n(to, features, T(0));
        }
      }
    }
  }

  tidegate::Stream<T> stream_;
  const Index input_size_;
  const Index output_size_;
  const double step_cost_;
  std::atomic<bool> busy_{false};
};

// ---- Stream.step for Python, without pybind11's dispatcher, whose handling of a keyword alone
// takes as long as a small step (0.3 us): the arguments are taken apart here.

constexpr const char* step_doc = R"(step($self, x, out=None)
--

Takes one step.

Args:
    x: (batch, I), of the layer's dtype, any strides.
    out: an array like the result to be written and returned: writable, its last axis contiguous,
        overlapping neither itself nor x. With it nothing is allocated.

Returns:
    (batch, S): h of the last layer after the step. S is hidden_size, or proj_size.

Raises:
    TypeError: x or out is no array, or of another dtype.
    ValueError: a wrong shape, or an `out` that cannot be written to.
    RuntimeError: another thread is using this stream.)";

// The arguments x and out, whichever way they are given; false with a TypeError set.
bool parse_step(PyObject* const* args, Py_ssize_t positional, PyObject* keywords,
                PyObject* (&values)[2]) {
  if (positional > 2) {
    PyErr_Format(PyExc_TypeError, "step() takes x and out, but %zd arguments were given",
                 positional);
    return false;
  }
  std::copy_n(args, positional, values);
  const Py_ssize_t named = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
  for (Py_ssize_t k = 0; k < named; ++k) {
    PyObject* const name = PyTuple_GET_ITEM(keywords, k);
    const bool is_out = PyUnicode_CompareWithASCIIString(name, "out") == 0;
    if (!is_out && PyUnicode_CompareWithASCIIString(name, "x") != 0) {
      PyErr_Format(PyExc_TypeError, "step() got an unexpected keyword argument '%U'", name);
      return false;
    }
    if (is_out ? positional > 1 : positional > 0) {
      PyErr_Format(PyExc_TypeError, "step() got multiple values for argument '%U'", name);
      return false;
    }
    values[is_out ? 1 : 0] = args[positional + k];
  }
  if (values[0] == nullptr) {
    PyErr_SetString(PyExc_TypeError, "step() missing the argument x");
    return false;
  }
  return true;
}

PyObject* step(PyObject* self, PyObject* const* args, Py_ssize_t positional, PyObject* keywords) {
  PyObject* values[2] = {nullptr, Py_None};
  if (!parse_step(args, positional, keywords, values)) return nullptr;
  try {
    auto* const instance = reinterpret_cast<py::detail::instance*>(self);
    // Python has checked that self is a Stream, maybe of a class that derives from more than that.
    Stream* const stream = instance->simple_layout
                               ? static_cast<Stream*>(instance->get_value_and_holder().value_ptr())
                               : py::handle(self).cast<Stream*>();
    if (stream == nullptr) throw py::type_error("step() of a stream that was never made");
    return stream->step(values[0], values[1]).release().ptr();
  } catch (...) {
    py::detail::try_translate_exceptions();
    return nullptr;
  }
}

}  // namespace

template <class T>
std::unique_ptr<Stream> make_stream(std::shared_ptr<const tidegate::Model<T>> model, Index batch) {
  return std::make_unique<TypedStream<T>>(std::move(model), batch);
}

template std::unique_ptr<Stream> make_stream<float>(std::shared_ptr<const tidegate::Model<float>>,
                                                    Index);
template std::unique_ptr<Stream> make_stream<double>(std::shared_ptr<const tidegate::Model<double>>,
                                                     Index);

void bind_stream(py::module_& m) {
  py::class_<Stream> stream(m, "Stream");
  stream.def(py::init([](const Model& model, Index batch) { return model.stream(batch); }))
      .def_property_readonly("batch", &Stream::batch, "How many sequences.")
      .def_property("state", &Stream::state, &Stream::set_state,
                    R"(h of a GRU, a pair (h, c) of an LSTM: h (L, batch, S), c (L, batch, H).

Reading gives new arrays; assigning copies in. None, for either, is zeros.)")
      .def("run", &Stream::run, py::arg("x"), py::arg("out") = py::none(), py::kw_only(),
           py::arg("num_threads") = py::none(),
           R"(Takes as many steps as x has; the same bits as one at a time.

Args:
    x: (T, batch, I), of the layer's dtype, any strides.
    out: as in `step`.
    num_threads: at most so many; None is the setting in force.

Returns:
    (T, batch, S).

Raises:
    TypeError, ValueError, RuntimeError: as in `step`.)")
      .def("reset", &Stream::reset, "Makes the state zero.");
  static PyMethodDef step_method = {
      "step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step)),
      METH_FASTCALL | METH_KEYWORDS, step_doc};
  PyObject* const descriptor =
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(stream.ptr()), &step_method);
  if (descriptor == nullptr) throw py::error_already_set();
  stream.attr("step") = py::reinterpret_steal<py::object>(descriptor);
}

}  // namespace tidegate::bindings
