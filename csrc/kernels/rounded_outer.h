// Weight gradients for storages that round rows: the product of a phase whose rows are the columns
// of `left`, and whose weights are `right`. A k is a row of both.
//
// Only for a storage with pairs of adjacent k's and without scales, which defines
//
//   store_pairs     the rounded elements of a vector of units, of two k's
#ifndef TIDEGATE_KERNELS_ROUNDED_OUTER_H_
#define TIDEGATE_KERNELS_ROUNDED_OUTER_H_

#include "kernels/rounded_panels.h"
#include "kernels/rounded_phase.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

template <class Weights>
struct RoundedOuter {
  using Panels = RoundedPanels<Weights>;
  using Element = typename Weights::Element;
  static_assert(Weights::group == 2 && !Weights::has_scales);
  static constexpr Index kWidth = Vec<float>::width;

  // The k's that are multiplied at a time, and the columns of `right` (a panel) and of `left`.
  // The panel of 1 MiB is read for each block of columns of `left`.
  static constexpr Index kDepth = 512;
  static constexpr Index kRight = 1024;
  static constexpr Index kLeft = 64;
  static_assert(kDepth % kOuterSumBlock == 0 && kOuterSumBlock % Panels::kBlock == 0);
  static_assert(kRight % kWidth == 0);

  // Rows of the transposed left columns, and of sums, are not a power of two apart.
  static constexpr Index kGap = 16;
  static constexpr Index kLeftStride = kDepth + kGap;
  static constexpr Index kSums = kLeft * (kRight + kGap);
  static constexpr Index kPanelFloats =
      kRight * kDepth * static_cast<Index>(sizeof(Element)) / static_cast<Index>(sizeof(float));

  static constexpr Index scratch() {
    return kPanelFloats + kLeft * kLeftStride + kSums +
           RoundedRows<Weights>::bytes(kLeft, kDepth) / static_cast<Index>(sizeof(float)) + 1;
  }

  // Packs columns of `right`, from `column` on, of the k's [k0, k0 + depth).
  static void pack_right(const OuterCall<float>& call, Index k0, Index depth, Index column,
                         Index columns, Element* panel) {
    const Index slice_size = Panels::slice_size(depth, 1);
    const Index padded = Panels::blocks(depth) * Panels::kBlock;
    for (Index k = 0; k < padded; k += 2) {
      for (Index j = 0; j < columns; j += kWidth) {
        const int lanes = static_cast<int>(min_of(columns - j, kWidth));
        const auto vector = [&](Index at) {
          return at < depth ? load_partial<float>(call.right[k0 + at] + column + j, lanes)
                            : zero<float>();
        };
        Weights::store_pairs(panel + j / kWidth * slice_size + k / 2 * Panels::kVector, vector(k),
                             vector(k + 1));
      }
    }
  }

  static void outer(const OuterCall<float>& call) {
    if (call.left_columns == 0) return;
    float* const panel = call.scratch;
    float* const left = panel + kPanelFloats;
    float* const sums = left + kLeft * kLeftStride;
    float* const rounded = sums + kSums;
    for (Index k0 = 0; k0 < call.depth || k0 == 0; k0 += kDepth) {
      const Index depth = min_of(call.depth - k0, kDepth);
      const bool resume = call.resume || k0 > 0;
      for (Index column = 0; column < call.right_columns; column += kRight) {
        const Index columns = min_of(call.right_columns - column, kRight);
        pack_right(call, k0, depth, column, columns, reinterpret_cast<Element*>(panel));
        for (Index m = 0; m < call.left_columns; m += kLeft) {
          const Index rows = min_of(call.left_columns - m, kLeft);
          for (Index k = 0; k < depth; ++k) {
            const float* const from = call.left[k0 + k] + m;
            for (Index r = 0; r < rows; ++r) left[r * kLeftStride + k] = from[r];
          }
          add_block(call, {left, panel, sums, rounded}, depth, {m, rows}, {column, columns},
                    resume);
        }
      }
    }
  }

 private:
  struct Scratch {
    const float* left;
    const float* panel;
    float* sums;
    float* rounded;
  };
  struct Columns {
    Index first, count;
  };

  // Adds the product to a block of the result, or writes it. The sums have whole slices.
  static void add_block(const OuterCall<float>& call, const Scratch& scratch, Index depth,
                        Columns left, Columns right, bool resume) {
    const Index slices = Panels::slices(right.count);
    const Index stride = slices * kWidth + kGap;
    const auto each_vector = [&](auto&& f) {
      for (Index r = 0; r < left.count; ++r) {
        float* const result = call.result[left.first + r] + right.first;
        for (Index j = 0; j < right.count; j += kWidth) {
          f(scratch.sums + r * stride + j, result + j,
            static_cast<int>(min_of(right.count - j, kWidth)));
        }
      }
    };
    each_vector([&](float* sum, const float* result, int lanes) {
      store(sum, resume ? load_partial<float>(result, lanes) : zero<float>());
    });
    PhaseCall<float> product;
    product.rows = left.count;
    product.slice_end = slices;
    product.units = right.count;
    product.x = {
        {scratch.left, kLeftStride, nullptr}, scratch.panel, depth, 0, depth, scratch.rounded};
    product.accumulators = scratch.sums;
    product.accumulators_row_stride = stride;
    product.accumulators_slice_stride = kWidth;
    product.resume = true;
    rounded_products<Weights, shape_of(phase_spec(kLinear))>(product);
    each_vector([&](const float* sum, float* result, int lanes) {
      store_partial(result, load<float>(sum), lanes);
    });
  }
};

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_ROUNDED_OUTER_H_
