// The team of threads, and all that this project has to do with OpenMP: one parallel region that
// never ends.
//
// libgomp lets threads spin for milliseconds after each region, and a library cannot set that. So a
// thread of ours opens a region, once, and its threads stay in it as workers, each with a mailbox
// that it watches for some microseconds and then sleeps on. No call ever waits for OpenMP.
#include "core/threads.h"

#include <omp.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <mutex>
#include <new>
#include <string_view>
#include <system_error>
#include <thread>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/float_control.h"
#include "core/fork_safe_mutex.h"
#include "core/processors.h"
#include "core/thread_count.h"

namespace tidegate {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// How long workers watch their mailboxes after a call before they sleep: long enough for a caller
// that is back at once (waking takes some 50 us), and all of a call's workers together not above
// 100 us.
constexpr microseconds kLinger{50};
constexpr microseconds kLingerOfAll{100};

// A thread that could not be made is not asked for again before this.
constexpr std::chrono::seconds kRetry{1};

// A wait that lasts: yields, then sleeps, which lets even a thread of lower real-time priority run.
constexpr int kYields = 1000;
constexpr microseconds kSleep{50};

// Running a body, as a worker or as the caller: a lease made now has one thread.
thread_local bool inside_run = false;

bool binds_threads() { return omp_get_proc_bind() != omp_proc_bind_false; }

// The attributes of the threads that the OpenMP runtime makes: the size of their stack, that is. It
// read the environment when it was loaded, which is before this library.
class OpenMPThreadAttributes {
 public:
  OpenMPThreadAttributes() {
    pthread_attr_init(&attributes_);
    // A size that the system refuses leaves the default, as it does in libgomp.
    if (kStackSize > 0) pthread_attr_setstacksize(&attributes_, kStackSize);
  }
  ~OpenMPThreadAttributes() { pthread_attr_destroy(&attributes_); }
  OpenMPThreadAttributes(const OpenMPThreadAttributes&) = delete;
  OpenMPThreadAttributes& operator=(const OpenMPThreadAttributes&) = delete;

  const pthread_attr_t* get() const { return &attributes_; }

  // Whether the kernels' frames, of up to some 40 kB, might not fit.
  static bool stacks_are_too_small() {
    constexpr std::size_t kLeastStack = 128 * 1024;
    return kStackSize > 0 && kStackSize < kLeastStack;
  }

 private:
  static std::size_t environment_stack_size() {
    for (const char* const name : {"OMP_STACKSIZE", "GOMP_STACKSIZE"}) {
      if (const std::size_t size = openmp_stack_size(std::getenv(name)); size > 0) return size;
    }
    return 0;
  }

  static const std::size_t kStackSize;

  pthread_attr_t attributes_;
};

const std::size_t OpenMPThreadAttributes::kStackSize = environment_stack_size();

// How many of `wanted` threads the system would let us make: libgomp ends the program if it cannot
// make one, so we try before it does. They must all exist at once, and must be gone when this
// returns.
int makeable_threads(int wanted) noexcept {
  struct Trial {
    pthread_t thread;
    std::atomic<int>* released;
    long id;

    static void* run(void* argument) {
      auto* const trial = static_cast<Trial*>(argument);
#ifdef __linux__
      trial->id = syscall(SYS_gettid);
#endif
      trial->released->wait(0);
      return nullptr;
    }
  };
  if (OpenMPThreadAttributes::stacks_are_too_small()) return 0;
  Trial trials[kMaxThreads];
  const OpenMPThreadAttributes attributes;
  std::atomic<int> released{0};
  int made = 0;
  for (; made < wanted; ++made) {
    Trial& trial = trials[made];
    trial.released = &released;
    if (pthread_create(&trial.thread, attributes.get(), &Trial::run, &trial) != 0) break;
  }
  released = 1;
  released.notify_all();
  for (int i = 0; i < made; ++i) pthread_join(trials[i].thread, nullptr);
#ifdef __linux__
  // A joined thread still counts against the limits for an instant: until its id is free.
  for (int i = 0; i < made; ++i) {
    for (int turn = 0; turn < kYields && syscall(SYS_tgkill, getpid(), trials[i].id, 0) == 0;
         ++turn) {
      std::this_thread::yield();
    }
  }
#endif
  return made;
}

}  // namespace

