// The cells: the formulas of each phase of a step, each with its derivative directly below. The
// gates and their operands are in spec.h, the activations in activations.h; the pre-activations are
// computed in phase.h.
#ifndef TIDEGATE_KERNELS_CELLS_H_
#define TIDEGATE_KERNELS_CELLS_H_

#include "kernels/activations.h"
#include "kernels/epilogue.h"
#include "kernels/table.h"
#include "kernels/vec.h"

namespace tidegate {
namespace {

// The vector of units at a position in padded rows.
template <class Element>
inline auto load_at(Rows<Element> rows, Position at) {
  return load(rows[at.row] + at.unit);
}
template <class T>
inline void store_at(Rows<T> rows, Position at, Vec<T> value) {
  store(rows[at.row] + at.unit, value);
}

// The activated gates of a row: `[gate of the cell][unit]`, padded to whole slices.
template <class T>
inline Vec<T> load_gate(const BackwardCall<T>& call, Position at, int gate) {
  return load<T>(call.saved[at.row] + gate * call.saved_gate_stride + at.unit);
}
template <class T>
inline void save_gate(const PhaseCall<T>& call, Position at, int gate, Vec<T> value) {
  if (call.saved) store(call.saved[at.row] + gate * call.saved_gate_stride + at.unit, value);
}
// The gradients of a row by the pre-activations: `[gate of the cell][unit]`, without padding.
template <class T>
inline void store_dgate(const BackwardCall<T>& call, Position at, int gate, Vec<T> value) {
  store_partial<T>(call.dgates[at.row] + gate * call.units + at.unit, value, at.lanes);
}

// The value that a later phase has written to `dgates`.
template <class T>
inline Vec<T> load_dgate(const BackwardCall<T>& call, Position at, int gate) {
  return load_partial<T>(call.dgates[at.row] + gate * call.units + at.unit, at.lanes);
}

// Stores h in the state, and without padding in the caller's y.
template <class T>
inline void store_h(const PhaseCall<T>& call, Position at, Vec<T> h) {
  if (call.h_next) store_at(call.h_next, at, h);
  if (call.y) store_partial<T>(call.y[at.row] + at.unit, h, at.lanes);
}

// Base class of the phases. A phase runs in two loops over complete accumulators, `gates` and
// `state`; a loop that it does not define does nothing.
struct Phase {
  template <class T>
  static void gates(const PhaseCall<T>&, Accumulators<T>, Position) {}
  template <class T>
  static void state(const PhaseCall<T>&, Accumulators<T>, Position) {}
};

// LSTM (Hochreiter and Schmidhuber 1997; forget gate of Gers et al. 2000; peepholes of Gers and
// Schmidhuber 2000):
//   i = sigmoid(a_i + w_i*c)   f = sigmoid(a_f + w_f*c)   g = tanh(a_g)
//   c' = f*c + i*g             o = sigmoid(a_o + w_o*c')  h' = o*tanh(c')
// where w = 0 without peepholes, sigmoid and tanh denote the cell's activations, and f = 1 - i with
// input_forget.
template <class Activations, bool Peephole>
struct Lstm {
  static constexpr PhaseSpec spec = phase_spec(Peephole ? kLstmPeephole : kLstm);
  enum Gate { kI, kF, kG, kO };
  enum Weight { kWi, kWf, kWo };

  template <class T>
  static Vec<T> peephole(const T* weights, Index unit, int which) {
    constexpr int kWidth = Vec<T>::width;
    return load<T>(weights + unit * 3 + which * kWidth);
  }

