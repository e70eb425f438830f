// The threads of a call: a lease on threads of the process's team, and the barrier between them.
// What each thread computes, and how many are worth it, is decided elsewhere (plan.cc).
#ifndef TIDEGATE_CORE_THREADS_THREADS_H_
#define TIDEGATE_CORE_THREADS_THREADS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "core/threads/waiting.h"

namespace tidegate {

constexpr int kMaxThreads = 256;  // in all running calls together

// The distance in bytes between data that different threads write: two cache lines of x86-64, whose
// prefetcher fetches pairs, and one line of the AArch64 cores with the longest.
constexpr std::size_t kThreadSpacing = 128;

// A reusable barrier of `size` threads: each waits until all have arrived, and then sees what the
// others wrote before they did. Each thread has a flag, which it raises, and reads the others'
// flags, so that the cache lines of two threads travel in both directions at the same time.
// Allocates nothing, but is large: kMaxThreads * kThreadSpacing bytes, of which those beyond `size`
// flags are never touched.
//
// Thread 0 may ask all threads to stop. They see it after the same arrival, so that all leave a
// loop over barriers in the same iteration.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {
    for (int i = 0; i < size; ++i) new (&flags_[i]) Flag;
  }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;

  // Called by thread `thread`, in [0, size).
  void wait(int thread) {
    arrive(thread);
    await(thread, 0, size_);
  }

  // wait() in two parts. Between two arrivals, a thread must await each of the others, in any
  // order.
  void arrive(int thread) {
    std::atomic<std::uint32_t>& own = flags_[thread].epoch;
    own.store(own.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }
  // Waits until threads [begin, end) have arrived, too.
  void await(int thread, int begin, int end) {
    const std::uint32_t epoch = flags_[thread].epoch.load(std::memory_order_relaxed);
    Waiting waiting;
    for (int other = begin; other < end; ++other) {
      // A thread that has awaited all others may be one epoch ahead, and no more. Epochs wrap
      // around.
      while (flags_[other].epoch.load(std::memory_order_acquire) - epoch > 1) waiting.pause();
    }
  }

  // Called by thread 0; takes effect at its next arrival.
  void stop() {
    if (stopping_.load(std::memory_order_relaxed)) return;
    first_stopped_ = flags_[0].epoch.load(std::memory_order_relaxed) + 1;
    stopping_.store(true, std::memory_order_release);
  }
  // Whether thread 0 called stop() before the last arrival at which `thread` has awaited thread 0:
  // the same for all threads after the same arrival. `pending`: how many later arrivals of its own
  // `thread` has made since.
  bool stopped(int thread, std::uint32_t pending = 0) const {
    if (!stopping_.load(std::memory_order_acquire)) return false;
    const std::uint32_t reached = flags_[thread].epoch.load(std::memory_order_relaxed) - pending;
    return static_cast<std::int32_t>(reached - first_stopped_) >= 0;
  }

 private:
  struct alignas(kThreadSpacing) Flag {
    std::atomic<std::uint32_t> epoch{0};
  };

  const int size_;
  std::atomic<bool> stopping_{false};
  std::uint32_t first_stopped_ = 0;  // an epoch; written before stopping_
  union {                            // so that the flags beyond size_ are not initialised
    Flag flags_[kMaxThreads];
  };
};

// How many threads a lease would find awake: the caller, and the workers that poll for a job.
int threads_ready();
inline bool threads_awake(int threads) { return threads_ready() >= threads; }
// Wakes the threads that a lease of this size would get, without waiting until they are awake, and
// makes those that are missing. They poll for a job for a while.
void wake_threads(int threads);

class Team;
struct Worker;

// Threads of the process's team for one call, the calling thread among them. The constructor takes
// at once what is idle or can be made within the process's budget (process_num_threads(), which all
// leases of more than one thread share): it never waits for another call to end. The lease has one
// thread if nothing is left, inside a run(), and inside an OpenMP parallel region (if the team is
// OpenMP's). A lease must not be used in a forked child.
class ThreadLease {
 public:
  // wanted <= 1: the caller alone; takes no lock. Throws std::invalid_argument if
  // TIDEGATE_NUM_THREADS is in force and wrong, and nothing else.
  explicit ThreadLease(int wanted) {
    if (wanted > 1) take(wanted);
  }
  ~ThreadLease() {
    if (size_ > 1) give_back();
  }
  ThreadLease(const ThreadLease&) = delete;
  ThreadLease& operator=(const ThreadLease&) = delete;

  int size() const { return size_; }  // >= 1

  // Calls body(thread) for each thread in [0, size()) at the same time, on the calling thread for
  // thread 0, and returns when all calls have. The other threads run under a ThreadSetup. An
  // exception that leaves body ends the program.
  template <class Body>
  void run(Body&& body) noexcept {
    if (size_ == 1) {
      body(0);
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    run_on_all([](const void* context,
                  int thread) { (*static_cast<Plain*>(const_cast<void*>(context)))(thread); },
               std::addressof(body));
  }

 private:
  friend class Team;
  using Function = void(const void* context, int thread);

  void take(int wanted);
  void give_back();
  void run_on_all(Function* function, const void* context) noexcept;

  int size_ = 1;
  // Set if size_ > 1: a list of size_ - 1 workers of the team.
  Team* team_ = nullptr;
  Worker* first_ = nullptr;
  Worker* last_ = nullptr;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_THREADS_H_