std::size_t openmp_stack_size(const char* text) {
  if (text == nullptr) return 0;
  const char* const end = text + std::strlen(text);
  const auto skip_blanks = [&] {
    while (text < end && (*text == ' ' || (*text >= '\t' && *text <= '\r'))) ++text;
  };
  skip_blanks();
  std::size_t size = 0;
  const auto [after, error] = std::from_chars(text, end, size);
  if (error != std::errc()) return 0;
  text = after;
  skip_blanks();
  int shift = 10;
  if (text < end) {
    constexpr std::string_view kUnits = "bBkKmMgG";
    const auto unit = kUnits.find(*text++);
    if (unit == std::string_view::npos) return 0;
    shift = static_cast<int>(unit / 2) * 10;
  }
  skip_blanks();
  return text == end && size << shift >> shift == size ? size << shift : 0;
}

void Waiting::give_way() {
  if (turns_ < kSpins + kYields) {
    ++turns_;
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(kSleep);
  }
}

// A thread of the team, and its mailbox.
struct alignas(kThreadSpacing) Worker {
  enum State : int { idle, asleep, busy };

  std::atomic<int> state{idle};
  // The job; written by the lease's holder while idle or asleep.
  int thread = 0;
  void (*function)(const void* context, int thread) = nullptr;
  const void* context = nullptr;
  microseconds linger = kLinger;
  // The next of the lease, or of the idle ones.
  Worker* next = nullptr;

  void start(Processors& processors);
  void finish();
  void wake(Processors& processors);
  [[noreturn]] void serve(Team& team);

 private:
  void await_job(microseconds patience, Team& team);

  // Written before it sleeps, and by the thread that wakes it.
  long id_ = 0;  // the kernel's
  Placement placement_;
};

// For the holder: sends the job.
void Worker::start(Processors& processors) {
  if (state.load(std::memory_order_acquire) == asleep) processors.place(id_, placement_);
  if (state.exchange(busy) == asleep) state.notify_one();
}

// For the team, of an idle one: ends its sleep, if it sleeps, without a job.
void Worker::wake(Processors& processors) {
  if (state.load(std::memory_order_acquire) != asleep) return;
  processors.place(id_, placement_);
  state.store(idle, std::memory_order_release);
  state.notify_one();
}

// For the holder: waits until the job is done.
void Worker::finish() {
  Waiting waiting;
  while (state.load(std::memory_order_acquire) == busy) waiting.pause();
}

// The workers of this process. Never destroyed, for its threads never end; a forked child leaves
// its parent's alone and makes one of its own.
class Team {
 public:
  static Team* current();
  // Null if there is none.
  static Team* existing() { return current_.load(std::memory_order_acquire); }

  // Gives the lease as many of `wanted` threads as are to be had within `budget`.
  void take(int wanted, int budget, ThreadLease& lease);
  void give_back(const ThreadLease& lease);

  // Wakes the workers that a lease of `threads` threads would get; false if they are not there.
  bool wake(int threads);

  Processors& processors() { return processors_; }
  // How many idle workers watch their mailboxes.
  std::atomic<int>& awake() { return awake_; }

 private:
  void grow(int wanted);
  void open_region(int wanted);

  static void before_fork();
  static void unlock_after_fork();
  static void after_fork_in_parent();
  static void after_fork_in_child();
  static const int fork_handlers;
  static std::atomic<Team*> current_;
  static thread_local Team* locked_for_fork;

  std::mutex growth_mutex_;  // held while a region opens; taken before mutex_
  Clock::time_point retry_;  // do not grow before
  bool complete_ = false;    // OpenMP gives no more

  std::mutex mutex_;  // guards all that follows; held for a few instructions at a time
  std::condition_variable arrival_;
  int made_ = 0;            // workers_[0, made_) have threads
  int expected_ = -1;       // how many the opening region brings, -1: not yet known
  int arrived_ = 0;         // of those
  int in_use_ = 0;          // threads of all leases, their callers included
  int idle_count_ = 0;      // length of the chain
  Worker* idle_ = nullptr;  // the last used first: it may still be awake

  Processors processors_;
  std::atomic<int> awake_{0};
  Worker workers_[kMaxThreads];
};

