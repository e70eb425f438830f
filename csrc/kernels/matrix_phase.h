// The products of many rows by the matrix unit, for storages that round rows (rounded_phase.h).
//
// A block of two tiles of rows by two vectors of units needs four tiles of sums, and loads a tile
// of rows or weights for each product of tiles: the unit reaches two thirds of its peak.
#ifndef TIDEGATE_KERNELS_MATRIX_PHASE_H_
#define TIDEGATE_KERNELS_MATRIX_PHASE_H_

#include "kernels/accumulators.h"
#include "kernels/blocking.h"
#include "kernels/matrix_unit.h"
#include "kernels/product.h"
#include "kernels/rounded_panels.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// With fewer rows, the matrix unit would wait for the weights.
constexpr Index kMinMatrixRows = 5;

// Whether a storage's sums are those of the matrix unit.
template <class Weights>
constexpr bool kUsesMatrixUnit =
    requires(MatrixUnit& unit) { Weights::template add_tile<0, 4, 6>(unit); };

// The vectors of units that a block of sums has, one or two: gates of a slice, or a gate of two
// slices. Strides from the first to the second, in elements.
template <class Weights>
struct MatrixVectors {
  const typename Weights::Element* weights;
  Index weights_stride;
  Index group_stride;  // from a group of k's to the next
  const float* scales;
  Index scales_stride;
  float* accumulators;
  Index accumulators_stride;
  Index accumulators_row_stride;
};

// Adds the product of R tiles of rows (`count` rows) and V vectors to the accumulators.
template <class Weights, int R, int V>
inline __attribute__((always_inline)) void matrix_block(MatrixUnit& unit,
                                                        const RoundedRows<Weights>& rows, Index row,
                                                        Index count, Index begin, Index end,
                                                        const MatrixVectors<Weights>& vectors) {
  using Panels = RoundedPanels<Weights>;
  constexpr Index kWidth = Vec<float>::width;
  constexpr Index kRowBytes = kWidth * static_cast<Index>(sizeof(float));
  // The sums of tiles that have fewer rows, or whose sums are not the accumulators.
  alignas(64) float sums[R][V][kTileRows * kWidth];
  const auto each_tile = [&](auto&& f) __attribute__((always_inline)) {
    f.template operator()<0, 0>();
    if constexpr (V > 1) f.template operator()<0, 1>();
    if constexpr (R > 1) f.template operator()<1, 0>();
    if constexpr (R > 1 && V > 1) f.template operator()<1, 1>();
  };
  const auto rows_of = [&](int r) { return min_of(count - r * kTileRows, kTileRows); };
  const auto accumulators = [&](int r, int v) {
    return vectors.accumulators + r * kTileRows * vectors.accumulators_row_stride +
           v * vectors.accumulators_stride;
  };
  const Index row_stride = vectors.accumulators_row_stride * static_cast<Index>(sizeof(float));
  each_tile([&]<int r, int v>() __attribute__((always_inline)) {
    constexpr int kTile = 2 * r + v;
    if constexpr (Weights::has_scales) {
      unit.template clear<kTile>();
    } else if (rows_of(r) == kTileRows) {
      unit.template load<kTile>(accumulators(r, v), row_stride);
    } else {
      for (Index m = 0; m < kTileRows; ++m) {
        const float* const from = accumulators(r, v) + m * vectors.accumulators_row_stride;
        store(sums[r][v] + m * kWidth, m < rows_of(r) ? load(from) : zero<float>());
      }
      unit.template load<kTile>(sums[r][v], kRowBytes);
    }
  });
  const typename Weights::Row* a = rows.row(row) + begin;
  const typename Weights::Element* w = vectors.weights;
  const Index group_bytes =
      vectors.group_stride * static_cast<Index>(sizeof(typename Weights::Element));
  for (Index k = begin; k < end; k += Panels::kBlock) {
    unit.template load_rows<4>(a, rows.stride_bytes());
    unit.template load<6>(w, group_bytes);
    if constexpr (R > 1) {
      unit.template load_rows<5>(a + kTileRows * rows.stride(), rows.stride_bytes());
    }
    if constexpr (V > 1) unit.template load<7>(w + vectors.weights_stride, group_bytes);
    each_tile([&]<int r, int v>() __attribute__((always_inline)) {
      Weights::template add_tile<2 * r + v, 4 + r, 6 + v>(unit);
    });
    a += Panels::kBlock;
    w += Panels::kBlock / Weights::group * vectors.group_stride;
  }
  each_tile([&]<int r, int v>() __attribute__((always_inline)) {
    constexpr int kTile = 2 * r + v;
    if (!Weights::has_scales && rows_of(r) == kTileRows)
      return unit.template store<kTile>(accumulators(r, v), row_stride);
    unit.template store<kTile>(sums[r][v], kRowBytes);
    for (Index m = 0; m < rows_of(r); ++m) {
      float* const to = accumulators(r, v) + m * vectors.accumulators_row_stride;
      if constexpr (Weights::has_scales) {
        const Vec<float> scale = load(vectors.scales + v * vectors.scales_stride);
        Weights::add_scaled(to, sums[r][v] + m * kWidth, scale,
                            rows.scale(row + r * kTileRows + m));
      } else {
        store(to, load(sums[r][v] + m * kWidth));
      }
    }
  });
}

