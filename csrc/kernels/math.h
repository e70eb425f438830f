// Sigmoid, tanh, exp and log1p on Vec<T>, within 2 ulp over the whole range; no gate and no
// derivative. An ulp is the spacing of T at the true result.
//
// The first three use exp(z) = 2^n * (1 + p), z = n*ln2 + r, p = expm1(r), |r| <= ln2 / 2, and keep
// 2^n and p separate for as long as that saves a rounding.
//
// sigmoid(x) = 1 / (1 + exp(-x))
//   The denominator is summed as (1 + 2^n) + 2^n * p. The sum 1 + 2^n is exact while T can
//   represent it; beyond, the part that it drops (of 2^n or of 1) is added together with the
//   product. One rounding is left: at most 1 ulp of the result. The division adds 0.5 ulp, and p at
//   most 0.25, at the ends of r's interval. Rounding e in 1 / (1 + e) first would give 2.4 ulp: at
//   e = 2^24 (float) the half ulp of e, the tie in 1 + e and the half ulp of the division add up.
//
// tanh(x), with y = |x|; the sign is restored at the end
//   y >= 0.256:  e / (e + 2), e = expm1(2y) = (2^n - 1) + 2^n * p >= 2/3. An error in e is damped
//     by 2 / (e + 2); the sum's rounding approaches 1 ulp as e grows. 1.5 ulp with the division.
//   y < 0.256:  y + y^3 * S(y^2). The quotient would lose 2.6 ulp here, since e and e + 2 round
//     independently and the result's mantissa is near 2. The second term is at most 2 % of the
//     first, and so are its roundings: 0.6 ulp. Tiny x are returned unchanged.
//
// exp_nonpositive(z) = 2^n * (1 + p) for z <= 0: the error of p and one rounding. Results below the
// least normal number are flushed to zero.
//
// log1p_unit(u) = log(1 + u) for 0 <= u <= 1, the range of exp_nonpositive
//   = 2 artanh(t / 2) = t + t^3 * L(t^2), t = u / (1 + u / 2) <= 2/3,
//   = u - t (u / 2 - t^2 * L(t^2)), since t = u - t u / 2. The roundings of the sum and of the
//   division affect only the subtrahend, which is at most 4/9 of the result.
//
// Measured errors over every float: sigmoid 1.70 ulp (baseline 1.75), tanh 1.50, exp_nonpositive
// 1.04, log1p_unit 1.06 (baseline 1.25). Over samples of every exponent of double: 1.59, 1.50, 1.05
// and 0.97 (baseline 1.22).
//
// The baseline has no fused multiply-add. It reduces z in two steps: n * ln2_high is exact, because
// ln2_high has at least as many low zero bits as n has bits. Scaling by 2^n is exact in any case,
// so only p is slightly less accurate. With FMA the same formulas round the same everywhere: AVX2,
// AVX-512 and NEON agree bit for bit. There are no approximate reciprocals.
//
// The argument is clamped where the result has saturated; NaN propagates. The least result of
// sigmoid is a subnormal number, which is zero under flush-to-zero; below the least normal number
// the error is absolute. The rounding mode must be to nearest.
//
// Source: the reduction in two constants is Cody and Waite's (Software Manual for the Elementary
// Functions, 1980). The coefficients were computed for this file by Remez's exchange algorithm in
// 60 digits (mpmath), as minimax approximations of
//   B: |expm1(r) - (r + r^2 B(r))| / exp(r) on |r| <= 1.0002 * ln2 / 2 (double: 1.0001),
//   S: |tanh(y) - (y + y^3 S(y^2))| / tanh(y) on 0 < y <= 0.256,
//   L: |2 artanh(t/2) - (t + t^3 L(t^2))| / (2 artanh(t/2)) on 0 < t <= 2/3,
// then rounded to T. Their errors after rounding are given beside them, in units of u = ulp(1) / 2.
#ifndef TIDEGATE_KERNELS_MATH_H_
#define TIDEGATE_KERNELS_MATH_H_

#include "kernels/vec.h"

namespace tidegate {
namespace {

template <class T>
struct ActivationConstants;

template <>
struct ActivationConstants<float> {
  static constexpr float log2_e = 0x1.715476p+0f;
  static constexpr float ln2_high = 0x1.62e4p-1f;  // 16 bits: 2^n with |n| < 2^8
  static constexpr float ln2_low = 0x1.7f7d1cp-20f;

  // Constant term first. 0.06 u
  static constexpr float expm1[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239f2p-7f,
                                    0x1.6a2426p-10f};
  // 0.07 u
  static constexpr float tanh[] = {-0x1.55550ep-2f, 0x1.10dcbep-3f, -0x1.a4571ap-5f};
  // 0.08 u
  static constexpr float log1p[] = {0x1.555502p-4f, 0x1.99d220p-7f, 0x1.1ebb6ap-9f,
                                    0x1.1ee08cp-11f};

  // exp(-x) is a normal number for x from -88.3, where sigmoid is below 2^-126, to 87.
  static constexpr float sigmoid_least = -88.3f;
  static constexpr float sigmoid_greatest = 87.0f;
  static constexpr float tanh_greatest = 10.0f;        // tanh rounds to 1 from 9.011 on
  static constexpr float exp_least = -0x1.5d589ep+6f;  // exp is 2^-126 here
};

template <>
struct ActivationConstants<double> {
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double ln2_high = 0x1.62e42fefa38p-1;  // 42 bits: 2^n with |n| < 2^11
  static constexpr double ln2_low = 0x1.ef35793c7673p-45;

