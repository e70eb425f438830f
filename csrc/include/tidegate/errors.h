// Exceptions of the library beside those of the standard library.
#ifndef TIDEGATE_ERRORS_H_
#define TIDEGATE_ERRORS_H_

#include <exception>
#include <new>

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

// Memory that the system does not give. what() says what it was for, and the number of bytes. Made
// and copied without allocating.
class TIDEGATE_EXPORT OutOfMemory : public std::bad_alloc {
 public:
  // `purpose`: a noun phrase, as "the packed weights". `bytes` < 0: more than an Index counts.
  OutOfMemory(const char* purpose, Index bytes) noexcept;
  const char* what() const noexcept override;

 private:
  char text_[160];
};

// A call that was ended early, see tidegate/interrupt.h. What it was to write is undefined, unless
// the function says otherwise.
class TIDEGATE_EXPORT Interrupted : public std::exception {
 public:
  const char* what() const noexcept override;
};

}  // namespace tidegate

#endif  // TIDEGATE_ERRORS_H_
