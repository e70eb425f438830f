// Linear layers: the product of rows with one panel, and its gradients.
#include "tidegate/linear.h"

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/check.h"
#include "core/interruption.h"
#include "core/memory.h"
#include "core/panels.h"
#include "core/parameter_store.h"
#include "core/pieces.h"
#include "core/plan_call.h"
#include "core/thread_setup.h"
#include "core/threads/threads.h"

namespace tidegate {

namespace {

// The rows of x at a time, and the bytes of the accumulators of a piece of y, which are on the
// thread's stack. Both stay in L1 or L2 while panels are read. A storage that rounds rows does so
// for each piece, so that its pieces, in L2, have more outputs.
constexpr Index kPieceRows = 96;
constexpr Index kPieceBytes = 32 * 1024;
constexpr Index kRoundedPieceBytes = 256 * 1024;

// Threads divide rows if each gets at least this many, and outputs otherwise: fewer rows make small
// tiles.
constexpr Index kMinRowsOfThread = 12;

// The packed weights and the bias of a product with `depth` inputs and `units` outputs.
template <class T>
struct PackedProduct {
  Panel panel = nullptr;
  const T* bias = nullptr;  // null: zero
  Index depth = 0;
  Index units = 0;
};

// The packed weights of a layer.
template <class T>
class LinearWeights {
 public:
  LinearWeights(Index in_features, Index out_features, bool bias, const T* parameters, int threads,
                StorageKind storage, const T* scales)
      : kernels_(tidegate::kernels<T>()),
        storage_(*storage_of(kernels_, storage)),
        forward_{.depth = in_features, .units = out_features},
        backward_{.depth = out_features, .units = in_features} {
    Panels<T> panels(kernels_, storage_);
    memory_ = Buffer([&](Arena& arena) {
      forward_.panel = panels.take(arena, {out_features, in_features, 1},
                                   {{.k_end = in_features,
                                     .base = parameters,
                                     .k_stride = 1,
                                     .unit_stride = in_features,
                                     .scales = scales}});
      if (!bias) return;
      const T* const values = parameters + out_features * in_features;
      forward_.bias = panels.take_vectors(arena, out_features, {{.base = values}});
    });
    panels.pack(threads);
  }

  const Kernels<T>& kernels() const { return kernels_; }
  const StorageKernels<T>& storage() const { return storage_; }
  const PackedProduct<T>& forward() const { return forward_; }

  // Packs what backward() returns, unless it is packed already. `parameters` are those from which
  // the snapshot was made. Must not be called by several threads at the same time.
  void prepare_backward(const T* parameters, int threads) const {
    if (backward_.panel) return;
    Panels<T> panels(kernels_, storage_);
    Panel panel = nullptr;
    backward_memory_ = Buffer([&](Arena& arena) {
      panel = panels.take(arena, {backward_.units, backward_.depth, 1},
                          {{.k_end = backward_.depth,
                            .base = parameters,
                            .k_stride = backward_.units,
                            .unit_stride = 1}});
    });
    panels.pack(threads);
    backward_.panel = panel;
  }
  // The product with the transposed weights.
  const PackedProduct<T>& backward() const { return backward_; }

