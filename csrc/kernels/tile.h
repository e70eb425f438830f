// The tile: products of a few rows with a few slices of panels, with a phase's cell as its
// epilogue, and the loops that cut a PhaseCall or an OuterCall into tiles. No formula of a cell is
// in here.
//
// One rule keeps the bits the same however the work is cut: an output element is one accumulator,
// and receives its products one by one, k ascending. Cutting k spills that accumulator and loads it
// again; it never adds partial sums.
#ifndef TIDEGATE_KERNELS_TILE_H_
#define TIDEGATE_KERNELS_TILE_H_

#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// Accumulators held in registers. With R rows and C vectors of a panel, a k step needs R + 1
// registers more, and its R * C fused multiply-adds need at least 8 independent chains (latency 4,
// two a cycle).
constexpr int kAccumulators = vector_registers * 3 / 4;

// A block of a panel that stays in L1 (half of 32 KiB) while all rows pass over it.
constexpr Index kPanelBlockBytes = 16 * 1024;

constexpr Index min_of(Index a, Index b) { return a < b ? a : b; }

// Where a vector of units begins in the rows of a call.
template <class T>
struct Place {
  Index row;
  Index unit;
  int lanes;  // real units of the vector
};

// How a tile of `Gates` accumulators a unit is shaped: many rows and few slices, or one row and
// many slices.
template <int Gates>
struct TileShape {
  static constexpr int kSlices = Gates >= 4 ? 1 : 4 / Gates;
  static constexpr int kRows = kAccumulators / (kSlices * Gates);
  static constexpr int kSlicesOneRow = Gates >= 4 ? 3 : 8 / Gates;
};

// Calls f.template operator()<n>() for a run-time n in 1..Max.
template <int Max, class F>
inline __attribute__((always_inline)) void with_constant(int n, F&& f) {
  if constexpr (Max > 1) {
    if (n < Max) return with_constant<Max - 1>(n, f);
  }
  f.template operator()<Max>();
}

// The same for the largest of Max, its half (rounded up), and so on to 1, that is not above n:
// fewer shapes to compile.
template <int Max, class F>
inline __attribute__((always_inline)) int with_halved_constant(Index n, F&& f) {
  if constexpr (Max > 1) {
    if (n < Max) return with_halved_constant<(Max + 1) / 2>(n, f);
  }
  f.template operator()<Max>();
  return Max;
}

// Rows of the next tile: full tiles, but never a last one of a single row beside others, whose few
// chains would wait for each other.
template <int Max>
inline int tile_rows(Index left) {
  if (left == Max + 1 && Max > 1) return (Max + 1) / 2;
  return static_cast<int>(min_of(left, Max));
}

// accumulators[r][s][First + g] += a[r] * panel[s][g], for one k.
template <int First, int Count, class T, int R, int S, int A>
inline __attribute__((always_inline)) void multiply_step(Vec<T> (&accumulators)[R][S][A],
                                                         const T* const (&a)[R], Index a_offset,
                                                         const T* panel, Index slice_stride) {
  Vec<T> x[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) x[r] = broadcast<T>(a[r][a_offset]);
#pragma GCC unroll 12
  for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
    for (int g = 0; g < Count; ++g) {
      const Vec<T> w = load<T>(panel + s * slice_stride + g * Vec<T>::width);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        accumulators[r][s][First + g] = fma(x[r], w, accumulators[r][s][First + g]);
      }
    }
  }
}

// The same for all k, ascending. Large tiles take four at a time, so that the loop's own
// instructions do not take the fused multiply-adds' places where another hardware thread shares the
// core's front end; small ones wait for memory or for their own chains.
template <int First, int Count, class T, int R, int S, int A>
inline __attribute__((always_inline)) void multiply(Vec<T> (&accumulators)[R][S][A],
                                                    const T* const (&a)[R], Index k_stride,
                                                    const T* panel, Index slice_stride,
                                                    Index depth) {
  constexpr int kUnroll = R > 1 && R * S * Count >= 8 ? 4 : 1;
  constexpr int kStep = Count * Vec<T>::width;
  const T* row[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) row[r] = a[r];
  const auto advance = [&](Index steps) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] += steps * k_stride;
    panel += steps * kStep;
  };
  Index k = 0;
  for (; k + kUnroll <= depth; k += kUnroll) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
      multiply_step<First, Count>(accumulators, row, u * k_stride, panel + u * kStep, slice_stride);
    }
    advance(kUnroll);
  }
  for (; k < depth; ++k) {
    multiply_step<First, Count>(accumulators, row, 0, panel, slice_stride);
    advance(1);
  }
}

// Some k of x, then some k of h.
struct DepthBlock {
  Index x_begin, x_end;
  Index h_begin, h_end;
  bool first, last;
};

