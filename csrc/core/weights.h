// Packed weights: an immutable snapshot of a model's parameters in the layout of one ISA's kernels.
#ifndef TIDEGATE_CORE_WEIGHTS_H_
#define TIDEGATE_CORE_WEIGHTS_H_

#include <memory>
#include <vector>

#include "core/cells.h"
#include "core/fork_safe_mutex.h"
#include "core/machine.h"
#include "core/memory.h"
#include "kernels/table.h"
#include "tidegate/config.h"

namespace tidegate {

inline Index slice_count(Index units, Index width) { return (units + width - 1) / width; }

// Where the parameters of one layer's direction stand in the flat vector; -1: there are none.
struct ParameterOffsets {
  Index weight_ih, weight_hh;
  Index bias_ih = -1, bias_hh = -1;
  Index weight_hr = -1;
  Index weight_peephole = -1;
};
std::vector<ParameterOffsets> parameter_offsets(
    const Config& config);  // layer-major, then direction

template <class T>
struct PhaseWeights {
  const T* x = nullptr;     // panel of the gates that see x
  const T* h = nullptr;     // panel of the gates that see the operand
  const T* bias = nullptr;  // [slice][gate][width]
};

// A layer's direction, forward.
template <class T>
struct DirectionWeights {
  PhaseWeights<T> phases[kMaxPhases];
  const T* peephole = nullptr;    // [slice][i f o][width]
  const T* projection = nullptr;  // panel of weight_hr
};

// A layer's direction, backward: panels of the transposed weights, depth first over gates, then
// units.
template <class T>
struct BackwardWeights {
  const T* x = nullptr;           // [gates that see x] -> layer input
  const T* h[kMaxPhases] = {};    // [gates of the phase that see its operand] -> operand
  const T* projection = nullptr;  // [proj_size] -> hidden units
};

template <class T>
class Panels;

template <class T>
class Weights {
 public:
  // Packs the flat parameters for the kernels in force, by at most `threads` threads.
  Weights(const Config& config, const T* parameters, int threads);

  const Kernels<T>& kernels() const { return kernels_; }
  const CellSpec& cell() const { return cell_; }
  const DirectionWeights<T>& direction(Index layer, Index direction) const {
    return forward_[static_cast<std::size_t>(layer * config_.num_directions() + direction)];
  }
  // All of the forward panels.
  WeightsMemory memory() const { return {memory_.data(), memory_.size(), Index{sizeof(T)}}; }
  // Makes what backward() returns, from the forward panels; the first call does.
  void prepare_backward(int threads) const;
  const BackwardWeights<T>& backward(Index layer, Index direction) const {
    return backward_[static_cast<std::size_t>(layer * config_.num_directions() + direction)];
  }

 private:
  // Of each phase, direction by direction: the sum of both biases, [gate][unit].
  std::vector<std::vector<T>> phase_biases(const T* parameters) const;
  void take_forward(Arena& arena, const T* parameters, const std::vector<std::vector<T>>& biases,
                    Panels<T>& panels);
  void take_backward(Arena& arena, std::vector<BackwardWeights<T>>& backward,
                     Panels<T>& panels) const;

  const Config config_;
  const CellSpec cell_;
  const Kernels<T>& kernels_;
  std::vector<DirectionWeights<T>> forward_;
  Buffer memory_;

  mutable ForkSafeMutex backward_mutex_;  // while what follows is made
  mutable std::vector<BackwardWeights<T>> backward_;
  mutable Buffer backward_memory_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_WEIGHTS_H_
