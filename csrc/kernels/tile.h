// The tile: products of a few rows with a few slices of panels, and the loops that cut a PhaseCall
// or an OuterCall into tiles and run the cell on what is complete. No formula of a cell is in here.
//
// One rule keeps the bits the same however the work is cut: an output element is one accumulator,
// and receives its products one by one, k ascending. Cutting k spills that accumulator and loads it
// again; it never adds partial sums.
#ifndef TIDEGATE_KERNELS_TILE_H_
#define TIDEGATE_KERNELS_TILE_H_

#include "kernels/activations.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// Accumulators held in registers. With R rows and C vectors of a panel, a k step needs the lesser
// of the two + 1 registers more, and its R * C fused multiply-adds need at least 8 independent
// chains (latency 4, two a cycle).
constexpr int kAccumulators = vector_registers * 3 / 4;

// A block of a panel that stays near while all rows pass over it: in L1 (half of 32 KiB), or, where
// a vector is a whole line of the cache, in L2, which brings lines no slower than a tile's rows use
// them up. The longer the block, the fewer times accumulators are spilled.
constexpr Index kPanelBlockBytes = (vector_bytes == 64 ? 128 : 16) * 1024;
// Of several slices side by side, for few tiles: shorter ones spill their accumulators too often.
constexpr Index kApartBlockBytes = 24 * 1024;

// A panel of this size comes from far. While some tiles of rows pass over a block of it, the next
// one is fetched. With fewer tiles the processor's own prefetching keeps pace, and more requests
// than it can hold make it wait; many rows hide the wait by themselves.
constexpr Index kFetchedPanelBytes = 6 * 1024 * 1024;
constexpr int kFetchedTiles = 4;
constexpr Index kFetchedRows = 96;

// With few rows, so many vectors of units are finished at once: enough to fill the latency of their
// activations, few enough for their accumulators to stay in L1.
constexpr Index kFinishedVectors = 48;

constexpr Index min_of(Index a, Index b) { return a < b ? a : b; }

// Where a vector of units begins in the rows of a call.
template <class T>
struct Place {
  Index row;
  Index unit;
  int lanes;  // real units of the vector
};

// With fewer chains multiply-adds wait for each other: 8 would do if the processor always took the
// right one next.
constexpr int kEnoughChains = 10;

// How a tile of `Gates` accumulators a unit is shaped: many rows and few slices, or one row and
// many slices.
template <int Gates>
struct TileShape {
  static constexpr int kSlices = Gates >= 3 ? 1 : 4 / Gates;
  static constexpr int kRows = kAccumulators / (kSlices * Gates);
  static constexpr int kSlicesOneRow = Gates >= 3 ? 12 / Gates : 8 / Gates;
};

// The most gates that see one operand: a tile's accumulators of a unit.
constexpr int widest(const PhaseShape& shape) {
  return shape.x.count > shape.h.count ? shape.x.count : shape.h.count;
}

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

// Rows of the next tile: full tiles, but the last two share what is left, as small ones have too
// few chains, and too few rows for each weight that is loaded.
template <int Max>
inline int tile_rows(Index left) {
  const bool last_two = left > Max && left < 2 * Max;
  return static_cast<int>(last_two ? (left + 1) / 2 : min_of(left, Max));
}

// accumulators[r][s][g] += a[r] * panel[s][g], for one k. In registers stays the side that needs
// fewer of them.
template <class T, int R, int S, int Count>
inline __attribute__((always_inline)) void multiply_step(Vec<T> (&accumulators)[R][S][Count],
                                                         const T* const (&a)[R], Index a_offset,
                                                         const T* panel, Index slice_stride) {
  const auto weight = [&](int s, int g) __attribute__((always_inline)) {
    return load<T>(panel + s * slice_stride + g * Vec<T>::width);
  };
  if constexpr (R <= S * Count) {
    Vec<T> x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = broadcast<T>(a[r][a_offset]);
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
      for (int g = 0; g < Count; ++g) {
        const Vec<T> w = weight(s, g);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) accumulators[r][s][g] = fma(x[r], w, accumulators[r][s][g]);
      }
    }
  } else {
    Vec<T> w[S][Count];
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
      for (int g = 0; g < Count; ++g) w[s][g] = weight(s, g);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> x = broadcast<T>(a[r][a_offset]);
#pragma GCC unroll 12
      for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
        for (int g = 0; g < Count; ++g) {
          accumulators[r][s][g] = fma(x, w[s][g], accumulators[r][s][g]);
        }
      }
    }
  }
}

