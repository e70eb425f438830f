// The processors that threads may run on, and those that threads of ours compute on right now.
#ifndef TIDEGATE_CORE_THREADS_PROCESSORS_H_
#define TIDEGATE_CORE_THREADS_PROCESSORS_H_

#include <atomic>
#include <memory>

namespace tidegate {

// How many processors the main thread may run on, the one that counts here: the calling thread may
// be one pinned worker among many. 0 if the system does not say.
int process_affinity_count();

// Gives the calling thread the main thread's processors: a thread made by one that is pinned would
// be pinned with it.
void take_process_affinity();

// Where a thread may run once it is awake, if it was placed.
class Placement {
 public:
  Placement();
  ~Placement();

  void prepare();  // allocates; without it nobody is placed

 private:
  friend class Processors;
  std::unique_ptr<class AffinityMask> mask_;
  bool placed_ = false;
};

// Which processors are taken by threads that compute. Linux wakes a thread on the processor that it
// slept on, even if the thread that wakes it is computing there and, in a virtual machine that does
// not tell which processors share a cache, even if others are idle; and it leaves both there for
// milliseconds. So who wakes one says where, and whoever comes second moves. Where it then runs
// remains the system's to decide: nothing stays pinned.
class Processors {
 public:
  Processors();

  // The calling thread computes from now on, where it is. Returns what leave() is to be given.
  int enter();
  // The same; if another computes there, the thread first moves to a processor where none does, if
  // it may run on one.
  int enter_free();
  void leave(int processor);

  // Before the calling thread wakes another one, whose kernel's id that is: it shall wake where no
  // thread of ours computes, nor this one, if it may run there. Once awake it calls woken().
  void place(long thread, Placement& placement);
  void woken(Placement& placement);

 private:
  // Far enough apart for each to have its line of the cache to itself.
  struct alignas(128) Place {
    std::atomic<int> threads{0};
  };

  bool known(int processor) const { return processor >= 0 && processor < count_; }

  std::unique_ptr<Place[]> places_;
  int count_ = 0;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_PROCESSORS_H_
