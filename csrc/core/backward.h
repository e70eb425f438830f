// One direction of one layer through time, backward. Written once for all cells; what differs is in
// CellSpec.
#ifndef TIDEGATE_CORE_BACKWARD_H_
#define TIDEGATE_CORE_BACKWARD_H_

#include "core/forward.h"

namespace tidegate {

// Working memory of one direction, of any layer, shared by its threads. Arrays named `*_chunk` have
// a row for each live row of the chunk's steps, in the order of the sums over them: steps
// descending, then sorted rows ascending.
template <class T>
struct BackwardScratch {
  Index chunk = 1;             // steps whose weight gradients are summed up together
  Rows<T> dh, dc;              // [batch]: carried from step to step
  Rows<T> dgated_h;            // of two phases: [batch]
  Rows<T> dcell_output;        // projection: [batch], by o * tanh(c)
  Rows<T> dgates_chunk;        // [gate of the cell][unit], dense
  Rows<T> gated_h_chunk;       // of two phases: what the second one multiplies instead of h_prev
  Rows<T> cell_output_chunk;   // projection: o * tanh(c)
  Rows<T> dh_chunk;            // projection: by h
  Rows<T> dpeephole_chunk;     // [i f o][unit], dense
  const T** x_rows = nullptr;  // per thread: [chunk][batch]
  const T** h_rows = nullptr;
  const T** c_rows = nullptr;  // per thread: [batch]
  T** dx_rows = nullptr;       // per thread: [chunk][batch]
  const T* zero = nullptr;     // a padded row of zeros
  T* accumulators = nullptr;   // per thread: of dx
  Index accumulators_size = 0;
  T* outer = nullptr;  // per thread: scratch of Kernels::outer
  Index outer_size = 0;

  static BackwardScratch take(Arena& arena, const Config& config, const Kernels<T>& kernels,
                              const CellSpec& cell, Index steps, Index batch, int threads);
};

template <class T>
struct BackwardDirection {
  const Config& config;
  const Weights<T>& weights;
  Index layer;
  Index direction;
  const Schedule& schedule;
  View<const T> x;  // (T, N, inputs), as forward had it
  States<T> h, c;   // all slots
  SavedGates<T> saved;
  View<const T> dy;  // (T, N, state), of this direction; may be absent
  View<const T> dh_n, dc_n;
  View<T> dx;  // (T, N, inputs), live rows are overwritten; may be absent
  View<T> dh_0, dc_0;
  T* dparameters;  // the flat vector of gradients; may be null
  ParameterOffsets offsets;
  const BackwardScratch<T>& scratch;

  void run(const Share& share, int thread) const;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_BACKWARD_H_
