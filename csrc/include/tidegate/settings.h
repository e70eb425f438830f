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

// "baseline", "avx2", "avx512" or "neon": chosen once, at first use. TIDEGATE_ISA, if set, names
// it.
TIDEGATE_EXPORT std::string isa();
// Those of this build that this machine can run, best last.
TIDEGATE_EXPORT std::vector<std::string> available_isas();

TIDEGATE_EXPORT std::string version();
TIDEGATE_EXPORT std::string compiler();

}  // namespace tidegate

#endif  // TIDEGATE_SETTINGS_H_
