// Losses and their gradients. Names and formulas are PyTorch's. float and double are instantiated
// in the library.
//
// Each is one pass over memory; long ones are divided among threads. On one instruction set the
// results have the same bits for any number of threads, and masked rows give the same bits as
// absent rows. Losses are summed in double. NaN and infinities propagate; those of softmax stay
// within their row. An InterruptPoll may end a call, which leaves the gradient unspecified.
#ifndef TIDEGATE_LOSSES_H_
#define TIDEGATE_LOSSES_H_

#include <cstdint>

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

enum class Reduction { mean, sum };

// The inputs that all losses share. Arrays are dense and row-major.
template <class T>
struct LossInput {
  const T* prediction = nullptr;  // (rows, columns)
  Index rows = 0;
  Index columns = 0;
  // (rows,), nonzero for rows that count; null: all rows count. A row that does not count is not
  // read, nor is its target, and its gradient is zero.
  const std::uint8_t* mask = nullptr;
  // The mean or sum over the rows that count; 0 if there are none.
  Reduction reduction = Reduction::mean;
};

// All losses return the loss, and write its gradient by the prediction to `gradient` (rows,
// columns), which may overlap no other array. num_threads 0: the setting in force. They throw
// std::invalid_argument for a negative size, or for a target out of range in a row that counts.

// -log softmax(x)[target] of each row x of logits: targets (rows,) in 0..columns-1. The gradient is
// softmax(x) - onehot(target), divided by the number of rows for the mean. The relative error of an
// element of softmax is a few units of roundoff plus the difference to the row's greatest logit, in
// units of roundoff; elements below the least normal number are zero. A target out of range is
// found before anything is written.
template <class T>
TIDEGATE_EXPORT double softmax_cross_entropy(const LossInput<T>& logits, const Index* targets,
                                             T* gradient, int num_threads = 0);

// -t log s(a) - (1-t) log(1 - s(a)) of each element a, where s is the sigmoid: targets t (rows,
// columns) in 0..1 (NaN propagates). Computed as max(a, 0) - a t + log(1 + exp(-|a|)), which
// overflows for no logit. The gradient is s(a) - t, divided by the number of elements for the mean.
// A target out of range leaves the gradient unspecified.
template <class T>
TIDEGATE_EXPORT double binary_cross_entropy(const LossInput<T>& logits, const T* targets,
                                            T* gradient, int num_threads = 0);

// (prediction - target)^2 of each element: target (rows, columns). The gradient is
// 2 (prediction - target), divided by the number of elements for the mean.
template <class T>
TIDEGATE_EXPORT double mse(const LossInput<T>& prediction, const T* target, T* gradient,
                           int num_threads = 0);

}  // namespace tidegate

#endif  // TIDEGATE_LOSSES_H_
