// The products of a phase for storages that round both the weights and the rows: the loops over
// tiles. The arithmetic of a tile is that of the storage.
//
// The storage's file (int8_weights.cc; bf16_weights.cc and bf16_dot_weights.cc with bf16.h) defines
// a class with these members:
//
//   kind, cost, grain   as in StorageKernels
//   Element, Row    the types of an element of a panel and of a rounded row
//   group           the number of adjacent k's of a unit in a panel, see rounded_panels.h
//   has_scales      whether each unit has a scale, WeightBlock::scales
//   round           a vector of weights as Elements
//   round_row       rounds a row, and returns its RowScale
//   add_product     adds the product of a tile to its accumulators
//   row_vectors, tile_rows, tile_vectors   the size of a tile with one row, and with several
//   step_flops, steps   the measurement of its peak without a matrix unit
//   add_tile, add_scaled   if its sums are those of the matrix unit, see matrix_phase.h
//
// The rows of a call are rounded first. Rounding takes a small part of the time of the products,
// which read a rounded row for all units; hence each thread rounds all rows that it reads.
#ifndef TIDEGATE_KERNELS_ROUNDED_PHASE_H_
#define TIDEGATE_KERNELS_ROUNDED_PHASE_H_

#include <type_traits>
#include <utility>

#include "kernels/accumulators.h"
#include "kernels/blocking.h"
#include "kernels/peak.h"
#include "kernels/product.h"
#include "kernels/rounded_panels.h"
#include "kernels/table.h"
#include "kernels/vec.h"
#ifdef TIDEGATE_AMX
#include "kernels/matrix_phase.h"
#endif

namespace tidegate {
namespace {

// The weights of a tile; the vectors of its gates are adjacent.
template <class Weights>
struct TileWeights {
  const typename Weights::Element* weights;
  Index slice_stride;
  Index group_stride;   // from a group of k's to the next
  const float* scales;  // of the tile's first vector; only if the storage has them
  Index scales_slice_stride;
};

// Adds the product of R rows and S slices of the gates [Gate, Gate + Count) of those that see the
// operand to the accumulators.
template <class Weights, Window Active, int Gate, int Count, int R, int S>
inline __attribute__((always_inline)) void add_product(const PhaseCall<float>& call,
                                                       const Product<float>& product,
                                                       const RoundedRows<Weights>& rows,
                                                       Index slices, Index row, Index slice) {
  using Panels = RoundedPanels<Weights>;
  constexpr Index kWidth = Vec<float>::width;
  const Index slice_size = Panels::slice_size(product.depth, Active.count);
  const Index group_stride = Active.count * Panels::kVector;
  TileWeights<Weights> tile = {
      static_cast<const typename Weights::Element*>(product.panel) + slice * slice_size +
          product.begin / Weights::group * group_stride + Gate * Panels::kVector,
      slice_size, group_stride, nullptr, Active.count * kWidth};
  if constexpr (Weights::has_scales) {
    tile.scales = Panels::scales(product.panel, slices, product.depth, Active.count) +
                  (slice * Active.count + Gate) * kWidth;
  }
  const typename Weights::Row* a[R];
  RowScale scales[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = rows.row(row + r) + product.begin;
    scales[r] = rows.scale(row + r);
  }
  const TileMemory<float> to = accumulators_of(call, row, slice, Active.first + Gate);
  Vec<float> sums[R][S][Count];
  each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
    sums[r][s][g] = load(to.at(r, s, g));
  });
  Weights::template add_product<R, S, Count>(sums, a, scales, tile, product.end - product.begin);
  each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
    store(to.at(r, s, g), sums[r][s][g]);
  });
}

// The gates that see the operand, `Most` at a time.
template <class Weights, Window Active, int Most, int R, int S, int Gate = 0, class... Arguments>
inline __attribute__((always_inline)) void add_products(const Arguments&... arguments) {
  if constexpr (Gate < Active.count) {
    constexpr int kCount = Active.count - Gate < Most ? Active.count - Gate : Most;
    add_product<Weights, Active, Gate, kCount, R, S>(arguments...);
    add_products<Weights, Active, Most, R, S, Gate + kCount>(arguments...);
  }
}

// The slices of a tile of at most `Vectors` vectors; at least one.
template <PhaseShape Shape, int Vectors>
constexpr int kTileSlices = widest(Shape) < Vectors ? Vectors / widest(Shape) : 1;

