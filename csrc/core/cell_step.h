// The kernel calls of one step of one layer's direction, assembled once and run for each step of a
// sequence or of a stream.
#ifndef TIDEGATE_CORE_CELL_STEP_H_
#define TIDEGATE_CORE_CELL_STEP_H_

#include <algorithm>
#include <cstddef>

#include "core/pieces.h"
#include "core/share.h"
#include "core/states.h"
#include "core/weights.h"

namespace tidegate {

// Buffers by which the phases of a step pass data to each other, for some rows.
template <class T>
struct StepScratch {
  T* accumulators[kMaxPhases] = {};  // [slice][row][gate][width]
  T* partial_sums[kMaxPhases] = {};  // same layout, see PhaseCall; null for one thread
  Index accumulator_rows = 0;
  Index partial_sum_rows = 0;
  Rows<T> gated_h, phase_state;  // cells of two phases: [row][hidden]; see PhaseCall
  Rows<T> cell_output;           // projection: [row][hidden]
  // Per thread: the rounded rows of the product with x or by a projection, and with h or gated_h.
  std::byte* rounded_x = nullptr;
  std::byte* rounded_h = nullptr;
  Index rounded_x_bytes = 0;
  Index rounded_h_bytes = 0;

  // The elements of the longest operand of any layer's products.
  static Index longest_operand(const Config& config) {
    return std::max({config.input_size, config.output_size(), config.hidden_size});
  }
  // The most rows of a call of the storage's products.
  static Index max_rows_of(const Config& config, const StorageKernels<T>& storage) {
    return storage.max_rows(longest_operand(config));
  }

