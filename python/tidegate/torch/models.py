"""The core's models of one module: made when needed, filled with the parameters of each call."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, TypeAlias

import torch

from tidegate import _core
from tidegate.checks import Array
from tidegate.tensors import array_of
from tidegate.torch.memory import DTYPES

_Refs: TypeAlias = list[weakref.ref[torch.Tensor]]


class ModelKey(NamedTuple):
    """The properties of a call that determine its model."""

    cell: str  # "LSTM" or "GRU"
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    bidirectional: bool
    proj_size: int
    dtype: torch.dtype
    batch_first: bool

    def make(self, quantized: dict[str, Any] | None = None) -> _core.Model:
        """A model with these parameters in low precision; None: with zeros."""
        config = _core.Config(
            cell=self.cell,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bias=self.bias,
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
        )
        return _core.Model(config, DTYPES[self.dtype], self.batch_first, quantized)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """The last axis of h_n, and for an LSTM of c_n."""
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        return sizes if self.cell == "LSTM" else sizes[:1]

    @property
    def num_directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1


class Models:
    """The models of one module. Never copied or pickled with it.

    A call takes an idle model, or makes one, and copies the parameters into it. Calls from several
    threads therefore do not wait for each other, and each runs with the parameters at its start.
    """

    def __init__(self) -> None:
        self._idle: dict[ModelKey, list[_core.Model]] = {}
        # With the precision in which each is packed.
        self._frozen: dict[tuple[ModelKey, str | None], tuple[_core.Model, _Refs, list[Any]]] = {}
        self._views: tuple[ModelKey | None, _Refs, list[Any], list[Array]] = (None, [], [], [])

    def take(self, key: ModelKey, weights: list[torch.Tensor]) -> _core.Model:
        """Takes a model for one call, with these parameters in it; `give_back` returns it.

        Raises:
            ValueError: a parameter's shape does not match the module's sizes, or its storage is too
                small.
        """
        idle = self._idle.setdefault(key, [])
        try:
            model = idle.pop()
        except IndexError:
            model = key.make()
        self._write(key, model, weights)
        return model

    def give_back(self, key: ModelKey, model: _core.Model) -> None:
        """Makes a model available to the next call; tapes do not need it any more."""
        self._idle[key].append(model)

    def frozen(
        self, key: ModelKey, weights: list[torch.Tensor], precision: str | None = None
    ) -> _core.Model:
        """The one model of all calls; made again if a parameter was visibly changed or replaced.

        Args:
            precision: a low precision, or None for the parameters' own.

        Raises:
            ValueError: as `take`, and as a layer's `quantize`.
        """
        # Addresses and versions do not reveal writes to `parameter.data`; see `accelerate`.
        marks = [(w.data_ptr(), w.shape, 0 if w.is_inference() else w._version) for w in weights]
        model, refs, kept_marks = self._frozen.get((key, precision), (None, [], []))
        if model is None or marks != kept_marks or not _are_same(weights, refs):
            model = key.make()
            self._write(key, model, weights)
            if precision is not None:
                model = key.make(model.quantize(precision))
            self._frozen[key, precision] = model, [weakref.ref(weight) for weight in weights], marks
        return model

    def _write(self, key: ModelKey, model: _core.Model, weights: list[torch.Tensor]) -> None:
        offset = 0
        for view in self._flat_views(key, model, weights):
            model.write(offset, view)
            offset += view.size

    def _flat_views(
        self, key: ModelKey, model: _core.Model, weights: list[torch.Tensor]
    ) -> list[Array]:
        """The parameters' memory. Cached, since making the views takes as long as a short call."""
        kept_key, refs, marks, views = self._views
        found = [
            (w.data_ptr(), w.shape, w.untyped_storage().nbytes(), _is_as_stored(w)) for w in weights
        ]
        if key == kept_key and found == marks and _are_same(weights, refs):
            return views
        views = _checked_views(model, weights)
        if all(map(_is_as_stored, weights)):  # otherwise some views are copies
            self._views = key, [weakref.ref(weight) for weight in weights], found, views
        return views


def _checked_views(model: _core.Model, weights: list[torch.Tensor]) -> list[Array]:
    specs = model.specs
    if len(weights) != len(specs):
        raise ValueError(
            f"parameters: got {len(weights)}, wanted {len(specs)} for the module's options: "
            f"{', '.join(name for name, _, _ in specs)}"
        )
    for weight, (name, shape, _) in zip(weights, specs):
        if weight.shape != shape:
            raise ValueError(
                f"{name}: got shape {tuple(weight.shape)}, wanted {shape} for input_size "
                f"{model.config.input_size} and hidden_size {model.config.hidden_size}"
            )
    # Detached: a cached view must not keep the graph of a computed weight alive.
    return [
        array_of(name, weight.detach()).reshape(-1) for weight, (name, _, _) in zip(weights, specs)
    ]


def _is_as_stored(weight: torch.Tensor) -> bool:
    """Whether the memory holds the values, one after another."""
    return weight.is_contiguous() and not weight.is_neg()


def _are_same(weights: list[torch.Tensor], refs: _Refs) -> bool:
    # Weak references: a computed weight keeps its graph alive.
    return len(weights) == len(refs) and all(ref() is w for ref, w in zip(refs, weights))
