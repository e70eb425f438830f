"""Weights in eight bits, as other frameworks store them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tidegate.checks import Array

# The scales that the core accepts for all integers.
_LEAST_SCALE = np.finfo(np.float32).tiny
_MOST_SCALE = np.finfo(np.float32).max / np.float32(128)
_AS_FLOATS = "pass dequantize=True for a float32 layer"


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Matrices of integers with a scale for each row: w = (value - zero point) * scale.

    Attributes:
        values: int8 or uint8 (..., rows, columns), of two axes at least.
        scales: float32 (..., rows).
        zero_points: (..., rows), of the dtype of values.
    """

    values: Array
    scales: Array
    zero_points: Array

    # Those of the float32 weights that the integers represent.

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `values`."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """The number of axes of `values`."""
        return self.values.ndim

    @property
    def size(self) -> int:
        """The number of elements of `values`."""
        return self.values.size

    def __getitem__(self, matrix: int) -> QuantizedWeight:
        """One of the matrices along the first axis."""
        return QuantizedWeight(self.values[matrix], self.scales[matrix], self.zero_points[matrix])

    def regrouped(self, order: Sequence[int]) -> QuantizedWeight:
        """The matrix with its gates in another order, and their scales with them."""
        parts = (self.values, self.scales, self.zero_points)
        return QuantizedWeight(*(regroup_array(part, order) for part in parts))

    def dequantized(self) -> Array:
        """The float32 weights, each rounded once."""
        centred = self.values.astype(np.int16) - self.zero_points[..., None]
        with np.errstate(over="ignore", invalid="ignore"):
            weights: Array = centred.astype(np.float32) * self.scales[..., None]
        return weights

    @property
    def integers(self) -> Array:
        """The values as int8: those of uint8 less 128."""
        if self.values.dtype == np.int8:
            return self.values
        return (self.values ^ np.uint8(128)).view(np.int8)

    def check(self, name: str) -> None:
        """Checks that an int8 layer can hold these integers and scales.

        Raises:
            ValueError: a zero point is not in the middle, or a scale is not a positive number. The
                message says what to do.
        """
        middle = self.zero_points.dtype.type(0 if self.values.dtype == np.int8 else 128)
        _refuse(
            f"{name}: got the zero point",
            self.zero_points,
            self.zero_points != middle,
            f"wanted {middle} for {self.values.dtype} weights, as an int8 layer has no zero points",
        )
        with np.errstate(invalid="ignore"):
            good = (self.scales >= _LEAST_SCALE) & (self.scales <= _MOST_SCALE)
        _refuse(
            f"{name}: got the scale",
            self.scales,
            ~good,
            "wanted a positive finite number, neither denormal nor so great that 128 times it is "
            "infinite",
        )


Weight: TypeAlias = Array | QuantizedWeight


def _refuse(got: str, values: Array, wrong: Array, wanted: str) -> None:
    """Raises if any of the values is wrong; the message gives the first."""
    if not wrong.any():
        return
    place = tuple(int(index[0]) for index in np.nonzero(wrong))
    raise ValueError(f"{got} {values[place]!s} at {list(place)}, {wanted}: {_AS_FLOATS}")


def regroup_array(stacked: Array, order: Sequence[int]) -> Array:
    """Gates along the first axis, in another order: a new array."""
    gates = stacked.reshape(len(order), -1, *stacked.shape[1:])
    return gates[list(order)].reshape(stacked.shape)


def repeated_for_rows(parameter: Array, rows: tuple[int, ...]) -> Array:
    """A scale or zero point for each row, from one for each row, matrix, or for all matrices."""
    missing = len(rows) - parameter.ndim
    return np.broadcast_to(parameter.reshape(*parameter.shape, *[1] * missing), rows)
