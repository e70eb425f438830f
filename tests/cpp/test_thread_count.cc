// The number of threads: settings, and cgroup quotas in imitations of /proc and /sys/fs/cgroup.
#include "core/threads/thread_count.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "check.h"
#include "core/threads/processors.h"
#include "core/threads/team_threads.h"
#include "tidegate/settings.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace {

using namespace tidegate;

// An imitation of a machine's files, which the destructor removes.
class FakeRoot {
 public:
  FakeRoot() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tidegate_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~FakeRoot() { std::filesystem::remove_all(path_); }
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;

  FakeRoot& file(const std::string& name, const std::string& text) {
    const std::filesystem::path path = path_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return *this;
  }

  FakeRoot& v1_quota(const std::string& cgroup, const std::string& quota,
                     const std::string& period) {
    file(cgroup + "/cpu.cfs_quota_us", quota + "\n");
    return file(cgroup + "/cpu.cfs_period_us", period + "\n");
  }

  int limit() const { return cgroup_cpu_limit(path_.string()); }

 private:
  std::filesystem::path path_;
};

const char* const kUnified =
    "24 1 0:22 / /proc rw,nosuid - proc proc rw\n"
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

const char* const kVersion1 =
    "31 23 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n"
    "33 31 0:29 / /sys/fs/cgroup/cpuset rw shared:11 - cgroup cgroup rw,cpuset\n"
    "34 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:12 - cgroup cgroup rw,cpu,cpuacct\n";

template <class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return {};
}

#ifdef __linux__
// Settings are made once per process: a child process without any setting runs `test` and reports
// whether it holds.
template <class Test>
bool holds_in_child(Test&& test) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) _exit(test() ? 0 : 1);
  int status = -1;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
#endif

}  // namespace

#ifdef __linux__
// These tests come first, while the parent has not determined its count.
TEST(default_obeys_affinity) {
  CHECK(holds_in_child([] {
    unsetenv("TIDEGATE_NUM_THREADS");
    cpu_set_t all, one;
    sched_getaffinity(0, sizeof all, &all);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
      if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
    }
    sched_setaffinity(0, sizeof one, &one);
    return num_threads() == 1 && !num_threads_reason().empty();
  }));
}

// The affinity of a thread that pinned itself is not that of the process.
TEST(default_ignores_affinity_of_one_thread) {
  CHECK(holds_in_child([] {
    unsetenv("TIDEGATE_NUM_THREADS");
    cpu_set_t all;
    sched_getaffinity(0, sizeof all, &all);
    int count = 0, taken = 0;
    std::thread([&] {
      cpu_set_t one;
      CPU_ZERO(&one);
      for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
        if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
      }
      sched_setaffinity(0, sizeof one, &one);
      take_process_affinity();
      cpu_set_t mine;
      sched_getaffinity(0, sizeof mine, &mine);
      taken = CPU_COUNT(&mine);
      sched_setaffinity(0, sizeof one, &one);
      count = num_threads();
    }).join();
    const int quota = cgroup_cpu_limit("");
    int wanted = CPU_COUNT(&all);
    if (quota > 0 && quota < wanted) wanted = quota;
    if (team_limits().threads < wanted) wanted = team_limits().threads;
    return taken == CPU_COUNT(&all) && count == wanted;
  }));
}

#ifdef _OPENMP
TEST(default_obeys_openmp) {
  CHECK(holds_in_child([] {
    unsetenv("TIDEGATE_NUM_THREADS");
    omp_set_num_threads(1);
    return num_threads() == 1;
  }));
}
#else
TEST(without_openmp_the_runtime_has_no_limit) {
  CHECK(team_limits().threads >= 1 << 20);
  CHECK(!team_limits().binds);
}
#endif

TEST(environment_beats_the_default) {
  CHECK(holds_in_child([] {
    setenv("TIDEGATE_NUM_THREADS", "37", 1);
    return num_threads() == 37 && process_num_threads() == 37 &&
           num_threads_reason() == "TIDEGATE_NUM_THREADS";
  }));
}

