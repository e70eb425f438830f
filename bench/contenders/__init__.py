"""The measured libraries: one file each, and their common interface.

A contender's library is imported when the contender is made, in its own process, never here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.grid import KINDS, Cell
from bench.problem import Problem

OURS = "tidegate"
# Name -> module, in the order of turns and of columns.
MODULES = {
    OURS: "bench.contenders.own",
    "torch": "bench.contenders.pytorch",
    "onnxruntime": "bench.contenders.onnx_runtime",
    "openvino": "bench.contenders.open_vino",
    "jax": "bench.contenders.jax_scan",
}
PEERS = tuple(name for name in MODULES if name != OURS)


@dataclass(frozen=True)
class Task:
    """A cell that is ready to be timed.

    Attributes:
        run: one call, from existing arrays of the contender's own type to results of its own type.
            The results are complete when it returns: no work may still be pending.
        results: the results of the last call, as NumPy arrays named as in `bench.reference.solve`.
        change: in training, changes the model's parameters, as an optimiser's step would. It is not
            timed itself, but the work that it makes necessary is.
    """

    run: Callable[[], object]
    results: Callable[[], dict[str, Any]]
    change: Callable[[], None] | None = None


# One call of a live service: the clients that have a frame, (n,) int64, all different, and the
# frames, (n, I); returns y, (n, H), which may be overwritten by the next call. All NumPy.
Step = Callable[[Any, Any], Any]
# (number of clients, whether a call may have more than one) -> their `Step`. All states are zero at
# first.
OpenClients = Callable[[int, bool], Step]

_KIND_NAMES = {
    "lstm": "an LSTM",
    "gru": "a GRU",
    "gru-before": "a GRU with the reset gate before the product",
    "mgu": "an MGU",
}


class Contender:
    """A library, made with its number of threads; raises ImportError if it is not installed."""

    name: ClassVar[str]
    trains: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = KINDS  # the kinds of cells that it supports
    # Low precision -> the kinds of cells that it supports in it, in inference.
    low_precisions: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    low_training: ClassVar[tuple[str, ...]] = ()  # the low precisions in which it trains

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def versions(self) -> dict[str, str]:
        """Library -> version, and whatever else identifies the build."""
        raise NotImplementedError

    def lacks(self, cell: Cell) -> str | None:
        """The feature of `cell` that the library lacks; None if it has all."""
        if cell.training and not self.trains:
            return "training"
        if cell.kind not in self.kinds:
            return _KIND_NAMES[cell.kind]
        if cell.precision and cell.kind not in self.low_precisions.get(cell.precision, ()):
            return f"{_KIND_NAMES[cell.kind]} in {cell.precision}"
        if cell.precision and cell.training and cell.precision not in self.low_training:
            return f"training in {cell.precision}"
        return None

    def prepare(self, problem: Problem) -> Task:
        """Makes the model with the problem's parameters, and puts its inputs in place."""
        raise NotImplementedError

    def load(self, problem: Problem) -> OpenClients:
        """Loads the problem's LSTM, of one layer, for a service; its workers open the clients."""
        raise NotImplementedError("live streams")


def make_contender(name: str, threads: int) -> Contender:
    """The contender of this name."""
    contender: Contender = importlib.import_module(MODULES[name]).Contestant(threads)
    return contender
