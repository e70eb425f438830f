// One direction of one layer through time, forward.
#include "core/forward.h"

namespace tidegate {

namespace {

constexpr Index kAccumulatorBytes = 256 * 1024;  // half of a small L2
constexpr Index kMaxChunkRows = 1024;

}  // namespace

template <class T>
Index projected_steps(const Config& config, Index steps, Index batch, Index width) {
  const Index row =
      checked_size(kMaxGates, slice_count(config.hidden_size, width), width, Index{sizeof(T)});
  const Index rows = std::min(kMaxChunkRows, kAccumulatorBytes / row);
  return std::max<Index>(1, std::min(steps, rows / std::max<Index>(1, batch)));
}

template <class T>
ForwardScratch<T> ForwardScratch<T>::take(Arena& arena, const Config& config, const CellSpec& cell,
                                          Index steps, Index batch, int threads, Index width) {
  ForwardScratch scratch;
  scratch.chunk = projected_steps<T>(config, steps, batch, width);
  const Index rows = checked_size(scratch.chunk, batch);
  const Index hidden = config.hidden_size;
  for (int p = 0; p < cell.phase_count; ++p) {
    scratch.accumulators[p] =
        arena.take<T>(slice_count(hidden, width), rows, cell.phases[p].gates.count, width);
  }
  scratch.x_rows = arena.take<const T*>(threads, rows);
  scratch.y_rows = arena.take<T*>(threads, batch);
  scratch.h_rows = arena.take<const T*>(threads, batch);
  scratch.c_rows = arena.take<const T*>(threads, batch);
  scratch.zero = take_zeros<T>(arena, padded_row<T>(hidden, width));
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

namespace {

// One thread's walk through the steps.
template <class T>
class Walk {
 public:
  Walk(const ForwardDirection<T>& run, const Share& share, int thread)
      : run_(run),
        share_(share),
        kernels_(run.weights.kernels()),
        cell_(run.weights.cell()),
        weights_(run.weights.direction(run.layer, run.direction)),
        timeline_(run.schedule, run.config.reverse || run.direction == 1),
        hidden_(run.config.hidden_size),
        state_(run.config.state_size()),
        index_(run.layer * run.config.num_directions() + run.direction),
        first_row_(share.rows().begin),
        x_rows_(run.scratch.x_rows + thread * run.scratch.chunk * run.schedule.batch()),
        y_rows_(run.scratch.y_rows + thread * run.schedule.batch()),
        h_rows_(run.scratch.h_rows + thread * run.schedule.batch()),
        c_rows_(run.scratch.c_rows + thread * run.schedule.batch()) {}

  void run() {
    never_alive();
    begin(0);
    share_.meet_if_by_units();
    const Index chunk = run_.scratch.chunk;
    for (Index s0 = 0; s0 < timeline_.steps(); s0 += chunk) {
      const Index s1 = std::min(s0 + chunk, timeline_.steps());
      const bool projected = chunk > 1;
      if (projected) project(s0, s1);
      Index first = 0;  // this step's first row among the chunk's accumulators
      for (Index s = s0; s < s1; ++s) {
        const Range rows = live_rows(s);
        if (rows.size() > 0) step(s, rows, first, projected);
        first += rows.size();
        end(s);
        begin(s + 1);
        share_.meet_if_by_units();
      }
    }
  }

 private:
  Range live_rows(Index s) const { return share_.live_rows(timeline_.live(s)); }
  Range own_hidden() const { return share_.units(hidden_, kernels_.width); }
  Range own_state() const { return share_.units(state_, kernels_.width); }

  void collect_x_rows(Index s, Range rows, const T** to) const {
    const Index t = timeline_.time(s);
    for (Index n = rows.begin; n < rows.end; ++n)
      *to++ = run_.x.row(t, run_.schedule.caller_row(n));
  }

  // The call of phase p that concerns `rows` rows, from `first` on in the chunk's accumulators.
  PhaseCall<T> phase_call(int p, Index rows, Index first) const {
    const PhaseSpec& phase = cell_.phases[p];
    const Range slices = share_.slices(hidden_, kernels_.width);
    // Threads that divide rows have each their own part of the accumulators.
    const Index chunk_rows = run_.scratch.chunk * run_.schedule.batch();
    const Index own_first = run_.scratch.chunk * first_row_ + first;
    PhaseCall<T> call;
    call.rows = rows;
    call.slice_begin = slices.begin;
    call.slice_end = slices.end;
    call.units = hidden_;
    call.bias = weights_.phases[p].bias;
    call.accumulators_row_stride = phase.gates.count * kernels_.width;
    call.accumulators_slice_stride = chunk_rows * call.accumulators_row_stride;
    call.accumulators = run_.scratch.accumulators[p] + own_first * call.accumulators_row_stride;
    return call;
  }

  Product<T> x_product(int p, const T* const* rows) const {
    return {{nullptr, 0, rows}, run_.config.layer_input_size(run_.layer), weights_.phases[p].x};
  }

  // The input projections of steps [s0, s1), for this thread's rows and units alone.
  void project(Index s0, Index s1) {
    Index count = 0;
    for (Index s = s0; s < s1; ++s) {
      const Range rows = live_rows(s);
      collect_x_rows(s, rows, x_rows_ + count);
      count += rows.size();
    }
    if (count == 0) return;
    for (int p = 0; p < cell_.phase_count; ++p) {
      PhaseCall<T> call = phase_call(p, count, 0);
      call.x = x_product(p, x_rows_);
      call.finish = false;
      kernels_.phase[cell_.phases[p].kind](call);
    }
  }

  void step(Index s, Range rows, Index first, bool projected) {
    const Index t = timeline_.time(s);
    for (Index n = rows.begin; n < rows.end; ++n) {
      y_rows_[n - rows.begin] = run_.y.row(t, run_.schedule.caller_row(n));
    }
    if (!projected) collect_x_rows(s, rows, x_rows_);
    const bool projection = run_.config.proj_size > 0;
    const T* zero = run_.scratch.zero;
    const Rows<const T> h_prev = previous(run_.h, timeline_, s, rows, zero, h_rows_);
    const Rows<T> h_next = from(run_.h.slot(s + 1));
    const Rows<T> y = {nullptr, 0, y_rows_};

    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      PhaseCall<T> call = phase_call(p, rows.size(), projected ? first : 0);
      if (!projected) call.x = x_product(p, x_rows_);
      call.resume = projected;
      const bool by_h = phase.operand == Operand::h_prev;
      call.h = {by_h ? h_prev : Rows<const T>(from(run_.scratch.reset_h)), state_,
                weights_.phases[p].h};
      call.h_prev = h_prev;
      if (cell_.has_cell_state) {
        call.c_prev = previous(run_.c, timeline_, s, rows, zero, c_rows_);
        call.c_next = from(run_.c.slot(s + 1));
      }
      call.h_next = projection ? from(run_.scratch.cell_output) : h_next;
      if (!projection) call.y = y;
      call.saved = from(run_.saved.step(s));
      call.saved_gate_stride = run_.saved.gate_stride;
      call.peephole = weights_.peephole;
      call.reset_h = from(run_.scratch.reset_h);
      call.z = from(run_.scratch.z);
      kernels_.phase[phase.kind](call);
      if (projection || p + 1 < cell_.phase_count) share_.meet_if_by_units();
    }
    if (projection) project_output(rows, h_next, y);
  }

  // h = weight_hr * (o * tanh(c)).
  void project_output(Range rows, Rows<T> h_next, Rows<T> y) {
    const Range slices = share_.slices(state_, kernels_.width);
    PhaseCall<T> call;
    call.rows = rows.size();
    call.slice_begin = slices.begin;
    call.slice_end = slices.end;
    call.units = state_;
    call.x = {from(run_.scratch.cell_output), hidden_, weights_.projection};
    // A linear phase has one accumulator a unit: the state's own rows hold them.
    call.accumulators = h_next.base;
    call.accumulators_row_stride = h_next.stride;
    call.accumulators_slice_stride = kernels_.width;
    call.h_next = h_next;
    call.y = y;
    kernels_.phase[kLinear](call);
  }

  // This thread's rows of a buffer of all sorted rows.
  template <class U>
  Rows<U> from(Rows<U> rows) const {
    return rows ? Rows<U>{rows.base + first_row_ * rows.stride, rows.stride, nullptr} : rows;
  }

  // The states of rows whose first step is s.
  void begin(Index s) {
    if (s >= timeline_.steps()) return;
    const auto [begin, end] = timeline_.starting(s);
    for (Index n = std::max(begin, share_.rows().begin); n < std::min(end, share_.rows().end);
         ++n) {
      const Index row = run_.schedule.caller_row(n);
      copy_units<T>(state_row(run_.h_0, index_, row), run_.h.slot(s)[n], own_state());
      if (cell_.has_cell_state) {
        copy_units<T>(state_row(run_.c_0, index_, row), run_.c.slot(s)[n], own_hidden());
      }
    }
  }

  // The states of rows whose last step is s.
  void end(Index s) {
    const auto [begin, end] = timeline_.ending(s);
    for (Index n = std::max(begin, share_.rows().begin); n < std::min(end, share_.rows().end);
         ++n) {
      const Index row = run_.schedule.caller_row(n);
      copy_units<T>(run_.h.slot(s + 1)[n], state_row(run_.h_n, index_, row), own_state());
      if (cell_.has_cell_state) {
        copy_units<T>(run_.c.slot(s + 1)[n], state_row(run_.c_n, index_, row), own_hidden());
      }
    }
  }

  // Padded steps are zero; a row of no steps keeps its initial state.
  void never_alive() {
    const Range rows = share_.rows();
    for (Index n = rows.begin; n < rows.end; ++n) {
      const Index row = run_.schedule.caller_row(n);
      for (Index t = run_.schedule.length(n); t < timeline_.steps(); ++t) {
        copy_units<T>(nullptr, run_.y.row(t, row), own_state());
      }
      if (run_.schedule.length(n) > 0) continue;
      copy_units<T>(state_row(run_.h_0, index_, row), state_row(run_.h_n, index_, row),
                    own_state());
      if (cell_.has_cell_state) {
        copy_units<T>(state_row(run_.c_0, index_, row), state_row(run_.c_n, index_, row),
                      own_hidden());
      }
    }
  }

  const ForwardDirection<T>& run_;
  const Share& share_;
  const Kernels<T>& kernels_;
  const CellSpec& cell_;
  const DirectionWeights<T>& weights_;
  const Timeline timeline_;
  const Index hidden_;
  const Index state_;
  const Index index_;      // of the direction, layer-major
  const Index first_row_;  // this thread's
  const T** const x_rows_;
  T** const y_rows_;
  const T** const h_rows_;
  const T** const c_rows_;
};

}  // namespace

template <class T>
void ForwardDirection<T>::run(const Share& share, int thread) const {
  Walk<T>(*this, share, thread).run();
}

template struct ForwardScratch<float>;
template struct ForwardScratch<double>;
template struct ForwardDirection<float>;
template struct ForwardDirection<double>;

}  // namespace tidegate
