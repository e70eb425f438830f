// Kernel calls cut into pieces, between which the call may end early: a product of hundreds of
// thousands of rows takes seconds. Cuts lie between rows, or between blocks of a gradient's sums,
// so that the results are bitwise the same.
#ifndef TIDEGATE_CORE_PIECES_H_
#define TIDEGATE_CORE_PIECES_H_

#include <algorithm>

#include "core/interruption.h"
#include "kernels/table.h"

namespace tidegate {

// The multiply-adds of a piece: some milliseconds, or at the slowest rate a tenth of a second.
constexpr Index kPieceProducts = Index{1} << 29;
// The sides of a piece of a weight's gradient: on the left, the columns that the kernel packs at a
// time; on the right, enough columns to make the time for packing negligible.
constexpr Index kPieceLeft = 384;
constexpr Index kPieceRight = 4096;

// `rows` rounded down to whole blocks of a gradient's sums; at least one block.
constexpr Index whole_blocks(Index rows) {
  return std::max<Index>(1, rows / kOuterSumBlock) * kOuterSumBlock;
}

// Advances the operands of a call so that it begins at row `first`.
template <class T>
void skip_rows(PhaseCall<T>& call, Index first) {
  for (Rows<const T>* rows : {&call.x.rows, &call.h.rows, &call.h_prev, &call.c_prev})
    *rows = rows->from(first);
  for (Rows<T>* rows :
       {&call.h_next, &call.c_next, &call.y, &call.saved, &call.gated_h, &call.phase_state}) {
    *rows = rows->from(first);
  }
  for (T** tiles : {&call.accumulators, &call.partial_sums}) {
    if (*tiles) *tiles += first * call.accumulators_row_stride;
  }
}
template <class T>
void skip_rows(BackwardCall<T>& call, Index first) {
  for (Rows<const T>* rows :
       {&call.saved, &call.h_prev, &call.c_prev, &call.c_next, &call.dgated_h}) {
    *rows = rows->from(first);
  }
  for (Rows<T>* rows :
       {&call.dh, &call.dc, &call.dgates, &call.cell_output, &call.dpeephole, &call.gated_h}) {
    *rows = rows->from(first);
  }
}

// Runs kernel(call), whose rows take about `row_products` multiply-adds each, on at most `max_rows`
// rows at a time. If the call ends early, some rows are left out. `interruption`: null if it never
// ends early.
template <class Call>
void run_rows(void (*kernel)(const Call&), const Call& call, Index row_products,
              Interruption* interruption, Index max_rows = INT64_MAX) {
  Index most = max_rows;
  if (interruption != nullptr)
    most = std::clamp<Index>(kPieceProducts / std::max<Index>(1, row_products), 1, max_rows);
  if (call.rows <= most) return kernel(call);
  Call piece = call;
  for (Index first = 0; first < call.rows; first += most) {
    if (interruption != nullptr && interruption->requested_now()) return;
    piece.rows = std::min(most, call.rows - first);
    kernel(piece);
    skip_rows(piece, most);
  }
}

// Runs a kernel for weight gradients in pieces.
template <class T>
void run_outer(void (*kernel)(const OuterCall<T>&), const OuterCall<T>& whole,
               Interruption* interruption) {
  if (interruption == nullptr) return kernel(whole);
  // Rows given by a table cannot be advanced to a later column.
  const Index right_columns = whole.right.table ? whole.right_columns : kPieceRight;
  for (Index m = 0; m < whole.left_columns; m += kPieceLeft) {
    for (Index n = 0; n < whole.right_columns; n += right_columns) {
      OuterCall<T> call = whole;
      call.left.base += m;
      call.left_columns = std::min(kPieceLeft, whole.left_columns - m);
      if (n > 0) call.right.base += n;
      call.right_columns = std::min(right_columns, whole.right_columns - n);
      call.result.base += m * whole.result.stride + n;
      const Index depth = whole_blocks(kPieceProducts / (call.left_columns * call.right_columns));
      for (Index k = 0; k < whole.depth || k == 0; k += depth) {
        if (interruption->requested_now()) return;
        call.depth = std::min(depth, whole.depth - k);
        call.resume = whole.resume || k > 0;
        kernel(call);
        call.left = call.left.from(depth);
        call.right = call.right.from(depth);
      }
    }
  }
}

// Runs OuterKernels::sum_rows in pieces.
template <class T>
void run_sum_rows(const Kernels<T>& kernels, Rows<const T> rows, Index count, Index columns,
                  T* sums, bool resume, Interruption* interruption) {
  if (interruption == nullptr) return kernels.outer->sum_rows(rows, count, columns, sums, resume);
  const Index piece = whole_blocks(kPieceProducts / std::max<Index>(1, columns));
  for (Index r = 0; (r < count || r == 0) && !interruption->requested_now(); r += piece) {
    kernels.outer->sum_rows(rows.from(r), std::min(piece, count - r), columns, sums,
                            resume || r > 0);
  }
}

}  // namespace tidegate

#endif  // TIDEGATE_CORE_PIECES_H_
