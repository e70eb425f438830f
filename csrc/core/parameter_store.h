// Parameters as a flat vector or in low precision, and their packed snapshot, which calls use.
#ifndef TIDEGATE_CORE_PARAMETER_STORE_H_
#define TIDEGATE_CORE_PARAMETER_STORE_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/isa.h"
#include "core/threads/fork_safe_mutex.h"
#include "kernels/table.h"
#include "tidegate/errors.h"
#include "tidegate/precision.h"

namespace tidegate {

// The storage of weights for products in a precision.
inline StorageKind storage_kind_of(Precision precision) {
  switch (precision) {
    case Precision::bfloat16:
      return kBf16Weights;
    case Precision::bfloat16_dot:
      return kBf16DotWeights;
    case Precision::int8:
      return kInt8Weights;
    default:
      return kExactWeights;
  }
}

// Any number of threads may take snapshots and write at the same time. Packed is immutable; its
// kernels() are those of the ISA for which it was packed.
template <class T, class Packed>
class ParameterStore {
 public:
  // Zeros. Throws OutOfMemory.
  explicit ParameterStore(Index count) : count_(count), values_(allocated(count)) {}

  // Parameters in low precision, which cannot be changed. Throws std::invalid_argument if they do
  // not have this layout, or if T is not float.
  ParameterStore(std::vector<Parameter> layout, QuantizedParameters parameters)
      : count_(layout.empty() ? 0 : layout.back().offset + layout.back().size()),
        layout_(std::move(layout)),
        quantized_(std::move(parameters)) {
    if (!std::is_same_v<T, float>) throw std::invalid_argument(kOnlyFloat);
    check_quantized(layout_, *quantized_);
  }

  Index count() const { return count_; }
  const T* values() const { return quantized_ ? nullptr : values_.data(); }
  Precision precision() const { return quantized_ ? quantized_->precision : Precision::exact; }
  const QuantizedParameters* quantized() const { return quantized_ ? &*quantized_ : nullptr; }
  // The number of the current values: it grows with each write.
  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }

  // Copies all parameters; those in low precision are dequantised.
  void read(T* to) const {
    const std::lock_guard lock(mutex_);
    copy(to);
  }

  // The parameters in low precision. Throws std::invalid_argument unless they are exact floats, or
  // of another precision with the same parameters.
  QuantizedParameters in_precision(const std::vector<Parameter>& layout,
                                   Precision precision) const {
    if (quantized_) {
      if (precision != this->precision() && have_same_parameters(precision, this->precision())) {
        QuantizedParameters same = *quantized_;
        same.precision = precision;
        return same;
      }
      throw std::invalid_argument(std::string("precision: the parameters are already in ") +
                                  precision_name<T>(this->precision()) +
                                  "; quantise the layer from which these were made");
    }
    const std::lock_guard lock(mutex_);
    if constexpr (std::is_same_v<T, float>) return quantize(layout, values_.data(), precision);
    throw std::invalid_argument(kOnlyFloat);
  }

  // Throws std::invalid_argument unless [offset, offset + count) is a part of the vector, or if the
  // parameters are in low precision.
  void write(Index offset, const T* values, Index count) {
    require_exact();
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
    require_exact();
    const std::lock_guard lock(mutex_);
    // Counts the write first: if `update` throws after some changes, the values are packed again.
    version_.fetch_add(1, std::memory_order_release);
    update(values_.data());
  }

  // The snapshot of the current values for the current ISA, in storage_kind() or, of exact
  // parameters, in another kind of storage; each kind has its own snapshot. Calls pack(values,
  // storage, scales) if there is none yet, and then always complete(snapshot, values), which may
  // add parts that are packed on demand. In low precision, pack() gets the dequantised values and
  // complete() null.
  template <class Pack, class Complete>
  std::shared_ptr<const Packed> packed(StorageKind kind, const Pack& pack,
                                       const Complete& complete) {
    const std::lock_guard lock(mutex_);
    const std::uint64_t current = version_.load(std::memory_order_relaxed);
    std::shared_ptr<const Packed>& snapshot = packed_[kind];
    if (!snapshot || packed_version_ != current || &snapshot->kernels() != &kernels<T>()) {
      snapshot.reset();  // frees the memory for the next snapshot, if no call holds it
      if (packed_version_ != current) packed_ = {};
      if (quantized_) {
        std::vector<T> values = allocated(count_);
        copy(values.data());
        snapshot = pack(values.data(), kind, scales());
      } else {
        snapshot = pack(values_.data(), kind, nullptr);
      }
      packed_version_ = current;
    }
    complete(*snapshot, values());
    return snapshot;
  }

  StorageKind storage_kind() const { return storage_kind_of(precision()); }

 private:
  static constexpr const char* kOnlyFloat =
      "precision: low precision is for layers of float (float32); convert the layer first";

  static std::vector<T> allocated(Index count) {
    try {
      return std::vector<T>(static_cast<std::size_t>(count));
    } catch (const std::bad_alloc&) {
      throw OutOfMemory("the parameters", count * static_cast<Index>(sizeof(T)));
    }
  }

  void require_exact() const {
    if (!quantized_) return;
    throw std::invalid_argument(std::string("parameters: those in ") +
                                precision_name<T>(precision()) +
                                " cannot be changed; change the layer from which they were made, "
                                "and quantise it again");
  }

  void copy(T* to) const {
    if constexpr (std::is_same_v<T, float>) {
      if (quantized_) return dequantize(layout_, *quantized_, to);
    }
    std::copy(values_.begin(), values_.end(), to);
  }

  const T* scales() const {
    if constexpr (std::is_same_v<T, float>) {
      if (quantized_->precision == Precision::int8) return quantized_->scales.data();
    }
    return nullptr;
  }

  mutable ForkSafeMutex mutex_;
  const Index count_;
  std::vector<T> values_;                // empty in low precision
  const std::vector<Parameter> layout_;  // empty unless in low precision
  const std::optional<QuantizedParameters> quantized_;
  std::atomic<std::uint64_t> version_{1};
  std::array<std::shared_ptr<const Packed>, kStorageKinds> packed_;
  std::uint64_t packed_version_ = 0;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_PARAMETER_STORE_H_
