// Passes over arrays that are divided evenly among threads.
#ifndef TIDEGATE_CORE_EVEN_PARTS_H_
#define TIDEGATE_CORE_EVEN_PARTS_H_

#include "core/plan_call.h"
#include "core/share.h"
#include "core/thread_setup.h"
#include "core/threads/threads.h"

namespace tidegate {

// The cost of a division or a square root of one element, as flops of multiply-adds: it takes 16
// cycles per vector on recent Intel cores and 5 to 10 on AMD cores, which can do 2 vectors of
// multiply-adds per cycle.
constexpr double kFlopsOfDivision = 40;

// The work on `count` elements of T, each of which takes `flops` float flops and `bytes` accesses.
template <class T>
EvenWork elementwise_work(Index count, double flops, double bytes) {
  const auto elements = static_cast<double>(count);
  return {.flops = elements * flops * sizeof(T) / sizeof(float), .bytes = elements * bytes};
}

// Calls body(part) on each thread of the lease, with its part of [0, blocks); the parts ascend with
// the index of the thread.
template <class Body>
void for_each_part(ThreadLease& lease, Index blocks, const Body& body) {
  const ThreadSetup setup;
  lease.run([&](int thread) { body(part_of(blocks, thread, lease.size())); });
}

}  // namespace tidegate

#endif  // TIDEGATE_CORE_EVEN_PARTS_H_
