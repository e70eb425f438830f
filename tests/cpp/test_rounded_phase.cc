// The storages that round rows: packing, and the products of phases against plain loops in the
// order that their files state, bit for bit. Packing and products run with
// denormals flushed, as in a call; the plain loops flush by themselves.
#include "kernels/rounded_phase.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "core/float_control.h"
#include "flushed.h"
#include "kernels/bf16_dot_weights.cc"
#include "kernels/bf16_weights.cc"
#include "kernels/int8_weights.cc"
#include "matrix.h"
#include "probe.h"

namespace tidegate {
namespace {

using test::flushed;
using test::flushed_fma;
using test::flushed_product;
using test::flushed_sum;
using test::size_of;

constexpr Index kWidth = Vec<float>::width;

Index slices_of(Index units) { return (units + kWidth - 1) / kWidth; }

// Memory with guards behind it, filled with ones.
class GuardedBytes {
 public:
  explicit GuardedBytes(Index size)
      : size_(size_of(size)), bytes_(size_ + kGuard, static_cast<unsigned char>(0xff)) {}
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  bool guard_is_whole() const {
    return std::all_of(bytes_.begin() + static_cast<std::ptrdiff_t>(size_), bytes_.end(),
                       [](unsigned char byte) { return byte == 0xff; });
  }

 private:
  static constexpr std::size_t kGuard = 64;
  std::size_t size_;
  std::vector<unsigned char> bytes_;
};

// ---- The storages in plain loops

struct RoundedRow {
  std::vector<float> values;
  float scale = 1;
};

template <class Weights>
struct Plain;

template <>
struct Plain<Int8Weights> {
#if defined(TIDEGATE_I8MM)
  static constexpr Index k_of_group = 8;
  static constexpr int offset = 0;
#elif defined(TIDEGATE_DOT)
  static constexpr Index k_of_group = 4;
  static constexpr int offset = quad_bias;  // of elements
#else
  static constexpr Index k_of_group = 2;
  static constexpr int offset = 0;
#endif
  static constexpr Index k_of_block = 64;

  static RoundedRow round_row(const float* row, Index depth, float least) {
    RoundedRow rounded;
    rounded.values.assign(size_of(depth), 0);
    float most = least;
    for (Index k = 0; k < depth; ++k) {
      if (!std::isfinite(row[k])) {
        rounded.scale = nan<float>;
        return rounded;
      }
      most = std::max(most, std::fabs(row[k]));
    }
    if (most < std::ldexp(1.0f, -100)) most = 127;
    const float inverse = 127 / most;
    for (Index k = 0; k < depth; ++k)
      rounded.values[size_of(k)] = std::nearbyint(flushed_product(row[k], inverse));
    rounded.scale = most / 127;
    return rounded;
  }

  static float add(float sum, const RoundedRow& row, const float* weights, float scale) {
    std::int64_t products = 0;
    for (std::size_t k = 0; k < row.values.size(); ++k)
      products += static_cast<std::int64_t>(row.values[k]) * static_cast<std::int64_t>(weights[k]);
    const float scaled = flushed_product(static_cast<float>(products), scale);
    return flushed_sum(sum, flushed_product(scaled, row.scale));
  }
};

struct PlainBf16 {
  static constexpr Index k_of_group = 2;
  static constexpr Index k_of_block = 32;

