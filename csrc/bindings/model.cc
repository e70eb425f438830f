// Whole sequences: run, record and backward, and the tape between them.
#include "model.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "arguments.h"
#include "gil.h"
#include "methods.h"
#include "module.h"
#include "parameters.h"

namespace tidegate::bindings {
namespace {

Index state_rows(const Config& config) { return config.num_layers * config.num_directions(); }

py::object state_object(const Config& config, const py::object& h, const py::object& c) {
  return config.has_cell_state() ? py::object(py::make_tuple(h, c)) : h;
}

// The checked arguments that inference and training share, and the arrays that both return.
template <class T>
class Call {
 public:
  Call(const Config& config, bool batch_first, py::handle x, py::handle state, py::handle lengths,
       py::handle reset)
      : config_(config) {
    read_x(x, batch_first);
    read_initial(state);
    lengths_ = read_lengths(lengths, layout, steps, batch);
    inputs.lengths = lengths.is_none() ? nullptr : lengths_.data();
    inputs.reset = read_reset(reset, layout, steps, batch);
  }

  // A call on a packed sequence.
  Call(const Config& config, py::handle x, py::handle batch_sizes, py::handle state)
      : config_(config) {
    const py::array array = read_array<T>("x", x);
    if (array.ndim() != 2) {
      fail_shape("x", array, "(sum of batch_sizes, " + std::to_string(config.input_size) + ")");
    }
    packing = std::make_shared<const Packing>(read_batch_sizes(batch_sizes, array.shape(0)));
    x_ = read_packed<T>("x", x, *packing, config.input_size);
    steps = packing->steps;
    batch = packing->batch;
    read_initial(state);
    inputs.lengths = packing->lengths.data();
  }

  // Returns f(), whose memory depends on x.
  template <class F>
  auto with_memory(const F& f) const {
    return with_memory_for(
        [&] { return "x: got shape " + std::string(py::str(x_.given.attr("shape"))); }, f);
  }

  // Allocates the arrays that the call returns; y is `out` if that is given.
  void make_outputs(const ResultMemory& memory, py::handle out, py::handle lengths,
                    py::handle reset) {
    const Shape y_shape = layout.sequence(steps, batch, config_.output_size());
    if (packing) {
      y = memory.make<T>("y", {packing->rows, config_.output_size()});
    } else if (out.is_none()) {
      y = memory.make<T>("y", y_shape);
    } else {
      const py::array array = read_output<T>("out", out, y_shape);
      check_no_overlap("out", array, "x", x_.given);
      check_no_overlap("out", array, h_0_name_, h_0_.given);
      check_no_overlap("out", array, c_0_name_, c_0_.given);
      check_no_overlap("out", array, "lengths", lengths);
      check_no_overlap("out", array, "reset", reset);
      y = array;
    }
    outputs.y = packing ? packing->sequence(sequence_view<T>(y, {false, false}))
                        : sequence_view<T>(y, layout);
    const Index rows = state_rows(config_);
    h_n = memory.make<T>("h_n", layout.state(rows, batch, config_.state_size()));
    outputs.h_n = state_view<T>(h_n, layout);
    if (config_.has_cell_state()) {
      c_n = memory.make<T>("c_n", layout.state(rows, batch, config_.hidden_size));
      outputs.c_n = state_view<T>(c_n, layout);
    }
  }

  py::object state() const { return state_object(config_, h_n, c_n); }

  Layout layout;                           // for a packed sequence, the layout of its states
  std::shared_ptr<const Packing> packing;  // null: not packed
  Index steps = 0;
  Index batch = 0;
  Inputs<T> inputs;
  Outputs<T> outputs;
  py::object y, h_n, c_n;

 private:
  // Reads the initial state. x, steps and batch must be known.
  void read_initial(py::handle state) {
    const StateObjects given = read_state(config_, "state", state);
    const Index rows = state_rows(config_);
    const Index x_steps = packing ? 0 : steps;
    h_0_ = read_state_array<T>(given.h_name, given.h, layout, rows, batch, config_.state_size(),
                               x_steps);
    c_0_ = read_state_array<T>(given.c_name, given.c, layout, rows, batch, config_.hidden_size,
                               x_steps);
    h_0_name_ = given.h_name;
    c_0_name_ = given.c_name;
    inputs.x = x_.view;
    inputs.h_0 = h_0_.view;
    inputs.c_0 = c_0_.view;
  }

