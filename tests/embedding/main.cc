// Voice activity in a live recording: loads a model once, then feeds it frame by frame, as an audio
// callback would. C++17, and no Python.
//
//   vad MODEL FEATURES
//
// MODEL holds an LSTM "lstm" and a Linear "head" (written by tidegate.save). FEATURES are float32,
// one row of the LSTM's input size for each frame of 32 ms; they are repeated until a minute is
// full. Prints the probability of speech in each frame, and to standard error how long a step took.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tidegate/functions.h"
#include "tidegate/linear.h"
#include "tidegate/model.h"
#include "tidegate/safetensors.h"
#include "tidegate/settings.h"

namespace {

constexpr double kFrameSeconds = 0.032;
constexpr int kFrames = static_cast<int>(60 / kFrameSeconds);

// The model and its state between frames.
class VoiceActivity {
 public:
  explicit VoiceActivity(const tidegate::Safetensors& file)
      : stream_(tidegate::load_model<float>(file, "lstm"), 1),
        head_(tidegate::load_linear<float>(file, "head")),
        features_(stream_.config().input_size),
        units_(stream_.config().state_size()),
        h_(static_cast<std::size_t>(units_)) {
    if (head_->in_features() != units_ || head_->out_features() != 1)
      throw std::runtime_error(file.name() + ": the head does not fit the LSTM");
  }

  tidegate::Index features() const { return features_; }

  // What the callback does: it neither allocates nor waits, and makes no system call. The numbers
  // beside the arrays are strides, the distances of rows in elements; there is one row of each.
  float operator()(const float* features) noexcept {
    stream_.step(features, features_, h_.data(), units_);
    for (float& h : h_) h = std::max(h, 0.0f);
    float logit = 0;
    head_->run(h_.data(), units_, &logit, 1, /*rows=*/1, /*num_threads=*/1);
    return tidegate::sigmoid(logit);
  }

 private:
  tidegate::Stream<float> stream_;
  std::shared_ptr<const tidegate::Linear<float>> head_;
  tidegate::Index features_, units_;
  std::vector<float> h_;
};

std::vector<float> read_floats(const char* path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  std::vector<float> values(static_cast<std::size_t>(file.tellg()) / sizeof(float));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(values.data()),
            static_cast<std::streamsize>(values.size() * sizeof(float)));
  return values;
}

void run(const char* model, const char* features_path) {
  VoiceActivity vad{tidegate::Safetensors(model)};
  const std::vector<float> features = read_floats(features_path);
  const auto size = static_cast<std::size_t>(vad.features());
  const std::size_t rows = features.size() / size;
  if (rows == 0) throw std::runtime_error("no whole frame of features");

  using Clock = std::chrono::steady_clock;
  std::vector<float> probabilities(kFrames);
  std::vector<double> microseconds(kFrames);
  for (std::size_t frame = 0; frame < kFrames; ++frame) {
    const Clock::time_point begin = Clock::now();
    probabilities[frame] = vad(features.data() + frame % rows * size);
    microseconds[frame] = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
  }
  for (const float probability : probabilities)
    std::printf("%.9g\n", static_cast<double>(probability));
  std::sort(microseconds.begin(), microseconds.end());
  std::fprintf(stderr,
               "tidegate %s, %s: %d frames; a step takes %.1f us, in 1 of 100 more than %.1f us\n",
               tidegate::version().c_str(), tidegate::isa().c_str(), kFrames,
               microseconds[kFrames / 2], microseconds[kFrames * 99 / 100]);
}

}  // namespace

int main(int argument_count, char** arguments) {
  if (argument_count != 3) {
    std::fprintf(stderr, "usage: %s MODEL FEATURES\n", arguments[0]);
    return 2;
  }
  try {
    run(arguments[1], arguments[2]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", arguments[0], error.what());
    return 1;
  }
}
