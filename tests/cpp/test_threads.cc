// The team of threads: leases, the barrier, the budget, forks, and the activity of threads after a
// call.
#include "core/threads/threads.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <chrono>
#include <cstdlib>
#include <initializer_list>
#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

#include "check.h"
#ifdef _OPENMP
#include "core/threads/openmp_stack_size.h"
#endif
#include "core/threads/team_threads.h"
#include "core/threads/thread_count.h"
#include "tidegate/settings.h"

#if defined(__has_feature)
#define TIDEGATE_TEST_HAS_FEATURE(name) __has_feature(name)
#else
#define TIDEGATE_TEST_HAS_FEATURE(name) 0
#endif

namespace {

using namespace tidegate;
using std::chrono::milliseconds;

#if defined(__SANITIZE_THREAD__) || TIDEGATE_TEST_HAS_FEATURE(thread_sanitizer)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

#if defined(__SANITIZE_ADDRESS__) || TIDEGATE_TEST_HAS_FEATURE(address_sanitizer)
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif

// Whether a lease of `wanted` threads gets them all, and a run takes each of them past a barrier.
bool team_works(int wanted) {
  ThreadLease lease(wanted);
  Barrier barrier(lease.size());
  std::vector<int> runs(lease.size(), 0), seen(lease.size(), 0);
  lease.run([&](int thread) {
    ++runs[thread];
    barrier.wait(thread);
    for (const int count : runs) seen[thread] += count;
  });
  bool works = lease.size() == wanted;
  for (int thread = 0; thread < lease.size(); ++thread) {
    works = works && runs[thread] == 1 && seen[thread] == lease.size();
  }
  return works;
}

// Whether `test` holds in a forked child, which is killed if it hangs.
template <class Test>
bool holds_in_child(Test&& test) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(test() ? 0 : 1);
  }
  int status = -1;
  if (waitpid(child, &status, 0) == child && status == 0) return true;
  if (WIFSIGNALED(status)) std::printf("  the child ended by signal %d\n", WTERMSIG(status));
  return false;
}

// ThreadSanitizer and qemu's user mode end the child of a threaded process when it makes any
// thread.
bool children_may_have_threads() {
  static const bool may = !kThreadSanitizer && holds_in_child([] {
    std::thread([] {}).join();
    return true;
  });
  if (!may) std::printf("skipped: no threads in a threaded process's child here\n");
  return may;
}

// The system may run out of threads while the team grows. (If libgomp is opening a parallel region,
// it then ends the program.)
bool works_with_few_threads_left(rlim_t limit) {
  if (geteuid() == 0 && setuid(65534) != 0) return true;  // the limit does not bind root
  const rlimit few{limit, limit};
  if (setrlimit(RLIMIT_NPROC, &few) != 0) return true;
  for (int call = 0; call < 3; ++call) {
    ThreadLease lease(6);
    std::atomic<int> runs{0};
    lease.run([&](int) { ++runs; });
    if (lease.size() > 6 || runs != lease.size()) return false;
  }
  return true;
}

double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

[[gnu::noinline]] float halve(float a) {
  const volatile float x = a;
  return x * 0.5f;
}

}  // namespace

// This test comes first, before the team has been used.
TEST(fork_before_first_use) {
  set_num_threads(8);
  CHECK(holds_in_child([] { return team_works(4) && team_works(8); }));
}

TEST(the_build_tells_what_makes_its_threads) {
#ifdef _OPENMP
  CHECK(thread_runtime().rfind("OpenMP (", 0) == 0);
#else
  CHECK(thread_runtime() == "std::thread");
#endif
}

#ifdef _OPENMP
TEST(stack_sizes_of_the_environment) {
  constexpr std::size_t kKilo = 1024;
  CHECK(openmp_stack_size("8") == 8 * kKilo);
  CHECK(openmp_stack_size(" 8 k ") == 8 * kKilo);
  CHECK(openmp_stack_size("300B") == 300);
  CHECK(openmp_stack_size("7M") == 7 * kKilo * kKilo);
  CHECK(openmp_stack_size("\t2 g") == 2 * kKilo * kKilo * kKilo);
  for (const char* const none :
       {"", " ", "M", "-1", "1.5M", "8T", "8 K B", "8KB", "20000000000G", "99999999999999999999"})
    CHECK(openmp_stack_size(none) == 0);
  CHECK(openmp_stack_size(nullptr) == 0);
}
#endif

