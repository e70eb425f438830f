// The choice of the instruction set among those that this build and machine support.
#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/processor_features.h"
#include "core/switches.h"
#include "tidegate/settings.h"
#include "tidegate/version.h"

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "Tidegate has kernels for x86-64 and AArch64"
#endif

extern "C" {
extern const tidegate::KernelTable tidegate_kernels_baseline;
extern const tidegate::KernelTable tidegate_kernels_avx2;
extern const tidegate::KernelTable tidegate_kernels_avx2_vnni;
extern const tidegate::KernelTable tidegate_kernels_avx512;
extern const tidegate::KernelTable tidegate_kernels_avx512_vnni;
extern const tidegate::KernelTable tidegate_kernels_avx512_bf16;
extern const tidegate::KernelTable tidegate_kernels_amx;
extern const tidegate::KernelTable tidegate_kernels_neon;
extern const tidegate::KernelTable tidegate_kernels_neon_dot;
extern const tidegate::KernelTable tidegate_kernels_neon_i8mm;
}

namespace tidegate {

namespace {

// The tables that this machine can run, the best one last. All places in which an ISA is added are
// in csrc/README.md.
std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
  [[maybe_unused]] static const ProcessorFeatures has;
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
#if defined(TIDEGATE_HAS_AVX512_BF16)
  if (has.avx512_bf16) tables.push_back(&tidegate_kernels_avx512_bf16);
#endif
#if defined(TIDEGATE_HAS_AMX)
  if (has.amx) tables.push_back(&tidegate_kernels_amx);
#endif
#if defined(TIDEGATE_HAS_NEON)
  tables.push_back(&tidegate_kernels_neon);
#endif
#if defined(TIDEGATE_HAS_NEON_DOT)
  if (has.neon_dot) tables.push_back(&tidegate_kernels_neon_dot);
#endif
#if defined(TIDEGATE_HAS_NEON_I8MM)
  if (has.neon_i8mm) tables.push_back(&tidegate_kernels_neon_i8mm);
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

namespace {

#if defined(TIDEGATE_HAS_AMX)
bool may_use_amx() {
  static const bool permitted = ProcessorFeatures::permits_amx();
  return permitted;
}
#endif

}  // namespace

template <>
const StorageKernels<double>* storage_of(const Kernels<double>& kernels, StorageKind kind) {
  return kernels.storages[kind];
}

template <>
const StorageKernels<float>* storage_of(const Kernels<float>& kernels, StorageKind kind) {
#if defined(TIDEGATE_HAS_AMX)
  const bool uses_amx = &kernels == &tidegate_kernels_amx.f32 && kind != kExactWeights;
  if (uses_amx && !may_use_amx()) {
#if defined(TIDEGATE_HAS_AVX512_VNNI)
    return tidegate_kernels_avx512_vnni.f32.storages[kind];
#else
    return tidegate_kernels_avx512.f32.storages[kind];
#endif
  }
#endif
  return kernels.storages[kind];
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
