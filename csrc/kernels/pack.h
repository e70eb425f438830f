// Packing: columns of a few units' weights, which stand in rows, become vectors.
#ifndef TIDEGATE_KERNELS_PACK_H_
#define TIDEGATE_KERNELS_PACK_H_

#include <utility>

#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// Lanes of a and b in turn: of their first halves (half 0), or of their second ones.
template <int half, class T, int... i>
TIDEGATE_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  constexpr int kWidth = Vec<T>::width;
  return {__builtin_shufflevector(a.v, b.v, (half * kWidth / 2 + i / 2 + i % 2 * kWidth)...)};
}

// Element (i, j) of a square, vector by vector, goes to (j, i). Interleaving row i with row i +
// width / 2 moves the highest bit of a row's number to the lowest place of a lane's, and a lane's
// highest to the row's lowest; once for each bit, and they have changed places.
template <class T>
TIDEGATE_INLINE void transpose(Vec<T> (&rows)[Vec<T>::width]) {
  constexpr int kWidth = Vec<T>::width;
  constexpr auto kLanes = std::make_integer_sequence<int, kWidth>();
#pragma GCC unroll 4
  for (int done = 1; done < kWidth; done *= 2) {
    Vec<T> next[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + kWidth / 2], kLanes);
      next[2 * i + 1] = interleave<1>(rows[i], rows[i + kWidth / 2], kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) rows[i] = next[i];
  }
}

template <class T>
void pack(const PackCall<T>& call) {
  constexpr int kWidth = Vec<T>::width;
  Index k = 0;
  if (call.lanes == kWidth) {
    const Vec<T> sign = broadcast(call.sign);
    for (; k + kWidth <= call.columns; k += kWidth) {
      Vec<T> rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) rows[i] = load(call.from + i * call.from_stride + k);
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(call.to + (k + i) * call.to_stride, sign * rows[i]);
    }
  }
  for (; k < call.columns; ++k) {
    for (Index lane = 0; lane < call.lanes; ++lane) {
      call.to[k * call.to_stride + lane] = call.sign * call.from[lane * call.from_stride + k];
    }
  }
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_PACK_H_
