// Model and Tape through the public API, against a naive network in double precision: outputs,
// gradients, the same bits for every division of the work, and refused arguments.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
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

namespace {

using namespace tidegate;
using test::for_each_division;
using test::for_each_isa;
using test::Random;
using test::same;
using test::size_of;

// ---- The naive network

// A number with a bound on its error when computed with unit roundoff u. The terms of a sum may be
// added in any order, fused with products or not: each addition adds an error of at most u times
// the sum of the magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
// section 4.2).
class Bounded {
 public:
  static inline double u = 0;

  Bounded() = default;
  explicit Bounded(double exact) : Bounded(exact, 0) {}
  Bounded(double value, double error)
      : value_(value), error_(error), magnitudes_(std::fabs(value)) {}

  double value() const { return value_; }
  double error() const { return error_ + additions_ * u * magnitudes_; }

  friend Bounded operator+(Bounded a, Bounded b) {
    Bounded sum(a.value_ + b.value_, a.error_ + b.error_);
    sum.magnitudes_ = a.magnitudes_ + b.magnitudes_;
    sum.additions_ = a.additions_ + b.additions_ + 1;
    return sum;
  }
  friend Bounded operator-(Bounded a, Bounded b) { return a + Bounded(-b.value(), b.error()); }
  friend Bounded operator*(Bounded a, Bounded b) {
    const double product = a.value() * b.value();
    return {product, std::fabs(a.value()) * b.error() + std::fabs(b.value()) * a.error() +
                         a.error() * b.error() + u * std::fabs(product)};
  }

 private:
  double value_ = 0;
  double error_ = 0;  // without that of the additions
  double magnitudes_ = 0;
  int additions_ = 0;
};

// Within 2 ulp, at most 4 u for results in [-1, 1]; the slopes are at most 1/4 and 1.
double sigmoid(double a) { return 1 / (1 + std::exp(-a)); }
Bounded sigmoid(Bounded a) { return {sigmoid(a.value()), a.error() / 4 + 4 * Bounded::u}; }
double tanh(double a) { return std::tanh(a); }
Bounded tanh(Bounded a) { return {std::tanh(a.value()), a.error() + 4 * Bounded::u}; }

// One direction of one layer: the equations of a step, for one row.
template <class Number>
struct NaiveLayer {
  struct State {
    std::vector<Number> h, c;
  };
  struct Saved {
    std::vector<Number> i, f, g, o, c;  // LSTM
    std::vector<Number> r, z, n;        // GRU; an MGU's are f and n
    std::vector<Number> h;
  };

  const Config& config;
  Index inputs;
  // Null if the network has no such parameter.
  const Number* weight_ih = nullptr;
  const Number* weight_hh = nullptr;
  const Number* bias_ih = nullptr;
  const Number* bias_hh = nullptr;
  const Number* weight_hr = nullptr;
  const Number* weight_peephole = nullptr;

  NaiveLayer(const Config& network, const std::vector<Number>& flat, Index layer, bool second)
      : config(network), inputs(network.layer_input_size(layer)) {
    const std::string suffix = "_l" + std::to_string(layer) + (second ? "_reverse" : "");
    for (const Parameter& parameter : parameters(network)) {
      const Number* const here = flat.data() + parameter.offset;
      if (parameter.name == "weight_ih" + suffix) weight_ih = here;
      if (parameter.name == "weight_hh" + suffix) weight_hh = here;
      if (parameter.name == "bias_ih" + suffix) bias_ih = here;
      if (parameter.name == "bias_hh" + suffix) bias_hh = here;
      if (parameter.name == "weight_hr" + suffix) weight_hr = here;
      if (parameter.name == "weight_peephole" + suffix) weight_peephole = here;
    }
  }

  // Row `row` of weight * vector + bias.
  static Number affine(const Number* weight, const Number* bias, Index row,
                       const std::vector<Number>& vector) {
    const Index columns = static_cast<Index>(vector.size());
    Number sum = bias ? bias[row] : Number(0);
    for (Index k = 0; k < columns; ++k) sum = sum + weight[row * columns + k] * vector[size_of(k)];
    return sum;
  }
  Number of_x(Index gate, Index j, const std::vector<Number>& x) const {
    return affine(weight_ih, bias_ih, gate * config.hidden_size + j, x);
  }
  Number of_h(Index gate, Index j, const std::vector<Number>& h) const {
    return affine(weight_hh, bias_hh, gate * config.hidden_size + j, h);
  }

  Saved step(const std::vector<Number>& x, State& state) const {
    if (config.cell == CellKind::lstm) return lstm_step(x, state);
    return config.cell == CellKind::gru ? gru_step(x, state) : mgu_step(x, state);
  }

  Saved lstm_step(const std::vector<Number>& x, State& state) const {
    const Index hidden = config.hidden_size;
    const auto peephole = [&](Index which, Index j, Number c) {
      return weight_peephole ? weight_peephole[which * hidden + j] * c : Number(0);
    };
    Saved saved;
    std::vector<Number> output;
    for (Index j = 0; j < hidden; ++j) {
      const Number c = state.c[size_of(j)];
      const Number i = sigmoid(of_x(0, j, x) + of_h(0, j, state.h) + peephole(0, j, c));
      const Number f = sigmoid(of_x(1, j, x) + of_h(1, j, state.h) + peephole(1, j, c));
      const Number g = tanh(of_x(2, j, x) + of_h(2, j, state.h));
      const Number c_next = f * c + i * g;
      const Number o = sigmoid(of_x(3, j, x) + of_h(3, j, state.h) + peephole(2, j, c_next));
      saved.i.push_back(i);
      saved.f.push_back(f);
      saved.g.push_back(g);
      saved.o.push_back(o);
      saved.c.push_back(c_next);
      output.push_back(o * tanh(c_next));
    }
    state.c = saved.c;
    state.h = output;
    for (Index j = 0; j < config.proj_size; ++j) {
      if (j == 0) state.h.clear();
      state.h.push_back(affine(weight_hr, nullptr, j, output));
    }
    saved.h = state.h;
    return saved;
  }

  Saved gru_step(const std::vector<Number>& x, State& state) const {
    const Index hidden = config.hidden_size;
    Saved saved;
    std::vector<Number> gated_h;
    for (Index j = 0; j < hidden; ++j) {
      saved.r.push_back(sigmoid(of_x(0, j, x) + of_h(0, j, state.h)));
      saved.z.push_back(sigmoid(of_x(1, j, x) + of_h(1, j, state.h)));
      gated_h.push_back(saved.r.back() * state.h[size_of(j)]);
    }
    for (Index j = 0; j < hidden; ++j) {
      const Number recurrent =
          config.reset_after ? saved.r[size_of(j)] * of_h(2, j, state.h) : of_h(2, j, gated_h);
      saved.n.push_back(tanh(of_x(2, j, x) + recurrent));
    }
    for (Index j = 0; j < hidden; ++j) {
      const Number z = saved.z[size_of(j)], n = saved.n[size_of(j)], h = state.h[size_of(j)];
      const Number one(1);
      saved.h.push_back(config.update_gate == UpdateGate::carry ? z * h + (one - z) * n
                                                                : (one - z) * h + z * n);
    }
    state.h = saved.h;
    return saved;
  }

