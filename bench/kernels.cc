// Micro-benchmarks of the kernels, called through the core's own tables: products of many rows and
// of one, weight gradients, activations, the cells' epilogues, packing, and the cost of threads.
//
//   bench_kernels [ISA]     one ISA, or by default all that this machine can run
//
// Each figure is the best of some rounds of a millisecond: the speed of the undisturbed code. All
// but the last line is measured on one thread, which `taskset -c 1` pins.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "activations.h"
#include "core/isa.h"
#include "core/machine_speed.h"
#include "core/slices.h"
#include "core/switches.h"
#include "core/threads/threads.h"
#include "core/weights.h"
#include "kernels/table.h"
#include "tidegate/settings.h"

extern "C" {
extern const tidegate::bench::ActivationTable tidegate_bench_activations_baseline;
extern const tidegate::bench::ActivationTable tidegate_bench_activations_avx2;
extern const tidegate::bench::ActivationTable tidegate_bench_activations_avx512;
extern const tidegate::bench::ActivationTable tidegate_bench_activations_neon;
}

namespace tidegate::bench {
namespace {

// The table of the instruction set, or of the one that it extends.
const ActivationTable& activation_table(const std::string& isa) {
  [[maybe_unused]] const auto begins_with = [&](const char* name) {
    return isa.rfind(name, 0) == 0;
  };
#if defined(TIDEGATE_HAS_AVX512)
  if (begins_with("avx512") || isa == "amx") return tidegate_bench_activations_avx512;
#endif
#if defined(TIDEGATE_HAS_AVX2)
  if (begins_with("avx2")) return tidegate_bench_activations_avx2;
#endif
#if defined(TIDEGATE_HAS_BASELINE)
  if (isa == "baseline") return tidegate_bench_activations_baseline;
#endif
#if defined(TIDEGATE_HAS_NEON)
  if (begins_with("neon")) return tidegate_bench_activations_neon;
#endif
  throw std::invalid_argument("isa: got " + isa + ", which has no activations here");
}

// Returns the nanoseconds of one call of `work`.
template <class Work>
double nanoseconds(Work&& work) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 15;
  constexpr double kRound = 1e6;
  const auto measure = [&](Index calls) {
    const Clock::time_point begin = Clock::now();
    for (Index i = 0; i < calls; ++i) work();
    return std::chrono::duration<double, std::nano>(Clock::now() - begin).count();
  };
  Index calls = 1;
  while (measure(calls) < kRound) calls *= 2;
  double best = measure(calls);
  for (int round = 1; round < kRounds; ++round) best = std::min(best, measure(calls));
  return best / static_cast<double>(calls);
}

// Small numbers of both signs, aligned to cache lines.
template <class T>
class Array {
 public:
  explicit Array(Index size)
      : data_(static_cast<T*>(
            ::operator new(static_cast<std::size_t>(size) * sizeof(T), kAlignment))) {
    for (Index i = 0; i < size; ++i)
      data_.get()[i] = static_cast<T>(0.25 * std::sin(0.7 * static_cast<double>(i)));
  }
  T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
};

template <class T>
class Matrix : public Array<T> {
 public:
  Matrix(Index rows, Index columns) : Array<T>(rows * columns), stride_(columns) {}
  Rows<T> rows() const { return {this->data(), stride_, nullptr}; }

 private:
  Index stride_;
};

// The buffers of a phase with `rows` rows and `units` units; its product has an operand of `units`
// columns.
template <class T>
class Phase {
 public:
  Phase(PhaseKind kind, Index rows, Index units)
      : spec_(phase_spec(kind)),
        kernels_(kernels<T>()),
        padded_(slice_count(units, kernels_.width) * kernels_.width),
        gates_(product_gates()),
        operand_(rows, padded_),
        panel_(padded_ * units * gates_),
        bias_(padded_ * spec_.gates.count),
        accumulators_(rows * padded_ * spec_.gates.count),
        state_(rows, padded_),
        cell_(rows, padded_),
        h_next_(rows, padded_),
        c_next_(rows, padded_),
        gated_h_(rows, padded_),
        phase_state_(rows, padded_),
        saved_(rows, padded_ * kMaxGates),
        dgates_(rows, units * kMaxGates),
        dh_(rows, padded_),
        dc_(rows, padded_) {
    call_.rows = rows;
    call_.slice_end = slice_count(units, kernels_.width);
    call_.units = units;
    call_.accumulators = accumulators_.data();
    call_.accumulators_row_stride = spec_.gates.count * kernels_.width;
    call_.accumulators_slice_stride = rows * call_.accumulators_row_stride;
    call_.h_prev = state_.rows();
    call_.c_prev = cell_.rows();
    call_.h_next = h_next_.rows();
    call_.c_next = c_next_.rows();
    call_.gated_h = gated_h_.rows();
    call_.phase_state = phase_state_.rows();
  }

