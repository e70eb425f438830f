// The allocation of a Buffer's memory.
#include "core/memory.h"

#include <array>
#include <atomic>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace tidegate {
namespace {

constexpr std::align_val_t kAlignment{Arena::kAlignment};

#ifdef __linux__
// The pages of a large buffer. Where the system lets a program choose, these are a few huge pages
// instead of thousands of small ones. Each page costs a page fault at its first use, again in every
// call that needs a buffer, and an entry of the TLB at every use. The pages are mapped for the
// buffer alone: the advice applies to pages, and in the heap it would outlive the buffer.
constexpr std::size_t kHugePage = std::size_t{2} << 20;

bool is_mapped(std::size_t size) { return size >= kHugePage; }

std::size_t whole_pages(std::size_t size) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return (size + page - 1) / page * page;
}

// Maps memory that begins at the boundary of a huge page: maps one huge page more than needed, and
// unmaps the excess at both ends. Null: the system has no memory.
std::byte* map_pages(std::size_t size) noexcept {
  const std::size_t length = whole_pages(size);
  void* const mapped =
      mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(mapped);
  const std::size_t before =
      (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
  std::byte* const base = begin + before;
  if (before > 0) munmap(begin, before);
  if (before < kHugePage) munmap(base + length, kHugePage - before);
  // For whole huge pages only, because the rest of the last one is not part of the mapping. Fails
  // where the system has no huge pages; small pages then serve as well.
  madvise(base, size / kHugePage * kHugePage, MADV_HUGEPAGE);
  return base;
}

// A cache of released buffers, to be reused for buffers of the same size: a training loop takes and
// releases buffers of the same sizes again and again, and each new page would cost a page fault and
// be zeroed. Lock-free, because a forked child might find a lock held.
class BufferCache {
 public:
  // Null: the cache has no buffer of this length.
  std::byte* take(std::size_t length) {
    for (std::atomic<std::uint64_t>& slot : slots_) {
      std::uint64_t entry = slot.load(std::memory_order_relaxed);
      if (length_of(entry) == length && slot.compare_exchange_strong(entry, 0))
        return base_of(entry);
    }
    return nullptr;
  }

  // Evicts the oldest buffers if necessary.
  void put(std::byte* base, std::size_t length) {
    if (length > kMaxBytes) {
      munmap(base, length);
      return;
    }
    replace(reinterpret_cast<std::uintptr_t>(base) | length / kUnit);
    for (std::size_t i = 0; i < kSlots && bytes() > kMaxBytes; ++i) replace(0);
  }

 private:
  static constexpr std::size_t kMaxBytes = std::size_t{128} << 20;
  static constexpr std::size_t kSlots = 8;

  // A slot holds an address and a length in one word: the address is a multiple of kHugePage, the
  // length a multiple of kUnit, and kMaxBytes / kUnit < kHugePage.
  static constexpr std::size_t kUnit = 4096;
  static std::byte* base_of(std::uint64_t entry) {
    return reinterpret_cast<std::byte*>(entry & ~std::uint64_t{kHugePage - 1});
  }
  static std::size_t length_of(std::uint64_t entry) { return entry % kHugePage * kUnit; }

  // Replaces the oldest entry by `entry`; 0 leaves its slot empty.
  void replace(std::uint64_t entry) {
    const std::uint64_t old = slots_[oldest_++ % kSlots].exchange(entry);
    if (old != 0) munmap(base_of(old), length_of(old));
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const std::atomic<std::uint64_t>& slot : slots_) sum += length_of(slot);
    return sum;
  }

  std::array<std::atomic<std::uint64_t>, kSlots> slots_{};
  std::atomic<std::size_t> oldest_{0};
};
BufferCache buffer_cache;
#endif

}  // namespace

std::byte* Buffer::allocate(Index size, const char* purpose) {
  const auto bytes = static_cast<std::size_t>(size);
  std::byte* base = nullptr;
#ifdef __linux__
  if (is_mapped(bytes)) {
    base = buffer_cache.take(whole_pages(bytes));
    if (base == nullptr) base = map_pages(bytes);
    if (base == nullptr) throw OutOfMemory(purpose, size);
    return base;
  }
#endif
  base = static_cast<std::byte*>(::operator new(bytes, kAlignment, std::nothrow));
  if (base == nullptr) throw OutOfMemory(purpose, size);
  return base;
}

void Buffer::release() {
  if (base_ == nullptr) return;
#ifdef __linux__
  const auto bytes = static_cast<std::size_t>(size_);
  if (is_mapped(bytes)) {
    buffer_cache.put(base_, whole_pages(bytes));
    return;
  }
#endif
  ::operator delete(base_, kAlignment);
}

}  // namespace tidegate
