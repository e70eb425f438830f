// The team of threads: leases, the workers' waits, the budget, and forks. The threads themselves
// are made in team_openmp.cc or team_std.cc.
#include "core/threads/threads.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <initializer_list>
#include <mutex>
#include <new>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/thread_setup.h"
#include "core/threads/fork_safe_mutex.h"
#include "core/threads/processors.h"
#include "core/threads/team_threads.h"
#include "core/threads/thread_count.h"
#include "tidegate/settings.h"

namespace tidegate {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// How long a worker polls for a next job after a call before it sleeps: long enough for a caller
// that makes its next call at once (waking a thread takes about 50 us), and at most 100 us of
// processor time for all workers of a call together.
constexpr microseconds kLinger{50};
constexpr microseconds kLingerOfAll{100};

// After a thread could not be made, the team does not try again before this time has passed.
constexpr std::chrono::seconds kRetry{1};

// Whether this thread runs the body of a ThreadLease, as a worker or as the caller: a lease made
// inside has one thread.
thread_local bool inside_run = false;

}  // namespace

// A thread of the team, and the job that it is given.
struct alignas(kThreadSpacing) Worker {
  enum State : int { idle, asleep, busy };

  std::atomic<int> state{idle};
  // The job; written by the thread that holds the lease while this one is idle or asleep.
  int thread = 0;
  void (*function)(const void* context, int thread) = nullptr;
  const void* context = nullptr;
  microseconds linger = kLinger;
  // The next worker of the lease, or of the idle workers.
  Worker* next = nullptr;

  void start(Processors& processors);
  void finish();
  void wake(Processors& processors);
  [[noreturn]] void serve(Team& team);

 private:
  void await_job(microseconds patience, Team& team);

  // Written by this thread before it sleeps, and by the thread that wakes it.
  long id_ = 0;  // the operating system's
  Placement placement_;
};

// Called by the holder of the lease: starts the job.
void Worker::start(Processors& processors) {
  if (state.load(std::memory_order_acquire) == asleep) processors.place(id_, placement_);
  if (state.exchange(busy) == asleep) state.notify_one();
}

// Called by the team for an idle worker: ends its sleep, if it sleeps, without a job.
void Worker::wake(Processors& processors) {
  if (state.load(std::memory_order_acquire) != asleep) return;
  processors.place(id_, placement_);
  state.store(idle, std::memory_order_release);
  state.notify_one();
}

// Called by the holder of the lease: waits until the job is done.
void Worker::finish() {
  Waiting waiting;
  while (state.load(std::memory_order_acquire) == busy) waiting.pause();
}

// The workers of this process. Never destroyed, because its threads never end. A forked child does
// not touch the team of its parent and makes a new one.
class Team {
 public:
  // Makes the team if there is none yet; null if there is no memory for it.
  static Team* current();
  // Null if there is no team yet.
  static Team* existing() { return current_.load(std::memory_order_acquire); }

  // Gives the lease up to `wanted` threads, as many as are available within `budget`.
  void take(int wanted, int budget, ThreadLease& lease);
  void give_back(const ThreadLease& lease);

  // Wakes the workers that a lease of `threads` threads would get; false if some are missing.
  bool wake(int threads);

  Processors& processors() { return processors_; }
  // The number of idle workers that poll for a job.
  std::atomic<int>& awake() { return awake_; }

 private:
  void grow(int wanted);
  // The life of a new thread, `index` among those that are being made.
  static void serve(Team& team, int index);

  static void before_fork();
  static void unlock_after_fork();
  static void after_fork_in_parent();
  static void after_fork_in_child();
  static const int fork_handlers;
  static std::atomic<Team*> current_;
  static thread_local Team* locked_for_fork;

  std::mutex growth_mutex_;  // guards the next two; held while threads are made; locked first
  Clock::time_point retry_;  // do not grow before
  bool complete_ = false;    // there will be no more threads

  std::mutex mutex_;  // guards the fields down to idle_; held for a few instructions at a time
  std::condition_variable arrival_;
  int made_ = 0;            // workers_[0, made_) have threads
  int arrived_ = 0;         // threads that are being made and already run
  int in_use_ = 0;          // threads of all leases, their callers included
  int idle_count_ = 0;      // length of the list that begins at idle_
  Worker* idle_ = nullptr;  // the most recently used one first: it may still be awake