  // Times the product alone.
  double product() {
    PhaseCall<T> call = call_;
    Product<T>& of = spec_.h.count > 0 ? call.h : call.x;
    of = {operand_.rows(), panel_.data(), call.units, 0, call.units};
    return nanoseconds([&] { kernels_.exact().products[spec_.kind](call); });
  }
  double product_flops() const {
    return 2.0 * static_cast<double>(call_.rows * call_.units * call_.units * gates_);
  }
  Index panel_bytes() const {
    return padded_ * call_.units * gates_ * static_cast<Index>(sizeof(T));
  }

  // Times the cell alone, from accumulators that hold the bias, with or without saving for
  // training.
  double epilogue(bool saving) {
    PhaseCall<T> call = call_;
    call.bias = bias_.data();
    call.finish = kernels_.cells->finish[spec_.kind];
    if (saving) {
      call.saved = saved_.rows();
      call.saved_gate_stride = padded_;
    }
    return nanoseconds([&] { kernels_.exact().products[spec_.kind](call); });
  }

  // Times the derivative.
  double derivative() {
    BackwardCall<T> call;
    call.rows = call_.rows;
    call.slice_end = call_.slice_end;
    call.units = call_.units;
    call.saved = saved_.rows();
    call.saved_gate_stride = padded_;
    call.h_prev = state_.rows();
    call.c_prev = cell_.rows();
    call.c_next = c_next_.rows();
    call.dh = dh_.rows();
    call.dc = dc_.rows();
    call.dgates = dgates_.rows();
    call.gated_h = gated_h_.rows();
    call.dgated_h = phase_state_.rows();
    return nanoseconds([&] { kernels_.cells->backward[spec_.kind](call); });
  }

 private:
  Index product_gates() const { return spec_.h.count > 0 ? spec_.h.count : spec_.x.count; }

