"""The reference that contenders are checked against: NumPy in float64, forward and backward.

It is written only for the check and shares no code with the contenders. BLAS computes the
products, since large cells must not take minutes. The equations are those of `tidegate.LSTM`,
`tidegate.GRU` and `tidegate.MGU`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.problem import Problem


def solve(problem: Problem) -> dict[str, Any]:
    """The correct results of a cell, in float64.

    Returns:
        y, h_n, and c_n for an LSTM; in training also dx, dh_0, dc_0, and d<parameter> for each
        parameter.
    """
    cell = problem.cell
    double = {name: value.astype(np.float64) for name, value in problem.params.items()}
    lengths = problem.lengths
    if lengths is None:
        lengths = np.full(cell.batch, cell.steps)
    x = problem.x.astype(np.float64)
    layers: list[list[_Direction]] = []
    for layer in range(cell.num_layers):
        directions = []
        for d in range(cell.directions):
            k = layer * cell.directions + d
            suffix = f"_l{layer}" + ("_reverse" if d else "")
            direction = _Direction(
                kind=cell.kind,
                params={n[: -len(suffix)]: p for n, p in double.items() if n.endswith(suffix)},
                order=range(cell.steps)[:: -1 if d else 1],
                active=np.arange(cell.steps)[:, np.newaxis] < lengths,
                x=x,
            )
            direction.forward([state[k].astype(np.float64) for state in problem.state])
            directions.append(direction)
        layers.append(directions)
        x = np.concatenate([direction.y for direction in directions], axis=2)

    flat = [direction for directions in layers for direction in directions]
    results = {"y": x}
    for k, name in enumerate(("h", "c")[: len(problem.state)]):
        results[f"{name}_n"] = np.stack([direction.last[k] for direction in flat])
    if problem.dy is None:
        return results

    dy = problem.dy.astype(np.float64)
    for layer in reversed(range(cell.num_layers)):
        parts = np.split(dy, cell.directions, axis=2)
        dy = sum(d.backward(part) for d, part in zip(layers[layer], parts, strict=True))
        for d, direction in enumerate(layers[layer]):
            for name, gradient in direction.dparams.items():
                results[f"d{name}_l{layer}" + ("_reverse" if d else "")] = gradient
    results["dx"] = dy
    for k, name in enumerate(("h", "c")[: len(problem.state)]):
        results[f"d{name}_0"] = np.stack([direction.dstate[k] for direction in flat])
    return results


def _sigmoid(a: Any) -> Any:
    return 0.5 * np.tanh(0.5 * a) + 0.5


@dataclass
class _Direction:
    """One direction of one layer; T steps, N rows; `active` (T, N) is False at padding."""

    kind: str
    params: dict[str, Any]
    order: range
    active: Any
    x: Any
    y: Any = None
    last: list[Any] = field(default_factory=list)
    saved: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    dparams: dict[str, Any] = field(default_factory=dict)
    dstate: list[Any] = field(default_factory=list)

    def forward(self, state: list[Any]) -> None:
        w, u, b, v = (self.params[n] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        steps, batch, _ = self.x.shape
        self.y = np.zeros((steps, batch, u.shape[1]))
        from_x = self.x @ w.T + b
        for t in self.order:
            active = self.active[t][:, np.newaxis]
            new, self.saved[t] = self._step(from_x[t], state, u, v)
            state = [np.where(active, after, before) for after, before in zip(new, state)]
            self.y[t] = np.where(active, state[0], 0)
        self.last = state

    def _step(self, a: Any, state: list[Any], u: Any, v: Any) -> tuple[list[Any], tuple[Any, ...]]:
        h = state[0]
        if self.kind == "lstm":
            a_i, a_f, a_g, a_o = np.split(a + h @ u.T + v, 4, axis=1)
            i, f, g, o = _sigmoid(a_i), _sigmoid(a_f), np.tanh(a_g), _sigmoid(a_o)
            c = f * state[1] + i * g
            return [o * np.tanh(c), c], (i, f, g, o, h, state[1], c)
        if self.kind == "mgu":
            f_, n_ = np.split(a, 2, axis=1)
            u_f, u_n = np.split(u, 2)
            v_f, v_n = np.split(v, 2)
            f = _sigmoid(f_ + h @ u_f.T + v_f)
            n = np.tanh(n_ + (f * h) @ u_n.T + v_n)
            return [(1 - f) * h + f * n], (f, n, h)
        rz, n_ = np.split(a, [2 * u.shape[1]], axis=1)
        u_rz, u_n = np.split(u, [2 * u.shape[1]])
        v_rz, v_n = np.split(v, [2 * u.shape[1]])
        r, z = np.split(_sigmoid(rz + h @ u_rz.T + v_rz), 2, axis=1)
        if self.kind == "gru":
            q = h @ u_n.T + v_n
            n = np.tanh(n_ + r * q)
        else:
            q = r * h
            n = np.tanh(n_ + q @ u_n.T + v_n)
        return [z * h + (1 - z) * n], (r, z, n, q, h)

    def backward(self, dy: Any) -> Any:
        """Returns dx for this direction's y; stores dparams and dstate."""
        w, u = self.params["weight_ih"], self.params["weight_hh"]
        steps, batch, _ = dy.shape
        hidden = u.shape[1]
        # Gradients for the pre-activations in W's product and in U's; and the operand of U.
        da_x = np.zeros((steps, batch, len(u)))
        da_h = np.zeros_like(da_x)
        h_prev = np.zeros((steps, batch, hidden))
        gated_h = np.zeros_like(h_prev)
        dstate = [np.zeros((batch, hidden)) for _ in self.last]
        for t in reversed(self.order):
            active = self.active[t][:, np.newaxis]
            given = [np.where(active, d, 0) for d in dstate]
            given[0] = given[0] + np.where(active, dy[t], 0)
            before = self._step_backward(given, t, u, da_x, da_h, h_prev, gated_h)
            dstate = [np.where(active, new, old) for new, old in zip(before, dstate)]
        self.dstate = dstate

        def flat(a: Any) -> Any:
            return a.reshape(steps * batch, -1)

        dweight_hh = flat(da_h).T @ flat(h_prev)
        if self.kind in ("gru-before", "mgu"):
            # The rows of the candidate, which is the last gate.
            dweight_hh[-hidden:] = flat(da_h)[:, -hidden:].T @ flat(gated_h)
        self.dparams = {
            "weight_ih": flat(da_x).T @ flat(self.x),
            "weight_hh": dweight_hh,
            "bias_ih": flat(da_x).sum(axis=0),
            "bias_hh": flat(da_h).sum(axis=0),
        }
        return da_x @ w

    def _step_backward(
        self,
        given: list[Any],
        t: int,
        u: Any,
        da_x: Any,
        da_h: Any,
        h_prev: Any,
        gated_h: Any,
    ) -> list[Any]:
        """The gradient for the state before step t, from that after it; fills in step t's rows."""
        # In inactive rows `given` is zero, and so is everything computed from it.
        dh = given[0]
        if self.kind == "lstm":
            i, f, g, o, h, c_prev, c = self.saved[t]
            tanh_c = np.tanh(c)
            dc = given[1] + dh * o * (1 - tanh_c**2)
            gates = (
                dc * g * i * (1 - i),
                dc * c_prev * f * (1 - f),
                dc * i * (1 - g**2),
                dh * tanh_c * o * (1 - o),
            )
            da_x[t] = da_h[t] = np.concatenate(gates, axis=1)
            h_prev[t] = h
            return [da_h[t] @ u, dc * f]
        if self.kind == "mgu":
            f, n, h = self.saved[t]
            u_f, u_n = np.split(u, 2)
            da_n = dh * f * (1 - n**2)
            dfh = da_n @ u_n
            da_f = (dh * (n - h) + dfh * h) * f * (1 - f)
            da_x[t] = da_h[t] = np.concatenate((da_f, da_n), axis=1)
            h_prev[t], gated_h[t] = h, f * h
            return [dh * (1 - f) + dfh * f + da_f @ u_f]
        r, z, n, q, h = self.saved[t]
        da_n = dh * (1 - z) * (1 - n**2)
        da_z = dh * (h - n) * z * (1 - z)
        u_rz, u_n = np.split(u, [2 * u.shape[1]])
        if self.kind == "gru":
            da_r = da_n * q * r * (1 - r)
            by_u = da_n * r
            direct = dh * z + by_u @ u_n
        else:
            dq = da_n @ u_n
            da_r = dq * h * r * (1 - r)
            by_u = da_n
            direct = dh * z + dq * r
            gated_h[t] = q
        da_x[t] = np.concatenate((da_r, da_z, da_n), axis=1)
        da_h[t] = np.concatenate((da_r, da_z, by_u), axis=1)
        h_prev[t] = h
        return [direct + da_h[t][:, : 2 * u.shape[1]] @ u_rz]
