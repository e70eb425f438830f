// Packing: the position of each parameter in the flat vector, and in the panels that kernels read.
#include "core/weights.h"

#include <cfenv>
#include <cstddef>
#include <string>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "core/isa.h"
#include "core/slices.h"
#include "tidegate/settings.h"
#include "variants.h"

namespace {

using namespace tidegate;
using test::same;

// The gates of a phase, in memory order, as blocks of rows in weight_ih (x) and weight_hh (h);
// -1: the gate does not see that operand. Deliberately repeats the table of the kernels.
struct Gate {
  char name;
  Index x, h;
};
struct Phase {
  std::vector<Gate> gates;
};

std::vector<Phase> expected_phases(const Config& config) {
  if (config.cell == CellKind::lstm) {
    return {{{{'i', 0, 0}, {'f', 1, 1}, {'g', 2, 2}, {'o', 3, 3}}}};
  }
  if (config.cell == CellKind::mgu) return {{{{'f', 0, 0}}}, {{{'n', 1, 1}}}};
  if (config.reset_after) return {{{{'n', 2, -1}, {'r', 0, 0}, {'z', 1, 1}, {'q', -1, 2}}}};
  return {{{{'r', 0, 0}, {'z', 1, 1}}}, {{{'n', 2, 2}}}};
}

// The gates that see x, in the order of the whole cell.
std::vector<Gate> gates_of_x(const Config& config) {
  if (config.cell == CellKind::lstm) return expected_phases(config)[0].gates;
  if (config.cell == CellKind::mgu) return {{'f', 0, 0}, {'n', 1, 1}};
  return {{'n', 2, 2}, {'r', 0, 0}, {'z', 1, 1}};
}

std::vector<Config> networks() {
  std::vector<Config> all;
  for (const Index hidden : {1, 7, 16, 19, 70}) {
    Config lstm;
    lstm.cell = CellKind::lstm;
    lstm.input_size = 3;
    lstm.hidden_size = hidden;
    all.push_back(lstm);
    Config deep = lstm;
    deep.num_layers = 2;
    deep.bidirectional = true;
    deep.peephole = true;
    deep.proj_size = hidden > 5 ? 5 : 0;
    all.push_back(deep);
    deep.bias = false;
    all.push_back(deep);
    for (const bool reset_after : {true, false}) {
      for (const UpdateGate update_gate : {UpdateGate::carry, UpdateGate::write}) {
        Config gru;
        gru.cell = CellKind::gru;
        gru.input_size = 17;
        gru.hidden_size = hidden;
        gru.num_layers = 2;
        gru.bidirectional = update_gate == UpdateGate::write;
        gru.bias = reset_after || update_gate == UpdateGate::write;
        gru.reset_after = reset_after;
        gru.update_gate = update_gate;
        all.push_back(gru);
      }
    }
    Config mgu;
    mgu.cell = CellKind::mgu;
    mgu.input_size = 17;
    mgu.hidden_size = hidden;
    all.push_back(mgu);
    mgu.num_layers = 2;
    mgu.bidirectional = true;
    mgu.bias = false;
    all.push_back(mgu);
  }
  return all;
}

// The parameter of that name; zeros if the network has none.
template <class T>
struct Tensor {
  const T* data = nullptr;
  Index rows = 0, columns = 1;

  T operator()(Index row, Index column = 0) const {
    return data ? data[row * columns + column] : T(0);
  }
};

template <class T>
Tensor<T> tensor(const Config& config, const std::vector<T>& flat, const std::string& name) {
  for (const Parameter& parameter : parameters(config)) {
    if (parameter.name != name) continue;
    return {flat.data() + parameter.offset, parameter.rows,
            parameter.columns > 0 ? parameter.columns : 1};
  }
  return {};
}

// All parameters of one direction of a layer.
template <class T>
struct Layer {
  Tensor<T> weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_peephole;

