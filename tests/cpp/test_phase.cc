// The products of phases with exact weights against plain loops, bit for bit. Storages that round
// rows have their own loops (test_rounded_phase.cc).
#include "kernels/phase.h"

#include <algorithm>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "kernels/exact_weights.h"
#include "matrix.h"
#include "probe.h"

namespace tidegate {
namespace {

// A storage whose product takes two k's at a time: accumulator += a[0] * w[0] + a[1] * w[1].
struct PairWeights {
  using Value = float;
  using Element = float;
  static constexpr Index grain = 2;

  static Vec<float> load(const float* from) { return tidegate::load(from); }
  static void store(float* to, Vec<float> weights) { tidegate::store(to, weights); }

  static Vec<float> add(Vec<float> sum, const float* a, Vec<float> w0, Vec<float> w1) {
    return sum + fma(broadcast(a[1]), w1, broadcast(a[0]) * w0);
  }
  template <int R, int S, int Count>
  static void multiply_step(Vec<float> (&accumulators)[R][S][Count], const float* const (&a)[R],
                            Index a_offset, const float* panel, Index slice_stride) {
    constexpr Index kWidth = Vec<float>::width;
    each_vector<R, S, Count>([&](int r, int s, int g) {
      const float* w = panel + s * slice_stride + 2 * g * kWidth;
      accumulators[r][s][g] =
          add(accumulators[r][s][g], a[r] + a_offset, load(w), load(w + kWidth));
    });
  }
  template <int R, int S, int Count>
  static void multiply_rest(Vec<float> (&accumulators)[R][S][Count], const float* const (&a)[R],
                            const float* panel, Index slice_stride, int count) {
    CHECK(count == 1);
    constexpr Index kWidth = Vec<float>::width;
    each_vector<R, S, Count>([&](int r, int s, int g) {
      const Vec<float> w = load(panel + s * slice_stride + 2 * g * kWidth);
      accumulators[r][s][g] = accumulators[r][s][g] + broadcast(a[r][0]) * w;
    });
  }
};

// Adds the products of `count` k's, a grain at most, to `sum`.
template <class Weights, class T>
T add_products(T sum, const T* a, const T* w, Index count) {
  if constexpr (Weights::grain == 1) {
    return multiply_add(a[0], w[0], sum);
  } else {
    const Vec<T> w0 = broadcast(w[0]);
    if (count == 1) return (broadcast(sum) + broadcast(a[0]) * w0).v[0];
    return Weights::add(broadcast(sum), a, w0, broadcast(w[1])).v[0];
  }
}

// The offset of a vector of weights in a panel.
template <class Weights>
Index offset_in_panel(Index slice, Index depth, Index gates, Index k, Index gate) {
  constexpr Index kGrain = Weights::grain;
  const Index first = slice * padded_depth<Weights>(depth) + k / kGrain * kGrain;
  return (first * gates + gate * kGrain + k % kGrain) * Vec<typename Weights::Value>::width;
}

template <PhaseKind Kind, class Weights>
class PhaseProblem {
 public:
  using T = typename Weights::Value;
  using Element = typename Weights::Element;
  static constexpr PhaseSpec spec = phase_spec(Kind);
  static constexpr Index gates = spec.gates.count;
  static constexpr Index width = Vec<T>::width;

  PhaseProblem(Random& random, Index rows, Index units, Index x_depth, Index h_depth, Start start)
      : rows_(rows),
        units_(units),
        slices_((units + width - 1) / width),
        start_(start),
        x_(Matrix<T>::random(random, rows, x_depth)),
        h_(Matrix<T>::random(random, rows, h_depth)),
        x_panel_(panel(random, x_depth, spec.x.count)),
        h_panel_(panel(random, h_depth, spec.h.count)),
        bias_(vectors(random, 1, spec.gates.count)),
        begun_(random.numbers<T>(slices_ * rows * gates * width)) {
    // These must affect only their rows.
    if (x_depth > 0 && rows > 2) x_(1, x_depth / 2) = std::numeric_limits<T>::infinity();
    if (h_depth > 0 && rows > 4) h_(3, 0) = nan<T>;
    compute_wanted();
  }

  void check() {
    whole(false);
    whole(true);
    x_then_h();
    if (h_.columns <= kSumGroup) {
      for (const Index begun : {Index{0}, h_.columns / 3, h_.columns}) {
        // Between two grains, or at the end.
        if (begun == h_.columns || begun % Weights::grain == 0) h_in_parts(begun);
      }
    }
    for (const Index piece : {1, 2, 5}) {
      for (const Index piece_slices : {1, 2, 3}) pieces(piece, piece_slices);
    }
  }

 private:
  using Results = ProbeOutputs<Kind, T>;

  // Random numbers, [slice][k][gate][width]; NaN in the lanes beyond the units.
  std::vector<T> vectors(Random& random, Index depth, Index gate_count) const {
    std::vector<T> values = random.numbers<T>(slices_ * depth * gate_count * width);
    const Index last = units_ % width;
    if (last == 0) return values;
    const Index vectors = depth * gate_count;
    for (Index v = (slices_ - 1) * vectors; v < slices_ * vectors; ++v) {
      for (Index lane = last; lane < width; ++lane) {
        values[static_cast<std::size_t>(v * width + lane)] = nan<T>;
      }
    }
    return values;
  }

