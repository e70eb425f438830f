// The kernels for weights and rows in bfloat16, with sums in the order of matrix units.
//
// An accumulator receives the products of a block of 32 k's at a time: two chains of fused
// multiply-adds, each from zero, one over the even k's and one over the odd ones, ascending, are
// added to each other, and the sum to the accumulator. If a block is not whole, zero is added to
// both chains at its end. This is the order of the matrix units of x86-64 (TDPBF16PS), so that a
// result has the same bits with and without them.
#include "kernels/bf16.h"
#include "kernels/isa_tables.h"

namespace tidegate {
namespace {

#ifdef TIDEGATE_AMX
using Bf16Row = std::uint16_t;
#else
using Bf16Row = float;
#endif

struct Bf16Weights : Bf16Storage<Bf16Row> {
  static constexpr StorageKind kind = kBf16Weights;
  static constexpr Index grain = 32;
#ifdef TIDEGATE_AMX
  static constexpr double product_flops = 0.1;
#else
  // More than of Bf16DotWeights: with two chains for each vector, tiles are smaller.
  static constexpr double product_flops = 1.06 * fma_of_halves_flops;
#endif
  static constexpr StorageCost cost = {"bfloat16", product_flops, 1, 2};

  // Each vector has two chains. A step of k's holds, besides them, the two parts of a vector of
  // weights and two numbers of each row.
  static constexpr int row_vectors = 4;
  static constexpr int tile_vectors = vector_registers == 32 ? 4 : 2;
  static constexpr int tile_rows = 3;

#ifdef TIDEGATE_AMX
  template <int sums, int rows, int weights>
  static TIDEGATE_INLINE void add_tile(MatrixUnit& unit) {
    unit.add_bf16<sums, rows, weights>();
  }
#endif

  template <int R, int S, int Count>
  static TIDEGATE_INLINE void add_product(Vec<float> (&sums)[R][S][Count], const Row* const (&a)[R],
                                          const RowScale (&)[R],
                                          const TileWeights<Bf16Weights>& tile, Index depth) {
    using Panels = RoundedPanels<Bf16Weights>;
    static_assert(Panels::kBlock == grain);
    const Element* weights = tile.weights;
    const Row* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = a[r];
    Vec<float> even[R][S][Count], odd[R][S][Count];
    const auto begin = [&]() __attribute__((always_inline)) {
      each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
        even[r][s][g] = odd[r][s][g] = zero<float>();
      });
    };
    // The even chains, then the odd ones: their weights and rows then need fewer registers.
    const auto add_pairs = [&]() __attribute__((always_inline)) {
      const auto add_to = [&](auto& chains, const auto& weight,
                              const auto& number) __attribute__((always_inline)) {
        Vec<float> w[S][Count];
        each_vector<1, S, Count>([&](int, int s, int g) __attribute__((always_inline)) {
          Pairs pairs;
          __builtin_memcpy(&pairs, weights + s * tile.slice_stride + g * Panels::kVector,
                           sizeof pairs);
          w[s][g] = weight(pairs);
        });
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Vec<float> x = number(row[r]);
          each_vector<1, S, Count>([&](int, int s, int g) __attribute__((always_inline)) {
            chains[r][s][g] = fma_of_halves(x, w[s][g], chains[r][s][g]);
          });
        }
      };
      add_to(even, first_of_pairs, first_number);
      // Otherwise the compiler keeps the pairs, and has no registers left for all chains.
      __asm__("" : "+r"(weights));
      add_to(odd, second_of_pairs, second_number);
      weights += tile.group_stride;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) row[r] += group;
    };
    const auto end = [&]() __attribute__((always_inline)) {
      each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
        sums[r][s][g] = sums[r][s][g] + (even[r][s][g] + odd[r][s][g]);
      });
    };
    const Index whole = depth - depth % grain;
    for (Index k = 0; k < whole; k += grain) {
      begin();
#pragma GCC unroll 2
      for (Index pair = 0; pair < grain / group; ++pair) add_pairs();
      end();
    }
    if (whole == depth) return;
    begin();
    for (Index k = whole; k < depth; k += group) add_pairs();
    each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
      even[r][s][g] = even[r][s][g] + zero<float>();
      odd[r][s][g] = odd[r][s][g] + zero<float>();
    });
    end();
  }
};

}  // namespace

#ifdef TIDEGATE_AMX
static_assert(kUsesMatrixUnit<Bf16Weights>);
#endif
const StorageKernels<float> TIDEGATE_TABLE(bf16_weights) = bf16_kernels<Bf16Weights>();

}  // namespace tidegate
