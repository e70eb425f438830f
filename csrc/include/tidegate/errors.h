// The library's own exceptions, which it throws besides those of the standard library.
#ifndef TIDEGATE_ERRORS_H_
#define TIDEGATE_ERRORS_H_

#include <exception>
#include <new>

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

// Thrown if the system refuses memory. what() states its purpose and the number of bytes.
// Construction and copying do not allocate.
class TIDEGATE_EXPORT OutOfMemory : public std::bad_alloc {
 public:
  // `purpose`: a noun phrase, such as "the packed weights". `bytes` < 0: more than an Index holds.
  OutOfMemory(const char* purpose, Index bytes) noexcept;
  const char* what() const noexcept override;

 private:
  char text_[160];
};

// Thrown by a call that was ended early, see tidegate/interrupt.h. Its outputs are undefined,
// unless the function's documentation says otherwise.
class TIDEGATE_EXPORT Interrupted : public std::exception {
 public:
  const char* what() const noexcept override;
};

}  // namespace tidegate

#endif  // TIDEGATE_ERRORS_H_
