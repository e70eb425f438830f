// Scalar arithmetic that counts denormal operands and results as zeros, as calls do, written
// without that mode of the processor. Runs with the default float control.
#ifndef TIDEGATE_TESTS_FLUSHED_H_
#define TIDEGATE_TESTS_FLUSHED_H_

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

namespace tidegate::test {

// A denormal number becomes a zero of its sign.
inline float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

inline float flushed_sum(float a, float b) { return flushed(flushed(a) + flushed(b)); }
inline float flushed_product(float a, float b) { return flushed(flushed(a) * flushed(b)); }

// a * b + c, rounded once.
//
// A result is flushed if it is below FLT_MIN when rounded to 24 bits, with as many exponents as it
// needs. Rounding to a denormal number instead could reach FLT_MIN. Results near FLT_MIN are hence
// computed once more with a greater exponent; then c and one of the factors are small.
inline float flushed_fma(float a, float b, float c) {
  a = flushed(a), b = flushed(b), c = flushed(c);
  const float result = std::fma(a, b, c);
  if (!(std::fabs(result) <= FLT_MIN)) return result;
  if (std::fabs(a) > std::fabs(b)) std::swap(a, b);
  const float scaled = std::fma(a * 0x1p64f, b, c * 0x1p64f);
  return std::fabs(scaled) < FLT_MIN * 0x1p64f ? std::copysign(0.0f, scaled) : result;
}

// The nearest number with 8 significant bits (bfloat16; denormal numbers have fewer), ties to even.
inline float rounded_to_bfloat16(float x) {
  if (!std::isfinite(x) || x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1.0, (exponent < -125 ? -125 : exponent) - 8);
  return static_cast<float>(std::nearbyint(static_cast<double>(x) / unit) * unit);
}

inline float float_of_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float float_of_bfloat16(std::uint16_t bits) {
  return float_of_bits(std::uint32_t{bits} << 16);
}

}  // namespace tidegate::test

#endif  // TIDEGATE_TESTS_FLUSHED_H_
