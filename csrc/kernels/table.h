// The interface between the core and the kernels: for each ISA, a table of function pointers on
// plain types. No SIMD type crosses it.
//
// Units (hidden units, or outputs of a product) are divided into slices of `width`, one vector
// each, and padded with zeros to whole slices. Weights are packed into panels, whose layout is
// defined by their storage (kernels/storage.h): the core asks for a panel's size, lets the kernels
// pack it, and passes it to them.
#ifndef TIDEGATE_KERNELS_TABLE_H_
#define TIDEGATE_KERNELS_TABLE_H_

#include <cstdint>

#include "kernels/spec.h"
#include "tidegate/activation.h"

namespace tidegate {

using Index = std::int64_t;

// The rows of a matrix: at a constant stride, or at the addresses in `table`. Elements of a row are
// contiguous.
template <class T>
struct Rows {
  T* base = nullptr;
  Index stride = 0;
  T* const* table = nullptr;

  T* operator[](Index r) const { return table ? table[r] : base + r * stride; }
  // The rows from number `first` on; absent rows remain absent. Always inlined: the linker must not
  // share it between ISAs.
  __attribute__((always_inline)) Rows from(Index first) const {
    if (table) return {base, stride, table + first};
    return base ? Rows{base + first * stride, stride, nullptr} : *this;
  }
  explicit operator bool() const { return base != nullptr || table != nullptr; }
  operator Rows<const T>() const { return {base, stride, table}; }
};

// Packed weights: [unit][k][gate] in the layout of a storage. Opaque to the core.
using Panel = const void*;

// The shape of the weights in a panel.
struct PanelShape {
  Index units = 0;  // without padding
  Index depth = 0;  // k's
  Index gates = 1;
};

// The k's [begin, end) of the product of rows (., depth) with a panel of that depth; absent if end
// is 0. `begin` and `end` are 0, depth or multiples of the storage's grain.
template <class T>
struct Product {
  Rows<const T> rows;
  Panel panel = nullptr;
  Index depth = 0;
  Index begin = 0;
  Index end = 0;
  // For a storage that rounds rows: memory for the rounded rows, StorageKernels::rounded_bytes.
  void* rounded = nullptr;
  // For a storage that scales rows: a row's scale is that of its greatest magnitude, or of this
  // number if that is greater.
  T min_magnitude = 0;
};

// The order of summation. An output element is one accumulator, which begins at the bias and
// receives the products with x in ascending k, then those with h. The k's of an operand form blocks
// of kSumBlock, and blocks form groups of kSumGroup k's.
//
// A block's sum begins at zero (that of x's first block at the bias), receives its products in
// ascending k, and is added to its group's sum. A storage with a grain of 1 adds each product by
// one fused multiply-add; a storage with a larger grain adds `grain` products at a time, in its own
// fixed order, and the work is never divided between them. The sum of an operand's first group is
// the accumulator itself; every other group's sum begins at zero, and is added to the accumulator
// when it is complete.
//
// The error thus grows with kSumBlock + kSumGroup / kSumBlock + K / kSumGroup, not with K.
//
// Storages that round rows have an order of their own instead (rounded_phase.h).
constexpr Index kSumBlock = 128;
constexpr Index kSumGroup = 1024;
// The rows over which a weight gradient is summed also form blocks, but no groups.
constexpr Index kOuterSumBlock = 128;

template <class T>
struct PhaseCall;

// The cell's part of a phase. Runs on the complete accumulators of all rows and of the slices
// [slice_begin, slice_end).
template <class T>
using Finish = void (*)(const PhaseCall<T>& call, Index slice_begin, Index slice_end);

// One phase of a step, for some rows and slices. The accumulators begin at the bias, or at the
// values that an earlier call has left in `accumulators` (resume); the products with x and h are
// added; then the cell runs (finish). Rows of buffers marked * are padded to whole slices.
template <class T>
struct PhaseCall {
  Index rows = 0;
  Index slice_begin = 0;
  Index slice_end = 0;
  Index units = 0;  // without padding
  // Whether slices run from the last to the first. The core alternates the order between steps, so
  // that the panels read last are still cached.
  bool reversed = false;

