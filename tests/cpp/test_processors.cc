// Computing threads avoid each other's processors, and stay on theirs if there is no other.
#include "core/threads/processors.h"

#include "check.h"

#ifdef __linux__
#include <sched.h>

#include <thread>
#include <vector>

namespace {

using namespace tidegate;

std::vector<int> allowed() {
  cpu_set_t mask;
  sched_getaffinity(0, sizeof mask, &mask);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
  }
  return cpus;
}

void pin(const std::vector<int>& cpus) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  for (const int cpu : cpus) CPU_SET(cpu, &mask);
  sched_setaffinity(0, sizeof mask, &mask);
}

// Calls f in a thread that runs on that processor and may run on all of `cpus`.
template <class F>
void from(int cpu, const std::vector<int>& cpus, const F& f) {
  std::thread([&] {
    pin({cpu});
    pin(cpus);
    f();
  }).join();
}

}  // namespace

TEST(the_second_moves) {
  const std::vector<int> cpus = allowed();
  Processors processors;
  from(cpus[0], {cpus[0]}, [&] {
    const int first = processors.enter();
    CHECK(first == cpus[0]);
    from(first, cpus, [&] {
      const int second = processors.enter_free();
      CHECK((second != first) == (cpus.size() > 1));
      CHECK(allowed() == cpus);  // nothing is pinned
      processors.leave(second);
    });
    processors.leave(first);
  });
}

TEST(a_pinned_thread_stays) {
  const std::vector<int> cpus = allowed();
  Processors processors;
  from(cpus[0], {cpus[0]}, [&] {
    const int first = processors.enter();
    from(first, {first}, [&] {
      const int second = processors.enter_free();
      CHECK(second == first);
      CHECK(allowed() == std::vector<int>{first});
      processors.leave(second);
    });
    processors.leave(first);
  });
}

TEST(a_thread_that_has_left_frees_its_processor) {
  const std::vector<int> cpus = allowed();
  Processors processors;
  from(cpus[0], {cpus[0]}, [&] {
    processors.leave(processors.enter());
    CHECK(processors.enter_free() == cpus[0]);
  });
}

TEST(leaving_an_unknown_processor) {
  Processors processors;
  processors.leave(-1);
  processors.leave(1 << 30);
}
#endif
