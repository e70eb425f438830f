// Fuzzing of the safetensors reader: it must read any bytes or refuse them with a message, and must
// not allocate memory out of proportion to their number.
//
// LLVMFuzzerTestOneInput() is libFuzzer's entry (CMake's TIDEGATE_FUZZ, with Clang). Elsewhere
// main() replaces it: `fuzz_safetensors [rounds [seed [folder]]]` mutates valid files in ways that
// are likely to expose errors of a reader, and prints how to repeat a failure. If a folder is
// given, the valid files are written to it as libFuzzer's initial corpus.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "file_bytes.h"
#include "tidegate/linear.h"
#include "tidegate/model.h"
#include "tidegate/safetensors.h"
#include "tidegate/settings.h"

namespace {

// Layers with more elements than this are not run, to keep the time short.
constexpr tidegate::Index kWorthRunning = 1 << 12;

std::size_t most_allocated = SIZE_MAX;  // in one allocation

using Precision = std::optional<tidegate::Precision>;

template <class T>
void run_a_step(const tidegate::Safetensors& file, const std::string& layer, Precision precision) {
  const std::shared_ptr<tidegate::Model<T>> model = tidegate::load_model<T>(file, layer, precision);
  const tidegate::Config& config = model->config();
  const std::vector<T> x(static_cast<std::size_t>(config.input_size));
  std::vector<T> y(static_cast<std::size_t>(config.output_size()));
  tidegate::Inputs<T> inputs;
  inputs.x = tidegate::view(x.data(), 1, 1, config.input_size);
  tidegate::Outputs<T> outputs;
  outputs.y = tidegate::view(y.data(), 1, 1, config.output_size());
  model->run(inputs, outputs, 1);
}

template <class T>
void run_a_row(const tidegate::Safetensors& file, const std::string& layer, Precision precision) {
  const std::shared_ptr<tidegate::Linear<T>> linear =
      tidegate::load_linear<T>(file, layer, precision);
  const std::vector<T> x(static_cast<std::size_t>(linear->in_features()));
  std::vector<T> y(static_cast<std::size_t>(linear->out_features()));
  linear->run(x.data(), 0, y.data(), 0, 1, 1);
}

template <class T>
void run(const tidegate::Safetensors& file, const tidegate::LayerInfo& layer,
         Precision precision = std::nullopt) {
  layer.kind == tidegate::LayerKind::linear ? run_a_row<T>(file, layer.name, precision)
                                            : run_a_step<T>(file, layer.name, precision);
}

// Runs the layer as it is; in exact precision of float32, also in each low precision.
void run_in_precisions(const tidegate::Safetensors& file, const tidegate::LayerInfo& layer) {
  if (layer.dtype == "F64") return run<double>(file, layer);
  run<float>(file, layer);
  if (layer.precision != tidegate::Precision::exact) return;
  run<float>(file, layer, tidegate::Precision::bfloat16);
  run<float>(file, layer, tidegate::Precision::bfloat16_dot);
  run<float>(file, layer, tidegate::Precision::int8);
}

// Reads everything in a file. Returns false if it is refused, which must be by a
// std::invalid_argument.
bool read_all(const char* data, std::size_t size) {
  try {
    const tidegate::Safetensors file(data, size, "fuzz");
    std::vector<char> values;
    for (const tidegate::Tensor& tensor : file.tensors()) {
      values.resize(static_cast<std::size_t>(tensor.bytes));
      file.read(tensor.name, values.data(), values.size());
    }
    for (const tidegate::LayerInfo& layer : tidegate::read_layers(file)) {
      const tidegate::Index count = tidegate::parameter_count(layer);
      values.resize(static_cast<std::size_t>(count) * 8);
      tidegate::read_parameters(file, layer, values.data());
      if (layer.kind == tidegate::LayerKind::dropout || count > kWorthRunning) continue;
      // Packed weights are padded: one unit to a whole vector.
      const std::size_t limit = std::exchange(most_allocated, SIZE_MAX);
      run_in_precisions(file, layer);
      most_allocated = limit;
    }
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

// The same with the bytes in memory of exactly their size, so that a sanitizer detects reads
// beyond.
bool read_exactly(const std::uint8_t* data, std::size_t size) {
  const std::vector<char> bytes(data, data + size);
  return read_all(bytes.empty() ? "" : bytes.data(), size);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read_exactly(data, size);
  return 0;
}

#if !defined(TIDEGATE_LIBFUZZER)

// Every allocation of this program. The reader may allocate some structures for each byte of a
// header, but not for sizes that a header merely claims. Not inlined: the compiler would otherwise
// warn that the freed memory is not from malloc().
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  if (size > most_allocated) {
    std::printf("an allocation of %zu bytes\n", size);
    std::abort();
  }
  return std::malloc(size > 0 ? size : 1);
}
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (void* const memory = operator new(size, std::nothrow)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using tidegate::test::Random;

// Tokens of headers, and tokens that are likely to expose errors of their reader.
const char* const kTokens[] = {"{",
                               "}",
                               "[",
                               "]",
                               ":",
                               ",",
                               "\"",
                               "\\",
                               "\\u0000",
                               "\\ud800",
                               "\xff",
                               "\xc3\xa9",
                               " ",
                               "0",
                               "-1",
                               "1",
                               "4",
                               "9",
                               "1e9",
                               "0.5",
                               "4294967296",
                               "4611686018427387904",
                               "9223372036854775807",
                               "9223372036854775808",
                               "18446744073709551615",
                               "1e999",
                               "true",
                               "null",
                               "\"F64\"",
                               "\"BF16\"",
                               "\"I8\"",
                               "\"F4\"",
                               "\"dtype\": \"F32\"",
                               "\"shape\": []",
                               "\"data_offsets\": [0, 0]",
                               "[1, 1]",
                               "\"__metadata__\": {}",
                               "\\\"num_layers\\\": 2, ",
                               "\\\"num_layers\\\": 1000000000000, ",
                               "\\\"hidden_size\\\": 4611686018427387904, ",
                               "\\\"bias\\\": false, ",
                               "\\\"precision\\\": \\\"int8\\\", ",
                               "\\\"precision\\\": \\\"bfloat16\\\", ",
                               "\\\"precision\\\": \\\"bfloat16-dot\\\", ",
                               "int8",
                               "int4",
                               "\\\"clip\\\": 1, ",
                               "\\\"activation\\\": [\\\"affine\\\", 2, 3], ",
                               "LSTM",
                               "GRU",
                               "MGU",
                               "Linear",
                               "rnn",
                               "head",
                               "\"tidegate.layer\": \"{}\", ",
                               "\"tidegate.format\": \"2\", ",
                               ".",
                               "_scale",
                               "weight_ih_l0"};

std::size_t below(Random& random, std::size_t count) {
  return static_cast<std::size_t>(random.below(static_cast<std::int64_t>(count)));
}

// Makes one change at one position of the text.
void change(Random& random, std::string& text) {
  const std::size_t at = below(random, text.size() + 1);
  switch (random.below(7)) {
    case 0:
      if (at < text.size()) text[at] = static_cast<char>(random.below(256));
      return;
    case 1:
      text.erase(at, 1 + below(random, 8));
      return;
    case 2:
      text.insert(at, kTokens[below(random, std::size(kTokens))]);
      return;
    case 3: {  // replaces a token by another
      const char* const token = kTokens[below(random, std::size(kTokens))];
      const std::size_t end = text.find_first_of(",:]}\"", at);
      if (end != std::string::npos) text.replace(at, end - at, token);
      return;
    }
    case 4: {  // replaces a digit
      const std::size_t digit = text.find_first_of("0123456789", at);
      if (digit != std::string::npos) text[digit] = static_cast<char>('0' + random.below(10));
      return;
    }
    case 5:  // copies a part to another position
      text.insert(at, text.substr(below(random, text.size() + 1), below(random, 64)));
      return;
    default:
      text.resize(at);
      return;
  }
}

// A valid file, mutated, usually in its header, whose length is then adjusted.
std::string changed_file(Random& random, const std::vector<std::string>& seeds) {
  std::string bytes = seeds[below(random, seeds.size())];
  std::size_t header_size = 0;
  for (int i = 7; i >= 0; --i)
    header_size = header_size << 8 | static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)]);
  std::string header = bytes.substr(8, header_size);
  std::string data = bytes.substr(8 + header_size);
  const std::int64_t changes = random.below(5);
  for (std::int64_t i = 0; i < changes; ++i) change(random, header);
  if (random.below(8) == 0) data.resize(below(random, data.size() + 9));
  // Changes values, such as scales.
  if (random.below(8) == 0 && !data.empty())
    data[below(random, data.size())] = static_cast<char>(random.below(256));
  bytes = tidegate::test::file_bytes(header, data);
  if (random.below(16) == 0) bytes[below(random, 8)] = static_cast<char>(random.below(256));
  if (random.below(16) == 0) bytes.resize(below(random, bytes.size() + 1));
  return bytes;
}

