// Linear and LinearTape through the public API, against plain loops in double: outputs, gradients,
// the same bits for any batch and number of threads, parameters, and refused arguments.
#include "tidegate/linear.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "errors.h"
#include "variants.h"

namespace {

using namespace tidegate;
using test::for_each_division;
using test::for_each_isa;
using test::Random;
using test::same;
using test::size_of;

struct Shape {
  Index in, out;
  bool bias;
};

// Sizes below and above a vector, a tile and a block of sums; each with one long dimension.
constexpr Shape kShapes[] = {{1, 1, true},    {3, 2, true},    {17, 33, true}, {64, 9, false},
                             {100, 3, false}, {257, 70, true}, {1500, 5, true}};

template <class T>
std::vector<T> random_parameters(Random& random, const Shape& shape) {
  return random.numbers<T>(shape.out * (shape.in + (shape.bias ? 1 : 0)));
}

// A layer with these parameters.
template <class T>
std::unique_ptr<Linear<T>> linear_of(const Shape& shape, const std::vector<T>& flat) {
  auto layer = std::make_unique<Linear<T>>(shape.in, shape.out, shape.bias);
  layer->write_parameters(0, flat.data(), static_cast<Index>(flat.size()));
  return layer;
}

// A sum of `terms` products: its value, and the bound on its error in T. Each product is rounded,
// and the terms are added in any order, so that at most `terms` roundings affect each (Higham,
// Accuracy and Stability of Numerical Algorithms, 2002, section 4.2).
template <class T>
class Sum {
 public:
  void add(T a, T b) {
    const double product = static_cast<double>(a) * static_cast<double>(b);
    value_ += product;
    magnitude_ += std::fabs(product);
    ++terms_;
  }
  void check(T got) const {
    // Twice as much in double, in which the loop here has the same error.
    const double roundoff =
        static_cast<double>(std::numeric_limits<T>::epsilon()) / 2 * (sizeof(T) == 8 ? 2 : 1);
    CHECK_NEAR(got, value_, (static_cast<double>(terms_) + 1) * roundoff * magnitude_);
  }

