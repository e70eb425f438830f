// Losses through the public API: sums and means against double, masked arrays against arrays
// without the masked rows, the same bits for any number of threads, refusals, and calls that end
// early.
#include "tidegate/losses.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "errors.h"
#include "tidegate/interrupt.h"
#include "variants.h"

namespace {

using namespace tidegate;
using test::for_each_division;
using test::for_each_isa;
using test::Random;
using test::same;
using test::size_of;

enum class Loss { softmax, binary, squared };
constexpr Loss kLosses[] = {Loss::softmax, Loss::binary, Loss::squared};

// The arguments of one loss.
template <class T>
struct Problem {
  Loss loss;
  Index rows, columns;
  std::vector<T> prediction, target;  // target: unused by softmax
  std::vector<Index> labels;          // for softmax
  std::vector<std::uint8_t> mask;     // empty: none

  Problem(Loss kind, Index row_count, Index column_count)
      : loss(kind), rows(row_count), columns(column_count) {
    Random random(static_cast<std::uint64_t>(rows * 1000 + columns));
    prediction = random.numbers<T>(rows * columns, 5);
    target = random.numbers<T>(rows * columns);
    for (T& value : target) value = std::fabs(value);
    for (Index r = 0; r < rows; ++r) labels.push_back(random.below(columns));
  }

  bool counts(Index row) const { return mask.empty() || mask[size_of(row)] != 0; }

  // An input of only the rows that count.
  Problem without_others() const {
    Problem some = *this;
    some.mask.clear();
    some.prediction.clear();
    some.target.clear();
    some.labels.clear();
    some.rows = 0;
    for (Index r = 0; r < rows; ++r) {
      if (!counts(r)) continue;
      ++some.rows;
      some.labels.push_back(labels[size_of(r)]);
      for (Index k = r * columns; k < (r + 1) * columns; ++k) {
        some.prediction.push_back(prediction[size_of(k)]);
        some.target.push_back(target[size_of(k)]);
      }
    }
    return some;
  }
};

template <class T>
struct Result {
  double loss = 0;
  std::vector<T> gradient;

  bool operator==(const Result& other) const {
    return same(loss, other.loss) && same(gradient, other.gradient);
  }
};

template <class T>
Result<T> run(const Problem<T>& problem, Reduction reduction, int threads = 1) {
  Result<T> result;
  result.gradient.assign(problem.prediction.size(), T(7));
  LossInput<T> input;
  input.prediction = problem.prediction.data();
  input.rows = problem.rows;
  input.columns = problem.columns;
  input.mask = problem.mask.empty() ? nullptr : problem.mask.data();
  input.reduction = reduction;
  T* const gradient = result.gradient.data();
  switch (problem.loss) {
    case Loss::softmax:
      result.loss = softmax_cross_entropy(input, problem.labels.data(), gradient, threads);
      break;
    case Loss::binary:
      result.loss = binary_cross_entropy(input, problem.target.data(), gradient, threads);
      break;
    case Loss::squared:
      result.loss = mse(input, problem.target.data(), gradient, threads);
      break;
  }
  return result;
}

// The sum of the losses, by plain loops.
template <class T>
double plain_sum(const Problem<T>& problem) {
  double sum = 0;
  for (Index r = 0; r < problem.rows; ++r) {
    if (!problem.counts(r)) continue;
    const auto x = [&](Index k) {
      return static_cast<double>(problem.prediction[size_of(r * problem.columns + k)]);
    };
    double exps = 0;
    for (Index k = 0; k < problem.columns; ++k) {
      const auto t = static_cast<double>(problem.target[size_of(r * problem.columns + k)]);
      exps += std::exp(x(k));
      if (problem.loss == Loss::binary)
        sum += std::max(x(k), 0.0) - x(k) * t + std::log1p(std::exp(-std::fabs(x(k))));
      if (problem.loss == Loss::squared) sum += (x(k) - t) * (x(k) - t);
    }
    if (problem.loss == Loss::softmax) sum += std::log(exps) - x(problem.labels[size_of(r)]);
  }
  return sum;
}

template <class T>
void check_reductions(Loss loss) {
  for (const Index rows : {0, 1, 37, 700}) {
    for (const Index columns : {1, 3, 42}) {
      const Problem<T> problem(loss, rows, columns);
      const Result<T> sum = run(problem, Reduction::sum), mean = run(problem, Reduction::mean);
      const double count = static_cast<double>(loss == Loss::softmax ? rows : rows * columns);
      const double wanted = plain_sum(problem);
      const auto roundoff = static_cast<double>(std::numeric_limits<T>::epsilon());
      CHECK_NEAR(sum.loss, wanted, 16 * roundoff * (wanted + count));
      CHECK(mean.loss == (rows > 0 ? sum.loss / count : 0));
      for (std::size_t i = 0; i < sum.gradient.size(); ++i) {
        CHECK_NEAR(mean.gradient[i], static_cast<double>(sum.gradient[i]) / count,
                   2 * roundoff * std::fabs(static_cast<double>(sum.gradient[i])) / count);
      }
    }
  }
}

// Masks of single rows, of runs, and of the end of a sequence; blocks begin and end within runs.
template <class T>
void check_masks(Loss loss) {
  constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
  const std::pair<Index, Index> sizes[] = {{5, 3}, {3000, 1}, {130, 42}, {9, 900}};
  for (const std::pair<Index, Index>& size : sizes) {
    const Index rows = size.first, columns = size.second;
    for (int kind = 0; kind < 4; ++kind) {
      Problem<T> problem(loss, rows, columns);
      Random random(static_cast<std::uint64_t>(kind));
      for (Index r = 0; r < rows; ++r) {
        const bool counts = kind == 0   ? random.below(2) == 0
                            : kind == 1 ? r / 7 % 2 == 0
                            : kind == 2 ? r < rows / 2
                                        : false;
        problem.mask.push_back(counts ? static_cast<std::uint8_t>(1 + r % 2) : 0);
      }
      const Problem<T> some = problem.without_others();
      for (Index r = 0; r < rows; ++r) {
        if (problem.counts(r)) continue;
        problem.labels[size_of(r)] = r % 2 == 0 ? -1 : columns;
        std::fill_n(problem.prediction.begin() + r * columns, columns, kNaN);
        std::fill_n(problem.target.begin() + r * columns, columns, T(-5));
      }
      for (const Reduction reduction : {Reduction::mean, Reduction::sum}) {
        const Result<T> wanted = run(some, reduction);
        for_each_division([&](int threads) {
          const Result<T> got = run(problem, reduction, threads);
          CHECK(same(got.loss, wanted.loss));
          auto next = wanted.gradient.begin();
          for (Index r = 0; r < rows; ++r) {
            for (Index k = r * columns; k < (r + 1) * columns; ++k)
              CHECK(same(got.gradient[size_of(k)], problem.counts(r) ? *next++ : T(0)));
          }
        });
      }
    }
  }
}

template <class T>
void check_threads(Loss loss) {
  for (const auto& [rows, columns] : {std::pair<Index, Index>{2, 3}, {777, 42}, {11, 5000}}) {
    const Problem<T> problem(loss, rows, columns);
    const Result<T> wanted = run(problem, Reduction::mean);
    for_each_division(
        [&](int threads) { CHECK(run(problem, Reduction::mean, threads) == wanted); });
  }
}

}  // namespace

