// Specialisations of Vec for the x86-64 baseline (SSE2); included by vec.h alone. It has no fused
// multiply-add and no masked access, so the generic bodies remain in use.
#ifndef TIDEGATE_KERNELS_VEC_BASELINE_H_
#define TIDEGATE_KERNELS_VEC_BASELINE_H_

#include <emmintrin.h>

namespace tidegate {
namespace {

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
