"""Tidegate itself. One step, stateful: `stream.step(x, y)`. Else calls from NumPy to NumPy."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import tidegate as tg
from bench.contenders import OURS, Contender, OpenClients, Step, Task
from bench.grid import KINDS, Cell
from bench.problem import Problem


def make_layer(problem: Problem) -> Any:
    """The cell's layer, with the problem's parameters."""
    cell = problem.cell
    make: Any = {"lstm": tg.LSTM, "mgu": tg.MGU}.get(cell.kind, tg.GRU)
    layer = make(
        cell.input_size,
        cell.hidden_size,
        cell.num_layers,
        bidirectional=cell.bidirectional,
        dtype=cell.dtype,
        seed=0,
        **({"reset_after": cell.kind == "gru"} if make is tg.GRU else {}),
    )
    layer.load_state_dict(problem.params)
    return layer.quantize(precision_of(cell)) if cell.precision and not cell.training else layer


def precision_of(cell: Cell) -> Any:
    """The precision of a cell; None: the dtype. Of the kinds of bfloat16 the one that is faster."""
    return tg.fastest_bfloat16() if cell.precision == "bfloat16" else cell.precision or None


class Contestant(Contender):
    """Tidegate."""

    name = OURS
    kinds = (*KINDS, "mgu")
    low_precisions = dict.fromkeys(("bfloat16", "int8"), kinds)
    low_training = ("bfloat16",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        tg.set_num_threads(threads)

    def versions(self) -> dict[str, str]:
        """The versions of Tidegate and its compiler, and the instruction set in use."""
        config = tg.config()
        return {OURS: config["version"], "isa": config["isa"], "compiler": config["compiler"]}

    def prepare(self, problem: Problem) -> Task:
        """Makes a layer, or a stream of it."""
        layer = make_layer(problem)
        if problem.cell.training:
            return _training(layer, problem)
        return _step(layer, problem) if problem.cell.stateful else _sequence(layer, problem)

    def load(self, problem: Problem) -> OpenClients:
        """Rows of one stream, or a stream for each client."""
        layer = make_layer(problem)
        layer.stream()  # packs the weights, before any fork

        def open_clients(count: int, batched: bool) -> Step:
            if batched:
                stream = layer.stream(count)
                return lambda rows, x: stream.step(x, rows=rows)
            streams = [layer.stream() for _ in range(count)]
            return lambda rows, x: streams[rows[0]].step(x)

        return open_clients


def _state(problem: Problem) -> Any:
    return problem.h_0 if problem.c_0 is None else (problem.h_0, problem.c_0)


def _named(results: dict[str, Any], prefix: str, state: Any, suffix: str) -> dict[str, Any]:
    members = state if isinstance(state, tuple) else (state,)
    return results | {f"{prefix}{name}{suffix}": a for name, a in zip("hc", members)}


def _step(layer: Any, problem: Problem) -> Task:
    stream = layer.stream(problem.cell.batch)
    stream.state = _state(problem)
    x = np.ascontiguousarray(problem.x[0])
    y = np.empty((problem.cell.batch, problem.cell.hidden_size), problem.cell.dtype)

    def results() -> dict[str, Any]:
        return _named({"y": y[np.newaxis].copy()}, "", stream.state, "_n")

    # By position, as partial objects handle keywords more slowly than Python code, where
    # `stream.step(x, out=y)` costs the same.
    return Task(partial(stream.step, x, y), results)


def _sequence(layer: Any, problem: Problem) -> Task:
    cell = problem.cell
    state = _state(problem)
    y = np.empty((cell.steps, cell.batch, cell.directions * cell.hidden_size), cell.dtype)
    last: list[Any] = [None]

    def run() -> None:
        last[0] = None
        last[0] = layer(problem.x, state, lengths=problem.lengths, out=y)[1]

    return Task(run, lambda: _named({"y": y.copy()}, "", last[0], "_n"))


def _training(layer: Any, problem: Problem) -> Task:
    state = _state(problem)
    flats = [layer.params.flat.copy()]
    layer.load_state_dict(problem.changed_params())
    flats.append(layer.params.flat.copy())
    layer.params.flat = flats[0]
    last: list[Any] = [None]

    def run() -> None:
        last[0] = None
        y, state_n, tape = layer.forward(
            problem.x, state, lengths=problem.lengths, precision=precision_of(problem.cell)
        )
        last[0] = y, state_n, layer.backward(tape, problem.dy)

    def change() -> None:
        flats.reverse()
        layer.params.flat = flats[0]

    def results() -> dict[str, Any]:
        y, state_n, grads = last[0]
        named = {"y": y, "dx": grads.x} | {f"d{n}": g for n, g in grads.params.items()}
        return _named(_named(named, "", state_n, "_n"), "d", grads.state, "_0")

    return Task(run, results, change)
