"""Layers that the tests of the Python API run on, and what their arrays must look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tidegate as tg

INPUT_SIZE = 5

CASES: dict[str, tuple[type, int, int, dict[str, Any]]] = {  # class, H, L, options
    "lstm": (tg.LSTM, 7, 1, {}),
    "lstm-stacked-bidirectional": (tg.LSTM, 6, 2, {"bidirectional": True}),
    "lstm-projected-no-bias": (tg.LSTM, 9, 2, {"proj_size": 4, "bias": False}),
    "lstm-peephole-reverse": (tg.LSTM, 8, 1, {"peephole": True, "reverse": True}),
    "lstm-everything": (
        tg.LSTM,
        5,
        2,
        {"proj_size": 3, "peephole": True, "bidirectional": True},
    ),
    "gru": (tg.GRU, 7, 1, {}),
    "gru-stacked-bidirectional": (tg.GRU, 6, 2, {"bidirectional": True}),
    "gru-reset-before": (tg.GRU, 9, 2, {"reset_after": False}),
    "gru-write-no-bias": (tg.GRU, 4, 1, {"update_gate": "write", "bias": False}),
    "gru-original-reverse": (
        tg.GRU,
        8,
        1,
        {"reset_after": False, "update_gate": "write", "reverse": True},
    ),
    "lstm-activations": (
        tg.LSTM,
        7,
        2,
        {
            "recurrent_activation": "hard_sigmoid",
            "activation": "softsign",
            "output_activation": "tanh",
            "input_forget": True,
        },
    ),
    "gru-activations": (
        tg.GRU,
        6,
        1,
        {
            "recurrent_activation": ("hard_sigmoid", 1 / 6, 0.5),
            "activation": ("scaled_tanh", 0.9, 1.2),
        },
    ),
    "mgu": (tg.MGU, 7, 1, {}),
    "mgu-stacked-bidirectional": (tg.MGU, 6, 2, {"bidirectional": True}),
    "mgu-no-bias-reverse": (tg.MGU, 8, 1, {"bias": False, "reverse": True}),
    "mgu-activations": (
        tg.MGU,
        5,
        2,
        {"recurrent_activation": "hard_sigmoid", "activation": "softsign"},
    ),
}
STREAMABLE = [
    name
    for name, (_, _, _, options) in CASES.items()
    if not {"bidirectional", "reverse"} & set(options)
]


# The arithmetic of inference, as options of `make`.
ARITHMETIC_OPTIONS: dict[str, dict[str, Any]] = {
    "f32": {"dtype": np.float32},
    "f64": {"dtype": np.float64},
    "bf16": {"precision": "bfloat16"},
    "bf16-dot": {"precision": "bfloat16-dot"},
    "int8": {"precision": "int8"},
}


def make(name: str, precision: str | None = None, **options: Any) -> Any:
    """The layer of a case, with further options; with a precision, quantised."""
    kind, hidden_size, num_layers, own = CASES[name]
    layer = kind(INPUT_SIZE, hidden_size, num_layers, **{"seed": 1, **own, **options})
    return layer if precision is None else layer.quantize(precision)


def is_lstm(layer: Any) -> bool:
    return isinstance(layer, tg.LSTM)


def state_shapes(layer: Any, batch: int) -> list[tuple[int, int, int]]:
    """Of h, and of c if there is one."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    if not is_lstm(layer):
        return [(rows, batch, layer.hidden_size)]
    return [
        (rows, batch, layer.proj_size or layer.hidden_size),
        (rows, batch, layer.hidden_size),
    ]


def output_size(layer: Any) -> int:
    directions = 2 if layer.bidirectional else 1
    return directions * (getattr(layer, "proj_size", 0) or layer.hidden_size)


def random_state(layer: Any, batch: int, rng: np.random.Generator) -> Any:
    arrays = [rng.uniform(-1, 1, s).astype(layer.dtype) for s in state_shapes(layer, batch)]
    return tuple(arrays) if is_lstm(layer) else arrays[0]


def parts(state: Any) -> list[np.ndarray]:
    """The arrays of a state, whatever the cell."""
    return list(state) if isinstance(state, tuple) else [state]


def map_state(function: Any, state: Any) -> Any:
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def assert_same_bits(a: Any, b: Any) -> None:
    """Arrays, or tuples of them: shape, dtype and every byte."""
    for left, right in zip(parts(a), parts(b), strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes()


class Readable:
    """What NumPy reads by `__array__`, as it does tensors and Series."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.values, Exception):
            raise self.values
        return np.array(self.values, dtype)


def integers_in_form(name, values):
    """The values as a list, a tensor, a Series, ...: one of FORMS_OF_INTEGERS."""
    if name == "Series":
        return pytest.importorskip("pandas").Series(values)
    if name == "nullable Series":
        return pytest.importorskip("pandas").Series(values, dtype="Int64")
    if name == "tensor":
        return pytest.importorskip("torch").tensor(values)
    kinds = {"list": list, "tuple": tuple, "array interface": Readable}
    return kinds[name](values)


FORMS_OF_INTEGERS = ["list", "tuple", "array interface", "Series", "nullable Series", "tensor"]
