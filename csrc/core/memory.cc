// Where a Buffer's memory comes from.
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
// The pages of a large buffer: where the system lets a program choose, a few huge ones instead of
// thousands, each of which would cost an interrupt at its first use, again in every call that needs
// a buffer, and an entry of the translation buffer at every use. Mapped for it alone: the advice
// stays with the pages, so that it must not outlive the buffer, as it would in the heap.
constexpr std::size_t kHugePage = std::size_t{2} << 20;

bool has_pages_of_its_own(std::size_t size) { return size >= kHugePage; }

std::size_t whole_pages(std::size_t size) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return (size + page - 1) / page * page;
}

// Begins at a huge page: as much more is mapped first, and what then is too much given back. Null:
// the system has no memory.
std::byte* map(std::size_t size) noexcept {
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
  // Whole ones: the rest of the last is not ours. Refused where there are none, and no loss then.
  madvise(base, size / kHugePage * kHugePage, MADV_HUGEPAGE);
  return base;
}

// Buffers that were released, for the next of their size: a training loop takes and releases the
// same ones again and again, and fresh pages cost it an interrupt each and are zeroed. Without a
// lock, as a forked child may find it taken.
class Kept {
 public:
  // Null: there is none of this length.
  std::byte* take(std::size_t length) {
    for (std::atomic<std::uint64_t>& slot : slots_) {
      std::uint64_t entry = slot.load(std::memory_order_relaxed);
      if (length_of(entry) == length && slot.compare_exchange_strong(entry, 0))
        return base_of(entry);
    }
    return nullptr;
  }

  // Those kept longest give way.
  void keep(std::byte* base, std::size_t length) {
    if (length > kMostBytes) {
      munmap(base, length);
      return;
    }
    replace(reinterpret_cast<std::uintptr_t>(base) | length / kUnit);
    for (std::size_t i = 0; i < kSlots && bytes() > kMostBytes; ++i) replace(0);
  }

 private:
  static constexpr std::size_t kMostBytes = std::size_t{128} << 20;
  static constexpr std::size_t kSlots = 8;

  // A slot is an address and a length in one word: that is a multiple of kHugePage, this of kUnit,
  // and kMostBytes / kUnit < kHugePage.
  static constexpr std::size_t kUnit = 4096;
  static std::byte* base_of(std::uint64_t entry) {
    return reinterpret_cast<std::byte*>(entry & ~std::uint64_t{kHugePage - 1});
  }
  static std::size_t length_of(std::uint64_t entry) { return entry % kHugePage * kUnit; }

  // Puts an entry, or nothing, in the place of the oldest.
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
Kept kept;
#endif

}  // namespace

std::byte* Buffer::allocate(Index size, const char* purpose) {
  const auto bytes = static_cast<std::size_t>(size);
  std::byte* base = nullptr;
#ifdef __linux__
  if (has_pages_of_its_own(bytes)) {
    base = kept.take(whole_pages(bytes));
    if (base == nullptr) base = map(bytes);
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
  if (has_pages_of_its_own(bytes)) {
    kept.keep(base_, whole_pages(bytes));
    return;
  }
#endif
  ::operator delete(base_, kAlignment);
}

}  // namespace tidegate