  // The same numbers as weights; NaN beyond the depth.
  std::vector<Element> panel(Random& random, Index depth, Index gate_count) const {
    const std::vector<T> values = vectors(random, depth, gate_count);
    std::vector<Element> weights(
        test::size_of(slices_ * padded_depth<Weights>(depth) * gate_count * width));
    if constexpr (Weights::grain > 1) std::fill(weights.begin(), weights.end(), nan<T>);
    const T* from = values.data();
    for (Index slice = 0; slice < slices_; ++slice) {
      for (Index k = 0; k < depth; ++k) {
        for (Index gate = 0; gate < gate_count; ++gate, from += width) {
          const Index to = offset_in_panel<Weights>(slice, depth, gate_count, k, gate);
          Weights::store(weights.data() + to, load(from));
        }
      }
    }
    return weights;
  }

  static T element(const std::vector<Element>& panel, Index depth, Index gate_count, Index k,
                   Index gate, Index unit) {
    const Index at = offset_in_panel<Weights>(unit / width, depth, gate_count, k, gate);
    return Weights::load(panel.data() + at).v[unit % width];
  }

  // The strides of the layout in which each slice has all rows.
  static Index accumulators_row_stride() { return gates * width; }
  Index accumulators_slice_stride() const { return rows_ * gates * width; }

  void compute_wanted() {
    for (Index r = 0; r < rows_; ++r) {
      for (Index gate = 0; gate < gates; ++gate) {
        for (Index unit = 0; unit < units_; ++unit) wanted_.push_back(accumulator(r, gate, unit));
      }
    }
  }

  T accumulator(Index r, Index gate, Index unit) {
    T sum = T(0);
    if (start_ == Start::bias)
      sum = bias_[static_cast<std::size_t>((unit / width * gates + gate) * width + unit % width)];
    if (start_ == Start::accumulators) {
      sum = begun_[static_cast<std::size_t>(unit / width * accumulators_slice_stride() +
                                            r * accumulators_row_stride() + gate * width +
                                            unit % width)];
    }
    const auto add = [&](Matrix<T>& a, const std::vector<Element>& panel, Window window) {
      if (gate < window.first || gate >= window.end()) return;
      for (Index group = 0; group < a.columns; group += kSumGroup) {
        T group_sum = group == 0 ? sum : T(0);
        for (Index begin = group; begin < std::min(group + kSumGroup, a.columns);
             begin += kSumBlock) {
          const bool at_bias = start_ != Start::accumulators && &a == &x_ && begin == 0;
          T block = at_bias ? sum : T(0);
          const Index end = std::min(begin + kSumBlock, a.columns);
          for (Index k = begin; k < end; k += Weights::grain) {
            const Index count = std::min(Weights::grain, end - k);
            T w[Weights::grain] = {};
            for (Index i = 0; i < count; ++i)
              w[i] = element(panel, a.columns, window.count, k + i, gate - window.first, unit);
            block = add_products<Weights>(block, a.row(r) + k, w, count);
          }
          group_sum = at_bias ? block : group_sum + block;
        }
        sum = group == 0 ? group_sum : sum + group_sum;
      }
    };
    add(x_, x_panel_, spec.x);
    add(h_, h_panel_, spec.h);
    return sum;
  }

  // A call for some rows, with strided arrays.
  PhaseCall<T> call(std::vector<T>& accumulators, Results& results, Index first, Index count) {
    PhaseCall<T> c;
    c.rows = count;
    c.slice_end = slices_;
    c.units = units_;
    c.x = {x_.strided(first), x_panel_.data(), x_.columns, 0, x_.columns};
    c.h = {h_.strided(first), h_panel_.data(), h_.columns, 0, h_.columns};
    c.bias = start_ == Start::bias ? bias_.data() : nullptr;
    c.accumulators = accumulators.data() + first * accumulators_row_stride();
    c.accumulators_row_stride = accumulators_row_stride();
    c.accumulators_slice_stride = accumulators_slice_stride();
    c.resume = start_ == Start::accumulators;
    results.set(c, first);
    return c;
  }

  // In one call: with strided rows; or with a table of rows in reverse, and reversed slices.
  void whole(bool tables) {
    std::vector<T> accumulators = begun_;
    Results results(rows_, units_);
    PhaseCall<T> c = call(accumulators, results, 0, rows_);
    c.reversed = tables;
    if (tables && start_ != Start::accumulators) {
      for (Matrix<T>* matrix : {&x_, &h_}) matrix->reverse_table();
      c.x.rows = x_.scattered();
      c.h.rows = h_.scattered();
      results.set_reversed(c);
    }
    phase_products<Weights, shape_of(spec), T>(c);
    CHECK(results.are(wanted_));
  }

