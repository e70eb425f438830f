// Storages of weights: the rounding of packing, and whole networks, which equal bit for bit those
// with exact weights that were rounded beforehand.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "core/isa.h"
#include "core/network.h"
#include "core/weights.h"
#include "variants.h"

namespace {

using namespace tidegate;

// Rounds to bfloat16 and back by arithmetic on the value: the significand has 8 bits.
float rounded_to_bf16(float x) {
  if (!std::isfinite(x) || x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent, -125) - 8);
  return static_cast<float>(std::nearbyint(static_cast<double>(x) / unit) * unit);
}

std::vector<float> rounded(std::vector<float> values) {
  for (float& x : values) x = rounded_to_bf16(x);
  return values;
}

float widened(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

struct Results {
  std::vector<float> y, h_n, dx, dparameters;
};

Results run(const Config& config, const Weights<float>& weights, const std::vector<float>& x,
            Index steps, Index batch, int threads) {
  const Index output = config.output_size();
  const Index directions = config.num_layers * config.num_directions();
  Results results;
  results.y.resize(test::size_of(steps * batch * output));
  results.h_n.resize(test::size_of(directions * batch * config.state_size()));
  Inputs<float> inputs;
  inputs.x = view(x.data(), steps, batch, config.input_size);
  Outputs<float> outputs;
  outputs.y = view(results.y.data(), steps, batch, output);
  outputs.h_n = view(results.h_n.data(), directions, batch, config.state_size());
  const Schedule schedule(steps, batch, nullptr, MaskView{});
  const Call call = {config, Work::forward, steps, batch, weights.storage().cost};
  const auto plan = [&] { return plan_call(call, threads, weights.memory()); };
  const ForwardWorkspace<float> workspace(config, weights, {steps, batch, true}, threads, true);
  run_forward<float>(config, weights, schedule, inputs, outputs, workspace, nullptr, plan());
  return results;
}

// The gradients as well.
Results train(const Config& config, const std::shared_ptr<const Weights<float>>& weights,
              const std::vector<float>& x, const std::vector<float>& dy, Index steps, Index batch,
              int threads) {
  Results results = run(config, *weights, x, steps, batch, threads);
  Record<float> record(config, weights, Schedule(steps, batch, nullptr, MaskView{}), false);
  const Call call = {config, Work::forward, steps, batch, weights->storage().cost};
  Inputs<float> inputs;
  inputs.x = view(x.data(), steps, batch, config.input_size);
  std::vector<float> y(results.y.size());
  Outputs<float> outputs;
  outputs.y = view(y.data(), steps, batch, config.output_size());
  const ForwardWorkspace<float> workspace(config, *weights, record.size(), threads, false);
  run_forward<float>(config, *weights, record.schedule, inputs, outputs, workspace, &record,
                     plan_call(call, threads, weights->memory()));
  CHECK(test::same(y, results.y));
  results.dx.resize(x.size());
  results.dparameters.resize(test::size_of(parameter_count(config)));
  OutputGradients<float> given;
  given.y = view(dy.data(), steps, batch, config.output_size());
  InputGradients<float> wanted;
  wanted.x = view(results.dx.data(), steps, batch, config.input_size);
  wanted.parameters = results.dparameters.data();
  run_backward<float>(record, given, wanted, threads);
  return results;
}

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

}  // namespace

TEST(bfloat16_rounds_to_nearest_even) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  // 1 + 2^-8 and 1 + 3 * 2^-8 are ties; the greatest float rounds to infinity.
  const std::vector<float> values = {0.0f,         -0.0f,       1.0f,
                                     -1.0f,        1.00390625f, 1.01171875f,
                                     1.003907f,    1.003905f,   std::numeric_limits<float>::max(),
                                     inf,          -inf,        std::numeric_limits<float>::min(),
                                     3.3895314e38f};
  const std::vector<float> wanted = {
      0.0f,         -0.0f, 1.0f, -1.0f, 1.0f, 1.015625f,
      1.0078125f,   1.0f,  inf,  inf,   -inf, std::numeric_limits<float>::min(),
      3.3895314e38f};
  test::for_each_isa([&] {
    const StorageKernels<float>& storage = *kernels<float>().storages[kBf16Weights];
    const Index units = static_cast<Index>(values.size());
    const PanelShape shape = {units, 1, 1};
    const Index width = kernels<float>().width;
    CHECK(storage.panel_bytes(shape) == slice_count(units, width) * width * 2);
    std::vector<std::uint16_t> panel(test::size_of(storage.panel_bytes(shape) / 2), 0xffff);
    for (Index slice = 0; slice < slice_count(units, width); ++slice) {
      PackCall<float> call;
      call.panel = panel.data();
      call.shape = shape;
      call.block = {.k_end = 1, .base = values.data(), .unit_stride = 1};
      call.slice = slice;
      call.k_end = 1;
      storage.pack(call);
    }
    for (std::size_t i = 0; i < panel.size(); ++i)
      CHECK(test::same(widened(panel[i]), i < wanted.size() ? wanted[i] : 0.0f));
  });
}

