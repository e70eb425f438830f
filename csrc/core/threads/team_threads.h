// Where the threads of the team come from: OpenMP's run-time library (team_openmp.cc) or
// std::thread (team_std.cc). A build contains one of the two files. What the threads do once they
// run is in threads.cc.
#ifndef TIDEGATE_CORE_THREADS_TEAM_THREADS_H_
#define TIDEGATE_CORE_THREADS_TEAM_THREADS_H_

namespace tidegate {

class Team;

// The name of what makes the threads, for users: "OpenMP (libgomp)", "OpenMP (libomp)" or
// "std::thread".
const char* team_runtime();

// What the run-time library allows the calling thread.
struct TeamLimits {
  int threads;  // the greatest size of a team, the calling thread included
  bool binds;   // it binds threads to processors, in the order in which one request makes them
  int cpus;     // where it binds: the processors of the process before it bound any thread
};
TeamLimits team_limits();

// Whether the calling thread is in a parallel region that other code opened. std::thread has no
// such regions, and cannot see those of an OpenMP library in the same process: always false there.
bool in_parallel_region();

struct MadeThreads {
  int count;   // threads that run, or are about to
  bool final;  // the library gave fewer threads than it could make, and will not give more
};

// Makes up to `wanted` threads, which may run on all processors of the process and inherit the
// calling thread's signal mask. Each calls serve(team, index), index in [0, count), which must not
// return. Only one thread of the process may be in this function at a time. Throws nothing: a
// thread that cannot be made is not counted.
MadeThreads make_team_threads(int wanted, void (*serve)(Team& team, int index),
                              Team& team) noexcept;

}  // namespace tidegate

#endif  // TIDEGATE_CORE_THREADS_TEAM_THREADS_H_