  static RoundedRow round_row(const float* row, Index depth, float) {
    RoundedRow rounded;
    for (Index k = 0; k < depth; ++k) rounded.values.push_back(test::rounded_to_bfloat16(row[k]));
    return rounded;
  }
};

template <>
struct Plain<Bf16Weights> : PlainBf16 {
  static float add(float sum, const RoundedRow& row, const float* weights, float) {
    const std::size_t depth = row.values.size();
    for (std::size_t block = 0; block < depth; block += 32) {
      const std::size_t end = std::min(block + 32, depth);
      float even = 0, odd = 0;
      for (std::size_t k = block; k < end; ++k) {
        float& chain = k % 2 == 0 ? even : odd;
        chain = flushed_fma(row.values[k], weights[k], chain);
      }
      if (end < block + 32) {
        even += 0.0f;
        odd += 0.0f;
      }
      sum = flushed_sum(sum, flushed_sum(even, odd));
    }
    return sum;
  }
};

template <>
struct Plain<Bf16DotWeights> : PlainBf16 {
  static float add(float sum, const RoundedRow& row, const float* weights, float) {
    const std::size_t depth = row.values.size();
    for (std::size_t k = 0; k < depth; k += 2) {
      // Beyond the end, zeros are multiplied.
      const bool is_pair = k + 1 < depth;
      sum = flushed_fma(is_pair ? row.values[k + 1] : 0, is_pair ? weights[k + 1] : 0, sum);
      sum = flushed_fma(row.values[k], weights[k], sum);
    }
    return sum;
  }
};

// ---- Packed weights

// How the numbers that are packed lie in memory.
enum class Layout {
  by_unit,  // the k's of a unit are adjacent
  by_k,     // the units of a k are adjacent
  stacked,  // blocks of several k's, each as one of the above, some of them negated
};
constexpr int kLayouts = 3;

// Packs a block of numbers as the core does, for one slice after the other.
template <class Weights>
void pack_all(const PanelShape& shape, const std::vector<WeightBlock<float>>& blocks,
              GuardedBytes& panel) {
  const FloatControl flushes;
  for (Index slice = 0; slice < slices_of(shape.units); ++slice) {
    for (Index begin = 0; begin < shape.depth; begin += kPackedDepth) {
      for (const WeightBlock<float>& block : blocks) {
        PackCall<float> call;
        call.panel = panel.data();
        call.shape = shape;
        call.block = block;
        call.slice = slice;
        call.k_begin = std::max(begin, block.k_begin);
        call.k_end = std::min({begin + kPackedDepth, shape.depth, block.k_end});
        if (call.k_begin < call.k_end) RoundedPanels<Weights>::pack(call);
      }
    }
  }
}

// The element of a panel as a number: an integer of int8, without its scale.
template <class Weights>
float element(const GuardedBytes& panel, const PanelShape& shape, Index unit, Index k, Index gate) {
  using P = Plain<Weights>;
  const Index blocks = (shape.depth + P::k_of_block - 1) / P::k_of_block;
  const Index groups = blocks * P::k_of_block / P::k_of_group;
  const Index vector = (unit / kWidth * groups + k / P::k_of_group) * shape.gates + gate;
  const Index at = (vector * kWidth + unit % kWidth) * P::k_of_group + k % P::k_of_group;
  typename Weights::Element value;
  std::memcpy(&value, static_cast<const char*>(panel.data()) + at * Index{sizeof value},
              sizeof value);
  if constexpr (Weights::has_scales) return static_cast<float>(value - P::offset);
  return test::float_of_bits(static_cast<std::uint32_t>(value) << 16);
}

// Random weights, and their panel.
template <class Weights>
class RandomPanel {
 public:
  RandomPanel(Random& random, Index units, Index depth, Index gates, Layout layout)
      : shape_{units, depth, gates}, panel_(RoundedPanels<Weights>::panel_bytes(shape_)) {
    for (Index gate = 0; gate < gates; ++gate) {
      signs_.push_back(random.below(2) == 0 ? -1 : 1);
      for (Index unit = 0; unit < units; ++unit) choose_weights(random);
    }
    for (const float scale : scales_) magnitudes_.push_back(std::fabs(scale));
    std::vector<WeightBlock<float>> blocks;
    std::vector<std::vector<float>> memory;
    for (Index gate = 0; gate < gates && depth > 0; ++gate) {
      // Odd sizes: a group and a block of 64 bytes hold k's of two blocks.
      Index begin = 0;
      while (begin < depth) {
        const bool is_whole = layout != Layout::stacked;
        const Index end = is_whole ? depth : std::min(depth, begin + 1 + 2 * random.below(24));
        const bool by_unit = is_whole ? layout == Layout::by_unit : random.below(2) == 0;
        // Scales take the sign, which is then the same for all k's.
        const bool negated = Weights::has_scales ? signs_[size_of(gate)] < 0 : random.below(2) == 0;
        const float sign = negated ? -1.0f : 1.0f;
        blocks.push_back(block(gate, begin, end, by_unit, sign, memory));
        begin = end;
      }
    }
    // `memory` no longer grows.
    for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i].base = memory[i].data();
    pack_all<Weights>(shape_, blocks, panel_);
    CHECK(is_packed());
  }

  Panel panel() const { return panel_.data(); }
  // The weights of a unit as the product uses them.
  const float* weights(Index gate, Index unit) const {
    return weights_.data() + (gate * shape_.units + unit) * shape_.depth;
  }
  float scale(Index gate, Index unit) const { return scales_[size_of(gate * shape_.units + unit)]; }

