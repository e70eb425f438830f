// The kernels of optimisers and losses against plain loops: optimisers bit for bit, losses and
// their gradients against double within a few units of roundoff, sums with the same bits on every
// instruction set.
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "kernels/losses.h"
#include "kernels/optimizers.h"

namespace tidegate {
namespace {

using test::Random;
using test::same;
using test::size_of;

constexpr Index kSizes[] = {0, 1, 3, 15, 16, 17, 33, 100, 257};

// A vector followed by elements that must not change.
template <class T>
std::vector<T> guarded(std::vector<T> values) {
  values.insert(values.end(), 16, T(7));
  return values;
}

template <class T>
bool guards_stay(const std::vector<T>& values) {
  return std::all_of(values.end() - 16, values.end(), [](T value) { return value == T(7); });
}

// Random numbers in (0, 1].
template <class T>
std::vector<T> positive_numbers(Random& random, Index count) {
  std::vector<T> values = random.numbers<T>(count);
  for (T& value : values) value = std::fabs(value) + T(1) / 4096;
  return values;
}

// ---- Optimisers: each operation is rounded to T separately.

template <class T>
void check_adam(Index count, T l2, T decay) {
  Random random(static_cast<std::uint64_t>(count));
  const std::vector<T> values = random.numbers<T>(count), gradient = random.numbers<T>(count);
  const std::vector<T> average = random.numbers<T>(count);
  const std::vector<T> squares = positive_numbers<T>(random, count);
  std::vector<T> got_values = guarded(values), got_average = guarded(average);
  std::vector<T> got_squares = guarded(squares);
  AdamCall<T> call;
  call.count = count;
  call.values = got_values.data();
  call.gradient = gradient.data();
  call.exp_avg = got_average.data();
  call.exp_avg_sq = got_squares.data();
  call.l2 = l2;
  call.decay = decay;
  call.beta1 = T(0.9);
  call.one_minus_beta1 = T(0.1);
  call.beta2 = T(0.999);
  call.one_minus_beta2 = T(0.001);
  call.root_correction2 = T(0.3);
  call.eps = T(1e-3);
  call.step_size = T(0.07);
  adam(call);
  CHECK(guards_stay(got_values) && guards_stay(got_average) && guards_stay(got_squares));
  for (std::size_t i = 0; i < size_of(count); ++i) {
    const T g = l2 != 0 ? values[i] * l2 + gradient[i] : gradient[i];
    const T m = average[i] * call.beta1 + g * call.one_minus_beta1;
    const T v = squares[i] * call.beta2 + g * call.one_minus_beta2 * g;
    const T denominator = std::sqrt(v) / call.root_correction2 + call.eps;
    const T step = m / denominator * call.step_size;
    CHECK(same(got_average[i], m));
    CHECK(same(got_squares[i], v));
    CHECK(same(got_values[i], values[i] * decay - step));
  }
}

TEST(adam_is_its_formula_bit_for_bit) {
  for (const Index count : kSizes) {
    for (const double l2 : {0.0, 0.3}) {
      check_adam<float>(count, static_cast<float>(l2), 1.0f);
      check_adam<double>(count, l2, 1.0);
    }
    check_adam<float>(count, 0.0f, 0.99f);
    check_adam<double>(count, 0.0, 0.99);
  }
}

template <class T>
void check_sgd(Index count, T l2, bool has_momentum, bool first, bool nesterov) {
  Random random(static_cast<std::uint64_t>(count + 1));
  const std::vector<T> values = random.numbers<T>(count), gradient = random.numbers<T>(count);
  const std::vector<T> buffer = random.numbers<T>(count);
  std::vector<T> got_values = guarded(values), got_buffer = guarded(buffer);
  SgdCall<T> call;
  call.count = count;
  call.values = got_values.data();
  call.gradient = gradient.data();
  call.momentum_buffer = has_momentum ? got_buffer.data() : nullptr;
  call.first = first;
  call.nesterov = nesterov;
  call.l2 = l2;
  call.momentum = T(0.9);
  call.one_minus_dampening = T(0.7);
  call.lr = T(0.1);
  sgd(call);
  CHECK(guards_stay(got_values) && guards_stay(got_buffer));
  for (std::size_t i = 0; i < size_of(count); ++i) {
    const T g = l2 != 0 ? values[i] * l2 + gradient[i] : gradient[i];
    T b = buffer[i];
    T direction = g;
    if (has_momentum) {
      b = first ? g : b * call.momentum + g * call.one_minus_dampening;
      direction = nesterov ? g + b * call.momentum : b;
    }
    CHECK(same(got_buffer[i], b));
    CHECK(same(got_values[i], values[i] - direction * call.lr));
  }
}

TEST(sgd_is_its_formula_bit_for_bit) {
  for (const Index count : kSizes) {
    for (const double l2 : {0.0, 0.3}) {
      for (const bool has_momentum : {false, true}) {
        for (const bool first : {false, true}) {
          for (const bool nesterov : {false, true}) {
            check_sgd<float>(count, static_cast<float>(l2), has_momentum, first, nesterov);
            check_sgd<double>(count, l2, has_momentum, first, nesterov);
          }
        }
      }
    }
  }
}

template <class T>
void check_scale(Index count) {
  Random random(3);
  const std::vector<T> values = random.numbers<T>(count);
  std::vector<T> got = guarded(values);
  scale(got.data(), count, T(0.3));
  CHECK(guards_stay(got));
  for (std::size_t i = 0; i < size_of(count); ++i) CHECK(same(got[i], values[i] * T(0.3)));
}

// ---- Sums

// The order of summation: eight chains, added pairwise at the end.
template <class T>
double sum_of_squares_in_order(const std::vector<T>& values) {
  double chains[8] = {};
  for (std::size_t i = 0; i < values.size(); ++i)
    chains[i % 8] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return ((chains[0] + chains[4]) + (chains[2] + chains[6])) +
         ((chains[1] + chains[5]) + (chains[3] + chains[7]));
}

template <class T>
void check_sum_of_squares(Index count) {
  Random random(static_cast<std::uint64_t>(count + 2));
  std::vector<T> values = random.numbers<T>(count);
  for (T& value : values) value *= T(1) / 3;  // their squares are inexact in double
  CHECK(same(sum_of_squares(values.data(), count), sum_of_squares_in_order(values)));
}

TEST(scaling_and_sums) {
  for (const Index count : kSizes) {
    check_scale<float>(count);
    check_scale<double>(count);
    check_sum_of_squares<float>(count);
    check_sum_of_squares<double>(count);
  }
}

// ---- Losses, against double. Tolerances are in units of roundoff of T.

template <class T>
constexpr double kRoundoff = static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;

template <class T>
void check_softmax(Index classes, double spread) {
  constexpr Index kRows = 5;
  Random random(static_cast<std::uint64_t>(classes));
  const std::vector<T> logits = random.numbers<T>(kRows * classes, spread);
  std::vector<Index> targets(size_of(kRows));
  for (Index& target : targets) target = random.below(classes);
  std::vector<T> gradient = guarded(std::vector<T>(logits.size()));
  double losses[kRows + 1];
  losses[kRows] = 7;
  SoftmaxCall<T> call;
  call.rows = kRows;
  call.classes = classes;
  call.logits = logits.data();
  call.targets = targets.data();
  call.gradient = gradient.data();
  call.losses = losses;
  call.scale = 1.0 / 3;
  softmax_cross_entropy(call);
  CHECK(guards_stay(gradient) && losses[kRows] == 7);
  for (Index r = 0; r < kRows; ++r) {
    using Wide = long double;
    const auto wide = [](auto value) { return static_cast<Wide>(value); };
    const auto x = [&](Index i) { return static_cast<Wide>(logits[size_of(r * classes + i)]); };
    const Index target = targets[size_of(r)];
    Wide most = x(0);
    for (Index i = 1; i < classes; ++i) most = std::max(most, x(i));
    const auto e = [&](Index i) { return std::exp(x(i) - most); };
    // Relative: the roundings of x - m and of exp.
    const auto error = [&](Index i) { return wide(kRoundoff<T>) * (most - x(i) + 3); };
    Wide sum = 0, others = 0, sum_error = 0, others_error = 0;
    for (Index i = 0; i < classes; ++i) {
      sum += e(i);
      sum_error += e(i) * error(i);
      if (i == target) continue;
      others += e(i);
      others_error += e(i) * error(i);
    }
    // The roundings of the sum, in double, magnified by the subtraction of the target's part.
    const Wide rounding = wide(kRoundoff<double>) * static_cast<Wide>(classes / 8 + 8);
    sum_error = sum_error / sum + rounding;
    others_error = others_error / sum + rounding;
    const Wide loss = std::log(sum) - (x(target) - most);
    CHECK_NEAR(losses[r], loss, sum_error + 4 * wide(kRoundoff<double>) * (1 + loss));
    for (Index i = 0; i < classes; ++i) {
      const Wide wanted = i == target ? -others / sum : e(i) / sum;
      const Wide relative = sum_error + (i == target ? 2 * wide(kRoundoff<T>) : error(i));
      const Wide absolute = i == target ? others_error : wide(std::numeric_limits<T>::min());
      CHECK_NEAR(gradient[size_of(r * classes + i)], wanted / 3,
                 (relative * std::fabs(wanted) + absolute) / 3);
    }
  }
}

TEST(softmax_cross_entropy_is_its_formula) {
  for (const Index classes : {1, 2, 3, 15, 16, 17, 33, 100, 257, 1000}) {
    for (const double spread : {1.0, 30.0}) {
      check_softmax<float>(classes, spread);
      check_softmax<double>(classes, spread);
    }
  }
}

template <class T>
void check_softmax_extremes() {
  constexpr T kMost = std::numeric_limits<T>::max();
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
  const auto gradient_of = [](std::vector<T> row, Index target, double& loss) {
    std::vector<T> gradient(row.size());
    SoftmaxCall<T> call;
    call.rows = 1;
    call.classes = static_cast<Index>(row.size());
    call.logits = row.data();
    call.targets = &target;
    call.gradient = gradient.data();
    call.losses = &loss;
    softmax_cross_entropy(call);
    return gradient;
  };
  double loss = 0;
  CHECK(same(gradient_of({kMost, 0}, 0, loss), {0, 0}) && loss == 0);
  CHECK(same(gradient_of({-kMost, 0}, 1, loss), {0, 0}) && loss == 0);
  CHECK(same(gradient_of({0, T(1e4)}, 0, loss), {-1, 1}) && loss == 1e4);
  CHECK(same(gradient_of({0, -kInfinity, 0}, 1, loss), {T(0.5), -1, T(0.5)}) && std::isinf(loss));
  for (const T bad : {kInfinity, kNaN, -kNaN}) {
    for (int place = 0; place < 20; ++place) {
      std::vector<T> row(20, T(-1));
      row[size_of(place)] = bad;
      for (const T element : gradient_of(row, 3, loss)) CHECK(std::isnan(element));
      CHECK(std::isnan(loss));
    }
  }
}

TEST(softmax_cross_entropy_of_extremes) {
  check_softmax_extremes<float>();
  check_softmax_extremes<double>();
}

template <class T>
void check_binary_cross_entropy(Index count, double spread) {
  Random random(static_cast<std::uint64_t>(count + 4));
  const std::vector<T> logits = random.numbers<T>(count, spread);
  const std::vector<T> targets = positive_numbers<T>(random, count);
  std::vector<T> gradient = guarded(std::vector<T>(logits.size()));
  ElementwiseLossCall<T> call;
  call.count = count;
  call.prediction = logits.data();
  call.target = targets.data();
  call.gradient = gradient.data();
  call.scale = T(0.25);
  const double loss = elementwise_loss<BinaryCrossEntropy>(call);
  CHECK(guards_stay(gradient));
  double sum = 0, tolerance = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto a = static_cast<double>(logits[i]), t = static_cast<double>(targets[i]);
    const double small = std::exp(-std::fabs(a));
    const double sigmoid = (a < 0 ? small : 1) / (1 + small);
    CHECK_NEAR(gradient[i], (sigmoid - t) / 4,
               kRoundoff<T> * (8 * sigmoid + std::fabs(sigmoid - t)));
    sum += std::max(a, 0.0) - a * t + std::log1p(small);
    tolerance += kRoundoff<T> * (6 * std::fabs(a) + 6 * small);
  }
  CHECK_NEAR(loss, sum, tolerance);
}

template <class T>
void check_squared_error(Index count) {
  Random random(static_cast<std::uint64_t>(count + 5));
  const std::vector<T> prediction = random.numbers<T>(count), target = random.numbers<T>(count);
  std::vector<T> gradient = guarded(std::vector<T>(prediction.size()));
  ElementwiseLossCall<T> call;
  call.count = count;
  call.prediction = prediction.data();
  call.target = target.data();
  call.gradient = gradient.data();
  call.scale = T(0.3);
  const double loss = elementwise_loss<SquaredError>(call);
  CHECK(guards_stay(gradient));
  double sum = 0;
  for (std::size_t i = 0; i < prediction.size(); ++i) {
    const T error = prediction[i] - target[i];
    CHECK(same(gradient[i], 2 * error * call.scale));
    sum += static_cast<double>(error * error);
  }
  CHECK_NEAR(loss, sum, 1e-13 * sum);
}

TEST(elementwise_losses_are_their_formulas) {
  for (const Index count : kSizes) {
    check_squared_error<float>(count);
    check_squared_error<double>(count);
    for (const double spread : {1.0, 30.0}) {
      check_binary_cross_entropy<float>(count, spread);
      check_binary_cross_entropy<double>(count, spread);
    }
  }
}

template <class T>
void check_binary_cross_entropy_extremes() {
  const T infinity = std::numeric_limits<T>::infinity();
  const T most = std::numeric_limits<T>::max();
  const auto loss_of = [](T logit, T target, T& gradient) {
    ElementwiseLossCall<T> call;
    call.count = 1;
    call.prediction = &logit;
    call.target = &target;
    call.gradient = &gradient;
    return elementwise_loss<BinaryCrossEntropy>(call);
  };
  T gradient = 7;
  CHECK(loss_of(T(1e4), T(1), gradient) == 0 && gradient == 0);
  CHECK(loss_of(T(-1e4), T(0), gradient) == 0 && gradient == 0);
  CHECK(loss_of(T(1e4), T(0), gradient) == 1e4 && gradient == 1);
  CHECK(loss_of(T(-1e4), T(1), gradient) == 1e4 && gradient == -1);
  CHECK(loss_of(most, T(0), gradient) == static_cast<double>(most) && gradient == 1);
  CHECK(std::isnan(loss_of(infinity, T(0), gradient)) && gradient == 1);  // infinity * 0
  CHECK(std::isinf(loss_of(-infinity, T(1), gradient)) && gradient == -1);
  const T nan = std::numeric_limits<T>::quiet_NaN();
  CHECK(std::isnan(loss_of(nan, T(1), gradient)) && std::isnan(gradient));
  CHECK(std::isnan(loss_of(T(1), nan, gradient)) && std::isnan(gradient));
}

TEST(binary_cross_entropy_of_extremes) {
  check_binary_cross_entropy_extremes<float>();
  check_binary_cross_entropy_extremes<double>();
}

}  // namespace
}  // namespace tidegate
