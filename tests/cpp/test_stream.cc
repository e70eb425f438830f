// Stream: its steps equal a whole call bit for bit, and neither allocate nor lock. The allocator
// and the mutexes are trapped with glibc, unless a sanitizer already traps them.
#include <algorithm>
#include <cstddef>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "errors.h"
#include "tidegate/tidegate.h"
#include "variants.h"

#if defined(__has_feature)
#define TIDEGATE_TEST_HAS_FEATURE(name) __has_feature(name)
#else
#define TIDEGATE_TEST_HAS_FEATURE(name) 0
#endif

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
    !TIDEGATE_TEST_HAS_FEATURE(address_sanitizer) && !TIDEGATE_TEST_HAS_FEATURE(thread_sanitizer)
#define TIDEGATE_TEST_TRAPS 1
#else
#define TIDEGATE_TEST_TRAPS 0
#endif

#if TIDEGATE_TEST_TRAPS

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>

namespace {

// Calls of any thread.
std::atomic<long> allocations{0};
std::atomic<long> locks{0};

}  // namespace

// These functions take precedence over the C library's, whose allocator has further names.
#define TIDEGATE_TEST_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
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

TIDEGATE_TEST_EXPORT int pthread_mutex_lock(pthread_mutex_t* mutex) {
  using Function = int(pthread_mutex_t*);
  static std::atomic<Function*> lock{nullptr};
  if (!lock) lock = reinterpret_cast<Function*>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  ++locks;
  return lock.load()(mutex);
}

#endif  // TIDEGATE_TEST_TRAPS

namespace {

using namespace tidegate;
using test::for_each_division;
using test::for_each_isa;
using test::Random;
using test::same;
using test::size_of;

// All networks that a stream can run.
std::vector<Config> networks(Index hidden) {
  Config lstm;
  lstm.cell = CellKind::lstm;
  lstm.input_size = 3;
  lstm.hidden_size = hidden;
  Config gru = lstm;
  gru.cell = CellKind::gru;
  gru.num_layers = 3;
  Config mgu = lstm;
  mgu.cell = CellKind::mgu;
  mgu.num_layers = 2;
  std::vector<Config> all = {lstm, gru, mgu};
  lstm.num_layers = 2;
  lstm.peephole = true;
  lstm.proj_size = hidden - 2;
  gru.reset_after = false;
  gru.update_gate = UpdateGate::write;
  gru.num_layers = 1;
  gru.bias = false;
  all.push_back(lstm);
  all.push_back(gru);
  return all;
}

template <class T>
void write_random_parameters(Random& random, Model<T>& model) {
  const std::vector<T> values = random.numbers<T>(model.parameter_count(), 0.25);
  model.write_parameters(0, values.data(), model.parameter_count());
}

template <class T>
std::shared_ptr<Model<T>> random_model(Random& random, const Config& config) {
  auto model = std::make_shared<Model<T>>(config);
  write_random_parameters(random, *model);
  return model;
}

// A sequence, and the results of a whole call on it from states of zero.
template <class T>
struct Whole {
  Index steps, batch;
  std::vector<T> x, y, h, c;

  Whole(Random& random, const Model<T>& model, Index step_count, Index rows)
      : steps(step_count), batch(rows) {
    const Config& config = model.config();
    x = random.numbers<T>(steps * batch * config.input_size);
    y.resize(size_of(steps * batch * config.state_size()));
    h.resize(size_of(config.num_layers * batch * config.state_size()));
    Inputs<T> inputs;
    Outputs<T> outputs;
    inputs.x = view(static_cast<const T*>(x.data()), steps, batch, config.input_size);
    outputs.y = view(y.data(), steps, batch, config.state_size());
    outputs.h_n = view(h.data(), config.num_layers, batch, config.state_size());
    if (config.has_cell_state()) {
      c.resize(size_of(config.num_layers * batch * config.hidden_size));
      outputs.c_n = view(c.data(), config.num_layers, batch, config.hidden_size);
    }
    model.run(inputs, outputs, 1);
  }

