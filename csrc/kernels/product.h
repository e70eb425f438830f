// The product of a tile: some rows times some vectors of weights, over ascending k, with the
// accumulators in registers. The loops over tiles are in phase.h and outer.h.
#ifndef TIDEGATE_KERNELS_PRODUCT_H_
#define TIDEGATE_KERNELS_PRODUCT_H_

#include "kernels/accumulators.h"
#include "kernels/blocking.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// Accumulators held in registers. With R rows and C vectors of a panel, a k step needs min(R, C) +
// 1 further registers, and its R * C fused multiply-adds must form at least 8 independent chains
// (latency 4 cycles, two per cycle).
constexpr int kAccumulators = vector_registers * 3 / 4;

// The shape of a tile with `Gates` accumulators per unit: many rows and few slices, or one row and
// many slices.
template <int Gates>
struct TileShape {
  static constexpr int kSlices = Gates >= 3 ? 1 : 4 / Gates;
  static constexpr int kRows = kAccumulators / (kSlices * Gates);
  static constexpr int kSlicesOneRow = Gates >= 3 ? 12 / Gates : 8 / Gates;
};

// Calls f.template operator()<n>() for a run-time n in 1..Max.
template <int Max, class F>
inline __attribute__((always_inline)) void with_constant(int n, F&& f) {
  if constexpr (Max > 1) {
    if (n < Max) return with_constant<Max - 1>(n, f);
  }
  f.template operator()<Max>();
}

// Calls f with the largest of Max, its half (rounded up), and so on to 1, that is at most n, and
// returns it. Halving keeps the number of compiled shapes small.
template <int Max, class F>
inline __attribute__((always_inline)) int with_halved_constant(Index n, F&& f) {
  if constexpr (Max > 1) {
    if (n < Max) return with_halved_constant<(Max + 1) / 2>(n, f);
  }
  f.template operator()<Max>();
  return Max;
}

// The number of rows of the next tile: Max, except that the last two tiles share the remaining rows
// evenly. A small tile has too few chains, and too few rows per loaded weight.
template <int Max>
inline int tile_rows(Index left) {
  const bool last_two = left > Max && left < 2 * Max;
  return static_cast<int>(last_two ? (left + 1) / 2 : min_of(left, Max));
}

// The multiply step of a storage of grain 1, by fused multiply-adds: for one k,
//   accumulators[r][s][g] += a[r][a_offset] * panel[s][g].
// The operand that needs fewer registers is kept in registers.
template <class Weights>
struct FusedMultiplyAdd {
  template <class T, int R, int S, int Count, class Element>
  static inline __attribute__((always_inline)) void multiply_step(
      Vec<T> (&accumulators)[R][S][Count], const T* const (&a)[R], Index a_offset,
      const Element* panel, Index slice_stride) {
    static_assert(Weights::grain == 1);
    const auto weight = [&](int s, int g) __attribute__((always_inline)) {
      return Weights::load(panel + s * slice_stride + g * Vec<T>::width);
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
};

constexpr int kUnrolled = 4;    // k steps per iteration
constexpr int kLineBytes = 64;  // cache line
template <class Element>
constexpr int kLine = kLineBytes / static_cast<int>(sizeof(Element));

// The multiply steps of all k's, a grain each, ascending; a last grain that is not whole is
// multiply_rest()'s. Large tiles take four steps per iteration, so that the
// loop's own instructions do not compete with the fused multiply-adds when another hardware thread
// shares the core's front end; small tiles are limited by memory or by their chains. Each iteration
// prefetches `Prefetched` cache lines from `ahead` on, unless `ahead` is null.
template <class Weights, int Prefetched = 0, class T, int R, int S, int Count, class Element>
inline __attribute__((always_inline)) void multiply(Vec<T> (&accumulators)[R][S][Count],
                                                    const T* const (&a)[R], Index k_stride,
                                                    const Element* panel, Index slice_stride,
                                                    Index depth, const Element* ahead = nullptr) {
  constexpr int kUnroll = R > 1 && R * S * Count >= 8 ? kUnrolled : 1;
  constexpr int kGrain = static_cast<int>(Weights::grain);
  constexpr int kStep = kGrain * Count * Vec<T>::width;
  const T* row[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) row[r] = a[r];
  const auto advance = [&](Index steps) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] += steps * kGrain * k_stride;
    panel += steps * kStep;
  };
  Index k = 0;
  for (; k + kUnroll * kGrain <= depth; k += kUnroll * kGrain) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
      Weights::multiply_step(accumulators, row, u * kGrain * k_stride, panel + u * kStep,
                             slice_stride);
    }
    if (Prefetched > 0 && kUnroll == kUnrolled && ahead) {
#pragma GCC unroll 4
      for (int i = 0; i < Prefetched * kGrain; ++i) __builtin_prefetch(ahead + i * kLine<Element>);
      ahead += kUnroll * kStep;
    }
    advance(kUnroll);
  }
  for (; k + kGrain <= depth; k += kGrain) {
    Weights::multiply_step(accumulators, row, 0, panel, slice_stride);
    advance(1);
  }
  if constexpr (kGrain > 1) {
    if (k < depth)
      Weights::multiply_rest(accumulators, row, panel, slice_stride, static_cast<int>(depth - k));
  }
}

// Sums a tile over `depth` k's, beginning at the values in `start`, and writes the sums to `to`, or
// adds them (`add`).
template <class Weights, int Prefetched, int R, int S, int Count, class T, class Element>
inline __attribute__((always_inline)) void sum_tile(const T* const (&a)[R], const Element* panel,
                                                    Index slice_stride, Index depth,
                                                    const Element* ahead,
                                                    TileMemory<T, const T> start, TileMemory<T> to,
                                                    bool add) {
  Vec<T> sums[R][S][Count];
  each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
    sums[r][s][g] = load<T>(start.at(r, s, g));
  });
  multiply<Weights, Prefetched>(sums, a, 1, panel, slice_stride, depth, ahead);
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

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_PRODUCT_H_
