// Arena and Buffer: alignment, counting, and sizes beyond any memory.
#include "core/memory.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "check.h"

#ifdef __linux__
#include <unistd.h>
#endif

namespace {

using namespace tidegate;

constexpr Index kMost = std::numeric_limits<Index>::max();

template <class F>
bool throws_length_error(const F& f) {
  try {
    f();
  } catch (const std::length_error&) {
    return true;
  }
  return false;
}

bool aligned(const void* array) {
  return reinterpret_cast<std::uintptr_t>(array) % Arena::kAlignment == 0;
}

// Arrays of several types and odd sizes.
struct Arrays {
  char* bytes = nullptr;
  double* doubles = nullptr;
  float* none = nullptr;
  float* floats = nullptr;
  float** pointers = nullptr;

  void take(Arena& arena) {
    bytes = arena.take<char>(3);
    doubles = arena.take<double>(5, 3);
    none = arena.take<float>(0);
    floats = take_zeros<float>(arena, 17);
    pointers = arena.take<float*>(2, 2, 2);
  }

  static constexpr Index rounded_size = 64 + 128 + 0 + 128 + 64;
};

}  // namespace

TEST(products_of_sizes) {
  CHECK(checked_size(7) == 7);
  CHECK(checked_size(2, 3, 5) == 30);
  CHECK(checked_size(0, kMost, kMost) == 0);
  CHECK(checked_size(kMost, 1) == kMost);
  CHECK(throws_length_error([] { checked_size(kMost, 2); }));
  CHECK(throws_length_error([] { checked_size(Index{1} << 32, Index{1} << 31); }));
  CHECK(throws_length_error([] { checked_size(2, Index{1} << 31, Index{1} << 31, 2); }));
}

TEST(an_empty_arena_counts) {
  Arena arena;
  CHECK(arena.counting());
  CHECK(arena.used() == 0);
  Arrays arrays;
  arrays.take(arena);
  CHECK(arrays.doubles == nullptr);
  CHECK(arrays.floats == nullptr);
  CHECK(arena.used() == Arrays::rounded_size);
}

TEST(a_buffer_hands_out_cache_lines) {
  Arrays arrays;
  int passes = 0;
  const Buffer buffer([&](Arena& arena) {
    ++passes;
    arrays.take(arena);
  });
  CHECK(passes == 2);
  CHECK(buffer.size() == Arrays::rounded_size);
  CHECK(aligned(arrays.bytes));
  CHECK(aligned(arrays.doubles));
  CHECK(aligned(arrays.floats));
  CHECK(aligned(arrays.pointers));
  CHECK(reinterpret_cast<char*>(arrays.doubles) == arrays.bytes + 64);
  CHECK(reinterpret_cast<char*>(arrays.floats) == arrays.bytes + 64 + 128);
  for (int i = 0; i < 17; ++i) CHECK(arrays.floats[i] == 0.0f);
  // All of it is writable, which a sanitizer checks.
  std::memset(arrays.bytes, 1, 3);
  std::memset(arrays.doubles, 1, 15 * sizeof(double));
  std::memset(arrays.floats, 1, 17 * sizeof(float));
  std::memset(arrays.pointers, 0, 8 * sizeof(float*));
}

TEST(a_buffer_of_nothing) {
  float* array = nullptr;
  const Buffer empty([&](Arena& arena) { array = arena.take<float>(0, 100); });
  CHECK(empty.size() == 0);
  CHECK(array == nullptr);
  CHECK(Buffer().size() == 0);
}

