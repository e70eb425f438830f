// Blocking of a phase's product: which rows, slices and k's are processed together. Decisions on
// plain numbers; no SIMD, and no bit of a result depends on them.
#ifndef TIDEGATE_KERNELS_BLOCKING_H_
#define TIDEGATE_KERNELS_BLOCKING_H_

#include "kernels/table.h"

namespace tidegate {
namespace {

constexpr Index min_of(Index a, Index b) { return a < b ? a : b; }

// The greatest number of gates that see one operand: the accumulators per unit in a tile.
constexpr int widest(const PhaseShape& shape) {
  return shape.x.count > shape.h.count ? shape.x.count : shape.h.count;
}

// Calls f(begin, end) until [begin, end) is empty. f processes a piece at its beginning, or, if
// reversed, at its end, and returns the size of the piece.
template <class F>
inline __attribute__((always_inline)) void take_pieces(Index begin, Index end, bool reversed,
                                                       F&& f) {
  while (begin < end) {
    const Index taken = f(begin, end);
    (reversed ? end : begin) += reversed ? -taken : taken;
  }
}
// Calls f(begin, end) for each piece of `size`; the last one may be smaller.
template <class F>
inline __attribute__((always_inline)) void each_piece(Index begin, Index end, Index size,
                                                      bool reversed, F&& f) {
  take_pieces(begin, end, reversed, [&](Index from, Index to) __attribute__((always_inline)) {
    const Index taken = min_of(size, to - from);
    const Index first = reversed ? to - taken : from;
    f(first, first + taken);
    return taken;
  });
}

// The tiles of a phase, and the panel that they read.
struct Tiles {
  int gates;              // accumulators per unit
  int rows;               // rows of a tile
  int slices;             // slices of a tile
  Index slice_bytes;      // bytes in the panel of one k of one slice
  bool vector_is_a_line;  // whether a vector is a whole cache line
};

struct Blocking {
  Index finished_slices;  // slices on which the cell runs at a time, after all their products
  Index slices;           // slices that are multiplied by the same rows in turn
  Index depth;            // k's of a block of the panel
  bool prefetch;          // whether tiles prefetch the next block
  bool last_row_alone;    // whether the last row is multiplied separately, in tiles of one row
};

// Bytes of a block of a panel that stays cached while it is multiplied by all rows: in L1 (half of
// 32 KiB), or, where a vector is a whole cache line, in L2, which delivers lines as fast as a
// tile's rows use them.
constexpr Index panel_block_bytes(const Tiles& tiles) {
  return (tiles.vector_is_a_line ? 128 : 16) * 1024;
}

// A panel of this size is read from beyond L2. The next block is prefetched while several tiles of
// rows multiply the current one. With fewer tiles the hardware prefetcher keeps pace, and more
// requests than the core can track would stall it; with many rows the arithmetic hides the latency.
constexpr Index kPrefetchedPanelBytes = 6 * 1024 * 1024;
constexpr int kPrefetchedTiles = 4;
constexpr Index kPrefetchedRows = 96;

// The next blocks of several slices are not contiguous in memory.
constexpr bool may_prefetch(const Tiles& tiles) { return tiles.slices == 1; }

// For small batches, the cell runs on this many vectors of units at a time: enough to hide the
// latency of their activations, few enough for their accumulators to stay in L1.
constexpr Index kFinishedVectors = 48;

// Vectors per k by which a separate last row is multiplied: enough independent chains, and a block
// of kSumBlock k's of them stays in L1 after the tile of the other rows.
constexpr int kLastRowVectors = 8;

// With fewer chains, multiply-adds wait for each other: 8 would suffice if the processor always
// issued the right one next.
constexpr int kEnoughChains = 10;

// The blocking for several rows. `panel_bytes` are the bytes of all slices; `depth` is the number
// of k's. Inlined, so that the compiler computes all that depends on the tiles alone.
__attribute__((always_inline)) constexpr Blocking blocking_of(const Tiles& tiles, Index rows,
                                                              Index panel_bytes, Index depth) {
  const bool few_rows = rows <= tiles.rows;
  const Index row_tiles = (rows + tiles.rows - 1) / tiles.rows;
  Blocking cut = {};
  cut.prefetch = may_prefetch(tiles) && row_tiles >= kPrefetchedTiles && rows <= kPrefetchedRows &&
                 panel_bytes >= kPrefetchedPanelBytes;
  // If a single last row, sharing the remaining rows with the tile before, would make tiles too
  // small, it is multiplied separately, by several slices at a time.
  const bool small_tiles = (tiles.rows + 1) / 2 * tiles.gates * tiles.slices < kEnoughChains;
  cut.last_row_alone = small_tiles && !few_rows && !cut.prefetch && rows % tiles.rows == 1 &&
                       rows <= 2 * tiles.rows + 1;
  if (few_rows) {
    cut.finished_slices = cut.slices = kFinishedVectors / rows;
    cut.depth = depth;
  } else if (cut.last_row_alone) {
    cut.slices = kLastRowVectors / tiles.gates;
    cut.finished_slices = 2 * cut.slices;
    cut.depth = kSumBlock;
  } else {
    cut.finished_slices = cut.slices = tiles.slices;
    const Index fitting = panel_block_bytes(tiles) / (tiles.slices * tiles.slice_bytes);
    cut.depth = fitting < kSumBlock ? kSumBlock : fitting;
  }
  return cut;
}

// The end of the block of sums that contains k.
__attribute__((always_inline)) constexpr Index sum_block_end(Index k, Index depth) {
  static_assert((kSumBlock & (kSumBlock - 1)) == 0);
  return min_of((k & -kSumBlock) + kSumBlock, depth);
}

// The end of the k's from `begin` on that one block takes, `most` at most: `end`, or the end of a
// block of sums.
__attribute__((always_inline)) constexpr Index fitting_end(Index begin, Index end, Index most) {
  if (end - begin <= most) return end;
  const Index whole = (begin + most) - (begin + most) % kSumBlock;
  return whole > begin ? whole : begin;
}

// A range of the k's of x, then a range of the k's of h. All rows are multiplied by it before the
// next block.
struct DepthBlock {
  Index x_begin, x_end;
  Index h_begin, h_end;
  bool first;
};

// The empty block before the first one of `all`.
__attribute__((always_inline)) constexpr DepthBlock before(const DepthBlock& all) {
  return {all.x_begin, all.x_begin, all.h_begin, all.h_begin, false};
}

// The block of `all` that follows `previous`, of at most `most` k's.
__attribute__((always_inline)) constexpr DepthBlock next_depth_block(const DepthBlock& all,
                                                                     const DepthBlock& previous,
                                                                     Index most) {
  DepthBlock block = {previous.x_end, 0, previous.h_end, 0, false};
  block.first = all.first && block.x_begin == all.x_begin && block.h_begin == all.h_begin;
  block.x_end = fitting_end(block.x_begin, all.x_end, most);
  const Index left = most - (block.x_end - block.x_begin);
  block.h_end =
      block.x_end == all.x_end ? fitting_end(block.h_begin, all.h_end, left) : block.h_begin;
  return block;
}

__attribute__((always_inline)) constexpr bool is_last(const DepthBlock& all,
                                                      const DepthBlock& block) {
  return block.x_end >= all.x_end && block.h_end >= all.h_end;
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_BLOCKING_H_
