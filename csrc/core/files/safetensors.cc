// Files of tensors: reading and checking the header, reading data on demand, and writing files.
#include "tidegate/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>

#include "core/descriptor.h"
#include "core/files/json.h"
#include "core/files/tensor_dtype.h"
#include "core/interruption.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the data of files are little-endian and are copied without conversion"
#endif

namespace tidegate {
namespace {

constexpr Index kLengthBytes = 8;  // of the header's length, before the header
constexpr const char* kMetadata = "__metadata__";
// Bytes for one system call. Between two, the call may be interrupted.
constexpr Index kPiece = Index{16} << 20;

struct DtypeBits {
  std::string_view name;
  Index bits;  // of an element
};
constexpr DtypeBits kDtypes[] = {
    {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},     {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F16", 16}, {"BF16", 16},   {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},
    {"I32", 32}, {"U32", 32},    {"F32", 32},        {"I64", 64},    {"U64", 64},
    {"F64", 64}, {"C64", 64},
};

// Other formats, for messages: what a failed download leaves, or a wrong name leads to.
struct OtherFormat {
  std::string_view beginning;
  std::string_view what;
};
using namespace std::string_view_literals;
constexpr OtherFormat kOtherFormats[] = {
    {"version https://git-lfs"sv, "a Git LFS pointer: get the file itself with git lfs pull"sv},
    {"<"sv, "a web page or XML: download the file itself"sv},
    {"PK\x03\x04"sv, "a zip archive"sv},
    {"\x1f\x8b"sv, "compressed by gzip: unpack it first"sv},
    {"\x89HDF\r\n\x1a\n"sv, "an HDF5 file"sv},
};

const DtypeBits* find_dtype(std::string_view dtype) {
  const auto* const found = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                         [&](DtypeBits known) { return known.name == dtype; });
  return found == std::end(kDtypes) ? nullptr : found;
}

// The bytes of a tensor. Throws std::invalid_argument if the dtype is unknown or the shape
// impossible. The product of the sizes must not overflow even if one of them is zero: a program
// that makes an array may multiply them in any order.
Index tensor_bytes(const Tensor& tensor) {
  const auto fail = [&](const std::string& reason) {
    throw std::invalid_argument("tensor " + quoted_name(tensor.name) + ": " + reason);
  };
  const DtypeBits* const dtype = find_dtype(tensor.dtype);
  if (dtype == nullptr) fail("dtype " + quoted_name(tensor.dtype) + " is not known");
  Index bits = dtype->bits;
  bool overflow = false, empty = false;
  for (const Index size : tensor.shape) {
    if (size < 0) fail("shape " + size_list(tensor.shape) + " has a negative size");
    empty = empty || size == 0;
    overflow = overflow || __builtin_mul_overflow(bits, std::max<Index>(size, 1), &bits);
  }
  if (overflow) fail("shape " + size_list(tensor.shape) + " overflows");
  if (empty) return 0;
  if (bits % 8 != 0)
    fail("shape " + size_list(tensor.shape) + " of " + tensor.dtype + " fills no whole bytes");
  return bits / 8;
}

[[noreturn]] void fail_system(int error, const std::string& path) {
  throw std::system_error(error, std::generic_category(), path);
}

void check_path(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos)
    throw std::invalid_argument("path: got " + quoted_name(path) + ", wanted the path of a file");
}

// Refuses what is not a regular file: reading a pipe might wait forever, and replacing a device
// would do harm.
void check_regular(const struct stat& status, const std::string& path) {
  if (S_ISDIR(status.st_mode)) fail_system(EISDIR, path);
  if (!S_ISREG(status.st_mode)) throw std::invalid_argument(as_utf8(path) + ": not a regular file");
}

}  // namespace

Index element_bits(std::string_view dtype) {
  const DtypeBits* const found = find_dtype(dtype);
  return found == nullptr ? 0 : found->bits;
}

struct Safetensors::Impl {
  explicit Impl(std::string name_of_file) : name(std::move(name_of_file)) {}

  std::string other_format() const;
  [[noreturn]] void fail(const std::string& reason) const {
    throw std::invalid_argument(as_utf8(name) + ": " + reason);
  }
  void open();
  void read_header();
  void read_metadata(JsonReader& json);
  void read_tensor(JsonReader& json, const std::string& key, Index data_begin);
  void check_data(Index data_begin);
  void copy(Index offset, void* to, Index count) const;

  const std::string name;
  Descriptor file;
  const std::byte* memory = nullptr;  // a file in memory; then `file` is not open
  Index size = 0;

  Metadata metadata;
  std::vector<Tensor> tensors;
  std::map<std::string_view, const Tensor*> index;
};

