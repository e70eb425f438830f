"""Bounds of tests against the reference. Where they come from is told in tidegate._bounds.

Whole sequences, forward and backward, go through `tidegate.selftest.check`. Here is what it has
not: single steps, for which weights need not contract, and assertions on named results.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

import tidegate as tg
from tidegate import _bounds, reference, selftest
from tidegate._bounded import Bounded
from tidegate._bounds import make_contracting, worst_ratio

__all__ = ["assert_correct", "assert_steps_correct", "assert_within", "make_contracting"]


def assert_within(
    got: Mapping[str, np.ndarray], expected: Mapping[str, tuple[np.ndarray, Bounded]]
) -> None:
    """Every result lies within its bound of what the reference gives."""
    ratios = {name: worst_ratio(values, *expected[name]) for name, values in got.items()}
    assert max(ratios.values(), default=0) <= 1, ratios


def assert_correct(case: selftest.Case, expected: selftest.Expected) -> None:
    """Forward and backward lie within their bounds; threads change no bit."""
    tally = selftest.Tally()
    selftest.check(case, expected, tally)
    assert not tally.misses


def assert_steps_correct(case: selftest.Case, num_threads: int) -> None:
    """Each step of a one-layer network, held against the reference fed with our previous state."""
    layer = case.layer
    y, _, tape = layer.forward(
        case.x, case.state, case.lengths, case.reset, num_threads=num_threads
    )
    network = reference.from_layer(layer)
    for direction in range(network.num_directions):
        reverse = layer.reverse or direction == 1
        suffix = "_l0_reverse" if direction == 1 else "_l0"
        params = {
            name.replace(suffix, "_l0"): value
            for name, value in layer.params.items()
            if name.endswith(suffix)
        }
        columns = slice(direction * network.state_size, (direction + 1) * network.state_size)
        states = [y[:, :, columns]]
        if isinstance(layer, tg.LSTM):
            states.append(tape.gates(0, direction == 1)["c"])
        initial = case.state if isinstance(case.state, tuple) else (case.state, None)
        valid = _valid(case)
        before = [
            _previous(values, None if first is None else first[direction], case, reverse)[valid]
            for values, first in zip(states, initial)
        ]
        _assert_one_step(network, params, case.x[valid], before, [s[valid] for s in states])


def _valid(case: selftest.Case) -> np.ndarray:
    """(T, N): whether a step is not padding."""
    steps, batch = case.x.shape[:2]
    lengths = np.full(batch, steps) if case.lengths is None else case.lengths
    return np.arange(steps)[:, None] < lengths


def _previous(
    states: np.ndarray, initial: np.ndarray | None, case: selftest.Case, reverse: bool
) -> np.ndarray:
    """(T, N, S): the state that each step starts from, given those that the steps made."""
    steps, batch = states.shape[:2]
    if initial is None:
        initial = np.zeros_like(states[0])
    lengths = np.full(batch, steps) if case.lengths is None else case.lengths
    reset = np.zeros((steps, batch), bool) if case.reset is None else case.reset
    result = np.zeros_like(states)
    for n in range(batch):
        for t in range(lengths[n]):
            if reverse:
                first, boundary = t == lengths[n] - 1, t + 1 < lengths[n] and reset[t + 1, n]
            else:
                first, boundary = t == 0, reset[t, n]
            if not boundary:
                result[t, n] = initial[n] if first else states[t + 1 if reverse else t - 1, n]
    return result


def _assert_one_step(
    network: Any,
    params: Mapping[str, np.ndarray],
    x: np.ndarray,
    before: list[np.ndarray],
    after: list[np.ndarray],
) -> None:
    """Rows of x (R, I) as a batch of sequences of one step."""
    cell = copy.copy(network)
    cell.num_layers, cell.bidirectional, cell.reverse = 1, False, False
    state: Any = tuple(part[None] for part in before) if len(before) > 1 else before[0][None]
    _, wanted, _ = cell.forward(params, x[None], state)
    bound = _bounds.forward(cell, params, x[None], state, dtype=x.dtype)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert_within(
        {name: values[None] for name, values in zip("hc", after)},
        dict(zip("hc", zip(wanted, (bound.h, bound.c)))),
    )