 private:
  const Kernels<T>& kernels_;
  const StorageKernels<T>& storage_;
  PackedProduct<T> forward_;
  Buffer memory_;
  mutable PackedProduct<T> backward_;
  mutable Buffer backward_memory_;
};

// The most rows of a piece.
template <class T>
Index most_piece_rows(const StorageKernels<T>& storage, Index rows, Index depth) {
  return std::min({kPieceRows, rows, storage.max_rows(depth)});
}

// The working memory of a thread for a storage that rounds rows; none for others.
template <class T>
struct RoundedWork {
  std::byte* rows = nullptr;  // see Product; for most_piece_rows() rows
  T* accumulators = nullptr;  // kRoundedPieceBytes
};

// Computes y = x * weights + bias for some rows and slices of outputs. Returns if the call ends
// early.
template <class T>
void multiply(const LinearWeights<T>& weights, const PackedProduct<T>& product, Rows<const T> x,
              Rows<T> y, Range rows, Range slices, const RoundedWork<T>& work,
              Interruption& interruption) {
  const Kernels<T>& kernels = weights.kernels();
  constexpr Index kStackElements = kPieceBytes / static_cast<Index>(sizeof(T));
  alignas(Arena::kAlignment) T stack[kStackElements];
  T* const accumulators = work.accumulators ? work.accumulators : stack;
  const Index most_elements =
      work.accumulators ? kRoundedPieceBytes / static_cast<Index>(sizeof(T)) : kStackElements;
  if (rows.size() <= 0) return;
  const Index max_elements = std::clamp(kPieceProducts / std::max<Index>(1, product.depth),
                                        Index{kernels.width}, most_elements);
  const Index piece_rows = std::min(most_piece_rows(weights.storage(), rows.size(), product.depth),
                                    max_elements / kernels.width);
  const Index piece_slices = max_elements / (piece_rows * kernels.width);
  for (Index slice = slices.begin; slice < slices.end; slice += piece_slices) {
    for (Index row = rows.begin; row < rows.end; row += piece_rows) {
      if (interruption.requested()) return;
      PhaseCall<T> call;
      call.rows = std::min(piece_rows, rows.end - row);
      call.slice_begin = slice;
      call.slice_end = std::min(slice + piece_slices, slices.end);
      call.units = product.units;
      call.x = {x.from(row), product.panel, product.depth, 0, product.depth, work.rows};
      call.bias = product.bias;
      call.accumulators_row_stride = kernels.width;
      call.accumulators_slice_stride = piece_rows * kernels.width;
      call.accumulators_first_slice = slice;
      call.accumulators = accumulators;
      call.y = y.from(row);
      call.finish = kernels.cells->finish[kLinear];
      weights.storage().products[kLinear](call);
    }
  }
}

// Computes the part of one thread: a part of the rows, or of the outputs if there are few rows.
template <class T>
void multiply_part(const LinearWeights<T>& weights, const PackedProduct<T>& product,
                   Rows<const T> x, Rows<T> y, Index rows, int thread, int threads,
                   const RoundedWork<T>& work, Interruption& interruption) {
  const Index slices = slice_count(product.units, weights.kernels().width);
  const bool by_rows = rows >= kMinRowsOfThread * threads || slices < threads;
  multiply(weights, product, x, y, by_rows ? part_of(rows, thread, threads) : Range{0, rows},
           by_rows ? Range{0, slices} : part_of(slices, thread, threads), work, interruption);
}

// The flops of the product for all rows; an operation on double counts as two on float.
template <class T>
double float_flops(Index rows, Index in_features, Index out_features) {
  return 2.0 * sizeof(T) / sizeof(float) * static_cast<double>(rows) *
         static_cast<double>(in_features) * static_cast<double>(out_features);
}

void check_rows(Index rows) { require_size("rows", rows, 0); }

// Returns the sizes if they are those of a layer.
Index checked_count(Index in_features, Index out_features, bool bias) {
  require_size("in_features", in_features, 1);
  require_size("out_features", out_features, 1);
  return checked_size(out_features, checked_sum(in_features, bias ? 1 : 0));
}

}  // namespace

std::vector<Parameter> linear_parameters(Index in_features, Index out_features, bool bias) {
  checked_count(in_features, out_features, bias);
  std::vector<Parameter> all = {{"weight", out_features, in_features, 0}};
  if (bias) all.push_back({"bias", out_features, 0, out_features * in_features});
  return all;
}

template <class T>
struct Linear<T>::Impl {
  Impl(Index in, Index out, bool has_bias)
      : in_features(in),
        out_features(out),
        bias(has_bias),
        parameters(checked_count(in, out, has_bias)) {}
  Impl(Index in, Index out, bool has_bias, QuantizedParameters quantized)
      : in_features(in),
        out_features(out),
        bias(has_bias),
        parameters(linear_parameters(in, out, has_bias), std::move(quantized)) {}

  // The packed snapshot, with the panel for the backward pass if the call is recorded.
  std::shared_ptr<const LinearWeights<T>> weights(int threads, bool records) {
    return parameters.packed(
        parameters.storage_kind(),
        [&](const T* values, StorageKind storage, const T* scales) {
          return std::make_shared<const LinearWeights<T>>(in_features, out_features, bias, values,
                                                          threads, storage, scales);
        },
        [&](const LinearWeights<T>& weights, const T* values) {
          if (records) weights.prepare_backward(values, threads);
        });
  }

