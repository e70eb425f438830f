// The forward pass of one direction of one layer through time.
#include "core/forward.h"

namespace tidegate {

namespace {

// The bytes of the accumulators of steps that are projected together: half of a small L2, or a
// quarter of the bytes of the input weights if that is more, because these weights are then read
// once for more rows.
constexpr Index kAccumulatorBytes = 256 * 1024;
constexpr Index kWeightsPerAccumulators = 4;
constexpr Index kMaxChunkRows = 1024;

// The number of steps whose input projections are computed together, before their recurrence. Their
// accumulators stay in L2.
template <class T>
Index projected_steps(const Config& config, Index steps, Index batch, Index width,
                      double weight_bytes) {
  const Index row = checked_size(kMaxGates, slice_count(config.hidden_size, width), width);
  const Index row_bytes = checked_size(row, Index{sizeof(T)});
  const Index weights = checked_size(row, config.layer_input_size(config.num_layers - 1));
  const auto part = static_cast<Index>(static_cast<double>(weights) * weight_bytes);
  const Index bytes = std::max(kAccumulatorBytes, part / kWeightsPerAccumulators);
  const Index rows = std::min(kMaxChunkRows, bytes / row_bytes);
  return std::max<Index>(1, std::min(steps, rows / std::max<Index>(1, batch)));
}

}  // namespace

template <class T>
ForwardScratch<T> ForwardScratch<T>::take(Arena& arena, const Config& config,
                                          const Weights<T>& weights, Index steps, Index batch,
                                          int threads) {
  const Index width = weights.kernels().width;
  ForwardScratch scratch;
  scratch.chunk =
      projected_steps<T>(config, steps, batch, width, weights.storage().cost.weight_bytes);
  const Index rows = checked_size(scratch.chunk, batch);
  scratch.step = StepScratch<T>::take(arena, config, weights, rows, batch, threads);
  scratch.x_rows = arena.take<const T*>(threads, rows);
  scratch.y_rows = arena.take<T*>(threads, batch);
  scratch.h_rows = arena.take<const T*>(threads, batch);
  scratch.c_rows = arena.take<const T*>(threads, batch);
  scratch.zero = take_zeros<T>(arena, padded_row<T>(config.hidden_size, width));
  return scratch;
}

namespace {

// The forward pass of one thread.
template <class T>
class ForwardPass {
 public:
  ForwardPass(const ForwardDirection<T>& run, const Share& share, int thread)
      : run_(run),
        share_(share),
        kernels_(run.weights.kernels()),
        cell_(run.weights.cell()),
        timeline_(run.schedule, run.config.reverse || run.direction == 1),
        hidden_(run.config.hidden_size),
        state_(run.config.state_size()),
        index_(run.layer * run.config.num_directions() + run.direction),
        first_row_(share.rows().begin),
        x_rows_(run.scratch.x_rows + thread * run.scratch.chunk * run.schedule.batch()),
        y_rows_(run.scratch.y_rows + thread * run.schedule.batch()),
        h_rows_(run.scratch.h_rows + thread * run.schedule.batch()),
        c_rows_(run.scratch.c_rows + thread * run.schedule.batch()),
        // Each of the threads that divide rows has its own part of the accumulators.
        step_(run.config, run.weights, run.layer, run.direction, share, thread, run.scratch.step,
              first_row_, run.scratch.chunk * first_row_, run.saved.gate_stride) {
    const bool tables = run.schedule.has_reset();
    StepLayout<T> rows;
    rows.x = {nullptr, 0, x_rows_};
    rows.h_prev = {nullptr, run.h.row_stride, tables ? h_rows_ : nullptr};
    rows.c_prev = {nullptr, run.c.row_stride, tables ? c_rows_ : nullptr};
    rows.h_next = {nullptr, run.h.row_stride, nullptr};
    rows.c_next = {nullptr, run.c.row_stride, nullptr};
    rows.y = {nullptr, 0, y_rows_};
    rows.saved = {nullptr, run.saved.row_stride, nullptr};
    step_.set_layout(rows);
  }

