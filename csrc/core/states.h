// A direction's states over time, and how they begin and end.
#ifndef TIDEGATE_CORE_STATES_H_
#define TIDEGATE_CORE_STATES_H_

#include <algorithm>

#include "core/memory.h"
#include "core/schedule.h"
#include "core/share.h"

namespace tidegate {

// Elements between padded rows of `units`. Rows must not all fall on the same few sets of the L1
// cache, as they would a multiple of a large power of two apart.
template <class T>
Index padded_row(Index units, Index width) {
  const Index row = slice_count(units, width) * width;
  return row * static_cast<Index>(sizeof(T)) % 1024 == 0 ? row + 64 / static_cast<Index>(sizeof(T))
                                                         : row;
}

// One state (h or c) of sorted rows: step s reads slot s, or zero at a boundary, and writes slot s
// + 1. Inference keeps two slots in turn, training all of them.
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

// What step s reads of rows `rows`: a select, so that a zeroed row takes nothing of the state
// before it. `table` and `zero`, a padded row of zeros, are needed if the schedule has resets.
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

// Row n of a direction's initial or final state; null where the array was not given.
template <class T>
T* state_row(const View<T>& states, Index direction, Index n) {
  return states.given ? states.row(direction, n) : nullptr;
}

}  // namespace tidegate

#endif  // TIDEGATE_CORE_STATES_H_
