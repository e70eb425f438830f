// The backward pass of one direction of one layer through time.
//
// The recurrence computes only the pointwise derivatives and dh_prev = dgates * U. The gradients of
// the input and of the weights do not depend on the order of the steps, and follow as large
// products for a chunk of steps at once.
#include "core/backward.h"

#include "core/pieces.h"

namespace tidegate {

namespace {

constexpr Index kChunkRows =
    512;  // long sums amortise loads and stores of tiles; dgates stay in a large L2 or in L3
constexpr Index kDxRows = 96;             // rows of dx at a time: their accumulators stay in L2
constexpr Index kPointwiseProducts = 32;  // the time of a unit's derivatives, in multiply-adds

}  // namespace

template <class T>
BackwardScratch<T> BackwardScratch<T>::take(Arena& arena, const Config& config,
                                            const Weights<T>& weights, Index steps, Index batch,
                                            int threads) {
  const Kernels<T>& kernels = weights.kernels();
  const StorageKernels<T>& storage = weights.storage();
  const CellSpec& cell = weights.cell();
  BackwardScratch scratch;
  scratch.chunk = std::max<Index>(1, std::min(steps, kChunkRows / std::max<Index>(1, batch)));
  const Index rows = checked_size(scratch.chunk, batch);
  const Index hidden = config.hidden_size;
  const auto take_rows = [&](bool needed, Index count, Index units) {
    const Index stride = padded_row<T>(units, kernels.width);
    return needed ? Rows<T>{arena.take<T>(count, stride), stride, nullptr} : Rows<T>{};
  };
  const bool two_phases = cell.phase_count > 1;
  const bool projection = config.proj_size > 0;
  scratch.dh = take_rows(true, batch, config.state_size());
  scratch.dc = take_rows(cell.has_cell_state, batch, hidden);
  scratch.dgated_h = take_rows(two_phases, batch, hidden);
  scratch.dcell_output = take_rows(projection, batch, hidden);
  scratch.dgates_chunk = take_rows(true, rows, checked_size(cell.gate_count, hidden));
  scratch.gated_h_chunk = take_rows(two_phases, rows, hidden);
  scratch.cell_output_chunk = take_rows(projection, rows, hidden);
  scratch.dh_chunk = take_rows(projection, rows, config.state_size());
  scratch.dpeephole_chunk = take_rows(config.peephole, rows, checked_size(3, hidden));
  scratch.x_rows = arena.take<const T*>(threads, rows);
  scratch.h_rows = arena.take<const T*>(threads, rows);
  scratch.c_rows = arena.take<const T*>(threads, batch);
  scratch.dx_rows = arena.take<T*>(threads, rows);
  scratch.zero = take_zeros<T>(arena, padded_row<T>(hidden, kernels.width));
  const Index widest = std::max(config.input_size, config.output_size());
  scratch.accumulators_size =
      checked_size(std::min(rows, kDxRows), slice_count(widest, kernels.width), kernels.width);
  scratch.accumulators = arena.take<T>(threads, scratch.accumulators_size);
  scratch.outer_size = storage.outer ? storage.outer_scratch : kernels.outer->scratch;
  scratch.outer = arena.take<T>(threads, scratch.outer_size);
  const Index depth = std::max(checked_size(cell.gate_count, hidden), config.state_size());
  scratch.max_rows = storage.max_rows(depth);
  scratch.rounded_size = whole_lines(
      storage.rounded_bytes(std::min(std::max(batch, kDxRows), scratch.max_rows), depth));
  scratch.rounded = arena.take<std::byte>(threads, scratch.rounded_size);
  return scratch;
}

namespace {

// The backward pass of one thread.
template <class T>
class BackwardPass {
 public:
  BackwardPass(const BackwardDirection<T>& run, const Share& share, int thread)
      : run_(run),
        share_(share),
        scratch_(run.scratch),
        kernels_(run.weights.kernels()),
        storage_(run.weights.storage()),
        cell_(run.weights.cell()),
        forward_weights_(run.weights.direction(run.layer, run.direction)),
        weights_(run.weights.backward(run.layer, run.direction)),
        timeline_(run.schedule, run.config.reverse || run.direction == 1),
        hidden_(run.config.hidden_size),
        state_(run.config.state_size()),
        inputs_(run.config.layer_input_size(run.layer)),
        index_(run.layer * run.config.num_directions() + run.direction),
        first_row_(share.rows().begin),
        x_rows_(scratch_.x_rows + thread * scratch_.chunk * run.schedule.batch()),
        h_rows_(scratch_.h_rows + thread * scratch_.chunk * run.schedule.batch()),
        c_rows_(scratch_.c_rows + thread * run.schedule.batch()),
        dx_rows_(scratch_.dx_rows + thread * scratch_.chunk * run.schedule.batch()),
        accumulators_(scratch_.accumulators + thread * scratch_.accumulators_size),
        outer_(scratch_.outer + thread * scratch_.outer_size),
        rounded_(scratch_.rounded + thread * scratch_.rounded_size) {}

