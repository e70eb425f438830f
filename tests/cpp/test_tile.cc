// The tile: phases, weight gradients and sums of rows against plain loops, bit for bit; and the
// cells' formulas and derivatives against double precision.
#include "kernels/tile.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "kernels/cells.h"

namespace tidegate {
namespace {

using test::Random;
using test::same;

// What must not be written.
template <class T>
constexpr T canary = T(-77.125);

template <class T>
constexpr T nan = std::numeric_limits<T>::quiet_NaN();

// acc + a * b as the instruction set has it.
template <class T>
T multiply_add(T a, T b, T acc) {
  return fma(broadcast<T>(a), broadcast<T>(b), broadcast<T>(acc)).v[0];
}

// A (rows, columns) matrix whose rows lie `gap` elements further apart than they are long.
template <class T>
struct Matrix {
  Index rows, columns, stride;
  std::vector<T> data;
  std::vector<T*> table;

  Matrix(Index row_count, Index column_count, Index gap, T fill)
      : rows(row_count), columns(column_count), stride(column_count + gap) {
    data.assign(static_cast<std::size_t>(rows * stride + gap), fill);
    for (Index r = 0; r < rows; ++r) table.push_back(row(r));
  }

  // Random numbers; beyond each row's end NaN, that nobody may take.
  static Matrix random(Random& random, Index rows, Index columns) {
    Matrix matrix(rows, columns, 3, nan<T>);
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < columns; ++c) matrix(r, c) = static_cast<T>(random.number());
    }
    return matrix;
  }

  T* row(Index r) { return data.data() + r * stride; }
  T& operator()(Index r, Index c) { return row(r)[c]; }
  Rows<T> strided(Index first = 0) { return {row(first), stride, nullptr}; }
  Rows<T> scattered(Index first = 0) { return {nullptr, 0, table.data() + first}; }
  void reverse_table() { std::reverse(table.begin(), table.end()); }

  bool gaps_are(T fill) {
    bool all = true;
    for (Index r = 0; r < rows; ++r) {
      for (Index c = columns; c < stride; ++c) all = all && same(row(r)[c], fill);
    }
    for (Index i = rows * stride; i < static_cast<Index>(data.size()); ++i) {
      all = all && same(data[static_cast<std::size_t>(i)], fill);
    }
    return all;
  }
};

// ---- Phases

// A phase whose cell hands out its accumulators: all of them to `saved`, the first to h and y.
template <PhaseKind Kind>
struct ProbeOf {
  template <class>
  struct Probe {
    static constexpr PhaseSpec spec = phase_spec(Kind);

    template <class T>
    static void gates(const PhaseCall<T>&, Accumulators<T>, Place<T>) {}
    template <class T>
    static void state(const PhaseCall<T>& call, Accumulators<T> a, Place<T> at) {
      for (int gate = 0; gate < spec.gates.count; ++gate) save_gate(call, at, gate, a[gate]);
      store_h(call, at, a[0]);
    }
  };
};

enum class Start { zero, bias, accumulators };

template <PhaseKind Kind, class T>
class PhaseProblem {
 public:
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
        bias_(panel(random, 1, spec.gates.count)),
        begun_(random.numbers<T>(slices_ * rows * gates * width)) {
    // These must stay in their rows.
    if (x_depth > 0 && rows > 2) x_(1, x_depth / 2) = std::numeric_limits<T>::infinity();
    if (h_depth > 0 && rows > 4) h_(3, 0) = nan<T>;
    compute_wanted();
  }

  void check() {
    whole(false);
    whole(true);
    x_then_h();
    if (h_.columns <= kSumGroup) {
      for (const Index begun : {Index{0}, h_.columns / 3, h_.columns}) h_in_parts(begun);
    }
    for (const Index piece : {1, 2, 5}) {
      for (const Index piece_slices : {1, 2, 3}) pieces(piece, piece_slices);
    }
  }

