// Streams of live input. A step takes as few operations as Python allows.
#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "arguments.h"
#include "gil.h"
#include "methods.h"
#include "model.h"
#include "module.h"

namespace tidegate::bindings {
namespace {

// Exclusive use of a stream, which has one state and no lock: throws if another thread is using it.
class ExclusiveUse {
 public:
  explicit ExclusiveUse(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true, std::memory_order_acquire)) {
      throw std::runtime_error(
          "stream: in use by another thread; a stream serves one thread at a time");
    }
  }
  ~ExclusiveUse() { busy_.store(false, std::memory_order_release); }
  ExclusiveUse(const ExclusiveUse&) = delete;
  ExclusiveUse& operator=(const ExclusiveUse&) = delete;

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
        step_cost_(stream_.step_cost(batch)) {}

  Index batch() const override { return stream_.batch(); }

  py::object step(py::handle x, py::handle out, py::handle rows) override {
    const ExclusiveUse use(busy_);
    std::vector<Index> picked;
    const bool all = rows.is_none();
    if (!all) picked = read_rows(rows, stream_.batch());
    const StepRows selected = {all ? nullptr : picked.data(),
                               all ? stream_.batch() : static_cast<Index>(picked.size())};
    const Index n = selected.count;
    const T* const x_data = plain_matrix<T>(x, n, input_size_, false);
    if (x_data == nullptr) return step_checked(x, out, selected);
    if (out.is_none()) {
      py::array y = new_array<T>("y", {n, output_size_});
      advance(x_data, input_size_, static_cast<T*>(y.mutable_data()), output_size_, selected);
      return y;
    }
    T* const y_data = plain_matrix<T>(out, n, output_size_, true);
    if (y_data == nullptr ||
        !(y_data + n * output_size_ <= x_data || x_data + n * input_size_ <= y_data)) {
      return step_checked(x, out, selected);
    }
    advance(x_data, input_size_, y_data, output_size_, selected);
    return py::reinterpret_borrow<py::object>(out);
  }

  py::object run(py::handle x, py::handle out, py::handle num_threads) override {
    const ExclusiveUse use(busy_);
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
    const auto got = [&] { return "x: got shape " + std::string(py::str(array.attr("shape"))); };
    with_memory_for(got, [&] {
      stream_.renew();
      without_gil(static_cast<double>(steps) * step_cost_,
                  [&] { stream_.run(input.view, y_view, threads); });
    });
    return y;
  }

  void reset(py::handle rows) override {
    const ExclusiveUse use(busy_);
    for (const Index row : read_rows(rows, batch())) stream_.reset(row);
  }

  py::object get_state(py::handle rows) override {
    const ExclusiveUse use(busy_);
    const Config& config = stream_.config();
    const std::vector<Index> picked = read_rows(rows, batch());
    const auto collect = [&](Index features, T* (tidegate::Stream<T>::*state)(Index, Index)) {
      py::array collected =
          new_array<T>("state", {config.num_layers, static_cast<Index>(picked.size()), features});
      T* to = static_cast<T*>(collected.mutable_data());
      for (Index layer = 0; layer < config.num_layers; ++layer) {
        for (const Index row : picked) to = std::copy_n((stream_.*state)(layer, row), features, to);
      }
      return collected;
    };
    const py::array h = collect(config.state_size(), &tidegate::Stream<T>::h);
    if (!config.has_cell_state()) return h;
    return py::make_tuple(h, collect(config.hidden_size, &tidegate::Stream<T>::c));
  }

  void set_state(py::handle state, py::handle rows) override {
    const ExclusiveUse use(busy_);
    const Config& config = stream_.config();
    const std::vector<Index> picked = read_rows(rows, batch());
    const auto count = static_cast<Index>(picked.size());
    const StateObjects given = read_state(config, "state", state);
    const auto h = read_state_array<T>(given.h_name, given.h, {}, config.num_layers, count,
                                       config.state_size());
    const auto c = read_state_array<T>(given.c_name, given.c, {}, config.num_layers, count,
                                       config.hidden_size);
    for (Index n = 0; n < count; ++n) {
      const Index row = picked[static_cast<std::size_t>(n)];
      stream_.reset(row);
      for (Index layer = 0; layer < config.num_layers; ++layer) {
        if (h.view.given)
          std::copy_n(h.view.row(layer, n), config.state_size(), stream_.h(layer, row));
        if (c.view.given)
          std::copy_n(c.view.row(layer, n), config.hidden_size, stream_.c(layer, row));
      }
    }
  }

  void grow(py::handle count) override {
    const ExclusiveUse use(busy_);
    resize(batch() + read_index("count", count, 0, std::numeric_limits<Index>::max() - batch()),
           count);
  }

  void shrink(py::handle count) override {
    const ExclusiveUse use(busy_);
    resize(batch() - read_index("count", count, 0, batch()), count);
  }

 private:
  void resize(Index batch, py::handle count) {
    with_memory_for([&] { return "count: got " + std::string(py::repr(count)); },
                    [&] { stream_.resize(batch); });
    step_cost_ = stream_.step_cost(batch);
  }

  // The rows that take a step.
  struct StepRows {
    const Index* rows;  // null: all rows
    Index count;
  };

  void advance(const T* x, Index x_stride, T* y, Index y_stride, StepRows selected) {
    stream_.renew();
    const double cost = selected.rows ? stream_.step_cost(selected.count) : step_cost_;
    if (cost >= kLongStep && !selected.rows) return run_step(x, x_stride, y, y_stride, cost);
    without_gil(cost, [&] {
      stream_.step(x, x_stride, y, y_stride, selected.rows, selected.count, kThreadsInForce);
    });
  }

