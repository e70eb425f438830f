// The kernels for weights and rows in integers of 8 bits.
//
// A vector v (a row of x or h at one step; the weights of one unit and gate) is represented by
// integers q and a scale: v is about q * scale. For a row, q is in -127..127 (weights of other
// frameworks may be -128, too), and
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
// same bits on every ISA of x86-64. (AArch64 flushes a result that would round up to the least
// normal number.)
#include <cstdint>
#include <type_traits>

#include "kernels/isa_tables.h"
#include "kernels/rounded_phase.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

using Words = Lanes<float>::Bits;  // 32 bits

// The nearest integers to numbers below 2^22, ties to even: adding 1.5 * 2^23 rounds, and leaves
// the integer in the low bits of the sum.
TIDEGATE_INLINE Words nearest(Vec<float> x) {
  const Vec<float> shift = broadcast(12582912.0f);
  return (Words)(x + shift).v - (Words)shift.v;
}

// a - b, modulo 2^32.
TIDEGATE_INLINE Words difference(Words a, std::int32_t b) {
  typedef std::uint32_t Unsigned __attribute__((vector_size(vector_bytes)));
  return (Words)((Unsigned)a - static_cast<std::uint32_t>(b));
}

[[maybe_unused]] TIDEGATE_INLINE void store_bytes(std::int8_t* to, Words q) {
  typedef std::int8_t QuarterBytes __attribute__((vector_size(vector_bytes / 4)));
  const QuarterBytes bytes = __builtin_convertvector(q, QuarterBytes);
  __builtin_memcpy(to, &bytes, sizeof bytes);
}

// The products of a tile by an instruction that multiplies a group of 32 bits of a row, in every
// lane, by a vector of units.
template <class Products>
struct RowByRow {
  template <int R, int S, int Count, class Row, class Tile>
  static TIDEGATE_INLINE void multiply(Words (&products)[R][S][Count], const Row* const (&a)[R],
                                       const Tile& tile, Index depth) {
    constexpr Index kVector = Products::group * Vec<float>::width;
    each_vector<R, S, Count>([&](int r, int s, int g)
                                 __attribute__((always_inline)) { products[r][s][g] = Words{}; });
    const auto* weights = tile.weights;
    const Row* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = a[r];
    for (Index k = 0; k < depth; k += Products::group, weights += tile.group_stride) {
      typename Products::Weights w[S][Count];
      each_vector<1, S, Count>([&](int, int s, int g) __attribute__((always_inline)) {
        w[s][g] = Products::load(weights + s * tile.slice_stride + g * kVector);
      });
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        std::int32_t bits;
        __builtin_memcpy(&bits, row[r], sizeof bits);
        const Words x = bits - Words{};
        row[r] += Products::group;
        each_vector<1, S, Count>([&](int, int s, int g) __attribute__((always_inline)) {
          products[r][s][g] = Products::add(products[r][s][g], x, w[s][g]);
        });
      }
    }
  }
};

// The products of a group of k's of rows and of a vector of units, by one of three kinds of
// instruction. Each kind stores weights and rows in its own way: `Element` is q_weight + `bias`,
// and `Row` is q_row. `add` is the instruction, `multiply` all products of a tile.
#if defined(TIDEGATE_I8MM)
// Eight products of bytes of two rows by two units.
struct Products {
  using Element = std::int8_t;
  using Row = std::int8_t;
  using Weights = Words;
  static constexpr Index group = 8;
  static constexpr int bias = 0;
  static_assert(Vec<float>::width == 4);

  static TIDEGATE_INLINE Words add(Words sums, Words rows, Weights w) {
    return sums_of_octets(sums, rows, w);
  }
  static TIDEGATE_INLINE void store_row(Row* to, Words q) { store_bytes(to, q); }

