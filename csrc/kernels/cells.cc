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

// The phases of all cells. The list is checked by kinds, since sanitizers do not let the compiler
// compare addresses of functions in constant expressions.
template <template <class> class... Cells>
struct PhaseList {
  template <class T>
  static constexpr CellKernels<T> kernels() {
    CellKernels<T> all = {};
    (add<Cells>(all), ...);
    return all;
  }

  static constexpr bool has_each_kind_once() {
    int counts[kPhaseKinds] = {};
    (++counts[Cells<StandardActivations>::spec.kind], ...);
    for (const int count : counts) {
      if (count != 1) return false;
    }
    return true;
  }
};

using Phases = PhaseList<LstmPlain, LstmPeephole, GruAfter, GruGates, GruCandidate, MguGate,
                         MguCandidate, Linear>;
static_assert(Phases::has_each_kind_once(), "a kind of phase has no kernel, or two");

}  // namespace

const ForTypes<CellKernels> TIDEGATE_TABLE(cells) = {Phases::kernels<float>(),
                                                     Phases::kernels<double>()};

}  // namespace tidegate
