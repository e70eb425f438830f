// Linear layers, which map rows to rows.
#include "tidegate/linear.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "arguments.h"
#include "gil.h"
#include "module.h"
#include "parameters.h"

namespace tidegate::bindings {
namespace {

constexpr Layout kRows{false, false};

// An input of rows of `features` elements.
template <class T>
Input<T> read_rows(const char* argument, py::handle object, Index features) {
  const py::array array = read_array<T>(argument, object);
  if (array.ndim() != 2 || array.shape(1) != features)
    fail_shape(argument, array, "(rows, " + std::to_string(features) + ")");
  return sequence_input<T>(array, kRows);
}

class LinearTape {
 public:
  virtual ~LinearTape() = default;
  virtual py::dtype dtype() const = 0;
  virtual Index rows() const = 0;
  virtual Index in_features() const = 0;
  virtual Index out_features() const = 0;
  virtual bool has_bias() const = 0;
  virtual py::tuple backward(py::handle dy, py::handle num_threads) const = 0;
};

class Linear : public Parameters {
 public:
  virtual py::array run(py::handle x, py::handle num_threads) const = 0;
  virtual py::tuple record(py::handle x, py::handle num_threads) const = 0;
};

template <class T>
class TypedLinearTape final : public LinearTape {
 public:
  explicit TypedLinearTape(std::unique_ptr<tidegate::LinearTape<T>> tape)
      : tape_(std::move(tape)) {}

  py::dtype dtype() const override { return py::dtype::of<T>(); }
  Index rows() const override { return tape_->rows(); }
  Index in_features() const override { return tape_->in_features(); }
  Index out_features() const override { return tape_->out_features(); }
  bool has_bias() const override { return tape_->has_bias(); }

  py::tuple backward(py::handle dy, py::handle num_threads) const override {
    const int threads = read_num_threads(num_threads);
    const Input<T> given =
        read_sequence<T>("dy", dy, kRows, tape_->rows(), 1, tape_->out_features());
    const py::array dx = new_array<T>("dx", {tape_->rows(), tape_->in_features()});
    const Index parameters = tape_->out_features() * (tape_->in_features() + tape_->has_bias());
    const py::array dparameters = new_array<T>("dparameters", {parameters});
    const View<T> dx_view = sequence_view<T>(dx, kRows);
    T* const dparameters_data = static_cast<T*>(const_cast<void*>(dparameters.data()));
    without_gil(tape_->backward_cost(), [&] {
      tape_->backward(given.view.data, given.view.stride[0], dx_view.data, dx_view.stride[0],
                      dparameters_data, threads);
    });
    return py::make_tuple(dx, dparameters);
  }

 private:
  std::unique_ptr<tidegate::LinearTape<T>> tape_;
};

template <class T>
class TypedLinear final : public Linear, public TypedParameters<T> {
 public:
  template <class... Arguments>
  explicit TypedLinear(Arguments&&... arguments) : layer_(std::forward<Arguments>(arguments)...) {}

  py::dtype dtype() const override { return py::dtype::of<T>(); }

  py::array flat(const py::object& owner) const override {
    return flat_parameters<T>(layer_, owner);
  }
  void write(Index offset, py::handle values) override {
    write_parameters<T>(layer_, offset, values);
  }
  Index parameter_count() const override { return layer_.parameter_count(); }
  const char* precision() const override { return precision_name<T>(layer_.precision()); }
  py::object quantized() const override { return quantized_parameters(layer_); }
  py::dict quantize(const std::string& name) const override {
    return quantize_parameters(layer_, name);
  }
  void update_parameters(const std::function<void(T* parameters)>& update) override {
    layer_.update_parameters(update);
  }

  py::array run(py::handle x, py::handle num_threads) const override {
    const int threads = read_num_threads(num_threads);
    const Input<T> given = read_rows<T>("x", x, layer_.in_features());
    const py::array y = new_y(given);
    const View<T> to = sequence_view<T>(y, kRows);
    without_gil(cost(given), [&] {
      layer_.run(given.view.data, given.view.stride[0], to.data, to.stride[0], given.view.shape[0],
                 threads);
    });
    return y;
  }

  py::tuple record(py::handle x, py::handle num_threads) const override {
    const int threads = read_num_threads(num_threads);
    const Input<T> given = read_rows<T>("x", x, layer_.in_features());
    const py::array y = new_y(given);
    const View<T> to = sequence_view<T>(y, kRows);
    std::unique_ptr<tidegate::LinearTape<T>> tape;
    without_gil(cost(given), [&] {
      tape = layer_.record(given.view.data, given.view.stride[0], to.data, to.stride[0],
                           given.view.shape[0], threads);
    });
    std::unique_ptr<LinearTape> typed = std::make_unique<TypedLinearTape<T>>(std::move(tape));
    return py::make_tuple(y, std::move(typed));
  }

 private:
  py::array new_y(const Input<T>& x) const {
    return new_array<T>("y", {x.view.shape[0], layer_.out_features()});
  }
  double cost(const Input<T>& x) const { return layer_.run_cost(x.view.shape[0]); }

  tidegate::Linear<T> layer_;
};

std::unique_ptr<Linear> make_linear(Index in_features, Index out_features, bool bias,
                                    const py::dtype& dtype,
                                    const std::optional<py::dict>& quantized) {
  const auto make = [&]<class T>() -> std::unique_ptr<Linear> {
    return with_memory_for(
        [&] {
          return "in_features: got " + std::to_string(in_features) + " with out_features " +
                 std::to_string(out_features);
        },
        [&]() -> std::unique_ptr<Linear> {
          if (quantized) {
            return std::make_unique<TypedLinear<T>>(in_features, out_features, bias,
                                                    read_quantized(*quantized));
          }
          return std::make_unique<TypedLinear<T>>(in_features, out_features, bias);
        });
  };
  if (dtype.equal(py::dtype::of<float>())) return make.template operator()<float>();
  if (dtype.equal(py::dtype::of<double>())) return make.template operator()<double>();
  throw py::type_error("dtype: got " + std::string(py::str(dtype)) + ", wanted float32 or float64");
}

}  // namespace

void bind_linear(py::module_& m) {
  bind_class<LinearTape>(m, "LinearTape")
      .def_property_readonly("dtype", &LinearTape::dtype)
      .def_property_readonly("rows", &LinearTape::rows)
      .def_property_readonly("in_features", &LinearTape::in_features)
      .def_property_readonly("out_features", &LinearTape::out_features)
      .def_property_readonly("has_bias", &LinearTape::has_bias)
      .def("backward", &LinearTape::backward, py::arg("dy"), py::arg("num_threads"));
  bind_class<Linear, Parameters>(m, "Linear")
      .def(py::init(&make_linear), py::arg("in_features"), py::arg("out_features"), py::arg("bias"),
           py::arg("dtype"), py::arg("quantized") = py::none())
      .def("run", &Linear::run)
      .def("record", &Linear::record);
}

}  // namespace tidegate::bindings