constexpr int kUnrolled = 4;    // k steps
constexpr int kLineBytes = 64;  // of the cache
template <class T>
constexpr int kLine = kLineBytes / static_cast<int>(sizeof(T));

// The same for all k, ascending. Large tiles take four at a time, so that the loop's own
// instructions do not take the fused multiply-adds' places where another hardware thread shares the
// core's front end; small ones wait for memory or for their own chains. With each four, so many
// lines of the cache from `ahead` on are fetched, if it is given.
template <int Fetched = 0, class T, int R, int S, int Count>
inline __attribute__((always_inline)) void multiply(Vec<T> (&accumulators)[R][S][Count],
                                                    const T* const (&a)[R], Index k_stride,
                                                    const T* panel, Index slice_stride, Index depth,
                                                    const T* ahead = nullptr) {
  constexpr int kUnroll = R > 1 && R * S * Count >= 8 ? kUnrolled : 1;
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
      multiply_step(accumulators, row, u * k_stride, panel + u * kStep, slice_stride);
    }
    if (Fetched > 0 && kUnroll == kUnrolled && ahead) {
#pragma GCC unroll 4
      for (int i = 0; i < Fetched; ++i) __builtin_prefetch(ahead + i * kLine<T>);
      ahead += kUnroll * kStep;
    }
    advance(kUnroll);
  }
  for (; k < depth; ++k) {
    multiply_step(accumulators, row, 0, panel, slice_stride);
    advance(1);
  }
}

// Some k of x, then some k of h.
struct DepthBlock {
  Index x_begin, x_end;
  Index h_begin, h_end;
  bool first;
};

// What tile number `tile` of those that pass over a block is to fetch of the next one: so many
// lines of every kUnrolled k's, so that the first few tiles together fetch all. Null: there is
// nothing left for it.
template <int Count, int Fetched, class T>
inline const T* share_ahead(const T* next, Index tile) {
  constexpr Index kStep = Count * Vec<T>::width;
  const Index share = tile * Fetched * kLine<T>;
  return Fetched > 0 && share < kUnrolled * kStep ? next + share : nullptr;
}

// Calls f.template operator()<n>() for the share n of each tile, where the first of `tiles` are to
// fetch Lines together: halved as their number doubles, but not below two.
template <int Lines, class F>
inline void with_share(Index tiles, F&& f) {
  if constexpr (Lines > 2) {
    if (tiles > 1) return with_share<(Lines + 1) / 2>(tiles / 2, f);
  }
  f.template operator()<Lines>();
}

// The accumulators of one row and slice, in memory: `[gate][width]`.
template <class T>
class Accumulators {
 public:
  explicit Accumulators(T* gates) : gates_(gates) {}

  Vec<T> operator[](int gate) const { return load<T>(gates_ + gate * Vec<T>::width); }
  void set(int gate, Vec<T> value) const { store(gates_ + gate * Vec<T>::width, value); }

 private:
  T* gates_;
};

// The cell, for all rows and slices [slice, slice_end), once their accumulators are complete. Two
// loops, as one would be a long chain of activations whose latency the processor cannot fill with
// the next vector's; and over many rows at once, not tile by tile, for the same reason.
template <class Phase, class T>
__attribute__((noinline)) void finish(const PhaseCall<T>& given, Index slice, Index slice_end) {
  const PhaseCall<T> call = given;  // out of reach of what is stored: it stays in registers
  const auto each = [&](auto&& cell) __attribute__((always_inline)) {
    for (Index s = slice; s < slice_end; ++s) {
      const Index unit = s * Vec<T>::width;
      const int lanes = static_cast<int>(min_of(call.units - unit, Vec<T>::width));
      T* accumulators = call.accumulators + s * call.accumulators_slice_stride;
      for (Index row = 0; row < call.rows; ++row) {
        cell(Accumulators<T>(accumulators), Place<T>{row, unit, lanes});
        accumulators += call.accumulators_row_stride;
      }
    }
  };
  each([&](Accumulators<T> a, Place<T> at)
           __attribute__((always_inline)) { Phase::template gates<T>(call, a, at); });
  each([&](Accumulators<T> a, Place<T> at)
           __attribute__((always_inline)) { Phase::template state<T>(call, a, at); });
}

