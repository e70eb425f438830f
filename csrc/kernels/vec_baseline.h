// Specialisations of Vec for the x86-64 baseline (SSE2); included by vec.h alone. It has no fused
// multiply-add and no masked access, so the generic bodies remain in use.
#ifndef TIDEGATE_KERNELS_VEC_BASELINE_H_
#define TIDEGATE_KERNELS_VEC_BASELINE_H_

#include <emmintrin.h>

namespace tidegate {
namespace {

// By way of double, in which the product, of 16 bits, is exact. The sum is rounded to 53 bits, and
// then to 24. Rounding twice is harmless: where a sum has more than 53 bits, the smaller operand is
// too small for the sum to be near the middle between two floats.
constexpr double fma_of_halves_flops = 8;  // the cost, in those of fma()
TIDEGATE_INLINE Vec<float> fma_of_halves(Vec<float> a, Vec<float> b, Vec<float> c) {
  typedef double Doubles __attribute__((vector_size(2 * vector_bytes)));
  const Doubles sum =
      __builtin_convertvector(a.v, Doubles) * __builtin_convertvector(b.v, Doubles) +
      __builtin_convertvector(c.v, Doubles);
  return {__builtin_convertvector(sum, Vec<float>::Native)};
}

TIDEGATE_INLINE Shorts load_widened(const std::int8_t* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(from));
  return (Shorts)_mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
}

TIDEGATE_INLINE Lanes<float>::Bits sums_of_pairs(Shorts a, Shorts b) {
  return (Lanes<float>::Bits)_mm_madd_epi16((__m128i)a, (__m128i)b);
}

template <>
TIDEGATE_INLINE Vec<float> sqrt(Vec<float> x) {
  return {_mm_sqrt_ps(x.v)};
}

template <>
TIDEGATE_INLINE Vec<double> sqrt(Vec<double> x) {
  return {_mm_sqrt_pd(x.v)};
}

// MINPS and MAXPS return their second operand where either is NaN, so x is passed second. The
// generic body is equivalent, but for a constant bound the compiler reverses its comparison and
// then needs a blend.
template <>
TIDEGATE_INLINE Vec<float> at_most(Vec<float> x, Vec<float> bound) {
  return {_mm_min_ps(bound.v, x.v)};
}

template <>
TIDEGATE_INLINE Vec<double> at_most(Vec<double> x, Vec<double> bound) {
  return {_mm_min_pd(bound.v, x.v)};
}

template <>
TIDEGATE_INLINE Vec<float> at_least(Vec<float> x, Vec<float> bound) {
  return {_mm_max_ps(bound.v, x.v)};
}

template <>
TIDEGATE_INLINE Vec<double> at_least(Vec<double> x, Vec<double> bound) {
  return {_mm_max_pd(bound.v, x.v)};
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_VEC_BASELINE_H_