TEST(exit_with_a_team_asleep) {
  CHECK(holds_in_child([] {
    const bool works = team_works(4);
    std::this_thread::sleep_for(milliseconds(5));
    std::exit(works ? 0 : 1);
    return false;
  }));
}

TEST(few_threads_left) {
  for (rlim_t limit = 0; limit <= 12; ++limit) {
    const bool works = holds_in_child([limit] { return works_with_few_threads_left(limit); });
    CHECK(works);
    if (!works) std::printf("  limit %d\n", static_cast<int>(limit));
  }
}

#ifdef __linux__
// A pinned thread takes the first lease; the team must not inherit its affinity.
TEST(workers_do_not_inherit_the_callers_affinity) {
  CHECK(holds_in_child([] {
    cpu_set_t all;
    sched_getaffinity(0, sizeof all, &all);
    int cpus = 0;
    std::thread([&] {
      cpu_set_t one;
      CPU_ZERO(&one);
      for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
        if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
      }
      sched_setaffinity(0, sizeof one, &one);
      ThreadLease(2).run([&](int thread) {
        cpu_set_t mine;
        sched_getaffinity(0, sizeof mine, &mine);
        if (thread == 1) cpus = CPU_COUNT(&mine);
      });
    }).join();
    return team_limits().binds || cpus == CPU_COUNT(&all);
  }));
}
#endif

TEST(every_thread_runs_once) {
  set_num_threads(8);
  for (const int wanted : {1, 2, 3, 8, 2, 5, 1, 8}) CHECK(team_works(wanted));
}

TEST(a_lease_runs_many_times) {
  set_num_threads(3);
  ThreadLease lease(3);
  CHECK(lease.size() == 3);
  int counts[3] = {0, 0, 0};
  for (int call = 0; call < 2000; ++call)
    lease.run([&](int thread) { counts[thread] += thread + 1; });
  for (int thread = 0; thread < 3; ++thread) CHECK(counts[thread] == 2000 * (thread + 1));
}

TEST(one_thread_is_the_caller) {
  for (const int wanted : {1, 0, -3}) {
    ThreadLease lease(wanted);
    CHECK(lease.size() == 1);
    std::thread::id runner;
    lease.run([&](int thread) {
      if (thread == 0) runner = std::this_thread::get_id();
    });
    CHECK(runner == std::this_thread::get_id());
  }
}

// The data of a thread in the last call are in its cache.
TEST(threads_keep_their_numbers) {
  set_num_threads(4);
  std::thread::id first[4], again[4];
  ThreadLease(4).run([&](int thread) { first[thread] = std::this_thread::get_id(); });
  for (int call = 0; call < 10; ++call) {
    {
      ThreadLease fewer(call % 3 + 1);
    }
    ThreadLease(4).run([&](int thread) { again[thread] = std::this_thread::get_id(); });
    for (int thread = 0; thread < 4; ++thread) CHECK(first[thread] == again[thread]);
  }
}

// More threads than processors; each must see all writes made before the barrier.
TEST(barrier_holds_every_thread) {
  set_num_threads(8);
  for (const int size : {1, 2, 3, 8}) {
    ThreadLease lease(size);
    CHECK(lease.size() == size);
    Barrier barrier(size);
    std::vector<int> step(size, -1);
    std::atomic<int> wrong{0};
    constexpr int kSteps = 2000;
    lease.run([&](int thread) {
      for (int t = 0; t < kSteps; ++t) {
        step[thread] = t;
        barrier.wait(thread);
        for (const int other : step) wrong += other != t;
        barrier.wait(thread);
      }
    });
    CHECK(wrong == 0);
  }
}

