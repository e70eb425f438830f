// The sigmoid and softmax functions of rows.
#include "tidegate/functions.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace tidegate {
namespace {

void check_size(Index rows, Index columns) {
  require_size("rows", rows, 0);
  require_size("columns", columns, 0);
}

template <class T>
void softmax_of_row(const T* x, T* y, Index columns) {
  T shift = x[0];
  for (Index i = 1; i < columns; ++i) shift = std::max(shift, x[i]);
  T sum = 0;
  for (Index i = 0; i < columns; ++i) {
    y[i] = std::exp(x[i] - shift);
    sum += y[i];
  }
  for (Index i = 0; i < columns; ++i) y[i] /= sum;
}

}  // namespace

template <class T>
T sigmoid(T x) noexcept {
  // exp of a negative number cannot overflow, and keeps the precision of a small result.
  const T e = std::exp(-std::abs(x));
  return (x < 0 ? e : T(1)) / (1 + e);
}

template <class T>
void sigmoid(const T* x, Index x_stride, T* y, Index y_stride, Index rows, Index columns) {
  check_size(rows, columns);
  for (Index r = 0; r < rows; ++r) {
    std::transform(x + r * x_stride, x + r * x_stride + columns, y + r * y_stride,
                   [](T value) { return sigmoid(value); });
  }
}

template <class T>
void softmax(const T* x, Index x_stride, T* y, Index y_stride, Index rows, Index columns) {
  check_size(rows, columns);
  if (columns == 0) return;
  for (Index r = 0; r < rows; ++r) softmax_of_row(x + r * x_stride, y + r * y_stride, columns);
}

template float sigmoid(float) noexcept;
template double sigmoid(double) noexcept;
template void sigmoid(const float*, Index, float*, Index, Index, Index);
template void sigmoid(const double*, Index, double*, Index, Index, Index);
template void softmax(const float*, Index, float*, Index, Index, Index);
template void softmax(const double*, Index, double*, Index, Index, Index);

}  // namespace tidegate
