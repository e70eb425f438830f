"""Converts the inputs and attributes of ONNX's LSTM and GRU operators to layers.

The onnx package is not needed here: `_onnx` reads nodes of models, `_onnx_write` writes them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidegate.checks import Array
from tidegate.convert._quantized import Weight
from tidegate.convert._weights import (
    GATES,
    ONNX_LSTM,
    ONNX_PEEPHOLE,
    ZRH_GRU,
    RecurrentLayer,
    as_layer_weights,
    check_rank,
    check_shape,
    listed,
    make_layer,
    named_parameters,
    regroup,
)
from tidegate.layers import GRU, LSTM

ORDERS = {"LSTM": ONNX_LSTM, "GRU": ZRH_GRU}
INPUTS = {
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}
# ONNX Runtime's LSTM with integers as W and R, which have the last two axes the other way round.
QUANTIZED_LSTM = "DynamicQuantizeLSTM"
INPUTS[QUANTIZED_LSTM] = (
    *INPUTS["LSTM"],
    *("W_scale", "W_zero_point", "R_scale", "R_zero_point"),
)
# The cell of each operator.
CELLS = {"LSTM": "LSTM", "GRU": "GRU", QUANTIZED_LSTM: "LSTM"}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
# The roles of the operators' activations: gates, candidate, and for an LSTM c' in h'.
ROLES = {
    "LSTM": ("recurrent_activation", "activation", "output_activation"),
    "GRU": ("recurrent_activation", "activation"),
}
STANDARD = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}
_USUAL = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}


@dataclass(frozen=True)
class Activation:
    """An activation of the operators: Tidegate's name and the usual values of its parameters.

    A node must specify the first `disputed` parameters: their defaults differ between the
    standard's text and ONNX Runtime.
    """

    name: str
    usual: tuple[float, ...] = ()
    disputed: int = 0


ACTIVATIONS = {
    "Sigmoid": Activation("sigmoid"),
    "Tanh": Activation("tanh"),
    "Relu": Activation("relu"),
    "HardSigmoid": Activation("hard_sigmoid", (0.2, 0.5)),
    "Affine": Activation("affine", (1.0, 0.0), disputed=1),
    "LeakyRelu": Activation("leaky_relu", (0.01,)),
    "ThresholdedRelu": Activation("thresholded_relu", (1.0,), disputed=1),
    "ScaledTanh": Activation("scaled_tanh", (1.0, 1.0), disputed=2),
    "Elu": Activation("elu", (1.0,)),
    "Softsign": Activation("softsign"),
    "Softplus": Activation("softplus"),
}
KINDS = ("alpha", "beta")
# Beyond this, sigmoid and tanh are at their limits, even in double: such a clip has no effect.
_NO_CLIP = 750.0


def onnx_lstm(
    W: Array,
    R: Array,
    B: Array | None = None,
    P: Array | None = None,
    *,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    input_forget: int = 0,
    layout: int = 0,
    hidden_size: int | None = None,
) -> LSTM:
    """An LSTM from the inputs and attributes of ONNX's LSTM operator.

    The layer's y is (T, N, D*H), ONNX's Y (T, D, N, H); h and c are (D, N, H) in both. `layout=1`
    moves ONNX's batch axis to the front in states too, `batch_first=True` only in x and y.

    Args:
        W: (D, 4*H, I), D 2 if bidirectional else 1; gates in the order i, o, f, c.
        R: (D, 4*H, H).
        B: (D, 8*H), the biases of W, then those of R; None: no biases.
        P: (D, 3*H), peepholes in the order i, o, f; None: no peepholes.
        direction: "forward", "reverse" or "bidirectional".
        activations: three of ONNX's names for each direction, the same for both directions.
        activation_alpha: the alphas of those activations that have one, in their order.
        activation_beta: the betas, in the same way.
        clip: the bound on the arguments of gates and candidate.
        input_forget: 1 couples the gates: f = 1 - i.
        layout: 1 for batch first.
        hidden_size: H, which must agree with R.

    Raises:
        TypeError: an array is not a float32, float64, float16 or bfloat16 ndarray.
        ValueError: a shape does not fit; an attribute is out of range or cannot be represented.
    """
    attributes = {
        "direction": direction,
        "activations": activations,
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "clip": clip,
        "input_forget": input_forget,
        "layout": layout,
        "hidden_size": hidden_size,
    }
    layer = from_arrays("LSTM", {"W": W, "R": R, "B": B, "P": P}, attributes)
    assert isinstance(layer, LSTM)
    return layer


def onnx_gru(
    W: Array,
    R: Array,
    B: Array | None = None,
    *,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    linear_before_reset: int = 0,
    layout: int = 0,
    hidden_size: int | None = None,
) -> GRU:
    """A GRU from the inputs and attributes of ONNX's GRU operator; see also `onnx_lstm`.

    Args:
        W: (D, 3*H, I); gates in the order z, r, h.
        R: (D, 3*H, H).
        B: (D, 6*H), the biases of W, then those of R; None: no biases.
        direction: as for `onnx_lstm`.
        activations: two for each direction.
        activation_alpha: as for `onnx_lstm`.
        activation_beta: as for `onnx_lstm`.
        clip: as for `onnx_lstm`.
        linear_before_reset: 1 means `reset_after=True` of the layer. ONNX's default is 0.
        layout: as for `onnx_lstm`.
        hidden_size: as for `onnx_lstm`.

    Raises:
        TypeError, ValueError: as for `onnx_lstm`.
    """
    attributes = {
        "direction": direction,
        "activations": activations,
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "clip": clip,
        "linear_before_reset": linear_before_reset,
        "layout": layout,
        "hidden_size": hidden_size,
    }
    layer = from_arrays("GRU", {"W": W, "R": R, "B": B}, attributes)
    assert isinstance(layer, GRU)
    return layer


def from_arrays(
    cell: str, inputs: Mapping[str, Any], attributes: Mapping[str, Any]
) -> RecurrentLayer:
    """The layer of one operator.

    Args:
        cell: "LSTM" or "GRU".
        inputs: W, R, and B and P if present (or None). If W and R are `QuantizedWeight`, the layer
            is in int8.
        attributes: ONNX's attributes, by name; None means absent.

    Raises:
        TypeError, ValueError: as for `onnx_lstm`.
    """
    direction = attributes.get("direction")
    if direction is None:
        direction = "forward"
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: got {direction!r}, wanted one of {listed(DIRECTIONS)}")
    directions, gates = DIRECTIONS[direction], GATES[cell]
    arrays = as_layer_weights(inputs)
    for name in ("W", "R"):
        if name not in arrays:
            raise TypeError(f"{name}: got None, wanted an ndarray")
        check_rank(name, arrays[name], 3, "three axes, none of them empty")
    hidden_size, input_size = arrays["R"].shape[2], arrays["W"].shape[2]
    sizes = (
        f"for a hidden_size of {hidden_size} (R has shape {arrays['R'].shape}) and "
        f"direction={direction!r}"
    )
    shapes = {
        "W": (directions, gates * hidden_size, input_size),
        "R": (directions, gates * hidden_size, hidden_size),
        "B": (directions, 2 * gates * hidden_size),
        "P": (directions, 3 * hidden_size),
    }
    for name, array in arrays.items():
        check_shape(name, array, shapes[name], sizes)
    if attributes.get("hidden_size") not in (None, hidden_size):
        raise ValueError(
            f"hidden_size: got {attributes['hidden_size']!r}, but R has {hidden_size} columns"
        )
    params = named_parameters(
        _direction_parameters(cell, {name: array[d] for name, array in arrays.items()})
        for d in range(directions)
    )
    return make_layer(
        cell,
        params,
        input_size=input_size,
        hidden_size=hidden_size,
        bias="B" in arrays,
        bidirectional=direction == "bidirectional",
        reverse=direction == "reverse",
        batch_first=_flag("layout", attributes),
        **({"peephole": True} if "P" in arrays else {}),
        **_cell_options(cell, directions, attributes),
    )


def _direction_parameters(cell: str, arrays: Mapping[str, Weight]) -> dict[str, Weight]:
    """One direction's parameters in Tidegate's gate order, by their names without suffix."""
    order = ORDERS[cell]
    result: dict[str, Weight] = {
        "weight_ih": regroup(arrays["W"], order),
        "weight_hh": regroup(arrays["R"], order),
    }
    if "B" in arrays:
        bias = arrays["B"]
        assert isinstance(bias, np.ndarray)
        bias_ih, bias_hh = np.split(bias, 2)
        result["bias_ih"], result["bias_hh"] = regroup(bias_ih, order), regroup(bias_hh, order)
    if "P" in arrays:
        result["weight_peephole"] = regroup(arrays["P"], ONNX_PEEPHOLE)
    return result


def _flag(name: str, attributes: Mapping[str, Any]) -> bool:
    value = attributes.get(name) or 0
    if value not in (0, 1):
        raise ValueError(f"{name}: got {value!r}, wanted 0 or 1")
    return bool(value)


def _cell_options(cell: str, directions: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's options that differ from the standard cell's."""
    options: dict[str, Any] = {}
    if cell == "GRU":
        options["reset_after"] = _flag("linear_before_reset", attributes)
    elif _flag("input_forget", attributes):
        options["input_forget"] = True
    names = list(attributes.get("activations") or _USUAL[cell] * directions)
    found = _read_activations(cell, directions, names, attributes)
    for role, usual, activation in zip(ROLES[cell], STANDARD[cell], found):
        if activation != usual:
            options[role] = activation
    # A layer's output_activation defaults to the candidate's activation.
    if "activation" in options and cell == "LSTM":
        options.setdefault("output_activation", found[2])
    clip = attributes.get("clip")
    if clip is not None:
        if not clip > 0:
            raise ValueError(f"clip: got {clip!r}, wanted a number above 0")
        if clip < _NO_CLIP or {"recurrent_activation", "activation"} & options.keys():
            options["clip"] = float(clip)
    return options


