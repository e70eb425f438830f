// How the product of a phase is cut: which rows, slices and k's pass together. Decisions on plain
// numbers; no SIMD, and no bit of a result depends on them.
#ifndef TIDEGATE_KERNELS_BLOCKING_H_
#define TIDEGATE_KERNELS_BLOCKING_H_

#include "kernels/table.h"

namespace tidegate {
namespace {

constexpr Index min_of(Index a, Index b) { return a < b ? a : b; }

// The tiles of a phase, and what they read.
struct Tiles {
  int gates;              // accumulators of a unit
  int rows;               // of a tile
  int slices;             // of a tile
  Index slice_bytes;      // of a panel: one k of one slice
  bool vector_is_a_line;  // of the cache
};

struct Blocking {
  Index finished_slices;  // slices whose cells run together, once all their products are complete
  Index slices;           // slices whose products pass over the same rows in turn
  Index depth;            // k's of a block of the panel
  bool prefetch;          // the next block while tiles pass over one
  bool last_row_alone;    // the last row is no part of a tile of several rows
};

// A block of a panel that stays cached while all rows pass over it: in L1 (half of 32 KiB), or,
// where a vector is a whole cache line, in L2, which delivers lines as fast as a tile's rows use
// them.
constexpr Index panel_block_bytes(const Tiles& tiles) {
  return (tiles.vector_is_a_line ? 128 : 16) * 1024;
}

// A panel of this size comes from beyond L2. While several tiles of rows pass over a block of it,
// the next block is prefetched. With fewer tiles the hardware prefetcher keeps pace, and more
// requests than the core can track would stall it; many rows hide the latency by themselves.
constexpr Index kPrefetchedPanelBytes = 6 * 1024 * 1024;
constexpr int kPrefetchedTiles = 4;
constexpr Index kPrefetchedRows = 96;

// The next blocks of several slices are not one stretch of memory.
constexpr bool may_prefetch(const Tiles& tiles) { return tiles.slices == 1; }

// For small batches, the cell runs on this many vectors of units at a time: enough to hide the
// latency of their activations, few enough for their accumulators to stay in L1.
constexpr Index kFinishedVectors = 48;

// Vectors of a k that a last row alone passes over: enough chains, and a block of sums of them
// stays in L1 after the tile of the other rows.
constexpr int kLastRowVectors = 8;

// With fewer chains multiply-adds wait for each other: 8 would do if the processor always issued
// the right one next.
constexpr int kEnoughChains = 10;

// For several rows; `panel_bytes` are those of all slices, and `depth` k's are added. Inlined, so
// that what follows from the tiles alone is computed by the compiler.
__attribute__((always_inline)) constexpr Blocking blocking_of(const Tiles& tiles, Index rows,
                                                              Index panel_bytes, Index depth) {
  const bool few_rows = rows <= tiles.rows;
  const Index row_tiles = (rows + tiles.rows - 1) / tiles.rows;
  Blocking cut = {};
  cut.prefetch = may_prefetch(tiles) && row_tiles >= kPrefetchedTiles && rows <= kPrefetchedRows &&
                 panel_bytes >= kPrefetchedPanelBytes;
  // A last row that would make another row's tile a small one passes over several slices by itself.
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
constexpr Index sum_block_end(Index k, Index depth) {
  static_assert((kSumBlock & (kSumBlock - 1)) == 0);
  return min_of((k & -kSumBlock) + kSumBlock, depth);
}

// The end of the k's from `begin` on that pass together, `most` at most: all up to `end`, or whole
// blocks of sums.
constexpr Index fitting_end(Index begin, Index end, Index most) {
  if (end - begin <= most) return end;
  const Index whole = (begin + most) - (begin + most) % kSumBlock;
  return whole > begin ? whole : begin;
}

// Part of the k's of x, then part of the k's of h: what all rows pass over before the next part.
struct DepthBlock {
  Index x_begin, x_end;
  Index h_begin, h_end;
  bool first;
};

// What lies before the first part of `all`.
constexpr DepthBlock before(const DepthBlock& all) {
  return {all.x_begin, all.x_begin, all.h_begin, all.h_begin, false};
}

// The part of `all` that follows `previous`, of `most` k's at most.
constexpr DepthBlock next_depth_block(const DepthBlock& all, const DepthBlock& previous,
                                      Index most) {
  DepthBlock block = {previous.x_end, 0, previous.h_end, 0, false};
  block.first = all.first && block.x_begin == all.x_begin && block.h_begin == all.h_begin;
  block.x_end = fitting_end(block.x_begin, all.x_end, most);
  const Index left = most - (block.x_end - block.x_begin);
  block.h_end =
      block.x_end == all.x_end ? fitting_end(block.h_begin, all.h_end, left) : block.h_begin;
  return block;
}

constexpr bool is_last(const DepthBlock& all, const DepthBlock& block) {
  return block.x_end >= all.x_end && block.h_end >= all.h_end;
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_BLOCKING_H_
