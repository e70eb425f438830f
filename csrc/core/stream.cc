// Stream: it keeps its states, and its steps allocate nothing.
#include <algorithm>
#include <optional>
#include <stdexcept>
#include <vector>

#include "core/cell_step.h"
#include "core/model_impl.h"
#include "core/network.h"
#include "core/thread_setup.h"
#include "tidegate/settings.h"

namespace tidegate {

namespace {

// The rows of all layers' states, [layer][row][unit].
template <class T>
struct StreamState {
  // Padded for the widest vector, so that the layout does not depend on the ISA.
  static constexpr Index kPadding = 64 / sizeof(T);

  StreamState(const Config& config, Index rows)
      : batch(rows),
        state_size(config.state_size()),
        hidden_size(config.hidden_size),
        num_layers(config.num_layers),
        memory(
            [&](Arena& arena) {
              const auto take = [&](Index units) {
                const Index stride = padded_row<T>(units, kPadding);
                return Rows<T>{take_zeros<T>(arena, checked_size(num_layers, batch, stride)),
                               stride, nullptr};
              };
              h = take(state_size);
              if (config.has_cell_state()) c = take(hidden_size);
            },
            "the stream's states") {}

  Rows<T> layer_of(Rows<T> states, Index layer) const { return states.from(layer * batch); }
  View<T> view_of(Rows<T> states, Index units) const {
    if (!states) return {};
    View<T> all = view(states.base, num_layers, batch, units);
    all.stride[0] = batch * states.stride;
    all.stride[1] = states.stride;
    return all;
  }
  View<T> h_view() const { return view_of(h, state_size); }
  View<T> c_view() const { return view_of(c, hidden_size); }

  // Copies row `row` of `from` to row `to_row` of this state, in all layers. `from` null: zeros.
  void copy_row(const StreamState* from, Index row, Index to_row) {
    for (Index layer = 0; layer < num_layers; ++layer) {
      copy_units<T>(from ? from->layer_of(from->h, layer)[row] : nullptr,
                    layer_of(h, layer)[to_row], {0, state_size});
      if (!c) continue;
      copy_units<T>(from ? from->layer_of(from->c, layer)[row] : nullptr,
                    layer_of(c, layer)[to_row], {0, hidden_size});
    }
  }

  // Copies all rows of a state of the same sizes.
  void copy(const StreamState& from) {
    for (Index row = 0; row < batch; ++row) copy_row(&from, row, row);
  }

  Index batch;
  Index state_size, hidden_size, num_layers;
  Rows<T> h, c;
  Buffer memory;
};

// The division of a step among threads: the share of each thread, and its calls for each layer.
template <class T>
class StepDivision {
 public:
  // The arguments on which the calls depend; nearly always the same as in the last step.
  struct Shape {
    int threads = 0;
    bool by_units = false;
    Index count = 0;      // the rows to be divided, or their greatest number
    bool picked = false;  // the rows are given by their numbers
    Index x_stride = 0, y_stride = 0;

    bool operator==(const Shape& other) const {
      return threads == other.threads && by_units == other.by_units && count == other.count &&
             picked == other.picked && x_stride == other.x_stride && y_stride == other.y_stride;
    }
  };

  // Reserves memory for max_threads threads, so that divide() allocates nothing.
  StepDivision(int max_threads, Index layers) : layers_(static_cast<std::size_t>(layers)) {
    shares_.reserve(static_cast<std::size_t>(max_threads));
    steps_.reserve(static_cast<std::size_t>(max_threads) * layers_);
  }
  StepDivision(const StepDivision&) = delete;
  StepDivision& operator=(const StepDivision&) = delete;

  // `make(layer, thread, share)` returns a CellStep with its layout set.
  template <class Make>
  void divide(const Shape& shape, Make&& make) {
    if (shape == shape_) return;
    shape_ = shape;
    steps_.clear();
    shares_.clear();
    barrier_.emplace(shape.threads);
    for (int thread = 0; thread < shape.threads; ++thread) {
      const Range rows =
          shape.by_units ? Range{0, shape.count} : part_of(shape.count, thread, shape.threads);
      shares_.emplace_back(thread, shape.threads, shape.by_units, rows, *barrier_);
      for (std::size_t layer = 0; layer < layers_; ++layer)
        steps_.push_back(make(static_cast<Index>(layer), thread, shares_.back()));
    }
  }