  Product<T> x;  // all k's
  Product<T> h;  // all k's, or, if its depth is at most one group, a range of them
  // The sum of the block of h that is divided between two calls: written where h.end divides a
  // block, read where h.begin does. [gate][width] at row * accumulators_row_stride + slice *
  // partial_sums_slice_stride. Required in these cases.
  T* partial_sums = nullptr;
  Index partial_sums_slice_stride = 0;
  const T* bias = nullptr;  // [slice][gate][width]; null: zero
  // The accumulators of (row, slice): [gate][width] at row * row_stride +
  // (slice - first_slice) * slice_stride.
  T* accumulators = nullptr;
  Index accumulators_row_stride = 0;
  Index accumulators_slice_stride = 0;
  Index accumulators_first_slice = 0;
  bool resume = false;
  Finish<T> finish = nullptr;  // null: the cell does not run

  // Operands of the cell, read or written by `finish` alone.
  const CellActivations* activations = nullptr;  // null: the standard ones
  Rows<const T> h_prev;                          // *
  Rows<const T> c_prev;                          // *
  Rows<T> h_next;  // * h, or before a projection o * tanh(c); may be absent for kLinear
  Rows<T> c_next;  // *
  Rows<T> y;       // a copy of h without padding; may be absent
  Rows<T> saved;   // * [gate of the cell][unit]: activated gates for backward; may be absent
  Index saved_gate_stride = 0;
  const T* peephole = nullptr;  // [slice][i f o][width]
  // Written by the first of two phases and read by the second.
  Rows<T> gated_h;      // * the operand of the second phase's product, instead of h_prev
  Rows<T> phase_state;  // * a gate that the second phase also needs
};

// The derivative of a phase's `finish`, for some rows and slices. The phases of a step run in
// reverse order, and gradients pass from a later phase to an earlier one in three ways:
// - by h_prev along a direct path (gate * h_prev): in `dh`, to which each phase adds its part;
// - through the product with gated_h: the core computes `dgated_h` from the later phase's dgates
//   before the earlier phase runs;
// - by a gate of the earlier phase that the later one reads: the later phase writes its part of the
//   gradient to that gate's `dgates` (by the gate's value, not yet by its pre-activation), and the
//   earlier phase completes it.
template <class T>
struct BackwardCall {
  Index rows = 0;
  Index slice_begin = 0;
  Index slice_end = 0;
  Index units = 0;

  const CellActivations* activations = nullptr;  // null: the standard ones
  Rows<const T> saved;                           // * as in PhaseCall
  Index saved_gate_stride = 0;
  Rows<const T> h_prev;  // *
  Rows<const T> c_prev;  // *
  Rows<const T> c_next;  // *
  const T* peephole = nullptr;

  Rows<T> dh;      // * in: gradient by h; out, if the cell has a direct path: by h_prev along it
  Rows<T> dc;      // * in: gradient by c; out: by c_prev
  Rows<T> dgates;  // gradient by the pre-activations, [gate of the cell][unit] without padding

