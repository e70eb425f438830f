// The part of a wait that gives the processor to other threads.
#include "core/threads/waiting.h"

#include <chrono>
#include <thread>

namespace tidegate {
namespace {

constexpr int kYields = 1000;
// After the yields. A thread of lower real-time priority runs only while this one sleeps.
constexpr std::chrono::microseconds kSleep{50};

}  // namespace

void Waiting::yield_or_sleep() {
  if (turns_ < kSpins + kYields) {
    ++turns_;
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(kSleep);
  }
}

}  // namespace tidegate
