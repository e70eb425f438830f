// The tile: products of a few rows with a few slices of panels, and the loops that cut a PhaseCall
// or an OuterCall into tiles and run the cell on what is complete. No formula of a cell is in here.
//
// One rule, the order of summation in table.h, keeps the bits the same however the work is cut.
// Work is cut between blocks of sums; a cut inside one (PhaseCall::partial_sums) spills the block's
// sum and loads it again.
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
// them up.
constexpr Index kPanelBlockBytes = (vector_bytes == 64 ? 128 : 16) * 1024;
// Vectors of a k that a last row passes over by itself: enough chains, and a block of sums of them
// stays in L1 behind the tile of the other rows.
constexpr int kApartVectors = 8;

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

// Some k of x, then some k of h: what all rows pass over before the next is touched.
struct DepthBlock {
  Index x_begin, x_end;
  Index h_begin, h_end;
  bool first;
};

// Where the block of sums ends that k lies in.
constexpr Index sum_block_end(Index k, Index depth) {
  static_assert((kSumBlock & (kSumBlock - 1)) == 0);
  return min_of((k & -kSumBlock) + kSumBlock, depth);
}

// The end of as many k's from `begin` on as `most` allows: all up to `end`, or whole blocks of
// sums.
constexpr Index fitting_end(Index begin, Index end, Index most) {
  if (end - begin <= most) return end;
  const Index whole = (begin + most) - (begin + most) % kSumBlock;
  return whole > begin ? whole : begin;
}

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

template <class T>
inline T* accumulators_of(const PhaseCall<T>& call, Index row, Index slice) {
  return call.accumulators + row * call.accumulators_row_stride +
         (slice - call.accumulators_first_slice) * call.accumulators_slice_stride;
}

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
      T* accumulators = accumulators_of(call, 0, s);
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

// The vectors of a tile's rows, slices and gates in memory: those of a gate are contiguous.
template <class T, class Element = T>
struct TileMemory {
  Element* base;
  Index row_stride;
  Index slice_stride;

  Element* at(int r, int s, int g) const {
    return base + r * row_stride + s * slice_stride + g * Vec<T>::width;
  }
};

// f(r, s, g) for each vector of a tile.
template <int R, int S, int Count, class F>
inline __attribute__((always_inline)) void each_vector(F&& f) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
      for (int g = 0; g < Count; ++g) f(r, s, g);
    }
  }
}

template <class T>
alignas(vector_bytes) constexpr T kZeros[kMaxGates * Vec<T>::width] = {};

// A tile's accumulators of the gates from `gate` on.
template <class T>
inline TileMemory<T> accumulators_of(const PhaseCall<T>& call, Index row, Index slice, int gate) {
  return {accumulators_of(call, row, slice) + gate * Vec<T>::width, call.accumulators_row_stride,
          call.accumulators_slice_stride};
}
// Where they begin.
template <int Gates, class T>
inline TileMemory<T, const T> biases_of(const PhaseCall<T>& call, Index slice, int gate) {
  constexpr Index kSlice = Gates * Vec<T>::width;
  if (!call.bias) return {kZeros<T>, 0, 0};
  return {call.bias + slice * kSlice + gate * Vec<T>::width, 0, kSlice};
}

// The micro-kernel: the sums of a tile over `depth` k's, which begin at `start` and are written or
// added to `to`.
template <int Fetched, int R, int S, int Count, class T>
inline __attribute__((always_inline)) void sum_tile(const T* const (&a)[R], const T* panel,
                                                    Index slice_stride, Index depth, const T* ahead,
                                                    TileMemory<T, const T> start, TileMemory<T> to,
                                                    bool add) {
  Vec<T> sums[R][S][Count];
  each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
    sums[r][s][g] = load<T>(start.at(r, s, g));
  });
  multiply<Fetched>(sums, a, 1, panel, slice_stride, depth, ahead);
  if (add) {
    each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
      store(to.at(r, s, g), load<T>(to.at(r, s, g)) + sums[r][s][g]);
    });
  } else {
    each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
      store(to.at(r, s, g), sums[r][s][g]);
    });
  }
}

