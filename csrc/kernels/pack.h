// Packs parameters into panels, in which the weights of a slice's units form vectors.
#ifndef TIDEGATE_KERNELS_PACK_H_
#define TIDEGATE_KERNELS_PACK_H_

#include <utility>

#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// Interleaves the lanes of a's and b's first halves (half 0), or of their second halves (half 1).
template <int half, class T, int... i>
TIDEGATE_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  constexpr int kWidth = Vec<T>::width;
  return {__builtin_shufflevector(a.v, b.v, (half * kWidth / 2 + i / 2 + i % 2 * kWidth)...)};
}

// Transposes a square matrix of one vector per row. Interleaving row i with row i + width / 2 moves
// the highest bit of the row's index to the lowest bit of the lane's, and the highest bit of the
// lane's to the lowest of the row's. After as many interleavings as an index has bits, the two
// indices are exchanged.
template <class T>
TIDEGATE_INLINE void transpose(Vec<T> (&rows)[Vec<T>::width]) {
  constexpr int kWidth = Vec<T>::width;
  constexpr auto kLanes = std::make_integer_sequence<int, kWidth>();
#pragma GCC unroll 4
  for (int done = 1; done < kWidth; done *= 2) {
    Vec<T> next[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + kWidth / 2], kLanes);
      next[2 * i + 1] = interleave<1>(rows[i], rows[i + kWidth / 2], kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) rows[i] = next[i];
  }
}

// Calls f(k, weights) for each k of a call, with the weights of the slice's units, and zeros in the
// lanes beyond them.
template <class T, class F>
TIDEGATE_INLINE void each_packed_vector(const PackCall<T>& call, const F& f) {
  constexpr Index kWidth = Vec<T>::width;
  const WeightBlock<T>& block = call.block;
  const Index unit = call.slice * kWidth;
  const Index lanes = call.shape.units - unit < kWidth ? call.shape.units - unit : kWidth;
  const auto from = [&](Index k) {
    return block.base + unit * block.unit_stride + (k - block.k_begin) * block.k_stride;
  };
  const Vec<T> sign = broadcast(block.sign);
  Index k = call.k_begin;
  if (lanes == kWidth && block.unit_stride == 1) {
    for (; k < call.k_end; ++k) f(k, sign * load(from(k)));
  } else if (lanes == kWidth) {
    for (; k + kWidth <= call.k_end; k += kWidth) {
      Vec<T> rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) rows[i] = load(from(k) + i * block.unit_stride);
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) f(k + i, sign * rows[i]);
    }
  }
  for (; k < call.k_end; ++k) {
    T weights[kWidth] = {};
    for (Index lane = 0; lane < lanes; ++lane)
      weights[lane] = block.sign * from(k)[lane * block.unit_stride];
    f(k, load(weights));
  }
}

// The packing of a storage of grain 1: panels [slice][k][gate][width].
template <class Weights>
struct VectorPanels {
  static Index panel_bytes(const PanelShape& shape) {
    constexpr Index kWidth = Vec<typename Weights::Value>::width;
    const Index slices = (shape.units + kWidth - 1) / kWidth;
    return slices * shape.depth * shape.gates * kWidth *
           static_cast<Index>(sizeof(typename Weights::Element));
  }

  template <class T>
  static void pack(const PackCall<T>& call) {
    static_assert(Weights::grain == 1);
    constexpr Index kWidth = Vec<T>::width;
    const PanelShape& shape = call.shape;
    const Index to_step = shape.gates * kWidth;  // from k to k + 1
    auto* const to = static_cast<typename Weights::Element*>(call.panel) +
                     (call.slice * shape.depth * shape.gates + call.block.gate) * kWidth;
    each_packed_vector(call, [&](Index k, Vec<T> weights) __attribute__((always_inline)) {
      Weights::store(to + k * to_step, weights);
    });
  }
};

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_PACK_H_