  template <class T>
  static void gates(const PhaseCall<T>& call, Accumulators<T> a, Position at) {
    const Activations act(call.activations);
    const Vec<T> c_prev = load_at(call.c_prev, at);
    Vec<T> a_i = a[kI];
    Vec<T> a_f = a[kF];
    Vec<T> a_o = a[kO];
    if constexpr (Peephole) {
      a_i = fma(peephole<T>(call.peephole, at.unit, kWi), c_prev, a_i);
      a_f = fma(peephole<T>(call.peephole, at.unit, kWf), c_prev, a_f);
    }
    const Vec<T> i = act.gate(a_i);
    const Vec<T> f = act.input_forget() ? broadcast<T>(1) - i : act.gate(a_f);
    const Vec<T> g = act.candidate(a[kG]);
    const Vec<T> c = fma(f, c_prev, i * g);
    if constexpr (Peephole) a_o = fma(peephole<T>(call.peephole, at.unit, kWo), c, a_o);
    const Vec<T> o = act.gate(a_o);

    a.set(kO, o);
    save_gate(call, at, kI, i);
    save_gate(call, at, kF, f);
    save_gate(call, at, kG, g);
    save_gate(call, at, kO, o);
    store_at(call.c_next, at, c);
  }
  template <class T>
  static void state(const PhaseCall<T>& call, Accumulators<T> a, Position at) {
    const Vec<T> c = load_at(call.c_next, at);
    store_h(call, at, a[kO] * Activations(call.activations).output(c));
  }

  template <class T>
  static void backward(const BackwardCall<T>& call, Position at) {
    const Activations act(call.activations);
    const Vec<T> i = load_gate(call, at, kI);
    const Vec<T> f = load_gate(call, at, kF);
    const Vec<T> g = load_gate(call, at, kG);
    const Vec<T> o = load_gate(call, at, kO);
    const Vec<T> c_prev = load_at(call.c_prev, at);
    const Vec<T> c = load_at(call.c_next, at);
    const Vec<T> dh = load_at(call.dh, at);
    Vec<T> dc = load_at(call.dc, at);
    const Vec<T> out = act.output(c);

    const Vec<T> da_o = dh * out * act.gate_slope(o);
    dc = fma(dh * o, act.output_slope(out), dc);
    if constexpr (Peephole) dc = fma(da_o, peephole<T>(call.peephole, at.unit, kWo), dc);
    const bool forgets = !act.input_forget();
    const Vec<T> di = forgets ? dc * g : dc * (g - c_prev);
    const Vec<T> da_i = di * act.gate_slope(i);
    const Vec<T> da_f = forgets ? dc * c_prev * act.gate_slope(f) : zero<T>();
    const Vec<T> da_g = dc * i * act.candidate_slope(g);
    Vec<T> dc_prev = dc * f;
    if constexpr (Peephole) {
      dc_prev = fma(da_i, peephole<T>(call.peephole, at.unit, kWi), dc_prev);
      dc_prev = fma(da_f, peephole<T>(call.peephole, at.unit, kWf), dc_prev);
      T* dpeephole = call.dpeephole[at.row] + at.unit;
      store_partial<T>(dpeephole + kWi * call.units, da_i * c_prev, at.lanes);
      store_partial<T>(dpeephole + kWf * call.units, da_f * c_prev, at.lanes);
      store_partial<T>(dpeephole + kWo * call.units, da_o * c, at.lanes);
    }

    store_dgate(call, at, kI, da_i);
    store_dgate(call, at, kF, da_f);
    store_dgate(call, at, kG, da_g);
    store_dgate(call, at, kO, da_o);
    store_at(call.dc, at, dc_prev);
    if (call.cell_output) store_at(call.cell_output, at, o * out);
  }
};

// gate*open + (1-gate)*closed, and its gradients by the three operands, given the gradient by the
// result.
template <class T>
inline Vec<T> blend(Vec<T> gate, Vec<T> open, Vec<T> closed) {
  return fma(gate, open, (broadcast<T>(1) - gate) * closed);
}
template <class T>
struct BlendGradient {
  Vec<T> gate, open, closed;
};
template <class T>
inline BlendGradient<T> blend_backward(Vec<T> d, Vec<T> gate, Vec<T> open, Vec<T> closed) {
  return {d * (open - closed), d * gate, d * (broadcast<T>(1) - gate)};
}

// The GRU's state (Cho et al. 2014), with update_gate="carry":
//   h' = z*h + (1-z)*n
// "write", h' = (1-z)*h + z*n, is the same with the opposite sign of a_z, since 1 - sigmoid(a) =
// sigmoid(-a): its weights are negated when they are packed.

// GRU, reset gate after the product:
//   r = sigmoid(a_r)          z = sigmoid(a_z)
//   q = U_n h + b_hn          n = tanh(a_n + r*q), a_n = W_n x + b_in
template <class Activations>
struct GruAfter {
  static constexpr PhaseSpec spec = phase_spec(kGruAfter);
  enum Gate { kN, kR, kZ, kQ };