// The k's [begin, end) of one operand's product, for the gates of a tile that see it: block by
// block of sums. `begins`: the accumulators begin here.
template <int Gates, Window Of, int Fetched, int R, int S, class T>
inline __attribute__((always_inline)) void product_tile(const PhaseCall<T>& call,
                                                        const Product<T>& product, Index row,
                                                        Index slice, Index begin, Index end,
                                                        bool begins, Index tile) {
  constexpr Index kStep = Of.count * Vec<T>::width;
  const Index slice_stride = product.depth * kStep;
  const T* const panel = product.panel + slice * slice_stride;
  // Where this tile's share of the next block of the panel begins. Behind a slice's last block lies
  // the first one of the slice above.
  const bool turns_back = call.descending && end == product.depth;
  const Index to_next = turns_back ? -slice_stride - begin * kStep : (end - begin) * kStep;
  const TileMemory<T> accumulators = accumulators_of(call, row, slice, Of.first);
  const auto partial_sums = [&] {
    return TileMemory<T>{call.partial_sums + row * call.accumulators_row_stride +
                             slice * call.partial_sums_slice_stride + Of.first * Vec<T>::width,
                         call.accumulators_row_stride, call.partial_sums_slice_stride};
  };
  for (Index k = begin; k < end;) {
    const Index block_end = sum_block_end(k, product.depth);
    const Index k_end = min_of(block_end, end);
    TileMemory<T, const T> start = {kZeros<T>, 0, 0};
    if (begins) start = biases_of<Gates>(call, slice, Of.first);
    if (k % kSumBlock != 0) {
      const TileMemory<T> spilled = partial_sums();
      start = {spilled.base, spilled.row_stride, spilled.slice_stride};
    }
    const bool complete = k_end == block_end;
    const TileMemory<T> to = complete ? accumulators : partial_sums();
    const T* a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) a[r] = product.rows[row + r] + k;
    sum_tile<Fetched, R, S, Of.count>(
        a, panel + k * kStep, slice_stride, k_end - k,
        share_ahead<Of.count, Fetched>(panel + k * kStep + to_next, tile), start, to,
        complete && !begins);
    begins = false;
    k = k_end;
  }
}