  Saved mgu_step(const std::vector<Number>& x, State& state) const {
    Saved saved;
    std::vector<Number> gated_h;
    for (Index j = 0; j < config.hidden_size; ++j) {
      saved.f.push_back(sigmoid(of_x(0, j, x) + of_h(0, j, state.h)));
      gated_h.push_back(saved.f.back() * state.h[size_of(j)]);
    }
    for (Index j = 0; j < config.hidden_size; ++j) {
      saved.n.push_back(tanh(of_x(1, j, x) + of_h(1, j, gated_h)));
      const Number f = saved.f[size_of(j)], n = saved.n[size_of(j)];
      saved.h.push_back((Number(1) - f) * state.h[size_of(j)] + f * n);
    }
    state.h = saved.h;
    return saved;
  }
};

// The inputs of a call, in double precision; each number is exact in float.
struct Sequence {
  Index steps = 0, batch = 0;
  std::vector<double> x, h_0, c_0;
  bool states = false;                // false: zeros
  std::vector<Index> lengths;         // empty: all `steps`
  std::vector<std::uint8_t> reset;    // empty: none
  std::vector<double> dropout_scale;  // empty: none

  Index length(Index n) const { return lengths.empty() ? steps : lengths[size_of(n)]; }
  bool is_reset(Index t, Index n) const { return !reset.empty() && reset[size_of(t * batch + n)]; }
};

template <class Number>
struct NaiveResults {
  std::vector<Number> y, h_n, c_n;
  // [layer * D + direction][t * N + n]; nothing at padded steps.
  std::vector<std::vector<typename NaiveLayer<Number>::Saved>> saved;
};

template <class Number>
NaiveResults<Number> run_naive(const Config& config, const std::vector<Number>& parameters,
                               const Sequence& sequence, const std::vector<Number>& sequence_x,
                               const std::vector<Number>& h_0, const std::vector<Number>& c_0) {
  const Index steps = sequence.steps, batch = sequence.batch;
  const Index state = config.state_size(), hidden = config.hidden_size;
  const Index directions = config.num_directions(), width = config.output_size();
  NaiveResults<Number> results;
  std::vector<Number> layer_x = sequence_x;
  for (Index layer = 0; layer < config.num_layers; ++layer) {
    const Index inputs = config.layer_input_size(layer);
    std::vector<Number> y(size_of(steps * batch * width));
    for (Index d = 0; d < directions; ++d) {
      const NaiveLayer<Number> network(config, parameters, layer, d == 1);
      const bool reversed = config.reverse || d == 1;
      const Index index = layer * directions + d;
      results.saved.emplace_back(size_of(steps * batch));
      for (Index n = 0; n < batch; ++n) {
        typename NaiveLayer<Number>::State now;
        const auto row = [&](const std::vector<Number>& states, Index size) {
          if (!sequence.states) return std::vector<Number>(size_of(size));
          const auto from = states.begin() + (index * batch + n) * size;
          return std::vector<Number>(from, from + size);
        };
        now.h = row(h_0, state);
        if (config.has_cell_state()) now.c = row(c_0, hidden);
        const Index length = sequence.length(n);
        for (Index s = 0; s < length; ++s) {
          const Index t = reversed ? length - 1 - s : s;
          // A boundary lies between t - 1 and t: the forward direction crosses it before step t,
          // the reverse direction between t and t - 1.
          const bool zeroed =
              reversed ? t + 1 < length && sequence.is_reset(t + 1, n) : sequence.is_reset(t, n);
          if (zeroed) {
            std::fill(now.h.begin(), now.h.end(), Number(0));
            std::fill(now.c.begin(), now.c.end(), Number(0));
          }
          const auto x = layer_x.begin() + (t * batch + n) * inputs;
          results.saved.back()[size_of(t * batch + n)] =
              network.step(std::vector<Number>(x, x + inputs), now);
          std::copy(now.h.begin(), now.h.end(), y.begin() + (t * batch + n) * width + d * state);
        }
        results.h_n.insert(results.h_n.end(), now.h.begin(), now.h.end());
        results.c_n.insert(results.c_n.end(), now.c.begin(), now.c.end());
      }
    }
    if (layer + 1 < config.num_layers && !sequence.dropout_scale.empty()) {
      const double* factors = sequence.dropout_scale.data() + layer * steps * batch * width;
      for (std::size_t i = 0; i < y.size(); ++i) y[i] = y[i] * Number(factors[i]);
    }
    layer_x = y;
  }
  results.y = layer_x;
  return results;
}

template <class Number>
NaiveResults<Number> run_naive(const Config& config, const std::vector<double>& parameters,
                               const Sequence& sequence) {
  const auto numbers = [](const std::vector<double>& values) {
    std::vector<Number> exact;
    for (const double value : values) exact.push_back(Number(value));
    return exact;
  };
  return run_naive<Number>(config, numbers(parameters), sequence, numbers(sequence.x),
                           numbers(sequence.h_0), numbers(sequence.c_0));
}

// ---- Calls of the library

std::vector<Config> networks(Index hidden) {
  Config lstm;
  lstm.cell = CellKind::lstm;
  lstm.input_size = 3;
  lstm.hidden_size = hidden;
  Config gru = lstm;
  gru.cell = CellKind::gru;
  Config mgu = lstm;
  mgu.cell = CellKind::mgu;
  std::vector<Config> all = {lstm, gru, mgu};
  const auto add = [&](Config base, auto change) {
    change(base);
    all.push_back(base);
  };
  add(lstm, [&](Config& c) { c.num_layers = 2, c.bidirectional = true, c.peephole = true; });
  add(lstm, [&](Config& c) { c.bias = false, c.reverse = true; });
  if (hidden > 3) {
    add(lstm, [&](Config& c) { c.num_layers = 3, c.proj_size = 3; });
    add(lstm, [&](Config& c) { c.bidirectional = c.peephole = true, c.proj_size = hidden - 1; });
  }
  add(gru, [&](Config& c) { c.num_layers = 3, c.bias = false; });
  add(gru, [&](Config& c) { c.bidirectional = true, c.update_gate = UpdateGate::write; });
  add(gru, [&](Config& c) { c.num_layers = 2, c.bidirectional = true, c.reset_after = false; });
  add(gru, [&](Config& c) {
    c.reset_after = false, c.reverse = true, c.update_gate = UpdateGate::write;
  });
  add(mgu, [&](Config& c) { c.num_layers = 2, c.bidirectional = true; });
  add(mgu, [&](Config& c) { c.bias = false, c.reverse = true; });
  return all;
}

// Small enough that errors do not grow from step to step.
std::vector<double> random_parameters(Random& random, const Config& config) {
  return random.numbers<double>(parameter_count(config), config.hidden_size < 8 ? 0.5 : 0.125);
}

// With ragged lengths, one of them zero, and NaN in elements that must not be read.
Sequence random_sequence(Random& random, const Config& config, Index steps, Index batch,
                         bool ragged, bool resets) {
  Sequence s;
  s.steps = steps;
  s.batch = batch;
  s.x = random.numbers<double>(steps * batch * config.input_size);
  s.states = true;
  const Index layers = config.num_layers * config.num_directions();
  s.h_0 = random.numbers<double>(layers * batch * config.state_size());
  if (config.has_cell_state()) s.c_0 = random.numbers<double>(layers * batch * config.hidden_size);
  if (ragged) {
    for (Index n = 0; n < batch; ++n) s.lengths.push_back(random.below(steps + 1));
    s.lengths[size_of(batch / 2)] = 0;
    s.lengths[size_of(batch - 1)] = steps;
    for (Index t = 0; t < steps; ++t) {
      for (Index n = 0; n < batch; ++n) {
        if (t < s.length(n)) continue;
        const auto row = s.x.begin() + (t * batch + n) * config.input_size;
        std::fill(row, row + config.input_size, std::numeric_limits<double>::quiet_NaN());
      }
    }
  }
  for (Index i = 0; resets && i < steps * batch; ++i) s.reset.push_back(random.below(4) == 0);
  return s;
}

template <class T>
std::vector<T> converted(const std::vector<double>& values) {
  return std::vector<T>(values.begin(), values.end());
}

template <class T>
std::unique_ptr<Model<T>> make_model(const Config& config, const std::vector<double>& parameters) {
  auto model = std::make_unique<Model<T>>(config);
  const std::vector<T> values = converted<T>(parameters);
  model->write_parameters(0, values.data(), static_cast<Index>(values.size()));
  return model;
}

// The arrays of a call, dense.
template <class T>
struct Call {
  const Config config;
  Sequence sequence;
  std::vector<T> x, h_0, c_0, dropout_scale;
  std::vector<T> y, h_n, c_n;

