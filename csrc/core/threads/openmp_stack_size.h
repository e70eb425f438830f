// The size of a stack as OpenMP's environment variables give it. Only in builds with OpenMP.
#ifndef TIDEGATE_CORE_THREADS_OPENMP_STACK_SIZE_H_
#define TIDEGATE_CORE_THREADS_OPENMP_STACK_SIZE_H_

#include <cstddef>

namespace tidegate {

// The bytes that a value of OMP_STACKSIZE means: an integer, then B, K, M or G; K if there is no
// letter. 0 if the variable is not set (null) or its value is not of this form.
std::size_t openmp_stack_size(const char* text);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_OPENMP_STACK_SIZE_H_
