// A stream's step, as in an audio callback: from the first one after construction on, it allocates
// and frees nothing, takes no lock and makes no system call. The same holds for the functions that
// turn its output into probabilities, except for the one mutex of a Linear, which no other thread
// holds here. Uses only the public API, C++ and C.
//
// Calls of any thread to these are trapped: malloc and its relatives, free, operator new and
// delete; mutexes, read-write locks, spin locks, condition variables, semaphores, pthread_once and
// the guards of static locals. System calls: a forked child forbids itself all but exit (seccomp),
// so that any other, such as a futex of std::atomic or a yield, ends it. Steps run in another
// thread than the stream's construction, as in audio hosts. Not covered: page faults, and functions
// that the C library implements without a system call (the clock).
//
// Traps need glibc without a sanitizer, which has its own; the child needs Linux with seccomp,
// which emulators (qemu) do not support: there the test reports that it is skipped.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "file_bytes.h"
#include "tidegate/functions.h"
#include "tidegate/linear.h"
#include "tidegate/model.h"
#include "tidegate/safetensors.h"
#include "tidegate/tidegate_c.h"

#if defined(__has_feature)
#define TIDEGATE_TEST_HAS_FEATURE(name) __has_feature(name)
#else
#define TIDEGATE_TEST_HAS_FEATURE(name) 0
#endif

namespace {

[[maybe_unused]] std::atomic<long> locks{0};

}  // namespace

#ifdef TIDEGATE_TEST_WRAPS_GUARDS
// The C++ library's function may be linked statically: the linker wraps it by this one.
extern "C" int __real___cxa_guard_acquire(std::uint64_t* guard);
extern "C" int __wrap___cxa_guard_acquire(std::uint64_t* guard) {
  ++locks;
  return __real___cxa_guard_acquire(guard);
}
#endif

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
    !TIDEGATE_TEST_HAS_FEATURE(address_sanitizer) && !TIDEGATE_TEST_HAS_FEATURE(thread_sanitizer)

#include <dlfcn.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> allocations{0};
std::atomic<long> frees{0};

}  // namespace

// These functions take precedence over the C library's.
#define TIDEGATE_TEST_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
void __libc_free(void* memory);
}