// A tile's accumulators of the gates of a window, between memory and registers. They begin at the
// bias.
template <int Gates, Window Of, class T, int R, int S>
inline __attribute__((always_inline)) void begin_tile(const PhaseCall<T>& call, Index slice,
                                                      Vec<T> (&accumulators)[R][S][Of.count]) {
#pragma GCC unroll 12
  for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
    for (int g = 0; g < Of.count; ++g) {
      const Index gate = (slice + s) * Gates + Of.first + g;
      const Vec<T> start = call.bias ? load<T>(call.bias + gate * Vec<T>::width) : zero<T>();
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) accumulators[r][s][g] = start;
    }
  }
}

// f(memory, accumulator) for each of them.
template <Window Of, class T, int R, int S, class F>
inline __attribute__((always_inline)) void each_accumulator(const PhaseCall<T>& call, Index row,
                                                            Index slice,
                                                            Vec<T> (&accumulators)[R][S][Of.count],
                                                            F&& f) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
      T* memory = call.accumulators + (row + r) * call.accumulators_row_stride +
                  (slice + s) * call.accumulators_slice_stride;
#pragma GCC unroll 4
      for (int g = 0; g < Of.count; ++g)
        f(memory + (Of.first + g) * Vec<T>::width, accumulators[r][s][g]);
    }
  }
}
template <Window Of, class T, int R, int S>
inline __attribute__((always_inline)) void load_tile(const PhaseCall<T>& call, Index row,
                                                     Index slice,
                                                     Vec<T> (&accumulators)[R][S][Of.count]) {
  each_accumulator<Of>(call, row, slice, accumulators,
                       [](const T* memory, Vec<T>& accumulator)
                           __attribute__((always_inline)) { accumulator = load<T>(memory); });
}
template <Window Of, class T, int R, int S>
inline __attribute__((always_inline)) void store_tile(const PhaseCall<T>& call, Index row,
                                                      Index slice,
                                                      Vec<T> (&accumulators)[R][S][Of.count]) {
  each_accumulator<Of>(call, row, slice, accumulators,
                       [](T* memory, Vec<T>& accumulator)
                           __attribute__((always_inline)) { store(memory, accumulator); });
}

// The k's [begin, end) of one operand's product, into a tile's accumulators of the gates that see
// it.
template <int Fetched, class T, int R, int S, int Count>
inline __attribute__((always_inline)) void product_tile(const Product<T>& product, Index row,
                                                        Index slice, Index begin, Index end,
                                                        bool descending, Index tile,
                                                        Vec<T> (&accumulators)[R][S][Count]) {
  constexpr Index kStep = Count * Vec<T>::width;
  const Index slice_stride = product.depth * kStep;
  const T* panel = product.panel + slice * slice_stride + begin * kStep;
  const T* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) a[r] = product.rows[row + r] + begin;
  // Behind a slice's last block lies the first one of the slice above.
  const bool turns_back = descending && end == product.depth;
  const T* next =
      turns_back ? product.panel + (slice - 1) * slice_stride : panel + (end - begin) * kStep;
  multiply<Fetched>(accumulators, a, 1, panel, slice_stride, end - begin,
                    share_ahead<Count, Fetched>(next, tile));
}

