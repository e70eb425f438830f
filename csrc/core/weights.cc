// The packing of weights into panels for the forward and backward passes.
#include "core/weights.h"

#include <stdexcept>
#include <utility>

#include "core/isa.h"
#include "core/panels.h"
#include "core/thread_setup.h"

namespace tidegate {

std::vector<ParameterOffsets> parameter_offsets(const Config& config) {
  const std::vector<Parameter> all = parameters(config);
  std::vector<ParameterOffsets> offsets;
  std::size_t next = 0;
  Index row = 0;
  for (Index i = 0; i < config.num_layers * config.num_directions(); ++i) {
    ParameterOffsets o{all[next].offset, all[next + 1].offset};
    o.scales_ih = row;
    o.scales_hh = row + all[next].rows;
    o.scales_hr = o.scales_hh + all[next + 1].rows;
    row = o.scales_hr + config.proj_size;
    next += 2;
    if (config.bias) {
      o.bias_ih = all[next++].offset;
      o.bias_hh = all[next++].offset;
    }
    if (config.proj_size > 0) o.weight_hr = all[next++].offset;
    if (config.peephole) o.weight_peephole = all[next++].offset;
    offsets.push_back(o);
  }
  return offsets;
}

namespace {

template <class T>
const StorageKernels<T>& required_storage(const Kernels<T>& kernels, StorageKind kind) {
  if (const StorageKernels<T>* const storage = storage_of(kernels, kind)) return *storage;
  throw std::invalid_argument("storage: this type of parameters has no such storage of weights");
}

}  // namespace

template <class T>
Weights<T>::Weights(const Config& config, const T* parameters, int threads, StorageKind storage,
                    const T* scales)
    : config_(config),
      cell_(cell_spec(config)),
      kernels_(tidegate::kernels<T>()),
      storage_(required_storage(kernels_, storage)),
      forward_(static_cast<std::size_t>(config.num_layers * config.num_directions())) {
  const ThreadSetup setup;  // for the sums of biases, which round
  const std::vector<std::vector<T>> biases = phase_biases(parameters);
  Panels<T> panels(kernels_, storage_);
  memory_ = Buffer([&](Arena& arena) { take_forward(arena, parameters, scales, biases, panels); },
                   "the packed weights");
  panels.pack(threads);
}

template <class T>
std::vector<std::vector<T>> Weights<T>::phase_biases(const T* parameters) const {
  std::vector<std::vector<T>> biases;
  if (!config_.bias) return biases;
  const Index hidden = config_.hidden_size;
  for (const ParameterOffsets& at : parameter_offsets(config_)) {
    for (int p = 0; p < cell_.phase_count; ++p) {
      const Window window = cell_.phases[p].gates;
      std::vector<T>& bias =
          biases.emplace_back(static_cast<std::size_t>(checked_size(window.count, hidden)));
      T* sum = bias.data();
      for (int g = window.first; g < window.end(); ++g) {
        const GateSpec& gate = cell_.gates[g];
        for (Index unit = 0; unit < hidden; ++unit, ++sum) {
          if (gate.x_block >= 0) *sum += parameters[at.bias_ih + gate.x_block * hidden + unit];
          if (gate.h_block >= 0) *sum += parameters[at.bias_hh + gate.h_block * hidden + unit];
        }
      }
    }
  }
  return biases;
}

template <class T>
T Weights<T>::sign(const GateSpec& gate) const {
  return gate.update && config_.update_gate == UpdateGate::write ? T(-1) : T(1);
}

template <class T>
void Weights<T>::take_forward(Arena& arena, const T* parameters, const T* scales,
                              const std::vector<std::vector<T>>& biases, Panels<T>& panels) {
  const Index hidden = config_.hidden_size;
  const Index state = config_.state_size();
  const std::vector<ParameterOffsets> offsets = parameter_offsets(config_);
  std::size_t next_bias = 0;
  for (std::size_t i = 0; i < forward_.size(); ++i) {
    const ParameterOffsets& at = offsets[i];
    const Index inputs = config_.layer_input_size(static_cast<Index>(i) / config_.num_directions());
    const auto scales_of = [&](Index row) { return scales ? scales + row : nullptr; };
    // A panel of `count` gates, which are blocks of rows of the matrix `weight`, whose first row is
    // number `row` of all matrices' rows.
    const auto take_gates = [&](const GateSpec* gates, Index count, int GateSpec::* block,
                                const T* weight, Index depth, Index row) {
      std::vector<WeightBlock<T>> blocks;
      for (Index g = 0; g < count; ++g) {
        const Index first = gates[g].*block * hidden;
        blocks.push_back({.gate = g,
                          .k_end = depth,
                          .base = weight + first * depth,
                          .k_stride = 1,
                          .unit_stride = depth,
                          .sign = sign(gates[g]),
                          .scales = scales_of(row + first)});
      }
      return panels.take(arena, {hidden, depth, count}, std::move(blocks));
    };
    DirectionWeights<T>& packed = forward_[i];
    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      const GateSpec* gates = cell_.gates + phase.gates.first;
      packed.phases[p].x = take_gates(gates + phase.x.first, phase.x.count, &GateSpec::x_block,
                                      parameters + at.weight_ih, inputs, at.scales_ih);
      packed.phases[p].h = take_gates(gates + phase.h.first, phase.h.count, &GateSpec::h_block,
                                      parameters + at.weight_hh, state, at.scales_hh);
      if (!config_.bias) continue;
      const T* bias = biases[next_bias++].data();  // [gate][unit]
      std::vector<WeightBlock<T>> vectors;
      for (Index g = 0; g < phase.gates.count; ++g)
        vectors.push_back({.gate = g, .base = bias + g * hidden, .sign = sign(gates[g])});
      packed.phases[p].bias = panels.take_vectors(arena, hidden, std::move(vectors));
    }
    if (config_.peephole) {
      const T* peephole = parameters + at.weight_peephole;
      std::vector<WeightBlock<T>> vectors;
      for (Index g = 0; g < 3; ++g) vectors.push_back({.gate = g, .base = peephole + g * hidden});
      packed.peephole = panels.take_vectors(arena, hidden, std::move(vectors));
    }
    if (config_.proj_size > 0) {
      packed.projection = panels.take(arena, {state, hidden, 1},
                                      {{.k_end = hidden,
                                        .base = parameters + at.weight_hr,
                                        .k_stride = 1,
                                        .unit_stride = hidden,
                                        .scales = scales_of(at.scales_hr)}});
    }
  }
}