  Layer(const Config& config, const std::vector<T>& flat, Index layer, Index direction) {
    const std::string suffix = "_l" + std::to_string(layer) + (direction == 1 ? "_reverse" : "");
    weight_ih = tensor(config, flat, "weight_ih" + suffix);
    weight_hh = tensor(config, flat, "weight_hh" + suffix);
    bias_ih = tensor(config, flat, "bias_ih" + suffix);
    bias_hh = tensor(config, flat, "bias_hh" + suffix);
    weight_hr = tensor(config, flat, "weight_hr" + suffix);
    weight_peephole = tensor(config, flat, "weight_peephole" + suffix);
  }
};

// Compares panel[slice][k][gate][lane] with element(k, gate, unit), and with zeros beyond the
// units.
template <class T, class Element>
void check_panel(Panel packed, Index units, Index depth, Index gates, Element element) {
  const T* panel = static_cast<const T*>(packed);
  const Index width = kernels<T>().width;
  const Index slices = (units + width - 1) / width;
  CHECK(panel != nullptr);
  CHECK(reinterpret_cast<std::uintptr_t>(panel) % 64 == 0);
  for (Index slice = 0; slice < slices; ++slice) {
    for (Index k = 0; k < depth; ++k) {
      for (Index gate = 0; gate < gates; ++gate) {
        for (Index lane = 0; lane < width; ++lane) {
          const Index unit = slice * width + lane;
          const T wanted = unit < units ? element(k, gate, unit) : T(0);
          CHECK(same(*panel++, wanted));
        }
      }
    }
  }
}

// "write" is "carry" with the update gate's weights negated.
template <class T>
T signed_for(const Config& config, const Gate& gate, T weight) {
  return gate.name == 'z' && config.update_gate == UpdateGate::write ? -weight : weight;
}

// The gates of a phase that see an operand.
std::vector<Gate> seeing(const std::vector<Gate>& gates, Index Gate::* operand) {
  std::vector<Gate> seen;
  for (const Gate& gate : gates) {
    if (gate.*operand >= 0) seen.push_back(gate);
  }
  return seen;
}

template <class T>
void check_forward(const Config& config, const Weights<T>& weights, const Layer<T>& from,
                   Index layer, Index direction) {
  const DirectionWeights<T>& packed = weights.direction(layer, direction);
  const Index hidden = config.hidden_size;
  const std::vector<Phase> phases = expected_phases(config);
  CHECK(weights.cell().phase_count == static_cast<int>(phases.size()));
  for (std::size_t p = 0; p < phases.size(); ++p) {
    const std::vector<Gate>& gates = phases[p].gates;
    const std::vector<Gate> x = seeing(gates, &Gate::x);
    const std::vector<Gate> h = seeing(gates, &Gate::h);
    const auto count = [](const std::vector<Gate>& some) {
      return static_cast<Index>(some.size());
    };
    const auto nth = [](const std::vector<Gate>& some, Index i) -> const Gate& {
      return some[static_cast<std::size_t>(i)];
    };
    check_panel<T>(packed.phases[p].x, hidden, config.layer_input_size(layer), count(x),
                   [&](Index k, Index g, Index unit) {
                     const Gate& gate = nth(x, g);
                     return signed_for(config, gate, from.weight_ih(gate.x * hidden + unit, k));
                   });
    check_panel<T>(packed.phases[p].h, hidden, config.state_size(), count(h),
                   [&](Index k, Index g, Index unit) {
                     const Gate& gate = nth(h, g);
                     return signed_for(config, gate, from.weight_hh(gate.h * hidden + unit, k));
                   });
    CHECK((packed.phases[p].bias != nullptr) == config.bias);
    if (!config.bias) continue;
    check_panel<T>(packed.phases[p].bias, hidden, 1, count(gates), [&](Index, Index g, Index unit) {
      const Gate& gate = nth(gates, g);
      const T by_x = gate.x >= 0 ? from.bias_ih(gate.x * hidden + unit) : T(0);
      const T by_h = gate.h >= 0 ? from.bias_hh(gate.h * hidden + unit) : T(0);
      return signed_for(config, gate, by_x + by_h);
    });
  }
  CHECK((packed.peephole != nullptr) == config.peephole);
  if (config.peephole) {
    check_panel<T>(packed.peephole, hidden, 1, 3, [&](Index, Index which, Index unit) {
      return from.weight_peephole(which * hidden + unit);
    });
  }
  CHECK((packed.projection != nullptr) == (config.proj_size > 0));
  if (config.proj_size > 0) {
    check_panel<T>(packed.projection, config.proj_size, hidden, 1,
                   [&](Index k, Index, Index unit) { return from.weight_hr(unit, k); });
  }
}

// The transposed weights: depth k counts the rows of weight_ih or weight_hh, gate by gate in the
// order of the cell.
template <class T>
void check_backward(const Config& config, const Weights<T>& weights, const Layer<T>& from,
                    Index layer, Index direction) {
  const BackwardWeights& packed = weights.backward(layer, direction);
  const Index hidden = config.hidden_size;
  const std::vector<Gate> x = gates_of_x(config);
  check_panel<T>(packed.x, config.layer_input_size(layer), static_cast<Index>(x.size()) * hidden, 1,
                 [&](Index k, Index, Index input) {
                   const Gate& gate = x[static_cast<std::size_t>(k / hidden)];
                   return signed_for(config, gate,
                                     from.weight_ih(gate.x * hidden + k % hidden, input));
                 });
  const std::vector<Phase> phases = expected_phases(config);
  for (std::size_t p = 0; p < phases.size(); ++p) {
    const std::vector<Gate> h = seeing(phases[p].gates, &Gate::h);
    check_panel<T>(packed.h[p], config.state_size(), static_cast<Index>(h.size()) * hidden, 1,
                   [&](Index k, Index, Index unit) {
                     const Gate& gate = h[static_cast<std::size_t>(k / hidden)];
                     return signed_for(config, gate,
                                       from.weight_hh(gate.h * hidden + k % hidden, unit));
                   });
  }
  CHECK((packed.projection != nullptr) == (config.proj_size > 0));
  if (config.proj_size > 0) {
    check_panel<T>(packed.projection, hidden, config.proj_size, 1,
                   [&](Index k, Index, Index unit) { return from.weight_hr(k, unit); });
  }
}

template <class T>
void check_packing(const Config& config, int threads = 1) {
  // All distinct, none zero, and exact in float.
  Index count = 0;
  for (const Parameter& parameter : parameters(config)) count += parameter.size();
  std::vector<T> flat;
  for (Index i = 0; i < count; ++i) flat.push_back(static_cast<T>(i + 1));

  const Weights<T> weights(config, flat.data(), threads);
  weights.prepare_backward(flat.data(), threads);
  CHECK(&weights.kernels() == &kernels<T>());
  for (Index layer = 0; layer < config.num_layers; ++layer) {
    for (Index direction = 0; direction < config.num_directions(); ++direction) {
      const Layer<T> from(config, flat, layer, direction);
      CHECK(from.weight_ih.rows == config.gate_count() * config.hidden_size);
      CHECK(from.weight_ih.columns == config.layer_input_size(layer));
      CHECK(from.weight_hh.columns == config.state_size());
      CHECK((from.bias_ih.data != nullptr) == config.bias);
      check_forward(config, weights, from, layer, direction);
      check_backward(config, weights, from, layer, direction);
    }
  }
}

}  // namespace

