// Slices of units, and nearly equal parts of a range. Includes no other header of the core.
#ifndef TIDEGATE_CORE_SLICES_H_
#define TIDEGATE_CORE_SLICES_H_

#include "tidegate/config.h"

namespace tidegate {

// The units of a layer are packed in slices of `width` units, the elements of a vector. The last
// slice may be partly empty.
inline Index slice_count(Index units, Index width) { return (units + width - 1) / width; }

struct Range {
  Index begin;
  Index end;

  Index size() const { return end - begin; }
};

// Part `i` of `count` nearly equal parts of [0, size).
inline Range part_of(Index size, Index i, Index count) {
  return {size * i / count, size * (i + 1) / count};
}

}  // namespace tidegate

#endif  // TIDEGATE_CORE_SLICES_H_
