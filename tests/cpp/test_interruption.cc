// Calls that end early: for every division of the work among threads, all threads leave, the call
// throws Interrupted, and the same call succeeds afterwards.
#include "tidegate/interrupt.h"

#include <cfloat>
#include <memory>
#include <vector>

#include "check.h"
#include "core/interruption.h"
#include "core/switches.h"
#include "core/threads/threads.h"
#include "tidegate/tidegate.h"

namespace {

using namespace tidegate;

// A poll that ends the call at its `last`-th invocation.
struct Polls {
  int last = 1;
  int asked = 0;

  static bool ask(void* polls) noexcept {
    auto* const self = static_cast<Polls*>(polls);
    return ++self->asked >= self->last;
  }
};

template <class F>
bool interrupted(const F& f) {
  try {
    f();
  } catch (const Interrupted&) {
    return true;
  }
  return false;
}

// A network and a sequence that take some seconds.
struct Problem {
  explicit Problem(bool bidirectional) {
    Config config;
    config.cell = CellKind::gru;
    config.input_size = 8;
    config.hidden_size = 128;
    config.num_layers = 2;
    config.bidirectional = bidirectional;
    model = std::make_shared<Model<float>>(config);
    std::vector<float> values(static_cast<std::size_t>(model->parameter_count()));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = 0.002f * static_cast<float>(static_cast<int>(i % 101) - 50);
    model->write_parameters(0, values.data(), model->parameter_count());
    x.assign(static_cast<std::size_t>(kBatch * config.input_size), 0.5f);
    y.resize(static_cast<std::size_t>(kSteps * kBatch * config.output_size()));
    inputs.x = view(static_cast<const float*>(x.data()), kSteps, kBatch, config.input_size);
    inputs.x.stride[0] = 0;  // the same at each step
    outputs.y = view(y.data(), kSteps, kBatch, config.output_size());
  }

  static constexpr Index kSteps = 20'000, kBatch = 4;

  // The same calls with few steps.
  Inputs<float> few_inputs() const {
    Inputs<float> few = inputs;
    few.x.shape[0] = 5;
    return few;
  }
  Outputs<float> few_outputs() const {
    Outputs<float> few = outputs;
    few.y.shape[0] = 5;
    return few;
  }
  std::vector<float> short_run(int threads) const {
    model->run(few_inputs(), few_outputs(), threads);
    return {y.begin(), y.begin() + 5 * kBatch * model->config().output_size()};
  }

  std::shared_ptr<Model<float>> model;
  std::vector<float> x;
  mutable std::vector<float> y;
  Inputs<float> inputs;
  Outputs<float> outputs;
};

}  // namespace

TEST(without_a_poll_nothing_is_possible) {
  Interruption interruption;
  CHECK(!interruption.possible());
  CHECK(!interruption.requested());
  interruption.finish();
}

TEST(polls_nest_and_come_again_only_after_a_while) {
  Polls outer, inner;
  const InterruptPoll first(&Polls::ask, &outer);
  {
    const InterruptPoll second(&Polls::ask, &inner);
    Interruption interruption;
    CHECK(interruption.possible());
    CHECK(interrupted([&] {
      while (!interruption.requested()) Waiting::relax();
      interruption.finish();
    }));
    CHECK(interruption.requested());
  }
  CHECK(inner.asked == 1);
  CHECK(outer.asked == 0);
  Interruption interruption;
  for (int i = 0; i < 100; ++i) CHECK(!interruption.requested());
}

// Thread 0 stops in some iteration; all threads leave before the same iteration.
TEST(threads_stop_after_the_same_barrier) {
  set_num_threads(4);
  for (int stop = 0; stop < 8; ++stop) {
    ThreadLease lease(4);
    CHECK(lease.size() == 4);
    Barrier barrier(lease.size());
    std::vector<int> turns(4, 0), parts(4, 0);
    lease.run([&](int thread) {
      // Barriers of all threads.
      for (int turn = 0; turn < 100 && !barrier.stopped(thread, 1); ++turn) {
        if (thread == 0 && turn == stop) barrier.stop();
        barrier.wait(thread);
        ++turns[thread];
      }
    });
    Barrier in_parts(lease.size());
    lease.run([&](int thread) {
      in_parts.arrive(thread);
      for (int turn = 0; turn < 100; ++turn) {
        if (thread == 0 && turn == stop) in_parts.stop();
        if (in_parts.stopped(thread, 1)) break;
        in_parts.await(thread, 0, 4);
        in_parts.arrive(thread);
        ++parts[thread];
      }
      in_parts.await(thread, 0, 4);
    });
    for (int thread = 0; thread < 4; ++thread) {
      CHECK(turns[thread] == turns[0]);
      CHECK(turns[thread] <= stop + 3);
      CHECK(parts[thread] == parts[0]);
      CHECK(parts[thread] <= stop + 3);
    }
  }
}

TEST(calls_end) {
  set_num_threads(4);
  for (const bool bidirectional : {false, true}) {
    const Problem problem(bidirectional);
    const std::vector<float> wanted = problem.short_run(1);
    for (const char* const division : {"rows", "units"}) {
      select_division(division);
      for (const int threads : {1, 2, 4}) {
        Polls polls;
        {
          const InterruptPoll poll(&Polls::ask, &polls);
          // Only where it was polled: a fast machine may be ready before.
          const bool ended =
              interrupted([&] { problem.model->run(problem.inputs, problem.outputs, threads); });
          CHECK(ended == (polls.asked == 1));
        }
        CHECK(problem.short_run(threads) == wanted);
      }
    }
  }
  select_division("auto");
}