  // Constant term first. 0.1 u
  static constexpr double expm1[] = {
      0x1.000000000000ap-1,  0x1.55555555554fap-3,  0x1.555555555087cp-5,  0x1.1111111127bebp-7,
      0x1.6c16c1842a162p-10, 0x1.a01a012a56180p-13, 0x1.a0199a0c58aa9p-16, 0x1.71df255522282p-19,
      0x1.28ad72db67068p-22, 0x1.ad7f6b5512854p-26};
  // 0.07 u
  static constexpr double tanh[] = {
      -0x1.55555555554d0p-2, 0x1.11111110f7c09p-3, -0x1.ba1ba185e2d72p-5, 0x1.664f2ef0afaa2p-6,
      -0x1.22677f6a1af0dp-7, 0x1.d4e2276a3d1cap-9, -0x1.57e2f35dd378bp-10};

  // 0.02 u
  static constexpr double log1p[] = {
      0x1.5555555555535p-4,  0x1.99999999a0748p-7,  0x1.249249208ca44p-9,  0x1.c71c741c4aa63p-12,
      0x1.745cb4061f7f9p-14, 0x1.3b1ddaeac3e5ap-16, 0x1.1067cc3e20758p-18, 0x1.efd7d982eb5dbp-21,
      0x1.55b2fbfb87782p-23, 0x1.5c772999eb6fep-24};

  static constexpr double sigmoid_least = -709.3;  // sigmoid is below 2^-1022
  static constexpr double sigmoid_greatest = 708.0;
  static constexpr double tanh_greatest = 20.0;               // tanh rounds to 1 from 19.062 on
  static constexpr double exp_least = -0x1.6232bdd7abcd2p+9;  // exp is 2^-1022 here
};

// c[first] + c[first + step] * x + c[first + 2 * step] * x^2 + ... by Horner's rule.
template <int first, int step, class T, int count>
TIDEGATE_INLINE Vec<T> polynomial(Vec<T> x, const T (&c)[count]) {
  constexpr int last = first + (count - 1 - first) / step * step;
  Vec<T> sum = broadcast(c[last]);
  for (int k = last - step; k >= first; k -= step) sum = fma(sum, x, broadcast(c[k]));
  return sum;
}

// exp(z) = scale * (1 + p), scale a power of two and |p| < 0.42.
template <class T>
struct SplitExp {
  Vec<T> scale;
  Vec<T> p;
};

template <class T>
TIDEGATE_INLINE SplitExp<T> split_exp(Vec<T> z) {
  using Constants = ActivationConstants<T>;
  const PowerOfTwo<T> two_n = nearest_power_of_two(z, Constants::log2_e);
  Vec<T> r = fma(two_n.exponent, broadcast(-Constants::ln2_high), z);
  r = fma(two_n.exponent, broadcast(-Constants::ln2_low), r);

  // Even and odd powers separately: as many operations as Horner's rule, in half as long a chain.
  const Vec<T> r2 = r * r;
  const Vec<T> even = polynomial<0, 2>(r2, Constants::expm1);
  const Vec<T> odd = polynomial<1, 2>(r2, Constants::expm1);
  return {two_n.value, fma(r2, fma(r, odd, even), r)};
}

template <class T>
TIDEGATE_INLINE Vec<T> exp_nonpositive(Vec<T> z) {
  const Vec<T> least = broadcast(ActivationConstants<T>::exp_least);
  const SplitExp<T> exp = split_exp(at_least(z, least));
  return select(less(z, least), zero<T>(), exp.scale * (broadcast<T>(1) + exp.p));
}

template <class T>
TIDEGATE_INLINE Vec<T> log1p_unit(Vec<T> u) {
  const Vec<T> half = u * broadcast(static_cast<T>(0.5));
  const Vec<T> t = u / (half + broadcast<T>(1));
  const Vec<T> t2 = t * t;
  // Even and odd powers of t2 separately, as in split_exp().
  const Vec<T> t4 = t2 * t2;
  const Vec<T> even = polynomial<0, 2>(t4, ActivationConstants<T>::log1p);
  const Vec<T> odd = polynomial<1, 2>(t4, ActivationConstants<T>::log1p);
  return fma(-t, fma(-t2, fma(t2, odd, even), half), u);
}

template <class T>
TIDEGATE_INLINE Vec<T> sigmoid(Vec<T> x) {
  using Constants = ActivationConstants<T>;
  const Vec<T> one = broadcast<T>(1);
  x = at_least(x, broadcast(Constants::sigmoid_least));
  x = at_most(x, broadcast(Constants::sigmoid_greatest));
  const SplitExp<T> exp = split_exp(-x);
  const Vec<T> sum = one + exp.scale;
  const Vec<T> dropped = one - (sum - exp.scale);
  return one / (sum + fma(exp.scale, exp.p, dropped));
}

template <class T>
TIDEGATE_INLINE Vec<T> tanh(Vec<T> x) {
  using Constants = ActivationConstants<T>;
  const Vec<T> y = at_most(abs(x), broadcast(Constants::tanh_greatest));

  const SplitExp<T> exp = split_exp(y + y);
  const Vec<T> e = fma(exp.scale, exp.p, exp.scale - broadcast<T>(1));
  const Vec<T> quotient = e / (e + broadcast<T>(2));

  const Vec<T> y2 = y * y;
  const Vec<T> series = fma(y * y2, polynomial<0, 1>(y2, Constants::tanh), y);

  return copysign(select(less(y, broadcast<T>(static_cast<T>(0.256))), series, quotient), x);
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_MATH_H_
