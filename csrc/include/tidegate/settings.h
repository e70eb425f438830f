// Process-wide settings: thread counts and the instruction set; and properties of the build.
#ifndef TIDEGATE_SETTINGS_H_
#define TIDEGATE_SETTINGS_H_

#include <string>
#include <vector>

#include "tidegate/export.h"

namespace tidegate {

// The greatest number of threads of a call by the calling thread: the thread's own setting, else
// the process's, else TIDEGATE_NUM_THREADS, else the least of CPU affinity, cgroup quota and, in a
// build with OpenMP, OpenMP's own limit. A call uses as many of them as make it faster, and never
// more than the processors on which the process may run.
TIDEGATE_EXPORT int num_threads();
// Sets the process's number; throws std::invalid_argument unless count >= 1.
TIDEGATE_EXPORT void set_num_threads(int count);
// Sets the calling thread's number; 0: no setting of its own. Returns the previous setting.
TIDEGATE_EXPORT int set_thread_num_threads(int count);
// The origin of num_threads(), in words.
TIDEGATE_EXPORT std::string num_threads_reason();
// The thread runtime of this build: "OpenMP (libgomp)", "OpenMP (libomp)" or "std::thread".
TIDEGATE_EXPORT std::string thread_runtime();

// The instruction set in use: "baseline", "avx2", "avx2_vnni", "avx512", "avx512_vnni",
// "avx512_bf16", "amx", "neon", "neon_dot" or "neon_i8mm". Chosen once, at first use; the
// environment variable TIDEGATE_ISA overrides the choice.
TIDEGATE_EXPORT std::string isa();
// The instruction sets of this build that this machine supports, the best one last.
TIDEGATE_EXPORT std::vector<std::string> available_isas();

TIDEGATE_EXPORT std::string version();
TIDEGATE_EXPORT std::string compiler();

}  // namespace tidegate

#endif  // TIDEGATE_SETTINGS_H_
