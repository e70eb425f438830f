// The steps of the optimisers, element by element, each in one pass over memory. Every operation is
// rounded separately and none is fused, so that all ISAs give the same bits.
#ifndef TIDEGATE_KERNELS_OPTIMIZERS_H_
#define TIDEGATE_KERNELS_OPTIMIZERS_H_

#include "kernels/elementwise.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// The gradient of the loss with the penalty l2/2 * |values|^2.
template <bool kL2, class T>
TIDEGATE_INLINE Vec<T> with_penalty(Vec<T> gradient, Vec<T> values, T l2) {
  return kL2 ? values * broadcast(l2) + gradient : gradient;
}

template <bool kL2, class T>
void adam_elements(const AdamCall<T>& given) {
  const AdamCall<T> call = given;  // a local copy: no store can alias it, so it stays in registers
  for_each_vector<T>(call.count, [&](auto position) __attribute__((always_inline)) {
    const Vec<T> values = position.load(call.values);
    const Vec<T> gradient = with_penalty<kL2>(position.load(call.gradient), values, call.l2);
    const Vec<T> exp_avg = position.load(call.exp_avg) * broadcast(call.beta1) +
                           gradient * broadcast(call.one_minus_beta1);
    const Vec<T> exp_avg_sq = position.load(call.exp_avg_sq) * broadcast(call.beta2) +
                              gradient * broadcast(call.one_minus_beta2) * gradient;
    const Vec<T> denominator =
        sqrt(exp_avg_sq) / broadcast(call.root_correction2) + broadcast(call.eps);
    const Vec<T> step = exp_avg / denominator * broadcast(call.step_size);
    position.store(call.exp_avg, exp_avg);
    position.store(call.exp_avg_sq, exp_avg_sq);
    position.store(call.values, values * broadcast(call.decay) - step);
  });
}

template <class T>
void adam(const AdamCall<T>& call) {
  if (call.l2 != 0) {
    adam_elements<true>(call);
  } else {
    adam_elements<false>(call);
  }
}

template <bool kL2, class T>
void sgd_elements(const SgdCall<T>& given) {
  const SgdCall<T> call = given;
  for_each_vector<T>(call.count, [&](auto position) __attribute__((always_inline)) {
    const Vec<T> values = position.load(call.values);
    Vec<T> direction = with_penalty<kL2>(position.load(call.gradient), values, call.l2);
    if (call.momentum_buffer) {
      Vec<T> buffer = direction;
      if (!call.first) {
        buffer = position.load(call.momentum_buffer) * broadcast(call.momentum) +
                 direction * broadcast(call.one_minus_dampening);
      }
      position.store(call.momentum_buffer, buffer);
      direction = call.nesterov ? direction + buffer * broadcast(call.momentum) : buffer;
    }
    position.store(call.values, values - direction * broadcast(call.lr));
  });
}

template <class T>
void sgd(const SgdCall<T>& call) {
  if (call.l2 != 0) {
    sgd_elements<true>(call);
  } else {
    sgd_elements<false>(call);
  }
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_OPTIMIZERS_H_
