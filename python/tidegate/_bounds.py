"""How far a correct layer may be from the reference: bounds that follow from the arithmetic alone.

`forward` and `backward` run a network in float64 and carry with every number a bound on the error
that computing in the layer's dtype may have introduced (running error analysis, after Wilkinson:
Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3). No bound is fitted to
what the kernels compute. The bounds assume:

- Rounding is to nearest: the relative error is at most u = eps/2.
- If each term of a sum goes through at most m roundings, the error is at most gamma_m * sum |w||x|,
  gamma_m = m*u / (1 - m*u) (Higham, section 3.1). In a sum of m terms, in any order and fused or
  not, no term goes through more than m. The terms of a row of x and h go through fewer, as they are
  summed in blocks and groups of blocks: see `_summation_depth`.
- sigmoid and tanh are off by at most 2 ulp, plus the error of their argument times their slope,
  which is at most 1/4 and 1, and less where a function saturates. The same holds for softsign,
  softplus and the exp(x) - 1 of elu. The products and sums in other activations are treated like
  those of the cell.
- Parameters of activations, and clip, are rounded to the dtype once.
- The slope of an activation is computed from the activated value. Where the function or its slope
  has several branches (relu, hard_sigmoid, clip), and the argument is within its error of the point
  where they meet, the result may be that of either branch.
- Each product and each sum of the cell rounds once; errors propagate by the rules of the product
  and the sum, second order included.
- Denormals are flushed: each operand and each result may be off by the least normal number.
- In low precision, the operands of products are rounded as in the reference. If an operand has an
  error, it may be rounded to another number: see `_Operands`.
- A number that may exceed the dtype's largest has no bound, and neither has anything computed from
  it: the layer may have an infinity or, from a difference of infinities or a product with zero, a
  NaN.

The error of a step passes to the next through |U|, so over a whole sequence the bound is useful
only where the weights contract; `make_contracting` makes them contract. Otherwise steps are
compared one by one, and the reference is fed with the layer's own previous state.

The reference rounds too, in double and not in a better order: `worst_ratio` allows for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidegate import reference
from tidegate._bounded import Bounded, accumulate, accumulate_rows, concatenate, double_factor
from tidegate.checks import Array

# ---- Activations ---------------------------------------------------------------------------------


class _Activation:
    """An activation, as in `reference.activate` and its `slope`, of an argument clamped first.

    Args:
        activation: the attribute of a network of the reference.
        clip: a limit on the argument's magnitude, or None. A layer with a clip cannot be trained,
            so `slope` ignores it.
        info: the finfo of the dtype.
    """

    def __init__(self, activation: Any, clip: float | None, info: np.finfo[Any]) -> None:
        self.name, alpha, beta = reference.activation_parameters(activation)
        self.zero, self.one = (Bounded.given(np.asarray(exact), info) for exact in (0.0, 1.0))
        self.alpha, self.beta = Bounded.rounded(alpha, info), Bounded.rounded(beta, info)
        self.clip = None if clip is None else Bounded.rounded(clip, info)

    def __call__(self, x: Bounded) -> Bounded:
        if self.clip is not None:
            x = x.choose(-self.clip, -self.clip, x.choose(self.clip, x, self.clip))
        match self.name:
            case "sigmoid":
                return x.sigmoid()
            case "tanh":
                return x.tanh()
            case "relu":
                return x.choose(self.zero, self.zero, x)
            case "hard_sigmoid":
                line = x * self.alpha + self.beta
                return line.choose(self.zero, self.zero, line.choose(self.one, line, self.one))
            case "affine":
                return x * self.alpha + self.beta
            case "leaky_relu":
                return x.choose(self.zero, x * self.alpha, x)
            case "thresholded_relu":
                return x.choose(self.alpha, self.zero, x)
            case "scaled_tanh":
                return (x * self.beta).tanh() * self.alpha
            case "elu":
                return x.choose(self.zero, x.expm1_below_zero() * self.alpha, x)
            case "softsign":
                return x.softsign()
            case "softplus":
                return x.softplus()
        raise ValueError(self.name)

    def _unscaled(self, x: Bounded) -> Bounded:
        """tanh(beta * x), computed as alpha * tanh(beta * x) / alpha.

        Where the product underflows, the loss is less than the least normal number once it is
        squared and multiplied by alpha. There is no bound where a nonzero alpha may be flushed to
        zero.
        """
        t = (x * self.beta).tanh() * self.one * self.one  # rounded twice more
        alpha = self.alpha
        lost = math.inf if 0 < np.abs(alpha.value) <= alpha.error else 0.0
        return Bounded.checked_for_overflow(
            t.value, t.error + lost, t._info, t.max_magnitude * alpha.max_magnitude
        )

    def slope(self, x: Bounded, y: Bounded) -> Bounded:
        """The derivative at x, where y is the value at x."""
        match self.name:
            case "sigmoid":
                return y * y.complement()
            case "tanh":
                return (y * y).complement()
            case "relu":
                return x.choose(self.zero, self.zero, self.one)
            case "hard_sigmoid":
                line = x * self.alpha + self.beta
                return line.choose(
                    self.zero, self.zero, line.choose(self.one, self.alpha, self.zero)
                )
            case "affine":
                return self.alpha
            case "leaky_relu":
                return x.choose(self.zero, self.alpha, self.one)
            case "thresholded_relu":
                return x.choose(self.alpha, self.zero, self.one)
            case "scaled_tanh":
                t = self._unscaled(x)
                return self.alpha * self.beta * (t * t).complement()
            case "elu":
                return x.choose(self.zero, y + self.alpha, self.one)
            case "softsign":
                rest = y.magnitude().complement()
                return rest * rest
            case "softplus":
                return -(-y).expm1_below_zero()
        raise ValueError(self.name)


# ---- Low precision -------------------------------------------------------------------------------


class _Operands:
    """The rounding of operands of products, as in `reference.round_operand`.

    Two numbers within an error of each other are rounded to numbers within the error and two times
    half the distance between neighbours. In int8 that distance is the scale, which follows from the
    row's greatest magnitude and its error. A product in int8 is rounded as often as a sum of four
    terms, one in bfloat16 as often as a sum of two: this is added to the operand's error.

    Args:
        network: a network of the reference.
    """

    def __init__(self, network: Any) -> None:
        self._precision = network.precision
        self._weights_are_rounded = network.weights_are_rounded
        self._least = float(reference.h_is_bounded(network))

    def matrix(self, values: Array, info: np.finfo[Any]) -> Bounded:
        """A matrix of weights. Rounded to int8, it is given as products rounded to float32."""
        if self._weights_are_rounded and self._precision == "int8":
            given = Bounded.given(values, info)
            return given._rounded(given.value, given.error)
        if self._weights_are_rounded or self._precision is None:
            return Bounded.given(values, info)
        if self._precision != "int8":
            return Bounded.given(reference.round_to_bfloat16(values), info)
        q, scale = reference.quantize(values)
        return Bounded.given(q * scale.astype(np.float64)[:, None], info)

    def h(self, v: Bounded) -> Bounded:
        """The operand of weight_hh."""
        return self._rounded(v, self._least)

    def other(self, v: Bounded) -> Bounded:
        """The operand of weight_ih or weight_hr; a gradient."""
        return self._rounded(v, 0.0)

    def outer(self, dgates: Bounded, v: Bounded) -> Bounded:
        """The gradient by a matrix, of which v is the operand."""
        return accumulate_rows(self.other(dgates), self.other(v))

    def _rounded(self, v: Bounded, least: float) -> Bounded:
        if self._precision is None:
            return v
        value = v.value.astype(np.float32)
        if self._precision != "int8":
            result = reference.round_to_bfloat16(value).astype(np.float64)
            distance, further, roundings = 2.0**-7 * v.max_magnitude, 0.0, 2
        else:
            q, scale = reference.quantize(value, least)
            distance = scale.astype(np.float64)[:, None]
            result = q * distance
            further, roundings = v.error.max(-1, keepdims=True, initial=0.0) / 127, 4
        inexact = np.where(v.error > 0, v.error + 1.01 * distance, 0.0) + further
        more = np.abs(result) * roundings * float(v._info.eps) / 2
        given = Bounded.given(result, v._info)
        return Bounded(given.value, given.error + inexact + more, v._info)


# ---- The cells: one step of some rows, and its derivative ----------------------------------------


@dataclass
class _Step:
    """The inputs and results of a step of some rows, as its derivative needs them."""

    x: Bounded  # (R, I)
    h_prev: Bounded  # (R, S)
    c_prev: Bounded  # (R, H); (R, 0) where there is no cell state
    h: Bounded
    c: Bounded
    sums: Sequence[Bounded]  # the activations' arguments: i f g o; r z n; f n
    # LSTM: i f g o m, m = o * tanh(c). GRU: r z n q rh, z as it multiplies h_prev. MGU: f n fh.
    gates: Sequence[Bounded]


@dataclass
class _StepGradient:
    """A step's gradients with respect to its inputs, and each row's part of the parameters'."""

    dx_gates: Bounded  # (R, G*H), with respect to W x + b_ih
    dh_gates: Bounded  # (R, G*H), with respect to U h + b_hh
    dh_prev: Bounded
    dc_prev: Bounded
    peephole: Bounded | None  # (R, 3*H)


