// Low precision through the public API: the rounding of parameters, models and linear layers in
// bfloat16 and int8, and what is refused. Their products are tested in test_rounded_phase.cc.
#include "tidegate/precision.h"

#include <algorithm>
#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "core/float_control.h"
#include "errors.h"
#include "flushed.h"
#include "tidegate/linear.h"
#include "tidegate/model.h"
#include "variants.h"

namespace {

using namespace tidegate;
using test::for_each_division;
using test::for_each_isa;
using test::Random;
using test::same;
using test::size_of;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// ---- Parameters

// A layout of matrices with rows of these numbers of columns (0: a vector), of two rows each.
std::vector<Parameter> layout_of(const std::vector<Index>& columns) {
  std::vector<Parameter> layout;
  Index offset = 0;
  for (const Index count : columns) {
    const char digit = static_cast<char>('0' + layout.size());
    layout.push_back({{'p', digit}, 2, count, offset});
    offset += layout.back().size();
  }
  return layout;
}

Index count_of(const std::vector<Parameter>& layout) {
  return layout.back().offset + layout.back().size();
}

std::vector<float> dequantized(const std::vector<Parameter>& layout,
                               const QuantizedParameters& parameters) {
  std::vector<float> values(size_of(count_of(layout)));
  dequantize(layout, parameters, values.data());
  return values;
}

// The layouts of rows of one matrix.
std::vector<Parameter> matrix(Index rows, Index columns) {
  return {{"weight_hh_l1", rows, columns, 0}};
}

// ---- Networks

std::vector<Config> networks() {
  std::vector<Config> all;
  for (const CellKind cell : {CellKind::lstm, CellKind::gru, CellKind::mgu}) {
    Config config;
    config.cell = cell;
    config.input_size = 17;
    config.hidden_size = 33;
    all.push_back(config);
  }
  Config before = all[1];
  before.reset_after = false;
  before.update_gate = UpdateGate::write;
  before.bidirectional = true;
  all.push_back(before);
  Config projected = all[0];
  projected.proj_size = 15;
  projected.peephole = true;
  projected.num_layers = 2;
  all.push_back(projected);
  Config large = all[0];
  large.input_size = 300;
  large.hidden_size = 150;
  all.push_back(large);
  return all;
}

std::shared_ptr<Model<float>> model_of(const Config& config, const std::vector<float>& values) {
  auto model = std::make_shared<Model<float>>(config);
  model->write_parameters(0, values.data(), static_cast<Index>(values.size()));
  return model;
}

// Parameters as they are initialised: uniform in +-1/sqrt(hidden_size). The rows of matrices have
// different magnitudes, so that the scale of another row is a wrong one.
std::vector<float> random_parameters(Random& random, const Config& config) {
  const double bound = 1 / std::sqrt(static_cast<double>(config.hidden_size));
  std::vector<float> values = random.numbers<float>(parameter_count(config), bound);
  for (const Parameter& parameter : parameters(config)) {
    for (Index row = 0; parameter.columns > 0 && row < parameter.rows; ++row) {
      const float factor = row % 3 == 0 ? 1.0f : row % 3 == 1 ? 0.25f : 0.0625f;
      for (Index k = 0; k < parameter.columns; ++k)
        values[size_of(parameter.offset + row * parameter.columns + k)] *= factor;
    }
  }
  return values;
}

struct Sequences {
  Index steps = 0, batch = 0;
  std::vector<float> x;
  std::vector<Index> lengths;       // empty: all steps
  std::vector<std::uint8_t> reset;  // [step][row]; empty: none

  Index length(Index n) const { return lengths.empty() ? steps : lengths[size_of(n)]; }
  Index inputs() const { return static_cast<Index>(x.size()) / (steps * batch); }

  // One row, up to its length.
  Sequences alone(Index n) const {
    Sequences row;
    row.steps = length(n);
    row.batch = 1;
    for (Index t = 0; t < row.steps; ++t) {
      const auto begin = x.begin() + (t * batch + n) * inputs();
      row.x.insert(row.x.end(), begin, begin + inputs());
      if (!reset.empty()) row.reset.push_back(reset[size_of(t * batch + n)]);
    }
    return row;
  }
};

Sequences random_sequences(Random& random, const Config& config, Index steps, Index batch,
                           bool ragged) {
  Sequences s;
  s.steps = steps;
  s.batch = batch;
  s.x = random.numbers<float>(steps * batch * config.input_size);
  if (!ragged) return s;
  for (Index n = 0; n < batch; ++n) s.lengths.push_back(1 + random.below(steps));
  for (Index i = 0; i < steps * batch; ++i) s.reset.push_back(random.below(4) == 0);
  return s;
}

struct Results {
  std::vector<float> y, h_n, c_n;

