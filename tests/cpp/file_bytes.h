// Safetensors files in memory for tests, valid or not: any header with any data.
#ifndef TIDEGATE_TESTS_FILE_BYTES_H_
#define TIDEGATE_TESTS_FILE_BYTES_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace tidegate::test {

inline std::string file_bytes(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + data;
}

// A file composed of tensors, whose data are zeros.
class FileOfZeros {
 public:
  FileOfZeros& metadata(const std::string& json) {
    header_ += comma() + "\"__metadata__\": " + json;
    return *this;
  }
  FileOfZeros& tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                      std::size_t bytes) {
    header_ += comma() + "\"" + name + "\": {\"dtype\": \"" + dtype + "\", \"shape\": " + shape +
               ", \"data_offsets\": [" + std::to_string(size_) + ", " +
               std::to_string(size_ + bytes) + "]}";
    size_ += bytes;
    return *this;
  }
  std::string bytes() const { return file_bytes(header_ + "}", std::string(size_, '\0')); }

 private:
  std::string comma() const { return header_ == "{" ? "" : ", "; }

  std::string header_ = "{";
  std::size_t size_ = 0;
};

// A GRU "rnn" of 2 inputs and 3 units, and a Linear "head" of 3 to 1.
inline std::string layers_file_bytes() {
  return FileOfZeros()
      .metadata(
          R"({"tidegate.format": "1", )"
          R"("tidegate.layer.rnn": "{\"kind\": \"GRU\", \"input_size\": 2, \"hidden_size\": 3}", )"
          R"("tidegate.layer.head": "{\"kind\": \"Linear\", \"in_features\": 3, )"
          R"(\"out_features\": 1}"})")
      .tensor("rnn.weight_ih_l0", "F32", "[9, 2]", 72)
      .tensor("rnn.weight_hh_l0", "F32", "[9, 3]", 108)
      .tensor("rnn.bias_ih_l0", "F32", "[9]", 36)
      .tensor("rnn.bias_hh_l0", "F32", "[9]", 36)
      .tensor("head.weight", "F32", "[1, 3]", 12)
      .tensor("head.bias", "F32", "[1]", 4)
      .bytes();
}

}  // namespace tidegate::test

#endif  // TIDEGATE_TESTS_FILE_BYTES_H_
