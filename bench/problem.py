"""The inputs of a cell's contenders: the same parameters and inputs for all, as NumPy arrays.

They depend only on the cell, so that every process draws the same arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.grid import Cell


@dataclass(frozen=True)
class Problem:
    """A cell's arrays, all of its dtype.

    Attributes:
        params: PyTorch's names and layouts, gates in the order i, f, g, o and r, z, n.
        x: (T, N, I).
        h_0: (L*D, N, H).
        c_0: the same shape for an LSTM; else None.
        lengths: (N,) int64, or None.
        dy: (T, N, D*H), the gradient for y in training; else None.
    """

    cell: Cell
    params: dict[str, Any]
    x: Any
    h_0: Any
    c_0: Any
    lengths: Any
    dy: Any

    @property
    def state(self) -> tuple[Any, ...]:
        """(h_0, c_0), or (h_0,)."""
        return (self.h_0,) if self.c_0 is None else (self.h_0, self.c_0)

    def directed_layers(self) -> list[dict[str, Any]]:
        """The parameters of each layer and direction, layer-major, by name without suffix."""
        return [
            {name: self.params[f"{name}_l{layer}{suffix}"] for name in PARAMETERS}
            for layer in range(self.cell.num_layers)
            for suffix in ("", "_reverse")[: self.cell.directions]
        ]

    def changed_params(self) -> dict[str, Any]:
        """Slightly changed parameters, as after an optimiser's step."""
        return {name: value * value.dtype.type(1 + 2**-7) for name, value in self.params.items()}


PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def make_problem(cell: Cell) -> Problem:
    """The arrays of `cell`: parameters from U(-1/sqrt(H), 1/sqrt(H)), inputs from N(0, 1)."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(cell.dtype)
    hidden, directions = cell.hidden_size, cell.directions
    bound = 1 / math.sqrt(hidden)

    def uniform(*shape: int) -> Any:
        return (rng.random(shape, dtype) * 2 - 1) * dtype.type(bound)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype)

    params = {}
    for layer in range(cell.num_layers):
        inputs = cell.input_size if layer == 0 else directions * hidden
        for suffix in ("", "_reverse")[:directions]:
            rows = cell.gates * hidden
            shapes = ((rows, inputs), (rows, hidden), (rows,), (rows,))
            for name, shape in zip(PARAMETERS, shapes, strict=True):
                params[f"{name}_l{layer}{suffix}"] = uniform(*shape)
    state = (cell.num_layers * directions, cell.batch, hidden)
    return Problem(
        cell=cell,
        params=params,
        x=normal(cell.steps, cell.batch, cell.input_size),
        h_0=normal(*state),
        c_0=normal(*state) if cell.kind == "lstm" else None,
        lengths=cell.lengths(),
        dy=normal(cell.steps, cell.batch, directions * hidden) if cell.training else None,
    )