  bool equal(const Results& other) const {
    return same(y, other.y) && same(h_n, other.h_n) && same(c_n, other.c_n);
  }
};

// The results of call(inputs, outputs).
template <class Call>
Results results_of(const Config& config, const Sequences& s, const std::vector<float>& h_0,
                   const Call& call) {
  const Index directions = config.num_layers * config.num_directions();
  Results results;
  results.y.assign(size_of(s.steps * s.batch * config.output_size()), 7);
  results.h_n.assign(size_of(directions * s.batch * config.state_size()), 7);
  Inputs<float> in;
  in.x = view(s.x.data(), s.steps, s.batch, config.input_size);
  if (!h_0.empty()) in.h_0 = view(h_0.data(), directions, s.batch, config.state_size());
  if (!s.lengths.empty()) in.lengths = s.lengths.data();
  if (!s.reset.empty()) {
    in.reset.data = s.reset.data();
    in.reset.shape[0] = s.steps, in.reset.shape[1] = s.batch;
    in.reset.stride[0] = s.batch, in.reset.stride[1] = 1;
    in.reset.given = true;
  }
  Outputs<float> out;
  out.y = view(results.y.data(), s.steps, s.batch, config.output_size());
  out.h_n = view(results.h_n.data(), directions, s.batch, config.state_size());
  if (config.has_cell_state()) {
    results.c_n.assign(size_of(directions * s.batch * config.hidden_size), 7);
    out.c_n = view(results.c_n.data(), directions, s.batch, config.hidden_size);
  }
  call(in, out);
  return results;
}

Results run(const Model<float>& model, const Sequences& s, int threads,
            const std::vector<float>& h_0 = {}, Precision products = Precision::exact) {
  return results_of(model.config(), s, h_0,
                    [&](const Inputs<float>& in, const Outputs<float>& out) {
                      model.run(in, out, threads, products);
                    });
}

struct Training {
  Results results;
  std::vector<float> dx, dh_0, dparameters;

  bool equal(const Training& other) const {
    return results.equal(other.results) && same(dx, other.dx) && same(dh_0, other.dh_0) &&
           same(dparameters, other.dparameters);
  }
};

// A training call and its gradients, where `dy` is the gradient for y.
Training train(const Model<float>& model, const Sequences& s, const std::vector<float>& dy,
               int threads, Precision products) {
  const Config& config = model.config();
  const Index directions = config.num_layers * config.num_directions();
  Training training;
  training.dx.assign(s.x.size(), 7);
  training.dh_0.assign(size_of(directions * s.batch * config.state_size()), 7);
  training.dparameters.assign(size_of(model.parameter_count()), 7);
  std::unique_ptr<Tape<float>> tape;
  training.results =
      results_of(config, s, {}, [&](const Inputs<float>& in, const Outputs<float>& out) {
        tape = model.record(in, out, threads, products);
      });
  OutputGradients<float> outputs;
  outputs.y = view(dy.data(), s.steps, s.batch, config.output_size());
  InputGradients<float> inputs;
  inputs.x = view(training.dx.data(), s.steps, s.batch, config.input_size);
  inputs.h_0 = view(training.dh_0.data(), directions, s.batch, config.state_size());
  inputs.parameters = training.dparameters.data();
  tape->backward(outputs, inputs, threads);
  return training;
}

// Whether row n of a batch has the results of the row alone, and zeros in its padding.
bool has_row(const Config& config, const Sequences& s, const Results& batch, Index n,
             const Results& alone) {
  const Index outputs = config.output_size();
  bool all = true;
  for (Index t = 0; t < s.steps; ++t) {
    for (Index j = 0; j < outputs; ++j) {
      const float wanted = t < s.length(n) ? alone.y[size_of(t * outputs + j)] : 0.0f;
      all = all && same(batch.y[size_of((t * s.batch + n) * outputs + j)], wanted);
    }
  }
  const auto states = [&](const std::vector<float>& together, const std::vector<float>& single) {
    const Index directions = config.num_layers * config.num_directions();
    const Index size = static_cast<Index>(single.size()) / directions;
    for (Index d = 0; d < directions; ++d) {
      for (Index j = 0; j < size; ++j) {
        all = all &&
              same(together[size_of((d * s.batch + n) * size + j)], single[size_of(d * size + j)]);
      }
    }
  };
  states(batch.h_n, alone.h_n);
  states(batch.c_n, alone.c_n);
  return all;
}

constexpr Precision kBfloat16[] = {Precision::bfloat16, Precision::bfloat16_dot};
constexpr Precision kLowPrecisions[] = {Precision::bfloat16, Precision::bfloat16_dot,
                                        Precision::int8};

// ---- Linear layers

std::unique_ptr<Linear<float>> linear_of(Index in, Index out, bool bias,
                                         const std::vector<float>& values) {
  auto layer = std::make_unique<Linear<float>>(in, out, bias);
  layer->write_parameters(0, values.data(), static_cast<Index>(values.size()));
  return layer;
}

std::vector<float> run(const Linear<float>& layer, const std::vector<float>& x, int threads) {
  const Index rows = static_cast<Index>(x.size()) / layer.in_features();
  std::vector<float> y(size_of(rows * layer.out_features()));
  layer.run(x.data(), layer.in_features(), y.data(), layer.out_features(), rows, threads);
  return y;
}

// The root of the mean square of a - b, over that of b.
double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, square = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto wanted = static_cast<double>(b[i]);
    difference += std::pow(static_cast<double>(a[i]) - wanted, 2);
    square += wanted * wanted;
  }
  return std::sqrt(difference / square);
}

double greatest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double greatest = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    greatest = std::max(greatest, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return greatest;
}

