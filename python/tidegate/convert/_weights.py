"""Shared by the converters: checked weights, gates in Tidegate's order, and making the layer.

No framework is needed here.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np

from tidegate.checks import (
    Array,
    Precision,
    check_array,
    check_exact,
    check_precision,
    check_unmasked,
)
from tidegate.convert._quantized import QuantizedWeight, Weight, regroup_array
from tidegate.layers import GRU, LSTM, MGU
from tidegate.linear import Linear

RecurrentLayer: TypeAlias = LSTM | GRU
Path: TypeAlias = str | os.PathLike[str]
_Layer = TypeVar("_Layer", LSTM | GRU, Linear)

GATES = {"LSTM": 4, "GRU": 3}

# Gates stacked along an axis: the position, in the source's stack, of each of Tidegate's,
# which are i f g o and r z n.
ONNX_LSTM = (0, 2, 3, 1)  # i o f c
ONNX_PEEPHOLE = (0, 2, 1)  # i o f; Tidegate's i f o
KERAS_LSTM = (0, 1, 2, 3)  # i f c o
ZRH_GRU = (1, 0, 2)  # z r h, of ONNX and Keras


@overload
def regroup(stacked: Array, order: Sequence[int]) -> Array: ...
@overload
def regroup(stacked: Weight, order: Sequence[int]) -> Weight: ...
def regroup(stacked: Weight, order: Sequence[int]) -> Weight:
    """Gates along the first axis, in another order: a new array."""
    if isinstance(stacked, QuantizedWeight):
        return stacked.regrouped(order)
    return regroup_array(stacked, order)


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """The order that undoes `regroup(_, order)`."""
    return tuple(int(position) for position in np.argsort(order))


def as_weights(given: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays that are not None, as float32 or float64, all the same.

    float16 and bfloat16 become float32, which holds each of their values exactly.

    Raises:
        TypeError: a value is not an array or has another dtype, or float32 and float64 are mixed.
    """
    weights = {name: _as_float(name, value) for name, value in given.items() if value is not None}
    dtypes = {name: array.dtype for name, array in weights.items()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"weights: got {listed}, wanted one dtype")
    return weights


def as_layer_weights(given: Mapping[str, Any]) -> dict[str, Weight]:
    """As `as_weights`, for weights of which some may be quantised: those are checked, and kept.

    Raises:
        TypeError: as `as_weights`; the others are not float32.
        ValueError: an int8 layer cannot hold a quantised weight.
    """
    quantized = {name: value for name, value in given.items() if isinstance(value, QuantizedWeight)}
    arrays = as_weights({name: value for name, value in given.items() if name not in quantized})
    for name, weight in quantized.items():
        weight.check(name)
        for other, array in arrays.items():
            if array.dtype != np.float32:
                raise TypeError(f"{other}: got {array.dtype}, wanted float32, as {name} is int8")
    weights: dict[str, Weight] = {**arrays, **quantized}
    return {name: weights[name] for name in given if name in weights}


def _as_float(name: str, value: object) -> Array:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: got {type(value).__name__}, wanted an ndarray")
    check_unmasked(name, value)
    if value.dtype == np.float16 or value.dtype.name == "bfloat16":
        return value.astype(np.float32)
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    check_array(name, native)
    return native


def check_rank(name: str, array: Weight, rank: int, wanted: str) -> None:
    """Raises unless the array has `rank` axes, none of them empty."""
    if array.ndim != rank or 0 in array.shape:
        raise ValueError(f"{name}: got shape {array.shape}, wanted {wanted}")


def check_shape(name: str, array: Weight, shape: tuple[int, ...], meaning: str) -> None:
    """Raises unless the array has this shape; `meaning` explains the shape in the message."""
    if array.shape != shape:
        raise ValueError(f"{name}: got shape {array.shape}, wanted {shape}, {meaning}")


def named_parameters(
    directions: Iterable[Mapping[str, Weight]], layer: int = 0
) -> dict[str, Weight]:
    """One layer's parameters by full name, from each direction's names without suffix."""
    return {
        f"{name}_l{layer}{suffix}": array
        for suffix, parameters in zip(("", "_reverse"), directions)
        for name, array in parameters.items()
    }


