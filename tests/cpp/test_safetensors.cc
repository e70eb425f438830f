// Safetensors files: reading from disk and memory, finding layers, making and running models,
// writing files, and refusals. The many kinds of invalid files are tested in tests/test_files.py
// and by the fuzzer.
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "errors.h"
#include "file_bytes.h"
#include "tidegate/model.h"
#include "tidegate/safetensors.h"

namespace {

using namespace tidegate;
using test::Random;
using test::same;
using test::size_of;

// A new path, whose file is deleted in the destructor.
class TemporaryPath {
 public:
  TemporaryPath() {
    const char* const folder = std::getenv("TMPDIR");
    text_ = std::string(folder ? folder : "/tmp") + "/tidegate-test-XXXXXX";
    const int file = ::mkstemp(text_.data());
    CHECK(file >= 0);
    if (FILE* const stream = ::fdopen(file, "w")) std::fclose(stream);
  }
  TemporaryPath(const TemporaryPath&) = delete;
  TemporaryPath& operator=(const TemporaryPath&) = delete;
  ~TemporaryPath() { std::remove(text_.c_str()); }

  const std::string& text() const { return text_; }
  std::string bytes() const {
    std::ifstream file(text_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& bytes) const { std::ofstream(text_, std::ios::binary) << bytes; }

 private:
  std::string text_;
};

template <class T>
LayerInfo recurrent(const std::string& name, const Config& config) {
  LayerInfo layer;
  layer.name = name;
  layer.dtype = sizeof(T) == 4 ? "F32" : "F64";
  layer.config = config;
  return layer;
}

template <class T>
std::vector<T> random_parameters(Random& random, const LayerInfo& layer) {
  return random.numbers<T>(parameter_count(layer), 0.5);
}

Config a_config(CellKind cell) {
  Config config;
  config.cell = cell;
  config.input_size = 3;
  config.hidden_size = 5;
  config.num_layers = 2;
  return config;
}

template <class T>
std::vector<T> run(const Model<T>& model, const std::vector<T>& x, Index steps) {
  const Config& config = model.config();
  std::vector<T> y(size_of(steps * config.output_size()));
  Inputs<T> inputs;
  inputs.x = view(x.data(), steps, 1, config.input_size);
  Outputs<T> outputs;
  outputs.y = view(y.data(), steps, 1, config.output_size());
  model.run(inputs, outputs, 1);
  return y;
}

template <class T>
void check_round_trip(const Config& config) {
  Random random(1);
  const LayerInfo layer = recurrent<T>("", config);
  const std::vector<T> flat = random_parameters<T>(random, layer);
  const TemporaryPath path;
  write_layers(path.text(), {{layer, flat.data()}});

  const Safetensors file(path.text());
  CHECK(file.name() == path.text());
  const std::shared_ptr<Model<T>> loaded = load_model<T>(file);
  CHECK(same(std::vector<T>(loaded->parameters(), loaded->parameters() + loaded->parameter_count()),
             flat));
  Model<T> wanted(config);
  wanted.write_parameters(0, flat.data(), wanted.parameter_count());
  const std::vector<T> x = random.numbers<T>(7 * config.input_size);
  CHECK(same(run(*loaded, x, 7), run(wanted, x, 7)));

  // The same file in memory.
  const std::string bytes = path.bytes();
  const std::shared_ptr<Model<T>> other = load_model<T>(Safetensors(bytes.data(), bytes.size()));
  CHECK(same(run(*other, x, 7), run(wanted, x, 7)));
}

// Writes and reads a network in each low precision.
void check_low_precisions(const Config& config) {
  Random random(5);
  LayerInfo layer = recurrent<float>("rnn", config);
  const std::vector<float> flat = random_parameters<float>(random, layer);
  const std::vector<float> x = random.numbers<float>(6 * config.input_size);
  for (const Precision precision :
       {Precision::bfloat16, Precision::bfloat16_dot, Precision::int8}) {
    layer.precision = precision;
    const QuantizedParameters wanted = quantize(parameters(layer), flat.data(), precision);
    const TemporaryPath path;
    write_layers(path.text(), {{layer, nullptr, &wanted}});
    const Safetensors file(path.text());
    const LayerInfo found = read_layers(file).at(0);
    CHECK(found.precision == precision && found.dtype == "F32");

    const QuantizedParameters read = read_quantized(file, found);
    CHECK(read.precision == precision && read.bfloat16 == wanted.bfloat16);
    CHECK(read.int8 == wanted.int8 && same(read.scales, wanted.scales));
    CHECK(same(read.vectors, wanted.vectors));
    std::vector<float> dequantised(flat.size()), wanted_flat(flat.size());
    read_parameters(file, found, dequantised.data());
    dequantize(parameters(layer), wanted, wanted_flat.data());
    CHECK(same(dequantised, wanted_flat));

    const std::shared_ptr<Model<float>> loaded = load_model<float>(file);
    CHECK(loaded->precision() == precision);
    CHECK(same(run(*loaded, x, 6), run(Model<float>(config, wanted), x, 6)));
  }
}

std::string refusal(const std::string& bytes) {
  return invalid_argument_of([&] { read_layers(Safetensors(bytes.data(), bytes.size())); });
}

}  // namespace

TEST(layers_come_back_as_they_were) {
  for (const CellKind cell : {CellKind::lstm, CellKind::gru, CellKind::mgu}) {
    Config config = a_config(cell);
    check_round_trip<float>(config);
    check_round_trip<double>(config);
    config.bidirectional = true;
    config.activations.gate = Activation(ActivationKind::hard_sigmoid, 1.0 / 6, 0.5);
    config.activations.clip = 1.5;
    if (cell == CellKind::lstm) {
      config.peephole = true;
      config.proj_size = 2;
      config.activations.output = ActivationKind::softsign;
      config.activations.input_forget = true;
    }
    if (cell == CellKind::gru) {
      config.reset_after = false;
      config.update_gate = UpdateGate::write;
    }
    check_round_trip<float>(config);
  }
}

TEST(layers_in_low_precision) {
  for (const CellKind cell : {CellKind::lstm, CellKind::gru, CellKind::mgu}) {
    Config config = a_config(cell);
    config.bidirectional = true;
    config.peephole = cell == CellKind::lstm;
    check_low_precisions(config);
  }
}

// Models and linear layers of a file have the precision of the file's layer, or that which the
// caller wants.
TEST(loading_in_a_precision) {
  Random random(4);
  const LayerInfo exact = recurrent<float>("exact", a_config(CellKind::lstm));
  const LayerInfo wide = recurrent<double>("wide", exact.config);
  LayerInfo half = recurrent<float>("half", exact.config);
  half.precision = Precision::bfloat16;
  LayerInfo head;
  head.name = "head";
  head.kind = LayerKind::linear;
  head.dtype = "F32";
  head.in_features = 5;
  head.out_features = 3;
  LayerInfo low_head = head;
  low_head.name = "low head";
  low_head.precision = Precision::int8;
  const std::vector<float> flat = random_parameters<float>(random, exact);
  const std::vector<double> wide_flat(flat.begin(), flat.end());
  const std::vector<float> head_flat = random_parameters<float>(random, head);
  const QuantizedParameters bfloat16 = quantize(parameters(half), flat.data(), Precision::bfloat16);
  const QuantizedParameters int8 =
      quantize(parameters(low_head), head_flat.data(), Precision::int8);
  const TemporaryPath path;
  write_layers(path.text(), {{exact, flat.data()},
                             {wide, wide_flat.data()},
                             {half, nullptr, &bfloat16},
                             {head, head_flat.data()},
                             {low_head, nullptr, &int8}});
  const Safetensors file(path.text());

  const std::vector<float> x = random.numbers<float>(4 * exact.config.input_size);
  CHECK(load_model<float>(file, "half")->precision() == Precision::bfloat16);
  CHECK(load_model<float>(file, "exact")->precision() == Precision::exact);
  CHECK(load_model<float>(file, "exact", Precision::exact)->precision() == Precision::exact);
  CHECK(load_model<double>(file, "wide", Precision::exact)->precision() == Precision::exact);
  const std::vector<float> wanted = run(Model<float>(exact.config, bfloat16), x, 4);
  for (const char* const name : {"exact", "half"}) {
    const auto loaded = load_model<float>(file, name, Precision::bfloat16);
    CHECK(loaded->precision() == Precision::bfloat16);
    CHECK(same(run(*loaded, x, 4), wanted));
  }
  const auto dot = load_model<float>(file, "half", Precision::bfloat16_dot);
  CHECK(dot->precision() == Precision::bfloat16_dot);
  CHECK(dot->quantized() && dot->quantized()->bfloat16 == bfloat16.bfloat16);
  CHECK(load_linear<float>(file, "low head")->precision() == Precision::int8);
  for (const char* const name : {"head", "low head"}) {
    const auto loaded = load_linear<float>(file, name, Precision::int8);
    CHECK(loaded->precision() == Precision::int8);
    CHECK(loaded->quantized() && loaded->quantized()->int8 == int8.int8);
    CHECK(loaded->quantized() && same(loaded->quantized()->scales, int8.scales));
    CHECK(loaded->quantized() && same(loaded->quantized()->vectors, int8.vectors));
  }

  const auto refused = [&](const auto& f) {
    return invalid_argument_of(f).substr(path.text().size());
  };
  CHECK(refused([&] { load_model<float>(file, "half", Precision::int8); }) ==
        ": layer \"half\": got a layer in bfloat16, wanted int8; load it without a precision, or "
        "save the layer of float32 from which it was made");
  CHECK(begins_with(refused([&] { load_linear<float>(file, "low head", Precision::exact); }),
                    ": layer \"low head\": got a layer in int8, wanted float32; load it"));
  CHECK(refused([&] { load_model<double>(file, "half"); }) ==
        ": layer \"half\": got F32 in the precision bfloat16, wanted F64");
  CHECK(refused([&] { load_model<double>(file, "wide", Precision::int8); }) ==
        ": layer \"wide\": got the precision int8 for a layer of double, wanted none; load it as a "
        "layer of float");
  CHECK(refused([&] { load_model<float>(file, "wide", Precision::int8); }) ==
        ": layer \"wide\": got F64, wanted F32; convert it to F32 before it is saved");
  CHECK(invalid_argument_of([&] { read_quantized(file, exact); }) ==
        "layer: got \"exact\", which is in F32, wanted one in low precision");

  std::vector<float> not_finite = flat;
  not_finite[0] = std::numeric_limits<float>::infinity();
  write_layers(path.text(), {{exact, not_finite.data()}});
  const Safetensors other(path.text());
  CHECK(load_model<float>(other)->precision() == Precision::exact);
  CHECK(begins_with(refused([&] { load_model<float>(other, "", Precision::int8); }),
                    ": tensor \"exact.weight_ih_l0\": got a number that is not finite in row 0"));
}

TEST(several_layers) {
  Random random(2);
  LayerInfo lstm = recurrent<float>("a.b", a_config(CellKind::lstm));
  lstm.batch_first = true;
  lstm.dropout = 0.25;
  const LayerInfo gru = recurrent<double>("a", a_config(CellKind::gru));
  LayerInfo linear;
  linear.name = "head";
  linear.kind = LayerKind::linear;
  linear.dtype = "F32";
  linear.in_features = 5;
  linear.out_features = 2;
  linear.bias = false;
  const std::vector<float> lstm_flat = random_parameters<float>(random, lstm);
  const std::vector<double> gru_flat = random_parameters<double>(random, gru);
  const std::vector<float> linear_flat = random_parameters<float>(random, linear);
  const TemporaryPath path;
  write_layers(path.text(),
               {{lstm, lstm_flat.data()}, {gru, gru_flat.data()}, {linear, linear_flat.data()}});

  const Safetensors file(path.text());
  const std::vector<LayerInfo> layers = read_layers(file);
  CHECK(layers.size() == 3);
  CHECK(layers[0].name == "a.b" && layers[0].batch_first && layers[0].dropout == 0.25);
  CHECK(layers[1].name == "a" && layers[1].config.cell == CellKind::gru &&
        layers[1].dtype == "F64");
  CHECK(layers[2].kind == LayerKind::linear && layers[2].in_features == 5);
  CHECK(layers[2].out_features == 2 && !layers[2].bias);
  std::vector<float> weight(10);
  read_parameters(file, layers[2], weight.data());
  CHECK(same(weight, linear_flat));
  CHECK(load_model<float>(file, "a.b")->config().cell == CellKind::lstm);
  CHECK(load_model<double>(file, "a")->config().cell == CellKind::gru);
  for (const auto& head : {load_linear<float>(file, "head"), load_linear<float>(file)}) {
    CHECK(head->in_features() == 5 && head->out_features() == 2 && !head->has_bias());
    CHECK(same(std::vector<float>(head->parameters(), head->parameters() + 10), linear_flat));
  }

  const auto refused = [&](const auto& f) {
    return invalid_argument_of(f).substr(path.text().size());
  };
  CHECK(refused([&] { load_model<float>(file); }) ==
        ": layer: wanted the name of one of the recurrent layers of this file: \"a.b\", \"a\"");
  CHECK(begins_with(refused([&] { load_model<float>(file, "head"); }), ": layer: got \"head\""));
  CHECK(refused([&] { load_model<float>(file, "a"); }) == ": layer \"a\": got F64, wanted F32");
  CHECK(refused([&] { load_model<double>(file, "a.b"); }) ==
        ": layer \"a.b\": got F32, wanted F64");
  CHECK(refused([&] { load_linear<float>(file, "a"); }) ==
        ": layer: got \"a\", wanted one of the Linear layers of this file: \"head\"");
  CHECK(refused([&] { load_linear<double>(file); }) == ": layer \"head\": got F32, wanted F64");

  for (const Tensor& tensor : file.tensors())
    CHECK(tensor.offset % (tensor.dtype == "F64" ? 8 : 4) == 0);
}

TEST(arrays_texts_and_layers_without_parameters) {
  Random random(3);
  const LayerInfo gru = recurrent<float>("rnn", a_config(CellKind::gru));
  const std::vector<float> flat = random_parameters<float>(random, gru);
  LayerInfo dropout;
  dropout.name = "drop";
  dropout.kind = LayerKind::dropout;
  dropout.p = 0.25;
  CHECK(parameters(dropout).empty() && parameter_count(dropout) == 0);
  const std::vector<std::int16_t> counts = {1, 2, 3};
  const std::vector<double> mean = {0.5, -0.5};
  const std::vector<EntryData> entries = {{Text{"note", "any \u00e9"}},
                                          {Tensor{"counts", "I16", {3, 1}}, counts.data()},
                                          {gru, flat.data()},
                                          {dropout},
                                          {Tensor{"rnn.mean", "F64", {2}}, mean.data()}};
  const TemporaryPath path;
  write_entries(path.text(), entries);

  const Safetensors file(path.text());
  const std::vector<Entry> read = read_entries(file);
  CHECK(read.size() == entries.size());
  for (std::size_t i = 0; i < read.size(); ++i) CHECK(read[i].index() == entries[i].entry.index());
  CHECK(std::get<Text>(read[0]).name == "note" && std::get<Text>(read[0]).value == "any \u00e9");
  CHECK(std::get<Tensor>(read[1]).shape == std::vector<Index>({3, 1}));
  CHECK(std::get<LayerInfo>(read[3]).p == 0.25);
  std::vector<double> values(2);
  file.read(std::get<Tensor>(read[4]).name, values.data(), 16);
  CHECK(same(values, mean));

  // read_layers() finds the layers among them.
  CHECK(read_layers(file).size() == 2);
  const std::shared_ptr<Model<float>> model = load_model<float>(file);
  CHECK(same(std::vector<float>(model->parameters(), model->parameters() + flat.size()), flat));
  const std::string refusal_of_drop = invalid_argument_of([&] { load_model<float>(file, "drop"); });
  CHECK(begins_with(refusal_of_drop.substr(path.text().size()), ": layer: got \"drop\""));
  for (const Tensor& tensor : file.tensors()) {
    const Index size = tensor.dtype == "F64" ? 8 : tensor.dtype == "F32" ? 4 : 2;
    CHECK(tensor.offset % size == 0);
  }

  const auto refused = [&](const std::vector<EntryData>& given) {
    return invalid_argument_of([&] { write_entries(path.text(), given); });
  };
  CHECK(refused({{Text{"a", ""}}, {Text{"a", ""}}}) == "entries: the name \"a\" is given twice");
  CHECK(refused({{Text{"", ""}}}) == "entries: got an empty name, wanted one for each");
  CHECK(refused({{gru, flat.data()}, {Tensor{"rnn.bias_hh_l0", "F64", {2}}, mean.data()}}) ==
        "entries: the name \"rnn.bias_hh_l0\" of an array is also that of a parameter of the layer "
        "\"rnn\"; rename one of them");
  dropout.p = 1.5;
  CHECK(begins_with(refused({{dropout}}), "layer \"drop\": p: got 1.5"));
}

TEST(any_tensors_and_metadata) {
  const std::vector<std::uint16_t> halves = {1, 2, 3, 4, 5, 6};
  const std::uint8_t truth = 1;
  const Metadata metadata = {{"b", "x\ny \u00e9"}, {"a", ""}};
  const TemporaryPath path;
  write_safetensors(path.text(),
                    {{{"h", "BF16", {2, 3}}, halves.data()},
                     {{"none", "I64", {0, 4}}, nullptr},
                     {{"scalar", "BOOL", {}}, &truth}},
                    metadata);
  const Safetensors file(path.text());
  CHECK(file.metadata() == metadata);
  CHECK(file.tensors().size() == 3);
  const Tensor* const tensor = file.find("h");
  CHECK(tensor && tensor->dtype == "BF16" && tensor->shape == std::vector<Index>({2, 3}));
  CHECK(tensor && tensor->bytes == 12);
  CHECK(file.find("none") && file.find("none")->bytes == 0);
  CHECK(file.find("nothing") == nullptr);
  std::vector<std::uint16_t> read(6);
  file.read("h", read.data(), 12);
  CHECK(read == halves);
  file.read("none", nullptr, 0);

  CHECK(invalid_argument_of([&] { file.read("h", read.data(), 11); }) ==
        "size: got 11, wanted the 12 bytes of \"h\"");
  CHECK(!invalid_argument_of([&] { file.read("nothing", read.data(), 12); }).empty());

  Safetensors moved(path.text());
  moved = Safetensors(path.text());
  const Safetensors last(std::move(moved));
  CHECK(last.tensors().size() == 3);
}

TEST(what_cannot_be_written) {
  const TemporaryPath path;
  path.write("before");
  const float value = 1;
  const auto refused = [&](const std::vector<TensorData>& tensors, const Metadata& metadata) {
    const std::string message =
        invalid_argument_of([&] { write_safetensors(path.text(), tensors, metadata); });
    CHECK(path.bytes() == "before");
    return message;
  };
  CHECK(refused({{{"a", "F32", {1}}, &value}, {{"a", "F32", {1}}, &value}}, {}) ==
        "the name \"a\" is given twice");
  CHECK(refused({{{"__metadata__", "F32", {1}}, &value}}, {}) ==
        "the name \"__metadata__\" is reserved by the safetensors format; choose another one");
  CHECK(!refused({{{"a", "F99", {1}}, &value}}, {}).empty());
  CHECK(!refused({{{"a", "F32", {-1}}, &value}}, {}).empty());
  CHECK(!refused({{{"a", "F32", {Index{1} << 62, 8}}, &value}}, {}).empty());
  CHECK(!refused({{{"a", "F32", {0, Index{1} << 62, 8}}, &value}}, {}).empty());
  CHECK(!refused({{{"a", "F32", {Index{1} << 62, 8, 0}}, &value}}, {}).empty());
  CHECK(!refused({{{"\xff", "F32", {1}}, &value}}, {}).empty());
  CHECK(!refused({}, {{"a", ""}, {"a", ""}}).empty());
  CHECK(!refused({}, {{"a", std::string(size_of(kMaxSafetensorsHeader), ' ')}}).empty());

  const LayerInfo gru = recurrent<float>("", a_config(CellKind::gru));
  const std::vector<float> flat(1000);
  CHECK(!invalid_argument_of([&] { write_layers(path.text(), {}); }).empty());
  CHECK(!invalid_argument_of([&] {
           write_layers(path.text(), {{gru, flat.data()}, {gru, flat.data()}});
         }).empty());
  const auto refused_layer = [&](const auto& change) {
    LayerInfo layer = recurrent<float>("rnn", a_config(CellKind::gru));
    change(layer);
    return invalid_argument_of([&] { write_layers(path.text(), {{layer, flat.data()}}); });
  };
  CHECK(begins_with(refused_layer([](LayerInfo& l) {
                      l.config.cell = CellKind::lstm;
                      l.config.reset_after = false;
                    }),
                    "layer \"rnn\": reset_after: an LSTM has no such option"));
  CHECK(refused_layer([](LayerInfo& l) { l.config.hidden_size = 0; }) ==
        "layer \"rnn\": hidden_size: got 0, wanted an integer >= 1");
  CHECK(begins_with(refused_layer([](LayerInfo& l) { l.config.proj_size = 2; }),
                    "layer \"rnn\": proj_size: a GRU has no such option"));
  CHECK(
      begins_with(refused_layer([](LayerInfo& l) { l.dropout = 1.5; }), "layer \"rnn\": dropout"));
  CHECK(refused_layer([](LayerInfo& l) { l.config.input_size = Index{1} << 62; }) ==
        "layer \"rnn\": the sizes overflow");
  CHECK(begins_with(refused_layer([](LayerInfo& l) { l.dtype = "F16"; }), "layer \"rnn\": dtype"));
  CHECK(refused_layer([](LayerInfo& l) { l.precision = Precision::int8; }) ==
        "layer \"rnn\": parameters: got some in float32, wanted the layer's precision, int8");

  const QuantizedParameters good = quantize(parameters(gru), flat.data(), Precision::int8);
  const auto refused_in_int8 = [&](const auto& change) {
    LayerInfo layer = recurrent<float>("rnn", a_config(CellKind::gru));
    layer.precision = Precision::int8;
    QuantizedParameters quantized = good;
    change(layer, quantized);
    return invalid_argument_of([&] { write_layers(path.text(), {{layer, nullptr, &quantized}}); });
  };
  CHECK(refused_in_int8([](LayerInfo& l, QuantizedParameters&) { l.dtype = "F64"; }) ==
        "layer \"rnn\": dtype: got \"F64\", wanted F32 in low precision");
  CHECK(refused_in_int8(
            [](LayerInfo& l, QuantizedParameters&) { l.precision = Precision::bfloat16; }) ==
        "layer \"rnn\": parameters: got some in int8, wanted the layer's precision, bfloat16");
  CHECK(begins_with(refused_in_int8([](LayerInfo&, QuantizedParameters& q) { q.scales[0] = 0; }),
                    "layer \"rnn\": weight_ih_l0: got the scale 0"));
  CHECK(begins_with(refused_in_int8([](LayerInfo&, QuantizedParameters& q) { q.int8.pop_back(); }),
                    "layer \"rnn\": int8: got "));
  CHECK(path.bytes() == "before");
}

TEST(what_the_system_refuses_names_the_path) {
  const auto code_of = [](const auto& f) {
    try {
      f();
    } catch (const std::system_error& error) {
      CHECK(std::string(error.what()).find("/no/such/folder/f") != std::string::npos);
      return error.code().value();
    }
    return 0;
  };
  CHECK(code_of([] { Safetensors("/no/such/folder/f"); }) == ENOENT);
  CHECK(code_of([] { write_safetensors("/no/such/folder/f", {}, {}); }) == ENOENT);
}

TEST(a_file_that_shrinks_while_it_is_read) {
  const std::string bytes = test::layers_file_bytes();
  const TemporaryPath path;
  path.write(bytes);
  const Safetensors file(path.text());
  path.write(bytes.substr(0, bytes.size() - 1));
  CHECK(invalid_argument_of([&] { load_model<float>(file); }).empty());
  float bias;
  CHECK(invalid_argument_of([&] { file.read("head.bias", &bias, 4); }) ==
        path.text() + ": the file has become shorter while it was read");
}

TEST(a_file_in_low_precision_composed_by_hand) {
  const std::string bytes = test::low_precision_file_bytes();
  const Safetensors file(bytes.data(), bytes.size());
  const std::shared_ptr<Linear<float>> head = load_linear<float>(file);
  std::vector<float> parameters(4);
  head->read_parameters(parameters.data());
  CHECK(same(parameters, {0.74609375f, 0.74609375f, 0.74609375f, 0}));  // the bits 0x3f3f
  CHECK(load_model<float>(file)->precision() == Precision::int8);
}

TEST(memory_is_read_nowhere_but_within) {
  for (const std::string& bytes : {test::layers_file_bytes(), test::low_precision_file_bytes()}) {
    CHECK(refusal(bytes).empty());
    // Memory of exactly this size, so that a sanitizer detects reads beyond.
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      const std::vector<char> part(bytes.begin(),
                                   bytes.begin() + static_cast<std::ptrdiff_t>(size));
      CHECK(!invalid_argument_of([&] {
               read_layers(Safetensors(part.empty() ? "" : part.data(), size, "part"));
             }).empty());
    }
  }
  CHECK(begins_with(invalid_argument_of([] { Safetensors(nullptr, 0); }), "memory: "));
}

TEST(a_file_of_too_many_layers_is_soon_refused) {
  // Many layers that each claim all tensors: the work must not grow as the product of their
  // numbers.
  test::FileOfTensors file;
  std::string metadata = R"({"tidegate.format": "1")";
  constexpr int kMany = 20000;
  for (int i = 0; i < kMany; ++i) {
    metadata += ", \"tidegate.layer." + std::to_string(i) +
                R"(": "{\"kind\": \"GRU\", \"input_size\": 1, \"hidden_size\": 1, )"
                R"(\"num_layers\": )" +
                std::to_string(kMany) + "}\"";
  }
  file.metadata(metadata + "}");
  for (int i = 0; i < kMany; ++i) file.tensor("0." + std::to_string(i), "F32", "[]", 4);
  CHECK(!refusal(file.bytes()).empty());
}