  void run() {
    copy_gradients_of_empty_rows();
    bool resume = false;
    for (Index s1 = timeline_.steps(); s1 > 0 || !resume;) {
      const Index s0 = std::max<Index>(0, s1 - scratch_.chunk);
      Index first = 0;  // this step's first row in the chunk
      for (Index s = s1 - 1; s >= s0; --s) {
        if (share_.stops()) break;
        begin(s);
        if (active_rows(s).size() > 0) step(s, first);
        end(s);
        first += timeline_.active(s);
      }
      if (share_.barrier_wait_then_stops()) return;
      after_chunk(s0, s1, first, resume);
      share_.barrier_wait();
      resume = true;
      s1 = s0;
    }
    if (run_.dparameters && run_.config.update_gate == UpdateGate::write) negate_update_gate();
  }

 private:
  Range active_rows(Index s) const { return share_.active_rows(timeline_.active(s)); }
  Range own_hidden() const { return share_.units(hidden_, kernels_.width); }
  Range own_state() const { return share_.units(state_, kernels_.width); }

  // This thread's rows of a buffer of all sorted rows, or of a chunk's buffer from a step's row
  // `first`.
  template <class U>
  Rows<U> from(Rows<U> rows, Index first = 0) const {
    return rows.from(first + first_row_);
  }
  template <class U>
  static Rows<U> column(Rows<U> rows, Index j) {
    return {rows.base + j, rows.stride, nullptr};
  }

  void step(Index s, Index first) {
    const Range rows = active_rows(s);
    Rows<T> dh = from(scratch_.dh);
    add_dy(s, rows, dh);
    if (run_.config.proj_size > 0) {
      back_through_projection(rows, dh, first);
      dh = from(scratch_.dcell_output);
    }
    for (int p = cell_.phase_count - 1; p >= 0; --p) {
      pointwise(p, s, first, rows, dh);
      share_.barrier_wait_if_by_units();
      operand_gradient(p, s, first, rows);
    }
  }

  void add_dy(Index s, Range rows, Rows<T> dh) {
    if (!run_.dy.given) return;
    const Range units = own_state();
    const Index t = timeline_.time(s);
    const T** dy = x_rows_;
    for (Index n = rows.begin; n < rows.end; ++n) {
      *dy++ = run_.dy.row(t, run_.schedule.caller_row(n)) + units.begin;
    }
    kernels_.outer->add_rows({nullptr, 0, x_rows_}, column(dh, units.begin), rows.size(),
                             units.size());
  }

  // The product with a transposed panel for this thread's slices of `to`; added to `to`, or
  // written.
  void product(Rows<const T> rows, Index count, Index depth, Panel panel, Rows<T> to, Index units,
               bool add, bool reversed = false) {
    const Range slices = share_.slices(units, kernels_.width);
    PhaseCall<T> call;
    call.rows = count;
    call.slice_begin = slices.begin;
    call.slice_end = slices.end;
    call.units = units;
    call.reversed = reversed;
    call.x = {rows, panel, depth, 0, depth, rounded_};
    call.accumulators = to.base;
    call.accumulators_row_stride = to.stride;
    call.accumulators_slice_stride = kernels_.width;
    call.resume = add;
    run_rows(storage_.products[kLinear], call, depth * slices.size() * kernels_.width,
             share_.interruption(), scratch_.max_rows);
  }

