// Packing of weights into panels, forward and backward.
#include "core/weights.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "core/float_control.h"
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

// A column of weights: element u is sign * base[u * stride]. The `run` columns that begin with it
// stand side by side.
template <class T>
struct Column {
  const T* base;
  Index stride;
  Index run;
  T sign = 1;
};

// Columns packed at a time: what a unit has of them, some lines of the cache, is read at once, and
// not again when the other units' lines, which may all fall into one set, have taken its place.
constexpr Index kPackedColumns = 64;

// panel[slice][k][gate][lane] = element `unit` of column(k, gate), zero beyond the units.
template <class T, class ColumnOf>
T* pack_panel(Arena& arena, const Kernels<T>& kernels, Index units, Index depth, Index gates,
              ColumnOf column) {
  const Index width = kernels.width;
  const Index slices = slice_count(units, width);
  T* panel = arena.take<T>(slices, depth, gates, width);
  if (arena.counting()) return nullptr;
  const Index step = gates * width;  // from k to k + 1
  for (Index slice = 0; slice < slices; ++slice) {
    const Index first = slice * width;
    const Index lanes = std::min(width, units - first);
    T* const to = panel + slice * depth * step;
    if (lanes < width) std::fill(to, to + depth * step, T(0));
    for (Index k_begin = 0; k_begin < depth; k_begin += kPackedColumns) {
      const Index k_end = std::min(k_begin + kPackedColumns, depth);
      for (Index gate = 0; gate < gates; ++gate) {
        for (Index k = k_begin; k < k_end;) {
          const Column<T> from = column(k, gate);
          PackCall<T> call;
          call.from = from.base + first * from.stride;
          call.from_stride = from.stride;
          call.to = to + k * step + gate * width;
          call.to_stride = step;
          call.lanes = lanes;
          call.columns = std::min(from.run, k_end - k);
          call.sign = from.sign;
          kernels.pack(call);
          k += call.columns;
        }
      }
    }
  }
  return panel;
}

// The column over k of a packed panel: what it holds for one gate of one of its `units`.
template <class T>
Column<T> panel_column(const T* panel, Index width, Index units, Index depth, Index gates,
                       Index gate, Index unit) {
  const Index lane = unit % width;
  return {panel + (unit / width * depth * gates + gate) * width + lane, gates * width,
          std::min(width - lane, units - unit)};
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
  const FloatControl float_control;  // the sums of biases round
  const Index hidden = config_.hidden_size;
  const Index state = config_.state_size();
  const std::vector<ParameterOffsets> offsets = parameter_offsets(config_);
  const auto sign = [&](const GateSpec& gate) {
    return gate.name == 'z' && config_.update_gate == UpdateGate::write ? T(-1) : T(1);
  };
  std::vector<T> bias;  // of one phase, [gate][unit]
  for (std::size_t i = 0; i < forward_.size(); ++i) {
    const ParameterOffsets& at = offsets[i];
    const Index inputs = config_.layer_input_size(static_cast<Index>(i) / config_.num_directions());
    DirectionWeights<T>& packed = forward_[i];
    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      const GateSpec* gates = cell_.gates + phase.gates.first;
      packed.phases[p].x =
          pack_panel<T>(arena, kernels_, hidden, inputs, phase.x.count, [&](Index k, Index g) {
            const GateSpec& gate = gates[phase.x.first + g];
            return Column<T>{parameters + at.weight_ih + gate.x_block * hidden * inputs + k, inputs,
                             inputs - k, sign(gate)};
          });
      packed.phases[p].h =
          pack_panel<T>(arena, kernels_, hidden, state, phase.h.count, [&](Index k, Index g) {
            const GateSpec& gate = gates[phase.h.first + g];
            return Column<T>{parameters + at.weight_hh + gate.h_block * hidden * state + k, state,
                             state - k, sign(gate)};
          });
      if (!config_.bias) continue;
      bias.assign(static_cast<std::size_t>(phase.gates.count * hidden), T(0));
      for (Index g = 0; g < phase.gates.count; ++g) {
        for (Index unit = 0; unit < hidden; ++unit) {
          T& sum = bias[static_cast<std::size_t>(g * hidden + unit)];
          if (gates[g].x_block >= 0)
            sum += parameters[at.bias_ih + gates[g].x_block * hidden + unit];
          if (gates[g].h_block >= 0)
            sum += parameters[at.bias_hh + gates[g].h_block * hidden + unit];
        }
      }
      packed.phases[p].bias =
          pack_panel<T>(arena, kernels_, hidden, 1, phase.gates.count, [&](Index, Index g) {
            return Column<T>{bias.data() + g * hidden, 1, 1, sign(gates[g])};
          });
    }
    if (config_.peephole) {
      packed.peephole = pack_panel<T>(arena, kernels_, hidden, 1, 3, [&](Index, Index g) {
        return Column<T>{parameters + at.weight_peephole + g * hidden, 1, 1};
      });
    }
    if (config_.proj_size > 0) {
      packed.projection = pack_panel<T>(arena, kernels_, state, hidden, 1, [&](Index k, Index) {
        return Column<T>{parameters + at.weight_hr + k, hidden, hidden - k};
      });
    }
  }
}

template <class T>
const BackwardWeights<T>& Weights<T>::backward(Index layer, Index direction) const {
  const std::lock_guard lock(backward_mutex_);
  if (backward_.empty()) {
    std::vector<BackwardWeights<T>> made(forward_.size());
    backward_memory_ = Buffer([&](Arena& arena) { pack_backward(arena, made); });
    backward_ = std::move(made);
  }
  return backward_[static_cast<std::size_t>(layer * config_.num_directions() + direction)];
}

template <class T>
void Weights<T>::pack_backward(Arena& arena, std::vector<BackwardWeights<T>>& backward) const {
  const FloatControl float_control;
  const Index width = kernels_.width;
  const Index hidden = config_.hidden_size;
  const Index state = config_.state_size();
  for (std::size_t i = 0; i < forward_.size(); ++i) {
    const Index inputs = config_.layer_input_size(static_cast<Index>(i) / config_.num_directions());
    const DirectionWeights<T>& from = forward_[i];
    BackwardWeights<T>& packed = backward[i];
    // Depth k counts the cell's gates that see x, gate by gate.
    packed.x = pack_panel<T>(
        arena, kernels_, inputs, checked_size(cell_.x.count, hidden), 1, [&](Index k, Index) {
          const int gate = cell_.x.first + static_cast<int>(k / hidden);
          int p = 0;
          while (gate < cell_.phases[p].gates.first || gate >= cell_.phases[p].gates.end()) ++p;
          const PhaseSpec& phase = cell_.phases[p];
          return panel_column(from.phases[p].x, width, hidden, inputs, phase.x.count,
                              gate - phase.gates.first - phase.x.first, k % hidden);
        });
    for (int p = 0; p < cell_.phase_count; ++p) {
      const PhaseSpec& phase = cell_.phases[p];
      packed.h[p] = pack_panel<T>(arena, kernels_, state, checked_size(phase.h.count, hidden), 1,
                                  [&](Index k, Index) {
                                    return panel_column(from.phases[p].h, width, hidden, state,
                                                        phase.h.count, k / hidden, k % hidden);
                                  });
    }
    if (config_.proj_size > 0) {
      packed.projection = pack_panel<T>(arena, kernels_, hidden, state, 1, [&](Index k, Index) {
        return panel_column(from.projection, width, state, hidden, 1, 0, k);
      });
    }
  }
}

template class Weights<float>;
template class Weights<double>;

}  // namespace tidegate