// Each thread awaits those below it, then those above it, as the threads of a step do.
TEST(barrier_in_parts_holds_awaited_threads) {
  set_num_threads(8);
  for (const int size : {2, 3, 8}) {
    ThreadLease lease(size);
    CHECK(lease.size() == size);
    Barrier barrier(size);
    std::vector<int> steps[2] = {std::vector<int>(size, 0), std::vector<int>(size, 0)};
    std::atomic<int> wrong{0};
    constexpr int kSteps = 2000;
    lease.run([&](int thread) {
      barrier.arrive(thread);
      for (int t = 0; t < kSteps; ++t) {
        const std::vector<int>& last = steps[t % 2];
        barrier.await(thread, 0, thread);
        for (int other = 0; other < thread; ++other) wrong += last[other] != t;
        barrier.await(thread, thread + 1, size);
        for (int other = thread + 1; other < size; ++other) wrong += last[other] != t;
        steps[(t + 1) % 2][thread] = t + 1;
        barrier.arrive(thread);
      }
      barrier.await(thread, 0, size);
      for (const int step : steps[kSteps % 2]) wrong += step != kSteps;
    });
    CHECK(wrong == 0);
  }
}

// A waiting thread yields its processor to the late thread, however long that takes.
TEST(barrier_waits_for_a_late_thread) {
  set_num_threads(4);
  ThreadLease lease(4);
  Barrier barrier(lease.size());
  bool came = false;
  std::atomic<int> missed{0};
  lease.run([&](int thread) {
    if (thread == lease.size() - 1) {
      std::this_thread::sleep_for(milliseconds(20));
      came = true;
    }
    barrier.wait(thread);
    if (!came) ++missed;
  });
  CHECK(missed == 0);
}