  void read_x(py::handle object, bool batch_first) {
    const py::array x = read_array<T>("x", object);
    const std::string features = std::to_string(config_.input_size);
    if ((x.ndim() != 2 && x.ndim() != 3) || x.shape(x.ndim() - 1) != config_.input_size) {
      fail_shape("x", x,
                 (batch_first ? "(N, T, " : "(T, N, ") + features + ") or unbatched (T, " +
                     features + ")");
    }
    layout = {x.ndim() == 3, batch_first};
    x_ = sequence_input<T>(x, layout);
    steps = x_.view.shape[0];
    batch = x_.view.shape[1];
  }

  const Config& config_;
  Input<T> x_, h_0_, c_0_;
  const char* h_0_name_ = "";
  const char* c_0_name_ = "";
  std::vector<Index> lengths_;
};

template <class T>
class TypedTape final : public Tape {
 public:
  TypedTape(std::unique_ptr<tidegate::Tape<T>> tape, const Call<T>& call)
      : tape_(std::move(tape)), layout_(call.layout), packing_(call.packing) {}

  const Config& config() const override { return tape_->config(); }
  py::dtype dtype() const override { return py::dtype::of<T>(); }
  Index steps() const override { return tape_->steps(); }
  Index batch() const override { return tape_->batch(); }

  py::dict gates(py::handle which_layer, py::handle which_direction) const override {
    const Index layer = read_index("layer", which_layer, 0, config().num_layers - 1);
    const bool reverse = read_bool("reverse", which_direction);
    if (reverse && !config().bidirectional) {
      throw py::value_error("reverse: got True, but the layer has one direction");
    }
    std::vector<std::string> names = gate_names(config());
    names.emplace_back(config().has_cell_state() ? "c" : "h");
    const Layout time_major{layout_.batched, false};
    py::dict gates;
    for (const std::string& name : names) {
      const py::array values =
          new_array<T>(name.c_str(), time_major.sequence(steps(), batch(), config().hidden_size));
      tape_->saved(layer, reverse, name, sequence_view<T>(values, time_major));
      gates[name.c_str()] = values;
    }
    return gates;
  }

  py::tuple backward(Index parameters, py::handle dy, py::handle dstate, py::handle num_threads,
                     bool want_x, bool want_parameters, const ResultMemory& memory) const {
    const int threads = read_num_threads(num_threads);
    const Index rows = state_rows(config());
    const Index outputs = config().output_size();
    const auto y = packing_ ? read_packed<T>("dy", dy, *packing_, outputs)
                            : read_sequence<T>("dy", dy, layout_, steps(), batch(), outputs);
    const StateObjects given = read_state(config(), "dstate", dstate);
    const auto h_n =
        read_state_array<T>(given.h_name, given.h, layout_, rows, batch(), config().state_size());
    const auto c_n =
        read_state_array<T>(given.c_name, given.c, layout_, rows, batch(), config().hidden_size);

    if (!y.view.given && !h_n.view.given && !c_n.view.given) {
      throw py::value_error(
          "dy: got None, and no dstate; wanted a gradient by y, by the state, or by both");
    }

    const py::array dh_0 =
        memory.make<T>("dh_0", layout_.state(rows, batch(), config().state_size()));
    py::object dx = py::none(), dparameters = py::none(), dc_0;

    InputGradients<T> gradients;
    if (want_x) {
      const Index inputs = config().input_size;
      const py::array array =
          memory.make<T>("dx", packing_ ? Shape{packing_->rows, inputs}
                                        : layout_.sequence(steps(), batch(), inputs));
      gradients.x = packing_ ? packing_->sequence(sequence_view<T>(array, {false, false}))
                             : sequence_view<T>(array, layout_);
      dx = array;
    }
    py::array flat;
    std::vector<std::pair<T*, Index>> parts;  // destinations and sizes of the flat gradient's parts
    if (want_parameters) {
      flat = new_array<T>("dparameters", {parameters});
      gradients.parameters = static_cast<T*>(const_cast<void*>(flat.data()));
      dparameters = flat;
      if (memory.is_of_tensors()) dparameters = parameter_arrays(memory, parts);
    }
    gradients.h_0 = state_view<T>(dh_0, layout_);
    if (config().has_cell_state()) {
      dc_0 = memory.make<T>("dc_0", layout_.state(rows, batch(), config().hidden_size));
      gradients.c_0 = state_view<T>(dc_0, layout_);
    }
    with_memory_for([&] { return "tape: got " + std::to_string(steps()) + " steps"; },
                    [&] {
                      without_gil(tape_->backward_cost(), [&] {
                        tape_->backward({y.view, h_n.view, c_n.view}, gradients, threads);
                        const T* values = gradients.parameters;
                        for (const auto& [to, count] : parts) {
                          std::copy_n(values, count, to);
                          values += count;
                        }
                      });
                    });
    return py::make_tuple(dx, state_object(config(), dh_0, dc_0), dparameters);
  }