  template <class T>
  static void gates(const PhaseCall<T>& call, Accumulators<T> a, Position at) {
    const Activations act(call.activations);
    const Vec<T> r = act.gate(a[kR]);
    const Vec<T> z = act.gate(a[kZ]);
    const Vec<T> q = a[kQ];

    a.set(kN, fma(r, q, a[kN]));
    a.set(kZ, z);
    save_gate(call, at, kR, r);
    save_gate(call, at, kZ, z);
    save_gate(call, at, kQ, q);
  }
  template <class T>
  static void state(const PhaseCall<T>& call, Accumulators<T> a, Position at) {
    const Vec<T> h_prev = load_at(call.h_prev, at);
    const Vec<T> n = Activations(call.activations).candidate(a[kN]);

    save_gate(call, at, kN, n);
    store_h(call, at, blend(a[kZ], h_prev, n));
  }

  template <class T>
  static void backward(const BackwardCall<T>& call, Position at) {
    const Activations act(call.activations);
    const Vec<T> n = load_gate(call, at, kN);
    const Vec<T> r = load_gate(call, at, kR);
    const Vec<T> z = load_gate(call, at, kZ);
    const Vec<T> q = load_gate(call, at, kQ);
    const Vec<T> h_prev = load_at(call.h_prev, at);
    const Vec<T> dh = load_at(call.dh, at);
    const BlendGradient<T> d = blend_backward(dh, z, h_prev, n);
    const Vec<T> da_n = d.closed * act.candidate_slope(n);

    store_dgate(call, at, kN, da_n);
    store_dgate(call, at, kR, da_n * q * act.gate_slope(r));
    store_dgate(call, at, kZ, d.gate * act.gate_slope(z));
    store_dgate(call, at, kQ, da_n * r);
    store_at(call.dh, at, d.open);
  }
};

// GRU, reset gate before the product. Two phases, because each unit of U_n (r*h) needs all units of
// r*h. The first one:
//   r = sigmoid(a_r)   z = sigmoid(a_z)
template <class Activations>
struct GruGates : Phase {
  static constexpr PhaseSpec spec = phase_spec(kGruGates);
  enum Gate { kN, kR, kZ };  // the cell's gates; the phase computes r and z

  template <class T>
  static void gates(const PhaseCall<T>& call, Accumulators<T> a, Position at) {
    const Activations act(call.activations);
    const Vec<T> r = act.gate(a[kR - 1]);
    const Vec<T> z = act.gate(a[kZ - 1]);
    const Vec<T> h_prev = load_at(call.h_prev, at);

    save_gate(call, at, kR, r);
    save_gate(call, at, kZ, z);
    store_at(call.phase_state, at, z);
    store_at(call.gated_h, at, r * h_prev);
  }

  template <class T>
  static void backward(const BackwardCall<T>& call, Position at) {
    const Activations act(call.activations);
    const Vec<T> r = load_gate(call, at, kR);
    const Vec<T> h_prev = load_at(call.h_prev, at);
    const Vec<T> dgated_h = load_at(call.dgated_h, at);
    const Vec<T> dh_prev = load_at(call.dh, at);

    store_dgate(call, at, kR, dgated_h * h_prev * act.gate_slope(r));
    store_at(call.dh, at, fma(dgated_h, r, dh_prev));
  }
};

// The second phase:
//   n = tanh(a_n), a_n = W_n x + b_in + U_n (r*h) + b_hn
template <class Activations>
struct GruCandidate : Phase {
  static constexpr PhaseSpec spec = phase_spec(kGruCandidate);
  enum Gate { kN, kR, kZ };

