// Packing of weights into panels, forward and backward.
#include "core/weights.h"

#include <algorithm>
#include <functional>
#include <mutex>
#include <utility>

#include "core/float_control.h"
#include "core/isa.h"
#include "core/share.h"
#include "core/threads.h"

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

// From so many bytes on, threads share the packing: some 100 us of one.
constexpr Index kSharedBytes = 256 * 1024;

}  // namespace

// The panels of a layout: places first, contents when all have their places.
template <class T>
class Panels {
 public:
  explicit Panels(const Kernels<T>& kernels) : kernels_(kernels) {}

  // A place for panel[slice][k][gate][lane] = element `unit` of column_of(k, gate), zero beyond the
  // units. Null while the arena counts.
  const T* take(Arena& arena, Index units, Index depth, Index gates,
                std::function<Column<T>(Index k, Index gate)> column_of) {
    const Index width = kernels_.width;
    T* const panel = arena.take<T>(slice_count(units, width), depth, gates, width);
    if (arena.counting()) return nullptr;
    all_.push_back({panel, units, depth, gates, std::move(column_of)});
    elements_ += slice_count(units, width) * depth * gates * width;
    return panel;
  }

  // Packs them all, by at most `threads` threads.
  void pack(int threads) const {
    const bool shared = elements_ * static_cast<Index>(sizeof(T)) >= kSharedBytes;
    ThreadLease lease(shared ? threads : 1);
    lease.run([&](int thread) {
      for (const Panel& panel : all_)
        pack(panel, part_of(slice_count(panel.units, kernels_.width), thread, lease.size()));
    });
  }

 private:
  struct Panel {
    T* to;
    Index units, depth, gates;
    std::function<Column<T>(Index k, Index gate)> column_of;
  };

  void pack(const Panel& panel, Range slices) const {
    const Index width = kernels_.width;
    const Index step = panel.gates * width;  // from k to k + 1
    for (Index slice = slices.begin; slice < slices.end; ++slice) {
      const Index first = slice * width;
      const Index lanes = std::min(width, panel.units - first);
      T* const to = panel.to + slice * panel.depth * step;
      if (lanes < width) std::fill(to, to + panel.depth * step, T(0));
      for (Index k_begin = 0; k_begin < panel.depth; k_begin += kPackedColumns) {
        const Index k_end = std::min(k_begin + kPackedColumns, panel.depth);
        for (Index gate = 0; gate < panel.gates; ++gate) {
          for (Index k = k_begin; k < k_end;) {
            const Column<T> from = panel.column_of(k, gate);
            PackCall<T> call;
            call.from = from.base + first * from.stride;
            call.from_stride = from.stride;
            call.to = to + k * step + gate * width;
            call.to_stride = step;
            call.lanes = lanes;
            call.columns = std::min(from.run, k_end - k);
            call.sign = from.sign;
            kernels_.pack(call);
            k += call.columns;
          }
        }
      }
    }
  }

  const Kernels<T>& kernels_;
  std::vector<Panel> all_;
  Index elements_ = 0;
};

namespace {

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
Weights<T>::Weights(const Config& config, const T* parameters, int threads)
    : config_(config),
      cell_(cell_spec(config)),
      kernels_(tidegate::kernels<T>()),
      forward_(static_cast<std::size_t>(config.num_layers * config.num_directions())) {
  const FloatControl float_control;  // the sums of biases round
  const std::vector<std::vector<T>> biases = phase_biases(parameters);
  Panels<T> panels(kernels_);
  memory_ = Buffer([&](Arena& arena) { take_forward(arena, parameters, biases, panels); });
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
    return gate.name == 'z' && config_.update_gate == UpdateGate::write ? T(-1) : T(1);
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
  backward_memory_ = Buffer([&](Arena& arena) { take_backward(arena, made, panels); });
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
