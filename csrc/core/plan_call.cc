// The plan of a call in the present state of this process.
#include "core/plan_call.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>

#include "core/switches.h"
#include "core/threads/threads.h"
#include "tidegate/settings.h"

namespace tidegate {

namespace {

// All times are in nanoseconds.
constexpr double kWake = 100'000;      // waking a sleeping worker
constexpr double kWakeThread = 5'000;  // waking each further one: a system call
constexpr double kShort = 50'000;      // how long a team stays awake; calls below are short
constexpr double kLong = 4 * kWake;    // from here, waking threads may pay, so figures are measured

// The age at which figures are stale: in general, and if a sleeping team would have to be woken to
// measure them before a call that does not take much longer than waking it.
constexpr std::int64_t kStale = 50'000'000;
constexpr std::int64_t kStaleAsleep = 1'000'000'000;
constexpr double kMuchLonger = 5'000'000;

enum class Division { automatic, rows, units };
std::atomic<Division> division{Division::automatic};

CorrectionTable corrections;

bool forces() { return division.load(std::memory_order_relaxed) != Division::automatic; }

// The plan with all threads that the call may use, whatever it costs.
PlannedCall forced_plan(const Call& call, int threads) {
  PlannedCall plan;
  plan.by_units = division.load(std::memory_order_relaxed) == Division::units && threads > 1;
  plan.groups = call.config.bidirectional && threads > 1 ? 2 : 1;
  const Index rows = std::max<Index>(call.batch, 1) * plan.groups;
  plan.threads = plan.by_units ? threads : static_cast<int>(std::min<Index>(threads, rows));
  return plan;
}

// The time of the last call that was planned: its beginning, or its end if that was recorded.
std::atomic<std::int64_t> last_call{0};

// Whether this call, of about `nanoseconds`, follows the last one so closely that a team woken by
// the last call would still be awake.
bool follows_another(double nanoseconds, std::int64_t now) {
  const auto since = static_cast<double>(now - last_call.exchange(now, std::memory_order_relaxed));
  return since < 2 * nanoseconds + kWake;
}

// ---- TIDEGATE_PLAN=explain

bool read_explains() {
  const char* const text = std::getenv("TIDEGATE_PLAN");
  if (text == nullptr || *text == '\0') return false;
  if (std::string(text) == "explain") return true;
  std::fprintf(stderr, "tidegate: TIDEGATE_PLAN: got \"%s\", wanted \"explain\"; ignored\n", text);
  return false;
}

// Whether the choice has not been printed before. May forget a choice after hundreds of others.
bool is_new(const std::string& choice) {
  constexpr std::size_t kSlots = 1024;
  static std::atomic<std::size_t> printed[kSlots];
  const std::size_t hash = std::hash<std::string>()(choice) | 1;
  return printed[hash / 2 % kSlots].exchange(hash, std::memory_order_relaxed) != hash;
}

void print_choice(const Call& call, const CostModel& model, int threads, const Machine& machine,
                  const Corrections& learnt, const Plan& plan) {
  const Config& config = call.config;
  std::string choice = std::string(call.cost.name) + " ";
  for (const Index value :
       {static_cast<Index>(call.work), call.steps, call.batch, static_cast<Index>(config.cell),
        config.input_size, config.hidden_size, config.num_layers, config.num_directions(),
        config.proj_size, static_cast<Index>(threads), static_cast<Index>(plan.threads),
        static_cast<Index>(plan.groups), static_cast<Index>(plan.by_units)}) {
    choice += std::to_string(value) + " ";
  }
  if (!is_new(choice)) return;
  const std::string line = "tidegate: " + model.explain(threads, machine, learnt, plan) + "\n";
  std::fputs(line.c_str(), stderr);
}

// ----

PlannedCall planned(const Plan& plan, int call_class, std::int64_t begin) {
  PlannedCall result;
  static_cast<Plan&>(result) = plan;
  result.call_class = call_class;
  result.begin = begin;
  return result;
}

// The best plan of a CostModel or EvenWork. measure(threads, now, stale) returns whether it
// measured anything; print(threads, machine, corrections, plan) is called with the chosen plan.
template <class Model, class Measure, class Print>
PlannedCall choose(const Model& model, int threads, const Measure& measure, const Print& print) {
  const auto serial_plan = [&]() -> PlannedCall {
    if (explains_plans()) {
      const Machine machine = machine_now(threads);
      print(threads, machine, Corrections{}, model.serial_plan(machine, {}));
    }
    return {};
  };
  const double fma_rate = fma_rate_now();
  if (!model.may_pay(threads, fma_rate)) return serial_plan();
  std::int64_t now = nanoseconds_now();
  // More threads than processors would take turns, and wait for each other.
  if (const int processors = processors_at(now, kStale); processors > 0)
    threads = std::min(threads, processors);
  if (threads <= 1) return serial_plan();

  Machine machine;
  int call_class;
  Corrections learnt;
  const auto look_up = [&] {
    machine = machine_now(threads);
    call_class = model.call_class(machine);
    learnt = corrections.at(call_class, now);
  };
  look_up();
  // Includes the corrections, because the read rate may not have been measured yet.
  const double serial = model.serial_plan(machine, learnt).nanoseconds;
  const int ready = threads_ready();
  const bool follows = ready < 2 && follows_another(serial, now);
  // Short calls with pauses between them run on one thread: waking another would take longer.
  const bool starts = ready >= 2 || (follows && serial >= kShort);
  const std::int64_t stale = starts || serial >= kMuchLonger ? kStale : kStaleAsleep;
  if ((starts || serial >= kLong) && measure(threads, now, stale)) {
    now = nanoseconds_now();  // the time of the call begins after the measurement
    look_up();
  }
  const auto result = [&](const Plan& plan) {
    print(threads, machine, learnt, plan);
    return planned(plan, call_class, now);
  };
  const Plan best = model.best_plan(threads, machine, learnt);
  const int asleep = best.threads - ready;
  if (asleep <= 0) {
    // One of the next calls measures the threads, which must be awake then.
    if (follows && !starts && pair_is_stale(now, kStale)) wake_threads(2);
    return result(best);
  }
  // Long calls in close succession: the threads stay awake between them; if not, the corrections
  // account for it.
  if (starts && serial >= kShort) return result(best);
  Plan woken = best;
  woken.uncorrected += kWake + (asleep - 1) * kWakeThread;
  woken.nanoseconds += kWake + (asleep - 1) * kWakeThread;
  const Plan fewer = model.best_plan(ready, machine, learnt);
  if (woken.nanoseconds < kWorthwhile * fewer.nanoseconds) return result(woken);
  // Does not wait until the threads are awake, but wakes them for one of the next calls.
  if (starts || follows) wake_threads(best.threads);
  return result(fewer);
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

bool explains_plans() {
  enum : int { unknown, off, on };
  static std::atomic<int> state{unknown};
  int known = state.load(std::memory_order_relaxed);
  if (known == unknown) {
    known = read_explains() ? on : off;
    state.store(known, std::memory_order_relaxed);
  }
  return known == on;
}

bool may_pay(const Call& call, int threads) {
  if (threads <= 1) return false;
  return forces() || CostModel(call).may_pay(threads, fma_rate_now());
}

PlannedCall plan_call(const Call& call, int threads, const WeightsMemory& weights) {
  if (threads > 1 && forces()) return forced_plan(call, threads);
  if (threads <= 1 && !explains_plans()) return {};
  const CostModel model(call);
  return choose(
      model, threads,
      [&](int most, std::int64_t now, std::int64_t stale) {
        return measure_machine(most, model.working_set(), weights, now, stale);
      },
      [&](int most, const Machine& machine, const Corrections& learnt, const Plan& plan) {
        if (explains_plans()) print_choice(call, model, most, machine, learnt, plan);
      });
}

PlannedCall plan_even_work(const EvenWork& work, int threads) {
  PlannedCall plan;
  if (threads <= 1) return plan;
  if (forces()) {
    plan.threads = threads;
    return plan;
  }
  return choose(
      work, threads,
      [](int most, std::int64_t now, std::int64_t stale) {
        return measure_machine(most, 0, {}, now, stale);
      },
      [](int, const Machine&, const Corrections&, const Plan&) {});
}

PlannedCall plan_again(const Call& call, int threads, const PlannedCall& before) {
  if (threads > 1 && forces()) return forced_plan(call, threads);
  const Machine machine = machine_now(threads);
  const int call_class = before.call_class;
  const Corrections learnt =
      call_class >= 0 ? corrections.at(call_class, before.begin) : Corrections{};
  return planned(make_plan(call, threads, machine, learnt), call_class, before.begin);
}

void PlannedCall::record() const {
  if (call_class < 0) return;
  const std::int64_t now = nanoseconds_now();
  last_call.store(now, std::memory_order_relaxed);
  corrections.record(call_class, division_class(threads, by_units),
                     static_cast<double>(now - begin) / uncorrected, now);
}

}  // namespace tidegate