def _read_activations(
    cell: str, directions: int, names: list[str], attributes: Mapping[str, Any]
) -> list[Any]:
    """One direction's activations in the form that a layer takes.

    Parameters are consumed in the order of the activations that have some, according to ONNX's text
    and ONNX Runtime.
    """
    roles = ROLES[cell]
    if len(names) != directions * len(roles):
        raise ValueError(
            f"activations: got {len(names)}, wanted {len(roles)} for each of the {directions} "
            "direction(s)"
        )
    lists = {kind: list(attributes.get(f"activation_{kind}") or ()) for kind in KINDS}
    left = {kind: list(values) for kind, values in lists.items()}
    found = [_read_activation(name, left) for name in names]
    for kind, values in left.items():
        if values and len(values) < len(lists[kind]):
            raise ValueError(
                f"activation_{kind}: got {len(lists[kind])} values, {len(values)} more than "
                f"{listed(names)} have"
            )
        if any(values):
            warnings.warn(
                f"activation_{kind}: got {values}, which has no effect: {listed(names)} have no "
                "such parameter",
                stacklevel=2,
            )
    if found[: len(roles)] * directions != found:
        raise ValueError(
            f"activations: got {found}, wanted the same for both directions: convert each "
            f"direction to a layer of its own with onnx_{cell.lower()}"
        )
    return found[: len(roles)]


def _read_activation(name: str, left: Mapping[str, list[float]]) -> Any:
    """A layer's activation; removes its parameters from the lists."""
    known = {key.lower(): key for key in ACTIVATIONS}
    key = known.get(str(name).lower())
    if key is None:
        raise ValueError(f"activations: got {name!r}, wanted one of {listed(ACTIVATIONS)}")
    activation = ACTIVATIONS[key]
    values: list[float] = []
    for position, (kind, usual) in enumerate(zip(KINDS, activation.usual)):
        if left[kind]:
            value = float(left[kind].pop(0))
            # Attributes are float32, in which 0.2 is rounded differently.
            values.append(usual if np.float32(value) == np.float32(usual) else value)
        elif position >= activation.disputed:
            values.append(usual)
        else:
            raise ValueError(
                f"activation_{kind}: got none for {key}, for which implementations have "
                "different defaults"
            )
    return activation.name if tuple(values) == activation.usual else (activation.name, *values)
