// The functions on plain arrays that bench/activations.cc exports for each ISA.
#ifndef TIDEGATE_BENCH_ACTIVATIONS_H_
#define TIDEGATE_BENCH_ACTIVATIONS_H_

#include "kernels/table.h"

namespace tidegate::bench {

// y[i] = f(x[i]) for i < count, a multiple of every vector's width.
template <class T>
struct Activations {
  void (*sigmoid)(const T* x, T* y, Index count);
  void (*tanh)(const T* x, T* y, Index count);
};

struct ActivationTable {
  Activations<float> f32;
  Activations<double> f64;
};

}  // namespace tidegate::bench

#endif  // TIDEGATE_BENCH_ACTIVATIONS_H_
