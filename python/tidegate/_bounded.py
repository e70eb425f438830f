"""Numbers with bounds on their errors: running error analysis, after Wilkinson.

The rules are those of Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3.
The assumptions about the kernels, and the cells' formulas on such numbers, are in `_bounds`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tidegate.checks import Array

ACTIVATION_ULP = 2  # the error of sigmoid and tanh


class Bounded:
    """Numbers, each with a bound on the error of the value that a layer computes in its dtype.

    Attributes:
        value: float64.
        error: float64, of the same shape; not negative, and infinite where there is no bound.
    """

    def __init__(self, value: Array, error: Array, info: np.finfo[Any]) -> None:
        self.value = value
        self.error = error
        self._info = info

    @classmethod
    def given(cls, values: Array, info: np.finfo[Any]) -> Bounded:
        """Values that a caller passed: exact, except that denormals count as zeros."""
        value = np.asarray(values, dtype=np.float64)
        return cls(value, np.where(np.abs(value) < float(info.tiny), np.abs(value), 0.0), info)

    @classmethod
    def rounded(cls, number: float, info: np.finfo[Any]) -> Bounded:
        """A number rounded to the dtype."""
        magnitude = abs(number)
        error = magnitude * float(info.eps) / 2
        if magnitude < float(info.tiny):
            error = magnitude
        return cls.checked_for_overflow(np.asarray(number), np.asarray(error), info)

    @classmethod
    def zeros(cls, shape: tuple[int, ...], info: np.finfo[Any]) -> Bounded:
        """Exact zeros."""
        return cls(np.zeros(shape), np.zeros(shape), info)

    def copy(self) -> Bounded:
        """A copy that shares no memory with this one."""
        return Bounded(self.value.copy(), self.error.copy(), self._info)

    def __getitem__(self, index: Any) -> Bounded:
        return Bounded(self.value[index], self.error[index], self._info)

    def __setitem__(self, index: Any, other: Bounded) -> None:
        self.value[index] = other.value
        self.error[index] = other.error

    @property
    def T(self) -> Bounded:
        """The transpose."""
        return Bounded(self.value.T, self.error.T, self._info)

    def blocks(self, count: int) -> list[Bounded]:
        """Equal parts along the last axis, one for each gate."""
        values, errors = np.split(self.value, count, -1), np.split(self.error, count, -1)
        return [Bounded(v, e, self._info) for v, e in zip(values, errors)]

    @property
    def max_magnitude(self) -> Array:
        """The largest magnitude that the layer's value may have."""
        return np.abs(self.value) + self.error

    @classmethod
    def checked_for_overflow(
        cls, value: Array, error: Array, info: np.finfo[Any], max_magnitude: Any = 0.0
    ) -> Bounded:
        """The result of an operation, without a bound where it may overflow.

        Args:
            value: the computed value.
            error: its bound; NaN where an operand without a bound leaves it undefined.
            info: the finfo of the dtype.
            max_magnitude: the largest magnitude of the operation's intermediate values.
        """
        fits = np.maximum(np.abs(value) + error, max_magnitude) <= float(info.max)
        return cls(value, np.where(fits, error, math.inf), info)

    def _rounded(self, value: Array, error: Array) -> Bounded:
        unit = float(self._info.eps) / 2
        rounding = unit * (np.abs(value) + error) + float(self._info.tiny)
        return self.checked_for_overflow(value, error + rounding, self._info)

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.error, self._info)

    def __add__(self, other: Bounded) -> Bounded:
        return self._rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other: Bounded) -> Bounded:
        return self + -other

    def __mul__(self, other: Bounded) -> Bounded:
        error = np.abs(self.value) * other.error + self.error * other.max_magnitude
        return self._rounded(self.value * other.value, error)

    def complement(self) -> Bounded:
        """1 - self."""
        return self._rounded(1 - self.value, self.error)

    def choose(self, edge: Bounded, below: Bounded, above: Bounded) -> Bounded:
        """`below` where self < edge, else `above`; either where the errors leave that undecided."""
        distance = self.value - edge.value
        value = np.where(distance < 0, below.value, above.value)
        error = np.where(distance < 0, below.error, above.error)
        either = np.abs(below.value - above.value) + np.maximum(below.error, above.error)
        # The value here is rounded to double, which matters if the layer computes in double too.
        known = np.abs(distance) > (self.error + edge.error) * double_factor(self._info)
        return self.checked_for_overflow(value, np.where(known, error, either), self._info)

    def magnitude(self) -> Bounded:
        """|self|."""
        return Bounded(np.abs(self.value), self.error, self._info)

    def sigmoid(self) -> Bounded:
        """1 / (1 + exp(-self))."""
        small = np.exp(-np.abs(self.value))
        value = np.where(self.value < 0, small, 1.0) / (1 + small)
        return self._activated(value, self._sigmoid_slope(1))

    def tanh(self) -> Bounded:
        """tanh(self), which is 2 * sigmoid(2 * self) - 1."""
        return self._activated(np.tanh(self.value), self._sigmoid_slope(2))

    def softsign(self) -> Bounded:
        """self / (1 + |self|)."""
        value = self.value / (1 + np.abs(self.value))
        return self._activated(value, (1 + self._min_magnitude()) ** -2.0)

    def softplus(self) -> Bounded:
        """log(1 + exp(self))."""
        farthest = self.value + self.error
        return self._activated(np.logaddexp(self.value, 0), np.exp(-np.logaddexp(0, -farthest)))

    def expm1_below_zero(self) -> Bounded:
        """exp(min(self, 0)) - 1."""
        farthest = np.minimum(self.value + self.error, 0)
        return self._activated(np.expm1(np.minimum(self.value, 0)), np.exp(farthest))

    def _min_magnitude(self) -> Array:
        """The least magnitude that the layer's value may have."""
        return np.asarray(np.maximum(np.abs(self.value) - self.error, 0))

    def _sigmoid_slope(self, steepness: int) -> Array:
        """The slope of steepness * sigmoid(steepness * self): at most 1/4 and 1, for 1 and 2."""
        small = np.exp(-steepness * self._min_magnitude())
        return np.asarray(steepness**2 * small / (1 + small) ** 2)

    def _activated(self, value: Array, slope: Array) -> Bounded:
        """`value` of an activation whose slope is at most `slope` within the argument's error."""
        error = slope * self.error
        ulp = float(self._info.eps) * (np.abs(value) + error)  # at least the dtype's spacing there
        error = error + ACTIVATION_ULP * ulp + float(self._info.tiny)
        return self.checked_for_overflow(value, error, self._info)

    def sum_rows(self) -> Bounded:
        """The sum over the first axis."""
        terms = len(self.value)
        max_magnitude = self.max_magnitude.sum(axis=0)
        rounding = _gamma(terms, self._info) * max_magnitude + terms * float(self._info.tiny)
        error = self.error.sum(axis=0) + rounding
        return self.checked_for_overflow(
            self.value.sum(axis=0), error, self._info, max_magnitude + rounding
        )


