"""Layers to combine with a recurrent one: Linear, on the core's tiles, and Dropout, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tidegate import _core
from tidegate.checks import (
    Array,
    Precision,
    check_array,
    check_bool,
    check_dtype,
    check_exact,
    check_low,
    check_precision,
    check_probability,
    check_seed,
    check_size,
    is_exact,
)
from tidegate.params import Gradients, Params, Specs


@dataclass(frozen=True, eq=False)
class LinearTape:
    """What `Linear.backward` needs: the shape of x, and the core's copy of x and of the weights."""

    shape: tuple[int, ...]
    core: _core.LinearTape

    def __repr__(self) -> str:
        core = self.core
        return (
            f"<LinearTape of a Linear({core.in_features}, {core.out_features}): "
            f"x {self.shape}, {core.dtype}>"
        )


@dataclass(frozen=True, eq=False)
class LinearGrads:
    """What Linear.backward returns: `x` and `params`, like the input and the parameters."""

    x: Array
    params: Gradients

    def __repr__(self) -> str:
        return (
            f"LinearGrads(x: {self.x.shape}, params: {self.params.flat.size} x {self.params.dtype})"
        )


class Linear:
    """y = x W^T + b, as `torch.nn.Linear`.

    Parameters: `weight` (out_features, in_features) and `bias` (out_features,), drawn from
    U(-1/sqrt(in_features), 1/sqrt(in_features)). The products run on the recurrent layers' kernels
    and threads, with the same guarantees: a row of y has the same bits for any batch and number of
    threads, and gradients have the same bits for any number of threads. There is no padding: every
    row is read. A pickled copy and a copy (also by `copy.copy`) have parameters of their own.

    Args:
        in_features: size of the last axis of x.
        out_features: size of the last axis of y.
        bias: whether there is a bias b.
        dtype: float32 or float64, the dtype of the parameters, the inputs and the results.
        seed: an argument of `numpy.random.default_rng`: None for another draw each time, an int, or
            a Generator.

    Raises:
        TypeError: a size is not an integer, bias is not a bool, the seed is of another type, or
            dtype is neither float32 nor float64.
        ValueError: a size is below 1, or the seed is negative.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        self.in_features = check_size("in_features", in_features)
        self.out_features = check_size("out_features", out_features)
        self.bias = check_bool("bias", bias)
        rng = check_seed("seed", seed)
        self._build(check_dtype(dtype))
        bound = 1 / math.sqrt(self.in_features)
        # Drawn in double, so that the same seed gives the same layer in each dtype, rounded.
        flat = rng.uniform(-bound, bound, self.params.flat.size)
        self.params.flat = flat.astype(self.dtype)

    def _build(self, dtype: np.dtype[Any], quantized: dict[str, Any] | None = None) -> None:
        self._layer = _core.Linear(self.in_features, self.out_features, self.bias, dtype, quantized)
        self.params = Params(self._specs(), self._layer)

    def _specs(self) -> Specs:
        specs: list[tuple[str, tuple[int, ...], int]]
        specs = [("weight", (self.out_features, self.in_features), 0)]
        if self.bias:
            specs.append(("bias", (self.out_features,), self.out_features * self.in_features))
        return specs

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self._layer.dtype

    @property
    def precision(self) -> str:
        """The type of weights in products: a low precision (see `quantize`), or the dtype."""
        return self._layer.precision

    def __call__(self, x: Array, num_threads: int | None = None) -> Array:
        """Inference: keeps nothing for a gradient.

        Args:
            x: (..., in_features), of the layer's dtype.
            num_threads: the most threads that the call may use; None is the setting in force
                (`get_num_threads`).

        Returns:
            y: (..., out_features), a new array.

        Raises:
            TypeError: x is not an ndarray of the layer's dtype.
            ValueError: its last axis is not in_features.
        """
        self._check_x(x)
        y = self._layer.run(x.reshape(-1, self.in_features), num_threads)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _check_x(self, x: Array) -> None:
        check_array("x", x, dtype=self.dtype)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: got shape {x.shape}, wanted (..., {self.in_features})")

    def forward(self, x: Array, num_threads: int | None = None) -> tuple[Array, LinearTape]:
        """Training: returns what `__call__` returns, and the tape that `backward` needs.

        Changes of x and of the parameters do not affect the tape; it may be used any number of
        times. A layer in low precision raises a ValueError.
        """
        check_exact("forward", self)
        self._check_x(x)
        y, tape = self._layer.record(x.reshape(-1, self.in_features), num_threads)
        return y.reshape(*x.shape[:-1], self.out_features), LinearTape(x.shape, tape)

    def backward(self, tape: LinearTape, dy: Array, num_threads: int | None = None) -> LinearGrads:
        """Gradients of a scalar, given dy for y: dx = dy W, dW = dy^T x, db = dy summed over rows.

        They have the same bits for any num_threads. The weights are those of the forward call.

        Args:
            tape: from `forward` of a layer of this shape.
            dy: (..., out_features), shaped like y, of the layer's dtype.
            num_threads: the most threads that the call may use; None is the setting in force.

        Returns:
            grads: `grads.x` like x, `grads.params["weight"]`, `grads.params["bias"]`.

        Raises:
            TypeError: tape is not a LinearTape, or tape or dy is not of the layer's dtype.
            ValueError: tape is from a layer of another shape, or dy's shape is not y's; the layer
                is in low precision.
        """
        check_exact("backward", self)
        if not isinstance(tape, LinearTape):
            raise TypeError(f"tape: got {type(tape).__name__}, wanted a LinearTape")
        core = tape.core
        if core.dtype != self.dtype:
            raise TypeError(f"tape: got dtype {core.dtype}, wanted {self.dtype}")
        got = (core.in_features, core.out_features, core.has_bias)
        wanted = (self.in_features, self.out_features, self.bias)
        if got != wanted:
            raise ValueError(
                f"tape: got one of a layer with (in_features, out_features, bias) = {got}, "
                f"wanted {wanted}"
            )
        check_array("dy", dy, shape=(*tape.shape[:-1], self.out_features), dtype=self.dtype)
        dx, flat = core.backward(dy.reshape(-1, self.out_features), num_threads)
        return LinearGrads(dx.reshape(tape.shape), Gradients(self._specs(), flat))

    def state_dict(self) -> dict[str, Array]:
        """Names -> copies of the parameters."""
        return self.params.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Replaces all parameters; strict, all or nothing: see `Params.load_state_dict`."""
        self.params.load_state_dict(state_dict)

    def save(self, path: str | bytes | PathLike[str] | PathLike[bytes]) -> None:
        """Writes the layer to a safetensors file, for `tidegate.load`; see `tidegate.save`."""
        from tidegate import files

        files.save(path, self)

    def astype(self, dtype: DTypeLike) -> Linear:
        """A new layer with these parameters in another dtype.

        Raises:
            TypeError: dtype is neither float32 nor float64.
            ValueError: the layer is in low precision: `dequantize` it first.
        """
        check_exact("astype", self)
        return Linear._from_flat(
            self.in_features,
            self.out_features,
            self.bias,
            self.params.flat.astype(check_dtype(dtype)),
        )

    def quantize(self, precision: Precision) -> Linear:
        """A new layer for inference, with these weights in fewer bits; see `LSTM.quantize`.

        In "int8" each row of x has the scale max|x| / 127.

        Args:
            precision: "bfloat16", "bfloat16-dot" or "int8", as in `LSTM.quantize`.

        Raises:
            TypeError, ValueError: as in `LSTM.quantize`.
        """
        return Linear._from_quantized(
            self.in_features,
            self.out_features,
            self.bias,
            self._layer.quantize(check_precision(precision)),
        )

    def dequantize(self) -> Linear:
        """A new float32 layer with the parameters of this layer in low precision.

        Raises:
            ValueError: the layer is not in low precision.
        """
        check_low("dequantize", self)
        return Linear._from_flat(self.in_features, self.out_features, self.bias, self.params.flat)

    @classmethod
    def _from_flat(cls, in_features: int, out_features: int, bias: bool, flat: Array) -> Linear:
        layer = cls.__new__(cls)
        layer.in_features, layer.out_features, layer.bias = in_features, out_features, bias
        layer._build(flat.dtype)
        layer.params.flat = flat
        return layer

    @classmethod
    def _from_quantized(
        cls, in_features: int, out_features: int, bias: bool, quantized: dict[str, Any]
    ) -> Linear:
        layer = cls.__new__(cls)
        layer.in_features, layer.out_features, layer.bias = in_features, out_features, bias
        layer._build(np.dtype(np.float32), quantized)
        return layer

    def __reduce__(self) -> tuple[Any, ...]:
        sizes = (self.in_features, self.out_features, self.bias)
        quantized = self._layer.quantized
        if quantized is not None:
            return Linear._from_quantized, (*sizes, quantized)
        return Linear._from_flat, (*sizes, self.params.flat.copy())

    def __repr__(self) -> str:
        dtype = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        shown = (
            f"Linear(in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias}{dtype})"
        )
        return shown if is_exact(self) else f"{shown}.quantize({self.precision!r})"