TEST(training_calls_end) {
  set_num_threads(4);
  for (const bool bidirectional : {false, true}) {
    Problem problem(bidirectional);
    constexpr Index kSteps = 200;
    problem.inputs.x.shape[0] = problem.outputs.y.shape[0] = kSteps;
    const auto tape = problem.model->record(problem.inputs, problem.outputs, 1);
    std::vector<float> dy(
        static_cast<std::size_t>(kSteps * Problem::kBatch * problem.model->config().output_size()),
        1.0f);
    std::vector<float> gradient(static_cast<std::size_t>(problem.model->parameter_count()));
    OutputGradients<float> outputs;
    outputs.y = view(static_cast<const float*>(dy.data()), kSteps, Problem::kBatch,
                     problem.model->config().output_size());
    InputGradients<float> inputs;
    inputs.parameters = gradient.data();
    tape->backward(outputs, inputs, 1);
    const std::vector<float> wanted = gradient;
    for (const char* const division : {"rows", "units"}) {
      select_division(division);
      for (const int threads : {1, 2}) {
        Polls polls;
        const InterruptPoll poll(&Polls::ask, &polls);
        // Repeats until one of many calls was polled.
        bool ended = false;
        while (polls.asked == 0)
          ended = interrupted([&] { tape->backward(outputs, inputs, threads); });
        CHECK(ended);
        polls = {1 << 30, 0};
        tape->backward(outputs, inputs, threads);
        CHECK(gradient == wanted);
      }
    }
  }
  select_division("auto");
}

TEST(products_end) {
  set_num_threads(4);
  // Some tenths of a second of arithmetic: long sums in `run`, many rows in `backward`.
  constexpr Index kRows = 60'000, kIn = 4096, kOut = 64;
  Linear<float> layer(kIn, kOut);
  const std::vector<float> values(static_cast<std::size_t>(layer.parameter_count()), 0.5f);
  layer.write_parameters(0, values.data(), layer.parameter_count());
  const std::vector<float> row(kIn, 0.25f);
  std::vector<float> y(static_cast<std::size_t>(kRows * kOut));
  const auto run = [&](Index rows, int threads) {
    layer.run(row.data(), 0, y.data(), kOut, rows, threads);
  };
  Linear<float> narrow(kOut, kOut);
  const std::vector<float> x(y.size(), 1.0f);
  const auto tape = narrow.record(x.data(), kOut, y.data(), kOut, kRows, 1);
  std::vector<float> dx(y.size()), gradient(static_cast<std::size_t>(narrow.parameter_count()));
  const auto backward = [&](int threads) {
    tape->backward(x.data(), kOut, dx.data(), kOut, gradient.data(), threads);
  };
  backward(1);
  const std::vector<float> wanted = gradient;
  for (const int threads : {1, 2, 3}) {
    {
      Polls polls;
      const InterruptPoll poll(&Polls::ask, &polls);
      // Only where it was polled: a fast machine may be ready before.
      const bool ended = interrupted([&] { run(kRows, threads); });
      CHECK(ended == (polls.asked == 1));
    }
    {
      Polls polls;
      const InterruptPoll poll(&Polls::ask, &polls);
      bool ended = false;
      while (polls.asked == 0) ended = interrupted([&] { backward(threads); });
      CHECK(ended);
    }
    run(1, threads);
    CHECK(y[0] == 0.5f * 0.25f * kIn + 0.5f);
    backward(threads);
    CHECK(gradient == wanted);
  }
}

TEST(a_stream_keeps_its_state) {
  set_num_threads(2);
  const Problem problem(false);
  for (const int threads : {1, 2}) {
    Stream<float> stream(problem.model, Problem::kBatch);
    stream.run(problem.few_inputs().x, problem.few_outputs().y, 1);
    const float before = stream.h(1, 3)[100];
    CHECK(before != 0);
    Polls polls;
    bool ended = false;
    {
      const InterruptPoll poll(&Polls::ask, &polls);
      ended = interrupted([&] { stream.run(problem.inputs.x, problem.outputs.y, threads); });
    }
    CHECK(ended == (polls.asked == 1));
    if (ended) CHECK(stream.h(1, 3)[100] == before);
  }
}

// The poll runs in the caller's floating-point environment, and may call the library, which then
// does not poll.
TEST(polls_run_as_the_caller_does) {
  struct Seen {
    const Problem* problem;
    std::vector<float> wanted;
    int asked = 0;
    bool denormals = false, same = false;

    static bool ask(void* context) noexcept {
      auto* const seen = static_cast<Seen*>(context);
      ++seen->asked;
      const volatile float least = FLT_MIN;
      seen->denormals = least * 0.5f > 0.0f;
      seen->same = seen->problem->short_run(1) == seen->wanted;
      return true;
    }
  };
  const Problem problem(false), inner(false);
  Seen seen{&inner, inner.short_run(1)};
  const InterruptPoll poll(&Seen::ask, &seen);
  while (seen.asked == 0)
    interrupted([&] { problem.model->run(problem.inputs, problem.outputs, 1); });
  CHECK(seen.asked == 1);
  CHECK(seen.denormals);
  CHECK(seen.same);
}
