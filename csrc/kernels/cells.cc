// The kernels of the cells: one entry for each phase in cells.h.
#include "kernels/cells.h"

#include "kernels/epilogue.h"
#include "kernels/isa_tables.h"

namespace tidegate {
namespace {

template <class Activations>
using LstmPlain = Lstm<Activations, false>;
template <class Activations>
using LstmPeephole = Lstm<Activations, true>;

template <template <class> class Cell, class T>
void backward(const BackwardCall<T>& call) {
  if (call.activations) {
    run_backward<Cell<ChosenActivations>>(call);
  } else {
    run_backward<Cell<StandardActivations>>(call);
  }
}

// Enters the kernels of a cell's phase in the table, at the index of its kind.
template <template <class> class Cell, class T>
constexpr void add(CellKernels<T>& all) {
  constexpr PhaseKind kind = Cell<StandardActivations>::spec.kind;
  all.finish[kind] = finish<Cell<StandardActivations>, T>;
  all.finish_chosen[kind] = finish<Cell<ChosenActivations>, T>;
  if constexpr (kind != kLinear) all.backward[kind] = backward<Cell, T>;
}

template <class T>
constexpr bool is_complete(const CellKernels<T>& all) {
  for (int kind = 0; kind < kPhaseKinds; ++kind) {
    if (!all.finish[kind] || !all.finish_chosen[kind] || (!all.backward[kind] && kind != kLinear))
      return false;
  }
  return true;
}

template <class T>
constexpr CellKernels<T> cell_kernels() {
  CellKernels<T> all = {};
  add<LstmPlain>(all);
  add<LstmPeephole>(all);
  add<GruAfter>(all);
  add<GruGates>(all);
  add<GruCandidate>(all);
  add<MguGate>(all);
  add<MguCandidate>(all);
  add<Linear>(all);
  return all;
}

static_assert(is_complete(cell_kernels<float>()), "a kind of phase has no kernel");

}  // namespace

const ForTypes<CellKernels> TIDEGATE_TABLE(cells) = {cell_kernels<float>(), cell_kernels<double>()};

}  // namespace tidegate
