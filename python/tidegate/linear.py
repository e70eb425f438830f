"""What stands around a recurrent layer: Linear and Dropout, forward and backward, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tidegate.checks import Array, check_array, check_dtype, check_number, check_size
from tidegate.params import ArrayStore, Gradients, Params, Specs


@dataclass(frozen=True, eq=False)
class LinearTape:
    """What Linear.backward needs: copies of the input and of the weight that was used."""

    x: Array
    weight: Array


@dataclass(frozen=True, eq=False)
class LinearGrads:
    """What Linear.backward returns: `x`, like the input, and `params`, named as the parameters."""

    x: Array
    params: Gradients


class Linear:
    """y = x W^T + b, as `torch.nn.Linear`.

    Parameters: `weight` (out_features, in_features) and `bias` (out_features,), drawn from
    U(-1/sqrt(in_features), 1/sqrt(in_features)). The products are NumPy's, threads and rounding
    included: unlike a recurrent layer, it neither promises the same bits in every batch nor knows
    padding (every row is read). Pickled or copied (`copy.copy` too), it becomes a layer with
    parameters of its own.

    Args:
        in_features: size of the last axis of x.
        out_features: size of the last axis of y.
        bias: whether there is a b.
        dtype: float32 or float64, of the parameters and of whatever goes in and out.
        seed: what `numpy.random.default_rng` takes: None for another draw each time, an int, a
            Generator.

    Raises:
        TypeError: a size is no integer, or dtype is neither float32 nor float64.
        ValueError: a size is below 1.
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
        self.bias = bool(bias)
        dtype = check_dtype(dtype)
        specs = self._specs()
        size = sum(math.prod(shape) for _, shape, _ in specs)
        bound = 1 / math.sqrt(self.in_features)
        # Drawn in double whatever the dtype: the same seed gives the same layer, rounded.
        flat = np.random.default_rng(seed).uniform(-bound, bound, size)
        self.params = Params(specs, ArrayStore(flat.astype(dtype)))

    def _specs(self) -> Specs:
        specs: list[tuple[str, tuple[int, ...], int]]
        specs = [("weight", (self.out_features, self.in_features), 0)]
        if self.bias:
            specs.append(("bias", (self.out_features,), self.out_features * self.in_features))
        return specs

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.params.dtype

    def __call__(self, x: Array) -> Array:
        """Inference: keeps nothing.

        Args:
            x: (..., in_features), of the layer's dtype.

        Returns:
            y: (..., out_features), a new array.

        Raises:
            TypeError: x is no ndarray of the layer's dtype.
            ValueError: its last axis is not in_features.
        """
        check_array("x", x, dtype=self.dtype)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: got shape {x.shape}, wanted (..., {self.in_features})")
        rows = x.reshape(-1, self.in_features)
        y: Array = rows @ self.params["weight"].T
        if self.bias:
            y += self.params["bias"]
        return y.reshape(*x.shape[:-1], self.out_features)

    def forward(self, x: Array) -> tuple[Array, LinearTape]:
        """Training: what `__call__` returns, and the tape that `backward` needs.

        The tape outlives changes of x and of the parameters, and may be used any number of times.
        """
        y = self(x)
        return y, LinearTape(x.copy(), self.params["weight"].copy())

    def backward(self, tape: LinearTape, dy: Array) -> LinearGrads:
        """Gradients of a scalar, given dy by y: dx = dy W, dW = dy^T x, db = dy summed over rows.

        Args:
            tape: from `forward` of a layer of this shape.
            dy: (..., out_features), shaped like y, of the layer's dtype.

        Returns:
            grads: `grads.x` like x, `grads.params["weight"]`, `grads.params["bias"]`.

        Raises:
            TypeError: tape is no LinearTape, or it or dy is not of the layer's dtype.
            ValueError: tape is from a layer of another shape, or dy's shape is not y's.
        """
        if not isinstance(tape, LinearTape):
            raise TypeError(f"tape: got {type(tape).__name__}, wanted a LinearTape")
        check_array("tape", tape.weight, dtype=self.dtype)
        if tape.weight.shape != (self.out_features, self.in_features):
            raise ValueError(
                f"tape: got one of a layer with weight {tape.weight.shape}, "
                f"wanted {(self.out_features, self.in_features)}"
            )
        check_array("dy", dy, shape=(*tape.x.shape[:-1], self.out_features), dtype=self.dtype)
        dy_rows = dy.reshape(-1, self.out_features)
        params = Gradients(self._specs(), np.empty(self.params.flat.size, self.dtype))
        np.matmul(dy_rows.T, tape.x.reshape(-1, self.in_features), out=params["weight"])
        if self.bias:
            np.sum(dy_rows, axis=0, out=params["bias"])
        return LinearGrads((dy_rows @ tape.weight).reshape(tape.x.shape), params)

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
        """
        return Linear._from_flat(
            self.in_features,
            self.out_features,
            self.bias,
            self.params.flat.astype(check_dtype(dtype)),
        )

    @classmethod
    def _from_flat(cls, in_features: int, out_features: int, bias: bool, flat: Array) -> Linear:
        layer = cls.__new__(cls)
        layer.in_features, layer.out_features, layer.bias = in_features, out_features, bias
        layer.params = Params(layer._specs(), ArrayStore(flat))
        return layer

    def __reduce__(self) -> tuple[Any, ...]:
        flat = self.params.flat.copy()
        return Linear._from_flat, (self.in_features, self.out_features, self.bias, flat)

    def __repr__(self) -> str:
        dtype = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        return (
            f"Linear(in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias}{dtype})"
        )


@dataclass(frozen=True, eq=False)
class DropoutTape:
    """What Dropout.backward needs: what each element was multiplied by, 0 or 1/(1-p)."""

    scale: Array


class Dropout:
    """In training, zeroes elements with probability p and scales the others, as `torch.nn.Dropout`.

    The others are multiplied by 1/(1-p), so the expected value stays, and inference, `dropout(x)`,
    is the identity.

    Args:
        p: 0 <= p < 1.

    Raises:
        TypeError: p is no real number.
        ValueError: p is out of range.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_number("p", p, below=1)

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
            rng: where the choice comes from; one draw an element (the same ones in both dtypes), in
                the order of x's indices. Not needed, and not used, if p is 0.

        Returns:
            y: a new array like x, and the tape that `backward` needs.

        Raises:
            TypeError: x is no such ndarray, or rng no `numpy.random.Generator`.
            ValueError: p > 0 and rng is None.
        """
        check_array("x", x)
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng: got {type(rng).__name__}, wanted a numpy.random.Generator")
        scale = np.ones(x.shape, x.dtype)
        if self.p > 0:
            if rng is None:
                raise ValueError(f"rng: got None, wanted a numpy.random.Generator for {self}")
            keep = rng.random(x.shape, np.float32) >= self.p
            scale = keep.astype(x.dtype) / (1 - self.p)
        return np.multiply(x, scale, out=np.empty(x.shape, x.dtype)), DropoutTape(scale)

    def backward(self, tape: DropoutTape, dy: Array) -> Array:
        """The gradient by x, given the one by y: dropped and scaled alike.

        Args:
            tape: from `forward`.
            dy: an array like y.

        Returns:
            dx: a new array like x.

        Raises:
            TypeError: tape is no DropoutTape, or dy no ndarray of its dtype.
            ValueError: dy's shape is not y's.
        """
        if not isinstance(tape, DropoutTape):
            raise TypeError(f"tape: got {type(tape).__name__}, wanted a DropoutTape")
        check_array("dy", dy, shape=tape.scale.shape, dtype=tape.scale.dtype)
        return np.multiply(dy, tape.scale, out=np.empty(dy.shape, dy.dtype))

    def __repr__(self) -> str:
        return f"Dropout(p={self.p:g})"
