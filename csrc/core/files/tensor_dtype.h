// The element types of safetensors files. Their table is in safetensors.cc.
#ifndef TIDEGATE_CORE_FILES_TENSOR_DTYPE_H_
#define TIDEGATE_CORE_FILES_TENSOR_DTYPE_H_

#include <string_view>

#include "tidegate/config.h"

namespace tidegate {

// The bits of an element of this dtype ("F32", "BF16", ...); 0 if the format has no such dtype.
Index element_bits(std::string_view dtype);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_FILES_TENSOR_DTYPE_H_
