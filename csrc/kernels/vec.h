// Vec<T>, one native register of float or double, and the operations on it; no network's formula.
//
// Written once on the vector extensions of GCC and Clang, for the instruction set that the build
// selects with one of the macros TIDEGATE_ISA_*. The header vec_<isa>.h then replaces, by explicit
// specialisation, operations that the extensions lack or compile badly. Everything has internal
// linkage and is inlined: if object files shared one copy of a function, the linker could pick its
// AVX-512 code for an AVX2 machine.
//
// No result depends on the compiler's contraction of expressions: a product and a sum are fused in
// fma() and nowhere else (-ffp-contract=off). Lane i of a result depends on lane i of the arguments
// alone.
#ifndef TIDEGATE_KERNELS_VEC_H_
#define TIDEGATE_KERNELS_VEC_H_

#include <cstdint>

// Extensions of an instruction set, in which some of its kernels are compiled again (isa_tables.h):
// TIDEGATE_DOT (AVX-VNNI, AVX512-VNNI, Arm's dot products), TIDEGATE_BF16_DOT (AVX512-BF16) and
// TIDEGATE_AMX, which include it, and TIDEGATE_I8MM (Arm's). TIDEGATE_EMULATE_EXTENSIONS replaces
// their instructions by other code, for tests on any machine.
#if defined(TIDEGATE_BF16_DOT) || defined(TIDEGATE_AMX)
#define TIDEGATE_DOT
#endif

#ifdef __FAST_MATH__
#error "Tidegate keeps NaN, infinities and the order of operations: build it without -ffast-math"
#endif

#define TIDEGATE_INLINE inline __attribute__((always_inline))

// An operand of inline assembly that is read and written in a vector register; emulated AVX-512 has
// no register of this size.
#if defined(TIDEGATE_ISA_AVX512) && !defined(__AVX512F__)
#define TIDEGATE_IN_VECTOR_REGISTER(variable) "+m"(variable)
#elif defined(__x86_64__)
#define TIDEGATE_IN_VECTOR_REGISTER(variable) "+v"(variable)
#else
#define TIDEGATE_IN_VECTOR_REGISTER(variable) "+w"(variable)
#endif

namespace tidegate {
namespace {

// The bytes of a register, and the number of registers, in which a tile's accumulators must fit.
#if defined(TIDEGATE_ISA_AVX512)
constexpr int vector_bytes = 64;
constexpr int vector_registers = 32;
#elif defined(TIDEGATE_ISA_AVX2)
constexpr int vector_bytes = 32;
constexpr int vector_registers = 16;
#elif defined(TIDEGATE_ISA_NEON)
constexpr int vector_bytes = 16;
constexpr int vector_registers = 32;
#elif defined(TIDEGATE_ISA_BASELINE)
constexpr int vector_bytes = 16;
constexpr int vector_registers = 16;
#else
#error "Define one of TIDEGATE_ISA_BASELINE, _AVX2, _AVX512, _NEON"
#endif

// The register types and the layout of the floating-point format. Bits holds the bit pattern of
// each lane; a comparison fills a lane of it with ones (true) or zeros.
template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float Native __attribute__((vector_size(vector_bytes)));
  typedef std::int32_t Bits __attribute__((vector_size(vector_bytes)));
  static constexpr std::int32_t sign_bit = INT32_MIN;
  static constexpr int mantissa_bits = 23;
  static constexpr int exponent_bias = 127;
};

template <>
struct Lanes<double> {
  typedef double Native __attribute__((vector_size(vector_bytes)));
  typedef std::int64_t Bits __attribute__((vector_size(vector_bytes)));
  static constexpr std::int64_t sign_bit = INT64_MIN;
  static constexpr int mantissa_bits = 52;
  static constexpr int exponent_bias = 1023;
};

template <class T>
struct Vec {
  using Native = typename Lanes<T>::Native;
  using Bits = typename Lanes<T>::Bits;
  static constexpr int width = vector_bytes / static_cast<int>(sizeof(T));

  Native v;
};

// The lanes for which a comparison holds.
template <class T>
struct Mask {
  typename Lanes<T>::Bits v;
};

// --- Memory. Pointers need no alignment beyond that of T. ---

template <class T>
TIDEGATE_INLINE Vec<T> load(const T* from) {
  Vec<T> x;
  __builtin_memcpy(&x.v, from, sizeof x.v);
  return x;
}

template <class T>
TIDEGATE_INLINE void store(T* to, Vec<T> x) {
  __builtin_memcpy(to, &x.v, sizeof x.v);
}

// Loads the first n lanes (0 <= n <= width); the others are zero. Nothing beyond from[n - 1] is
// read.
template <class T>
TIDEGATE_INLINE Vec<T> load_partial(const T* from, int n) {
  T lanes[Vec<T>::width] = {};
  for (int i = 0; i < Vec<T>::width; ++i) {
    if (i < n) lanes[i] = from[i];
  }
  return load(lanes);
}

// Stores the first n lanes (0 <= n <= width); nothing beyond to[n - 1] is written.
template <class T>
TIDEGATE_INLINE void store_partial(T* to, Vec<T> x, int n) {
  for (int i = 0; i < Vec<T>::width; ++i) {
    if (i < n) to[i] = x.v[i];
  }
}

// x in every lane. The vector extensions broadcast the scalar operand of a subtraction. x - 0 is x
// for every x, -0 included, so the compiler removes the subtraction.
template <class T>
TIDEGATE_INLINE Vec<T> broadcast(T x) {
  return {x - typename Vec<T>::Native{}};
}

template <class T>
TIDEGATE_INLINE Vec<T> zero() {
  return {typename Vec<T>::Native{}};
}

// --- Arithmetic ---

template <class T>
TIDEGATE_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return {a.v + b.v};
}

