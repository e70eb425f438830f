// Steps of optimisers through the public API: the formulas bit for bit on every instruction set and
// for every number of threads, sums and scaling, and layers whose parameters are updated in place.
#include "tidegate/optimizers.h"

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "errors.h"
#include "tidegate/linear.h"
#include "tidegate/model.h"
#include "variants.h"

namespace {

using namespace tidegate;
using test::for_each_division;
using test::for_each_isa;
using test::Random;
using test::same;
using test::size_of;

// Sizes below and above the blocks that threads divide.
constexpr Index kSizes[] = {0, 1, 17, 1023, 1024, 1025, 5000};

template <class T>
void check_adam(Index count, const AdamOptions& options) {
  Random random(static_cast<std::uint64_t>(count));
  const std::vector<T> begin = random.numbers<T>(count);
  std::vector<std::vector<T>> gradients;
  for (int step = 0; step < 3; ++step) gradients.push_back(random.numbers<T>(count));

  // Every operation is rounded to T, every factor is computed in double.
  std::vector<T> values = begin, average(size_of(count)), squares(size_of(count));
  for (int step = 1; step <= 3; ++step) {
    const auto rounded = [](double number) { return static_cast<T>(number); };
    const T decay =
        rounded(options.decoupled_weight_decay ? 1 - options.lr * options.weight_decay : 1);
    const T l2 = rounded(options.decoupled_weight_decay ? 0 : options.weight_decay);
    const T root = rounded(std::sqrt(1 - std::pow(options.beta2, step)));
    const T step_size = rounded(options.lr / (1 - std::pow(options.beta1, step)));
    for (std::size_t i = 0; i < size_of(count); ++i) {
      T g = gradients[size_of(step - 1)][i];
      if (l2 != 0) g = values[i] * l2 + g;
      average[i] = average[i] * rounded(options.beta1) + g * rounded(1 - options.beta1);
      squares[i] = squares[i] * rounded(options.beta2) + g * rounded(1 - options.beta2) * g;
      const T denominator = std::sqrt(squares[i]) / root + rounded(options.eps);
      values[i] = values[i] * decay - average[i] / denominator * step_size;
    }
  }
  for_each_division([&](int threads) {
    std::vector<T> got = begin, got_average(size_of(count)), got_squares(size_of(count));
    for (int step = 1; step <= 3; ++step) {
      adam_step(options, step, count, got.data(), gradients[size_of(step - 1)].data(),
                got_average.data(), got_squares.data(), threads);
    }
    CHECK(same(got, values) && same(got_average, average) && same(got_squares, squares));
  });
}

template <class T>
void check_sgd(Index count, const SgdOptions& options) {
  Random random(static_cast<std::uint64_t>(count + 1));
  const std::vector<T> begin = random.numbers<T>(count), gradient = random.numbers<T>(count);
  const auto rounded = [](double number) { return static_cast<T>(number); };
  std::vector<T> values = begin, buffer(size_of(count));
  for (int step = 1; step <= 3; ++step) {
    for (std::size_t i = 0; i < size_of(count); ++i) {
      T g = gradient[i];
      if (options.weight_decay != 0) g = values[i] * rounded(options.weight_decay) + g;
      if (options.momentum != 0) {
        buffer[i] =
            step == 1 ? g
                      : buffer[i] * rounded(options.momentum) + g * rounded(1 - options.dampening);
        g = options.nesterov ? g + buffer[i] * rounded(options.momentum) : buffer[i];
      }
      values[i] = values[i] - g * rounded(options.lr);
    }
  }
  for_each_division([&](int threads) {
    std::vector<T> got = begin, got_buffer(size_of(count));
    for (int step = 1; step <= 3; ++step) {
      sgd_step(options, step, count, got.data(), gradient.data(),
               options.momentum != 0 ? got_buffer.data() : nullptr, threads);
    }
    CHECK(same(got, values) && same(got_buffer, buffer));
  });
}

template <class T>
void check_norms(Index count) {
  Random random(5);
  const std::vector<T> values = random.numbers<T>(count);
  double sum = 0;
  for (const T value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  const double got = sum_of_squares(count, values.data(), 1);
  CHECK_NEAR(got, sum, 1e-13 * sum);
  for_each_isa([&] {
    for_each_division([&](int threads) {
      CHECK(same(sum_of_squares(count, values.data(), threads), got));
      std::vector<T> scaled = values;
      scale(count, scaled.data(), 0.3, threads);
      for (std::size_t i = 0; i < scaled.size(); ++i)
        CHECK(same(scaled[i], values[i] * static_cast<T>(0.3)));
    });
  });
}

}  // namespace

TEST(adam_is_its_formula_on_every_isa_and_for_any_threads) {
  for_each_isa([] {
    for (const Index count : kSizes) {
      check_adam<float>(count, {});
      check_adam<double>(count, {});
      check_adam<float>(count, {.lr = 0.05, .beta1 = 0.5, .weight_decay = 0.3});
      check_adam<double>(count, {.eps = 0.1, .weight_decay = 0.3, .decoupled_weight_decay = true});
    }
  });
}

TEST(sgd_is_its_formula_on_every_isa_and_for_any_threads) {
  for_each_isa([] {
    for (const Index count : kSizes) {
      check_sgd<float>(count, {.lr = 0.1});
      check_sgd<double>(count, {.lr = 0.1, .weight_decay = 0.3});
      check_sgd<float>(count, {.momentum = 0.9, .dampening = 0.3});
      check_sgd<double>(count, {.momentum = 0.9, .weight_decay = 0.3, .nesterov = true});
    }
  });
}

TEST(sums_and_scaling) {
  for (const Index count : kSizes) {
    check_norms<float>(count);
    check_norms<double>(count);
  }
}

TEST(layers_are_updated_in_place) {
  Linear<float> layer(2, 1);
  const float x[] = {1, 10};
  float y = 0;
  layer.run(x, 2, &y, 1, 1, 1);  // packs
  const std::vector<float> gradient = {-2, -3, -0.5f};
  layer.update_parameters([&](float* parameters) {
    sgd_step<float>({.lr = 1}, 1, 3, parameters, gradient.data(), nullptr, 2);
  });
  layer.run(x, 2, &y, 1, 1, 1);
  CHECK(y == 32.5f);
  // Changes that an update makes before it throws take effect.
  CHECK(invalid_argument_of([&] {
          layer.update_parameters([](float* parameters) {
            parameters[2] = 1;
            throw std::invalid_argument("enough");
          });
        }) == "enough");
  layer.run(x, 2, &y, 1, 1, 1);
  CHECK(y == 33);

  Config config;
  config.cell = CellKind::gru;
  config.input_size = config.hidden_size = 3;
  Model<double> model(config);
  const double* const before = model.parameters();
  model.update_parameters([&](double* parameters) {
    CHECK(parameters == before);
    parameters[1] = 0.5;
  });
  CHECK(model.parameters()[1] == 0.5);
}

TEST(what_is_refused) {
  float values[2] = {1, 2}, buffers[2][2] = {};
  const float gradient[] = {1, 1};
  CHECK(invalid_argument_of([&] { sgd_step({}, 0, 2, values, gradient, buffers[0]); }) ==
        "step: got 0, wanted an integer >= 1");
  CHECK(invalid_argument_of([&] { sgd_step({}, 1, -1, values, gradient, buffers[0]); }) ==
        "count: got -1, wanted an integer >= 0");
  CHECK(invalid_argument_of([&] {
          adam_step({}, 0, 2, values, gradient, buffers[0], buffers[1]);
        }) == "step: got 0, wanted an integer >= 1");
  CHECK(invalid_argument_of([&] {
          adam_step({}, 1, 2, values, gradient, buffers[0], buffers[1], -1);
        }) == "num_threads: got -1, wanted an integer >= 1");
  CHECK(invalid_argument_of([&] { sum_of_squares(-1, values); }) ==
        "count: got -1, wanted an integer >= 0");
  CHECK(invalid_argument_of([&] { scale(-1, values, 2); }) ==
        "count: got -1, wanted an integer >= 0");
  CHECK(values[0] == 1 && values[1] == 2 && buffers[0][0] == 0);
}
