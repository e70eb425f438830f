// Packed weights: an immutable snapshot of a model's parameters, in a storage of one ISA's kernels.
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

// The offsets of the parameters of one layer's direction in the flat vector; -1: absent.
struct ParameterOffsets {
  Index weight_ih, weight_hh;
  Index bias_ih = -1, bias_hh = -1;
  Index weight_hr = -1;
  Index weight_peephole = -1;
  // The offsets of the matrices' rows among the rows of all matrices.
  Index scales_ih = 0, scales_hh = 0, scales_hr = 0;
};
std::vector<ParameterOffsets> parameter_offsets(
    const Config& config);  // layer-major, then direction

template <class T>
struct PhaseWeights {
  Panel x = nullptr;        // for the gates that read x
  Panel h = nullptr;        // for the gates that read the operand
  const T* bias = nullptr;  // [slice][gate][width]
};

// The weights of one layer's direction in the forward pass.
template <class T>
struct DirectionWeights {
  PhaseWeights<T> phases[kMaxPhases];
  const T* peephole = nullptr;  // [slice][i f o][width]
  Panel projection = nullptr;   // weight_hr
};

// The weights of one layer's direction in the backward pass: panels of the transposed weights,
// whose k's are [gate][unit].
struct BackwardWeights {
  Panel x = nullptr;           // [gates that read x] -> layer input
  Panel h[kMaxPhases] = {};    // [gates of the phase that read its operand] -> operand
  Panel projection = nullptr;  // [proj_size] -> hidden units
};

template <class T>
class Panels;

template <class T>
class Weights {
 public:
  // Packs the flat parameters for the current kernels, with at most `threads` threads. `scales`:
  // of the rows of all matrices, for kInt8Weights; the parameters are then multiples of them.
  Weights(const Config& config, const T* parameters, int threads,
          StorageKind storage = kExactWeights, const T* scales = nullptr);

  const Kernels<T>& kernels() const { return kernels_; }
  const StorageKernels<T>& storage() const { return storage_; }
  const CellSpec& cell() const { return cell_; }
  const DirectionWeights<T>& direction(Index layer, Index direction) const {
    return forward_[static_cast<std::size_t>(layer * config_.num_directions() + direction)];
  }
  // The memory of all forward panels.
  WeightsMemory memory() const { return {memory_.data(), memory_.size(), Index{sizeof(T)}}; }

  // Packs what backward() returns, unless it is packed already. `parameters` are those from which
  // the snapshot was made. Must not be called by several threads at the same time.
  void prepare_backward(const T* parameters, int threads) const;
  bool has_backward() const { return !backward_.empty(); }
  const BackwardWeights& backward(Index layer, Index direction) const {
    return backward_[static_cast<std::size_t>(layer * config_.num_directions() + direction)];
  }

 private:
  // The sums of both biases, [gate][unit], for each phase of each direction.
  std::vector<std::vector<T>> phase_biases(const T* parameters) const;
  // Take the panels of all directions from the arena.
  void take_forward(Arena& arena, const T* parameters, const T* scales,
                    const std::vector<std::vector<T>>& biases, Panels<T>& panels);
  void take_backward(Arena& arena, const T* parameters, std::vector<BackwardWeights>& backward,
                     Panels<T>& panels) const;
  // -1 for the update gate with UpdateGate::write, whose weights are negated.
  T sign(const GateSpec& gate) const;

  const Config config_;
  const CellSpec& cell_;
  const Kernels<T>& kernels_;
  const StorageKernels<T>& storage_;
  std::vector<DirectionWeights<T>> forward_;
  Buffer memory_;
  mutable std::vector<BackwardWeights> backward_;
  mutable Buffer backward_memory_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_WEIGHTS_H_