 private:
  // The weights of one gate and unit.
  void choose_weights(Random& random) {
    const int kind = static_cast<int>(random.below(20));
    // Scales of all magnitudes; few of them are powers of two.
    scales_.push_back(static_cast<float>(1 + random.below(1000)) * (kind == 0   ? 1e-33f
                                                                    : kind == 1 ? 1e20f
                                                                                : 1e-5f));
    if (Weights::has_scales) scales_.back() *= signs_.back();
    const std::size_t unusual = kind == 2 && shape_.depth > 0
                                    ? size_of(random.below(shape_.depth)) + weights_.size()
                                    : SIZE_MAX;
    for (Index k = 0; k < shape_.depth; ++k) {
      if constexpr (Weights::has_scales) {
        weights_.push_back(static_cast<float>(random.below(255) - 127));
        // The block's sign is negative, too, if the scale is.
        given_.push_back(weights_.back() * scales_.back());
      } else {
        const float fraction = static_cast<float>(random.below(1 << 24) - (1 << 23)) * 0x1p-23f;
        float weight = fraction;
        if (kind == 0) weight = std::ldexp(fraction, static_cast<int>(random.below(80)) - 40);
        if (kind == 1) weight = random.below(2) == 0 ? -0.0f : 1e-38f;
        if (weights_.size() == unusual)
          weight = random.below(2) == 0 ? nan<float> : std::numeric_limits<float>::infinity();
        given_.push_back(weight);
        weights_.push_back(flushed(test::rounded_to_bfloat16(weight)));
      }
    }
  }

  // A block with these weights times `sign`, in memory with NaN between its rows.
  WeightBlock<float> block(Index gate, Index begin, Index end, bool by_unit, float sign,
                           std::vector<std::vector<float>>& memory) {
    WeightBlock<float> result;
    result.gate = gate;
    result.k_begin = begin;
    result.k_end = end;
    result.k_stride = by_unit ? 1 : shape_.units + 3;
    result.unit_stride = by_unit ? end - begin + 3 : 1;
    result.sign = sign;
    if (Weights::has_scales) result.scales = magnitudes_.data() + gate * shape_.units;
    memory.emplace_back(size_of((by_unit ? shape_.units : end - begin) *
                                (by_unit ? result.unit_stride : result.k_stride)),
                        nan<float>);
    for (Index unit = 0; unit < shape_.units; ++unit) {
      for (Index k = begin; k < end; ++k) {
        const Index at = unit * result.unit_stride + (k - begin) * result.k_stride;
        memory.back()[size_of(at)] =
            sign * given_[size_of((gate * shape_.units + unit) * shape_.depth + k)];
      }
    }
    return result;
  }

  // Whether the panel holds the weights, and zeros elsewhere; and the scales.
  bool is_packed() const {
    using P = Plain<Weights>;
    const Index depth = (shape_.depth + P::k_of_block - 1) / P::k_of_block * P::k_of_block;
    const Index units = slices_of(shape_.units) * kWidth;
    bool all = panel_.guard_is_whole();
    for (Index gate = 0; gate < shape_.gates; ++gate) {
      for (Index unit = 0; unit < units; ++unit) {
        for (Index k = 0; k < depth; ++k) {
          const bool is_padding = unit >= shape_.units || k >= shape_.depth;
          const float wanted = is_padding ? 0.0f : weights(gate, unit)[k];
          const float got = element<Weights>(panel_, shape_, unit, k, gate);
          // -0 may be packed as 0: the sign of a zero product is lost in its sum.
          all = all && (got == wanted || same(got, wanted));
        }
        if (Weights::has_scales && shape_.depth > 0) {
          float got;
          const Index at =
              units * shape_.gates * depth * Index{sizeof(typename Weights::Element)} +
              ((unit / kWidth * shape_.gates + gate) * kWidth + unit % kWidth) * Index{sizeof got};
          std::memcpy(&got, static_cast<const char*>(panel_.data()) + at, sizeof got);
          const float wanted = unit < shape_.units ? scale(gate, unit) : 0.0f;
          all = all && got == wanted;
        }
      }
    }
    return all;
  }

  const PanelShape shape_;
  GuardedBytes panel_;
  // [gate][unit][k], as given and as packed, and [gate][unit].
  std::vector<float> given_, weights_, scales_;
  // For storages with scales: of the gates, and the scales without them.
  std::vector<float> signs_, magnitudes_;
};

// ---- Phases

// Rows of all kinds, in turn: usual numbers, and those at the limits of the rounding.
Matrix<float> random_rows(Random& random, Index rows, Index columns, int first_kind) {
  Matrix<float> matrix(rows, columns, 3, nan<float>);
  for (Index r = 0; r < rows; ++r) {
    const int kind = static_cast<int>((r + first_kind) % 12);
    for (Index k = 0; k < columns; ++k) {
      const float fraction = static_cast<float>(random.below(1 << 24) - (1 << 23)) * 0x1p-23f;
      float x = fraction;
      if (kind == 1) x = 5 * fraction;
      if (kind == 2) x = 0.01f * fraction;
      if (kind == 3) x = std::ldexp(fraction, static_cast<int>(random.below(80)) - 40);
      if (kind == 4) x = random.below(2) == 0 ? 0.0f : -0.0f;
      if (kind == 5) x = 3e-38f * fraction;  // many are denormal
      if (kind == 6) x = std::ldexp(fraction, -100);
      matrix(r, k) = x;
    }
    if (columns == 0) continue;
    float& any = matrix(r, random.below(columns));
    if (kind == 7) any = nan<float>;
    if (kind == 8) any = std::numeric_limits<float>::infinity();
    if (kind == 9) any = -FLT_MAX;
    if (kind == 10) any = 1e-38f;
  }
  return matrix;
}

template <PhaseKind Kind, class Weights>
class RoundedProblem {
 public:
  static constexpr PhaseSpec spec = phase_spec(Kind);
  static constexpr Index gates = spec.gates.count;
  using Outputs = ProbeOutputs<Kind, float>;

