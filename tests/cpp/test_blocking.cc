// The blocking of a phase's product: all slices, rows and k's are covered once, blocks of sums are
// whole, and each decision is made in the intended cases.
#include "kernels/blocking.h"

#include <initializer_list>

#include "check.h"

namespace tidegate {
namespace {

// The tiles of several ISAs: gates, rows, slices, bytes of a slice's k.
constexpr Tiles kAvx512Lstm = {4, 6, 1, 256, true};
constexpr Tiles kAvx2Lstm = {4, 3, 1, 128, false};
constexpr Tiles kAvx2Linear = {1, 3, 4, 32, false};
constexpr Tiles kAvx512Linear = {1, 6, 4, 64, true};

// Bytes of the panel of H units of an LSTM, in float.
constexpr Index lstm_bytes(Index hidden) { return 4 * hidden * hidden * 4; }

}  // namespace

TEST(few_rows_take_all_depth_and_finish_many_slices) {
  for (const Tiles& tiles : {kAvx512Lstm, kAvx2Lstm, kAvx2Linear, kAvx512Linear}) {
    for (Index rows = 2; rows <= tiles.rows; ++rows) {
      const Blocking cut = blocking_of(tiles, rows, lstm_bytes(1024), 5000);
      CHECK(cut.depth == 5000);
      CHECK(cut.finished_slices == kFinishedVectors / rows);
      CHECK(cut.slices == cut.finished_slices);
      CHECK(!cut.prefetch && !cut.last_row_alone);
    }
  }
}

TEST(many_rows_pass_over_blocks_that_stay_cached) {
  // 128 KiB of 256 bytes; 16 KiB of 128 bytes; 16 KiB of 4 * 32 bytes.
  CHECK(blocking_of(kAvx512Lstm, 64, 0, 5000).depth == 512);
  CHECK(blocking_of(kAvx2Lstm, 64, 0, 5000).depth == 128);
  CHECK(blocking_of(kAvx2Linear, 64, 0, 5000).depth == 128);
  CHECK(blocking_of(kAvx512Linear, 64, 0, 5000).depth == 512);
  // Never less than a block of sums.
  constexpr Tiles kWide = {4, 3, 1, 1024, false};
  CHECK(blocking_of(kWide, 64, 0, 5000).depth == kSumBlock);
  CHECK(blocking_of(kAvx2Linear, 64, 0, 5000).slices == 4);
}

TEST(far_panels_are_prefetched_for_some_tiles_of_rows) {
  constexpr Index far = kPrefetchedPanelBytes;
  CHECK(!blocking_of(kAvx512Lstm, 18, far, 500).prefetch);  // 3 tiles
  CHECK(blocking_of(kAvx512Lstm, 19, far, 500).prefetch);   // 4 tiles
  CHECK(blocking_of(kAvx512Lstm, 96, far, 500).prefetch);
  CHECK(!blocking_of(kAvx512Lstm, 97, far, 500).prefetch);
  CHECK(!blocking_of(kAvx512Lstm, 64, far - 1, 500).prefetch);
  CHECK(!blocking_of(kAvx512Linear, 64, far, 500).prefetch);  // not contiguous
}

TEST(a_last_row_goes_alone_where_tiles_would_be_small) {
  // Two tiles of 2 rows and 4 gates have 8 chains: fewer than kEnoughChains.
  for (const Index rows : {4, 7}) {
    const Blocking cut = blocking_of(kAvx2Lstm, rows, 0, 500);
    CHECK(cut.last_row_alone);
    CHECK(cut.slices == kLastRowVectors / 4);
    CHECK(cut.finished_slices == 2 * cut.slices);
    CHECK(cut.depth == kSumBlock);
  }
  for (const Index rows : {2, 3, 5, 6, 8, 10})
    CHECK(!blocking_of(kAvx2Lstm, rows, 0, 500).last_row_alone);
  for (const Index rows : {7, 13}) CHECK(!blocking_of(kAvx512Lstm, rows, 0, 500).last_row_alone);
}

TEST(depth_is_cut_between_blocks_of_sums_alone) {
  for (const Index x : {0, 1, 127, 128, 129, 300, 1024, 1500}) {
    for (const Index h : {0, 1, 127, 128, 129, 300, 1024}) {
      for (const Index h_begin : {Index{0}, h / 3}) {
        for (const Index most : {kSumBlock, kSumBlock + 1, 3 * kSumBlock, 5000 * kSumBlock}) {
          for (const bool first : {true, false}) {
            const DepthBlock all = {0, x, h_begin, h, first};
            DepthBlock block = before(all);
            int blocks = 0;
            do {
              const DepthBlock last = block;
              block = next_depth_block(all, last, most);
              CHECK(block.first == (first && blocks == 0));
              CHECK(block.x_begin == last.x_end && block.h_begin == last.h_end);
              CHECK(block.x_end - block.x_begin + block.h_end - block.h_begin <= most);
              CHECK(block.x_end == x || block.x_end % kSumBlock == 0);
              CHECK(block.h_end == h || block.h_end % kSumBlock == 0 || block.h_end == h_begin);
              CHECK(block.h_end == h_begin || block.x_end == x);  // h follows x
              CHECK(++blocks < 100);
            } while (!is_last(all, block) && blocks < 100);
            CHECK(block.x_end == x && block.h_end == h);
          }
        }
      }
    }
  }
}

TEST(ends_of_blocks_of_sums) {
  CHECK(sum_block_end(0, 500) == kSumBlock);
  CHECK(sum_block_end(kSumBlock - 1, 500) == kSumBlock);
  CHECK(sum_block_end(kSumBlock, 500) == 2 * kSumBlock);
  CHECK(sum_block_end(kSumBlock, kSumBlock + 3) == kSumBlock + 3);
}

}  // namespace tidegate
