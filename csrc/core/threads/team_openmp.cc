// The threads of the team by OpenMP: they are those of a parallel region that never ends.
//
// libgomp's threads spin for milliseconds after each region, which a library cannot change. So a
// thread of this library opens one region, and the region's threads never leave it. No call waits
// for OpenMP.
#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string_view>
#include <system_error>
#include <thread>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/threads/openmp_stack_size.h"
#include "core/threads/processors.h"
#include "core/threads/team_threads.h"
#include "core/threads/threads.h"

namespace tidegate {
namespace {

// The attributes of the threads that the OpenMP library makes, which are the size of their stacks.
// That library read the environment when it was loaded, which is before this library was.
class OpenMPThreadAttributes {
 public:
  OpenMPThreadAttributes() {
    pthread_attr_init(&attributes_);
    // A size that the system refuses leaves the default, as it does in libgomp.
    if (kStackSize > 0) pthread_attr_setstacksize(&attributes_, kStackSize);
  }
  ~OpenMPThreadAttributes() { pthread_attr_destroy(&attributes_); }
  OpenMPThreadAttributes(const OpenMPThreadAttributes&) = delete;
  OpenMPThreadAttributes& operator=(const OpenMPThreadAttributes&) = delete;

  const pthread_attr_t* get() const { return &attributes_; }

  // Whether the kernels' frames, of up to about 40 kB, might not fit.
  static bool stacks_are_too_small() {
    constexpr std::size_t kLeastStack = 128 * 1024;
    return kStackSize > 0 && kStackSize < kLeastStack;
  }

 private:
  static std::size_t environment_stack_size() {
    for (const char* const name : {"OMP_STACKSIZE", "GOMP_STACKSIZE"}) {
      if (const std::size_t size = openmp_stack_size(std::getenv(name)); size > 0) return size;
    }
    return 0;
  }

  static const std::size_t kStackSize;

  pthread_attr_t attributes_;
};

const std::size_t OpenMPThreadAttributes::kStackSize = environment_stack_size();

// How many of `wanted` threads the system can make. libgomp ends the program if it cannot make one,
// so this function tries first. The trial threads all exist at the same time, and are gone when it
// returns.
int makeable_threads(int wanted) noexcept {
  struct Trial {
    pthread_t thread;
    std::atomic<int>* released;
    long id;

    static void* run(void* argument) {
      auto* const trial = static_cast<Trial*>(argument);
#ifdef __linux__
      trial->id = syscall(SYS_gettid);
#endif
      trial->released->wait(0);
      return nullptr;
    }
  };
  if (OpenMPThreadAttributes::stacks_are_too_small()) return 0;
  Trial trials[kMaxThreads];
  const OpenMPThreadAttributes attributes;
  std::atomic<int> released{0};
  int made = 0;
  for (; made < wanted; ++made) {
    Trial& trial = trials[made];
    trial.released = &released;
    if (pthread_create(&trial.thread, attributes.get(), &Trial::run, &trial) != 0) break;
  }
  released = 1;
  released.notify_all();
  for (int i = 0; i < made; ++i) pthread_join(trials[i].thread, nullptr);
#ifdef __linux__
  // A joined thread counts against the system's limits until its id is free, an instant later.
  constexpr int kTurns = 1000;
  for (int i = 0; i < made; ++i) {
    for (int turn = 0; turn < kTurns && syscall(SYS_tgkill, getpid(), trials[i].id, 0) == 0;
         ++turn) {
      std::this_thread::yield();
    }
  }
#endif
  return made;
}

// What the thread that opens a region reports to the thread that waits for it. Static, because the
// opening thread may still notify when the waiting one has gone on.
constexpr int kUnknown = -1;
std::atomic<int> region_threads{kUnknown};
std::atomic<bool> region_is_smaller{false};  // than it could be

void report_region(int threads, bool smaller) {
  region_is_smaller = smaller;
  region_threads = threads;
  region_threads.notify_one();
}

// Run by a thread of its own, which represents the callers: where OpenMP binds threads, it takes
// the processor that the callers have.
void open_region(int wanted, void (*serve)(Team& team, int index), Team& team) {
  take_process_affinity();
  omp_set_dynamic(0);  // for this thread: the present load must not limit the team for good
  const int possible = makeable_threads(wanted);
#pragma omp parallel num_threads(possible + 1)
  {
    const int thread = omp_get_thread_num();
    if (thread > 0) serve(team, thread - 1);
    const int others = omp_get_num_threads() - 1;
    report_region(others, others < possible);
    if (others > 0) {
      std::atomic<int> never{0};
      for (;;) never.wait(0);
    }
  }
}

}  // namespace

const char* team_runtime() {
#ifdef KMP_VERSION_MAJOR
  return "OpenMP (libomp)";
#else
  return "OpenMP (libgomp)";
#endif
}

TeamLimits team_limits() {
  return {std::min(omp_get_max_threads(), omp_get_thread_limit()),
          omp_get_proc_bind() != omp_proc_bind_false, omp_get_num_procs()};
}

bool in_parallel_region() { return omp_in_parallel(); }

MadeThreads make_team_threads(int wanted, void (*serve)(Team& team, int index),
                              Team& team) noexcept {
  region_threads = kUnknown;
  try {
    std::thread([=, &team] { open_region(wanted, serve, team); }).detach();
  } catch (const std::exception&) {
    return {0, false};
  }
  region_threads.wait(kUnknown);
  return {region_threads, region_is_smaller};
}

std::size_t openmp_stack_size(const char* text) {
  if (text == nullptr) return 0;
  const char* const end = text + std::strlen(text);
  const auto skip_blanks = [&] {
    while (text < end && (*text == ' ' || (*text >= '\t' && *text <= '\r'))) ++text;
  };
  skip_blanks();
  std::size_t size = 0;
  const auto [after, error] = std::from_chars(text, end, size);
  if (error != std::errc()) return 0;
  text = after;
  skip_blanks();
  int shift = 10;
  if (text < end) {
    constexpr std::string_view kUnits = "bBkKmMgG";
    const auto unit = kUnits.find(*text++);
    if (unit == std::string_view::npos) return 0;
    shift = static_cast<int>(unit / 2) * 10;
  }
  skip_blanks();
  return text == end && size << shift >> shift == size ? size << shift : 0;
}

}  // namespace tidegate
