// Checks of a call's arguments. All are made before the call writes anything.
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
  // Composes the message only on failure, because calls that must not allocate check sizes, too.
  if (value >= least) return;
  throw std::invalid_argument(std::string(name) + ": got " + std::to_string(value) +
                              ", wanted an integer >= " + std::to_string(least));
}

struct CallSize {
  Index steps;
  Index batch;
  bool longest_first = false;  // lengths are given and descend, as those of packed sequences do
};

// Each throws std::invalid_argument with the argument's name, the value given and the value wanted.
template <class T>
CallSize check_inputs(const Config& config, const Inputs<T>& inputs);
template <class T>
void check_outputs(const Config& config, CallSize size, const Outputs<T>& outputs);
template <class T>
void check_gradients(const Config& config, CallSize size, const OutputGradients<T>& outputs,
                     const InputGradients<T>& inputs);
void check_shape(const char* name, const Index (&got)[3], const Index (&stride)[3], Index a,
                 Index b, Index c);

// The greatest number of threads that a call may use: num_threads, or if it is 0 the current
// setting.
int allowed_threads(int num_threads);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_CHECK_H_
