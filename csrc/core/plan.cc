// The cost model: estimates of a call's time, good to a factor of two, which is all that the choice
// of threads needs.
#include "core/plan.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>

#include "core/isa.h"
#include "core/processors.h"
#include "core/threads.h"
#include "tidegate/settings.h"

namespace tidegate {

namespace {

// Of one core, the middle of the machines measured.
constexpr double kFlopsPerNanosecond = 300;  // times 1 / element size: 75 in float
constexpr double kBytesPerNanosecond = 80;   // weights read from L2 or L3
constexpr double kPointwise = 0.15;          // nanoseconds a gate, a byte of element size
constexpr double kStep = 80;                 // nanoseconds of a step's own cost
constexpr double kStart = 1500;              // a team that is awake gets a call, and ends it
constexpr double kWake = 100000;             // one that sleeps is woken
constexpr double kShort = 50000;             // a call: as long as a team stays awake after one
// Two threads meet: between these bounds, this many times what is measured, as one comes late.
constexpr double kLate = 2.5;
constexpr double kLeastMeet = 150;
constexpr double kMostMeet = 2000;
// Threads that meet in every step wait for each other's every delay: dividing units must gain this
// much over dividing rows.
constexpr double kWaiting = 1.03;
constexpr double kWorthwhile = 0.8;  // of the serial time: a gain worth another core's

enum class Division { automatic, rows, units };
std::atomic<Division> division{Division::automatic};

// All the threads that were asked for, whatever it costs.
Plan forced_plan(const Config& config, Index batch, int threads, bool by_units) {
  Plan plan;
  plan.groups = config.bidirectional && threads > 1 ? 2 : 1;
  const Index most =
      by_units ? threads : std::min<Index>(threads, std::max<Index>(batch, 1) * plan.groups);
  plan.threads = static_cast<int>(most);
  plan.by_units = by_units;
  return plan;
}

// One direction's step of the average layer: `rows` rows, 1 / `unit_share` of the units.
double step_nanoseconds(const Config& config, Index rows, Index element_size, double unit_share) {
  const double size = static_cast<double>(element_size);
  const double hidden = static_cast<double>(config.hidden_size);
  const double state = static_cast<double>(config.state_size());
  const double gates = static_cast<double>(config.gate_count());
  const double layers = static_cast<double>(config.num_layers);
  const double inputs = (static_cast<double>(config.input_size) +
                         (layers - 1) * static_cast<double>(config.output_size())) /
                        layers;
  const double projection = config.proj_size > 0 ? hidden * state : 0;
  const double recurrent = gates * hidden * state + projection;
  const double flops = 2 * static_cast<double>(rows) * (recurrent + gates * hidden * inputs);
  // Neither hides the other: the first rows that pass over a block of weights wait for it.
  const double product =
      flops * size / kFlopsPerNanosecond + recurrent * size / kBytesPerNanosecond;
  return (product + static_cast<double>(rows) * gates * hidden * kPointwise * size) / unit_share +
         kStep;
}

std::int64_t nanoseconds_now() {
  using std::chrono::nanoseconds;
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<nanoseconds>(since).count();
}

// What two threads are to each other.
struct Pair {
  double meeting = 0;  // nanoseconds; 0: no second one is to be had
  double speedup = 2;  // of work that they divide: 1 where they share one core
};

// The medians of some rounds, in 20 to 100 us.
Pair measure_pair() {
  constexpr int kRounds = 5;
  constexpr int kMeetings = 20;
  constexpr int kHanded = 256 / sizeof(double);  // as much as halves of a small state
  constexpr Index kFmaRounds = 250;              // a microsecond or two
  ThreadLease lease(2);
  if (lease.size() < 2) return {};
  struct alignas(kThreadSpacing) Half {
    double values[kHanded];
  };
  Half state[2][2] = {};  // of steps in turn, by thread
  double meetings[kRounds], speedups[kRounds];
  Barrier barrier(2);
  lease.run([&](int thread) {
    const auto timed = [&](auto&& work) {
      barrier.wait(thread);
      const std::int64_t begin = nanoseconds_now();
      work();
      barrier.wait(thread);
      return static_cast<double>(nanoseconds_now() - begin);
    };
    const auto compute = [] {
      static std::atomic<float> used;
      used.store(kernels<float>().fma_rounds(kFmaRounds), std::memory_order_relaxed);
    };
    for (int round = 0; round < kRounds; ++round) {
      const double meeting = timed([&] {
        for (int i = 0; i < kMeetings; ++i) {
          const Half& theirs = state[i % 2][1 - thread];
          Half& next = state[(i + 1) % 2][thread];
          for (int j = 0; j < kHanded; ++j) next.values[j] = theirs.values[j] + 1;
          barrier.wait(thread);
        }
      });
      const double alone = timed([&] {
        if (thread == 0) compute();
      });
      const double both = timed(compute);
      if (thread != 0) continue;
      meetings[round] = meeting / kMeetings;
      speedups[round] = 2 * alone / both;
    }
  });
  const auto median = [](double (&rounds)[kRounds]) {
    std::nth_element(rounds, rounds + kRounds / 2, rounds + kRounds);
    return rounds[kRounds / 2];
  };
  return {std::clamp(kLate * median(meetings), kLeastMeet, kMostMeet),
          std::clamp(median(speedups), 1.0, 2.0)};
}

// The machine as it is now: the host of a virtual one moves its processors about, now on cores of
// their own, now both on one. What was found out is true for a while.
class Machine {
 public:
  // That this process may run on; 0: unknown.
  int processors() {
    if (renews(counted_at_)) processors_ = process_affinity_count();
    return processors_;
  }

