// Runs a test on every instruction set of the machine, and with every way to divide a call among
// threads. Uses only the public API.
#ifndef TIDEGATE_TESTS_VARIANTS_H_
#define TIDEGATE_TESTS_VARIANTS_H_

#include <cstdio>
#include <string>

#include "check.h"
#include "core/switches.h"
#include "tidegate/settings.h"

namespace tidegate::test {

// Runs body() with each instruction set in force; prints the one on which a check failed.
template <class Body>
void for_each_isa(const Body& body) {
  const std::string chosen = isa();
  for (const std::string& name : available_isas()) {
    const int failures_before = failures;
    select_isa(name);
    body();
    if (failures > failures_before) std::printf("  ... on %s\n", name.c_str());
  }
  select_isa(chosen);
}

// Runs body(threads) for several numbers of threads that divide rows, then that divide units.
template <class Body>
void for_each_division(const Body& body) {
  constexpr int most = 3;  // odd, for unequal parts and two groups of unequal size
  const int before = num_threads();
  set_num_threads(most);
  for (const char* division : {"rows", "units"}) {
    select_division(division);
    for (int threads = 1; threads <= most; ++threads) {
      const int failures_before = failures;
      body(threads);
      if (failures > failures_before) {
        std::printf("  ... with %d threads that divide %s\n", threads, division);
      }
    }
  }
  select_division("auto");
  set_num_threads(before);
}

}  // namespace tidegate::test

#endif  // TIDEGATE_TESTS_VARIANTS_H_
