// Packing of weights into panels, forward and backward.
#include "core/weights.h"

#include <mutex>
#include <utility>

#include "core/float_control.h"
#include "core/isa.h"
#include "core/panels.h"

namespace tidegate {

std::vector<ParameterOffsets> parameter_offsets(const Config& config) {
  const std::vector<Parameter> all = parameters(config);
  std::vector<ParameterOffsets> offsets;
  std::size_t next = 0;
  for (Index i = 0; i < config.num_layers * config.num_directions(); ++i) {
    ParameterOffsets o{all[next].offset, all[next + 1].offset};
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

template <class T>
Weights<T>::Weights(const Config& config, const T* parameters, int threads)
    : config_(config),
      cell_(cell_spec(config)),
      kernels_(tidegate::kernels<T>()),
      forward_(static_cast<std::size_t>(config.num_layers * config.num_directions())) {
  const FloatControl float_control;  // the sums of biases round
  const std::vector<std::vector<T>> biases = phase_biases(parameters);
  Panels<T> panels(kernels_);
  memory_ = Buffer([&](Arena& arena) { take_forward(arena, parameters, biases, panels); },
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
void Weights<T>::take_forward(Arena& arena, const T* parameters,
                              const std::vector<std::vector<T>>& biases, Panels<T>& panels) {
  const Index hidden = config_.hidden_size;
  const Index state = config_.state_size();
  const std::vector<ParameterOffsets> offsets = parameter_offsets(config_);
  const auto sign = [this](const GateSpec& gate) {
    return gate.update && config_.update_gate == UpdateGate::write ? T(-1) : T(1);
  };
  std::size_t next_bias = 0;
  for (std::size_t i = 0; i < forward_.size(); ++i) {
    const ParameterOffsets& at = offsets[i];
    const Index inputs = config_.layer_input_size(static_cast<Index>(i) / config_.num_directions());
    // Gates of a window, whose rows of a weight begin at `weight`.
    const auto take_gates = [&](const GateSpec* gates, Index count, int GateSpec::* block,
                                const T* weight, Index depth) {
      return panels.take(arena, hidden, depth, count, [=](Index k, Index g) {
        return Column<T>{weight + gates[g].*block * hidden * depth + k, depth, depth - k,
                         sign(gates[g])};
      });
    };
    DirectionWeights<T>& packed = forward_[i];
    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      const GateSpec* gates = cell_.gates + phase.gates.first;
      packed.phases[p].x = take_gates(gates + phase.x.first, phase.x.count, &GateSpec::x_block,
                                      parameters + at.weight_ih, inputs);
      packed.phases[p].h = take_gates(gates + phase.h.first, phase.h.count, &GateSpec::h_block,
                                      parameters + at.weight_hh, state);
      if (!config_.bias) continue;
      const T* bias = biases[next_bias++].data();  // [gate][unit]
      packed.phases[p].bias = panels.take(arena, hidden, 1, phase.gates.count, [=](Index, Index g) {
        return Column<T>{bias + g * hidden, 1, 1, sign(gates[g])};
      });
    }
    if (config_.peephole) {
      const T* peephole = parameters + at.weight_peephole;
      packed.peephole = panels.take(arena, hidden, 1, 3, [=](Index, Index g) {
        return Column<T>{peephole + g * hidden, 1, 1};
      });
    }
    if (config_.proj_size > 0) {
      const T* projection = parameters + at.weight_hr;
      packed.projection = panels.take(arena, state, hidden, 1, [=](Index k, Index) {
        return Column<T>{projection + k, hidden, hidden - k};
      });
    }
  }
}

template <class T>
void Weights<T>::prepare_backward(int threads) const {
  const std::lock_guard lock(backward_mutex_);
  if (!backward_.empty()) return;
  const FloatControl float_control;
  std::vector<BackwardWeights<T>> made(forward_.size());
  Panels<T> panels(kernels_);
  backward_memory_ =
      Buffer([&](Arena& arena) { take_backward(arena, made, panels); }, "the packed weights");
  panels.pack(threads);
  backward_ = std::move(made);
}

template <class T>
void Weights<T>::take_backward(Arena& arena, std::vector<BackwardWeights<T>>& backward,
                               Panels<T>& panels) const {
  const Index width = kernels_.width;
  const Index hidden = config_.hidden_size;
  const Index state = config_.state_size();
  for (std::size_t i = 0; i < forward_.size(); ++i) {
    const Index inputs = config_.layer_input_size(static_cast<Index>(i) / config_.num_directions());
    const DirectionWeights<T>& from = forward_[i];
    BackwardWeights<T>& packed = backward[i];
    // Depth k counts the cell's gates that see x, gate by gate.
    packed.x = panels.take(
        arena, inputs, checked_size(cell_.x.count, hidden), 1, [=, this, &from](Index k, Index) {
          const int gate = cell_.x.first + static_cast<int>(k / hidden);
          int p = 0;
          while (gate < cell_.phases[p].gates.first || gate >= cell_.phases[p].gates.end()) ++p;
          const PhaseSpec& phase = cell_.phases[p];
          return panel_column(from.phases[p].x, width, hidden, inputs, phase.x.count,
                              gate - phase.gates.first - phase.x.first, k % hidden);
        });
    for (int p = 0; p < cell_.phase_count; ++p) {
      const Index gates = cell_.phases[p].h.count;
      const T* panel = from.phases[p].h;
      packed.h[p] = panels.take(arena, state, checked_size(gates, hidden), 1, [=](Index k, Index) {
        return panel_column(panel, width, hidden, state, gates, k / hidden, k % hidden);
      });
    }
    if (config_.proj_size > 0) {
      const T* panel = from.projection;
      packed.projection = panels.take(arena, hidden, state, 1, [=](Index k, Index) {
        return panel_column(panel, width, state, hidden, 1, 0, k);
      });
    }
  }
}

template class Weights<float>;
template class Weights<double>;

}  // namespace tidegate
