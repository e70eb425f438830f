// The kernels for weights and rows in integers of 8 bits.
//
// A vector v (a row of x or h at one step; the weights of one unit and gate) is represented by
// integers q in -127..127 and a scale: v is about q * scale. For a row,
//
//   m = max(|v_k|, ..., least), or 127 if that is below 2^-100
//   q_k = v_k * (127 / m), rounded to the nearest integer, ties to even
//   scale = m / 127
//
// in float, each operation rounded. If the row has a NaN or an infinity, its scale is NaN and its
// q are zero, so that the pre-activations that it enters are NaN, and no others.
//
// The sum of q_weight * q_row is exact in 32 bits (kMaxInt8Depth). It is added to an accumulator a
// as a + (sum * scale_weight) * scale_row, in float, each operation rounded. A result thus has the
// same bits on every ISA.
#include "kernels/isa_tables.h"
#include "kernels/rounded_phase.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

using Words = Vec<float>::Bits;  // 32 bits
using HalfShorts = std::int16_t __attribute__((vector_size(vector_bytes / 2)));
using HalfBytes = std::int8_t __attribute__((vector_size(vector_bytes / 2)));

// The nearest integers to numbers below 2^22, ties to even: adding 1.5 * 2^23 rounds, and leaves
// the integer in the low bits of the sum.
TIDEGATE_INLINE Words nearest(Vec<float> x) {
  const Vec<float> shift = broadcast(12582912.0f);
  return (Words)(x + shift).v - (Words)shift.v;
}

struct Int8Weights {
  static constexpr StorageKind kind = kInt8Weights;
  using Element = std::int8_t;
  using Row = std::int16_t;
  static constexpr Index group = 2;
  static constexpr Index grain = kWholeDepth;
  static constexpr bool has_scales = true;
  static constexpr StorageCost cost = {"int8", 0.5, 1, 1};

  // A step of k's holds the widened weights of the tile's vectors, a pair of a row, and a product,
  // besides the sums.
  static constexpr int row_vectors = 8;
  static constexpr int tile_vectors = 4;
  static constexpr int tile_rows = vector_registers == 32 ? 5 : 2;

  static Element round(float weight, float scale) {
    return static_cast<Element>(nearest(broadcast(weight / scale))[0]);
  }

  static float round_row(const float* from, Index depth, float least, Row* to) {
    constexpr Index kWidth = Vec<float>::width;
    const auto vector = [&](Index k) {
      const Index left = depth - k;
      return left >= kWidth ? load(from + k) : load_partial(from + k, static_cast<int>(left));
    };
    // Magnitudes are ordered as their bits are; infinity and NaN are above all numbers.
    Words greatest = {};
    for (Index k = 0; k < depth; k += kWidth) {
      const Words bits = (Words)abs(vector(k)).v;
      greatest = bits > greatest ? bits : greatest;
    }
    std::int32_t bits = 0;
    for (int lane = 0; lane < kWidth; ++lane) bits = greatest[lane] > bits ? greatest[lane] : bits;
    float most;
    __builtin_memcpy(&most, &bits, sizeof most);
    if (!(most <= __FLT_MAX__)) {
      for (Index k = 0; k < depth; ++k) to[k] = 0;
      return __builtin_nanf("");
    }
    if (most < least) most = least;
    if (most < 0x1p-100f) most = 127;
    const Vec<float> inverse = broadcast(127 / most);
    for (Index k = 0; k < depth; k += kWidth) {
      const HalfShorts q = __builtin_convertvector(nearest(vector(k) * inverse), HalfShorts);
      if (depth - k >= kWidth) {
        __builtin_memcpy(to + k, &q, sizeof q);
      } else {
        for (Index i = k; i < depth; ++i) to[i] = q[i - k];
      }
    }
    return most / 127;
  }

  template <int R, int S, int Count>
  static TIDEGATE_INLINE void add_product(Vec<float> (&sums)[R][S][Count], const Row* const (&a)[R],
                                          const float (&scales)[R],
                                          const TileWeights<Int8Weights>& tile, Index depth) {
    using Panels = RoundedPanels<Int8Weights>;
    constexpr Index kStep = group * Vec<float>::width;
    Words products[R][S][Count] = {};
    const Element* block = tile.weights;
    const Row* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = a[r];
    for (Index k = 0; k < depth; k += Panels::kBlock, block += tile.block_stride) {
      const Index steps = (min_of(depth - k, Panels::kBlock) + group - 1) / group;
      const Element* weights = block;
      for (Index step = 0; step < steps; ++step, weights += kStep) {
        Shorts w[S][Count];
        each_vector<1, S, Count>([&](int, int s, int g) __attribute__((always_inline)) {
          HalfBytes bytes;
          __builtin_memcpy(&bytes, weights + s * tile.slice_stride + g * Panels::kGateBlock,
                           sizeof bytes);
          w[s][g] = __builtin_convertvector(bytes, Shorts);
        });
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          std::int32_t pair;
          __builtin_memcpy(&pair, row[r], sizeof pair);
          row[r] += group;
          const Shorts x = (Shorts)(pair - Words{});
          each_vector<1, S, Count>([&](int, int s, int g) __attribute__((always_inline)) {
            products[r][s][g] += sums_of_pairs(x, w[s][g]);
          });
        }
      }
    }
    each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
      const Vec<float> sum = {__builtin_convertvector(products[r][s][g], Vec<float>::Native)};
      const Vec<float> scale =
          load(tile.scales + s * tile.scales_slice_stride + g * Vec<float>::width);
      sums[r][s][g] = sums[r][s][g] + sum * scale * broadcast(scales[r]);
    });
  }
};

}  // namespace

const StorageKernels<float> TIDEGATE_TABLE(int8_weights) = rounded_kernels<Int8Weights>();

}  // namespace tidegate
