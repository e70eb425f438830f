// The table of all kernels of one ISA.
#include "kernels/isa_tables.h"
#include "kernels/vec.h"

#define TIDEGATE_STRING_(text) #text
#define TIDEGATE_STRING(text) TIDEGATE_STRING_(text)

#ifdef TIDEGATE_AMX
#define TIDEGATE_BF16_TABLE TIDEGATE_TABLE(bf16_weights)
#else
#define TIDEGATE_BF16_TABLE TIDEGATE_BASE_TABLE(bf16_weights)
#endif
#ifdef TIDEGATE_BF16_DOT
#define TIDEGATE_BF16_DOT_TABLE TIDEGATE_TABLE(bf16_dot_weights)
#else
#define TIDEGATE_BF16_DOT_TABLE TIDEGATE_BASE_TABLE(bf16_dot_weights)
#endif

namespace tidegate {

const KernelTable TIDEGATE_TABLE(kernels) = {
    .isa = TIDEGATE_STRING(TIDEGATE_ISA),
    .f32 = {.width = Vec<float>::width,
            .storages = {&TIDEGATE_BASE_TABLE(exact_weights).f32, &TIDEGATE_BF16_TABLE,
                         &TIDEGATE_BF16_DOT_TABLE, &TIDEGATE_TABLE(int8_weights)},
            .cells = &TIDEGATE_BASE_TABLE(cells).f32,
            .outer = &TIDEGATE_BASE_TABLE(outer).f32,
            .arrays = &TIDEGATE_BASE_TABLE(arrays).f32},
    .f64 = {.width = Vec<double>::width,
            .storages = {&TIDEGATE_BASE_TABLE(exact_weights).f64},
            .cells = &TIDEGATE_BASE_TABLE(cells).f64,
            .outer = &TIDEGATE_BASE_TABLE(outer).f64,
            .arrays = &TIDEGATE_BASE_TABLE(arrays).f64},
};

}  // namespace tidegate
