// Weight gradients, and sums of rows. The depth of a gradient's product is the number of batch rows
// of all steps; both operands are packed block by block.
#ifndef TIDEGATE_KERNELS_OUTER_H_
#define TIDEGATE_KERNELS_OUTER_H_

#include "kernels/exact_weights.h"
#include "kernels/product.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// Columns of `left` that are packed at a time, kOuterSumBlock rows deep: 192 KiB of float, in L2. A
// packed block of `right` has 16 or 32 KiB.
constexpr Index kOuterLeft = 384;

template <class T>
struct OuterShape {
  static constexpr int kColumns = TileShape<1>::kSlices;  // vectors of `right`
  static constexpr int kRows = TileShape<1>::kRows;
  static constexpr Index kScratch =
      kOuterSumBlock * (kOuterLeft + kRows + kColumns * Vec<T>::width);
};

// Packs columns of `left` for `Tiles` tiles of R columns each: [tile][k][row of the tile].
template <int R, int Tiles, class T>
inline __attribute__((always_inline)) void pack_left(Rows<const T> left, Index k0, Index depth,
                                                     Index column, T* to) {
  for (Index k = 0; k < depth; ++k) {
    const T* from = left[k0 + k] + column;
#pragma GCC unroll 8
    for (int t = 0; t < Tiles; ++t) {
      __builtin_memcpy(to + (t * depth + k) * R, from + t * R, R * sizeof(T));
    }
  }
}

// Multiplies R columns of `left` by S vectors of `right`, both packed; the last vector has
// `last_lanes` columns of `result`. Prefetches the next tile's part of `result`, up to row
// `rows_end`.
template <class T, int R, int S>
inline __attribute__((always_inline)) void outer_tile(const T* left, const T* right, Index depth,
                                                      Rows<T> result, Index row, Index column,
                                                      int last_lanes, bool resume, Index rows_end) {
  constexpr int kWidth = Vec<T>::width;
  for (Index next = row + R; next < min_of(row + R + OuterShape<T>::kRows, rows_end); ++next) {
    for (int i = 0; i < S * kWidth; i += kLine<T>) __builtin_prefetch(result[next] + column + i, 1);
  }
  Vec<T> sums[R][S][1];
  const T* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = left + r;
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) sums[r][s][0] = zero<T>();
  }
  multiply<ExactWeights<T>>(sums, a, R, right, depth * kWidth, depth);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    T* const to = result[row + r] + column;
#pragma GCC unroll 12
    for (int s = 0; s + 1 < S; ++s) {
      T* const at = to + s * kWidth;
      store(at, resume ? load<T>(at) + sums[r][s][0] : sums[r][s][0]);
    }
    T* const last = to + (S - 1) * kWidth;
    const Vec<T> sum = sums[r][S - 1][0];
    store_partial<T>(last, resume ? load_partial<T>(last, last_lanes) + sum : sum, last_lanes);
  }
}

template <class T>
void outer(const OuterCall<T>& call) {
  constexpr int kWidth = Vec<T>::width;
  constexpr int kRows = OuterShape<T>::kRows;
  constexpr int kColumns = OuterShape<T>::kColumns;
  constexpr int kTilesPacked = 4;
  T* const packed_left = call.scratch;  // [tile][k][row of the tile]
  T* const packed_right = packed_left + kOuterSumBlock * (kOuterLeft + kRows);  // [slice][k][width]

  for (Index k0 = 0; k0 < call.depth || k0 == 0; k0 += kOuterSumBlock) {
    const Index depth = min_of(call.depth - k0, kOuterSumBlock);
    const bool resume = call.resume || k0 > 0;
    for (Index m0 = 0; m0 < call.left_columns; m0 += kOuterLeft) {
      const Index m1 = min_of(m0 + kOuterLeft, call.left_columns);
      T* to = packed_left;
      for (Index m = m0; m < m1;) {
        Index columns = kTilesPacked * kRows;
        if (m1 - m >= columns + kRows) {
          pack_left<kRows, kTilesPacked>(call.left, k0, depth, m, to);
        } else {
          columns = tile_rows<kRows>(m1 - m);
          with_constant<kRows>(static_cast<int>(columns),
                               [&]<int R>() __attribute__((always_inline)) {
                                 pack_left<R, 1>(call.left, k0, depth, m, to);
                               });
        }
        to += depth * columns;
        m += columns;
      }
      for (Index column = 0; column < call.right_columns;) {
        const Index left_over = call.right_columns - column;
        const Index slices = (left_over + kWidth - 1) / kWidth;
        column +=
            kWidth *
            with_halved_constant<kColumns>(slices, [&]<int S>() __attribute__((always_inline)) {
              const int last_lanes = static_cast<int>(min_of(left_over - (S - 1) * kWidth, kWidth));
              for (Index k = 0; k < depth; ++k) {
                const T* from = call.right[k0 + k] + column;
#pragma GCC unroll 4
                for (int s = 0; s + 1 < S; ++s)
                  store(packed_right + (s * depth + k) * kWidth, load<T>(from + s * kWidth));
                store(packed_right + ((S - 1) * depth + k) * kWidth,
                      load_partial<T>(from + (S - 1) * kWidth, last_lanes));
              }
              const T* left = packed_left;
              for (Index m = m0; m < m1;) {
                const int rows = tile_rows<kRows>(m1 - m);
                with_constant<kRows>(rows, [&]<int R>() __attribute__((always_inline)) {
                  outer_tile<T, R, S>(left, packed_right, depth, call.result, m, column, last_lanes,
                                      resume, m1);
                });
                left += depth * rows;
                m += rows;
              }
            });
      }
    }
  }
}

// ---- Sums of rows.

template <class T>
void sum_rows(Rows<const T> rows, Index count, Index columns, T* sum, bool resume) {
  constexpr int kWidth = Vec<T>::width;
  for (Index j = 0; j < columns; j += kWidth) {
    const int lanes = static_cast<int>(min_of(columns - j, kWidth));
    Vec<T> total = resume ? load_partial<T>(sum + j, lanes) : zero<T>();
    for (Index first = 0; first < count; first += kOuterSumBlock) {
      const Index end = min_of(first + kOuterSumBlock, count);
      Vec<T> block = load_partial<T>(rows[first] + j, lanes);
      for (Index r = first + 1; r < end; ++r) block = block + load_partial<T>(rows[r] + j, lanes);
      total = total + block;
    }
    store_partial<T>(sum + j, total, lanes);
  }
}

template <class T>
void add_rows(Rows<const T> from, Rows<T> to, Index count, Index columns) {
  constexpr int kWidth = Vec<T>::width;
  for (Index r = 0; r < count; ++r) {
    const T* a = from[r];
    T* b = to[r];
    for (Index j = 0; j < columns; j += kWidth) {
      const int lanes = static_cast<int>(min_of(columns - j, kWidth));
      store_partial<T>(b + j, load_partial<T>(b + j, lanes) + load_partial<T>(a + j, lanes), lanes);
    }
  }
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_OUTER_H_
