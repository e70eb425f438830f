// The accumulators in memory: written by the products, read by the cell.
#ifndef TIDEGATE_KERNELS_ACCUMULATORS_H_
#define TIDEGATE_KERNELS_ACCUMULATORS_H_

#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// The accumulators of one row and slice: `[gate][width]`.
template <class T>
class Accumulators {
 public:
  explicit Accumulators(T* gates) : gates_(gates) {}

  Vec<T> operator[](int gate) const { return load<T>(gates_ + gate * Vec<T>::width); }
  void set(int gate, Vec<T> value) const { store(gates_ + gate * Vec<T>::width, value); }

 private:
  T* gates_;
};

template <class T>
inline T* accumulators_of(const PhaseCall<T>& call, Index row, Index slice) {
  return call.accumulators + row * call.accumulators_row_stride +
         (slice - call.accumulators_first_slice) * call.accumulators_slice_stride;
}

// The vectors of a tile's rows, slices and gates in memory; gates are contiguous.
template <class T, class Element = T>
struct TileMemory {
  Element* base;
  Index row_stride;
  Index slice_stride;

  Element* at(int r, int s, int g) const {
    return base + r * row_stride + s * slice_stride + g * Vec<T>::width;
  }
};

// Calls f(r, s, g) for each vector of a tile.
template <int R, int S, int Count, class F>
inline __attribute__((always_inline)) void each_vector(F&& f) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
      for (int g = 0; g < Count; ++g) f(r, s, g);
    }
  }
}

template <class T>
alignas(vector_bytes) constexpr T kZeros[kMaxGates * Vec<T>::width] = {};

// The accumulators of a tile, from gate `gate` on.
template <class T>
inline TileMemory<T> accumulators_of(const PhaseCall<T>& call, Index row, Index slice, int gate) {
  return {accumulators_of(call, row, slice) + gate * Vec<T>::width, call.accumulators_row_stride,
          call.accumulators_slice_stride};
}
// The initial values of a tile's accumulators, from gate `gate` on: the bias, or zeros.
template <int Gates, class T>
inline TileMemory<T, const T> biases_of(const PhaseCall<T>& call, Index slice, int gate) {
  constexpr Index kSlice = Gates * Vec<T>::width;
  if (!call.bias) return {kZeros<T>, 0, 0};
  return {call.bias + slice * kSlice + gate * Vec<T>::width, 0, kSlice};
}

// Sets the accumulators of R rows and S slices to the bias.
template <PhaseShape Shape, int R, int S>
inline __attribute__((always_inline)) void begin_at_bias(const PhaseCall<float>& call, Index row,
                                                         Index slice) {
  const TileMemory<float> to = accumulators_of(call, row, slice, 0);
  const TileMemory<float, const float> from = biases_of<Shape.gates>(call, slice, 0);
  each_vector<R, S, Shape.gates>([&](int r, int s, int g) __attribute__((always_inline)) {
    store(to.at(r, s, g), load(from.at(r, s, g)));
  });
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_ACCUMULATORS_H_