class _Lstm:
    """An LSTM's formulas, as in reference.pyx, on the parameters of one direction."""

    def __init__(self, network: Any, p: Mapping[str, Bounded]) -> None:
        self.p = p
        self.biases = [p[name] for name in ("bias_ih", "bias_hh") if name in p]
        self.peepholes = p["weight_peephole"].blocks(3) if network.peephole else None
        self.projection = p.get("weight_hr")
        self.input_forget = network.input_forget
        info = p["weight_ih"]._info
        self.gate = _Activation(network.recurrent_activation, network.clip, info)
        self.candidate = _Activation(network.activation, network.clip, info)
        self.output = _Activation(network.output_activation or network.activation, None, info)
        self.operands = _Operands(network)

    def step(self, x: Bounded, h_prev: Bounded, c_prev: Bounded) -> _Step:
        p = self.p
        operands = [
            (self.operands.other(x), p["weight_ih"]),
            (self.operands.h(h_prev), p["weight_hh"]),
        ]
        sums = accumulate(operands, self.biases)
        a_i, a_f, a_g, a_o = sums.blocks(4)
        if self.peepholes:
            a_i = a_i + self.peepholes[0] * c_prev
            a_f = a_f + self.peepholes[1] * c_prev
        i, g = self.gate(a_i), self.candidate(a_g)
        f = i.complement() if self.input_forget else self.gate(a_f)
        c = f * c_prev + i * g
        if self.peepholes:
            a_o = a_o + self.peepholes[2] * c
        o = self.gate(a_o)
        m = o * self.output(c)
        if self.projection is None:
            h = m
        else:
            h = accumulate([(self.operands.other(m), self.projection)])
        return _Step(x, h_prev, c_prev, h, c, (a_i, a_f, a_g, a_o), (i, f, g, o, m))

    def step_backward(self, s: _Step, dh: Bounded, dc: Bounded) -> _StepGradient:
        a_i, a_f, a_g, a_o = s.sums
        i, f, g, o, _ = s.gates
        dm = (
            dh
            if self.projection is None
            else accumulate([(self.operands.other(dh), self.projection.T)])
        )
        output = self.output(s.c)
        da_o = dm * output * self.gate.slope(a_o, o)
        dc = dc + dm * o * self.output.slope(s.c, output)
        if self.peepholes:
            dc = dc + da_o * self.peepholes[2]
        if self.input_forget:
            da_i = dc * (g - s.c_prev) * self.gate.slope(a_i, i)
            da_f = Bounded.zeros(f.value.shape, f._info)
        else:
            da_i = dc * g * self.gate.slope(a_i, i)
            da_f = dc * s.c_prev * self.gate.slope(a_f, f)
        da_g = dc * i * self.candidate.slope(a_g, g)
        dc_prev = dc * f
        peephole = None
        if self.peepholes:
            dc_prev = dc_prev + da_i * self.peepholes[0] + da_f * self.peepholes[1]
            peephole = concatenate([da_i * s.c_prev, da_f * s.c_prev, da_o * s.c], 1)
        gates = concatenate([da_i, da_f, da_g, da_o], 1)
        dh_prev = accumulate([(self.operands.other(gates), self.p["weight_hh"].T)])
        return _StepGradient(gates, gates, dh_prev, dc_prev, peephole)

    def recurrent_gradient(self, step: _Step, gradient: _StepGradient) -> Bounded:
        return self.operands.outer(gradient.dh_gates, step.h_prev)

    def projection_gradient(self, step: _Step, dh: Bounded) -> Bounded:
        return self.operands.outer(dh, step.gates[4])