// One tile of a phase: R rows from `row` on, S slices from `slice` on; number `tile` of those of a
// block. Where x and h are seen by different gates, their accumulators take turns in the registers.
template <PhaseShape Shape, int Fetched, class T, int R, int S>
inline __attribute__((always_inline)) void phase_tile(const PhaseCall<T>& call, Index row,
                                                      Index slice, const DepthBlock& block,
                                                      Index tile) {
  const auto product = [&]<int Count>(
                           const Product<T>& of, Index begin, Index end,
                           Vec<T>(&accumulators)[R][S][Count]) __attribute__((always_inline)) {
    product_tile<Fetched>(of, row, slice, begin, end, call.descending, tile, accumulators);
  };
  constexpr Window kAll = {0, Shape.gates};
  constexpr bool kOneWindow = Shape.x.count == Shape.gates;
  const bool begins = block.first && !call.resume;
  const bool sees_x = block.x_begin < block.x_end;
  const bool sees_h = Shape.h.count > 0 && block.h_begin < block.h_end;
  if constexpr (kOneWindow) {
    Vec<T> accumulators[R][S][Shape.gates];
    if (begins) {
      begin_tile<Shape.gates, kAll>(call, slice, accumulators);
    } else {
      load_tile<kAll>(call, row, slice, accumulators);
    }
    if (sees_x) product(call.x, block.x_begin, block.x_end, accumulators);
    if constexpr (Shape.h.count > 0) {
      if (sees_h) product(call.h, block.h_begin, block.h_end, accumulators);
    }
    store_tile<kAll>(call, row, slice, accumulators);
  } else {
    static_assert(Shape.x.first == 0 && Shape.h.end() == Shape.gates);
    if (begins) {
      constexpr Window kUnseen = {Shape.x.end(), Shape.gates - Shape.x.end()};
      Vec<T> unseen[R][S][kUnseen.count];
      begin_tile<Shape.gates, kUnseen>(call, slice, unseen);
      store_tile<kUnseen>(call, row, slice, unseen);
    }
    if (begins || sees_x) {
      Vec<T> accumulators[R][S][Shape.x.count];
      if (begins) {
        begin_tile<Shape.gates, Shape.x>(call, slice, accumulators);
      } else {
        load_tile<Shape.x>(call, row, slice, accumulators);
      }
      if (sees_x) product(call.x, block.x_begin, block.x_end, accumulators);
      store_tile<Shape.x>(call, row, slice, accumulators);
    }
    if (sees_h) {
      Vec<T> accumulators[R][S][Shape.h.count];
      load_tile<Shape.h>(call, row, slice, accumulators);
      product(call.h, block.h_begin, block.h_end, accumulators);
      store_tile<Shape.h>(call, row, slice, accumulators);
    }
  }
}

// f(begin, end) takes a piece off what is left, from its beginning or, descending, its end, and
// returns the size.
template <class F>
inline __attribute__((always_inline)) void in_turn(Index begin, Index end, bool descending, F&& f) {
  while (begin < end) {
    const Index taken = f(begin, end);
    (descending ? end : begin) += descending ? -taken : taken;
  }
}
// f(begin, end) for each piece of that size.
template <class F>
inline __attribute__((always_inline)) void each_piece(Index begin, Index end, Index size,
                                                      bool descending, F&& f) {
  in_turn(begin, end, descending, [&](Index from, Index to) __attribute__((always_inline)) {
    const Index taken = min_of(size, to - from);
    const Index first = descending ? to - taken : from;
    f(first, first + taken);
    return taken;
  });
}

// Tiles over slices [begin, end) with `Slices` at a time, for rows [row, row_end) with `Rows` at a
// time. With Fetched, the next block is fetched meanwhile.
template <PhaseShape Shape, class T, int Rows, int Slices, int Fetched>
__attribute__((noinline)) void phase_sweep(const PhaseCall<T>& call, Index row_begin, Index row_end,
                                           Index slice_begin, Index slice_end,
                                           const DepthBlock& block) {
  const bool descending = call.descending;
  in_turn(slice_begin, slice_end, descending,
          [&](Index begin, Index end) __attribute__((always_inline)) {
            return with_halved_constant<Slices>(
                end - begin, [&]<int S>() __attribute__((always_inline)) {
                  const Index slice = descending ? end - S : begin;
                  Index tile = 0;
                  for (Index row = row_begin; row < row_end; ++tile) {
                    const int rows = tile_rows<Rows>(row_end - row);
                    with_constant<Rows>(rows, [&]<int R>() __attribute__((always_inline)) {
                      phase_tile<Shape, Fetched, T, R, S>(call, row, slice, block, tile);
                    });
                    row += rows;
                  }
                });
          });
}

