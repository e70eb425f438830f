// A file descriptor that is closed when its owner is destroyed.
#ifndef TIDEGATE_CORE_DESCRIPTOR_H_
#define TIDEGATE_CORE_DESCRIPTOR_H_

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace tidegate {

class Descriptor {
 public:
  Descriptor() = default;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }

  // Negative, with the reason in errno, if the file could not be opened.
  int number() const { return number_; }
  void open(const char* path, int flags, mode_t mode = 0) {
    do {
      number_ = ::open(path, flags | O_CLOEXEC, mode);
    } while (number_ < 0 && errno == EINTR);
  }
  // Returns whether all writes have reached the file.
  bool close() { return ::close(std::exchange(number_, -1)) == 0; }

 private:
  int number_ = -1;
};

}  // namespace tidegate

#endif  // TIDEGATE_CORE_DESCRIPTOR_H_
