// Switches for tests and the self-test, which override what a call otherwise chooses itself. For
// the bindings and tests: exported, but not installed.
#ifndef TIDEGATE_CORE_SWITCHES_H_
#define TIDEGATE_CORE_SWITCHES_H_

#include <string>

#include "tidegate/export.h"

namespace tidegate {

// Selects one of available_isas() for all later calls. Must not be called while a call runs. Throws
// std::invalid_argument if the name is unknown or the instruction set is not available.
TIDEGATE_EXPORT void select_isa(const std::string& name);

// Selects how the threads of a call divide its work: "auto" (by the cost model), or always "rows"
// of the batch or "units" of a step, then on all threads that the call may use. Throws
// std::invalid_argument for another name.
TIDEGATE_EXPORT void select_division(const std::string& name);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_SWITCHES_H_