// A bound on the differences between results in low precision and in float32: six standard
// deviations of the error of a pre-activation, which is a sum of many independent roundings.
//
// The K products have weights in +-1/sqrt(H) and x and h in +-1. A rounding in int8 is within half
// a step of m / 127, where m is the row's greatest magnitude; a rounding in bfloat16 is within 2^-8
// of the number. Both are about uniform, so that their standard deviations are m / (254 sqrt(3))
// and at most 2^-8 / sqrt(3) of the number. The roundings of both operands of K products add up to
// sqrt(2 K / H) / (3 * 254) and sqrt(2 K / H) * 2^-8 / (3 sqrt(3)).
//
// The slopes of a cell are at most 1, most of them at most 1/4; this leaves room for the errors of
// earlier steps.
double tolerance(const Config& config, Precision precision) {
  const auto terms = static_cast<double>(config.input_size + config.state_size());
  const double of_operand = precision == Precision::int8 ? 1.0 / 254 : 0x1p-8 / std::sqrt(3.0);
  return 6 * std::sqrt(2 * terms / static_cast<double>(config.hidden_size)) * of_operand / 3;
}

}  // namespace

TEST(int8_parameters_are_nearest_integers_with_a_scale_for_each_row) {
  const std::vector<Parameter> layout = layout_of({3, 0, 2});
  const std::vector<float> values = {127,  0.5f,   1.5f, -2.54f, 1.27f, 0.02f,
                                     kNan, 1e-40f, 0,    0,      -4,    1.5f / 127};
  const QuantizedParameters q = quantize(layout, values.data(), Precision::int8);
  CHECK(q.precision == Precision::int8 && q.bfloat16.empty());
  CHECK(q.int8 == std::vector<std::int8_t>({127, 0, 2, -127, 64, 1, 0, 0, -127, 0}));
  CHECK(same(q.scales, {1, 2.54f / 127, 1, 4.0f / 127}));
  CHECK(same(q.vectors, {kNan, 1e-40f}));
  check_quantized(layout, q);
  CHECK(same(dequantized(layout, q), {127, 0, 2, -127 * (2.54f / 127), 64 * (2.54f / 127),
                                      2.54f / 127, kNan, 1e-40f, 0, 0, -127 * (4.0f / 127), 0}));

  // Ties, and rows at the least magnitude.
  const float least = 0x1p-100f, below = std::nextafter(least, 0.0f);
  const std::vector<float> rows = {127, 2.5f,   -2.5f, -0.5f, -126.5f, 0,     below, 0,
                                   0,   -below, least, 0,     0,       -0.0f, -least};
  const QuantizedParameters ties = quantize(matrix(3, 5), rows.data(), Precision::int8);
  CHECK(ties.int8 ==
        std::vector<std::int8_t>({127, 2, -2, 0, -126, 0, 0, 0, 0, 0, 127, 0, 0, 0, -127}));
  CHECK(same(ties.scales, {1, 1, least / 127}));
}

TEST(bfloat16_parameters_are_nearest_even) {
  const std::vector<Parameter> layout = layout_of({3, 0, 4});
  const std::vector<float> values = {
      1.00390625f, 1.01171875f, -1.00390625f, 1.003907f, FLT_MAX, -kInfinity, 1.00390625f, kNan,
      -0.0f,       1e-40f,      kNan,         -kNan,     0.1f,    1,          -1,          2};
  std::vector<float> wanted = values;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (i != 6 && i != 7) wanted[i] = test::rounded_to_bfloat16(values[i]);
  }
  const QuantizedParameters q = quantize(layout, values.data(), Precision::bfloat16);
  CHECK(q.precision == Precision::bfloat16 && q.int8.empty() && q.scales.empty());
  CHECK(q.bfloat16.size() == 14);
  CHECK(q.bfloat16[0] == 0x3f80 && q.bfloat16[1] == 0x3f82 && q.bfloat16[2] == 0xbf80);
  CHECK(q.bfloat16[3] == 0x3f81 && q.bfloat16[4] == 0x7f80 && q.bfloat16[5] == 0xff80);
  CHECK(same(q.vectors, {1.00390625f, kNan}));
  check_quantized(layout, q);
  CHECK(same(dequantized(layout, q), wanted));
  // NaNs whose upper bits alone would be an infinity.
  for (const std::uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu}) {
    const float number = test::float_of_bits(bits);
    const QuantizedParameters nans = quantize(matrix(1, 1), &number, Precision::bfloat16);
    CHECK(std::isnan(dequantized(matrix(1, 1), nans)[0]));
  }
}

TEST(dequantised_parameters_are_quantised_to_the_same) {
  Random random(1);
  const std::vector<Parameter> layout = matrix(500, 7);
  std::vector<float> values = random.numbers<float>(count_of(layout));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = std::ldexp(values[i], static_cast<int>(i / 7 % 200) - 95);
  const QuantizedParameters bfloat16 = quantize(layout, values.data(), Precision::bfloat16);
  const std::vector<float> rounded = dequantized(layout, bfloat16);
  CHECK(quantize(layout, rounded.data(), Precision::bfloat16).bfloat16 == bfloat16.bfloat16);
  const QuantizedParameters int8 = quantize(layout, values.data(), Precision::int8);
  const std::vector<float> scaled = dequantized(layout, int8);
  CHECK(quantize(layout, scaled.data(), Precision::int8).int8 == int8.int8);
  // Each is within half a step.
  for (Index i = 0; i < count_of(layout); ++i) {
    const double step = static_cast<double>(int8.scales[size_of(i / 7)]);
    CHECK_NEAR(scaled[size_of(i)], values[size_of(i)], step * 0.50001);
  }
}