  static StepScratch take(Arena& arena, const Config& config, const Weights<T>& weights,
                          Index accumulator_rows, Index batch, int threads) {
    const CellSpec& cell = weights.cell();
    const StorageKernels<T>& storage = weights.storage();
    const Index width = weights.kernels().width;
    StepScratch scratch;
    scratch.accumulator_rows = accumulator_rows;
    scratch.partial_sum_rows = batch;
    const Index hidden = config.hidden_size;
    for (int p = 0; p < cell.phase_count; ++p) {
      const auto take_tiles = [&](Index rows) {
        return arena.take<T>(slice_count(hidden, width), rows, cell.phases[p].gates.count, width);
      };
      scratch.accumulators[p] = take_tiles(accumulator_rows);
      if (threads > 1) scratch.partial_sums[p] = take_tiles(batch);
    }
    const auto take_rows = [&](bool needed) {
      const Index stride = padded_row<T>(hidden, width);
      return needed ? Rows<T>{arena.take<T>(batch, stride), stride, nullptr} : Rows<T>{};
    };
    const bool two_phases = cell.phase_count > 1;
    scratch.gated_h = take_rows(two_phases);
    scratch.phase_state = take_rows(two_phases);
    scratch.cell_output = take_rows(config.proj_size > 0);
    const Index max_rows = max_rows_of(config, storage);
    const auto rounded_bytes = [&](Index rows, Index depth) {
      return whole_lines(storage.rounded_bytes(std::min(rows, max_rows), depth));
    };
    scratch.rounded_x_bytes =
        rounded_bytes(std::max(accumulator_rows, batch), longest_operand(config));
    scratch.rounded_h_bytes = rounded_bytes(batch, std::max(hidden, config.state_size()));
    scratch.rounded_x = arena.take<std::byte>(threads, scratch.rounded_x_bytes);
    scratch.rounded_h = arena.take<std::byte>(threads, scratch.rounded_h_bytes);
    return scratch;
  }
};

// The strides and tables of a step's rows, which are the same for many steps. Rows of states are
// padded to whole slices.
template <class T>
struct StepLayout {
  Rows<const T> x;
  Rows<const T> h_prev, c_prev;
  Rows<T> h_next;  // must not alias h_prev
  Rows<T> c_next;  // may alias c_prev
  Rows<T> y;       // a copy of h without padding; may be absent
  Rows<T> saved;   // may be absent
};

// The arguments that change from step to step: mainly the bases of the layout's rows, null where
// the layout has a table.
template <class T>
struct StepBases {
  Index count = 0;
  Index first = 0;         // the first row's number among the scratch's accumulators
  bool reversed = false;   // see PhaseCall
  bool projected = false;  // project() has added x to the accumulators; there is no x here
  // The thread has arrived at the barrier after writing h_prev; run() waits for the other threads.
  bool arrived = false;
  const T* x = nullptr;
  const T* h_prev = nullptr;
  const T* c_prev = nullptr;
  T* h_next = nullptr;
  T* c_next = nullptr;
  T* y = nullptr;
  T* saved = nullptr;
};

// A thread begins its product with h before the other threads have written all of h if the product
// has at most this many multiply-adds. In longer products the time of a barrier is negligible.
constexpr Index kMaxEarlyProducts = 256 * 1024;

template <class T>
class CellStep {
 public:
  // The calls of the thread with this number among those that share the scratch, for its share of
  // the units. It uses the scratch's rows from `first_row` and the accumulators from
  // `first_accumulator_row`.
  CellStep(const Config& config, const Weights<T>& weights, Index layer, Index direction,
           const Share& share, int thread, const StepScratch<T>& scratch, Index first_row,
           Index first_accumulator_row, Index saved_gate_stride)
      : storage_(weights.storage()),
        cell_(weights.cell()),
        interruption_(share.interruption()),
        inputs_(config.layer_input_size(layer)),
        max_rows_(StepScratch<T>::max_rows_of(config, storage_)),
        has_projection_(config.proj_size > 0) {
    const DirectionWeights<T>& packed = weights.direction(layer, direction);
    const Index width = weights.kernels().width;
    const CellKernels<T>& cells = *weights.kernels().cells;
    const auto from = [&](Rows<T> rows) { return rows.from(first_row); };
    const Range slices = share.slices(config.hidden_size, width);
    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      PhaseCall<T>& call = calls_[p];
      call.slice_begin = slices.begin;
      call.slice_end = slices.end;
      call.units = config.hidden_size;
      call.x.panel = packed.phases[p].x;
      call.x.depth = inputs_;
      call.h.rows = from(scratch.gated_h);  // or h_prev, see set_layout()
      call.h.panel = packed.phases[p].h;
      call.h.depth = call.h.end = config.state_size();
      call.h.min_magnitude = has_bounded_h(config) ? 1 : 0;
      call.x.rounded = scratch.rounded_x + thread * scratch.rounded_x_bytes;
      call.h.rounded = scratch.rounded_h + thread * scratch.rounded_h_bytes;
      call.bias = packed.phases[p].bias;
      call.accumulators_row_stride = phase.gates.count * width;
      call.accumulators_slice_stride = scratch.accumulator_rows * call.accumulators_row_stride;
      accumulators_[p] =
          scratch.accumulators[p] + first_accumulator_row * call.accumulators_row_stride;
      call.partial_sums = scratch.partial_sums[p];  // only where threads divide units: all rows
      call.partial_sums_slice_stride = scratch.partial_sum_rows * call.accumulators_row_stride;
      call.saved_gate_stride = saved_gate_stride;
      call.peephole = packed.peephole;
      call.activations = config.chosen_activations();
      call.finish = cells.finish_of(phase.kind, call.activations);
      row_products_[p] =
          phase.gates.count * slices.size() * width * (inputs_ + config.state_size());
      call.gated_h = from(scratch.gated_h);
      call.phase_state = from(scratch.phase_state);
      if (share.awaits_above() && call.h.depth <= kSumGroup) {
        const Index panel = phase.h.count * slices.size() * width * call.h.depth;
        const Index below = share.units(call.h.depth, width).end;
        early_[p] = {below - below % storage_.grain,
                     std::min(max_rows_, kMaxEarlyProducts / std::max<Index>(1, panel))};
      }
    }
    if (!has_projection_) return;
    const Rows<T> cell_output = from(scratch.cell_output);
    for (PhaseCall<T>& call : calls_) call.h_next = cell_output;
    const Range outputs = share.slices(config.state_size(), width);
    projection_.slice_begin = outputs.begin;
    projection_.slice_end = outputs.end;
    projection_.units = config.state_size();
    projection_.x = {cell_output, packed.projection, config.hidden_size, 0, config.hidden_size};
    projection_.x.rounded = calls_[0].x.rounded;
    projection_.finish = cells.finish[kLinear];
    projection_.accumulators_slice_stride = width;
  }

