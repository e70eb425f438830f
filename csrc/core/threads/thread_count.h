// How many threads the process may use, and why. No threads are made here.
#ifndef TIDEGATE_CORE_THREADS_THREAD_COUNT_H_
#define TIDEGATE_CORE_THREADS_THREAD_COUNT_H_

#include <string>

namespace tidegate {

// The process's count, whatever the calling thread's own: what set_num_threads() set, else
// TIDEGATE_NUM_THREADS, else the machine's default. It is also the budget that all running calls
// share. Throws std::invalid_argument if TIDEGATE_NUM_THREADS is in force and is not a positive
// integer.
int process_num_threads();

// Whole CPUs of the process's cgroup quota, rounded up, the least among its cgroup and all the
// ancestors it can see, of v1 and v2 hierarchies alike; 0 if there is no quota. `root` is where
// proc/ and the cgroup mounts are looked for: "/", or a test's imitation.
int cgroup_cpu_limit(const std::string& root);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_THREAD_COUNT_H_
