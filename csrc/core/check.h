// Checks of what a call is given: every one before anything is written.
#ifndef TIDEGATE_CORE_CHECK_H_
#define TIDEGATE_CORE_CHECK_H_

#include <stdexcept>
#include <string>

#include "tidegate/model.h"

namespace tidegate {

inline void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

inline void require_size(const char* name, Index value, Index least) {
  // Calls that must not allocate check sizes as well: the message is made only when needed.
  if (value >= least) return;
  throw std::invalid_argument(std::string(name) + ": got " + std::to_string(value) +
                              ", wanted an integer >= " + std::to_string(least));
}

struct CallSize {
  Index steps;
  Index batch;
  bool longest_first = false;  // the rows are in order of length, as packed sequences are
};

// All throw std::invalid_argument naming the argument, what came and what was wanted.
template <class T>
CallSize check_inputs(const Config& config, const Inputs<T>& inputs);
template <class T>
void check_outputs(const Config& config, CallSize size, const Outputs<T>& outputs);
template <class T>
void check_gradients(const Config& config, CallSize size, const OutputGradients<T>& outputs,
                     const InputGradients<T>& inputs);
void check_shape(const char* name, const Index (&got)[3], const Index (&stride)[3], Index a,
                 Index b, Index c);

// The threads that a call may use: those given, or the setting in force (0).
int allowed_threads(int num_threads);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_CHECK_H_
