// The test harness: checks, self-registering tests and main(). No numerics, no shared test data.
//
//   TEST(name) { CHECK(1 + 1 == 2); CHECK_NEAR(x, 0.5, 1e-6); }
//
// One executable per file. It runs every test, or those whose names contain the first argument, and
// exits with 0, with 1 after a failure, or with 77 (CTest's SKIP_RETURN_CODE) on a machine that
// lacks the instruction set TIDEGATE_TEST_ISA (a string literal) for which the file was compiled.
// On such a machine main() must run before any such instruction: keep global initialisers trivial.
#ifndef TIDEGATE_TESTS_CHECK_H_
#define TIDEGATE_TESTS_CHECK_H_

#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>

// Only tests of kernels are compiled for one ISA. Others may see the installed headers alone.
#ifdef TIDEGATE_TEST_ISA
#include "core/processor_features.h"
#define TIDEGATE_TEST_NEEDS_ISA
#else
#define TIDEGATE_TEST_ISA "any"
#endif

namespace tidegate::test {

struct Test {
  const char* name;
  void (*body)();
  Test* next;
};

// The tests, in the order of their declaration.
inline Test* first_test = nullptr;
inline Test** next_link = &first_test;

inline int failures = 0;

struct Registration {
  explicit Registration(Test& test) {
    *next_link = &test;
    next_link = &test.next;
  }
};

// Counts a failure. Returns whether to print it, which limits the number of messages.
inline bool fail() {
  constexpr int shown = 20;
  if (++failures == shown + 1) std::printf("  (further failures are counted, not shown)\n");
  return failures <= shown;
}

inline void check(bool holds, const char* text, const char* file, int line) {
  if (!holds && fail()) std::printf("%s:%d: [%s] CHECK(%s)\n", file, line, TIDEGATE_TEST_ISA, text);
}

// Equal within the tolerance. Equal infinities are near, and NaN is near only NaN.
inline void check_near(double got, double wanted, double tolerance, const char* text,
                       const char* file, int line) {
  const bool holds =
      std::isnan(wanted) ? std::isnan(got) : got == wanted || std::fabs(got - wanted) <= tolerance;
  if (!holds && fail()) {
    std::printf("%s:%d: [%s] CHECK_NEAR(%s): got %.17g, wanted %.17g within %.3g\n", file, line,
                TIDEGATE_TEST_ISA, text, got, wanted, tolerance);
  }
}

inline bool machine_has_isa() {
#if defined(TIDEGATE_TEST_NEEDS_ISA)
  const ProcessorFeatures has;
  const std::pair<const char*, bool> isas[] = {
#if defined(__x86_64__)
      {"avx2", has.avx2},
      {"avx2_vnni", has.avx2_vnni},
      {"avx512", has.avx512},
      {"avx512_vnni", has.avx512_vnni},
      {"avx512_bf16", has.avx512_bf16},
      {"amx", has.amx},
#else
      {"neon_dot", has.neon_dot},
      {"neon_i8mm", has.neon_i8mm},
#endif
  };
  for (const auto& [name, supported] : isas) {
    if (std::strcmp(TIDEGATE_TEST_ISA, name) == 0) return supported;
  }
#endif
  return true;
}

inline int run(const char* filter) {
  for (const Test* test = first_test; test != nullptr; test = test->next) {
    if (filter != nullptr && std::strstr(test->name, filter) == nullptr) continue;
    const int failures_before = failures;
    test->body();
    std::printf("%s %s [%s]\n", failures == failures_before ? "ok    " : "FAILED", test->name,
                TIDEGATE_TEST_ISA);
    std::fflush(stdout);
  }
  if (failures > 0) std::printf("%d failed checks [%s]\n", failures, TIDEGATE_TEST_ISA);
  return failures > 0 ? 1 : 0;
}

}  // namespace tidegate::test

#define CHECK(...) \
  ::tidegate::test::check(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)

#define CHECK_NEAR(got, wanted, tolerance)                                                  \
  ::tidegate::test::check_near(static_cast<double>(got), static_cast<double>(wanted),       \
                               static_cast<double>(tolerance), #got ", " #wanted, __FILE__, \
                               __LINE__)

#define TEST(name)                                                                    \
  static void test_##name();                                                          \
  static ::tidegate::test::Test test_entry_##name{#name, test_##name, nullptr};       \
  static const ::tidegate::test::Registration registration_##name(test_entry_##name); \
  static void test_##name()

int main(int argument_count, char** arguments) {
  if (!tidegate::test::machine_has_isa()) {
    std::printf("skipped: this machine lacks %s\n", TIDEGATE_TEST_ISA);
    return 77;
  }
  return tidegate::test::run(argument_count > 1 ? arguments[1] : nullptr);
}

#endif  // TIDEGATE_TESTS_CHECK_H_
