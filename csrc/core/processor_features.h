// The instruction sets that this processor, the operating system and the process can use.
#ifndef TIDEGATE_CORE_PROCESSOR_FEATURES_H_
#define TIDEGATE_CORE_PROCESSOR_FEATURES_H_

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tidegate {

// The features of CPUID's leaf 7 that GCC 12's and Clang 15's __builtin_cpu_supports() do not all
// know. The features of vectors are those that the operating system, too, supports.
struct ProcessorFeatures {
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  bool avx2_vnni = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  // Whether the processor has AMX with bfloat16 and int8, and the operating system saves its state.
  // A process must also be permitted to use it: permits_amx().
  bool amx = false;

  ProcessorFeatures() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    const auto bit = [](unsigned bits, int position) { return (bits >> position & 1) != 0; };
    avx512_vnni = avx512 && bit(ecx, 11);
    // AMX-BF16, AMX-TILE and AMX-INT8.
    amx = avx512_vnni && bit(edx, 22) && bit(edx, 24) && bit(edx, 25) && saves_tiles();
    if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) return;
    avx2_vnni = avx2 && bit(eax, 4);
    avx512_bf16 = avx512_vnni && bit(eax, 5);
  }

  // Asks Linux to permit this process to use AMX, and returns whether it does: a sandbox may
  // refuse, or an alternate signal stack be too small for the state. Once permitted, it is so until
  // the process ends, and for its children, and alternate signal stacks must have room for the
  // state.
  static bool permits_amx() {
#if defined(__linux__)
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
  }

 private:
  static bool saves_tiles() {
    std::uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr std::uint32_t kTiles = 3u << 17;
    return (low & kTiles) == kTiles;
  }
};

}  // namespace tidegate

#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstddef>
#endif

namespace tidegate {

// The features that not every processor of AArch64 has.
struct ProcessorFeatures {
#if defined(__linux__)
  bool neon_dot = (getauxval(AT_HWCAP) >> 20 & 1) != 0;    // HWCAP_ASIMDDP
  bool neon_i8mm = (getauxval(AT_HWCAP2) >> 13 & 1) != 0;  // HWCAP2_I8MM
#elif defined(__APPLE__)
  bool neon_dot = true;
  bool neon_i8mm = [] {
    int has = 0;
    std::size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has != 0;
  }();
#else
  bool neon_dot = false;
  bool neon_i8mm = false;
#endif
};

}  // namespace tidegate

#endif

#endif  // TIDEGATE_CORE_PROCESSOR_FEATURES_H_