  Processors processors_;
  std::atomic<int> awake_{0};
  Worker workers_[kMaxThreads];
};

// Run by the thread itself, as long as the process lives.
void Worker::serve(Team& team) {
  const ThreadSetup setup;
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
    patience = linger;  // read before the next line: then another thread may write a job
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

// Registered when the library is loaded. A static local would need a guard, which another thread
// might hold at a fork.
const int Team::fork_handlers =
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

// When the process forks, no thread is in a critical section of the team, and none are being made.
// A thread that holds a ForkSafeMutex may be about to lease threads, so those are waited for first.
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

// The child has one thread. The team of its parent is unused memory there, like the stacks of that
// team's threads. libgomp keeps a pool of threads for each thread that has opened a region, so a
// region that a new thread opens does not use a pool of the parent.
void Team::after_fork_in_child() {
  unlock_after_fork();
  current_.store(nullptr, std::memory_order_release);
  ForkSafeMutex::after_fork_in_child();
}

Team* Team::current() {
  Team* team = existing();
  if (team != nullptr) return team;
  Team* const fresh = new (std::nothrow) Team;
  if (fresh == nullptr) return nullptr;
  if (current_.compare_exchange_strong(team, fresh, std::memory_order_acq_rel)) return fresh;
  delete fresh;  // another thread has made one meanwhile
  return team;
}

void Team::take(int wanted, int budget, ThreadLease& lease) {
  std::unique_lock lock(mutex_);
  const int granted = std::min(wanted, budget - in_use_);
  if (granted <= 1) return;
  in_use_ += granted;
  if (idle_count_ < granted - 1) {
    // Where threads are bound to processors, those of one request are spread over them: make all
    // that the team will have at once.
    const int missing = team_limits().binds ? budget - 1 - made_ : granted - 1 - idle_count_;
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

// The workers go to the front of the list, in the same order: thread k of the next lease is thread
// k of this one, and has thread k's share of the data in its cache.
void Team::give_back(const ThreadLease& lease) {
  const std::lock_guard lock(mutex_);
  lease.last_->next = idle_;
  idle_ = lease.first_;
  idle_count_ += lease.size_ - 1;
  in_use_ -= lease.size_;
}

// Makes up to `wanted` more workers; none if another thread is making some, or making one has
// failed recently.
void Team::grow(int wanted) {
  const std::unique_lock growth(growth_mutex_, std::try_to_lock);
  if (!growth.owns_lock() || complete_ || Clock::now() < retry_) return;
  wanted = std::min(wanted, kMaxThreads - made_);  // made_ changes under growth_mutex_ only
  if (wanted < 1) return;

  // Signals to the process are left to the program's own threads. Faults and a profiler's ticks
  // belong to the thread that runs.
  sigset_t workers, callers;
  sigfillset(&workers);
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGPROF}) {
    sigdelset(&workers, signal);
  }
  pthread_sigmask(SIG_SETMASK, &workers, &callers);
  const MadeThreads made = make_team_threads(wanted, &Team::serve, *this);
  pthread_sigmask(SIG_SETMASK, &callers, nullptr);
  complete_ = made.final;
  if (made.count < wanted) retry_ = Clock::now() + kRetry;

  std::unique_lock lock(mutex_);
  arrival_.wait(lock, [&] { return arrived_ == made.count; });
  arrived_ = 0;
  for (int i = made_ + made.count - 1; i >= made_; --i) {  // so that the first one is in front
    workers_[i].next = idle_;
    idle_ = &workers_[i];
  }
  made_ += made.count;
  idle_count_ += made.count;
}

void Team::serve(Team& team, int index) {
  Worker* worker = nullptr;
  {
    const std::lock_guard lock(team.mutex_);
    worker = &team.workers_[team.made_ + index];
    ++team.arrived_;
    team.arrival_.notify_one();
  }
  worker->serve(team);
}

std::string thread_runtime() { return team_runtime(); }

int threads_ready() {
  Team* const team = Team::existing();
  return 1 + (team != nullptr ? team->awake().load(std::memory_order_relaxed) : 0);
}

void wake_threads(int threads) {
  Team* const team = Team::existing();
  if (team == nullptr || !team->wake(threads)) ThreadLease made(threads);
}

void ThreadLease::take(int wanted) {
  if (inside_run || in_parallel_region()) return;
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

}  // namespace tidegate