  void run(Range steps) {
    if (steps.begin == 0) {
      copy_states_of_empty_rows();
      begin(0);
    }
    share_.arrive_if_by_units();
    steps.end = std::min(steps.end, timeline_.steps());
    pad(steps);
    const Index chunk = run_.scratch.chunk;
    for (Index s0 = steps.begin; s0 < steps.end; s0 += chunk) {
      const Index s1 = std::min(s0 + chunk, steps.end);
      const bool projected = chunk > 1;
      if (projected) project(s0, s1);
      Index first = 0;  // this step's first row among the chunk's accumulators
      for (Index s = s0; s < s1; ++s) {
        if (share_.stops()) {
          share_.await_all_if_by_units();
          return;
        }
        const Range rows = active_rows(s);
        if (rows.size() > 0) {
          step(s, rows, first, projected);
        } else {
          share_.await_all_if_by_units();
        }
        first += rows.size();
        end(s);
        begin(s + 1);
        share_.arrive_if_by_units();
      }
    }
    share_.await_all_if_by_units();
  }

 private:
  Range active_rows(Index s) const { return share_.active_rows(timeline_.active(s)); }
  Range own_hidden() const { return share_.units(hidden_, kernels_.width); }
  Range own_state() const { return share_.units(state_, kernels_.width); }

  void collect_x_rows(Index s, Range rows, const T** to) const {
    const Index t = timeline_.time(s);
    for (Index n = rows.begin; n < rows.end; ++n)
      *to++ = run_.x.row(t, run_.schedule.caller_row(n));
  }

  // Computes the input projections of steps [s0, s1), for this thread's rows and units.
  void project(Index s0, Index s1) {
    Index count = 0;
    for (Index s = s0; s < s1; ++s) {
      const Range rows = active_rows(s);
      collect_x_rows(s, rows, x_rows_ + count);
      count += rows.size();
    }
    if (count > 0) step_.project({nullptr, 0, x_rows_}, count);
  }

  void step(Index s, Range rows, Index first, bool projected) {
    const Index t = timeline_.time(s);
    for (Index n = rows.begin; n < rows.end; ++n) {
      y_rows_[n - rows.begin] = run_.y.row(t, run_.schedule.caller_row(n));
    }
    if (!projected) collect_x_rows(s, rows, x_rows_);
    const T* zero = run_.scratch.zero;
    StepBases<T> step;
    step.count = rows.size();
    step.first = first;
    step.reversed = s % 2 != 0;
    step.projected = projected;
    step.arrived = true;
    step.h_prev = previous(run_.h, timeline_, s, rows, zero, h_rows_).base;
    step.h_next = own(run_.h.slot(s + 1));
    if (cell_.has_cell_state) {
      step.c_prev = previous(run_.c, timeline_, s, rows, zero, c_rows_).base;
      step.c_next = own(run_.c.slot(s + 1));
    }
    step.saved = own(run_.saved.step(s));
    step_.run(step, share_);
  }

  // This thread's first row of a buffer of all sorted rows.
  T* own(Rows<T> rows) const { return rows ? rows.base + first_row_ * rows.stride : nullptr; }

  // Copies the initial states of rows whose first step is s.
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

  // Copies the final states of rows whose last step is s.
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

  // Zeroes y at padded steps.
  void pad(Range steps) {
    if (run_.y.first_row) return;  // a packed sequence has no padding
    const Range rows = share_.rows();
    for (Index s = steps.begin; s < steps.end; ++s) {
      const Index t = timeline_.time(s);
      for (Index n = std::max(rows.begin, run_.schedule.active(t)); n < rows.end; ++n)
        copy_units<T>(nullptr, run_.y.row(t, run_.schedule.caller_row(n)), own_state());
    }
  }

  // For rows of length 0, the final state is the initial state.
  void copy_states_of_empty_rows() {
    const Range rows = share_.rows();
    for (Index n = rows.begin; n < rows.end; ++n) {
      if (run_.schedule.length(n) > 0) continue;
      const Index row = run_.schedule.caller_row(n);
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
  const Timeline timeline_;
  const Index hidden_;
  const Index state_;
  const Index index_;      // the number of the direction, layer-major
  const Index first_row_;  // of this thread
  const T** const x_rows_;
  T** const y_rows_;
  const T** const h_rows_;
  const T** const c_rows_;
  CellStep<T> step_;
};

}  // namespace

template <class T>
void ForwardDirection<T>::run(const Share& share, int thread, Range steps) const {
  ForwardPass<T>(*this, share, thread).run(steps);
}

template struct ForwardScratch<float>;
template struct ForwardScratch<double>;
template struct ForwardDirection<float>;
template struct ForwardDirection<double>;

}  // namespace tidegate
