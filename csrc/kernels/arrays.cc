// The kernels that pass over arrays: optimisers, losses, and measurements of the machine.
#include "kernels/isa_tables.h"
#include "kernels/losses.h"
#include "kernels/optimizers.h"
#include "kernels/peak.h"

namespace tidegate {
namespace {

template <class T>
constexpr ArrayKernels<T> array_kernels() {
  return {.adam = adam<T>,
          .sgd = sgd<T>,
          .scale = scale<T>,
          .sum_of_squares = sum_of_squares<T>,
          .softmax_cross_entropy = softmax_cross_entropy<T>,
          .binary_cross_entropy = elementwise_loss<BinaryCrossEntropy, T>,
          .mse = elementwise_loss<SquaredError, T>,
          .read_all = read_all<T>};
}

}  // namespace

const ForTypes<ArrayKernels> TIDEGATE_TABLE(arrays) = {array_kernels<float>(),
                                                       array_kernels<double>()};

}  // namespace tidegate
