// The implementation of Model and Tape.
#include "tidegate/model.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "core/model_impl.h"
#include "core/network.h"

namespace tidegate {

namespace {

Config validated(const Config& config) {
  config.validate();
  return config;
}

}  // namespace

template <class T>
Model<T>::Impl::Impl(const Config& network)
    : config(validated(network)), parameters(tidegate::parameter_count(config)) {}

template <class T>
Model<T>::Impl::Impl(const Config& network, QuantizedParameters quantized)
    : config(validated(network)), parameters(tidegate::parameters(config), std::move(quantized)) {}

template <class T>
StorageKind Model<T>::Impl::storage_kind(Precision products) const {
  if (products == Precision::exact) return parameters.storage_kind();
  if (parameters.precision() != Precision::exact) {
    throw std::invalid_argument(std::string("precision: the parameters are already in ") +
                                precision_name<T>(parameters.precision()) +
                                "; call the model from which they were made");
  }
  if (!std::is_same_v<T, float> || products == Precision::int8) {
    throw std::invalid_argument(std::string("precision: got ") + precision_name<T>(products) +
                                " for the products of a model of " +
                                precision_name<T>(Precision::exact) +
                                ", wanted bfloat16 or bfloat16-dot for a model of float32");
  }
  return storage_kind_of(products);
}

template <class T>
std::shared_ptr<const Weights<T>> Model<T>::Impl::weights(int threads, StorageKind kind,
                                                          bool records) {
  return parameters.packed(
      kind,
      [&](const T* values, StorageKind storage, const T* scales) {
        return std::make_shared<const Weights<T>>(config, values, threads, storage, scales);
      },
      [&](const Weights<T>& weights, const T* values) {
        if (records) weights.prepare_backward(values, threads);
      });
}

template <class T>
Model<T>::Model(const Config& config) : impl_(std::make_unique<Impl>(config)) {}

template <class T>
Model<T>::Model(const Config& config, QuantizedParameters parameters)
    : impl_(std::make_unique<Impl>(config, std::move(parameters))) {}

template <class T>
Model<T>::~Model() = default;

template <class T>
const Config& Model<T>::config() const {
  return impl_->config;
}

template <class T>
Index Model<T>::parameter_count() const {
  return impl_->parameters.count();
}

template <class T>
const T* Model<T>::parameters() const {
  return impl_->parameters.values();
}

template <class T>
void Model<T>::read_parameters(T* to) const {
  impl_->parameters.read(to);
}

template <class T>
void Model<T>::write_parameters(Index offset, const T* values, Index count) {
  impl_->parameters.write(offset, values, count);
}

template <class T>
void Model<T>::update_parameters(const std::function<void(T* parameters)>& update) {
  impl_->parameters.update(update);
}

template <class T>
void Model<T>::check_products(Precision products) const {
  impl_->storage_kind(products);
}

template <class T>
Precision Model<T>::precision() const {
  return impl_->parameters.precision();
}

template <class T>
const QuantizedParameters* Model<T>::quantized() const {
  return impl_->parameters.quantized();
}

template <class T>
std::unique_ptr<Model<T>> Model<T>::quantize(Precision precision) const {
  const Config& config = impl_->config;
  return std::make_unique<Model>(
      config, impl_->parameters.in_precision(tidegate::parameters(config), precision));
}

template <class T>
struct Tape<T>::Impl : Record<T> {
  using Record<T>::Record;
};

template <class T>
void Model<T>::run(const Inputs<T>& inputs, const Outputs<T>& outputs, int num_threads,
                   Precision products) const {
  const Config& config = impl_->config;
  const StorageKind storage = impl_->storage_kind(products);
  const CallSize size = check_inputs(config, inputs);
  check_outputs(config, size, outputs);
  if (inputs.dropout_scale) throw std::invalid_argument("dropout_scale: wanted none in inference");
  const int threads = allowed_threads(num_threads);
  const std::shared_ptr<const Weights<T>> weights = impl_->weights(threads, storage, false);
  const Schedule schedule(size.steps, size.batch, inputs.lengths, inputs.reset);
  const PlannedCall plan =
      plan_call({config, Work::forward, size.steps, size.batch, weights->storage().cost}, threads,
                weights->memory());
  const ForwardWorkspace<T> workspace(config, *weights, size, plan.threads, true);
  run_forward<T>(config, *weights, schedule, inputs, outputs, workspace, nullptr, plan);
}

template <class T>
std::unique_ptr<Tape<T>> Model<T>::record(const Inputs<T>& inputs, const Outputs<T>& outputs,
                                          int num_threads, Precision products) const {
  const Config& config = impl_->config;
  const bool trains = precision() == Precision::exact;
  if (trains) config.validate_training();
  const StorageKind storage = impl_->storage_kind(products);
  const CallSize size = check_inputs(config, inputs);
  check_outputs(config, size, outputs);
  const int threads = allowed_threads(num_threads);
  const Schedule schedule(size.steps, size.batch, inputs.lengths, inputs.reset);
  auto tape =
      std::make_unique<typename Tape<T>::Impl>(config, impl_->weights(threads, storage, trains),
                                               schedule.owned(), inputs.dropout_scale != nullptr);
  const PlannedCall plan =
      plan_call({config, Work::forward, size.steps, size.batch, tape->weights->storage().cost},
                threads, tape->weights->memory());
  const ForwardWorkspace<T> workspace(config, *tape->weights, size, plan.threads, false);
  run_forward<T>(config, *tape->weights, tape->schedule, inputs, outputs, workspace, tape.get(),
                 plan);
  return std::unique_ptr<Tape<T>>(new Tape<T>(std::move(tape)));
}

template <class T>
double Model<T>::run_cost(Index steps, Index batch) const noexcept {
  const Call call = {impl_->config, Work::forward, steps, batch,
                     kernels<T>().storages[impl_->parameters.storage_kind()]->cost};
  return CostModel(call).least_serial_nanoseconds(fma_rate_now());
}

template <class T>
Tape<T>::Tape(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

template <class T>
Tape<T>::~Tape() = default;

template <class T>
const Config& Tape<T>::config() const {
  return impl_->config;
}

template <class T>
Index Tape<T>::steps() const {
  return impl_->schedule.steps();
}

template <class T>
Index Tape<T>::batch() const {
  return impl_->schedule.batch();
}

template <class T>
double Tape<T>::backward_cost() const noexcept {
  const Call call = {impl_->config, Work::backward, steps(), batch(),
                     impl_->weights->storage().cost};
  return CostModel(call).least_serial_nanoseconds(fma_rate_now());
}

template <class T>
void Tape<T>::backward(const OutputGradients<T>& outputs, const InputGradients<T>& inputs,
                       int num_threads) const {
  if (!impl_->weights->has_backward()) {
    const StorageKernels<T>& storage = impl_->weights->storage();
    throw std::invalid_argument(std::string("precision: a model in ") + storage.cost.name +
                                " is for inference; train the model from which it was made");
  }
  check_gradients(impl_->config, impl_->size(), outputs, inputs);
  run_backward<T>(*impl_, outputs, inputs, allowed_threads(num_threads));
}

template <class T>
void Tape<T>::saved(Index layer, bool reverse, const std::string& name,
                    const View<T>& destination) const {
  const Config& config = impl_->config;
  if (layer < 0 || layer >= config.num_layers) {
    throw std::invalid_argument("layer: got " + std::to_string(layer) + ", wanted 0 to " +
                                std::to_string(config.num_layers - 1));
  }
  if (reverse && !config.bidirectional && !config.reverse) {
    throw std::invalid_argument("reverse: got True, but the network has no reverse direction");
  }
  const Index d = reverse && config.bidirectional ? 1 : 0;
  const CellSpec& cell = impl_->weights->cell();
  const typename Record<T>::Direction& direction = impl_->direction(layer, d);
  const Timeline timeline(impl_->schedule, config.reverse || d == 1);
  int gate = 0;
  while (gate < cell.gate_count && (name.size() != 1 || cell.gates[gate].name != name[0])) ++gate;
  const bool is_h = name == "h";
  const bool is_c = name == "c" && cell.has_cell_state;
  if (gate == cell.gate_count && !is_h && !is_c) {
    throw std::invalid_argument("name: got \"" + name + "\", wanted a gate or a state of the cell");
  }
  // The kernels' update gate is that of UpdateGate::carry.
  const bool complement =
      gate < cell.gate_count && cell.gates[gate].update && config.update_gate == UpdateGate::write;

  const Index units = is_h ? config.state_size() : config.hidden_size;
  check_shape("destination", destination.shape, destination.stride, steps(), batch(), units);
  for (Index s = 0; s < timeline.steps(); ++s) {
    const Index t = timeline.time(s);
    for (Index n = 0; n < batch(); ++n) {
      T* to = destination.row(t, impl_->schedule.caller_row(n));
      if (n >= timeline.active(s)) {
        std::fill(to, to + units, T(0));
        continue;
      }
      const T* from = is_h   ? direction.h.slot(s + 1)[n]
                      : is_c ? direction.c.slot(s + 1)[n]
                             : direction.saved.step(s)[n] + gate * direction.saved.gate_stride;
      for (Index j = 0; j < units; ++j) to[j] = complement ? 1 - from[j] : from[j];
    }
  }
}

template class Model<float>;
template class Model<double>;
template class Tape<float>;
template class Tape<double>;

}  // namespace tidegate