  // `variant` varies what is not given.
  RoundedProblem(Random& random, Index rows, Index units, Index x_depth, Index h_depth, int variant)
      : rows_(rows),
        units_(units),
        slices_(slices_of(units)),
        start_(static_cast<Start>(variant % 3)),
        least_(variant % 2 == 0 ? 1.0f : 0.0f),
        x_(random_rows(random, rows, x_depth, variant % 12)),
        h_(random_rows(random, rows, h_depth, variant % 7)),
        x_panel_(random, units, x_depth, spec.x.count, static_cast<Layout>(variant % kLayouts)),
        h_panel_(random, units, h_depth, spec.h.count,
                 static_cast<Layout>((variant + 1) % kLayouts)),
        bias_(starts(random, slices_ * gates * kWidth)),
        begun_(starts(random, slices_ * rows * gates * kWidth)),
        x_rounded_(RoundedRows<Weights>::bytes(rows, x_depth)),
        h_rounded_(RoundedRows<Weights>::bytes(rows, h_depth)) {
    compute_wanted();
  }

  void check() {
    whole();
    by_tables_reversed();
    x_then_h();
    for (const Index begun : {Index{0}, Index{32}, h_.columns / 64 * 32, h_.columns}) {
      const bool is_end = begun == 0 || begun == h_.columns;
      if (begun <= h_.columns && (is_end || begun % Weights::grain == 0)) h_in_parts(begun);
    }
    pieces(1, 1);
    pieces(2, 3);
    pieces(5, 2);
    CHECK(x_rounded_.guard_is_whole() && h_rounded_.guard_is_whole());
  }

 private:
  static Index accumulators_row_stride() { return gates * kWidth; }
  Index accumulators_slice_stride() const { return rows_ * gates * kWidth; }

  // Numbers, zeros of both signs, and denormal numbers, which are kept unless something is added.
  static std::vector<float> starts(Random& random, Index count) {
    std::vector<float> values = random.numbers<float>(count);
    for (float& value : values) {
      const int kind = static_cast<int>(random.below(16));
      if (kind < 3) value = kind == 0 ? 0.0f : kind == 1 ? -0.0f : 1e-38f;
    }
    return values;
  }

  void compute_wanted() {
    for (Index r = 0; r < rows_; ++r) {
      const RoundedRow x = Plain<Weights>::round_row(x_.row(r), x_.columns, 0);
      const RoundedRow h = Plain<Weights>::round_row(h_.row(r), h_.columns, least_);
      for (int gate = 0; gate < gates; ++gate) {
        for (Index unit = 0; unit < units_; ++unit) {
          float sum = start(r, gate, unit);
          add(sum, x, x_panel_, spec.x, gate, unit);
          add(sum, h, h_panel_, spec.h, gate, unit);
          wanted_.push_back(sum);
        }
      }
    }
  }

  float start(Index r, Index gate, Index unit) const {
    const Index slice = unit / kWidth, lane = unit % kWidth;
    if (start_ == Start::zero) return 0;
    if (start_ == Start::bias) return bias_[size_of((slice * gates + gate) * kWidth + lane)];
    return begun_[size_of(slice * accumulators_slice_stride() + r * accumulators_row_stride() +
                          gate * kWidth + lane)];
  }

  static void add(float& sum, const RoundedRow& row, const RandomPanel<Weights>& panel,
                  Window window, int gate, Index unit) {
    if (row.values.empty() || gate < window.first || gate >= window.end()) return;
    gate -= window.first;
    sum = Plain<Weights>::add(sum, row, panel.weights(gate, unit), panel.scale(gate, unit));
  }

  // A call for some rows, by stride.
  PhaseCall<float> call(std::vector<float>& accumulators, Outputs& outputs, Index first,
                        Index count) {
    PhaseCall<float> c;
    c.rows = count;
    c.slice_end = slices_;
    c.units = units_;
    c.x = {x_.strided(first), x_panel_.panel(), x_.columns, 0, x_.columns, x_rounded_.data()};
    c.h = {h_.strided(first), h_panel_.panel(),  h_.columns, 0,
           h_.columns,        h_rounded_.data(), least_};
    c.bias = start_ == Start::bias ? bias_.data() : nullptr;
    c.accumulators = accumulators.data() + first * accumulators_row_stride();
    c.accumulators_row_stride = accumulators_row_stride();
    c.accumulators_slice_stride = accumulators_slice_stride();
    c.resume = start_ == Start::accumulators;
    outputs.set(c, first);
    return c;
  }

