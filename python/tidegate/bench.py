"""The short benchmark: Tidegate's speed on this machine, and the speed that the machine allows.

Other libraries are measured by the repository's bench/, which takes the machine's limits from here.

A call's limit is the time that its arithmetic and its weights take at the rates measured in the
same run. Work that needs no earlier step's result (the input's products, weight gradients) runs at
the peak of fused multiply-adds; each step then takes the longer of two times: its arithmetic at
that peak, and reading its recurrent weights at the bandwidth measured for a working set of their
size. The best of several readings of a rate counts: a limit is what the machine can do, and other
programs, or a processor that is not yet at its full clock, only ever lower a reading.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tidegate as tg
from tidegate import _core
from tidegate.terminal import at_least, clear_progress, show_progress, writable

# ---- The machine


def machine() -> dict[str, Any]:
    """Processor, caches, system, versions and date of a measurement; serialisable as JSON."""
    config = tg.config()
    return {
        "cpu": cpu_name(),
        "cpus": cpu_count(),
        "caches": cache_sizes(),
        "system": platform.platform(),
        "isa": config["isa"],
        "versions": {name: config[name] for name in ("python", "numpy", "compiler")}
        | {"tidegate": config["version"]},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The processor's model name, or the best substitute that the system has."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """The number of processors that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cache_sizes() -> dict[str, int]:
    """Sizes in bytes of the first processor's data caches: {"L1": ..., "L2": ..., "L3": ...}.

    Levels that the system does not report are missing.
    """
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (_lines(index / name) for name in ("type", "level", "size"))
        if kind and kind[0] != "Instruction" and level and size and size[0].endswith("K"):
            sizes[f"L{level[0]}"] = int(size[0][:-1]) * 1024
    return sizes


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


# ---- The machine's limits


def product_rate(precision: str, threads: int) -> float:
    """The peak of products in a precision, in flops per second of `threads` threads together.

    That is the rate of multiply steps on registers: of fused multiply-adds in "float32" and
    "float64", and of the instructions for it in "bfloat16", "bfloat16-dot" and "int8", where an
    operation on integers counts as a flop.
    """
    return _sum_over_threads(lambda: _core.product_rate(precision), threads)


def read_rate(size: int, threads: int) -> float:
    """Bytes per second of `threads` threads, each reading its own `size` bytes repeatedly."""
    return _sum_over_threads(lambda: _core.read_rate(max(size, 1024)), threads)


def _sum_over_threads(measure: Callable[[], float], threads: int) -> float:
    """The sum over threads that measure at the same time; per second instead of nanosecond."""
    if threads == 1:
        return measure() * 1e9
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: measure(), range(threads))) * 1e9


@dataclass(frozen=True)
class Work:
    """What a call has to compute, and which weights it has to read.

    Attributes:
        hoisted_flops: flops that depend on no earlier step.
        steps: (count, flops of each), for all layers and directions, forward and backward.
        step_bytes: bytes of the weights that each step reads.
        directions: the number of directions that may run in parallel.
    """

    hoisted_flops: int
    steps: tuple[tuple[int, int], ...]
    step_bytes: int
    directions: int

    @property
    def flops(self) -> int:
        """All flops of the call."""
        return self.hoisted_flops + sum(count * flops for count, flops in self.steps)

    def thread_bytes(self, threads: int) -> int:
        """Bytes of the weights that one of `threads` threads reads again and again."""
        return self.step_bytes * min(self.directions, threads) // threads

    def limit(self, flop_rate: float, byte_rate: float) -> float:
        """The least time in seconds, at these flops and bytes per second of all threads."""
        least = self.step_bytes / byte_rate
        return self.hoisted_flops / flop_rate + sum(
            count * max(flops / flop_rate, least) for count, flops in self.steps
        )


