// The threads of the team by std::thread.
#include <climits>
#include <exception>
#include <thread>

#include "core/threads/processors.h"
#include "core/threads/team_threads.h"

namespace tidegate {

const char* team_runtime() { return "std::thread"; }

TeamLimits team_limits() { return {INT_MAX, false, 0}; }

bool in_parallel_region() { return false; }

MadeThreads make_team_threads(int wanted, void (*serve)(Team& team, int index),
                              Team& team) noexcept {
  int made = 0;
  try {
    for (; made < wanted; ++made) {
      std::thread([serve, &team, index = made] {
        take_process_affinity();
        serve(team, index);
      }).detach();
    }
  } catch (const std::exception&) {  // the system, or the memory, has no more
  }
  return {made, false};
}

}  // namespace tidegate
