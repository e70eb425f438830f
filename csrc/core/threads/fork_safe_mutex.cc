// The gate that holders of a ForkSafeMutex pass, and a fork closes.
#include "core/threads/fork_safe_mutex.h"

#include <atomic>

#include "core/threads/waiting.h"

namespace tidegate {
namespace {

std::atomic<int> inside{0};  // threads that hold a mutex, or are next to
std::atomic<bool> closed{false};
std::mutex forks;  // one at a time

}  // namespace

void ForkSafeMutex::before_fork() {
  forks.lock();
  closed = true;
  Waiting waiting;
  while (inside != 0) waiting.pause();
}

void ForkSafeMutex::after_fork_in_parent() {
  closed = false;
  forks.unlock();
}

void ForkSafeMutex::after_fork_in_child() {
  inside = 0;  // another thread may just have come to the closed gate
  after_fork_in_parent();
}

void ForkSafeMutex::enter() {
  for (Waiting waiting;; waiting.pause()) {
    ++inside;
    if (!closed) return;
    --inside;
  }
}

void ForkSafeMutex::leave() { --inside; }

}  // namespace tidegate
