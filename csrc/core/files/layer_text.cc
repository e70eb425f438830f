// The options of layers as JSON, read and written by one table of all options.
#include "core/files/layer_text.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cells.h"
#include "core/check.h"
#include "core/files/json.h"
#include "core/memory.h"

namespace tidegate {
namespace {

// A layer while it is read, and the option that cannot be stored before the others are known.
struct Draft {
  LayerInfo layer;
  std::optional<Activation> output_activation;
};

// The kinds of layers that have an option.
struct Owners {
  bool recurrent = false, linear = false, dropout = false;
  unsigned cell_option = 0;  // recurrent: only cells with this option

  bool has(const LayerInfo& layer) const {
    if (layer.kind == LayerKind::linear) return linear;
    if (layer.kind == LayerKind::dropout) return dropout;
    return recurrent && (cell_info(layer.config.cell).options & cell_option) == cell_option;
  }
};
constexpr Owners kRecurrent{true};
constexpr Owners kLinear{false, true};
constexpr Owners kDropout{false, false, true};
constexpr Owners kRecurrentAndLinear{true, true};
constexpr Owners cells_with(CellOption option) { return {true, false, false, option}; }

// An option: which layers have it, and how it is read and written.
struct Option {
  const char* name;
  Owners owners;
  bool required;
  std::function<void(JsonReader&, Draft&)> read;
  std::function<std::string(const LayerInfo&)> text;  // a JSON value
};

std::string text_of(bool value) { return value ? "true" : "false"; }
std::string text_of(Index value) { return std::to_string(value); }
std::string text_of(double value) { return json_number(value); }

// Read only where it is low: an exact one is the default, which is not written.
std::string text_of(Precision value) { return json_string(precision_name<float>(value)); }

std::string text_of(UpdateGate value) {
  return value == UpdateGate::carry ? "\"carry\"" : "\"write\"";
}

std::string text_of(const Activation& activation) {
  const ActivationInfo& info = activation_info(activation.kind);
  const std::string name = json_string(info.name);
  if (activation == Activation(activation.kind)) return name;
  std::string text = "[" + name + ", " + json_number(activation.alpha);
  if (info.parameters > 1) text += ", " + json_number(activation.beta);
  return text + "]";
}

void read_value(JsonReader& json, bool& value) { value = json.boolean(); }
void read_value(JsonReader& json, Index& value) { value = json.integer(); }
void read_value(JsonReader& json, double& value) { value = json.number(); }

void read_value(JsonReader& json, UpdateGate& value) {
  const std::string name = json.string();
  if (name != "carry" && name != "write")
    json.fail("got " + quoted_name(name) + ", wanted \"carry\" or \"write\"");
  value = name == "carry" ? UpdateGate::carry : UpdateGate::write;
}

void read_value(JsonReader& json, Precision& value) {
  const std::string name = json.string();
  const std::optional<Precision> precision = low_precision(name);
  if (!precision)
    json.fail("got " + quoted_name(name) + ", wanted \"bfloat16\", \"bfloat16-dot\" or \"int8\"");
  value = *precision;
}

const ActivationInfo& read_activation_name(JsonReader& json) {
  const std::string name = json.string();
  std::string names;
  for (const ActivationInfo& info : kActivations) {
    if (name == info.name) return info;
    names += (names.empty() ? "" : ", ") + std::string(info.name);
  }
  json.fail("got " + quoted_name(name) + ", wanted one of " + names);
}

// A name, or an array of a name and parameters.
void read_value(JsonReader& json, Activation& value) {
  if (json.at_string()) {
    value = read_activation_name(json).kind;
    return;
  }
  const ActivationInfo* info = nullptr;
  int count = 0;
  json.array([&] {
    if (info == nullptr) {
      info = &read_activation_name(json);
      value = info->kind;
      return;
    }
    if (count == info->parameters)
      json.fail(std::string(info->name) + " has " + std::to_string(count) + " parameters");
    (count++ == 0 ? value.alpha : value.beta) = json.number();
  });
  if (info == nullptr) json.fail("got an empty array, wanted a name and its parameters");
}

template <class Value>
Option config_option(const char* name, Owners owners, Value Config::* member,
                     bool required = false) {
  return {
      name, owners, required,
      [member](JsonReader& json, Draft& draft) { read_value(json, draft.layer.config.*member); },
      [member](const LayerInfo& layer) { return text_of(layer.config.*member); }};
}

template <class Value>
Option cell_option(const char* name, Owners owners, Value CellActivations::* member) {
  return {name, owners, false,
          [member](JsonReader& json, Draft& draft) {
            read_value(json, draft.layer.config.activations.*member);
          },
          [member](const LayerInfo& layer) { return text_of(layer.config.activations.*member); }};
}

template <class Value>
Option layer_option(const char* name, Owners owners, Value LayerInfo::* member,
                    bool required = false) {
  return {name, owners, required,
          [member](JsonReader& json, Draft& draft) { read_value(json, draft.layer.*member); },
          [member](const LayerInfo& layer) { return text_of(layer.*member); }};
}

// Recurrent and linear layers store it in different members. When it is read, the kind may not be
// known yet, so both are set.
Option bias_option() {
  return {"bias", kRecurrentAndLinear, false,
          [](JsonReader& json, Draft& draft) {
            draft.layer.bias = draft.layer.config.bias = json.boolean();
          },
          [](const LayerInfo& layer) {
            return text_of(layer.kind == LayerKind::linear ? layer.bias : layer.config.bias);
          }};
}

// The `output` of h = o * output(c). Its default is the value of `activation`.
Option output_activation_option() {
  return {"output_activation", cells_with(kOutputActivation), false,
          [](JsonReader& json, Draft& draft) {
            Activation activation = ActivationKind::tanh;
            read_value(json, activation);
            draft.output_activation = activation;
          },
          [](const LayerInfo& layer) { return text_of(layer.config.activations.output); }};
}

// To add an option: one line here.
std::vector<Option> make_options() {
  return {
      config_option("input_size", kRecurrent, &Config::input_size, true),
      config_option("hidden_size", kRecurrent, &Config::hidden_size, true),
      config_option("num_layers", kRecurrent, &Config::num_layers),
      bias_option(),
      layer_option("batch_first", kRecurrent, &LayerInfo::batch_first),
      layer_option("dropout", kRecurrent, &LayerInfo::dropout),
      config_option("bidirectional", kRecurrent, &Config::bidirectional),
      config_option("reverse", kRecurrent, &Config::reverse),
      config_option("proj_size", cells_with(kProjSize), &Config::proj_size),
      config_option("peephole", cells_with(kPeephole), &Config::peephole),
      config_option("reset_after", cells_with(kResetAfter), &Config::reset_after),
      config_option("update_gate", cells_with(kUpdateGate), &Config::update_gate),
      cell_option("recurrent_activation", kRecurrent, &CellActivations::gate),
      cell_option("activation", kRecurrent, &CellActivations::candidate),
      output_activation_option(),
      cell_option("clip", kRecurrent, &CellActivations::clip),
      cell_option("input_forget", cells_with(kInputForget), &CellActivations::input_forget),
      layer_option("in_features", kLinear, &LayerInfo::in_features, true),
      layer_option("out_features", kLinear, &LayerInfo::out_features, true),
      layer_option("precision", kRecurrentAndLinear, &LayerInfo::precision),
      layer_option("p", kDropout, &LayerInfo::p, true),
  };
}

void read_kind(JsonReader& json, LayerInfo& layer) {
  const std::string name = json.string();
  std::string names;
  const auto is = [&](const char* known) {
    names += (names.empty() ? "" : ", ") + json_string(known);
    return name == known;
  };
  for (const CellInfo& cell : kCells) {
    layer.kind = LayerKind::recurrent;
    layer.config.cell = cell.kind;
    if (is(cell.name)) return;
  }
  for (const LayerKind kind : {LayerKind::linear, LayerKind::dropout}) {
    layer.kind = kind;
    if (is(kind_name(layer))) return;
  }
  json.fail("got " + quoted_name(name) + ", wanted one of " + names);
}

void require_sizes(const LayerInfo& layer) {
  require_size("in_features", layer.in_features, 1);
  require_size("out_features", layer.out_features, 1);
}

void require_probability(const char* name, double value) {
  require(value >= 0 && value <= 1,
          std::string(name) + ": got " + json_number(value) + ", wanted a probability, 0 to 1");
}

}  // namespace

const char* kind_name(const LayerInfo& layer) {
  switch (layer.kind) {
    case LayerKind::linear:
      return "Linear";
    case LayerKind::dropout:
      return "Dropout";
    default:
      return cell_name(layer.config.cell);
  }
}

LayerInfo parse_layer(std::string_view text, Index most_layers) {
  Draft draft;
  LayerInfo& layer = draft.layer;
  const std::vector<Option> options = make_options();
  std::vector<std::string> given;
  JsonReader json(text);
  json.object([&](const std::string& key) {
    given.push_back(key);
    if (key == "kind") {
      read_kind(json, layer);
      return;
    }
    const auto option = std::find_if(options.begin(), options.end(),
                                     [&](const Option& known) { return key == known.name; });
    if (option == options.end()) json.fail("an option that this version does not have");
    option->read(json, draft);
  });
  json.end();
  const auto is_given = [&](const char* name) {
    return std::find(given.begin(), given.end(), name) != given.end();
  };
  require(is_given("kind"), "\"kind\" is missing");
  for (const Option& option : options) {
    const bool has = option.owners.has(layer);
    require(has || !is_given(option.name), json_string(option.name) +
                                               ": an option that this version's " +
                                               kind_name(layer) + " does not have");
    require(!has || !option.required || is_given(option.name),
            json_string(option.name) + " is missing");
  }

  if (layer.kind == LayerKind::linear) {
    require_sizes(layer);
    return layer;
  }
  if (layer.kind == LayerKind::dropout) {
    require_probability("p", layer.p);
    return layer;
  }
  CellActivations& cell = layer.config.activations;
  if (has_output_activation(layer.config.cell))
    cell.output = draft.output_activation.value_or(cell.candidate);
  require_probability("dropout", layer.dropout);
  require(layer.config.num_layers <= most_layers,
          "num_layers: got " + std::to_string(layer.config.num_layers) +
              ", which is more than there are tensors (" + std::to_string(most_layers) + ")");
  layer.config.validate();
  return layer;
}

std::string layer_text(const LayerInfo& layer) {
  LayerInfo defaults;
  defaults.kind = layer.kind;
  defaults.config.cell = layer.config.cell;
  defaults.config.activations.output = layer.config.activations.candidate;
  std::string text = std::string("{\"kind\": \"") + kind_name(layer) + "\"";
  for (const Option& option : make_options()) {
    if (!option.owners.has(layer)) continue;
    const std::string value = option.text(layer);
    if (option.required || value != option.text(defaults))
      text += ", " + json_string(option.name) + ": " + value;
  }
  return text + "}";
}

std::vector<Parameter> parameters(const LayerInfo& layer) {
  if (layer.kind == LayerKind::recurrent) return parameters(layer.config);
  if (layer.kind == LayerKind::dropout) return {};
  return linear_parameters(layer.in_features, layer.out_features, layer.bias);
}

Index parameter_count(const LayerInfo& layer) {
  const std::vector<Parameter> all = parameters(layer);
  return all.empty() ? 0 : all.back().offset + all.back().size();
}

}  // namespace tidegate
