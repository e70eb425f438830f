// A storage of weights for rows in the type of the computation. Its file (exact_weights.h) defines
// a class with these members, on which products and packing are templates. Storages that round
// rows, too, are described in rounded_phase.h.
//
//   kind            its StorageKind
//   using Value     the type of rows, accumulators and cells: float or double
//   using Element   the type of a panel's elements
//   grain           the number of k's that one multiply step takes; the work is never divided
//                   within a grain
//   cost            see StorageCost
//   multiply_step   the product of one grain
//   multiply_rest   the product of a last grain that is not whole; only for grains above 1
//   panel_bytes, pack   the packing
//
// The panel is [slice][grain of k][gate][width * grain] in elements: all gates of a slice's units
// are adjacent, so that all accumulators of a unit are complete when the k loop of a tile ends.
//
// A storage of grain 1 that holds single weights inherits its product from FusedMultiplyAdd
// (product.h) and its packing from VectorPanels (pack.h), and defines
//
//   load, store     convert a vector of weights (one slice, k and gate) to and from Value
#ifndef TIDEGATE_KERNELS_STORAGE_H_
#define TIDEGATE_KERNELS_STORAGE_H_

#include <utility>

#include "kernels/pack.h"
#include "kernels/peak.h"
#include "kernels/phase.h"
#include "kernels/table.h"

namespace tidegate {
namespace {

template <class Weights, int... kinds>
constexpr StorageKernels<typename Weights::Value> storage_kernels(
    std::integer_sequence<int, kinds...>) {
  using T = typename Weights::Value;
  static_assert(kSumBlock % Weights::grain == 0 && kPackedDepth % Weights::grain == 0);
  return {.kind = Weights::kind,
          .cost = Weights::cost,
          .grain = Weights::grain,
          .max_rows = [](Index) -> Index { return INT64_MAX; },
          .panel_bytes = Weights::panel_bytes,
          .rounded_bytes = [](Index, Index) -> Index { return 0; },
          .pack = Weights::pack,
          .products =
              {phase_products<Weights, shape_of(phase_spec(static_cast<PhaseKind>(kinds))), T>...},
          .peak_round_flops = fma_round_flops<T>(),
          .peak_rounds = fma_rounds<T>};
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
