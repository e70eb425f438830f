// Processors by the system calls of Linux. On other systems nothing is known of them, and no thread
// is moved.
#include "core/threads/processors.h"

#ifdef __linux__
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#endif

#include <new>

namespace tidegate {

#ifdef __linux__

// The processors that a thread may run on.
class AffinityMask {
 public:
  AffinityMask() = default;
  // Those of the thread with this id; 0: the calling thread.
  explicit AffinityMask(pid_t thread) { read(thread); }

  void read(pid_t thread) {
    for (sets_ = 1; sets_ <= kMaxSets;
         sets_ *= 2) {  // EINVAL: the mask is too small for the machine
      if (sched_getaffinity(thread, bytes(), cpus_) == 0) return;
      if (errno != EINVAL) break;
    }
    sets_ = 0;  // the system does not say
  }

  int count() const { return sets_ == 0 ? 0 : CPU_COUNT_S(bytes(), cpus_); }
  bool has(int cpu) const { return sets_ != 0 && CPU_ISSET_S(cpu, bytes(), cpus_); }

  void give_to_this_thread() const {
    if (sets_ != 0) sched_setaffinity(0, bytes(), cpus_);
  }

  // Moves the calling thread, which may run on these processors, to one of them; it may run on all
  // of them afterwards. False if the system refuses.
  bool move_this_thread_to(int cpu) const {
    if (!restrict_to(cpu, 0)) return false;
    give_to_this_thread();
    return true;
  }

  // Lets the thread with this id run on one of these processors only. False if the system refuses.
  bool restrict_to(int cpu, pid_t thread) const {
    cpu_set_t one[kMaxSets];
    CPU_ZERO_S(bytes(), one);
    CPU_SET_S(cpu, bytes(), one);
    return sched_setaffinity(thread, bytes(), one) == 0;
  }

 private:
  static constexpr std::size_t kMaxSets = 64;  // of 1024 processors each

  std::size_t bytes() const { return sets_ * sizeof(cpu_set_t); }

  std::size_t sets_ = 0;
  cpu_set_t cpus_[kMaxSets];
};

int process_affinity_count() { return AffinityMask(getpid()).count(); }

void take_process_affinity() { AffinityMask(getpid()).give_to_this_thread(); }

Processors::Processors() {
  const long count = sysconf(_SC_NPROCESSORS_CONF);
  if (count < 1) return;
  processors_.reset(new (std::nothrow) Processor[static_cast<std::size_t>(count)]);
  if (processors_) count_ = static_cast<int>(count);
}

int Processors::enter() {
  const int here = sched_getcpu();
  if (known(here)) processors_[here].threads.fetch_add(1, std::memory_order_relaxed);
  return here;
}

int Processors::enter_free() {
  const int here = sched_getcpu();
  if (!known(here) || processors_[here].threads.fetch_add(1, std::memory_order_relaxed) == 0) {
    return here;
  }
  const AffinityMask mask(0);
  for (int i = 1; i < count_; ++i) {
    const int other = (here + i) % count_;
    int none = 0;
    if (!mask.has(other) ||
        !processors_[other].threads.compare_exchange_strong(none, 1, std::memory_order_relaxed)) {
      continue;
    }
    const bool moved = mask.move_this_thread_to(other);
    leave(moved ? here : other);
    return moved ? other : here;
  }
  return here;
}

void Processors::place(long thread, Placement& placement) {
  const int here = sched_getcpu();
  if (!known(here) || !placement.mask_) return;
  const auto id = static_cast<pid_t>(thread);
  AffinityMask& mask = *placement.mask_;
  mask.read(id);
  for (int i = 1; i < count_; ++i) {
    const int other = (here + i) % count_;
    if (!mask.has(other) || processors_[other].threads.load(std::memory_order_relaxed) != 0)
      continue;
    placement.restricted_ = mask.restrict_to(other, id);
    return;
  }
}

void Processors::woken(Placement& placement) {
  if (placement.restricted_) placement.mask_->give_to_this_thread();
  placement.restricted_ = false;
}

void Processors::leave(int processor) {
  if (known(processor)) processors_[processor].threads.fetch_sub(1, std::memory_order_relaxed);
}

#else

int process_affinity_count() { return 0; }
void take_process_affinity() {}
class AffinityMask {};
Processors::Processors() = default;
int Processors::enter() { return -1; }
int Processors::enter_free() { return -1; }
void Processors::leave(int) {}
void Processors::place(long, Placement&) {}
void Processors::woken(Placement&) {}

#endif

Placement::Placement() = default;
Placement::~Placement() = default;
void Placement::prepare() { mask_.reset(new (std::nothrow) AffinityMask); }

}  // namespace tidegate
