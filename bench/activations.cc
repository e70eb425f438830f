// sigmoid and tanh over arrays, compiled once for each ISA like the kernels, whose table does not
// export them separately. kernels.cc measures them.
#include "activations.h"

#include "kernels/math.h"
#include "kernels/vec.h"

namespace tidegate::bench {
namespace {

template <class T>
void sigmoids(const T* x, T* y, Index count) {
  for (Index i = 0; i < count; i += Vec<T>::width) store(y + i, sigmoid(load(x + i)));
}

template <class T>
void tanhs(const T* x, T* y, Index count) {
  for (Index i = 0; i < count; i += Vec<T>::width) store(y + i, tanh(load(x + i)));
}

}  // namespace

extern "C" {
extern const ActivationTable TIDEGATE_BENCH_ACTIVATIONS;
const ActivationTable TIDEGATE_BENCH_ACTIVATIONS = {{sigmoids<float>, tanhs<float>},
                                                    {sigmoids<double>, tanhs<double>}};
}

}  // namespace tidegate::bench
