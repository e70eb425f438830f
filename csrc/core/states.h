// The states of a direction over time, and the copies from initial and to final states.
#ifndef TIDEGATE_CORE_STATES_H_
#define TIDEGATE_CORE_STATES_H_

#include <algorithm>

#include "core/memory.h"
#include "core/schedule.h"
#include "core/share.h"

namespace tidegate {

// The stride of padded rows of `units` elements. It is not a multiple of a large power of two,
// because the rows would then all map to the same few sets of the L1 cache.
template <class T>
Index padded_row(Index units, Index width) {
  const Index row = slice_count(units, width) * width;
  return row * static_cast<Index>(sizeof(T)) % 1024 == 0 ? row + 64 / static_cast<Index>(sizeof(T))
                                                         : row;
}

// One state (h or c) of the sorted rows. Step s reads slot s, or zero at a boundary, and writes
// slot s + 1. Inference uses two slots alternately; training keeps all slots.
template <class T>
struct States {
  T* data = nullptr;
  Index slots = 0;
  Index batch = 0;
  Index units = 0;
  Index row_stride = 0;

  Rows<T> slot(Index s) const {
    const Index i = s < slots ? s : s % slots;
    return {data + i * batch * row_stride, row_stride, nullptr};
  }

  static States take(Arena& arena, Index slots, Index batch, Index units, Index width) {
    const Index row_stride = padded_row<T>(units, width);
    return {arena.take<T>(slots, batch, row_stride), slots, batch, units, row_stride};
  }
};

// The previous states that step s reads for rows `rows`. A zeroed row is replaced, not multiplied
// by zero, so that not even a NaN of its previous state remains. `table` and `zero`, a padded row
// of zeros, are needed if the schedule has resets.
template <class T>
Rows<const T> previous(const States<T>& states, const Timeline& timeline, Index s, Range rows,
                       const T* zero, const T** table) {
  const Rows<T> slot = states.slot(s);
  if (!timeline.schedule().has_reset()) return slot.from(rows.begin);
  for (Index n = rows.begin; n < rows.end; ++n)
    table[n - rows.begin] = timeline.zeroed(s, n) ? zero : slot[n];
  return {nullptr, 0, table};
}

template <class T>
void copy_units(const T* from, T* to, Range units) {
  if (!to) return;
  if (from) {
    std::copy(from + units.begin, from + units.end, to + units.begin);
  } else {
    std::fill(to + units.begin, to + units.end, T(0));
  }
}

// Row n of a direction's initial or final state; null if the array was not given.
template <class T>
T* state_row(const View<T>& states, Index direction, Index n) {
  return states.given ? states.row(direction, n) : nullptr;
}

}  // namespace tidegate

#endif  // TIDEGATE_CORE_STATES_H_
