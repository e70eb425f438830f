// The configuration of a network: its cell, sizes and options, and the names and shapes of its
// parameters. Plain types only: no SIMD, no OpenMP, no Python.
#ifndef TIDEGATE_CONFIG_H_
#define TIDEGATE_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tidegate/activation.h"
#include "tidegate/cell.h"
#include "tidegate/export.h"

namespace tidegate {

using Index = std::int64_t;

// A stack of recurrent layers. Names, shapes and defaults are those of torch.nn.LSTM and
// torch.nn.GRU; those of an MGU are a GRU's, with two gates. An option that only some cells have
// must have its default value for the others.
struct Config {
  CellKind cell = CellKind::lstm;
  Index input_size = 0;
  Index hidden_size = 0;
  Index num_layers = 1;
  bool bias = true;
  bool bidirectional = false;
  bool reverse = false;  // one direction, from the last valid step to the first

  Index proj_size = 0;    // LSTM: h = weight_hr * (o * tanh(c)), of this size; 0: no projection
  bool peephole = false;  // LSTM: i and f see c, o sees c'

  // GRU: r multiplies U_n h + b_hn (true), or h before the product (false).
  bool reset_after = true;
  UpdateGate update_gate = UpdateGate::carry;  // GRU

  CellActivations activations;

  Index num_directions() const { return bidirectional ? 2 : 1; }
  // The number of gates, which are blocks of rows of weight_ih and weight_hh.
  TIDEGATE_EXPORT Index gate_count() const;
  // The size of h: proj_size with a projection, else hidden_size.
  Index state_size() const { return proj_size > 0 ? proj_size : hidden_size; }
  Index output_size() const { return num_directions() * state_size(); }
  Index layer_input_size(Index layer) const { return layer == 0 ? input_size : output_size(); }
  TIDEGATE_EXPORT bool has_cell_state() const;
  // Null for the standard activations, which have their own kernels.
  const CellActivations* chosen_activations() const {
    return activations.standard() ? nullptr : &activations;
  }

  // Throws std::invalid_argument, naming the member that is wrong.
  TIDEGATE_EXPORT void validate() const;
  // Throws std::invalid_argument, naming the member, if the network cannot be trained: if the slope
  // of an activation cannot be computed from the activated value.
  TIDEGATE_EXPORT void validate_training() const;
};

// The name of a cell's class ("LSTM", "GRU", "MGU"), and with its article for messages: "an LSTM".
TIDEGATE_EXPORT const char* cell_name(CellKind cell);
TIDEGATE_EXPORT std::string cell_with_article(CellKind cell);
// Whether the cell has CellActivations::output.
TIDEGATE_EXPORT bool has_output_activation(CellKind cell);
// The cell of this name; std::invalid_argument if there is none.
TIDEGATE_EXPORT CellKind cell_of_name(const std::string& name);
// The names of the gates, in the order of their blocks of rows.
TIDEGATE_EXPORT std::vector<std::string> gate_names(const Config& config);

// A parameter: its PyTorch name, and its position in the flat vector (row-major).
struct Parameter {
  std::string name;
  Index rows = 0;
  Index columns = 0;  // 0: a vector of `rows` elements
  Index offset = 0;   // in elements

  Index size() const { return rows * (columns > 0 ? columns : 1); }
};

// All parameters in the order of the flat vector: by layer, then direction, then weight_ih,
// weight_hh, bias_ih, bias_hh, weight_hr, weight_peephole.
TIDEGATE_EXPORT std::vector<Parameter> parameters(const Config& config);
// The number of elements of the flat vector. Throws std::length_error if their bytes do not fit
// into an Index.
TIDEGATE_EXPORT Index parameter_count(const Config& config);

}  // namespace tidegate

#endif  // TIDEGATE_CONFIG_H_