class _ByGate:
    """Base class of the cells whose gates are summed one at a time."""

    def __init__(self, network: Any, p: Mapping[str, Bounded]) -> None:
        self.p = p
        self.hidden = network.hidden_size
        self.gates = network.gates
        info = p["weight_ih"]._info
        self.gate = _Activation(network.recurrent_activation, network.clip, info)
        self.candidate = _Activation(network.activation, network.clip, info)
        self.operands = _Operands(network)
        self.bias_ih = self._biases("bias_ih")
        self.bias_hh = self._biases("bias_hh")

    def _biases(self, name: str) -> list[list[Bounded]]:
        """For each gate a list of its bias, empty without biases."""
        if name not in self.p:
            return [[]] * self.gates
        return [[block] for block in self.p[name].blocks(self.gates)]

    def _rows(self, name: str, gate: int) -> Bounded:
        return self.p[name][gate * self.hidden : (gate + 1) * self.hidden]

    def _sum(self, gate: int, x: Bounded, operand: Bounded) -> Bounded:
        """W x + U operand and both biases."""
        terms = [
            (self.operands.other(x), self._rows("weight_ih", gate)),
            (self.operands.h(operand), self._rows("weight_hh", gate)),
        ]
        return accumulate(terms, self.bias_ih[gate] + self.bias_hh[gate])