  // A step by way of `run`, which can end early, since it keeps a copy of the previous state.
  void run_step(const T* x, Index x_stride, T* y, Index y_stride, double cost) {
    View<const T> input = view(x, 1, batch(), input_size_);
    input.stride[1] = x_stride;
    View<T> output = view(y, 1, batch(), output_size_);
    output.stride[1] = y_stride;
    with_memory_for(
        [&] { return "batch: got " + std::to_string(batch()); },
        [&] { without_gil(cost, [&] { stream_.run(input, output, kThreadsInForce); }); });
  }

  // A step whose arguments need the full checks: throws if they are wrong, copies x if necessary.
  py::object step_checked(py::handle x, py::handle out, StepRows selected) {
    const Layout rows{false, false};  // (batch, features), with the batch in place of the time axis
    const py::array array = read_array<T>("x", x);
    check_shape("x", array, {selected.count, input_size_});
    const auto input = sequence_input<T>(array, rows);
    const py::array y = read_or_make_output(out, array, {selected.count, output_size_});
    const View<T> y_view = sequence_view<T>(y, rows);
    advance(input.view.data, input.view.stride[0], y_view.data, y_view.stride[0], selected);
    return y;
  }

  static py::array read_or_make_output(py::handle out, const py::array& x, const Shape& shape) {
    if (out.is_none()) return new_array<T>("y", shape);
    py::array y = read_output<T>("out", out, shape);
    check_no_overlap("out", y, "x", x);
    return y;
  }

  static constexpr int kThreadsInForce = 0;
  static constexpr double kLongStep = 100e6;  // nanoseconds

  tidegate::Stream<T> stream_;
  const Index input_size_;
  const Index output_size_;
  double step_cost_;
  std::atomic<bool> busy_{false};
};

constexpr const char* step_doc = R"(step($self, x, out=None, rows=None)
--

Takes one step.

Args:
    x: (batch, I), of the layer's dtype, any strides.
    out: an array like the result to be written and returned: writable, its last axis contiguous,
        overlapping neither itself nor x. With it nothing is allocated.
    rows: the sequences that take the step, distinct integers below batch, in any order; x and the
        result then have len(rows) rows, in this order. None: all of them. A list, a tuple, an
        array, a pandas Series or a tensor of integers. The bits of a row do not depend on which
        others step with it.

Returns:
    (batch, S): h of the last layer after the step. S is hidden_size, or proj_size.

Raises:
    TypeError: x or out is not an array, or has another dtype; rows are not integers.
    ValueError: a wrong shape, or an `out` that cannot be written to; a row that does not exist, or
        is given twice.
    RuntimeError: another thread is using this stream.)";

constexpr const char* run_doc = R"(run($self, x, out=None, *, num_threads=None)
--

Takes all steps of x; the results have the same bits as those of single steps.

Args:
    x: (T, batch, I), of the layer's dtype, any strides.
    out: as in `step`.
    num_threads: the most threads that the call may use; None is the setting in force.

Returns:
    (T, batch, S).

Raises:
    TypeError, ValueError, RuntimeError: as in `step`.
    MemoryError: the results do not fit into memory.
    KeyboardInterrupt: Ctrl-C; or the exception of another signal handler. The state is then that
        before the call, and the contents of `out` are undefined.)";

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
  const NoSignatures no_signatures;
  py::class_<Stream> stream = bind_class<Stream>(m, "Stream");
  stream.def(py::init([](const Model& model, Index batch) { return model.stream(batch); }))
      .def_property_readonly("batch", &Stream::batch, "The number of sequences.")
      .def_property(
          "state", [](Stream& self) { return self.get_state(py::none()); },
          [](Stream& self, py::handle state) { self.set_state(state, py::none()); },
          R"(h, or for an LSTM a pair (h, c): h (L, batch, S), c (L, batch, H).

Reading returns new arrays; assigning copies the values. None, for either, means zeros.)");
  const py::none none;
  const py::int_ one(1);
  add_method<&Stream::step>(stream, "step", step_doc, {{"x"}, {"out", none}, {"rows", none}});
  add_method<&Stream::run>(stream, "run", run_doc,
                           {{"x"}, {"out", none}, {"num_threads", none, true}});
  add_method<&Stream::get_state>(stream, "get_state", R"(get_state($self, rows=None)
--

The state of some rows, like `state`, with len(rows) in place of batch, in the order of rows.)",
                                 {{"rows", none}});
  add_method<&Stream::set_state>(stream, "set_state", R"(set_state($self, state, rows=None)
--

Sets the state of some rows to a copy of `state`, as `get_state` returns it, or zeros for None.)",
                                 {{"state"}, {"rows", none}});
  add_method<&Stream::reset>(stream, "reset", R"(reset($self, rows=None)
--

Sets the state of these rows, or of all, to zero.)",
                             {{"rows", none}});
  add_method<&Stream::grow>(stream, "grow", R"(grow($self, count=1)
--

Adds rows at the end, with a state of zero. The other rows keep their state. Allocates.)",
                            {{"count", one}});
  add_method<&Stream::shrink>(stream, "shrink", R"(shrink($self, count=1)
--

Removes rows at the end. The other rows keep their state. Allocates.)",
                              {{"count", one}});
}

}  // namespace tidegate::bindings
