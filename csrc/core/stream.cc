// Stream: states that stay inside, and a step that allocates nothing.
#include <algorithm>
#include <optional>
#include <stdexcept>
#include <vector>

#include "core/cell_step.h"
#include "core/float_control.h"
#include "core/model_impl.h"
#include "core/network.h"
#include "tidegate/settings.h"

namespace tidegate {

namespace {

// The rows of all layers' states, [layer][row][unit].
template <class T>
struct StreamState {
  // Padded for the widest vector, so that a change of ISA leaves them where they are.
  static constexpr Index kPadding = 64 / sizeof(T);

  StreamState(const Config& config, Index rows)
      : batch(rows),
        state_size(config.state_size()),
        hidden_size(config.hidden_size),
        num_layers(config.num_layers),
        memory([&](Arena& arena) {
          const auto take = [&](Index units) {
            const Index stride = padded_row<T>(units, kPadding);
            return Rows<T>{take_zeros<T>(arena, checked_size(num_layers, batch, stride)), stride,
                           nullptr};
          };
          h = take(state_size);
          if (config.has_cell_state()) c = take(hidden_size);
        }) {}

  Rows<T> layer_of(Rows<T> states, Index layer) const {
    return states ? Rows<T>{states.base + layer * batch * states.stride, states.stride, nullptr}
                  : states;
  }
  View<T> view_of(Rows<T> states, Index units) const {
    if (!states) return {};
    View<T> all = view(states.base, num_layers, batch, units);
    all.stride[0] = batch * states.stride;
    all.stride[1] = states.stride;
    return all;
  }
  View<T> h_view() const { return view_of(h, state_size); }
  View<T> c_view() const { return view_of(c, hidden_size); }

  // Row `row` of `from` to row `to_row` of this, in all layers; null: zeros.
  void copy_row(const StreamState* from, Index row, Index to_row) {
    for (Index layer = 0; layer < num_layers; ++layer) {
      copy_units<T>(from ? from->layer_of(from->h, layer)[row] : nullptr,
                    layer_of(h, layer)[to_row], {0, state_size});
      if (!c) continue;
      copy_units<T>(from ? from->layer_of(from->c, layer)[row] : nullptr,
                    layer_of(c, layer)[to_row], {0, hidden_size});
    }
  }

  Index batch;
  Index state_size, hidden_size, num_layers;
  Rows<T> h, c;
  Buffer memory;
};

// What steps of up to `batch` rows need besides the state: a snapshot of the weights, the calls of
// each layer, and room for what they write.
template <class T>
struct StreamWork {
  StreamWork(const Model<T>& model, typename Model<T>::Impl& impl, Index batch)
      : version(impl.version.load(std::memory_order_acquire)),
        weights(impl.weights()),
        most_threads(std::min(num_threads(), kMaxThreads)),
        memory([&](Arena& arena) { take(arena, model.config(), batch); }) {
    for (Index layer = 0; layer < model.config().num_layers; ++layer)
      steps.emplace_back(model.config(), *weights, layer, 0, share, scratch, 0, 0, 0);
    if (most_threads > 1) {
      threaded = ForwardWorkspace<T>(model.config(), *weights, {1, batch}, most_threads, true);
      picked.emplace(model.config(), batch);
    }
  }
  StreamWork(const StreamWork&) = delete;
  StreamWork& operator=(const StreamWork&) = delete;

  void take(Arena& arena, const Config& config, Index batch) {
    const Index width = weights->kernels().width;
    scratch = StepScratch<T>::take(arena, config, weights->cell(), batch, batch, width);
    const Index stride = padded_row<T>(config.state_size(), width);
    for (Rows<T>& rows : h_next) rows = {arena.take<T>(batch, stride), stride, nullptr};
    h_rows = arena.take<const T*>(batch);
    c_rows = arena.take<T*>(batch);
  }

  // How the steps to come are laid out; nearly always as the last one was.
  struct Layout {
    Index x_stride, y_stride;
    bool picked;
    bool operator==(const Layout& other) const {
      return x_stride == other.x_stride && y_stride == other.y_stride && picked == other.picked;
    }
  };
  void lay_out(const Layout& wanted, const StreamState<T>& state) {
    if (laid_out == wanted) return;
    laid_out = wanted;
    for (std::size_t layer = 0; layer < steps.size(); ++layer) {
      StepLayout<T> rows;
      rows.x = {nullptr, layer == 0 ? wanted.x_stride : h_next[0].stride, nullptr};
      rows.h_prev = {nullptr, state.h.stride, wanted.picked ? h_rows : nullptr};
      rows.h_next = {nullptr, h_next[0].stride, nullptr};
      if (state.c) {
        rows.c_next = {nullptr, state.c.stride, wanted.picked ? c_rows : nullptr};
        rows.c_prev = rows.c_next;
      }
      if (layer + 1 == steps.size()) rows.y = {nullptr, wanted.y_stride, nullptr};
      steps[layer].lay_out(rows);
    }
  }

  const std::uint64_t version;
  const std::shared_ptr<const Weights<T>> weights;
  const int most_threads;
  Barrier alone{1};
  const Share share{0, 1, false, {0, 0}, alone};

