// Losses over the unmasked elements. Threads divide them in blocks, whose sums are added in order.
#include "tidegate/losses.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <limits>
#include <string>

#include "core/check.h"
#include "core/even_parts.h"
#include "core/interruption.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/thread_setup.h"

namespace tidegate {
namespace {

// The cost of an exponential, in float flops as kFlopsOfDivision.
constexpr double kFlopsOfExp = 30;

// About this many elements form a block of softmax rows; the call may end early between blocks.
constexpr Index kSoftmaxElements = 16 * 1024;

// The unmasked items of a loss's input, in blocks of `block_items` items. A row has `row_items`
// contiguous items; masked rows are left out, so the blocks, and with them the order of summation,
// are the same as for an input without these rows.
class Blocks {
 public:
  Blocks(const std::uint8_t* mask, Index rows, Index row_items, Index block_items)
      : mask_(mask), row_items_(row_items), block_items_(block_items) {
    const Index counted = mask ? rows - std::count(mask, mask + rows, 0) : rows;
    items_ = checked_size(counted, row_items);
    if (!mask) return;
    memory_ = Buffer([&](Arena& arena) { first_row_ = arena.take<Index>(count()); });
    Index block = 0, items = 0;
    for (Index row = 0; block < count(); ++row) {
      if (!mask[row]) continue;
      items += row_items;
      for (; block < count() && block * block_items < items; ++block) first_row_[block] = row;
    }
  }

  Index items() const { return items_; }
  Index count() const { return items_ / block_items_ + (items_ % block_items_ != 0); }
  Index size(Index block) const { return std::min(block_items_, items_ - block * block_items_); }

  // Calls f(first item, number of items, position in the block) for each contiguous run of items.
  template <class F>
  void for_each_run(Index block, const F& f) const {
    const Index begin = block * block_items_;
    if (!mask_) return f(begin, size(block), Index{0});
    Index row = first_row_[block];
    Index skipped = begin % row_items_;  // the first row's items in the previous block
    for (Index position = 0; position < size(block); ++row) {
      if (!mask_[row]) continue;
      const Index first = row * row_items_ + skipped;
      Index run = row_items_ - skipped;
      skipped = 0;
      for (; run < size(block) - position && mask_[row + 1]; ++row) run += row_items_;
      run = std::min(run, size(block) - position);
      f(first, run, position);
      position += run;
    }
  }

 private:
  const std::uint8_t* mask_;
  const Index row_items_;
  const Index block_items_;
  Index items_;
  Index* first_row_ = nullptr;  // [block], if there is a mask
  Buffer memory_;
};

template <class T>
void check_input(const LossInput<T>& input) {
  require_size("rows", input.rows, 0);
  require_size("columns", input.columns, 0);
}

// The divisor of the sum of the losses, and of each element of its gradient.
template <class T>
double divisor(const LossInput<T>& input, Index counted) {
  return input.reduction == Reduction::mean ? static_cast<double>(std::max<Index>(1, counted)) : 1;
}

double divided_sum(const double* values, Index count, double divisor) {
  const ThreadSetup setup;
  double total = 0;
  for (Index i = 0; i < count; ++i) total += values[i];
  return total / divisor;
}

// Calls compute(block) for each block, divided among threads. If there is a mask, zeroes the
// gradient first. Throws Interrupted.
template <class T, class Compute>
void for_each_block(const LossInput<T>& input, const Blocks& blocks, T* gradient,
                    const EvenWork& work, int num_threads, const Compute& compute) {
  const PlannedCall plan = plan_even_work(work, num_threads);
  ThreadLease lease(plan.threads);
  Interruption interruption;
  if (input.mask) {
    for_each_part(lease, input.rows * input.columns, [&](Range elements) {
      std::fill(gradient + elements.begin, gradient + elements.end, T(0));
    });
  }
  for_each_part(lease, blocks.count(), [&](Range part) {
    for (Index block = part.begin; block < part.end && !interruption.requested(); ++block) {
      compute(block);
    }
  });
  interruption.finish();
  plan.record(lease.size());
}

[[noreturn]] void throw_target_out_of_range(const std::string& got, const std::string& most) {
  throw std::invalid_argument("targets: got " + got + ", wanted 0.." + most);
}

template <class T>
std::string text_of(T number) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*g", std::numeric_limits<T>::max_digits10,
                static_cast<double>(number));
  return text;
}

