"""What quantising a layer has changed, on data of the user: see `LSTM.compare`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidegate import _core
from tidegate.checks import Array


@dataclass(frozen=True)
class Difference:
    """The difference between the values of one quantity in two layers, over all valid steps.

    Attributes:
        max: the greatest magnitude of the difference.
        rms: the square root of its mean square.
        snr: the signal-to-noise ratio in dB: 10 log10 of the mean square of the exact values over
            that of the difference; infinite if there is no difference.
    """

    max: float
    rms: float
    snr: float

    @classmethod
    def of(cls, got: Array, wanted: Array, valid_steps: int) -> Difference:
        """The difference of arrays (..., H), which are zero at padded steps."""
        error = got.astype(np.float64) - wanted
        noise, signal = float(np.sum(error**2)), float(np.sum(wanted.astype(np.float64) ** 2))
        if noise == 0:
            snr = math.inf
        else:
            snr = 10 * math.log10(signal / noise) if signal > 0 else -math.inf
        count = max(1, valid_steps * wanted.shape[-1])
        return cls(float(np.max(np.abs(error), initial=0.0)), math.sqrt(noise / count), snr)


class Comparison(Mapping[str, Difference]):
    """The differences of `layer.compare`, by name.

    `comparison["y"]` is that of the result. `comparison["l0.i"]` is that of the gate i of layer 0,
    after its activation, and "l0_reverse.i" that of the second direction: of all that `Tape.gates`
    returns, which are the gates and the cell state c of an LSTM, or the state h of another cell.
    `repr` shows all of them.
    """

    def __init__(self, precision: str, differences: Mapping[str, Difference]) -> None:
        self._precision = precision
        self._differences = dict(differences)

    def __getitem__(self, name: str) -> Difference:
        return self._differences[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._differences)

    def __len__(self) -> int:
        return len(self._differences)

    def __repr__(self) -> str:
        width = max(len(name) for name in self)
        lines = [
            f"Comparison({self._precision}):",
            f"{'':{width}}  {'max':>9} {'rms':>9} {'snr':>9}",
        ]
        lines += [
            f"{name:{width}}  {d.max:9.2e} {d.rms:9.2e} {d.snr:6.1f} dB" for name, d in self.items()
        ]
        return "\n".join(lines)


def compare(
    quantised: Any, layer: Any, x: Array, state: Any, lengths: Any, reset: Array | None
) -> Comparison:
    """The differences of a layer in low precision from an exact one; see `LSTM.compare`."""
    results = []
    for each in (layer, quantised):
        y, _, tape = each._model.record(x, state, lengths, reset, None, None)
        results.append((y, _quantities(each, tape)))
    (wanted_y, wanted), (y, got) = results
    steps = math.prod(y.shape[:-1]) if lengths is None else int(np.sum(lengths))
    differences = {"y": Difference.of(y, wanted_y, steps)}
    differences |= {name: Difference.of(got[name], wanted[name], steps) for name in wanted}
    return Comparison(quantised.precision, differences)


def _quantities(layer: Any, tape: _core.Tape) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for k in range(layer.num_layers):
        for reverse in range(2 if layer.bidirectional else 1):
            prefix = f"l{k}_reverse." if reverse else f"l{k}."
            gates = tape.gates(layer=k, reverse=bool(reverse))
            found |= {prefix + name: values for name, values in gates.items()}
    return found
