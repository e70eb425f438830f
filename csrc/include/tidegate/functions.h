// Sigmoid and softmax of logits, such as the outputs of a Linear. float and double are instantiated
// in the library.
//
// These are plain loops over the C library's exp, on the calling thread, for heads of few outputs.
// They allocate nothing, take no lock and make no system call. NaN and infinities propagate as in
// PyTorch.
//
// Strides are the distances between rows in elements. y may be x with the same stride; it must not
// overlap x otherwise. Negative rows or columns throw a std::invalid_argument that names them.
#ifndef TIDEGATE_FUNCTIONS_H_
#define TIDEGATE_FUNCTIONS_H_

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

// 1 / (1 + exp(-x)), within a few ulp over the whole range of x.
template <class T>
TIDEGATE_EXPORT T sigmoid(T x) noexcept;

// The sigmoid of each element: x (rows, columns) -> y (rows, columns).
template <class T>
TIDEGATE_EXPORT void sigmoid(const T* x, Index x_stride, T* y, Index y_stride, Index rows,
                             Index columns);

// y_i = exp(x_i - m) / sum_j exp(x_j - m) within each row, where m is its greatest element:
// x (rows, columns) -> y (rows, columns). A row that contains NaN or +infinity, or only -infinity,
// becomes NaN. The relative error of an element is at most columns + 2 r + 5 units of roundoff,
// where r is the difference between the greatest and the least element of the row.
template <class T>
TIDEGATE_EXPORT void softmax(const T* x, Index x_stride, T* y, Index y_stride, Index rows,
                             Index columns);

}  // namespace tidegate

#endif  // TIDEGATE_FUNCTIONS_H_
