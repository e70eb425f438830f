// Vec<T> against scalar arithmetic, bit for bit, and its memory accesses against guarded pages.
// Float operations for bfloat16 run with denormals flushed, as in a call.
#include "kernels/vec.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>

#include "arrays.h"
#include "check.h"
#include "core/float_control.h"
#include "flushed.h"

namespace tidegate {
namespace {

template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

// The same bits, or both NaN: the bits of a NaN depend on the machine.
template <class T>
bool same(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || same_bits(a, b);
}

template <class T>
T lane(Vec<T> x, int i) {
  T lanes[Vec<T>::width];
  store(lanes, x);
  return lanes[i];
}

// Zeros, the ends of the range, subnormal numbers, infinities, NaN, and numbers whose products and
// sums need rounding.
template <class T>
struct Samples {
  using Limits = std::numeric_limits<T>;
  static constexpr int count = 20;
  T values[count] = {T(0),
                     -T(0),
                     T(1),
                     T(-1),
                     T(0.1),
                     T(-1) / T(3),
                     T(1) + Limits::epsilon(),
                     T(2.5),
                     T(-1234.567),
                     T(1e30),
                     T(-1e-30),
                     Limits::denorm_min(),
                     -Limits::denorm_min(),
                     Limits::min(),
                     -Limits::min() / 2,
                     Limits::max(),
                     -Limits::max(),
                     Limits::infinity(),
                     -Limits::infinity(),
                     Limits::quiet_NaN()};

  T operator[](int i) const { return values[i % count]; }

  // A vector of `width` samples from the i-th on.
  Vec<T> vector(int i) const {
    T lanes[Vec<T>::width];
    for (int k = 0; k < Vec<T>::width; ++k) lanes[k] = (*this)[i + k];
    return load(lanes);
  }
};

template <class T>
void check_arithmetic() {
  const Samples<T> samples;
  for (int i = 0; i < samples.count; ++i) {
    const Vec<T> a = samples.vector(i);
    for (int k = 0; k < Vec<T>::width; ++k) {
      CHECK(same_bits(lane(-a, k), -samples[i + k]));
      CHECK(same_bits(lane(abs(a), k), std::fabs(samples[i + k])));
      CHECK(same_bits(lane(broadcast(samples[i]), k), samples[i]));
      CHECK(same(lane(sqrt(a), k), std::sqrt(samples[i + k])));
    }
    for (int j = 0; j < samples.count; ++j) {
      const Vec<T> b = samples.vector(j);
      const Vec<T> c = samples.vector(i + j);
      for (int k = 0; k < Vec<T>::width; ++k) {
        const T x = samples[i + k];
        const T y = samples[j + k];
        const T z = samples[i + j + k];
        CHECK(same(lane(a + b, k), x + y));
        CHECK(same(lane(a - b, k), x - y));
        CHECK(same(lane(a * b, k), x * y));
        CHECK(same(lane(a / b, k), x / y));
#ifdef TIDEGATE_ISA_BASELINE
        CHECK(same(lane(fma(a, b, c), k), x * y + z));
#else
        CHECK(same(lane(fma(a, b, c), k), std::fma(x, y, z)));
#endif
        CHECK(same_bits(lane(copysign(a, b), k), std::copysign(x, y)));
        CHECK(same_bits(lane(select(less(a, b), c, a), k), x < y ? z : x));
      }
    }
  }
  CHECK(same_bits(lane(zero<T>(), Vec<T>::width - 1), T(0)));
}

TEST(arithmetic_is_scalar_arithmetic) {
  check_arithmetic<float>();
  check_arithmetic<double>();
}

template <class T>
void check_bounds() {
  const Samples<T> samples;
  for (int i = 0; i < samples.count; ++i) {
    const Vec<T> x = samples.vector(i);
    for (const T bound : {T(-2), T(0.1), std::numeric_limits<T>::max()}) {
      for (int k = 0; k < Vec<T>::width; ++k) {
        const T value = samples[i + k];
        const T lesser = bound < value ? bound : value;
        const T greater = bound > value ? bound : value;
        CHECK(same(lane(at_most(x, broadcast(bound)), k), lesser));
        CHECK(same(lane(at_least(x, broadcast(bound)), k), greater));
      }
    }
  }
}

TEST(bounds_do_not_launder_nan) {
  check_bounds<float>();
  check_bounds<double>();
}

template <class T>
void check_powers_of_two() {
  const int greatest = Lanes<T>::exponent_bias;
  for (int n = 1 - greatest; n <= greatest; ++n) {
    for (const T fraction : {T(0), T(0.25), T(-0.375), T(0.5), T(-0.5)}) {
      const T product = T(n) + fraction;
      if (product < T(1 - greatest) || product > T(greatest)) continue;
      const PowerOfTwo<T> power = nearest_power_of_two(broadcast(product / 2), T(2));
      const T exponent = lane(power.exponent, 0);
      CHECK(exponent == std::nearbyint(exponent));
      CHECK(std::fabs(exponent - product) <= T(0.5));
      CHECK(lane(power.value, Vec<T>::width - 1) == std::ldexp(T(1), static_cast<int>(exponent)));
    }
  }
  const Vec<T> nan = broadcast(std::numeric_limits<T>::quiet_NaN());
  CHECK(std::isnan(lane(nearest_power_of_two(nan, T(2)).exponent, 0)));
}

TEST(powers_of_two_over_every_exponent) {
  check_powers_of_two<float>();
  check_powers_of_two<double>();
}

// A page of memory between two pages that fault when accessed.
class GuardedPage {
 public:
  GuardedPage() : size_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    void* pages = mmap(nullptr, 3 * size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED);
    start_ = static_cast<char*>(pages) + size_;
    CHECK(mprotect(start_, size_, PROT_READ | PROT_WRITE) == 0);
  }
  ~GuardedPage() { munmap(start_ - size_, 3 * size_); }
  GuardedPage(const GuardedPage&) = delete;
  GuardedPage& operator=(const GuardedPage&) = delete;