template <class T>
TIDEGATE_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return {a.v - b.v};
}

template <class T>
TIDEGATE_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return {a.v * b.v};
}

template <class T>
TIDEGATE_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return {a.v / b.v};
}

template <class T>
TIDEGATE_INLINE Vec<T> operator-(Vec<T> x) {
  return {-x.v};
}

// a * b + c, rounded once; the baseline, which has no such instruction, rounds the product too.
template <class T>
TIDEGATE_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return {a.v * b.v + c.v};
}

// a * b + c, rounded once on every instruction set, where a and b have at most 8 significant bits.
TIDEGATE_INLINE Vec<float> fma_of_halves(Vec<float> a, Vec<float> b, Vec<float> c);

// The square root, correctly rounded, as IEEE 754 requires.
template <class T>
TIDEGATE_INLINE Vec<T> sqrt(Vec<T> x) {
  for (int i = 0; i < Vec<T>::width; ++i) {
    if constexpr (sizeof(T) == sizeof(float)) {
      x.v[i] = __builtin_sqrtf(x.v[i]);
    } else {
      x.v[i] = __builtin_sqrt(x.v[i]);
    }
  }
  return x;
}

// The lesser of x and bound; a NaN in x is kept. The bound must be neither NaN nor zero (the sign
// of a zero result would be unspecified).
template <class T>
TIDEGATE_INLINE Vec<T> at_most(Vec<T> x, Vec<T> bound) {
  return {bound.v < x.v ? bound.v : x.v};
}

// The greater of x and bound; a NaN in x is kept. The bound must be neither NaN nor zero.
template <class T>
TIDEGATE_INLINE Vec<T> at_least(Vec<T> x, Vec<T> bound) {
  return {bound.v > x.v ? bound.v : x.v};
}

// --- Signs, comparisons, powers of two ---

template <class T>
TIDEGATE_INLINE Vec<T> abs(Vec<T> x) {
  using Bits = typename Vec<T>::Bits;
  return {(typename Vec<T>::Native)((Bits)x.v & ~Lanes<T>::sign_bit)};
}

template <class T>
TIDEGATE_INLINE Vec<T> copysign(Vec<T> magnitude, Vec<T> sign) {
  using Bits = typename Vec<T>::Bits;
  return {(typename Vec<T>::Native)(((Bits)magnitude.v & ~Lanes<T>::sign_bit) |
                                    ((Bits)sign.v & Lanes<T>::sign_bit))};
}

// a < b; false where either is NaN.
template <class T>
TIDEGATE_INLINE Mask<T> less(Vec<T> a, Vec<T> b) {
  return {(typename Vec<T>::Bits)(a.v < b.v)};
}

template <class T>
TIDEGATE_INLINE Vec<T> select(Mask<T> mask, Vec<T> if_true, Vec<T> if_false) {
  return {mask.v ? if_true.v : if_false.v};
}

// --- Integers ---

using Shorts = std::int16_t __attribute__((vector_size(vector_bytes)));

// Bytes in memory, half as many as a register has, as 16 bits each.
TIDEGATE_INLINE Shorts load_widened(const std::int8_t* from);

// Lane i: a[2i] * b[2i] + a[2i + 1] * b[2i + 1], in 32 bits.
TIDEGATE_INLINE Lanes<float>::Bits sums_of_pairs(Shorts a, Shorts b);

#ifdef TIDEGATE_DOT
// The bytes of a in sums_of_quads() are numbers plus this: unsigned if it is not 0.
#if defined(TIDEGATE_ISA_NEON) && !defined(TIDEGATE_EMULATE_EXTENSIONS)
constexpr int quad_bias = 0;
#else
constexpr int quad_bias = 128;
#endif
// Lane i: sums[i] plus the four products of the bytes of a[i] by the signed bytes of b[i], modulo
// 2^32.
TIDEGATE_INLINE Lanes<float>::Bits sums_of_quads(Lanes<float>::Bits sums, Lanes<float>::Bits a,
                                                 Lanes<float>::Bits b);