TEST(rounding_does_not_depend_on_the_caller_s_float_control) {
  Random random(2);
  const std::vector<Parameter> layout = matrix(20, 32);
  std::vector<float> values = random.numbers<float>(count_of(layout));
  // Denormal numbers, which bfloat16 keeps.
  for (std::size_t i = 0; i < 64; ++i) values[i] *= 1e-38f;
  const auto all = [&] {
    const QuantizedParameters bfloat16 = quantize(layout, values.data(), Precision::bfloat16);
    const QuantizedParameters int8 = quantize(layout, values.data(), Precision::int8);
    std::vector<float> numbers = dequantized(layout, bfloat16);
    for (const float value : dequantized(layout, int8)) numbers.push_back(value);
    for (const float scale : int8.scales) numbers.push_back(scale);
    return numbers;
  };
  const std::vector<float> wanted = all();
  for (std::size_t i = 0; i < values.size(); ++i)
    CHECK(same(wanted[i], test::rounded_to_bfloat16(values[i])));
  for (const int direction : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    std::fesetround(direction);
    const std::vector<float> got = all();
    std::fesetround(FE_TONEAREST);
    CHECK(same(got, wanted));
  }
  std::vector<float> got;
  {
    const FloatControl flushes;
    got = all();
  }
  CHECK(same(got, wanted));
}

TEST(parameters_that_are_refused) {
  const auto refusal = [](const std::vector<Parameter>& layout, const std::vector<float>& values,
                          Precision precision = Precision::int8) {
    return invalid_argument_of([&] { quantize(layout, values.data(), precision); });
  };
  CHECK(refusal(matrix(1, 1), {1}, Precision::exact) ==
        "precision: wanted bfloat16, bfloat16-dot or int8");
  for (const float wrong : {kNan, kInfinity, -kInfinity}) {
    CHECK(
        refusal(matrix(3, 2), {1, 2, 3, 4, 5, wrong}) ==
        "weight_hh_l1: got a number that is not finite in row 2; int8 has no such numbers, wanted "
        "finite weights");
    CHECK(refusal(matrix(3, 2), {1, 2, 3, 4, 5, wrong}, Precision::bfloat16).empty());
    CHECK(refusal(layout_of({0, 1}), {wrong, wrong, 1, 1}).empty());
  }
  const Index deep = (Index{1} << 17) + 1;
  const std::vector<float> zeros(size_of(deep));
  CHECK(refusal(matrix(1, deep), zeros) ==
        "weight_hh_l1: got rows of 131073 elements, whose products in int8 would not be exact; "
        "wanted at most 131072");
  CHECK(refusal(matrix(1, deep - 1), zeros).empty());
  CHECK(refusal(matrix(1, deep), zeros, Precision::bfloat16).empty());

  const std::vector<Parameter> layout = layout_of({2, 0});
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const auto check_refusal = [&](Precision precision, const auto& change) {
    QuantizedParameters q = quantize(layout, values.data(), precision);
    check_quantized(layout, q);
    change(q);
    return invalid_argument_of([&] { check_quantized(layout, q); });
  };
  const auto int8_refusal = [&](const auto& change) {
    return check_refusal(Precision::int8, change);
  };
  const auto bfloat16_refusal = [&](const auto& change) {
    return check_refusal(Precision::bfloat16, change);
  };
  using Q = QuantizedParameters;
  CHECK(int8_refusal([](Q& q) { q.precision = Precision::exact; }) ==
        "precision: wanted bfloat16, bfloat16-dot or int8");
  CHECK(int8_refusal([](Q& q) { q.int8.pop_back(); }) == "int8: got 3 elements, wanted 4");
  CHECK(int8_refusal([](Q& q) { q.scales.push_back(1); }) == "scales: got 3 elements, wanted 2");
  CHECK(int8_refusal([](Q& q) { q.vectors.clear(); }) == "vectors: got 0 elements, wanted 2");
  CHECK(int8_refusal([](Q& q) { q.bfloat16.push_back(0); }) ==
        "bfloat16: got 1 elements, wanted 0");
  CHECK(int8_refusal([](Q& q) { q.scales[1] = -1; }) ==
        "p0: got the scale -1 for row 1, wanted a positive finite number, 1.17549e-38 to "
        "2.67939e+36");
  for (const float wrong : {0.0f, -0.0f, kNan, kInfinity, -kInfinity, 1e-40f}) {
    const std::string message = int8_refusal([&](Q& q) { q.scales[0] = wrong; });
    CHECK(begins_with(message, "p0: got the scale "));
    CHECK(message.find(" for row 0, wanted a positive finite number") != std::string::npos);
  }
  CHECK(bfloat16_refusal([](Q& q) { q.bfloat16.push_back(0); }) ==
        "bfloat16: got 5 elements, wanted 4");
  CHECK(bfloat16_refusal([](Q& q) { q.int8.push_back(0); }) == "int8: got 1 elements, wanted 0");
  CHECK(bfloat16_refusal([](Q& q) { q.scales.push_back(1); }) ==
        "scales: got 1 elements, wanted 0");
  CHECK(bfloat16_refusal([](Q& q) { q.vectors.pop_back(); }) ==
        "vectors: got 1 elements, wanted 2");
}