  template <class T>
  T* begin() const {
    return reinterpret_cast<T*>(start_);
  }
  template <class T>
  T* end() const {
    return reinterpret_cast<T*>(start_ + size_);
  }

 private:
  std::size_t size_;
  char* start_ = nullptr;
};

template <class T>
void check_memory() {
  constexpr int width = Vec<T>::width;
  CHECK(width * static_cast<int>(sizeof(T)) == vector_bytes);
  const GuardedPage page;

  // Unaligned, and with the last lane on the page's last byte.
  for (int offset = 0; offset <= width; ++offset) {
    T* place = page.end<T>() - width - offset;
    for (int k = 0; k < width; ++k) place[k] = T(offset + k);
    const Vec<T> x = load(place);
    store(place, x + x);
    for (int k = 0; k < width; ++k) CHECK(place[k] == T(2 * (offset + k)));
  }

  T source[width];
  for (int k = 0; k < width; ++k) source[k] = T(k + 1);
  for (int count = 0; count <= width; ++count) {
    // A count known at compile time would test only the compiler's special cases.
    const volatile int opaque = count;
    const int n = opaque;
    for (T* place : {page.begin<T>(), page.end<T>() - n, page.end<T>() - width}) {
      for (int k = 0; k < n; ++k) place[k] = source[k];
      const Vec<T> x = load_partial(place, n);
      for (int k = 0; k < width; ++k) CHECK(same_bits(lane(x, k), k < n ? source[k] : T(0)));

      const int readable = place + width <= page.end<T>() ? width : n;
      for (int k = 0; k < readable; ++k) place[k] = T(-7);
      store_partial(place, load(source), n);
      for (int k = 0; k < readable; ++k) CHECK(place[k] == (k < n ? source[k] : T(-7)));
    }
  }
}

TEST(memory_at_page_boundaries) {
  check_memory<float>();
  check_memory<double>();
}

TEST(bytes_are_widened_with_their_sign) {
  constexpr int kCount = 2 * Vec<float>::width;
  std::int8_t bytes[256 + kCount];
  for (int i = 0; i < 256 + kCount; ++i) bytes[i] = static_cast<std::int8_t>(i - 128);
  for (int first = 0; first <= 256; ++first) {  // at any address
    const Shorts shorts = load_widened(bytes + first);
    for (int i = 0; i < kCount; ++i) CHECK(shorts[i] == bytes[first + i]);
  }
}

TEST(sums_of_pairs_are_exact) {
  constexpr int kPairs = Vec<float>::width;
  const int extremes[] = {-32767, -128, -127, -1, 0, 1, 127, 128, 32767};
  test::Random random(1);
  const auto number = [&] {
    if (random.below(3) == 0) return static_cast<int>(random.below(65535)) - 32767;
    return extremes[random.below(9)];
  };
  for (int round = 0; round < 20000; ++round) {
    Shorts a, b;
    for (int i = 0; i < 2 * kPairs; ++i) {
      a[i] = static_cast<std::int16_t>(round == 0 ? -128 : round == 1 ? 127 : number());
      b[i] = static_cast<std::int16_t>(round == 0 ? -128 : round == 1 ? 127 : number());
    }
    const Lanes<float>::Bits sums = sums_of_pairs(a, b);
    for (int i = 0; i < kPairs; ++i)
      CHECK(sums[i] == a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1]);
  }
}

