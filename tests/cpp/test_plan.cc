// How many threads a call is worth. The machine decides about most calls; these hold on any.
#include "core/plan.h"

#include <chrono>
#include <initializer_list>
#include <thread>

#include "check.h"
#include "core/processors.h"
#include "core/threads.h"
#include "tidegate/settings.h"

namespace {

using namespace tidegate;

Config lstm(Index size) {
  Config config;
  config.cell = CellKind::lstm;
  config.input_size = size;
  config.hidden_size = size;
  return config;
}

Plan planned(const Config& config, Index steps, Index batch, int threads) {
  return make_plan(config, Work::forward, steps, batch, sizeof(float), threads);
}

// Longer than any worker stays awake; on a busy machine until they have had their turn.
void let_the_team_sleep() {
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  for (int turn = 0; turn < 1000 && threads_awake(2); ++turn)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

}  // namespace

TEST(one_thread_is_one) {
  const Plan plan = planned(lstm(1024), 1000, 64, 1);
  CHECK(plan.threads == 1);
  CHECK(!plan.by_units);
  CHECK(plan.nanoseconds > 0);
}

TEST(what_takes_a_microsecond_is_done_alone) {
  for (int call = 0; call < 1000; ++call) CHECK(planned(lstm(16), 1, 1, 2).threads == 1);
}

TEST(a_short_call_alone_wakes_nobody) {
  const int before = num_threads();
  set_num_threads(2);
  const Config config = lstm(256);
  planned(config, 1, 1, 2);  // may measure
  for (int call = 0; call < 3; ++call) {
    let_the_team_sleep();
    const Plan plan = planned(config, 1, 1, 2);
    CHECK(plan.threads == 1);
    CHECK(plan.nanoseconds > 0);
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

// While it works a thread does not watch for work, nor when it sleeps.
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
