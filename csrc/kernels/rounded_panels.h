// The memory of storages that round both the weights and the rows that are multiplied by them:
// panels of rounded weights, and rounded rows. Both are divided into blocks of k's of 64 bytes, and
// padded with zeros to whole blocks.
//
// A panel is [slice][group of k's][gate][unit][k of the group]: the k's of a group, of one unit,
// are adjacent, as instructions for sums of products take them.
#ifndef TIDEGATE_KERNELS_ROUNDED_PANELS_H_
#define TIDEGATE_KERNELS_ROUNDED_PANELS_H_

#include "kernels/blocking.h"
#include "kernels/pack.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

constexpr Index kBlockBytes = 64;

// `Weights`: see rounded_phase.h.
template <class Weights>
struct RoundedPanels {
  using Element = typename Weights::Element;
  static constexpr Index kWidth = Vec<float>::width;
  // The k's of a block, and the elements of a vector: a group of k's of a slice's units.
  static constexpr Index kBlock = kBlockBytes / static_cast<Index>(sizeof(Element));
  static constexpr Index kVector = Weights::group * kWidth;

  static constexpr Index blocks(Index depth) { return (depth + kBlock - 1) / kBlock; }
  // The elements of a slice.
  static constexpr Index slice_size(Index depth, Index gates) {
    return blocks(depth) * kBlock * gates * kWidth;
  }
  static Index slices(Index units) { return (units + kWidth - 1) / kWidth; }
  static Index size(const PanelShape& shape) {
    return slices(shape.units) * slice_size(shape.depth, shape.gates);
  }

  static Index panel_bytes(const PanelShape& shape) {
    const Index scales = Weights::has_scales ? slices(shape.units) * shape.gates * kWidth : 0;
    return size(shape) * static_cast<Index>(sizeof(Element)) +
           scales * static_cast<Index>(sizeof(float));
  }
  // The scales of a panel's units, [slice][gate][width], which follow the weights.
  static const float* scales(Panel panel, Index all_slices, Index depth, Index gates) {
    return reinterpret_cast<const float*>(static_cast<const Element*>(panel) +
                                          all_slices * slice_size(depth, gates));
  }

  static void pack(const PackCall<float>& call) {
    const PanelShape& shape = call.shape;
    const WeightBlock<float>& block = call.block;
    const Index unit = call.slice * kWidth;
    const Index lanes = min_of(shape.units - unit, kWidth);
    Element* const to = static_cast<Element*>(call.panel) +
                        call.slice * slice_size(shape.depth, shape.gates) + block.gate * kVector;
    const auto element = [&](Index k, Index lane) -> Element& {
      return to[k / Weights::group * shape.gates * kVector + lane * Weights::group +
                k % Weights::group];
    };
    float scales[kWidth];
    for (Index lane = 0; lane < kWidth; ++lane)
      scales[lane] = block.scales && lane < lanes ? block.scales[unit + lane] : 1;
    const auto store_rounded = [&](Index k, Vec<float> weights) __attribute__((always_inline)) {
      Element rounded[kWidth];
      Weights::round(rounded, weights, load(scales));
      for (Index lane = 0; lane < kWidth; ++lane) element(k, lane) = rounded[lane];
    };
    // Scales take the sign of the block instead of integers: -128 has no opposite.
    PackCall<float> packed = call;
    if (Weights::has_scales) packed.block.sign = 1;
    each_packed_vector(packed, store_rounded);
    if (call.k_end == shape.depth) {
      for (Index k = shape.depth; k < blocks(shape.depth) * kBlock; ++k)
        store_rounded(k, zero<float>());
    }
    if constexpr (Weights::has_scales) {
      if (call.k_begin != block.k_begin) return;
      float* const to_scales =
          reinterpret_cast<float*>(static_cast<Element*>(call.panel) + size(shape)) +
          (call.slice * shape.gates + block.gate) * kWidth;
      for (Index lane = 0; lane < kWidth; ++lane)
        to_scales[lane] = lane < lanes ? block.sign * scales[lane] : 0;
    }
  }
};

// The scale of a rounded row, and the offset of its sums of products (int8_weights.cc).
struct RowScale {
  float scale = 1;
  std::int32_t offset = 0;
};

// The rounded rows of a call's product, in the memory Product::rounded: each row is padded to whole
// blocks; the scales of all rows follow.
template <class Weights>
class RoundedRows {
 public:
  using Row = typename Weights::Row;
  using Panels = RoundedPanels<Weights>;

  // More rows need more memory for rounded rows; fewer read the panels more often.
  static Index max_rows(Index depth) {
    constexpr Index kMost = 128, kLeast = 16, kBytes = 1024 * 1024;
    const Index fitting = kBytes / bytes(1, depth);
    return fitting < kLeast ? kLeast : min_of(fitting, kMost);
  }
  static constexpr Index bytes(Index rows, Index depth) {
    return (rows + kReadBeyond) * stride_of(depth) * static_cast<Index>(sizeof(Row)) +
           rows * static_cast<Index>(sizeof(RowScale));
  }

  RoundedRows() = default;
  RoundedRows(const Product<float>& product, Index rows)
      : rows_(static_cast<Row*>(product.rounded)),
        stride_(stride_of(product.depth)),
        scales_(reinterpret_cast<RowScale*>(rows_ + (rows + kReadBeyond) * stride_)) {
    const Index padded = Panels::blocks(product.depth) * Panels::kBlock;
    const Index end = product.end == product.depth ? padded : product.end;
    for (Index r = 0; r < rows; ++r) {
      Row* const to = rows_ + r * stride_;
      scales_[r] = Weights::round_row(product.rows[r] + product.begin, product.end - product.begin,
                                      product.min_magnitude, to + product.begin);
      for (Index k = product.end; k < end; ++k) to[k] = 0;
    }
  }

  const Row* row(Index r) const { return rows_ + r * stride_; }
  Index stride() const { return stride_; }
  Index stride_bytes() const { return stride_ * static_cast<Index>(sizeof(Row)); }
  const RowScale& scale(Index r) const { return scales_[r]; }

 private:
#ifdef TIDEGATE_AMX
  // The matrix unit reads whole tiles of 16 rows, and does not use what it reads beyond the last.
  static constexpr Index kReadBeyond = 15;
#else
  static constexpr Index kReadBeyond = 0;
#endif

  // Not a multiple of a large power of two, because the rows would then all map to the same few
  // sets of the L1 cache.
  static constexpr Index stride_of(Index depth) {
    const Index row = Panels::blocks(depth) * Panels::kBlock;
    constexpr Index kLine = 64 / static_cast<Index>(sizeof(Row));
    return row % (16 * kLine) == 0 ? row + kLine : row;
  }

  Row* rows_ = nullptr;
  Index stride_ = 0;
  RowScale* scales_ = nullptr;
};

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_ROUNDED_PANELS_H_