 private:
  // Allocates an array for each parameter's gradient, and appends its address and size to `parts`.
  py::list parameter_arrays(const ResultMemory& memory,
                            std::vector<std::pair<T*, Index>>& parts) const {
    py::list arrays;
    for (const Parameter& p : tidegate::parameters(config())) {
      const py::array array =
          memory.make<T>(p.name.c_str(), p.columns > 0 ? Shape{p.rows, p.columns} : Shape{p.rows});
      parts.emplace_back(static_cast<T*>(const_cast<void*>(array.data())), p.size());
      arrays.append(array);
    }
    return arrays;
  }

  std::unique_ptr<tidegate::Tape<T>> tape_;
  Layout layout_;
  std::shared_ptr<const Packing> packing_;
};

template <class T>
class TypedModel final : public Model, public TypedParameters<T> {
 public:
  TypedModel(std::shared_ptr<tidegate::Model<T>> model, bool batch_first)
      : model_(std::move(model)), batch_first_(batch_first) {}

  const Config& config() const override { return model_->config(); }
  py::dtype dtype() const override { return py::dtype::of<T>(); }
  bool batch_first() const override { return batch_first_; }

  py::array flat(const py::object& owner) const override {
    return flat_parameters<T>(*model_, owner);
  }
  void write(Index offset, py::handle values) override {
    write_parameters<T>(*model_, offset, values);
  }
  Index parameter_count() const override { return model_->parameter_count(); }
  const char* precision() const override { return precision_name<T>(model_->precision()); }
  py::object quantized() const override { return quantized_parameters(*model_); }
  py::dict quantize(const std::string& name) const override {
    return quantize_parameters(*model_, name);
  }
  void update_parameters(const std::function<void(T* parameters)>& update) override {
    model_->update_parameters(update);
  }

  py::tuple run(py::handle x, py::handle state, py::handle lengths, py::handle reset,
                py::handle out, py::handle num_threads, py::handle empty,
                py::handle precision) const override {
    const int threads = read_num_threads(num_threads);
    const tidegate::Precision products = read_products_precision(precision);
    Call<T> call(config(), batch_first_, x, state, lengths, reset);
    call.make_outputs(ResultMemory(empty), out, lengths, reset);
    return run(call, threads, products);
  }

  py::tuple record(py::handle x, py::handle state, py::handle lengths, py::handle reset,
                   py::handle draw_dropout_scale, py::handle num_threads, py::handle empty,
                   py::handle precision) const override {
    const int threads = read_num_threads(num_threads);
    const tidegate::Precision products = read_products_precision(precision);
    Call<T> call(config(), batch_first_, x, state, lengths, reset);
    call.make_outputs(ResultMemory(empty), py::none(), lengths, reset);
    return record(call, draw_dropout_scale, threads, products);
  }

  py::tuple run_packed(py::handle x, py::handle batch_sizes, py::handle state,
                       py::handle num_threads, py::handle empty,
                       py::handle precision) const override {
    const int threads = read_num_threads(num_threads);
    const tidegate::Precision products = read_products_precision(precision);
    Call<T> call(config(), x, batch_sizes, state);
    call.make_outputs(ResultMemory(empty), py::none(), py::none(), py::none());
    return run(call, threads, products);
  }