  Rows<T> cell_output;     // * o * tanh(c), for the projection's gradient; may be absent
  Rows<T> dpeephole;       // [i f o][unit] without padding: the row's part of the peephole gradient
  Rows<T> gated_h;         // * as in PhaseCall; written for the weight gradient
  Rows<const T> dgated_h;  // * gradient by gated_h
};

// A weight gradient: result[m][n] (+)= sum over r of left[r][m] * right[r][n]. The rows are summed
// in blocks of kOuterSumBlock, as k's are; in a storage's own kernel, in the order of its products.
template <class T>
struct OuterCall {
  Index depth = 0;  // the number of rows r
  Rows<const T> left;
  Index left_columns = 0;  // m
  Rows<const T> right;
  Index right_columns = 0;  // n
  Rows<T> result;
  bool resume = false;   // whether to add to `result` or overwrite it
  T* scratch = nullptr;  // OuterKernels::scratch or StorageKernels::outer_scratch elements
};

// A block of parameters that fills a part of a panel: the k's [k_begin, k_end) of one gate, all
// units. Element (k, unit) is sign * base[(k - k_begin) * k_stride + unit * unit_stride]; one of
// the strides is 1.
template <class T>
struct WeightBlock {
  Index gate = 0;
  Index k_begin = 0;
  Index k_end = 0;
  const T* base = nullptr;
  Index k_stride = 0;
  Index unit_stride = 0;
  T sign = 1;
  // Of the units; only for kInt8Weights. All blocks of a gate have the same scales and sign.
  const T* scales = nullptr;
};

// The number of k's packed at a time. All elements of a unit's cache lines are then read before the
// lines of other units, which may all map to the same set, evict them. A multiple of the k's that
// are padded, of every storage.
constexpr Index kPackedDepth = 64;

// Packs the k's [k_begin, k_end) of a block for one slice, with zeros beyond the units. A grain at
// an end of the range may also hold k's of the neighbouring block, which another call packs.
template <class T>
struct PackCall {
  void* panel = nullptr;
  PanelShape shape;
  WeightBlock<T> block;
  Index slice = 0;
  Index k_begin = 0;
  Index k_end = 0;
};

// One step of Adam or SGD (kernels/optimizers.h); arrays have `count` elements. Every operation is
// rounded separately, in the order of the formula.
//
//   g = gradient + l2 * values                        (l2 0: g = gradient)
//   exp_avg    = beta1 * exp_avg    + one_minus_beta1 * g
//   exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * g * g
//   values = decay * values -
//            exp_avg / (sqrt(exp_avg_sq) / root_correction2 + eps) * step_size
template <class T>
struct AdamCall {
  Index count = 0;
  T* values = nullptr;
  const T* gradient = nullptr;
  T* exp_avg = nullptr;
  T* exp_avg_sq = nullptr;
  T l2 = 0;
  T decay = 1;
  T beta1 = 0, one_minus_beta1 = 1;
  T beta2 = 0, one_minus_beta2 = 1;
  T root_correction2 = 1;
  T eps = 0;
  T step_size = 0;
};

//   g = gradient + l2 * values                        (l2 0: g = gradient)
//   buffer = momentum * buffer + one_minus_dampening * g                     (first: buffer = g)
//   values -= lr * buffer            (nesterov: lr * (g + momentum * buffer); no buffer: lr * g)
template <class T>
struct SgdCall {
  Index count = 0;
  T* values = nullptr;
  const T* gradient = nullptr;
  T* momentum_buffer = nullptr;  // null: no momentum
  bool first = false;
  bool nesterov = false;
  T l2 = 0;
  T momentum = 0;
  T one_minus_dampening = 1;
  T lr = 0;
};

// Arrays are summed in double, in blocks of this many elements; the sums of blocks are added in
// ascending order.
constexpr Index kReductionBlock = 1024;

// Losses (kernels/losses.h) of contiguous rows of `classes` elements, and the gradient of their sum
// multiplied by `scale`.
template <class T>
struct SoftmaxCall {
  Index rows = 0;
  Index classes = 0;
  const T* logits = nullptr;
  const Index* targets = nullptr;  // in 0..classes-1
  T* gradient = nullptr;           // like logits
  double* losses = nullptr;        // one per row
  double scale = 1;
};

// Losses of at most kReductionBlock elements, and the gradient of their sum multiplied by `scale`.
template <class T>
struct ElementwiseLossCall {
  Index count = 0;
  const T* prediction = nullptr;
  const T* target = nullptr;
  T* gradient = nullptr;
  T scale = 1;
};

// The kinds of storage of weights, each in a file of kernels/.
enum StorageKind {
  kExactWeights,  // in the type of the computation
  // For float alone. The rows that are multiplied by the weights are rounded, too.
  kBf16Weights,     // bfloat16, with sums in the order of matrix units
  kBf16DotWeights,  // bfloat16, with sums in the order of instructions for dot products
  kInt8Weights,     // integers of 8 bits, with a scale for each unit
  kStorageKinds
};

// The costs of a storage in the cost model of calls. A flop of a float product on exact weights
// costs 1.
struct StorageCost {
  const char* name;      // for explanations
  double product_flops;  // cost of a flop of a product
  double cell_flops;     // cost of a flop of a cell
  double weight_bytes;   // bytes per weight
};

// The kernels of a storage.
template <class T>
struct StorageKernels {
  StorageKind kind;
  StorageCost cost;
  Index grain;  // k's that a multiply step takes together
  // The most rows of a call of `products` with operands of up to `depth` elements.
  Index (*max_rows)(Index depth);
  Index (*panel_bytes)(const PanelShape& shape);
  // The bytes of Product::rounded for some rows of `depth` elements; 0 if rows are not rounded.
  Index (*rounded_bytes)(Index rows, Index depth);
  void (*pack)(const PackCall<T>&);
  void (*products[kPhaseKinds])(const PhaseCall<T>&);
  // Weight gradients in the arithmetic of the products; see OuterKernels. Null: not available.
  Index outer_scratch = 0;
  void (*outer)(const OuterCall<T>&) = nullptr;
  // A measurement of the machine: `rounds` rounds of independent multiply steps on registers, of
  // peak_round_flops each (an integer's operation counts as a flop). The result only prevents the
  // compiler from removing the work.
  Index peak_round_flops;
  T (*peak_rounds)(Index rounds);
};

// The grain of a storage whose products are never divided.
constexpr Index kWholeDepth = INT64_MAX;

// The greatest depth of products in int8: their sums of up to 128 * 127 per k fit into 32 bits.
constexpr Index kMaxInt8Depth = Index{1} << 17;
// Rounding to int8 gives integers in -kInt8Levels..kInt8Levels. Vectors whose greatest magnitude is
// below kLeastInt8Magnitude count as zeros: the inverse of their scale could overflow. The core
// rounds weights, once, and kernels round rows.
constexpr int kInt8Levels = 127;
constexpr float kLeastInt8Magnitude = 0x1p-100f;

// The kernels of cells.
template <class T>
struct CellKernels {
  Finish<T> finish[kPhaseKinds];                          // with the standard activations
  Finish<T> finish_chosen[kPhaseKinds];                   // with the activations that a call names
  void (*backward[kPhaseKinds])(const BackwardCall<T>&);  // null for kLinear

