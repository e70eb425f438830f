// Specialisations of Vec for AVX2 with FMA; included by vec.h alone.
#ifndef TIDEGATE_KERNELS_VEC_AVX2_H_
#define TIDEGATE_KERNELS_VEC_AVX2_H_

#include <immintrin.h>

namespace tidegate {
namespace {

template <>
TIDEGATE_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}

template <>
TIDEGATE_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}

constexpr double fma_of_halves_flops = 1.1;  // the cost, in those of fma()
TIDEGATE_INLINE Vec<float> fma_of_halves(Vec<float> a, Vec<float> b, Vec<float> c) {
  return fma(a, b, c);
}

TIDEGATE_INLINE Shorts load_widened(const std::int8_t* from) {
  return (Shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(from)));
}

TIDEGATE_INLINE Lanes<float>::Bits sums_of_pairs(Shorts a, Shorts b) {
  return (Lanes<float>::Bits)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

#if defined(TIDEGATE_DOT) && !defined(TIDEGATE_EMULATE_EXTENSIONS)
TIDEGATE_INLINE Lanes<float>::Bits sums_of_quads(Lanes<float>::Bits sums, Lanes<float>::Bits a,
                                                 Lanes<float>::Bits b) {
  return (Lanes<float>::Bits)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
}
#endif

template <>
TIDEGATE_INLINE Vec<float> sqrt(Vec<float> x) {
  return {_mm256_sqrt_ps(x.v)};
}

template <>
TIDEGATE_INLINE Vec<double> sqrt(Vec<double> x) {
  return {_mm256_sqrt_pd(x.v)};
}

// MINPS and MAXPS return their second operand where either is NaN, so x is passed second. The
// generic body is equivalent, but for a constant bound the compiler reverses its comparison and
// then needs a blend.
template <>
TIDEGATE_INLINE Vec<float> at_most(Vec<float> x, Vec<float> bound) {
  return {_mm256_min_ps(bound.v, x.v)};
}

template <>
TIDEGATE_INLINE Vec<double> at_most(Vec<double> x, Vec<double> bound) {
  return {_mm256_min_pd(bound.v, x.v)};
}

template <>
TIDEGATE_INLINE Vec<float> at_least(Vec<float> x, Vec<float> bound) {
  return {_mm256_max_ps(bound.v, x.v)};
}

template <>
TIDEGATE_INLINE Vec<double> at_least(Vec<double> x, Vec<double> bound) {
  return {_mm256_max_pd(bound.v, x.v)};
}

// A mask with ones in the first `count` of eight 32-bit lanes: a window into ones followed by
// zeros.
TIDEGATE_INLINE __m256i first_lanes(int count) {
  alignas(64) static constexpr std::int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(ones_then_zeros + 8 - count));
}

// A masked access neither reads nor writes the memory of a disabled lane, nor faults on it.
template <>
TIDEGATE_INLINE Vec<float> load_partial(const float* from, int n) {
  return {_mm256_maskload_ps(from, first_lanes(n))};
}

template <>
TIDEGATE_INLINE Vec<double> load_partial(const double* from, int n) {
  return {_mm256_maskload_pd(from, first_lanes(2 * n))};
}

// A masked store takes tens of cycles on AMD's cores, so whole vectors use a plain store.
template <>
TIDEGATE_INLINE void store_partial(float* to, Vec<float> x, int n) {
  if (n == Vec<float>::width) return store(to, x);
  _mm256_maskstore_ps(to, first_lanes(n), x.v);
}

template <>
TIDEGATE_INLINE void store_partial(double* to, Vec<double> x, int n) {
  if (n == Vec<double>::width) return store(to, x);
  _mm256_maskstore_pd(to, first_lanes(2 * n), x.v);
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_VEC_AVX2_H_