  Call(const Config& network, const Sequence& given)
      : config(network),
        sequence(given),
        x(converted<T>(given.x)),
        h_0(converted<T>(given.h_0)),
        c_0(converted<T>(given.c_0)),
        dropout_scale(converted<T>(given.dropout_scale)),
        y(size_of(given.steps * given.batch * network.output_size()), canary),
        h_n(size_of(layers() * given.batch * network.state_size()), canary),
        c_n(network.has_cell_state() ? size_of(layers() * given.batch * network.hidden_size) : 0,
            canary) {}

  static constexpr T canary = T(-77.125);

  Index layers() const { return config.num_layers * config.num_directions(); }

  Inputs<T> inputs() const {
    Inputs<T> in;
    in.x = view(x.data(), sequence.steps, sequence.batch, config.input_size);
    if (sequence.states) {
      in.h_0 = view(h_0.data(), layers(), sequence.batch, config.state_size());
      if (config.has_cell_state()) {
        in.c_0 = view(c_0.data(), layers(), sequence.batch, config.hidden_size);
      }
    }
    if (!sequence.lengths.empty()) in.lengths = sequence.lengths.data();
    if (!sequence.reset.empty()) {
      in.reset.data = sequence.reset.data();
      in.reset.shape[0] = sequence.steps, in.reset.shape[1] = sequence.batch;
      in.reset.stride[0] = sequence.batch, in.reset.stride[1] = 1;
      in.reset.given = true;
    }
    if (!dropout_scale.empty()) in.dropout_scale = dropout_scale.data();
    return in;
  }

  Outputs<T> outputs() {
    Outputs<T> out;
    out.y = view(y.data(), sequence.steps, sequence.batch, config.output_size());
    out.h_n = view(h_n.data(), layers(), sequence.batch, config.state_size());
    if (config.has_cell_state()) {
      out.c_n = view(c_n.data(), layers(), sequence.batch, config.hidden_size);
    }
    return out;
  }

  bool untouched() const {
    const auto all_canaries = [](const std::vector<T>& values) {
      return std::all_of(values.begin(), values.end(), [](T v) { return v == canary; });
    };
    return all_canaries(y) && all_canaries(h_n) && all_canaries(c_n);
  }

  bool same_results(const Call& other) const {
    return same(y, other.y) && same(h_n, other.h_n) && same(c_n, other.c_n);
  }
};

template <class T>
Call<T> run(const Model<T>& model, const Sequence& sequence, int threads = 1) {
  Call<T> call(model.config(), sequence);
  model.run(call.inputs(), call.outputs(), threads);
  return call;
}

// The gradients by a call's outputs and by its inputs, with NaN at the padded steps of dy, which
// must not be read.
struct Objective {
  std::vector<double> y, h_n, c_n;

  Objective(Random& random, const Config& config, const Sequence& sequence) {
    const Index layers = config.num_layers * config.num_directions();
    const Index width = config.output_size();
    y = random.numbers<double>(sequence.steps * sequence.batch * width);
    h_n = random.numbers<double>(layers * sequence.batch * config.state_size());
    if (config.has_cell_state()) {
      c_n = random.numbers<double>(layers * sequence.batch * config.hidden_size);
    }
    for (Index t = 0; t < sequence.steps; ++t) {
      for (Index n = 0; n < sequence.batch; ++n) {
        if (t < sequence.length(n)) continue;
        const auto row = y.begin() + (t * sequence.batch + n) * width;
        std::fill(row, row + width, std::numeric_limits<double>::quiet_NaN());
      }
    }
  }

  double of(const NaiveResults<double>& results) const {
    double sum = 0;
    const auto add = [&](const std::vector<double>& weights, const std::vector<double>& values) {
      for (std::size_t i = 0; i < weights.size(); ++i) {
        if (!std::isnan(weights[i])) sum += weights[i] * values[i];
      }
    };
    add(y, results.y);
    add(h_n, results.h_n);
    add(c_n, results.c_n);
    return sum;
  }
};

template <class T>
struct Gradients {
  std::vector<T> x, h_0, c_0, parameters;

