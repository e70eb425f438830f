// The memory of the core: aligned buffers, divided into arrays by a layout, a function that both
// counts the bytes and assigns the arrays.
#ifndef TIDEGATE_CORE_MEMORY_H_
#define TIDEGATE_CORE_MEMORY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "tidegate/config.h"
#include "tidegate/errors.h"

namespace tidegate {

// The product and the sum of non-negative sizes. Both throw std::length_error on overflow.
inline Index checked_size(Index a) { return a; }
template <class... More>
Index checked_size(Index a, Index b, More... more) {
  Index product;
  if (__builtin_mul_overflow(a, b, &product))
    throw std::length_error("tidegate: the sizes overflow");
  return checked_size(product, more...);
}

inline Index checked_sum(Index a, Index b) {
  Index sum;
  if (__builtin_add_overflow(a, b, &sum)) throw std::length_error("tidegate: the sizes overflow");
  return sum;
}

// Bytes rounded up to whole cache lines.
inline Index whole_lines(Index bytes) { return checked_sum(bytes, 63) & ~Index{63}; }

// Takes arrays, each of which begins at a cache line, from one buffer. A layout is a function that
// takes all its arrays from an Arena; with an Arena that has no buffer, it only counts.
class Arena {
 public:
  static constexpr std::size_t kAlignment = 64;

  Arena() = default;
  explicit Arena(std::byte* base) : base_(base) {}

  template <class T, class... Sizes>
  T* take(Index size, Sizes... sizes) {
    const Index bytes =
        checked_size(size, static_cast<Index>(sizes)..., static_cast<Index>(sizeof(T)));
    T* array = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    constexpr Index kMask = static_cast<Index>(kAlignment) - 1;
    used_ = checked_sum(checked_sum(used_, bytes), kMask) & ~kMask;
    return array;
  }

  Index used() const { return used_; }
  bool counting() const { return base_ == nullptr; }

 private:
  std::byte* base_ = nullptr;
  Index used_ = 0;
};

template <class T>
T* take_zeros(Arena& arena, Index count) {
  T* zeros = arena.take<T>(count);
  if (!arena.counting()) std::fill(zeros, zeros + count, T(0));
  return zeros;
}

// The memory of a layout. `layout(arena)` must take the same arrays each time. `purpose` describes
// the memory in the text of OutOfMemory.
class Buffer {
 public:
  Buffer() = default;
  // Delegates, so that the destructor runs if the layout throws after the allocation.
  template <class Layout>
  explicit Buffer(Layout&& layout, const char* purpose = "the working memory") : Buffer() {
    Arena counting;
    layout(counting);
    if (counting.used() > 0) base_ = allocate(counting.used(), purpose);
    size_ = counting.used();
    Arena arena(base_);
    layout(arena);
  }
  Buffer(Buffer&& other) noexcept : base_(other.base_), size_(other.size_) {
    other.base_ = nullptr, other.size_ = 0;
  }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      release();
      base_ = other.base_, size_ = other.size_;
      other.base_ = nullptr, other.size_ = 0;
    }
    return *this;
  }
  ~Buffer() { release(); }

  const std::byte* data() const { return base_; }
  Index size() const { return size_; }  // bytes

 private:
  static std::byte* allocate(Index size, const char* purpose);
  void release();

  std::byte* base_ = nullptr;
  Index size_ = 0;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_MEMORY_H_
