"""The self-test: compares the results of this machine's kernels with the reference.

Every instruction set runs a sweep of networks and shapes, forward and backward in float32,
float64 and both kinds of bfloat16, forward in int8, and each result must lie within a bound around
the reference that follows from the arithmetic (_bounds.py). Threads, dividing rows or units, must
then change no bit.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import tidegate as tg
from tidegate import _bounds, _core, reference
from tidegate._bounded import Bounded
from tidegate.checks import Array
from tidegate.terminal import clear_progress, show_progress

NETWORKS: list[tuple[type[Any], dict[str, Any]]] = [
    (tg.LSTM, {}),
    (tg.LSTM, {"bias": False, "reverse": True}),
    (tg.LSTM, {"num_layers": 2, "bidirectional": True}),
    (tg.LSTM, {"proj_size": 2}),
    (tg.LSTM, {"peephole": True}),
    (tg.LSTM, {"num_layers": 2, "proj_size": 2, "peephole": True, "bidirectional": True}),
    (tg.GRU, {}),
    (tg.GRU, {"bias": False, "reverse": True}),
    (tg.GRU, {"num_layers": 2, "bidirectional": True}),
    (tg.GRU, {"reset_after": False}),
    (tg.GRU, {"update_gate": "write"}),
    (
        tg.GRU,
        {"num_layers": 2, "reset_after": False, "update_gate": "write", "bidirectional": True},
    ),
    (tg.LSTM, {"recurrent_activation": "hard_sigmoid", "input_forget": True, "peephole": True}),
    (
        tg.LSTM,
        {"activation": "softsign", "output_activation": ("scaled_tanh", 1.5, 0.5), "proj_size": 2},
    ),
    (tg.GRU, {"recurrent_activation": "hard_sigmoid", "update_gate": "write"}),
    (tg.GRU, {"activation": ("elu", 0.5), "reset_after": False, "num_layers": 2}),
    (tg.MGU, {}),
    (tg.MGU, {"num_layers": 2, "bidirectional": True, "recurrent_activation": "hard_sigmoid"}),
]
# I, H, N, T: partial and whole vectors, tiles of one row and of many, sums longer than a block of a
# panel, sequences longer than the steps that are projected and summed up at once.
SHAPES = [(5, 3, 1, 6), (3, 17, 5, 7), (150, 33, 7, 3), (7, 100, 13, 4), (4, 16, 32, 35)]
DIVISIONS = [(2, "rows"), (2, "units"), (3, "units")]
PRECISIONS = ("float32", "float64", "bfloat16", "bfloat16-dot", "int8")
# In low precision, an error may be rounded up to a whole step of the numbers, and more with each
# further step and layer: cases of one step of one layer have bounds that are of use.
LOW_PRECISIONS = PRECISIONS[2:]


@dataclass(frozen=True)
class Case:
    """A layer, its inputs, and the gradients of its results."""

    layer: Any
    x: Array
    state: Any
    lengths: Array | None
    reset: Array | None
    dy: Array
    dstate: Any
    precision: str | None = None  # of `forward`; a call is that of the layer quantised to it


@dataclass
class Tally:
    """The results of one instruction set and precision; errors are relative to their bounds."""

    cases: int = 0
    forward: float = 0.0
    backward: float = 0.0
    changed_bits: int = 0
    misses: list[str] = field(default_factory=list)


def make_case(number: int, precision: str, seed: int) -> Case:
    """Case `number` of the sweep: networks change fastest, and every other case is ragged."""
    kind, options = NETWORKS[number % len(NETWORKS)]
    input_size, hidden, batch, steps = SHAPES[number // len(NETWORKS) % len(SHAPES)]
    rng = np.random.default_rng([seed, number])
    is_low = precision in LOW_PRECISIONS
    if is_low:
        options, steps = {**options, "num_layers": 1}, 1
    dtype = np.float32 if is_low else precision
    layer = kind(input_size, hidden, **options, dtype=dtype, seed=rng)
    _bounds.make_contracting(layer)
    if precision == "int8":
        layer = layer.quantize(precision)
    ragged = (number + number // len(NETWORKS)) % 2 == 0
    case = draw_case(layer, steps, batch, ragged or is_low, rng)
    return replace(case, precision=precision) if is_low and precision != "int8" else case


def draw_case(layer: Any, steps: int, batch: int, ragged: bool, rng: np.random.Generator) -> Case:
    """Random inputs for a layer; if ragged, with states, lengths and resets."""
    network = reference.from_layer(layer)
    rows, size = network.num_layers * network.num_directions, network.state_size

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(layer.dtype)

    def state() -> Any:
        h = normal(rows, batch, size)
        return (h, normal(rows, batch, layer.hidden_size)) if isinstance(layer, tg.LSTM) else h

    return Case(
        layer=layer,
        x=normal(steps, batch, layer.input_size),
        state=state() if ragged else None,
        lengths=rng.integers(0, steps + 1, batch) if ragged else None,
        reset=rng.random((steps, batch)) < 0.1 if ragged else None,
        dy=normal(steps, batch, network.num_directions * size),
        dstate=state() if ragged else None,
    )


def results(case: Case, num_threads: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """All results of the layer, forward and backward (none of a quantised layer), by name."""
    layer = case.layer
    called, state = (layer if case.precision is None else layer.quantize(case.precision))(
        case.x, case.state, lengths=case.lengths, reset=case.reset, num_threads=num_threads
    )
    forward = {"y of a call": called, **_state("{}_n", state)}
    if layer.precision != str(layer.dtype):
        return forward, {}
    y, state, tape = layer.forward(
        case.x,
        case.state,
        case.lengths,
        case.reset,
        num_threads=num_threads,
        precision=case.precision,
    )
    grads = layer.backward(tape, case.dy, case.dstate, num_threads=num_threads)
    forward = {**forward, "y": y, **_state("{}_n", state)}
    return forward, {"dx": grads.x, **_state("d{}_0", grads.state), **grads.params}


def _state(name: str, state: Any) -> dict[str, Any]:
    parts = state if isinstance(state, tuple) else (state,)
    return {name.format(part): value for part, value in zip("hc", parts)}


@dataclass(frozen=True)
class Expected:
    """The reference's results with their bounds, under the names of `results`."""

    forward: dict[str, tuple[Array, Bounded]]
    backward: dict[str, tuple[Array, Bounded]]


