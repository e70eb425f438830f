// Losses and their gradients. Sums are in double, of elements rounded to T.
#ifndef TIDEGATE_KERNELS_LOSSES_H_
#define TIDEGATE_KERNELS_LOSSES_H_

#include "kernels/elementwise.h"
#include "kernels/math.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// f of each vector of x to y. The last vector is filled up with `filling`, and f's results of that
// are dropped.
template <class T, class F>
TIDEGATE_INLINE void map_vectors(const T* x, T* y, Index count, T filling, const F& f) {
  constexpr Index kWidth = Vec<T>::width;
  Index i = 0;
  for (; i + kWidth <= count; i += kWidth) store(y + i, f(load(x + i)));
  if (i == count) return;
  const int lanes = static_cast<int>(count - i);
  T last[kWidth];
  for (int k = 0; k < kWidth; ++k) last[k] = k < lanes ? x[i + k] : filling;
  store_partial(y + i, f(load(last)), lanes);
}

// The greatest of `count` elements, at least 1; unspecified if there is a NaN.
template <class T>
TIDEGATE_INLINE T greatest(const T* x, Index count) {
  constexpr Index kWidth = Vec<T>::width;
  T most = x[0];
  Index i = 0;
  if (count >= kWidth) {
    Vec<T> vector = load(x);
    for (i = kWidth; i + kWidth <= count; i += kWidth) vector = at_least(load(x + i), vector);
    T lanes[kWidth];
    store(lanes, vector);
    for (const T lane : lanes) most = lane > most ? lane : most;
  }
  for (; i < count; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

// A row's loss = log(sum of exp(x - m)) - (x[target] - m), m the greatest, so that no exp
// overflows. d/dx = exp(x - m) / sum - (1 at the target).
//
// A NaN, or m infinite, makes an exp NaN, and so the sum and all of the row.
template <class T>
void softmax_cross_entropy(const SoftmaxCall<T>& call) {
  for (Index r = 0; r < call.rows; ++r) {
    const T* const x = call.logits + r * call.classes;
    T* const gradient = call.gradient + r * call.classes;
    const Index target = call.targets[r];
    const T most = greatest(x, call.classes);
    const Vec<T> shift = broadcast(most);
    map_vectors(x, gradient, call.classes, most, [&](Vec<T> v) __attribute__((always_inline)) {
      return exp_nonpositive(v - shift);
    });
    const double sum = sum_in_double(gradient, call.classes);
    // p - 1 at the target, without the cancellation; +0 where the others vanish.
    const double others = sum - static_cast<double>(gradient[target]);
    scale(gradient, call.classes, static_cast<T>(call.scale / sum));
    gradient[target] = static_cast<T>(call.scale * (0 - others) / sum);
    call.losses[r] =
        __builtin_log(sum) - (static_cast<double>(x[target]) - static_cast<double>(most));
  }
}

// -t log s(a) - (1-t) log(1 - s(a)), s the sigmoid, = max(a, 0) - a t + log(1 + exp(-|a|)).
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
  const ElementwiseLossCall<T> call = given;  // out of reach of what is stored
  T losses[kReductionBlock];
  for_each_vector<T>(call.count, [&](auto place) __attribute__((always_inline)) {
    Vec<T> slope;
    place.store(losses,
                Loss::loss_and_slope(place.load(call.prediction), place.load(call.target), slope));
    place.store(call.gradient, slope * broadcast(call.scale));
  });
  return sum_in_double(losses, call.count);
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_LOSSES_H_
