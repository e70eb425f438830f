// The products of a phase: the loops over tiles, and each tile's sums. The blocking is decided in
// blocking.h; the arithmetic is in product.h.
//
// The order of summation (table.h) makes the bits independent of the blocking. Work is divided
// between blocks of sums; a division inside one (PhaseCall::partial_sums) spills the block's sum
// and reloads it.
#ifndef TIDEGATE_KERNELS_PHASE_H_
#define TIDEGATE_KERNELS_PHASE_H_

#include "kernels/accumulators.h"
#include "kernels/blocking.h"
#include "kernels/product.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// Where tile number `tile` of a block begins to prefetch the next block. Each tile prefetches
// `Prefetched` cache lines for every kUnrolled k's (grains), so that the first few tiles together
// prefetch all of them. Null: no lines are left for this tile.
template <class Weights, int Count, int Prefetched, class T, class Element>
inline const Element* prefetch_begin(const Element* next, Index tile) {
  constexpr Index kIteration = kUnrolled * Weights::grain * Count * Vec<T>::width;
  const Index share = tile * Prefetched * Weights::grain * kLine<Element>;
  return Prefetched > 0 && share < kIteration ? next + share : nullptr;
}

// Calls f.template operator()<n>(), where n is the number of lines that each tile prefetches:
// Lines, halved for each doubling of `tiles` while it exceeds 2.
template <int Lines, class F>
inline void with_prefetched_lines(Index tiles, F&& f) {
  if constexpr (Lines > 2) {
    if (tiles > 1) return with_prefetched_lines<(Lines + 1) / 2>(tiles / 2, f);
  }
  f.template operator()<Lines>();
}

// The k's for which a panel has room: whole grains.
template <class Weights>
constexpr Index padded_depth(Index depth) {
  return (depth + Weights::grain - 1) / Weights::grain * Weights::grain;
}

// Adds the k's [begin, end) of one operand's product, one block of sums after the other, to the
// accumulators of the gates that see the operand (`Active`). `begins`: the accumulators have no
// value yet, and begin at the bias.
template <class Weights, int Gates, Window Active, int Prefetched, int R, int S, class T>
inline __attribute__((always_inline)) void product_tile(const PhaseCall<T>& call,
                                                        const Product<T>& product, Index row,
                                                        Index slice, Index begin, Index end,
                                                        bool begins, Index tile) {
  using Element = typename Weights::Element;
  constexpr Index kStep = Active.count * Vec<T>::width;
  const Index slice_stride = padded_depth<Weights>(product.depth) * kStep;
  const Element* const panel = static_cast<const Element*>(product.panel) + slice * slice_stride;
  // The offset of the next block of the panel. After the last block of a slice, that is the first
  // block of the following slice, or, reversed, of the preceding slice.
  const bool slice_below = call.reversed && end == product.depth;
  const Index to_next = slice_below ? -slice_stride - begin * kStep : (end - begin) * kStep;
  const TileMemory<T> accumulators = accumulators_of(call, row, slice, Active.first);
  const auto partial_sums = [&] {
    return TileMemory<T>{call.partial_sums + row * call.accumulators_row_stride +
                             slice * call.partial_sums_slice_stride + Active.first * Vec<T>::width,
                         call.accumulators_row_stride, call.partial_sums_slice_stride};
  };
  for (Index k = begin; k < end;) {
    const Index block_end = sum_block_end(k, product.depth);
    const Index k_end = min_of(block_end, end);
    TileMemory<T, const T> start = {kZeros<T>, 0, 0};
    if (begins) start = biases_of<Gates>(call, slice, Active.first);
    if (k % kSumBlock != 0) {
      const TileMemory<T> spilled = partial_sums();
      start = {spilled.base, spilled.row_stride, spilled.slice_stride};
    }
    const bool complete = k_end == block_end;
    const TileMemory<T> to = complete ? accumulators : partial_sums();
    const T* a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) a[r] = product.rows[row + r] + k;
    sum_tile<Weights, Prefetched, R, S, Active.count>(
        a, panel + k * kStep, slice_stride, k_end - k,
        prefetch_begin<Weights, Active.count, Prefetched, T>(panel + k * kStep + to_next, tile),
        start, to, complete && !begins);
    begins = false;
    k = k_end;
  }
}

