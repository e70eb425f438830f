// Makes each allocation of a call fail in turn: the call throws std::bad_alloc, nothing leaks, no
// file remains, existing objects are unchanged, and the same call succeeds afterwards.
#include <dirent.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "check.h"
#include "tidegate/tidegate.h"

namespace {

std::atomic<long> live{0};          // allocated blocks of all threads
thread_local bool counted = false;  // whether this thread's allocations are counted
thread_local long countdown = 0;    // how many more allocations succeed

void* take(std::size_t size, std::size_t alignment) {
  if (counted && countdown-- <= 0) return nullptr;
  const std::size_t whole = (size + alignment - 1) / alignment * alignment;
  void* const block = std::aligned_alloc(alignment, whole > 0 ? whole : alignment);
  if (block != nullptr) ++live;
  return block;
}

void* take_or_throw(std::size_t size, std::size_t alignment) {
  void* const block = take(size, alignment);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

void give_back(void* block) noexcept {
  if (block == nullptr) return;
  --live;
  std::free(block);
}

constexpr std::size_t kDefault = __STDCPP_DEFAULT_NEW_ALIGNMENT__;
std::size_t value_of(std::align_val_t alignment) { return static_cast<std::size_t>(alignment); }

}  // namespace

void* operator new(std::size_t size) { return take_or_throw(size, kDefault); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return take_or_throw(size, value_of(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return take(size, kDefault);
}
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return take(size, value_of(alignment));
}
void operator delete(void* block) noexcept { give_back(block); }
void operator delete(void* block, std::size_t) noexcept { give_back(block); }
void operator delete(void* block, std::align_val_t) noexcept { give_back(block); }
void operator delete(void* block, std::size_t, std::align_val_t) noexcept { give_back(block); }

namespace {

using namespace tidegate;

constexpr CellKind kCellKinds[] = {CellKind::lstm, CellKind::gru, CellKind::mgu};

Config network(CellKind cell) {
  Config config;
  config.cell = cell;
  config.input_size = 5;
  config.hidden_size = 20;
  config.num_layers = 2;
  return config;
}

std::shared_ptr<Model<float>> made(const Config& config) {
  auto model = std::make_shared<Model<float>>(config);
  std::vector<float> values(static_cast<std::size_t>(model->parameter_count()));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = 0.01f * static_cast<float>(static_cast<int>(i % 41) - 20);
  model->write_parameters(0, values.data(), model->parameter_count());
  return model;
}

// The arrays of a call.
struct Arrays {
  static constexpr Index kSteps = 3, kBatch = 4;

  explicit Arrays(const Config& config)
      : x(kSteps * kBatch * config.input_size, 0.5f),
        y(kSteps * kBatch * config.output_size()),
        dx(x.size()),
        dparameters(static_cast<std::size_t>(parameter_count(config))) {
    inputs.x = view(static_cast<const float*>(x.data()), kSteps, kBatch, config.input_size);
    inputs.lengths = lengths;
    outputs.y = view(y.data(), kSteps, kBatch, config.output_size());
    output_gradients.y =
        view(static_cast<const float*>(y.data()), kSteps, kBatch, config.output_size());
    input_gradients.x = view(dx.data(), kSteps, kBatch, config.input_size);
    input_gradients.parameters = dparameters.data();
  }

  const Index lengths[kBatch] = {2, 3, 1, 0};
  std::vector<float> x, y, dx, dparameters;
  Inputs<float> inputs;
  Outputs<float> outputs;
  OutputGradients<float> output_gradients;
  InputGradients<float> input_gradients;
};

// Runs call() with each of its allocations failing in turn, until it succeeds. Checks `unchanged`
// after each failure; `prepare` undoes the effects of an earlier call before the next.
void exhaust(
    const char* name, const std::function<void()>& call,
    const std::function<void()>& prepare = [] {},
    const std::function<bool()>& unchanged = [] { return true; }) {
  constexpr long kMost = 10000;
  long failures = 0;
  for (bool failed = true; failed && failures < kMost;) {
    prepare();
    const long before = live;
    failed = false;
    countdown = failures;
    counted = true;
    try {
      call();
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    counted = false;
    // A call may succeed although an allocation fails, for example with fewer threads.
    failed = failed || countdown < 0;
    if (!failed) break;
    if (live != before) {
      std::printf("  %s: allocation %ld fails, %ld blocks leak\n", name, failures, live - before);
      CHECK(live == before);
    }
    CHECK(unchanged());
    ++failures;
  }
  CHECK(failures > 0);
  CHECK(failures < kMost);
}

// A temporary folder, which must be empty at the end.
class Folder {
 public:
  Folder() {
    const char* const root = std::getenv("TMPDIR");
    path_ = std::string(root != nullptr ? root : "/tmp") + "/tidegate-test-XXXXXX";
    CHECK(mkdtemp(path_.data()) != nullptr);
  }
  ~Folder() { rmdir(path_.c_str()); }

  std::string file() const { return path_ + "/layer.safetensors"; }
  void remove_file() const { unlink(file().c_str()); }

  int entries() const {
    int count = 0;
    DIR* const folder = opendir(path_.c_str());
    if (folder == nullptr) return -1;
    while (const dirent* const entry = readdir(folder))
      count += std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0;
    closedir(folder);
    return count;
  }

 private:
  std::string path_;
};

}  // namespace

TEST(models) {
  for (const CellKind cell : kCellKinds)
    exhaust("Model", [config = network(cell)] { Model<float> model(config); });
}

// For each network, the first call, which packs the weights, and a later one.
TEST(running) {
  for (const CellKind cell : kCellKinds) {
    const Config config = network(cell);
    Arrays arrays(config);
    std::shared_ptr<Model<float>> model;
    exhaust("first run", [&] {
      const auto fresh = std::make_shared<Model<float>>(config);
      fresh->run(arrays.inputs, arrays.outputs, 1);
    });
    model = made(config);
    model->run(arrays.inputs, arrays.outputs, 1);
    const std::vector<float> wanted = arrays.y;
    exhaust("run", [&] { model->run(arrays.inputs, arrays.outputs, 1); });
    CHECK(arrays.y == wanted);
  }
}

TEST(training) {
  for (const CellKind cell : kCellKinds) {
    const Config config = network(cell);
    Arrays arrays(config);
    exhaust("forward and backward", [&] {
      const auto model = std::make_shared<Model<float>>(config);
      const auto tape = model->record(arrays.inputs, arrays.outputs, 1);
      tape->backward(arrays.output_gradients, arrays.input_gradients, 1);
    });
    const auto model = made(config);
    model->record(arrays.inputs, arrays.outputs, 1);  // the weights are packed
    exhaust("forward", [&] { model->record(arrays.inputs, arrays.outputs, 1); });
    const auto tape = model->record(arrays.inputs, arrays.outputs, 1);
    tape->backward(arrays.output_gradients, arrays.input_gradients, 1);
    const std::vector<float> wanted = arrays.dparameters;
    exhaust("backward",
            [&] { tape->backward(arrays.output_gradients, arrays.input_gradients, 1); });
    CHECK(arrays.dparameters == wanted);
  }
}

TEST(streams) {
  const Config config = network(CellKind::lstm);
  Arrays arrays(config);
  exhaust("Stream", [&] {
    const auto model = std::make_shared<Model<float>>(config);
    Stream<float> stream(model, 3);
  });
  const auto model = made(config);
  std::unique_ptr<Stream<float>> stream;
  std::vector<float> before;
  const auto state = [&] {
    std::vector<float> all;
    for (Index row = 0; row < stream->batch(); ++row) {
      all.insert(all.end(), stream->h(1, row), stream->h(1, row) + config.hidden_size);
      all.insert(all.end(), stream->c(0, row), stream->c(0, row) + config.hidden_size);
    }
    return all;
  };
  const auto prepare = [&] {
    stream = std::make_unique<Stream<float>>(model, Arrays::kBatch);
    stream->run(arrays.inputs.x, arrays.outputs.y, 1);
    before = state();
  };
  const auto unchanged = [&] { return state() == before; };
  exhaust("run", [&] { stream->run(arrays.inputs.x, arrays.outputs.y, 1); }, prepare, unchanged);
  const auto same_batch = [&] { return stream->batch() == Arrays::kBatch && unchanged(); };
  exhaust("resize", [&] { stream->resize(7); }, prepare, same_batch);
}

TEST(files) {
  const Folder folder;
  LayerInfo info;
  info.dtype = "F32";
  info.config = network(CellKind::gru);
  const std::vector<float> flat(static_cast<std::size_t>(parameter_count(info)), 0.25f);
  const auto no_file = [&] { return folder.entries() == 0; };
  exhaust(
      "write_layers", [&] { write_layers(folder.file(), {{info, flat.data()}}); },
      [&] { folder.remove_file(); }, no_file);
  CHECK(folder.entries() == 1);
  // The file exists, and is replaced.
  const auto one_file = [&] { return folder.entries() == 1; };
  exhaust(
      "write_layers again", [&] { write_layers(folder.file(), {{info, flat.data()}}); }, [] {},
      one_file);
  CHECK(folder.entries() == 1);
  exhaust("load_model", [&] {
    const Safetensors file(folder.file());
    const auto model = load_model<float>(file);
  });
  folder.remove_file();

  LayerInfo head;
  head.kind = LayerKind::linear;
  head.dtype = "F32";
  head.in_features = 5;
  head.out_features = 2;
  write_layers(folder.file(), {{head, flat.data()}});
  exhaust("load_linear", [&] {
    const Safetensors file(folder.file());
    const auto linear = load_linear<float>(file);
  });
  folder.remove_file();
}

TEST(files_in_low_precision) {
  const Folder folder;
  LayerInfo exact;
  exact.dtype = "F32";
  exact.config = network(CellKind::lstm);
  const std::vector<float> flat(static_cast<std::size_t>(parameter_count(exact)), 0.25f);
  for (const Precision precision :
       {Precision::bfloat16, Precision::bfloat16_dot, Precision::int8}) {
    LayerInfo low = exact;
    low.precision = precision;
    const QuantizedParameters quantized = quantize(parameters(low), flat.data(), precision);
    exhaust(
        "write_layers", [&] { write_layers(folder.file(), {{low, nullptr, &quantized}}); },
        [&] { folder.remove_file(); }, [&] { return folder.entries() == 0; });
    const auto load = [&] {
      const Safetensors file(folder.file());
      const auto model = load_model<float>(file, "", precision);
    };
    exhaust("load_model", load);
    write_layers(folder.file(), {{exact, flat.data()}});
    exhaust("load_model of float32", load);
    folder.remove_file();
  }
}
