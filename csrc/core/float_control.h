// The float environment of a call: round to nearest, no traps, denormals flushed. Kernels assume it
// and do not set it; the core sets it by a ThreadSetup (thread_setup.h).
#ifndef TIDEGATE_CORE_FLOAT_CONTROL_H_
#define TIDEGATE_CORE_FLOAT_CONTROL_H_

#ifdef __FAST_MATH__
#error \
    "Tidegate promises IEEE semantics of NaN, infinities and rounding: build it without -ffast-math"
#endif

#include <cstdint>

namespace tidegate {

// Sets the thread's whole float control register while it lives, and restores the previous value
// afterwards, sticky exception flags included: a call neither sees the caller's environment nor
// changes it.
//
// Compilers do not know that arithmetic depends on this register. Reads and writes of memory stay
// inside the scope, because each access to the register is a compiler barrier, and so do calls that
// the compiler cannot see into, as those of kernels are. Other arithmetic on local variables may be
// moved out of the scope.
class FloatControl {
 public:
  FloatControl() : FloatControl(wanted()) {}
  ~FloatControl() { write(saved_); }
  FloatControl(const FloatControl&) = delete;
  FloatControl& operator=(const FloatControl&) = delete;

#if defined(__x86_64__)
  using Register = std::uint32_t;
#elif defined(__aarch64__)
  struct Register {
    std::uint64_t control, status;
  };
#else
#error "Tidegate knows the float control register of x86-64 and AArch64 only"
#endif

  // Sets another value instead, which read() returned.
  explicit FloatControl(const Register& value) : saved_(read()) { write(value); }

#if defined(__x86_64__)
  static Register read() {
    Register value;
    __asm__ volatile("stmxcsr %0" : "=m"(value) : : "memory");
    return value;
  }
#else
  static Register read() {
    Register value;
    __asm__ volatile("mrs %0, fpcr\n\tmrs %1, fpsr"
                     : "=r"(value.control), "=r"(value.status)
                     :
                     : "memory");
    return value;
  }
#endif

 private:
#if defined(__x86_64__)
  // MXCSR: the six exceptions masked (bits 7-12), flush-to-zero (15), denormals-are-zero (6);
  // rounding bits and sticky flags zero.
  static Register wanted() { return 0x1F80 | 1u << 15 | 1u << 6; }

  static void write(Register value) { __asm__ volatile("ldmxcsr %0" : : "m"(value) : "memory"); }
#else
  // FPCR: flush-to-zero of inputs and results (bit 24); all other bits zero: round to nearest, no
  // traps, NaNs propagate. FPSR holds the sticky flags.
  static Register wanted() { return {std::uint64_t{1} << 24, 0}; }

  static void write(Register value) {
    __asm__ volatile("msr fpcr, %0\n\tmsr fpsr, %1"
                     :
                     : "r"(value.control), "r"(value.status)
                     : "memory");
  }
#endif

  const Register saved_;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_FLOAT_CONTROL_H_