def double_factor(info: np.finfo[Any]) -> float:
    """The factor by which the reference's own error, in double, widens a bound of the dtype."""
    return 1 + float(np.finfo(np.float64).eps) / float(info.eps)


def _gamma(roundings: float, info: np.finfo[Any]) -> float:
    relative = roundings * float(info.eps) / 2
    return relative / (1 - relative)


# The order in which a kernel sums the products of an operand (csrc/kernels/table.h).
_SUM_BLOCK = 128
_SUM_GROUP = 1024


def _summation_depth(depths: Sequence[int], addends: int) -> int:
    """The largest number of roundings that any term of a kernel's sum goes through.

    The products of an operand with K elements form blocks of 128, and these form groups of 1,024. A
    product goes through the roundings of its block, of the blocks of its group, and of all blocks
    and groups that are added to the accumulator.

    Args:
        depths: K of each operand.
        addends: the number of terms that are not products.
    """
    within = max(min(k, _SUM_BLOCK) for k in depths)
    if max(depths) > _SUM_GROUP:
        within += _SUM_GROUP // _SUM_BLOCK
    added = sum(
        math.ceil(min(k, _SUM_GROUP) / _SUM_BLOCK) + math.ceil(k / _SUM_GROUP) for k in depths
    )
    return min(within + added + addends, sum(depths) + addends)


def accumulate(
    products: Sequence[tuple[Bounded, Bounded]], addends: Sequence[Bounded] = ()
) -> Bounded:
    """The sum of all `left @ right.T`, (R, K) by (M, K), and of all addends (R, M)."""
    info = products[0][0]._info
    depths = [left.value.shape[1] for left, _ in products]
    # The reference's sum in double is one chain, whereas `double_factor` assumes a kernel's depth.
    share = double_factor(info) - 1
    chain = sum(depths) + len(addends)
    roundings = (_summation_depth(depths, len(addends)) + share * chain) / (1 + share)
    return _accumulate(products, addends, roundings)


def accumulate_rows(left: Bounded, right: Bounded) -> Bounded:
    """`left.T @ right`, (R, K) and (R, M): a sum over rows, in any order."""
    return _accumulate([(left.T, right.T)], (), len(left.value))


def _accumulate(
    products: Sequence[tuple[Bounded, Bounded]], addends: Sequence[Bounded], roundings: float
) -> Bounded:
    info = products[0][0]._info
    terms = len(addends) + sum(left.value.shape[1] for left, _ in products)
    value: Any = sum(addend.value for addend in addends)
    error: Any = sum(addend.error for addend in addends)
    max_magnitude: Any = sum(addend.max_magnitude for addend in addends)
    for left, right in products:
        value = value + left.value @ right.value.T
        inherited = left.error @ np.abs(right.value).T
        if right.error.any():  # exact weights have no error
            inherited = inherited + left.max_magnitude @ right.error.T
        error = error + inherited
        max_magnitude = max_magnitude + left.max_magnitude @ right.max_magnitude.T
    rounding = _gamma(roundings, info) * max_magnitude + 2 * terms * float(info.tiny)
    return Bounded.checked_for_overflow(value, error + rounding, info, max_magnitude + rounding)


def concatenate(parts: Sequence[Bounded], axis: int) -> Bounded:
    """numpy.concatenate."""
    values, errors = [p.value for p in parts], [p.error for p in parts]
    return Bounded(np.concatenate(values, axis), np.concatenate(errors, axis), parts[0]._info)