  void run(const LinearWeights<T>& weights, const T* x, Index x_stride, T* y, Index y_stride,
           Index rows, int threads) const {
    const PlannedCall plan = plan_even_work({.flops = flops(rows)}, threads);
    ThreadLease lease(plan.threads);
    const StorageKernels<T>& storage = weights.storage();
    const Index rounded_bytes = whole_lines(
        storage.rounded_bytes(most_piece_rows(storage, rows, in_features), in_features));
    constexpr Index kElements = kRoundedPieceBytes / static_cast<Index>(sizeof(T));
    RoundedWork<T> work;
    const Buffer memory([&](Arena& arena) {
      if (rounded_bytes == 0) return;
      work.rows = arena.take<std::byte>(lease.size(), rounded_bytes);
      work.accumulators = arena.take<T>(lease.size(), kElements);
    });
    Interruption interruption;
    const ThreadSetup setup;
    lease.run([&](int thread) {
      RoundedWork<T> own;
      if (work.rows)
        own = {work.rows + thread * rounded_bytes, work.accumulators + thread * kElements};
      multiply_part<T>(weights, weights.forward(), {x, x_stride, nullptr}, {y, y_stride, nullptr},
                       rows, thread, lease.size(), own, interruption);
    });
    interruption.finish();
    plan.record(lease.size());
  }

  // The flops of run(), in those of float products.
  double flops(Index rows) const {
    return float_flops<T>(rows, in_features, out_features) *
           kernels<T>().storages[parameters.storage_kind()]->cost.product_flops /
           kernels<T>().exact().cost.product_flops;
  }

  const Index in_features;
  const Index out_features;
  const bool bias;
  ParameterStore<T, LinearWeights<T>> parameters;
};

template <class T>
struct LinearTape<T>::Impl {
  Impl(std::shared_ptr<const LinearWeights<T>> snapshot, Index row_count, bool has_bias)
      : weights(std::move(snapshot)),
        rows(row_count),
        bias(has_bias),
        memory([&](Arena& arena) { x = arena.take<T>(rows, weights->forward().depth); }) {}

