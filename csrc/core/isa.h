// Choice of the instruction set: which kernel table runs.
#ifndef TIDEGATE_CORE_ISA_H_
#define TIDEGATE_CORE_ISA_H_

#include "kernels/table.h"

namespace tidegate {

// The table in force. Chosen at first use; changed by select_isa() alone.
const KernelTable& kernel_table();

template <class T>
const Kernels<T>& kernels();
template <>
inline const Kernels<float>& kernels<float>() {
  return kernel_table().f32;
}
template <>
inline const Kernels<double>& kernels<double>() {
  return kernel_table().f64;
}

}  // namespace tidegate

#endif  // TIDEGATE_CORE_ISA_H_