  template <int R, int S, int Count, class Tile>
  static TIDEGATE_INLINE void multiply(Words (&products)[R][S][Count], const Row* const (&row)[R],
                                       const Tile& tile, Index depth) {
    constexpr int kPairs = (R + 1) / 2;  // of rows; an odd last one is its own partner
    // Of a pair of rows, and the first and the last two units of a vector.
    Words sums[kPairs][S][Count][2] = {};
    const Element* weights = tile.weights;
    for (Index k = 0; k < depth; k += group, weights += tile.group_stride) {
      Words rows[kPairs];
#pragma GCC unroll 8
      for (int p = 0; p < kPairs; ++p) {
        const int last = 2 * p + 1 < R ? 2 * p + 1 : R - 1;
        rows[p] = both(row[2 * p] + k, row[last] + k);
      }
      each_vector<1, S, Count>([&](int, int s, int g) __attribute__((always_inline)) {
        const Element* const from = weights + s * tile.slice_stride + g * group * Vec<float>::width;
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          Words w;
          __builtin_memcpy(&w, from + half * static_cast<int>(sizeof w), sizeof w);
#pragma GCC unroll 8
          for (int p = 0; p < kPairs; ++p)
            sums[p][s][g][half] = add(sums[p][s][g][half], rows[p], w);
        }
      });
    }
    each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
      const Words(&halves)[2] = sums[r / 2][s][g];
      const int at = r % 2 * 2;
      products[r][s][g] = Words{halves[0][at], halves[0][at + 1], halves[1][at], halves[1][at + 1]};
    });
  }

 private:
  static TIDEGATE_INLINE Words both(const Row* first, const Row* second) {
    typedef std::int64_t Octets __attribute__((vector_size(vector_bytes)));
    Octets rows = {};
    std::int64_t octet;
    __builtin_memcpy(&octet, first, sizeof octet);
    rows[0] = octet;
    __builtin_memcpy(&octet, second, sizeof octet);
    rows[1] = octet;
    return (Words)rows;
  }
};
#elif defined(TIDEGATE_DOT)
// Four products of bytes. Where the weights' bytes are unsigned, a sum is too great by the bias
// times the sum of the row, RowScale::offset. Sums may wrap around; the differences do not.
struct Products : RowByRow<Products> {
  using Element = std::conditional_t<quad_bias == 0, std::int8_t, std::uint8_t>;
  using Row = std::int8_t;
  using Weights = Words;
  static constexpr Index group = 4;
  static constexpr int bias = quad_bias;

  static TIDEGATE_INLINE Weights load(const Element* from) {
    Weights w;
    __builtin_memcpy(&w, from, sizeof w);
    return w;
  }
  static TIDEGATE_INLINE Words add(Words sums, Words row, Weights w) {
    return sums_of_quads(sums, w, row);
  }
  static TIDEGATE_INLINE void store_row(Row* to, Words q) { store_bytes(to, q); }
};
#else
// Two products of 16 bits.
struct Products : RowByRow<Products> {
  using Element = std::int8_t;
  using Row = std::int16_t;
  using Weights = Shorts;
  static constexpr Index group = 2;
  static constexpr int bias = 0;

  static TIDEGATE_INLINE Weights load(const Element* from) { return load_widened(from); }
  static TIDEGATE_INLINE Words add(Words sums, Words row, Weights w) {
    return sums + sums_of_pairs((Shorts)row, w);
  }
  static TIDEGATE_INLINE void store_row(Row* to, Words q) {
    typedef std::int16_t HalfShorts __attribute__((vector_size(vector_bytes / 2)));
    const HalfShorts shorts = __builtin_convertvector(q, HalfShorts);
    __builtin_memcpy(to, &shorts, sizeof shorts);
  }
};
#endif

struct Int8Weights {
  static constexpr StorageKind kind = kInt8Weights;
  using Element = Products::Element;
  using Row = Products::Row;
  static constexpr Index group = Products::group;
  static constexpr Index grain = kWholeDepth;
  static constexpr bool has_scales = true;
#if defined(TIDEGATE_AMX)
  static constexpr double product_flops = 0.05;
#elif defined(TIDEGATE_I8MM)
  static constexpr double product_flops = 0.125;
#elif defined(TIDEGATE_DOT)
  static constexpr double product_flops = 0.25;
#else
  static constexpr double product_flops = 0.6;
#endif
  static constexpr StorageCost cost = {"int8", product_flops, 1, 1};

