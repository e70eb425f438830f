// Measuring two threads.
#include "core/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "core/isa.h"
#include "core/processors.h"
#include "core/threads.h"

namespace tidegate {

namespace {

constexpr std::int64_t kStale = 50'000'000;  // nanoseconds

// A meeting's cost: between these bounds, this many times what is measured.
constexpr double kLate = 2.5;
constexpr double kLeastMeet = 150;
constexpr double kMostMeet = 2000;

// A time of which some things were found out.
class Found {
 public:
  bool stale() const { return is_stale(at_); }
  // Whether it is for the caller, and no other thread, to find out anew.
  bool renews() {
    std::int64_t before = at_;
    return is_stale(before) && at_.compare_exchange_strong(before, nanoseconds_now());
  }

 private:
  static bool is_stale(std::int64_t at) { return nanoseconds_now() - at > kStale; }

  std::atomic<std::int64_t> at_{0};
};

Found counted;
std::atomic<int> processors{0};

Found measured;
std::atomic<double> meeting{0};  // 0: not yet measured
std::atomic<double> speedup{2};

// A measurement that takes longer has met another program's threads: who waits, waits for those.
constexpr std::int64_t kPatience = 300'000;  // nanoseconds

// Of some rounds the medians; of a meeting as it is. False: no second thread is to be had.
bool measure(Pair& pair) {
  constexpr int kRounds = 5;
  constexpr int kMeetings = 20;
  constexpr int kHanded = 256 / sizeof(double);  // as much as halves of a small state
  constexpr Index kFmaRounds = 250;              // a microsecond or two
  ThreadLease lease(2);
  if (lease.size() < 2) return false;
  struct alignas(kThreadSpacing) Half {
    double values[kHanded];
  };
  Half state[2][2] = {};  // of steps in turn, by thread
  double meetings[kRounds], speedups[kRounds];
  Barrier barrier(2);
  bool late[2] = {};  // by meeting, in turn, so that both threads read the same
  bool crowded = false;
  lease.run([&](int thread) {
    std::int64_t first = 0;
    int met = 0;
    bool stops = false;
    const auto meet = [&] {
      bool& now = late[met++ % 2];
      if (thread == 0) now = first > 0 && nanoseconds_now() - first > kPatience;
      barrier.wait(thread);
      stops |= now;
    };
    const auto timed = [&](auto&& work) {
      meet();
      const std::int64_t begin = nanoseconds_now();
      work();
      meet();
      return static_cast<double>(nanoseconds_now() - begin);
    };
    const auto compute = [] {
      static std::atomic<float> used;
      used.store(kernels<float>().fma_rounds(kFmaRounds), std::memory_order_relaxed);
    };
    meet();  // once both are awake
    first = nanoseconds_now();
    for (int round = 0; round < kRounds && !stops; ++round) {
      const double meetings_time = timed([&] {
        for (int i = 0; i < kMeetings && !stops; ++i) {
          const Half& theirs = state[i % 2][1 - thread];
          Half& next = state[(i + 1) % 2][thread];
          for (int j = 0; j < kHanded; ++j) next.values[j] = theirs.values[j] + 1;
          meet();
        }
      });
      const double alone = timed([&] {
        if (thread == 0) compute();
      });
      const double both = timed(compute);
      if (thread != 0) continue;
      meetings[round] = meetings_time / kMeetings;
      speedups[round] = 2 * alone / both;
    }
    if (thread == 0) crowded = stops;
  });
  if (crowded) {
    pair = {kMostMeet, 1};
    return true;
  }
  const auto median = [](double (&rounds)[kRounds]) {
    std::nth_element(rounds, rounds + kRounds / 2, rounds + kRounds);
    return rounds[kRounds / 2];
  };
  pair = {median(meetings), median(speedups)};
  return true;
}

}  // namespace

std::int64_t nanoseconds_now() {
  using std::chrono::nanoseconds;
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<nanoseconds>(since).count();
}

int processors_now() {
  if (counted.renews()) processors = process_affinity_count();
  return processors;
}

bool pair_is_stale() { return meeting == 0 || measured.stale(); }

Pair pair_of_threads(bool measures) {
  Pair pair;
  if (measures && (meeting == 0 || measured.renews()) && measure(pair)) {
    meeting = std::clamp(kLate * pair.meeting, kLeastMeet, kMostMeet);
    speedup = std::clamp(pair.speedup, 1.0, 2.0);
  }
  return {meeting > 0 ? meeting.load() : kMostMeet, speedup};
}

}  // namespace tidegate