 private:
  // What a call writes.
  struct Results {
    Matrix<T> y, h, saved;
    Results(Index rows, Index units, Index slices)
        : y(rows, units, 5, canary<T>),
          h(rows, slices * width, 5, canary<T>),
          saved(rows, gates * slices * width, 5, canary<T>) {}
  };

  // Random weights, [slice][k][gate][width]; NaN in the lanes beyond the units.
  std::vector<T> panel(Random& random, Index depth, Index gate_count) const {
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

  static T element(const std::vector<T>& panel, Index depth, Index gate_count, Index k, Index gate,
                   Index unit) {
    const Index vector = (unit / width * depth + k) * gate_count + gate;
    return panel[static_cast<std::size_t>(vector * width + unit % width)];
  }

  // Of the layout in which each slice has all rows.
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
    if (start_ == Start::bias) sum = element(bias_, 1, gates, 0, gate, unit);
    if (start_ == Start::accumulators) {
      sum = begun_[static_cast<std::size_t>(unit / width * accumulators_slice_stride() +
                                            r * accumulators_row_stride() + gate * width +
                                            unit % width)];
    }
    const auto add = [&](Matrix<T>& a, const std::vector<T>& panel, Window window) {
      if (gate < window.first || gate >= window.end()) return;
      for (Index group = 0; group < a.columns; group += kSumGroup) {
        T group_sum = group == 0 ? sum : T(0);
        for (Index begin = group; begin < std::min(group + kSumGroup, a.columns);
             begin += kSumBlock) {
          const bool at_bias = start_ != Start::accumulators && &a == &x_ && begin == 0;
          T block = at_bias ? sum : T(0);
          for (Index k = begin; k < std::min(begin + kSumBlock, a.columns); ++k) {
            const T w = element(panel, a.columns, window.count, k, gate - window.first, unit);
            block = multiply_add(a(r, k), w, block);
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

  T wanted(Index r, Index gate, Index unit) const {
    return wanted_[static_cast<std::size_t>((r * gates + gate) * units_ + unit)];
  }

  // A call for some rows; its arrays are strided.
  PhaseCall<T> call(std::vector<T>& accumulators, Results& results, Index first, Index count) {
    PhaseCall<T> c;
    c.rows = count;
    c.slice_end = slices_;
    c.units = units_;
    c.x = {x_.strided(first), x_.columns, x_panel_.data()};
    c.h = {h_.strided(first), h_.columns, h_panel_.data()};
    c.bias = start_ == Start::bias ? bias_.data() : nullptr;
    c.accumulators = accumulators.data() + first * accumulators_row_stride();
    c.accumulators_row_stride = accumulators_row_stride();
    c.accumulators_slice_stride = accumulators_slice_stride();
    c.resume = start_ == Start::accumulators;
    c.h_next = results.h.strided(first);
    c.y = results.y.strided(first);
    c.saved = results.saved.strided(first);
    c.saved_gate_stride = slices_ * width;
    return c;
  }

  // All at once: with rows a stride apart; or in a table, the last first, and the slices as well.
  void whole(bool tables) {
    std::vector<T> accumulators = begun_;
    Results results(rows_, units_, slices_);
    PhaseCall<T> c = call(accumulators, results, 0, rows_);
    c.descending = tables;
    if (tables && start_ != Start::accumulators) {
      for (Matrix<T>* matrix : {&x_, &h_, &results.y, &results.h, &results.saved}) {
        matrix->reverse_table();
      }
      c.x.rows = x_.scattered();
      c.h.rows = h_.scattered();
      c.y = results.y.scattered();
      c.h_next = results.h.scattered();
      c.saved = results.saved.scattered();
    }
    phase<ProbeOf<Kind>::template Probe, T>(c);
    CHECK(complete(results));
  }

  // As a chunk of steps does it: the products with x first, then those with h.
  void x_then_h() {
    std::vector<T> accumulators = begun_;
    Results results(rows_, units_, slices_);
    PhaseCall<T> c = call(accumulators, results, 0, rows_);
    c.h = {};
    c.finish = false;
    phase<ProbeOf<Kind>::template Probe, T>(c);
    CHECK(untouched(results));
    c = call(accumulators, results, 0, rows_);
    c.x = {};
    c.bias = nullptr;
    c.resume = true;
    phase<ProbeOf<Kind>::template Probe, T>(c);
    CHECK(complete(results));
  }

  // As a thread does it that has not yet all of h: x and the first k's of h, then the others. The
  // cut is inside a block of sums, or between two.
  void h_in_parts(Index begun) {
    std::vector<T> accumulators = begun_;
    std::vector<T> partial_sums(accumulators.size(), nan<T>);
    Results results(rows_, units_, slices_);
    PhaseCall<T> c = call(accumulators, results, 0, rows_);
    Matrix<T> first = h_;
    for (Index r = 0; r < rows_; ++r) {
      for (Index k = begun; k < h_.columns; ++k) first(r, k) = nan<T>;
    }
    c.h.rows = first.strided(0);
    c.h_left = h_.columns - begun;
    c.finish = false;
    c.partial_sums = partial_sums.data();
    c.partial_sums_slice_stride = accumulators_slice_stride();
    phase<ProbeOf<Kind>::template Probe, T>(c);
    CHECK(untouched(results));
    c = call(accumulators, results, 0, rows_);
    c.x.depth = 0;
    c.h_begin = begun;
    c.resume = true;
    c.partial_sums = partial_sums.data();
    c.partial_sums_slice_stride = accumulators_slice_stride();
    phase<ProbeOf<Kind>::template Probe, T>(c);
    CHECK(complete(results));
  }

  // As threads divide it.
  void pieces(Index piece, Index piece_slices) {
    std::vector<T> accumulators = begun_;
    Results results(rows_, units_, slices_);
    for (Index first = 0; first < rows_; first += piece) {
      for (Index slice = 0; slice < slices_; slice += piece_slices) {
        const Index end = std::min(first + piece, rows_);
        const Index slice_end = std::min(slice + piece_slices, slices_);
        PhaseCall<T> c = call(accumulators, results, first, end - first);
        c.slice_begin = slice;
        c.slice_end = slice_end;
        c.descending = first / piece % 2 != 0;
        phase<ProbeOf<Kind>::template Probe, T>(c);
        if (first == 0 && slice == 0) CHECK(only_these_written(results, end, slice_end));
      }
    }
    CHECK(complete(results));
  }

  bool complete(Results& results) {
    bool all = true;
    for (Index r = 0; r < rows_; ++r) {
      for (Index unit = 0; unit < units_; ++unit) {
        all = all && same(results.y(r, unit), wanted(r, 0, unit));
        all = all && same(results.h(r, unit), wanted(r, 0, unit));
        for (Index gate = 0; gate < gates; ++gate) {
          all = all && same(results.saved(r, gate * slices_ * width + unit), wanted(r, gate, unit));
        }
      }
    }
    return all && gaps_untouched(results);
  }

  bool gaps_untouched(Results& results) const {
    return results.y.gaps_are(canary<T>) && results.h.gaps_are(canary<T>) &&
           results.saved.gaps_are(canary<T>);
  }

  bool untouched(Results& results) const { return only_these_written(results, 0, 0); }

  // Of all rows the first `rows`, of all slices the first `slices`.
  bool only_these_written(Results& results, Index rows, Index slices) const {
    bool all = gaps_untouched(results);
    for (Index r = 0; r < rows_; ++r) {
      for (Index unit = 0; unit < slices_ * width; ++unit) {
        if (r < rows && unit < slices * width) continue;
        if (unit < units_) all = all && results.y(r, unit) == canary<T>;
        all = all && results.h(r, unit) == canary<T>;
        for (Index gate = 0; gate < gates; ++gate) {
          all = all && results.saved(r, gate * slices_ * width + unit) == canary<T>;
        }
      }
    }
    return all;
  }

  const Index rows_, units_, slices_;
  const Start start_;
  Matrix<T> x_, h_;
  const std::vector<T> x_panel_, h_panel_, bias_;
  const std::vector<T> begun_;  // accumulators to resume from
  std::vector<T> wanted_;       // [row][gate][unit]
};

template <PhaseKind Kind, class T>
void check_phase() {
  Random random(Kind);
  int count = 0;
  const auto check = [&](Index rows, Index units, Index x_depth, Index h_depth) {
    if (phase_spec(Kind).h.count == 0) h_depth = 0;
    PhaseProblem<Kind, T>(random, rows, units, x_depth, h_depth, static_cast<Start>(count++ % 3))
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
  // Depths that are cut into blocks, within x, within h, and between.
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

// ---- Weight gradients

template <class T>
void check_outer(Random& random, Index depth, Index left_columns, Index right_columns) {
  Matrix<T> left = Matrix<T>::random(random, depth, left_columns);
  Matrix<T> right = Matrix<T>::random(random, depth, right_columns);
  if (depth > 0 && left_columns > 2) left(depth / 2, 1) = nan<T>;  // stays in row 1 of the result
  const std::vector<T> before = random.numbers<T>(left_columns * right_columns);

  for (const bool resume : {false, true}) {
    std::vector<T> wanted;
    for (Index m = 0; m < left_columns; ++m) {
      for (Index n = 0; n < right_columns; ++n) {
        T sum = resume ? before[wanted.size()] : T(0);
        for (Index begin = 0; begin < depth; begin += kOuterSumBlock) {
          T block = T(0);
          for (Index r = begin; r < std::min(begin + kOuterSumBlock, depth); ++r)
            block = multiply_add(left(r, m), right(r, n), block);
          sum += block;
        }
        wanted.push_back(sum);
      }
    }
    // Whole; in two parts of the rows of the result; and the depth in two calls, between blocks.
    enum Cut { none, columns, depths };
    for (const Cut cut : {none, columns, depths}) {
      Matrix<T> result(left_columns, right_columns, 3, canary<T>);
      for (std::size_t i = 0; i < before.size(); ++i) {
        const Index at = static_cast<Index>(i);
        result(at / right_columns, at % right_columns) = before[i];
      }
      std::vector<T> scratch(static_cast<std::size_t>(OuterShape<T>::kScratch) + 3, nan<T>);
      std::fill(scratch.end() - 3, scratch.end(), canary<T>);
      const auto run = [&](Index k0, Index k1, Index m0, Index m1) {
        OuterCall<T> call;
        call.depth = k1 - k0;
        call.left = left.strided(k0);
        call.left.base += m0;
        call.left_columns = m1 - m0;
        call.right = cut == none ? right.scattered(k0) : right.strided(k0);
        call.right_columns = right_columns;
        call.result = result.strided(m0);
        call.resume = resume || k0 > 0;
        call.scratch = scratch.data();
        outer<T>(call);
      };
      const Index third = left_columns / 3, half = depth / 2 / kOuterSumBlock * kOuterSumBlock;
      if (cut == none) run(0, depth, 0, left_columns);
      if (cut == columns) {
        run(0, depth, 0, third);
        run(0, depth, third, left_columns);
      }
      if (cut == depths) {
        run(0, half, 0, left_columns);
        if (half > 0) run(half, depth, 0, left_columns);
        if (half == 0 && depth > 0) continue;  // no two parts
      }
      bool all = true;
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        const Index at = static_cast<Index>(i);
        all = all && same(result(at / right_columns, at % right_columns), wanted[i]);
      }
      CHECK(all);
      CHECK(result.gaps_are(canary<T>));
      for (int i = 1; i <= 3; ++i) CHECK(scratch[scratch.size() - i] == canary<T>);
    }
  }
}

template <class T>
void check_outer() {
  Random random(10);
  for (const Index depth : {0, 1, 5}) {
    for (const Index left_columns : {1, 2, 3, 4, 5, 6, 7, 8, 13, 33}) {
      for (const Index right_columns : {1, 3, 15, 16, 17, 33, 100}) {
        check_outer<T>(random, depth, left_columns, right_columns);
      }
    }
  }
  // More than is packed at once.
  for (const Index depth :
       {kOuterSumBlock - 1, kOuterSumBlock, kOuterSumBlock + 1, 2 * kOuterSumBlock + 44}) {
    check_outer<T>(random, depth, 7, 17);
  }
  for (const Index more : {0, 1, 2, 17}) check_outer<T>(random, 5, kOuterLeft + more, 17);
  check_outer<T>(random, kOuterSumBlock + 5, 2 * kOuterLeft + 1, 3);
}

// ---- Sums of rows

template <class T>
void check_sums() {
  Random random(20);
  for (const Index rows : {Index{0}, Index{1}, Index{2}, Index{13}, 2 * kOuterSumBlock + 1}) {
    for (const Index columns : {0, 1, 3, 15, 16, 17, 33, 100}) {
      Matrix<T> from = Matrix<T>::random(random, rows, columns);
      const std::vector<T> before = random.numbers<T>(columns);
      for (const bool resume : {false, true}) {
        for (const bool table : {false, true}) {
          Matrix<T> sum(1, columns, 3, canary<T>);
          std::copy(before.begin(), before.end(), sum.row(0));
          sum_rows<T>(table ? from.scattered() : from.strided(), rows, columns, sum.row(0), resume);
          for (Index j = 0; j < columns; ++j) {
            T wanted = resume ? before[static_cast<std::size_t>(j)] : T(0);
            for (Index begin = 0; begin < rows; begin += kOuterSumBlock) {
              T block = T(0);
              for (Index r = begin; r < std::min(begin + kOuterSumBlock, rows); ++r)
                block += from(r, j);
              wanted += block;
            }
            CHECK(same(sum(0, j), wanted));
          }
          CHECK(sum.gaps_are(canary<T>));
        }
      }
      for (const bool table : {false, true}) {
        Matrix<T> to(rows, columns, 3, canary<T>);
        for (Index r = 0; r < rows; ++r) {
          for (Index j = 0; j < columns; ++j) to(r, j) = T(0.1) * static_cast<T>(r + j);
        }
        Matrix<T> wanted = to;
        add_rows<T>(table ? from.scattered() : from.strided(), to.strided(), rows, columns);
        for (Index r = 0; r < rows; ++r) {
          for (Index j = 0; j < columns; ++j) CHECK(same(to(r, j), wanted(r, j) + from(r, j)));
        }
        CHECK(to.gaps_are(canary<T>));
      }
    }
  }
}

// ---- Cells

double sigmoid_of(double a) { return 1 / (1 + std::exp(-a)); }

// What a step reads and makes of one unit, in double precision. Gates in the order of the kernels:
// i f g o, n r z q, or f n.
struct Unit {
  double a[4] = {};  // accumulators
  double h_prev = 0, c_prev = 0;
  double peephole[3] = {};  // i f o

  double gates[4] = {};
  double h = 0, c = 0, gated_h = 0;

  void lstm() {
    gates[0] = sigmoid_of(a[0] + peephole[0] * c_prev);
    gates[1] = sigmoid_of(a[1] + peephole[1] * c_prev);
    gates[2] = std::tanh(a[2]);
    c = gates[1] * c_prev + gates[0] * gates[2];
    gates[3] = sigmoid_of(a[3] + peephole[2] * c);
    h = gates[3] * std::tanh(c);
  }

  void gru(bool reset_after) {
    gates[1] = sigmoid_of(a[1]);
    gates[2] = sigmoid_of(a[2]);
    gates[3] = a[3];
    gates[0] = std::tanh(reset_after ? a[0] + gates[1] * a[3] : a[0]);
    gated_h = gates[1] * h_prev;
    h = gates[2] * h_prev + (1 - gates[2]) * gates[0];
  }

  void mgu() {
    gates[0] = sigmoid_of(a[0]);
    gates[1] = std::tanh(a[1]);
    gated_h = gates[0] * h_prev;
    h = (1 - gates[0]) * h_prev + gates[0] * gates[1];
  }
};

// The derivative of objective() by a number that it reads, by central differences.
template <class Objective>
double derivative(double& number, const Objective& objective) {
  constexpr double step = 1e-5;
  const double at = number;
  number = at + step;
  const double up = objective();
  number = at - step;
  const double down = objective();
  number = at;
  return (up - down) / (2 * step);
}

// Calls of a cell for one vector: the second of the second row, whose last lane is padding.
template <class T>
struct CellCall {
  static constexpr Index width = Vec<T>::width;
  static constexpr Index units = 2 * width - 1;
  static constexpr Index padded = 2 * width;
  static constexpr Index lanes = width - 1;
  // Values of order 1 and some twenty operations; central differences add an error of their own.
  static constexpr double tolerance = 50 * static_cast<double>(std::numeric_limits<T>::epsilon());
  static constexpr double slope_tolerance = tolerance + 1e-9;

  Random random{30};
  Unit unit[width];
  T a[4][width];
  double dh_before[width], dc_before[width], dgated_h_before[width];
  std::vector<T> peephole = std::vector<T>(2 * 3 * width);
  Matrix<T> h_prev = make(padded), c_prev = make(padded), h = make(padded), c = make(padded);
  Matrix<T> y = make(units), saved = make(4 * padded), gated_h = make(padded), z = make(padded);
  Matrix<T> dh = make(padded), dc = make(padded), dgated_h = make(padded);
  Matrix<T> dgates = make(4 * units), dpeephole = make(3 * units), cell_output = make(padded);
  PhaseCall<T> forward;
  BackwardCall<T> backward;

  CellCall() {
    for (Index j = 0; j < width; ++j) {
      for (int gate = 0; gate < 4; ++gate) {
        unit[j].a[gate] = 2 * random.number();
        a[gate][j] = static_cast<T>(unit[j].a[gate]);
      }
      for (int w = 0; w < 3; ++w) {
        unit[j].peephole[w] = random.number();
        peephole[static_cast<std::size_t>((3 + w) * width + j)] =
            static_cast<T>(unit[j].peephole[w]);
      }
      unit[j].h_prev = put_number(h_prev, j);
      unit[j].c_prev = put_number(c_prev, j);
      dh_before[j] = put_number(dh, j);
      dc_before[j] = put_number(dc, j);
      dgated_h_before[j] = put_number(dgated_h, j);
    }
    forward.units = backward.units = units;
    forward.saved_gate_stride = backward.saved_gate_stride = padded;
    forward.peephole = backward.peephole = peephole.data();
    forward.saved = saved.strided(), backward.saved = saved.strided();
    forward.h_prev = h_prev.strided(), backward.h_prev = h_prev.strided();
    forward.c_prev = c_prev.strided(), backward.c_prev = c_prev.strided();
    forward.gated_h = gated_h.strided(), backward.gated_h = gated_h.strided();
    forward.c_next = c.strided(), backward.c_next = c.strided();
    forward.h_next = h.strided();
    forward.y = y.strided();
    forward.phase_state = z.strided();
    backward.dh = dh.strided();
    backward.dc = dc.strided();
    backward.dgated_h = dgated_h.strided();
    backward.dgates = dgates.strided();
    backward.dpeephole = dpeephole.strided();
    backward.cell_output = cell_output.strided();
  }

  static Matrix<T> make(Index columns) { return Matrix<T>(2, columns, 3, canary<T>); }
  static Place<T> place() { return {1, width, static_cast<int>(lanes)}; }

  double put_number(Matrix<T>& matrix, Index j) {
    const double number = random.number();
    matrix(1, width + j) = static_cast<T>(number);
    return number;
  }

  // What stands for lane j, in one of a row's blocks of `size` elements.
  static double at(Matrix<T>& matrix, Index j, Index block = 0, Index size = 0) {
    return static_cast<double>(matrix(1, block * size + width + j));
  }
  double saved_gate(Index j, Index gate) { return at(saved, j, gate, padded); }
  double dgate(Index j, Index gate) { return at(dgates, j, gate, units); }

  // The accumulators are those from `first_gate` on.
  template <class Cell>
  void run_finish(int first_gate) {
    constexpr int gates = Cell::spec.gates.count;
    T memory[gates * width];
    const Accumulators<T> accumulators(memory);
    for (int gate = 0; gate < gates; ++gate) accumulators.set(gate, load<T>(a[first_gate + gate]));
    Cell::template gates<T>(forward, accumulators, place());
    Cell::template state<T>(forward, accumulators, place());
  }
  template <class Cell>
  void run_backward() {
    Cell::template backward<T>(backward, place());
  }

  // Nothing but the vector was written, and of rows without padding no more than its units.
  void check_canaries() {
    for (Matrix<T>* matrix : {&h, &c, &y, &saved, &gated_h, &z, &dh, &dc, &dgated_h, &dgates,
                              &dpeephole, &cell_output}) {
      CHECK(matrix->gaps_are(canary<T>));
      for (Index i = 0; i < matrix->columns; ++i) CHECK((*matrix)(0, i) == canary<T>);
      for (Index i = 0; i < width; ++i) CHECK((*matrix)(1, i) == canary<T>);
    }
    for (Index gate = 0; gate < 4; ++gate) {
      for (Index i = 0; i < width; ++i) {
        CHECK(dgates(1, gate * units + i) == canary<T>);
        CHECK(saved(1, gate * padded + i) == canary<T>);
        if (gate < 3) CHECK(dpeephole(1, gate * units + i) == canary<T>);
      }
    }
  }
};

template <bool Peephole, class T>
void check_lstm() {
  CellCall<T> call;
  call.template run_finish<Lstm<StandardActivations, Peephole>>(0);
  call.template run_backward<Lstm<StandardActivations, Peephole>>();
  for (Index j = 0; j < call.lanes; ++j) {
    Unit unit = call.unit[j];
    if (!Peephole) std::fill(unit.peephole, unit.peephole + 3, 0.0);
    const auto objective = [&] {
      unit.lstm();
      return call.dh_before[j] * unit.h + call.dc_before[j] * unit.c;
    };
    objective();
    CHECK_NEAR(call.at(call.c, j), unit.c, call.tolerance);
    CHECK_NEAR(call.at(call.h, j), unit.h, call.tolerance);
    CHECK(call.at(call.y, j) == call.at(call.h, j));
    CHECK_NEAR(call.at(call.cell_output, j), unit.h, call.tolerance);
    for (int gate = 0; gate < 4; ++gate) {
      CHECK_NEAR(call.saved_gate(j, gate), unit.gates[gate], call.tolerance);
    }
    for (int gate = 0; gate < 4; ++gate) {
      CHECK_NEAR(call.dgate(j, gate), derivative(unit.a[gate], objective), call.slope_tolerance);
    }
    CHECK_NEAR(call.at(call.dc, j), derivative(unit.c_prev, objective), call.slope_tolerance);
    for (int w = 0; Peephole && w < 3; ++w) {
      CHECK_NEAR(call.at(call.dpeephole, j, w, call.units), derivative(unit.peephole[w], objective),
                 call.slope_tolerance);
    }
  }
  call.check_canaries();
}

template <class T>
void check_gru(bool reset_after) {
  CellCall<T> call;
  if (reset_after) {
    call.template run_finish<GruAfter<StandardActivations>>(0);
    call.template run_backward<GruAfter<StandardActivations>>();
  } else {
    call.template run_finish<GruGates<StandardActivations>>(1);
    call.template run_finish<GruCandidate<StandardActivations>>(0);
    call.template run_backward<GruCandidate<StandardActivations>>();
    call.template run_backward<GruGates<StandardActivations>>();
  }
  for (Index j = 0; j < call.lanes; ++j) {
    Unit unit = call.unit[j];
    const auto objective = [&] {
      unit.gru(reset_after);
      // Of r*h the gradient comes from elsewhere: from the product with U_n.
      return call.dh_before[j] * unit.h +
             (reset_after ? 0 : call.dgated_h_before[j] * unit.gated_h);
    };
    objective();
    CHECK_NEAR(call.at(call.h, j), unit.h, call.tolerance);
    CHECK(call.at(call.y, j) == call.at(call.h, j));
    if (!reset_after) CHECK_NEAR(call.at(call.gated_h, j), unit.gated_h, call.tolerance);
    for (int gate = 0; gate < (reset_after ? 4 : 3); ++gate) {
      CHECK_NEAR(call.saved_gate(j, gate), unit.gates[gate], call.tolerance);
    }
    for (int gate = 0; gate < (reset_after ? 4 : 3); ++gate) {
      CHECK_NEAR(call.dgate(j, gate), derivative(unit.a[gate], objective), call.slope_tolerance);
    }
    CHECK_NEAR(call.at(call.dh, j), derivative(unit.h_prev, objective), call.slope_tolerance);
  }
  call.check_canaries();
}

template <class T>
void check_mgu() {
  CellCall<T> call;
  call.template run_finish<MguGate<StandardActivations>>(0);
  call.template run_finish<MguCandidate<StandardActivations>>(1);
  call.template run_backward<MguCandidate<StandardActivations>>();
  call.template run_backward<MguGate<StandardActivations>>();
  for (Index j = 0; j < call.lanes; ++j) {
    Unit unit = call.unit[j];
    const auto objective = [&] {
      unit.mgu();
      // The gradient by f*h comes from the product with U_n.
      return call.dh_before[j] * unit.h + call.dgated_h_before[j] * unit.gated_h;
    };
    objective();
    CHECK_NEAR(call.at(call.h, j), unit.h, call.tolerance);
    CHECK(call.at(call.y, j) == call.at(call.h, j));
    CHECK_NEAR(call.at(call.gated_h, j), unit.gated_h, call.tolerance);
    for (int gate = 0; gate < 2; ++gate) {
      CHECK_NEAR(call.saved_gate(j, gate), unit.gates[gate], call.tolerance);
      CHECK_NEAR(call.dgate(j, gate), derivative(unit.a[gate], objective), call.slope_tolerance);
    }
    CHECK_NEAR(call.at(call.dh, j), derivative(unit.h_prev, objective), call.slope_tolerance);
  }
  call.check_canaries();
}

TEST(phase_with_the_gates_of_a_gru) {
  check_phase<kGruAfter, float>();
  check_phase<kGruAfter, double>();
}

TEST(phase_of_two_gates) { check_phase<kGruGates, float>(); }

TEST(phase_of_a_plain_product) {
  check_phase<kLinear, float>();
  check_phase<kLinear, double>();
}

TEST(weight_gradients) {
  check_outer<float>();
  check_outer<double>();
}

TEST(sums_of_rows) {
  check_sums<float>();
  check_sums<double>();
}

TEST(lstm_and_its_derivative) {
  check_lstm<false, float>();
  check_lstm<false, double>();
  check_lstm<true, float>();
  check_lstm<true, double>();
}

TEST(gru_and_its_derivative) {
  for (const bool reset_after : {true, false}) {
    check_gru<float>(reset_after);
    check_gru<double>(reset_after);
  }
}

TEST(mgu_and_its_derivative) {
  check_mgu<float>();
  check_mgu<double>();
}

}  // namespace
}  // namespace tidegate
