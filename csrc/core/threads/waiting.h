// Short waits of a thread for another thread. A wait that may last sleeps instead,
// on an atomic or a condition variable.
#ifndef TIDEGATE_CORE_THREADS_WAITING_H_
#define TIDEGATE_CORE_THREADS_WAITING_H_

namespace tidegate {

// One wait: call pause() until the condition holds. The first calls spin, for about a microsecond
// in all; the next ones yield the processor, and the last ones sleep, so that waiting also works,
// slowly, with more threads than processors.
class Waiting {
 public:
  void pause() {
    if (turns_ < kSpins) {
      ++turns_;
      relax();
    } else {
      yield_or_sleep();
    }
  }

  // Takes about 10 to 50 ns and leaves the core's execution units to its other hardware thread.
  static void relax() {
#if defined(__x86_64__)
    __asm__ volatile("pause" : : : "memory");
#else
    // Current AArch64 cores treat `yield` as a no-op.
    __asm__ volatile("isb" : : : "memory");
#endif
  }

 private:
  // A yield takes about 300 ns where no other thread can run, so longer spinning gains little; with
  // 8 threads on 2 processors, each spin delays the thread that is waited for.
  static constexpr int kSpins = 32;

  void yield_or_sleep();

  int turns_ = 0;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_WAITING_H_
