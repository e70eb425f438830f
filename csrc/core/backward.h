// The backward pass of one direction of one layer through time, for all cells; CellSpec describes
// their differences.
#ifndef TIDEGATE_CORE_BACKWARD_H_
#define TIDEGATE_CORE_BACKWARD_H_

#include <cstddef>

#include "core/forward.h"

namespace tidegate {

// The working memory of one direction, used by all layers in turn and shared by the threads. Arrays
// named `*_chunk` have one row for each active row of the chunk's steps, in the order in which
// these rows are summed: steps descending, then sorted rows ascending.
template <class T>
struct BackwardScratch {
  Index chunk = 1;             // the number of steps whose weight gradients are summed together
  Rows<T> dh, dc;              // [batch]: passed from step to step
  Rows<T> dgated_h;            // cells of two phases: [batch]
  Rows<T> dcell_output;        // projection: [batch], gradients by o * tanh(c)
  Rows<T> dgates_chunk;        // [gate of the cell][unit], dense
  Rows<T> gated_h_chunk;       // cells of two phases: the second one's operand, instead of h_prev
  Rows<T> cell_output_chunk;   // projection: o * tanh(c)
  Rows<T> dh_chunk;            // projection: gradients by h
  Rows<T> dpeephole_chunk;     // [i f o][unit], dense
  const T** x_rows = nullptr;  // per thread: [chunk][batch]
  const T** h_rows = nullptr;
  const T** c_rows = nullptr;  // per thread: [batch]
  T** dx_rows = nullptr;       // per thread: [chunk][batch]
  const T* zero = nullptr;     // a padded row of zeros
  T* accumulators = nullptr;   // per thread: for dx
  Index accumulators_size = 0;
  T* outer = nullptr;  // per thread: scratch of the weight gradients' kernel
  Index outer_size = 0;
  std::byte* rounded = nullptr;  // per thread: Product::rounded
  Index rounded_size = 0;
  Index max_rows = 0;  // of a call of the storage's products

  static BackwardScratch take(Arena& arena, const Config& config, const Weights<T>& weights,
                              Index steps, Index batch, int threads);
};

template <class T>
struct BackwardDirection {
  const Config& config;
  const Weights<T>& weights;
  Index layer;
  Index direction;
  const Schedule& schedule;
  View<const T> x;  // (T, N, inputs), the same as in the forward pass
  States<T> h, c;   // all slots
  SavedGates<T> saved;
  View<const T> dy;  // (T, N, state), this direction's part; may be absent
  View<const T> dh_n, dc_n;
  View<T> dx;  // (T, N, inputs), active rows are overwritten; may be absent
  View<T> dh_0, dc_0;
  T* dparameters;  // the flat vector of gradients; may be null
  ParameterOffsets offsets;
  const BackwardScratch<T>& scratch;

  void run(const Share& share, int thread) const;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_BACKWARD_H_