  bool same_as(const Gradients& other) const {
    return same(x, other.x) && same(h_0, other.h_0) && same(c_0, other.c_0) &&
           same(parameters, other.parameters);
  }
};

template <class T>
Gradients<T> run_backward(const Tape<T>& tape, const Objective& objective, int threads = 1) {
  const Config& config = tape.config();
  const Index steps = tape.steps(), batch = tape.batch();
  const Index layers = config.num_layers * config.num_directions();
  const auto dy = converted<T>(objective.y);
  const auto dh_n = converted<T>(objective.h_n);
  const auto dc_n = converted<T>(objective.c_n);
  const T unwritten = std::numeric_limits<T>::quiet_NaN();
  Gradients<T> gradients;
  gradients.x.assign(size_of(steps * batch * config.input_size), unwritten);
  gradients.h_0.assign(dh_n.size(), unwritten);
  gradients.c_0.assign(dc_n.size(), unwritten);
  gradients.parameters.assign(size_of(parameter_count(config)), unwritten);

  OutputGradients<T> outputs;
  InputGradients<T> inputs;
  outputs.y = view(dy.data(), steps, batch, config.output_size());
  outputs.h_n = view(dh_n.data(), layers, batch, config.state_size());
  inputs.x = view(gradients.x.data(), steps, batch, config.input_size);
  inputs.h_0 = view(gradients.h_0.data(), layers, batch, config.state_size());
  if (config.has_cell_state()) {
    outputs.c_n = view(dc_n.data(), layers, batch, config.hidden_size);
    inputs.c_0 = view(gradients.c_0.data(), layers, batch, config.hidden_size);
  }
  inputs.parameters = gradients.parameters.data();
  tape.backward(outputs, inputs, threads);
  return gradients;
}

// ---- Comparisons

template <class T>
void check_bounded(const std::vector<T>& got, const std::vector<Bounded>& wanted) {
  constexpr double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
  // The naive network has an error as well, in double.
  constexpr double own = std::numeric_limits<double>::epsilon() / epsilon;
  CHECK(got.size() == wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double bound = wanted[i].error() * (1 + own);
    CHECK(bound < 5000 * epsilon);  // a larger bound would be meaningless
    CHECK_NEAR(got[i], wanted[i].value(), bound);
  }
}

// One step at a time, each from the state after the previous one.
template <class T>
void check_steps(const Config& config) {
  Bounded::u = static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
  Random random(1);
  const std::vector<double> parameters = random_parameters(random, config);
  const auto model = make_model<T>(config, parameters);
  Sequence step = random_sequence(random, config, 1, 3, false, false);
  for (int t = 0; t < 5; ++t) {
    const Call<T> call = run(*model, step);
    const auto wanted = run_naive<Bounded>(config, parameters, step);
    check_bounded(call.y, wanted.y);
    check_bounded(call.h_n, wanted.h_n);
    check_bounded(call.c_n, wanted.c_n);
    step.x = random.numbers<double>(step.batch * config.input_size);
    step.h_0.assign(call.h_n.begin(), call.h_n.end());
    step.c_0.assign(call.c_n.begin(), call.c_n.end());
  }
}

template <class T>
void check_sequences(const Config& config) {
  Bounded::u = static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
  Random random(2);
  const std::vector<double> parameters = random_parameters(random, config);
  const auto model = make_model<T>(config, parameters);
  for (const bool ragged : {false, true}) {
    for (const bool resets : {false, true}) {
      Sequence sequence = random_sequence(random, config, 5, 7, ragged, resets);
      sequence.states = !resets;
      const Call<T> first = run(*model, sequence);
      const auto wanted = run_naive<Bounded>(config, parameters, sequence);
      check_bounded(first.y, wanted.y);
      check_bounded(first.h_n, wanted.h_n);
      check_bounded(first.c_n, wanted.c_n);
      for_each_division([&](int threads) {
        CHECK(run(*model, sequence, threads).same_results(first));
        Call<T> recorded(config, sequence);
        model->record(recorded.inputs(), recorded.outputs(), threads);
        CHECK(recorded.same_results(first));
      });
    }
  }
}

Sequence with_dropout(Random& random, const Config& config, Sequence sequence) {
  const Index count =
      (config.num_layers - 1) * sequence.steps * sequence.batch * config.output_size();
  for (Index i = 0; i < count; ++i) {
    sequence.dropout_scale.push_back(random.below(3) == 0 ? 0 : 1.5);
  }
  return sequence;
}

// All gradients of the naive network, by central differences.
Gradients<double> naive_gradients(const Config& config, std::vector<double> parameters,
                                  Sequence sequence, const Objective& objective) {
  constexpr double step = 1e-5;
  const auto differentiate = [&](std::vector<double>& values) {
    std::vector<double> slopes;
    for (double& value : values) {
      const double at = value;
      if (std::isnan(at)) {  // padding
        slopes.push_back(0);
        continue;
      }
      value = at + step;
      const double up = objective.of(run_naive<double>(config, parameters, sequence));
      value = at - step;
      const double down = objective.of(run_naive<double>(config, parameters, sequence));
      value = at;
      slopes.push_back((up - down) / (2 * step));
    }
    return slopes;
  };
  Gradients<double> gradients;
  gradients.x = differentiate(sequence.x);
  gradients.h_0 = differentiate(sequence.h_0);
  gradients.c_0 = differentiate(sequence.c_0);
  gradients.parameters = differentiate(parameters);
  return gradients;
}

template <class T>
void check_gradients(const Config& config, const std::vector<double>& parameters,
                     const Sequence& sequence, const Objective& objective,
                     const Gradients<double>& wanted) {
  // Central differences have an error of about 1e-10 here; in float, sums of about a dozen terms of
  // order 1.
  constexpr double tolerance = sizeof(T) == sizeof(double) ? 2e-9 : 1e-5;
  const auto model = make_model<T>(config, parameters);
  Gradients<T> first;
  for_each_division([&](int threads) {
    Call<T> call(config, sequence);
    const auto tape = model->record(call.inputs(), call.outputs(), threads);
    const Gradients<T> got = run_backward(*tape, objective, threads);
    if (!first.x.empty()) {
      CHECK(got.same_as(first));
      return;
    }
    first = got;
    const auto check = [](const std::vector<T>& slopes, const std::vector<double>& differences) {
      CHECK(slopes.size() == differences.size());
      for (std::size_t i = 0; i < slopes.size(); ++i) {
        CHECK_NEAR(slopes[i], differences[i], tolerance * (1 + std::fabs(differences[i])));
      }
    };
    check(got.x, wanted.x);
    check(got.h_0, wanted.h_0);
    check(got.c_0, wanted.c_0);
    check(got.parameters, wanted.parameters);
  });
}

template <class T>
void check_saved(const Config& config) {
  Bounded::u = static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
  Random random(4);
  const std::vector<double> parameters = random_parameters(random, config);
  const Sequence sequence = random_sequence(random, config, 4, 5, true, true);
  const auto model = make_model<T>(config, parameters);
  Call<T> call(config, sequence);
  const auto tape = model->record(call.inputs(), call.outputs(), 1);
  CHECK(tape->steps() == 4);
  CHECK(tape->batch() == 5);
  const auto naive = run_naive<Bounded>(config, parameters, sequence);
  using Saved = NaiveLayer<Bounded>::Saved;
  struct Quantity {
    const char* name;
    std::vector<Bounded> Saved::* values;
  };
  const std::vector<Quantity> lstm = {{"i", &Saved::i}, {"f", &Saved::f}, {"g", &Saved::g},
                                      {"o", &Saved::o}, {"c", &Saved::c}, {"h", &Saved::h}},
                              gru = {{"r", &Saved::r},
                                     {"z", &Saved::z},
                                     {"n", &Saved::n},
                                     {"h", &Saved::h}},
                              mgu = {{"f", &Saved::f}, {"n", &Saved::n}, {"h", &Saved::h}};
  const auto check = [&](const char* name, std::vector<Bounded> Saved::* values) {
    for (Index index = 0; index < config.num_layers * config.num_directions(); ++index) {
      const Index layer = index / config.num_directions();
      const bool reverse = config.reverse || index % config.num_directions() == 1;
      const bool is_h = name[0] == 'h';
      const Index units = is_h ? config.state_size() : config.hidden_size;
      std::vector<T> got(size_of(4 * 5 * units), Call<T>::canary);
      tape->saved(layer, reverse, name, view(got.data(), 4, 5, units));
      std::vector<Bounded> wanted;
      for (const Saved& saved : naive.saved[size_of(index)]) {
        const std::vector<Bounded>& numbers = saved.*values;
        for (Index j = 0; j < units; ++j) {
          wanted.push_back(numbers.empty() ? Bounded(0) : numbers[size_of(j)]);
        }
      }
      check_bounded(got, wanted);
    }
  };
  for (const Quantity& quantity : config.cell == CellKind::lstm  ? lstm
                                  : config.cell == CellKind::gru ? gru
                                                                 : mgu) {
    check(quantity.name, quantity.values);
  }
  std::vector<T> none(size_of(4 * 5 * config.hidden_size));
  CHECK(begins_with(invalid_argument_of([&] {
                      tape->saved(0, config.reverse, config.cell == CellKind::lstm ? "n" : "c",
                                  view(none.data(), 4, 5, config.hidden_size));
                    }),
                    "name: got"));
}

template <class F>
bool throws_length_error(const F& f) {
  try {
    f();
  } catch (const std::length_error&) {
    return true;
  }
  return false;
}

}  // namespace

TEST(a_step_is_within_its_error_bound) {
  for_each_isa([] {
    for (const Index hidden : {1, 17}) {
      for (const Config& config : networks(hidden)) {
        if (config.num_layers > 1) continue;
        check_steps<float>(config);
        check_steps<double>(config);
      }
    }
  });
}

TEST(sequences_equal_the_naive_network) {
  for_each_isa([] {
    for (const Index hidden : {2, 9, 19}) {
      for (const Config& config : networks(hidden)) {
        check_sequences<float>(config);
        check_sequences<double>(config);
      }
    }
  });
}

TEST(gradients_equal_finite_differences) {
  for (Config config : networks(5)) {
    config.input_size = 2;
    Random random(3);
    const std::vector<double> parameters = random_parameters(random, config);
    const Sequence sequence = with_dropout(
        random, config,
        random_sequence(random, config, 3, 3, config.num_layers != 2, config.num_layers != 3));
    const Objective objective(random, config, sequence);
    const Gradients<double> wanted = naive_gradients(config, parameters, sequence, objective);
    for_each_isa([&] {
      check_gradients<float>(config, parameters, sequence, objective, wanted);
      check_gradients<double>(config, parameters, sequence, objective, wanted);
    });
  }
}