  const Share& share(int thread) const { return shares_[static_cast<std::size_t>(thread)]; }
  CellStep<T>& step(int thread, Index layer) {
    return steps_[static_cast<std::size_t>(thread) * layers_ + static_cast<std::size_t>(layer)];
  }

 private:
  const std::size_t layers_;
  Shape shape_;
  std::optional<Barrier> barrier_;
  std::vector<Share> shares_;       // [thread]
  std::vector<CellStep<T>> steps_;  // [thread][layer]
};

// The data that steps of up to `batch` rows need besides the state: a snapshot of the weights, the
// calls of each layer, and their working memory.
template <class T>
struct StreamWork {
  StreamWork(const Model<T>& model, typename Model<T>::Impl& impl, Index rows)
      : version(impl.parameters.version()),
        weights(impl.weights()),
        batch(rows),
        max_threads(std::min(num_threads(), kMaxThreads)),
        memory([&](Arena& arena) { take(arena, model.config()); }),
        serial(1, model.config().num_layers),
        parallel(max_threads, model.config().num_layers) {
    // With TIDEGATE_PLAN=explain, a plan is made for every step.
    while (min_parallel_rows <= batch && !explains_plans() &&
           !may_pay({model.config(), Work::step, 1, min_parallel_rows, weights->storage().cost},
                    max_threads))
      ++min_parallel_rows;
  }
  StreamWork(const StreamWork&) = delete;
  StreamWork& operator=(const StreamWork&) = delete;

  void take(Arena& arena, const Config& config) {
    const Index width = weights->kernels().width;
    scratch = StepScratch<T>::take(arena, config, *weights, batch, batch, max_threads);
    const Index stride = padded_row<T>(config.state_size(), width);
    for (Rows<T>& rows : h_next) rows = {arena.take<T>(batch, stride), stride, nullptr};
    h_rows = arena.take<const T*>(max_threads, batch);
    c_rows = arena.take<T*>(max_threads, batch);
  }

  // The tables of the picked rows' states for one thread.
  const T** h_table(int thread) const { return h_rows + thread * batch; }
  T** c_table(int thread) const { return c_rows + thread * batch; }

  // Prepares `division` for steps of this shape.
  void divide(StepDivision<T>& division, const typename StepDivision<T>::Shape& shape,
              const Config& config, const StreamState<T>& state) {
    division.divide(shape, [&](Index layer, int thread, const Share& share) {
      StepLayout<T> rows;
      rows.x = {nullptr, layer == 0 ? shape.x_stride : h_next[0].stride, nullptr};
      rows.h_prev = {nullptr, state.h.stride, shape.picked ? h_table(thread) : nullptr};
      rows.h_next = {nullptr, h_next[0].stride, nullptr};
      rows.c_next = {nullptr, state.c.stride, shape.picked && state.c ? c_table(thread) : nullptr};
      rows.c_prev = rows.c_next;
      rows.y = {nullptr, shape.y_stride, nullptr};
      const Index first = share.rows().begin;
      CellStep<T> step(config, *weights, layer, 0, share, thread, scratch, first, first, 0);
      step.set_layout(rows);
      return step;
    });
  }

  const std::uint64_t version;
  const std::shared_ptr<const Weights<T>> weights;
  const Index batch;
  const int max_threads;
  Index min_parallel_rows = 1;  // with fewer rows, several threads cannot be faster

  StepScratch<T> scratch;
  Rows<T> h_next[2];  // used by the layers alternately
  const T** h_rows;   // [thread][row]
  T** c_rows;         // [thread][row]
  Buffer memory;

