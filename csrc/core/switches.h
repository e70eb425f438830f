// Switches by which tests and the self-test choose what a call otherwise chooses itself. For the
// bindings and tests: exported, but not installed.
#ifndef TIDEGATE_CORE_SWITCHES_H_
#define TIDEGATE_CORE_SWITCHES_H_

#include <string>

#include "tidegate/export.h"

namespace tidegate {

// Uses another of available_isas() from now on. Not while a call runs. Throws std::invalid_argument
// if the name is unknown or the instruction set is not available.
TIDEGATE_EXPORT void select_isa(const std::string& name);

// How the threads of a call divide its work: "auto" (as the cost model says), or always "rows" of
// the batch or "units" of a step, and then with all the threads asked for. Throws
// std::invalid_argument for another name.
TIDEGATE_EXPORT void select_division(const std::string& name);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_SWITCHES_H_