// The epilogue of a tile: the cell, for each of its rows and slices. Two loops, as one would be a
// long chain of activations whose latency the processor cannot fill with the next vector's. Not
// inlined, so that a cell is compiled once and not for each shape of tile.
template <class Phase, class T>
__attribute__((noinline)) void finish_tile(const PhaseCall<T>& call,
                                           Vec<T> (*accumulators)[Phase::spec.gates.count],
                                           int rows, int slices, Index row, Index slice) {
  constexpr int kWidth = Vec<T>::width;
  const auto place = [&](int i) {
    const Index unit = (slice + i % slices) * kWidth;
    return Place<T>{row + i / slices, unit, static_cast<int>(min_of(call.units - unit, kWidth))};
  };
  for (int i = 0; i < rows * slices; ++i) Phase::template gates<T>(call, accumulators[i], place(i));
  for (int i = 0; i < rows * slices; ++i) Phase::template state<T>(call, accumulators[i], place(i));
}

// One tile of a phase: R rows from `row` on, S slices from `slice` on.
template <class Phase, class T, int R, int S>
inline __attribute__((always_inline)) void phase_tile(const PhaseCall<T>& call, Index row,
                                                      Index slice, const DepthBlock& block) {
  constexpr int kWidth = Vec<T>::width;
  constexpr PhaseSpec kSpec = Phase::spec;
  constexpr int kGates = kSpec.gates.count;
  Vec<T> accumulators[R][S][kGates];

  if (block.first && !call.resume) {
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        const Vec<T> start =
            call.bias ? load<T>(call.bias + ((slice + s) * kGates + g) * kWidth) : zero<T>();
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) accumulators[r][s][g] = start;
      }
    }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
      for (int s = 0; s < S; ++s) {
        const T* start = call.accumulators + (row + r) * call.accumulators_row_stride +
                         (slice + s) * call.accumulators_slice_stride;
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) accumulators[r][s][g] = load<T>(start + g * kWidth);
      }
    }
  }

  const T* a[R];
  if (block.x_begin < block.x_end) {
    const Index slice_stride = call.x.depth * kSpec.x.count * kWidth;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) a[r] = call.x.rows[row + r] + block.x_begin;
    multiply<kSpec.x.first, kSpec.x.count>(
        accumulators, a, 1,
        call.x.panel + slice * slice_stride + block.x_begin * kSpec.x.count * kWidth, slice_stride,
        block.x_end - block.x_begin);
  }
  if constexpr (kSpec.h.count > 0) {
    if (block.h_begin < block.h_end) {
      const Index slice_stride = call.h.depth * kSpec.h.count * kWidth;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) a[r] = call.h.rows[row + r] + block.h_begin;
      multiply<kSpec.h.first, kSpec.h.count>(
          accumulators, a, 1,
          call.h.panel + slice * slice_stride + block.h_begin * kSpec.h.count * kWidth,
          slice_stride, block.h_end - block.h_begin);
    }
  }

  if (block.last && call.finish) {
    // Copied out, so that the accumulators of the loop above need never have an address.
    Vec<T> done[R * S][kGates];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
      for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) done[r * S + s][g] = accumulators[r][s][g];
      }
    }
    finish_tile<Phase>(call, done, R, S, row, slice);
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
      for (int s = 0; s < S; ++s) {
        T* end = call.accumulators + (row + r) * call.accumulators_row_stride +
                 (slice + s) * call.accumulators_slice_stride;
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) store(end + g * kWidth, accumulators[r][s][g]);
      }
    }
  }
}

// Tiles over slices [begin, end) with S at a time, for `Rows` rows at a time.
template <class Phase, class T, int Rows, int Slices>
__attribute__((noinline)) void phase_sweep(const PhaseCall<T>& call, Index slice, Index slice_end,
                                           const DepthBlock& block) {
  while (slice < slice_end) {
    slice += with_halved_constant<Slices>(
        slice_end - slice, [&]<int S>() __attribute__((always_inline)) {
          for (Index row = 0; row < call.rows;) {
            const int rows = tile_rows<Rows>(call.rows - row);
            with_constant<Rows>(rows, [&]<int R>() __attribute__((always_inline)) {
              phase_tile<Phase, T, R, S>(call, row, slice, block);
            });
            row += rows;
          }
        });
  }
}

