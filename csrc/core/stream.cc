// Stream: states that stay inside, and a step that allocates nothing.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "core/model_impl.h"
#include "core/network.h"
#include "tidegate/settings.h"

namespace tidegate {

template <class T>
struct Stream<T>::Impl {
  Impl(std::shared_ptr<const Model<T>> of, Index rows)
      : model(std::move(of)),
        config(model->config()),
        batch(rows),
        schedule(1, rows, nullptr, MaskView{}) {
    if (config.bidirectional || config.reverse) {
      throw std::invalid_argument(std::string(config.bidirectional ? "bidirectional" : "reverse") +
                                  ": a stream has no end to run back from; wanted False");
    }
    if (batch < 0)
      throw std::invalid_argument("batch: got " + std::to_string(batch) +
                                  ", wanted an integer >= 0");
    const Index layers = config.num_layers;
    states = Buffer([&](Arena& arena) {
      h = take_zeros<T>(arena, checked_size(layers, batch, config.state_size()));
      if (config.has_cell_state())
        c = take_zeros<T>(arena, checked_size(layers, batch, config.hidden_size));
    });
    most_threads = std::min(num_threads(), kMaxThreads);
  }

  // The weights and workspace of the current parameters.
  void renew() {
    const std::uint64_t current = model->impl_->version.load(std::memory_order_acquire);
    if (weights && version == current && &weights->kernels() == &kernels<T>()) return;
    weights = model->impl_->weights();
    workspace = ForwardWorkspace<T>(config, *weights, {1, batch}, most_threads, true);
    version = current;
  }

  View<T> h_view() const { return view(h, config.num_layers, batch, config.state_size()); }
  View<T> c_view() const {
    return config.has_cell_state() ? view(c, config.num_layers, batch, config.hidden_size)
                                   : View<T>{};
  }

  const std::shared_ptr<const Model<T>> model;
  const Config config;
  const Index batch;
  const Schedule schedule;  // of one step
  T* h = nullptr;
  T* c = nullptr;
  Buffer states;
  int most_threads;

  std::shared_ptr<const Weights<T>> weights;
  std::uint64_t version = 0;
  ForwardWorkspace<T> workspace;
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
  return impl_->batch;
}

template <class T>
void Stream<T>::step(const T* x, Index x_stride, T* y, Index y_stride, int num_threads) {
  Impl& stream = *impl_;
  const Config& config = stream.config;
  stream.renew();
  Inputs<T> inputs;
  inputs.x = view(x, 1, stream.batch, config.input_size);
  inputs.x.stride[1] = x_stride;
  inputs.h_0 = constant(stream.h_view());
  inputs.c_0 = constant(stream.c_view());
  Outputs<T> outputs;
  outputs.y = view(y, 1, stream.batch, config.state_size());
  outputs.y.stride[1] = y_stride;
  outputs.h_n = stream.h_view();
  outputs.c_n = stream.c_view();
  const int threads = std::min(allowed_threads(num_threads), stream.most_threads);
  const Plan plan = make_plan(config, Work::forward, 1, stream.batch, sizeof(T), threads);
  run_forward<T>(config, *stream.weights, stream.schedule, inputs, outputs, stream.workspace,
                 nullptr, plan);
}

template <class T>
void Stream<T>::run(const View<const T>& x, const View<T>& y, int num_threads) {
  Impl& stream = *impl_;
  Inputs<T> inputs;
  inputs.x = x;
  inputs.h_0 = constant(stream.h_view());
  inputs.c_0 = constant(stream.c_view());
  Outputs<T> outputs;
  outputs.y = y;
  outputs.h_n = stream.h_view();
  outputs.c_n = stream.c_view();
  check_shape("x", x.shape, x.stride, x.shape[0], stream.batch, stream.config.input_size);
  stream.model->run(inputs, outputs, num_threads);
}

template <class T>
void Stream<T>::reset() {
  const Config& config = impl_->config;
  const Index rows = config.num_layers * impl_->batch;
  std::fill(impl_->h, impl_->h + rows * config.state_size(), T(0));
  if (impl_->c) std::fill(impl_->c, impl_->c + rows * config.hidden_size, T(0));
}

template <class T>
T* Stream<T>::h() {
  return impl_->h;
}

template <class T>
T* Stream<T>::c() {
  return impl_->c;
}

template <class T>
double Stream<T>::step_cost() const {
  return make_plan(impl_->config, Work::forward, 1, impl_->batch, sizeof(T), 1).nanoseconds;
}

template class Stream<float>;
template class Stream<double>;

}  // namespace tidegate
