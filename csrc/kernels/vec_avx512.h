// Specialisations of Vec for AVX-512 (F, BW, VL, DQ); included by vec.h alone.
#ifndef TIDEGATE_KERNELS_VEC_AVX512_H_
#define TIDEGATE_KERNELS_VEC_AVX512_H_

#include <immintrin.h>

namespace tidegate {
namespace {

template <>
TIDEGATE_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}

template <>
TIDEGATE_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}

constexpr double fma_of_halves_flops = 1.1;  // the cost, in those of fma()
TIDEGATE_INLINE Vec<float> fma_of_halves(Vec<float> a, Vec<float> b, Vec<float> c) {
  return fma(a, b, c);
}

TIDEGATE_INLINE Shorts load_widened(const std::int8_t* from) {
  return (Shorts)_mm512_maskz_cvtepi8_epi16(
      0xffffffff, _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(from)));
}

TIDEGATE_INLINE Lanes<float>::Bits sums_of_pairs(Shorts a, Shorts b) {
  return (Lanes<float>::Bits)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}

#if defined(TIDEGATE_DOT) && !defined(TIDEGATE_EMULATE_EXTENSIONS)
TIDEGATE_INLINE Lanes<float>::Bits sums_of_quads(Lanes<float>::Bits sums, Lanes<float>::Bits a,
                                                 Lanes<float>::Bits b) {
  return (Lanes<float>::Bits)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
}
#endif

#if defined(TIDEGATE_BF16_DOT) && !defined(TIDEGATE_EMULATE_EXTENSIONS)
TIDEGATE_INLINE Vec<float> sums_of_half_pairs(Vec<float> sums, Pairs a, Pairs b) {
  return {_mm512_dpbf16_ps(sums.v, (__m512bh)a, (__m512bh)b)};
}
#endif

// Here and below, a mask of ones avoids a false warning of GCC 12 inside the unmasked intrinsics.
template <>
TIDEGATE_INLINE Vec<float> sqrt(Vec<float> x) {
  return {_mm512_maskz_sqrt_ps(0xffff, x.v)};
}

template <>
TIDEGATE_INLINE Vec<double> sqrt(Vec<double> x) {
  return {_mm512_maskz_sqrt_pd(0xff, x.v)};
}

// MINPS and MAXPS return their second operand where either is NaN, so x is passed second. The
// generic body is equivalent, but for a constant bound the compiler reverses its comparison and
// then needs a blend.
template <>
TIDEGATE_INLINE Vec<float> at_most(Vec<float> x, Vec<float> bound) {
  return {_mm512_maskz_min_ps(0xffff, bound.v, x.v)};
}

template <>
TIDEGATE_INLINE Vec<double> at_most(Vec<double> x, Vec<double> bound) {
  return {_mm512_maskz_min_pd(0xff, bound.v, x.v)};
}

template <>
TIDEGATE_INLINE Vec<float> at_least(Vec<float> x, Vec<float> bound) {
  return {_mm512_maskz_max_ps(0xffff, bound.v, x.v)};
}

template <>
TIDEGATE_INLINE Vec<double> at_least(Vec<double> x, Vec<double> bound) {
  return {_mm512_maskz_max_pd(0xff, bound.v, x.v)};
}

// Ones in the lowest n bits, n <= 16.
TIDEGATE_INLINE unsigned first_lanes(int n) { return (1u << n) - 1u; }

// A masked access neither reads nor writes the memory of a disabled lane, nor faults on it.
template <>
TIDEGATE_INLINE Vec<float> load_partial(const float* from, int n) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(first_lanes(n)), from)};
}

template <>
TIDEGATE_INLINE Vec<double> load_partial(const double* from, int n) {
  return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(n)), from)};
}

template <>
TIDEGATE_INLINE void store_partial(float* to, Vec<float> x, int n) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(first_lanes(n)), x.v);
}

template <>
TIDEGATE_INLINE void store_partial(double* to, Vec<double> x, int n) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(first_lanes(n)), x.v);
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_VEC_AVX512_H_
