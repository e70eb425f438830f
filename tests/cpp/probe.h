// A phase whose cell copies its accumulators, for tests of the products of phases.
#ifndef TIDEGATE_TESTS_PROBE_H_
#define TIDEGATE_TESTS_PROBE_H_

#include <cstddef>
#include <vector>

#include "kernels/cells.h"
#include "kernels/epilogue.h"
#include "kernels/table.h"
#include "kernels/vec.h"
#include "matrix.h"

namespace tidegate {
namespace {

// Copies all accumulators to `saved`, and the first to h and y.
template <PhaseKind Kind>
struct Probe : Phase {
  template <class T>
  static void state(const PhaseCall<T>& call, Accumulators<T> a, Position at) {
    for (int gate = 0; gate < phase_spec(Kind).gates.count; ++gate)
      save_gate(call, at, gate, a[gate]);
    store_h(call, at, a[0]);
  }
};

// The values at which accumulators begin.
enum class Start { zero, bias, accumulators };

// The outputs of a probe's calls, with guards around them.
template <PhaseKind Kind, class T>
class ProbeOutputs {
 public:
  static constexpr Index gates = phase_spec(Kind).gates.count;
  static constexpr Index width = Vec<T>::width;

  ProbeOutputs(Index rows, Index units)
      : rows_(rows),
        units_(units),
        slices_((units + width - 1) / width),
        y_(rows, units, 5, canary<T>),
        h_(rows, slices_ * width, 5, canary<T>),
        saved_(rows, gates * slices_ * width, 5, canary<T>) {}

  // Sets the outputs of a call, for its rows from `first` on.
  void set(PhaseCall<T>& call, Index first) {
    call.finish = finish<Probe<Kind>, T>;
    call.h_next = h_.strided(first);
    call.y = y_.strided(first);
    call.saved = saved_.strided(first);
    call.saved_gate_stride = slices_ * width;
  }
  // The same rows in reverse order, by table.
  void set_reversed(PhaseCall<T>& call) {
    for (Matrix<T>* matrix : {&y_, &h_, &saved_}) matrix->reverse_table();
    call.h_next = h_.scattered();
    call.y = y_.scattered();
    call.saved = saved_.scattered();
  }

  // Whether all outputs are those of the accumulators [row][gate][unit].
  bool are(const std::vector<T>& accumulators) {
    bool all = gaps_untouched();
    for (Index r = 0; r < rows_; ++r) {
      for (Index unit = 0; unit < units_; ++unit) {
        const auto wanted = [&](Index gate) {
          return accumulators[static_cast<std::size_t>((r * gates + gate) * units_ + unit)];
        };
        all = all && same(y_(r, unit), wanted(0)) && same(h_(r, unit), wanted(0));
        for (Index gate = 0; gate < gates; ++gate)
          all = all && same(saved_(r, gate * slices_ * width + unit), wanted(gate));
      }
    }
    return all;
  }

  bool untouched() { return only_these_written(0, 0); }

  // Whether nothing is written beyond the first `rows` rows and the first `slices` slices.
  bool only_these_written(Index rows, Index slices) {
    bool all = gaps_untouched();
    for (Index r = 0; r < rows_; ++r) {
      for (Index unit = 0; unit < slices_ * width; ++unit) {
        if (r < rows && unit < slices * width) continue;
        if (unit < units_) all = all && y_(r, unit) == canary<T>;
        all = all && h_(r, unit) == canary<T>;
        for (Index gate = 0; gate < gates; ++gate)
          all = all && saved_(r, gate * slices_ * width + unit) == canary<T>;
      }
    }
    return all;
  }

 private:
  bool gaps_untouched() {
    return y_.gaps_are(canary<T>) && h_.gaps_are(canary<T>) && saved_.gaps_are(canary<T>);
  }

  const Index rows_, units_, slices_;
  Matrix<T> y_, h_, saved_;
};

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_TESTS_PROBE_H_