template <class Phase, class T>
void phase(const PhaseCall<T>& call) {
  constexpr PhaseSpec kSpec = Phase::spec;
  using Shape = TileShape<kSpec.gates.count>;
  if (call.rows == 1) {
    phase_sweep<Phase, T, 1, Shape::kSlicesOneRow>(call, call.slice_begin, call.slice_end,
                                                   {0, call.x.depth, 0, call.h.depth, true, true});
    return;
  }
  if (call.rows <= Shape::kRows) {
    phase_sweep<Phase, T, Shape::kRows, Shape::kSlices>(
        call, call.slice_begin, call.slice_end, {0, call.x.depth, 0, call.h.depth, true, true});
    return;
  }
  // All rows pass over one block of a panel before the next is touched.
  constexpr Index kBlock = kPanelBlockBytes / (Shape::kSlices * kSpec.gates.count * Vec<T>::width *
                                               static_cast<Index>(sizeof(T)));
  const Index depth = call.x.depth + call.h.depth;
  const Index blocks = depth > kBlock ? (depth + kBlock - 1) / kBlock : 1;
  for (Index slice = call.slice_begin; slice < call.slice_end; slice += Shape::kSlices) {
    const Index slice_end = min_of(slice + Shape::kSlices, call.slice_end);
    for (Index b = 0; b < blocks; ++b) {
      const Index begin = depth * b / blocks;
      const Index end = depth * (b + 1) / blocks;
      const Index x_depth = call.x.depth;
      phase_sweep<Phase, T, Shape::kRows, Shape::kSlices>(
          call, slice, slice_end,
          {min_of(begin, x_depth), min_of(end, x_depth), (begin > x_depth ? begin - x_depth : 0),
           (end > x_depth ? end - x_depth : 0), b == 0, b == blocks - 1});
    }
  }
}

// ---- Weight gradients: the depth is the rows of all steps, both operands are packed on the fly.

// Rows packed at once: a block of `right`'s panel is kPanelBlockBytes. Columns of `left` packed at
// once: 192 KiB of float, in L2.
constexpr Index kOuterDepth = 128;
constexpr Index kOuterLeft = 384;

template <class T>
struct OuterShape {
  static constexpr int kColumns = TileShape<1>::kSlices;  // vectors of `right`
  static constexpr int kRows = TileShape<1>::kRows;
  static constexpr Index kScratch = kOuterDepth * (kOuterLeft + kRows + kColumns * Vec<T>::width);
};

// R columns of `left` by S vectors of `right`; the last vector has `lanes` columns.
template <class T, int R, int S>
inline __attribute__((always_inline)) void outer_tile(const T* left, const T* right, Index depth,
                                                      Rows<T> result, Index row, Index column,
                                                      Index columns, bool resume) {
  constexpr int kWidth = Vec<T>::width;
  Vec<T> accumulators[R][S][1];
  const T* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = left + r;
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
      const int lanes = static_cast<int>(min_of(columns - column - s * kWidth, kWidth));
      accumulators[r][s][0] =
          resume ? load_partial<T>(result[row + r] + column + s * kWidth, lanes) : zero<T>();
    }
  }
  multiply<0, 1>(accumulators, a, R, right, depth * kWidth, depth);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
      const int lanes = static_cast<int>(min_of(columns - column - s * kWidth, kWidth));
      store_partial<T>(result[row + r] + column + s * kWidth, accumulators[r][s][0], lanes);
    }
  }
}

template <class T>
void outer(const OuterCall<T>& call) {
  constexpr int kWidth = Vec<T>::width;
  constexpr int kRows = OuterShape<T>::kRows;
  constexpr int kColumns = OuterShape<T>::kColumns;
  T* const packed_left = call.scratch;  // [tile][k][row of the tile]
  T* const packed_right = packed_left + kOuterDepth * (kOuterLeft + kRows);  // [slice][k][width]

  for (Index k0 = 0; k0 < call.depth || k0 == 0; k0 += kOuterDepth) {
    const Index depth = min_of(call.depth - k0, kOuterDepth);
    const bool resume = call.resume || k0 > 0;
    for (Index m0 = 0; m0 < call.left_columns; m0 += kOuterLeft) {
      const Index m1 = min_of(m0 + kOuterLeft, call.left_columns);
      T* to = packed_left;
      for (Index m = m0; m < m1;) {
        const int rows = tile_rows<kRows>(m1 - m);
        with_constant<kRows>(rows, [&]<int R>() __attribute__((always_inline)) {
          for (Index k = 0; k < depth; ++k)
            __builtin_memcpy(to + k * R, call.left[k0 + k] + m, R * sizeof(T));
        });
        to += depth * rows;
        m += rows;
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
                  outer_tile<T, R, S>(left, packed_right, depth, call.result, m, column,
                                      call.right_columns, resume);
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
    for (Index r = 0; r < count; ++r) total = total + load_partial<T>(rows[r] + j, lanes);
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

#endif  // TIDEGATE_KERNELS_TILE_H_
