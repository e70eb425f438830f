// Steps of optimisers, and norms of gradients.
#include "tidegate/optimizers.h"

#include <string>

#include "gil.h"
#include "module.h"
#include "parameters.h"

namespace tidegate::bindings {
namespace {

// In nanoseconds, at 10 bytes per nanosecond.
double estimated_cost(Index accesses, Index bytes) {
  return static_cast<double>(accesses) * static_cast<double>(bytes) / 10;
}

template <class T>
T* writable(const char* argument, py::handle object, Index count) {
  return static_cast<T*>(read_output<T>(argument, object, {count}).mutable_data());
}

// Calls update(T* parameters) on a layer's parameters or on an array of `count` elements.
template <class T, class Update>
void update_parameters(py::handle parameters, Index count, double cost, const Update& update) {
  if (!py::isinstance<Parameters>(parameters)) {
    T* const values = writable<T>("parameters", parameters, count);
    without_gil(cost, [&] { update(values); });
    return;
  }
  auto* const layer = dynamic_cast<TypedParameters<T>*>(&parameters.cast<Parameters&>());
  if (layer == nullptr || layer->parameter_count() != count)
    throw py::type_error("gradient: got another dtype or size than the parameters have");
  without_gil(cost, [&] { layer->update_parameters(update); });
}

void sgd_step(py::handle parameters, py::handle gradient, py::handle momentum_buffer, Index step,
              const SgdOptions& options) {
  with_element_type("gradient", gradient, [&]<class T>() {
    const py::array given = contiguous(read_array<T>("gradient", gradient));
    const Index count = given.size();
    T* const buffer = writable<T>("momentum_buffer", momentum_buffer, count);
    const auto update = [&](T* values) {
      tidegate::sgd_step(options, step, count, values, static_cast<const T*>(given.data()), buffer);
    };
    update_parameters<T>(parameters, count, estimated_cost(5, given.nbytes()), update);
  });
}

void adam_step(py::handle parameters, py::handle gradient, py::handle exp_avg,
               py::handle exp_avg_sq, Index step, const AdamOptions& options) {
  with_element_type("gradient", gradient, [&]<class T>() {
    const py::array given = contiguous(read_array<T>("gradient", gradient));
    const Index count = given.size();
    T* const average = writable<T>("exp_avg", exp_avg, count);
    T* const average_of_squares = writable<T>("exp_avg_sq", exp_avg_sq, count);
    const auto update = [&](T* values) {
      tidegate::adam_step(options, step, count, values, static_cast<const T*>(given.data()),
                          average, average_of_squares);
    };
    update_parameters<T>(parameters, count, estimated_cost(7, given.nbytes()), update);
  });
}

double sum_of_squares(py::handle values) {
  return with_element_type("values", values, [&]<class T>() {
    const py::array given = contiguous(read_array<T>("values", values));
    double sum = 0;
    without_gil(estimated_cost(1, given.nbytes()), [&] {
      sum = tidegate::sum_of_squares(given.size(), static_cast<const T*>(given.data()));
    });
    return sum;
  });
}

void scale(py::handle values, double factor) {
  with_element_type("values", values, [&]<class T>() {
    const Index count = read_array<T>("values", values).size();
    T* const to = writable<T>("values", values, count);
    without_gil(estimated_cost(2, count * Index{sizeof(T)}),
                [&] { tidegate::scale(count, to, factor); });
  });
}

}  // namespace

void bind_optimizers(py::module_& m) {
  m.def(
      "sgd_step",
      [](py::handle parameters, py::handle gradient, py::handle momentum_buffer, Index step,
         double lr, double momentum, double dampening, double weight_decay, bool nesterov) {
        sgd_step(parameters, gradient, momentum_buffer, step,
                 {lr, momentum, dampening, weight_decay, nesterov});
      },
      py::arg("parameters"), py::arg("gradient"), py::arg("momentum_buffer"), py::arg("step"),
      py::kw_only(), py::arg("lr"), py::arg("momentum"), py::arg("dampening"),
      py::arg("weight_decay"), py::arg("nesterov"));
  m.def(
      "adam_step",
      [](py::handle parameters, py::handle gradient, py::handle exp_avg, py::handle exp_avg_sq,
         Index step, double lr, double beta1, double beta2, double eps, double weight_decay,
         bool decoupled) {
        adam_step(parameters, gradient, exp_avg, exp_avg_sq, step,
                  {lr, beta1, beta2, eps, weight_decay, decoupled});
      },
      py::arg("parameters"), py::arg("gradient"), py::arg("exp_avg"), py::arg("exp_avg_sq"),
      py::arg("step"), py::kw_only(), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
      py::arg("eps"), py::arg("weight_decay"), py::arg("decoupled"));
  m.def("sum_of_squares", &sum_of_squares, py::arg("values"), py::pos_only());
  m.def("scale", &scale, py::arg("values"), py::arg("factor"), py::pos_only());
}

}  // namespace tidegate::bindings
