// Checks of a call's arguments.
#include "core/check.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>

#include "core/threads/threads.h"
#include "tidegate/settings.h"

namespace tidegate {

namespace {

std::string shape_text(Index a, Index b, Index c) {
  return "(" + std::to_string(a) + ", " + std::to_string(b) + ", " + std::to_string(c) + ")";
}

template <class T>
void check_view(const char* name, const View<T>& v, Index a, Index b, Index c) {
  if (v.given) check_shape(name, v.shape, v.stride, a, b, c);
}

template <class T>
void check_sequence(const char* name, const View<T>& v, CallSize size, Index features) {
  check_view(name, v, size.steps, size.batch, features);
  if (v.first_row && !size.longest_first) {
    throw std::invalid_argument(
        std::string(name) + ": got a packed sequence, wanted lengths in descending order with it");
  }
}

template <class T>
void check_states(const Config& config, Index batch, const char* h_name, const View<T>& h,
                  const char* c_name, const View<T>& c) {
  const Index layers = config.num_layers * config.num_directions();
  check_view(h_name, h, layers, batch, config.state_size());
  if (c.given && !config.has_cell_state()) {
    throw std::invalid_argument(std::string(c_name) + ": got an array, but " +
                                cell_with_article(config.cell) + " has no cell state");
  }
  check_view(c_name, c, layers, batch, config.hidden_size);
}

}  // namespace

void check_shape(const char* name, const Index (&got)[3], const Index (&stride)[3], Index a,
                 Index b, Index c) {
  if (got[0] != a || got[1] != b || got[2] != c) {
    throw std::invalid_argument(std::string(name) + ": got shape " +
                                shape_text(got[0], got[1], got[2]) + ", wanted " +
                                shape_text(a, b, c));
  }
  if (stride[2] != 1 && got[2] > 1) {
    throw std::invalid_argument(std::string(name) + ": got a stride of " +
                                std::to_string(stride[2]) + " elements on the last axis, wanted 1");
  }
}

template <class T>
CallSize check_inputs(const Config& config, const Inputs<T>& inputs) {
  CallSize size = {inputs.x.shape[0], inputs.x.shape[1]};
  if (!inputs.x.given || size.steps < 0 || size.batch < 0) {
    throw std::invalid_argument("x: wanted an array of shape (T, N, " +
                                std::to_string(config.input_size) + ")");
  }
  size.longest_first =
      inputs.lengths &&
      std::is_sorted(inputs.lengths, inputs.lengths + std::max<Index>(0, size.batch),
                     std::greater<Index>());
  check_sequence("x", inputs.x, size, config.input_size);
  check_states(config, size.batch, "h_0", inputs.h_0, "c_0", inputs.c_0);
  for (Index n = 0; inputs.lengths && n < size.batch; ++n) {
    if (inputs.lengths[n] < 0 || inputs.lengths[n] > size.steps) {
      throw std::invalid_argument("lengths: got " + std::to_string(inputs.lengths[n]) + " at row " +
                                  std::to_string(n) + ", wanted 0 to " +
                                  std::to_string(size.steps));
    }
  }
  if (inputs.reset.given &&
      (inputs.reset.shape[0] != size.steps || inputs.reset.shape[1] != size.batch)) {
    throw std::invalid_argument("reset: got shape (" + std::to_string(inputs.reset.shape[0]) +
                                ", " + std::to_string(inputs.reset.shape[1]) + "), wanted (" +
                                std::to_string(size.steps) + ", " + std::to_string(size.batch) +
                                ")");
  }
  return size;
}

template <class T>
void check_outputs(const Config& config, CallSize size, const Outputs<T>& outputs) {
  if (!outputs.y.given) throw std::invalid_argument("y: wanted an array to write to");
  check_sequence("y", outputs.y, size, config.output_size());
  check_states(config, size.batch, "h_n", outputs.h_n, "c_n", outputs.c_n);
}

template <class T>
void check_gradients(const Config& config, CallSize size, const OutputGradients<T>& outputs,
                     const InputGradients<T>& inputs) {
  check_sequence("dy", outputs.y, size, config.output_size());
  check_states(config, size.batch, "dh_n", outputs.h_n, "dc_n", outputs.c_n);
  check_sequence("dx", inputs.x, size, config.input_size);
  check_states(config, size.batch, "dh_0", inputs.h_0, "dc_0", inputs.c_0);
}

int allowed_threads(int given) {
  if (given < 0) {
    throw std::invalid_argument("num_threads: got " + std::to_string(given) +
                                ", wanted an integer >= 1");
  }
  return std::min(given > 0 ? given : num_threads(), kMaxThreads);
}

template CallSize check_inputs(const Config&, const Inputs<float>&);
template CallSize check_inputs(const Config&, const Inputs<double>&);
template void check_outputs(const Config&, CallSize, const Outputs<float>&);
template void check_outputs(const Config&, CallSize, const Outputs<double>&);
template void check_gradients(const Config&, CallSize, const OutputGradients<float>&,
                              const InputGradients<float>&);
template void check_gradients(const Config&, CallSize, const OutputGradients<double>&,
                              const InputGradients<double>&);

}  // namespace tidegate