class _Gru(_ByGate):
    """A GRU's formulas, as in reference.pyx, on the parameters of one direction.

    "write" is "carry" with the sign of a_z changed; as in the kernels, it is allowed only with gate
    activations for which 1 - f(a) = f(-a).
    """

    def __init__(self, network: Any, p: Mapping[str, Bounded]) -> None:
        super().__init__(network, p)
        self.reset_after = network.reset_after
        self.write = network.update_gate == "write"

    def _signed(self, a_z: Bounded) -> Bounded:
        return -a_z if self.write else a_z

    def step(self, x: Bounded, h_prev: Bounded, c_prev: Bounded) -> _Step:
        a_r, a_z = self._sum(0, x, h_prev), self._signed(self._sum(1, x, h_prev))
        r, z = self.gate(a_r), self.gate(a_z)
        rh = r * h_prev
        w_n, u_n = self._rows("weight_ih", 2), self._rows("weight_hh", 2)
        q = accumulate([(self.operands.h(h_prev), u_n)], self.bias_hh[2])
        if self.reset_after:
            a_n = accumulate([(self.operands.other(x), w_n)], self.bias_ih[2]) + r * q
        else:
            a_n = self._sum(2, x, rh)
        n = self.candidate(a_n)
        h = z * h_prev + z.complement() * n
        return _Step(x, h_prev, c_prev, h, c_prev, (a_r, a_z, a_n), (r, z, n, q, rh))

    def step_backward(self, s: _Step, dh: Bounded, dc: Bounded) -> _StepGradient:
        a_r, a_z, a_n = s.sums
        r, z, n, q, _ = s.gates
        da_z = self._signed(dh * (s.h_prev - n) * self.gate.slope(a_z, z))
        da_n = dh * z.complement() * self.candidate.slope(a_n, n)
        dh_prev = dh * z
        if self.reset_after:
            da_r = da_n * q * self.gate.slope(a_r, r)
            gates = concatenate([da_r, da_z, da_n * r], 1)
            dh_prev = accumulate([(self.operands.other(gates), self.p["weight_hh"].T)], [dh_prev])
        else:
            drh = accumulate([(self.operands.other(da_n), self._rows("weight_hh", 2).T)])
            da_r = drh * s.h_prev * self.gate.slope(a_r, r)
            dh_prev = dh_prev + drh * r
            early = concatenate([da_r, da_z], 1)
            weight = self.p["weight_hh"][: 2 * self.hidden]
            dh_prev = accumulate([(self.operands.other(early), weight.T)], [dh_prev])
            gates = concatenate([da_r, da_z, da_n], 1)
        return _StepGradient(concatenate([da_r, da_z, da_n], 1), gates, dh_prev, dc, None)

    def recurrent_gradient(self, step: _Step, gradient: _StepGradient) -> Bounded:
        da_r, da_z, da_n = gradient.dh_gates.blocks(3)
        operands = [step.h_prev, step.h_prev, step.h_prev if self.reset_after else step.gates[4]]
        blocks = [self.operands.outer(d, v) for d, v in zip((da_r, da_z, da_n), operands)]
        return concatenate(blocks, 0)