// The tiles of the slices [begin, end) and all rows: at most `Rows` rows, and at most `Vectors`
// vectors of one operand's gates and slices, each.
template <class Weights, PhaseShape Shape, int Rows, int Vectors>
__attribute__((noinline)) void rounded_sweep(const PhaseCall<float>& call,
                                             const RoundedRows<Weights>& x,
                                             const RoundedRows<Weights>& h, Index begin,
                                             Index end) {
  const Index slices = RoundedPanels<Weights>::slices(call.units);
  for (Index slice = begin; slice < end;) {
    slice += with_halved_constant<kTileSlices<Shape, Vectors>>(end - slice, [&]<int S>() {
      for (Index row = 0; row < call.rows;) {
        const int count = tile_rows<Rows>(call.rows - row);
        with_constant<Rows>(count, [&]<int R>() __attribute__((always_inline)) {
          if (!call.resume) begin_at_bias<Shape, R, S>(call, row, slice);
          if (call.x.end > 0)
            add_products<Weights, Shape.x, Vectors, R, S>(call, call.x, x, slices, row, slice);
          if (call.h.end > call.h.begin)
            add_products<Weights, Shape.h, Vectors, R, S>(call, call.h, h, slices, row, slice);
        });
        row += count;
      }
    });
  }
}

// The products of a call's phase.
template <class Weights, PhaseShape Shape>
__attribute__((noinline)) void rounded_products(const PhaseCall<float>& call) {
  if (call.rows == 0) return;
  RoundedRows<Weights> x, h;
  if (call.x.end > 0) x = {call.x, call.rows};
  if (call.h.end > call.h.begin) h = {call.h, call.rows};
  constexpr auto one_row = rounded_sweep<Weights, Shape, 1, Weights::row_vectors>;
  constexpr auto many_rows =
      rounded_sweep<Weights, Shape, Weights::tile_rows, Weights::tile_vectors>;
  const auto run = [&](Index least_slices, const auto& sweep) {
    const Index finished = kFinishedVectors / call.rows;
    each_piece(call.slice_begin, call.slice_end, finished < least_slices ? least_slices : finished,
               call.reversed, [&](Index begin, Index end) {
                 sweep(call, x, h, begin, end);
                 if (call.finish) call.finish(call, begin, end);
               });
  };
  if (call.rows == 1) return run(1, one_row);
#ifdef TIDEGATE_AMX
  if constexpr (kUsesMatrixUnit<Weights>) {
    if (call.rows >= kMinMatrixRows) {
      MatrixUnit unit;
      return run(kMatrixSlices<Shape>, [&](const auto&... arguments) {
        matrix_sweep<Weights, Shape>(unit, arguments...);
      });
    }
  }
#endif
  run(kTileSlices<Shape, Weights::tile_vectors>, many_rows);
}

// The measurement of a storage's peak: that of multiply steps on vectors, or of the matrix unit.
template <class Weights>
struct VectorPeak {
  static constexpr Index round_flops = kFmaChains * Weights::step_flops;
  static float rounds(Index count) { return Weights::template steps<kFmaChains>(count); }
};
#ifdef TIDEGATE_AMX
template <class Weights>
struct MatrixPeak {
  // Four tiles of sums, of which each element receives the products of a block of k's.
  static constexpr Index round_flops =
      4 * 2 * kTileRows * Vec<float>::width * RoundedPanels<Weights>::kBlock;
  static float rounds(Index count) {
    alignas(64) float zeros[kTileRows * 16] = {};
    MatrixUnit unit;
    unit.clear<0>(), unit.clear<1>(), unit.clear<2>(), unit.clear<3>();
    unit.load_rows<4>(zeros, 64), unit.load_rows<5>(zeros, 64);
    unit.load<6>(zeros, vector_bytes), unit.load<7>(zeros, vector_bytes);
    for (Index round = 0; round < count; ++round) {
      Weights::template add_tile<0, 4, 6>(unit);
      Weights::template add_tile<1, 4, 7>(unit);
      Weights::template add_tile<2, 5, 6>(unit);
      Weights::template add_tile<3, 5, 7>(unit);
    }
    unit.store<0>(zeros, vector_bytes);
    return zeros[0];
  }
};
template <class Weights>
using Peak = std::conditional_t<kUsesMatrixUnit<Weights>, MatrixPeak<Weights>, VectorPeak<Weights>>;
#else
template <class Weights>
using Peak = VectorPeak<Weights>;
#endif

template <class Weights, int... kinds>
constexpr StorageKernels<float> rounded_kernels(std::integer_sequence<int, kinds...>) {
  return {.kind = Weights::kind,
          .cost = Weights::cost,
          .grain = Weights::grain,
          .max_rows = RoundedRows<Weights>::max_rows,
          .panel_bytes = RoundedPanels<Weights>::panel_bytes,
          .rounded_bytes = RoundedRows<Weights>::bytes,
          .pack = RoundedPanels<Weights>::pack,
          .products =
              {rounded_products<Weights, shape_of(phase_spec(static_cast<PhaseKind>(kinds)))>...},
          .outer_scratch = 0,
          .outer = nullptr,
          .peak_round_flops = Peak<Weights>::round_flops,
          .peak_rounds = Peak<Weights>::rounds};
}

// The kernels of a storage, with a product for every kind of phase.
template <class Weights>
constexpr auto rounded_kernels() {
  return rounded_kernels<Weights>(std::make_integer_sequence<int, kPhaseKinds>());
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_ROUNDED_PHASE_H_
