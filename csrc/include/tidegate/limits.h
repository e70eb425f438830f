// The machine's limits as measured now, on the calling thread, with the instruction set in force:
// what figures of speed are held against.
#ifndef TIDEGATE_LIMITS_H_
#define TIDEGATE_LIMITS_H_

#include "tidegate/config.h"
#include "tidegate/export.h"

namespace tidegate {

// Flops a nanosecond (GFLOP/s) of fused multiply-adds on registers, for elements of 4 (float) or 8
// (double) bytes. The best of some twenty rounds of about a millisecond; std::invalid_argument for
// another size.
TIDEGATE_EXPORT double fma_rate(Index element_size);

// Bytes a nanosecond (GB/s) of reading an array of `bytes` bytes again and again, forwards and
// backwards in turn: bandwidth of the cache it fits in, and of the two beside it near that border.
TIDEGATE_EXPORT double read_rate(Index bytes);

}  // namespace tidegate

#endif  // TIDEGATE_LIMITS_H_
