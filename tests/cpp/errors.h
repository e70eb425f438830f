// The messages of the exceptions that the core throws.
#ifndef TIDEGATE_TESTS_ERRORS_H_
#define TIDEGATE_TESTS_ERRORS_H_

#include <stdexcept>
#include <string>

// The message of the std::invalid_argument that `f` throws, or "".
template <class F>
std::string invalid_argument_of(const F& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

inline bool begins_with(const std::string& text, const char* prefix) {
  return text.rfind(prefix, 0) == 0;
}

#endif  // TIDEGATE_TESTS_ERRORS_H_
