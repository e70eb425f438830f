// Loops over arrays, vector by vector, and sums of arrays; no formula of a loss or an optimiser.
#ifndef TIDEGATE_KERNELS_ELEMENTWISE_H_
#define TIDEGATE_KERNELS_ELEMENTWISE_H_

#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// The position of a vector in several arrays of one length: a whole vector, or the first lanes of
// one at the arrays' end.
template <class T>
struct WholeVector {
  Index at;
  Vec<T> load(const T* array) const { return tidegate::load(array + at); }
  void store(T* array, Vec<T> x) const { tidegate::store(array + at, x); }
};

template <class T>
struct PartialVector {
  Index at;
  int lanes;
  Vec<T> load(const T* array) const { return load_partial(array + at, lanes); }
  void store(T* array, Vec<T> x) const { store_partial(array + at, x, lanes); }
};

// Calls update(position) for each vector of `count` elements.
template <class T, class Update>
TIDEGATE_INLINE void for_each_vector(Index count, const Update& update) {
  constexpr Index kWidth = Vec<T>::width;
  Index at = 0;
  for (; at + kWidth <= count; at += kWidth) update(WholeVector<T>{at});
  if (at < count) update(PartialVector<T>{at, static_cast<int>(count - at)});
}

// f(element 0) + f(element 1) + ..., where f maps double to double. Every ISA adds in the order
// written here: eight chains, element i in chain i mod 8, added pairwise at the end; no product is
// fused with a sum.
template <class T, class F>
TIDEGATE_INLINE double sum_in_double(const T* x, Index count, const F& f) {
  constexpr int kChains = 8;
  double chains[kChains] = {};
  Index i = 0;
  for (; i + kChains <= count; i += kChains) {
#pragma GCC unroll 8
    for (int k = 0; k < kChains; ++k) chains[k] += f(static_cast<double>(x[i + k]));
  }
  for (int k = 0; i < count; ++i, ++k) chains[k] += f(static_cast<double>(x[i]));
  for (int half = kChains / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
    for (int k = 0; k < half; ++k) chains[k] += chains[k + half];
  }
  return chains[0];
}

template <class T>
TIDEGATE_INLINE double sum_in_double(const T* x, Index count) {
  return sum_in_double(x, count, [](double value) { return value; });
}

template <class T>
void scale(T* values, Index count, T factor) {
  for_each_vector<T>(count, [&](auto position) __attribute__((always_inline)) {
    position.store(values, position.load(values) * broadcast(factor));
  });
}

template <class T>
double sum_of_squares(const T* values, Index count) {
  return sum_in_double(values, count, [](double value) { return value * value; });
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_ELEMENTWISE_H_
