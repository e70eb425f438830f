// Parameters in low precision.
#include "tidegate/precision.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "core/isa.h"
#include "core/thread_setup.h"
#include "kernels/table.h"

namespace tidegate {

namespace {

constexpr Precision kLowPrecisions[] = {Precision::bfloat16, Precision::bfloat16_dot,
                                        Precision::int8};
constexpr float kMost = std::numeric_limits<float>::max();

// Rounds the row to `to`, and returns its scale; NaN if the row has a number that is not finite.
float round_row(const float* row, Index size, std::int8_t* to) {
  float most = 0;
  for (Index k = 0; k < size; ++k) {
    if (!std::isfinite(row[k])) return std::numeric_limits<float>::quiet_NaN();
    most = std::max(most, std::abs(row[k]));
  }
  if (most < kLeastInt8Magnitude) most = kInt8Levels;
  const float inverse = kInt8Levels / most;
  for (Index k = 0; k < size; ++k)
    to[k] = static_cast<std::int8_t>(std::nearbyint(row[k] * inverse));
  return most / kInt8Levels;
}

std::uint16_t to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bfloat16(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::string short_text(float number) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", static_cast<double>(number));
  return text;
}

struct Sizes {
  std::size_t matrices = 0;  // elements
  std::size_t rows = 0;      // of all matrices
  std::size_t vectors = 0;   // elements
};

Sizes sizes_of(const std::vector<Parameter>& layout) {
  Sizes sizes;
  for (const Parameter& parameter : layout) {
    const auto size = static_cast<std::size_t>(parameter.size());
    (parameter.columns > 0 ? sizes.matrices : sizes.vectors) += size;
    if (parameter.columns > 0) sizes.rows += static_cast<std::size_t>(parameter.rows);
  }
  return sizes;
}

void require_low(Precision precision) {
  for (const Precision low : kLowPrecisions) {
    if (precision == low) return;
  }
  throw std::invalid_argument("precision: wanted bfloat16, bfloat16-dot or int8");
}

void require_depth(const Parameter& parameter) {
  if (parameter.columns <= kMaxInt8Depth) return;
  throw std::invalid_argument(
      parameter.name + ": got rows of " + std::to_string(parameter.columns) +
      " elements, whose products in int8 would not be exact; wanted at most " +
      std::to_string(kMaxInt8Depth));
}

}  // namespace

template <>
const char* precision_name<float>(Precision precision) {
  switch (precision) {
    case Precision::bfloat16:
      return "bfloat16";
    case Precision::bfloat16_dot:
      return "bfloat16-dot";
    case Precision::int8:
      return "int8";
    default:
      return "float32";
  }
}

template <>
const char* precision_name<double>(Precision precision) {
  return precision == Precision::exact ? "float64" : precision_name<float>(precision);
}

std::optional<Precision> low_precision(std::string_view name) {
  for (const Precision precision : kLowPrecisions) {
    if (name == precision_name<float>(precision)) return precision;
  }
  return std::nullopt;
}

Precision fastest_bfloat16() {
  const auto cost_of = [](StorageKind kind) {
    return storage_of(kernels<float>(), kind)->cost.product_flops;
  };
  return cost_of(kBf16DotWeights) < cost_of(kBf16Weights) ? Precision::bfloat16_dot
                                                          : Precision::bfloat16;
}

QuantizedParameters quantize(const std::vector<Parameter>& layout, const float* parameters,
                             Precision precision) {
  require_low(precision);
  const ThreadSetup setup;  // rounding to nearest
  const Sizes sizes = sizes_of(layout);
  QuantizedParameters result;
  result.precision = precision;
  result.vectors.reserve(sizes.vectors);
  const bool is_int8 = precision == Precision::int8;
  if (is_int8) {
    result.int8.resize(sizes.matrices);
    result.scales.reserve(sizes.rows);
  } else {
    result.bfloat16.reserve(sizes.matrices);
  }
  std::int8_t* to = result.int8.data();
  for (const Parameter& parameter : layout) {
    const float* const from = parameters + parameter.offset;
    if (parameter.columns == 0) {
      result.vectors.insert(result.vectors.end(), from, from + parameter.size());
    } else if (is_int8) {
      require_depth(parameter);
      for (Index row = 0; row < parameter.rows; ++row, to += parameter.columns) {
        result.scales.push_back(round_row(from + row * parameter.columns, parameter.columns, to));
        if (std::isnan(result.scales.back())) {
          throw std::invalid_argument(parameter.name + ": got a number that is not finite in row " +
                                      std::to_string(row) +
                                      "; int8 has no such numbers, wanted finite weights");
        }
      }
    } else {
      std::transform(from, from + parameter.size(), std::back_inserter(result.bfloat16),
                     to_bfloat16);
    }
  }
  return result;
}

void check_quantized(const std::vector<Parameter>& layout, const QuantizedParameters& parameters) {
  require_low(parameters.precision);
  const bool is_int8 = parameters.precision == Precision::int8;
  const Sizes sizes = sizes_of(layout);
  const auto require_size = [](const char* name, std::size_t got, std::size_t wanted) {
    if (got == wanted) return;
    throw std::invalid_argument(std::string(name) + ": got " + std::to_string(got) +
                                " elements, wanted " + std::to_string(wanted));
  };
  require_size("int8", parameters.int8.size(), is_int8 ? sizes.matrices : 0);
  require_size("scales", parameters.scales.size(), is_int8 ? sizes.rows : 0);
  require_size("bfloat16", parameters.bfloat16.size(), is_int8 ? 0 : sizes.matrices);
  require_size("vectors", parameters.vectors.size(), sizes.vectors);
  if (!is_int8) return;
  const std::int8_t* values = parameters.int8.data();
  const float* scale = parameters.scales.data();
  for (const Parameter& parameter : layout) {
    if (parameter.columns == 0) continue;
    require_depth(parameter);
    for (Index row = 0; row < parameter.rows; ++row, ++scale, values += parameter.columns) {
      const std::int8_t* const end = values + parameter.columns;
      const float levels = std::find(values, end, std::int8_t{-128}) != end ? 128 : kInt8Levels;
      if (std::isnormal(*scale) && *scale > 0 && *scale <= kMost / levels) continue;
      throw std::invalid_argument(
          parameter.name + ": got the scale " + short_text(*scale) + " for row " +
          std::to_string(row) + ", wanted a positive finite number, " +
          short_text(std::numeric_limits<float>::min()) + " to " + short_text(kMost / levels));
    }
  }
}

void dequantize(const std::vector<Parameter>& layout, const QuantizedParameters& parameters,
                float* to) {
  const ThreadSetup setup;
  const std::int8_t* int8 = parameters.int8.data();
  const std::uint16_t* bfloat16 = parameters.bfloat16.data();
  const float* scale = parameters.scales.data();
  const float* vector = parameters.vectors.data();
  for (const Parameter& parameter : layout) {
    float* values = to + parameter.offset;
    float* const end = values + parameter.size();
    if (parameter.columns == 0) {
      values = std::copy(vector, vector + parameter.size(), values);
      vector += parameter.size();
    } else if (parameters.precision != Precision::int8) {
      while (values < end) *values++ = from_bfloat16(*bfloat16++);
    } else {
      for (; values < end; ++scale) {
        // 127 * (m / 127) may round to more than m, the greatest magnitude, and then overflow.
        for (Index k = 0; k < parameter.columns; ++k)
          *values++ = std::clamp(static_cast<float>(*int8++) * *scale, -kMost, kMost);
      }
    }
  }
}

}  // namespace tidegate