def expect(case: Case) -> Expected:
    """Computes the reference's results and their bounds."""
    network = reference.from_layer(case.layer, case.precision)
    options = {"lengths": case.lengths, "reset": case.reset}
    params = case.layer.params
    y, state, tape = network.forward(params, case.x, case.state, **options)
    run = _bounds.forward(network, params, case.x, case.state, dtype=case.layer.dtype, **options)
    forward = {"y": (y, run.y), "y of a call": (y, run.y)}
    for name, value, bound in zip("hc", _state("{}", state).values(), (run.h, run.c)):
        forward[f"{name}_n"] = value, bound
    if network.weights_are_rounded:
        return Expected(forward, {})
    grads = network.backward(tape, case.dy, case.dstate)
    back = _bounds.backward(run, case.dy, case.dstate)
    backward = {"dx": (grads.x, back.x)}
    backward |= {name: (grads.params[name], back.params[name]) for name in params}
    for name, value, bound in zip("hc", _state("{}", grads.state).values(), (back.h, back.c)):
        backward[f"d{name}_0"] = value, bound
    return Expected(forward, backward)


def check(case: Case, expected: Expected, tally: Tally) -> None:
    """Runs a case on the instruction set in force and adds its errors to the tally."""
    tally.cases += 1
    forward, backward = results(case, 1)
    for got, wanted, way in (
        (forward, expected.forward, "forward"),
        (backward, expected.backward, "backward"),
    ):
        for name, values in got.items():
            ratio = _bounds.worst_ratio(values, *wanted[name])
            setattr(tally, way, max(getattr(tally, way), ratio))
            if ratio > 1:
                tally.misses.append(f"{name} is off by {ratio:.3g} times its bound")
    single_threaded = {**forward, **backward}
    for threads, division in DIVISIONS:
        with dividing(division):
            for part in results(case, threads):
                changed = [
                    name for name in part if not same_bits(part[name], single_threaded[name])
                ]
                tally.changed_bits += len(changed)
                how = f"on {threads} threads dividing {division}"
                tally.misses += [f"{name} has other bits {how}" for name in changed]