  const T* x_at(Index t, const Config& config) const {
    return x.data() + t * batch * config.input_size;
  }
};

// y of one step.
template <class T>
std::vector<T> step(Stream<T>& stream, const T* x, int threads = 1) {
  const Config& config = stream.config();
  std::vector<T> y(size_of(stream.batch() * config.state_size()), T(-77.125));
  stream.renew();
  stream.step(x, config.input_size, y.data(), config.state_size(), threads);
  return y;
}

template <class T>
std::vector<T> states_of(Stream<T>& stream) {
  const Config& config = stream.config();
  std::vector<T> states;
  const auto append = [&](T* (Stream<T>::*state)(Index, Index), Index size) {
    for (Index layer = 0; layer < config.num_layers; ++layer) {
      for (Index row = 0; row < stream.batch(); ++row) {
        const T* from = (stream.*state)(layer, row);
        states.insert(states.end(), from, from + size);
      }
    }
  };
  append(&Stream<T>::h, config.state_size());
  if (config.has_cell_state()) append(&Stream<T>::c, config.hidden_size);
  return states;
}

// Restores the states that states_of() returned.
template <class T>
void set_states(Stream<T>& stream, const std::vector<T>& states) {
  const Config& config = stream.config();
  const T* from = states.data();
  const auto put = [&](T* (Stream<T>::*state)(Index, Index), Index size) {
    for (Index layer = 0; layer < config.num_layers; ++layer) {
      for (Index row = 0; row < stream.batch(); ++row, from += size)
        std::copy(from, from + size, (stream.*state)(layer, row));
    }
  };
  put(&Stream<T>::h, config.state_size());
  if (config.has_cell_state()) put(&Stream<T>::c, config.hidden_size);
}

template <class T>
bool stands_at_the_end_of(Stream<T>& stream, const Whole<T>& whole) {
  std::vector<T> wanted = whole.h;
  wanted.insert(wanted.end(), whole.c.begin(), whole.c.end());
  return same(states_of(stream), wanted);
}

template <class T>
std::vector<T> rows_of(const std::vector<T>& sequence, Index t, Index size) {
  return std::vector<T>(sequence.begin() + t * size, sequence.begin() + (t + 1) * size);
}

template <class T>
void check_steps(const Config& config, Index batch) {
  Random random(1);
  const auto model = random_model<T>(random, config);
  const Whole<T> whole(random, *model, 7, batch);
  const Index size = batch * config.state_size();
  for_each_division([&](int threads) {
    Stream<T> stream(model, batch);
    for (Index t = 0; t < whole.steps; ++t) {
      CHECK(same(step(stream, whole.x_at(t, config), threads), rows_of(whole.y, t, size)));
    }
    CHECK(stands_at_the_end_of(stream, whole));

    // Steps and chunks alternately.
    stream.reset();
    std::vector<T> y(whole.y.size());
    const auto chunk = [&](Index begin, Index end) {
      const Index count = end - begin;
      stream.run(view(whole.x_at(begin, config), count, batch, config.input_size),
                 view(y.data() + begin * size, count, batch, config.state_size()), threads);
    };
    chunk(0, 3);
    const std::vector<T> fourth = step(stream, whole.x_at(3, config), threads);
    std::copy(fourth.begin(), fourth.end(), y.begin() + 3 * size);
    chunk(4, 4);
    chunk(4, 7);
    CHECK(same(y, whole.y));
    CHECK(stands_at_the_end_of(stream, whole));
  });
}

}  // namespace

TEST(steps_equal_a_whole_call) {
  for_each_isa([] {
    for (const Config& config : networks(19)) {
      for (const Index batch : {1, 5}) {
        check_steps<float>(config, batch);
        check_steps<double>(config, batch);
      }
    }
  });
}

TEST(rows_may_be_far_apart) {
  Random random(2);
  const Config config = networks(9)[2];
  const auto model = random_model<float>(random, config);
  const Whole<float> whole(random, *model, 1, 3);
  const Index features = config.input_size, state = config.state_size();
  std::vector<float> x(size_of(3 * (features + 2)), std::numeric_limits<float>::quiet_NaN());
  std::vector<float> y(size_of(3 * (state + 2)), -77.125f);
  for (Index n = 0; n < 3; ++n) {
    std::copy(whole.x.begin() + n * features, whole.x.begin() + (n + 1) * features,
              x.begin() + n * (features + 2));
  }
  Stream<float> stream(model, 3);
  stream.step(x.data(), features + 2, y.data(), state + 2, 1);
  for (Index n = 0; n < 3; ++n) {
    for (Index j = 0; j < state + 2; ++j) {
      CHECK(same(y[size_of(n * (state + 2) + j)],
                 j < state ? whole.y[size_of(n * state + j)] : -77.125f));
    }
  }
}

