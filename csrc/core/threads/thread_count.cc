// How many threads the process may use: settings, CPU affinity, cgroup quotas, and OpenMP's limit
// if it makes the threads.
#include "core/threads/thread_count.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "core/descriptor.h"
#include "core/threads/processors.h"
#include "core/threads/team_threads.h"
#include "tidegate/settings.h"

namespace tidegate {
namespace {

enum class Source : std::uint32_t { unknown, call, environment, affinity, quota, openmp };

struct Count {
  int threads;
  Source source;
};

const char* describe(Source source) {
  switch (source) {
    case Source::call:
      return "set for the process";
    case Source::environment:
      return "TIDEGATE_NUM_THREADS";
    case Source::affinity:
      return "CPUs that the process may run on";
    case Source::quota:
      return "cgroup CPU quota";
    case Source::openmp:
      return "OpenMP's limit (OMP_NUM_THREADS or OMP_THREAD_LIMIT)";
    case Source::unknown:
      break;
  }
  return "";
}

// The Count of the process in one word; zero until it is first needed. An atomic rather than a
// static local, whose guard another thread might hold when the process forks: the child would wait
// forever.
std::atomic<std::uint64_t> process_setting{0};

thread_local int thread_setting = 0;

std::uint64_t pack(Count count) {
  return static_cast<std::uint64_t>(count.source) << 32 | static_cast<std::uint32_t>(count.threads);
}

Count unpack(std::uint64_t word) {
  return {static_cast<int>(word & 0xFFFFFFFFu), static_cast<Source>(word >> 32)};
}

Count machine_default() {
  const TeamLimits team = team_limits();
  // Where OpenMP binds threads it has already bound the main thread to one processor, and knows
  // which ones the process had before.
  int cpus = team.binds ? team.cpus : process_affinity_count();
  if (cpus < 1) cpus = static_cast<int>(std::thread::hardware_concurrency());
  Count least{cpus < 1 ? 1 : cpus, Source::affinity};
  const int quota = cgroup_cpu_limit("/");
  if (quota > 0 && quota < least.threads) least = {quota, Source::quota};
  if (team.threads < least.threads) least = {team.threads, Source::openmp};
  return least;
}

Count initial_count() {
  const char* text = std::getenv("TIDEGATE_NUM_THREADS");
  if (text == nullptr || *text == '\0') return machine_default();
  const std::string_view view(text);
  int threads = 0;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), threads);
  if (error != std::errc() || end != view.data() + view.size() || threads < 1) {
    throw std::invalid_argument("TIDEGATE_NUM_THREADS must be a positive integer, got \"" +
                                std::string(view) + "\"");
  }
  return {threads, Source::environment};
}

Count process_count() {
  std::uint64_t word = process_setting.load(std::memory_order_relaxed);
  if (word == 0) {
    const std::uint64_t initial = pack(initial_count());
    // If another thread has set it meanwhile, that value stays.
    if (process_setting.compare_exchange_strong(word, initial, std::memory_order_relaxed)) {
      word = initial;
    }
  }
  return unpack(word);
}

// One cgroup file system that the process sees.
struct CgroupMount {
  std::string root;   // the cgroup that is mounted, as /proc/self/cgroup names it
  std::string point;  // the folder where it is mounted
  bool unified;       // version 2
};

// The contents of a file, as far as they can be read. No C++ streams: they use locales, which two
// copies of the C++ library in one process cannot share (tests/test_exports.py).
std::string read_text(const std::string& path) {
  std::string text;
  Descriptor file;
  file.open(path.c_str(), O_RDONLY);
  if (file.number() < 0) return text;
  for (char buffer[4096];;) {
    const ssize_t count = ::read(file.number(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return text;
    text.append(buffer, static_cast<std::size_t>(count));
  }
}

// The parts between separators; an empty part at the end is left out.
std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const std::size_t size = std::min(text.find(separator), text.size());
    parts.push_back(text.substr(0, size));
    text.remove_prefix(std::min(size + 1, text.size()));
  }
  return parts;
}

bool contains(std::string_view comma_separated, std::string_view name) {
  const std::vector<std::string_view> items = split(comma_separated, ',');
  return std::find(items.begin(), items.end(), name) != items.end();
}

