// How many threads the process may use. No threads are made here.
#ifndef TIDEGATE_CORE_THREADS_THREAD_COUNT_H_
#define TIDEGATE_CORE_THREADS_THREAD_COUNT_H_

#include <string>

namespace tidegate {

// The count of the process, regardless of the calling thread's own setting: what set_num_threads()
// set, else TIDEGATE_NUM_THREADS, else the default for the machine. It is also the budget that all
// running calls share. Throws std::invalid_argument if TIDEGATE_NUM_THREADS is in force and is not
// a positive integer.
int process_num_threads();

// The CPU quota of the process's cgroup, in whole CPUs, rounded up: the least quota of the cgroup
// and of those of its ancestors that are visible, in hierarchies of version 1 and 2. 0: no quota.
// proc/ and the cgroup mounts are looked up below `root`, which is "/" except in tests.
int cgroup_cpu_limit(const std::string& root);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_THREAD_COUNT_H_