  py::tuple record_packed(py::handle x, py::handle batch_sizes, py::handle state,
                          py::handle draw_dropout_scale, py::handle num_threads, py::handle empty,
                          py::handle precision) const override {
    const int threads = read_num_threads(num_threads);
    const tidegate::Precision products = read_products_precision(precision);
    Call<T> call(config(), x, batch_sizes, state);
    call.make_outputs(ResultMemory(empty), py::none(), py::none(), py::none());
    return record(call, draw_dropout_scale, threads, products);
  }

  py::tuple backward(const Tape& tape, py::handle dy, py::handle dstate, py::handle num_threads,
                     bool want_x, bool want_parameters, py::handle empty) const override {
    const auto* const typed = dynamic_cast<const TypedTape<T>*>(&tape);
    if (typed == nullptr) {
      throw py::type_error("tape: got dtype " + std::string(py::str(tape.dtype())) + ", wanted " +
                           std::string(py::str(dtype())));
    }
    return typed->backward(model_->parameter_count(), dy, dstate, num_threads, want_x,
                           want_parameters, ResultMemory(empty));
  }

  std::unique_ptr<Stream> stream(Index batch) const override {
    return with_memory_for([&] { return "batch: got " + std::to_string(batch); },
                           [&] { return make_stream<T>(model_, batch); });
  }

 private:
  py::tuple run(const Call<T>& call, int threads, tidegate::Precision products) const {
    call.with_memory([&] {
      without_gil(forward_cost(call),
                  [&] { model_->run(call.inputs, call.outputs, threads, products); });
    });
    return py::make_tuple(call.y, call.state());
  }

  py::tuple record(Call<T>& call, py::handle draw_dropout_scale, int threads,
                   tidegate::Precision products) const {
    model_->check_products(products);  // before anything is drawn
    py::object dropout_scale;
    if (!draw_dropout_scale.is_none()) {
      const Shape shape = {config().num_layers - 1, call.steps, call.batch, config().output_size()};
      const py::tuple sizes = py::make_tuple(shape[0], shape[1], shape[2], shape[3]);
      PyObject* const drawn = calling_python(
          [&] { return PyObject_CallOneArg(draw_dropout_scale.ptr(), sizes.ptr()); });
      if (drawn == nullptr) throw py::error_already_set();
      dropout_scale = py::reinterpret_steal<py::object>(drawn);
      const py::array array = read_array<T>("dropout_scale", dropout_scale);
      check_shape("dropout_scale", array, shape);
      if ((array.flags() & py::array::c_style) == 0)
        throw py::value_error("dropout_scale: not contiguous");
      call.inputs.dropout_scale = static_cast<const T*>(array.data());
    }
    std::unique_ptr<tidegate::Tape<T>> tape;
    call.with_memory([&] {
      without_gil(forward_cost(call),
                  [&] { tape = model_->record(call.inputs, call.outputs, threads, products); });
    });
    std::unique_ptr<Tape> typed = std::make_unique<TypedTape<T>>(std::move(tape), call);
    return py::make_tuple(call.y, call.state(), std::move(typed));
  }

  double forward_cost(const Call<T>& call) const {
    return model_->run_cost(call.steps, call.batch);
  }

