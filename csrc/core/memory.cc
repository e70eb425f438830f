// Where a Buffer's memory comes from.
#include "core/memory.h"

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

// Begins at a huge page: as much more is mapped first, and what then is too much given back.
std::byte* map(std::size_t size) {
  const std::size_t length = whole_pages(size);
  void* const mapped =
      mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
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
#endif

}  // namespace

std::byte* Buffer::allocate(Index size) {
  const auto bytes = static_cast<std::size_t>(size);
#ifdef __linux__
  if (has_pages_of_its_own(bytes)) return map(bytes);
#endif
  return static_cast<std::byte*>(::operator new(bytes, kAlignment));
}

void Buffer::release() {
  if (base_ == nullptr) return;
#ifdef __linux__
  const auto bytes = static_cast<std::size_t>(size_);
  if (has_pages_of_its_own(bytes)) {
    munmap(base_, whole_pages(bytes));
    return;
  }
#endif
  ::operator delete(base_, kAlignment);
}

}  // namespace tidegate
