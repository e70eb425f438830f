// The kernels, compiled once for each ISA. Everything in this folder has internal linkage but the
// one table below, so that the linker cannot pick one ISA's copy of a function for another's
// machine.
#include "kernels/cells.h"
#include "kernels/limits.h"
#include "kernels/losses.h"
#include "kernels/math.h"
#include "kernels/optimizers.h"
#include "kernels/pack.h"
#include "kernels/table.h"
#include "kernels/tile.h"
#include "kernels/vec.h"

#if defined(TIDEGATE_ISA_AVX512)
#define TIDEGATE_ISA_NAME "avx512"
#elif defined(TIDEGATE_ISA_AVX2)
#define TIDEGATE_ISA_NAME "avx2"
#elif defined(TIDEGATE_ISA_NEON)
#define TIDEGATE_ISA_NAME "neon"
#else
#define TIDEGATE_ISA_NAME "baseline"
#endif

namespace tidegate {
namespace {

template <class Cell, class T>
void backward_cell(const BackwardCall<T>& given) {
  const BackwardCall<T> call = given;  // out of reach of what is stored: it stays in registers
  constexpr Index kWidth = Vec<T>::width;
  for (Index row = 0; row < call.rows; ++row) {
    for (Index slice = call.slice_begin; slice < call.slice_end; ++slice) {
      const Index unit = slice * kWidth;
      Cell::template backward<T>(call,
                                 {row, unit, static_cast<int>(min_of(call.units - unit, kWidth))});
    }
  }
}

template <template <class> class Cell, class T>
void backward(const BackwardCall<T>& call) {
  if (call.activations) {
    backward_cell<Cell<ChosenActivations>>(call);
  } else {
    backward_cell<Cell<StandardActivations>>(call);
  }
}

template <class Activations>
using LstmPlain = Lstm<Activations, false>;
template <class Activations>
using LstmPeephole = Lstm<Activations, true>;

// The kernels of phases, each in its kind's place.
template <class T>
struct PhaseKernels {
  void (*phase[kPhaseKinds])(const PhaseCall<T>&) = {};
  void (*backward[kPhaseKinds])(const BackwardCall<T>&) = {};

  template <template <class> class Cell>
  constexpr void add() {
    constexpr PhaseKind kind = Cell<StandardActivations>::spec.kind;
    phase[kind] = tidegate::phase<Cell, T>;
    if constexpr (kind != kLinear) backward[kind] = tidegate::backward<Cell, T>;
  }
  constexpr bool complete() const {
    for (int kind = 0; kind < kPhaseKinds; ++kind) {
      if (!phase[kind] || (!backward[kind] && kind != kLinear)) return false;
    }
    return true;
  }
};

template <class T>
constexpr PhaseKernels<T> phase_kernels() {
  PhaseKernels<T> all;
  all.template add<LstmPlain>();
  all.template add<LstmPeephole>();
  all.template add<GruAfter>();
  all.template add<GruGates>();
  all.template add<GruCandidate>();
  all.template add<MguGate>();
  all.template add<MguCandidate>();
  all.template add<Linear>();
  return all;
}

template <class T>
constexpr Kernels<T> kernels() {
  constexpr PhaseKernels<T> phases = phase_kernels<T>();
  static_assert(phases.complete(), "a kind of phase has no kernel");
  Kernels<T> all = {
      .width = Vec<T>::width,
      .outer_scratch = OuterShape<T>::kScratch,
      .phase = {},
      .backward = {},
      .outer = outer<T>,
      .pack = pack<T>,
      .sum_rows = sum_rows<T>,
      .add_rows = add_rows<T>,
      .adam = adam<T>,
      .sgd = sgd<T>,
      .scale = scale<T>,
      .sum_of_squares = sum_of_squares<T>,
      .softmax_cross_entropy = softmax_cross_entropy<T>,
      .binary_cross_entropy = elementwise_loss<BinaryCrossEntropy, T>,
      .mse = elementwise_loss<SquaredError, T>,
      .fma_round_flops = fma_round_flops<T>(),
      .fma_rounds = fma_rounds<T>,
      .read_all = read_all<T>,
  };
  for (int kind = 0; kind < kPhaseKinds; ++kind) {
    all.phase[kind] = phases.phase[kind];
    all.backward[kind] = phases.backward[kind];
  }
  return all;
}

}  // namespace

extern "C" {
extern const KernelTable TIDEGATE_KERNELS;
const KernelTable TIDEGATE_KERNELS = {TIDEGATE_ISA_NAME, kernels<float>(), kernels<double>()};
}

}  // namespace tidegate
