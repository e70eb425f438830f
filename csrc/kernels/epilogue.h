// The loops that run a cell's formulas (cells.h) on the rows and units of a call.
#ifndef TIDEGATE_KERNELS_EPILOGUE_H_
#define TIDEGATE_KERNELS_EPILOGUE_H_

#include "kernels/accumulators.h"
#include "kernels/blocking.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// The position of a vector of units in the rows of a call.
struct Position {
  Index row;
  Index unit;
  int lanes;  // units in the vector; the other lanes are padding
};

template <class T>
inline Position position(Index units, Index row, Index slice) {
  const Index unit = slice * Vec<T>::width;
  return {row, unit, static_cast<int>(min_of(units - unit, Vec<T>::width))};
}

// Runs a phase's `gates` and `state` on all rows and the slices [slice_begin, slice_end), whose
// accumulators are complete. In one loop, the two would form a chain of activations so long that
// the processor could not hide its latency behind the next vector's; hence two loops, over many
// rows at a time instead of tile by tile.
template <class Phase, class T>
__attribute__((noinline)) void finish(const PhaseCall<T>& given, Index slice_begin,
                                      Index slice_end) {
  const PhaseCall<T> call = given;  // a local copy: no store can alias it, so it stays in registers
  const auto each = [&](auto&& cell) __attribute__((always_inline)) {
    for (Index slice = slice_begin; slice < slice_end; ++slice) {
      Position at = position<T>(call.units, 0, slice);
      T* accumulators = accumulators_of(call, 0, slice);
      for (; at.row < call.rows; ++at.row) {
        cell(Accumulators<T>(accumulators), at);
        accumulators += call.accumulators_row_stride;
      }
    }
  };
  each([&](Accumulators<T> a, Position at)
           __attribute__((always_inline)) { Phase::template gates<T>(call, a, at); });
  each([&](Accumulators<T> a, Position at)
           __attribute__((always_inline)) { Phase::template state<T>(call, a, at); });
}

// Runs a phase's `backward` on all rows and slices of the call.
template <class Phase, class T>
void run_backward(const BackwardCall<T>& given) {
  const BackwardCall<T> call = given;  // a local copy, as in finish()
  for (Index row = 0; row < call.rows; ++row) {
    for (Index slice = call.slice_begin; slice < call.slice_end; ++slice)
      Phase::template backward<T>(call, position<T>(call.units, row, slice));
  }
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_EPILOGUE_H_