TEST(states_begin_at_zero_and_are_live) {
  Random random(4);
  for (const Config& config : networks(9)) {
    const auto model = random_model<double>(random, config);
    const Whole<double> whole(random, *model, 4, 2);
    Stream<double> stream(model, 2);
    CHECK(stream.batch() == 2);
    CHECK(stream.config().hidden_size == 9);
    CHECK((stream.c(0, 1) != nullptr) == config.has_cell_state());
    const std::vector<double> zeros = states_of(stream);
    CHECK(std::all_of(zeros.begin(), zeros.end(), [](double v) { return v == 0; }));

    double* const h = stream.h(0, 1);
    double* const c = stream.c(0, 1);
    for (Index t = 0; t < 2; ++t) step(stream, whole.x_at(t, config));
    const std::vector<double> middle = states_of(stream);
    for (Index t = 2; t < 4; ++t) step(stream, whole.x_at(t, config));
    CHECK(stream.h(0, 1) == h);
    CHECK(stream.c(0, 1) == c);
    CHECK(stands_at_the_end_of(stream, whole));

    // Restored states continue from there.
    set_states(stream, middle);
    for (Index t = 2; t < 4; ++t) step(stream, whole.x_at(t, config));
    CHECK(stands_at_the_end_of(stream, whole));

    stream.reset();
    CHECK(same(states_of(stream), zeros));
    for (Index t = 0; t < 4; ++t) step(stream, whole.x_at(t, config));
    CHECK(stands_at_the_end_of(stream, whole));
  }
}

TEST(streams_of_one_model_are_independent) {
  Random random(5);
  const Config config = networks(9)[1];
  const auto model = random_model<float>(random, config);
  const Whole<float> one(random, *model, 5, 1), two(random, *model, 5, 2);
  Stream<float> first(model, 1), second(model, 2);
  for (Index t = 0; t < 5; ++t) {
    step(first, one.x_at(t, config));
    step(second, two.x_at(t, config));
  }
  CHECK(stands_at_the_end_of(first, one));
  CHECK(stands_at_the_end_of(second, two));
}

TEST(new_parameters_are_taken_by_renew) {
  Random random(6);
  for (const Config& config : networks(9)) {
    const auto model = random_model<float>(random, config);
    Stream<float> stream(model, 1);
    const std::vector<float> x = random.numbers<float>(config.input_size);
    step(stream, x.data());
    const std::vector<float> states = states_of(stream);
    Stream<float> unaware(model, 1);
    set_states(unaware, states);
    std::vector<float> before(size_of(config.state_size())), after = before;
    unaware.step(x.data(), config.input_size, before.data(), config.state_size());
    write_random_parameters(random, *model);
    CHECK(same(states_of(stream), states));
    set_states(unaware, states);
    unaware.step(x.data(), config.input_size, after.data(), config.state_size());
    CHECK(same(after, before));

    // A new stream with the same states has only the new parameters.
    Stream<float> other(model, 1);
    set_states(other, states);
    CHECK(same(step(stream, x.data()), step(other, x.data())));
    CHECK(same(states_of(stream), states_of(other)));
  }
}

TEST(a_stream_outlives_the_callers_model) {
  Random random(7);
  const Config config = networks(9)[0];
  auto model = random_model<float>(random, config);
  const Whole<float> whole(random, *model, 3, 1);
  Stream<float> stream(model, 1);
  model.reset();
  for (Index t = 0; t < 3; ++t) step(stream, whole.x_at(t, config));
  CHECK(stands_at_the_end_of(stream, whole));
}

TEST(another_instruction_set_is_taken_by_renew) {
  Random random(8);
  const Config config = networks(19)[2];
  const auto model = random_model<float>(random, config);
  Stream<float> stream(model, 2);
  const std::vector<float> x = random.numbers<float>(2 * config.input_size);
  for_each_isa([&] {
    const Whole<float> whole(random, *model, 3, 2);
    stream.reset();
    for (Index t = 0; t < 3; ++t) step(stream, whole.x_at(t, config));
    CHECK(stands_at_the_end_of(stream, whole));
  });
}

