// Losses and their gradients.
#include "tidegate/losses.h"

#include <cstdint>

#include "arrays.h"
#include "gil.h"
#include "module.h"

namespace tidegate::bindings {
namespace {

// An argument of a loss in the form that the core reads: a contiguous array of shape (rows,
// columns).
template <class T>
class Dense {
 public:
  Dense(const char* argument, py::handle object)
      : array_(contiguous(read_array<T>(argument, object))) {
    if (array_.ndim() != 2) fail_shape(argument, array_, "(rows, columns)");
  }

  Index rows() const { return array_.shape(0); }
  Index columns() const { return array_.shape(1); }
  const T* data() const { return static_cast<const T*>(array_.data()); }

 private:
  py::array array_;
};

// An optional mask: (rows,) booleans, or None.
class Mask {
 public:
  Mask(py::handle object, Index rows) {
    if (object.is_none()) return;
    array_ = contiguous(read_mask("mask", object));
    check_shape("mask", array_, {rows});
    data_ = static_cast<const std::uint8_t*>(array_.data());
  }

  const std::uint8_t* data() const { return data_; }

 private:
  py::array array_;
  const std::uint8_t* data_ = nullptr;
};

// Returns (loss, gradient). compute(input, gradient) writes the gradient and returns the loss, in
// about `nanoseconds` for each element.
template <class T, class Compute>
py::tuple loss_and_gradient(const Dense<T>& prediction, py::handle mask, bool mean,
                            double nanoseconds, const Compute& compute) {
  const Mask counts(mask, prediction.rows());
  LossInput<T> input;
  input.prediction = prediction.data();
  input.rows = prediction.rows();
  input.columns = prediction.columns();
  input.mask = counts.data();
  input.reduction = mean ? Reduction::mean : Reduction::sum;
  const py::array gradient = new_array<T>("gradient", {input.rows, input.columns});
  T* const to = static_cast<T*>(const_cast<void*>(gradient.data()));
  double loss = 0;
  const double elements = static_cast<double>(input.rows) * static_cast<double>(input.columns);
  without_gil(nanoseconds * elements, [&] { loss = compute(input, to); });
  return py::make_tuple(loss, gradient);
}

py::tuple softmax_cross_entropy(py::handle logits, py::handle targets, py::handle mask, bool mean) {
  return with_element_type("logits", logits, [&]<class T>() {
    const Dense<T> given("logits", logits);
    auto labels = py::array::ensure(targets);
    if (!labels || !labels.dtype().equal(py::dtype::of<std::int64_t>()))
      throw py::type_error("targets: got " + type_name(targets) + ", wanted an array of int64");
    labels = contiguous(labels);
    check_shape("targets", labels, {given.rows()});
    const auto* const data = static_cast<const Index*>(labels.data());
    return loss_and_gradient(given, mask, mean, 1, [&](const LossInput<T>& input, T* gradient) {
      return tidegate::softmax_cross_entropy(input, data, gradient);
    });
  });
}

// A loss that is a sum over elements.
template <class T>
using Elementwise = double (*)(const LossInput<T>&, const T* target, T* gradient, int num_threads);

template <class T>
py::tuple elementwise(Elementwise<T> loss, double nanoseconds, py::handle prediction,
                      const char* target_name, py::handle target, py::handle mask, bool mean) {
  const Dense<T> given("prediction", prediction), wanted(target_name, target);
  if (wanted.rows() != given.rows() || wanted.columns() != given.columns())
    throw py::value_error(std::string(target_name) + ": got another shape than the prediction's");
  return loss_and_gradient(given, mask, mean, nanoseconds,
                           [&](const LossInput<T>& input, T* gradient) {
                             return loss(input, wanted.data(), gradient, 0);
                           });
}

py::tuple binary_cross_entropy(py::handle logits, py::handle targets, py::handle mask, bool mean) {
  return with_element_type("logits", logits, [&]<class T>() {
    return elementwise<T>(&tidegate::binary_cross_entropy<T>, 2, logits, "targets", targets, mask,
                          mean);
  });
}

py::tuple mse(py::handle prediction, py::handle target, py::handle mask, bool mean) {
  return with_element_type("prediction", prediction, [&]<class T>() {
    return elementwise<T>(&tidegate::mse<T>, 1, prediction, "target", target, mask, mean);
  });
}

}  // namespace

void bind_losses(py::module_& m) {
  m.def("softmax_cross_entropy", &softmax_cross_entropy, py::arg("logits"), py::arg("targets"),
        py::arg("mask"), py::arg("mean"), py::pos_only());
  m.def("binary_cross_entropy", &binary_cross_entropy, py::arg("logits"), py::arg("targets"),
        py::arg("mask"), py::arg("mean"), py::pos_only());
  m.def("mse", &mse, py::arg("prediction"), py::arg("target"), py::arg("mask"), py::arg("mean"),
        py::pos_only());
}

}  // namespace tidegate::bindings
