// The implementation of Model, which Stream uses, too.
#ifndef TIDEGATE_CORE_MODEL_IMPL_H_
#define TIDEGATE_CORE_MODEL_IMPL_H_

#include <memory>

#include "core/parameter_store.h"
#include "core/weights.h"
#include "tidegate/model.h"

namespace tidegate {

template <class T>
struct Model<T>::Impl {
  explicit Impl(const Config& network);
  Impl(const Config& network, QuantizedParameters quantized);

  // The storage of a call whose products have this precision; exact is that of the parameters.
  // Throws std::invalid_argument if there is none.
  StorageKind storage_kind(Precision products) const;
  // The packed snapshot of the current parameters for the current ISA and this storage (for
  // streams, that of the parameters), with the panels for the backward pass if the call is
  // recorded. If necessary, packs it with at most `threads` threads.
  std::shared_ptr<const Weights<T>> weights(int threads, StorageKind storage, bool records);
  std::shared_ptr<const Weights<T>> weights(int threads = 1) {
    return weights(threads, parameters.storage_kind(), false);
  }

  const Config config;
  ParameterStore<T, Weights<T>> parameters;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_MODEL_IMPL_H_
