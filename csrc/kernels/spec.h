// What differs between cells, as data: gates, which of them see x or h, and the phases of a step.
// Plain types: no formulas (cells.h), no SIMD. The gate order in memory is written here and nowhere
// else.
#ifndef TIDEGATE_KERNELS_SPEC_H_
#define TIDEGATE_KERNELS_SPEC_H_

namespace tidegate {

// Gates [first, first + count) of a unit.
struct Window {
  int first;
  int count;

  constexpr int end() const { return first + count; }
};

// One gate: its name, and its block of rows in weight_ih and weight_hh (-1: it does not see that
// operand).
struct GateSpec {
  char name;
  int x_block;
  int h_block;
};

// What the recurrent weights of a phase multiply.
enum class Operand {
  h_prev,
  reset_h,  // r * h_prev
};

// The kernels of a step. `linear` is a plain product: projections, and gradients by an operand.
enum PhaseKind { kLstm, kLstmPeephole, kGruAfter, kGruGates, kGruCandidate, kLinear, kPhaseKinds };

// A phase is what can be computed without another thread's results. It has an accumulator for each
// of its gates; x and h are the windows, within it, of those that see x and those that see the
// operand.
struct PhaseSpec {
  PhaseKind kind;
  Window gates;  // of the cell
  Window x;
  Window h;
  Operand operand;
};

// What the products of a phase need to know of it: phases of one shape share their tiles.
struct PhaseShape {
  int gates;
  Window x;
  Window h;
};
constexpr PhaseShape shape_of(const PhaseSpec& spec) { return {spec.gates.count, spec.x, spec.h}; }

constexpr int kMaxGates = 4;
constexpr int kMaxPhases = 2;

struct CellSpec {
  int gate_count;
  GateSpec gates[kMaxGates];
  Window x;  // of all gates, those that see x
  int phase_count;
  PhaseSpec phases[kMaxPhases];
  bool has_cell_state;
  bool direct_path;  // h_prev reaches h not only through the weights, but also by z * h_prev
};

constexpr PhaseSpec phase_spec(PhaseKind kind) {
  switch (kind) {
    case kLstm:
    case kLstmPeephole:
      return {kind, {0, 4}, {0, 4}, {0, 4}, Operand::h_prev};
    case kGruAfter:
      return {kind, {0, 4}, {0, 3}, {1, 3}, Operand::h_prev};
    case kGruGates:
      return {kind, {1, 2}, {0, 2}, {0, 2}, Operand::h_prev};
    case kGruCandidate:
      return {kind, {0, 1}, {0, 1}, {0, 1}, Operand::reset_h};
    default:
      return {kLinear, {0, 1}, {0, 1}, {0, 0}, Operand::h_prev};
  }
}

constexpr CellSpec lstm_spec(bool peephole) {
  return {4,    {{'i', 0, 0}, {'f', 1, 1}, {'g', 2, 2}, {'o', 3, 3}}, {0, 4},
          1,    {phase_spec(peephole ? kLstmPeephole : kLstm)},       true,
          false};
}

// n and q = U_n h + b_hn stand at the ends, so that the gates that see x and those that see h are
// windows.
constexpr CellSpec gru_after_spec() {
  return {4,
          {{'n', 2, -1}, {'r', 0, 0}, {'z', 1, 1}, {'q', -1, 2}},
          {0, 3},
          1,
          {phase_spec(kGruAfter)},
          false,
          true};
}

constexpr CellSpec gru_before_spec() {
  return {3,
          {{'n', 2, 2}, {'r', 0, 0}, {'z', 1, 1}},
          {0, 3},
          2,
          {phase_spec(kGruGates), phase_spec(kGruCandidate)},
          false,
          true};
}

}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_SPEC_H_