  static void run(const PhaseCall<float>& c) {
    const FloatControl flushes;
    rounded_products<Weights, shape_of(spec)>(c);
  }

  void whole() {
    std::vector<float> accumulators = begun_;
    Outputs outputs(rows_, units_);
    run(call(accumulators, outputs, 0, rows_));
    CHECK(outputs.are(wanted_));
  }

  // Rows by table, in reverse order; slices in reverse order.
  void by_tables_reversed() {
    std::vector<float> accumulators = begun_;
    Outputs outputs(rows_, units_);
    PhaseCall<float> c = call(accumulators, outputs, 0, rows_);
    c.reversed = true;
    if (start_ != Start::accumulators) {  // those are not in a table
      for (Matrix<float>* matrix : {&x_, &h_}) matrix->reverse_table();
      c.x.rows = x_.scattered();
      c.h.rows = h_.scattered();
      outputs.set_reversed(c);
    }
    run(c);
    CHECK(outputs.are(wanted_));
  }

  // As for a chunk of steps: the products with x in a first call, those with h in a second.
  void x_then_h() {
    std::vector<float> accumulators = begun_;
    Outputs outputs(rows_, units_);
    PhaseCall<float> c = call(accumulators, outputs, 0, rows_);
    c.h.end = 0;
    c.finish = nullptr;
    run(c);
    CHECK(outputs.untouched());
    c = call(accumulators, outputs, 0, rows_);
    c.x.end = 0;
    c.bias = nullptr;
    c.resume = true;
    run(c);
    CHECK(outputs.are(wanted_));
  }

  // As in a thread for which a part of h is not yet available: x and the first k's of h, then the
  // others.
  void h_in_parts(Index begun) {
    std::vector<float> accumulators = begun_;
    Outputs outputs(rows_, units_);
    PhaseCall<float> c = call(accumulators, outputs, 0, rows_);
    Matrix<float> first = h_;
    for (Index r = 0; r < rows_; ++r) {
      for (Index k = begun; k < h_.columns; ++k) first(r, k) = nan<float>;
    }
    c.h.rows = first.strided(0);
    c.h.end = begun;
    c.finish = nullptr;
    run(c);
    CHECK(outputs.untouched());
    c = call(accumulators, outputs, 0, rows_);
    c.x.end = 0;
    c.h.begin = begun;
    c.resume = true;
    run(c);
    CHECK(outputs.are(wanted_));
  }

  // Divided as among threads.
  void pieces(Index piece, Index piece_slices) {
    std::vector<float> accumulators = begun_;
    Outputs outputs(rows_, units_);
    for (Index first = 0; first < rows_; first += piece) {
      for (Index slice = 0; slice < slices_; slice += piece_slices) {
        const Index end = std::min(first + piece, rows_);
        PhaseCall<float> c = call(accumulators, outputs, first, end - first);
        c.slice_begin = slice;
        c.slice_end = std::min(slice + piece_slices, slices_);
        c.reversed = first / piece % 2 != 0;
        run(c);
        if (first == 0 && slice == 0) CHECK(outputs.only_these_written(end, c.slice_end));
      }
    }
    CHECK(outputs.are(wanted_));
  }