  const PhaseSpec spec_;
  const Kernels<T>& kernels_;
  const Index padded_;
  const Index gates_;
  PhaseCall<T> call_;
  Matrix<T> operand_;
  Array<T> panel_;
  Array<T> bias_;
  Array<T> accumulators_;
  Matrix<T> state_, cell_, h_next_, c_next_, gated_h_, phase_state_;
  Matrix<T> saved_, dgates_, dh_, dc_;
};

struct NamedPhase {
  PhaseKind kind;
  const char* name;
};
constexpr NamedPhase kProducts[] = {
    {kLstm, "lstm"}, {kGruAfter, "gru"}, {kGruGates, "gru-before r z"}, {kLinear, "linear"}};
constexpr NamedPhase kCells[] = {{kLstm, "lstm"},
                                 {kGruAfter, "gru"},
                                 {kGruGates, "gru-before r z"},
                                 {kGruCandidate, "gru-before n"},
                                 {kMguGate, "mgu f"},
                                 {kMguCandidate, "mgu n"}};
constexpr Index kSizes[] = {64, 128, 256, 512, 1024};

template <class T>
void report_products(double peak) {
  std::printf("\nproducts of rows with a panel, H x H for each gate: GFLOP/s (of the FMA peak)\n");
  std::printf("%-16s%6s", "", "rows");
  for (const Index size : kSizes) std::printf("%16s", ("H=" + std::to_string(size)).c_str());
  for (const NamedPhase& phase : kProducts) {
    for (const Index rows : {2, 4, 6, 16, 32, 64}) {
      std::printf("\n%-16s%6d", phase.name, static_cast<int>(rows));
      for (const Index size : kSizes) {
        Phase<T> it(phase.kind, rows, size);
        const double rate = it.product_flops() / it.product();
        std::printf("%10.1f (%2.0f%%)", rate, 100 * rate / peak);
      }
    }
  }
  std::printf("\n");
}

template <class T>
void report_one_row() {
  std::printf("\nproduct of one row: GB/s of its panel (of the read bandwidth at that size)\n");
  std::printf("%-16s", "");
  for (const Index size : kSizes) std::printf("%16s", ("H=" + std::to_string(size)).c_str());
  for (const NamedPhase& phase : kProducts) {
    std::printf("\n%-16s", phase.name);
    for (const Index size : kSizes) {
      Phase<T> it(phase.kind, 1, size);
      const double rate = static_cast<double>(it.panel_bytes()) / it.product();
      std::printf("%9.1f (%3.0f%%)", rate, 100 * rate / read_rate(it.panel_bytes()));
    }
  }
  std::printf("\n");
}

template <class T>
void report_weight_gradients(double peak) {
  std::printf("\nweight gradients, (4H, H) from rows: GFLOP/s (of the FMA peak)\n");
  std::printf("%6s", "rows");
  for (const Index size : kSizes) std::printf("%16s", ("H=" + std::to_string(size)).c_str());
  const Kernels<T>& k = kernels<T>();
  Array<T> scratch(k.outer->scratch);
  for (const Index rows : {16, 128, 512}) {
    std::printf("\n%6d", static_cast<int>(rows));
    for (const Index size : kSizes) {
      const Matrix<T> dgates(rows, 4 * size), h(rows, size), gradient(4 * size, size);
      OuterCall<T> call;
      call.depth = rows;
      call.left = dgates.rows();
      call.left_columns = 4 * size;
      call.right = h.rows();
      call.right_columns = size;
      call.result = gradient.rows();
      call.scratch = scratch.data();
      const double flops = 2.0 * static_cast<double>(rows * 4 * size * size);
      const double rate = flops / nanoseconds([&] { k.outer->outer(call); });
      std::printf("%10.1f (%2.0f%%)", rate, 100 * rate / peak);
    }
  }
  std::printf("\n");
}

template <class T>
void report_activations(const Activations<T>& functions) {
  constexpr Index kCount = 1024;  // in L1
  const Array<T> x(kCount), y(kCount);
  // The range where neither function has saturated.
  for (Index i = 0; i < kCount; ++i)
    x.data()[i] = static_cast<T>(8 * std::sin(static_cast<double>(i)));
  const auto each = [&](auto* function) {
    return nanoseconds([&] { function(x.data(), y.data(), kCount); }) / kCount;
  };
  std::printf("\nactivations, ns an element: sigmoid %.3f, tanh %.3f\n", each(functions.sigmoid),
              each(functions.tanh));
}

template <class T>
void report_epilogues() {
  std::printf("\ncells without their products, ns a row and unit, H = 256\n");
  std::printf("%-16s%6s%12s%12s%12s\n", "", "rows", "inference", "training", "backward");
  for (const NamedPhase& phase : kCells) {
    for (const Index rows : {1, 32}) {
      constexpr Index kUnits = 256;
      Phase<T> it(phase.kind, rows, kUnits);
      const double elements = static_cast<double>(rows * kUnits);
      std::printf("%-16s%6d%12.3f%12.3f%12.3f\n", phase.name, static_cast<int>(rows),
                  it.epilogue(false) / elements, it.epilogue(true) / elements,
                  it.derivative() / elements);
    }
  }
}

template <class T>
void report_packing() {
  std::printf("\npacking of an LSTM's parameters, I = H: GB/s read\n");
  for (const Index size : kSizes) {
    Config config;
    config.input_size = size;
    config.hidden_size = size;
    Index count = 0;
    for (const Parameter& parameter : parameters(config)) count += parameter.size();
    const Array<T> flat(count);
    const double bytes = static_cast<double>(count) * sizeof(T);
    const double forward = nanoseconds([&] { const Weights<T> weights(config, flat.data(), 1); });
    const double both = nanoseconds([&] {
      const Weights<T> weights(config, flat.data(), 1);
      weights.prepare_backward(flat.data(), 1);
    });
    std::printf("  H=%-5d forward %6.2f (%8.1f us), for backward %6.2f more (%8.1f us)\n",
                static_cast<int>(size), bytes / forward, forward * 1e-3, bytes / (both - forward),
                (both - forward) * 1e-3);
  }
}

void report_threads() {
  constexpr int kBarriers = 1000;
  set_num_threads(2);
  ThreadLease lease(2);
  if (lease.size() < 2) {
    std::printf("\nthreads: a second one is not available\n");
    return;
  }
  const auto barrier = std::make_unique<Barrier>(2);
  const double with_barriers = nanoseconds([&] {
    lease.run([&](int thread) {
      for (int i = 0; i < kBarriers; ++i) barrier->wait(thread);
    });
  });
  const double empty = nanoseconds([&] { lease.run([](int) {}); });
  std::printf("\nthreads, 2 of them: %.0f ns a barrier, %.2f us a call of a reserved team\n",
              (with_barriers - empty) / kBarriers, empty * 1e-3);
}

template <class T>
void report(const char* dtype, const Activations<T>& activations) {
  const double peak = product_rate(sizeof(T) == sizeof(float) ? "float32" : "float64");
  std::printf("\n== %s, %s: FMA peak %.1f GFLOP/s\n", isa().c_str(), dtype, peak);
  report_products<T>(peak);
  report_one_row<T>();
  report_weight_gradients<T>(peak);
  report_activations<T>(activations);
  report_epilogues<T>();
  report_packing<T>();
}

void run(const std::vector<std::string>& isas) {
  std::printf("%s\n", compiler().c_str());
  for (const std::string& name : isas) {
    select_isa(name);
    report<float>("float32", activation_table(name).f32);
    report<double>("float64", activation_table(name).f64);
  }
  report_threads();
}

}  // namespace
}  // namespace tidegate::bench

int main(int argc, char** argv) {
  try {
    using tidegate::available_isas;
    tidegate::bench::run(argc > 1 ? std::vector<std::string>{argv[1]} : available_isas());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