std::vector<std::string> make_seeds() {
  using tidegate::test::FileOfTensors;
  const std::string lstm =
      R"({"tidegate.format": "1", "tidegate.layer": "{\"kind\": \"LSTM\", \"input_size\": 1, )"
      R"(\"hidden_size\": 2, \"bias\": false, \"peephole\": true, \"proj_size\": 1, )"
      R"(\"dropout\": 0.5, \"activation\": [\"scaled_tanh\", 1.5, 0.5], \"clip\": 3}"})";
  return {tidegate::test::layers_file_bytes(), tidegate::test::low_precision_file_bytes(),
          FileOfTensors()
              .metadata(lstm)
              .tensor("weight_ih_l0", "F64", "[8, 1]", 64)
              .tensor("weight_hh_l0", "F64", "[8, 1]", 64)
              .tensor("weight_hr_l0", "F64", "[1, 2]", 16)
              .tensor("weight_peephole_l0", "F64", "[6]", 48)
              .bytes(),
          FileOfTensors()
              .metadata(R"({"tidegate.format": "1", "tidegate.array.mean": "", )"
                        R"("tidegate.layer.drop": "{\"kind\": \"Dropout\", \"p\": 0.25}", )"
                        R"("tidegate.text.note": "any"})")
              .tensor("mean", "I16", "[2, 3]", 12)
              .bytes(),
          FileOfTensors()
              .metadata("{\"format\": \"pt\"}")
              .tensor("half", "BF16", "[3, 5]", 30)
              .tensor("nibbles", "F4", "[2, 3]", 3)
              .tensor("none", "I64", "[0, 7]", 0)
              .tensor("truth", "BOOL", "[]", 1)
              .bytes()};
}

}  // namespace

int main(int argument_count, char** arguments) {
  const long rounds = argument_count > 1 ? std::atol(arguments[1]) : 20000;
  const long seed = argument_count > 2 ? std::atol(arguments[2]) : 1;
  const std::vector<std::string> seeds = make_seeds();
  tidegate::isa();  // makes all process-wide allocations here
  for (std::size_t i = 0; i < seeds.size(); ++i) {
    read_all(seeds[i].data(), seeds[i].size());
    if (argument_count > 3)
      std::ofstream(arguments[3] + ("/seed-" + std::to_string(i)), std::ios::binary) << seeds[i];
  }
  long read = 0;
  for (long round = 0; round < rounds; ++round) {
    Random random(static_cast<std::uint64_t>(seed + round));
    const std::string bytes = changed_file(random, seeds);
    most_allocated = (1 << 16) + 64 * bytes.size();
    try {
      read += read_exactly(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    } catch (const std::exception& error) {
      std::printf("fuzz_safetensors 1 %ld: %s\n", seed + round, error.what());
      return 1;
    }
    most_allocated = SIZE_MAX;
  }
  std::printf("%ld files read, %ld refused\n", read, rounds - read);
  return 0;
}

#endif  // TIDEGATE_LIBFUZZER