TEST(what_a_stream_refuses) {
  Random random(9);
  Config config = networks(9)[0];
  config.bidirectional = true;
  CHECK(begins_with(
      invalid_argument_of([&] { Stream<float>(std::make_shared<Model<float>>(config), 1); }),
      "bidirectional"));
  config.bidirectional = false;
  config.reverse = true;
  CHECK(begins_with(
      invalid_argument_of([&] { Stream<float>(std::make_shared<Model<float>>(config), 1); }),
      "reverse"));
  config.reverse = false;
  const auto model = random_model<float>(random, config);
  CHECK(begins_with(invalid_argument_of([&] { Stream<float>(model, -1); }), "batch"));

  Stream<float> stream(model, 2);
  const Whole<float> whole(random, *model, 3, 2);
  std::vector<float> y(whole.y.size(), -77.125f);
  const auto refuses = [&](const char* argument, const auto& f) {
    CHECK(begins_with(invalid_argument_of(f), argument));
    CHECK(std::all_of(y.begin(), y.end(), [](float v) { return v == -77.125f; }));
    const std::vector<float> states = states_of(stream);
    CHECK(std::all_of(states.begin(), states.end(), [](float v) { return v == 0; }));
  };
  const View<const float> x = view(whole.x.data(), 3, 2, config.input_size);
  const View<float> to = view(y.data(), 3, 2, config.state_size());
  refuses("x", [&] { stream.run(view(whole.x.data(), 6, 1, config.input_size), to); });
  refuses("x", [&] { stream.run(view(whole.x.data(), 3, 1, 2 * config.input_size), to); });
  refuses("x", [&] { stream.run(View<const float>{}, to); });
  refuses("y", [&] { stream.run(x, view(y.data(), 2, 2, config.state_size())); });
  refuses("y", [&] { stream.run(x, View<float>{}); });
  refuses("num_threads", [&] { stream.run(x, to, -1); });
}

TEST(picked_rows_step_as_they_would_among_all) {
  Random random(12);
  for_each_isa([&] {
    for (const Config& config : networks(19)) {
      const auto model = random_model<float>(random, config);
      const Whole<float> whole(random, *model, 6, 5);
      const Index inputs = config.input_size, state = config.state_size();
      for_each_division([&](int threads) {
        // Each row takes its own steps, several rows at a time, in changing order and combinations.
        Stream<float> stream(model, 5);
        std::vector<Index> taken(5, 0);
        const std::vector<std::vector<Index>> turns = {{3}, {0, 1, 2, 3, 4}, {4, 0}, {2, 1, 3}};
        for (Index turn = 0; std::min_element(taken.begin(), taken.end())[0] < whole.steps;
             ++turn) {
          std::vector<Index> rows;
          for (const Index row : turns[size_of(turn % 4)])
            if (taken[size_of(row)] < whole.steps) rows.push_back(row);
          const auto count = static_cast<Index>(rows.size());
          std::vector<float> x, y(size_of(count * state));
          for (const Index row : rows) {
            const float* from = whole.x_at(taken[size_of(row)], config) + row * inputs;
            x.insert(x.end(), from, from + inputs);
          }
          stream.step(x.data(), inputs, y.data(), state, rows.data(), count, threads);
          for (Index r = 0; r < count; ++r) {
            const Index row = rows[size_of(r)];
            const std::vector<float> all = rows_of(whole.y, taken[size_of(row)]++, 5 * state);
            CHECK(same(rows_of(y, r, state), rows_of(all, row, state)));
          }
        }
        CHECK(stands_at_the_end_of(stream, whole));
      });
    }
  });
}

