"""Random networks of all options, with weights from tiny to extreme, held against their bounds.

`PYTHONPATH=python python tests/random_networks.py SECONDS [SEED]` searches for results outside of
their bounds and prints each as the seed that makes it again.
"""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tidegate as tg
from tidegate import _bounds, _core, reference, selftest
from tidegate.layers import CELLS

GATES: list[Any] = ["sigmoid", "hard_sigmoid", "tanh", "softsign", "affine", "relu", "softplus"]
SYMMETRIC: list[Any] = ["sigmoid", "hard_sigmoid"]  # 1 - f(a) = f(-a), which "write" needs
ACTIVATIONS: list[Any] = [*GATES, "leaky_relu", "elu", "thresholded_relu", "scaled_tanh"]
PARAMETERS = {
    "hard_sigmoid": 1,
    "affine": 2,
    "leaky_relu": 1,
    "thresholded_relu": 1,
    "scaled_tanh": 2,
    "elu": 1,
}


def _choose(rng: np.random.Generator, choices: list[Any]) -> Any:
    return choices[rng.integers(len(choices))]


def _activation(rng: np.random.Generator, names: list[Any], usual: str) -> Any:
    if rng.random() < 0.4:
        return usual
    name = _choose(rng, names)
    count = PARAMETERS.get(name, 0)
    if count == 0 or rng.random() < 0.5:
        return name
    return (name, *(_magnitude(rng) * _sign(rng, name) for _ in range(count)))


def _sign(rng: np.random.Generator, name: str) -> int:
    """Negative only where a layer with such a parameter can be trained."""
    return -1 if name in ("affine", "hard_sigmoid", "scaled_tanh") and rng.random() < 0.3 else 1


def draw_layer(rng: np.random.Generator, cell: str | None = None) -> Any:
    """A layer of random options whose parameters have one random magnitude, or two.

    Args:
        cell: "LSTM", "GRU" or "MGU"; None: one of the first two.
    """

    def flip(probability: float = 0.3) -> bool:
        return bool(rng.random() < probability)

    hidden = int(rng.integers(1, 8))
    options: dict[str, Any] = {
        "num_layers": int(rng.integers(1, 3)),
        "bias": flip(0.8),
        "dtype": _choose(rng, [np.float32, np.float64]),
        "seed": rng,
    }
    options[_choose(rng, ["bidirectional", "reverse"])] = flip(0.4)
    if flip():
        options["clip"] = float(10 ** rng.uniform(-2, 2))
    cell = cell or ("LSTM" if flip(0.5) else "GRU")
    kind: Any = CELLS[cell]
    gates = GATES
    if kind is tg.LSTM:
        options |= {
            "proj_size": int(rng.integers(0, hidden)) if flip() else 0,
            "peephole": flip(),
            "input_forget": flip(),
        }
        if flip():
            options["output_activation"] = _activation(rng, ACTIVATIONS, "tanh")
    elif kind is tg.GRU:
        options |= {"reset_after": flip(0.5), "update_gate": _choose(rng, ["carry", "write"])}
        if options["update_gate"] == "write":
            gates = SYMMETRIC
    options["recurrent_activation"] = _activation(rng, gates, "sigmoid")
    options["activation"] = _activation(rng, ACTIVATIONS, "tanh")
    layer = kind(int(rng.integers(1, 6)), hidden, **options)
    with np.errstate(over="ignore"), layer.params.update() as flat:
        flat *= _magnitude(rng)
        if flip():
            flat[rng.random(flat.size) < 0.2] *= _magnitude(rng)
    return layer


def _magnitude(rng: np.random.Generator) -> float:
    return float(10 ** rng.uniform(*_choose(rng, [(-1, 1), (-1, 3), (-25, 25)])))