// Sizes for which each thread has work, and weight gradients are summed in several chunks.
TEST(gradients_have_the_same_bits_however_divided) {
  for_each_isa([] {
    for (const Config& config : networks(35)) {
      Random random(5);
      const auto model = make_model<float>(config, random_parameters(random, config));
      const Sequence sequence = random_sequence(random, config, 60, 11, true, true);
      const Objective objective(random, config, sequence);
      Call<float> call(config, sequence);
      const auto tape = model->record(call.inputs(), call.outputs(), 1);
      const Gradients<float> first = run_backward(*tape, objective, 1);
      for_each_division([&](int threads) {
        CHECK(run(*model, sequence, threads).same_results(call));
        CHECK(run_backward(*tape, objective, threads).same_as(first));
      });
    }
  });
}

TEST(what_a_tape_saved) {
  for_each_isa([] {
    for (const Config& config : networks(9)) {
      check_saved<float>(config);
      check_saved<double>(config);
    }
  });
}

TEST(saved_refuses_by_name) {
  Random random(6);
  Config config = networks(5)[1];  // a plain GRU
  const auto model = make_model<float>(config, random_parameters(random, config));
  Call<float> call(config, random_sequence(random, config, 4, 3, false, false));
  const auto tape = model->record(call.inputs(), call.outputs(), 1);
  std::vector<float> got(size_of(4 * 3 * 5), Call<float>::canary);
  const View<float> destination = view(got.data(), 4, 3, 5);
  const auto refuses = [&](const char* argument, const auto& f) {
    CHECK(begins_with(invalid_argument_of(f), argument));
    CHECK(std::all_of(got.begin(), got.end(), [](float v) { return v == Call<float>::canary; }));
  };
  refuses("layer", [&] { tape->saved(1, false, "h", destination); });
  refuses("layer", [&] { tape->saved(-1, false, "h", destination); });
  refuses("reverse", [&] { tape->saved(0, true, "h", destination); });
  for (const char* name : {"", "i", "c", "hh", "x"}) {
    refuses("name", [&] { tape->saved(0, false, name, destination); });
  }
  refuses("destination", [&] { tape->saved(0, false, "h", view(got.data(), 3, 4, 5)); });
  refuses("destination", [&] { tape->saved(0, false, "h", View<float>{}); });
}

// ---- A row's bits depend on the row alone

TEST(a_row_has_the_same_bits_in_any_batch) {
  for_each_isa([] {
    for (const Config& config : networks(19)) {
      Random random(7);
      const auto model = make_model<float>(config, random_parameters(random, config));
      const Sequence together = random_sequence(random, config, 6, 9, true, true);
      const Call<float> wanted = run(*model, together);
      for (Index n = 0; n < together.batch; ++n) {
        // In a batch of one, padded only to its own length.
        Sequence alone;
        alone.steps = together.length(n);
        alone.batch = 1;
        alone.states = true;
        const auto take = [&](const std::vector<double>& from, Index blocks, Index size) {
          std::vector<double> part;
          for (Index b = 0; b < blocks; ++b) {
            const auto row = from.begin() + (b * together.batch + n) * size;
            part.insert(part.end(), row, row + size);
          }
          return part;
        };
        const Index layers = config.num_layers * config.num_directions();
        alone.x = take(together.x, alone.steps, config.input_size);
        alone.h_0 = take(together.h_0, layers, config.state_size());
        if (config.has_cell_state()) alone.c_0 = take(together.c_0, layers, config.hidden_size);
        for (Index t = 0; t < alone.steps; ++t) alone.reset.push_back(together.is_reset(t, n));
        const Call<float> got = run(*model, alone);
        const Index width = config.output_size(), state = config.state_size();
        for (Index t = 0; t < together.steps; ++t) {
          for (Index j = 0; j < width; ++j) {
            const float y = wanted.y[size_of((t * together.batch + n) * width + j)];
            CHECK(same(y, t < alone.steps ? got.y[size_of(t * width + j)] : 0.0f));
          }
        }
        for (Index layer = 0; layer < layers; ++layer) {
          for (Index j = 0; j < state; ++j) {
            CHECK(same(wanted.h_n[size_of((layer * together.batch + n) * state + j)],
                       got.h_n[size_of(layer * state + j)]));
          }
        }
      }
    }
  });
}

TEST(a_sequence_has_the_same_bits_in_chunks) {
  for_each_isa([] {
    for (const Config& config : networks(19)) {
      if (config.bidirectional || config.reverse) continue;
      Random random(8);
      const auto model = make_model<float>(config, random_parameters(random, config));
      const Sequence sequence = random_sequence(random, config, 13, 4, false, true);
      const Call<float> whole = run(*model, sequence);
      Call<float> chunked(config, sequence);
      chunked.h_n = chunked.h_0;
      chunked.c_n = chunked.c_0;
      Index begin = 0;
      for (const Index end : {1, 2, 5, 5, 13}) {
        Inputs<float> in = chunked.inputs();
        Outputs<float> out = chunked.outputs();
        in.x.data += begin * in.x.stride[0];
        out.y.data += begin * out.y.stride[0];
        in.reset.data += begin * in.reset.stride[0];
        in.x.shape[0] = out.y.shape[0] = in.reset.shape[0] = end - begin;
        // The states may be updated in place.
        in.h_0 = constant(out.h_n);
        in.c_0 = constant(out.c_n);
        model->run(in, out, 1);
        begin = end;
      }
      CHECK(chunked.same_results(whole));
    }
  });
}

TEST(nan_and_infinity_stay_in_their_row) {
  for_each_isa([] {
    for (const Config& config : networks(19)) {
      Random random(9);
      const auto model = make_model<float>(config, random_parameters(random, config));
      Sequence sequence = random_sequence(random, config, 4, 7, false, false);
      const Call<float> clean = run(*model, sequence);
      const auto x_at = [&](Index t, Index n) -> double& {
        return sequence.x[size_of((t * sequence.batch + n) * config.input_size)];
      };
      x_at(1, 2) = std::numeric_limits<double>::quiet_NaN();
      x_at(2, 4) = std::numeric_limits<double>::infinity();
      const Call<float> got = run(*model, sequence);
      const Index width = config.output_size();
      for (Index t = 0; t < sequence.steps; ++t) {
        for (Index n = 0; n < sequence.batch; ++n) {
          for (Index j = 0; j < width; ++j) {
            const std::size_t at = size_of((t * sequence.batch + n) * width + j);
            if (n != 2 && n != 4) CHECK(same(got.y[at], clean.y[at]));
            if (n == 2 && t == 1) CHECK(std::isnan(got.y[at]));
          }
        }
      }
    }
  });
}

// Resets must select; a multiplication by zero would keep NaN.
TEST(what_was_nan_before_a_reset_leaves_no_trace) {
  Random random(10);
  for (const Config& config : networks(9)) {
    if (config.num_layers > 1 || config.bidirectional || config.reverse) continue;
    const auto model = make_model<double>(config, random_parameters(random, config));
    Sequence sequence = random_sequence(random, config, 3, 2, false, false);
    sequence.reset = {1, 0, 0, 0, 0, 1};
    const Call<double> clean = run(*model, sequence);
    sequence.h_0[0] = std::numeric_limits<double>::quiet_NaN();  // row 0, reset at its first step
    if (config.has_cell_state()) sequence.c_0[0] = std::numeric_limits<double>::infinity();
    CHECK(run(*model, sequence).same_results(clean));
  }
}

// ---- The caller's memory

