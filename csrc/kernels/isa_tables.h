// The tables that the object files of one ISA export: each object file exports one table as one
// symbol. Everything else in this folder has internal linkage; otherwise the linker could pick the
// AVX-512 copy of a shared function for an AVX2 machine.
//
// An ISA may extend another one by instructions for low precision. It has int8_weights.cc and
// kernels.cc compiled again (with TIDEGATE_AMX also bf16_weights.cc, with TIDEGATE_BF16_DOT also
// bf16_dot_weights.cc), and shares all other tables.
#ifndef TIDEGATE_KERNELS_ISA_TABLES_H_
#define TIDEGATE_KERNELS_ISA_TABLES_H_

#include "kernels/table.h"

#if defined(TIDEGATE_ISA_AVX512)
#define TIDEGATE_BASE_ISA avx512
#elif defined(TIDEGATE_ISA_AVX2)
#define TIDEGATE_BASE_ISA avx2
#elif defined(TIDEGATE_ISA_NEON)
#define TIDEGATE_BASE_ISA neon
#else
#define TIDEGATE_BASE_ISA baseline
#endif

#if defined(TIDEGATE_AMX)
#define TIDEGATE_ISA amx
#elif defined(TIDEGATE_BF16_DOT)
#define TIDEGATE_ISA avx512_bf16
#elif defined(TIDEGATE_I8MM)
#define TIDEGATE_ISA neon_i8mm
#elif defined(TIDEGATE_DOT) && defined(TIDEGATE_ISA_AVX512)
#define TIDEGATE_ISA avx512_vnni
#elif defined(TIDEGATE_DOT) && defined(TIDEGATE_ISA_NEON)
#define TIDEGATE_ISA neon_dot
#elif defined(TIDEGATE_DOT)
#define TIDEGATE_ISA avx2_vnni
#else
#define TIDEGATE_ISA TIDEGATE_BASE_ISA
#endif

// The symbol of a table: tidegate_<name>_<isa>.
#define TIDEGATE_TABLE_(name, isa) tidegate_##name##_##isa
#define TIDEGATE_TABLE_OF(name, isa) TIDEGATE_TABLE_(name, isa)
#define TIDEGATE_TABLE(name) TIDEGATE_TABLE_OF(name, TIDEGATE_ISA)
// The same of the ISA that this one extends; of this one if it extends none.
#define TIDEGATE_BASE_TABLE(name) TIDEGATE_TABLE_OF(name, TIDEGATE_BASE_ISA)

namespace tidegate {

template <template <class> class Table>
struct ForTypes {
  Table<float> f32;
  Table<double> f64;
};

extern "C" {
extern const ForTypes<StorageKernels> TIDEGATE_BASE_TABLE(exact_weights);
extern const StorageKernels<float> TIDEGATE_BASE_TABLE(bf16_weights);
extern const StorageKernels<float> TIDEGATE_TABLE(bf16_weights);
extern const StorageKernels<float> TIDEGATE_BASE_TABLE(bf16_dot_weights);
extern const StorageKernels<float> TIDEGATE_TABLE(bf16_dot_weights);
extern const StorageKernels<float> TIDEGATE_TABLE(int8_weights);
extern const ForTypes<CellKernels> TIDEGATE_BASE_TABLE(cells);
extern const ForTypes<OuterKernels> TIDEGATE_BASE_TABLE(outer);
extern const ForTypes<ArrayKernels> TIDEGATE_BASE_TABLE(arrays);
extern const KernelTable TIDEGATE_TABLE(kernels);
}

}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_ISA_TABLES_H_