def work_of_call(
    gates: int,
    input_size: int,
    hidden_size: int,
    rows: Sequence[int],
    *,
    num_layers: int = 1,
    directions: int = 1,
    training: bool = False,
    element_size: int = 4,
) -> Work:
    """The work of a call, forward and backward if `training`.

    Args:
        gates: 4 for an LSTM, 3 for a GRU, 2 for an MGU.
        input_size: I.
        hidden_size: H.
        rows: (T,), the number of active rows at each step. With a single step there is nothing to
            hoist, and the input's weights are read like the recurrent ones.
        num_layers: the number of stacked layers.
        directions: 1, or 2 if bidirectional.
        training: whether all gradients are computed too, for x, the initial state and the weights.
        element_size: the bytes of a weight: 4 or 8, or 1 or 2 in low precision.
    """
    recurrent = gates * hidden_size * hidden_size
    layer_inputs = [input_size] + [directions * hidden_size] * (num_layers - 1)
    inputs = sum(gates * hidden_size * size for size in layer_inputs) * directions
    directed_layers = num_layers * directions
    if len(rows) == 1:
        weights = inputs + directed_layers * recurrent
        passes = 3 if training else 1
        return Work(0, ((passes, 2 * rows[0] * weights),), weights * element_size, directions)
    row_steps = sum(rows)
    # Backward has two products for each one of forward: for the weights' gradients, and for the
    # input's or the state's. Only the recurrent state's product has to run step by step.
    hoisted = 2 * row_steps * inputs * (3 if training else 1)
    if training:
        hoisted += 2 * row_steps * directed_layers * recurrent
    passes = directed_layers * (2 if training else 1)
    steps = tuple(
        (passes * count, 2 * live * recurrent) for live, count in Counter(rows).items() if live > 0
    )
    return Work(hoisted, steps, recurrent * element_size, directions)


# ---- The command

