// The entry of a network's cell in the table of cells (kernels/spec.h).
#ifndef TIDEGATE_CORE_CELLS_H_
#define TIDEGATE_CORE_CELLS_H_

#include "kernels/spec.h"
#include "tidegate/config.h"

namespace tidegate {

// The gates, phases and windows of the network's cell.
inline const CellSpec& cell_spec(const Config& config) {
  return cell_info(config.cell).spec({config.peephole, config.reset_after});
}

// Whether |h| <= 1 follows from |h_0| <= 1. An LSTM's h is a gate times the output activation; that
// of other cells lies between the candidate and the previous h, if the gates are within [0, 1].
bool has_bounded_h(const Config& config);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_CELLS_H_