class _Mgu(_ByGate):
    """An MGU's formulas, as in reference.pyx, on the parameters of one direction."""

    def step(self, x: Bounded, h_prev: Bounded, c_prev: Bounded) -> _Step:
        a_f = self._sum(0, x, h_prev)
        f = self.gate(a_f)
        fh = f * h_prev
        a_n = self._sum(1, x, fh)
        n = self.candidate(a_n)
        h = f * n + f.complement() * h_prev
        return _Step(x, h_prev, c_prev, h, c_prev, (a_f, a_n), (f, n, fh))

    def step_backward(self, s: _Step, dh: Bounded, dc: Bounded) -> _StepGradient:
        a_f, a_n = s.sums
        f, n, _ = s.gates
        da_n = dh * f * self.candidate.slope(a_n, n)
        dfh = accumulate([(self.operands.other(da_n), self._rows("weight_hh", 1).T)])
        da_f = (dh * (n - s.h_prev) + dfh * s.h_prev) * self.gate.slope(a_f, f)
        dh_prev = dh * f.complement() + dfh * f
        dh_prev = accumulate([(self.operands.other(da_f), self._rows("weight_hh", 0).T)], [dh_prev])
        gates = concatenate([da_f, da_n], 1)
        return _StepGradient(gates, gates, dh_prev, dc, None)

    def recurrent_gradient(self, step: _Step, gradient: _StepGradient) -> Bounded:
        da_f, da_n = gradient.dh_gates.blocks(2)
        blocks = [
            self.operands.outer(da_f, step.h_prev),
            self.operands.outer(da_n, step.gates[2]),
        ]
        return concatenate(blocks, 0)


# ---- Networks ------------------------------------------------------------------------------------

_CELLS: dict[str, type[_Lstm] | type[_Gru] | type[_Mgu]] = {"LSTM": _Lstm, "GRU": _Gru, "MGU": _Mgu}


@dataclass
class Forward:
    """A network's results with their bounds, and what `backward` needs.

    Attributes:
        y: (T, N, D*S).
        h: (L*D, N, S).
        c: (L*D, N, H); (L*D, N, 0) where there is no cell state.
    """

    y: Bounded
    h: Bounded
    c: Bounded
    _network: Any
    _call: _Call
    _x: Bounded
    _cells: list[_Lstm | _Gru | _Mgu]
    _steps: list[list[_Step]]  # for each direction, layer-major, in the order of time


@dataclass
class Backward:
    """Gradients with their bounds: `x` (T, N, I), `h` and `c` like the state, `params` by name."""

    x: Bounded
    h: Bounded
    c: Bounded
    params: dict[str, Bounded]


@dataclass
class _Call:
    """Which rows take a step, at which times, and which of them start it from a zero state."""

    lengths: Array
    reset: Array
    dropout_scale: Array | None
    info: np.finfo[Any]

    def steps(self, reverse: bool) -> list[tuple[Array, Array, Array]]:
        """(t, row, zeroed) of the active rows of each step."""
        result = []
        for s in range(int(self.lengths.max(initial=0))):
            rows = np.flatnonzero(self.lengths > s)
            if not reverse:
                t = np.full(len(rows), s)
                zeroed = self.reset[t, rows]
            else:
                t = self.lengths[rows] - 1 - s
                zeroed = self.reset[t + 1, rows] if s > 0 else np.zeros(len(rows), bool)
            result.append((t, rows, zeroed))
        return result

    def scale(self, layer: int) -> Bounded:
        """The factors by which a layer's output is multiplied; 1/(1-p) may be rounded otherwise."""
        assert self.dropout_scale is not None
        scale = Bounded.given(self.dropout_scale[layer], self.info)
        return scale._rounded(scale.value, scale.error)


def _cell(network: Any, params: Mapping[str, Bounded], suffix: str) -> _Lstm | _Gru | _Mgu:
    own = {k.removesuffix(suffix): v for k, v in params.items() if k.endswith(suffix)}
    return _CELLS[network.cell](network, own)


