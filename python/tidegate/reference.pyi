# Types of the reference extension. The functions are documented in reference.pyx.
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "Grads",
    "Tape",
    "activation_parameters",
    "bfloat16_dot_product",
    "bfloat16_product",
    "from_layer",
    "h_is_bounded",
    "int8_product",
    "quantize",
    "round_to_bfloat16",
]

_Array: TypeAlias = NDArray[np.float64]
_Array32: TypeAlias = NDArray[np.float32]
_Activation: TypeAlias = str | tuple[str, float] | tuple[str, float, float]
_Precision: TypeAlias = Literal["bfloat16", "bfloat16-dot", "int8"] | None

class Grads(NamedTuple):
    x: _Array
    state: Any  # h, for an LSTM (h, c)
    params: dict[str, _Array]

class Tape:
    def saved(self, layer: int, reverse: bool, name: str) -> _Array: ...

class _Network:
    cell: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    bidirectional: bool
    reverse: bool
    proj_size: int
    peephole: bool
    reset_after: bool
    update_gate: str
    recurrent_activation: _Activation
    activation: _Activation
    output_activation: _Activation | None
    clip: float | None
    input_forget: bool
    precision: _Precision
    weights_are_rounded: bool
    @property
    def num_directions(self) -> int: ...
    @property
    def state_size(self) -> int: ...
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]: ...
    def forward(
        self,
        params: Mapping[str, ArrayLike],
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        dropout_scale: ArrayLike | None = None,
    ) -> tuple[_Array, Any, Tape]: ...
    def backward(self, tape: Tape, dy: ArrayLike | None = None, dstate: Any = None) -> Grads: ...

class LSTM(_Network):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        bidirectional: bool = False,
        proj_size: int = 0,
        peephole: bool = False,
        reverse: bool = False,
        recurrent_activation: _Activation = "sigmoid",
        activation: _Activation = "tanh",
        output_activation: _Activation | None = None,
        clip: float | None = None,
        input_forget: bool = False,
        precision: _Precision = None,
    ) -> None: ...

class GRU(_Network):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        bidirectional: bool = False,
        reset_after: bool = True,
        update_gate: Literal["carry", "write"] = "carry",
        reverse: bool = False,
        recurrent_activation: _Activation = "sigmoid",
        activation: _Activation = "tanh",
        clip: float | None = None,
        precision: _Precision = None,
    ) -> None: ...

class MGU(_Network):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        bidirectional: bool = False,
        reverse: bool = False,
        recurrent_activation: _Activation = "sigmoid",
        activation: _Activation = "tanh",
        clip: float | None = None,
        precision: _Precision = None,
    ) -> None: ...

def activation_parameters(activation: _Activation) -> tuple[str, float, float]: ...
def bfloat16_dot_product(start: ArrayLike, v: ArrayLike, weight: ArrayLike) -> _Array32: ...
def bfloat16_product(start: ArrayLike, v: ArrayLike, weight: ArrayLike) -> _Array32: ...
def from_layer(layer: Any, precision: str | None = None) -> LSTM | GRU | MGU: ...
def h_is_bounded(network: LSTM | GRU | MGU) -> bool: ...
def int8_product(
    start: ArrayLike,
    q: ArrayLike,
    scale: ArrayLike,
    weight_q: ArrayLike,
    weight_scale: ArrayLike,
) -> _Array32: ...
def quantize(v: ArrayLike, least: float = 0.0) -> tuple[NDArray[np.int8], _Array32]: ...
def round_to_bfloat16(v: ArrayLike) -> _Array32: ...
