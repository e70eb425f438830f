// The processors that threads may run on, and those on which threads of a call compute right now.
#ifndef TIDEGATE_CORE_THREADS_PROCESSORS_H_
#define TIDEGATE_CORE_THREADS_PROCESSORS_H_

#include <atomic>
#include <memory>

namespace tidegate {

// How many processors the main thread may run on; not the calling thread, which may be one of many
// workers that a program has pinned. 0 if the system does not say.
int process_affinity_count();

// Lets the calling thread run on the processors of the main thread. (A thread inherits the
// processors of the thread that makes it, which may be pinned.)
void take_process_affinity();

// The processors of a sleeping thread, kept while it is restricted to the one on which it is to
// wake.
class Placement {
 public:
  Placement();
  ~Placement();

  void prepare();  // allocates; without it the thread is never restricted

 private:
  friend class Processors;
  std::unique_ptr<class AffinityMask> mask_;
  bool restricted_ = false;
};

// Counts, for each processor, the threads that compute there. Linux wakes a thread on the processor
// on which it fell asleep, even if the thread that wakes it computes there and, in a virtual
// machine that does not tell which processors share a cache, even if others are idle; it then
// leaves both there for milliseconds. So the waking thread chooses a free processor for the one
// that it wakes, and a thread that finds its processor taken moves to a free one. After that the
// system decides where a thread runs: no thread stays pinned.
class Processors {
 public:
  Processors();

  // Counts the calling thread on the processor where it runs. Returns the argument for leave().
  int enter();
  // The same, but if another thread computes there, the calling thread first moves to a processor
  // where none does, if there is one on which it may run.
  int enter_free();
  void leave(int processor);

  // Called before the calling thread wakes the thread with this id of the operating system:
  // restricts that thread to a processor on which no thread computes, other than the calling
  // thread's, if there is one on which it may run. The woken thread must call woken().
  void place(long thread, Placement& placement);
  void woken(Placement& placement);

 private:
  // Aligned so that each counter has a cache line of its own.
  struct alignas(128) Processor {
    std::atomic<int> threads{0};
  };

  bool known(int processor) const { return processor >= 0 && processor < count_; }

  std::unique_ptr<Processor[]> processors_;
  int count_ = 0;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_PROCESSORS_H_
