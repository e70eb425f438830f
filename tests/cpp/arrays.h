// Arrays for tests: random numbers, and comparisons bit for bit. Independent of Tidegate.
#ifndef TIDEGATE_TESTS_ARRAYS_H_
#define TIDEGATE_TESTS_ARRAYS_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace tidegate::test {

inline std::size_t size_of(std::int64_t count) { return static_cast<std::size_t>(count); }

// A random sequence that is the same on all machines (Marsaglia's xorshift).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

  std::uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }

  // An integer in 0..count-1.
  std::int64_t below(std::int64_t count) {
    return static_cast<std::int64_t>((bits() >> 16) % static_cast<std::uint64_t>(count));
  }

  // A number in [-1, 1] with 12 fractional bits: the same number in float and in double.
  double number() { return static_cast<double>(below(8193) - 4096) / 4096; }

  template <class T>
  std::vector<T> numbers(std::int64_t count, double scale = 1) {
    std::vector<T> values(size_of(count));
    for (T& value : values) value = static_cast<T>(scale * number());
    return values;
  }

 private:
  std::uint64_t state_;
};

// The same bits, or both NaN: the bits of a NaN depend on the machine.
template <class T>
bool same(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!same(a[i], b[i])) return false;
  }
  return true;
}

}  // namespace tidegate::test

#endif  // TIDEGATE_TESTS_ARRAYS_H_
