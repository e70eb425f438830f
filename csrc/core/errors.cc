// The texts of the library's exceptions.
#include "tidegate/errors.h"

#include <cstdio>

namespace tidegate {

OutOfMemory::OutOfMemory(const char* purpose, Index bytes) noexcept {
  if (bytes < 0) {
    std::snprintf(text_, sizeof text_, "%s would take more bytes than can be addressed", purpose);
  } else {
    constexpr double kGibibyte = 1024.0 * 1024 * 1024;
    std::snprintf(text_, sizeof text_,
                  "%s would take %lld bytes (%.4g GiB), more memory than the system provides",
                  purpose, static_cast<long long>(bytes), static_cast<double>(bytes) / kGibibyte);
  }
}

const char* OutOfMemory::what() const noexcept { return text_; }

const char* Interrupted::what() const noexcept { return "interrupted"; }

}  // namespace tidegate