// A loss of each element. `out_of_range(target)`: whether the target is not allowed.
template <class T, class OutOfRange>
double elementwise(const LossInput<T>& input, const T* target, T* gradient, int num_threads,
                   double (*kernel)(const ElementwiseLossCall<T>&), double flops,
                   const OutOfRange& out_of_range) {
  check_input(input);
  const int threads = allowed_threads(num_threads);
  const Blocks blocks(input.mask, input.rows, input.columns, kReductionBlock);
  const double count = divisor(input, blocks.items());
  double* losses = nullptr;
  const Buffer memory([&](Arena& arena) { losses = arena.take<double>(blocks.count()); });
  // The first block with a target out of range; blocks.count(): none.
  std::atomic<Index> first_bad_block{blocks.count()};

  const auto compute = [&](Index block) {
    ElementwiseLossCall<T> call;
    call.count = blocks.size(block);
    call.scale = static_cast<T>(1 / count);
    // If there is a mask, the elements are gathered, and their gradients scattered.
    T gathered_prediction[kReductionBlock], gathered_target[kReductionBlock];
    T gathered_gradient[kReductionBlock];
    const bool gathers = input.mask != nullptr;
    call.prediction = gathered_prediction;
    call.target = gathered_target;
    call.gradient = gathered_gradient;
    blocks.for_each_run(block, [&](Index first, Index size, Index position) {
      if (!gathers) {
        call.prediction = input.prediction + first;
        call.target = target + first;
        call.gradient = gradient + first;
        return;
      }
      std::copy_n(input.prediction + first, size, gathered_prediction + position);
      std::copy_n(target + first, size, gathered_target + position);
    });
    bool any_out_of_range = false;
    for (Index i = 0; i < call.count; ++i) any_out_of_range |= out_of_range(call.target[i]);
    if (any_out_of_range) {
      Index before = first_bad_block.load(std::memory_order_relaxed);
      while (block < before && !first_bad_block.compare_exchange_weak(before, block)) continue;
      return;
    }
    losses[block] = kernel(call);
    if (!gathers) return;
    blocks.for_each_run(block, [&](Index first, Index size, Index position) {
      std::copy_n(gathered_gradient + position, size, gradient + first);
    });
  };
  for_each_block(input, blocks, gradient, elementwise_work<T>(blocks.items(), flops, 3 * sizeof(T)),
                 threads, compute);
  if (first_bad_block < blocks.count()) {
    blocks.for_each_run(first_bad_block, [&](Index first, Index size, Index) {
      for (Index i = first; i < first + size; ++i) {
        if (out_of_range(target[i])) throw_target_out_of_range(text_of(target[i]), "1");
      }
    });
  }
  return divided_sum(losses, blocks.count(), count);
}

}  // namespace

template <class T>
double softmax_cross_entropy(const LossInput<T>& logits, const Index* targets, T* gradient,
                             int num_threads) {
  check_input(logits);
  const int threads = allowed_threads(num_threads);
  const Index classes = logits.columns;
  for (Index row = 0; row < logits.rows; ++row) {
    if (logits.mask && !logits.mask[row]) continue;
    if (targets[row] < 0 || targets[row] >= classes)
      throw_target_out_of_range(std::to_string(targets[row]), std::to_string(classes - 1));
  }
  const Index block_rows =
      std::clamp<Index>(kSoftmaxElements / std::max<Index>(1, classes), 1, kReductionBlock);
  const Blocks blocks(logits.mask, logits.rows, 1, block_rows);
  const double count = divisor(logits, blocks.items());
  double* losses = nullptr;  // [unmasked row]
  const Buffer memory([&](Arena& arena) { losses = arena.take<double>(blocks.items()); });
  const ArrayKernels<T>& kernel = *kernels<T>().arrays;
  const auto compute = [&](Index block) {
    blocks.for_each_run(block, [&](Index row, Index rows, Index position) {
      SoftmaxCall<T> call;
      call.rows = rows;
      call.classes = classes;
      call.logits = logits.prediction + row * classes;
      call.targets = targets + row;
      call.gradient = gradient + row * classes;
      call.losses = losses + block * block_rows + position;
      call.scale = 1 / count;
      kernel.softmax_cross_entropy(call);
    });
  };
  const EvenWork work =
      elementwise_work<T>(blocks.items() * classes, 2 * kFlopsOfExp, 2 * sizeof(T));
  for_each_block(logits, blocks, gradient, work, threads, compute);
  return divided_sum(losses, blocks.items(), count);
}

template <class T>
double binary_cross_entropy(const LossInput<T>& logits, const T* targets, T* gradient,
                            int num_threads) {
  return elementwise(
      logits, targets, gradient, num_threads, kernels<T>().arrays->binary_cross_entropy,
      2 * kFlopsOfExp + 2 * kFlopsOfDivision, [](T target) { return target < 0 || target > 1; });
}

template <class T>
double mse(const LossInput<T>& prediction, const T* target, T* gradient, int num_threads) {
  return elementwise(prediction, target, gradient, num_threads, kernels<T>().arrays->mse, 8,
                     [](T) { return false; });
}

#define TIDEGATE_INSTANTIATE(T)                                                      \
  template double softmax_cross_entropy(const LossInput<T>&, const Index*, T*, int); \
  template double binary_cross_entropy(const LossInput<T>&, const T*, T*, int);      \
  template double mse(const LossInput<T>&, const T*, T*, int);
TIDEGATE_INSTANTIATE(float)
TIDEGATE_INSTANTIATE(double)
#undef TIDEGATE_INSTANTIATE

}  // namespace tidegate
