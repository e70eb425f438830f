// The kernels for weight gradients and sums of rows.
#include "kernels/outer.h"

#include "kernels/isa_tables.h"

namespace tidegate {
namespace {

template <class T>
constexpr OuterKernels<T> outer_kernels() {
  return {.scratch = OuterShape<T>::kScratch,
          .outer = outer<T>,
          .sum_rows = sum_rows<T>,
          .add_rows = add_rows<T>};
}

}  // namespace

const ForTypes<OuterKernels> TIDEGATE_TABLE(outer) = {outer_kernels<float>(),
                                                      outer_kernels<double>()};

}  // namespace tidegate
