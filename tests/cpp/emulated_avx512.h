// AVX-512 for machines without it: the intrinsics of kernels/vec_avx512.h, emulated on AVX2 with
// FMA. Included before a kernel test (-include); contains no test.
//
// SIMDe replaces intrinsics by its own functions. Masked accesses and roots are implemented here,
// because SIMDe 0.7.4 lacks them. An intrinsic without an emulation does not compile: without
// -mavx512f the compiler refuses to inline it.
#ifndef TIDEGATE_TESTS_EMULATED_AVX512_H_
#define TIDEGATE_TESTS_EMULATED_AVX512_H_

#ifdef __AVX512F__
#error "With AVX-512 enabled SIMDe would use the machine's, and nothing be emulated"
#endif

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512/cvt.h>
#include <simde/x86/avx512/fmadd.h>
#include <simde/x86/avx512/madd.h>
#include <simde/x86/avx512/max.h>
#include <simde/x86/avx512/min.h>
#include <simde/x86/avx512/sqrt.h>

namespace tidegate::emulated {

// The memory of a disabled lane is not accessed: it may be on a page that faults.
template <class Register, class T>
inline Register load_lanes(unsigned mask, const T* from) {
  Register x = {};
  for (unsigned i = 0; i < sizeof x / sizeof *from; ++i) {
    if (mask >> i & 1) x[i] = from[i];
  }
  return x;
}

template <class Register, class T>
inline void store_lanes(T* to, unsigned mask, Register x) {
  for (unsigned i = 0; i < sizeof x / sizeof *to; ++i) {
    if (mask >> i & 1) to[i] = x[i];
  }
}

}  // namespace tidegate::emulated

#define _mm512_maskz_sqrt_ps(mask, x) simde_mm512_sqrt_ps(x)
#define _mm512_maskz_sqrt_pd(mask, x) simde_mm512_sqrt_pd(x)
#undef _mm512_maskz_cvtepi8_epi16
#define _mm512_maskz_cvtepi8_epi16(mask, x) simde_mm512_cvtepi8_epi16(x)

// SIMDe 0.7.4 defines this name with the wrong number of arguments.
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)

#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(mask, from) \
  ::tidegate::emulated::load_lanes<__m512, float>(mask, from)
#undef _mm512_maskz_loadu_pd
#define _mm512_maskz_loadu_pd(mask, from) \
  ::tidegate::emulated::load_lanes<__m512d, double>(mask, from)
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(to, mask, x) \
  ::tidegate::emulated::store_lanes<__m512, float>(to, mask, x)
#undef _mm512_mask_storeu_pd
#define _mm512_mask_storeu_pd(to, mask, x) \
  ::tidegate::emulated::store_lanes<__m512d, double>(to, mask, x)

#endif  // TIDEGATE_TESTS_EMULATED_AVX512_H_
