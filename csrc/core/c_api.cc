// The C API: checks arguments, makes one call into the C++ API, and turns exceptions into a status.
#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "core/files/json.h"
#include "core/files/layer_text.h"
#include "core/memory.h"
#include "tidegate/safetensors.h"
#include "tidegate/tidegate_c.h"
#include "tidegate/version.h"

using tidegate::Config;
using tidegate::Index;
using tidegate::Precision;

struct tidegate_model {
  std::shared_ptr<const tidegate::Model<float>> model;
};

struct tidegate_linear {
  std::shared_ptr<const tidegate::Linear<float>> linear;
};

struct tidegate_stream {
  tidegate::Stream<float> stream;
  // For each row, the number of the last call of tidegate_stream_step_rows() that included it. It
  // serves to find duplicate rows in one pass, without clearing memory first.
  std::vector<std::uint64_t> last_calls;
  std::uint64_t calls = 0;
};

namespace {

// The last error of the calling thread. A fixed array, because reporting a lack of memory must not
// allocate; large enough for the longest path and a message.
thread_local char last_error[8192] = "";

// Truncates last_error to at most `size` bytes, after a whole UTF-8 character.
void cut_between_characters(std::size_t size) noexcept {
  const auto byte = [](std::size_t i) { return static_cast<unsigned char>(last_error[i]); };
  while (size > 0 && (byte(size - 1) & 0xC0u) == 0x80u) --size;
  if (size > 0 && byte(size - 1) >= 0xC0u) --size;
  last_error[size] = '\0';
}

[[gnu::format(printf, 2, 3)]] tidegate_status failed(tidegate_status status, const char* format,
                                                     ...) noexcept {
  std::va_list values;
  va_start(values, format);
  const int length = std::vsnprintf(last_error, sizeof last_error, format, values);
  va_end(values);
  if (length >= static_cast<int>(sizeof last_error)) cut_between_characters(sizeof last_error - 1);
  return status;
}

// Calls f() and returns its status: success, or that of the exception that it throws.
template <class F>
tidegate_status guarded(const F& f) noexcept {
  try {
    f();
    return TIDEGATE_OK;
  } catch (const std::invalid_argument& error) {
    return failed(TIDEGATE_INVALID_ARGUMENT, "%s", error.what());
  } catch (const std::system_error& error) {
    return failed(TIDEGATE_SYSTEM_ERROR, "%s", error.what());
  } catch (const std::length_error&) {
    return failed(TIDEGATE_OUT_OF_MEMORY, "the sizes overflow");
  } catch (const std::bad_alloc&) {
    return failed(TIDEGATE_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(TIDEGATE_INTERNAL_ERROR, "%s", error.what());
  } catch (...) {
    return failed(TIDEGATE_INTERNAL_ERROR, "an exception of unknown type");
  }
}

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

void require_argument(const void* pointer, const char* name) {
  if (pointer == nullptr) throw std::invalid_argument(std::string(name) + ": got a null pointer");
}

int threads_of(int num_threads) {
  require(num_threads >= 0, "num_threads: got a negative number");
  return std::max(num_threads, 1);
}

// Like require_argument(), but an array without elements may be null.
void require_array(const void* pointer, const char* name, Index elements) {
  if (elements > 0) require_argument(pointer, name);
}

template <class T>
tidegate::View<T> optional_view(T* data, Index a, Index b, Index c) {
  return data == nullptr ? tidegate::View<T>{} : tidegate::view(data, a, b, c);
}

// Returns size(config), or 0 for a null handle.
template <class Size>
Index size_of(const tidegate_model* model, const Size& size) {
  return model == nullptr ? 0 : size(model->model->config());
}

const char* name_of(const char* layer) { return layer == nullptr ? "" : layer; }
const char* name_of(Precision precision) { return tidegate::precision_name<float>(precision); }

// The low precision of this name; nothing if it is null.
std::optional<Precision> precision_of(const char* name) {
  if (name == nullptr) return std::nullopt;
  const std::optional<Precision> precision = tidegate::low_precision(name);
  if (!precision) {
    throw std::invalid_argument("precision: got " + tidegate::quoted_name(name) +
                                ", wanted \"bfloat16\", \"bfloat16-dot\" or \"int8\"");
  }
  return precision;
}

tidegate_model* new_model(const tidegate::Safetensors& file, const char* layer,
                          const char* precision) {
  return new tidegate_model{
      tidegate::load_model<float>(file, name_of(layer), precision_of(precision))};
}

tidegate_linear* new_linear(const tidegate::Safetensors& file, const char* layer,
                            const char* precision) {
  return new tidegate_linear{
      tidegate::load_linear<float>(file, name_of(layer), precision_of(precision))};
}

void read_tensor(const tidegate::Safetensors& file, const char* name, float* values, size_t count) {
  require_argument(name, "tensor");
  if (count > 0) require_argument(values, "values");
  const tidegate::Tensor* const tensor = file.find(name);
  const auto fail = [&](const std::string& reason) {
    throw std::invalid_argument(tidegate::as_utf8(file.name()) + ": tensor " +
                                tidegate::quoted_name(name) + ": " + reason);
  };
  if (tensor == nullptr) fail("the file has no tensor of this name");
  if (tensor->dtype != "F32") fail("got dtype " + tensor->dtype + ", wanted F32");
  const std::size_t elements = static_cast<std::size_t>(tensor->bytes) / sizeof(float);
  if (elements != count) {
    fail("got a count of " + std::to_string(count) + ", wanted " + std::to_string(elements) +
         ", the tensor's number of elements");
  }
  file.read(name, values, count * sizeof(float));
}

// The flat vector of the parameters, each of which must be given once.
std::vector<float> flat_parameters(const Config& config, const tidegate_parameter* given,
                                   std::size_t count) {
  const std::vector<tidegate::Parameter> wanted = tidegate::parameters(config);
  for (std::size_t i = 0; i < count; ++i) {
    require_argument(given[i].name, "parameters: name");
    const auto known = [&](const tidegate::Parameter& p) { return p.name == given[i].name; };
    if (std::none_of(wanted.begin(), wanted.end(), known))
      throw std::invalid_argument("parameters: surplus " + tidegate::quoted_name(given[i].name));
  }
  const auto find = [&](const tidegate::Parameter& parameter) -> const tidegate_parameter& {
    const tidegate_parameter* found = nullptr;
    for (std::size_t i = 0; i < count; ++i) {
      if (parameter.name != given[i].name) continue;
      if (found) throw std::invalid_argument("parameters: " + parameter.name + " is given twice");
      found = &given[i];
    }
    if (!found) throw std::invalid_argument("parameters: missing " + parameter.name);
    if (found->count != static_cast<std::size_t>(parameter.size())) {
      throw std::invalid_argument(parameter.name + ": got " + std::to_string(found->count) +
                                  " elements, wanted " + std::to_string(parameter.size()));
    }
    require_argument(found->data, parameter.name.c_str());
    return *found;
  };
  std::vector<const tidegate_parameter*> in_order;
  for (const tidegate::Parameter& parameter : wanted) in_order.push_back(&find(parameter));
  // Allocates only now: all parameters are known to have the sizes that the options require.
  std::vector<float> flat;
  for (const tidegate_parameter* parameter : in_order)
    flat.insert(flat.end(), parameter->data, parameter->data + parameter->count);
  return flat;
}

tidegate_status null_stream() noexcept {
  return failed(TIDEGATE_INVALID_ARGUMENT, "stream: got a null pointer");
}

// `rows` null: all rows of the stream.
tidegate_status step_rows(tidegate_stream* stream, const Index* rows, Index count, const float* x,
                          float* y) noexcept {
  if (count > 0 && x == nullptr) return failed(TIDEGATE_INVALID_ARGUMENT, "x: got a null pointer");
  if (count > 0 && y == nullptr) return failed(TIDEGATE_INVALID_ARGUMENT, "y: got a null pointer");
  const Config& config = stream->stream.config();
  if (rows == nullptr) {
    stream->stream.step(x, config.input_size, y, config.state_size());
  } else {
    stream->stream.step(x, config.input_size, y, config.state_size(), rows, count);
  }
  return TIDEGATE_OK;
}

void check_state(const tidegate_stream* stream, const float* c) {
  require_argument(stream, "stream");
  const Config& config = stream->stream.config();
  if (c == nullptr || config.has_cell_state()) return;
  throw std::invalid_argument("c: " + tidegate::cell_with_article(config.cell) +
                              " has no cell state");
}

// Calls f(state, size, is_h) for h, then c, of each row of each layer.
template <class F>
void for_each_state(tidegate::Stream<float>& stream, const F& f) {
  const Config& config = stream.config();
  for (Index layer = 0; layer < config.num_layers; ++layer) {
    for (Index row = 0; row < stream.batch(); ++row) {
      f(stream.h(layer, row), config.state_size(), true);
      if (config.has_cell_state()) f(stream.c(layer, row), config.hidden_size, false);
    }
  }
}

}  // namespace

const char* tidegate_version(void) { return TIDEGATE_VERSION; }

const char* tidegate_fastest_bfloat16(void) { return name_of(tidegate::fastest_bfloat16()); }

const char* tidegate_last_error(void) { return last_error; }

// ---- Models ----

tidegate_status tidegate_model_load(const char* path, const char* layer, tidegate_model** model) {
  return tidegate_model_load_as(path, layer, nullptr, model);
}

tidegate_status tidegate_model_load_memory(const void* data, size_t size, const char* layer,
                                           tidegate_model** model) {
  return tidegate_model_load_memory_as(data, size, layer, nullptr, model);
}

tidegate_status tidegate_model_load_as(const char* path, const char* layer, const char* precision,
                                       tidegate_model** model) {
  return guarded([&] {
    require_argument(path, "path");
    require_argument(model, "model");
    *model = new_model(tidegate::Safetensors(path), layer, precision);
  });
}

tidegate_status tidegate_model_load_memory_as(const void* data, size_t size, const char* layer,
                                              const char* precision, tidegate_model** model) {
  return guarded([&] {
    require_argument(data, "data");
    require_argument(model, "model");
    *model = new_model(tidegate::Safetensors(data, size), layer, precision);
  });
}

tidegate_status tidegate_model_create(const char* options, const tidegate_parameter* parameters,
                                      size_t parameter_count, tidegate_model** model) {
  return guarded([&] {
    require_argument(options, "options");
    require_argument(model, "model");
    if (parameter_count > 0) require_argument(parameters, "parameters");
    tidegate::LayerInfo layer;
    try {
      layer =
          tidegate::parse_layer(options, std::max<Index>(1, static_cast<Index>(parameter_count)));
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("options: " + std::string(error.what()));
    }
    require(layer.kind == tidegate::LayerKind::recurrent, "options: wanted a recurrent layer");
    const std::vector<float> flat = flat_parameters(layer.config, parameters, parameter_count);
    if (layer.precision != Precision::exact) {
      *model = new tidegate_model{std::make_shared<tidegate::Model<float>>(
          layer.config,
          tidegate::quantize(tidegate::parameters(layer), flat.data(), layer.precision))};
      return;
    }
    const auto made = std::make_shared<tidegate::Model<float>>(layer.config);
    made->write_parameters(0, flat.data(), made->parameter_count());
    *model = new tidegate_model{made};
  });
}

void tidegate_model_free(tidegate_model* model) { delete model; }

int64_t tidegate_model_input_size(const tidegate_model* model) {
  return size_of(model, [](const Config& c) { return c.input_size; });
}
int64_t tidegate_model_hidden_size(const tidegate_model* model) {
  return size_of(model, [](const Config& c) { return c.hidden_size; });
}
int64_t tidegate_model_state_size(const tidegate_model* model) {
  return size_of(model, [](const Config& c) { return c.state_size(); });
}
int64_t tidegate_model_output_size(const tidegate_model* model) {
  return size_of(model, [](const Config& c) { return c.output_size(); });
}
int64_t tidegate_model_num_layers(const tidegate_model* model) {
  return size_of(model, [](const Config& c) { return c.num_layers; });
}
int64_t tidegate_model_num_directions(const tidegate_model* model) {
  return size_of(model, [](const Config& c) { return c.num_directions(); });
}
int tidegate_model_has_cell_state(const tidegate_model* model) {
  return static_cast<int>(size_of(model, [](const Config& c) { return c.has_cell_state(); }));
}

const char* tidegate_model_precision(const tidegate_model* model) {
  return model == nullptr ? "" : name_of(model->model->precision());
}

tidegate_status tidegate_model_run(const tidegate_model* model, const tidegate_run* run) {
  return guarded([&] {
    require_argument(model, "model");
    require_argument(run, "run");
    require(run->steps >= 0, "steps: got a negative number");
    require(run->batch >= 0, "batch: got a negative number");
    const Config& config = model->model->config();
    const Index steps = run->steps, batch = run->batch;
    const Index rows = config.num_layers * config.num_directions();
    // Throws if the numbers of elements, which bound all strides below, overflow.
    const Index widest = std::max(config.input_size, config.output_size());
    tidegate::checked_size(std::max(steps, rows), batch, std::max(widest, config.hidden_size));
    require_array(run->x, "x", steps * batch);
    require_array(run->y, "y", steps * batch);
    tidegate::Inputs<float> inputs;
    inputs.x = tidegate::view(run->x, steps, batch, config.input_size);
    inputs.h_0 = optional_view(run->h_0, rows, batch, config.state_size());
    inputs.c_0 = optional_view(run->c_0, rows, batch, config.hidden_size);
    inputs.lengths = run->lengths;
    tidegate::Outputs<float> outputs;
    outputs.y = tidegate::view(run->y, steps, batch, config.output_size());
    outputs.h_n = optional_view(run->h_n, rows, batch, config.state_size());
    outputs.c_n = optional_view(run->c_n, rows, batch, config.hidden_size);
    model->model->run(inputs, outputs, threads_of(run->num_threads));
  });
}

// ---- Tensors ----

tidegate_status tidegate_tensor_read(const char* path, const char* tensor, float* values,
                                     size_t count) {
  return guarded([&] {
    require_argument(path, "path");
    read_tensor(tidegate::Safetensors(path), tensor, values, count);
  });
}

tidegate_status tidegate_tensor_read_memory(const void* data, size_t size, const char* tensor,
                                            float* values, size_t count) {
  return guarded([&] {
    require_argument(data, "data");
    read_tensor(tidegate::Safetensors(data, size), tensor, values, count);
  });
}

// ---- Streams ----

tidegate_status tidegate_stream_create(const tidegate_model* model, int64_t batch,
                                       tidegate_stream** stream) {
  return guarded([&] {
    require_argument(model, "model");
    require_argument(stream, "stream");
    // The stream is constructed first and rejects a negative batch.
    *stream = new tidegate_stream{
        tidegate::Stream<float>(model->model, batch),
        std::vector<std::uint64_t>(static_cast<std::size_t>(std::max<Index>(batch, 0)))};
  });
}

void tidegate_stream_free(tidegate_stream* stream) { delete stream; }

int64_t tidegate_stream_batch(const tidegate_stream* stream) {
  return stream == nullptr ? 0 : stream->stream.batch();
}

tidegate_status tidegate_stream_step(tidegate_stream* stream, const float* x, float* y) {
  if (stream == nullptr) return null_stream();
  return step_rows(stream, nullptr, stream->stream.batch(), x, y);
}

tidegate_status tidegate_stream_step_rows(tidegate_stream* stream, const int64_t* rows,
                                          int64_t count, const float* x, float* y) {
  if (stream == nullptr) return null_stream();
  const Index batch = stream->stream.batch();
  const auto refuse = [&](const char* argument, Index got, const char* wanted) {
    return failed(TIDEGATE_INVALID_ARGUMENT, "%s: got %lld, wanted %s (the stream has %lld rows)",
                  argument, static_cast<long long>(got), wanted, static_cast<long long>(batch));
  };
  if (count < 0 || count > batch) return refuse("count", count, "0 to all rows");
  if (count == 0) return TIDEGATE_OK;
  if (rows == nullptr) return failed(TIDEGATE_INVALID_ARGUMENT, "rows: got a null pointer");
  ++stream->calls;
  for (Index i = 0; i < count; ++i) {
    if (rows[i] < 0 || rows[i] >= batch) return refuse("rows", rows[i], "0 to the last row");
    std::uint64_t& last_call = stream->last_calls[static_cast<std::size_t>(rows[i])];
    if (last_call == stream->calls) return refuse("rows", rows[i], "each row once");
    last_call = stream->calls;
  }
  return step_rows(stream, rows, count, x, y);
}

tidegate_status tidegate_stream_run(tidegate_stream* stream, int64_t steps, const float* x,
                                    float* y, int num_threads) {
  return guarded([&] {
    require_argument(stream, "stream");
    require(steps >= 0, "steps: got a negative number");
    tidegate::Stream<float>& s = stream->stream;
    const Config& config = s.config();
    tidegate::checked_size(steps, s.batch(), std::max(config.input_size, config.hidden_size));
    require_array(x, "x", steps * s.batch());
    require_array(y, "y", steps * s.batch());
    s.run(tidegate::view(x, steps, s.batch(), config.input_size),
          tidegate::view(y, steps, s.batch(), config.state_size()), threads_of(num_threads));
  });
}

tidegate_status tidegate_stream_reset(tidegate_stream* stream, int64_t row) {
  return guarded([&] {
    require_argument(stream, "stream");
    require(row >= -1 && row < stream->stream.batch(), "row: wanted a row of the stream, or -1");
    if (row < 0) {
      stream->stream.reset();
    } else {
      stream->stream.reset(row);
    }
  });
}

tidegate_status tidegate_stream_resize(tidegate_stream* stream, int64_t batch) {
  return guarded([&] {
    require_argument(stream, "stream");
    // Reserves memory first, so that a failure changes nothing.
    if (batch > 0) stream->last_calls.reserve(static_cast<std::size_t>(batch));
    stream->stream.resize(batch);
    stream->last_calls.resize(static_cast<std::size_t>(batch));
  });
}

tidegate_status tidegate_stream_get_state(tidegate_stream* stream, float* h, float* c) {
  return guarded([&] {
    check_state(stream, c);
    for_each_state(stream->stream, [&](const float* state, Index size, bool is_h) {
      float*& to = is_h ? h : c;
      if (to != nullptr) to = std::copy_n(state, size, to);
    });
  });
}

tidegate_status tidegate_stream_set_state(tidegate_stream* stream, const float* h, const float* c) {
  return guarded([&] {
    check_state(stream, c);
    for_each_state(stream->stream, [&](float* state, Index size, bool is_h) {
      const float*& from = is_h ? h : c;
      if (from == nullptr) {
        std::fill_n(state, size, 0.0f);
      } else {
        std::copy_n(from, size, state);
        from += size;
      }
    });
  });
}

// ---- Linear layers ----

tidegate_status tidegate_linear_load(const char* path, const char* layer,
                                     tidegate_linear** linear) {
  return tidegate_linear_load_as(path, layer, nullptr, linear);
}

tidegate_status tidegate_linear_load_memory(const void* data, size_t size, const char* layer,
                                            tidegate_linear** linear) {
  return tidegate_linear_load_memory_as(data, size, layer, nullptr, linear);
}

tidegate_status tidegate_linear_load_as(const char* path, const char* layer, const char* precision,
                                        tidegate_linear** linear) {
  return guarded([&] {
    require_argument(path, "path");
    require_argument(linear, "linear");
    *linear = new_linear(tidegate::Safetensors(path), layer, precision);
  });
}

tidegate_status tidegate_linear_load_memory_as(const void* data, size_t size, const char* layer,
                                               const char* precision, tidegate_linear** linear) {
  return guarded([&] {
    require_argument(data, "data");
    require_argument(linear, "linear");
    *linear = new_linear(tidegate::Safetensors(data, size), layer, precision);
  });
}

void tidegate_linear_free(tidegate_linear* linear) { delete linear; }

int64_t tidegate_linear_in_features(const tidegate_linear* linear) {
  return linear == nullptr ? 0 : linear->linear->in_features();
}
int64_t tidegate_linear_out_features(const tidegate_linear* linear) {
  return linear == nullptr ? 0 : linear->linear->out_features();
}
const char* tidegate_linear_precision(const tidegate_linear* linear) {
  return linear == nullptr ? "" : name_of(linear->linear->precision());
}

tidegate_status tidegate_linear_run(const tidegate_linear* linear, int64_t rows, const float* x,
                                    float* y, int num_threads) {
  return guarded([&] {
    require_argument(linear, "linear");
    const tidegate::Linear<float>& layer = *linear->linear;
    require(rows >= 0, "rows: got a negative number");
    tidegate::checked_size(rows, std::max(layer.in_features(), layer.out_features()));
    require_array(x, "x", rows);
    require_array(y, "y", rows);
    layer.run(x, layer.in_features(), y, layer.out_features(), rows, threads_of(num_threads));
  });
}