TEST(budget_is_never_exceeded) {
  constexpr int kBudget = 4;
  set_num_threads(kBudget);
  std::atomic<int> in_use{0}, most{0}, wrong{0}, shared{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 12; ++caller) {
    callers.emplace_back([&, caller] {
      for (int call = 0; call < 200; ++call) {
        const int wanted = 1 + (caller + call) % 6;
        ThreadLease lease(wanted);
        const int size = lease.size();
        if (size < 1 || size > wanted) ++wrong;
        // Counted after threads are taken and until they are returned: never more than the budget.
        if (size > 1) {
          ++shared;
          const int now = in_use += size;
          int before = most;
          while (now > before && !most.compare_exchange_weak(before, now)) {
          }
        }
        std::atomic<int> runs[kBudget] = {};
        lease.run([&](int thread) { ++runs[thread]; });
        for (int thread = 0; thread < kBudget; ++thread) {
          if (runs[thread] != (thread < size ? 1 : 0)) ++wrong;
        }
        if (size > 1) in_use -= size;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
  CHECK(most <= kBudget);
  CHECK(shared > 0);
  CHECK(team_works(kBudget));  // all have been returned
}

TEST(budget_is_shared_at_once) {
  set_num_threads(5);
  {
    ThreadLease three(3);
    CHECK(three.size() == 3);
    ThreadLease rest(4);
    CHECK(rest.size() == 2);
    ThreadLease surplus(2);
    CHECK(surplus.size() == 1);
    CHECK(ThreadLease(100).size() == 1);
  }
  CHECK(ThreadLease(100).size() == 5);
  {
    ThreadLease four(4);
    CHECK(ThreadLease(2).size() == 1);  // only the caller is left
    set_num_threads(2);
    CHECK(ThreadLease(2).size() == 1);
  }
  CHECK(ThreadLease(4).size() == 2);
  set_num_threads(1);
  CHECK(ThreadLease(4).size() == 1);
}

TEST(team_grows) {
  for (const int count : {2, 3, 9, 4, 17}) {
    set_num_threads(count);
    CHECK(team_works(count));
  }
}

TEST(nested_leases_have_one_thread) {
  set_num_threads(8);
  ThreadLease lease(3);
  int sizes[3] = {0, 0, 0};
  lease.run([&](int thread) { sizes[thread] = ThreadLease(2).size(); });
  for (const int size : sizes) CHECK(size == 1);
  CHECK(ThreadLease(2).size() == 2);  // beside the lease, but not inside it
}

#ifdef _OPENMP
TEST(inside_a_parallel_region_there_is_one_thread) {
  set_num_threads(8);
  std::atomic<int> sizes[2] = {0, 0};
#pragma omp parallel num_threads(2)
  sizes[omp_get_thread_num()] = omp_in_parallel() ? ThreadLease(2).size() : 1;
  CHECK(sizes[0] == 1);
  CHECK(sizes[1] <= 1);  // 0 if OpenMP gave one thread
  CHECK(team_works(2));
}
#endif

TEST(workers_flush_denormals_and_the_caller_is_left_alone) {
  set_num_threads(4);
  ThreadLease lease(4);
  float halves[4] = {1, 1, 1, 1};
  lease.run([&](int thread) { halves[thread] = halve(FLT_MIN); });
  CHECK(halves[0] > 0.0f);
  for (int thread = 1; thread < 4; ++thread) CHECK(halves[thread] == 0.0f);
}

TEST(workers_take_no_signals_but_faults) {
  set_num_threads(2);
  bool blocked = false, faults_blocked = true;
  ThreadLease(2).run([&](int thread) {
    if (thread == 0) return;
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, nullptr, &mask);
    blocked = sigismember(&mask, SIGINT) == 1 && sigismember(&mask, SIGTERM) == 1;
    faults_blocked = sigismember(&mask, SIGSEGV) == 1;
  });
  CHECK(blocked);
  CHECK(!faults_blocked);
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  CHECK(sigismember(&mask, SIGINT) == 0);
}

// The CPU time of the process during the next 20 ms, in which the caller sleeps.
double cpu_seconds_asleep() {
  const double before = cpu_seconds();
  std::this_thread::sleep_for(milliseconds(20));
  return cpu_seconds() - before;
}

// About 100 us by design; 11 ms if the workers waited inside OpenMP's runtime. The least of several
// calls is taken, since other threads of the process (a sanitizer's, for example) may also run.
TEST(little_cpu_is_burnt_after_a_call) {
  // OpenMP's threads of earlier tests spin after their regions: 200 ms in LLVM's runtime.
  for (int wait = 0; wait < 50 && cpu_seconds_asleep() >= 1e-3; ++wait) {
  }
  for (const int count : {2, 8}) {
    set_num_threads(count);
    double least = 1.0;
    for (int call = 0; call < 10; ++call) {
      ThreadLease(count).run([](int) {});
      least = std::min(least, cpu_seconds_asleep());
    }
    CHECK(least < 1e-3);
    if (least >= 1e-3) std::printf("  %d threads burnt %.0f us\n", count, 1e6 * least);
  }
}

TEST(fork_after_use) {
  set_num_threads(8);
  CHECK(team_works(4));
  if (!children_may_have_threads()) return;
  CHECK(holds_in_child([] { return team_works(4) && team_works(8); }));
  CHECK(team_works(4));
}

TEST(fork_of_a_fork) {
  set_num_threads(4);
  CHECK(team_works(4));
  if (!children_may_have_threads()) return;
  CHECK(holds_in_child([] {
    return team_works(3) && holds_in_child([] { return team_works(4); }) && team_works(4);
  }));
}

#ifdef _OPENMP
TEST(fork_after_another_user_of_openmp) {
  set_num_threads(4);
  CHECK(team_works(4));
  if (!children_may_have_threads()) return;
  std::atomic<int> threads{0};
#pragma omp parallel num_threads(3)
  ++threads;
  CHECK(threads >= 1);
  CHECK(holds_in_child([] { return team_works(4); }));
  CHECK(team_works(4));
}
#endif

TEST(fork_with_a_lease_held) {
  set_num_threads(4);
  ThreadLease held(3);
  CHECK(held.size() == 3);
  if (!children_may_have_threads()) return;
  CHECK(holds_in_child([] { return team_works(4); }));  // the child does not inherit the lease
}

// Forks at any point of other threads' calls, including the growth of the team.
TEST(fork_while_others_run) {
  set_num_threads(4);
  CHECK(team_works(4));
  // AddressSanitizer's allocator, unlike glibc's, may remain locked in the child.
  if (kAddressSanitizer || !children_may_have_threads()) return;
  std::atomic<bool> stop{false};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      while (!stop) {
        ThreadLease lease(3);
        Barrier barrier(lease.size());
        lease.run([&](int thread) { barrier.wait(thread); });
      }
    });
  }
  for (int count = 6; count < 30; ++count) {
    set_num_threads(count);
    const bool works = holds_in_child([] {
      set_num_threads(4);
      return team_works(4);
    });
    CHECK(works);
  }
  stop = true;
  for (std::thread& caller : callers) caller.join();
  set_num_threads(4);
  CHECK(team_works(4));
}