  const Index rows_, units_, slices_;
  const Start start_;
  const float least_;
  Matrix<float> x_, h_;
  const RandomPanel<Weights> x_panel_, h_panel_;
  const std::vector<float> bias_;   // [slice][gate][width]
  const std::vector<float> begun_;  // accumulators to resume from
  GuardedBytes x_rounded_, h_rounded_;
  std::vector<float> wanted_;  // [row][gate][unit]
};

// Depths of x and h around a group, half a block and blocks.
constexpr std::pair<Index, Index> kDepths[] = {
    {0, 0},   {1, 0},   {0, 1},   {2, 3},    {3, 2},    {31, 1},   {32, 33},  {33, 31}, {63, 64},
    {64, 65}, {65, 63}, {0, 100}, {100, 32}, {32, 100}, {257, 31}, {64, 257}, {100, 0}};
constexpr int kDepthCount = sizeof kDepths / sizeof *kDepths;

template <PhaseKind Kind, class Weights>
void check_phase() {
  Random random(Kind);
  int count = 0;
  const auto check = [&](Index rows, Index units, std::pair<Index, Index> depths) {
    const Index h_depth = phase_spec(Kind).h.count > 0 ? depths.second : 0;
    RoundedProblem<Kind, Weights>(random, rows, units, depths.first, h_depth, count++).check();
  };
  // Every shape of a tile, each with some of the depths; and every depth.
  int next = 0;
  for (const Index rows : {1, 2, 3, 4, 5, 6, 7, 8, 13, 33}) {
    for (const Index units : {1, 3, 15, 16, 17, 33, 100}) {
      for (int i = 0; i < 4; ++i) check(rows, units, kDepths[next++ % kDepthCount]);
    }
  }
  for (const std::pair<Index, Index>& depths : kDepths) {
    check(3, 17, depths);
    check(1, 33, depths);
  }
  check(128, 17, {33, 65});
  check(128, 100, {65, 100});
}

// ---- Single numbers

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The elements of a panel of one unit, which has these weights.
template <class Weights>
std::vector<float> packed(const std::vector<float>& weights, const float* scale = nullptr) {
  const PanelShape shape = {1, static_cast<Index>(weights.size()), 1};
  GuardedBytes panel(RoundedPanels<Weights>::panel_bytes(shape));
  WeightBlock<float> block;
  block.k_end = shape.depth;
  block.base = weights.data();
  block.k_stride = 1;
  block.unit_stride = shape.depth;
  block.scales = scale;
  pack_all<Weights>(shape, {block}, panel);
  std::vector<float> elements;
  for (Index k = 0; k < shape.depth; ++k)
    elements.push_back(element<Weights>(panel, shape, 0, k, 0));
  return elements;
}

// The product of rows with one unit.
template <class Weights>
std::vector<float> products(const std::vector<std::vector<float>>& rows,
                            const std::vector<float>& weights, float least = 0) {
  const PanelShape shape = {1, static_cast<Index>(weights.size()), 1};
  const auto count = static_cast<Index>(rows.size());
  GuardedBytes panel(RoundedPanels<Weights>::panel_bytes(shape));
  WeightBlock<float> block;
  block.k_end = shape.depth;
  block.base = weights.data();
  block.k_stride = 1;
  block.unit_stride = shape.depth;
  pack_all<Weights>(shape, {block}, panel);
  GuardedBytes rounded(RoundedRows<Weights>::bytes(count, shape.depth));
  std::vector<const float*> table;
  for (const std::vector<float>& row : rows) table.push_back(row.data());
  std::vector<float> accumulators(size_of(count * kWidth));
  PhaseCall<float> call;
  call.rows = count;
  call.slice_end = 1;
  call.units = 1;
  call.x = {
      {nullptr, 0, table.data()}, panel.data(), shape.depth, 0, shape.depth, rounded.data(), least};
  call.accumulators = accumulators.data();
  call.accumulators_row_stride = kWidth;
  {
    const FloatControl flushes;
    rounded_products<Weights, shape_of(phase_spec(kLinear))>(call);
  }
  std::vector<float> results;
  for (Index r = 0; r < count; ++r) results.push_back(accumulators[size_of(r * kWidth)]);
  return results;
}

}  // namespace

TEST(int8_weights_are_nearest_integers) {
  CHECK(same(packed<Int8Weights>(
                 {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, 127, -127, 0.499f, 0.501f, -0.0f}),
             {0, 2, 2, 0, -2, -2, 126, 127, -127, 0, 1, 0}));
  // Those of all scales are found again.
  std::vector<float> integers;
  for (int q = -128; q <= 127; ++q) integers.push_back(static_cast<float>(q));
  Random random(3);
  for (int i = 0; i < 3000; ++i) {
    const float scale = std::ldexp(static_cast<float>((1 << 23) + random.below(1 << 23)),
                                   static_cast<int>(random.below(230)) - 142);
    std::vector<float> weights;
    for (const float q : integers) weights.push_back(q * scale);
    CHECK(same(packed<Int8Weights>(weights, &scale), integers));
  }
}

TEST(int8_rows_are_nearest_integers) {
  const std::vector<float> row = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -126.5f, 0.501f};
  const std::vector<float> wanted = {127, 0, 2, 2, 0, -2, -126, 1};
  for (std::size_t k = 0; k < row.size(); ++k) {
    std::vector<float> unit(row.size(), 0.0f);
    unit[k] = 1;
    CHECK(products<Int8Weights>({row}, unit)[0] == wanted[k]);
    CHECK(products<Int8Weights>({row, row}, unit)[1] == wanted[k]);
  }
  // The greatest magnitude, or `least`, is 127.
  const std::vector<float> unit = {0, 1};
  const float step = 1.0f / 127;
  CHECK(products<Int8Weights>({{0.25f, 0.6f * step}}, unit, 1)[0] == step);
  CHECK(products<Int8Weights>({{0.25f, 0.6f * step}}, unit, 0.25f)[0] == 2 * (0.25f / 127));
  CHECK(products<Int8Weights>({{-2, 0.6f * step}}, unit, 1)[0] == 0);
  // Rows below 2^-100 are zero.
  CHECK(products<Int8Weights>({{0, 0x1p-100f}}, unit)[0] == 127 * (0x1p-100f / 127));
  CHECK(products<Int8Weights>({{0, std::nextafter(0x1p-100f, 0.0f)}}, unit)[0] == 0);
  CHECK(products<Int8Weights>({{0, FLT_MAX}}, unit)[0] == 127 * (FLT_MAX / 127));
}

