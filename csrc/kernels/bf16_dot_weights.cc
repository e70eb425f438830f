// The kernels for weights and rows in bfloat16, with sums in the order of instructions for dot
// products of pairs.
//
// An accumulator receives the products of two adjacent k's at a time, by a fused multiply-add of
// the odd k, then one of the even k; k's are ascending. An odd depth is padded with a zero. This is
// the order of VDPBF16PS (AVX512-BF16), so that a result has the same bits with and without it.
#include "kernels/bf16.h"
#include "kernels/isa_tables.h"

namespace tidegate {
namespace {

#ifdef TIDEGATE_BF16_DOT
using Bf16DotRow = std::uint16_t;
#else
using Bf16DotRow = float;
#endif

struct Bf16DotWeights : Bf16Storage<Bf16DotRow> {
  static constexpr StorageKind kind = kBf16DotWeights;
  static constexpr Index grain = group;
#ifdef TIDEGATE_BF16_DOT
  static constexpr double product_flops = 0.5;
#else
  static constexpr double product_flops = fma_of_halves_flops;
#endif
  static constexpr StorageCost cost = {"bfloat16-dot", product_flops, 1, 2};

  // A step of k's holds a part of the tile's weights and a number of a row, besides the sums.
  static constexpr int row_vectors = 8;
  static constexpr int tile_vectors = vector_registers == 32 ? 4 : 2;
  static constexpr int tile_rows = vector_registers == 32 ? 6 : 5;

#ifdef TIDEGATE_BF16_DOT
  static TIDEGATE_INLINE Vec<float> multiply(Pairs row, Pairs weights, Vec<float> sums) {
    return sums_of_half_pairs(sums, row, weights);
  }

  static constexpr Index step_flops = 2 * group * Vec<float>::width;
  template <int chains>
  static float steps(Index rounds) {
    constexpr std::uint32_t kHalves = 0x3f003f00, kQuarters = 0x3e803e80;
    return steps_of<chains>(rounds, Pairs{} + kHalves, Pairs{} + kQuarters, multiply);
  }
#endif

  template <int R, int S, int Count>
  static TIDEGATE_INLINE void add_product(Vec<float> (&sums)[R][S][Count], const Row* const (&a)[R],
                                          const RowScale (&)[R],
                                          const TileWeights<Bf16DotWeights>& tile, Index depth) {
    using Panels = RoundedPanels<Bf16DotWeights>;
    const Element* weights = tile.weights;
    const Row* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = a[r];
    // Adds the products of a part of the weights' pairs and of the rows' pairs.
    const auto add = [&](const auto& part_of_weights, const auto& part_of_row,
                         const auto& multiply) __attribute__((always_inline)) {
      decltype(part_of_weights(Pairs{})) w[S][Count];
      each_vector<1, S, Count>([&](int, int s, int g) __attribute__((always_inline)) {
        Pairs pairs;
        __builtin_memcpy(&pairs, weights + s * tile.slice_stride + g * Panels::kVector,
                         sizeof pairs);
        w[s][g] = part_of_weights(pairs);
      });
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const auto x = part_of_row(row[r]);
        each_vector<1, S, Count>([&](int, int s, int g) __attribute__((always_inline)) {
          sums[r][s][g] = multiply(x, w[s][g], sums[r][s][g]);
        });
      }
    };
#pragma GCC unroll 2
    for (Index k = 0; k < depth; k += group) {
#ifdef TIDEGATE_BF16_DOT
      add([](Pairs pairs) { return pairs; }, broadcast_pair, multiply);
#else
      add(second_of_pairs, second_number, fma_of_halves);
      // Otherwise the compiler keeps the pairs, and has no registers left for all sums.
      __asm__("" : "+r"(weights));
      add(first_of_pairs, first_number, fma_of_halves);
#endif
      weights += tile.group_stride;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) row[r] += group;
    }
  }
};

}  // namespace

const StorageKernels<float> TIDEGATE_TABLE(bf16_dot_weights) = bf16_kernels<Bf16DotWeights>();

}  // namespace tidegate