  // The function for calls with these activations (null: the standard ones).
  Finish<T> finish_of(PhaseKind kind, const CellActivations* activations) const {
    return activations ? finish_chosen[kind] : finish[kind];
  }
};

// The kernels for weight gradients and sums of rows.
template <class T>
struct OuterKernels {
  Index scratch;  // elements of OuterCall::scratch
  void (*outer)(const OuterCall<T>&);
  // sum[j] (+)= rows[0][j] + rows[1][j] + ..., for j < columns: in blocks of kOuterSumBlock rows.
  void (*sum_rows)(Rows<const T> rows, Index count, Index columns, T* sum, bool resume);
  // to[r][j] += from[r][j] for j < columns.
  void (*add_rows)(Rows<const T> from, Rows<T> to, Index count, Index columns);
};

// Passes over arrays: optimisers, losses, and measurements of the machine.
template <class T>
struct ArrayKernels {
  void (*adam)(const AdamCall<T>&);
  void (*sgd)(const SgdCall<T>&);
  // values[i] *= factor.
  void (*scale)(T* values, Index count, T factor);
  // The sum over a block, in double; the same bits on every ISA.
  double (*sum_of_squares)(const T* values, Index count);

  void (*softmax_cross_entropy)(const SoftmaxCall<T>&);
  // These return the sum of the losses.
  double (*binary_cross_entropy)(const ElementwiseLossCall<T>&);
  double (*mse)(const ElementwiseLossCall<T>&);

  // A measurement of the machine: `passes` reads of `count` elements, except for a remainder of a
  // few vectors. The result only prevents the compiler from removing the work.
  T (*read_all)(const T* data, Index count, Index passes);
};

// All kernels for one type on one ISA. Each table comes from its own object file.
template <class T>
struct Kernels {
  int width;                                         // elements of a vector
  const StorageKernels<T>* storages[kStorageKinds];  // null: not available for this type
  const CellKernels<T>* cells;
  const OuterKernels<T>* outer;
  const ArrayKernels<T>* arrays;

  const StorageKernels<T>& exact() const { return *storages[kExactWeights]; }
};

struct KernelTable {
  const char* isa;
  Kernels<float> f32;
  Kernels<double> f64;
};

}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_TABLE_H_
