// Steps of SGD and Adam on flat vectors of parameters, and the two functions for clipping gradients
// by their norm. Names and formulas are PyTorch's. float and double are instantiated in the
// library.
//
// Each is one pass over memory; long ones are divided among threads. Results have the same bits for
// any number of threads and any instruction set. Subnormal numbers are treated as zero, as in the
// layers. Pointers are to `count` elements, and arrays may not overlap each other. num_threads 0:
// the setting in force. Negative counts throw a std::invalid_argument that names them.
//
// An InterruptPoll does not end a step, which would leave the parameters partly updated.
//
// The parameters of a layer are updated in place:
//   layer.update_parameters([&](float* parameters) {
//     adam_step(options, step, count, parameters, gradient, exp_avg, exp_avg_sq);
//   });
#ifndef TIDEGATE_OPTIMIZERS_H_
#define TIDEGATE_OPTIMIZERS_H_

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

//   g = gradient + weight_decay * p
//   buffer = momentum * buffer + (1 - dampening) * g                 (the first step: buffer = g)
//   p -= lr * buffer                                (nesterov: p -= lr * (g + momentum * buffer))
// and p -= lr * g where momentum is 0.
struct SgdOptions {
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
};

// Step 1, 2, ... of the parameters p. `momentum_buffer` is neither read nor written where momentum
// is 0, and not read in step 1.
template <class T>
TIDEGATE_EXPORT void sgd_step(const SgdOptions& options, Index step, Index count, T* parameters,
                              const T* gradient, T* momentum_buffer, int num_threads = 0);

//   g = gradient + weight_decay * p           (decoupled: g = gradient, p -= lr * weight_decay * p)
//   exp_avg    = beta1 * exp_avg    + (1 - beta1) * g
//   exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g^2
//   p -= lr * (exp_avg / (1 - beta1^step)) / (sqrt(exp_avg_sq / (1 - beta2^step)) + eps)
// (Kingma and Ba, 2015; decoupled decay, as in AdamW: Loshchilov and Hutter, 2019).
struct AdamOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool decoupled_weight_decay = false;
};

// Step 1, 2, ... of the parameters p. Both averages begin at zero.
template <class T>
TIDEGATE_EXPORT void adam_step(const AdamOptions& options, Index step, Index count, T* parameters,
                               const T* gradient, T* exp_avg, T* exp_avg_sq, int num_threads = 0);

// The sum of the squares, computed in double.
template <class T>
TIDEGATE_EXPORT double sum_of_squares(Index count, const T* values, int num_threads = 0);

// Multiplies each element by `factor`, rounded to T.
template <class T>
TIDEGATE_EXPORT void scale(Index count, T* values, double factor, int num_threads = 0);

}  // namespace tidegate

#endif  // TIDEGATE_OPTIMIZERS_H_