def _suffixes(network: Any) -> list[str]:
    ends = ["", "_reverse"][: network.num_directions]
    return [f"_l{layer}{end}" for layer in range(network.num_layers) for end in ends]


def _select(zeroed: Array, given: Bounded) -> Bounded:
    valid = ~zeroed[:, None]
    return Bounded(
        np.where(valid, given.value, 0.0), np.where(valid, given.error, 0.0), given._info
    )


def _pair(state: Any) -> tuple[Array | None, Array | None]:
    return state if isinstance(state, tuple) else (state, None)


# Numbers that overflow are reported by their missing bound, so no warning is needed.
@np.errstate(over="ignore", invalid="ignore")
def forward(
    network: Any,
    params: Mapping[str, Array],
    x: Array,
    state: Any = None,
    *,
    dtype: Any,
    lengths: Array | None = None,
    reset: Array | None = None,
    dropout_scale: Array | None = None,
) -> Forward:
    """Runs a network forward.

    Args:
        network: a network of `tidegate.reference`; the other arguments are those of its `forward`.
        dtype: the dtype in which the layer computes.
    """
    info = np.finfo(dtype)
    steps, batch = x.shape[:2]
    call = _Call(
        np.full(batch, steps) if lengths is None else np.asarray(lengths),
        np.zeros((steps, batch), bool) if reset is None else np.asarray(reset),
        dropout_scale,
        info,
    )
    operands = _Operands(network)
    exact = {
        name: operands.matrix(array, info) if array.ndim > 1 else Bounded.given(array, info)
        for name, array in params.items()
    }
    directions, size = network.num_directions, network.state_size
    rows = network.num_layers * directions
    cell_size = network.hidden_size if network.cell == "LSTM" else 0
    h_0, c_0 = _pair(state)
    h = Bounded.given(np.zeros((rows, batch, size)) if h_0 is None else h_0, info).copy()
    c = Bounded.given(np.zeros((rows, batch, cell_size)) if c_0 is None else c_0, info).copy()
    cells = [_cell(network, exact, suffix) for suffix in _suffixes(network)]
    saved_steps: list[list[_Step]] = []
    y = given = Bounded.given(x, info)
    for layer in range(network.num_layers):
        if layer > 0 and dropout_scale is not None:
            y = y * call.scale(layer - 1)
        layer_input, y = y, Bounded.zeros((steps, batch, directions * size), info)
        for d in range(directions):
            k = layer * directions + d
            columns = slice(d * size, (d + 1) * size)
            saved_steps.append([])
            for t, n, zeroed in call.steps(network.reverse or d == 1):
                step = cells[k].step(
                    layer_input[t, n], _select(zeroed, h[k, n]), _select(zeroed, c[k, n])
                )
                h[k, n], c[k, n] = step.h, step.c
                y[t, n, columns] = step.h
                saved_steps[-1].append(step)
    return Forward(y, h, c, network, call, given, cells, saved_steps)


@np.errstate(over="ignore", invalid="ignore")
def backward(run: Forward, dy: Array | None = None, dstate: Any = None) -> Backward:
    """Runs a network backward: `dy` and `dstate` are those of the reference's `backward`."""
    network, call = run._network, run._call
    info = call.info
    batch = len(call.lengths)
    directions, size = network.num_directions, network.state_size
    dh_n, dc_n = _pair(dstate)
    dh = Bounded.given(np.zeros(run.h.value.shape) if dh_n is None else dh_n, info).copy()
    dc = Bounded.given(np.zeros(run.c.value.shape) if dc_n is None else dc_n, info).copy()
    dlayer = Bounded.given(np.zeros(run.y.value.shape) if dy is None else dy, info)
    params: dict[str, Bounded] = {}
    for layer in reversed(range(network.num_layers)):
        parts = []
        for d in range(directions):
            k = layer * directions + d
            width = run._x.value.shape[2] if layer == 0 else directions * size
            dx = Bounded.zeros((len(call.reset), batch, width), info)
            columns = slice(d * size, (d + 1) * size)
            own = _direction_backward(run, k, dlayer[:, :, columns], dh, dc, dx)
            params |= {name + _suffixes(network)[k]: value for name, value in own.items()}
            parts.append(dx)
        dlayer = parts[0] if directions == 1 else parts[0] + parts[1]
        if layer > 0 and call.dropout_scale is not None:
            dlayer = dlayer * call.scale(layer - 1)
    return Backward(dlayer, dh, dc, params)


