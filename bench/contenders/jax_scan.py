"""JAX: the cell in `lax.scan`, compiled by `jit`, from device arrays to device arrays.

Idiomatic JAX: all gates in one product, the input's product before the scan, weights transposed
beforehand. Gradients are `jax.vjp`'s, compiled together with the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bench.contenders import Contender, Task
from bench.grid import KINDS, Cell
from bench.problem import PARAMETERS, Problem


class Contestant(Contender):
    """JAX, with one thread for each processor that the worker is pinned to."""

    name = "jax"
    low_precisions: ClassVar[dict[str, tuple[str, ...]]] = {"bfloat16": KINDS}

    def versions(self) -> dict[str, str]:
        """The versions of JAX and of its compiled part."""
        import jaxlib

        return {"jax": jax.__version__, "jaxlib": jaxlib.__version__}

    def prepare(self, problem: Problem) -> Task:
        """Makes a compiled function."""
        jax.config.update("jax_enable_x64", problem.cell.dtype == "float64")
        return _training(problem) if problem.cell.training else _inference(problem)


def _device_params(problem: Problem, params: dict[str, Any]) -> list[tuple[Any, ...]]:
    """(W^T, U^T, b, v) for each layer and direction."""
    return [
        tuple(_device_array(problem, np.ascontiguousarray(arrays[name].T)) for name in PARAMETERS)
        for arrays in replace(problem, params=params).directed_layers()
    ]


def _device_array(problem: Problem, array: Any) -> Any:
    return jnp.asarray(array, jnp.bfloat16 if problem.cell.precision else array.dtype)


def _lstm(a: Any, state: tuple[Any, ...], u: Any, v: Any) -> tuple[Any, ...]:
    i, f, g, o = jnp.split(a + state[0] @ u + v, 4, axis=1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru(a: Any, state: tuple[Any, ...], u: Any, v: Any) -> tuple[Any, ...]:
    (h,) = state
    a_r, a_z, a_n = jnp.split(a, 3, axis=1)
    h_r, h_z, h_n = jnp.split(h @ u + v, 3, axis=1)
    z = jax.nn.sigmoid(a_z + h_z)
    n = jnp.tanh(a_n + jax.nn.sigmoid(a_r + h_r) * h_n)
    return (z * h + (1 - z) * n,)


def _gru_before(a: Any, state: tuple[Any, ...], u: Any, v: Any) -> tuple[Any, ...]:
    (h,) = state
    split = 2 * h.shape[1]
    rz = jax.nn.sigmoid(a[:, :split] + h @ u[:, :split] + v[:split])
    r, z = jnp.split(rz, 2, axis=1)
    n = jnp.tanh(a[:, split:] + (r * h) @ u[:, split:] + v[split:])
    return (z * h + (1 - z) * n,)


_CELLS = {"lstm": _lstm, "gru": _gru, "gru-before": _gru_before}


def _network(cell: Cell) -> Callable[..., Any]:
    """(params, x, state, active) -> y, state_n."""
    step = _CELLS[cell.kind]

    def direction(
        params: tuple[Any, ...], x: Any, state: tuple[Any, ...], active: Any, reverse: bool
    ) -> Any:
        w, u, b, v = params

        def body(state: tuple[Any, ...], given: Any) -> Any:
            if active is None:
                state = step(given, state, u, v)
                return state, state[0]
            a, mask = given
            new = step(a, state, u, v)
            state = tuple(jnp.where(mask, after, before) for after, before in zip(new, state))
            return state, jnp.where(mask, new[0], 0)

        projected = x @ w + b
        given = projected if active is None else (projected, active)
        return jax.lax.scan(body, state, given, reverse=reverse)

    def network(params: Any, x: Any, state: tuple[Any, ...], active: Any) -> Any:
        finals = []
        for layer in range(cell.num_layers):
            outputs = []
            for d in range(cell.directions):
                k = layer * cell.directions + d
                own = tuple(member[k] for member in state)
                final, y = direction(params[k], x, own, active, reverse=d == 1)
                finals.append(final)
                outputs.append(y)
            x = jnp.concatenate(outputs, axis=2) if len(outputs) > 1 else outputs[0]
        return x, tuple(jnp.stack(members) for members in zip(*finals))

    return network


def _inputs(problem: Problem) -> tuple[Any, Any, Any]:
    active = None
    if problem.lengths is not None:
        steps = np.arange(problem.cell.steps)[:, np.newaxis, np.newaxis]
        active = jnp.asarray(steps < problem.lengths[:, np.newaxis])
    state = tuple(_device_array(problem, member) for member in problem.state)
    return _device_array(problem, problem.x), state, active


def _inference(problem: Problem) -> Task:
    call = jax.jit(_network(problem.cell))
    params = _device_params(problem, problem.params)
    x, state, active = _inputs(problem)
    last: list[Any] = [None, state]

    def run() -> None:
        last[:] = None, state
        last[:] = jax.block_until_ready(call(params, x, state, active))

    def step() -> None:
        last[:] = jax.block_until_ready(call(params, x, last[1], active))

    def results() -> dict[str, Any]:
        named = {f"{name}_n": member for name, member in zip("hc", last[1])} | {"y": last[0]}
        return {name: np.asarray(array, problem.cell.dtype) for name, array in named.items()}

    return Task(step if problem.cell.stateful else run, results)


def _training(problem: Problem) -> Task:
    cell = problem.cell
    network = _network(cell)

    def gradients(params: Any, x: Any, state: Any, active: Any, dy: Any) -> Any:
        y, pullback, state_n = jax.vjp(
            lambda *given: network(*given, active), params, x, state, has_aux=True
        )
        return y, state_n, pullback(dy)

    call = jax.jit(gradients)
    versions = [_device_params(problem, p) for p in (problem.params, problem.changed_params())]
    x, state, active = _inputs(problem)
    dy = jnp.asarray(problem.dy)
    last: list[Any] = [None]

    def run() -> None:
        last[0] = None
        last[0] = jax.block_until_ready(call(versions[0], x, state, active, dy))

    def results() -> dict[str, Any]:
        y, state_n, (dparams, dx, dstate) = last[0]
        named = {"y": y, "dx": dx}
        for name, member, dmember in zip("hc", state_n, dstate):
            named |= {f"{name}_n": member, f"d{name}_0": dmember}
        for k, by_params in enumerate(dparams):
            layer, d = divmod(k, cell.directions)
            suffix = f"_l{layer}" + ("_reverse" if d else "")
            for name, gradient in zip(PARAMETERS, by_params, strict=True):
                named[f"d{name}{suffix}"] = gradient.T
        return {name: np.asarray(array) for name, array in named.items()}

    return Task(run, results, versions.reverse)
