// Losses and their gradients. Elements are rounded to T and summed in double.
#ifndef TIDEGATE_KERNELS_LOSSES_H_
#define TIDEGATE_KERNELS_LOSSES_H_

#include "kernels/elementwise.h"
#include "kernels/math.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// y = f(x), vector by vector. The last vector is padded with `padding`, and the padding's results
// are dropped.
template <class T, class F>
TIDEGATE_INLINE void map_vectors(const T* x, T* y, Index count, T padding, const F& f) {
  constexpr Index kWidth = Vec<T>::width;
  Index i = 0;
  for (; i + kWidth <= count; i += kWidth) store(y + i, f(load(x + i)));
  if (i == count) return;
  const int lanes = static_cast<int>(count - i);
  T last[kWidth];
  for (int k = 0; k < kWidth; ++k) last[k] = k < lanes ? x[i + k] : padding;
  store_partial(y + i, f(load(last)), lanes);
}

// The maximum of `count` >= 1 elements; unspecified if one is NaN.
template <class T>
TIDEGATE_INLINE T maximum(const T* x, Index count) {
  constexpr Index kWidth = Vec<T>::width;
  T result = x[0];
  Index i = 0;
  if (count >= kWidth) {
    Vec<T> vector = load(x);
    for (i = kWidth; i + kWidth <= count; i += kWidth) vector = at_least(load(x + i), vector);
    T lanes[kWidth];
    store(lanes, vector);
    for (const T lane : lanes) result = lane > result ? lane : result;
  }
  for (; i < count; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

// The loss of a row is log(sum of exp(x - m)) - (x[target] - m), where m is the maximum of the row,
// so that no exp overflows. d/dx = exp(x - m) / sum - (1 at the target).
//
// If an element is NaN or m is infinite, one exp is NaN, hence the sum and the whole row.
template <class T>
void softmax_cross_entropy(const SoftmaxCall<T>& call) {
  for (Index r = 0; r < call.rows; ++r) {
    const T* const x = call.logits + r * call.classes;
    T* const gradient = call.gradient + r * call.classes;
    const Index target = call.targets[r];
    const T max = maximum(x, call.classes);
    const Vec<T> shift = broadcast(max);
    map_vectors(x, gradient, call.classes, max, [&](Vec<T> v) __attribute__((always_inline)) {
      return exp_nonpositive(v - shift);
    });
    const double sum = sum_in_double(gradient, call.classes);
    // p - 1 at the target, without cancellation; +0 if the exp of all other classes is zero.
    const double others = sum - static_cast<double>(gradient[target]);
    scale(gradient, call.classes, static_cast<T>(call.scale / sum));
    gradient[target] = static_cast<T>(call.scale * (0 - others) / sum);
    call.losses[r] =
        __builtin_log(sum) - (static_cast<double>(x[target]) - static_cast<double>(max));
  }
}

// -t log s(a) - (1-t) log(1 - s(a)) = max(a, 0) - a t + log(1 + exp(-|a|)), where s is the sigmoid.
// d/da = s(a) - t.
struct BinaryCrossEntropy {
  template <class T>
  static TIDEGATE_INLINE Vec<T> loss_and_slope(Vec<T> a, Vec<T> t, Vec<T>& slope) {
    const Vec<T> one = broadcast<T>(1);
    const Vec<T> small = exp_nonpositive(-abs(a));
    const Mask<T> negative = less(a, zero<T>());
    slope = select(negative, small, one) / (one + small) - t;
    return select(negative, zero<T>(), a) - a * t + log1p_unit(small);
  }
};

// (a - t)^2. d/da = 2 (a - t).
struct SquaredError {
  template <class T>
  static TIDEGATE_INLINE Vec<T> loss_and_slope(Vec<T> a, Vec<T> t, Vec<T>& slope) {
    const Vec<T> error = a - t;
    slope = error + error;
    return error * error;
  }
};

template <class Loss, class T>
double elementwise_loss(const ElementwiseLossCall<T>& given) {
  const ElementwiseLossCall<T> call = given;  // a local copy, which no store can alias
  T losses[kReductionBlock];
  for_each_vector<T>(call.count, [&](auto position) __attribute__((always_inline)) {
    Vec<T> slope;
    position.store(losses, Loss::loss_and_slope(position.load(call.prediction),
                                                position.load(call.target), slope));
    position.store(call.gradient, slope * broadcast(call.scale));
  });
  return sum_in_double(losses, call.count);
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_LOSSES_H_
