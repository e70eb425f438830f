// The cost model: estimates of a call's time, good to a factor of two, which is all that the choice
// of threads needs.
#include "core/plan.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>

#include "core/machine.h"
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
constexpr double kStartStep = 600;           // the same, of a stream's step
constexpr double kWake = 100000;             // one that sleeps is woken
constexpr double kShort = 50000;             // a call: as long as a team stays awake after one
constexpr double kLong = 4 * kWake;  // a call: two threads will wake, if they share a core or not
// Threads that meet in every step wait for each other's every delay: dividing units must gain this
// much over dividing rows.
constexpr double kWaiting = 1.05;
// Of a meeting, where a thread has something to do until the others come.
constexpr double kOverlappedMeeting = 0.4;
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

double factor_of(Work work) { return work == Work::backward ? 2 : 1; }
double meeting_of(Work work) { return work == Work::forward ? kOverlappedMeeting : 1; }
double start_of(Work work) { return work == Work::step ? kStartStep : kStart; }

double serial_nanoseconds(const Config& config, Work work, Index steps, Index batch,
                          Index element_size) {
  const double all_steps = static_cast<double>(steps) * static_cast<double>(config.num_layers) *
                           static_cast<double>(config.num_directions());
  return all_steps * factor_of(work) * step_nanoseconds(config, batch, element_size, 1);
}

// Whether a perfect division of so many nanoseconds would pay.
bool divides_well(Work work, double serial, int threads) {
  return start_of(work) + serial / threads < kWorthwhile * serial;
}

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

bool may_pay(const Config& config, Work work, Index steps, Index batch, Index element_size,
             int threads) {
  if (threads <= 1) return false;
  if (division.load(std::memory_order_relaxed) != Division::automatic) return true;
  return divides_well(work, serial_nanoseconds(config, work, steps, batch, element_size), threads);
}

Plan make_plan(const Config& config, Work work, Index steps, Index batch, Index element_size,
               int threads) {
  const Division forced = division.load(std::memory_order_relaxed);
  if (forced != Division::automatic && threads > 1) {
    return forced_plan(config, batch, threads, forced == Division::units);
  }
  const double all_steps = static_cast<double>(steps) * static_cast<double>(config.num_layers);
  const double meetings = meeting_of(work) * (config.proj_size > 0 || !config.reset_after ? 2 : 1);
  const auto directions = static_cast<double>(config.num_directions());
  Plan best;
  best.nanoseconds = serial_nanoseconds(config, work, steps, batch, element_size);
  if (threads <= 1 || !divides_well(work, best.nanoseconds, threads)) return best;
  // More threads than processors would wait for each other.
  if (const int processors = processors_now(); processors > 0)
    threads = std::min(threads, processors);
  if (threads <= 1) return best;
  const Plan alone = best;
  const double serial = best.nanoseconds;
  // A team that sleeps is woken for what is long, or for the calls that seem to come after this
  // one.
  const bool awake = threads_awake(2);
  const bool follows = !awake && follows_another(serial);
  const bool starts = awake || (follows && serial >= kShort);
  const Pair pair = pair_of_threads(starts || serial >= kLong);

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
    const double time = start_of(work) + all_steps * sequential * factor_of(work) * step;
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
  if (follows && (best.threads > 1 || pair_is_stale())) wake_threads(std::max(2, best.threads));
  return alone;
}

int product_threads(double flops, Index element_size, int threads) {
  if (threads <= 1) return 1;
  if (division.load(std::memory_order_relaxed) != Division::automatic) return threads;
  const double serial = flops * static_cast<double>(element_size) / kFlopsPerNanosecond;
  if (!divides_well(Work::forward, serial, threads)) return 1;
  if (const int processors = processors_now(); processors > 0)
    threads = std::min(threads, processors);
  if (threads <= 1) return 1;
  // A sleeping team is woken for long products, or while calls follow each other.
  const bool awake = threads_awake(2);
  if (!awake && serial < kLong) {
    if (follows_another(serial)) wake_threads(2);
    return 1;
  }
  const double slower =
      threads / (1 + (threads - 1) * (pair_of_threads(true).speedup - 1));  // of shared cores
  return kStart + serial * slower / threads < kWorthwhile * serial ? threads : 1;
}

}  // namespace tidegate
