// A storage of weights, as its file (exact_weights.cc, bf16_weights.cc) describes it to products
// and packing:
//
//   using Value     the type of rows, accumulators and cells: float or double
//   using Element   the type of a panel's elements
//   grain           how many k's a product takes together, which no cut of the work divides
//   cost            see StorageCost
//   multiply_step   the product of one grain; FusedMultiplyAdd<Storage> (product.h) has it for
//                   storages of grain 1
//   load, store     a vector of a slice's weights of one k and gate, to and from Value
//
// A panel of a storage of grain 1 is [slice][k][gate][width]: all gates of a slice's units side by
// side, so that a tile's accumulators are complete when its k loop ends and the cell runs on
// registers.
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

// The table of a storage: the products of every kind of phase. Kinds of one shape share their
// product.
template <class Weights>
constexpr auto storage_kernels() {
  return storage_kernels<Weights>(std::make_integer_sequence<int, kPhaseKinds>());
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_STORAGE_H_
