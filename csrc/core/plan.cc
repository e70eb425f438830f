// The cost model: estimates of a call's time, accurate to a factor of two, which is sufficient for
// the choice of threads. The corrections compensate for larger errors, on a machine or during a
// disturbance.
#include "core/plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/cells.h"

namespace tidegate {

namespace {

// The part of the peak of multiply-adds that products and cells reach, averaged over numbers of
// rows and sizes (less with few rows, up to 0.95 with many).
constexpr double kSustained = 0.65;
// The time of a gate's activations and its part of the cell, in float flops: 0.6 ns, as measured on
// a machine of 115 flops per nanosecond.
constexpr double kFlopsOfGate = 45;
// The bytes per nanosecond at which weights are read from the nearest cache, on a typical machine.
constexpr double kNearReadRate = 80;
// Input projections are computed for about this many rows at a time (64 to 256 in forward.cc),
// which read the input weights once.
constexpr Index kProjectedRows = 128;

// All times are in nanoseconds.
constexpr double kStep = 80;          // the overhead of a step
constexpr double kStart = 1500;       // starting and ending a call on two threads that are awake
constexpr double kStartStep = 600;    // the same for a stream's step
constexpr double kStartThread = 150;  // each further thread: the transfer of two cache lines
// With a barrier in each step, every delay of one thread delays all: the relative increase of the
// step's time for each doubling of the number of threads.
constexpr double kDelayPerDoubling = 0.05;
// The visible part of a barrier's time where threads compute before all have arrived.
constexpr double kVisibleBarrier = 0.4;
constexpr Index kUnitsOfSlice = 16;  // units are divided in slices; this is the widest vector
constexpr double kPriceOfDoubling = 1 / kWorthwhile - 1;

constexpr int kEvenWork = 3;  // in CallClass, after the values of Work

double factor_of(Work work) { return work == Work::backward ? 2 : 1; }
double start_of(Work work) { return work == Work::step ? kStartStep : kStart; }

// The binary logarithm of the number of threads; linear between powers of two, for speed.
double doublings(int threads) {
  const int whole = std::ilogb(threads);
  return whole + static_cast<double>(threads) / (1 << whole) - 1;
}

// Plans are compared by their time multiplied by this factor: twice as many threads must save a
// fifth of the time.
double price_of(int threads) { return 1 + kPriceOfDoubling * doublings(threads); }

}  // namespace

CostModel::CostModel(const Call& call) : call_(call) {
  const Config& config = call.config;
  const auto of = [](Index count) { return static_cast<double>(count); };
  const double hidden = of(config.hidden_size);
  const double state = of(config.state_size());
  const double gates = of(config.gate_count());
  const double layers = of(config.num_layers);
  // Averaged over the layers.
  const double inputs = (of(config.input_size) + (layers - 1) * of(config.output_size())) / layers;
  const double projection = config.proj_size > 0 ? hidden * state : 0;
  const double recurrent = gates * hidden * state + projection;
  const double input = gates * hidden * inputs;
  directions_ = of(config.num_directions());
  layer_steps_ = of(call.steps) * layers;
  row_flops_ = 2 * (recurrent + input) * call.cost.product_flops +
               kFlopsOfGate * gates * hidden * call.cost.cell_flops;
  // A single step reads all weights once; many steps read a layer's recurrent weights repeatedly.
  if (call.steps == 1) {
    bytes_ = (recurrent + input) * call.cost.weight_bytes;
    working_set_ = bytes_ * layers;
  } else {
    const double projected = std::clamp(kProjectedRows / of(std::max<Index>(1, call.batch)), 1.0,
                                        std::max(1.0, of(call.steps)));
    bytes_ = (recurrent + input / projected) * call.cost.weight_bytes;
    working_set_ = recurrent * call.cost.weight_bytes;
  }
}

double CostModel::step_nanoseconds(double rows, double part, double fma_rate,
                                   double read_rate) const {
  // The times add up, because the first rows that use a block of weights wait for it.
  const double arithmetic = rows * row_flops_ / (fma_rate * kSustained);
  return (arithmetic + bytes_ / read_rate) * part + kStep;
}

double CostModel::serial_nanoseconds(double fma_rate, double read_rate) const {
  return layer_steps_ * directions_ * factor_of(call_.work) *
         step_nanoseconds(static_cast<double>(call_.batch), 1, fma_rate, read_rate);
}

double CostModel::least_serial_nanoseconds(double fma_rate) const {
  return serial_nanoseconds(fma_rate, kNearReadRate);
}

bool CostModel::may_pay(int threads, double fma_rate) const {
  if (threads <= 1) return false;
  const double serial = least_serial_nanoseconds(fma_rate);
  return start_of(call_.work) + serial / threads < kWorthwhile * serial;
}

int CostModel::call_class(const Machine& machine) const {
  const double serial = serial_nanoseconds(machine.fma_rate, machine.read_rate(working_set_, 1));
  const double steps = std::max(1.0, layer_steps_ * directions_);
  return CallClass::of(static_cast<int>(call_.work), serial, serial / steps, call_.batch);
}

Plan CostModel::serial_plan(const Machine& machine, const Corrections& corrections) const {
  Plan plan;
  plan.uncorrected = serial_nanoseconds(machine.fma_rate, machine.read_rate(working_set_, 1));
  plan.nanoseconds = plan.uncorrected * corrections.of(1, false);
  return plan;
}

template <class Visit>
void CostModel::for_each_division(int threads, const Machine& machine,
                                  const Corrections& corrections, const Visit& visit) const {
  const Config& config = call_.config;
  const Index batch = std::max<Index>(1, call_.batch);
  const Index slices = (config.state_size() + kUnitsOfSlice - 1) / kUnitsOfSlice;
  const double barriers_of_step = (cell_spec(config).phase_count + (config.proj_size > 0)) *
                                  (call_.work == Work::forward ? kVisibleBarrier : 1);
  const auto consider = [&](int groups, int group_threads, bool by_units, Index largest_part) {
    Plan plan;
    plan.threads = groups * group_threads;
    plan.groups = groups;
    plan.by_units = by_units;
    // The working sets of the groups share the caches. Threads that divide rows each read all of
    // their group's working set, at most at the rate of one thread for each group.
    const double set = working_set_ * groups;
    double read_rate = machine.read_rate(set, plan.threads);
    if (!by_units) read_rate = std::min(read_rate, machine.read_rate(set, groups));
    // Each thread's work takes longer on shared cores.
    const double slower = plan.threads / machine.speedup(plan.threads);
    double step;
    if (by_units) {
      const double part = static_cast<double>(largest_part) / static_cast<double>(slices);
      step = slower *
             step_nanoseconds(static_cast<double>(call_.batch), part, machine.fma_rate, read_rate);
      step = (1 + kDelayPerDoubling * doublings(plan.threads)) *
             (step + barriers_of_step * machine.barrier(plan.threads));
    } else {
      step = slower *
             step_nanoseconds(static_cast<double>(largest_part), 1, machine.fma_rate, read_rate);
    }
    plan.uncorrected = start_of(call_.work) + (plan.threads - 2) * kStartThread +
                       layer_steps_ * (directions_ / groups) * factor_of(call_.work) * step;
    plan.nanoseconds = plan.uncorrected * corrections.of(plan.threads, by_units);
    visit(plan);
  };
  // A number of threads is useful if its largest part is smaller than that of all lower numbers.
  const auto for_each_count = [&](int groups, bool by_units, Index all) {
    const int max_count = static_cast<int>(std::min<Index>(threads / groups, all));
    Index before = all;
    for (int count = 2; count <= max_count; ++count) {
      const Index largest = (all - 1) / count + 1;
      if (largest < before) consider(groups, count, by_units, largest);
      before = largest;
    }
  };
  if (config.bidirectional) consider(2, 1, false, batch);
  for (int groups = 1; groups <= config.num_directions(); ++groups) {
    for_each_count(groups, false, batch);
    for_each_count(groups, true, slices);
  }
}

Plan CostModel::best_plan(int threads, const Machine& machine,
                          const Corrections& corrections) const {
  Plan best = serial_plan(machine, corrections);
  if (threads <= 1) return best;
  double best_price = best.nanoseconds;
  for_each_division(threads, machine, corrections, [&](const Plan& plan) {
    const double price = plan.nanoseconds * price_of(plan.threads);
    if (price >= best_price) return;
    best = plan;
    best_price = price;
  });
  return best;
}

namespace {

std::string text_of(const Plan& plan) {
  char text[160];
  const char* const division = plan.threads == 1 ? "" : (plan.by_units ? " by units" : " by rows");
  std::snprintf(text, sizeof text, "%d thread%s%s%s %.1f us", plan.threads,
                plan.threads == 1 ? "" : "s", division,
                plan.groups == 2 ? ", directions in parallel," : "", plan.nanoseconds / 1000);
  std::string result = text;
  const double factor = plan.uncorrected > 0 ? plan.nanoseconds / plan.uncorrected : 1;
  if (std::abs(factor - 1) >= 0.005) {
    std::snprintf(text, sizeof text, " (corrected by %.2f)", factor);
    result += text;
  }
  return result;
}

}  // namespace

std::string CostModel::explain(int threads, const Machine& machine, const Corrections& corrections,
                               const Plan& plan) const {
  const Config& config = call_.config;
  const char* const works[] = {"forward", "backward", "step"};
  char text[240];
  std::snprintf(
      text, sizeof text,
      "%s of %s(%lld, %lld%s%s) x %lld, %s, T %lld, N %lld:", works[static_cast<int>(call_.work)],
      cell_name(config.cell), static_cast<long long>(config.input_size),
      static_cast<long long>(config.hidden_size), config.bidirectional ? ", bidirectional" : "",
      config.proj_size > 0 ? ", projected" : "", static_cast<long long>(config.num_layers),
      call_.cost.name, static_cast<long long>(call_.steps), static_cast<long long>(call_.batch));
  std::string line = text;
  line.append(" ").append(text_of(plan));
  line.append("; of at most ").append(std::to_string(threads));
  line.append(": ").append(text_of(serial_plan(machine, corrections)));
  Plan best[2];  // by rows, by units
  bool found[2] = {};
  for_each_division(threads, machine, corrections, [&](const Plan& other) {
    const int kind = other.by_units ? 1 : 0;
    if (found[kind] && best[kind].nanoseconds <= other.nanoseconds) return;
    best[kind] = other;
    found[kind] = true;
  });
  for (int kind = 0; kind < 2; ++kind)
    if (found[kind]) line.append(", ").append(text_of(best[kind]));
  return line;
}

double EvenWork::least_serial_nanoseconds(double fma_rate) const {
  return flops / fma_rate + bytes / kNearReadRate;
}

bool EvenWork::may_pay(int threads, double fma_rate) const {
  const double serial = least_serial_nanoseconds(fma_rate);
  return threads > 1 && kStart + serial / threads < kWorthwhile * serial;
}

int EvenWork::call_class(const Machine& machine) const {
  const double arithmetic = flops / (machine.fma_rate * kSustained);
  const double memory = bytes / machine.read_rate(bytes, 1);
  // The class has few rows if memory is the bound, and many if arithmetic is, as for a batch.
  return CallClass::of(kEvenWork, arithmetic + memory, 0, arithmetic > memory ? kProjectedRows : 1);
}

Plan EvenWork::serial_plan(const Machine& machine, const Corrections& corrections) const {
  Plan plan;
  plan.uncorrected = flops / (machine.fma_rate * kSustained) + bytes / machine.read_rate(bytes, 1);
  plan.nanoseconds = plan.uncorrected * corrections.of(1, false);
  return plan;
}

Plan EvenWork::best_plan(int threads, const Machine& machine,
                         const Corrections& corrections) const {
  Plan best = serial_plan(machine, corrections);
  double best_price = best.nanoseconds;
  for (int count = 2; count <= threads; ++count) {
    Plan plan;
    plan.threads = count;
    plan.uncorrected = kStart + (count - 2) * kStartThread +
                       flops / (machine.fma_rate * kSustained * machine.speedup(count)) +
                       bytes / (count * machine.read_rate(bytes, count));
    plan.nanoseconds = plan.uncorrected * corrections.of(count, false);
    const double price = plan.nanoseconds * price_of(count);
    if (price < best_price) best = plan, best_price = price;
  }
  return best;
}

}  // namespace tidegate
