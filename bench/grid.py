"""The grid: the calls to measure, as data. Nothing is run here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tidegate.bench import Work, work_of_call

KINDS = ("lstm", "gru", "gru-before")
GATES = {"lstm": 4, "gru": 3, "gru-before": 3, "mgu": 2}


@dataclass(frozen=True)
class Cell:
    """A cell of the grid: one call, with a number of threads.

    Attributes:
        regime: the group of the grid that it belongs to: "step" carries its state from call to
            call, the others start from the same state each time.
        kind: "lstm", "gru" (reset gate after the product), "gru-before" (before it), "mgu".
        input_size, hidden_size, num_layers, bidirectional: options of the network.
        batch, steps: N and T.
        ragged: whether rows have different lengths, uniform in 1..T.
        training: whether it is forward and backward with all gradients, or inference.
        threads: the number of threads that a contender may use.
        dtype: "float32" or "float64", the dtype of the arrays.
        precision: "bfloat16" or "int8", in which contenders compute in their own ways (Tidegate in
            the faster of its two bfloat16's); "": dtype.
    """

    regime: str
    kind: str
    input_size: int
    hidden_size: int
    batch: int
    steps: int
    num_layers: int = 1
    bidirectional: bool = False
    ragged: bool = False
    training: bool = False
    threads: int = 1
    dtype: str = "float32"
    precision: str = ""

    @property
    def arithmetic(self) -> str:
        """The precision of the products: "float32", "float64", "bfloat16" or "int8"."""
        return self.precision or self.dtype

    @property
    def gates(self) -> int:
        """The number of gates of a unit."""
        return GATES[self.kind]

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def stateful(self) -> bool:
        """Whether each call starts from the state of the previous one."""
        return self.steps == 1 and not self.training

    @property
    def network(self) -> str:
        """A short description of the call's shape, for tables."""
        size = (
            f"{self.hidden_size}"
            if self.input_size == self.hidden_size
            else f"{self.input_size}->{self.hidden_size}"
        )
        layers = f" x{self.num_layers}" if self.num_layers > 1 else ""
        more = (" bi" if self.bidirectional else "") + (" ragged" if self.ragged else "")
        return f"{self.kind} {size}{layers}{more} N{self.batch} T{self.steps}"

    @property
    def id(self) -> str:
        """A unique name, by which cells are selected, resumed and compared."""
        work = "training" if self.training else "inference"
        arithmetic = "" if self.arithmetic == "float32" else f" {self.arithmetic}"
        return f"{self.regime}: {self.network} {work}{arithmetic} {self.threads}t"

    def lengths(self) -> Any:
        """(N,) valid steps of each row, or None: the same on every machine."""
        if not self.ragged:
            return None
        rng = np.random.default_rng([self.batch, self.steps])
        return rng.integers(1, self.steps + 1, self.batch)

    def work(self) -> Work:
        """The least work that the call has to do."""
        rows = [self.batch] * self.steps
        if self.ragged:
            rows = [int(np.sum(self.lengths() > t)) for t in range(self.steps)]
        return work_of_call(
            self.gates,
            self.input_size,
            self.hidden_size,
            rows,
            num_layers=self.num_layers,
            directions=self.directions,
            training=self.training,
            element_size=_BYTES[self.arithmetic],
        )

    def as_dict(self) -> dict[str, Any]:
        """The attributes, for JSON; `Cell(**d)` restores the cell."""
        return asdict(self)


_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "int8": 1}

# Regime -> (I, H, N, T) and further options. The sizes are those in use, from a wake word's network
# to a language model's layer.
_SHAPES: dict[str, list[tuple[tuple[int, int, int, int], dict[str, Any]]]] = {
    "step": [
        ((size, size, batch, 1), {})
        for size in (16, 32, 64, 128, 256, 512, 1024)
        for batch in (1, 4)
    ],
    "sequence": [
        ((16, 32, 1, 100), {}),
        ((64, 64, 1, 100), {}),
        ((128, 128, 1, 100), {}),
        ((256, 256, 1, 100), {}),
        ((512, 512, 1, 100), {}),
        ((1024, 1024, 1, 50), {}),
    ],
    "small batch": [
        ((*size, batch, 50), {})
        for size in ((64, 128), (128, 128), (256, 256))
        for batch in (4, 16)
    ],
    "batch": [
        ((size, size, batch, steps), {})
        for size, steps in ((128, 50), (256, 50), (512, 25), (1024, 25))
        for batch in (32, 64)
    ],
    "stacked": [
        ((size, size, batch, steps), {"num_layers": layers, "bidirectional": True})
        for size, layers in ((128, 3), (256, 2))
        for batch, steps in ((1, 100), (16, 50))
    ],
    "ragged": [((size, size, 32, 100), {"ragged": True}) for size in (128, 256)],
}

