// Matrices for tests of the kernels: strided or scattered rows, with guards around them.
#ifndef TIDEGATE_TESTS_MATRIX_H_
#define TIDEGATE_TESTS_MATRIX_H_

#include <algorithm>
#include <limits>
#include <vector>

#include "arrays.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

using test::Random;
using test::same;

// The value of elements that must not be written.
template <class T>
constexpr T canary = T(-77.125);

template <class T>
constexpr T nan = std::numeric_limits<T>::quiet_NaN();

// acc + a * b, rounded as by the instruction set: fused or not.
template <class T>
T multiply_add(T a, T b, T acc) {
  return fma(broadcast<T>(a), broadcast<T>(b), broadcast<T>(acc)).v[0];
}

// A (rows, columns) matrix with `gap` elements between its rows.
template <class T>
struct Matrix {
  Index rows, columns, stride;
  std::vector<T> data;
  std::vector<T*> table;

  Matrix(Index row_count, Index column_count, Index gap, T fill)
      : rows(row_count), columns(column_count), stride(column_count + gap) {
    data.assign(static_cast<std::size_t>(rows * stride + gap), fill);
    for (Index r = 0; r < rows; ++r) table.push_back(row(r));
  }

  // With these values, row by row, and guards around them.
  Matrix(Index row_count, Index column_count, const std::vector<T>& values)
      : Matrix(row_count, column_count, 3, canary<T>) {
    for (Index r = 0; r < rows; ++r) std::copy_n(values.begin() + r * columns, columns, row(r));
  }

  // Whether it has these values, row by row, and the guards.
  bool equals(const std::vector<T>& values) {
    bool all = gaps_are(canary<T>);
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < columns; ++c)
        all = all && same((*this)(r, c), values[static_cast<std::size_t>(r * columns + c)]);
    }
    return all;
  }

  // Fills the rows with random numbers, and the gaps with NaN, which must not be read.
  static Matrix random(Random& random, Index rows, Index columns) {
    Matrix matrix(rows, columns, 3, nan<T>);
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < columns; ++c) matrix(r, c) = static_cast<T>(random.number());
    }
    return matrix;
  }

  T* row(Index r) { return data.data() + r * stride; }
  T& operator()(Index r, Index c) { return row(r)[c]; }
  Rows<T> strided(Index first = 0) { return {row(first), stride, nullptr}; }
  Rows<T> scattered(Index first = 0) { return {nullptr, 0, table.data() + first}; }
  void reverse_table() { std::reverse(table.begin(), table.end()); }

  bool gaps_are(T fill) {
    bool all = true;
    for (Index r = 0; r < rows; ++r) {
      for (Index c = columns; c < stride; ++c) all = all && same(row(r)[c], fill);
    }
    for (Index i = rows * stride; i < static_cast<Index>(data.size()); ++i) {
      all = all && same(data[static_cast<std::size_t>(i)], fill);
    }
    return all;
  }
};

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_TESTS_MATRIX_H_
