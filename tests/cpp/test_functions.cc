// Sigmoid and softmax of rows against their formulas in long double, over the whole range of
// numbers, with NaN and infinities, with strides and in place; and refused arguments.
#include "tidegate/functions.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "errors.h"

namespace {

using namespace tidegate;
using test::Random;
using test::same;

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

// The unit roundoff of T, and the error of one operation whose result is subnormal.
template <class T>
constexpr long double kRoundoff = static_cast<long double>(std::numeric_limits<T>::epsilon()) / 2;
template <class T>
constexpr auto kSubnormal = static_cast<long double>(std::numeric_limits<T>::denorm_min());

// The relative error of the C library's exp in units of roundoff: at most 1 ulp.
constexpr int kExp = 2;

template <class T>
std::vector<T> sigmoid_of(const std::vector<T>& x) {
  std::vector<T> y(x.size());
  sigmoid(x.data(), 0, y.data(), 0, 1, static_cast<Index>(x.size()));
  return y;
}

template <class T>
std::vector<T> softmax_of(const std::vector<T>& x) {
  std::vector<T> y(x.size());
  softmax(x.data(), 0, y.data(), 0, 1, static_cast<Index>(x.size()));
  return y;
}

template <class T>
void check_sigmoid() {
  Random random(1);
  std::vector<T> x = {0, T(-0.0), T(1e-30), T(-1e-30)};
  // Down to a result of zero: exp(-104) and exp(-746) are below the subnormal numbers.
  for (const double scale : {1e-3, 1.0, 30.0, 110.0, 750.0}) {
    const std::vector<T> more = random.numbers<T>(500, scale);
    x.insert(x.end(), more.begin(), more.end());
  }
  const std::vector<T> y = sigmoid_of(x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const long double exact = 1 / (1 + std::exp(-static_cast<long double>(x[i])));
    // exp in the numerator, exp in the denominator, the sum and the quotient.
    const long double bound = (2 * kExp + 2 + 1) * kRoundoff<T> * exact + 2 * kSubnormal<T>;
    CHECK_NEAR(y[i], exact, bound);
    CHECK(same(y[i], sigmoid(x[i])));
  }
  CHECK(sigmoid(T(0)) == T(0.5));
  CHECK(sigmoid(kInfinity<T>) == 1 && sigmoid(-kInfinity<T>) == 0);
  CHECK(sigmoid(std::numeric_limits<T>::max()) == 1);
  CHECK(sigmoid(std::numeric_limits<T>::lowest()) == 0);
  CHECK(std::isnan(sigmoid(kNaN<T>)));
}

template <class T>
void check_softmax(const std::vector<T>& x) {
  const std::vector<T> y = softmax_of(x);
  const auto shift = static_cast<long double>(*std::max_element(x.begin(), x.end()));
  long double sum = 0;
  long double shifts = 0;  // each difference's magnitude, weighted by its term
  for (const T value : x) {
    const long double difference = static_cast<long double>(value) - shift;
    sum += std::exp(difference);
    shifts += -difference * std::exp(difference);
  }
  const auto size = static_cast<long double>(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const long double difference = static_cast<long double>(x[i]) - shift;
    const long double exact = std::exp(difference) / sum;
    // Rounding x - m changes exp by |x - m| roundoffs. In the numerator, that and exp; in the sum,
    // that, exp, and size - 1 additions; the quotient. One more for the products of these errors.
    const long double relative = -difference + kExp + shifts / sum + kExp + (size - 1) + 1 + 1;
    CHECK_NEAR(y[i], exact, relative * kRoundoff<T> * exact + (size + 2) * kSubnormal<T>);
  }
}

template <class T>
void check_softmax_of_special_rows() {
  const T infinity = kInfinity<T>;
  const T nan = kNaN<T>;
  const T most = std::numeric_limits<T>::max();
  CHECK(same(softmax_of<T>({3}), {1}));
  CHECK(same(softmax_of<T>({}), {}));
  CHECK(same(softmax_of<T>({most, most}), {T(0.5), T(0.5)}));
  CHECK(same(softmax_of<T>({-most, most}), {0, 1}));
  CHECK(same(softmax_of<T>({-most, -most}), {T(0.5), T(0.5)}));
  CHECK(same(softmax_of<T>({1, -infinity, 1}), {T(0.5), 0, T(0.5)}));
  // As in PyTorch.
  CHECK(same(softmax_of<T>({1, infinity}), {nan, nan}));
  CHECK(same(softmax_of<T>({-infinity, -infinity}), {nan, nan}));
  CHECK(same(softmax_of<T>({nan, 1, 2}), {nan, nan, nan}));
  CHECK(same(softmax_of<T>({1, 2, nan}), {nan, nan, nan}));
}

// Rows with gaps of NaN between them, which must be neither read nor written.
template <class T, class Function>
void check_strides(const Function& function) {
  constexpr Index kRows = 3, kColumns = 4, kXStride = 7, kYStride = 5;
  Random random(2);
  std::vector<T> x(kRows * kXStride, kNaN<T>);
  for (Index r = 0; r < kRows; ++r) {
    const std::vector<T> row = random.numbers<T>(kColumns, 5);
    std::copy(row.begin(), row.end(), x.begin() + r * kXStride);
  }
  std::vector<T> y(kRows * kYStride, 9);
  function(x.data(), kXStride, y.data(), kYStride, kRows, kColumns);
  for (Index r = 0; r < kRows; ++r) {
    std::vector<T> row(kColumns);
    function(x.data() + r * kXStride, kColumns, row.data(), kColumns, 1, kColumns);
    for (Index c = 0; c < kYStride; ++c)
      CHECK(y[r * kYStride + c] == (c < kColumns ? row[c] : T(9)));
  }
  // In place.
  function(x.data(), kXStride, x.data(), kXStride, kRows, kColumns);
  for (Index r = 0; r < kRows; ++r) {
    for (Index c = 0; c < kXStride; ++c) {
      CHECK(same(x[r * kXStride + c], c < kColumns ? y[r * kYStride + c] : kNaN<T>));
    }
  }
  function(nullptr, 0, nullptr, 0, 0, kColumns);
  function(x.data(), kXStride, nullptr, 0, kRows, 0);

  const auto refusal = [&](Index rows, Index columns) {
    return invalid_argument_of([&] { function(x.data(), 1, y.data(), 1, rows, columns); });
  };
  CHECK(refusal(-1, 1) == "rows: got -1, wanted an integer >= 0");
  CHECK(refusal(1, -2) == "columns: got -2, wanted an integer >= 0");
}

template <class T>
void check_strides_of_all() {
  check_strides<T>([](const T* x, Index x_stride, T* y, Index y_stride, Index rows, Index columns) {
    sigmoid(x, x_stride, y, y_stride, rows, columns);
  });
  check_strides<T>([](const T* x, Index x_stride, T* y, Index y_stride, Index rows, Index columns) {
    softmax(x, x_stride, y, y_stride, rows, columns);
  });
}

}  // namespace

TEST(sigmoid_is_its_formula) {
  check_sigmoid<float>();
  check_sigmoid<double>();
}

TEST(softmax_is_its_formula) {
  Random random(3);
  for (const Index columns : {1, 2, 3, 10, 300}) {
    for (const double scale : {1e-3, 1.0, 30.0, 500.0}) {
      check_softmax(random.numbers<float>(columns, scale));
      check_softmax(random.numbers<double>(columns, scale));
    }
  }
}

TEST(softmax_of_infinities_and_nan) {
  check_softmax_of_special_rows<float>();
  check_softmax_of_special_rows<double>();
}

TEST(rows_have_strides_and_may_be_overwritten) {
  check_strides_of_all<float>();
  check_strides_of_all<double>();
}
