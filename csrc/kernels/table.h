// The border between the core and the kernels: a table of function pointers on plain types, one for
// each ISA. No SIMD type crosses it.
//
// Units (hidden units, or outputs of a product) are cut into slices of `width`, one vector each,
// and padded with zeros to whole slices. Weights are packed into panels, whose layout belongs to
// their storage (kernels/storage.h): the core asks for its bytes, has it packed, and hands it on.
#ifndef TIDEGATE_KERNELS_TABLE_H_
#define TIDEGATE_KERNELS_TABLE_H_

#include <cstdint>

#include "kernels/spec.h"
#include "tidegate/activation.h"

namespace tidegate {

using Index = std::int64_t;

// Rows of a matrix: a constant stride apart, or anywhere (table). Elements of a row are contiguous.
template <class T>
struct Rows {
  T* base = nullptr;
  Index stride = 0;
  T* const* table = nullptr;

  T* operator[](Index r) const { return table ? table[r] : base + r * stride; }
  // The rows from number `first` on; absent rows stay absent. Inlined always: the linker must not
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

// What a panel holds.
struct PanelShape {
  Index units = 0;  // without padding
  Index depth = 0;  // k's
  Index gates = 1;
};

// The k's [begin, end) of the product of rows (., depth) with a panel of that depth. end 0: absent.
// A cut other than 0 and depth is a multiple of the storage's grain.
template <class T>
struct Product {
  Rows<const T> rows;
  Panel panel = nullptr;
  Index depth = 0;
  Index begin = 0;
  Index end = 0;
};

// The order of summation. An output element is one accumulator, which begins at the bias and
// receives the products with x by ascending k, then those with h. The k's of an operand form blocks
// of kSumBlock, and blocks form groups of kSumGroup k's.
//
// A block's sum begins at zero (the first one of x at the bias), receives its products by ascending
// k, and is added to its group's sum. A storage with a grain of 1 adds each product by one fused
// multiply-add; one with a larger grain adds `grain` products at a time, in a fixed order of its
// own, and no cut of the work falls between them. The sum of an operand's first group is the
// accumulator itself; every other group's sum begins at zero, and is added to the accumulator when
// it is complete.
//
// So the error grows with kSumBlock + kSumGroup / kSumBlock + K / kSumGroup, not with K.
constexpr Index kSumBlock = 128;
constexpr Index kSumGroup = 1024;
// The rows that a weight's gradient is summed over form blocks likewise, but no groups.
constexpr Index kOuterSumBlock = 128;

template <class T>
struct PhaseCall;

// The cell's part of a phase: runs on the complete accumulators of all rows and of the slices
// [slice_begin, slice_end).
template <class T>
using Finish = void (*)(const PhaseCall<T>& call, Index slice_begin, Index slice_end);

// One phase of a step, for some rows and slices. Accumulators begin at the bias, or where an
// earlier call left them (resume); then x and h are added, and they are left in `accumulators`;
// then the cell runs (finish). Rows of buffers marked * are padded to whole slices.
template <class T>
struct PhaseCall {
  Index rows = 0;
  Index slice_begin = 0;
  Index slice_end = 0;
  Index units = 0;  // without padding
  // Whether slices run from the last to the first. The order alternates between steps, so that the
  // panels read last are still cached.
  bool reversed = false;

  Product<T> x;  // from its beginning to its end
  Product<T> h;  // part of it only where its depth is one group
  // The sum of the block that h.end cuts, written; or that h.begin cuts, read. [gate][width] at
  // row * accumulators_row_stride + slice * partial_sums_slice_stride. Needed where there is such a
  // block.
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
  Finish<T> finish = nullptr;  // null: the accumulators are left as they are

  // The cell's, read or written by `finish` alone.
  const CellActivations* activations = nullptr;  // null: the standard ones
  Rows<const T> h_prev;                          // *
  Rows<const T> c_prev;                          // *
  Rows<T> h_next;  // * h, or before a projection o * tanh(c); for kLinear may be absent
  Rows<T> c_next;  // *
  Rows<T> y;       // h once more, without padding; may be absent
  Rows<T> saved;   // * [gate of the cell][unit]: activated gates for backward; may be absent
  Index saved_gate_stride = 0;
  const T* peephole = nullptr;  // [slice][i f o][width]
  // What the first phase of two hands to the second one.
  Rows<T> gated_h;      // * the operand of the second one's product, instead of h_prev
  Rows<T> phase_state;  // * a gate that the second one needs, too
};

// The derivative of a phase's `finish`, for some rows and slices. The phases of a step run in
// reverse order, and a gradient goes from a later phase to an earlier one in three ways:
// - by h_prev along a direct path (gate * h_prev): in `dh`, to which each phase adds;
// - through the product with gated_h: the core makes `dgated_h` of the later phase's dgates before
//   the earlier phase runs;
// - by a gate of the earlier phase that the later one reads: the later phase leaves what it has of
//   it in that gate's `dgates` (by its value, not yet by its pre-activation), and the earlier one
//   completes it.
template <class T>
struct BackwardCall {
  Index rows = 0;
  Index slice_begin = 0;
  Index slice_end = 0;
  Index units = 0;

  const CellActivations* activations = nullptr;  // null: the standard ones
  Rows<const T> saved;                           // * as PhaseCall
  Index saved_gate_stride = 0;
  Rows<const T> h_prev;  // *
  Rows<const T> c_prev;  // *
  Rows<const T> c_next;  // *
  const T* peephole = nullptr;

