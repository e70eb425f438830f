// Plans: the number of threads of a call and how they divide it. Tested for the tables of several
// machines, which are given here, and in this process with properties that hold on any machine.
#include "core/plan.h"

#include <array>
#include <chrono>
#include <initializer_list>
#include <thread>

#include "check.h"
#include "core/plan_call.h"
#include "core/threads/processors.h"
#include "core/threads/threads.h"
#include "tidegate/settings.h"

namespace {

using namespace tidegate;

constexpr StorageCost kFloat32 = {"float32", 1, 1, 4};

Config network(CellKind cell, Index size, Index layers = 1, bool bidirectional = false) {
  Config config;
  config.cell = cell;
  config.input_size = size;
  config.hidden_size = size;
  config.num_layers = layers;
  config.bidirectional = bidirectional;
  return config;
}
Config lstm(Index size) { return network(CellKind::lstm, size); }
Config gru(Index size) { return network(CellKind::gru, size); }

// ---- Machines. The rates are bytes per nanosecond at which each thread reads its part of 256 kB,
// 512 kB, 1 MB, 2, 4, 8, 16 and 32 MB.

Machine machine_of(double fma_rate, std::initializer_list<Machine::Team> teams) {
  Machine machine = {};
  machine.fma_rate = fma_rate;
  for (const Machine::Team& team : teams) machine.team[machine.teams++] = team;
  return machine;
}

// 512 kB of L2, AVX2.
Machine zen3() {
  return machine_of(105, {{0, 1, {85, 80, 65, 60, 60, 55, 50, 25}},
                          {700, 1.9, {85, 85, 75, 60, 60, 55, 50, 20}}});
}

// 1 MB of L2, an L3 of nearly the same rate, AVX-512.
Machine zen4() {
  return machine_of(115, {{0, 1, {110, 105, 100, 95, 90, 85, 60, 30}},
                          {500, 1.95, {110, 105, 100, 95, 90, 85, 65, 35}}});
}

// 2 MB of L2 at full speed, an L3 of 27 GB/s per core. Sixteen processors on eight cores.
Machine emerald_rapids(int processors) {
  const Machine::Team one = {0, 1, {150, 140, 120, 70, 28, 27, 27, 27}};
  const Machine::Team two = {900, 1.95, {150, 150, 140, 120, 70, 28, 27, 27}};
  if (processors == 2) return machine_of(185, {one, two});
  return machine_of(185, {one,
                          two,
                          {1400, 3.8, {150, 150, 150, 140, 120, 70, 28, 27}},
                          {2200, 7.4, {150, 150, 150, 150, 140, 110, 60, 27}},
                          {4500, 8.8, {80, 80, 80, 80, 80, 70, 50, 25}}});
}

// Sixteen narrow cores (128-bit NEON) with 1 MB of L2 each, and a shared memory whose bandwidth two
// of them can saturate.
Machine arm_server() {
  return machine_of(45, {{0, 1, {38, 36, 34, 24, 20, 20, 18, 12}},
                         {600, 2, {38, 38, 36, 34, 24, 20, 18, 12}},
                         {1000, 4, {38, 38, 38, 36, 34, 24, 18, 8}},
                         {1700, 7.9, {38, 38, 38, 38, 36, 34, 22, 8}},
                         {3000, 15.5, {38, 38, 38, 38, 38, 36, 30, 14}}});
}

Plan step_plan(const Config& config, const Machine& machine, int threads, Index batch = 1) {
  return make_plan({config, Work::step, 1, batch, kFloat32}, threads, machine);
}
Plan forward_plan(const Config& config, Index steps, Index batch, const Machine& machine,
                  int threads) {
  return make_plan({config, Work::forward, steps, batch, kFloat32}, threads, machine);
}

bool is_serial(const Plan& plan) { return plan.threads == 1 && plan.groups == 1 && !plan.by_units; }
bool by_rows(const Plan& plan, int threads) { return plan.threads == threads && !plan.by_units; }
bool by_units(const Plan& plan, int threads) { return plan.threads == threads && plan.by_units; }

// ---- This process.

Plan planned(const Config& config, Index steps, Index batch, int threads) {
  return plan_call({config, Work::forward, steps, batch, kFloat32}, threads, {});
}

double step_nanoseconds(const Config& config) {
  const Call call = {config, Work::forward, 1, 1, kFloat32};
  return CostModel(call).least_serial_nanoseconds(fma_rate_now());
}

// Waits longer than any worker stays awake; on a busy machine, until all workers have been
// scheduled.
void let_the_team_sleep() {
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  for (int turn = 0; turn < 1000 && threads_awake(2); ++turn)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

}  // namespace

// ---- Tables

TEST(figures_between_the_measured_counts_lie_on_a_line) {
  const Machine machine = emerald_rapids(16);
  CHECK_NEAR(machine.barrier(1), 0, 0);
  CHECK_NEAR(machine.barrier(2), 900, 0);
  CHECK_NEAR(machine.barrier(3), 1150, 1e-9);
  CHECK_NEAR(machine.speedup(12), 8.1, 1e-9);
  CHECK_NEAR(machine.speedup(16), 8.8, 0);
  CHECK_NEAR(machine.speedup(24), 10.2, 1e-9);  // extrapolated from the last two
  CHECK_NEAR(machine.barrier(24), 6800, 1e-9);
}

TEST(the_closest_size_is_read) {
  const Machine machine = emerald_rapids(2);
  CHECK_NEAR(machine.read_rate(1, 1), 150, 0);
  CHECK_NEAR(machine.read_rate(1.4 * 1024 * 1024, 1), 120, 0);
  CHECK_NEAR(machine.read_rate(1.5 * 1024 * 1024, 1), 70, 0);
  CHECK_NEAR(machine.read_rate(1e12, 1), 27, 0);
  CHECK_NEAR(machine.read_rate(4.0 * 1024 * 1024, 2), 70, 0);
  CHECK_NEAR(machine.read_rate(4.0 * 1024 * 1024, 7), 70, 0);  // the rate of the last team
}

TEST(what_takes_a_microsecond_is_serial_on_every_machine) {
  for (const Machine& machine :
       {zen3(), zen4(), emerald_rapids(2), emerald_rapids(16), arm_server()}) {
    const int threads = 1 << (machine.teams - 1);
    for (const Config& config : {lstm(16), gru(16), gru(32), network(CellKind::mgu, 32)}) {
      CHECK(is_serial(step_plan(config, machine, threads)));
      CHECK(is_serial(forward_plan(config, 1, 1, machine, threads)));
      const Call call = {config, Work::step, 1, 1, kFloat32};
      if (machine.fma_rate > 100) CHECK(!CostModel(call).may_pay(threads, machine.fma_rate));
    }
  }
}

// Each core reads half of the weights from a slow L3.
TEST(large_steps_on_two_cores_of_an_emerald_rapids) {
  const Machine machine = emerald_rapids(2);
  for (const Config& config : {gru(1024), lstm(1024), gru(512), lstm(512)})
    CHECK(by_units(step_plan(config, machine, 2), 2));
  const Plan plan = step_plan(gru(1024), machine, 2);
  CHECK(plan.nanoseconds > 400e3 && plan.nanoseconds < 700e3);  // measured: 495 us
  const double serial = step_plan(gru(1024), machine, 1).nanoseconds;
  CHECK(serial > 800e3 && serial < 1300e3);  // measured: 1009 us
}

// 1.9 MB of recurrent weights exceed one core's L2, but fit in those of two cores.
TEST(weights_that_fit_in_two_caches) {
  const Machine machine = emerald_rapids(2);
  const Config config = network(CellKind::gru, 400, 2);
  const Plan plan = forward_plan(config, 280, 1, machine, 2);
  CHECK(by_units(plan, 2));
  CHECK(plan.nanoseconds < 0.6 * forward_plan(config, 280, 1, machine, 1).nanoseconds);
  CHECK(forward_plan(lstm(256), 50, 32, machine, 2).threads == 2);
}

// The second threads of eight cores gain less than they cost.
TEST(half_of_sixteen_processors) {
  const Machine machine = emerald_rapids(16);
  const Plan plan = forward_plan(gru(128), 50, 32, machine, 16);
  CHECK(plan.threads >= 6 && plan.threads <= 11);
  // With nine or ten threads, the largest part would be no smaller than with eight.
  CHECK(forward_plan(gru(128), 50, 32, machine, 10).threads == 8);
  CHECK(forward_plan(gru(128), 50, 32, machine, 2).threads == 2);
  // A step of 128 units has eight vectors of units, and a barrier costs as much as the arithmetic.
  CHECK(step_plan(gru(128), machine, 16).threads <= 4);
  // Reading 25 MB is faster with all cores.
  CHECK(step_plan(gru(1024), machine, 16).threads >= 8);
}

TEST(an_arm_server_uses_its_cores) {
  const Machine machine = arm_server();
  CHECK(by_rows(forward_plan(gru(128), 50, 32, machine, 16), 16));
  CHECK(forward_plan(lstm(256), 50, 32, machine, 16).threads == 16);
  CHECK(is_serial(step_plan(lstm(32), machine, 16)));
  const Plan step = step_plan(lstm(256), machine, 16);
  CHECK(step.by_units && step.threads >= 4);
}

// The figures of the machine on which the cost model was fitted.
TEST(two_cores_of_a_zen4) {
  const Machine machine = zen4();
  CHECK(is_serial(step_plan(gru(64), machine, 2)));
  for (const Index size : {128, 256, 400, 512, 1024}) {
    CHECK(by_units(step_plan(lstm(size), machine, 2), 2));
    CHECK(by_units(forward_plan(gru(size), 50, 1, machine, 2), 2));
  }
  CHECK(is_serial(forward_plan(lstm(32), 50, 1, machine, 2)));
  CHECK(is_serial(forward_plan(gru(64), 1, 1, machine, 2)));
  for (const Index size : {32, 64, 128, 256, 400, 512})
    CHECK(by_rows(forward_plan(lstm(size), 50, 32, machine, 2), 2));
  CHECK(by_units(forward_plan(lstm(512), 50, 2, machine, 2), 2));
  const Plan both = forward_plan(network(CellKind::lstm, 128, 1, true), 50, 1, machine, 2);
  CHECK(by_rows(both, 2) && both.groups == 2);
}

TEST(two_cores_of_a_zen3) {
  const Machine machine = zen3();
  CHECK(by_units(step_plan(gru(1024), machine, 2), 2));
  CHECK(by_rows(forward_plan(lstm(256), 50, 32, machine, 2), 2));
  CHECK(by_units(forward_plan(network(CellKind::gru, 400, 2), 280, 1, machine, 2), 2));
  CHECK(is_serial(step_plan(gru(64), machine, 2)));
}

TEST(threads_that_share_a_core_are_not_used) {
  Machine machine = zen4();
  machine.team[1].speedup = 1;
  machine.team[1].barrier = 2000;
  for (const Index batch : {1, 2, 32})
    CHECK(is_serial(forward_plan(lstm(256), 50, batch, machine, 2)));
}

TEST(even_work_is_divided_where_its_bytes_or_its_arithmetic_pay) {
  for (const Machine& machine : {zen3(), zen4(), emerald_rapids(2), arm_server()}) {
    const auto threads_for = [&](const EvenWork& work) {
      return work.best_plan(2, machine, {}).threads;
    };
    CHECK(threads_for({.bytes = 20'000}) == 1);
    CHECK(threads_for({.flops = 20'000}) == 1);
    CHECK(threads_for({.bytes = 30'000'000}) == 2);
    CHECK(threads_for({.flops = 30'000'000}) == 2);
    CHECK(!EvenWork{.bytes = 20'000}.may_pay(2, machine.fma_rate));
    CHECK(EvenWork{.bytes = 30'000'000}.may_pay(2, machine.fma_rate));
    CHECK(!EvenWork{.bytes = 30'000'000}.may_pay(1, machine.fma_rate));
  }
  // Each processor reads half of the bytes from its own cache, in less than half of the time.
  CHECK((EvenWork{.bytes = 2'000'000}.best_plan(2, emerald_rapids(2), {}).threads == 2));
  // A division among two threads that was slow, perhaps beside a busy process, is abandoned.
  Corrections learnt;
  const EvenWork work = {.flops = 1'000'000, .bytes = 30'000'000};
  CHECK(work.best_plan(2, zen4(), learnt).threads == 2);
  learnt.factor[division_class(2, false)] = 4;
  CHECK(work.best_plan(2, zen4(), learnt).threads == 1);
  CHECK(work.call_class(zen4()) != EvenWork{.flops = 1'000'000}.call_class(zen4()));
  // More processors get more threads; processors that share a core add no arithmetic.
  CHECK((EvenWork{.bytes = 30'000'000}.best_plan(16, arm_server(), {}).threads > 2));
  Machine shared = zen4();
  shared.team[1].speedup = 1.1;
  CHECK((EvenWork{.flops = 30'000'000}.best_plan(2, shared, {}).threads == 1));
}

TEST(a_division_that_ran_slow_is_left_and_tried_again) {
  const Config config = gru(512);
  const Call call = {config, Work::step, 1, 1, kFloat32};
  const Machine machine = zen4();
  const CostModel model(call);
  const int call_class = model.call_class(machine);
  constexpr std::int64_t kSecond = 1'000'000'000;
  std::int64_t now = 100 * kSecond;
  CorrectionTable table;
  const auto plan = [&] { return model.best_plan(2, machine, table.at(call_class, now)); };
  const auto record = [&](const Plan& ran, double ratio) {
    table.record(call_class, division_class(ran.threads, ran.by_units), ratio, now);
  };
  const Plan first = plan();
  CHECK(by_units(first, 2));
  record(first, 30);  // once
  CHECK(by_units(plan(), 2));
  int calls = 1;
  for (; calls < 100 && plan().threads == 2; ++calls) record(first, 3);
  CHECK(calls > 1 && calls < 8);
  for (int call_again = 0; call_again < 20; ++call_again) {
    CHECK(is_serial(plan()));
    record(plan(), 1);
    now += kSecond / 100;
  }
  now += 10 * kSecond;
  CHECK(by_units(plan(), 2));
}

TEST(one_thread_that_ran_slow_is_left) {
  const Config config = lstm(128);
  const Call call = {config, Work::step, 1, 1, kFloat32};
  Machine machine = zen4();
  machine.team[1].barrier = 2000;  // a cautious value: not yet measured
  const CostModel model(call);
  const int call_class = model.call_class(machine);
  CorrectionTable table;
  CHECK(is_serial(model.best_plan(2, machine, table.at(call_class, 1))));
  for (int i = 0; i < 10; ++i) table.record(call_class, division_class(1, false), 3, 1);
  const Corrections corrections = table.at(call_class, 1);
  CHECK(corrections.of(1, false) > 2 && corrections.of(1, false) <= 3);
  CHECK_NEAR(corrections.of(2, true), 1, 0);
  CHECK(by_units(model.best_plan(2, machine, corrections), 2));
}

TEST(what_is_faster_than_estimated_counts_for_all_divisions) {
  CorrectionTable table;
  for (int i = 0; i < 20; ++i) table.record(5, division_class(1, false), 0.5, 1);
  const Corrections corrections = table.at(5, 1);
  CHECK_NEAR(corrections.of(1, false), 0.5, 0.01);
  CHECK_NEAR(corrections.of(2, true), 0.5, 0.01);
  CHECK_NEAR(corrections.of(16, false), 0.5, 0.01);
  CHECK_NEAR(table.at(4, 1).of(1, false), 1, 0);  // another class
}

TEST(classes_of_divisions_and_calls) {
  CHECK(division_class(1, false) == 0 && division_class(1, true) == 0);
  int last = 0;
  for (const bool by_units : {false, true}) {
    for (const int threads : {2, 4, 8, 16}) {
      const int division = division_class(threads, by_units);
      CHECK(division == ++last);
      if (threads > 2) CHECK(division == division_class(threads - 1, by_units));
    }
    CHECK(division_class(256, by_units) == last);
  }
  CHECK(last + 1 == kDivisionClasses);
  CHECK(CallClass::of(0, 0, 0, 1) == 0);
  CHECK(CallClass::of(3, 1e300, 1e300, 1000) == CallClass::kCount - 1);
}

TEST(an_explanation_names_the_call_and_the_ways_to_divide_it) {
  const Config config = network(CellKind::gru, 1024);
  const Call call = {config, Work::step, 1, 2, kFloat32};
  const Machine machine = emerald_rapids(2);
  const CostModel model(call);
  const std::string text = model.explain(2, machine, {}, model.best_plan(2, machine, {}));
  for (const char* part : {"step of GRU(1024, 1024)", "float32", "T 1", "N 2", "2 threads by units",
                           "1 thread ", "2 threads by rows"}) {
    CHECK(text.find(part) != std::string::npos);
  }
}

// ---- This process

TEST(one_thread_is_one) {
  const Plan plan = planned(lstm(1024), 1000, 64, 1);
  CHECK(plan.threads == 1);
  CHECK(!plan.by_units);
}

TEST(what_takes_a_microsecond_is_done_alone) {
  for (int call = 0; call < 1000; ++call) CHECK(planned(lstm(16), 1, 1, 2).threads == 1);
}

TEST(a_short_call_alone_wakes_no_thread) {
  const int before = num_threads();
  set_num_threads(2);
  // A duration that is short on this machine and in this build: sanitizers are ten times slower.
  Index size = 256;
  while (size > 1 && step_nanoseconds(lstm(size)) > 20'000) size /= 2;
  const Config config = lstm(size);
  planned(config, 1, 1, 2);  // may measure the machine
  for (int call = 0; call < 3; ++call) {
    let_the_team_sleep();
    const Plan plan = planned(config, 1, 1, 2);
    CHECK(plan.threads == 1);
    CHECK(!threads_awake(2));
  }
  set_num_threads(before);
}

TEST(a_plan_never_has_more_threads_than_were_asked_for) {
  const int before = num_threads();
  set_num_threads(3);
  for (const Index size : {1, 16, 100, 512}) {
    for (const Index batch : {1, 2, 3, 64}) {
      Config config = lstm(size);
      for (const bool bidirectional : {false, true}) {
        config.bidirectional = bidirectional;
        for (const int threads : {1, 2, 3}) {
          const Plan plan = planned(config, 100, batch, threads);
          CHECK(plan.threads >= 1 && plan.threads <= threads);
          CHECK(plan.groups <= (bidirectional ? 2 : 1) && plan.groups <= plan.threads);
          CHECK(plan.group_size(0) + (plan.groups == 2 ? plan.group_size(1) : 0) == plan.threads);
        }
      }
    }
  }
  set_num_threads(before);
}

TEST(more_threads_than_processors_are_not_used) {
  const int processors = process_affinity_count();
  if (processors == 0) return;  // unknown here
  const int before = num_threads();
  set_num_threads(processors + 3);
  for (const Index batch : {1, 64}) {
    const Plan plan = planned(lstm(1024), 1000, batch, processors + 3);
    CHECK(plan.threads <= processors);
  }
  set_num_threads(before);
}

// A thread that works or sleeps does not poll for work.
TEST(busy_and_sleeping_threads_are_not_awake) {
  const int before = num_threads();
  set_num_threads(2);
  let_the_team_sleep();
  for (int call = 0; call < 10; ++call) {
    ThreadLease lease(2);
    Barrier barrier(2);
    bool awake = false;
    lease.run([&](int thread) {
      if (lease.size() < 2) return;
      barrier.wait(thread);
      if (thread == 0) awake = threads_awake(2);
      barrier.wait(thread);
    });
    CHECK(!awake);
  }
  let_the_team_sleep();
  CHECK(!threads_awake(2));
  set_num_threads(before);
}

// The figures that planning has measured, and the array on which the rates of weights are measured.
TEST(the_machine_is_measured) {
  const int before = num_threads();
  set_num_threads(2);
  constexpr std::int64_t kStale = 50'000'000;
  static float weights[1024 * 1024];  // 4 MB
  const WeightsMemory memory = {weights, sizeof weights, sizeof(float)};
  std::int64_t now = nanoseconds_now();
  measure_machine(2, sizeof weights, memory, now, kStale);
  const Machine machine = machine_now(2);
  CHECK(machine.teams == 2);
  CHECK(machine.fma_rate > 0);
  CHECK(machine.team[0].barrier == 0 && machine.team[0].speedup == 1);
  CHECK(machine.barrier(2) >= 150 && machine.barrier(2) <= 2000);
  CHECK(machine.speedup(2) >= 1 && machine.speedup(2) <= 2);
  for (int threads = 1; threads <= 2; ++threads)
    CHECK(machine.read_rate(sizeof weights, threads) > 0);
  CHECK(machine_now(5).teams == 3);

  // Recorded rates only increase.
  const auto read_rates = [&] {
    const Machine figures = machine_now(2);
    return std::array{figures.read_rate(sizeof weights, 1), figures.read_rate(sizeof weights, 2)};
  };
  const auto first_rates = read_rates();
  for (int reading = 0; reading < 10; ++reading)
    CHECK(measure_machine(2, sizeof weights, memory, now += 10'000'000'000, kStale));
  const auto rates = read_rates();
  for (int i = 0; i < 2; ++i) CHECK(rates[i] >= first_rates[i]);
  CHECK(machine_now(1).fma_rate >= machine.fma_rate);
  set_num_threads(before);
}