  StepDivision<T> serial, parallel;
};

Index checked_batch(Index batch) {
  if (batch < 0)
    throw std::invalid_argument("batch: got " + std::to_string(batch) + ", wanted an integer >= 0");
  return batch;
}

const Config& checked_config(const Config& config) {
  if (config.bidirectional || config.reverse) {
    throw std::invalid_argument(std::string(config.bidirectional ? "bidirectional" : "reverse") +
                                ": a stream has no last step to begin at; wanted False");
  }
  return config;
}

}  // namespace

template <class T>
struct Stream<T>::Impl {
  Impl(std::shared_ptr<const Model<T>> of, Index rows)
      : model(std::move(of)),
        config(checked_config(model->config())),
        state(config, checked_batch(rows)),
        work(std::make_unique<StreamWork<T>>(*model, *model->impl_, rows)) {}

  // The arguments of a step. `rows`: numbers of rows of the stream; null: all rows.
  struct Step {
    const Rows<const T>& x;
    const Rows<T>& y;
    const Index* rows;
    Index count;
  };

  // Runs a step on up to `threads` threads, if they are available and the plan is to use them.
  void run(const Step& step, int threads) {
    reversed = !reversed;
    if (threads == 1 || step.count < work->min_parallel_rows) {
      run_serial(step);
    } else {
      run_planned(step, threads);
    }
  }

  void run_serial(const Step& step) {
    divide(work->serial, step, {});
    const ThreadSetup setup;
    run_share(step, work->serial, 0);
  }

  void run_planned(const Step& step, int threads) noexcept {
    const Call call = {config, Work::step, 1, step.count, work->weights->storage().cost};
    PlannedCall plan;
    // Throws if the number of threads or its setting is invalid, or without memory for threads.
    try {
      plan = plan_call(call, std::min(allowed_threads(threads), work->max_threads),
                       work->weights->memory());
      ThreadLease lease(plan.threads);
      if (lease.size() < plan.threads) plan = plan_again(call, lease.size(), plan);
      if (plan.threads > 1) {
        divide(work->parallel, step, plan);
        const ThreadSetup setup;
        lease.run([&](int thread) {
          if (thread < plan.threads) run_share(step, work->parallel, thread);
        });
        plan.record();
        return;
      }
    } catch (const std::exception&) {
      plan = {};
    }
    run_serial(step);
    plan.record();
  }

  void divide(StepDivision<T>& division, const Step& step, const Plan& plan) {
    const bool by_rows = plan.threads > 1 && !plan.by_units;
    work->divide(division,
                 {plan.threads, plan.by_units, by_rows ? step.count : state.batch,
                  step.rows != nullptr, step.x.stride, step.y.stride},
                 config, state);
  }

  // Runs one thread's share of a step.
  void run_share(const Step& step, StepDivision<T>& division, int thread) {
    const Share& share = division.share(thread);
    const Range own = share.active_rows(step.count);
    const Range units = share.units(state.state_size, work->weights->kernels().width);
    const Index* const picked = step.rows ? step.rows + own.begin : nullptr;
    if (own.size() == 0) return;  // rows are divided, so no other thread waits for this one
    StepBases<T> bases;
    bases.count = own.size();
    bases.reversed = reversed;
    bases.x = step.x.base + own.begin * step.x.stride;
    for (Index layer = 0; layer < config.num_layers; ++layer) {
      const Rows<T> h = state.layer_of(state.h, layer);
      const Rows<T> c = state.layer_of(state.c, layer);
      const Rows<T> h_next = work->h_next[layer % 2];
      if (picked) {
        for (Index r = 0; r < own.size(); ++r) {
          work->h_table(thread)[r] = h[picked[r]];
          if (c) work->c_table(thread)[r] = c[picked[r]];
        }
      } else {
        bases.h_prev = h[own.begin];
        if (c) bases.c_prev = bases.c_next = c[own.begin];
      }
      bases.h_next = h_next[own.begin];
      if (layer + 1 == config.num_layers) bases.y = step.y.base + own.begin * step.y.stride;
      division.step(thread, layer).run(bases, share);
      share.barrier_wait_if_by_units();
      for (Index r = 0; r < own.size(); ++r)
        copy_units<T>(h_next[own.begin + r], h[picked ? picked[r] : own.begin + r], units);
      bases.x = bases.h_next;
    }
  }

