// The kernels for weights and rows rounded to bfloat16, the upper half of a float, to nearest even.
// Accumulators, and everything that a cell computes, are float.
//
// An accumulator receives the products of a block of 32 k's at a time: two chains of fused
// multiply-adds, each from zero, one over the even k's and one over the odd ones, ascending, are
// added to each other, and the sum to the accumulator. If a block is not whole, zero is added to
// both chains at its end. Denormal operands and results count as zeros. This is the order of the
// matrix units of x86-64 (TDPBF16PS), so that a result has the same bits with and without them.
#include "kernels/isa_tables.h"
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

// The even and the odd number of pairs.
struct Pair {
  Vec<float> even, odd;
};
TIDEGATE_INLINE Pair pair_of(Pairs pairs) {
  return {{(Vec<float>::Native)(pairs << 16)}, {(Vec<float>::Native)(pairs & 0xffff0000)}};
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
  static constexpr StorageCost cost = {"bfloat16", fma_of_halves_flops, 1, 2};

  // Each vector has two chains. A step of k's holds, besides them, the two parts of a vector of
  // weights and two numbers of each row.
  static constexpr int row_vectors = 4;
  static constexpr int tile_vectors = vector_registers == 32 ? 4 : 2;
  static constexpr int tile_rows = 3;

  static Element round(float weight, float) {
    const Pairs bits = (Pairs)rounded(broadcast(weight)).v;
    return static_cast<Element>(bits[0] >> 16);
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
  // The even and the odd element of a pair, in every lane.
  static TIDEGATE_INLINE Pair pair_of(const Row* from) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return tidegate::pair_of(bits - Pairs{});
  }
  template <int sums, int rows, int weights>
  static TIDEGATE_INLINE void add_tile(MatrixUnit& unit) {
    unit.add_bf16<sums, rows, weights>();
  }
#else
  static TIDEGATE_INLINE void store_row(Row* to, Vec<float> x, int count) {
    count == Vec<float>::width ? store(to, x) : store_partial(to, x, count);
  }
  static TIDEGATE_INLINE Pair pair_of(const Row* from) {
    return {broadcast(from[0]), broadcast(from[1])};
  }
#endif

  template <int R, int S, int Count>
  static TIDEGATE_INLINE void add_product(Vec<float> (&sums)[R][S][Count], const Row* const (&a)[R],
                                          const RowScale (&)[R],
                                          const TileWeights<Bf16Weights>& tile, Index depth) {
    using Panels = RoundedPanels<Bf16Weights>;
    static_assert(Panels::kBlock == grain);
    constexpr Index kStep = group * Vec<float>::width;
    const Element* block = tile.weights;
    const Row* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = a[r];
    for (Index k = 0; k < depth; k += grain, block += tile.block_stride) {
      const Index left = min_of(depth - k, grain);
      Vec<float> even[R][S][Count] = {}, odd[R][S][Count] = {};
      const Element* weights = block;
      for (Index step = 0; step < left; step += group, weights += kStep) {
        Pair x[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) x[r] = pair_of(row[r]);
        each_vector<1, S, Count>([&](int, int s, int g) __attribute__((always_inline)) {
          Pairs pairs;
          __builtin_memcpy(&pairs, weights + s * tile.slice_stride + g * Panels::kGateBlock,
                           sizeof pairs);
          const Pair w = tidegate::pair_of(pairs);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            even[r][s][g] = fma_of_halves(x[r].even, w.even, even[r][s][g]);
            odd[r][s][g] = fma_of_halves(x[r].odd, w.odd, odd[r][s][g]);
          }
        });
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) row[r] += group;
      }
      each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
        const Vec<float> end = zero<float>();
        if (left < grain) {
          even[r][s][g] = even[r][s][g] + end;
          odd[r][s][g] = odd[r][s][g] + end;
        }
        sums[r][s][g] = sums[r][s][g] + (even[r][s][g] + odd[r][s][g]);
      });
    }
  }
};

}  // namespace

const StorageKernels<float> TIDEGATE_TABLE(bf16_weights) = rounded_kernels<Bf16Weights>();

}  // namespace tidegate