TEST(sums_and_means) {
  for_each_isa([] {
    for (const Loss loss : kLosses) {
      check_reductions<float>(loss);
      check_reductions<double>(loss);
    }
  });
}

TEST(what_a_mask_leaves_out_changes_nothing) {
  for_each_isa([] {
    for (const Loss loss : kLosses) {
      check_masks<float>(loss);
      check_masks<double>(loss);
    }
  });
}

TEST(bits_do_not_depend_on_threads) {
  for_each_isa([] {
    for (const Loss loss : kLosses) {
      check_threads<float>(loss);
      check_threads<double>(loss);
    }
  });
}

TEST(targets_out_of_range_are_refused) {
  for (const int threads : {1, 3}) {
    const auto refusal = [&](const auto& problem) {
      return invalid_argument_of([&] { run(problem, Reduction::mean, threads); });
    };
    Problem<float> labels(Loss::softmax, 50, 3);
    labels.labels[40] = 3;
    CHECK(refusal(labels) == "targets: got 3, wanted 0..2");
    labels.labels[20] = -1;
    CHECK(refusal(labels) == "targets: got -1, wanted 0..2");
    // The first one, for any division among threads.
    Problem<double> targets(Loss::binary, 5000, 2);
    targets.target[9000] = 2;
    CHECK(refusal(targets) == "targets: got 2, wanted 0..1");
    targets.target[3000] = -0.5;
    CHECK(refusal(targets) == "targets: got -0.5, wanted 0..1");
    targets.target[3000] = std::numeric_limits<double>::quiet_NaN();
    targets.target[9000] = 1;
    CHECK(std::isnan(run(targets, Reduction::mean, threads).loss));
    // Any number is a valid target of the squared error.
    targets = Problem<double>(Loss::squared, 5000, 2);
    targets.target[3000] = -5;
    CHECK(std::isfinite(run(targets, Reduction::mean, threads).loss));
  }
  LossInput<float> input;
  input.rows = -1;
  CHECK(invalid_argument_of([&] { mse<float>(input, nullptr, nullptr); }) ==
        "rows: got -1, wanted an integer >= 0");
  input = {};
  input.columns = -1;
  CHECK(invalid_argument_of([&] { softmax_cross_entropy<float>(input, nullptr, nullptr); }) ==
        "columns: got -1, wanted an integer >= 0");
}

TEST(calls_end) {
  for (const Loss loss : kLosses) {
    const Problem<float> problem(loss, 2000, 1000);
    const Result<float> wanted = run(problem, Reduction::mean);
    for_each_division([&](int threads) {
      // A poll in the caller's floating-point environment.
      struct Seen {
        int asked = 0;
        bool subnormals = false;
      } seen;
      bool ended = false;
      {
        const InterruptPoll poll(
            [](void* context) noexcept {
              auto* const now = static_cast<Seen*>(context);
              ++now->asked;
              const volatile float least = std::numeric_limits<float>::min();
              now->subnormals = least * 0.5f > 0;
              return true;
            },
            &seen);
        // Repeats until one of many calls was polled.
        while (seen.asked == 0) {
          try {
            run(problem, Reduction::mean, threads);
          } catch (const Interrupted&) {
            ended = true;
          }
        }
      }
      CHECK(ended && seen.asked == 1 && seen.subnormals);
      CHECK(run(problem, Reduction::mean, threads) == wanted);
    });
  }
}
