// The machine's figures, and their measurement.
#include "core/threads/machine.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstddef>
#include <iterator>
#include <limits>

#include "core/isa.h"
#include "core/machine_speed.h"
#include "core/memory.h"
#include "core/thread_setup.h"
#include "core/threads/processors.h"
#include "core/threads/threads.h"
#include "tidegate/settings.h"

namespace tidegate {

namespace {

// Estimates for figures that have not been measured: one core of a server of 2022 with AVX-512
// (Zen 4), and a barrier so slow that no short step is divided.
constexpr double kGuessedFmaRate = 115;
constexpr double kGuessedReadRate = 80;
constexpr double kGuessedBarrier = 2000;

// In a call, one thread arrives late at a barrier, which then takes this many times as long as in
// the measurement, where all arrive at once. The two bounds are for two threads; for more threads,
// the lower one grows with the logarithm of their number, the upper one with their number.
constexpr double kLateness = 2.5;
constexpr double kLeastBarrier = 150;
constexpr double kMostBarrier = 2000;

int team_of(int threads) {
  return static_cast<int>(std::bit_width(static_cast<unsigned>(threads))) - 1;
}
double most_barrier(int team) { return kMostBarrier * (1 << (team - 1)); }

// The index of the closest array size. Sizes double, so this is a rounded logarithm.
int size_class(double bytes) {
  constexpr double kHalfOctave = 1.4142135623730951;
  const auto sizes = static_cast<std::uint64_t>(bytes / Machine::kLeastSize * kHalfOctave);
  return std::clamp(static_cast<int>(std::bit_width(sizes)) - 1, 0, Machine::kSizes - 1);
}

// The time of a figure's last measurement, and the claim of one thread to measure it again. A
// figure is stale if it is older than `most`, in nanoseconds, or was never measured.
class Freshness {
 public:
  bool stale(std::int64_t now, std::int64_t most) const {
    return is_stale(at_.load(std::memory_order_relaxed), now, most);
  }
  // Returns true if the figure is stale, to one thread only, which must then measure it.
  bool claim(std::int64_t now, std::int64_t most) {
    std::int64_t before = at_.load(std::memory_order_relaxed);
    return is_stale(before, now, most) && at_.compare_exchange_strong(before, now);
  }
  // Called by the thread that has claimed the figure: sets the time of the measurement. An earlier
  // time makes the figure stale sooner, one in the future later.
  void set(std::int64_t at) { at_.store(at); }

 private:
  static bool is_stale(std::int64_t at, std::int64_t now, std::int64_t most) {
    return at == 0 || now - at > most;
  }

  std::atomic<std::int64_t> at_{0};
};

// The age at which a figure that is measured only once is stale.
constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

// The figures of this process; 0: not measured yet.
struct Measured {
  Freshness processors_fresh;
  std::atomic<int> processors{0};

  std::atomic<double> fma_rate{0};

  // The greatest rate measured so far: when the host is busy, measured rates are too low; and where
  // the greatest one is too high at present, corrections.cc learns that from the times of calls. A
  // measurement of large weights takes milliseconds, so after each one, none is made for this many
  // times its duration: kFirstRest after the first ones, then kRest.
  struct ReadRate {
    static constexpr int kFirstReadings = 3;
    static constexpr std::int64_t kFirstRest = 200;
    static constexpr std::int64_t kRest = 2000;

