// The table of cells: everything about a cell except its formulas (cells.h): its name, its options,
// its gates in order, which of them see x or h, its states, and the phases of a step. All code that
// depends on the kind of a cell reads this table. Plain types: no SIMD.
#ifndef TIDEGATE_KERNELS_SPEC_H_
#define TIDEGATE_KERNELS_SPEC_H_

#include "tidegate/cell.h"

namespace tidegate {

// The gates [first, first + count) of a unit.
struct Window {
  int first;
  int count;

  constexpr int end() const { return first + count; }
};

// A gate: its name, and its blocks of rows in weight_ih and weight_hh (-1: none; the gate does not
// see that operand).
struct GateSpec {
  char name;
  int x_block;
  int h_block;
  bool update = false;  // whether UpdateGate refers to this gate
};

// The operand of a phase's recurrent weights.
enum class Operand {
  h_prev,
  gated_h,  // h_prev multiplied by a gate of an earlier phase, which writes it
};

// The kernels of a step. kLinear is a plain product: projections, and gradients by an operand.
enum PhaseKind {
  kLstm,
  kLstmPeephole,
  kGruAfter,
  kGruGates,
  kGruCandidate,
  kMguGate,
  kMguCandidate,
  kLinear,
  kPhaseKinds
};

// A phase is the part of a step that can be computed without results of other threads. It has an
// accumulator for each of its gates.
struct PhaseSpec {
  PhaseKind kind;
  Window gates;  // within the cell's gates
  Window x;      // within the phase's gates, those that see x
  Window h;      // within the phase's gates, those that see the operand
  Operand operand;
};

// The properties of a phase on which its products depend. Phases of one shape share their tiles.
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
  Window x;  // the gates that see x
  int phase_count;
  PhaseSpec phases[kMaxPhases];
  bool has_cell_state;
  bool direct_path;     // h contains the term gate * h_prev, besides the products with weights
  int block_count = 0;  // blocks of rows in weight_ih and weight_hh; counted() sets it
};

// One block for each gate that has weights in weight_ih or weight_hh.
constexpr CellSpec counted(CellSpec cell) {
  for (int g = 0; g < cell.gate_count; ++g) {
    const GateSpec& gate = cell.gates[g];
    const int last = gate.x_block > gate.h_block ? gate.x_block : gate.h_block;
    if (last >= cell.block_count) cell.block_count = last + 1;
  }
  return cell;
}

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
      return {kind, {0, 1}, {0, 1}, {0, 1}, Operand::gated_h};
    case kMguGate:
      return {kind, {0, 1}, {0, 1}, {0, 1}, Operand::h_prev};
    case kMguCandidate:
      return {kind, {1, 1}, {0, 1}, {0, 1}, Operand::gated_h};
    default:
      return {kLinear, {0, 1}, {0, 1}, {0, 0}, Operand::h_prev};
  }
}

// The options of a network that change the structure of its cell.
struct CellVariant {
  bool peephole = false;
  bool reset_after = true;
};

constexpr CellSpec lstm_spec(PhaseKind phase) {
  return counted({4,
                  {{'i', 0, 0}, {'f', 1, 1}, {'g', 2, 2}, {'o', 3, 3}},
                  {0, 4},
                  1,
                  {phase_spec(phase)},
                  true,
                  false});
}
constexpr CellSpec kLstmSpec = lstm_spec(kLstm);
constexpr CellSpec kLstmPeepholeSpec = lstm_spec(kLstmPeephole);

// n and q = U_n h + b_hn are first and last, so that the gates that see x and those that see h are
// contiguous.
constexpr CellSpec kGruAfterSpec =
    counted({4,
             {{'n', 2, -1}, {'r', 0, 0}, {'z', 1, 1, true}, {'q', -1, 2}},
             {0, 3},
             1,
             {phase_spec(kGruAfter)},
             false,
             true});

constexpr CellSpec kGruBeforeSpec = counted({3,
                                             {{'n', 2, 2}, {'r', 0, 0}, {'z', 1, 1, true}},
                                             {0, 3},
                                             2,
                                             {phase_spec(kGruGates), phase_spec(kGruCandidate)},
                                             false,
                                             true});

constexpr CellSpec kMguSpec = counted({2,
                                       {{'f', 0, 0}, {'n', 1, 1}},
                                       {0, 2},
                                       2,
                                       {phase_spec(kMguGate), phase_spec(kMguCandidate)},
                                       false,
                                       true});

// The options of a network that only some cells have, as bits.
enum CellOption : unsigned {
  kProjSize = 1,
  kPeephole = 2,
  kResetAfter = 4,
  kUpdateGate = 8,
  kOutputActivation = 16,
  kInputForget = 32,
};

struct CellInfo {
  CellKind kind;
  const char* name;     // the name of its class, and its kind in files
  const char* article;  // the article before the name, for messages
  unsigned options;     // bits of CellOption
  const CellSpec& (*spec)(CellVariant variant);
};

constexpr CellInfo kCells[] = {
    {CellKind::lstm, "LSTM", "an", kProjSize | kPeephole | kOutputActivation | kInputForget,
     [](CellVariant v) -> auto& { return v.peephole ? kLstmPeepholeSpec : kLstmSpec; }},
    {CellKind::gru, "GRU", "a", kResetAfter | kUpdateGate,
     [](CellVariant v) -> auto& { return v.reset_after ? kGruAfterSpec : kGruBeforeSpec; }},
    {CellKind::mgu, "MGU", "an", 0, [](CellVariant) -> auto& { return kMguSpec; }},
};

constexpr bool is_cell(CellKind kind) {
  return static_cast<unsigned>(kind) < sizeof kCells / sizeof *kCells;
}
constexpr const CellInfo& cell_info(CellKind kind) { return kCells[static_cast<int>(kind)]; }

constexpr bool cells_are_in_order() {
  int kind = 0;
  for (const CellInfo& cell : kCells) {
    if (static_cast<int>(cell.kind) != kind++) return false;
  }
  return true;
}
static_assert(cells_are_in_order());

}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_SPEC_H_