TEST(any_strides) {
  Random random(11);
  for (const Config& config : networks(9)) {
    const auto model = make_model<float>(config, random_parameters(random, config));
    const Sequence sequence = random_sequence(random, config, 5, 4, true, true);
    const Call<float> dense = run(*model, sequence);

    // x (N, T, gap) from the last row to the first; y (N, T, gap); states with gaps.
    Call<float> strided(config, sequence);
    const Index features = config.input_size, width = config.output_size(), gap = 2;
    const Index wide = features + gap, y_wide = width + gap;
    std::vector<float> x(size_of(4 * 5 * wide), std::numeric_limits<float>::quiet_NaN());
    for (Index t = 0; t < 5; ++t) {
      for (Index n = 0; n < 4; ++n) {
        const auto row = strided.x.begin() + (t * 4 + n) * features;
        std::copy(row, row + features, x.begin() + ((3 - n) * 5 + t) * wide);
      }
    }
    std::vector<float> y(size_of(4 * 5 * y_wide), Call<float>::canary);
    Inputs<float> in = strided.inputs();
    in.x.data = x.data() + 3 * 5 * wide;
    in.x.stride[0] = wide, in.x.stride[1] = -5 * wide;
    Outputs<float> out = strided.outputs();
    out.y.data = y.data();
    out.y.stride[0] = y_wide, out.y.stride[1] = 5 * y_wide;
    model->run(in, out, 1);
    for (Index t = 0; t < 5; ++t) {
      for (Index n = 0; n < 4; ++n) {
        for (Index j = 0; j < y_wide; ++j) {
          const float got = y[size_of((n * 5 + t) * y_wide + j)];
          CHECK(same(got,
                     j < width ? dense.y[size_of((t * 4 + n) * width + j)] : Call<float>::canary));
        }
      }
    }
    CHECK(same(strided.h_n, dense.h_n));
    CHECK(same(strided.c_n, dense.c_n));
  }
}

TEST(what_is_absent_is_zero_or_not_computed) {
  Random random(12);
  for (const Config& config : networks(9)) {
    const auto model = make_model<double>(config, random_parameters(random, config));
    Sequence sequence = random_sequence(random, config, 3, 4, true, false);
    std::fill(sequence.h_0.begin(), sequence.h_0.end(), 0.0);
    std::fill(sequence.c_0.begin(), sequence.c_0.end(), 0.0);
    const Call<double> zeros = run(*model, sequence);
    sequence.states = false;
    Call<double> absent(config, sequence);
    Outputs<double> out = absent.outputs();
    out.h_n = out.c_n = View<double>{};
    model->run(absent.inputs(), out, 1);
    CHECK(same(absent.y, zeros.y));

    // Backward: an absent gradient equals zeros, and omitting a result does not change the others.
    const auto tape = model->record(absent.inputs(), absent.outputs(), 1);
    Objective objective(random, config, sequence);
    std::fill(objective.h_n.begin(), objective.h_n.end(), 0.0);
    std::fill(objective.c_n.begin(), objective.c_n.end(), 0.0);
    const Gradients<double> all = run_backward(*tape, objective);
    OutputGradients<double> outputs;
    outputs.y = view(static_cast<const double*>(objective.y.data()), 3, 4, config.output_size());
    InputGradients<double> parameters_alone;
    std::vector<double> got(all.parameters.size(), 1);
    parameters_alone.parameters = got.data();
    tape->backward(outputs, parameters_alone, 1);
    CHECK(same(got, all.parameters));
    InputGradients<double> x_alone;
    got.assign(all.x.size(), 1);
    x_alone.x = view(got.data(), 3, 4, config.input_size);
    tape->backward(outputs, x_alone, 1);
    CHECK(same(got, all.x));
    tape->backward({}, x_alone, 1);
    CHECK(std::all_of(got.begin(), got.end(), [](double v) { return v == 0; }));
    tape->backward(outputs, {}, 1);
  }
}

TEST(a_tape_keeps_all_that_it_needs) {
  Random random(13);
  for (const Config& config : networks(9)) {
    const auto model = make_model<double>(config, random_parameters(random, config));
    const Sequence sequence =
        with_dropout(random, config, random_sequence(random, config, 4, 3, true, true));
    const Objective objective(random, config, sequence);
    auto call = std::make_unique<Call<double>>(config, sequence);
    const auto tape = model->record(call->inputs(), call->outputs(), 1);
    const Gradients<double> first = run_backward(*tape, objective);
    CHECK(run_backward(*tape, objective).same_as(first));

    // Changes the parameters and the ISA, and overwrites and frees every array.
    const std::vector<double> other = random_parameters(random, config);
    model->write_parameters(0, other.data(), static_cast<Index>(other.size()));
    Sequence plain = sequence;
    plain.dropout_scale.clear();
    run(*model, plain);  // packs the weights
    for (std::vector<double>* values : {&call->x, &call->h_0, &call->c_0, &call->dropout_scale,
                                        &call->y, &call->h_n, &call->c_n}) {
      std::fill(values->begin(), values->end(), 1e300);
    }
    std::fill(call->sequence.lengths.begin(), call->sequence.lengths.end(), 0);
    std::fill(call->sequence.reset.begin(), call->sequence.reset.end(), 1);
    call.reset();
    CHECK(run_backward(*tape, objective).same_as(first));
    const std::string chosen = isa();
    for (const std::string& name : available_isas()) {
      select_isa(name);
      CHECK(run_backward(*tape, objective).same_as(first));
    }
    select_isa(chosen);
  }
}

TEST(nothing_to_do) {
  Random random(14);
  for (const Config& config : networks(5)) {
    const auto model = make_model<float>(config, random_parameters(random, config));
    const struct {
      Index steps, batch;
    } sizes[] = {{0, 3}, {4, 0}, {0, 0}};
    for (const auto& size : sizes) {
      Sequence sequence = random_sequence(random, config, size.steps, size.batch, false, false);
      for_each_division([&](int threads) {
        Call<float> call(config, sequence);
        const auto tape = model->record(call.inputs(), call.outputs(), threads);
        CHECK(same(call.h_n, call.h_0));
        CHECK(same(call.c_n, call.c_0));
        const Objective objective(random, config, sequence);
        const Gradients<float> gradients = run_backward(*tape, objective, threads);
        CHECK(same(gradients.h_0, converted<float>(objective.h_n)));
        CHECK(same(gradients.c_0, converted<float>(objective.c_n)));
        CHECK(std::all_of(gradients.parameters.begin(), gradients.parameters.end(),
                          [](float v) { return v == 0; }));
        CHECK(run(*model, sequence, threads).same_results(call));
      });
    }
  }
}

// ---- Parameters

TEST(parameters_are_zero_at_first_and_live) {
  const Config config = networks(5)[0];
  Model<double> model(config);
  CHECK(model.parameter_count() == parameter_count(config));
  const double* const live = model.parameters();
  CHECK(std::all_of(live, live + model.parameter_count(), [](double v) { return v == 0; }));
  const double some[] = {1, 2, 3};
  model.write_parameters(4, some, 3);
  CHECK(model.parameters() == live);
  CHECK(live[3] == 0);
  CHECK(live[4] == 1);
  CHECK(live[6] == 3);
  CHECK(live[7] == 0);
  model.write_parameters(model.parameter_count(), some, 0);
  const std::vector<double> before(live, live + model.parameter_count());
  const Index most = std::numeric_limits<Index>::max();
  const struct {
    Index offset, count;
  } wrong[] = {
      {-1, 1},   {0, -1},   {model.parameter_count(), 1},    {model.parameter_count() - 2, 3},
      {most, 2}, {2, most}, {model.parameter_count() + 1, 0}};
  for (const auto& part : wrong) {
    CHECK(begins_with(
        invalid_argument_of([&] { model.write_parameters(part.offset, some, part.count); }),
        "offset"));
  }
  CHECK(same(before, std::vector<double>(live, live + model.parameter_count())));
}

