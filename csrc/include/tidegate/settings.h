// Process-wide settings: thread counts and the instruction set, and what the build is.
#ifndef TIDEGATE_SETTINGS_H_
#define TIDEGATE_SETTINGS_H_

#include <string>
#include <vector>

namespace tidegate {

// Threads a call may use, in force for the calling thread: its own setting, else the process's,
// else TIDEGATE_NUM_THREADS, else the least of CPU affinity, cgroup quota and OpenMP's own limit.
int num_threads();
void set_num_threads(int count);  // the process's; std::invalid_argument unless count >= 1
int set_thread_num_threads(
    int count);                    // the calling thread's; 0: none. Returns what was set before.
std::string num_threads_reason();  // where num_threads() comes from, in words

std::string isa();  // "baseline", "avx2", "avx512" or "neon": chosen once, at first use
std::vector<std::string> available_isas();  // of this build that this machine can run, best last
// Swaps the instruction set; for tests and the self-test, while nothing runs. TIDEGATE_ISA makes
// the first choice. std::invalid_argument if unknown or not available.
void select_isa(const std::string& name);

// How the threads of a call divide its work: "auto" (what the cost model says), or always "rows" of
// the batch or "units" of a step, with all the threads asked for; for tests and the self-test.
void select_division(const std::string& name);

std::string version();
std::string compiler();

}  // namespace tidegate

#endif  // TIDEGATE_SETTINGS_H_
