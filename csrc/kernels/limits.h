// What the machine can do at best: fused multiply-adds without memory, and reading memory without
// arithmetic. Figures of speed are held against these.
#ifndef TIDEGATE_KERNELS_LIMITS_H_
#define TIDEGATE_KERNELS_LIMITS_H_

#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// Independent chains: enough for any latency times throughput, few enough to stay in 16 registers.
constexpr int kFmaChains = 12;
constexpr int kReadChains = 8;

template <class T>
constexpr Index fma_round_flops() {
  return Index{2} * kFmaChains * Vec<T>::width;
}

// Sum of the lanes, so that no chain can be left out.
template <class T, int N>
inline T sum_of(const Vec<T> (&chains)[N]) {
  T lanes[Vec<T>::width];
  T sum = 0;
  for (int i = 0; i < N; ++i) {
    store(lanes, chains[i]);
    for (int lane = 0; lane < Vec<T>::width; ++lane) sum += lanes[lane];
  }
  return sum;
}

template <class T>
T fma_rounds(Index rounds) {
  Vec<T> chains[kFmaChains];
  for (int i = 0; i < kFmaChains; ++i) chains[i] = broadcast<T>(T(1) / T(1 + i));
  const Vec<T> factor = broadcast<T>(T(0.999));
  const Vec<T> addend = broadcast<T>(T(0.001));
  for (Index round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kFmaChains; ++i) chains[i] = fma(chains[i], factor, addend);
  }
  return sum_of(chains);
}

// Every other pass reads backwards. What was read last is then read first, while it is still in the
// nearest cache, as the layers do with their weights: a working set somewhat larger than a cache
// comes in part from that cache, and only from the next one if it were always read forwards.
template <class T>
T read_all(const T* data, Index count, Index passes) {
  constexpr Index kStep = kReadChains * Vec<T>::width;
  Vec<T> chains[kReadChains];
  for (int i = 0; i < kReadChains; ++i) chains[i] = zero<T>();
  const Index blocks = count / kStep;
  for (Index pass = 0; pass < passes; ++pass) {
    const bool backwards = pass % 2 == 1;
    for (Index block = 0; block < blocks; ++block) {
      const T* at = data + kStep * (backwards ? blocks - 1 - block : block);
#pragma GCC unroll 8
      for (int i = 0; i < kReadChains; ++i) chains[i] = chains[i] + load<T>(at + i * Vec<T>::width);
    }
  }
  return sum_of(chains);
}

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_LIMITS_H_