  std::shared_ptr<tidegate::Model<T>> model_;
  bool batch_first_;
};

std::string show_tape(const Tape& tape) {
  const Config& config = tape.config();
  return "<Tape of " + cell_with_article(config.cell) + "(" + std::to_string(config.input_size) +
         ", " + std::to_string(config.hidden_size) + "): " + std::to_string(tape.steps()) +
         " steps, batch " + std::to_string(tape.batch()) + ", " +
         std::string(py::str(tape.dtype())) + ">";
}

// A list of (name, shape, offset), for tidegate.Params.
py::list parameter_specs(const Model& model) {
  py::list specs;
  for (const Parameter& p : parameters(model.config())) {
    py::tuple shape = py::make_tuple(p.rows);
    if (p.columns > 0) shape = py::make_tuple(p.rows, p.columns);
    specs.append(py::make_tuple(p.name, shape, p.offset));
  }
  return specs;
}

// TypeError unless dtype is float32 or float64.
std::unique_ptr<Model> make_model(const Config& config, const py::dtype& dtype, bool batch_first,
                                  const std::optional<py::dict>& quantized) {
  const auto make = [&]<class T>() -> std::unique_ptr<Model> {
    return with_memory_for([&] { return largest_size(config); },
                           [&] {
                             auto model = quantized ? std::make_shared<tidegate::Model<T>>(
                                                          config, read_quantized(*quantized))
                                                    : std::make_shared<tidegate::Model<T>>(config);
                             return std::make_unique<TypedModel<T>>(std::move(model), batch_first);
                           });
  };
  if (dtype.equal(py::dtype::of<float>())) return make.template operator()<float>();
  if (dtype.equal(py::dtype::of<double>())) return make.template operator()<double>();
  throw py::type_error("dtype: got " + std::string(py::str(dtype)) + ", wanted float32 or float64");
}

}  // namespace

void bind_tape(py::module_& m) {
  const NoSignatures no_signatures;
  py::class_<Tape> tape = bind_class<Tape>(
      m, "Tape", R"(The record of a training call for `backward`; made by `layer.forward`.

It holds the activated gates and states of every step, the weights that made them and its own copy of the
inputs, so it outlives the layer, changes of the parameters and of every array that was passed. It may be used
any number of times, from any thread.)");
  tape.def_property_readonly("config", &Tape::config, py::return_value_policy::copy,
                             "The options of the layer that made it.")
      .def_property_readonly("dtype", &Tape::dtype, "The dtype of the layer that made it.")
      .def_property_readonly("steps", &Tape::steps, "T, the number of steps.")
      .def_property_readonly("batch", &Tape::batch,
                             "N, the number of rows; 1 for an unbatched call.")
      .def("__repr__", &show_tape);
  add_method<&Tape::gates>(tape, "gates", R"(gates($self, layer=0, reverse=False)
--

Gates and states of one direction of one layer, at all steps.

Args:
    layer: 0 is the one that reads x.
    reverse: the second direction of a bidirectional layer.

Returns:
    A dict of new arrays (T, N, H), or (T, H) unbatched; time comes first whatever `batch_first`. LSTM:
    "i" "f" "g" "o", after their sigmoid or tanh, and the cell state "c". GRU: "r" "z" "n" and the hidden
    state "h". MGU: "f" "n" and "h". Zero at padded steps.

Raises:
    TypeError: layer is not an integer, or reverse is neither True nor False.
    ValueError: there is no such layer or direction.)",
                           {{"layer", py::int_(0)}, {"reverse", py::bool_(false)}});
}

void bind_model(py::module_& m) {
  bind_class<Model, Parameters>(m, "Model")
      .def(py::init(&make_model), py::arg("config"), py::arg("dtype"), py::arg("batch_first"),
           py::arg("quantized") = py::none())
      .def_property_readonly("config", &Model::config, py::return_value_policy::copy)
      .def_property_readonly("batch_first", &Model::batch_first)
      .def_property_readonly("specs", &parameter_specs)
      .def("run", &Model::run, py::arg("x"), py::arg("state"), py::arg("lengths"), py::arg("reset"),
           py::arg("out"), py::arg("num_threads"), py::arg("empty") = py::none(),
           py::arg("precision") = py::none())
      .def("record", &Model::record, py::arg("x"), py::arg("state"), py::arg("lengths"),
           py::arg("reset"), py::arg("draw_dropout_scale"), py::arg("num_threads"),
           py::arg("empty") = py::none(), py::arg("precision") = py::none())
      .def("run_packed", &Model::run_packed, py::arg("x"), py::arg("batch_sizes"), py::arg("state"),
           py::arg("num_threads"), py::arg("empty") = py::none(), py::arg("precision") = py::none())
      .def("record_packed", &Model::record_packed, py::arg("x"), py::arg("batch_sizes"),
           py::arg("state"), py::arg("draw_dropout_scale"), py::arg("num_threads"),
           py::arg("empty") = py::none(), py::arg("precision") = py::none())
      .def("backward", &Model::backward, py::arg("tape"), py::arg("dy"), py::arg("dstate"),
           py::arg("num_threads"), py::arg("want_x") = true, py::arg("want_parameters") = true,
           py::arg("empty") = py::none());
}

}  // namespace tidegate::bindings