// For the thread itself: its whole life.
void Worker::serve(Team& team) {
  const FloatControl float_control;
  inside_run = true;
  Processors& processors = team.processors();
#ifdef __linux__
  id_ = syscall(SYS_gettid);
#endif
  placement_.prepare();
  microseconds patience = kLinger;
  for (;;) {
    await_job(patience, team);
    const int processor = processors.enter_free();
    function(context, thread);
    processors.leave(processor);
    patience = linger;  // the mailbox is the next holder's from the next line on
    state.store(idle, std::memory_order_release);
  }
}

void Worker::await_job(microseconds patience, Team& team) {
  for (;;) {
    const Clock::time_point until = Clock::now() + patience;
    Waiting waiting;
    team.awake().fetch_add(1, std::memory_order_relaxed);
    bool called = false;
    do {
      called = state.load(std::memory_order_acquire) == busy;
      if (!called) waiting.pause();
    } while (!called && Clock::now() < until);
    team.awake().fetch_sub(1, std::memory_order_relaxed);
    if (called) return;
    int expected = idle;
    if (!state.compare_exchange_strong(expected, asleep)) return;  // busy
    state.wait(asleep);
    team.processors().woken(placement_);
    if (state.load(std::memory_order_acquire) == busy) return;
    patience = kLinger;
  }
}

std::atomic<Team*> Team::current_{nullptr};
thread_local Team* Team::locked_for_fork = nullptr;

// Registered as the library is loaded: a static local's guard might be held by another thread at a
// fork.
const int Team::fork_handlers =
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

// No thread is inside our critical sections, and no region half open, when the process forks. Who
// holds a ForkSafeMutex may be about to lease threads: those come first.
void Team::before_fork() {
  ForkSafeMutex::before_fork();
  Team* const team = current_.load(std::memory_order_acquire);
  locked_for_fork = team;
  if (team == nullptr) return;
  team->growth_mutex_.lock();
  team->mutex_.lock();
}

void Team::unlock_after_fork() {
  Team* const team = locked_for_fork;
  if (team == nullptr) return;
  team->mutex_.unlock();
  team->growth_mutex_.unlock();
}

void Team::after_fork_in_parent() {
  unlock_after_fork();
  ForkSafeMutex::after_fork_in_parent();
}

// The child has one thread. Its parent's team is dead memory, like the stacks of the threads that
// were in it; libgomp's own pools belong to threads that opened regions, so a region opened by a
// new one meets none of them.
void Team::after_fork_in_child() {
  unlock_after_fork();
  current_.store(nullptr, std::memory_order_release);
  ForkSafeMutex::after_fork_in_child();
}

// Null if there is no memory for one.
Team* Team::current() {
  Team* team = existing();
  if (team != nullptr) return team;
  Team* const fresh = new (std::nothrow) Team;
  if (fresh == nullptr) return nullptr;
  if (current_.compare_exchange_strong(team, fresh, std::memory_order_acq_rel)) return fresh;
  delete fresh;  // another thread's was first
  return team;
}

void Team::take(int wanted, int budget, ThreadLease& lease) {
  std::unique_lock lock(mutex_);
  const int granted = std::min(wanted, budget - in_use_);
  if (granted <= 1) return;
  in_use_ += granted;
  if (idle_count_ < granted - 1) {
    // Bound threads get their places region by region, so that one region must bring all there will
    // be.
    const int missing = binds_threads() ? budget - 1 - made_ : granted - 1 - idle_count_;
    lock.unlock();
    grow(missing);
    lock.lock();
  }
  const int workers = std::min(granted - 1, idle_count_);
  in_use_ -= workers > 0 ? granted - 1 - workers : granted;
  if (workers == 0) return;

  Worker* last = idle_;
  for (int i = 1; i < workers; ++i) last = last->next;
  lease.team_ = this;
  lease.size_ = workers + 1;
  lease.first_ = idle_;
  lease.last_ = last;
  idle_ = last->next;
  idle_count_ -= workers;
}

bool Team::wake(int threads) {
  const std::lock_guard lock(mutex_);
  Worker* worker = idle_;
  for (int i = 1; i < threads && worker != nullptr; ++i, worker = worker->next)
    worker->wake(processors_);
  return idle_count_ >= threads - 1;
}