 private:
  double value_ = 0;
  double magnitude_ = 0;
  Index terms_ = 0;
};

// Rows of `columns` elements at a distance of `stride`; the elements between them are 7.
template <class T>
std::vector<T> spread(const std::vector<T>& dense, Index columns, Index stride) {
  const Index rows = static_cast<Index>(dense.size()) / columns;
  std::vector<T> values(size_of(rows * stride), T(7));
  for (Index r = 0; r < rows; ++r) {
    std::copy_n(dense.begin() + r * columns, columns, values.begin() + r * stride);
  }
  return values;
}

template <class T>
std::vector<T> run(const Linear<T>& layer, const std::vector<T>& x, int threads = 1) {
  const Index rows = static_cast<Index>(x.size()) / layer.in_features();
  std::vector<T> y(size_of(rows * layer.out_features()));
  layer.run(x.data(), layer.in_features(), y.data(), layer.out_features(), rows, threads);
  return y;
}

template <class T>
struct Gradients {
  std::vector<T> x, parameters;
};

template <class T>
Gradients<T> backward(const LinearTape<T>& tape, const std::vector<T>& dy, int threads = 1) {
  const Index in = tape.in_features(), out = tape.out_features();
  Gradients<T> gradients;
  gradients.x.resize(size_of(tape.rows() * in));
  gradients.parameters.resize(size_of(out * (in + (tape.has_bias() ? 1 : 0))));
  tape.backward(dy.data(), out, gradients.x.data(), in, gradients.parameters.data(), threads);
  return gradients;
}

template <class T>
std::unique_ptr<LinearTape<T>> record(const Linear<T>& layer, const std::vector<T>& x,
                                      int threads = 1) {
  const Index rows = static_cast<Index>(x.size()) / layer.in_features();
  std::vector<T> y(size_of(rows * layer.out_features()));
  auto tape =
      layer.record(x.data(), layer.in_features(), y.data(), layer.out_features(), rows, threads);
  CHECK(same(y, run(layer, x)));
  return tape;
}

template <class T>
void check_formulas(const Shape& shape, Index rows) {
  const Index in = shape.in, out = shape.out;
  Random random(static_cast<std::uint64_t>(in * 100 + out));
  const std::vector<T> flat = random_parameters<T>(random, shape);
  const std::vector<T> x = random.numbers<T>(rows * in), dy = random.numbers<T>(rows * out);
  const auto weight = [&](Index o, Index k) { return flat[size_of(o * in + k)]; };
  const auto layer = linear_of(shape, flat);
  CHECK(layer->in_features() == in && layer->out_features() == out &&
        layer->has_bias() == shape.bias);
  CHECK(layer->parameter_count() == static_cast<Index>(flat.size()));
  CHECK(same(std::vector<T>(layer->parameters(), layer->parameters() + flat.size()), flat));

  const std::vector<T> y = run(*layer, x);
  const auto tape = record(*layer, x);
  CHECK(tape->rows() == rows && tape->in_features() == in && tape->out_features() == out);
  CHECK(tape->has_bias() == shape.bias);
  const Gradients<T> gradients = backward(*tape, dy);

  for (Index r = 0; r < rows; ++r) {
    for (Index o = 0; o < out; ++o) {
      Sum<T> sum;
      for (Index k = 0; k < in; ++k) sum.add(x[size_of(r * in + k)], weight(o, k));
      if (shape.bias) sum.add(flat[size_of(out * in + o)], 1);
      sum.check(y[size_of(r * out + o)]);
    }
    for (Index k = 0; k < in; ++k) {
      Sum<T> sum;
      for (Index o = 0; o < out; ++o) sum.add(dy[size_of(r * out + o)], weight(o, k));
      sum.check(gradients.x[size_of(r * in + k)]);
    }
  }
  for (Index o = 0; o < out; ++o) {
    Sum<T> sum_of_dy;
    for (Index r = 0; r < rows; ++r) sum_of_dy.add(dy[size_of(r * out + o)], 1);
    if (shape.bias) sum_of_dy.check(gradients.parameters[size_of(out * in + o)]);
    for (Index k = 0; k < in; ++k) {
      Sum<T> sum;
      for (Index r = 0; r < rows; ++r) sum.add(dy[size_of(r * out + o)], x[size_of(r * in + k)]);
      sum.check(gradients.parameters[size_of(o * in + k)]);
    }
  }
}

template <class T>
void check_bits(const Shape& shape) {
  constexpr Index kRows = 101;
  const Index in = shape.in, out = shape.out;
  Random random(static_cast<std::uint64_t>(in + out));
  const auto layer = linear_of(shape, random_parameters<T>(random, shape));
  const std::vector<T> x = random.numbers<T>(kRows * in), dy = random.numbers<T>(kRows * out);
  const std::vector<T> y = run(*layer, x);
  const Gradients<T> gradients = backward(*record(*layer, x), dy);
  const auto rows_of = [](const std::vector<T>& all, Index columns, Index begin, Index end) {
    return std::vector<T>(all.begin() + begin * columns, all.begin() + end * columns);
  };
  for_each_division([&](int threads) {
    CHECK(same(run(*layer, x, threads), y));
    const auto tape = record(*layer, x, threads);
    const Gradients<T> divided = backward(*tape, dy, threads);
    CHECK(same(divided.x, gradients.x) && same(divided.parameters, gradients.parameters));
    for (const auto& [begin, end] : {std::pair<Index, Index>{0, 1}, {7, 10}, {5, 38}, {100, 101}}) {
      const std::vector<T> some = rows_of(x, in, begin, end);
      CHECK(same(run(*layer, some, threads), rows_of(y, out, begin, end)));
      const Gradients<T> part =
          backward(*record(*layer, some, threads), rows_of(dy, out, begin, end), threads);
      CHECK(same(part.x, rows_of(gradients.x, in, begin, end)));
    }
  });
}

// Inputs and outputs with gaps between their rows, which must not be written.
template <class T>
void check_strides() {
  const Shape shape = {19, 21, true};
  constexpr Index kRows = 30;
  Random random(4);
  const auto layer = linear_of(shape, random_parameters<T>(random, shape));
  const std::vector<T> x = random.numbers<T>(kRows * shape.in);
  const std::vector<T> dy = random.numbers<T>(kRows * shape.out);
  const std::vector<T> y = run(*layer, x);
  const Gradients<T> gradients = backward(*record(*layer, x), dy);

  const Index in_stride = shape.in + 5, out_stride = shape.out + 3;
  const std::vector<T> x_spread = spread(x, shape.in, in_stride);
  const std::vector<T> dy_spread = spread(dy, shape.out, out_stride);
  for (int threads = 1; threads <= 2; ++threads) {
    std::vector<T> got(size_of(kRows * out_stride), T(7));
    layer->run(x_spread.data(), in_stride, got.data(), out_stride, kRows, threads);
    CHECK(same(got, spread(y, shape.out, out_stride)));
    got.assign(got.size(), T(7));
    const auto tape =
        layer->record(x_spread.data(), in_stride, got.data(), out_stride, kRows, threads);
    CHECK(same(got, spread(y, shape.out, out_stride)));

    std::vector<T> dx(size_of(kRows * in_stride), T(7)), dparameters(gradients.parameters.size());
    tape->backward(dy_spread.data(), out_stride, dx.data(), in_stride, dparameters.data(), threads);
    CHECK(same(dx, spread(gradients.x, shape.in, in_stride)));
    CHECK(same(dparameters, gradients.parameters));
    // Each gradient alone.
    dx.assign(dx.size(), T(7));
    dparameters.assign(dparameters.size(), T(7));
    tape->backward(dy_spread.data(), out_stride, dx.data(), in_stride, nullptr, threads);
    tape->backward(dy_spread.data(), out_stride, nullptr, 0, dparameters.data(), threads);
    CHECK(same(dx, spread(gradients.x, shape.in, in_stride)));
    CHECK(same(dparameters, gradients.parameters));
  }
  // The same row for all: a stride of zero.
  std::vector<T> repeated(size_of(2 * shape.out));
  layer->run(x.data(), 0, repeated.data(), shape.out, 2, 1);
  for (Index o = 0; o < 2 * shape.out; ++o) {
    CHECK(same(repeated[size_of(o)], y[size_of(o % shape.out)]));
  }
}

template <class T>
void check_no_rows() {
  const Shape shape = {3, 2, true};
  const auto layer = linear_of(shape, std::vector<T>(8, T(1)));
  layer->run(nullptr, 0, nullptr, 0, 0, 2);
  const auto tape = layer->record(nullptr, 0, nullptr, 0, 0, 2);
  CHECK(tape->rows() == 0);
  CHECK(same(backward(*tape, {}, 2).parameters, std::vector<T>(8)));
}

}  // namespace

