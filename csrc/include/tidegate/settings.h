// Process-wide settings: thread counts and the instruction set, and what the build is.
#ifndef TIDEGATE_SETTINGS_H_
#define TIDEGATE_SETTINGS_H_

#include <string>
#include <vector>

#include "tidegate/export.h"

namespace tidegate {

// Threads a call may use, in force for the calling thread: its own setting, else the process's,
// else TIDEGATE_NUM_THREADS, else the least of CPU affinity, cgroup quota and, where OpenMP makes
// the threads, OpenMP's own limit. It uses those that are worth it, and never more than the
// processors that the process may run on.
TIDEGATE_EXPORT int num_threads();
// The process's; std::invalid_argument unless count >= 1.
TIDEGATE_EXPORT void set_num_threads(int count);
// The calling thread's; 0: none. Returns what was set before.
TIDEGATE_EXPORT int set_thread_num_threads(int count);
// Where num_threads() comes from, in words.
TIDEGATE_EXPORT std::string num_threads_reason();
// What makes the threads in this build: "OpenMP (libgomp)", "OpenMP (libomp)" or "std::thread".
TIDEGATE_EXPORT std::string thread_runtime();

// "baseline", "avx2", "avx512" or "neon": chosen once, at first use.
TIDEGATE_EXPORT std::string isa();
// Of this build those that this machine can run, best last.
TIDEGATE_EXPORT std::vector<std::string> available_isas();
// Swaps the instruction set; for tests and the self-test, while nothing runs. TIDEGATE_ISA makes
// the first choice. std::invalid_argument if unknown or not available.
TIDEGATE_EXPORT void select_isa(const std::string& name);

// How the threads of a call divide its work: "auto" (what the cost model says), or always "rows" of
// the batch or "units" of a step, with all the threads asked for; for tests and the self-test.
TIDEGATE_EXPORT void select_division(const std::string& name);

TIDEGATE_EXPORT std::string version();
TIDEGATE_EXPORT std::string compiler();

}  // namespace tidegate

#endif  // TIDEGATE_SETTINGS_H_
