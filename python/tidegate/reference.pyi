# Types of the reference extension (reference.pyx). No documentation: that is at the functions.
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["GRU", "LSTM", "Grads", "Tape", "from_layer"]

_Array: TypeAlias = NDArray[np.float64]

class Grads(NamedTuple):
    x: _Array
    state: Any  # h of a GRU, (h, c) of an LSTM
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
    ) -> None: ...

def from_layer(layer: Any) -> LSTM | GRU: ...