    Freshness fresh;
    std::atomic<int> readings{0};
    std::atomic<double> rate{0};
  };
  struct Team {
    Freshness fresh;
    std::atomic<double> barrier{0};
    std::atomic<double> speedup{0};
    ReadRate read[Machine::kSizes];
  };
  Team team[Machine::kTeams];
};

Measured measured;

// A microsecond or two of arithmetic.
constexpr Index kFmaRounds = 250;

void compute() {
  static std::atomic<float> used;
  used.store(kernels<float>().exact().peak_rounds(kFmaRounds), std::memory_order_relaxed);
}

// Computes for 100 us, or until the rate reaches `enough`, and returns the greatest rate measured.
// The first microseconds are slow, while an idle processor raises its frequency and powers up its
// units for the widest vectors; other guests of the host slow it down, too.
double measure_fma_rate(double enough) {
  constexpr std::int64_t kLongest = 100'000;  // nanoseconds
  const double flops = static_cast<double>(kernels<float>().exact().peak_round_flops * kFmaRounds);
  double best = 0;
  const std::int64_t first = nanoseconds_now();
  for (std::int64_t begin = first, end; best < enough && begin - first < kLongest; begin = end) {
    compute();
    end = nanoseconds_now();
    best = std::max(best, flops / std::max(1.0, static_cast<double>(end - begin)));
  }
  return best;
}

// Computes until the rate is close to the greatest one measured so far, and records a greater one.
void warm_up() {
  constexpr double kClose = 0.9;
  const double known = fma_rate_now();
  const double rate = measure_fma_rate(kClose * known);
  if (rate > known) measured.fma_rate.store(rate, std::memory_order_relaxed);
}

template <int kRounds>
double median(double (&rounds)[kRounds]) {
  std::nth_element(rounds, rounds + kRounds / 2, rounds + kRounds);
  return rounds[kRounds / 2];
}

struct TeamFigures {
  bool available = false;  // the lease had enough threads
  bool crowded = false;    // another program's threads shared a processor with them
  double barrier = 0;
  double speedup = 1;
};

TeamFigures measure_team(int threads) {
  // If the measurement takes longer, threads of another program share processors with the team, and
  // the team's threads wait for them.
  constexpr std::int64_t kPatience = 300'000;  // nanoseconds
  constexpr int kRounds = 5;
  const int barriers = std::max(5, 40 / threads);
  ThreadLease lease(threads);
  if (lease.size() < threads) return {};
  // Data that the threads exchange at each barrier, as they exchange parts of a small state; one
  // buffer for even barriers and one for odd ones.
  struct alignas(kThreadSpacing) Part {
    double values[kThreadSpacing / sizeof(double)];
  };
  Part state[2][kMaxThreads];  // untouched beyond `threads` parts
  for (int i = 0; i < threads; ++i) state[0][i] = state[1][i] = {};
  double barrier_times[kRounds], speedups[kRounds];
  Barrier barrier(threads);
  bool late[2] = {};  // for even and odd barriers, so that all threads read the same value
  bool crowded = false;
  lease.run([&](int thread) {
    std::int64_t first = 0;
    int count = 0;
    bool stops = false;
    const auto synchronize = [&] {
      bool& now = late[count++ % 2];
      if (thread == 0) now = first > 0 && nanoseconds_now() - first > kPatience;
      barrier.wait(thread);
      stops |= now;
    };
    const auto timed = [&](auto&& work) {
      synchronize();
      const std::int64_t begin = nanoseconds_now();
      work();
      synchronize();
      return static_cast<double>(nanoseconds_now() - begin);
    };
    warm_up();
    synchronize();  // all threads are awake
    first = nanoseconds_now();
    for (int round = 0; round < kRounds && !stops; ++round) {
      const double barriers_time = timed([&] {
        for (int i = 0; i < barriers && !stops; ++i) {
          Part& next = state[(i + 1) % 2][thread];
          next = {};
          for (int other = 0; other < threads; ++other) {
            const Part& part = state[i % 2][other];
            for (std::size_t j = 0; j < std::size(part.values); ++j)
              next.values[j] += part.values[j] + 1;
          }
          synchronize();
        }
      });
      const double alone = timed([&] {
        if (thread == 0) compute();
      });
      const double together = timed(compute);
      if (thread != 0) continue;
      barrier_times[round] = barriers_time / barriers;
      speedups[round] = threads * alone / together;
    }
    if (thread == 0) crowded = stops;
  });
  if (crowded) return {true, true, most_barrier(team_of(threads)), 1};
  return {true, false, median(barrier_times), median(speedups)};
}

template <class T>
double read_pass(const WeightsMemory& weights, Index bytes, int thread, int threads, Index passes) {
  constexpr Index kAligned = 16;  // elements: whole cache lines
  const Index count = bytes / static_cast<Index>(sizeof(T)) / threads / kAligned * kAligned;
  static std::atomic<T> used;
  const std::int64_t begin = nanoseconds_now();
  used.store(kernels<T>().arrays->read_all(static_cast<const T*>(weights.data) + count * thread,
                                           count, passes),
             std::memory_order_relaxed);
  return static_cast<double>(nanoseconds_now() - begin);
}

// The rate of each of `threads` threads that divide the first `bytes` bytes of the weights. 0:
// these threads are not available.
double measure_read_rate(const WeightsMemory& weights, Index bytes, int threads) {
  // Short arrays are read for about 20 to 50 us, long ones once. The first round fills the caches;
  // the faster round counts.
  constexpr Index kLeastRead = 2 * 1024 * 1024;
  constexpr int kRounds = 2;
  const Index part = std::max<Index>(1, bytes / threads);
  const Index passes = std::max<Index>(1, kLeastRead / part);
  ThreadLease lease(threads);
  if (lease.size() < threads) return 0;
  double rounds[kRounds] = {};
  Barrier barrier(threads);
  const ThreadSetup setup;
  lease.run([&](int thread) {
    for (double& round : rounds) {
      barrier.wait(thread);
      const double time = weights.element_size == sizeof(double)
                              ? read_pass<double>(weights, bytes, thread, threads, passes)
                              : read_pass<float>(weights, bytes, thread, threads, passes);
      if (thread == 0) round = time;
    }
  });
  const double best = *std::min_element(rounds, rounds + kRounds);
  return static_cast<double>(part * passes) / std::max(1.0, best);
}

}  // namespace

std::int64_t nanoseconds_now() {
  using std::chrono::nanoseconds;
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<nanoseconds>(since).count();
}

int processors_at(std::int64_t now, std::int64_t stale) {
  if (measured.processors_fresh.claim(now, stale)) measured.processors = process_affinity_count();
  return measured.processors.load(std::memory_order_relaxed);
}

double fma_rate_now() {
  double rate = measured.fma_rate.load(std::memory_order_relaxed);
  if (rate == 0) {
    rate = measure_fma_rate(std::numeric_limits<double>::infinity());
    measured.fma_rate.store(rate, std::memory_order_relaxed);
  }
  return rate;
}

template <class Figure>
double Machine::interpolated(int threads, bool beyond_last, const Figure& figure) const {
  const int low = std::min(team_of(std::max(1, threads)), teams - 1);
  if (low + 1 == teams && !beyond_last) return figure(team[low]);
  const int first = std::max(0, low + 1 == teams ? low - 1 : low);
  const int second = std::min(first + 1, teams - 1);
  const double at = static_cast<double>(threads) / (1 << first) - 1;
  return figure(team[first]) + at * (figure(team[second]) - figure(team[first]));
}

double Machine::barrier(int threads) const {
  return std::max(0.0, interpolated(threads, true, [](const Team& t) { return t.barrier; }));
}

double Machine::speedup(int threads) const {
  return std::max(1.0, interpolated(threads, true, [](const Team& t) { return t.speedup; }));
}

double Machine::read_rate(double bytes, int threads) const {
  const int size = size_class(bytes);
  return interpolated(threads, false, [&](const Team& t) { return t.read_rate[size]; });
}

Machine machine_now(int threads) {
  const auto known = [](const std::atomic<double>& figure, double guess) {
    const double value = figure.load(std::memory_order_relaxed);
    return value > 0 ? value : guess;
  };
  Machine machine;  // teams that are not set are not initialised, which saves time
  machine.fma_rate = known(measured.fma_rate, kGuessedFmaRate);
  machine.teams = team_of(std::clamp(threads, 1, kMaxThreads)) + 1;
  for (int i = 0; i < machine.teams; ++i) {
    const Measured::Team& from = measured.team[i];
    Machine::Team& to = machine.team[i];
    // Unknown figures of a team follow from the team of half its size, as if the additional threads
    // had cores of their own, and each thread as much memory bandwidth.
    const Machine::Team* half = i > 0 ? &machine.team[i - 1] : nullptr;
    to.barrier = half ? known(from.barrier, i == 1 ? kGuessedBarrier : 2 * half->barrier) : 0;
    to.speedup = half ? known(from.speedup, 2 * half->speedup) : 1;
    for (int size = 0; size < Machine::kSizes; ++size)
      to.read_rate[size] =
          known(from.read[size].rate, half ? half->read_rate[size] : kGuessedReadRate);
  }
  return machine;
}

namespace {

// Measures teams of up to `threads` threads: those that are missing, and at most one that is stale.
// Returns whether any was.
bool measure_teams(int threads, std::int64_t now, std::int64_t stale) {
  // A short pause of the host looks like another program, so such a figure is stale sooner.
  constexpr std::int64_t kAgeOfCrowded = 30'000'000;
  bool any = false;
  for (int i = 1; i < Machine::kTeams && 1 << i <= threads; ++i) {
    Measured::Team& team = measured.team[i];
    const bool first = team.barrier.load(std::memory_order_relaxed) == 0;
    if (!team.fresh.claim(now, stale)) continue;
    any = true;
    if (!first) stale = kNever;
    const TeamFigures figures = measure_team(1 << i);
    if (!figures.available) continue;
    if (figures.crowded) team.fresh.set(now - kAgeOfCrowded);
    team.barrier = std::clamp(kLateness * figures.barrier, kLeastBarrier * i, most_barrier(i));
    team.speedup = std::clamp(figures.speedup, 1.0, static_cast<double>(1 << i));
  }
  return any;
}

// Measures the rates of up to `threads` threads that read `bytes` bytes: those that are missing,
// and at most one that is stale. Returns whether any was.
bool measure_read_rates(int threads, double bytes, const WeightsMemory& weights, std::int64_t now,
                        std::int64_t stale) {
  constexpr Index kLeastPart = 4096;  // bytes: at least 64 vectors
  bool any = false;
  const int size = size_class(bytes);
  const Index read = std::min(weights.bytes, static_cast<Index>(bytes));
  // Smaller weights stay in the caches next to a core, and reading them is a small part of a step.
  if (weights.data == nullptr || static_cast<double>(read) < Machine::kLeastSize / 2 ||
      size_class(static_cast<double>(read)) != size)
    return false;
  for (int i = 0; i < Machine::kTeams && 1 << i <= threads && read >> i >= kLeastPart; ++i) {
    Measured::ReadRate& figure = measured.team[i].read[size];
    const int readings = figure.readings.load(std::memory_order_relaxed);
    if (!figure.fresh.claim(now, stale)) continue;
    any = true;
    if (readings > 0) stale = kNever;
    const std::int64_t begin = nanoseconds_now();
    const double rate = measure_read_rate(weights, read, 1 << i);
    const bool begins = readings < Measured::ReadRate::kFirstReadings;
    figure.fresh.set(now + (begins ? Measured::ReadRate::kFirstRest : Measured::ReadRate::kRest) *
                               (nanoseconds_now() - begin));
    if (rate == 0) continue;
    figure.rate = std::max(figure.rate.load(std::memory_order_relaxed), rate);
    if (begins) figure.readings = readings + 1;
  }
  return any;
}

}  // namespace

bool measure_machine(int threads, double bytes, const WeightsMemory& weights, std::int64_t now,
                     std::int64_t stale) {
  const bool teams = measure_teams(threads, now, stale);
  const bool reads = measure_read_rates(threads, bytes, weights, now, stale);
  return teams || reads;
}

MachineFigures machine_figures(bool measure) {
  if (measure) {
    const Index size = static_cast<Index>(Machine::kLeastSize) << (Machine::kSizes - 1);
    const float* data = nullptr;
    const Buffer buffer([&](Arena& arena) {
      data = take_zeros<float>(arena, size / static_cast<Index>(sizeof(float)));
    });
    fma_rate_now();
    measure_teams(num_threads(), nanoseconds_now(), kNever);
    for (int i = 0; i < Machine::kSizes; ++i) {
      measure_read_rates(num_threads(), static_cast<double>(size >> i), {data, size},
                         nanoseconds_now(), kNever);
    }
  }
  MachineFigures figures;
  figures.fma_rate = measured.fma_rate;
  for (int i = 0; i < Machine::kTeams; ++i) {
    const Measured::Team& team = measured.team[i];
    if (team.barrier > 0) figures.teams.push_back({1 << i, team.barrier, team.speedup});
  }
  for (int size = 0; size < Machine::kSizes; ++size) {
    const Index bytes = static_cast<Index>(Machine::kLeastSize) << size;
    for (int i = 0; i < Machine::kTeams; ++i) {
      const double rate = measured.team[i].read[size].rate;
      if (rate > 0) figures.read_rates.push_back({bytes, 1 << i, rate});
    }
  }
  return figures;
}

bool pair_is_stale(std::int64_t now, std::int64_t stale) {
  const Measured::Team& pair = measured.team[1];
  return pair.barrier.load(std::memory_order_relaxed) == 0 || pair.fresh.stale(now, stale);
}

}  // namespace tidegate