TEST(int8_rows_that_are_not_finite_give_nan) {
  const std::vector<float> weights = {1, 2, 3};
  for (const float wrong : {nan<float>, -nan<float>, kInfinity, -kInfinity}) {
    for (std::size_t k = 0; k < 3; ++k) {
      std::vector<std::vector<float>> rows(3, {1, 127, 3});
      rows[1][k] = wrong;
      const std::vector<float> results = products<Int8Weights>(rows, weights);
      CHECK(same(results, {264, nan<float>, 264}));
    }
  }
}

TEST(int8_sums_are_exact_at_the_greatest_depth) {
  const std::vector<float> weights(size_of(kMaxInt8Depth), 127.0f);
  const std::vector<float> row = weights;
  std::vector<float> negative(row.size(), -127.0f);
  std::vector<float> mixed = negative;
  for (std::size_t k = 0; k < mixed.size() / 2; ++k) mixed[k] = 127;
  mixed[0] = 126;
  const auto wanted = static_cast<float>(kMaxInt8Depth * 127 * 127);
  CHECK(same(products<Int8Weights>({row, negative, mixed}, weights), {wanted, -wanted, -127.0f}));
  CHECK(same(products<Int8Weights>({negative}, weights), {-wanted}));
  const std::vector<float> least(weights.size(), -128.0f);
  const auto greatest = static_cast<float>(kMaxInt8Depth * 127 * 128);
  CHECK(same(products<Int8Weights>({row, negative}, least), {-greatest, greatest}));
}