TEST(new_parameters_count_from_the_next_call) {
  Random random(15);
  for (const Config& config : networks(9)) {
    const std::vector<double> first = random_parameters(random, config);
    const std::vector<double> second = random_parameters(random, config);
    const Sequence sequence = random_sequence(random, config, 3, 2, false, false);
    const Call<double> wanted_first = run(*make_model<double>(config, first), sequence);
    const Call<double> wanted_second = run(*make_model<double>(config, second), sequence);
    const auto model = make_model<double>(config, first);
    CHECK(run(*model, sequence).same_results(wanted_first));
    model->write_parameters(0, second.data(), static_cast<Index>(second.size()));
    CHECK(run(*model, sequence).same_results(wanted_second));
    // In parts, the last one in the middle.
    const Index half = model->parameter_count() / 2;
    model->write_parameters(0, first.data(), half);
    model->write_parameters(half + 1, first.data() + half + 1, model->parameter_count() - half - 1);
    model->write_parameters(half, first.data() + half, 1);
    CHECK(run(*model, sequence).same_results(wanted_first));
  }
}

TEST(parameters_may_be_written_while_others_run) {
  Random random(16);
  const Config config = networks(19)[1];
  const std::vector<float> one = converted<float>(random_parameters(random, config));
  const std::vector<float> two = converted<float>(random_parameters(random, config));
  Model<float> model(config);
  const auto write = [&](const std::vector<float>& values) {
    model.write_parameters(0, values.data(), static_cast<Index>(values.size()));
  };
  const Sequence sequence = random_sequence(random, config, 5, 3, false, false);
  write(two);
  const Call<float> by_two = run(model, sequence);
  write(one);
  const Call<float> by_one = run(model, sequence);

  std::atomic<int> mixed{0};
  std::atomic<bool> done{false};
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&, i] {
      while (!done) {
        const Call<float> got = run(model, sequence, 1 + i % 2);
        if (!got.same_results(by_one) && !got.same_results(by_two)) ++mixed;
      }
    });
  }
  for (int i = 0; i < 300; ++i) write(i % 2 == 0 ? two : one);
  done = true;
  for (std::thread& caller : callers) caller.join();
  CHECK(mixed == 0);
  CHECK(run(model, sequence).same_results(by_one));
}

// ---- What is refused

TEST(configurations_that_make_no_sense) {
  Config base;
  base.input_size = 3;
  base.hidden_size = 4;
  const auto refuses = [&](const char* member, auto change) {
    Config config = base;
    change(config);
    CHECK(begins_with(invalid_argument_of([&] { Model<float>{config}; }), member));
    CHECK(begins_with(invalid_argument_of([&] { config.validate(); }), member));
  };
  base.validate();
  refuses("input_size", [](Config& c) { c.input_size = 0; });
  refuses("input_size", [](Config& c) { c.input_size = -1; });
  refuses("hidden_size", [](Config& c) { c.hidden_size = 0; });
  refuses("num_layers", [](Config& c) { c.num_layers = 0; });
  refuses("proj_size", [](Config& c) { c.proj_size = -1; });
  refuses("proj_size", [](Config& c) { c.proj_size = 4; });
  refuses("reverse", [](Config& c) { c.reverse = c.bidirectional = true; });
}

// Deliberately repeats the table of options.
TEST(options_that_a_cell_does_not_have) {
  const struct {
    const char* name;
    void (*set)(Config&);
    std::vector<CellKind> cells;  // the cells that have the option
  } options[] = {
      {"proj_size", [](Config& c) { c.proj_size = 2; }, {CellKind::lstm}},
      {"peephole", [](Config& c) { c.peephole = true; }, {CellKind::lstm}},
      {"reset_after", [](Config& c) { c.reset_after = false; }, {CellKind::gru}},
      {"update_gate", [](Config& c) { c.update_gate = UpdateGate::write; }, {CellKind::gru}},
      {"output_activation",
       [](Config& c) { c.activations.output = ActivationKind::softsign; },
       {CellKind::lstm}},
      {"input_forget", [](Config& c) { c.activations.input_forget = true; }, {CellKind::lstm}},
  };
  const std::pair<CellKind, std::string> cells[] = {
      {CellKind::lstm, "an LSTM"}, {CellKind::gru, "a GRU"}, {CellKind::mgu, "an MGU"}};
  for (const auto& [cell, name] : cells) {
    Config config;
    config.cell = cell;
    config.input_size = 3;
    config.hidden_size = 4;
    config.validate();
    for (const auto& option : options) {
      Config changed = config;
      option.set(changed);
      const auto& known = option.cells;
      if (std::find(known.begin(), known.end(), cell) != known.end()) {
        changed.validate();
      } else {
        const std::string wanted =
            std::string(option.name) + ": " + name + " has no such option; wanted ";
        CHECK(begins_with(invalid_argument_of([&] { changed.validate(); }), wanted.c_str()));
      }
    }
  }
}

TEST(calls_are_refused_before_anything_is_written) {
  Random random(17);
  const Config config = networks(5)[0];
  const auto model = make_model<float>(config, random_parameters(random, config));
  const Sequence sequence = random_sequence(random, config, 4, 3, true, true);
  Call<float> call(config, sequence);
  const auto refuses = [&](const char* argument, auto change) {
    Inputs<float> in = call.inputs();
    Outputs<float> out = call.outputs();
    int threads = 1;
    change(in, out, threads);
    CHECK(begins_with(invalid_argument_of([&] { model->run(in, out, threads); }), argument));
    CHECK(begins_with(invalid_argument_of([&] { model->record(in, out, threads); }), argument));
    CHECK(call.untouched());
  };
  using In = Inputs<float>;
  using Out = Outputs<float>;
  refuses("x", [](In& in, Out&, int&) { in.x.given = false; });
  refuses("x", [](In& in, Out&, int&) { in.x.shape[2] = 4; });
  refuses("x", [](In& in, Out&, int&) { in.x.shape[0] = -1; });
  refuses("x", [](In& in, Out&, int&) { in.x.stride[2] = 2; });
  refuses("h_0", [](In& in, Out&, int&) { in.h_0.shape[0] = 2; });
  refuses("h_0", [](In& in, Out&, int&) { in.h_0.shape[1] = 4; });
  refuses("h_0", [](In& in, Out&, int&) { in.h_0.stride[2] = -1; });
  refuses("c_0", [](In& in, Out&, int&) { in.c_0.shape[2] = 4; });
  refuses("y", [](In&, Out& out, int&) { out.y.given = false; });
  refuses("y", [](In&, Out& out, int&) { out.y.shape[0] = 5; });
  refuses("y", [](In&, Out& out, int&) { out.y.stride[2] = 0; });
  refuses("h_n", [](In&, Out& out, int&) { out.h_n.shape[1] = 2; });
  refuses("c_n", [](In&, Out& out, int&) { out.c_n.shape[0] = 3; });
  refuses("reset", [](In& in, Out&, int&) { in.reset.shape[0] = 3; });
  refuses("reset", [](In& in, Out&, int&) { in.reset.shape[1] = 4; });
  refuses("num_threads", [](In&, Out&, int& threads) { threads = -1; });
  const Index too_long[] = {4, 5, 4}, negative[] = {4, -1, 4};
  refuses("lengths", [&](In& in, Out&, int&) { in.lengths = too_long; });
  refuses("lengths", [&](In& in, Out&, int&) { in.lengths = negative; });

  Inputs<float> with_dropout_scale = call.inputs();
  with_dropout_scale.dropout_scale = call.x.data();
  CHECK(begins_with(invalid_argument_of([&] { model->run(with_dropout_scale, call.outputs(), 1); }),
                    "dropout_scale"));
  CHECK(call.untouched());

  for (const CellKind cell : {CellKind::gru, CellKind::mgu}) {
    Config without_cell_state = config;
    without_cell_state.cell = cell;
    const Model<float> other(without_cell_state);
    Outputs<float> without_c_n = call.outputs();
    without_c_n.c_n = View<float>{};
    CHECK(
        begins_with(invalid_argument_of([&] { other.run(call.inputs(), without_c_n, 1); }), "c_0"));
    Inputs<float> without_c_0 = call.inputs();
    without_c_0.c_0 = View<const float>{};
    CHECK(begins_with(invalid_argument_of([&] { other.run(without_c_0, call.outputs(), 1); }),
                      "c_n"));
  }
  CHECK(call.untouched());
}