template <class T>
void Weights<T>::prepare_backward(const T* parameters, int threads) const {
  if (!backward_.empty()) return;
  std::vector<BackwardWeights> made(forward_.size());
  Panels<T> panels(kernels_, storage_);
  backward_memory_ = Buffer([&](Arena& arena) { take_backward(arena, parameters, made, panels); },
                            "the packed weights");
  panels.pack(threads);
  backward_ = std::move(made);
}

template <class T>
void Weights<T>::take_backward(Arena& arena, const T* parameters,
                               std::vector<BackwardWeights>& backward, Panels<T>& panels) const {
  const Index hidden = config_.hidden_size;
  const Index state = config_.state_size();
  const std::vector<ParameterOffsets> offsets = parameter_offsets(config_);
  for (std::size_t i = 0; i < forward_.size(); ++i) {
    const ParameterOffsets& at = offsets[i];
    const Index inputs = config_.layer_input_size(static_cast<Index>(i) / config_.num_directions());
    // A panel of the transposed weights of `count` gates.
    const auto take_gates = [&](const GateSpec* gates, Index count, int GateSpec::* block,
                                const T* weight, Index outputs) {
      std::vector<WeightBlock<T>> blocks;
      for (Index g = 0; g < count; ++g) {
        blocks.push_back({.k_begin = g * hidden,
                          .k_end = (g + 1) * hidden,
                          .base = weight + gates[g].*block * hidden * outputs,
                          .k_stride = outputs,
                          .unit_stride = 1,
                          .sign = sign(gates[g])});
      }
      return panels.take(arena, {outputs, checked_size(count, hidden), 1}, std::move(blocks));
    };
    BackwardWeights& packed = backward[i];
    packed.x = take_gates(cell_.gates + cell_.x.first, cell_.x.count, &GateSpec::x_block,
                          parameters + at.weight_ih, inputs);
    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      packed.h[p] = take_gates(cell_.gates + phase.gates.first + phase.h.first, phase.h.count,
                               &GateSpec::h_block, parameters + at.weight_hh, state);
    }
    if (config_.proj_size > 0) {
      packed.projection = panels.take(arena, {hidden, state, 1},
                                      {{.k_end = state,
                                        .base = parameters + at.weight_hr,
                                        .k_stride = hidden,
                                        .unit_stride = 1}});
    }
  }
}

template class Weights<float>;
template class Weights<double>;

}  // namespace tidegate