namespace {

template <class Weights>
void check_bfloat16_weights() {
  // 1 + 2^-8 and 1 + 3 * 2^-8 are ties; the greatest float rounds to infinity.
  CHECK(same(packed<Weights>({0, -0.0f, 1, -1, 1.00390625f, 1.01171875f, -1.00390625f, 1.003907f,
                              1.003905f, FLT_MAX, kInfinity, -kInfinity, FLT_MIN, 3.3895314e38f}),
             {0, -0.0f, 1, -1, 1, 1.015625f, -1, 1.0078125f, 1, kInfinity, kInfinity, -kInfinity,
              FLT_MIN, 3.3895314e38f}));
  for (const std::uint32_t bits :
       {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu})
    CHECK(std::isnan(packed<Weights>({test::float_of_bits(bits)})[0]));
  Random random(4);
  std::vector<float> weights, wanted;
  for (int i = 0; i < 100000; ++i) {
    weights.push_back(test::float_of_bits(static_cast<std::uint32_t>(random.bits() >> 32)));
    weights.back() = flushed(weights.back());
    wanted.push_back(test::rounded_to_bfloat16(weights.back()));
  }
  CHECK(same(packed<Weights>(weights), wanted));
}

template <class Weights>
void check_bfloat16_rows() {
  const std::vector<float> row = {1.00390625f, 1.01171875f, -1.00390625f, 1.003907f,
                                  1.003905f,   1e-38f,      FLT_MIN,      -0.0f};
  const std::vector<float> wanted = {1, 1.015625f, -1, 1.0078125f, 1, 0, FLT_MIN, 0};
  for (std::size_t k = 0; k < row.size(); ++k) {
    std::vector<float> unit(row.size(), 0.0f);
    unit[k] = 1;
    CHECK(same(products<Weights>({row}, unit)[0], wanted[k]));
    CHECK(same(products<Weights>({row, row}, unit)[1], wanted[k]));
  }
  for (const std::uint32_t bits :
       {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu})
    CHECK(std::isnan(products<Weights>({{test::float_of_bits(bits)}}, {1})[0]));
}

template <class Weights>
void check_weight_gradients(Random& random, Index depth, Index left_columns, Index right_columns) {
  using P = Plain<Weights>;
  // Every kind of row at least twice, if there are enough of them.
  const auto first = static_cast<int>(random.below(12));
  Matrix<float> left = random_rows(random, depth, left_columns, first);
  Matrix<float> right = random_rows(random, depth, right_columns, first + 5);
  const std::vector<float> before = random.numbers<float>(left_columns * right_columns);
  const auto rounded_columns = [](Matrix<float>& matrix) {
    std::vector<RoundedRow> rounded;
    for (Index column = 0; column < matrix.columns; ++column) {
      std::vector<float> values;
      for (Index k = 0; k < matrix.rows; ++k) values.push_back(flushed(matrix(k, column)));
      rounded.push_back(P::round_row(values.data(), matrix.rows, 0));
    }
    return rounded;
  };
  const std::vector<RoundedRow> lefts = rounded_columns(left), rights = rounded_columns(right);
  for (const bool resume : {false, true}) {
    std::vector<float> wanted;
    for (const RoundedRow& row : lefts) {
      for (const RoundedRow& weights : rights) {
        const float sum = resume ? before[wanted.size()] : 0.0f;
        wanted.push_back(P::add(sum, row, weights.values.data(), 1));
      }
    }
    // In one call, and with the depth in two.
    for (const bool cut : {false, true}) {
      const Index half = cut ? depth / 2 / kOuterSumBlock * kOuterSumBlock : 0;
      Matrix<float> result(left_columns, right_columns, before);
      std::vector<float> scratch(size_of(RoundedOuter<Weights>::scratch()) + 3, canary<float>);
      const auto multiply = [&](Index begin, Index end) {
        OuterCall<float> call;
        call.depth = end - begin;
        call.left = cut ? left.strided(begin) : left.scattered(begin);
        call.left_columns = left_columns;
        call.right = cut ? right.scattered(begin) : right.strided(begin);
        call.right_columns = right_columns;
        call.result = result.strided();
        call.resume = resume || begin > 0;
        call.scratch = scratch.data();
        const FloatControl flushes;
        RoundedOuter<Weights>::outer(call);
      };
      if (half > 0) multiply(0, half);
      multiply(half, depth);
      CHECK(result.equals(wanted));
      for (int i = 1; i <= 3; ++i) CHECK(scratch[scratch.size() - size_of(i)] == canary<float>);
    }
  }
}

template <class Weights>
void check_bfloat16_weight_gradients() {
  using Outer = RoundedOuter<Weights>;
  Random random(12);
  for (const Index depth : {0, 1, 5, 33}) {
    for (const Index left_columns : {1, 3, 17, 33}) {
      for (const Index right_columns : {1, 3, 15, 16, 17, 33, 100})
        check_weight_gradients<Weights>(random, depth, left_columns, right_columns);
    }
  }
  // More than is packed at a time.
  check_weight_gradients<Weights>(random, 2 * kOuterSumBlock + 44, 7, 17);
  for (const Index more : {-1, 0, 1}) {
    check_weight_gradients<Weights>(random, Outer::kDepth + more, 3, 5);
    check_weight_gradients<Weights>(random, 5, Outer::kLeft + more, 17);
    check_weight_gradients<Weights>(random, 5, 3, Outer::kRight + more);
  }
}

}  // namespace

TEST(bfloat16_weights_are_nearest_even) {
  check_bfloat16_weights<Bf16Weights>();
  check_bfloat16_weights<Bf16DotWeights>();
}

TEST(bfloat16_rows_are_nearest_even) {
  check_bfloat16_rows<Bf16Weights>();
  check_bfloat16_rows<Bf16DotWeights>();
}

TEST(bfloat16_weight_gradients) {
  check_bfloat16_weight_gradients<Bf16Weights>();
  check_bfloat16_weight_gradients<Bf16DotWeights>();
}

TEST(phase_of_an_lstm) {
  check_phase<kLstm, Int8Weights>();
  check_phase<kLstm, Bf16Weights>();
  check_phase<kLstm, Bf16DotWeights>();
}

TEST(phase_of_a_gru) {
  check_phase<kGruAfter, Int8Weights>();
  check_phase<kGruAfter, Bf16Weights>();
  check_phase<kGruAfter, Bf16DotWeights>();
}

TEST(phases_of_a_gru_with_reset_before) {
  check_phase<kGruGates, Int8Weights>();
  check_phase<kGruGates, Bf16Weights>();
  check_phase<kGruGates, Bf16DotWeights>();
  check_phase<kGruCandidate, Int8Weights>();
  check_phase<kGruCandidate, Bf16Weights>();
  check_phase<kGruCandidate, Bf16DotWeights>();
}

TEST(phase_of_an_mgu) {
  check_phase<kMguGate, Int8Weights>();
  check_phase<kMguGate, Bf16Weights>();
  check_phase<kMguGate, Bf16DotWeights>();
}

TEST(phase_of_a_plain_product) {
  check_phase<kLinear, Int8Weights>();
  check_phase<kLinear, Bf16Weights>();
  check_phase<kLinear, Bf16DotWeights>();
}

}  // namespace tidegate