def _direction_backward(
    run: Forward, k: int, dy: Bounded, dh: Bounded, dc: Bounded, dx: Bounded
) -> dict[str, Bounded]:
    """Turns dh[k], dc[k] into those of the initial state; writes dx; returns the parameters'."""
    network, call, cell, steps = run._network, run._call, run._cells[k], run._steps[k]
    reverse = network.reverse or k % network.num_directions == 1
    timeline = call.steps(reverse)
    if not steps:
        return {name: Bounded.zeros(p.value.shape, call.info) for name, p in cell.p.items()}
    gradients = []
    by_h = []
    for step, (t, n, zeroed) in zip(reversed(steps), reversed(timeline)):
        by_h.append(dh[k, n] + dy[t, n])
        gradient = cell.step_backward(step, by_h[-1], dc[k, n])
        gradients.append(gradient)
        dh[k, n], dc[k, n] = _select(zeroed, gradient.dh_prev), _select(zeroed, gradient.dc_prev)
    # The parts that do not depend on the order in time, for the rows of all steps at once.
    whole = _all_rows(_Step, steps[::-1])
    gradient = _all_rows(_StepGradient, gradients)
    t = np.concatenate([times for times, _, _ in reversed(timeline)])
    n = np.concatenate([rows for _, rows, _ in reversed(timeline)])
    dx[t, n] = accumulate([(cell.operands.other(gradient.dx_gates), cell.p["weight_ih"].T)])
    result = {
        "weight_ih": cell.operands.outer(gradient.dx_gates, whole.x),
        "weight_hh": cell.recurrent_gradient(whole, gradient),
    }
    if network.bias:
        result["bias_ih"] = gradient.dx_gates.sum_rows()
        result["bias_hh"] = gradient.dh_gates.sum_rows()
    if isinstance(cell, _Lstm) and cell.projection is not None:
        result["weight_hr"] = cell.projection_gradient(whole, concatenate(by_h, 0))
    if gradient.peephole is not None:
        result["weight_peephole"] = gradient.peephole.sum_rows()
    return result


def _all_rows(kind: Any, records: Sequence[Any]) -> Any:
    """The rows of all steps, concatenated into one record."""
    joined: dict[str, Any] = {}
    for name in kind.__dataclass_fields__:
        members = [getattr(record, name) for record in records]
        if members[0] is None:
            joined[name] = None
        elif isinstance(members[0], Bounded):
            joined[name] = concatenate(members, 0)
        else:
            joined[name] = [concatenate(parts, 0) for parts in zip(*members)]
    return kind(**joined)


# ---- Comparing -----------------------------------------------------------------------------------


def worst_ratio(got: Array, wanted: Array, bound: Bounded) -> float:
    """The largest |got - wanted| relative to the bound; at most 1 if the results are correct.

    NaN counts as infinitely wrong; where there is no bound, any value is correct.

    Args:
        got: the layer's result.
        wanted: the reference's result.
        bound: the bound on this quantity.
    """
    assert got.shape == wanted.shape == bound.value.shape
    if got.size == 0:
        return 0.0
    allowed = bound.error * double_factor(np.finfo(got.dtype))
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.abs(got.astype(np.float64) - wanted)
        correct = (difference == 0) | (allowed == math.inf)
        ratio = np.where(correct, 0.0, difference / allowed)
    return float(np.max(np.where(np.isnan(ratio), math.inf, ratio)))


def make_contracting(layer: Any) -> None:
    """Scales the recurrent weights of a fresh layer so that errors do not grow from step to step.

    As drawn, the weights are at most 1/sqrt(H), and the sums of magnitudes of their rows grow like
    sqrt(H)/2. After scaling, these sums are about 1/2, and about 1 for the rows of a projection.
    """
    hidden = layer.hidden_size
    for name, array in layer.params.items():
        if name.startswith("weight_hh"):
            layer.params[name] = array * layer.dtype.type(math.sqrt(hidden) / array.shape[1])
        elif name.startswith("weight_hr"):
            layer.params[name] = array * layer.dtype.type(2 / math.sqrt(hidden))