  // A step of k's holds the weights of the tile's vectors, a group of a row, and a product, besides
  // the sums.
  static constexpr int row_vectors = 8;
  static constexpr int tile_vectors = 4;
#ifdef TIDEGATE_I8MM
  static constexpr int tile_rows = 4;  // two pairs, each with two sums for a vector
#else
  static constexpr int tile_rows = vector_registers == 32 ? 5 : 2;
#endif

  static TIDEGATE_INLINE void round(Element* to, Vec<float> weights, Vec<float> scale) {
    typedef Element Elements __attribute__((vector_size(vector_bytes / 4)));
    const Words q = nearest(weights / scale) + Products::bias;
    const Elements rounded = __builtin_convertvector(q, Elements);
    __builtin_memcpy(to, &rounded, sizeof rounded);
  }

  static RowScale round_row(const float* from, Index depth, float least, Row* to) {
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
      return {__builtin_nanf(""), 0};
    }
    if (most < least) most = least;
    if (most < kLeastInt8Magnitude) most = kInt8Levels;
    const Vec<float> inverse = broadcast(kInt8Levels / most);
    Words total = {};
    Index k = 0;
    for (; k + kWidth <= depth; k += kWidth) {
      const Words q = nearest(load(from + k) * inverse);
      Products::store_row(to + k, q);
      total += q;
    }
    if (k < depth) {
      const Words q = nearest(vector(k) * inverse);
      for (Index i = k; i < depth; ++i) to[i] = static_cast<Row>(q[i - k]);
      total += q;
    }
    std::int32_t sum = 0;
    for (int lane = 0; lane < kWidth; ++lane) sum += total[lane];
    return {most / kInt8Levels, Products::bias * sum};
  }

#ifdef TIDEGATE_AMX
  template <int sums, int rows, int weights>
  static TIDEGATE_INLINE void add_tile(MatrixUnit& unit) {
    unit.add_int8<sums, rows, weights>();
  }
  // Adds a vector of sums in memory, of 32 bits, to accumulators.
  static TIDEGATE_INLINE void add_scaled(float* to, const float* sums, Vec<float> scale,
                                         const RowScale& row) {
    store(to, scaled_sum(load(to), (Words)load(sums).v, scale, row));
  }
#endif

  // accumulator + (sum * scale) * the row's scale.
  static TIDEGATE_INLINE Vec<float> scaled_sum(Vec<float> accumulator, Words sum, Vec<float> scale,
                                               const RowScale& row) {
    const Words exact = difference(sum, row.offset);
    const Vec<float> rounded = {__builtin_convertvector(exact, Vec<float>::Native)};
    return accumulator + rounded * scale * broadcast(row.scale);
  }

  [[maybe_unused]] static constexpr Index step_flops = 2 * group * Vec<float>::width;
  template <int chains>
  static float steps(Index rounds) {
    Words sums[chains] = {};
    Words x = Words{} + 0x01020304;
    const auto w = (Products::Weights)x;
    for (Index round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < chains; ++i) {
        // The compiler must not multiply once for all chains and rounds.
        __asm__("" : TIDEGATE_IN_VECTOR_REGISTER(x));
        sums[i] = Products::add(sums[i], x, w);
      }
    }
    for (int i = 1; i < chains; ++i) sums[0] += sums[i];
    return static_cast<float>(sums[0][0]);
  }

  template <int R, int S, int Count>
  static TIDEGATE_INLINE void add_product(Vec<float> (&sums)[R][S][Count], const Row* const (&a)[R],
                                          const RowScale (&scales)[R],
                                          const TileWeights<Int8Weights>& tile, Index depth) {
    Words products[R][S][Count];
    Products::multiply(products, a, tile, depth);
    each_vector<R, S, Count>([&](int r, int s, int g) __attribute__((always_inline)) {
      const Vec<float> scale =
          load(tile.scales + s * tile.scales_slice_stride + g * Vec<float>::width);
      sums[r][s][g] = scaled_sum(sums[r][s][g], products[r][s][g], scale, scales[r]);
    });
  }
};

}  // namespace

#ifdef TIDEGATE_AMX
static_assert(kUsesMatrixUnit<Int8Weights>);
#endif
const StorageKernels<float> TIDEGATE_TABLE(int8_weights) = rounded_kernels<Int8Weights>();

}  // namespace tidegate