// All rows pass over one block of a panel before the next is touched. `finish` may be null.
template <PhaseShape Shape, class T>
__attribute__((noinline)) void phase_products(const PhaseCall<T>& call,
                                              void (*finish)(const PhaseCall<T>&, Index, Index)) {
  constexpr int kGates = widest(Shape);
  using Tile = TileShape<kGates>;
  constexpr Index kSliceBytes = kGates * vector_bytes;  // of a k
  constexpr auto one_row = phase_sweep<Shape, T, 1, Tile::kSlicesOneRow, 0>;
  constexpr auto many_rows = phase_sweep<Shape, T, Tile::kRows, Tile::kSlices, 0>;
  const bool descending = call.descending;
  const Index h_end = call.h.depth - call.h_left;
  if (call.rows == 0) return;
  if (call.rows == 1) {  // where all that can be left out counts
    each_piece(call.slice_begin, call.slice_end, kFinishedVectors, descending,
               [&](Index begin, Index end) {
                 one_row(call, 0, 1, begin, end, {0, call.x.depth, call.h_begin, h_end, true});
                 if (finish) finish(call, begin, end);
               });
    return;
  }

  const bool few_rows = call.rows <= Tile::kRows;
  const Index panel_bytes = (call.x.depth * Shape.x.count + call.h.depth * Shape.h.count) *
                            (call.slice_end - call.slice_begin) * vector_bytes;
  // With several slices side by side the next block is not one stretch of memory.
  constexpr bool kOneStretch = Tile::kSlices == 1;
  const Index tiles = (call.rows + Tile::kRows - 1) / Tile::kRows;
  const bool fetch = kOneStretch && tiles >= kFetchedTiles && call.rows <= kFetchedRows &&
                     panel_bytes >= kFetchedPanelBytes;

  // A last row that would make another's tile a small one may go over several slices by itself.
  constexpr bool kSmallTiles = (Tile::kRows + 1) / 2 * kGates * Tile::kSlices < kEnoughChains;
  const bool apart =
      kSmallTiles && !fetch && call.rows % Tile::kRows == 1 && call.rows <= 2 * Tile::kRows + 1;

  // Slices that are finished together, and those of them that share a block of L1.
  const Index finished = few_rows ? kFinishedVectors / call.rows
                         : apart  ? 2 * Tile::kSlicesOneRow
                                  : Tile::kSlices;
  const Index slices = apart ? Tile::kSlicesOneRow : finished;
  const Index depth = call.x.depth + h_end - call.h_begin;
  const Index most_depth = apart ? kApartBlockBytes / (Tile::kSlicesOneRow * kSliceBytes)
                                 : kPanelBlockBytes / (Tile::kSlices * kSliceBytes);
  const Index blocks = few_rows || depth <= most_depth ? 1 : (depth + most_depth - 1) / most_depth;

  const auto products = [&](Index begin, Index end, const DepthBlock& block) {
    const auto run = [&](auto sweep, Index row, Index row_end) {
      sweep(call, row, row_end, begin, end, block);
    };
    if (apart) {
      run(many_rows, 0, call.rows - 1);
      run(one_row, call.rows - 1, call.rows);
    } else if (fetch) {
      if constexpr (kOneStretch) {
        constexpr int kLines = kUnrolled * kSliceBytes / kLineBytes;
        with_share<(kLines + kFetchedTiles - 1) / kFetchedTiles>(
            tiles / kFetchedTiles, [&]<int Lines>() {
              run(phase_sweep<Shape, T, Tile::kRows, Tile::kSlices, Lines>, 0, call.rows);
            });
      }
    } else {
      run(many_rows, 0, call.rows);
    }
  };
  each_piece(call.slice_begin, call.slice_end, finished, descending, [&](Index first, Index last) {
    each_piece(first, last, slices, descending, [&](Index begin, Index end) {
      const Index x_depth = call.x.depth;
      const auto of_h = [&](Index k) { return call.h_begin + (k > x_depth ? k - x_depth : 0); };
      for (Index b = 0; b < blocks; ++b) {
        const Index from = depth * b / blocks;
        const Index to = depth * (b + 1) / blocks;
        products(begin, end,
                 {min_of(from, x_depth), min_of(to, x_depth), of_h(from), of_h(to), b == 0});
      }
    });
    if (finish) finish(call, first, last);
  });
}

