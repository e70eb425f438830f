// A mutex for what outlives a fork.
#ifndef TIDEGATE_CORE_THREADS_FORK_SAFE_MUTEX_H_
#define TIDEGATE_CORE_THREADS_FORK_SAFE_MUTEX_H_

#include <mutex>

namespace tidegate {

// A mutex that no thread holds at the instant of a fork: the forking thread waits until all of
// these are free, and a thread that wants one meanwhile waits for the fork. So a child, which has
// none of its parent's other threads, finds it free, and the data that it guards consistent. A
// thread that holds one must not take a second, but may take a lease of threads.
class ForkSafeMutex {
 public:
  // For the library's one handler of forks (threads.cc), as holders may need what it locks.
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
