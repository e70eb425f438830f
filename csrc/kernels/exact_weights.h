// Weights stored in the type of the computation, float or double.
#ifndef TIDEGATE_KERNELS_EXACT_WEIGHTS_H_
#define TIDEGATE_KERNELS_EXACT_WEIGHTS_H_

#include "kernels/pack.h"
#include "kernels/product.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

template <class T>
struct ExactWeights : FusedMultiplyAdd<ExactWeights<T>>, VectorPanels<ExactWeights<T>> {
  static constexpr StorageKind kind = kExactWeights;
  using Value = T;
  using Element = T;
  static constexpr Index grain = 1;
  static constexpr StorageCost cost = sizeof(T) == sizeof(float) ? StorageCost{"float32", 1, 1, 4}
                                                                 : StorageCost{"float64", 2, 2, 8};

  static TIDEGATE_INLINE Vec<T> load(const T* from) { return tidegate::load<T>(from); }
  static TIDEGATE_INLINE void store(T* to, Vec<T> weights) { tidegate::store(to, weights); }
};

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_EXACT_WEIGHTS_H_