// The integer at the beginning of a text; 0 if there is none.
long long leading_integer(std::string_view text) {
  long long value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// In mountinfo, a blank, newline or backslash of a path is a backslash and three octal digits.
std::string decode_octal(std::string_view text) {
  const auto octal = [&](std::size_t i) {
    return i < text.size() && text[i] >= '0' && text[i] < '8';
  };
  std::string decoded;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && octal(i + 1) && octal(i + 2) && octal(i + 3)) {
      decoded += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                   (text[i + 3] - '0'));
      i += 3;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

// proc/self/mountinfo: "id parent device root point options [optional...] - type source
// super-options".
std::vector<CgroupMount> cgroup_mounts(const std::string& file_root) {
  std::vector<CgroupMount> mounts;
  const std::string text = read_text(file_root + "/proc/self/mountinfo");
  for (const std::string_view line : split(text, '\n')) {
    const std::vector<std::string_view> fields = split(line, ' ');
    std::size_t dash = 6;
    while (dash < fields.size() && fields[dash] != "-") ++dash;
    if (dash + 3 >= fields.size()) continue;
    const bool unified = fields[dash + 1] == "cgroup2";
    if (unified || (fields[dash + 1] == "cgroup" && contains(fields[dash + 3], "cpu"))) {
      mounts.push_back({decode_octal(fields[3]), decode_octal(fields[4]), unified});
    }
  }
  return mounts;
}

// The cgroup of the process, from proc/self/cgroup, whose lines are "id:controllers:path", and
// "0::path" for version 2. Empty if unknown.
std::string cgroup_path(const std::string& file_root, bool unified) {
  const std::string text = read_text(file_root + "/proc/self/cgroup");
  for (const std::string_view line : split(text, '\n')) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == line.npos ? first : line.find(':', first + 1);
    if (second == line.npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const bool match = unified ? line.substr(0, first) == "0" && controllers.empty()
                               : contains(controllers, "cpu");
    if (match) return std::string(line.substr(second + 1));
  }
  return {};
}

// The cgroup of the process relative to the mount: "" for the mounted cgroup itself, else "/a/b".
// In a container the path may be outside of the mount (another beginning, or ".."); then only the
// mounted cgroup is visible.
std::string below_mount(const CgroupMount& mount, const std::string& path) {
  const std::string root = mount.root == "/" ? "" : mount.root;
  if (path.compare(0, root.size(), root) != 0) return {};
  std::string below = path.substr(root.size());
  if (below.empty() || below[0] != '/' || below.find("/..") != std::string::npos) return {};
  while (!below.empty() && below.back() == '/') below.pop_back();
  return below;
}

// The quota of one cgroup, without its ancestors, in CPUs, rounded up; 0: no quota.
int quota_of(const std::string& directory, bool unified) {
  long long quota = 0;
  long long period = 0;
  if (unified) {
    const std::string text = read_text(directory + "/cpu.max");  // "max 100000": no quota
    const std::vector<std::string_view> fields = split(text, ' ');
    if (fields.size() < 2) return 0;
    quota = leading_integer(fields[0]);
    period = leading_integer(fields[1]);
  } else {
    quota = leading_integer(read_text(directory + "/cpu.cfs_quota_us"));  // -1: none
    period = leading_integer(read_text(directory + "/cpu.cfs_period_us"));
  }
  if (quota <= 0 || period <= 0) return 0;
  const long long cpus = quota / period + (quota % period != 0);
  return cpus > INT_MAX ? INT_MAX : static_cast<int>(cpus);
}

}  // namespace

int cgroup_cpu_limit(const std::string& root) {
  int least = 0;
  for (const CgroupMount& mount : cgroup_mounts(root)) {
    std::string below = below_mount(mount, cgroup_path(root, mount.unified));
    for (;;) {
      const int limit = quota_of(root + mount.point + below, mount.unified);
      if (limit > 0 && (least == 0 || limit < least)) least = limit;
      if (below.empty()) break;
      below.resize(below.rfind('/'));
    }
  }
  return least;
}

int process_num_threads() { return process_count().threads; }

int num_threads() { return thread_setting > 0 ? thread_setting : process_num_threads(); }

void set_num_threads(int count) {
  if (count < 1) {
    throw std::invalid_argument("num_threads must be at least 1, got " + std::to_string(count));
  }
  process_setting.store(pack({count, Source::call}), std::memory_order_relaxed);
}

int set_thread_num_threads(int count) {
  if (count < 0) {
    throw std::invalid_argument("num_threads must be at least 1, or 0 for none, got " +
                                std::to_string(count));
  }
  const int before = thread_setting;
  thread_setting = count;
  return before;
}

std::string num_threads_reason() {
  const Count process = process_count();
  if (thread_setting == 0) return describe(process.source);
  std::string reason = "set for this thread";
  if (thread_setting > process.threads) {
    reason += "; at most " + std::to_string(process.threads) +
              " run at once: " + describe(process.source);
  }
  return reason;
}

}  // namespace tidegate
