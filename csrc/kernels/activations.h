// The activation functions with their slopes, and the two policies by which a cell selects its own:
// sigmoid and tanh at compile time, or the functions that the call names.
#ifndef TIDEGATE_KERNELS_ACTIVATIONS_H_
#define TIDEGATE_KERNELS_ACTIVATIONS_H_

#include "kernels/math.h"
#include "kernels/vec.h"
#include "tidegate/activation.h"

namespace tidegate {
namespace {

// Applies a function of the C library to each lane. It is called with a double, so that a float
// result is the correctly computed value rounded once.
template <class T, class F>
inline Vec<T> by_lane(Vec<T> x, F&& f) {
  T lanes[Vec<T>::width];
  store(lanes, x);
  for (int i = 0; i < Vec<T>::width; ++i)
    lanes[i] = static_cast<T>(f(static_cast<double>(lanes[i])));
  return load(lanes);
}

// y = activation(x). All of them propagate NaN.
template <class T>
inline Vec<T> activate(const Activation& activation, Vec<T> x) {
  const Vec<T> zeros = zero<T>();
  const Vec<T> ones = broadcast<T>(1);
  const Vec<T> alpha = broadcast(static_cast<T>(activation.alpha));
  const Vec<T> beta = broadcast(static_cast<T>(activation.beta));
  switch (activation.kind) {
    case ActivationKind::sigmoid:
      return sigmoid(x);
    case ActivationKind::tanh:
      return tanh(x);
    case ActivationKind::relu:
      return select(less(x, zeros), zeros, x);
    case ActivationKind::hard_sigmoid: {
      const Vec<T> line = fma(alpha, x, beta);
      return select(less(line, zeros), zeros, select(less(ones, line), ones, line));
    }
    case ActivationKind::affine:
      return fma(alpha, x, beta);
    case ActivationKind::leaky_relu:
      return select(less(x, zeros), alpha * x, x);
    case ActivationKind::thresholded_relu:
      // x - alpha covers the two remaining cases: zero if x is alpha, NaN if x is NaN.
      return select(less(alpha, x), x, select(less(x, alpha), zeros, x - alpha));
    case ActivationKind::scaled_tanh:
      return alpha * tanh(beta * x);
    case ActivationKind::elu:
      return select(less(x, zeros), alpha * by_lane(x, [](double v) { return __builtin_expm1(v); }),
                    x);
    case ActivationKind::softsign:
      return by_lane(x, [](double v) {
        return __builtin_isinf(v) ? __builtin_copysign(1.0, v) : v / (1 + __builtin_fabs(v));
      });
    case ActivationKind::softplus:
      // Without overflow: log(1 + exp(v)) = max(v, 0) + log(1 + exp(-|v|)).
      return by_lane(x, [](double v) {
        return (v < 0 ? 0 : v) + __builtin_log1p(__builtin_exp(-__builtin_fabs(v)));
      });
  }
  return x;
}

template <class T>
inline Vec<T> sigmoid_slope(Vec<T> y) {
  return y * (broadcast<T>(1) - y);
}
template <class T>
inline Vec<T> tanh_slope(Vec<T> y) {
  return fma(-y, y, broadcast<T>(1));
}

// d activation(x) / dx as a function of y = activation(x), the only value that training keeps. The
// left slope at a kink; zero where hard_sigmoid saturates.
template <class T>
inline Vec<T> slope(const Activation& activation, Vec<T> y) {
  const Vec<T> zeros = zero<T>();
  const Vec<T> ones = broadcast<T>(1);
  const Vec<T> alpha = broadcast(static_cast<T>(activation.alpha));
  const Vec<T> beta = broadcast(static_cast<T>(activation.beta));
  switch (activation.kind) {
    case ActivationKind::sigmoid:
      return sigmoid_slope(y);
    case ActivationKind::tanh:
      return tanh_slope(y);
    case ActivationKind::relu:
    case ActivationKind::thresholded_relu:
      return select(less(zeros, y), ones, zeros);
    case ActivationKind::hard_sigmoid:
      return select(less(zeros, y), select(less(y, ones), alpha, zeros), zeros);
    case ActivationKind::affine:
      return alpha;
    case ActivationKind::leaky_relu:
      return select(less(zeros, y), ones, alpha);
    case ActivationKind::scaled_tanh: {
      if (activation.alpha == 0) return zeros;
      return alpha * beta * tanh_slope(y / alpha);
    }
    case ActivationKind::elu:
      return select(less(zeros, y), ones, y + alpha);
    case ActivationKind::softsign: {
      const Vec<T> rest = ones - abs(y);
      return rest * rest;
    }
    case ActivationKind::softplus:
      return by_lane(y, [](double v) { return -__builtin_expm1(-v); });
  }
  return ones;
}

// Sigmoid and tanh, as in PyTorch.
struct StandardActivations {
  explicit StandardActivations(const CellActivations*) {}

  static constexpr bool input_forget() { return false; }

  template <class T>
  static Vec<T> gate(Vec<T> x) {
    return sigmoid(x);
  }
  template <class T>
  static Vec<T> gate_slope(Vec<T> y) {
    return sigmoid_slope(y);
  }
  template <class T>
  static Vec<T> candidate(Vec<T> x) {
    return tanh(x);
  }
  template <class T>
  static Vec<T> candidate_slope(Vec<T> y) {
    return tanh_slope(y);
  }
  template <class T>
  static Vec<T> output(Vec<T> c) {
    return tanh(c);
  }
  template <class T>
  static Vec<T> output_slope(Vec<T> y) {
    return tanh_slope(y);
  }
};

// The activations that the call names.
class ChosenActivations {
 public:
  explicit ChosenActivations(const CellActivations* chosen) : chosen_(*chosen) {}

  bool input_forget() const { return chosen_.input_forget; }

  template <class T>
  Vec<T> gate(Vec<T> x) const {
    return activate(chosen_.gate, clamped(x));
  }
  template <class T>
  Vec<T> gate_slope(Vec<T> y) const {
    return slope(chosen_.gate, y);
  }
  template <class T>
  Vec<T> candidate(Vec<T> x) const {
    return activate(chosen_.candidate, clamped(x));
  }
  template <class T>
  Vec<T> candidate_slope(Vec<T> y) const {
    return slope(chosen_.candidate, y);
  }
  template <class T>
  Vec<T> output(Vec<T> c) const {
    return activate(chosen_.output, c);
  }
  template <class T>
  Vec<T> output_slope(Vec<T> y) const {
    return slope(chosen_.output, y);
  }

 private:
  template <class T>
  Vec<T> clamped(Vec<T> x) const {
    if (chosen_.clip == 0) return x;
    const T clip = static_cast<T>(chosen_.clip);
    return at_most(at_least(x, broadcast(-clip)), broadcast(clip));
  }

  const CellActivations& chosen_;
};

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_ACTIVATIONS_H_
