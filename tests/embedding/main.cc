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
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

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
        h_(static_cast<std::size_t>(stream_.config().state_size())),
        weight_(h_.size()) {
    file.read("head.weight", weight_.data(), weight_.size() * sizeof(float));
    file.read("head.bias", &bias_, sizeof bias_);
  }

  tidegate::Index features() const { return stream_.config().input_size; }

  // What the callback does: it neither allocates nor locks nor waits.
  float operator()(const float* features) noexcept {
    stream_.step(features, 0, h_.data(), 0);
    float logit = bias_;
    for (std::size_t i = 0; i < h_.size(); ++i) logit += weight_[i] * std::max(h_[i], 0.0f);
    return 1 / (1 + std::exp(-logit));
  }

 private:
  tidegate::Stream<float> stream_;
  std::vector<float> h_, weight_;
  float bias_ = 0;
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
