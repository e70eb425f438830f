// Numbers in bfloat16, the upper half of a float: what the storages of such weights share. They
// differ in the order of their sums alone (bf16_weights.cc, bf16_dot_weights.cc).
//
// Weights and rows are rounded to the nearest number, ties to even. Accumulators, and everything
// that a cell computes, are float. Denormal operands and results count as zeros.
#ifndef TIDEGATE_KERNELS_BF16_H_
#define TIDEGATE_KERNELS_BF16_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/rounded_outer.h"
#include "kernels/rounded_phase.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// The nearest numbers with the upper 16 bits of a float, ties to even. A NaN becomes a quiet NaN.
TIDEGATE_INLINE Vec<float> rounded(Vec<float> x) {
  const Pairs bits = (Pairs)x.v;
  const Pairs nearest = bits + 0x7fff + ((bits >> 16) & 1);
  const Pairs is_nan = (Pairs)(x.v != x.v);
  const Pairs result = (is_nan & (bits | 0x400000)) | (~is_nan & nearest);
  return {(Vec<float>::Native)(result & 0xffff0000)};
}

// The members of a storage that do not depend on the order of sums (rounded_phase.h). An element of
// a rounded row is its upper half, for instructions that take pairs of them, or a float whose lower
// half is zero, which a fused multiply-add takes.
template <class RowElement>
struct Bf16Storage {
  using Element = std::uint16_t;
  using Row = RowElement;
  static constexpr Index group = 2;
  static constexpr bool has_scales = false;

  static TIDEGATE_INLINE void round(Element* to, Vec<float> weights, Vec<float>) {
    store_halves(to, rounded(weights), Vec<float>::width);
  }
  static TIDEGATE_INLINE void store_pairs(Element* to, Vec<float> first, Vec<float> second) {
    const Pairs pairs = (Pairs)rounded(first).v >> 16 | (Pairs)rounded(second).v;
    __builtin_memcpy(to, &pairs, sizeof pairs);
  }

  static RowScale round_row(const float* from, Index depth, float, Row* to) {
    constexpr Index kWidth = Vec<float>::width;
    const auto store_row = [](Row* at, Vec<float> x, int count) {
      if constexpr (!std::is_same_v<Row, float>) {
        store_halves(at, x, count);
      } else if (count == kWidth) {
        store(at, x);
      } else {
        store_partial(at, x, count);
      }
    };
    Index k = 0;
    for (; k + kWidth <= depth; k += kWidth) store_row(to + k, rounded(load(from + k)), kWidth);
    if (k < depth) {
      const int left = static_cast<int>(depth - k);
      store_row(to + k, rounded(load_partial(from + k, left)), left);
    }
    return {};
  }

  // A pair of a row, and each of its numbers, in every lane.
  static TIDEGATE_INLINE Pairs broadcast_pair(const Element* pair) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, pair, sizeof bits);
    return bits - Pairs{};
  }
  static TIDEGATE_INLINE Vec<float> first_number(const Row* pair) {
    if constexpr (std::is_same_v<Row, float>) {
      return broadcast(pair[0]);
    } else {
      return first_of_pairs(broadcast_pair(pair));
    }
  }
  static TIDEGATE_INLINE Vec<float> second_number(const Row* pair) {
    if constexpr (std::is_same_v<Row, float>) {
      return broadcast(pair[1]);
    } else {
      return second_of_pairs(broadcast_pair(pair));
    }
  }

  // The measurement of a peak, of steps by fused multiply-adds.
  [[maybe_unused]] static constexpr Index step_flops = 2 * Vec<float>::width;
  template <int chains>
  static float steps(Index rounds) {
    return steps_of<chains>(rounds, broadcast(0.5f), broadcast(0.25f), fma_of_halves);
  }
  // Of other steps: multiply(x, w, sums).
  template <int chains, class Operand, class Multiply>
  static TIDEGATE_INLINE float steps_of(Index rounds, Operand x, Operand w,
                                        const Multiply& multiply) {
    Vec<float> sums[chains];
    for (int i = 0; i < chains; ++i) sums[i] = broadcast(1.0f / static_cast<float>(1 + i));
    for (Index round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < chains; ++i) sums[i] = multiply(x, w, sums[i]);
    }
    return sum_of(sums);
  }

 private:
  // The upper halves of the first numbers of x, whose lower halves are zero.
  static TIDEGATE_INLINE void store_halves(Element* to, Vec<float> x, int count) {
    typedef Element Halves __attribute__((vector_size(vector_bytes / 2)));
    const Halves halves = __builtin_convertvector((Pairs)x.v >> 16, Halves);
    __builtin_memcpy(to, &halves, static_cast<std::size_t>(count) * sizeof *to);
  }
};

// The kernels of a storage, with weight gradients.
template <class Weights>
constexpr StorageKernels<float> bf16_kernels() {
  StorageKernels<float> kernels = rounded_kernels<Weights>();
  kernels.outer_scratch = RoundedOuter<Weights>::scratch();
  kernels.outer = RoundedOuter<Weights>::outer;
  return kernels;
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_BF16_H_
