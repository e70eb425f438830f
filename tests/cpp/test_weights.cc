// Packing: where each parameter stands in the flat vector, and in the panels that the kernels read.
#include "core/weights.h"

#include <cstddef>
#include <string>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "core/isa.h"
#include "variants.h"

namespace {

using namespace tidegate;
using test::same;

// The gates of a phase, in memory order, as blocks of rows in weight_ih (x) and weight_hh (h);
// -1: the gate does not see that operand. Written out here once more, on purpose.
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
  if (config.reset_after) return {{{{'n', 2, -1}, {'r', 0, 0}, {'z', 1, 1}, {'q', -1, 2}}}};
  return {{{{'r', 0, 0}, {'z', 1, 1}}}, {{{'n', 2, 2}}}};
}

// The gates that see x, in the order of the whole cell.
std::vector<Gate> gates_of_x(const Config& config) {
  if (config.cell == CellKind::lstm) return expected_phases(config)[0].gates;
  return {{'n', 2, 2}, {'r', 0, 0}, {'z', 1, 1}};
}

std::vector<Config> networks() {
  std::vector<Config> all;
  for (const Index hidden : {1, 7, 16, 19}) {
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
  }
  return all;
}

// The parameters of one layer's direction, by their PyTorch names.
template <class T>
struct Named {
  const Config& config;
  const std::vector<T>& flat;
  std::string suffix;

  const Parameter* find(const std::string& name) const {
    static std::vector<Parameter> all;  // outlives the pointer that is returned
    all = parameters(config);
    for (const Parameter& parameter : all) {
      if (parameter.name == name + suffix) return &parameter;
    }
    return nullptr;
  }
  T at(const std::string& name, Index row, Index column = 0) const {
    const Parameter* parameter = find(name);
    if (!parameter) return T(0);
    const Index columns = parameter->columns > 0 ? parameter->columns : 1;
    CHECK(row >= 0 && row < parameter->rows && column >= 0 && column < columns);
    return flat[static_cast<std::size_t>(parameter->offset + row * columns + column)];
  }
};