TEST(int8_parameters_times_their_scale_are_finite) {
  const std::vector<float> values = {FLT_MAX, 1e37f, std::nextafter(FLT_MAX, 0.0f), 0};
  const QuantizedParameters q = quantize(matrix(2, 2), values.data(), Precision::int8);
  for (const float value : dequantized(matrix(2, 2), q)) CHECK(std::isfinite(value));
  // Scales of which the greatest integer times exceeds FLT_MAX.
  QuantizedParameters given = q;
  for (const auto& [integer, scale] : {std::pair{127, 1e37f}, {-128, q.scales[0]}}) {
    given.int8[0] = static_cast<std::int8_t>(integer);
    given.scales[0] = scale;
    CHECK(begins_with(invalid_argument_of([&] { check_quantized(matrix(2, 2), given); }),
                      "weight_hh_l1: got the scale "));
  }
  // -128, which quantize() does not use.
  given.scales[0] = 0.5f;
  check_quantized(matrix(2, 2), given);
  CHECK(dequantized(matrix(2, 2), given)[0] == -64);
}

TEST(precisions_have_names) {
  CHECK(precision_name<float>(Precision::exact) == std::string("float32"));
  CHECK(precision_name<double>(Precision::exact) == std::string("float64"));
  CHECK(precision_name<float>(Precision::bfloat16) == std::string("bfloat16"));
  CHECK(precision_name<float>(Precision::bfloat16_dot) == std::string("bfloat16-dot"));
  CHECK(precision_name<float>(Precision::int8) == std::string("int8"));
  CHECK(low_precision("bfloat16-dot") == Precision::bfloat16_dot);
  CHECK(!low_precision("bfloat16_dot") && !low_precision("float32"));
}

TEST(the_faster_bfloat16) {
  for_each_isa([&] {
    // The matrix unit is not used if the process may not use it.
    if (isa() != "amx") CHECK(fastest_bfloat16() == Precision::bfloat16_dot);
  });
}