  void back_through_projection(Range rows, Rows<T> dh, Index first) {
    const Rows<T> saved_dh = from(scratch_.dh_chunk, first);
    for (Index r = 0; r < rows.size(); ++r) copy_units<T>(dh[r], saved_dh[r], own_state());
    share_.barrier_wait_if_by_units();
    product(saved_dh, rows.size(), state_, weights_.projection, from(scratch_.dcell_output),
            hidden_, false);
  }

  void pointwise(int p, Index s, Index first, Range rows, Rows<T> dh) {
    const Range slices = share_.slices(hidden_, kernels_.width);
    BackwardCall<T> call;
    call.rows = rows.size();
    call.slice_begin = slices.begin;
    call.slice_end = slices.end;
    call.units = hidden_;
    call.saved = from(run_.saved.step(s));
    call.saved_gate_stride = run_.saved.gate_stride;
    call.h_prev = previous(run_.h, timeline_, s, rows, scratch_.zero, h_rows_);
    if (cell_.has_cell_state) {
      call.c_prev = previous(run_.c, timeline_, s, rows, scratch_.zero, c_rows_);
      call.c_next = from(run_.c.slot(s + 1));
      call.dc = from(scratch_.dc);
    }
    call.peephole = forward_weights_.peephole;
    call.activations = run_.config.chosen_activations();
    call.dh = dh;
    call.dgates = from(scratch_.dgates_chunk, first);
    call.cell_output = from(scratch_.cell_output_chunk, first);
    call.dpeephole = from(scratch_.dpeephole_chunk, first);
    call.gated_h = from(scratch_.gated_h_chunk, first);
    call.dgated_h = from(scratch_.dgated_h);
    run_rows(kernels_.cells->backward[cell_.phases[p].kind], call, kPointwiseProducts * hidden_,
             share_.interruption());
  }

  // The gradient by the operand of phase p's recurrent weights.
  void operand_gradient(int p, Index s, Index first, Range rows) {
    const PhaseSpec& phase = cell_.phases[p];
    const Rows<T> dgates =
        column(from(scratch_.dgates_chunk, first), (phase.gates.first + phase.h.first) * hidden_);
    const bool by_h = phase.operand == Operand::h_prev;
    product(dgates, rows.size(), phase.h.count * hidden_, weights_.h[p],
            from(by_h ? scratch_.dh : scratch_.dgated_h), state_, by_h && cell_.direct_path,
            s % 2 != 0);
  }

  // Initialises the gradients by the states of rows whose last step is s.
  void begin(Index s) {
    const auto [begin, end] = timeline_.ending(s);
    for (Index n = std::max(begin, share_.rows().begin); n < std::min(end, share_.rows().end);
         ++n) {
      const Index row = run_.schedule.caller_row(n);
      copy_units<T>(state_row(run_.dh_n, index_, row), scratch_.dh[n], own_state());
      if (cell_.has_cell_state)
        copy_units<T>(state_row(run_.dc_n, index_, row), scratch_.dc[n], own_hidden());
    }
  }

  // Zeroes gradients at resets, which they must not cross; copies the gradients by the initial
  // states of rows whose first step is s.
  void end(Index s) {
    const Range rows = active_rows(s);
    if (run_.schedule.has_reset()) {
      for (Index n = rows.begin; n < rows.end; ++n) {
        if (!timeline_.zeroed(s, n)) continue;
        copy_units<T>(nullptr, scratch_.dh[n], own_state());
        if (cell_.has_cell_state) copy_units<T>(nullptr, scratch_.dc[n], own_hidden());
      }
    }
    const auto [begin, end] = timeline_.starting(s);
    for (Index n = std::max(begin, rows.begin); n < std::min(end, rows.end); ++n) {
      const Index row = run_.schedule.caller_row(n);
      copy_units<T>(scratch_.dh[n], state_row(run_.dh_0, index_, row), own_state());
      if (cell_.has_cell_state)
        copy_units<T>(scratch_.dc[n], state_row(run_.dc_0, index_, row), own_hidden());
    }
  }

