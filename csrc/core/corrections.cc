// Corrections of the estimates, learnt from the times of calls.
#include "core/corrections.h"

#include <algorithm>
#include <bit>

namespace tidegate {

namespace {

constexpr double kFadeMilliseconds = 8000;  // until a correction has faded
// The ratio of a call is clamped to within a factor of kMaxJump of the old correction, which then
// moves by the part kSlowerPart or kFasterPart of their difference. So a disturbed call raises it
// by at most a quarter, and doubling it takes at least four slow calls in succession.
constexpr double kMaxJump = 2;
constexpr double kSlowerPart = 0.25;
constexpr double kFasterPart = 0.5;
constexpr double kMinFactor = 1.0 / 16;
constexpr double kMaxFactor = 16;

constexpr std::int64_t kManyRows = 6;  // the rows of a tile: from here on, arithmetic is the bound

// The class of a value: the first class ends at `first`, each further one at four times the last.
int quadrupling_class(double value, double first, int classes) {
  int result = 0;
  for (double end = first; value >= end && result + 1 < classes; end *= 4) ++result;
  return result;
}

std::uint32_t milliseconds(std::int64_t nanoseconds) {
  return static_cast<std::uint32_t>(nanoseconds / 1'000'000);
}

}  // namespace

int division_class(int threads, bool by_units) {
  if (threads <= 1) return 0;
  const int count =
      std::min(static_cast<int>(std::bit_width(static_cast<unsigned>(threads - 1))), 4);  // 1 to 4
  return by_units ? 4 + count : count;
}

int CallClass::of(int work, double total_nanoseconds, double step_nanoseconds, std::int64_t rows) {
  const int total = quadrupling_class(total_nanoseconds, 10e3, kTotals);
  const int step = quadrupling_class(step_nanoseconds, 1e3, kSteps);
  return ((work * kTotals + total) * kSteps + step) * kRows + (rows >= kManyRows ? 1 : 0);
}

double CorrectionTable::weight_of(Entry entry, std::int64_t now) {
  if (entry.factor <= 0) return 0;  // never recorded
  // The clocks of threads may differ slightly: an entry from the future counts as new.
  const auto age = static_cast<std::int32_t>(milliseconds(now) - entry.milliseconds);
  return std::clamp(1 - age / kFadeMilliseconds, 0.0, 1.0);
}

Corrections CorrectionTable::at(int call_class, std::int64_t now) const {
  Entry entries[kDivisionClasses];
  double weights[kDivisionClasses];
  double prior = 1;
  for (int i = 0; i < kDivisionClasses; ++i) {
    entries[i] = std::bit_cast<Entry>(entries_[call_class][i].load(std::memory_order_relaxed));
    weights[i] = weight_of(entries[i], now);
    prior = std::min(prior, 1 + weights[i] * (static_cast<double>(entries[i].factor) - 1));
  }
  Corrections corrections;
  for (int i = 0; i < kDivisionClasses; ++i) {
    corrections.factor[i] =
        static_cast<float>(prior + weights[i] * (static_cast<double>(entries[i].factor) - prior));
  }
  return corrections;
}

void CorrectionTable::record(int call_class, int division, double ratio, std::int64_t now) {
  std::atomic<std::uint64_t>& word = entries_[call_class][division];
  const auto before = std::bit_cast<Entry>(word.load(std::memory_order_relaxed));
  const double old = 1 + weight_of(before, now) * (static_cast<double>(before.factor) - 1);
  const double jump = std::clamp(ratio, old / kMaxJump, old * kMaxJump);
  const double factor = old + (jump > old ? kSlowerPart : kFasterPart) * (jump - old);
  const Entry after = {static_cast<float>(std::clamp(factor, kMinFactor, kMaxFactor)),
                       milliseconds(now)};
  // If two threads record at the same time, one of the times is lost.
  word.store(std::bit_cast<std::uint64_t>(after), std::memory_order_relaxed);
}

}  // namespace tidegate
