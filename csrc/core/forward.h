// One direction of one layer through time, forward. Written once for all cells; what differs is in
// CellSpec.
#ifndef TIDEGATE_CORE_FORWARD_H_
#define TIDEGATE_CORE_FORWARD_H_

#include "core/cell_step.h"
#include "core/schedule.h"
#include "core/share.h"
#include "core/states.h"
#include "core/weights.h"

namespace tidegate {

// Working memory of one direction, of any layer, shared by its threads.
template <class T>
struct ForwardScratch {
  Index chunk = 1;  // steps projected together
  StepScratch<T> step;
  const T** x_rows = nullptr;  // per thread: [chunk][batch]
  T** y_rows = nullptr;        // per thread: [batch]
  const T** h_rows = nullptr;  // per thread: [batch]
  const T** c_rows = nullptr;  // per thread: [batch]
  const T* zero = nullptr;     // a padded row of zeros

  static ForwardScratch take(Arena& arena, const Config& config, const Weights<T>& weights,
                             Index steps, Index batch, int threads);
};

// What training keeps of a direction, beside all slots of its states.
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
  View<T> y;        // (T, N, state), of this direction
  View<const T> h_0, c_0;
  View<T> h_n, c_n;  // all layers'
  States<T> h, c;
  SavedGates<T> saved;
  const ForwardScratch<T>& scratch;

  // Steps [steps.begin, steps.end), those before having been run. `share` is this thread's;
  // `thread` its number among those that share the scratch.
  void run(const Share& share, int thread, Range steps) const;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_FORWARD_H_