  const std::shared_ptr<const Model<T>> model;
  const Config config;
  StreamState<T> state;
  bool reversed = false;  // whether the last step was reversed, see PhaseCall
  std::unique_ptr<StreamWork<T>> work;
};

template <class T>
Stream<T>::Stream(std::shared_ptr<const Model<T>> model, Index batch)
    : impl_(std::make_unique<Impl>(std::move(model), batch)) {}

template <class T>
Stream<T>::~Stream() = default;

template <class T>
const Config& Stream<T>::config() const {
  return impl_->config;
}

template <class T>
Index Stream<T>::batch() const {
  return impl_->state.batch;
}

template <class T>
void Stream<T>::renew() {
  const StreamWork<T>& work = *impl_->work;
  auto& model = *impl_->model->impl_;
  if (work.version == model.parameters.version() && &work.weights->kernels() == &kernels<T>())
    return;
  impl_->work = std::make_unique<StreamWork<T>>(*impl_->model, model, batch());
}

template <class T>
void Stream<T>::step(const T* x, Index x_stride, T* y, Index y_stride, int num_threads) noexcept {
  step(x, x_stride, y, y_stride, nullptr, batch(), num_threads);
}

template <class T>
void Stream<T>::step(const T* x, Index x_stride, T* y, Index y_stride, const Index* rows,
                     Index count, int num_threads) noexcept {
  if (count <= 0) return;
  const Rows<const T> from = {x, x_stride, nullptr};
  const Rows<T> to = {y, y_stride, nullptr};
  impl_->run({from, to, rows, count}, num_threads);
}

template <class T>
void Stream<T>::run(const View<const T>& x, const View<T>& y, int num_threads) {
  const Config& config = impl_->config;
  StreamState<T>& state = impl_->state;
  const CallSize size = {x.shape[0], state.batch};
  Inputs<T> inputs;
  inputs.x = x;
  inputs.h_0 = constant(state.h_view());
  inputs.c_0 = constant(state.c_view());
  Outputs<T> outputs;
  outputs.y = y;
  outputs.h_n = state.h_view();
  outputs.c_n = state.c_view();
  check_shape("x", x.shape, x.stride, size.steps, size.batch, config.input_size);
  check_outputs(config, size, outputs);
  const Weights<T>& weights = *impl_->work->weights;
  const PlannedCall plan =
      plan_call({config, Work::forward, size.steps, size.batch, weights.storage().cost},
                allowed_threads(num_threads), weights.memory());
  const ForwardWorkspace<T> workspace(config, weights, size, plan.threads, true);
  const Schedule schedule(size.steps, size.batch, nullptr, MaskView{});
  const auto advance = [&] {
    run_forward<T>(config, weights, schedule, inputs, outputs, workspace, nullptr, plan);
  };
  if (!Interruption().possible()) return advance();
  StreamState<T> before(config, size.batch);
  before.copy(state);
  try {
    advance();
  } catch (const Interrupted&) {
    state.copy(before);
    throw;
  }
}

template <class T>
T* Stream<T>::h(Index layer, Index row) noexcept {
  return impl_->state.layer_of(impl_->state.h, layer)[row];
}

template <class T>
T* Stream<T>::c(Index layer, Index row) noexcept {
  const Rows<T> c = impl_->state.layer_of(impl_->state.c, layer);
  return c ? c[row] : nullptr;
}

template <class T>
void Stream<T>::reset() noexcept {
  for (Index row = 0; row < batch(); ++row) reset(row);
}

template <class T>
void Stream<T>::reset(Index row) noexcept {
  impl_->state.copy_row(nullptr, 0, row);
}

template <class T>
void Stream<T>::resize(Index batch) {
  StreamState<T> state(impl_->config, checked_batch(batch));
  auto work = std::make_unique<StreamWork<T>>(*impl_->model, *impl_->model->impl_, batch);
  for (Index row = 0; row < std::min(batch, impl_->state.batch); ++row)
    state.copy_row(&impl_->state, row, row);
  impl_->state = std::move(state);
  impl_->work = std::move(work);
}

template <class T>
double Stream<T>::step_cost(Index count) const noexcept {
  const Call call = {impl_->config, Work::step, 1, count, impl_->work->weights->storage().cost};
  return CostModel(call).serial_plan(machine_now(1), {}).nanoseconds;
}

template class Stream<float>;
template class Stream<double>;

}  // namespace tidegate
