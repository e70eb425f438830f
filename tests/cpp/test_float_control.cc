// FloatControl: the floating-point environment during its lifetime, and the restoration of the
// caller's register.
#include "core/float_control.h"

#include <cfenv>
#include <cfloat>
#include <cstdint>
#include <initializer_list>

#include "check.h"

namespace {

using tidegate::FloatControl;

// Arithmetic in functions that are not inlined, as FloatControl requires.
[[gnu::noinline]] float multiply(float a, float b) {
  const volatile float x = a, y = b;
  return x * y;
}

[[gnu::noinline]] double divide(double a, double b) {
  const volatile double x = a, y = b;
  return x / y;
}

// The whole register, read in another way than by FloatControl; on AArch64 the flags follow the
// control bits.
std::uint64_t control_register() {
#if defined(__x86_64__)
  return __builtin_ia32_stmxcsr();
#else
  return __builtin_aarch64_get_fpcr64() << 32 | __builtin_aarch64_get_fpsr64();
#endif
}

void set_flush_to_zero() {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 1u << 15 | 1u << 6);
#else
  __builtin_aarch64_set_fpcr64(__builtin_aarch64_get_fpcr64() | std::uint64_t{1} << 24);
#endif
}

constexpr float kDenormal = FLT_MIN / 4;

}  // namespace

TEST(denormals_are_flushed_inside_only) {
  CHECK(multiply(FLT_MIN, 0.5f) > 0.0f);
  CHECK(multiply(kDenormal, 8.0f) == 2 * FLT_MIN);
  {
    const FloatControl float_control;
    CHECK(multiply(FLT_MIN, 0.5f) == 0.0f);    // a result
    CHECK(multiply(kDenormal, 8.0f) == 0.0f);  // an operand
    CHECK(divide(DBL_MIN, 2.0) == 0.0);
  }
  CHECK(multiply(FLT_MIN, 0.5f) > 0.0f);
  CHECK(multiply(kDenormal, 8.0f) == 2 * FLT_MIN);
}

TEST(rounding_is_to_nearest_inside_only) {
  const double nearest = divide(1.0, 10.0);  // rounds up
  std::fesetround(FE_DOWNWARD);
  const double down = divide(1.0, 10.0);
  double inside;
  {
    const FloatControl float_control;
    inside = divide(1.0, 10.0);
  }
  const double after = divide(1.0, 10.0);
  std::fesetround(FE_TONEAREST);
  CHECK(down < nearest);
  CHECK(inside == nearest);
  CHECK(after == down);
}

TEST(sticky_flags_are_the_callers) {
  std::feclearexcept(FE_ALL_EXCEPT);
  {
    const FloatControl float_control;
    divide(1.0, 0.0);
    CHECK(std::fetestexcept(FE_DIVBYZERO) != 0);
  }
  CHECK(std::fetestexcept(FE_ALL_EXCEPT) == 0);

  divide(0.0, 0.0);
  {
    const FloatControl float_control;
    CHECK(std::fetestexcept(FE_INVALID) == 0);
  }
  CHECK(std::fetestexcept(FE_ALL_EXCEPT) == FE_INVALID);
  std::feclearexcept(FE_ALL_EXCEPT);
}

TEST(whole_register_is_restored) {
  std::fenv_t environment;
  std::fegetenv(&environment);
  set_flush_to_zero();
  for (const int rounding : {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    std::fesetround(rounding);
    const std::uint64_t before = control_register();
    std::uint64_t inside;
    {
      const FloatControl outer;
      inside = control_register();
      {
        const FloatControl inner;
        CHECK(control_register() == inside);
      }
      CHECK(control_register() == inside);
    }
    CHECK(control_register() == before);
  }
  std::fesetenv(&environment);
}

#if defined(__x86_64__) && defined(__GLIBC__)
// A caller's traps are masked inside a call, and enabled again after it.
TEST(traps_are_masked_inside_only) {
  std::feclearexcept(FE_ALL_EXCEPT);
  feenableexcept(FE_DIVBYZERO);
  {
    const FloatControl float_control;
    CHECK(divide(1.0, 0.0) > DBL_MAX);
  }
  const int enabled = fegetexcept();
  const bool unmasked = (control_register() & 1u << 9) == 0;
  fedisableexcept(FE_ALL_EXCEPT);
  CHECK(enabled == FE_DIVBYZERO);
  CHECK(unmasked);
}
#endif