  bool pair_is_stale() const { return !measured() || old(measured_at_); }
  // `measures` allows to measure again, which should find the threads awake.
  Pair pair(bool measures) {
    if (measures && (!measured() || renews(measured_at_))) {
      const Pair pair = measure_pair();
      if (pair.meeting > 0) {
        meeting_ = pair.meeting;
        speedup_ = pair.speedup;
      }
    }
    return {measured() ? meeting_.load() : kMostMeet, speedup_};
  }

 private:
  static bool old(std::int64_t time) { return nanoseconds_now() - time > 50'000'000; }
  // Whether it is for the caller, and no other thread, to find out anew.
  static bool renews(std::atomic<std::int64_t>& time) {
    std::int64_t before = time;
    return old(before) && time.compare_exchange_strong(before, nanoseconds_now());
  }
  bool measured() const { return meeting_ > 0; }

  std::atomic<int> processors_{0};
  std::atomic<std::int64_t> counted_at_{0};
  std::atomic<double> meeting_{0}, speedup_{2};
  std::atomic<std::int64_t> measured_at_{0};
};
Machine machine;

// Whether this call follows the last one that asked, which took about `call` nanoseconds, so soon
// that a team that it had woken would still be awake.
bool follows_another(double call) {
  static std::atomic<std::int64_t> last{0};
  const std::int64_t now = nanoseconds_now();
  const auto since = static_cast<double>(now - last.exchange(now, std::memory_order_relaxed));
  return since < 2 * call + kWake;
}

}  // namespace

void select_division(const std::string& name) {
  if (name == "auto") {
    division = Division::automatic;
  } else if (name == "rows") {
    division = Division::rows;
  } else if (name == "units") {
    division = Division::units;
  } else {
    throw std::invalid_argument("division: got \"" + name +
                                "\", wanted \"auto\", \"rows\" or \"units\"");
  }
}

Plan make_plan(const Config& config, Work work, Index steps, Index batch, Index element_size,
               int threads) {
  const Division forced = division.load(std::memory_order_relaxed);
  if (forced != Division::automatic && threads > 1) {
    return forced_plan(config, batch, threads, forced == Division::units);
  }
  const double all_steps = static_cast<double>(steps) * static_cast<double>(config.num_layers);
  const double factor = work == Work::backward ? 2 : 1;
  const double meetings = config.proj_size > 0 || !config.reset_after ? 2 : 1;
  const auto directions = static_cast<double>(config.num_directions());
  Plan best;
  best.nanoseconds =
      all_steps * directions * factor * step_nanoseconds(config, batch, element_size, 1);
  if (threads <= 1 || best.nanoseconds < 2 * kStart) return best;
  // More threads than processors would wait for each other.
  if (const int processors = machine.processors(); processors > 0)
    threads = std::min(threads, processors);
  if (threads <= 1) return best;
  const Plan alone = best;
  const double serial = best.nanoseconds;
  // A team that sleeps is woken for what is long, or for the calls that seem to come after this
  // one.
  const bool awake = threads_awake(2);
  const bool follows = !awake && follows_another(serial);
  const bool starts = awake || (follows && serial >= kShort);
  const Pair pair = machine.pair(starts);

  const auto consider = [&](int groups, int group_threads, bool by_units) {
    const double sequential = directions / groups;
    const int all_threads = groups * group_threads;
    // Of each thread's own work, where cores are shared.
    const double slower = all_threads / (1 + (all_threads - 1) * (pair.speedup - 1));
    const double step =
        by_units
            ? kWaiting * (slower * step_nanoseconds(config, batch, element_size, group_threads) +
                          meetings * pair.meeting)
            : slower * step_nanoseconds(config, (batch - 1) / group_threads + 1, element_size, 1);
    const double time = kStart + all_steps * sequential * factor * step;
    if (time < kWorthwhile * serial && time < best.nanoseconds) {
      best.threads = all_threads;
      best.groups = groups;
      best.by_units = by_units && group_threads > 1;
      best.nanoseconds = time;
    }
  };
  const int max_groups = config.bidirectional ? 2 : 1;
  // By units, a thread has at least one vector's worth of them, whatever the ISA.
  const auto most_by_units = static_cast<int>(std::max<Index>(1, config.state_size() / 16));
  for (int groups = 1; groups <= max_groups; ++groups) {
    const int group_threads = threads / groups;
    consider(groups, static_cast<int>(std::min<Index>(group_threads, std::max<Index>(1, batch))),
             false);
    consider(groups, std::min(group_threads, most_by_units), true);
  }
  if (starts || best.nanoseconds + kWake < kWorthwhile * serial) return best;
  // Short calls need not wait until it is awake: it will be for one of the next.
  if (follows && (best.threads > 1 || machine.pair_is_stale()))
    wake_threads(std::max(2, best.threads));
  return alone;
}

}  // namespace tidegate
