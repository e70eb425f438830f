"""Speed of a few shapes, beside the machine's measured limit.

    python bench/speed.py [--threads N] [--rounds N]

For each shape: the time of an inference call and of forward + backward (all gradients), GFLOP/s,
and per cent of the FMA peak of as many cores, measured in the same run by a loop of fused
multiply-adds on registers. Then the time of `stream.step(x, out=y)` at batch 1 from Python. Times
are medians over rounds; the shapes take turns, so that a machine that changes speed does so for
all. Parameters stay as they are, so packing them is not in the times.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tidegate as tg
from tidegate import _core

# Cell, I, H, N, T.
SHAPES = [
    ("LSTM", 512, 512, 64, 25),
    ("LSTM", 512, 512, 32, 25),
    ("LSTM", 256, 256, 64, 50),
    ("LSTM", 256, 256, 32, 50),
    ("LSTM", 128, 128, 32, 50),
    ("LSTM", 256, 256, 1, 100),
    ("GRU", 512, 512, 64, 25),
    ("GRU", 512, 512, 32, 25),
    ("GRU", 256, 256, 64, 50),
    ("GRU", 256, 256, 32, 50),
    ("GRU", 128, 128, 32, 50),
    ("GRU", 256, 256, 1, 100),
]
STEP_SIZES = [1, 16, 64, 128, 256]
STEPS_A_ROUND = 200


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def sequence_work(
    cell: str, inputs: int, hidden: int, batch: int, steps: int
) -> tuple[int, Callable[[], object], Callable[[], object]]:
    """Flops of a forward call; that call; forward and backward."""
    layer = getattr(tg, cell)(inputs, hidden, seed=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, batch, inputs), np.float32)
    dy = rng.standard_normal((steps, batch, hidden), np.float32)
    y = np.empty_like(dy)
    gates = 4 if cell == "LSTM" else 3
    flops = 2 * steps * batch * gates * hidden * (inputs + hidden)

    def train() -> None:
        tape = layer.forward(x)[2]
        layer.backward(tape, dy)

    return flops, lambda: layer(x, out=y), train


def step_work(cell: str, hidden: int) -> Callable[[], object]:
    stream = getattr(tg, cell)(hidden, hidden, seed=0).stream()
    x = np.random.default_rng(0).standard_normal((1, hidden), np.float32)
    y = np.empty((1, hidden), np.float32)

    def steps() -> None:
        for _ in range(STEPS_A_ROUND):
            stream.step(x, out=y)

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads a call may use (default 1)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
    args = parser.parse_args()

    tg.set_num_threads(args.threads)
    print(f"{cpu_name()}, {_core.isa()}, {_core.compiler()}, {args.threads} thread(s)")
    sequences = [(shape, *sequence_work(*shape)) for shape in SHAPES]
    streams = [
        ((cell, size), step_work(cell, size)) for cell in ("LSTM", "GRU") for size in STEP_SIZES
    ]
    peaks: list[float] = []
    times: dict[object, list[float]] = {}
    for round_ in range(args.rounds + 1):
        peak = _core.fma_rate(4) * args.threads
        measured = {}
        for shape, _, run, train in sequences:
            measured[shape, "forward"] = seconds(run)
            measured[shape, "train"] = seconds(train)
        for key, steps in streams:
            measured[key] = seconds(steps) / STEPS_A_ROUND
        if round_ > 0:  # the first one warms up
            peaks.append(peak)
            for what, value in measured.items():
                times.setdefault(what, []).append(value)

    peak = statistics.median(peaks)
    print(f"FMA peak {peak:.0f} GFLOP/s (float32)\n")
    print(f"{'':>6}{'I':>5}{'H':>5}{'N':>4}{'T':>5}{'forward':>11}{'GFLOP/s':>9}{'peak':>6}"
          f"{'fwd+bwd':>12}{'GFLOP/s':>9}{'peak':>6}")  # fmt: skip
    for shape, flops, *_ in sequences:
        sizes = zip(shape[1:], (5, 5, 4, 5), strict=True)
        row = f"{shape[0]:>6}" + "".join(f"{size:>{width}}" for size, width in sizes)
        # Backward has two products (by the input and by the weight) for each one of forward.
        for what, work in (("forward", flops), ("train", 3 * flops)):
            took = statistics.median(times[shape, what])
            rate = work / took / 1e9
            width = 9 if what == "forward" else 10
            row += f"{took * 1e3:>{width}.3f}ms{rate:>8.1f} {rate / peak:>5.0%}"
        print(row)
    print("\nstream.step(x, out=y), batch 1, I = H")
    for cell in ("LSTM", "GRU"):
        medians = {size: statistics.median(times[cell, size]) * 1e6 for size in STEP_SIZES}
        print(
            f"{cell:>6}  " + "  ".join(f"{size}: {value:.2f} us" for size, value in medians.items())
        )


if __name__ == "__main__":
    main()
