// Packed weights: an immutable snapshot of a model's parameters in a storage of one ISA's kernels.
#ifndef TIDEGATE_CORE_WEIGHTS_H_
#define TIDEGATE_CORE_WEIGHTS_H_

#include <memory>
#include <vector>

#include "core/cells.h"
#include "core/memory.h"
#include "core/threads/machine.h"
#include "kernels/table.h"
#include "tidegate/config.h"

namespace tidegate {

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
  Panel x = nullptr;        // of the gates that see x
  Panel h = nullptr;        // of the gates that see the operand
  const T* bias = nullptr;  // [slice][gate][width]
};

// A layer's direction, forward.
template <class T>
struct DirectionWeights {
  PhaseWeights<T> phases[kMaxPhases];
  const T* peephole = nullptr;  // [slice][i f o][width]
  Panel projection = nullptr;   // of weight_hr
};

// A layer's direction, backward: panels of the transposed weights, whose k's are the units of one
// gate after the other.
struct BackwardWeights {
  Panel x = nullptr;           // [gates that see x] -> layer input
  Panel h[kMaxPhases] = {};    // [gates of the phase that see its operand] -> operand
  Panel projection = nullptr;  // [proj_size] -> hidden units
};

template <class T>
class Panels;

template <class T>
class Weights {
 public:
  // Packs the flat parameters for the kernels in force, by at most `threads` threads.
  Weights(const Config& config, const T* parameters, int threads,
          StorageKind storage = kExactWeights);

  const Kernels<T>& kernels() const { return kernels_; }
  const StorageKernels<T>& storage() const { return storage_; }
  const CellSpec& cell() const { return cell_; }
  const DirectionWeights<T>& direction(Index layer, Index direction) const {
    return forward_[static_cast<std::size_t>(layer * config_.num_directions() + direction)];
  }
  // The memory of all forward panels.
  WeightsMemory memory() const { return {memory_.data(), memory_.size(), Index{sizeof(T)}}; }

  // Packs what backward() returns, unless that is done. `parameters` are those that the snapshot
  // was made from. Not for several threads at once.
  void prepare_backward(const T* parameters, int threads) const;
  const BackwardWeights& backward(Index layer, Index direction) const {
    return backward_[static_cast<std::size_t>(layer * config_.num_directions() + direction)];
  }

 private:
  // For each phase of each direction: the sum of both biases, [gate][unit].
  std::vector<std::vector<T>> phase_biases(const T* parameters) const;
  // For each direction: its panels.
  void take_forward(Arena& arena, const T* parameters, const std::vector<std::vector<T>>& biases,
                    Panels<T>& panels);
  void take_backward(Arena& arena, const T* parameters, std::vector<BackwardWeights>& backward,
                     Panels<T>& panels) const;
  // -1 for the update gate that writes: its weights are negated.
  T sign(const GateSpec& gate) const;

  const Config config_;
  const CellSpec cell_;
  const Kernels<T>& kernels_;
  const StorageKernels<T>& storage_;
  std::vector<DirectionWeights<T>> forward_;
  Buffer memory_;
  mutable std::vector<BackwardWeights> backward_;
  mutable Buffer backward_memory_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_WEIGHTS_H_
