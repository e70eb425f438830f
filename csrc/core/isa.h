// The choice of the instruction set, and with it of the kernel table.
#ifndef TIDEGATE_CORE_ISA_H_
#define TIDEGATE_CORE_ISA_H_

#include "kernels/table.h"

namespace tidegate {

// The current table. Chosen at first use; only select_isa() changes it.
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

// The storage of this kind of the kernels: null if they have none. For a storage that uses AMX,
// asks once whether this process may use it; if not, returns the storage of the ISA that AMX
// extends.
template <class T>
const StorageKernels<T>* storage_of(const Kernels<T>& kernels, StorageKind kind);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_ISA_H_
