// The cells' formulas and derivatives against double precision.
#include "kernels/cells.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "arrays.h"
#include "check.h"
#include "matrix.h"

namespace tidegate {
namespace {

double sigmoid_of(double a) { return 1 / (1 + std::exp(-a)); }

// The inputs and results of a step of one unit, in double precision. Gates are in the order of the
// kernels: i f g o, n r z q, or f n.
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

// The derivative of objective() by one of its inputs, by central differences.
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

// Calls of a cell for one vector: the second vector of the second row, whose last lane is padding.
template <class T>
struct CellCall {
  static constexpr Index width = Vec<T>::width;
  static constexpr Index units = 2 * width - 1;
  static constexpr Index padded = 2 * width;
  static constexpr Index lanes = width - 1;
  // Values are of order 1, with about twenty operations; central differences add their own error.
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
  static Position place() { return {1, width, static_cast<int>(lanes)}; }

  double put_number(Matrix<T>& matrix, Index j) {
    const double number = random.number();
    matrix(1, width + j) = static_cast<T>(number);
    return number;
  }

  // The element of lane j in block number `block` of a row, with blocks of `size` elements.
  static double at(Matrix<T>& matrix, Index j, Index block = 0, Index size = 0) {
    return static_cast<double>(matrix(1, block * size + width + j));
  }
  double saved_gate(Index j, Index gate) { return at(saved, j, gate, padded); }
  double dgate(Index j, Index gate) { return at(dgates, j, gate, units); }

  // Runs the phase on the accumulators from `first_gate` on.
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

  // Checks that only the vector was written, and in rows without padding only its units.
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

// What every cell has, for lane j: h and its copy, the saved gates, and the gradients by their
// accumulators. `objective` must have been called for the lane.
template <class T, class Objective>
void check_lane(CellCall<T>& call, Unit& unit, Index j, int gates, const Objective& objective) {
  CHECK_NEAR(call.at(call.h, j), unit.h, call.tolerance);
  CHECK(call.at(call.y, j) == call.at(call.h, j));
  for (int gate = 0; gate < gates; ++gate)
    CHECK_NEAR(call.saved_gate(j, gate), unit.gates[gate], call.tolerance);
  for (int gate = 0; gate < gates; ++gate)
    CHECK_NEAR(call.dgate(j, gate), derivative(unit.a[gate], objective), call.slope_tolerance);
}

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
    CHECK_NEAR(call.at(call.cell_output, j), unit.h, call.tolerance);
    check_lane(call, unit, j, 4, objective);
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
      // The gradient by r*h comes from the product with U_n.
      return call.dh_before[j] * unit.h +
             (reset_after ? 0 : call.dgated_h_before[j] * unit.gated_h);
    };
    objective();
    if (!reset_after) CHECK_NEAR(call.at(call.gated_h, j), unit.gated_h, call.tolerance);
    check_lane(call, unit, j, reset_after ? 4 : 3, objective);
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
    CHECK_NEAR(call.at(call.gated_h, j), unit.gated_h, call.tolerance);
    check_lane(call, unit, j, 2, objective);
    CHECK_NEAR(call.at(call.dh, j), derivative(unit.h_prev, objective), call.slope_tolerance);
  }
  call.check_canaries();
}

}  // namespace

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

}  // namespace tidegate
