// The accumulators in memory: written by the products, read by the cell.
#ifndef TIDEGATE_KERNELS_ACCUMULATORS_H_
#define TIDEGATE_KERNELS_ACCUMULATORS_H_

#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// The accumulators of one row and slice: `[gate][width]`.
template <class T>
class Accumulators {
 public:
  explicit Accumulators(T* gates) : gates_(gates) {}

  Vec<T> operator[](int gate) const { return load<T>(gates_ + gate * Vec<T>::width); }
  void set(int gate, Vec<T> value) const { store(gates_ + gate * Vec<T>::width, value); }

 private:
  T* gates_;
};

template <class T>
inline T* accumulators_of(const PhaseCall<T>& call, Index row, Index slice) {
  return call.accumulators + row * call.accumulators_row_stride +
         (slice - call.accumulators_first_slice) * call.accumulators_slice_stride;
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_ACCUMULATORS_H_