// One tile of a phase: R rows from `row` on by S slices from `slice` on. `tile` numbers the tiles
// of these slices in the block.
template <class Weights, PhaseShape Shape, int Prefetched, class T, int R, int S>
inline __attribute__((always_inline)) void phase_tile(const PhaseCall<T>& call, Index row,
                                                      Index slice, const DepthBlock& block,
                                                      Index tile) {
  static_assert(Shape.x.first == 0);
  const bool begins = block.first && !call.resume;
  const bool sees_x = block.x_begin < block.x_end;
  // Initialises the accumulators to which no product with x is added first.
  const auto begin_gates = [&]<int First, int End>() __attribute__((always_inline)) {
    const TileMemory<T> to = accumulators_of(call, row, slice, First);
    const TileMemory<T, const T> start = biases_of<Shape.gates>(call, slice, First);
    each_vector<R, S, End - First>([&](int r, int s, int g) __attribute__((always_inline)) {
      store(to.at(r, s, g), load<T>(start.at(r, s, g)));
    });
  };
  if (begins && !sees_x) begin_gates.template operator()<0, Shape.gates>();
  if constexpr (Shape.x.count == Shape.gates && Shape.h.count == Shape.gates) {
    // One copy of the product's code for both operands.
#pragma GCC unroll 1
    for (int operand = 0; operand < 2; ++operand) {
      const bool is_h = operand == 1;
      const Index begin = is_h ? block.h_begin : block.x_begin;
      const Index end = is_h ? block.h_end : block.x_end;
      if (begin < end) {
        product_tile<Weights, Shape.gates, Shape.x, Prefetched, R, S>(
            call, is_h ? call.h : call.x, row, slice, begin, end, begins && !is_h, tile);
      }
    }
  } else {
    if (sees_x) {
      if constexpr (Shape.x.count < Shape.gates) {
        if (begins) begin_gates.template operator()<Shape.x.end(), Shape.gates>();
      }
      product_tile<Weights, Shape.gates, Shape.x, Prefetched, R, S>(
          call, call.x, row, slice, block.x_begin, block.x_end, begins, tile);
    }
    if constexpr (Shape.h.count > 0) {
      if (block.h_begin < block.h_end) {
        product_tile<Weights, Shape.gates, Shape.h, Prefetched, R, S>(
            call, call.h, row, slice, block.h_begin, block.h_end, false, tile);
      }
    }
  }
}

// Runs the tiles of a block on the slices [slice_begin, slice_end), `Slices` at a time, and the
// rows [row_begin, row_end), `Rows` at a time. Each tile prefetches `Prefetched` lines of the next
// block for every kUnrolled k's.
template <class Weights, PhaseShape Shape, class T, int Rows, int Slices, int Prefetched>
__attribute__((noinline)) void phase_sweep(const PhaseCall<T>& call, Index row_begin, Index row_end,
                                           Index slice_begin, Index slice_end,
                                           const DepthBlock& block) {
  const bool reversed = call.reversed;
  take_pieces(
      slice_begin, slice_end, reversed, [&](Index begin, Index end) __attribute__((always_inline)) {
        return with_halved_constant<Slices>(
            end - begin, [&]<int S>() __attribute__((always_inline)) {
              const Index slice = reversed ? end - S : begin;
              Index tile = 0;
              for (Index row = row_begin; row < row_end; ++tile) {
                const int rows = tile_rows<Rows>(row_end - row);
                with_constant<Rows>(rows, [&]<int R>() __attribute__((always_inline)) {
                  phase_tile<Weights, Shape, Prefetched, T, R, S>(call, row, slice, block, tile);
                });
                row += rows;
              }
            });
      });
}

// Vectors of a buffer for the sums of a group: enough for 96 rows of the widest tile, and for all
// slices of a small batch.
constexpr Index kGroupVectors = 96 * 4;

// Computes the slices [begin, end) of products of several groups of k's. sum_blocks(call, depths)
// adds the blocks of a range of k's to the accumulators of the call that it is given.
template <PhaseShape Shape, class T, class SumBlocks>
__attribute__((noinline)) void sum_groups(const PhaseCall<T>& call, const DepthBlock& all,
                                          Index begin, Index end, const SumBlocks& sum_blocks) {
  constexpr Index kWidth = Vec<T>::width;
  alignas(vector_bytes) T sums[kGroupVectors * kWidth];
  const Index most_rows = kGroupVectors / ((end - begin) * Shape.gates);
  for (Index row = 0; row < call.rows; row += most_rows) {
    PhaseCall<T> whole = call;
    whole.rows = min_of(most_rows, call.rows - row);
    whole.x.rows = call.x.rows.from(row);
    whole.h.rows = call.h.rows.from(row);
    whole.accumulators = call.accumulators + row * call.accumulators_row_stride;
    if (call.partial_sums)
      whole.partial_sums = call.partial_sums + row * call.accumulators_row_stride;
    PhaseCall<T> group = whole;
    group.bias = nullptr;
    group.resume = false;
    group.accumulators = sums;
    group.accumulators_row_stride = Shape.gates * kWidth;
    group.accumulators_slice_stride = whole.rows * group.accumulators_row_stride;
    group.accumulators_first_slice = begin;
    const auto add_group = [&](Window window) {
      for (Index slice = begin; slice < end; ++slice) {
        for (Index r = 0; r < whole.rows; ++r) {
          const T* const from = accumulators_of(group, r, slice);
          T* const to = accumulators_of(whole, r, slice);
          for (Index i = window.first * kWidth; i < window.end() * kWidth; i += kWidth)
            store(to + i, load<T>(to + i) + load<T>(from + i));
        }
      }
    };
    // The first group of x, and that of h if x has no other, are summed in the accumulators
    // directly.
    const Index x_end = min_of(all.x_end, kSumGroup);
    Index h = all.h_begin;
    if (x_end == all.x_end) h = min_of(all.h_end, kSumGroup);
    sum_blocks(whole, DepthBlock{0, x_end, all.h_begin, h, true});
    for (Index k = x_end; k < all.x_end; k += kSumGroup) {
      sum_blocks(group, DepthBlock{k, min_of(k + kSumGroup, all.x_end), 0, 0, true});
      add_group(Shape.x);
    }
    if (h < min_of(all.h_end, kSumGroup)) {
      sum_blocks(whole, DepthBlock{0, 0, h, min_of(all.h_end, kSumGroup), false});
    }
    for (Index k = kSumGroup; k < all.h_end; k += kSumGroup) {
      sum_blocks(group, DepthBlock{0, 0, k, min_of(k + kSumGroup, all.h_end), true});
      add_group(Shape.h);
    }
  }
}