TEST(rows_and_gradients_are_their_formulas) {
  for_each_isa([] {
    for (const Shape& shape : kShapes) {
      for (const Index rows : {1, 2, 13, 100}) {
        check_formulas<float>(shape, rows);
        check_formulas<double>(shape, rows);
      }
    }
  });
}

TEST(bits_depend_neither_on_the_batch_nor_on_threads) {
  for_each_isa([] {
    for (const Shape& shape : kShapes) {
      check_bits<float>(shape);
      check_bits<double>(shape);
    }
  });
}

TEST(strides_are_distances_of_rows) {
  for_each_isa([] {
    check_strides<float>();
    check_strides<double>();
  });
}

TEST(there_may_be_no_rows) {
  check_no_rows<float>();
  check_no_rows<double>();
}

TEST(writes_take_effect_for_later_calls_alone) {
  Linear<float> layer(2, 1);
  CHECK(layer.has_bias() && layer.parameter_count() == 3);
  const std::vector<float> x = {1, 10};
  CHECK(run(layer, x)[0] == 0);  // parameters are zero
  const float weight[] = {2, 3}, bias = 0.5f;
  layer.write_parameters(0, weight, 2);
  CHECK(run(layer, x)[0] == 32);
  layer.write_parameters(2, &bias, 1);
  CHECK(run(layer, x)[0] == 32.5f);

  // A tape keeps the weights and the input of its call.
  std::vector<float> input = x, y(1);
  const auto tape = layer.record(input.data(), 2, y.data(), 1, 1, 1);
  layer.write_parameters(0, std::vector<float>(3).data(), 3);
  input = {-1, -1};
  for (int again = 0; again < 2; ++again) {
    const Gradients<float> gradients = backward(*tape, {2.0f});
    CHECK(same(gradients.x, {4, 6}));
    CHECK(same(gradients.parameters, {2, 20, 2}));
  }
}

TEST(what_is_refused) {
  const auto refusal = [](Index in, Index out) {
    return invalid_argument_of([&] { Linear<float>(in, out); });
  };
  CHECK(refusal(0, 1) == "in_features: got 0, wanted an integer >= 1");
  CHECK(refusal(1, 0) == "out_features: got 0, wanted an integer >= 1");
  CHECK(refusal(-1, 1) == "in_features: got -1, wanted an integer >= 1");
  bool overflowed = false;
  try {
    Linear<float>(std::numeric_limits<Index>::max(), 2);
  } catch (const std::length_error&) {
    overflowed = true;
  }
  CHECK(overflowed);

  Linear<float> layer(2, 1);
  const float x[] = {1, 2};
  float y = 7;
  CHECK(invalid_argument_of([&] { layer.run(x, 2, &y, 1, -1); }) ==
        "rows: got -1, wanted an integer >= 0");
  CHECK(invalid_argument_of([&] { layer.record(x, 2, &y, 1, -1); }) ==
        "rows: got -1, wanted an integer >= 0");
  CHECK(invalid_argument_of([&] { layer.run(x, 2, &y, 1, 1, -1); }) ==
        "num_threads: got -1, wanted an integer >= 1");
  CHECK(begins_with(invalid_argument_of([&] { layer.write_parameters(2, x, 2); }),
                    "offset: got 2 with 2 values, wanted a part of 3"));
  CHECK(y == 7);
  const auto tape = layer.record(x, 2, &y, 1, 1);
  CHECK(invalid_argument_of([&] { tape->backward(x, 1, nullptr, 0, nullptr, -1); }) ==
        "num_threads: got -1, wanted an integer >= 1");
}
