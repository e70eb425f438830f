// One step of one layer's direction as kernel calls, assembled once and run many times: by the walk
// through a sequence, and by a stream.
#ifndef TIDEGATE_CORE_CELL_STEP_H_
#define TIDEGATE_CORE_CELL_STEP_H_

#include "core/share.h"
#include "core/states.h"
#include "core/weights.h"

namespace tidegate {

// What the phases of a step hand to each other, for some rows.
template <class T>
struct StepScratch {
  T* accumulators[kMaxPhases] = {};  // [slice][row][gate][width]
  Index accumulator_rows = 0;
  Rows<T> reset_h, z;   // GRU, reset before: [row][hidden]
  Rows<T> cell_output;  // projection: [row][hidden]

  static StepScratch take(Arena& arena, const Config& config, const CellSpec& cell,
                          Index accumulator_rows, Index batch, Index width) {
    StepScratch scratch;
    scratch.accumulator_rows = accumulator_rows;
    const Index hidden = config.hidden_size;
    for (int p = 0; p < cell.phase_count; ++p) {
      scratch.accumulators[p] = arena.take<T>(slice_count(hidden, width), accumulator_rows,
                                              cell.phases[p].gates.count, width);
    }
    const auto take_rows = [&](bool needed) {
      const Index stride = padded_row<T>(hidden, width);
      return needed ? Rows<T>{arena.take<T>(batch, stride), stride, nullptr} : Rows<T>{};
    };
    const bool two_phases = cell.phase_count > 1;
    scratch.reset_h = take_rows(two_phases);
    scratch.z = take_rows(two_phases);
    scratch.cell_output = take_rows(config.proj_size > 0);
    return scratch;
  }
};

// What differs from step to step. Rows of states are padded to whole slices.
template <class T>
struct StepRows {
  Index count = 0;
  Index first = 0;          // among the scratch's accumulators
  bool descending = false;  // see PhaseCall
  Rows<const T> x;          // none: `project` has begun the accumulators
  Rows<const T> h_prev, c_prev;
  Rows<T> h_next;  // not h_prev
  Rows<T> c_next;  // may be c_prev
  Rows<T> y;       // h once more, without padding; may be absent
  Rows<T> saved;   // may be absent
};

template <class T>
class CellStep {
 public:
  // For one thread: its share of the units, and of the scratch's rows those from `first_row` on,
  // accumulators from `first_accumulator_row` on.
  CellStep(const Config& config, const Weights<T>& weights, Index layer, Index direction,
           const Share& share, const StepScratch<T>& scratch, Index first_row,
           Index first_accumulator_row, Index saved_gate_stride)
      : kernels_(weights.kernels()), cell_(weights.cell()), state_(config.state_size()) {
    const DirectionWeights<T>& packed = weights.direction(layer, direction);
    const Index width = kernels_.width;
    const auto from = [&](Rows<T> rows) {
      return rows ? Rows<T>{rows.base + first_row * rows.stride, rows.stride, nullptr} : rows;
    };
    const Range slices = share.slices(config.hidden_size, width);
    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      PhaseCall<T>& call = calls_[p];
      call.slice_begin = slices.begin;
      call.slice_end = slices.end;
      call.units = config.hidden_size;
      call.x.depth = config.layer_input_size(layer);
      call.x.panel = packed.phases[p].x;
      call.h.depth = state_;
      call.h.panel = packed.phases[p].h;
      call.h.rows = from(scratch.reset_h);  // or h_prev: see run
      call.bias = packed.phases[p].bias;
      call.accumulators_row_stride = phase.gates.count * width;
      call.accumulators_slice_stride = scratch.accumulator_rows * call.accumulators_row_stride;
      call.accumulators =
          scratch.accumulators[p] + first_accumulator_row * call.accumulators_row_stride;
      call.saved_gate_stride = saved_gate_stride;
      call.peephole = packed.peephole;
      call.activations = config.chosen_activations();
      call.reset_h = from(scratch.reset_h);
      call.z = from(scratch.z);
    }
    has_projection_ = config.proj_size > 0;
    if (!has_projection_) return;
    const Range outputs = share.slices(state_, width);
    cell_output_ = from(scratch.cell_output);
    projection_.slice_begin = outputs.begin;
    projection_.slice_end = outputs.end;
    projection_.units = state_;
    projection_.x = {cell_output_, config.hidden_size, packed.projection};
    projection_.accumulators_slice_stride = width;
  }

  // Begins the accumulators of `count` rows with their input projections.
  void project(Rows<const T> x, Index count) const {
    for (int p = 0; p < cell_.phase_count; ++p) {
      PhaseCall<T> call = calls_[p];
      call.rows = count;
      call.x.rows = x;
      call.h.depth = 0;
      call.finish = false;
      kernels_.phase[cell_.phases[p].kind](call);
    }
  }

  void run(const StepRows<T>& rows, const Share& share) const {
    for (int p = 0; p < cell_.phase_count; ++p) {
      PhaseCall<T> call = calls_[p];
      call.rows = rows.count;
      call.descending = rows.descending;
      call.x.rows = rows.x;
      call.resume = !rows.x;
      if (call.resume) call.x.depth = 0;
      call.accumulators += rows.first * call.accumulators_row_stride;
      if (cell_.phases[p].operand == Operand::h_prev) call.h.rows = rows.h_prev;
      call.h_prev = rows.h_prev;
      call.c_prev = rows.c_prev;
      call.c_next = rows.c_next;
      call.h_next = has_projection_ ? cell_output_ : rows.h_next;
      if (!has_projection_) call.y = rows.y;
      call.saved = rows.saved;
      kernels_.phase[cell_.phases[p].kind](call);
      if (has_projection_ || p + 1 < cell_.phase_count) share.meet_if_by_units();
    }
    if (!has_projection_) return;
    // h = weight_hr * (o * tanh(c)). A linear phase has one accumulator a unit: the state's own
    // rows hold them.
    PhaseCall<T> call = projection_;
    call.rows = rows.count;
    call.accumulators = rows.h_next.base;
    call.accumulators_row_stride = rows.h_next.stride;
    call.h_next = rows.h_next;
    call.y = rows.y;
    kernels_.phase[kLinear](call);
  }

 private:
  const Kernels<T>& kernels_;
  const CellSpec& cell_;
  const Index state_;
  PhaseCall<T> calls_[kMaxPhases];
  PhaseCall<T> projection_;
  Rows<T> cell_output_;
  bool has_projection_ = false;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_CELL_STEP_H_