TEST(an_empty_environment_variable_counts_as_unset) {
  CHECK(holds_in_child([] {
    unsetenv("TIDEGATE_NUM_THREADS");
    const int unset = num_threads();
    return unset >= 1 && holds_in_child([unset] {
             setenv("TIDEGATE_NUM_THREADS", "", 1);
             return num_threads() == unset && num_threads_reason() != "TIDEGATE_NUM_THREADS";
           });
  }));
}

TEST(environment_must_be_a_positive_integer) {
  for (const char* text : {"0", "-1", "two", "2x", " 2", "2.0", "99999999999999999999"}) {
    const bool refused = holds_in_child([text] {
      setenv("TIDEGATE_NUM_THREADS", text, 1);
      const std::string wanted =
          "TIDEGATE_NUM_THREADS must be a positive integer, got \"" + std::string(text) + "\"";
      // Each time, not only the first; and a setting overrides it.
      const bool twice = message_of([] { num_threads(); }) == wanted &&
                         message_of([] { num_threads(); }) == wanted;
      set_num_threads(3);
      return twice && num_threads() == 3;
    });
    CHECK(refused);
    if (!refused) std::printf("  TIDEGATE_NUM_THREADS=\"%s\"\n", text);
  }
}
#endif

TEST(settings_of_the_process_and_of_a_thread) {
  set_num_threads(5);
  CHECK(num_threads() == 5);
  CHECK(num_threads_reason() == "set for the process");
  CHECK(set_thread_num_threads(3) == 0);
  CHECK(num_threads() == 3);
  CHECK(process_num_threads() == 5);
  CHECK(num_threads_reason() == "set for this thread");
  std::thread([] { CHECK(num_threads() == 5); }).join();
  CHECK(set_thread_num_threads(7) == 3);
  CHECK(num_threads() == 7);
  CHECK(num_threads_reason().find("at most 5") != std::string::npos);
  CHECK(set_thread_num_threads(0) == 7);
  CHECK(num_threads() == 5);
}

TEST(settings_refuse_wrong_counts) {
  set_num_threads(5);
  CHECK(message_of([] { set_num_threads(0); }) == "num_threads must be at least 1, got 0");
  CHECK(message_of([] { set_num_threads(-2); }) == "num_threads must be at least 1, got -2");
  CHECK(!message_of([] { set_thread_num_threads(-1); }).empty());
  CHECK(num_threads() == 5);
}

TEST(no_cgroup_files_no_limit) { CHECK(FakeRoot().limit() == 0); }

TEST(garbage_is_no_limit) {
  FakeRoot root;
  root.file("proc/self/mountinfo", "\n-\n1 2 3\na b c d e f - cgroup2\n- - - - - - - - -\n");
  root.file("proc/self/cgroup", "\n:\n::\n0:\nx\n");
  CHECK(root.limit() == 0);
  root.file("proc/self/mountinfo", kUnified).file("proc/self/cgroup", "0::/a\n");
  for (const char* text : {"", "max\n", "max 100000\n", "x y\n", "100000\n", "100000 0\n",
                           "-1 100000\n", "0 100000\n"}) {
    CHECK(root.file("sys/fs/cgroup/a/cpu.max", text).limit() == 0);
  }
}

TEST(unified_quota_rounds_up_and_is_at_least_one) {
  FakeRoot root;
  root.file("proc/self/mountinfo", kUnified).file("proc/self/cgroup", "0::/service\n");
  const std::pair<const char*, int> cases[] = {
      {"200000 100000\n", 2}, {"150000 100000\n", 2}, {"200001 100000\n", 3},
      {"1000 100000\n", 1},   {"50000 25000\n", 2},   {"9223372036854775807 1\n", 2147483647}};
  for (const auto& [text, cpus] : cases) {
    CHECK(root.file("sys/fs/cgroup/service/cpu.max", text).limit() == cpus);
  }
}