TEST(bfloat16_keeps_nan) {
  const std::vector<std::uint32_t> patterns = {0x7fc00000, 0xffc00000, 0x7f800001,
                                               0xff800001, 0x7fffffff, 0xffffffff};
  test::for_each_isa([&] {
    const StorageKernels<float>& storage = *kernels<float>().storages[kBf16Weights];
    for (const std::uint32_t pattern : patterns) {
      float value;
      std::memcpy(&value, &pattern, sizeof value);
      const PanelShape shape = {1, 1, 1};
      std::vector<std::uint16_t> panel(test::size_of(storage.panel_bytes(shape) / 2));
      PackCall<float> call;
      call.panel = panel.data();
      call.shape = shape;
      call.block = {.k_end = 1, .base = &value, .unit_stride = 1};
      call.k_end = 1;
      storage.pack(call);
      CHECK(std::isnan(widened(panel[0])));
    }
  });
}

TEST(networks_in_bfloat16_are_those_of_rounded_weights) {
  test::Random random(5);
  for (const Config& config : networks()) {
    // Numbers with more bits than bfloat16; biases and peepholes are not rounded.
    std::vector<float> parameters;
    std::vector<float> rounded_weights;
    for (const Parameter& parameter : tidegate::parameters(config)) {
      const std::vector<float> values = random.numbers<float>(parameter.size(), 0.3);
      const bool is_weight = parameter.columns > 0;
      const std::vector<float> stored = is_weight ? rounded(values) : values;
      parameters.insert(parameters.end(), values.begin(), values.end());
      rounded_weights.insert(rounded_weights.end(), stored.begin(), stored.end());
    }
    CHECK(!test::same(parameters, rounded_weights));
    for (const Index batch : {1, 2, 5, 17}) {
      const Index steps = 7;
      const std::vector<float> x = random.numbers<float>(steps * batch * config.input_size);
      const std::vector<float> dy = random.numbers<float>(steps * batch * config.output_size());
      test::for_each_isa([&] {
        const auto make = [&](const std::vector<float>& values, StorageKind kind) {
          auto weights = std::make_shared<const Weights<float>>(config, values.data(), 1, kind);
          weights->prepare_backward(values.data(), 1);
          return weights;
        };
        const auto exact = make(rounded_weights, kExactWeights);
        const auto bf16 = make(parameters, kBf16Weights);
        CHECK(bf16->memory().bytes < exact->memory().bytes);
        test::for_each_division([&](int threads) {
          const Results wanted = train(config, exact, x, dy, steps, batch, threads);
          const Results got = train(config, bf16, x, dy, steps, batch, threads);
          CHECK(test::same(got.y, wanted.y));
          CHECK(test::same(got.h_n, wanted.h_n));
          CHECK(test::same(got.dx, wanted.dx));
          CHECK(test::same(got.dparameters, wanted.dparameters));
        });
      });
    }
  }
}

TEST(storages_tell_what_they_cost) {
  test::for_each_isa([] {
    for (int kind = 0; kind < kStorageKinds; ++kind) {
      const StorageKernels<float>* const storage = kernels<float>().storages[kind];
      CHECK(storage->kind == kind);
      CHECK(storage->grain >= 1 && kSumBlock % storage->grain == 0);
      CHECK(storage->cost.product_flops > 0 && storage->cost.cell_flops > 0);
      const PanelShape shape = {kernels<float>().width, 64, 4};
      CHECK(static_cast<double>(storage->panel_bytes(shape)) ==
            static_cast<double>(shape.units * 64 * 4) * storage->cost.weight_bytes);
    }
    CHECK(kernels<double>().exact().cost.weight_bytes == 8);
    CHECK(kernels<double>().storages[kBf16Weights] == nullptr);
  });
}
