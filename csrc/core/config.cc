// Checks of a network's options, and the layout of its parameters.
#include "tidegate/config.h"

#include <cmath>
#include <stdexcept>

#include "core/cells.h"
#include "core/check.h"
#include "core/memory.h"

namespace tidegate {

namespace {

void require_activation(const char* name, const Activation& activation) {
  require(std::isfinite(activation.alpha) && std::isfinite(activation.beta),
          std::string(name) + ": got a parameter that is not finite");
}

// A negative alpha gives the same y on both sides of the kink, so y does not determine the slope.
void require_slope(const char* name, const Activation& activation) {
  const bool by_sign = activation.kind == ActivationKind::leaky_relu ||
                       activation.kind == ActivationKind::elu ||
                       activation.kind == ActivationKind::thresholded_relu;
  require(!by_sign || activation.alpha >= 0,
          std::string(name) + ": got " + activation_info(activation.kind).name +
              " with a negative alpha, which cannot be trained; wanted alpha >= 0");
}

// An option that only some cells have. The others require one value: its text, and a test for it.
struct OptionInfo {
  CellOption option;
  const char* name;
  const char* absent;
  bool (*is_absent)(const Config& config);
};
constexpr OptionInfo kOptions[] = {
    {kProjSize, "proj_size", "0", [](const Config& c) { return c.proj_size == 0; }},
    {kPeephole, "peephole", "False", [](const Config& c) { return !c.peephole; }},
    {kResetAfter, "reset_after", "True", [](const Config& c) { return c.reset_after; }},
    {kUpdateGate, "update_gate", "\"carry\"",
     [](const Config& c) { return c.update_gate == UpdateGate::carry; }},
    {kOutputActivation, "output_activation", "none",
     [](const Config& c) { return c.activations.output == CellActivations{}.output; }},
    {kInputForget, "input_forget", "False",
     [](const Config& c) { return !c.activations.input_forget; }},
};

// Whether the values are within [0, 1].
bool is_fraction(const Activation& f) {
  return f.kind == ActivationKind::sigmoid || f.kind == ActivationKind::hard_sigmoid;
}

// Whether the magnitudes are at most 1.
bool is_bounded(const Activation& f) {
  return is_fraction(f) || f.kind == ActivationKind::tanh || f.kind == ActivationKind::softsign ||
         (f.kind == ActivationKind::scaled_tanh && std::abs(f.alpha) <= 1);
}

}  // namespace

bool has_bounded_h(const Config& config) {
  const CellActivations& f = config.activations;
  if (config.proj_size > 0) return false;
  if (config.has_cell_state()) return is_bounded(f.gate) && is_bounded(f.output);
  return is_fraction(f.gate) && is_bounded(f.candidate);
}

Index Config::gate_count() const { return cell_spec(*this).block_count; }
bool Config::has_cell_state() const { return cell_spec(*this).has_cell_state; }

const char* cell_name(CellKind cell) { return cell_info(cell).name; }

std::string cell_with_article(CellKind cell) {
  return std::string(cell_info(cell).article) + " " + cell_name(cell);
}

bool has_output_activation(CellKind cell) {
  return (cell_info(cell).options & kOutputActivation) != 0;
}

CellKind cell_of_name(const std::string& name) {
  std::string names;
  for (const CellInfo& cell : kCells) {
    if (name == cell.name) return cell.kind;
    names += (names.empty() ? "\"" : ", \"") + std::string(cell.name) + "\"";
  }
  throw std::invalid_argument("cell: got \"" + name + "\", wanted one of " + names);
}

std::vector<std::string> gate_names(const Config& config) {
  const CellSpec& cell = cell_spec(config);
  std::vector<std::string> names(static_cast<std::size_t>(cell.block_count));
  for (int g = 0; g < cell.gate_count; ++g) {
    // A gate that reads x names the block; the product with h may have its own accumulator (q).
    const GateSpec& gate = cell.gates[g];
    if (gate.x_block >= 0) names[static_cast<std::size_t>(gate.x_block)] = gate.name;
  }
  return names;
}

void Config::validate() const {
  require_size("input_size", input_size, 1);
  require_size("hidden_size", hidden_size, 1);
  require_size("num_layers", num_layers, 1);
  require_size("proj_size", proj_size, 0);
  require(!(reverse && bidirectional),
          "reverse: a bidirectional layer already runs in reverse; wanted one of the two");
  require(is_cell(cell), "cell: got a value that is no CellKind");
  const CellInfo& info = cell_info(cell);
  for (const OptionInfo& option : kOptions) {
    require((info.options & option.option) != 0 || option.is_absent(*this),
            std::string(option.name) + ": " + cell_with_article(cell) +
                " has no such option; wanted " + option.absent);
  }
  require(proj_size == 0 || proj_size < hidden_size, "proj_size: got " + std::to_string(proj_size) +
                                                         ", wanted less than hidden_size (" +
                                                         std::to_string(hidden_size) + ")");
  // "write" is computed as "carry" with the argument of the update gate negated.
  const Activation& gate = activations.gate;
  const bool symmetric = gate.kind == ActivationKind::sigmoid ||
                         (gate.kind == ActivationKind::hard_sigmoid && gate.beta == 0.5);
  require(update_gate == UpdateGate::carry || symmetric,
          std::string("update_gate: got \"write\" with recurrent_activation ") +
              activation_info(gate.kind).name +
              "; wanted \"carry\", or one for which 1 - f(a) = f(-a)");
  require_activation("recurrent_activation", activations.gate);
  require_activation("activation", activations.candidate);
  require_activation("output_activation", activations.output);
  require(activations.clip >= 0 && std::isfinite(activations.clip),
          "clip: got " + std::to_string(activations.clip) + ", wanted a finite number > 0");
  parameter_count(*this);
}

void Config::validate_training() const {
  require(activations.clip == 0, "clip: a layer that clips cannot be trained; wanted none");
  require_slope("recurrent_activation", activations.gate);
  require_slope("activation", activations.candidate);
  require_slope("output_activation", activations.output);
}

Index parameter_count(const Config& config) {
  const auto sum = [](auto... terms) {
    Index total = 0;
    bool overflow = false;
    ((overflow = __builtin_add_overflow(total, terms, &total) || overflow), ...);
    if (overflow) throw std::length_error("tidegate: the sizes overflow");
    return total;
  };
  const Index gates = checked_size(config.gate_count(), config.hidden_size);
  const auto of_layer = [&](Index inputs) {
    return sum(checked_size(gates, inputs), checked_size(gates, config.state_size()),
               config.bias ? checked_size(2, gates) : 0,
               checked_size(config.proj_size, config.hidden_size),
               config.peephole ? checked_size(3, config.hidden_size) : 0);
  };
  const Index above = checked_size(config.num_directions(), config.state_size());
  const Index layers =
      sum(of_layer(config.input_size), checked_size(config.num_layers - 1, of_layer(above)));
  const Index count = checked_size(config.num_directions(), layers);
  checked_size(count, sizeof(double));  // the number of bytes must not overflow either
  return count;
}

std::vector<Parameter> parameters(const Config& config) {
  std::vector<Parameter> all;
  Index offset = 0;
  const auto add = [&](const std::string& name, Index rows, Index columns) {
    all.push_back({name, rows, columns, offset});
    offset += all.back().size();
  };
  parameter_count(config);  // throws length_error if a sum or product below would overflow
  // Reserving throws for too many layers, before their names fill the memory.
  const Index each = 2 + (config.bias ? 2 : 0) + (config.proj_size > 0) + config.peephole;
  all.reserve(
      static_cast<std::size_t>(checked_size(config.num_layers, config.num_directions(), each)));
  const Index gates = config.gate_count() * config.hidden_size;
  for (Index layer = 0; layer < config.num_layers; ++layer) {
    for (Index direction = 0; direction < config.num_directions(); ++direction) {
      const std::string suffix = "_l" + std::to_string(layer) + (direction == 1 ? "_reverse" : "");
      add("weight_ih" + suffix, gates, config.layer_input_size(layer));
      add("weight_hh" + suffix, gates, config.state_size());
      if (config.bias) {
        add("bias_ih" + suffix, gates, 0);
        add("bias_hh" + suffix, gates, 0);
      }
      if (config.proj_size > 0) add("weight_hr" + suffix, config.proj_size, config.hidden_size);
      if (config.peephole) add("weight_peephole" + suffix, 3 * config.hidden_size, 0);
    }
  }
  return all;
}

}  // namespace tidegate
