// The forward pass of one direction of one layer through time, for all cells; CellSpec describes
// their differences.
#ifndef TIDEGATE_CORE_FORWARD_H_
#define TIDEGATE_CORE_FORWARD_H_

#include "core/cell_step.h"
#include "core/schedule.h"
#include "core/share.h"
#include "core/states.h"
#include "core/weights.h"

namespace tidegate {

// The working memory of one direction, used by all layers in turn and shared by the threads.
template <class T>
struct ForwardScratch {
  Index chunk = 1;  // the number of steps whose inputs are projected together
  StepScratch<T> step;
  const T** x_rows = nullptr;  // per thread: [chunk][batch]
  T** y_rows = nullptr;        // per thread: [batch]
  const T** h_rows = nullptr;  // per thread: [batch]
  const T** c_rows = nullptr;  // per thread: [batch]
  const T* zero = nullptr;     // a padded row of zeros

  static ForwardScratch take(Arena& arena, const Config& config, const Weights<T>& weights,
                             Index steps, Index batch, int threads);
};

// The activated gates of a direction, which training keeps in addition to all slots of its states.
template <class T>
struct SavedGates {
  T* data = nullptr;  // [step][sorted row][gate][unit]
  Index batch = 0;
  Index gate_stride = 0;
  Index row_stride = 0;

  Rows<T> step(Index s) const {
    return data ? Rows<T>{data + s * batch * row_stride, row_stride, nullptr} : Rows<T>{};
  }
};

template <class T>
struct ForwardDirection {
  const Config& config;
  const Weights<T>& weights;
  Index layer;
  Index direction;
  const Schedule& schedule;
  View<const T> x;  // (T, N, inputs)
  View<T> y;        // (T, N, state), this direction's part
  View<const T> h_0, c_0;
  View<T> h_n, c_n;  // of all layers
  States<T> h, c;
  SavedGates<T> saved;
  const ForwardScratch<T>& scratch;

  // Runs steps [steps.begin, steps.end), after all earlier ones. `share` is this thread's share,
  // `thread` its number among the threads that share the scratch.
  void run(const Share& share, int thread, Range steps) const;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_FORWARD_H_