  // Sets the layout of all following steps.
  void set_layout(const StepLayout<T>& rows) {
    for (int p = 0; p < cell_.phase_count; ++p) {
      PhaseCall<T>& call = calls_[p];
      call.x.rows = rows.x;
      if (reads_h(p)) call.h.rows = rows.h_prev;
      call.h_prev = rows.h_prev;
      call.c_prev = rows.c_prev;
      call.c_next = rows.c_next;
      call.saved = rows.saved;
    }
    PhaseCall<T>& last = has_projection_ ? projection_ : calls_[cell_.phase_count - 1];
    last.h_next = rows.h_next;
    last.y = rows.y;
    // A linear phase has one accumulator for each unit, so the rows of h_next serve as
    // accumulators.
    projection_.accumulators_row_stride = rows.h_next.stride;
  }

  // Computes the input projections of `count` rows into their accumulators.
  void project(Rows<const T> x, Index count) const {
    for (int p = 0; p < cell_.phase_count; ++p) {
      PhaseCall<T> call = calls_[p];
      call.rows = count;
      call.x.rows = x;
      call.x.end = inputs_;
      call.h = {};
      call.accumulators = accumulators_[p];
      call.resume = false;
      call.finish = nullptr;
      run_rows(storage_.products[cell_.phases[p].kind], call, row_products_[p], interruption_,
               max_rows_);
    }
  }

  // Sets only the arguments of the step in the assembled calls: assembling them again would take as
  // long as a small step.
  void run(const StepBases<T>& step, const Share& share) {
    for (int p = 0; p < cell_.phase_count; ++p) {
      PhaseCall<T>& call = calls_[p];
      call.rows = step.count;
      call.reversed = step.reversed;
      call.x.rows.base = step.x;
      call.x.end = step.projected ? 0 : inputs_;
      call.resume = step.projected;
      call.accumulators = accumulators_[p] + step.first * call.accumulators_row_stride;
      if (reads_h(p)) call.h.rows.base = step.h_prev;
      call.h_prev.base = step.h_prev;
      call.c_prev.base = step.c_prev;
      call.c_next.base = step.c_next;
      call.saved.base = step.saved;
      if (p + 1 == cell_.phase_count && !has_projection_) {
        call.h_next.base = step.h_next;
        call.y.base = step.y;
      }
      run_phase(p, share, step.arrived || p > 0);
      if (p + 1 < cell_.phase_count) share.arrive_if_by_units();
    }
    if (!has_projection_) return;
    share.barrier_wait_if_by_units();
    // h = weight_hr * (o * tanh(c)).
    projection_.rows = step.count;
    projection_.accumulators = step.h_next;
    projection_.h_next.base = step.h_next;
    projection_.y.base = step.y;
    run_rows(storage_.products[kLinear], projection_, projection_.units * projection_.x.depth,
             interruption_, max_rows_);
  }

 private:
  // The part of the product with h that begins before the threads above have written their units:
  // the k's below `end`, in calls of at most `max_rows` rows.
  struct EarlyPart {
    Index end = 0;
    Index max_rows = 0;
  };

  // awaits: the other threads may still be writing their units of h. A thread that does not wait
  // for the threads above runs ahead of them by the latency of their signals; after that, no thread
  // has to wait.
  void run_phase(int p, const Share& share, bool awaits) {
    PhaseCall<T>& call = calls_[p];
    const auto products = storage_.products[cell_.phases[p].kind];
    if (awaits) share.await_below_if_by_units();
    if (awaits && call.rows <= early_[p].max_rows) {
      const Finish<T> finish = call.finish;
      call.h.end = early_[p].end;
      call.finish = nullptr;
      products(call);
      call.x.end = 0;
      call.resume = true;
      call.h.begin = early_[p].end;
      call.h.end = call.h.depth;
      call.finish = finish;
    }
    if (awaits) share.await_above_if_by_units();
    run_rows(products, call, row_products_[p], interruption_, max_rows_);
    call.h.begin = 0;
  }

  bool reads_h(int phase) const { return cell_.phases[phase].operand == Operand::h_prev; }

  const StorageKernels<T>& storage_;
  const CellSpec& cell_;
  Interruption* const interruption_;
  const Index inputs_;
  const Index max_rows_;
  const bool has_projection_;
  T* accumulators_[kMaxPhases] = {};
  EarlyPart early_[kMaxPhases];
  Index row_products_[kMaxPhases] = {};  // multiply-adds of a row, an upper bound
  PhaseCall<T> calls_[kMaxPhases];
  PhaseCall<T> projection_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_CELL_STEP_H_
