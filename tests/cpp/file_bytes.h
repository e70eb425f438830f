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

// A file composed of tensors, whose data are zeros, or another byte that is repeated.
class FileOfTensors {
 public:
  FileOfTensors& metadata(const std::string& json) {
    header_ += comma() + "\"__metadata__\": " + json;
    return *this;
  }
  FileOfTensors& tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                        std::size_t bytes, char byte = '\0') {
    header_ += comma() + "\"" + name + "\": {\"dtype\": \"" + dtype + "\", \"shape\": " + shape +
               ", \"data_offsets\": [" + std::to_string(data_.size()) + ", " +
               std::to_string(data_.size() + bytes) + "]}";
    data_.append(bytes, byte);
    return *this;
  }
  std::string bytes() const { return file_bytes(header_ + "}", data_); }

 private:
  std::string comma() const { return header_ == "{" ? "" : ", "; }

  std::string header_ = "{";
  std::string data_;
};

// A GRU "rnn" of 2 inputs and 3 units, and a Linear "head" of 3 to 1.
inline std::string layers_file_bytes() {
  return FileOfTensors()
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

// In low precision: an MGU "rnn" of 2 inputs and 3 units in int8, and a Linear "head" of 3 to 1 in
// bfloat16.
inline std::string low_precision_file_bytes() {
  constexpr char kByte = '\x3f';  // in any dtype, a positive number of ordinary magnitude
  return FileOfTensors()
      .metadata(
          R"({"tidegate.format": "1", )"
          R"("tidegate.layer.rnn": "{\"kind\": \"MGU\", \"input_size\": 2, \"hidden_size\": 3, )"
          R"(\"bias\": false, \"precision\": \"int8\"}", )"
          R"("tidegate.layer.head": "{\"kind\": \"Linear\", \"in_features\": 3, )"
          R"(\"out_features\": 1, \"precision\": \"bfloat16\"}"})")
      .tensor("rnn.weight_ih_l0_scale", "F32", "[6]", 24, kByte)
      .tensor("rnn.weight_hh_l0_scale", "F32", "[6]", 24, kByte)
      .tensor("head.bias", "F32", "[1]", 4)
      .tensor("head.weight", "BF16", "[1, 3]", 6, kByte)
      .tensor("rnn.weight_ih_l0", "I8", "[6, 2]", 12, kByte)
      .tensor("rnn.weight_hh_l0", "I8", "[6, 3]", 18, kByte)
      .bytes();
}

}  // namespace tidegate::test

#endif  // TIDEGATE_TESTS_FILE_BYTES_H_
