// Parameters in low precision as Python sees them: a dict of "precision" (a str), and flat arrays
// as in QuantizedParameters: "int8" and "scales", or "bfloat16" (as uint16), and "vectors".
#ifndef TIDEGATE_BINDINGS_PRECISION_H_
#define TIDEGATE_BINDINGS_PRECISION_H_

#include <string>

#include "arrays.h"
#include "tidegate/precision.h"

namespace tidegate::bindings {

// The name of a low precision.
Precision read_precision(const std::string& name);
// The precision of a call's products: "bfloat16" or "bfloat16-dot", or None for that of the
// parameters.
Precision read_products_precision(py::handle name);

py::dict quantized_dict(const QuantizedParameters& parameters);
QuantizedParameters read_quantized(const py::dict& given);

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_PRECISION_H_
