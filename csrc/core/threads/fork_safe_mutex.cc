// Every lock of a ForkSafeMutex is counted, and a fork waits until none is held.
#include "core/threads/fork_safe_mutex.h"

#include <atomic>

#include "core/threads/waiting.h"

namespace tidegate {
namespace {

std::atomic<int> holders{0};  // threads that hold a mutex, or are about to lock one
std::atomic<bool> forking{false};
std::mutex fork_mutex;  // one fork at a time

}  // namespace

void ForkSafeMutex::before_fork() {
  fork_mutex.lock();
  forking = true;
  Waiting waiting;
  while (holders != 0) waiting.pause();
}

void ForkSafeMutex::after_fork_in_parent() {
  forking = false;
  fork_mutex.unlock();
}

void ForkSafeMutex::after_fork_in_child() {
  holders = 0;  // a thread of the parent may have counted itself in vain, in enter()
  after_fork_in_parent();
}

void ForkSafeMutex::enter() {
  for (Waiting waiting;; waiting.pause()) {
    ++holders;
    if (!forking) return;
    --holders;
  }
}

void ForkSafeMutex::leave() { --holders; }

}  // namespace tidegate
