// What Model holds, for Model itself and for Stream.
#ifndef TIDEGATE_CORE_MODEL_IMPL_H_
#define TIDEGATE_CORE_MODEL_IMPL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/fork_safe_mutex.h"
#include "core/isa.h"
#include "core/weights.h"
#include "tidegate/model.h"

namespace tidegate {

template <class T>
struct Model<T>::Impl {
  explicit Impl(const Config& network);

  // The packed snapshot of the current parameters for the ISA in force; made if it is not there, by
  // at most `threads` threads.
  std::shared_ptr<const Weights<T>> weights(int threads = 1);

  const Config config;
  std::vector<T> parameters;
  std::atomic<std::uint64_t> version{1};  // counts writes

 private:
  friend class Model<T>;
  ForkSafeMutex mutex_;  // of parameters and what follows
  std::shared_ptr<const Weights<T>> packed_;
  std::uint64_t packed_version_ = 0;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_MODEL_IMPL_H_