namespace {

// What a Model and a Linear have in common. `record` trains the layer.
template <class Layer, class Record>
void check_layer(Layer& layer, const char* with_article, const Record& record) {
  std::vector<float> values(size_of(layer.parameter_count()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.01f * static_cast<float>(i % 37);
  layer.write_parameters(0, values.data(), layer.parameter_count());
  CHECK(layer.precision() == Precision::exact && layer.quantized() == nullptr);
  CHECK(invalid_argument_of([&] { layer.quantize(Precision::exact); }) ==
        "precision: wanted bfloat16, bfloat16-dot or int8");
  std::vector<float> read(values.size());
  layer.read_parameters(read.data());
  CHECK(same(read, values));

  for (const Precision precision : kLowPrecisions) {
    const std::string name = precision_name<float>(precision);
    const auto low = layer.quantize(precision);
    CHECK(low->precision() == precision && low->parameters() == nullptr);
    CHECK(low->parameter_count() == layer.parameter_count());
    CHECK(low->quantized() != nullptr && low->quantized()->precision == precision);
    low->read_parameters(read.data());
    CHECK(!same(read, values));
    CHECK(greatest_difference(read, values) < 0.002);
    const std::string refusal = "parameters: those in " + name +
                                " cannot be changed; change the layer from which they were made, "
                                "and quantise it again";
    CHECK(invalid_argument_of([&] { low->write_parameters(0, values.data(), 1); }) == refusal);
    CHECK(invalid_argument_of([&] { low->update_parameters([](float*) { CHECK(false); }); }) ==
          refusal);
    for (const Precision other : kLowPrecisions) {
      if (other != precision && have_same_parameters(other, precision)) {
        const auto same_parameters = low->quantize(other);
        CHECK(same_parameters->precision() == other);
        CHECK(same_parameters->quantized()->bfloat16 == low->quantized()->bfloat16);
        CHECK(same(same_parameters->quantized()->vectors, low->quantized()->vectors));
        continue;
      }
      CHECK(invalid_argument_of([&] { low->quantize(other); }) ==
            "precision: the parameters are already in " + name +
                "; quantise the layer from which these were made");
    }
    CHECK(begins_with(invalid_argument_of([&] { record(*low); }),
                      ("precision: " + std::string(with_article) + " in " + name +
                       " is for inference; train the ")
                          .c_str()));
    // It is independent of the layer from which it was made.
    std::vector<float> again(values.size());
    layer.update_parameters([](float* parameters) { parameters[0] += 1; });
    low->read_parameters(again.data());
    CHECK(same(again, read));
    layer.write_parameters(0, values.data(), layer.parameter_count());
  }
}

constexpr const char* kOnlyFloat =
    "precision: low precision is for layers of float (float32); convert the layer first";

}  // namespace

TEST(a_model_in_low_precision_cannot_be_changed) {
  for (const Config& config : networks()) {
    Model<float> model(config);
    check_layer(model, "a model", [&](const Model<float>& low) {
      const std::vector<float> x(size_of(config.input_size));
      std::vector<float> y(size_of(config.output_size()));
      Inputs<float> in;
      in.x = view(x.data(), 1, 1, config.input_size);
      Outputs<float> out;
      out.y = view(y.data(), 1, 1, config.output_size());
      low.record(in, out)->backward({}, {});
    });
    const Model<double> twice(config);
    CHECK(invalid_argument_of([&] { twice.quantize(Precision::int8); }) == kOnlyFloat);
    QuantizedParameters q = *model.quantize(Precision::int8)->quantized();
    CHECK(invalid_argument_of([&] { Model<double>(config, q); }) == kOnlyFloat);
    const std::size_t rows = q.scales.size();
    q.scales.pop_back();
    CHECK(invalid_argument_of([&] { Model<float>(config, q); }) ==
          "scales: got " + std::to_string(rows - 1) + " elements, wanted " + std::to_string(rows));
  }
}

TEST(a_linear_layer_in_low_precision_cannot_be_changed) {
  Linear<float> layer(5, 3);
  check_layer(layer, "a layer", [](const Linear<float>& low) {
    const float x[5] = {};
    float y[3] = {};
    low.record(x, 5, y, 3, 1);
  });
  const Linear<double> twice(5, 3);
  CHECK(invalid_argument_of([&] { twice.quantize(Precision::bfloat16); }) == kOnlyFloat);
  const auto low = layer.quantize(Precision::bfloat16);
  CHECK(invalid_argument_of([&] { Linear<double>(5, 3, true, *low->quantized()); }) == kOnlyFloat);
  CHECK(invalid_argument_of([&] { Linear<float>(5, 2, true, *low->quantized()); }) ==
        "bfloat16: got 15 elements, wanted 10");
  const Linear<float> copy(5, 3, true, *low->quantized());
  const std::vector<float> x = {1, 2, 3, 4, 5};
  CHECK(same(run(copy, x, 1), run(*low, x, 1)));
}

TEST(models_have_the_same_bits_for_every_division) {
  Random random(5);
  for (const Config& config : networks()) {
    const auto model = model_of(config, random_parameters(random, config));
    for (const Precision precision : kLowPrecisions) {
      const auto low = model->quantize(precision);
      // More rows than a call of the kernels takes, in all steps or in one.
      struct Size {
        Index steps, batch;
        bool ragged;
      };
      for (const Size& size : {Size{7, 1, false}, {6, 5, true}, {5, 33, true}, {2, 150, false}}) {
        const Sequences s = random_sequences(random, config, size.steps, size.batch, size.ragged);
        for_each_isa([&] {
          const Results wanted = run(*low, s, 1);
          for (const Index n : {Index{0}, s.batch / 2, s.batch - 1})
            CHECK(has_row(config, s, wanted, n, run(*low, s.alone(n), 1)));
          for_each_division([&](int threads) { CHECK(run(*low, s, threads).equal(wanted)); });
        });
      }
    }
  }
}

TEST(streams_have_the_bits_of_whole_sequences) {
  Random random(6);
  for (const Config& config : networks()) {
    if (config.bidirectional) continue;
    const auto model = model_of(config, random_parameters(random, config));
    const Index inputs = config.input_size, outputs = config.output_size();
    for (const Precision precision : kLowPrecisions) {
      const std::shared_ptr<const Model<float>> low = model->quantize(precision);
      struct Size {
        Index steps, batch;
      };
      for (const Size& size : {Size{5, 1}, {4, 5}, {1, 140}}) {
        const Index batch = size.batch;
        const Sequences s = random_sequences(random, config, size.steps, batch, false);
        for_each_isa([&] {
          const Results wanted = run(*low, s, 1);
          for_each_division([&](int threads) {
            Stream<float> stream(low, batch);
            std::vector<float> y(wanted.y.size());
            for (Index t = 0; t < s.steps; ++t) {
              const float* const x = s.x.data() + t * batch * inputs;
              float* const to = y.data() + t * batch * outputs;
              if (t % 2 == 0) {
                stream.step(x, inputs, to, outputs, threads);
              } else {  // the rows one after the other
                for (Index n = 0; n < batch; ++n)
                  stream.step(x + n * inputs, inputs, to + n * outputs, outputs, &n, 1, threads);
              }
            }
            CHECK(same(y, wanted.y));
          });
        });
      }
    }
  }
}

TEST(models_in_low_precision_are_near_those_in_float32) {
  Random random(7);
  for (const Config& config : networks()) {
    const auto model = model_of(config, random_parameters(random, config));
    const Sequences s = random_sequences(random, config, 20, 9, false);
    for (const Precision precision : kLowPrecisions) {
      const auto low = model->quantize(precision);
      for_each_isa([&] {
        const Results exact = run(*model, s, 1), rounded = run(*low, s, 1);
        CHECK(!same(rounded.y, exact.y));
        CHECK_NEAR(greatest_difference(rounded.y, exact.y), 0, tolerance(config, precision));
        CHECK_NEAR(greatest_difference(rounded.h_n, exact.h_n), 0, tolerance(config, precision));
      });
    }
  }
}

// The panels of training are packed from the parameters as those of inference are.
TEST(training_in_bfloat16_has_the_bits_of_inference) {
  Random random(10);
  for (const Config& config : networks()) {
    const auto model = model_of(config, random_parameters(random, config));
    const Sequences s = random_sequences(random, config, 6, 5, true);
    const std::vector<float> dy = random.numbers<float>(s.steps * s.batch * config.output_size());
    const auto check = [&](Precision precision) {
      const auto low = model->quantize(precision);
      const Results exact = run(*model, s, 1), wanted = run(*low, s, 1);
      CHECK(run(*model, s, 1, {}, precision).equal(wanted));
      CHECK(train(*model, s, dy, 1, precision).results.equal(wanted));
      // The snapshots of both precisions are kept side by side.
      CHECK(run(*model, s, 1).equal(exact));
      CHECK(!exact.equal(wanted));
      // A change of the parameters reaches both.
      model->update_parameters([](float* parameters) { parameters[0] += 1; });
      CHECK(!run(*model, s, 1).equal(exact));
      CHECK(!run(*model, s, 1, {}, precision).equal(wanted));
      model->update_parameters([](float* parameters) { parameters[0] -= 1; });
    };
    for_each_isa([&] {
      for (const Precision precision : kBfloat16) check(precision);
    });
  }
}

TEST(training_in_bfloat16_has_the_same_bits_for_every_division) {
  Random random(11);
  for (const Config& config : networks()) {
    const auto model = model_of(config, random_parameters(random, config));
    struct Size {
      Index steps, batch;
      bool ragged;
    };
    for (const Size& size : {Size{7, 1, false}, {5, 33, true}, {2, 150, false}}) {
      const Sequences s = random_sequences(random, config, size.steps, size.batch, size.ragged);
      const std::vector<float> dy = random.numbers<float>(s.steps * s.batch * config.output_size());
      const auto check = [&](Precision precision) {
        const Training wanted = train(*model, s, dy, 1, precision);
        for_each_division(
            [&](int threads) { CHECK(train(*model, s, dy, threads, precision).equal(wanted)); });
        // The roundings of both operands of a product, each uniform within 2^-9 of the number, have
        // a relative standard deviation of sqrt(2 / 3) 2^-9. Those of all steps add up.
        const Training exact = train(*model, s, dy, 1, Precision::exact);
        const double tolerance = 6 * std::sqrt(2.0 / 3 * static_cast<double>(s.steps)) * 0x1p-9;
        CHECK_NEAR(relative_difference(wanted.dx, exact.dx), 0, tolerance);
        CHECK_NEAR(relative_difference(wanted.dh_0, exact.dh_0), 0, tolerance);
        CHECK_NEAR(relative_difference(wanted.dparameters, exact.dparameters), 0, tolerance);
        CHECK(!same(wanted.dparameters, exact.dparameters));
      };
      for_each_isa([&] {
        for (const Precision precision : kBfloat16) check(precision);
      });
    }
  }
}

TEST(products_in_low_precision_that_are_refused) {
  const Config config = networks()[0];
  const Model<float> model(config);
  const auto low = model.quantize(Precision::int8);
  const std::vector<float> x(size_of(config.input_size));
  std::vector<float> y(size_of(config.output_size()), 7);
  Inputs<float> in;
  in.x = view(x.data(), 1, 1, config.input_size);
  Outputs<float> out;
  out.y = view(y.data(), 1, 1, config.output_size());
  for (const Precision products : kLowPrecisions) {
    CHECK(
        invalid_argument_of([&] { low->run(in, out, 1, products); }) ==
        "precision: the parameters are already in int8; call the model from which they were made");
    CHECK(
        invalid_argument_of([&] { low->record(in, out, 1, products); }) ==
        "precision: the parameters are already in int8; call the model from which they were made");
  }
  CHECK(invalid_argument_of([&] { model.record(in, out, 1, Precision::int8); }) ==
        "precision: got int8 for the products of a model of float32, wanted bfloat16 or "
        "bfloat16-dot for a model of float32");
  const Model<double> twice(config);
  CHECK(invalid_argument_of([&] { twice.run({}, {}, 1, Precision::bfloat16); }) ==
        "precision: got bfloat16 for the products of a model of float64, wanted bfloat16 or "
        "bfloat16-dot for a model of float32");
  CHECK(same(y, std::vector<float>(y.size(), 7)));
}

namespace {

// Rows of integers in -127..127, one of them 127, times `unit`: exact in bfloat16, and in int8 if
// `unit` is a power of two.
std::vector<float> exact_rows(Random& random, Index rows, Index columns, float unit) {
  std::vector<float> values;
  for (Index r = 0; r < rows; ++r) {
    const Index greatest = random.below(columns);
    for (Index k = 0; k < columns; ++k) {
      const float q = k == greatest ? 127.0f : static_cast<float>(random.below(255) - 127);
      values.push_back(q * unit);
    }
  }
  return values;
}

// Such parameters. The rows of matrices have different units.
std::vector<float> exact_parameters(Random& random, const std::vector<Parameter>& layout) {
  std::vector<float> values;
  for (const Parameter& parameter : layout) {
    const bool is_matrix = parameter.columns > 0;
    for (Index row = 0; row < parameter.rows; ++row) {
      const float unit = std::ldexp(1.0f, -(8 + static_cast<int>(random.below(5))));
      const std::vector<float> of_row =
          exact_rows(random, 1, is_matrix ? parameter.columns : 1, is_matrix ? unit : 0x1p-8f);
      values.insert(values.end(), of_row.begin(), of_row.end());
    }
  }
  return values;
}

}  // namespace

// Where nothing is rounded, the order of sums is irrelevant.
TEST(models_have_float32_s_bits_if_no_operand_is_rounded) {
  Random random(8);
  Config peephole = networks()[0];
  peephole.peephole = true;
  Config both = networks()[1];
  both.bidirectional = true;
  for (const Config& config : {networks()[0], networks()[1], peephole, both}) {
    const auto model = model_of(config, exact_parameters(random, parameters(config)));
    for (const Index batch : {1, 7}) {
      Sequences s;
      s.steps = 1;
      s.batch = batch;
      s.x = exact_rows(random, batch, config.input_size, 0x1p-6f);
      const std::vector<float> h_0 =
          exact_rows(random, config.num_directions() * batch, config.hidden_size, 0x1p-6f);
      for (const Precision precision : kLowPrecisions) {
        const auto low = model->quantize(precision);
        std::vector<float> read(size_of(low->parameter_count()));
        low->read_parameters(read.data());
        CHECK(same(read, std::vector<float>(model->parameters(),
                                            model->parameters() + model->parameter_count())));
        for_each_isa([&] {
          const Results wanted = run(*model, s, 1, h_0);
          for_each_division([&](int threads) { CHECK(run(*low, s, threads, h_0).equal(wanted)); });
        });
      }
    }
  }
}

TEST(linear_layers_have_the_same_bits_on_every_isa) {
  Random random(9);
  struct Shape {
    Index in, out;
    bool bias;
  };
  for (const Shape& shape : {Shape{1, 1, true},
                             {3, 2, true},
                             {17, 33, true},
                             {64, 9, false},
                             {100, 3, false},
                             {257, 70, true},
                             {1500, 5, true}}) {
    const Index in = shape.in, out = shape.out;
    const auto numbers = [&](Index count) {
      std::vector<float> values = random.numbers<float>(count);
      // All bits of a float.
      for (float& value : values) value += 0x1p-23f * static_cast<float>(random.below(1024));
      return values;
    };
    const auto layer = linear_of(in, out, shape.bias, numbers(out * (in + (shape.bias ? 1 : 0))));
    const std::vector<float> x = numbers(150 * in);
    const auto exact = linear_of(in, out, shape.bias,
                                 exact_parameters(random, linear_parameters(in, out, shape.bias)));
    const std::vector<float> exact_x = exact_rows(random, 150, in, 0x1p-3f);
    for (const Precision precision : kLowPrecisions) {
      const auto low = layer->quantize(precision);
      const std::vector<float> y = run(*low, x, 1);
      CHECK(!same(y, run(*layer, x, 1)));
      const auto exact_low = exact->quantize(precision);
      const std::vector<float> exact_y = run(*exact, exact_x, 1);
      for_each_isa([&] {
        CHECK(same(run(*exact_low, exact_x, 1), exact_y));
        for_each_division([&](int threads) { CHECK(same(run(*low, x, threads), y)); });
        for (const auto& [begin, end] : {std::pair<Index, Index>{0, 1}, {7, 10}, {149, 150}}) {
          CHECK(same(run(*low, {x.begin() + begin * in, x.begin() + end * in}, 2),
                     {y.begin() + begin * out, y.begin() + end * out}));
        }
        // Strides of rows; gaps are neither read nor written.
        std::vector<float> spread_x(size_of(3 * (in + 2)), kNan), got(size_of(3 * (out + 2)), 7);
        std::vector<float> wanted = got;
        for (Index r = 0; r < 3; ++r) {
          std::copy_n(x.begin() + r * in, in, spread_x.begin() + r * (in + 2));
          std::copy_n(y.begin() + r * out, out, wanted.begin() + r * (out + 2));
        }
        low->run(spread_x.data(), in + 2, got.data(), out + 2, 3, 1);
        CHECK(same(got, wanted));
        low->run(nullptr, 0, nullptr, 0, 0, 1);
      });
    }
  }
}

TEST(nan_in_a_row_stays_in_the_row) {
  Random random(10);
  for (const Config& config : networks()) {
    const auto model = model_of(config, random_parameters(random, config));
    for (const Precision precision : kLowPrecisions) {
      const auto low = model->quantize(precision);
      Sequences s = random_sequences(random, config, 4, 3, false);
      const Results wanted = run(*low, s, 1);
      s.x[size_of((s.batch + 1) * config.input_size)] = kNan;  // step 1, row 1
      const Results got = run(*low, s, 1);
      const Index outputs = config.output_size();
      for (Index t = 0; t < s.steps; ++t) {
        for (Index n = 0; n < s.batch; ++n) {
          for (Index j = 0; j < outputs; ++j) {
            const std::size_t at = size_of((t * s.batch + n) * outputs + j);
            // The second direction runs from the last step to the first.
            const bool is_after = j < config.state_size() ? t >= 1 : t <= 1;
            CHECK(n == 1 && is_after ? std::isnan(got.y[at]) : same(got.y[at], wanted.y[at]));
          }
        }
      }
    }
  }
}