TEST(unified_ancestors_count) {
  FakeRoot root;
  root.file("proc/self/mountinfo", kUnified).file("proc/self/cgroup", "0::/a/b/c\n");
  root.file("sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n");
  CHECK(root.limit() == 0);
  root.file("sys/fs/cgroup/a/b/cpu.max", "800000 100000\n");
  CHECK(root.limit() == 8);
  root.file("sys/fs/cgroup/a/cpu.max", "300000 100000\n");
  CHECK(root.limit() == 3);
  root.file("sys/fs/cgroup/a/b/c/cpu.max", "100000 100000\n");
  CHECK(root.limit() == 1);
  root.file("sys/fs/cgroup/a/b/c/cpu.max", "400000 100000\n");
  CHECK(root.limit() == 3);
  // A cgroup that is not an ancestor, and the root of a namespace.
  root.file("sys/fs/cgroup/a/other/cpu.max", "100000 100000\n");
  CHECK(root.limit() == 3);
  root.file("sys/fs/cgroup/cpu.max", "200000 100000\n");
  CHECK(root.limit() == 2);
}

TEST(version_1_quota) {
  FakeRoot root;
  root.file("proc/self/mountinfo", kVersion1);
  root.file("proc/self/cgroup", "5:cpuset:/elsewhere\n4:cpu,cpuacct:/a/b\n1:name=systemd:/x:y\n");
  const std::string cpu = "sys/fs/cgroup/cpu,cpuacct";
  root.v1_quota("sys/fs/cgroup/cpuset/elsewhere", "100000", "100000");
  root.v1_quota(cpu, "-1", "100000").v1_quota(cpu + "/a/b", "-1", "100000");
  CHECK(root.limit() == 0);
  root.v1_quota(cpu + "/a/b", "250000", "100000");
  CHECK(root.limit() == 3);
  root.v1_quota(cpu + "/a", "20000", "10000");
  CHECK(root.limit() == 2);
  root.v1_quota(cpu, "1", "100000");
  CHECK(root.limit() == 1);
}

TEST(hybrid_takes_the_least_of_both) {
  FakeRoot root;
  root.file("proc/self/mountinfo",
            std::string(kVersion1) +
                "41 31 0:37 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n");
  root.file("proc/self/cgroup", "4:cpu,cpuacct:/a\n0::/b\n");
  root.v1_quota("sys/fs/cgroup/cpu,cpuacct/a", "400000", "100000");
  CHECK(root.limit() == 4);
  root.file("sys/fs/cgroup/unified/b/cpu.max", "300000 100000\n");
  CHECK(root.limit() == 3);
  root.v1_quota("sys/fs/cgroup/cpu,cpuacct/a", "100000", "100000");
  CHECK(root.limit() == 1);
}

// A container without a cgroup namespace: the path is the host's, the mount begins at the
// container's cgroup.
TEST(mount_of_the_containers_cgroup) {
  FakeRoot root;
  root.file("proc/self/mountinfo",
            "34 31 0:30 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n");
  root.file("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc/worker\n");
  root.v1_quota("sys/fs/cgroup/cpu", "200000", "100000");
  CHECK(root.limit() == 2);
  root.v1_quota("sys/fs/cgroup/cpu/worker", "100000", "100000");
  CHECK(root.limit() == 1);
}

// Paths outside the mount: the mounted cgroups still limit the process.
TEST(invisible_path) {
  for (const char* path : {"/docker/xyz", "/docker/abcd", "/../other", "/a/../b", "", "relative"}) {
    FakeRoot root;
    root.file("proc/self/mountinfo",
              "34 31 0:30 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
              "35 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    root.file("proc/self/cgroup", "4:cpu:" + std::string(path) + "\n0::" + path + "\n");
    CHECK(root.limit() == 0);
    root.file("sys/fs/cgroup/unified/cpu.max", "300000 100000\n");
    CHECK(root.limit() == 3);
    root.v1_quota("sys/fs/cgroup/cpu", "200000", "100000");
    CHECK(root.limit() == 2);
  }
}

TEST(mount_point_with_a_blank) {
  FakeRoot root;
  root.file("proc/self/mountinfo", "30 23 0:26 / /odd\\040place/c\\134d rw - cgroup2 none rw\n");
  root.file("proc/self/cgroup", "0::/s\n");
  root.file("odd place/c\\d/s/cpu.max", "100000 100000\n");
  CHECK(root.limit() == 1);
}