#ifdef TIDEGATE_EMULATE_EXTENSIONS
TIDEGATE_INLINE Lanes<float>::Bits sums_of_quads(Lanes<float>::Bits sums, Lanes<float>::Bits a,
                                                 Lanes<float>::Bits b) {
  for (int lane = 0; lane < Vec<float>::width; ++lane) {
    auto sum = static_cast<std::uint32_t>(sums[lane]);
    for (int byte = 0; byte < 32; byte += 8) {
      const int left = static_cast<std::uint8_t>(a[lane] >> byte);
      const int right = static_cast<std::int8_t>(b[lane] >> byte);
      sum += static_cast<std::uint32_t>(left * right);
    }
    sums[lane] = static_cast<std::int32_t>(sum);
  }
  return sums;
}
#endif
#endif

#ifdef TIDEGATE_I8MM
// The sums are a matrix of two rows by two columns: to each, the eight products of the signed bytes
// of a half of a, its row, by those of a half of b, its column, are added modulo 2^32.
TIDEGATE_INLINE Lanes<float>::Bits sums_of_octets(Lanes<float>::Bits sums, Lanes<float>::Bits a,
                                                  Lanes<float>::Bits b);
#ifdef TIDEGATE_EMULATE_EXTENSIONS
TIDEGATE_INLINE Lanes<float>::Bits sums_of_octets(Lanes<float>::Bits sums, Lanes<float>::Bits a,
                                                  Lanes<float>::Bits b) {
  typedef std::int8_t Bytes __attribute__((vector_size(vector_bytes)));
  const Bytes rows = (Bytes)a, columns = (Bytes)b;
  for (int lane = 0; lane < 4; ++lane) {
    auto sum = static_cast<std::uint32_t>(sums[lane]);
    for (int k = 0; k < 8; ++k)
      sum += static_cast<std::uint32_t>(rows[lane / 2 * 8 + k] * columns[lane % 2 * 8 + k]);
    sums[lane] = static_cast<std::int32_t>(sum);
  }
  return sums;
}
#endif
#endif

// Pairs of numbers in bfloat16, the upper halves of floats: the second one is in the upper half.
using Pairs = std::uint32_t __attribute__((vector_size(vector_bytes)));

TIDEGATE_INLINE Vec<float> first_of_pairs(Pairs pairs) {
  return {(Vec<float>::Native)(pairs << 16)};
}
TIDEGATE_INLINE Vec<float> second_of_pairs(Pairs pairs) {
  return {(Vec<float>::Native)(pairs & 0xffff0000)};
}

#ifdef TIDEGATE_BF16_DOT
// Lane i: the product of the second numbers of a[i] and b[i] is added to sums[i], then that of the
// first ones; each sum is rounded once.
TIDEGATE_INLINE Vec<float> sums_of_half_pairs(Vec<float> sums, Pairs a, Pairs b);
#ifdef TIDEGATE_EMULATE_EXTENSIONS
TIDEGATE_INLINE Vec<float> sums_of_half_pairs(Vec<float> sums, Pairs a, Pairs b) {
  const Vec<float> sum = fma_of_halves(second_of_pairs(a), second_of_pairs(b), sums);
  return fma_of_halves(first_of_pairs(a), first_of_pairs(b), sum);
}
#endif
#endif

template <class T>
struct PowerOfTwo {
  Vec<T> exponent;
  Vec<T> value;  // 2^exponent
};

// The integer n nearest to x * factor (ties may go either way), and 2^n. Requires rounding to
// nearest, and n within the exponents of normal numbers (-126 to 127, -1022 to 1023). Where x is
// NaN, n is NaN and 2^n is unspecified.
//
// Adding 1.5 * 2^mantissa_bits rounds to an integer and leaves it in the low bits of the sum. With
// the exponent's bias added as well, those bits are the exponent field of 2^n: a shift moves them
// to its place and all other bits out.
template <class T>
TIDEGATE_INLINE PowerOfTwo<T> nearest_power_of_two(Vec<T> x, T factor) {
  constexpr T units = static_cast<T>(std::int64_t{3} << (Lanes<T>::mantissa_bits - 1));
  const Vec<T> shift = broadcast<T>(units + static_cast<T>(Lanes<T>::exponent_bias));
  const Vec<T> sum = fma(x, broadcast(factor), shift);
  using Bits = typename Vec<T>::Bits;
  return {sum - shift, {(typename Vec<T>::Native)((Bits)sum.v << Lanes<T>::mantissa_bits)}};
}

}  // namespace
}  // namespace tidegate

#if defined(TIDEGATE_ISA_AVX512)
#include "kernels/vec_avx512.h"
#elif defined(TIDEGATE_ISA_AVX2)
#include "kernels/vec_avx2.h"
#elif defined(TIDEGATE_ISA_NEON)
#include "kernels/vec_neon.h"
#else
#include "kernels/vec_baseline.h"
#endif

#endif  // TIDEGATE_KERNELS_VEC_H_
