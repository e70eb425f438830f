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
    """What decides which model a call needs."""

    cell: str  # "LSTM" or "GRU"
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    bidirectional: bool
    proj_size: int
    dtype: torch.dtype
    batch_first: bool

    def make(self) -> _core.Model:
        """A model whose parameters are zero."""
        config = _core.Config(
            cell=self.cell,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bias=self.bias,
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
        )
        return _core.Model(config, DTYPES[self.dtype], self.batch_first)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Features of h_n, and of c_n of an LSTM."""
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        return sizes if self.cell == "LSTM" else sizes[:1]

    @property
    def num_directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1


class Models:
    """The models of one module. Never copied or pickled with it.

    A call takes an idle model, or makes one, and copies the parameters in; so calls from several
    threads do not wait for each other, and each runs with the parameters that it found.
    """

    def __init__(self) -> None:
        self._idle: dict[ModelKey, list[_core.Model]] = {}
        self._frozen: dict[ModelKey, tuple[_core.Model, _Refs, list[Any]]] = {}
        self._views: tuple[ModelKey | None, _Refs, list[Any], list[Array]] = (None, [], [], [])

    def take(self, key: ModelKey, weights: list[torch.Tensor]) -> _core.Model:
        """A model with these parameters in it, for one call; `give_back` it afterwards.

        Raises:
            ValueError: a parameter has another shape than the module's sizes want, or a storage
                that is too small.
        """
        idle = self._idle.setdefault(key, [])
        try:
            model = idle.pop()
        except IndexError:
            model = key.make()
        self._write(key, model, weights)
        return model

    def give_back(self, key: ModelKey, model: _core.Model) -> None:
        """Makes a model available to the next call; a tape keeps what it needs by itself."""
        self._idle[key].append(model)

    def frozen(self, key: ModelKey, weights: list[torch.Tensor]) -> _core.Model:
        """The one model of all calls. Made anew if a parameter was visibly changed or replaced.

        Raises:
            ValueError: as `take`.
        """
        # An address and a version say nothing of writes to `parameter.data`; see `accelerate`.
        marks = [(w.data_ptr(), w.shape, 0 if w.is_inference() else w._version) for w in weights]
        model, refs, kept_marks = self._frozen.get(key, (None, [], []))
        if model is None or marks != kept_marks or not _are(weights, refs):
            model = key.make()
            self._write(key, model, weights)
            self._frozen[key] = model, [weakref.ref(weight) for weight in weights], marks
        return model

    def _write(self, key: ModelKey, model: _core.Model, weights: list[torch.Tensor]) -> None:
        offset = 0
        for view in self._flat_views(key, model, weights):
            model.write(offset, view)
            offset += view.size

    def _flat_views(
        self, key: ModelKey, model: _core.Model, weights: list[torch.Tensor]
    ) -> list[Array]:
        """The parameters' memory. Kept, since making the views takes as long as a short call."""
        kept_key, refs, marks, views = self._views
        found = [
            (w.data_ptr(), w.shape, w.untyped_storage().nbytes(), _is_as_stored(w)) for w in weights
        ]
        if key == kept_key and found == marks and _are(weights, refs):
            return views
        views = _checked_views(model, weights)
        if all(map(_is_as_stored, weights)):  # else some views are copies
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
    # Detached: a view that is kept must not hold on to the graph of a computed weight.
    return [
        array_of(name, weight.detach()).reshape(-1) for weight, (name, _, _) in zip(weights, specs)
    ]


def _is_as_stored(weight: torch.Tensor) -> bool:
    """Whether the memory is the values, one after another."""
    return weight.is_contiguous() and not weight.is_neg()


def _are(weights: list[torch.Tensor], refs: _Refs) -> bool:
    # Weakly held: a weight that was computed holds on to its graph.
    return len(weights) == len(refs) and all(ref() is w for ref, w in zip(refs, weights))