void Safetensors::Impl::open() {
  check_path(name);
  file.open(name.c_str(), O_RDONLY | O_NONBLOCK);  // a pipe would wait for its writer
  struct stat status;
  if (file.number() < 0 || ::fstat(file.number(), &status) != 0) fail_system(errno, name);
  check_regular(status, name);
  size = status.st_size;
}

void Safetensors::Impl::copy(Index offset, void* to, Index count) const {
  auto* bytes = static_cast<std::byte*>(to);
  if (memory != nullptr) {
    if (count > 0) std::memcpy(bytes, memory + offset, static_cast<std::size_t>(count));
    return;
  }
  Interruption interruption;
  while (count > 0 && !interruption.requested()) {
    const ssize_t got =
        ::pread(file.number(), bytes, static_cast<std::size_t>(std::min(count, kPiece)),
                static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_system(errno, name);
    if (got == 0) fail("the file has become shorter while it was read");
    bytes += got;
    offset += got;
    count -= got;
  }
  interruption.finish();
}

// The end of an error message: what the file is if it begins like another format, else empty.
std::string Safetensors::Impl::other_format() const {
  std::string beginning(static_cast<std::size_t>(std::min<Index>(size, 32)), '\0');
  copy(0, beginning.data(), static_cast<Index>(beginning.size()));
  for (const OtherFormat& known : kOtherFormats) {
    if (beginning.compare(0, known.beginning.size(), known.beginning) == 0)
      return "; it is " + std::string(known.what);
  }
  return "";
}

void Safetensors::Impl::read_header() {
  if (size < kLengthBytes)
    fail("got " + std::to_string(size) + " bytes, wanted a safetensors file, of at least 8");
  std::uint64_t length = 0;
  copy(0, &length, kLengthBytes);
  if (length > static_cast<std::uint64_t>(size - kLengthBytes)) {
    fail("the header's length, " + std::to_string(length) + ", reaches beyond the file's " +
         std::to_string(size) + " bytes" + other_format());
  }
  if (length > static_cast<std::uint64_t>(kMaxSafetensorsHeader)) {
    fail("the header's length, " + std::to_string(length) + ", is above the limit of " +
         std::to_string(kMaxSafetensorsHeader));
  }
  std::string header(static_cast<std::size_t>(length), '\0');
  copy(kLengthBytes, header.data(), static_cast<Index>(length));
  const Index data_begin = kLengthBytes + static_cast<Index>(length);
  try {
    JsonReader json(header);
    json.object([&](const std::string& key) {
      if (key == kMetadata) {
        read_metadata(json);
      } else {
        read_tensor(json, key, data_begin);
      }
    });
    json.end();
  } catch (const std::invalid_argument& error) {
    fail("header: " + std::string(error.what()));
  }
  check_data(data_begin);
  for (const Tensor& tensor : tensors) index.emplace(tensor.name, &tensor);
}

void Safetensors::Impl::read_metadata(JsonReader& json) {
  json.object([&](const std::string& key) { metadata.emplace_back(key, json.string()); });
}

// Reads the entry of one tensor. Its data_offsets count from data_begin. `bytes` is set from them
// here, and compared with dtype and shape in check_data().
void Safetensors::Impl::read_tensor(JsonReader& json, const std::string& key, Index data_begin) {
  const auto size_of = [&] {
    const Index value = json.integer();
    if (value < 0) json.fail("got " + std::to_string(value) + ", wanted an integer >= 0");
    return value;
  };
  Tensor tensor;
  tensor.name = key;
  bool has_dtype = false, has_shape = false;
  std::vector<Index> offsets;
  json.object([&](const std::string& member) {
    if (member == "dtype") {
      tensor.dtype = json.string();
      has_dtype = true;
    } else if (member == "shape") {
      json.array([&] { tensor.shape.push_back(size_of()); });
      has_shape = true;
    } else if (member == "data_offsets") {
      json.array([&] {
        if (offsets.size() == 2) json.fail("wanted two offsets");
        offsets.push_back(size_of());
      });
    } else {
      json.fail("not a key of a tensor");
    }
  });
  if (!has_dtype) json.fail("\"dtype\" is missing");
  if (!has_shape) json.fail("\"shape\" is missing");
  if (offsets.size() != 2) json.fail("\"data_offsets\", two of them, are missing");
  const Index data_size = size - data_begin;
  if (offsets[0] > offsets[1] || offsets[1] > data_size) {
    json.fail("data_offsets " + size_list(offsets) + " do not lie in the " +
              std::to_string(data_size) + " bytes of data");
  }
  tensor.offset = data_begin + offsets[0];
  tensor.bytes = offsets[1] - offsets[0];
  tensors.push_back(std::move(tensor));
}

void Safetensors::Impl::check_data(Index data_begin) {
  // At the same offset, empty tensors come first; by name, so that the order is determined.
  std::sort(tensors.begin(), tensors.end(), [](const Tensor& a, const Tensor& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  Index end = data_begin;
  for (const Tensor& tensor : tensors) {
    Index wanted = 0;
    try {
      wanted = tensor_bytes(tensor);
    } catch (const std::invalid_argument& error) {
      fail(error.what());
    }
    const std::string where = "tensor " + quoted_name(tensor.name) + ": ";
    if (tensor.bytes != wanted) {
      fail(where + "data_offsets span " + std::to_string(tensor.bytes) + " bytes, wanted " +
           std::to_string(wanted) + " for " + tensor.dtype + " of shape " +
           size_list(tensor.shape));
    }
    if (tensor.offset < end) fail(where + "its data overlap those of another tensor");
    if (tensor.offset > end)
      fail(where + std::to_string(tensor.offset - end) +
           " bytes before its data belong to no tensor");
    end += tensor.bytes;
  }
  if (end < size)
    fail("the last " + std::to_string(size - end) + " bytes of data belong to no tensor");
}

Safetensors::Safetensors(const std::string& path) : impl_(std::make_unique<Impl>(path)) {
  impl_->open();
  impl_->read_header();
}

Safetensors::Safetensors(const void* data, std::size_t size, std::string name)
    : impl_(std::make_unique<Impl>(std::move(name))) {
  if (data == nullptr || size > static_cast<std::size_t>(PTRDIFF_MAX))
    impl_->fail("got no memory, or an impossible size");
  impl_->memory = static_cast<const std::byte*>(data);
  impl_->size = static_cast<Index>(size);
  impl_->read_header();
}

Safetensors::Safetensors(Safetensors&&) noexcept = default;
Safetensors& Safetensors::operator=(Safetensors&&) noexcept = default;
Safetensors::~Safetensors() = default;

const std::string& Safetensors::name() const { return impl_->name; }
const Metadata& Safetensors::metadata() const { return impl_->metadata; }
const std::vector<Tensor>& Safetensors::tensors() const { return impl_->tensors; }

const Tensor* Safetensors::find(const std::string& tensor) const {
  const auto found = impl_->index.find(tensor);
  return found == impl_->index.end() ? nullptr : found->second;
}

void Safetensors::read(const std::string& tensor, void* destination, std::size_t size) const {
  const Tensor* const found = find(tensor);
  if (found == nullptr) impl_->fail("there is no tensor " + quoted_name(tensor));
  if (size != static_cast<std::size_t>(found->bytes)) {
    throw std::invalid_argument("size: got " + std::to_string(size) + ", wanted the " +
                                std::to_string(found->bytes) + " bytes of " + quoted_name(tensor));
  }
  impl_->copy(found->offset, destination, found->bytes);
}

// ---- Writing ----

namespace {

// Writes a file under a temporary name beside its target, then renames it: after a crash or an
// error the target is the old file or the new one, never a part of it.
class Replacement {
 public:
  explicit Replacement(const std::string& path);
  Replacement(const Replacement&) = delete;
  Replacement& operator=(const Replacement&) = delete;
  ~Replacement() {
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
  }

  void write(const void* data, Index size);
  void commit();

 private:
  [[noreturn]] void fail() const { fail_system(errno, path_); }
  std::optional<struct stat> follow_links();
  void take_permissions(const struct stat& replaced) noexcept;
  void sync_folder() const noexcept;

  const std::string path_;  // as the caller gave it
  std::string target_;      // what its links lead to
  std::string folder_;      // of the target
  std::string temporary_;   // empty: no such file
  Descriptor file_;
};

Replacement::Replacement(const std::string& path) : path_(path), target_(path) {
  check_path(path);
  const std::optional<struct stat> replaced = follow_links();
  if (replaced) check_regular(*replaced, path_);
  folder_ = std::filesystem::path(target_).parent_path().string();
  if (folder_.empty()) folder_ = ".";
  // Not the target's name and a suffix, which might be too long. The time distinguishes the name
  // from those of earlier processes of the same number that were killed.
  static std::atomic<unsigned> count{0};
  const auto time = std::chrono::system_clock::now().time_since_epoch().count();
  std::string name = folder_ + "/.tidegate-" + std::to_string(::getpid()) + "-" +
                     std::to_string(time) + "-" + std::to_string(count++) + ".tmp";
  // Readable to the user alone until the permissions of the replaced file are set.
  file_.open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL, replaced ? 0600 : 0666);
  if (file_.number() < 0) fail();
  temporary_ = std::move(name);  // nothing below may throw: the destructor would not run
  if (replaced) take_permissions(*replaced);
}

// Replaces the target by what its links lead to, whether that exists or not. Returns the status of
// the file that exists there.
std::optional<struct stat> Replacement::follow_links() {
  constexpr int kMostLinks = 40;  // as in Linux
  for (int links = 0; links <= kMostLinks; ++links) {
    struct stat status;
    if (::lstat(target_.c_str(), &status) != 0) {
      if (errno != ENOENT) fail();
      return std::nullopt;
    }
    if (!S_ISLNK(status.st_mode)) return status;
    std::error_code error;
    const std::filesystem::path link = target_;
    target_ = (link.parent_path() / std::filesystem::read_symlink(link, error)).string();
    if (error) fail_system(error.value(), path_);
  }
  fail_system(ELOOP, path_);
}

// Some file systems have no permissions, so failures are ignored. Where the group cannot be kept,
// the new group gets at most the permissions of all others.
void Replacement::take_permissions(const struct stat& replaced) noexcept {
  constexpr auto kSameOwner = static_cast<uid_t>(-1);
  mode_t mode = replaced.st_mode & 0777;
  if (::fchown(file_.number(), kSameOwner, replaced.st_gid) != 0) mode &= 0707 | (mode & 0007) << 3;
  if (::fchmod(file_.number(), mode) != 0) errno = 0;
}

void Replacement::write(const void* data, Index size) {
  const auto* bytes = static_cast<const std::byte*>(data);
  Interruption interruption;
  while (size > 0 && !interruption.requested()) {
    const ssize_t written =
        ::write(file_.number(), bytes, static_cast<std::size_t>(std::min(size, kPiece)));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail();
    bytes += written;
    size -= written;
  }
  interruption.finish();
}

void Replacement::commit() {
  // The data first, then the name. Some file systems cannot be synchronised.
  if (::fsync(file_.number()) != 0 && errno != EINVAL && errno != ENOTSUP) fail();
  if (!file_.close() || ::rename(temporary_.c_str(), target_.c_str()) != 0) fail();
  temporary_.clear();
  sync_folder();
}

// Makes the new name survive a crash. The file is complete and in its place, so that a folder that
// cannot be synchronised, or not be read, is no error.
void Replacement::sync_folder() const noexcept {
  Descriptor folder;
  folder.open(folder_.c_str(), O_RDONLY | O_DIRECTORY);
  if (folder.number() >= 0 && ::fsync(folder.number()) != 0) errno = 0;
}

std::string header_of(const std::vector<TensorData>& tensors, const Metadata& metadata) {
  std::string header = "{";
  const auto key = [&](const std::string& name, std::set<std::string>& keys) {
    if (!keys.insert(name).second)
      throw std::invalid_argument("the name " + quoted_name(name) + " is given twice");
    header += (header.back() == '{' ? "" : ", ") + json_string(name) + ": ";
  };
  std::set<std::string> tensor_keys, metadata_keys;
  if (!metadata.empty()) {
    header += json_string(kMetadata) + ": {";
    for (const auto& [name, value] : metadata) {
      key(name, metadata_keys);
      header += json_string(value);
    }
    header += '}';
  }
  Index begin = 0;
  for (const TensorData& data : tensors) {
    const Tensor& tensor = data.tensor;
    if (tensor.name == kMetadata) {
      throw std::invalid_argument("the name " + quoted_name(tensor.name) +
                                  " is reserved by the safetensors format; choose another one");
    }
    const Index end = begin + tensor_bytes(tensor);
    key(tensor.name, tensor_keys);
    header += "{\"dtype\": " + json_string(tensor.dtype) + ", \"shape\": [";
    for (const Index size : tensor.shape)
      header += (header.back() == '[' ? "" : ", ") + std::to_string(size);
    header += "], \"data_offsets\": [" + std::to_string(begin) + ", " + std::to_string(end) + "]}";
    begin = end;
  }
  header += '}';
  // The data begin at a multiple of 8, for programs that map files into memory.
  header.append((8 - header.size() % 8) % 8, ' ');
  if (header.size() > static_cast<std::size_t>(kMaxSafetensorsHeader)) {
    throw std::invalid_argument("tensors: got a header of " + std::to_string(header.size()) +
                                " bytes, wanted at most " + std::to_string(kMaxSafetensorsHeader));
  }
  return header;
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<TensorData>& tensors,
                       const Metadata& metadata) {
  const std::string header = header_of(tensors, metadata);
  const std::uint64_t length = header.size();
  Replacement file(path);
  file.write(&length, kLengthBytes);
  file.write(header.data(), static_cast<Index>(header.size()));
  for (const TensorData& data : tensors) file.write(data.data, tensor_bytes(data.tensor));
  file.commit();
}

}  // namespace tidegate