TEST(names_shapes_and_places_of_parameters) {
  Config config;
  config.cell = CellKind::lstm;
  config.input_size = 3;
  config.hidden_size = 5;
  config.num_layers = 2;
  config.bidirectional = true;
  config.proj_size = 2;
  config.peephole = true;
  const struct {
    const char* name;
    Index rows, columns;
  } wanted[] = {
      {"weight_ih_l0", 20, 3},         {"weight_hh_l0", 20, 2},
      {"bias_ih_l0", 20, 0},           {"bias_hh_l0", 20, 0},
      {"weight_hr_l0", 2, 5},          {"weight_peephole_l0", 15, 0},
      {"weight_ih_l0_reverse", 20, 3}, {"weight_hh_l0_reverse", 20, 2},
      {"bias_ih_l0_reverse", 20, 0},   {"bias_hh_l0_reverse", 20, 0},
      {"weight_hr_l0_reverse", 2, 5},  {"weight_peephole_l0_reverse", 15, 0},
      {"weight_ih_l1", 20, 4},         {"weight_hh_l1", 20, 2},
      {"bias_ih_l1", 20, 0},           {"bias_hh_l1", 20, 0},
      {"weight_hr_l1", 2, 5},          {"weight_peephole_l1", 15, 0},
      {"weight_ih_l1_reverse", 20, 4}, {"weight_hh_l1_reverse", 20, 2},
      {"bias_ih_l1_reverse", 20, 0},   {"bias_hh_l1_reverse", 20, 0},
      {"weight_hr_l1_reverse", 2, 5},  {"weight_peephole_l1_reverse", 15, 0},
  };
  const std::vector<Parameter> all = parameters(config);
  CHECK(all.size() == sizeof wanted / sizeof *wanted);
  Index offset = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHECK(all[i].name == wanted[i].name);
    CHECK(all[i].rows == wanted[i].rows);
    CHECK(all[i].columns == wanted[i].columns);
    CHECK(all[i].offset == offset);
    CHECK(all[i].size() == wanted[i].rows * (wanted[i].columns ? wanted[i].columns : 1));
    offset += all[i].size();
  }

  Config gru;
  gru.cell = CellKind::gru;
  gru.input_size = 4;
  gru.hidden_size = 6;
  gru.bias = false;
  gru.reverse = true;  // a one-direction layer's names
  const std::vector<Parameter> few = parameters(gru);
  CHECK(few.size() == 2);
  CHECK(few[0].name == "weight_ih_l0");
  CHECK(few[0].rows == 18);
  CHECK(few[0].columns == 4);
  CHECK(few[1].name == "weight_hh_l0");
  CHECK(few[1].columns == 6);

  Config mgu = gru;
  mgu.cell = CellKind::mgu;
  mgu.bias = true;
  const std::vector<Parameter> of_two_gates = parameters(mgu);
  CHECK(of_two_gates.size() == 4);
  for (const Parameter& parameter : of_two_gates) CHECK(parameter.rows == 12);
  CHECK(of_two_gates[0].columns == 4);
  CHECK(of_two_gates[1].columns == 6);
  CHECK(of_two_gates[3].name == "bias_hh_l0");
}