TEST(gradients_are_refused_before_anything_is_written) {
  Random random(18);
  const Config config = networks(5)[0];
  const auto model = make_model<float>(config, random_parameters(random, config));
  Call<float> call(config, random_sequence(random, config, 4, 3, false, false));
  const auto tape = model->record(call.inputs(), call.outputs(), 1);
  Call<float> gradients(config, call.sequence);  // has the same shapes
  std::fill(gradients.x.begin(), gradients.x.end(), Call<float>::canary);
  const auto refuses = [&](const char* argument, auto change) {
    OutputGradients<float> outputs;
    outputs.y = constant(call.outputs().y);
    outputs.h_n = constant(call.outputs().h_n);
    outputs.c_n = constant(call.outputs().c_n);
    InputGradients<float> inputs;
    inputs.x = view(gradients.x.data(), 4, 3, config.input_size);
    inputs.h_0 = gradients.outputs().h_n;
    inputs.c_0 = gradients.outputs().c_n;
    int threads = 1;
    change(outputs, inputs, threads);
    CHECK(begins_with(invalid_argument_of([&] { tape->backward(outputs, inputs, threads); }),
                      argument));
    CHECK(gradients.untouched());
    CHECK(std::all_of(gradients.x.begin(), gradients.x.end(),
                      [](float v) { return v == Call<float>::canary; }));
  };
  using Out = OutputGradients<float>;
  using In = InputGradients<float>;
  refuses("dy", [](Out& out, In&, int&) { out.y.shape[0] = 3; });
  refuses("dy", [](Out& out, In&, int&) { out.y.stride[2] = 2; });
  refuses("dh_n", [](Out& out, In&, int&) { out.h_n.shape[1] = 4; });
  refuses("dc_n", [](Out& out, In&, int&) { out.c_n.shape[2] = 4; });
  refuses("dx", [](Out&, In& in, int&) { in.x.shape[2] = 4; });
  refuses("dh_0", [](Out&, In& in, int&) { in.h_0.shape[0] = 2; });
  refuses("dc_0", [](Out&, In& in, int&) { in.c_0.shape[1] = 2; });
  refuses("num_threads", [](Out&, In&, int& threads) { threads = -2; });
}

TEST(sizes_that_no_memory_holds) {
  const auto too_large = [](auto change) {
    Config config;
    config.input_size = config.hidden_size = 1;
    change(config);
    return throws_length_error([&] { Model<float>{config}; });
  };
  constexpr Index most = std::numeric_limits<Index>::max();
  CHECK(too_large([&](Config& c) { c.hidden_size = most; }));
  CHECK(too_large([&](Config& c) { c.hidden_size = most / 4; }));
  CHECK(too_large([&](Config& c) { c.hidden_size = Index{1} << 31; }));
  CHECK(too_large([&](Config& c) { c.input_size = most; }));
  CHECK(too_large([&](Config& c) { c.input_size = most / 4, c.num_layers = 2; }));
  CHECK(too_large([&](Config& c) { c.num_layers = most; }));
  CHECK(too_large([&](Config& c) { c.num_layers = Index{1} << 59; }));

  // Enormous shapes whose strides are zero: one element of memory.
  Config config;
  config.input_size = config.hidden_size = 1;
  config.num_layers = 4;
  const Model<float> model(config);
  float element = Call<float>::canary;
  const std::uint8_t no_reset = 0;
  constexpr Index large = Index{1} << 33;
  const struct {
    Index steps, batch;
  } sizes[] = {{most, most}, {most, 1}, {1, most}, {most / 2, large}, {large, large}};
  for (const auto& [steps, batch] : sizes) {
    Inputs<float> in;
    in.x = view(static_cast<const float*>(&element), steps, batch, 1);
    in.x.stride[0] = in.x.stride[1] = 0;
    in.reset.data = &no_reset;
    in.reset.shape[0] = steps, in.reset.shape[1] = batch;
    Outputs<float> out;
    out.y = view(&element, steps, batch, 1);
    out.y.stride[0] = out.y.stride[1] = 0;
    for (const bool reset : {false, true}) {
      if (reset && (steps == 1 || batch == 1)) continue;  // the number of bytes fits an Index
      in.reset.given = reset;
      // The memory of inference grows with the rows, not with the steps.
      if (batch == most) {
        CHECK(throws_length_error([&] { model.run(in, out, 1); }));
        CHECK(throws_length_error([&] { model.run(in, out, 2); }));
      }
      CHECK(throws_length_error([&] { model.record(in, out, 1); }));
    }
  }
  CHECK(element == Call<float>::canary);
}

// Under sanitizers, a refused allocation ends the program instead of throwing std::bad_alloc.
#if !defined(__SANITIZE_ADDRESS__) && !TIDEGATE_TEST_HAS_FEATURE(address_sanitizer) && \
    !defined(__SANITIZE_THREAD__) && !TIDEGATE_TEST_HAS_FEATURE(thread_sanitizer)
TEST(sizes_that_this_memory_does_not_hold) {
  const auto throws_bad_alloc = [](const auto& f) {
    try {
      f();
    } catch (const std::bad_alloc&) {
      return true;
    }
    return false;
  };
  Config config;
  config.input_size = config.hidden_size = 1;
  config.num_layers = Index{1} << 45;
  CHECK(throws_bad_alloc([&] { Model<float>{config}; }));
  config.num_layers = 1;
  config.hidden_size = Index{1} << 25;
  CHECK(throws_bad_alloc([&] { Model<float>{config}; }));

  config.hidden_size = 1;
  const Model<float> model(config);
  float element = Call<float>::canary;
  Inputs<float> in;
  in.x = view(static_cast<const float*>(&element), Index{1} << 22, Index{1} << 23, 1);
  in.x.stride[0] = in.x.stride[1] = 0;
  Outputs<float> out;
  out.y = view(&element, Index{1} << 22, Index{1} << 23, 1);
  out.y.stride[0] = out.y.stride[1] = 0;
  CHECK(throws_bad_alloc([&] { model.record(in, out, 1); }));
  CHECK(element == Call<float>::canary);
}
#endif

TEST(settings_refuse_by_name) {
  const std::string chosen = isa();
  const std::vector<std::string> available = available_isas();
  CHECK(std::find(available.begin(), available.end(), chosen) != available.end());
  for (const char* name : {"", "sse", "AVX2"}) {
    CHECK(begins_with(invalid_argument_of([&] { select_isa(name); }), "isa"));
    CHECK(begins_with(invalid_argument_of([&] { select_division(name); }), "division"));
  }
  CHECK(isa() == chosen);
  CHECK(version() == TIDEGATE_VERSION);
  CHECK(!compiler().empty());
}