def make_layer(cell: str, params: Mapping[str, Weight], **options: Any) -> RecurrentLayer:
    """An LSTM or a GRU with these options (including sizes) and parameters, in their dtype.

    It is an int8 layer, with the integers and scales given, if all its matrices are quantised. If
    only some of them are, it is a float32 layer.

    Raises:
        TypeError, ValueError: as the layer's constructor and `load_state_dict`.
    """
    kind: type[RecurrentLayer] = {"LSTM": LSTM, "GRU": GRU}[cell]
    dtype = next(iter(params.values())).dtype
    layer = kind(**options, dtype=dtype, seed=0)
    layer.load_state_dict(
        {
            name: value.dequantized() if isinstance(value, QuantizedWeight) else value
            for name, value in params.items()
        }
    )
    ordered = {name: params[name] for name in layer.params}
    vectors = [array for array in ordered.values() if array.ndim == 1]
    matrices = [value for value in ordered.values() if isinstance(value, QuantizedWeight)]
    if not matrices or len(matrices) + len(vectors) < len(ordered):
        return layer
    empty = np.empty(0, np.float32)
    quantized = {
        "precision": "int8",
        "int8": np.concatenate([matrix.integers.reshape(-1) for matrix in matrices]),
        "scales": np.concatenate([matrix.scales for matrix in matrices]),
        "vectors": np.concatenate([empty, *vectors]),
    }
    return layer._with(quantized=quantized)


def check_wanted_precision(precision: object) -> Precision | None:
    """The name of the precision that a caller wants; None: that of the weights.

    Raises:
        TypeError: precision is neither a str nor None.
        ValueError: it is no low precision.
    """
    return None if precision is None else check_precision(precision)


def in_precision(layer: _Layer, precision: Precision | None) -> _Layer:
    """The layer in a precision from `check_wanted_precision`.

    Raises:
        ValueError: the layer is of float64, or in another low precision.
    """
    if precision is None or layer.precision == precision:
        return layer
    if layer.precision != str(layer.dtype):
        raise ValueError(
            f"precision: got {precision!r} for weights in {layer.precision}: pass dequantize=True "
            "too, or leave the precision out"
        )
    if layer.dtype != np.float32:
        raise ValueError(
            f"precision: got {precision!r} for weights in {layer.dtype}: convert without it, then "
            f"use layer.astype('float32').quantize({precision!r})"
        )
    return layer.quantize(precision)


def check_layer(layer: object) -> RecurrentLayer:
    """`layer`, if it is an LSTM or a GRU; else a TypeError."""
    if isinstance(layer, MGU):
        raise TypeError(
            "layer: got an MGU, which PyTorch, Keras and ONNX do not have; wanted an LSTM or a GRU "
            "(tidegate.save keeps an MGU)"
        )
    if not isinstance(layer, (LSTM, GRU)):
        raise TypeError(f"layer: got {type(layer).__name__}, wanted an LSTM or a GRU")
    return layer


def carried_parameters(layer: RecurrentLayer) -> dict[str, Array]:
    """Copies of the parameters, with update_gate="write" converted to "carry".

    1 - sigmoid(a) = sigmoid(-a): the rows of z change their sign, which is exact.

    Raises:
        ValueError: the layer is in low precision.
    """
    check_exact("layer", layer)
    params = layer.state_dict()
    if isinstance(layer, GRU) and layer.update_gate == "write":
        for array in params.values():
            array[layer.hidden_size : 2 * layer.hidden_size] *= -1
    return params


def import_extra(module: str, extra: str) -> ModuleType:
    """A framework's module.

    Raises:
        ImportError: it is not installed; the message names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"this conversion needs {package}: pip install 'tidegate[{extra}]' ({error})"
        ) from error


def as_path(value: object) -> pathlib.Path | None:
    """`value` as a path, if it is a str or path-like; a ValueError if it is empty."""
    if not isinstance(value, (str, os.PathLike)):
        return None
    if not os.fspath(value):
        raise ValueError("path: got '', wanted the path of a file")
    return pathlib.Path(value)


def listed(names: Iterable[str]) -> str:
    """A readable number of names, for a message."""
    names = list(names)
    most = 20
    text = ", ".join(repr(name) for name in names[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (text + more) or "none"