TIDEGATE_TEST_EXPORT void* malloc(std::size_t size) {
  ++allocations;
  return __libc_malloc(size);
}
TIDEGATE_TEST_EXPORT void* calloc(std::size_t count, std::size_t size) {
  ++allocations;
  return __libc_calloc(count, size);
}
TIDEGATE_TEST_EXPORT void* realloc(void* memory, std::size_t size) {
  ++allocations;
  return __libc_realloc(memory, size);
}
TIDEGATE_TEST_EXPORT void* memalign(std::size_t alignment, std::size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
TIDEGATE_TEST_EXPORT void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
TIDEGATE_TEST_EXPORT int posix_memalign(void** memory, std::size_t alignment, std::size_t size) {
  ++allocations;
  *memory = __libc_memalign(alignment, size);
  return *memory != nullptr ? 0 : ENOMEM;
}
TIDEGATE_TEST_EXPORT void free(void* memory) {
  if (memory != nullptr) ++frees;
  __libc_free(memory);
}

// C++'s operators call malloc and free, which count; these catch a library that replaces them.
void* operator new(std::size_t size) {
  if (void* const memory = malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  void* memory = nullptr;
  if (posix_memalign(&memory, static_cast<std::size_t>(alignment), size) == 0) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { free(memory); }
void operator delete(void* memory, std::size_t) noexcept { free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { free(memory); }

// Counts the call, and calls the library's own function of this name.
#define TIDEGATE_TEST_COUNT_LOCK(name, parameters, arguments)               \
  TIDEGATE_TEST_EXPORT int name parameters {                                \
    using Function = int parameters;                                        \
    static Function* next = nullptr;                                        \
    ++locks;                                                                \
    if (!next) next = reinterpret_cast<Function*>(dlsym(RTLD_NEXT, #name)); \
    return next arguments;                                                  \
  }

TIDEGATE_TEST_COUNT_LOCK(pthread_mutex_lock, (pthread_mutex_t * mutex), (mutex))
TIDEGATE_TEST_COUNT_LOCK(pthread_mutex_trylock, (pthread_mutex_t * mutex), (mutex))
TIDEGATE_TEST_COUNT_LOCK(pthread_rwlock_rdlock, (pthread_rwlock_t * lock), (lock))
TIDEGATE_TEST_COUNT_LOCK(pthread_rwlock_wrlock, (pthread_rwlock_t * lock), (lock))
TIDEGATE_TEST_COUNT_LOCK(pthread_spin_lock, (pthread_spinlock_t * lock), (lock))
TIDEGATE_TEST_COUNT_LOCK(pthread_cond_wait, (pthread_cond_t * condition, pthread_mutex_t* mutex),
                         (condition, mutex))
TIDEGATE_TEST_COUNT_LOCK(pthread_cond_signal, (pthread_cond_t * condition), (condition))
TIDEGATE_TEST_COUNT_LOCK(pthread_cond_broadcast, (pthread_cond_t * condition), (condition))
TIDEGATE_TEST_COUNT_LOCK(pthread_once, (pthread_once_t * once, void (*function)()),
                         (once, function))
TIDEGATE_TEST_COUNT_LOCK(sem_wait, (sem_t * semaphore), (semaphore))
TIDEGATE_TEST_COUNT_LOCK(sem_post, (sem_t * semaphore), (semaphore))

namespace {

using namespace tidegate;

static_assert(noexcept(std::declval<Stream<float>&>().step(nullptr, 0, nullptr, 0)));
static_assert(noexcept(std::declval<Stream<float>&>().step(nullptr, 0, nullptr, 0, nullptr, 0)));

std::vector<Config> networks() {
  Config lstm;
  lstm.input_size = 40;
  lstm.hidden_size = 33;
  lstm.num_layers = 2;
  Config gru = lstm;
  gru.cell = CellKind::gru;
  Config mgu = lstm;
  mgu.cell = CellKind::mgu;
  std::vector<Config> all = {lstm, gru, mgu};
  lstm.proj_size = 20;
  lstm.peephole = true;
  lstm.activations.gate = ActivationKind::hard_sigmoid;
  lstm.activations.clip = 2;
  gru.reset_after = false;
  gru.bias = false;
  all.push_back(lstm);
  all.push_back(gru);
  // The C library's functions, lane by lane.
  lstm.activations.gate = ActivationKind::sigmoid;
  lstm.activations.candidate = ActivationKind::elu;
  lstm.activations.output = ActivationKind::softplus;
  all.push_back(lstm);
  return all;
}

template <class T>
std::shared_ptr<const Model<T>> make_model(const Config& config, Precision precision) {
  auto model = std::make_shared<Model<T>>(config);
  std::vector<T> values(static_cast<std::size_t>(model->parameter_count()), T(0.125));
  model->write_parameters(0, values.data(), model->parameter_count());
  if (precision == Precision::exact) return model;
  return model->quantize(precision);
}

// A stream and the arrays of its steps. The first step is tested like any other.
template <class T>
struct Live {
  Live(const Config& config, Index batch, Precision precision = Precision::exact)
      : stream(make_model<T>(config, precision), batch),
        x(static_cast<std::size_t>(batch * config.input_size), T(0.5)),
        y(static_cast<std::size_t>(batch * config.state_size())),
        rows{batch - 1} {}

  void steps() noexcept {
    const Config& config = stream.config();
    for (int i = 0; i < 100; ++i)
      stream.step(x.data(), config.input_size, y.data(), config.state_size());
    stream.step(x.data(), config.input_size, y.data(), config.state_size(), rows, 1);
    stream.reset(0);
    stream.step(x.data(), config.input_size, y.data(), config.state_size());
    stream.reset();
    stream.h(0, 0)[0] = T(1);
  }

  Stream<T> stream;
  std::vector<T> x, y;
  const Index rows[1];
};

// The same through the C API.
struct LiveInC {
  LiveInC() {
    static const float values[3] = {0.5f, 0.25f, 0.125f};
    const tidegate_parameter parameters[] = {{"weight_ih_l0", values, 3},
                                             {"weight_hh_l0", values, 3}};
    const char* const options =
        R"({"kind": "GRU", "input_size": 1, "hidden_size": 1, "bias": false})";
    tidegate_model* model = nullptr;
    CHECK(tidegate_model_create(options, parameters, 2, &model) == TIDEGATE_OK);
    CHECK(tidegate_stream_create(model, 1, &stream) == TIDEGATE_OK);
    tidegate_model_free(model);
  }
  LiveInC(const LiveInC&) = delete;
  LiveInC& operator=(const LiveInC&) = delete;
  ~LiveInC() { tidegate_stream_free(stream); }

  void steps() noexcept {
    const float x = 0.5f;
    float y;
    const int64_t rows[] = {0};
    for (int i = 0; i < 100; ++i)
      good = good && tidegate_stream_step(stream, &x, &y) == TIDEGATE_OK;
    good = good && tidegate_stream_step_rows(stream, rows, 1, &x, &y) == TIDEGATE_OK;
    good = good && tidegate_stream_reset(stream, -1) == TIDEGATE_OK;
  }

  tidegate_stream* stream = nullptr;
  bool good = true;
};

// A head loaded from a file: 3 inputs, 1 output. Its first row is tested like any other.
class LiveHead {
 public:
  static constexpr int kRuns = 100;

  LiveHead() {
    const std::string bytes = test::layers_file_bytes();
    const Safetensors file(bytes.data(), bytes.size());
    head_ = load_linear<float>(file, "head");
    CHECK(tidegate_linear_load_memory(bytes.data(), bytes.size(), "head", &head_in_c_) ==
          TIDEGATE_OK);
  }
  LiveHead(const LiveHead&) = delete;
  LiveHead& operator=(const LiveHead&) = delete;
  ~LiveHead() { tidegate_linear_free(head_in_c_); }

  void rows() noexcept {
    const float h[3] = {0.5f, 0.25f, 0.125f};
    float y[2] = {};
    for (int i = 0; i < kRuns; ++i) {
      head_->run(h, 3, y, 1, 1, 1);
      good_ = good_ && sigmoid(y[0]) == 0.5f;  // the weights are zero
      good_ = good_ && tidegate_linear_run(head_in_c_, 1, h, y, 1) == TIDEGATE_OK;
      softmax(y, 2, y, 2, 1, 2);
      good_ = good_ && y[1] == 0.5f;
      y[1] = 0;
    }
  }
  bool good() const { return good_; }

 private:
  std::shared_ptr<Linear<float>> head_;
  tidegate_linear* head_in_c_ = nullptr;
  bool good_ = true;
};

// Runs f() on another thread, which is started before counting begins, and checks the counts.
template <class F>
void check_traps(const F& f, long wanted_locks = 0) {
  std::atomic<int> turn{0};
  long counts[3] = {};
  std::thread thread([&] {
    while (turn.load() == 0) {
    }
    const long before[] = {allocations, frees, locks};
    f();
    const long after[] = {allocations, frees, locks};
    for (int i = 0; i < 3; ++i) counts[i] = after[i] - before[i];
    turn = 2;
  });
  turn = 1;
  while (turn.load() != 2) {
  }
  thread.join();
  CHECK(counts[0] == 0);
  CHECK(counts[1] == 0);
  CHECK(counts[2] == wanted_locks);
}

// Restricts a child to two system calls, exiting and returning from a signal; any other kills it.
bool lock_in() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {sizeof filter / sizeof *filter, filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

enum class Outcome { quiet, called, no_seccomp, other };

// Runs f() in a child without system calls.
template <class F>
Outcome without_system_calls(const F& f) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (!lock_in()) syscall(SYS_exit_group, 77);
    f();
    syscall(SYS_exit_group, 0);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return Outcome::other;
  if (WIFSIGNALED(status)) return WTERMSIG(status) == SIGSYS ? Outcome::called : Outcome::other;
  if (WEXITSTATUS(status) == 77) return Outcome::no_seccomp;
  return WEXITSTATUS(status) == 0 ? Outcome::quiet : Outcome::other;
}

template <class Check>
void for_each_live(const Check& check) {
  for (const Config& config : networks()) {
    for (const Index batch : {1, 7}) {
      Live<float> one(config, batch);
      check([&] { one.steps(); });
      Live<double> two(config, batch);
      check([&] { two.steps(); });
      Live<float> half(config, batch, Precision::bfloat16);
      check([&] { half.steps(); });
      Live<float> half_dot(config, batch, Precision::bfloat16_dot);
      check([&] { half_dot.steps(); });
      Live<float> quarter(config, batch, Precision::int8);
      check([&] { quarter.steps(); });
    }
  }
  LiveInC in_c;
  check([&] { in_c.steps(); });
  CHECK(in_c.good);
}

}  // namespace

TEST(the_traps_are_set) {
  const long before[] = {allocations, frees, locks};
  ::operator delete(::operator new(1));
  CHECK(allocations == before[0] + 1);
  CHECK(frees == before[1] + 1);
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&mutex);
  pthread_mutex_unlock(&mutex);
  CHECK(locks == before[2] + 1);
  // The library's own calls.
  const auto model = make_model<float>(networks()[0], Precision::exact);
  CHECK(allocations > before[0] + 1);
  CHECK(locks > before[2] + 1);
}

TEST(a_step_allocates_frees_and_locks_nothing) {
  for_each_live([](const auto& steps) { check_traps(steps); });
}

TEST(a_head_s_row_allocates_and_frees_nothing_and_takes_one_mutex) {
  LiveHead head;
  check_traps([&] { head.rows(); }, 2 * LiveHead::kRuns);
  CHECK(head.good());
}

TEST(neither_a_step_nor_a_head_s_row_makes_a_system_call) {
  const Outcome trial = without_system_calls([] {});
  if (trial == Outcome::no_seccomp) {
    std::printf("  (skipped: seccomp is not to be had here)\n");
    return;
  }
  CHECK(trial == Outcome::quiet);
  CHECK(without_system_calls([] { getppid(); }) == Outcome::called);
  for_each_live([](const auto& steps) { CHECK(without_system_calls(steps) == Outcome::quiet); });
  LiveHead head;
  CHECK(without_system_calls([&] { head.rows(); }) == Outcome::quiet);
}

#else

TEST(skipped_for_want_of_traps) {}

#endif