  // For rows of length 0, the gradient by the final state is that by the initial state.
  void copy_gradients_of_empty_rows() {
    const Range rows = share_.rows();
    for (Index n = rows.begin; n < rows.end; ++n) {
      if (run_.schedule.length(n) > 0) continue;
      const Index row = run_.schedule.caller_row(n);
      copy_units<T>(state_row(run_.dh_n, index_, row), state_row(run_.dh_0, index_, row),
                    own_state());
      if (cell_.has_cell_state) {
        copy_units<T>(state_row(run_.dc_n, index_, row), state_row(run_.dc_0, index_, row),
                      own_hidden());
      }
    }
  }

  void after_chunk(Index s0, Index s1, Index count, bool resume) {
    const T** x = x_rows_;
    const T** h = h_rows_;
    T** dx = dx_rows_;
    for (Index s = s1 - 1; s >= s0; --s) {
      const Index t = timeline_.time(s);
      const Index active = timeline_.active(s);
      const Rows<const T> h_prev = previous(run_.h, timeline_, s, {0, active}, scratch_.zero, h);
      for (Index n = 0; n < active; ++n) {
        const Index row = run_.schedule.caller_row(n);
        *x++ = run_.x.row(t, row);
        *h++ = h_prev[n];
        if (run_.dx.given) *dx++ = run_.dx.row(t, row);
      }
    }
    if (run_.dx.given) input_gradient(count);
    if (run_.dparameters) parameter_gradients(count, resume);
  }

  // dx = dgates * W.
  void input_gradient(Index count) {
    const Rows<T> dgates = column(scratch_.dgates_chunk, cell_.x.first * hidden_);
    const Range rows = share_.part(count);
    Interruption* const interruption = share_.interruption();
    const Index most = std::min(kDxRows, scratch_.max_rows);
    for (Index first = rows.begin; first < rows.end; first += most) {
      if (interruption && interruption->requested()) return;
      PhaseCall<T> call;
      call.rows = std::min(most, rows.end - first);
      call.slice_end = slice_count(inputs_, kernels_.width);
      call.units = inputs_;
      const Index depth = cell_.x.count * hidden_;
      call.x = {dgates.from(first), weights_.x, depth, 0, depth, rounded_};
      call.finish = kernels_.cells->finish[kLinear];
      call.accumulators = accumulators_;
      call.accumulators_row_stride = kernels_.width;
      call.accumulators_slice_stride = call.rows * kernels_.width;
      call.y = {nullptr, 0, dx_rows_ + first};
      storage_.products[kLinear](call);
    }
  }

  // This thread's part of weight (+)= left^T * right, a matrix of `rows` by `columns`.
  void weight_gradient(Rows<const T> left, Index rows, Rows<const T> right, Index columns,
                       Index count, Index offset, bool resume) {
    const Range part = share_.part(rows);
    OuterCall<T> call;
    call.depth = count;
    call.left = column(left, part.begin);
    call.left_columns = part.size();
    call.right = right;
    call.right_columns = columns;
    call.result = {run_.dparameters + offset + part.begin * columns, columns, nullptr};
    call.resume = resume;
    call.scratch = outer_;
    run_outer(storage_.outer ? storage_.outer : kernels_.outer->outer, call, share_.interruption());
  }

  // The same for the gates of `window`. Gates whose blocks are adjacent in the weight share a
  // product.
  void gates_gradient(Window window, int GateSpec::* block, Rows<const T> right, Index columns,
                      Index count, Index offset, bool resume) {
    const Rows<T> dgates = scratch_.dgates_chunk;
    for (int gate = window.first; gate < window.end();) {
      int end = gate + 1;
      while (end < window.end() && cell_.gates[end].*block == cell_.gates[end - 1].*block + 1)
        ++end;
      weight_gradient(column(dgates, gate * hidden_), (end - gate) * hidden_, right, columns, count,
                      offset + cell_.gates[gate].*block * hidden_ * columns, resume);
      gate = end;
    }
  }