  template <class T>
  static void state(const PhaseCall<T>& call, Accumulators<T> a, Position at) {
    const Vec<T> n = Activations(call.activations).candidate(a[kN]);
    const Vec<T> z = load_at(call.phase_state, at);
    const Vec<T> h_prev = load_at(call.h_prev, at);

    save_gate(call, at, kN, n);
    store_h(call, at, blend(z, h_prev, n));
  }

  template <class T>
  static void backward(const BackwardCall<T>& call, Position at) {
    const Activations act(call.activations);
    const Vec<T> n = load_gate(call, at, kN);
    const Vec<T> r = load_gate(call, at, kR);
    const Vec<T> z = load_gate(call, at, kZ);
    const Vec<T> h_prev = load_at(call.h_prev, at);
    const Vec<T> dh = load_at(call.dh, at);
    const BlendGradient<T> d = blend_backward(dh, z, h_prev, n);
    const Vec<T> da_n = d.closed * act.candidate_slope(n);

    store_dgate(call, at, kN, da_n);
    store_dgate(call, at, kZ, d.gate * act.gate_slope(z));
    store_at(call.gated_h, at, r * h_prev);
    store_at(call.dh, at, d.open);
  }
};

// Minimal gated unit (Zhou et al. 2016). Two phases, because each unit of U_n (f*h) needs all units
// of f*h. The first one:
//   f = sigmoid(a_f)
template <class Activations>
struct MguGate : Phase {
  static constexpr PhaseSpec spec = phase_spec(kMguGate);
  enum Gate { kF, kN };  // the cell's gates; the phase computes f

  template <class T>
  static void gates(const PhaseCall<T>& call, Accumulators<T> a, Position at) {
    const Vec<T> f = Activations(call.activations).gate(a[kF]);

    save_gate(call, at, kF, f);
    store_at(call.phase_state, at, f);
    store_at(call.gated_h, at, f * load_at(call.h_prev, at));
  }

  template <class T>
  static void backward(const BackwardCall<T>& call, Position at) {
    const Vec<T> f = load_gate(call, at, kF);
    const Vec<T> dgated_h = load_at(call.dgated_h, at);
    const Vec<T> df = fma(dgated_h, load_at(call.h_prev, at), load_dgate(call, at, kF));

    store_dgate(call, at, kF, df * Activations(call.activations).gate_slope(f));
    store_at(call.dh, at, fma(dgated_h, f, load_at(call.dh, at)));
  }
};

// The second phase:
//   n = tanh(a_n), a_n = W_n x + b_in + U_n (f*h) + b_hn   h' = (1-f)*h + f*n
template <class Activations>
struct MguCandidate : Phase {
  static constexpr PhaseSpec spec = phase_spec(kMguCandidate);
  enum Gate { kF, kN };

  template <class T>
  static void state(const PhaseCall<T>& call, Accumulators<T> a, Position at) {
    const Vec<T> n = Activations(call.activations).candidate(a[kN - spec.gates.first]);

    save_gate(call, at, kN, n);
    store_h(call, at, blend(load_at(call.phase_state, at), n, load_at(call.h_prev, at)));
  }

  template <class T>
  static void backward(const BackwardCall<T>& call, Position at) {
    const Vec<T> n = load_gate(call, at, kN);
    const Vec<T> f = load_gate(call, at, kF);
    const Vec<T> h_prev = load_at(call.h_prev, at);
    const BlendGradient<T> d = blend_backward(load_at(call.dh, at), f, n, h_prev);

    store_dgate(call, at, kN, d.open * Activations(call.activations).candidate_slope(n));
    store_dgate(call, at, kF, d.gate);
    store_at(call.gated_h, at, f * h_prev);
    store_at(call.dh, at, d.closed);
  }
};

// A product alone: h' = W h (projections), dx = W^T da.
template <class>
struct Linear : Phase {
  static constexpr PhaseSpec spec = phase_spec(kLinear);

  template <class T>
  static void state(const PhaseCall<T>& call, Accumulators<T> a, Position at) {
    store_h(call, at, a[0]);
  }
};

}  // namespace
}  // namespace tidegate

#endif  // TIDEGATE_KERNELS_CELLS_H_
