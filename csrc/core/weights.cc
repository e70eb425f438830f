// Packing of weights into panels, forward and backward.
#include "core/weights.h"

#include "core/isa.h"

namespace tidegate {

CellSpec cell_spec(const Config& config) {
  if (config.cell == CellKind::lstm) return lstm_spec(config.peephole);
  return config.reset_after ? gru_after_spec() : gru_before_spec();
}

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

namespace {

// panel[slice][k][gate][lane] = element(k, gate, unit), zero beyond the units.
template <class T, class Element>
T* pack_panel(Arena& arena, bool counting, Index width, Index units, Index depth, Index gates, Element element) {
  const Index slices = slice_count(units, width);
  T* panel = arena.take<T>(slices, depth, gates, width);
  if (counting) return nullptr;
  T* to = panel;
  for (Index slice = 0; slice < slices; ++slice) {
    for (Index k = 0; k < depth; ++k) {
      for (Index gate = 0; gate < gates; ++gate) {
        for (Index lane = 0; lane < width; ++lane) {
          const Index unit = slice * width + lane;
          *to++ = unit < units ? element(k, gate, unit) : T(0);
        }
      }
    }
  }
  return panel;
}

// Element (k, gate, unit) of a packed panel.
template <class T>
T panel_element(const T* panel, Index width, Index depth, Index gates, Index k, Index gate, Index unit) {
  return panel[((unit / width * depth + k) * gates + gate) * width + unit % width];
}

}  // namespace

template <class T>
Weights<T>::Weights(const Config& config, const T* parameters)
    : config_(config),
      cell_(cell_spec(config)),
      kernels_(tidegate::kernels<T>()),
      forward_(static_cast<std::size_t>(config.num_layers * config.num_directions())),
      memory_([&](Arena& arena) { pack(arena, parameters); }) {}

template <class T>
void Weights<T>::pack(Arena& arena, const T* parameters) {
  const bool counting = arena.counting();
  const Index width = kernels_.width;
  const Index hidden = config_.hidden_size;
  const Index state = config_.state_size();
  const std::vector<ParameterOffsets> offsets = parameter_offsets(config_);
  for (std::size_t i = 0; i < forward_.size(); ++i) {
    const ParameterOffsets& at = offsets[i];
    const Index inputs = config_.layer_input_size(static_cast<Index>(i) / config_.num_directions());
    DirectionWeights<T>& packed = forward_[i];
    const auto sign = [&](const GateSpec& gate) {
      return gate.name == 'z' && config_.update_gate == UpdateGate::write ? T(-1) : T(1);
    };
    const auto bias = [&](Index offset, Index block, Index unit) {
      return block >= 0 ? parameters[offset + block * hidden + unit] : T(0);
    };
    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      const GateSpec* gates = cell_.gates + phase.gates.first;
      packed.phases[p].x =
          pack_panel<T>(arena, counting, width, hidden, inputs, phase.x.count, [&](Index k, Index g, Index unit) {
            const GateSpec& gate = gates[phase.x.first + g];
            return sign(gate) * parameters[at.weight_ih + (gate.x_block * hidden + unit) * inputs + k];
          });
      packed.phases[p].h =
          pack_panel<T>(arena, counting, width, hidden, state, phase.h.count, [&](Index k, Index g, Index unit) {
            const GateSpec& gate = gates[phase.h.first + g];
            return sign(gate) * parameters[at.weight_hh + (gate.h_block * hidden + unit) * state + k];
          });
      if (config_.bias) {
        packed.phases[p].bias =
            pack_panel<T>(arena, counting, width, hidden, 1, phase.gates.count, [&](Index, Index g, Index unit) {
              const GateSpec& gate = gates[g];
              return sign(gate) * (bias(at.bias_ih, gate.x_block, unit) + bias(at.bias_hh, gate.h_block, unit));
            });
      }
    }
    if (config_.peephole) {
      packed.peephole = pack_panel<T>(arena, counting, width, hidden, 1, 3, [&](Index, Index g, Index unit) {
        return parameters[at.weight_peephole + g * hidden + unit];
      });
    }
    if (config_.proj_size > 0) {
      packed.projection = pack_panel<T>(arena, counting, width, state, hidden, 1, [&](Index k, Index, Index unit) {
        return parameters[at.weight_hr + unit * hidden + k];
      });
    }
  }
}

template <class T>
const BackwardWeights<T>& Weights<T>::backward(Index layer, Index direction) const {
  std::call_once(backward_made_, [&] {
    backward_.resize(forward_.size());
    backward_memory_ = Buffer([&](Arena& arena) { pack_backward(arena); });
  });
  return backward_[static_cast<std::size_t>(layer * config_.num_directions() + direction)];
}

template <class T>
void Weights<T>::pack_backward(Arena& arena) const {
  const bool counting = arena.counting();
  const Index width = kernels_.width;
  const Index hidden = config_.hidden_size;
  const Index state = config_.state_size();
  for (std::size_t i = 0; i < forward_.size(); ++i) {
    const Index inputs = config_.layer_input_size(static_cast<Index>(i) / config_.num_directions());
    const DirectionWeights<T>& from = forward_[i];
    BackwardWeights<T>& packed = backward_[i];
    // Depth k counts the cell's gates that see x, gate by gate.
    packed.x = pack_panel<T>(
        arena, counting, width, inputs, checked_size(cell_.x.count, hidden), 1, [&](Index k, Index, Index input) {
          const int gate = cell_.x.first + static_cast<int>(k / hidden);
          int p = 0;
          while (gate < cell_.phases[p].gates.first || gate >= cell_.phases[p].gates.end()) ++p;
          const PhaseSpec& phase = cell_.phases[p];
          return panel_element(from.phases[p].x, width, inputs, phase.x.count, input,
                               gate - phase.gates.first - phase.x.first, k % hidden);
        });
    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      packed.h[p] = pack_panel<T>(
          arena, counting, width, state, checked_size(phase.h.count, hidden), 1, [&](Index k, Index, Index unit) {
            return panel_element(from.phases[p].h, width, state, phase.h.count, unit, k / hidden, k % hidden);
          });
    }
    if (config_.proj_size > 0) {
      packed.projection =
          pack_panel<T>(arena, counting, width, hidden, state, 1, [&](Index k, Index, Index unit) {
            return panel_element(from.projection, width, hidden, 1, unit, 0, k);
          });
    }
  }
}

template class Weights<float>;
template class Weights<double>;

}  // namespace tidegate