  std::shared_ptr<const LinearWeights<T>> weights;
  const Index rows;
  const bool bias;
  T* x = nullptr;  // (rows, in_features), dense
  Buffer memory;
};

template <class T>
Linear<T>::Linear(Index in_features, Index out_features, bool bias)
    : impl_(std::make_unique<Impl>(in_features, out_features, bias)) {}

template <class T>
Linear<T>::Linear(Index in_features, Index out_features, bool bias, QuantizedParameters parameters)
    : impl_(std::make_unique<Impl>(in_features, out_features, bias, std::move(parameters))) {}

template <class T>
Linear<T>::~Linear() = default;

template <class T>
Index Linear<T>::in_features() const {
  return impl_->in_features;
}

template <class T>
Index Linear<T>::out_features() const {
  return impl_->out_features;
}

template <class T>
bool Linear<T>::has_bias() const {
  return impl_->bias;
}

template <class T>
Index Linear<T>::parameter_count() const {
  return impl_->parameters.count();
}

template <class T>
const T* Linear<T>::parameters() const {
  return impl_->parameters.values();
}

template <class T>
void Linear<T>::read_parameters(T* to) const {
  impl_->parameters.read(to);
}

template <class T>
Precision Linear<T>::precision() const {
  return impl_->parameters.precision();
}

template <class T>
const QuantizedParameters* Linear<T>::quantized() const {
  return impl_->parameters.quantized();
}

template <class T>
std::unique_ptr<Linear<T>> Linear<T>::quantize(Precision precision) const {
  const Index in = in_features();
  const Index out = out_features();
  return std::make_unique<Linear>(
      in, out, has_bias(),
      impl_->parameters.in_precision(linear_parameters(in, out, has_bias()), precision));
}

template <class T>
void Linear<T>::write_parameters(Index offset, const T* values, Index count) {
  impl_->parameters.write(offset, values, count);
}

template <class T>
void Linear<T>::update_parameters(const std::function<void(T* parameters)>& update) {
  impl_->parameters.update(update);
}

template <class T>
void Linear<T>::run(const T* x, Index x_stride, T* y, Index y_stride, Index rows,
                    int num_threads) const {
  check_rows(rows);
  const int threads = allowed_threads(num_threads);
  impl_->run(*impl_->weights(threads, false), x, x_stride, y, y_stride, rows, threads);
}

template <class T>
std::unique_ptr<LinearTape<T>> Linear<T>::record(const T* x, Index x_stride, T* y, Index y_stride,
                                                 Index rows, int num_threads) const {
  check_rows(rows);
  if (precision() != Precision::exact) {
    throw std::invalid_argument(std::string("precision: a layer in ") +
                                precision_name<T>(precision()) +
                                " is for inference; train the layer from which it was made");
  }
  const int threads = allowed_threads(num_threads);
  auto tape = std::make_unique<typename LinearTape<T>::Impl>(impl_->weights(threads, true), rows,
                                                             impl_->bias);
  const Index depth = impl_->in_features;
  Interruption interruption;
  for (Index r = 0; r < rows && !interruption.requested(); ++r)
    std::copy(x + r * x_stride, x + r * x_stride + depth, tape->x + r * depth);
  interruption.finish();
  impl_->run(*tape->weights, tape->x, depth, y, y_stride, rows, threads);
  return std::unique_ptr<LinearTape<T>>(new LinearTape<T>(std::move(tape)));
}

template <class T>
LinearTape<T>::LinearTape(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

template <class T>
LinearTape<T>::~LinearTape() = default;

template <class T>
Index LinearTape<T>::rows() const {
  return impl_->rows;
}

template <class T>
Index LinearTape<T>::in_features() const {
  return impl_->weights->forward().depth;
}

template <class T>
Index LinearTape<T>::out_features() const {
  return impl_->weights->forward().units;
}

template <class T>
bool LinearTape<T>::has_bias() const {
  return impl_->bias;
}

template <class T>
void LinearTape<T>::backward(const T* dy, Index dy_stride, T* dx, Index dx_stride, T* dparameters,
                             int num_threads) const {
  const Index rows = impl_->rows;
  const Index in = in_features();
  const Index out = out_features();
  const Kernels<T>& kernels = impl_->weights->kernels();
  const int threads = allowed_threads(num_threads);
  const PackedProduct<T>* const transposed = dx ? &impl_->weights->backward() : nullptr;
  const double products = (dx ? 1 : 0) + (dparameters ? 1 : 0);
  const PlannedCall plan =
      plan_even_work({.flops = products * float_flops<T>(rows, in, out)}, threads);
  ThreadLease lease(plan.threads);
  T* scratch = nullptr;
  const Buffer memory([&](Arena& arena) {
    if (dparameters) scratch = arena.take<T>(lease.size(), kernels.outer->scratch);
  });
  const Rows<const T> dy_rows = {dy, dy_stride, nullptr};
  Interruption interruption;
  Interruption* const interruption_or_null = interruption.possible() ? &interruption : nullptr;
  const ThreadSetup setup;
  lease.run([&](int thread) {
    const auto part = [&](Index size) { return part_of(size, thread, lease.size()); };
    if (dx) {
      multiply_part<T>(*impl_->weights, *transposed, dy_rows, {dx, dx_stride, nullptr}, rows,
                       thread, lease.size(), {}, interruption);
    }
    if (!dparameters) return;
    // Threads divide the longer side of dW.
    const Range outputs = out >= in ? part(out) : Range{0, out};
    const Range inputs = out >= in ? Range{0, in} : part(in);
    OuterCall<T> call;
    call.depth = rows;
    call.left = {dy + outputs.begin, dy_stride, nullptr};
    call.left_columns = outputs.size();
    call.right = {impl_->x + inputs.begin, in, nullptr};
    call.right_columns = inputs.size();
    call.result = {dparameters + outputs.begin * in + inputs.begin, in, nullptr};
    call.scratch = scratch + thread * kernels.outer->scratch;
    run_outer(kernels.outer->outer, call, interruption_or_null);
    if (!impl_->bias) return;
    const Range sums = part(out);
    run_sum_rows<T>(kernels, {dy + sums.begin, dy_stride, nullptr}, rows, sums.size(),
                    dparameters + out * in + sums.begin, false, interruption_or_null);
  });
  interruption.finish();
  plan.record(lease.size());
}

template <class T>
double Linear<T>::run_cost(Index rows) const noexcept {
  const EvenWork work = {.flops = impl_->flops(rows)};
  return work.least_serial_nanoseconds(fma_rate_now());
}

template <class T>
double LinearTape<T>::backward_cost() const noexcept {
  const EvenWork work = {.flops = 2 * float_flops<T>(rows(), in_features(), out_features())};
  return work.least_serial_nanoseconds(fma_rate_now());
}

template class Linear<float>;
template class Linear<double>;
template class LinearTape<float>;
template class LinearTape<double>;

}  // namespace tidegate