TEST(rows_come_and_go) {
  Random random(13);
  for (const Config& config : networks(9)) {
    const auto model = random_model<double>(random, config);
    const Whole<double> whole(random, *model, 4, 3);
    const Index inputs = config.input_size, state = config.state_size();
    const std::vector<Index> first_two = {0, 1};
    Stream<double> stream(model, 2);
    std::vector<double> y(size_of(3 * state));
    for (Index t = 0; t < 2; ++t) stream.step(whole.x_at(t, config), inputs, y.data(), state);
    stream.resize(3);
    CHECK(stream.batch() == 3);
    for (Index layer = 0; layer < config.num_layers; ++layer) {
      const double* h = stream.h(layer, 2);
      CHECK(std::all_of(h, h + state, [](double v) { return v == 0; }));
    }
    // The third row catches up, then all rows step together.
    const Index third = 2;
    for (Index t = 0; t < 2; ++t)
      stream.step(whole.x_at(t, config) + 2 * inputs, inputs, y.data(), state, &third, 1);
    for (Index t = 2; t < 4; ++t)
      CHECK(same(step(stream, whole.x_at(t, config)), rows_of(whole.y, t, 3 * state)));
    CHECK(stands_at_the_end_of(stream, whole));
    stream.reset(1);
    for (Index layer = 0; layer < config.num_layers; ++layer) {
      const double* h = stream.h(layer, 1);
      CHECK(std::all_of(h, h + state, [](double v) { return v == 0; }));
      CHECK(same(std::vector<double>(stream.h(layer, 0), stream.h(layer, 0) + state),
                 rows_of(whole.h, layer * 3, state)));
    }
    stream.resize(1);
    CHECK(stream.batch() == 1);
    CHECK(same(std::vector<double>(stream.h(0, 0), stream.h(0, 0) + state),
               rows_of(whole.h, 0, state)));
  }
}

TEST(a_stream_of_no_rows) {
  Random random(10);
  for (const Config& config : networks(9)) {
    Stream<float> stream(random_model<float>(random, config), 0);
    stream.step(nullptr, config.input_size, nullptr, config.state_size());
    stream.reset();
    CHECK(states_of(stream).empty());
  }
}

TEST(a_step_costs_more_where_there_is_more_to_do) {
  Random random(11);
  Config config = networks(9)[0];
  const double small = Stream<float>(random_model<float>(random, config), 1).step_cost(1);
  CHECK(small > 0);
  CHECK(Stream<float>(random_model<float>(random, config), 64).step_cost(64) > small);
  config.hidden_size = 300;
  CHECK(Stream<float>(random_model<float>(random, config), 1).step_cost(1) > small);
}

#if TIDEGATE_TEST_TRAPS

TEST(the_traps_are_set) {
  const long allocations_before = allocations;
  const long locks_before = locks;
  const auto number = std::make_unique<int>(1);
  CHECK(allocations > allocations_before);
  struct alignas(64) Line {
    char bytes[64];
  };
  const long aligned_before = allocations;
  const auto line = std::make_unique<Line>();
  CHECK(allocations > aligned_before);
  CHECK(*number == 1 && line->bytes[0] == 0);
  // The library's own calls: a write locks.
  Random random(12);
  random_model<float>(random, networks(9)[0]);
  CHECK(locks > locks_before);
}

TEST(a_step_neither_allocates_nor_locks) {
  for_each_isa([] {
    for (const Config& config : networks(33)) {
      for (const Index batch : {1, 7}) {
        Random random(13);
        const auto model = random_model<float>(random, config);
        Stream<float> stream(model, batch);
        const std::vector<float> x = random.numbers<float>(batch * config.input_size);
        std::vector<float> y(size_of(batch * config.state_size()));
        const auto take_step = [&](int threads) {
          stream.step(x.data(), config.input_size, y.data(), config.state_size(), threads);
        };
        take_step(0);  // packs the weights
        const long allocations_before = allocations;
        const long locks_before = locks;
        for (int i = 0; i < 10; ++i) take_step(1);
        stream.reset();
        take_step(1);
        CHECK(allocations == allocations_before);
        CHECK(locks == locks_before);
      }
    }
  });
}

// The agreement on which threads work on a step needs no allocation.
TEST(a_step_of_several_threads_does_not_allocate) {
  for (const Config& config : networks(33)) {
    for_each_division([&](int threads) {
      Random random(14);
      Stream<float> stream(random_model<float>(random, config), 7);
      const std::vector<float> x = random.numbers<float>(7 * config.input_size);
      std::vector<float> y(size_of(7 * config.state_size()));
      const auto take_step = [&] {
        stream.step(x.data(), config.input_size, y.data(), config.state_size(), threads);
      };
      take_step();  // packs the weights, and makes the threads
      const long before = allocations;
      for (int i = 0; i < 10; ++i) take_step();
      CHECK(allocations == before);
    });
  }
}

#endif  // TIDEGATE_TEST_TRAPS
