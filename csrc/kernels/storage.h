// A storage of weights. Its file (exact_weights.h, bf16_weights.cc) defines a class with these
// members, on which products and packing are templates:
//
//   using Value     the type of rows, accumulators and cells: float or double
//   using Element   the type of a panel's elements
//   grain           the number of k's that one multiply step takes; the work is never divided
//                   within a grain
//   cost            see StorageCost
//   multiply_step   the product of one grain; FusedMultiplyAdd<Storage> (product.h) defines it for
//                   storages of grain 1
//   load, store     convert a vector of weights (one slice, k and gate) to and from Value
//
// The panel of a storage of grain 1 is [slice][k][gate][width]: all gates of a slice's units are
// adjacent, so that all accumulators of a unit are complete when the k loop of a tile ends.
#ifndef TIDEGATE_KERNELS_STORAGE_H_
#define TIDEGATE_KERNELS_STORAGE_H_

#include <utility>

#include "kernels/pack.h"
#include "kernels/phase.h"
#include "kernels/table.h"

namespace tidegate {
namespace {

template <class Weights, int... kinds>
constexpr StorageKernels<typename Weights::Value> storage_kernels(
    std::integer_sequence<int, kinds...>) {
  using T = typename Weights::Value;
  return {.cost = Weights::cost,
          .grain = Weights::grain,
          .panel_bytes = panel_bytes<Weights>,
          .pack = pack<Weights>,
          .products = {
              phase_products<Weights, shape_of(phase_spec(static_cast<PhaseKind>(kinds))), T>...}};
}

// The kernels of a storage, with a product for every kind of phase. Kinds of one shape share their
// product.
template <class Weights>
constexpr auto storage_kernels() {
  return storage_kernels<Weights>(std::make_integer_sequence<int, kPhaseKinds>());
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_STORAGE_H_