// One operand's product for all rows of the call and the slices [slice, slice + S).
template <class Weights, Window Active, int S>
inline void matrix_product(MatrixUnit& unit, const PhaseCall<float>& call,
                           const Product<float>& product, const RoundedRows<Weights>& rows,
                           Index slices, Index slice) {
  using Panels = RoundedPanels<Weights>;
  constexpr Index kWidth = Vec<float>::width;
  static_assert(S == 1 || Active.count == 1);
  const Index slice_size = Panels::slice_size(product.depth, Active.count);
  const auto block = [&]<int V>(Index row, int gate) {
    MatrixVectors<Weights> vectors = {};
    vectors.group_stride = Active.count * Panels::kVector;
    vectors.weights = static_cast<const typename Weights::Element*>(product.panel) +
                      slice * slice_size + gate * Panels::kVector +
                      product.begin / Weights::group * vectors.group_stride;
    vectors.weights_stride = S > 1 ? slice_size : Panels::kVector;
    if constexpr (Weights::has_scales) {
      vectors.scales = Panels::scales(product.panel, slices, product.depth, Active.count) +
                       (slice * Active.count + gate) * kWidth;
      vectors.scales_stride = S > 1 ? Active.count * kWidth : kWidth;
    }
    vectors.accumulators = accumulators_of(call, row, slice, Active.first + gate).base;
    vectors.accumulators_stride = S > 1 ? call.accumulators_slice_stride : kWidth;
    vectors.accumulators_row_stride = call.accumulators_row_stride;
    const Index count = min_of(call.rows - row, 2 * kTileRows);
    if (count > kTileRows) {
      matrix_block<Weights, 2, V>(unit, rows, row, count, product.begin, product.end, vectors);
    } else {
      matrix_block<Weights, 1, V>(unit, rows, row, count, product.begin, product.end, vectors);
    }
  };
  for (Index row = 0; row < call.rows; row += 2 * kTileRows) {
    if constexpr (S > 1) {
      block.template operator()<2>(row, 0);
    } else {
      for (int gate = 0; gate + 1 < Active.count; gate += 2)
        block.template operator()<2>(row, gate);
      if constexpr (Active.count % 2 != 0) block.template operator()<1>(row, Active.count - 1);
    }
  }
}

// The slices of a block of sums: two if there is one gate.
template <PhaseShape Shape>
constexpr int kMatrixSlices = widest(Shape) == 1 ? 2 : 1;

// As rounded_sweep(): the slices [begin, end) and all rows.
template <class Weights, PhaseShape Shape>
__attribute__((noinline)) void matrix_sweep(MatrixUnit& unit, const PhaseCall<float>& call,
                                            const RoundedRows<Weights>& x,
                                            const RoundedRows<Weights>& h, Index begin, Index end) {
  const Index slices = RoundedPanels<Weights>::slices(call.units);
  for (Index slice = begin; slice < end;) {
    slice += with_halved_constant<kMatrixSlices<Shape>>(end - slice, [&]<int S>() {
      if (!call.resume) {
        for (Index row = 0; row < call.rows; ++row) begin_at_bias<Shape, 1, S>(call, row, slice);
      }
      if (call.x.end > 0) matrix_product<Weights, Shape.x, S>(unit, call, call.x, x, slices, slice);
      if constexpr (Shape.h.count > 0) {
        if (call.h.end > call.h.begin)
          matrix_product<Weights, Shape.h, S>(unit, call, call.h, h, slices, slice);
      }
    });
  }
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_MATRIX_PHASE_H_
