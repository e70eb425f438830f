// The precision of a layer's products, whose operands may have fewer bits than float.
#ifndef TIDEGATE_PRECISION_H_
#define TIDEGATE_PRECISION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

// The type in which weights, and the rows that they multiply, enter a product. Sums, activations,
// states and results are always of the layer's own type.
//
// bfloat16 and bfloat16_dot: both are rounded to bfloat16. The two differ in the order of sums
// alone: that of AMX's matrix unit, and that of AVX512-BF16's dot products. Every processor has
// both. Their parameters are the same; quantize() and loading turn one into the other. int8: both
// are integers in -127..127 with a scale, one for each row of a matrix of weights, one for each row
// of x and h at each step; their sums are exact. The exact formulas are in
// csrc/kernels/bf16_weights.cc, bf16_dot_weights.cc and int8_weights.cc.
//
// Results have the same bits for every division into threads, batches and chunks. Given the same x
// and h, pre-activations also have the same bits on every instruction set of x86-64.
enum class Precision {
  exact,         // the layer's own type
  bfloat16,      // float layers only
  bfloat16_dot,  // float layers only
  int8,          // float layers only
};

// "bfloat16", "bfloat16-dot", "int8"; for `exact` the name of the layer's own type, "float32" or
// "float64".
template <class T>
TIDEGATE_EXPORT const char* precision_name(Precision precision);
// The low precision of this name; nothing for any other name.
TIDEGATE_EXPORT std::optional<Precision> low_precision(std::string_view name);

// The one of bfloat16 and bfloat16_dot whose products are faster on the instruction set in force.
TIDEGATE_EXPORT Precision fastest_bfloat16();

// Whether parameters in one of them are parameters in the other, too: those of the two bfloat16's.
inline bool have_same_parameters(Precision a, Precision b) {
  const auto is_bfloat16 = [](Precision precision) {
    return precision == Precision::bfloat16 || precision == Precision::bfloat16_dot;
  };
  return a == b || (is_bfloat16(a) && is_bfloat16(b));
}

// The parameters of a layer in low precision, in the order of its list of parameters: matrices
// (weights) as bfloat16, or as integers with a scale for each row; vectors (biases, peepholes) in
// float.
struct QuantizedParameters {
  Precision precision = Precision::int8;
  std::vector<std::uint16_t> bfloat16;  // all matrices, row-major, one after the other
  std::vector<std::int8_t> int8;        // for int8 these; quantize() does not use -128
  std::vector<float> scales;            // int8: of all rows of all matrices
  std::vector<float> vectors;           // all vectors
};

// Rounds parameters (laid out as `layout` says) to nearest, ties to even. The scale of a row in
// int8 is its greatest magnitude divided by 127, or 1 if that magnitude is below 2^-100. Throws
// std::invalid_argument that names the parameter if int8 is wanted for a number that is not finite
// or for rows of more than 131072 elements, whose products would not be exact.
TIDEGATE_EXPORT QuantizedParameters quantize(const std::vector<Parameter>& layout,
                                             const float* parameters, Precision precision);

// Throws std::invalid_argument unless these are parameters with this layout, and scales that are
// positive and finite, also if they are multiplied by their integers.
TIDEGATE_EXPORT void check_quantized(const std::vector<Parameter>& layout,
                                     const QuantizedParameters& parameters);

// Copies the parameters to a flat vector: integers are multiplied by their scales.
TIDEGATE_EXPORT void dequantize(const std::vector<Parameter>& layout,
                                const QuantizedParameters& parameters, float* to);

}  // namespace tidegate

#endif  // TIDEGATE_PRECISION_H_
