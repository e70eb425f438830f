"""Who is measured: one file each, and what they all have to offer.

A contender's library is imported when it is made, in its own process, never here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.grid import KINDS, Cell
from bench.problem import Problem

OURS = "tidegate"
# Name -> module. The order is that of turns and of columns.
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
    """A cell made ready to be timed.

    Attributes:
        run: one call. From arrays of the contender's own kind, which lie ready, to results of its
            own kind, computed and to be read: nothing may still be under way when it returns.
        results: what the last call gave, as NumPy arrays by the names of `bench.reference.solve`.
        change: in training, gives the model other parameters, as an optimiser's step would. Not
            timed itself; what must be done anew because of it is.
    """

    run: Callable[[], object]
    results: Callable[[], dict[str, Any]]
    change: Callable[[], None] | None = None


# One call of a live service: the clients that have a frame, (n,) int64, all different, and the
# frames, (n, I); returns y, (n, H), which may be overwritten by the next call. All NumPy.
Step = Callable[[Any, Any], Any]
# How many clients there are, and whether a call may have more than one: their `Step`. All states
# are zero at first.
OpenClients = Callable[[int, bool], Step]

_KIND_NAMES = {
    "lstm": "an LSTM",
    "gru": "a GRU",
    "gru-before": "a GRU with the reset gate before the product",
    "mgu": "an MGU",
}


class Contender:
    """A library. Made with the number of threads it may use; ImportError if it is not installed."""

    name: ClassVar[str]
    trains: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = KINDS  # of cells that it has

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def versions(self) -> dict[str, str]:
        """What ran: library -> version, and whatever else tells builds apart."""
        raise NotImplementedError

    def lacks(self, cell: Cell) -> str | None:
        """The feature that `cell` asks for and the library has not; None if it has all."""
        if cell.training and not self.trains:
            return "training"
        if cell.kind not in self.kinds:
            return _KIND_NAMES[cell.kind]
        return None

    def prepare(self, problem: Problem) -> Task:
        """Makes the model with the problem's parameters, and puts its inputs in place."""
        raise NotImplementedError

    def load(self, problem: Problem) -> OpenClients:
        """Loads the problem's LSTM, of one layer, for a service, whose workers open the clients."""
        raise NotImplementedError("live streams")


def make_contender(name: str, threads: int) -> Contender:
    """The contender of this name."""
    contender: Contender = importlib.import_module(MODULES[name]).Contestant(threads)
    return contender