  StepScratch<T> scratch;
  Rows<T> h_next[2];  // of the layers in turn
  const T** h_rows;   // picked rows of the state
  T** c_rows;
  Buffer memory;
  std::vector<CellStep<T>> steps;  // by layer
  std::optional<Layout> laid_out;

  // With several threads: the workspace of a call, and the states of picked rows.
  ForwardWorkspace<T> threaded;
  std::optional<StreamState<T>> picked;
};

Index checked_batch(Index batch) {
  if (batch < 0)
    throw std::invalid_argument("batch: got " + std::to_string(batch) + ", wanted an integer >= 0");
  return batch;
}

const Config& checked_config(const Config& config) {
  if (config.bidirectional || config.reverse) {
    throw std::invalid_argument(std::string(config.bidirectional ? "bidirectional" : "reverse") +
                                ": a stream has no end to run back from; wanted False");
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

  // One step on this thread; `rows` null: all.
  void step_alone(const Rows<const T>& x, const Rows<T>& y, const Index* rows, Index count) {
    const FloatControl float_control;
    work->lay_out({x.stride, y.stride, rows != nullptr}, state);
    StepBases<T> step;
    step.count = count;
    step.descending = descending = !descending;
    step.x = x.base;
    for (Index layer = 0; layer < config.num_layers; ++layer) {
      const Rows<T> h = state.layer_of(state.h, layer);
      const Rows<T> c = state.layer_of(state.c, layer);
      if (rows) {
        for (Index r = 0; r < count; ++r) {
          work->h_rows[r] = h[rows[r]];
          if (c) work->c_rows[r] = c[rows[r]];
        }
      } else {
        step.h_prev = h.base;
        step.c_prev = step.c_next = c.base;
      }
      const Rows<T> h_next = work->h_next[layer % 2];
      step.h_next = h_next.base;
      if (layer + 1 == config.num_layers) step.y = y.base;
      work->steps[static_cast<std::size_t>(layer)].run(step, work->share);
      for (Index r = 0; r < count; ++r)
        copy_units<T>(h_next[r], h[rows ? rows[r] : r], {0, state.state_size});
      step.x = step.h_next;
    }
  }

  // One step on up to `threads` threads, if that pays and they are to be had; else false, and
  // nothing has happened.
  bool step_together(const Rows<const T>& x, const Rows<T>& y, const Index* rows, Index count,
                     int threads) noexcept try {
    threads = std::min(allowed_threads(threads), work->most_threads);
    if (threads <= 1) return false;
    const Plan plan = make_plan(config, Work::forward, 1, count, sizeof(T), threads);
    if (plan.threads <= 1) return false;
    StreamState<T>* const states = rows ? &*work->picked : &state;
    if (rows) {
      for (Index r = 0; r < count; ++r) states->copy_row(&state, rows[r], r);
    }
    const auto first = [&](View<T> all) {
      all.shape[1] = count;
      return all;
    };
    Inputs<T> inputs;
    inputs.x = view(x.base, 1, count, config.input_size);
    inputs.x.stride[1] = x.stride;
    inputs.h_0 = constant(first(states->h_view()));
    inputs.c_0 = constant(first(states->c_view()));
    Outputs<T> outputs;
    outputs.y = view(y.base, 1, count, config.state_size());
    outputs.y.stride[1] = y.stride;
    outputs.h_n = first(states->h_view());
    outputs.c_n = first(states->c_view());
    work->threaded.descending = descending = !descending;
    run_forward<T>(config, *work->weights, Schedule(1, count, nullptr, MaskView{}), inputs, outputs,
                   work->threaded, nullptr, plan);
    if (rows) {
      for (Index r = 0; r < count; ++r) state.copy_row(states, r, rows[r]);
    }
    return true;
  } catch (const std::exception&) {
    return false;
  }

  const std::shared_ptr<const Model<T>> model;
  const Config config;
  StreamState<T> state;
  bool descending = false;  // the last step
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
  if (work.version == model.version.load(std::memory_order_acquire) &&
      &work.weights->kernels() == &kernels<T>())
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
  if (num_threads != 1 && impl_->work->most_threads > 1 &&
      impl_->step_together(from, to, rows, count, num_threads))
    return;
  impl_->step_alone(from, to, rows, count);
}

template <class T>
void Stream<T>::run(const View<const T>& x, const View<T>& y, int num_threads) {
  const Config& config = impl_->config;
  const StreamState<T>& state = impl_->state;
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
  const Plan plan = make_plan(config, Work::forward, size.steps, size.batch, sizeof(T),
                              allowed_threads(num_threads));
  const ForwardWorkspace<T> workspace(config, weights, size, plan.threads, true);
  run_forward<T>(config, weights, Schedule(size.steps, size.batch, nullptr, MaskView{}), inputs,
                 outputs, workspace, nullptr, plan);
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
  return make_plan(impl_->config, Work::forward, 1, count, sizeof(T), 1).nanoseconds;
}

template class Stream<float>;
template class Stream<double>;

}  // namespace tidegate