  Rows<T> dh;      // * in: by h. Out, where the cell has a direct path: by h_prev along it
  Rows<T> dc;      // * in: by c. Out: by c_prev
  Rows<T> dgates;  // [gate of the cell][unit], without padding: by the pre-activations

  Rows<T> cell_output;     // * o * tanh(c), for the projection's gradient; may be absent
  Rows<T> dpeephole;       // [i f o][unit] dense: this row's part of the peephole gradient
  Rows<T> gated_h;         // * as PhaseCall, written for the weights' gradient
  Rows<const T> dgated_h;  // * by gated_h
};

// result[m][n] (+)= sum over r of left[r][m] * right[r][n]: a weight gradient. The rows are summed
// in blocks of kOuterSumBlock, as k's are.
template <class T>
struct OuterCall {
  Index depth = 0;  // how many rows are summed over
  Rows<const T> left;
  Index left_columns = 0;  // m
  Rows<const T> right;
  Index right_columns = 0;  // n
  Rows<T> result;
  bool resume = false;   // add to what is there
  T* scratch = nullptr;  // Kernels::outer_scratch elements
};

// A block of parameters as the part of a panel: the k's [k_begin, k_end) of one gate, all units.
// Element (k, unit) is sign * base[(k - k_begin) * k_stride + unit * unit_stride]; one of the
// strides is 1.
template <class T>
struct WeightBlock {
  Index gate = 0;
  Index k_begin = 0;
  Index k_end = 0;
  const T* base = nullptr;
  Index k_stride = 0;
  Index unit_stride = 0;
  T sign = 1;
};

// Packs of a block its k's [k_begin, k_end), which are whole grains but at the panel's end, for one
// slice; zeros beyond the units.
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
// rounded by itself, in the order of the formula.
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

// Sums over arrays are in double: of blocks of this many elements, which are added in ascending
// order.
constexpr Index kReductionBlock = 1024;

// Losses (kernels/losses.h) of rows of `classes` elements, one row after the other, and the
// gradient of their sum multiplied by `scale`.
template <class T>
struct SoftmaxCall {
  Index rows = 0;
  Index classes = 0;
  const T* logits = nullptr;
  const Index* targets = nullptr;  // in 0..classes-1
  T* gradient = nullptr;           // like logits
  double* losses = nullptr;        // one a row
  double scale = 1;
};

// The same of at most kReductionBlock elements.
template <class T>
struct ElementwiseLossCall {
  Index count = 0;
  const T* prediction = nullptr;
  const T* target = nullptr;
  T* gradient = nullptr;
  T scale = 1;
};

// The kinds of storage of weights: each is a file of kernels/.
enum StorageKind {
  kExactWeights,  // in the type that is computed in
  kBf16Weights,   // rounded to bfloat16, for float alone
  kStorageKinds
};

// What a storage costs, for the model of a call's time. A flop of a float product on exact weights
// is 1.
struct StorageCost {
  const char* name;      // in explanations
  double product_flops;  // of a flop of a product
  double cell_flops;     // of a flop of a cell
  double weight_bytes;
};

// The kernels of a storage.
template <class T>
struct StorageKernels {
  StorageCost cost;
  Index grain;  // k's that a product takes together
  Index (*panel_bytes)(const PanelShape& shape);
  void (*pack)(const PackCall<T>&);
  void (*products[kPhaseKinds])(const PhaseCall<T>&);
};

// The kernels of cells.
template <class T>
struct CellKernels {
  Finish<T> finish[kPhaseKinds];                          // with the standard activations
  Finish<T> finish_chosen[kPhaseKinds];                   // with those that a call names
  void (*backward[kPhaseKinds])(const BackwardCall<T>&);  // kLinear has none

  // For calls with these activations.
  Finish<T> finish_of(PhaseKind kind, const CellActivations* activations) const {
    return activations ? finish_chosen[kind] : finish[kind];
  }
};

// The kernels of weights' gradients and of sums of rows.
template <class T>
struct OuterKernels {
  Index scratch;  // elements
  void (*outer)(const OuterCall<T>&);
  // sum[j] (+)= rows[0][j] + rows[1][j] + ..., for j < columns: in blocks of kOuterSumBlock rows.
  void (*sum_rows)(Rows<const T> rows, Index count, Index columns, T* sum, bool resume);
  // to[r][j] += from[r][j] for j < columns.
  void (*add_rows)(Rows<const T> from, Rows<T> to, Index count, Index columns);
};

// Passes over arrays: optimisers, losses, and what measures the machine.
template <class T>
struct ArrayKernels {
  void (*adam)(const AdamCall<T>&);
  void (*sgd)(const SgdCall<T>&);
  // values[i] *= factor.
  void (*scale)(T* values, Index count, T factor);
  // The sum over a block, in double. The same bits on every ISA.
  double (*sum_of_squares)(const T* values, Index count);

  void (*softmax_cross_entropy)(const SoftmaxCall<T>&);
  // They return the sum of the losses.
  double (*binary_cross_entropy)(const ElementwiseLossCall<T>&);
  double (*mse)(const ElementwiseLossCall<T>&);

  // The machine's limits: `rounds` rounds of independent fused multiply-adds, fma_round_flops each;
  // and `passes` reads of `count` elements (but a last part of a few vectors). The results only
  // keep the work from being optimised away.
  Index fma_round_flops;
  T (*fma_rounds)(Index rounds);
  T (*read_all)(const T* data, Index count, Index passes);
};

// All kernels of one type on one ISA. Each part is an object file with its table.
template <class T>
struct Kernels {
  int width;                                         // elements of a vector
  const StorageKernels<T>* storages[kStorageKinds];  // null: not for this type
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
