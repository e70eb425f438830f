// Passes over arrays that threads divide evenly.
#ifndef TIDEGATE_CORE_EVEN_PARTS_H_
#define TIDEGATE_CORE_EVEN_PARTS_H_

#include "core/plan_call.h"
#include "core/share.h"
#include "core/thread_setup.h"
#include "core/threads/threads.h"

namespace tidegate {

// A division or a root of each element takes as long as this many flops of multiply-adds: 16 cycles
// a vector on recent cores of Intel, 5 to 10 on AMD's, in which time 2 vectors of multiply-adds a
// cycle could be done.
constexpr double kFlopsOfDivision = 40;

// The work of `count` elements of T, each of `flops` float flops and `bytes` accessed.
template <class T>
EvenWork elementwise_work(Index count, double flops, double bytes) {
  const auto elements = static_cast<double>(count);
  return {.flops = elements * flops * sizeof(T) / sizeof(float), .bytes = elements * bytes};
}

// body(part) in each of the threads that the work is worth, the parts being those of [0, blocks) in
// ascending order.
template <class Body>
void for_each_part(ThreadLease& lease, Index blocks, const Body& body) {
  const ThreadSetup setup;
  lease.run([&](int thread) { body(part_of(blocks, thread, lease.size())); });
}

}  // namespace tidegate

#endif  // TIDEGATE_CORE_EVEN_PARTS_H_