def draw_case(seed: int, cell: str | None = None) -> selftest.Case:
    """Case `seed`: a layer, and input of random shape and magnitude."""
    rng = np.random.default_rng([seed, 20261126])
    layer = draw_layer(rng, cell)
    steps = int(rng.integers(0, _choose(rng, [6, 12, 12, 60])))
    batch = int(rng.integers(0, 6))
    case = selftest.draw_case(layer, steps, batch, bool(rng.random() < 0.5), rng)
    with np.errstate(over="ignore"):
        scaled = {
            name: _scaled(getattr(case, name), layer.dtype.type(_magnitude(rng)))
            for name in ("x", "state", "dy", "dstate")
            if rng.random() < 0.3
        }
    return selftest.Case(**{**vars(case), **scaled})


def _scaled(values: Any, factor: Any) -> Any:
    if isinstance(values, tuple):
        return tuple(part * factor for part in values)
    return None if values is None else values * factor


def expect(case: selftest.Case) -> dict[str, Any]:
    """What the reference gives, with bounds; forward alone if the layer cannot be trained."""
    layer = case.layer
    with np.errstate(all="ignore"):
        if layer.clip is None:
            expected = selftest.expect(case)
            return expected.forward | expected.backward
        network = reference.from_layer(layer)
        given = {"lengths": case.lengths, "reset": case.reset}
        y, state, _ = network.forward(layer.params, case.x, case.state, **given)
        run = _bounds.forward(network, layer.params, case.x, case.state, dtype=layer.dtype, **given)
    return {"y": (y, run.y), **_named(state, lambda k, part: (part, (run.h, run.c)[k]))}


def ratios(case: selftest.Case, expected: dict[str, Any]) -> dict[str, float]:
    """How far each result on the instruction set in force is off, relative to its bound."""
    if case.layer.clip is None:
        forward, backward = selftest.results(case, 1)
        got = forward | backward
    else:
        y, state = case.layer(case.x, case.state, lengths=case.lengths, reset=case.reset)
        got = {"y": y, **_named(state, lambda _, part: part)}
    return {name: _bounds.worst_ratio(values, *expected[name]) for name, values in got.items()}


def _named(state: Any, make: Callable[[int, Any], Any]) -> dict[str, Any]:
    parts = state if isinstance(state, tuple) else (state,)
    return {f"{name}_n": make(k, part) for k, (name, part) in enumerate(zip("hc", parts))}


def changed_by_threads(case: selftest.Case) -> list[str]:
    """The results whose bits depend on how threads divide the work; needs `preserved_settings`."""
    if case.layer.clip is not None:
        return []
    one = selftest.results(case, 1)
    changed = []
    for threads, division in selftest.DIVISIONS:
        with selftest.dividing(division):
            for part, wanted in zip(selftest.results(case, threads), one):
                changed += [
                    f"{name} on {threads} threads dividing {division}"
                    for name in part
                    if not selftest.same_bits(part[name], wanted[name])
                ]
    return changed


def search(seconds: float, first: int) -> None:
    """Prints every miss of the cases from `first` on, for so long."""
    end = time.monotonic() + seconds
    seed, checks, isas = first, 0, _core.available_isas()
    print(f"from seed {first} on, for {seconds:g} s", flush=True)
    kinds: collections.Counter[str] = collections.Counter()
    while time.monotonic() < end:
        case = draw_case(seed, "MGU" if seed % 3 == 2 else None)
        expected = expect(case)
        for isa in isas:
            _core.select_isa(isa)
            try:
                found = ratios(case, expected)
            except Exception as error:
                print(f"{seed} {isa}: {type(error).__name__}: {error} ({case.layer})", flush=True)
                break
            checks += len(found)
            missed = [f"{name}: {ratio:.3g}" for name, ratio in found.items() if not ratio <= 1]
            missed += changed_by_threads(case)
            if missed:
                kinds[str(case.layer.dtype)] += 1
                print(f"{seed} {isa}: {missed} {case.layer}", flush=True)
                break
        seed += 1
    print(f"seeds {first} to {seed - 1}: {checks} checks, cases that missed: {dict(kinds)}")


if __name__ == "__main__":
    with selftest.preserved_settings():
        search(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
