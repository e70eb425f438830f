// The two bounds of the roofline model: the peak rate of fused multiply-adds on registers, and the
// rate at which memory is read. The kernels' speeds are compared with these.
#ifndef TIDEGATE_KERNELS_PEAK_H_
#define TIDEGATE_KERNELS_PEAK_H_

#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// Independent chains: more than latency * throughput on any machine, few enough for 16 registers.
constexpr int kFmaChains = 12;
constexpr int kReadChains = 8;

template <class T>
constexpr Index fma_round_flops() {
  return Index{2} * kFmaChains * Vec<T>::width;
}

// The sum of all lanes: a result that depends on every chain, so that the compiler keeps them all.
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

// Every other pass reads backwards, as the layers do with their weights, so that the data read last
// are read again while they are still in the nearest cache. A working set somewhat larger than a
// cache is thus read partly from that cache; always read forwards, it would come from the next one
// alone.
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

#endif  // TIDEGATE_KERNELS_PEAK_H_