TEST(offsets_are_those_of_the_names) {
  for (const Config& config : networks()) {
    const std::vector<ParameterOffsets> offsets = parameter_offsets(config);
    CHECK(static_cast<Index>(offsets.size()) == config.num_layers * config.num_directions());
    const auto offset_of = [&](const std::string& name) -> Index {
      for (const Parameter& parameter : parameters(config)) {
        if (parameter.name == name) return parameter.offset;
      }
      return -1;
    };
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      const Index layer = static_cast<Index>(i) / config.num_directions();
      const bool backward_in_time = static_cast<Index>(i) % config.num_directions() == 1;
      const std::string suffix =
          "_l" + std::to_string(layer) + (backward_in_time ? "_reverse" : "");
      CHECK(offsets[i].weight_ih == offset_of("weight_ih" + suffix));
      CHECK(offsets[i].weight_hh == offset_of("weight_hh" + suffix));
      CHECK(offsets[i].bias_ih == offset_of("bias_ih" + suffix));
      CHECK(offsets[i].bias_hh == offset_of("bias_hh" + suffix));
      CHECK(offsets[i].weight_hr == offset_of("weight_hr" + suffix));
      CHECK(offsets[i].weight_peephole == offset_of("weight_peephole" + suffix));
    }
  }
}

TEST(gates_of_each_cell) {
  for (const Config& config : networks()) {
    const CellSpec& cell = cell_spec(config);
    std::vector<Gate> gates = gates_of_x(config);
    // q is the only gate that sees only h, and is the last one.
    if (config.cell == CellKind::gru && config.reset_after) {
      gates[0].h = -1;
      gates.push_back({'q', -1, 2});
    }
    CHECK(cell.gate_count == static_cast<int>(gates.size()));
    for (int g = 0; g < cell.gate_count; ++g) {
      const Gate& wanted = gates[static_cast<std::size_t>(g)];
      CHECK(cell.gates[g].name == wanted.name);
      CHECK(cell.gates[g].x_block == wanted.x);
      CHECK(cell.gates[g].h_block == wanted.h);
      CHECK((g >= cell.x.first && g < cell.x.end()) == (wanted.x >= 0));
      // One phase computes it, with the operands that it sees.
      int computed = 0;
      for (int p = 0; p < cell.phase_count; ++p) {
        const PhaseSpec& phase = cell.phases[p];
        const int in_phase = g - phase.gates.first;
        if (in_phase < 0 || in_phase >= phase.gates.count) continue;
        ++computed;
        CHECK((in_phase >= phase.x.first && in_phase < phase.x.end()) == (wanted.x >= 0));
        CHECK((in_phase >= phase.h.first && in_phase < phase.h.end()) == (wanted.h >= 0));
      }
      CHECK(computed == 1);
    }
    CHECK(cell.has_cell_state == (config.cell == CellKind::lstm));
  }
}

TEST(panels_hold_every_parameter_in_its_place) {
  test::for_each_isa([] {
    for (const Config& config : networks()) {
      check_packing<float>(config);
      check_packing<double>(config);
    }
  });
}

// Large enough to be divided among threads, with a number of slices that does not divide evenly.
TEST(panels_are_the_same_for_any_number_of_threads) {
  const int before = num_threads();
  set_num_threads(3);
  test::for_each_isa([] {
    for (const CellKind cell : {CellKind::lstm, CellKind::gru, CellKind::mgu}) {
      Config config;
      config.cell = cell;
      config.input_size = 33;
      config.hidden_size = 257;
      config.bidirectional = true;
      for (const int threads : {2, 3}) {
        check_packing<float>(config, threads);
        check_packing<double>(config, threads);
      }
    }
  });
  set_num_threads(before);
}

TEST(packing_does_not_see_the_callers_rounding) {
  Config config;
  config.cell = CellKind::lstm;
  config.input_size = 2;
  config.hidden_size = 9;
  test::Random random(3);
  const std::vector<float> flat = random.numbers<float>(4 * 9 * (2 + 9 + 2));
  const auto packed_bias = [&] {
    const Weights<float> weights(config, flat.data(), 1);
    const float* const bias = weights.direction(0, 0).phases[0].bias;
    return std::vector<float>(
        bias, bias + slice_count(9, weights.kernels().width) * 4 * weights.kernels().width);
  };
  const std::vector<float> wanted = packed_bias();
  for (const int rounding : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    std::fesetround(rounding);
    const std::vector<float> got = packed_bias();
    std::fesetround(FE_TONEAREST);
    CHECK(same(got, wanted));
  }
}
