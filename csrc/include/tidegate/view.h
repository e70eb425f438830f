// Views: pointers with a shape and strides, which own nothing.
#ifndef TIDEGATE_VIEW_H_
#define TIDEGATE_VIEW_H_

#include <cstddef>
#include <cstdint>

#include "tidegate/config.h"

namespace tidegate {

// Three axes, with strides in elements (any sign; the last must be 1). A view with `given` false is
// an optional array that was not passed. Sequences are (T, N, features), states (L*D, N, features).
template <class T>
struct View {
  T* data = nullptr;
  Index shape[3] = {0, 0, 0};
  Index stride[3] = {0, 0, 1};
  bool given = false;  // an empty array may be given although its data is null
  // For a packed sequence, which has no padding in memory: row n of step t is row first_row[t] + n
  // of the data, and stride[0] is unused. Batch rows are sorted by length, the longest first. Null:
  // not packed.
  const Index* first_row = nullptr;

  T* row(Index a, Index b) const {
    return data + (first_row ? (first_row[a] + b) * stride[1] : a * stride[0] + b * stride[1]);
  }
};

// A contiguous view.
template <class T>
View<T> view(T* data, Index a, Index b, Index c) {
  View<T> v;
  v.data = data;
  v.shape[0] = a, v.shape[1] = b, v.shape[2] = c;
  v.stride[0] = b * c, v.stride[1] = c, v.stride[2] = 1;
  v.given = true;
  return v;
}

// A read-only view of the same elements.
template <class T>
View<const T> constant(const View<T>& v) {
  View<const T> c;
  c.data = v.data;
  for (int axis = 0; axis < 3; ++axis)
    c.shape[axis] = v.shape[axis], c.stride[axis] = v.stride[axis];
  c.given = v.given;
  c.first_row = v.first_row;
  return c;
}

// A boolean (T, N) mask, one byte per element.
struct MaskView {
  const std::uint8_t* data = nullptr;
  Index shape[2] = {0, 0};
  Index stride[2] = {0, 0};
  bool given = false;

  bool at(Index t, Index n) const { return data[t * stride[0] + n * stride[1]] != 0; }
};

}  // namespace tidegate

#endif  // TIDEGATE_VIEW_H_
