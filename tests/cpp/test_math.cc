// Sigmoid, tanh, exp and log1p against wider arithmetic over every exponent: error in ulp, special
// values, saturation, flush-to-zero, and the same bits on every instruction set with FMA.
//
// -DTIDEGATE_TEST_STRIDE=1 visits every float (minutes).
#include "kernels/math.h"

#include <cstdint>
#include <initializer_list>
#include <limits>

#include "check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// The distance of the tested floats: a prime, so that all low bits occur. CI emulates AArch64.
#ifndef TIDEGATE_TEST_STRIDE
#if defined(__x86_64__)
#define TIDEGATE_TEST_STRIDE 211
#else
#define TIDEGATE_TEST_STRIDE 10007
#endif
#endif

namespace tidegate {
namespace {

template <class T>
struct Format;

template <>
struct Format<float> {
  using Wide = double;
  using Pattern = std::uint32_t;
  static constexpr const char* name = "float32";
};

template <>
struct Format<double> {
  using Wide = long double;
  using Pattern = std::uint64_t;
  static constexpr const char* name = "float64";
};

struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr int least = 0;
  template <class T>
  static Vec<T> kernel(Vec<T> x) {
    return sigmoid(x);
  }
  template <class Wide>
  static Wide exact(Wide x) {
    return 1 / (1 + std::exp(-x));
  }
};

struct Tanh {
  static constexpr const char* name = "tanh";
  static constexpr int least = -1;
  template <class T>
  static Vec<T> kernel(Vec<T> x) {
    return tanh(x);
  }
  template <class Wide>
  static Wide exact(Wide x) {
    return std::tanh(x);
  }
};

// Any number, mapped into the range of the function.
struct Exp {
  static constexpr const char* name = "exp";
  static constexpr int least = 0;
  template <class T>
  static Vec<T> kernel(Vec<T> x) {
    return exp_nonpositive(-abs(x));
  }
  template <class Wide>
  static Wide exact(Wide x) {
    return std::exp(-std::fabs(x));
  }
};

struct Log1p {
  static constexpr const char* name = "log1p";
  static constexpr int least = 0;
  template <class T>
  static Vec<T> kernel(Vec<T> x) {
    return log1p_unit(at_most(abs(x), broadcast<T>(1)));
  }
  template <class Wide>
  static Wide exact(Wide x) {
    return std::log1p(std::fabs(x) > 1 ? 1 : std::fabs(x));
  }
};

// Enables or disables the flushing of subnormal operands and results for its lifetime.
class Subnormals {
 public:
  explicit Subnormals(bool flushed) : before_(control()) {
    set_control(flushed ? before_ | flags : before_ & ~flags);
  }
  ~Subnormals() { set_control(before_); }
  Subnormals(const Subnormals&) = delete;
  Subnormals& operator=(const Subnormals&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr std::uint64_t flags = 0x8040;  // MXCSR: FTZ and DAZ
  static std::uint64_t control() { return _mm_getcsr(); }
  static void set_control(std::uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#else
  static constexpr std::uint64_t flags = 1u << 24;  // FPCR: FZ
  static std::uint64_t control() {
    std::uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set_control(std::uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#endif
  std::uint64_t before_;
};

constexpr int block = 1024;

// Not inlined, so that no operation moves across a change of the control register.
template <class Activation, class T>
__attribute__((noinline)) void evaluate(T* y, const T* x) {
  for (int i = 0; i < block; i += Vec<T>::width) store(y + i, Activation::kernel(load(x + i)));
}

template <class Activation, class T>
T at(T x) {
  T in[block] = {x};
  T out[block];
  evaluate<Activation>(out, in);
  return out[0];
}

template <class T>
T from_pattern(std::uint64_t pattern) {
  const auto bits = static_cast<typename Format<T>::Pattern>(pattern);
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The largest errors found: in ulp if the true result is a normal number, else absolute.
template <class Activation, class T>
class Errors {
 public:
  void add(T x, T got) {
    using Wide = typename Format<T>::Wide;
    if (std::isnan(x)) {
      CHECK(std::isnan(got));
      return;
    }
    const Wide exact = Activation::exact(static_cast<Wide>(x));
    const Wide error = std::fabs(static_cast<Wide>(got) - exact);
    CHECK(got >= T(Activation::least) && got <= T(1));
    if (std::fabs(exact) < static_cast<Wide>(Limits::min())) {
      CHECK(error <= static_cast<Wide>(Limits::min()));
      return;
    }
    const Wide ulp = std::scalbn(Wide(1), std::ilogb(exact) + 1 - Limits::digits);
    const double ulps = static_cast<double>(error / ulp);
    CHECK(ulps <= 2.0);
    if (ulps > worst_) {
      worst_ = ulps;
      where_ = x;
    }
  }

  void report(bool flushed) const {
    std::printf("  %s %s, subnormals %s: %.3f ulp, at %a\n", Activation::name, Format<T>::name,
                flushed ? "flushed" : "kept", worst_, static_cast<double>(where_));
  }

 private:
  using Limits = std::numeric_limits<T>;
  double worst_ = 0;
  T where_ = 0;
};

// Measures the numbers that `next` produces, block by block, until it returns false.
template <class Activation, class T, class Next>
void measure(bool flushed, Next next) {
  Errors<Activation, T> errors;
  T x[block];
  T y[block];
  bool more = true;
  while (more) {
    int filled = 0;
    while (filled < block && (more = next(x[filled]))) ++filled;
    for (int i = filled; i < block; ++i) x[i] = 0;
    {
      const Subnormals mode(flushed);
      evaluate<Activation>(y, x);
    }
    for (int i = 0; i < filled; ++i) errors.add(x[i], y[i]);
  }
  errors.report(flushed);
}

template <class Activation>
void measure_float() {
  for (const bool flushed : {false, true}) {
    std::uint64_t pattern = 0;
    measure<Activation, float>(flushed, [&](float& x) {
      x = from_pattern<float>(pattern);
      pattern += TIDEGATE_TEST_STRIDE;
      return pattern < (std::uint64_t{1} << 32);
    });
  }
}

TEST(sigmoid_float_over_every_exponent) { measure_float<Sigmoid>(); }
TEST(tanh_float_over_every_exponent) { measure_float<Tanh>(); }
TEST(exp_float_over_every_exponent) { measure_float<Exp>(); }
TEST(log1p_float_over_every_exponent) { measure_float<Log1p>(); }

// Marsaglia's xorshift64 (2003).
std::uint64_t next_random(std::uint64_t& state) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

// Random mantissas and both signs for every exponent, more of them where the function is curved.
template <class Activation>
void measure_double() {
#if defined(__x86_64__)
  constexpr int bent = 20000;
#else
  constexpr int bent = 300;  // there, long double is emulated in software
#endif
  for (const bool flushed : {false, true}) {
    std::uint64_t state = 88172645463325252u;
    std::uint64_t exponent = 0;
    int count = 0;
    measure<Activation, double>(flushed, [&](double& x) {
      const bool bends = exponent >= 1023 - 30 && exponent <= 1023 + 10;
      if (count++ == (bends ? bent : bent / 50)) {
        count = 1;
        ++exponent;
      }
      const std::uint64_t random = next_random(state);
      x = from_pattern<double>((random & ~(std::uint64_t{0x7ff} << 52)) | exponent << 52);
      return exponent <= 0x7ff;
    });
  }
}

TEST(sigmoid_double_over_every_exponent) { measure_double<Sigmoid>(); }
TEST(tanh_double_over_every_exponent) { measure_double<Tanh>(); }
TEST(exp_double_over_every_exponent) { measure_double<Exp>(); }
TEST(log1p_double_over_every_exponent) { measure_double<Log1p>(); }

// Arguments at which roundings could add up: around each n in 2^n of the reduction, and where
// sigmoid's 1 + 2^n ceases to be exact.
template <class Activation>
void measure_double_near_powers_of_e() {
  std::uint64_t state = 362436069u;
  int count = 0;
  measure<Activation, double>(false, [&](double& x) {
    const double n = 0.5 * (count % 240 - 120);
    const double offset = static_cast<double>(next_random(state) >> 40) * 0x1p-24 - 0.5;
    x = n * 0.69314718055994530942 + offset * 0x1p-4;
#if defined(__x86_64__)
    return count++ < 1000000;
#else
    return count++ < 20000;
#endif
  });
}

TEST(double_near_the_reductions_seams) {
  measure_double_near_powers_of_e<Sigmoid>();
  measure_double_near_powers_of_e<Tanh>();
  measure_double_near_powers_of_e<Exp>();
}

template <class T>
void check_special_values() {
  using Limits = std::numeric_limits<T>;
  for (const bool flushed : {false, true}) {
    const Subnormals mode(flushed);
    CHECK(at<Tanh>(T(0)) == 0 && !std::signbit(at<Tanh>(T(0))));
    CHECK(at<Tanh>(-T(0)) == 0 && std::signbit(at<Tanh>(-T(0))));
    CHECK(at<Sigmoid>(T(0)) == T(0.5));
    CHECK(at<Sigmoid>(-T(0)) == T(0.5));
    CHECK(at<Sigmoid>(Limits::denorm_min()) == T(0.5));
    CHECK(at<Tanh>(Limits::min()) == Limits::min());

    for (const T x : {T(Limits::digits), T(1e4), Limits::max(), Limits::infinity()}) {
      CHECK(at<Tanh>(x) == T(1));
      CHECK(at<Tanh>(-x) == T(-1));
      CHECK(at<Sigmoid>(2 * x) == T(1));
    }
    for (const T x : {T(1e4), Limits::max(), Limits::infinity()}) {
      const T floor = at<Sigmoid>(-x);
      CHECK(floor >= 0 && floor < Limits::min() && (floor == 0 || !flushed));
      CHECK(floor == at<Sigmoid>(-Limits::infinity()));
    }
    CHECK(at<Exp>(T(0)) == 1 && at<Log1p>(T(0)) == 0);
    CHECK(at<Exp>(Limits::denorm_min()) == 1);
    CHECK(at<Log1p>(Limits::min()) == Limits::min());
    for (const T x : {T(1e4), Limits::max(), Limits::infinity()}) CHECK(at<Exp>(x) == 0);
    for (const T nan : {Limits::quiet_NaN(), -Limits::quiet_NaN()}) {
      CHECK(std::isnan(at<Tanh>(nan)));
      CHECK(std::isnan(at<Sigmoid>(nan)));
      CHECK(std::isnan(at<Exp>(nan)));
      CHECK(std::isnan(at<Log1p>(nan)));
    }
  }
  const Subnormals mode(false);
  CHECK(at<Tanh>(-Limits::denorm_min()) == -Limits::denorm_min());
}

TEST(special_values) {
  check_special_values<float>();
  check_special_values<double>();
}

template <class Activation, class T>
void check_lanes_apart() {
  using Limits = std::numeric_limits<T>;
  const T others[] = {Limits::quiet_NaN(), Limits::infinity(), T(-1e4), T(0)};
  for (int place = 0; place < Vec<T>::width; ++place) {
    for (const T other : others) {
      T x[block];
      T y[block];
      for (T& value : x) value = other;
      x[place] = T(0.7);
      evaluate<Activation>(y, x);
      CHECK(y[place] == at<Activation>(T(0.7)));
    }
  }
}

TEST(a_lane_depends_on_its_own_argument_alone) {
  check_lanes_apart<Sigmoid, float>();
  check_lanes_apart<Sigmoid, double>();
  check_lanes_apart<Tanh, float>();
  check_lanes_apart<Tanh, double>();
  check_lanes_apart<Exp, float>();
  check_lanes_apart<Exp, double>();
  check_lanes_apart<Log1p, float>();
  check_lanes_apart<Log1p, double>();
}

template <class T>
void check_tanh_is_odd() {
  std::uint64_t state = 521288629u;
  for (int round = 0; round < 200; ++round) {
    T x[block];
    T y[block];
    T mirrored[block];
    for (T& value : x) value = T(20) * static_cast<T>(next_random(state) >> 40) * T(0x1p-24);
    evaluate<Tanh>(y, x);
    for (T& value : x) value = -value;
    evaluate<Tanh>(mirrored, x);
    for (int i = 0; i < block; ++i) CHECK(mirrored[i] == -y[i]);
  }
}

TEST(tanh_is_odd) {
  check_tanh_is_odd<float>();
  check_tanh_is_odd<double>();
}

#ifndef TIDEGATE_ISA_BASELINE
// FNV-1a (Fowler, Noll, Vo) over the results' bit patterns.
template <class Activation, class T>
std::uint64_t fingerprint() {
  std::uint64_t hash = 14695981039346656037u;
  std::uint64_t state = 2463534242u;
  for (int round = 0; round < 100; ++round) {
    T x[block];
    T y[block];
    for (T& value : x) {
      const T unit = static_cast<T>(next_random(state) >> 40) * T(0x1p-23) - T(1);
      value = unit * (round < 50 ? T(4) : T(60));
    }
    evaluate<Activation>(y, x);
    for (const T value : y) {
      typename Format<T>::Pattern bits;
      std::memcpy(&bits, &value, sizeof bits);
      hash = (hash ^ bits) * 1099511628211u;
    }
  }
  return hash;
}

// The hashes of the present formulas: a change of a formula requires new hashes, computed on one
// instruction set and confirmed on the others.
TEST(the_same_bits_wherever_products_are_fused) {
  CHECK((fingerprint<Sigmoid, float>() == 0xe073381dfeb2ad3cu));
  CHECK((fingerprint<Sigmoid, double>() == 0xd009fc23821b0e62u));
  CHECK((fingerprint<Tanh, float>() == 0x1e211bbc7133232du));
  CHECK((fingerprint<Tanh, double>() == 0x59f1bae8458c26c3u));
  CHECK((fingerprint<Exp, float>() == 0xed7c46fd0c666407u));
  CHECK((fingerprint<Exp, double>() == 0x90411ae78ac2c0a3u));
  CHECK((fingerprint<Log1p, float>() == 0x2779f03313be7328u));
  CHECK((fingerprint<Log1p, double>() == 0xba5f1fad4b3be5fbu));
}
#endif

}  // namespace
}  // namespace tidegate
