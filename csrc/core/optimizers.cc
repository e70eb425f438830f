// Steps of optimisers on flat vectors. The factors of the kernels' formulas are computed from the
// hyperparameters in double, and then rounded to T.
#include "tidegate/optimizers.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/even_parts.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/thread_setup.h"

namespace tidegate {
namespace {

Index block_count(Index count) { return count / kReductionBlock + (count % kReductionBlock != 0); }

// Calls body(elements) for each thread's part of [0, count), which consists of whole blocks.
template <class Body>
void divide(Index count, const EvenWork& work, int num_threads, const Body& body) {
  const PlannedCall plan = plan_even_work(work, allowed_threads(num_threads));
  ThreadLease lease(plan.threads);
  for_each_part(lease, block_count(count), [&](Range blocks) {
    body(Range{blocks.begin * kReductionBlock, std::min(blocks.end * kReductionBlock, count)});
  });
  plan.record(lease.size());
}

// pointer + offset; null stays null.
template <class T>
T* at(T* pointer, Index offset) {
  return pointer ? pointer + offset : nullptr;
}

}  // namespace

template <class T>
void sgd_step(const SgdOptions& options, Index step, Index count, T* parameters, const T* gradient,
              T* momentum_buffer, int num_threads) {
  require_size("step", step, 1);
  require_size("count", count, 0);
  const auto rounded = [](double value) { return static_cast<T>(value); };
  SgdCall<T> whole;
  whole.values = parameters;
  whole.gradient = gradient;
  whole.momentum_buffer = options.momentum != 0 ? momentum_buffer : nullptr;
  whole.first = step == 1;
  whole.nesterov = options.nesterov;
  whole.l2 = rounded(options.weight_decay);
  whole.momentum = rounded(options.momentum);
  whole.one_minus_dampening = rounded(1 - options.dampening);
  whole.lr = rounded(options.lr);
  const double accesses = whole.momentum_buffer ? 5 : 3;
  const ArrayKernels<T>& kernel = *kernels<T>().arrays;
  divide(count, elementwise_work<T>(count, 8, accesses * sizeof(T)), num_threads, [&](Range part) {
    SgdCall<T> call = whole;
    call.count = part.size();
    call.values += part.begin;
    call.gradient += part.begin;
    call.momentum_buffer = at(call.momentum_buffer, part.begin);
    kernel.sgd(call);
  });
}

template <class T>
void adam_step(const AdamOptions& options, Index step, Index count, T* parameters,
               const T* gradient, T* exp_avg, T* exp_avg_sq, int num_threads) {
  require_size("step", step, 1);
  require_size("count", count, 0);
  const auto rounded = [](double value) { return static_cast<T>(value); };
  const auto correction = [&](double beta) {
    return 1 - std::pow(beta, static_cast<double>(step));
  };
  const bool decoupled = options.decoupled_weight_decay;
  AdamCall<T> whole;
  whole.values = parameters;
  whole.gradient = gradient;
  whole.exp_avg = exp_avg;
  whole.exp_avg_sq = exp_avg_sq;
  whole.l2 = decoupled ? T(0) : rounded(options.weight_decay);
  whole.decay = decoupled ? rounded(1 - options.lr * options.weight_decay) : T(1);
  whole.beta1 = rounded(options.beta1);
  whole.one_minus_beta1 = rounded(1 - options.beta1);
  whole.beta2 = rounded(options.beta2);
  whole.one_minus_beta2 = rounded(1 - options.beta2);
  whole.root_correction2 = rounded(std::sqrt(correction(options.beta2)));
  whole.eps = rounded(options.eps);
  whole.step_size = rounded(options.lr / correction(options.beta1));
  const ArrayKernels<T>& kernel = *kernels<T>().arrays;
  const EvenWork work = elementwise_work<T>(count, 16 + 3 * kFlopsOfDivision, 7 * sizeof(T));
  divide(count, work, num_threads, [&](Range part) {
    AdamCall<T> call = whole;
    call.count = part.size();
    call.values += part.begin;
    call.gradient += part.begin;
    call.exp_avg += part.begin;
    call.exp_avg_sq += part.begin;
    kernel.adam(call);
  });
}

template <class T>
double sum_of_squares(Index count, const T* values, int num_threads) {
  require_size("count", count, 0);
  const ArrayKernels<T>& kernel = *kernels<T>().arrays;
  const ThreadSetup setup;  // for the addition of the blocks' sums, too
  double* sums = nullptr;
  const Buffer memory([&](Arena& arena) { sums = arena.take<double>(block_count(count)); });
  divide(count, elementwise_work<T>(count, 4, sizeof(T)), num_threads, [&](Range part) {
    for (Index begin = part.begin; begin < part.end; begin += kReductionBlock) {
      sums[begin / kReductionBlock] =
          kernel.sum_of_squares(values + begin, std::min(kReductionBlock, part.end - begin));
    }
  });
  double total = 0;
  for (Index block = 0; block < block_count(count); ++block) total += sums[block];
  return total;
}

template <class T>
void scale(Index count, T* values, double factor, int num_threads) {
  require_size("count", count, 0);
  const ArrayKernels<T>& kernel = *kernels<T>().arrays;
  divide(count, elementwise_work<T>(count, 2, 2 * sizeof(T)), num_threads, [&](Range part) {
    kernel.scale(values + part.begin, part.size(), static_cast<T>(factor));
  });
}

#define TIDEGATE_INSTANTIATE(T)                                                         \
  template void sgd_step(const SgdOptions&, Index, Index, T*, const T*, T*, int);       \
  template void adam_step(const AdamOptions&, Index, Index, T*, const T*, T*, T*, int); \
  template double sum_of_squares(Index, const T*, int);                                 \
  template void scale(Index, T*, double, int);
TIDEGATE_INSTANTIATE(float)
TIDEGATE_INSTANTIATE(double)
#undef TIDEGATE_INSTANTIATE

}  // namespace tidegate