// In front and in the same order: the next lease's thread k is this one's, and has k's share in its
// cache.
void Team::give_back(const ThreadLease& lease) {
  const std::lock_guard lock(mutex_);
  lease.last_->next = idle_;
  idle_ = lease.first_;
  idle_count_ += lease.size_ - 1;
  in_use_ -= lease.size_;
}

// Makes up to `wanted` more workers, or none if that is someone else's business right now.
void Team::grow(int wanted) {
  const std::unique_lock growth(growth_mutex_, std::try_to_lock);
  if (!growth.owns_lock() || complete_ || Clock::now() < retry_) return;
  wanted = std::min(wanted, kMaxThreads - made_);  // only a grower changes made_
  if (wanted < 1) return;

  // The process's signals are its own threads' business; but faults, and a profiler's ticks, belong
  // to the running thread.
  sigset_t ours, callers;
  sigfillset(&ours);
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGPROF}) {
    sigdelset(&ours, signal);
  }
  pthread_sigmask(SIG_SETMASK, &ours, &callers);
  bool opened = true;
  try {
    std::thread([this, wanted] { open_region(wanted); }).detach();
  } catch (const std::exception&) {
    opened = false;
  }
  pthread_sigmask(SIG_SETMASK, &callers, nullptr);

  std::unique_lock lock(mutex_);
  int came = 0;
  if (opened) {
    arrival_.wait(lock, [this] { return arrived_ == expected_; });
    came = arrived_;
    expected_ = -1;
    arrived_ = 0;
  }
  for (int i = made_ + came - 1; i >= made_; --i) {  // so that the first is on top
    workers_[i].next = idle_;
    idle_ = &workers_[i];
  }
  made_ += came;
  idle_count_ += came;
  if (came < wanted) retry_ = Clock::now() + kRetry;
}

// The life of the thread that opens a region: it stands for the callers, and where OpenMP binds
// threads it takes the place that they have.
void Team::open_region(int wanted) {
  take_process_affinity();
  omp_set_dynamic(0);  // of this thread: what the process's load is now must not decide for ever
  const int possible = makeable_threads(wanted);
  Worker* const workers = workers_ + made_;
#pragma omp parallel num_threads(possible + 1)
  {
    const int thread = omp_get_thread_num();
    if (thread > 0) {
      {
        const std::lock_guard lock(mutex_);
        ++arrived_;
        arrival_.notify_one();
      }
      workers[thread - 1].serve(*this);
    }
    const int others = omp_get_num_threads() - 1;
    {
      const std::lock_guard lock(mutex_);
      complete_ = others < possible;
      expected_ = others;
      arrival_.notify_one();
    }
    if (others > 0) {
      std::atomic<int> never{0};
      for (;;) never.wait(0);
    }
  }
}

int threads_ready() {
  Team* const team = Team::existing();
  return 1 + (team != nullptr ? team->awake().load(std::memory_order_relaxed) : 0);
}

void wake_threads(int threads) {
  Team* const team = Team::existing();
  if (team == nullptr || !team->wake(threads)) ThreadLease made(threads);
}

void ThreadLease::take(int wanted) {
  if (inside_run || omp_in_parallel()) return;
  const int budget = std::min(process_num_threads(), kMaxThreads);
  if (budget <= 1) return;
  if (Team* const team = Team::current()) team->take(wanted, budget, *this);
}

void ThreadLease::give_back() { team_->give_back(*this); }

void ThreadLease::run_on_all(Function* function, const void* context) noexcept {
  const microseconds linger = std::min(kLinger, kLingerOfAll / (size_ - 1));
  Processors& processors = team_->processors();
  const int processor = processors.enter();
  int thread = 1;
  for (Worker* worker = first_; thread < size_; worker = worker->next, ++thread) {
    worker->thread = thread;
    worker->function = function;
    worker->context = context;
    worker->linger = linger;
    worker->start(processors);
  }
  inside_run = true;
  function(context, 0);
  inside_run = false;
  thread = 1;
  for (Worker* worker = first_; thread < size_; worker = worker->next, ++thread) worker->finish();
  processors.leave(processor);
}

OpenMPLimits openmp_limits() {
  return {std::min(omp_get_max_threads(), omp_get_thread_limit()), omp_get_num_procs(),
          binds_threads()};
}

}  // namespace tidegate