// One tile of a phase: R rows from `row` on, S slices from `slice` on; number `tile` of those of a
// block.
template <PhaseShape Shape, int Fetched, class T, int R, int S>
inline __attribute__((always_inline)) void phase_tile(const PhaseCall<T>& call, Index row,
                                                      Index slice, const DepthBlock& block,
                                                      Index tile) {
  static_assert(Shape.x.first == 0);
  const bool begins = block.first && !call.resume;
  const bool sees_x = block.x_begin < block.x_end;
  // The accumulators that no product with x begins.
  const auto begin_gates = [&]<int First, int End>() __attribute__((always_inline)) {
    const TileMemory<T> to = accumulators_of(call, row, slice, First);
    const TileMemory<T, const T> start = biases_of<Shape.gates>(call, slice, First);
    each_vector<R, S, End - First>([&](int r, int s, int g) __attribute__((always_inline)) {
      store(to.at(r, s, g), load<T>(start.at(r, s, g)));
    });
  };
  if (begins && !sees_x) begin_gates.template operator()<0, Shape.gates>();
  if constexpr (Shape.x.count == Shape.gates && Shape.h.count == Shape.gates) {
    // One copy of the micro-kernel for both operands.
#pragma GCC unroll 1
    for (int operand = 0; operand < 2; ++operand) {
      const bool of_h = operand == 1;
      const Index begin = of_h ? block.h_begin : block.x_begin;
      const Index end = of_h ? block.h_end : block.x_end;
      if (begin < end) {
        product_tile<Shape.gates, Shape.x, Fetched, R, S>(call, of_h ? call.h : call.x, row, slice,
                                                          begin, end, begins && !of_h, tile);
      }
    }
  } else {
    if (sees_x) {
      if constexpr (Shape.x.count < Shape.gates) {
        if (begins) begin_gates.template operator()<Shape.x.end(), Shape.gates>();
      }
      product_tile<Shape.gates, Shape.x, Fetched, R, S>(call, call.x, row, slice, block.x_begin,
                                                        block.x_end, begins, tile);
    }
    if constexpr (Shape.h.count > 0) {
      if (block.h_begin < block.h_end) {
        product_tile<Shape.gates, Shape.h, Fetched, R, S>(call, call.h, row, slice, block.h_begin,
                                                          block.h_end, false, tile);
      }
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

// The sums of groups in memory: those of 96 rows of the widest tile, and of all rows where they are
// few.
constexpr Index kGroupVectors = 96 * 4;

// Slices [begin, end) of products of several groups of k's. sum_blocks(call, depths) adds the
// blocks of a part of the k's to that call's accumulators.
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
    // The first group of x, and of h if x has no other, are added to the accumulators themselves.
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
  const DepthBlock all = {0, call.x.depth, call.h_begin, call.h.depth - call.h_left, true};
  const bool groups = call.x.depth > kSumGroup || call.h.depth > kSumGroup;
  if (call.rows == 0) return;
  if (call.rows == 1) {  // where all that can be left out counts
    each_piece(call.slice_begin, call.slice_end, kFinishedVectors, descending,
               [&](Index begin, Index end) {
                 const auto sum_blocks = [&](const PhaseCall<T>& part, const DepthBlock& block) {
                   one_row(part, 0, 1, begin, end, block);
                 };
                 if (groups) {
                   sum_groups<Shape>(call, all, begin, end, sum_blocks);
                 } else {
                   sum_blocks(call, all);
                 }
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
  constexpr Index kApartSlices = kApartVectors / kGates;
  const Index finished = few_rows ? kFinishedVectors / call.rows
                         : apart  ? 2 * kApartSlices
                                  : Tile::kSlices;
  const Index slices = apart ? kApartSlices : finished;
  const Index all_depth = all.x_end + all.h_end - all.h_begin;
  constexpr Index kFittingDepth = kPanelBlockBytes / (Tile::kSlices * kSliceBytes);
  const Index most_depth = few_rows                             ? all_depth
                           : apart || kFittingDepth < kSumBlock ? kSumBlock
                                                                : kFittingDepth;

  const auto products = [&](const PhaseCall<T>& part, Index begin, Index end,
                            const DepthBlock& block) {
    const auto run = [&](auto sweep, Index row, Index row_end) {
      sweep(part, row, row_end, begin, end, block);
    };
    if (apart) {
      run(many_rows, 0, part.rows - 1);
      run(one_row, part.rows - 1, part.rows);
    } else if (fetch) {
      if constexpr (kOneStretch) {
        constexpr int kLines = kUnrolled * kSliceBytes / kLineBytes;
        with_share<(kLines + kFetchedTiles - 1) / kFetchedTiles>(
            tiles / kFetchedTiles, [&]<int Lines>() {
              run(phase_sweep<Shape, T, Tile::kRows, Tile::kSlices, Lines>, 0, part.rows);
            });
      }
    } else {
      run(many_rows, 0, part.rows);
    }
  };
  each_piece(call.slice_begin, call.slice_end, finished, descending, [&](Index first, Index last) {
    each_piece(first, last, slices, descending, [&](Index begin, Index end) {
      const auto sum_blocks = [&](const PhaseCall<T>& part, const DepthBlock& depths) {
        DepthBlock block = depths;
        do {
          block.x_end = fitting_end(block.x_begin, depths.x_end, most_depth);
          const Index left = most_depth - (block.x_end - block.x_begin);
          block.h_end = block.x_end == depths.x_end ? fitting_end(block.h_begin, depths.h_end, left)
                                                    : block.h_begin;
          products(part, begin, end, block);
          block = {block.x_end, block.x_end, block.h_end, block.h_end, false};
        } while (block.x_end < depths.x_end || block.h_end < depths.h_end);
      };
      if (groups) {
        sum_groups<Shape>(call, all, begin, end, sum_blocks);
      } else {
        sum_blocks(call, all);
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

// A block of sums is packed at once: of `right`'s panel 16 or 32 KiB. Columns of `left` packed at
// once: 192 KiB of float, in L2.
constexpr Index kOuterLeft = 384;

template <class T>
struct OuterShape {
  static constexpr int kColumns = TileShape<1>::kSlices;  // vectors of `right`
  static constexpr int kRows = TileShape<1>::kRows;
  static constexpr Index kScratch =
      kOuterSumBlock * (kOuterLeft + kRows + kColumns * Vec<T>::width);
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
  Vec<T> sums[R][S][1];
  const T* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = left + r;
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) sums[r][s][0] = zero<T>();
  }
  multiply(sums, a, R, right, depth * kWidth, depth);
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

#endif  // TIDEGATE_KERNELS_TILE_H_
