// The kernels for weights and rows rounded to bfloat16, the upper half of a float, to nearest even.
// Accumulators, and everything that a cell computes, are float.
//
// An accumulator receives the products of a block of 32 k's at a time: two chains of fused
// multiply-adds, each from zero, one over the even k's and one over the odd ones, ascending, are
// added to each other, and the sum to the accumulator. If a block is not whole, zero is added to
// both chains at its end. Denormal operands and results count as zeros. This is the order of the
// matrix units of x86-64 (TDPBF16PS), so that a result has the same bits with and without them.
#include "kernels/isa_tables.h"
#include "kernels/rounded_outer.h"
#include "kernels/rounded_phase.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

using Pairs = std::uint32_t __attribute__((vector_size(vector_bytes)));

// The nearest numbers with the upper 16 bits of a float, ties to even. A NaN becomes a quiet NaN.
TIDEGATE_INLINE Vec<float> rounded(Vec<float> x) {
  const Pairs bits = (Pairs)x.v;
  const Pairs nearest = bits + 0x7fff + ((bits >> 16) & 1);
  const Pairs is_nan = (Pairs)(x.v != x.v);
  const Pairs result = (is_nan & (bits | 0x400000)) | (~is_nan & nearest);
  return {(Vec<float>::Native)(result & 0xffff0000)};
}

// The numbers of pairs.
TIDEGATE_INLINE Vec<float> first_of_pairs(Pairs pairs) {
  return {(Vec<float>::Native)(pairs << 16)};
}
TIDEGATE_INLINE Vec<float> second_of_pairs(Pairs pairs) {
  return {(Vec<float>::Native)(pairs & 0xffff0000)};
}

struct Bf16Weights {
  static constexpr StorageKind kind = kBf16Weights;
  using Element = std::uint16_t;
#ifdef TIDEGATE_AMX
  using Row = std::uint16_t;
#else
  using Row = float;  // whose lower 16 bits are zero
#endif
  static constexpr Index group = 2;
  static constexpr Index grain = 32;
  static constexpr bool has_scales = false;
#ifdef TIDEGATE_AMX
  static constexpr double product_flops = 0.1;
#else
  static constexpr double product_flops = fma_of_halves_flops;
#endif
  static constexpr StorageCost cost = {"bfloat16", product_flops, 1, 2};

  // Each vector has two chains. A step of k's holds, besides them, the two parts of a vector of
  // weights and two numbers of each row.
  static constexpr int row_vectors = 4;
  static constexpr int tile_vectors = vector_registers == 32 ? 4 : 2;
  static constexpr int tile_rows = 3;

  static TIDEGATE_INLINE void round(Element* to, Vec<float> weights, Vec<float>) {
    typedef Element Elements __attribute__((vector_size(vector_bytes / 2)));
    const Elements bits = __builtin_convertvector((Pairs)rounded(weights).v >> 16, Elements);
    __builtin_memcpy(to, &bits, sizeof bits);
  }

  static TIDEGATE_INLINE void store_pairs(Element* to, Vec<float> first, Vec<float> second) {
    const Pairs pairs = (Pairs)rounded(first).v >> 16 | (Pairs)rounded(second).v;
    __builtin_memcpy(to, &pairs, sizeof pairs);
  }

  static RowScale round_row(const float* from, Index depth, float, Row* to) {
    constexpr Index kWidth = Vec<float>::width;
    Index k = 0;
    for (; k + kWidth <= depth; k += kWidth) store_row(to + k, rounded(load(from + k)), kWidth);
    if (k < depth) {
      const int left = static_cast<int>(depth - k);
      store_row(to + k, rounded(load_partial(from + k, left)), left);
    }
    return {};
  }

#ifdef TIDEGATE_AMX
  static TIDEGATE_INLINE void store_row(Row* to, Vec<float> x, int count) {
    typedef Row Halves __attribute__((vector_size(vector_bytes / 2)));
    const Halves halves = __builtin_convertvector((Pairs)x.v >> 16, Halves);
    __builtin_memcpy(to, &halves, static_cast<std::size_t>(count) * sizeof *to);
  }
  // A number of a pair of a row, in every lane.
  static TIDEGATE_INLINE Vec<float> first_number(const Row* pair) {
    return first_of_pairs(broadcast_pair(pair));
  }
  static TIDEGATE_INLINE Vec<float> second_number(const Row* pair) {
    return second_of_pairs(broadcast_pair(pair));
  }
  static TIDEGATE_INLINE Pairs broadcast_pair(const Row* pair) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, pair, sizeof bits);
    return bits - Pairs{};
  }
  template <int sums, int rows, int weights>
  static TIDEGATE_INLINE void add_tile(MatrixUnit& unit) {
    unit.add_bf16<sums, rows, weights>();
  }
#else
  static TIDEGATE_INLINE void store_row(Row* to, Vec<float> x, int count) {
    count == Vec<float>::width ? store(to, x) : store_partial(to, x, count);
  }
  static TIDEGATE_INLINE Vec<float> first_number(const Row* pair) { return broadcast(pair[0]); }
  static TIDEGATE_INLINE Vec<float> second_number(const Row* pair) { return broadcast(pair[1]); }
#endif

  [[maybe_unused]] static constexpr Index step_flops = 2 * Vec<float>::width;
  template <int chains>
  static float steps(Index rounds) {
    Vec<float> sums[chains];
    for (int i = 0; i < chains; ++i) sums[i] = broadcast(1.0f / static_cast<float>(1 + i));
    const Vec<float> x = broadcast(0.5f), w = broadcast(0.25f);
    for (Index round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < chains; ++i) sums[i] = fma_of_halves(x, w, sums[i]);
    }
    return sum_of(sums);
  }

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

constexpr StorageKernels<float> bf16_kernels() {
  StorageKernels<float> kernels = rounded_kernels<Bf16Weights>();
  kernels.outer_scratch = RoundedOuter<Bf16Weights>::scratch();
  kernels.outer = RoundedOuter<Bf16Weights>::outer;
  return kernels;
}

}  // namespace

const StorageKernels<float> TIDEGATE_TABLE(bf16_weights) = bf16_kernels();

}  // namespace tidegate
