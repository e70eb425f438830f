// The choice of the instruction set among those that this build and machine support.
#include "core/isa.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/switches.h"
#include "tidegate/settings.h"
#include "tidegate/version.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif !defined(__aarch64__)
#error "Tidegate has kernels for x86-64 and AArch64"
#endif

extern "C" {
extern const tidegate::KernelTable tidegate_kernels_baseline;
extern const tidegate::KernelTable tidegate_kernels_avx2;
extern const tidegate::KernelTable tidegate_kernels_avx2_vnni;
extern const tidegate::KernelTable tidegate_kernels_avx512;
extern const tidegate::KernelTable tidegate_kernels_avx512_vnni;
extern const tidegate::KernelTable tidegate_kernels_amx;
extern const tidegate::KernelTable tidegate_kernels_neon;
}

namespace tidegate {

namespace {

#if defined(__x86_64__)
// The features of CPUID's leaf 7 that GCC 12's and Clang 15's __builtin_cpu_supports() do not all
// know. The features of vectors are those that the operating system, too, supports.
struct Features {
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  bool avx2_vnni = false;
  bool avx512_vnni = false;
  bool amx = false;

  Features() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    const auto bit = [](unsigned bits, int position) { return (bits >> position & 1) != 0; };
    avx512_vnni = avx512 && bit(ecx, 11);
    // AMX-BF16, AMX-TILE and AMX-INT8.
    amx = avx512_vnni && bit(edx, 22) && bit(edx, 24) && bit(edx, 25) && permits_amx();
    if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) avx2_vnni = avx2 && bit(eax, 4);
  }

  // Whether the operating system saves the state of AMX, and lets this process use it. Linux has
  // to be asked; a sandbox, or an alternate signal stack too small for the state, may refuse.
  static bool permits_amx() {
#if defined(__linux__)
    std::uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr std::uint32_t kTiles = 3u << 17;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return (low & kTiles) == kTiles && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
  }
};
#endif

// The tables that this machine can run, the best one last. All places in which an ISA is added are
// in csrc/README.md.
std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  [[maybe_unused]] static const Features has;
#endif
#if defined(TIDEGATE_HAS_BASELINE)
  tables.push_back(&tidegate_kernels_baseline);
#endif
#if defined(TIDEGATE_HAS_AVX2)
  if (has.avx2) tables.push_back(&tidegate_kernels_avx2);
#endif
#if defined(TIDEGATE_HAS_AVX2_VNNI)
  if (has.avx2_vnni) tables.push_back(&tidegate_kernels_avx2_vnni);
#endif
#if defined(TIDEGATE_HAS_AVX512)
  if (has.avx512) tables.push_back(&tidegate_kernels_avx512);
#endif
#if defined(TIDEGATE_HAS_AVX512_VNNI)
  if (has.avx512_vnni) tables.push_back(&tidegate_kernels_avx512_vnni);
#endif
#if defined(TIDEGATE_HAS_AMX)
  if (has.amx) tables.push_back(&tidegate_kernels_amx);
#endif
#if defined(TIDEGATE_HAS_NEON)
  tables.push_back(&tidegate_kernels_neon);
#endif
  if (tables.empty())
    throw std::runtime_error("this machine supports none of the instruction sets of this build");
  return tables;
}

const KernelTable* find_table(const std::string& name, const char* what) {
  std::string names;
  for (const KernelTable* table : available_tables()) {
    if (name == table->isa) return table;
    names += (names.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw std::invalid_argument(std::string(what) + ": got \"" + name +
                              "\", wanted one that this build and machine support: " + names);
}

std::atomic<const KernelTable*> chosen{nullptr};

}  // namespace

const KernelTable& kernel_table() {
  const KernelTable* table = chosen.load(std::memory_order_acquire);
  if (!table) {
    const char* name = std::getenv("TIDEGATE_ISA");
    table = name && *name ? find_table(name, "TIDEGATE_ISA") : available_tables().back();
    chosen.store(table, std::memory_order_release);
  }
  return *table;
}

void select_isa(const std::string& name) {
  chosen.store(find_table(name, "isa"), std::memory_order_release);
}

std::string isa() { return kernel_table().isa; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : available_tables()) names.emplace_back(table->isa);
  return names;
}

std::string version() { return TIDEGATE_VERSION; }

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}

}  // namespace tidegate