def same_bits(left: Array, right: Array) -> bool:
    """Whether two arrays have the same bits, which includes a zero's sign but not a NaN's bits."""
    if left.tobytes() == right.tobytes():
        return True
    nan = np.isnan(left)
    return np.array_equal(nan, np.isnan(right)) and left[~nan].tobytes() == right[~nan].tobytes()


@contextmanager
def dividing(division: str) -> Iterator[None]:
    """Makes calls use all threads that they are given, and divide "rows" or "units"."""
    _core.select_division(division)
    try:
        yield
    finally:
        _core.select_division("auto")


@contextmanager
def preserved_settings() -> Iterator[None]:
    """Allows the threads that the sweep needs; restores them and the instruction set at the end."""
    isa = _core.isa()
    threads = _core.num_threads()
    most = max(count for count, _ in DIVISIONS)
    try:
        if threads < most:
            _core.set_num_threads(most)
        yield
    finally:
        _core.select_isa(isa)
        if threads < most:
            _core.set_num_threads(threads)


def sweep(
    isas: Sequence[str], numbers: Sequence[int], seed: int
) -> Iterator[tuple[str, str, Tally]]:
    """Runs the cases; yields the tally of each instruction set and precision."""
    done = 0
    total = len(isas) * len(PRECISIONS) * len(numbers)
    known: dict[tuple[int, str], tuple[Case, Expected]] = {}
    for isa in isas:
        _core.select_isa(isa)
        for precision in PRECISIONS:
            tally = Tally()
            for number in numbers:
                if (number, precision) not in known:
                    case = make_case(number, precision, seed)
                    known[number, precision] = case, expect(case)
                before = len(tally.misses)
                case, expected = known[number, precision]
                try:
                    check(case, expected, tally)
                except Exception:
                    tally.misses.append(traceback.format_exc())
                again = f"--isa {isa} --seed {seed} --case {number}"
                for k in range(before, len(tally.misses)):
                    what = f"{precision} {case.layer} x {case.x.shape}"
                    tally.misses[k] = f"{what}: {tally.misses[k]}\n    tidegate selftest {again}"
                done += 1
                show_progress(done / total, f"{isa} {precision}")
            yield isa, precision, tally


def run(isas: Sequence[str], numbers: Sequence[int], seed: int) -> bool:
    """Sweeps; prints a line for each instruction set and precision, and misses; True if none."""
    start = time.perf_counter()
    cases = "worst error / bound"
    print(f"{'':12}{'':13}{'':>6}   {cases:^21}   {'changed by':>10}")
    print(
        f"{'ISA':12}{'precision':13}{'cases':>6}   {'forward':>10} {'backward':>10}   "
        f"{'threads':>10}"
    )
    misses = []
    for isa, precision, tally in sweep(isas, numbers, seed):
        clear_progress()
        print(
            f"{isa:12}{precision:13}{tally.cases:6}   {tally.forward:10.3f} "
            f"{tally.backward:10.3f}   {tally.changed_bits:10}",
            flush=True,
        )
        misses += tally.misses
    for miss in misses:
        print(f"MISS {miss}")
    seconds = time.perf_counter() - start
    print(f"{'passed' if not misses else f'FAILED: {len(misses)} misses'} in {seconds:.1f} s")
    return not misses


def main(argv: Sequence[str] | None = None) -> int:
    """`tidegate selftest`: returns the exit code, 0 if all results are right, else 1."""
    parser = argparse.ArgumentParser(
        prog="tidegate selftest",
        description="Checks every instruction set of this machine against the reference.",
    )
    available = _core.available_isas()
    parser.add_argument("--isa", choices=available, help="only this instruction set")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights and inputs (default: 0)"
    )
    parser.add_argument("--case", type=int, help="only this case, by its number in a miss")
    args = parser.parse_args(argv)
    for name in ("seed", "case"):
        if (getattr(args, name) or 0) < 0:
            parser.error(f"argument --{name}: got {getattr(args, name)}, wanted at least 0")
    numbers = range(len(NETWORKS) * len(SHAPES)) if args.case is None else [args.case]
    with preserved_settings():
        passed = run([args.isa] if args.isa else available, numbers, args.seed)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