// A buffer of several huge pages and a part of one.
TEST(a_large_buffer) {
  constexpr Index kCount = 1'500'000;
  double* numbers = nullptr;
  Buffer first([&](Arena& arena) { numbers = arena.take<double>(kCount); });
  CHECK(aligned(numbers));
  for (Index i = 0; i < kCount; ++i) numbers[i] = static_cast<double>(i);
  const Buffer second(std::move(first));
  for (Index i = 0; i < kCount; i += 499'999) CHECK(numbers[i] == static_cast<double>(i));
}

// Each size around that of a huge page, from first to last byte; impossible sizes are refused.
TEST(buffers_of_their_own_pages) {
  constexpr Index kHugePage = Index{2} << 20;
  for (const Index size : {kHugePage - 64, kHugePage, kHugePage + 64, 3 * kHugePage - 4096}) {
    char* bytes = nullptr;
    for (int i = 0; i < 20; ++i) {
      const Buffer buffer([&](Arena& arena) { bytes = arena.take<char>(size); });
      CHECK(buffer.size() == size);
      CHECK(size < kHugePage || reinterpret_cast<std::uintptr_t>(bytes) % kHugePage == 0);
      std::memset(bytes, i, static_cast<std::size_t>(size));
    }
  }
  bool refused = false;
  try {
    Buffer([](Arena& arena) { arena.take<char>(Index{1} << 60); });
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  CHECK(refused);
}

#ifdef __linux__
// A new buffer of the same size reuses a released buffer's pages, one of another size does not; the
// oldest released buffers are freed before too many are kept.
TEST(large_buffers_are_kept) {
  constexpr Index kMegabyte = Index{1} << 20;
  const auto take = [](Index size, char*& bytes) {
    return Buffer([&](Arena& arena) { bytes = arena.take<char>(size); });
  };
  const auto resident = [] {
    long pages = 0;
    FILE* const file = std::fopen("/proc/self/statm", "r");
    CHECK(file != nullptr && std::fscanf(file, "%*d %ld", &pages) == 1);
    if (file) std::fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
  };
  char* first = nullptr;
  char* again = nullptr;
  char* other = nullptr;
  {
    const Buffer buffer = take(5 * kMegabyte, first);
  }
  {
    const Buffer buffer = take(5 * kMegabyte, again);
    CHECK(again == first);
    const Buffer second = take(5 * kMegabyte, other);
    CHECK(other != first);
    std::memset(again, 1, 5 * kMegabyte);
    std::memset(other, 2, 5 * kMegabyte);
    CHECK(again[5 * kMegabyte - 1] == 1);
  }
  const long before = resident();
  for (Index size = 20; size < 40; ++size) {
    const Buffer buffer = take(size * kMegabyte, other);
    std::memset(other, 3, static_cast<std::size_t>(size * kMegabyte));
  }
  CHECK(resident() - before <= 130 * kMegabyte);
  {
    const Buffer buffer = take(200 * kMegabyte, other);
  }
}
#endif

TEST(a_buffer_moves) {
  int* numbers = nullptr;
  Buffer first([&](Arena& arena) { numbers = arena.take<int>(100); });
  numbers[99] = 7;
  Buffer second(std::move(first));
  CHECK(first.size() == 0);
  CHECK(second.size() == 448);
  CHECK(numbers[99] == 7);

  Buffer third([](Arena& arena) { arena.take<int>(1); });
  third = std::move(second);
  CHECK(second.size() == 0);
  CHECK(third.size() == 448);
  CHECK(numbers[99] == 7);
  Buffer& itself = third;
  third = std::move(itself);
  CHECK(third.size() == 448);
  CHECK(numbers[99] == 7);
}

TEST(sizes_that_overflow) {
  CHECK(throws_length_error([] { Arena().take<double>(kMost); }));
  CHECK(throws_length_error([] { Arena().take<double>(kMost / 8 + 1); }));
  CHECK(throws_length_error([] { Arena().take<char>(kMost); }));  // no room to round up
  CHECK(throws_length_error([] { Arena().take<float>(Index{1} << 31, Index{1} << 31); }));
  CHECK(throws_length_error([] {
    Arena counting;
    take_zeros<float>(counting, kMost);
  }));

  Arena arena;
  arena.take<char>(Index{1} << 62);
  CHECK(throws_length_error([&] { arena.take<char>(Index{1} << 62); }));
  CHECK(arena.used() == Index{1} << 62);

  bool allocated = false;
  CHECK(throws_length_error([&] {
    Buffer([&](Arena& a) {
      allocated = allocated || !a.counting();
      a.take<float>(kMost / 2);
    });
  }));
  CHECK(!allocated);
}
