"""Checks of arguments: errors that name the argument, what came and what was wanted.

The arguments of the recurrent layers' calls are checked in the bindings instead.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, SupportsIndex, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tidegate.tensors import is_tensor, values_of

Array: TypeAlias = NDArray[Any]


Precision: TypeAlias = Literal["bfloat16", "bfloat16-dot", "int8"]


def check_precision(precision: object) -> Precision:
    """The name of a low precision.

    Raises:
        TypeError: precision is not a str.
        ValueError: there is no low precision of this name.
    """
    wanted = "wanted 'bfloat16', 'bfloat16-dot' or 'int8'"
    if not isinstance(precision, str):
        raise TypeError(f"precision: got {precision!r}, {wanted}")
    if precision not in get_args(Precision):
        raise ValueError(f"precision: got {precision!r}, {wanted}")
    return cast(Precision, precision)


def have_same_parameters(left: object, right: object) -> bool:
    """Whether layers in these low precisions have the same parameters, as in both bfloat16's."""
    bfloat16 = ("bfloat16", "bfloat16-dot")
    return left == right or (left in bfloat16 and right in bfloat16)


def is_exact(layer: Any) -> bool:
    """Whether the layer is not in low precision."""
    return bool(layer.precision == str(layer.dtype))


def check_exact(what: str, layer: Any) -> None:
    """Refuses a layer in low precision for `what`, which needs exact parameters.

    Raises:
        ValueError: the layer is in low precision.
    """
    if not is_exact(layer):
        raise ValueError(
            f"{what}: got a layer in {layer.precision}, wanted one in {layer.dtype}: "
            "layer.dequantize(), or the layer from which it was made"
        )


def check_low(what: str, layer: Any) -> None:
    """Refuses a layer that is not in low precision for `what`, which needs rounded parameters.

    Raises:
        ValueError: the layer is exact.
    """
    if is_exact(layer):
        raise ValueError(f"{what}: got a layer in {layer.precision}, wanted one that quantize made")


def array_problem(
    name: str, value: object, shape: tuple[int, ...] | None, dtype: np.dtype[Any] | None
) -> Exception | None:
    """The error if `value` is not an array of this shape (None: any) and dtype (None: floating)."""
    wanted = "float32 or float64" if dtype is None else str(dtype)
    if isinstance(value, np.generic):
        return TypeError(
            f"{name}: got a single {type(value).__name__}, not an array; wanted a {wanted} ndarray"
        )
    if not isinstance(value, np.ndarray):
        return TypeError(f"{name}: got {type(value).__name__}, wanted a {wanted} ndarray")
    if value.dtype not in ((np.float32, np.float64) if dtype is None else (dtype,)):
        return TypeError(f"{name}: got dtype {value.dtype}, wanted {wanted}")
    masked = masked_problem(name, value)
    if masked is not None:
        return masked
    if shape is not None and value.shape != shape:
        return ValueError(f"{name}: got shape {value.shape}, wanted {shape}")
    return None


def masked_problem(name: str, value: object) -> ValueError | None:
    """The error for an array of numpy.ma with masked elements, whose values are not data."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        count = np.count_nonzero(np.ma.getmaskarray(value))
        return ValueError(
            f"{name}: got a masked array with {count} masked elements, wanted plain values: "
            "replace them first (numpy.ma.filled)"
        )
    return None


def check_unmasked(name: str, value: object) -> None:
    """Raises the error that `masked_problem` returns, if any."""
    problem = masked_problem(name, value)
    if problem is not None:
        raise problem


def check_array(
    name: str,
    value: object,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: np.dtype[Any] | None = None,
) -> None:
    """Raises the error that `array_problem` returns, if any."""
    problem = array_problem(name, value, shape, dtype)
    if problem is not None:
        raise problem


def check_mapping(
    name: str,
    value: object,
    wanted: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    for_tensors: str = "",
) -> dict[str, Array]:
    """`value` as a dict of exactly these names, shapes and dtypes.

    Args:
        name: the argument's name, for messages.
        value: the argument.
        wanted: the shape and dtype of each name.
        for_tensors: the advice that messages give if some values are tensors of PyTorch.

    Raises:
        TypeError: `value` is not a mapping, or nothing but dtypes is wrong.
        ValueError: keys are missing, surplus or of another shape. One message names every
            problem.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: got {type(value).__name__}, wanted a mapping")
    given = dict(value)  # an open .npz file reads an array anew at every look-up
    missing = [key for key in wanted if key not in given]
    surplus = [repr(key) for key in given if key not in wanted]
    problems: list[Exception] = []
    if missing:
        problems.append(ValueError(f"missing {', '.join(missing)}"))
    if surplus:
        problems.append(ValueError(f"surplus {', '.join(surplus)}"))
    for key, (shape, dtype) in wanted.items():
        problem = array_problem(key, given[key], shape, dtype) if key in given else None
        if problem is not None:
            problems.append(problem)
    if problems:
        kind = TypeError if all(isinstance(p, TypeError) for p in problems) else ValueError
        advice = f"; {for_tensors}" if for_tensors and any(map(is_tensor, given.values())) else ""
        raise kind(f"{name}: " + "; ".join(str(problem) for problem in problems) + advice)
    return given