// Operands for which the rounding of a * b + c is difficult: all distances of the exponents,
// numbers of few bits (ties), near cancellation, and the ends of the range.
class FmaOperands {
 public:
  float a, b, c;

  explicit FmaOperands(test::Random& random) : random_(random) {
    switch (random.below(8)) {
      case 0:  // any numbers, infinities and NaN included
        a = half(random.bits());
        b = half(random.bits());
        c = test::float_of_bits(static_cast<std::uint32_t>(random.bits() >> 32));
        break;
      case 1:  // results near zero: c is -a * b, or a few units in the last place from it
        choose_factors(0, 60);
        c = neighbour(-a * b, static_cast<int>(random.below(5)) - 2);
        break;
      case 2:  // at the least normal number
        choose_factors(-126 + offset(30), 90);
        c = with_exponent(-126 + offset(30));
        break;
      case 3:  // at the greatest number
        choose_factors(126 + offset(2), 90);
        c = with_exponent(127 - static_cast<int>(random.below(30)));
        break;
      default: {
        const int exponent = offset(60);
        choose_factors(exponent, 100);
        c = with_exponent(exponent + offset(60));
      }
    }
  }

 private:
  static float half(std::uint64_t bits) {
    return test::float_of_bfloat16(static_cast<std::uint16_t>(bits >> 40));
  }
  static float neighbour(float x, int steps) {
    for (; steps > 0; --steps) x = std::nextafter(x, std::numeric_limits<float>::infinity());
    for (; steps < 0; ++steps) x = std::nextafter(x, -std::numeric_limits<float>::infinity());
    return x;
  }
  // An integer in -most..most.
  int offset(int most) { return static_cast<int>(random_.below(2 * most + 1)) - most; }
  float sign() { return random_.below(2) == 0 ? 1.0f : -1.0f; }

  // Factors of 8 bits whose product has about this exponent.
  void choose_factors(int exponent, int spread) {
    const int of_a = exponent / 2 + offset(spread / 2);
    const auto significand = [&] {
      const int kind = static_cast<int>(random_.below(4));
      if (kind == 0) return 128.0f;
      return kind == 1 ? 255.0f : static_cast<float>(128 + random_.below(128));
    };
    a = sign() * std::ldexp(significand(), of_a - 7);
    b = sign() * std::ldexp(significand(), exponent - of_a - 7);
  }
  // A number of 24 bits, of few bits, or next to a power of two.
  float with_exponent(int exponent) {
    std::uint32_t bits = static_cast<std::uint32_t>(random_.bits() >> 32) & 0x7fffff;
    switch (random_.below(6)) {
      case 0:
        bits = static_cast<std::uint32_t>(random_.below(3));
        break;
      case 1:
        bits = 0x7fffff - static_cast<std::uint32_t>(random_.below(3));
        break;
      case 2:
        bits = 1u << random_.below(23);
        break;
      default:
        break;
    }
    const auto significand = static_cast<float>(0x800000 | bits);
    return sign() * std::ldexp(significand, exponent - 23);
  }

  test::Random& random_;
};

TEST(fma_of_halves_rounds_once) {
  constexpr int kRounds = 3000;
  constexpr int kCount = 1024;
  constexpr int kWidth = Vec<float>::width;
  test::Random random(2);
  float a[kCount], b[kCount], c[kCount], got[kCount];
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < kCount; ++i) {
      const FmaOperands operands(random);
      a[i] = operands.a, b[i] = operands.b, c[i] = operands.c;
    }
    {
      const FloatControl flushes;
      for (int i = 0; i < kCount; i += kWidth)
        store(got + i, fma_of_halves(load(a + i), load(b + i), load(c + i)));
    }
    for (int i = 0; i < kCount; ++i) {
      const float wanted = test::flushed_fma(a[i], b[i], c[i]);
#ifdef TIDEGATE_ISA_NEON
      // AArch64 flushes results that are below FLT_MIN before they are rounded.
      if (std::fabs(wanted) == std::numeric_limits<float>::min() && got[i] == 0) continue;
#endif
      CHECK(same(got[i], wanted));
      if (!same(got[i], wanted) && test::failures <= 20)
        std::printf("  %a * %a + %a: got %a, wanted %a\n", static_cast<double>(a[i]),
                    static_cast<double>(b[i]), static_cast<double>(c[i]),
                    static_cast<double>(got[i]), static_cast<double>(wanted));
    }
  }
}

}  // namespace
}  // namespace tidegate
