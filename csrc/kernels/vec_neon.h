// Specialisations of Vec for AArch64 NEON; included by vec.h alone.
#ifndef TIDEGATE_KERNELS_VEC_NEON_H_
#define TIDEGATE_KERNELS_VEC_NEON_H_

#include <arm_neon.h>

namespace tidegate {
namespace {

template <>
TIDEGATE_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {vfmaq_f32(c.v, a.v, b.v)};
}

template <>
TIDEGATE_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {vfmaq_f64(c.v, a.v, b.v)};
}

constexpr double fma_of_halves_flops = 1.1;  // the cost, in those of fma()
TIDEGATE_INLINE Vec<float> fma_of_halves(Vec<float> a, Vec<float> b, Vec<float> c) {
  return fma(a, b, c);
}

TIDEGATE_INLINE Shorts load_widened(const std::int8_t* from) {
  return (Shorts)vmovl_s8(vld1_s8(from));
}

TIDEGATE_INLINE Lanes<float>::Bits sums_of_pairs(Shorts a, Shorts b) {
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  return (Lanes<float>::Bits)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)),
                                        vmull_high_s16(x, y));
}

#if defined(TIDEGATE_DOT) && !defined(TIDEGATE_EMULATE_EXTENSIONS)
TIDEGATE_INLINE Lanes<float>::Bits sums_of_quads(Lanes<float>::Bits sums, Lanes<float>::Bits a,
                                                 Lanes<float>::Bits b) {
  return (Lanes<float>::Bits)vdotq_s32((int32x4_t)sums, (int8x16_t)a, (int8x16_t)b);
}
#endif

#if defined(TIDEGATE_I8MM) && !defined(TIDEGATE_EMULATE_EXTENSIONS)
TIDEGATE_INLINE Lanes<float>::Bits sums_of_octets(Lanes<float>::Bits sums, Lanes<float>::Bits a,
                                                  Lanes<float>::Bits b) {
  return (Lanes<float>::Bits)vmmlaq_s32((int32x4_t)sums, (int8x16_t)a, (int8x16_t)b);
}
#endif

template <>
TIDEGATE_INLINE Vec<float> sqrt(Vec<float> x) {
  return {vsqrtq_f32(x.v)};
}

template <>
TIDEGATE_INLINE Vec<double> sqrt(Vec<double> x) {
  return {vsqrtq_f64(x.v)};
}

// FMIN and FMAX return NaN if either operand is NaN: one instruction instead of two.
template <>
TIDEGATE_INLINE Vec<float> at_most(Vec<float> x, Vec<float> bound) {
  return {vminq_f32(x.v, bound.v)};
}

template <>
TIDEGATE_INLINE Vec<double> at_most(Vec<double> x, Vec<double> bound) {
  return {vminq_f64(x.v, bound.v)};
}

template <>
TIDEGATE_INLINE Vec<float> at_least(Vec<float> x, Vec<float> bound) {
  return {vmaxq_f32(x.v, bound.v)};
}

template <>
TIDEGATE_INLINE Vec<double> at_least(Vec<double> x, Vec<double> bound) {
  return {vmaxq_f64(x.v, bound.v)};
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_VEC_NEON_H_
