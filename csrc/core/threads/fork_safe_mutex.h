// A mutex for data that a forked child goes on to use.
#ifndef TIDEGATE_CORE_THREADS_FORK_SAFE_MUTEX_H_
#define TIDEGATE_CORE_THREADS_FORK_SAFE_MUTEX_H_

#include <mutex>

namespace tidegate {

// Never held across fork(): the forking thread waits until all such mutexes are free, and threads
// that want one meanwhile wait until the fork is done. So a child, which has none of the other
// threads of its parent, finds the mutex free and the data that it guards consistent. A thread that
// holds one must not lock a second one, but may take a ThreadLease.
class ForkSafeMutex {
 public:
  // Called by the library's only fork handlers (threads.cc), which lock the team's mutexes after
  // these: a thread that holds one of these may need those.
  static void before_fork();
  static void after_fork_in_parent();
  static void after_fork_in_child();

  void lock() {
    enter();
    mutex_.lock();
  }
  void unlock() {
    mutex_.unlock();
    leave();
  }

 private:
  static void enter();
  static void leave();

  std::mutex mutex_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_FORK_SAFE_MUTEX_H_