def dropout_scale(
    rng: np.random.Generator, shape: tuple[int, ...], p: float, dtype: np.dtype[Any]
) -> Array:
    """The factor by which dropout multiplies each element: 0 with probability p, else 1/(1-p).

    One number is drawn for each element, the same in both dtypes.
    """
    keep = rng.random(shape, np.float32) >= p
    # With p = 1 all elements are dropped, and 1/(1-p) would be infinite.
    return keep.astype(dtype) / (1 - p if p < 1 else 1)


@dataclass(frozen=True, eq=False)
class DropoutTape:
    """What Dropout.backward needs: the factor of each element, 0 or 1/(1-p)."""

    scale: Array

    def __repr__(self) -> str:
        return f"<DropoutTape: {self.scale.shape}, {self.scale.dtype}>"


class Dropout:
    """In training, zeroes elements with probability p and scales the others, as `torch.nn.Dropout`.

    The others are multiplied by 1/(1-p), so the expected value stays, and inference, `dropout(x)`,
    is the identity. With p = 1 all of them are zero.

    Args:
        p: 0 <= p <= 1.

    Raises:
        TypeError: p is not a real number.
        ValueError: p is out of range.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_probability("p", p)

    def __call__(self, x: Array) -> Array:
        """Inference: x itself."""
        check_array("x", x)
        return x

    def forward(
        self, x: Array, rng: np.random.Generator | None = None
    ) -> tuple[Array, DropoutTape]:
        """Training.

        Args:
            x: float32 or float64, of any shape.
            rng: the source of random numbers; one is drawn for each element (the same in both
                dtypes), in the order of x's indices. Neither needed nor used if p is 0.

        Returns:
            y: a new array like x, and the tape that `backward` needs.

        Raises:
            TypeError: x is not such an ndarray, or rng is not a `numpy.random.Generator`.
            ValueError: p > 0 and rng is None.
        """
        check_array("x", x)
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng: got {type(rng).__name__}, wanted a numpy.random.Generator")
        scale = np.ones(x.shape, x.dtype)
        if self.p > 0:
            if rng is None:
                raise ValueError(f"rng: got None, wanted a numpy.random.Generator for {self}")
            scale = dropout_scale(rng, x.shape, self.p, x.dtype)
        return np.multiply(x, scale, out=np.empty(x.shape, x.dtype)), DropoutTape(scale)

    def backward(self, tape: DropoutTape, dy: Array) -> Array:
        """The gradient for x, given the gradient for y: dropped and scaled in the same way.

        Args:
            tape: from `forward`.
            dy: an array like y.

        Returns:
            dx: a new array like x.

        Raises:
            TypeError: tape is not a DropoutTape, or dy is not an ndarray of its dtype.
            ValueError: dy's shape is not y's.
        """
        if not isinstance(tape, DropoutTape):
            raise TypeError(f"tape: got {type(tape).__name__}, wanted a DropoutTape")
        check_array("dy", dy, shape=tape.scale.shape, dtype=tape.scale.dtype)
        return np.multiply(dy, tape.scale, out=np.empty(dy.shape, dy.dtype))

    def __repr__(self) -> str:
        return f"Dropout(p={self.p:g})"
