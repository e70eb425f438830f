// Threads of a call: a lease on some of the process's team, and the barrier that they meet at. What
// each computes, and whether more than one is worth it, is decided elsewhere.
#ifndef TIDEGATE_CORE_THREADS_H_
#define TIDEGATE_CORE_THREADS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

namespace tidegate {

constexpr int kMaxThreads = 256;  // of all running calls together

// Data of different threads lies this far apart: two lines of x86-64, whose prefetcher fetches them
// in pairs, and one of the AArch64 cores with long lines.
constexpr std::size_t kThreadSpacing = 128;

// What the OpenMP runtime would give the calling thread.
struct OpenMPLimits {
  int threads;  // the least of its own count and its limit
  int cpus;     // that it may run on
  bool binds;   // it ties threads to places (OMP_PROC_BIND)
};
OpenMPLimits openmp_limits();

// The bytes that a value of OMP_STACKSIZE means: an integer and B, K, M or G, K where there is
// none. 0: not set, or no such value.
std::size_t openmp_stack_size(const char* text);

// One wait for another thread: call pause() until what is waited for has come. The processor spins
// at first, for about a microsecond; then each turn yields to other threads, and in the end sleeps,
// so that waiting works, if slowly, with more threads than processors.
class Waiting {
 public:
  void pause() {
    if (turns_ < kSpins) {
      ++turns_;
      relax();
    } else {
      give_way();
    }
  }

  // Spends some ten to fifty nanoseconds without hindering the core's other hardware thread.
  static void relax() {
#if defined(__x86_64__)
    __asm__ volatile("pause" : : : "memory");
#else
    // Not `yield`, which today's cores take for a no-op.
    __asm__ volatile("isb" : : : "memory");
#endif
  }

 private:
  // A yield costs some 300 ns where no other thread can run, so spinning for longer gains little;
  // and with 8 threads on 2 processors, each spin delays the threads that are waited for.
  static constexpr int kSpins = 32;

  void give_way();

  int turns_ = 0;
};

// All of `size` threads wait for each other, any number of times; what they wrote before is seen by
// all after. Each raises a flag of its own and reads the others', so that the flags of a pair of
// threads travel both ways at once. Allocates nothing, but is large (kMaxThreads * kThreadSpacing
// bytes, untouched beyond `size` flags).
//
// Thread 0 may ask all to stop: they learn it at the same meeting, so that all leave a loop of
// meetings after the same turn.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {
    for (int i = 0; i < size; ++i) new (&flags_[i]) Flag;
  }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;

  // `thread` in [0, size): the arriving one.
  void wait(int thread) {
    arrive(thread);
    await(thread, 0, size_);
  }

  // The same in parts: between its arrivals a thread awaits each of the others, in any order.
  void arrive(int thread) {
    std::atomic<std::uint32_t>& own = flags_[thread].epoch;
    own.store(own.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }
  // Threads [begin, end) have come too.
  void await(int thread, int begin, int end) {
    const std::uint32_t epoch = flags_[thread].epoch.load(std::memory_order_relaxed);
    Waiting waiting;
    for (int other = begin; other < end; ++other) {
      // A thread that awaits none any more may already be at the next epoch, never further; epochs
      // wrap around.
      while (flags_[other].epoch.load(std::memory_order_acquire) - epoch > 1) waiting.pause();
    }
  }

  // For thread 0: from its next arrival on.
  void stop() {
    if (stopping_.load(std::memory_order_relaxed)) return;
    first_stopped_ = flags_[0].epoch.load(std::memory_order_relaxed) + 1;
    stopping_.store(true, std::memory_order_release);
  }
  // Whether thread 0 asked before it came to the last meeting that `thread` has awaited thread 0
  // at: the same for all threads after the same meeting. `pending`: how many arrivals of its own
  // it has not awaited thread 0 at.
  bool stopped(int thread, std::uint32_t pending = 0) const {
    if (!stopping_.load(std::memory_order_acquire)) return false;
    const std::uint32_t met = flags_[thread].epoch.load(std::memory_order_relaxed) - pending;
    return static_cast<std::int32_t>(met - first_stopped_) >= 0;
  }

 private:
  struct alignas(kThreadSpacing) Flag {
    std::atomic<std::uint32_t> epoch{0};
  };

  const int size_;
  std::atomic<bool> stopping_{false};
  std::uint32_t first_stopped_ = 0;  // the epoch; written before stopping_
  union {
    Flag flags_[kMaxThreads];  // in a union: those beyond size_ are never made
  };
};

// How many threads a lease would find ready: the caller, and the workers that are awake and watch
// for work.
int threads_ready();
inline bool threads_awake(int threads) { return threads_ready() >= threads; }
// Wakes the threads of a lease of that size, to watch for a while, without waiting for it; makes
// those that are missing.
void wake_threads(int threads);

class Team;
struct Worker;

// Some threads of the process's team, the caller among them, for one call. Takes at once what is
// idle, or can be made, within the process's budget (process_num_threads(), shared by all leases of
// more than one thread): it never waits for another call to end, and has one thread if nothing is
// left, inside a run() and inside an OpenMP parallel region. Not to be carried through a fork.
class ThreadLease {
 public:
  // wanted <= 1: the caller alone, and no lock is taken. Throws std::invalid_argument if
  // TIDEGATE_NUM_THREADS is in force and wrong, nothing else.
  explicit ThreadLease(int wanted) {
    if (wanted > 1) take(wanted);
  }
  ~ThreadLease() {
    if (size_ > 1) give_back();
  }
  ThreadLease(const ThreadLease&) = delete;
  ThreadLease& operator=(const ThreadLease&) = delete;

  int size() const { return size_; }  // >= 1

  // Runs body(thread) for each thread in [0, size()) at the same time, the caller as thread 0, and
  // returns when all have. The others run in a FloatControl of their own. What body throws ends the
  // program.
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
  // Given if size_ > 1: a chain of size_ - 1 workers of the team.
  Team* team_ = nullptr;
  Worker* first_ = nullptr;
  Worker* last_ = nullptr;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_H_
