// Where a Buffer's memory comes from.
#include "core/memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace tidegate {
namespace {

// The pages of a large buffer: where the system lets a program choose, a few huge ones instead of
// thousands, each of which would cost an interrupt at its first use, again in every call that needs
// a buffer, and an entry of the translation buffer at every use.
constexpr Index kHugePage = 2 * 1024 * 1024;

std::align_val_t alignment_of(Index size) {
  return std::align_val_t{size >= kHugePage ? static_cast<std::size_t>(kHugePage)
                                            : Arena::kAlignment};
}

}  // namespace

std::byte* Buffer::allocate(Index size) {
  auto* base =
      static_cast<std::byte*>(::operator new(static_cast<std::size_t>(size), alignment_of(size)));
#ifdef __linux__
  // Whole ones: the rest of the last is not ours. Refused where there are none, and no loss then.
  if (size >= kHugePage)
    madvise(base, static_cast<std::size_t>(size / kHugePage * kHugePage), MADV_HUGEPAGE);
#endif
  return base;
}

void Buffer::release() {
  if (base_) ::operator delete(base_, alignment_of(size_));
}

}  // namespace tidegate