_FIELD = [
    Cell("field", "lstm", 40, 256, 1, 160, num_layers=3),  # speaker embedding
    Cell("field", "gru", 400, 400, 1, 280, num_layers=2),  # denoiser
    Cell("field", "lstm", 128, 128, 1, 1),  # voice activity detection
    Cell("field", "lstm", 500, 500, 64, 50),
    Cell("field", "gru", 800, 800, 20, 100),
    Cell("field", "lstm", 1024, 1024, 16, 25),
]

# Cells that no peer has: measured against the machine's limit alone.
_ALONE = [
    Cell("alone", "mgu", 64, 64, 1, 1),
    Cell("alone", "mgu", 256, 256, 1, 100),
    Cell("alone", "mgu", 256, 256, 32, 50),
]

# Training in float64.
_DOUBLE = [
    Cell("sequence", "lstm", 256, 256, 1, 100, training=True, dtype="float64"),
    Cell("batch", "lstm", 128, 128, 32, 50, training=True, dtype="float64"),
    Cell("batch", "gru", 256, 256, 32, 50, training=True, dtype="float64"),
]


# (I and H, N, T) in low precision: from a wake word's step to a batch.
_LOW = [
    *((size, 1, 1) for size in (64, 128, 256, 512, 1024)),
    (512, 1, 100),
    (256, 32, 50),
    (512, 64, 50),
    (1024, 64, 25),
]

# Training in bfloat16: kind, I and H, N, T.
_LOW_TRAINING = [("lstm", 256, 32, 50), ("lstm", 1024, 64, 25), ("gru", 512, 64, 50)]


def _in_low_precision() -> Iterator[Cell]:
    for (size, batch, steps), kind, precision in itertools.product(
        _LOW, ("lstm", "gru"), ("bfloat16", "int8")
    ):
        regime = "batch" if batch > 1 else "sequence" if steps > 1 else "step"
        yield Cell(regime, kind, size, size, batch, steps, precision=precision)
    for kind, size, batch, steps in _LOW_TRAINING:
        yield Cell("batch", kind, size, size, batch, steps, training=True, precision="bfloat16")


def _of_one_thread() -> Iterator[Cell]:
    for regime, shapes in _SHAPES.items():
        for (shape, options), kind in itertools.product(shapes, KINDS):
            cell = Cell(regime, kind, *shape, **options)
            yield cell
            if regime != "step":
                yield replace(cell, training=True)
    for cell in (*_FIELD, *_ALONE):
        yield cell
        if cell.steps > 1:
            yield replace(cell, training=True)
    yield from _DOUBLE


# (regime, kind, H, N, training) of the quick suite.
_QUICK = {
    ("step", "lstm", 64, 1, False),
    ("step", "gru", 256, 1, False),
    ("sequence", "lstm", 64, 1, False),
    ("sequence", "lstm", 256, 1, False),
    ("sequence", "gru", 512, 1, False),
    ("sequence", "lstm", 256, 1, True),
    ("small batch", "gru", 128, 16, False),
    ("small batch", "lstm", 256, 4, True),
    ("batch", "lstm", 256, 32, False),
    ("batch", "gru", 128, 32, True),
    ("batch", "lstm", 256, 32, True),
    ("stacked", "lstm", 128, 16, False),
    ("ragged", "lstm", 128, 32, False),
    ("ragged", "gru", 128, 32, True),
    ("field", "gru", 400, 1, False),
    ("alone", "mgu", 256, 1, False),
}


def suite(name: str, threads: tuple[int, ...]) -> list[Cell]:
    """The cells of suite "quick", "full" or "low" (low precision), one thread count at a time."""
    cells = list(_in_low_precision() if name == "low" else _of_one_thread())
    if name == "quick":
        cells = [
            cell
            for cell in cells
            if (cell.regime, cell.kind, cell.hidden_size, cell.batch, cell.training) in _QUICK
            and cell.dtype == "float32"
            and (cell.regime != "small batch" or cell.input_size == cell.hidden_size)
        ]
    return [replace(cell, threads=count) for count in threads for cell in cells]