# (cell, I, H, N, T)
SHAPES = [
    ("LSTM", 64, 128, 1, 100),
    ("LSTM", 256, 256, 1, 100),
    ("LSTM", 512, 512, 1, 100),
    ("LSTM", 128, 128, 32, 50),
    ("LSTM", 256, 256, 32, 50),
    ("LSTM", 512, 512, 64, 25),
    ("GRU", 64, 128, 1, 100),
    ("GRU", 256, 256, 1, 100),
    ("GRU", 512, 512, 1, 100),
    ("GRU", 128, 128, 32, 50),
    ("GRU", 256, 256, 32, 50),
    ("GRU", 512, 512, 64, 25),
]
GATES = {"LSTM": 4, "GRU": 3, "MGU": 2}
STEP_SIZES = [1, 16, 64, 128, 256, 512]
STEPS_A_ROUND = 200
# Limits are measured in the first rounds only; the calls, in every round.
LIMIT_ROUNDS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """`tidegate bench`: returns the exit code."""
    args = parse(argv)
    with tg.num_threads(args.threads):
        figures = measure(args.threads, args.rounds)
    print_figures(figures)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"\nfigures saved to {args.json}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments and checks all of them before any work starts."""
    parser = argparse.ArgumentParser(
        prog="tidegate bench",
        description="Times some calls and compares them with what the machine can do.",
        epilog="Figures are medians over rounds in which the calls take turns. Comparisons with "
        "other libraries are in the repository: python -m bench.",
    )
    threads = tg.get_num_threads()
    parser.add_argument(
        "--threads",
        type=at_least(1),
        default=threads,
        help=f"threads that a call may use (default: the setting in force, {threads})",
    )
    parser.add_argument(
        "--rounds", type=at_least(1), default=15, help="timed rounds (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="save the figures")
    args = parser.parse_args(argv)
    if args.json is not None and not writable(args.json):
        parser.error(f"argument --json: {args.json} cannot be written to")
    # The process's setting is an upper bound on every other setting.
    if args.threads > threads:
        parser.error(
            f"argument --threads: got {args.threads}, but a call may use {threads}: "
            f"{tg.config()['num_threads_reason']}"
        )
    return args


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """Measures everything; serialisable as JSON, in seconds, flops and bytes per second."""
    caches = cache_sizes() or {"L1": 32 << 10, "L2": 512 << 10, "L3": 16 << 20}
    # Three quarters of a cache stay in it beside whatever else runs; four times the size of the
    # last cache does not, even if no other program uses it.
    sizes = {level: size * 3 // 4 for level, size in caches.items()}
    sizes["memory"] = min(4 * max(caches.values()), 256 << 20)
    counts = sorted({1, threads})
    limits = {
        "fma_float32": {count: product_rate("float32", count) for count in counts},
        "fma_float64": {count: product_rate("float64", count) for count in counts},
        "read": {
            level: {count: read_rate(size // count, count) for count in counts}
            for level, size in sizes.items()
        },
    }
    calls = [_Call(*shape, training) for shape in SHAPES for training in (False, True)]
    streams = [(cell, size, _stream_steps(cell, size)) for cell in GATES for size in STEP_SIZES]
    times: dict[int, list[float]] = {}
    peaks: list[float] = []
    reads: dict[int, list[float]] = {}
    for round_ in range(rounds + 1):
        show_progress(round_ / (rounds + 1), f"round {round_} of {rounds}")
        if round_ < LIMIT_ROUNDS:
            peaks.append(product_rate("float32", threads))
            for size in {call.work.thread_bytes(threads) for call in calls}:
                reads.setdefault(size, []).append(read_rate(size, threads))
        measured = [_seconds(call.run) for call in calls]
        measured += [_seconds(steps) / STEPS_A_ROUND for _, _, steps in streams]
        if round_ > 0:  # the first one is the warm-up
            for k, seconds in enumerate(measured):
                times.setdefault(k, []).append(seconds)
    clear_progress()

    medians = [statistics.median(times[k]) for k in range(len(times))]
    return {
        "machine": machine(),
        "threads": threads,
        "rounds": rounds,
        "limits": limits,
        "calls": [
            call.figures(
                seconds,
                call.work.limit(max(peaks), max(reads[call.work.thread_bytes(threads)])),
            )
            for call, seconds in zip(calls, medians, strict=False)
        ],
        "stream_steps": [
            {"cell": cell, "size": size, "seconds": seconds}
            for (cell, size, _), seconds in zip(streams, medians[len(calls) :], strict=True)
        ],
    }


class _Call:
    """A call that is timed, and the least work that it has to do."""

    def __init__(
        self, cell: str, input_size: int, hidden: int, batch: int, steps: int, training: bool
    ) -> None:
        self.shape = {"cell": cell, "I": input_size, "H": hidden, "N": batch, "T": steps}
        self.training = training
        self.work = work_of_call(
            GATES[cell], input_size, hidden, [batch] * steps, training=training
        )
        layer = getattr(tg, cell)(input_size, hidden, seed=0)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((steps, batch, input_size), np.float32)
        y = rng.standard_normal((steps, batch, hidden), np.float32)

        def infer() -> None:
            layer(x, out=y)

        def train() -> None:
            layer.backward(layer.forward(x)[2], y)

        self.run = train if training else infer

    def figures(self, seconds: float, limit: float) -> dict[str, Any]:
        return {
            **self.shape,
            "training": self.training,
            "seconds": seconds,
            "flops": self.work.flops / seconds,
            "limit_seconds": limit,
            "reached": limit / seconds,
        }


def _stream_steps(cell: str, size: int) -> Callable[[], None]:
    stream = getattr(tg, cell)(size, size, seed=0).stream()
    x = np.random.default_rng(0).standard_normal((1, size), np.float32)
    y = np.empty((1, size), np.float32)

    def steps() -> None:
        for _ in range(STEPS_A_ROUND):
            stream.step(x, out=y)

    return steps


def _seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def print_figures(figures: dict[str, Any]) -> None:
    """Prints what `measure` returned."""
    threads = figures["threads"]
    about = figures["machine"]
    print(f"{about['cpu']}, {about['isa']}, {about['versions']['compiler']}, {threads} thread(s)")
    print("\nlimits of the machine" + (f", 1 and {threads} threads" if threads > 1 else ""))
    limits = figures["limits"]
    for name, rates in (
        ("FMA, float32", limits["fma_float32"]),
        ("FMA, float64", limits["fma_float64"]),
        *((f"read, {level}", rates) for level, rates in limits["read"].items()),
    ):
        unit = "GFLOP/s" if name.startswith("FMA") else "GB/s"
        print(f"  {name:14}" + "".join(f"{rate / 1e9:9.1f}" for rate in rates.values()), unit)

    print(f"\n{'':>6}{'I':>5}{'H':>5}{'N':>4}{'T':>5}{'inference':>12}{'GFLOP/s':>9}{'limit':>7}"
          f"{'fwd+bwd':>12}{'GFLOP/s':>9}{'limit':>7}")  # fmt: skip
    for call in figures["calls"]:
        if not call["training"]:
            print(
                f"{call['cell']:>6}{call['I']:>5}{call['H']:>5}{call['N']:>4}{call['T']:>5}", end=""
            )
        print(
            f"{call['seconds'] * 1e3:>10.3f}ms{call['flops'] / 1e9:>9.1f}{call['reached']:>7.0%}",
            end="\n" if call["training"] else "",
        )
    above = [call for call in figures["calls"] if call["reached"] > 1]
    if above:
        print(
            f"{len(above)} of {len(figures['calls'])} calls are above 100 % of their limit: the "
            "limit was measured too low, as on a machine that is busy or changes its clock; "
            "measure again with more --rounds"
        )
    print("\nstream.step(x, out=y), batch 1, I = H")
    for cell in GATES:
        row = [step for step in figures["stream_steps"] if step["cell"] == cell]
        print(
            f"{cell:>6}  "
            + "  ".join(f"{step['size']}: {step['seconds'] * 1e6:.2f} us" for step in row)
        )


if __name__ == "__main__":
    sys.exit(main())