  // As for a chunk of steps: the products with x in a first call, those with h in a second.
  void x_then_h() {
    std::vector<T> accumulators = begun_;
    Results results(rows_, units_);
    PhaseCall<T> c = call(accumulators, results, 0, rows_);
    c.h.end = 0;
    c.finish = nullptr;
    phase_products<Weights, shape_of(spec), T>(c);
    CHECK(results.untouched());
    c = call(accumulators, results, 0, rows_);
    c.x.end = 0;
    c.bias = nullptr;
    c.resume = true;
    phase_products<Weights, shape_of(spec), T>(c);
    CHECK(results.are(wanted_));
  }

  // As in a thread for which a part of h is not yet available: x and the first k's of h, then the
  // others, divided inside a block of sums or between two.
  void h_in_parts(Index begun) {
    std::vector<T> accumulators = begun_;
    std::vector<T> partial_sums(accumulators.size(), nan<T>);
    Results results(rows_, units_);
    PhaseCall<T> c = call(accumulators, results, 0, rows_);
    Matrix<T> first = h_;
    for (Index r = 0; r < rows_; ++r) {
      for (Index k = begun; k < h_.columns; ++k) first(r, k) = nan<T>;
    }
    c.h.rows = first.strided(0);
    c.h.end = begun;
    c.finish = nullptr;
    c.partial_sums = partial_sums.data();
    c.partial_sums_slice_stride = accumulators_slice_stride();
    phase_products<Weights, shape_of(spec), T>(c);
    CHECK(results.untouched());
    c = call(accumulators, results, 0, rows_);
    c.x.end = 0;
    c.h.begin = begun;
    c.resume = true;
    c.partial_sums = partial_sums.data();
    c.partial_sums_slice_stride = accumulators_slice_stride();
    phase_products<Weights, shape_of(spec), T>(c);
    CHECK(results.are(wanted_));
  }

  // Divided as among threads.
  void pieces(Index piece, Index piece_slices) {
    std::vector<T> accumulators = begun_;
    Results results(rows_, units_);
    for (Index first = 0; first < rows_; first += piece) {
      for (Index slice = 0; slice < slices_; slice += piece_slices) {
        const Index end = std::min(first + piece, rows_);
        const Index slice_end = std::min(slice + piece_slices, slices_);
        PhaseCall<T> c = call(accumulators, results, first, end - first);
        c.slice_begin = slice;
        c.slice_end = slice_end;
        c.reversed = first / piece % 2 != 0;
        phase_products<Weights, shape_of(spec), T>(c);
        if (first == 0 && slice == 0) CHECK(results.only_these_written(end, slice_end));
      }
    }
    CHECK(results.are(wanted_));
  }

  const Index rows_, units_, slices_;
  const Start start_;
  Matrix<T> x_, h_;
  const std::vector<Element> x_panel_, h_panel_;
  const std::vector<T> bias_;
  const std::vector<T> begun_;  // accumulators to resume from
  std::vector<T> wanted_;       // [row][gate][unit]
};

template <PhaseKind Kind, class Weights>
void check_phase() {
  Random random(Kind);
  int count = 0;
  const auto check = [&](Index rows, Index units, Index x_depth, Index h_depth) {
    if (phase_spec(Kind).h.count == 0) h_depth = 0;
    PhaseProblem<Kind, Weights>(random, rows, units, x_depth, h_depth,
                                static_cast<Start>(count++ % 3))
        .check();
  };
  // Every shape of a tile.
  for (const Index rows : {1, 2, 3, 4, 5, 6, 7, 8, 13, 33}) {
    for (const Index units : {1, 3, 15, 16, 17, 33, 100}) {
      check(rows, units, 0, 0);
      check(rows, units, 1, 5);
      check(rows, units, 5, 1);
      check(rows, units, 5, 0);
      check(rows, units, 0, 5);
    }
  }
  // Depths that are divided into blocks within x, within h, and between them.
  for (const Index rows : {1, 3, 4, 8, 13}) {
    for (const Index units : {3, 17, 33}) {
      check(rows, units, 127, 300);
      check(rows, units, 300, 127);
      check(rows, units, 700, 0);
      check(rows, units, 0, 700);
      check(rows, units, kSumBlock, 2 * kSumBlock);
    }
  }
  check(33, 33, 300, 700);
  // Several groups of k's.
  for (const Index rows : {1, 2, 7, 100}) {
    check(rows, 17, kSumGroup + 1, 40);
    check(rows, 33, 40, 2 * kSumGroup + 130);
    check(rows, 5, 2 * kSumGroup, kSumGroup + 300);
    check(rows, 5, 0, kSumGroup + 1);
  }
}

}  // namespace

TEST(phase_with_the_gates_of_a_gru) {
  check_phase<kGruAfter, ExactWeights<float>>();
  check_phase<kGruAfter, ExactWeights<double>>();
}

TEST(phase_of_two_gates) { check_phase<kGruGates, ExactWeights<float>>(); }

TEST(phase_of_a_plain_product) {
  check_phase<kLinear, ExactWeights<float>>();
  check_phase<kLinear, ExactWeights<double>>();
}

TEST(phase_with_two_weights_to_a_grain) { check_phase<kGruAfter, PairWeights>(); }

}  // namespace tidegate
