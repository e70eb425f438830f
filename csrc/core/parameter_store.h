// Parameters as a flat vector, and their packed snapshot, which calls use.
#ifndef TIDEGATE_CORE_PARAMETER_STORE_H_
#define TIDEGATE_CORE_PARAMETER_STORE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/isa.h"
#include "core/threads/fork_safe_mutex.h"
#include "kernels/table.h"
#include "tidegate/errors.h"

namespace tidegate {

// Any number of threads may take snapshots and write at the same time. Packed is immutable; its
// kernels() are those of the ISA for which it was packed.
template <class T, class Packed>
class ParameterStore {
 public:
  // Throws OutOfMemory.
  explicit ParameterStore(Index count) {
    try {
      values_.resize(static_cast<std::size_t>(count));
    } catch (const std::bad_alloc&) {
      throw OutOfMemory("the parameters", count * static_cast<Index>(sizeof(T)));
    }
  }

  Index count() const { return static_cast<Index>(values_.size()); }
  const T* values() const { return values_.data(); }
  // The number of the current values: it grows with each write.
  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }

  // Throws std::invalid_argument unless [offset, offset + count) is a part of the vector.
  void write(Index offset, const T* values, Index count) {
    if (offset < 0 || count < 0 || count > this->count() || offset > this->count() - count) {
      throw std::invalid_argument("offset: got " + std::to_string(offset) + " with " +
                                  std::to_string(count) + " values, wanted a part of " +
                                  std::to_string(this->count()) + " parameters");
    }
    const std::lock_guard lock(mutex_);
    T* const to = values_.data() + offset;
    // Skip repacking if the values are bitwise unchanged (-0 equals 0, NaN does not equal itself).
    if (count == 0 || std::memcmp(to, values, static_cast<std::size_t>(count) * sizeof(T)) == 0)
      return;
    std::copy(values, values + count, to);
    version_.fetch_add(1, std::memory_order_release);
  }

  // Calls update(values), which changes the values in place. No thread packs or writes them
  // meanwhile; `update` must not call the store.
  template <class Update>
  void update(const Update& update) {
    const std::lock_guard lock(mutex_);
    // Counts the write first: if `update` throws after some changes, the values are packed again.
    version_.fetch_add(1, std::memory_order_release);
    update(values_.data());
  }

  // The snapshot of the current values for the current ISA. Calls pack(values) if there is none
  // yet, and then always complete(snapshot, values), which may add parts that are packed on demand.
  template <class Pack, class Complete>
  std::shared_ptr<const Packed> packed(const Pack& pack, const Complete& complete) {
    const std::lock_guard lock(mutex_);
    const std::uint64_t current = version_.load(std::memory_order_relaxed);
    if (!packed_ || packed_version_ != current || &packed_->kernels() != &kernels<T>()) {
      packed_.reset();  // frees the memory for the next snapshot, if no call holds it
      packed_ = pack(values_.data());
      packed_version_ = current;
    }
    complete(*packed_, values_.data());
    return packed_;
  }

 private:
  ForkSafeMutex mutex_;
  std::vector<T> values_;
  std::atomic<std::uint64_t> version_{1};
  std::shared_ptr<const Packed> packed_;
  std::uint64_t packed_version_ = 0;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_PARAMETER_STORE_H_
