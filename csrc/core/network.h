// The forward and backward passes of all layers and directions of a network: their assignment to
// threads, and their memory.
#ifndef TIDEGATE_CORE_NETWORK_H_
#define TIDEGATE_CORE_NETWORK_H_

#include <memory>
#include <vector>

#include "core/backward.h"
#include "core/check.h"
#include "core/forward.h"
#include "core/plan_call.h"

namespace tidegate {

constexpr int kMaxDirections = 2;

// The working memory of a forward call. In inference it holds two slots of the states, and the
// output of every other layer (y holds that of the others). A stack with one direction runs some
// steps at a time, so that this output does not grow with T; with two directions it covers the
// whole sequence.
template <class T>
struct ForwardWorkspace {
  ForwardWorkspace() = default;
  ForwardWorkspace(const Config& config, const Weights<T>& weights, CallSize size, int threads,
                   bool inference);

  struct LayerStates {
    States<T> h, c;
  };

  ForwardScratch<T> scratch[kMaxDirections];
  Index steps_at_once = 0;
  std::vector<LayerStates> states;  // layer-major, then direction
  T* intermediate = nullptr;        // (steps_at_once, N, D*S), dense
  Buffer memory;
};

// The data that a training call keeps for its backward pass.
template <class T>
struct Record {
  Record(const Config& config, std::shared_ptr<const Weights<T>> weights, Schedule schedule,
         bool dropout);

  struct Direction {
    States<T> h, c;
    SavedGates<T> saved;
  };

  const Direction& direction(Index layer, Index direction) const {
    return directions[static_cast<std::size_t>(layer * config.num_directions() + direction)];
  }
  CallSize size() const { return {schedule.steps(), schedule.batch(), schedule.longest_first()}; }
  View<T> layer_input(Index layer) const {
    return view(inputs[static_cast<std::size_t>(layer)], schedule.steps(), schedule.batch(),
                config.layer_input_size(layer));
  }
  // The factors on the output of layer `layer`, (T, N, D*S), dense; null: no dropout.
  const T* dropout_of(Index layer) const {
    return dropout_scale
               ? dropout_scale + layer * schedule.steps() * schedule.batch() * config.output_size()
               : nullptr;
  }

  const Config config;
  const std::shared_ptr<const Weights<T>> weights;
  const Schedule schedule;
  std::vector<T*> inputs;  // of each layer, (T, N, inputs), dense
  T* dropout_scale = nullptr;
  std::vector<Direction> directions;
  Buffer memory;
};

// The arguments must have been checked. `plan` has at most as many threads as the workspace.
template <class T>
void run_forward(const Config& config, const Weights<T>& weights, const Schedule& schedule,
                 const Inputs<T>& inputs, const Outputs<T>& outputs,
                 const ForwardWorkspace<T>& workspace, Record<T>* record, PlannedCall plan);

template <class T>
void run_backward(const Record<T>& record, const OutputGradients<T>& outputs,
                  const InputGradients<T>& inputs, int threads);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_NETWORK_H_