// The products of a call's phase. A block of a panel is multiplied by all rows before the next
// block is read.
template <class Weights, PhaseShape Shape, class T>
__attribute__((noinline)) void phase_products(const PhaseCall<T>& call) {
  constexpr int kGates = widest(Shape);
  using Tile = TileShape<kGates>;
  constexpr int kVectorBytes = Vec<T>::width * static_cast<int>(sizeof(typename Weights::Element));
  constexpr Tiles kTiles = {.gates = kGates,
                            .rows = Tile::kRows,
                            .slices = Tile::kSlices,
                            .slice_bytes = kGates * kVectorBytes,
                            .vector_is_a_line = vector_bytes == kLineBytes};
  static_assert(kSumBlock % Weights::grain == 0);
  constexpr auto one_row = phase_sweep<Weights, Shape, T, 1, Tile::kSlicesOneRow, 0>;
  constexpr auto many_rows = phase_sweep<Weights, Shape, T, Tile::kRows, Tile::kSlices, 0>;
  const bool reversed = call.reversed;
  const DepthBlock all = {0, call.x.end, call.h.begin, call.h.end, true};
  const bool groups = call.x.end > kSumGroup || call.h.end > kSumGroup;
  if (call.rows == 0) return;
  if (call.rows == 1) {  // a path with as little overhead as possible
    each_piece(call.slice_begin, call.slice_end, kFinishedVectors, reversed,
               [&](Index begin, Index end) {
                 const auto sum_blocks = [&](const PhaseCall<T>& part, const DepthBlock& block) {
                   one_row(part, 0, 1, begin, end, block);
                 };
                 if (groups) {
                   sum_groups<Shape>(call, all, begin, end, sum_blocks);
                 } else {
                   sum_blocks(call, all);
                 }
                 if (call.finish) call.finish(call, begin, end);
               });
    return;
  }

  const Index panel_bytes = (call.x.end * Shape.x.count + call.h.depth * Shape.h.count) *
                            (call.slice_end - call.slice_begin) * kVectorBytes;
  const Blocking cut =
      blocking_of(kTiles, call.rows, panel_bytes, all.x_end + all.h_end - all.h_begin);
  const auto products = [&](const PhaseCall<T>& part, Index begin, Index end,
                            const DepthBlock& block) {
    const auto run = [&](auto sweep, Index row, Index row_end) {
      sweep(part, row, row_end, begin, end, block);
    };
    if (cut.last_row_alone) {
      run(many_rows, 0, part.rows - 1);
      run(one_row, part.rows - 1, part.rows);
    } else if (cut.prefetch) {
      if constexpr (may_prefetch(kTiles)) {
        constexpr int kLines = kUnrolled * kTiles.slice_bytes / kLineBytes;
        const Index row_tiles = (call.rows + Tile::kRows - 1) / Tile::kRows;
        with_prefetched_lines<(kLines + kPrefetchedTiles - 1) / kPrefetchedTiles>(
            row_tiles / kPrefetchedTiles, [&]<int Lines>() {
              run(phase_sweep<Weights, Shape, T, Tile::kRows, Tile::kSlices, Lines>, 0, part.rows);
            });
      }
    } else {
      run(many_rows, 0, part.rows);
    }
  };
  const auto sum_slices = [&](Index begin, Index end) {
    const auto sum_blocks = [&](const PhaseCall<T>& part, const DepthBlock& depths) {
      DepthBlock block = before(depths);
      do {
        block = next_depth_block(depths, block, cut.depth);
        products(part, begin, end, block);
      } while (!is_last(depths, block));
    };
    if (groups) {
      sum_groups<Shape>(call, all, begin, end, sum_blocks);
    } else {
      sum_blocks(call, all);
    }
  };
  each_piece(call.slice_begin, call.slice_end, cut.finished_slices, reversed,
             [&](Index first, Index last) {
               each_piece(first, last, cut.slices, reversed, sum_slices);
               if (call.finish) call.finish(call, first, last);
             });
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_PHASE_H_