def check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """`dtype` as float32 or float64; a TypeError if it is neither."""
    if dtype is None:  # NumPy would read None as float64
        raise TypeError("dtype: got None, wanted float32 or float64")
    try:
        checked = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype: got {dtype!r}, wanted float32 or float64") from None
    if checked not in (np.float32, np.float64):
        raise TypeError(f"dtype: got {checked}, wanted float32 or float64")
    return checked


def check_size(name: str, value: object) -> int:
    """`value` as an int >= 1; a TypeError if it is not an integer (bools are not)."""
    size = check_integer(name, value)
    if size < 1:
        raise ValueError(f"{name}: got {size}, wanted at least 1")
    return size


def check_number(name: str, value: object, *, below: float = math.inf) -> float:
    """`value` as a float with 0 <= value < below; a TypeError if it is not a number."""
    if not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}, wanted a number")
    number = float(value)
    if not 0 <= number < below:
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name}: got {value}, wanted a number >= 0, {limit}")
    return number


def check_probability(name: str, value: object) -> float:
    """`value` as a float in 0..1; a TypeError if it is not a number."""
    probability = check_number(name, value)
    if probability > 1:
        raise ValueError(f"{name}: got {value}, wanted a probability, at most 1")
    return probability


def check_integers(name: str, values: ArrayLike | None) -> ArrayLike | None:
    """Integers as an ndarray, from a sequence of them, a pandas Series or a tensor.

    Anything else, including None, ndarrays and single numbers, is returned unchanged.

    Raises:
        TypeError: an element is not an integer (bools are not), or a tensor is on another device.
        ValueError: an element does not fit into 64 bits, or a tensor's storage is too small.
    """
    if values is None or isinstance(values, (np.ndarray, np.generic, int, str, bytes)):
        return values
    if isinstance(values, Sequence):
        elements: Sequence[object] = values
    elif is_tensor(values):
        return values_of(name, values).copy()
    elif hasattr(values, "__array__"):
        try:
            array = np.asarray(values)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = f"{type(values).__module__}.{type(values).__qualname__}"
            raise TypeError(f"{name}: got a {kind} that NumPy cannot read: {error}") from None
        if array.dtype != object or array.ndim != 1:
            return array
        elements = array.tolist()  # a nullable Series: Python integers, and perhaps missing values
    else:
        return values
    checked = [check_integer(f"{name}[{k}]", element) for k, element in enumerate(elements)]
    return np.array(checked, np.int64)


def check_integer(name: str, value: object) -> int:
    """`value` as an int that fits into 64 bits; a TypeError if it is not an integer (or a bool)."""
    # NumPy's arrays and booleans have an __index__ that may raise; an exception raised by the
    # __index__ of a caller's own class is passed on.
    refused = isinstance(value, (bool, np.bool_)) or (
        isinstance(value, np.ndarray) and (value.ndim > 0 or value.dtype.kind not in "iu")
    )
    if refused or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name}: got {value!r}, wanted an integer")
    number = operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name}: got {number}, wanted an integer of 64 bits")
    return number


def check_bool(name: str, value: object) -> bool:
    """`value` as a bool; a TypeError if it is anything else, 0 and 1 included."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: got {value!r}, wanted True or False")
    return bool(value)


def check_seed(name: str, seed: Any) -> np.random.Generator:
    """The generator that `numpy.random.default_rng` makes from `seed`.

    Raises:
        TypeError, ValueError: `default_rng` does not accept the seed.
    """
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{name}: got {seed!r}, wanted None, an integer >= 0 or a numpy.random.Generator"
        ) from error