  void sum_columns(Rows<const T> rows, Index count, Index columns, Index offset, bool resume) {
    const Range part = share_.part(columns);
    run_sum_rows<T>(kernels_, column(rows, part.begin), count, part.size(),
                    run_.dparameters + offset + part.begin, resume, share_.interruption());
  }

  void parameter_gradients(Index count, bool resume) {
    const ParameterOffsets& at = run_.offsets;
    gates_gradient(cell_.x, &GateSpec::x_block, {nullptr, 0, x_rows_}, inputs_, count, at.weight_ih,
                   resume);
    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      const Rows<const T> operand = phase.operand == Operand::h_prev
                                        ? Rows<const T>{nullptr, 0, h_rows_}
                                        : Rows<const T>(scratch_.gated_h_chunk);
      gates_gradient({phase.gates.first + phase.h.first, phase.h.count}, &GateSpec::h_block,
                     operand, state_, count, at.weight_hh, resume);
    }
    if (run_.config.bias) {
      for (int gate = 0; gate < cell_.gate_count; ++gate) {
        const Rows<T> dgate = column(scratch_.dgates_chunk, gate * hidden_);
        const GateSpec& spec = cell_.gates[gate];
        if (spec.x_block >= 0)
          sum_columns(dgate, count, hidden_, at.bias_ih + spec.x_block * hidden_, resume);
        if (spec.h_block >= 0)
          sum_columns(dgate, count, hidden_, at.bias_hh + spec.h_block * hidden_, resume);
      }
    }
    if (run_.config.proj_size > 0) {
      weight_gradient(scratch_.dh_chunk, state_, scratch_.cell_output_chunk, hidden_, count,
                      at.weight_hr, resume);
    }
    if (run_.config.peephole)
      sum_columns(scratch_.dpeephole_chunk, count, 3 * hidden_, at.weight_peephole, resume);
  }

  // With UpdateGate::write, the kernels used negated weights of the update gate. Each thread
  // negates its part of their gradients.
  void negate_update_gate() {
    for (int gate = 0; gate < cell_.gate_count; ++gate) {
      const GateSpec& spec = cell_.gates[gate];
      if (!spec.update) continue;
      const auto negate = [&](Index offset, Index size) {
        const Range part = share_.part(size);
        T* values = run_.dparameters + offset;
        for (Index i = part.begin; i < part.end; ++i) values[i] = -values[i];
      };
      negate(run_.offsets.weight_ih + spec.x_block * hidden_ * inputs_, hidden_ * inputs_);
      negate(run_.offsets.weight_hh + spec.h_block * hidden_ * state_, hidden_ * state_);
      if (run_.config.bias) {
        negate(run_.offsets.bias_ih + spec.x_block * hidden_, hidden_);
        negate(run_.offsets.bias_hh + spec.h_block * hidden_, hidden_);
      }
    }
  }

  const BackwardDirection<T>& run_;
  const Share& share_;
  const BackwardScratch<T>& scratch_;
  const Kernels<T>& kernels_;
  const StorageKernels<T>& storage_;
  const CellSpec& cell_;
  const DirectionWeights<T>& forward_weights_;
  const BackwardWeights& weights_;
  const Timeline timeline_;
  const Index hidden_;
  const Index state_;
  const Index inputs_;
  const Index index_;      // the number of the direction, layer-major
  const Index first_row_;  // of this thread
  const T** const x_rows_;
  const T** const h_rows_;
  const T** const c_rows_;
  T** const dx_rows_;
  T* const accumulators_;
  T* const outer_;
  std::byte* const rounded_;
};

}  // namespace

template <class T>
void BackwardDirection<T>::run(const Share& share, int thread) const {
  BackwardPass<T>(*this, share, thread).run();
}

template struct BackwardScratch<float>;
template struct BackwardScratch<double>;
template struct BackwardDirection<float>;
template struct BackwardDirection<double>;

}  // namespace tidegate
