// Model and Tape through the public API alone, against a naive network in double precision: what
// comes out, its gradients, the same bits however the work is divided, and what is refused.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "tidegate/tidegate.h"
#include "variants.h"

namespace {

using namespace tidegate;
using test::for_each_division;
using test::for_each_isa;
using test::Random;
using test::same;

std::size_t size_of(Index count) { return static_cast<std::size_t>(count); }

// ---- The naive network

// A number with a bound on the error that it has when it is computed in a precision of unit
// roundoff u. A sum of terms may be taken in any order, fused with products or not: each addition
// costs at most u times the sum of the magnitudes (Higham, Accuracy and Stability of Numerical
// Algorithms, 2002, section 4.2).
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
  double error_ = 0;  // but for the additions
  double magnitudes_ = 0;
  int additions_ = 0;
};

// Within 2 ulp, which is at most 4 u for what lies in [-1, 1]; the slopes are at most 1/4 and 1.
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
    std::vector<Number> r, z, n;        // GRU
    std::vector<Number> h;
  };

  const Config& config;
  Index inputs;
  // Each null if the network has none.
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
    return config.cell == CellKind::lstm ? lstm_step(x, state) : gru_step(x, state);
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
    std::vector<Number> reset_h;
    for (Index j = 0; j < hidden; ++j) {
      saved.r.push_back(sigmoid(of_x(0, j, x) + of_h(0, j, state.h)));
      saved.z.push_back(sigmoid(of_x(1, j, x) + of_h(1, j, state.h)));
      reset_h.push_back(saved.r.back() * state.h[size_of(j)]);
    }
    for (Index j = 0; j < hidden; ++j) {
      const Number recurrent =
          config.reset_after ? saved.r[size_of(j)] * of_h(2, j, state.h) : of_h(2, j, reset_h);
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
};

// What a call is given, in double precision; each number is one of float, too.
struct Sequence {
  Index steps = 0, batch = 0;
  std::vector<double> x, h_0, c_0;
  bool states = false;                // else zero
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
          // A boundary lies between t - 1 and t: forward it is crossed before step t, in reverse
          // on the way from t to t - 1.
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
  std::vector<Config> all = {lstm, gru};
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
  return all;
}

Index parameter_count(const Config& config) {
  const Parameter last = parameters(config).back();
  return last.offset + last.size();
}

std::vector<double> random_parameters(Random& random, const Config& config) {
  return random.numbers<double>(parameter_count(config), 0.5);
}

// With ragged lengths, one of them zero; NaN stands where nobody may read.
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

// The gradients by what a call returned, and by what it read. NaN stands at the padded steps of dy,
// which nobody may read.
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
  // The naive network, in double, errs too.
  constexpr double own = std::numeric_limits<double>::epsilon() / epsilon;
  CHECK(got.size() == wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double bound = wanted[i].error() * (1 + own);
    CHECK(bound < 5000 * epsilon);  // or it would say little
    CHECK_NEAR(got[i], wanted[i].value(), bound);
  }
}

// One step at a time, each from the state that the last one left.
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
  // Central differences are good to some 1e-10 here. In float, sums of some dozen terms of order 1.
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
  const struct {
    const char* name;
    std::vector<Bounded> Saved::* values;
  } lstm[] = {{"i", &Saved::i}, {"f", &Saved::f}, {"g", &Saved::g},
              {"o", &Saved::o}, {"c", &Saved::c}, {"h", &Saved::h}},
    gru[] = {{"r", &Saved::r}, {"z", &Saved::z}, {"n", &Saved::n}, {"h", &Saved::h}};
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
  if (config.cell == CellKind::lstm) {
    for (const auto& quantity : lstm) check(quantity.name, quantity.values);
  } else {
    for (const auto& quantity : gru) check(quantity.name, quantity.values);
  }
}

// What `f` throws, or "".
template <class F>
std::string invalid_argument_of(const F& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

bool begins_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

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

// Sizes at which each thread has work, and weight gradients are summed up in several chunks.
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