// A phase of `Cell`, which is a template over where its activations come from.
template <template <class> class Cell, class T>
void phase(const PhaseCall<T>& call) {
  using Standard = Cell<StandardActivations>;
  phase_products<shape_of(Standard::spec), T>(call, !call.finish ? nullptr
                                                    : call.activations
                                                        ? finish<Cell<ChosenActivations>, T>
                                                        : finish<Standard, T>);
}

// ---- Weight gradients: the depth is the rows of all steps, both operands are packed on the fly.

// Rows packed at once: a block of `right`'s panel is 16 or 32 KiB. Columns of `left` packed at
// once: 192 KiB of float, in L2.
constexpr Index kOuterDepth = 128;
constexpr Index kOuterLeft = 384;

template <class T>
struct OuterShape {
  static constexpr int kColumns = TileShape<1>::kSlices;  // vectors of `right`
  static constexpr int kRows = TileShape<1>::kRows;
  static constexpr Index kScratch = kOuterDepth * (kOuterLeft + kRows + kColumns * Vec<T>::width);
};

// Packs rows of `left` for `Tiles` tiles of R columns each: [tile][k][row of the tile].
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

// R columns of `left` by S vectors of `right`, both packed; the last vector has `last_lanes`
// columns of `result`. The next tile's part of it, up to row `rows_end`, is brought near meanwhile.
template <class T, int R, int S>
inline __attribute__((always_inline)) void outer_tile(const T* left, const T* right, Index depth,
                                                      Rows<T> result, Index row, Index column,
                                                      int last_lanes, bool resume, Index rows_end) {
  constexpr int kWidth = Vec<T>::width;
  constexpr int kLine = 64 / static_cast<int>(sizeof(T));
  for (Index next = row + R; next < min_of(row + R + OuterShape<T>::kRows, rows_end); ++next) {
    for (int i = 0; i < S * kWidth; i += kLine) __builtin_prefetch(result[next] + column + i, 1);
  }
  Vec<T> accumulators[R][S][1];
  const T* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = left + r;
    const T* start = result[row + r] + column;
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
      accumulators[r][s][0] = !resume     ? zero<T>()
                              : s + 1 < S ? load<T>(start + s * kWidth)
                                          : load_partial<T>(start + s * kWidth, last_lanes);
    }
  }
  multiply(accumulators, a, R, right, depth * kWidth, depth);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    T* end = result[row + r] + column;
#pragma GCC unroll 12
    for (int s = 0; s + 1 < S; ++s) store(end + s * kWidth, accumulators[r][s][0]);
    store_partial<T>(end + (S - 1) * kWidth, accumulators[r][S - 1][0], last_lanes);
  }
}

template <class T>
void outer(const OuterCall<T>& call) {
  constexpr int kWidth = Vec<T>::width;
  constexpr int kRows = OuterShape<T>::kRows;
  constexpr int kColumns = OuterShape<T>::kColumns;
  constexpr int kTilesPacked = 4;
  T* const packed_left = call.scratch;  // [tile][k][row of the tile]
  T* const packed_right = packed_left + kOuterDepth * (kOuterLeft + kRows);  // [slice][k][width]

  for (Index k0 = 0; k0 < call.depth || k0 == 0; k0 += kOuterDepth) {
    const Index depth = min_of(call.depth - k0, kOuterDepth);
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
