// The kernels for weights rounded to bfloat16, the upper half of a float, which halve the bytes of
// a panel. Weights are widened as they are loaded; everything else is float.
#include "kernels/isa_tables.h"
#include "kernels/pack.h"
#include "kernels/product.h"
#include "kernels/storage.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

struct Bf16Weights : FusedMultiplyAdd<Bf16Weights>, VectorPanels<Bf16Weights> {
  static constexpr StorageKind kind = kBf16Weights;
  using Value = float;
  using Element = std::uint16_t;
  using Halves = Element __attribute__((vector_size(vector_bytes / 2)));
  using Words = std::uint32_t __attribute__((vector_size(vector_bytes)));
  static constexpr Index grain = 1;
  static constexpr StorageCost cost = {"bfloat16 weights", 1, 1, 2};

  static TIDEGATE_INLINE Vec<float> load(const Element* from) {
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    return {(Vec<float>::Native)(__builtin_convertvector(halves, Words) << 16)};
  }

  // Rounds to nearest, ties to even. A NaN becomes a quiet NaN with the upper bits of its payload.
  static TIDEGATE_INLINE void store(Element* to, Vec<float> weights) {
    const Words bits = (Words)weights.v;
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words is_nan = (Words)(weights.v != weights.v);
    const Words result = (is_nan & ((bits >> 16) | 0x40)) | (~is_nan & rounded);
    const Halves halves = __builtin_convertvector(result, Halves);
    __builtin_memcpy(to, &halves, sizeof halves);
  }
};

}  // namespace

const StorageKernels<float> TIDEGATE_TABLE(bf16_weights) = storage_kernels<Bf16Weights>();

}  // namespace tidegate
