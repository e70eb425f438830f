// The cost model: estimates of a call's time, good to a factor of two, which is all that the choice
// of threads needs.
#include "core/plan.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "tidegate/settings.h"

namespace tidegate {

namespace {

// Of one core, conservative over the machines measured: a slow core makes threads worth it earlier.
constexpr double kFlopsPerNanosecond = 200;  // times 1 / element size: 50 in float, 25 in double
constexpr double kBytesPerNanosecond = 60;   // weights read from L2 or L3
constexpr double kPointwise = 0.15;          // nanoseconds a gate, a byte of element size
constexpr double kStep = 80;                 // nanoseconds of a step's own cost
constexpr double kMeet = 1000;               // two threads meet, one of them late
constexpr double kStart = 5000;              // a team is woken and gathered
// Threads that meet in every step wait for each other's every delay: dividing units must gain this
// much over dividing rows.
constexpr double kWaiting = 1.03;

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
  const double serial = best.nanoseconds;

  const auto consider = [&](int groups, int group_threads, bool by_units) {
    const double sequential = directions / groups;
    const double step =
        by_units ? kWaiting * (step_nanoseconds(config, batch, element_size, group_threads) +
                               meetings * kMeet)
                 : step_nanoseconds(config, (batch - 1) / group_threads + 1, element_size, 1);
    const double time = kStart + all_steps * sequential * factor * step;
    // A gain worth another core's time.
    if (time < 0.8 * serial && time < best.nanoseconds) {
      best.threads = groups * group_threads;
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
  return best;
}

}  // namespace tidegate
