// Measurement of the machine's peak rates.
#include "core/machine_speed.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "core/isa.h"
#include "core/memory.h"

namespace tidegate {

namespace {

constexpr int kRounds = 20;
constexpr double kRoundNanoseconds = 1e6;
constexpr Index kMinRead = 256 * 1024;  // bytes read by a call, at least

// The best rate, in units per nanosecond, of calls of work(), each of which does `units`.
template <class Work>
double best_rate(double units, const Work& work) {
  using Clock = std::chrono::steady_clock;
  const auto nanoseconds = [&](Index calls) {
    const Clock::time_point begin = Clock::now();
    for (Index i = 0; i < calls; ++i) work();
    return std::chrono::duration<double, std::nano>(Clock::now() - begin).count();
  };
  Index calls = 1;
  while (nanoseconds(calls) < kRoundNanoseconds) calls *= 2;
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    best = std::max(best, units * static_cast<double>(calls) / std::max(1.0, nanoseconds(calls)));
  }
  return best;
}

template <class T>
double product_rate_of(const StorageKernels<T>& storage) {
  constexpr Index kPeakRounds = 1000;
  volatile T sink = 0;
  return best_rate(static_cast<double>(storage.peak_round_flops * kPeakRounds),
                   [&] { sink = storage.peak_rounds(kPeakRounds); });
}

}  // namespace

double product_rate(const std::string& precision) {
  for (const StorageKernels<float>* storage : kernels<float>().storages) {
    if (precision == storage->cost.name) return product_rate_of(*storage);
  }
  const StorageKernels<double>& exact = kernels<double>().exact();
  if (precision == exact.cost.name) return product_rate_of(exact);
  throw std::invalid_argument(
      "precision: got \"" + precision +
      "\", wanted \"float32\", \"float64\", \"bfloat16\", \"bfloat16-dot\" or \"int8\"");
}

double read_rate(Index bytes) {
  if (bytes < 1024)
    throw std::invalid_argument("bytes: got " + std::to_string(bytes) + ", wanted at least 1024");
  // In memory of the same kind as that of weights.
  const Index count = bytes / static_cast<Index>(sizeof(float));
  const float* data = nullptr;
  const Buffer buffer([&](Arena& arena) { data = take_zeros<float>(arena, count); });
  // A shorter read would end before the latency of its sums has passed. Half of the passes are
  // backwards.
  const Index passes = 2 * std::max<Index>(1, kMinRead / bytes);
  const ArrayKernels<float>& k = *kernels<float>().arrays;
  volatile float sink = 0;
  return best_rate(static_cast<double>(bytes * passes),
                   [&] { sink = k.read_all(data, count, passes); });
}

}  // namespace tidegate
