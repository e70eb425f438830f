"""Benefit of threads: 2 against 1, 4 requested on 2 processors, two processes at once, idle CPU.

Only Tidegate. All but the two processes runs in this one; calls with each number of threads take
turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import tidegate as tg
from bench.contenders import OURS, make_contender
from bench.grid import Cell, suite
from bench.problem import make_problem
from bench.processes import Worker, choose_cpus, pinned
from bench.sampling import Sampler
from bench.stats import Estimate, estimate, geometric_mean, paired_ratios

# Target speed-ups of 2 threads: if matrix products dominate, if one sequence's steps read large
# weights, and for any call; the most time of 4 threads on 2 processors, relative to 2 threads.
BATCH_TARGET, SEQUENCE_TARGET, ANY_TARGET, CROWD_TARGET = 1.75, 1.5, 0.97, 1.3
# Targets of two processes' time over twice the time alone: rows divided, or steps synchronised.
SHARING_TARGETS = {"rows": 1.2, "steps": 2.0}
_SHARING = {
    "rows": Cell("batch", "lstm", 256, 256, 32, 50, threads=2),
    "steps": Cell("sequence", "lstm", 512, 512, 1, 100, threads=2),
}
_SHARING_SECONDS = 0.5
PERIOD_SECONDS = 0.032


def cells(name: str) -> list[Cell]:
    """The cells of a suite, once for all thread counts."""
    return suite(name, (1,))


def measure(
    chosen: Sequence[Cell], rounds: int, sample_ms: float, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Measures all four; for JSON.

    Raises:
        ValueError: this process may run on one processor only.
    """
    with pinned(choose_cpus(2)):
        # The process's setting bounds every call's.
        tg.set_num_threads(4)
        speedups = []
        for k, cell in enumerate(chosen):
            speedups.append(speedup(cell, rounds, sample_ms))
            tell(f"[{k + 1}/{len(chosen)}] {speedup_line(speedups[-1])}")
        idle = idle_cpu(rounds)
        tell(idle_line(idle))
    sharing = []
    for division, cell in _SHARING.items():
        sharing.append(
            {"division": division, "cell": cell.as_dict(), **two_processes(cell, rounds)}
        )
        tell(sharing_line(sharing[-1]))
    return {"speedups": speedups, "idle": idle, "sharing": sharing}


# ---- Speed-up


def speedup(cell: Cell, rounds: int, sample_ms: float) -> dict[str, Any]:
    """Runs 1, 2 and 4 threads in turns: time of 1 over that of 2, and time of 4 over that of 2."""
    counts = (1, 2, 4)
    contender = make_contender(OURS, max(counts))
    samplers = {count: Sampler(contender.prepare(make_problem(cell))) for count in counts}
    samples: dict[int, list[float]] = {count: [] for count in counts}
    for count, sampler in samplers.items():
        with tg.num_threads(count):
            sampler.calibrate(sample_ms * 1e6)
    for _ in range(rounds):
        for count, sampler in samplers.items():
            with tg.num_threads(count):
                samples[count].append(sampler.sample())
    return {
        "cell": cell.as_dict(),
        "ns": samples,
        "of_2": vars(estimate(paired_ratios(samples[1], samples[2]))),
        "crowd": vars(estimate(paired_ratios(samples[4], samples[2]))),
    }


def speedup_target(cell: Cell) -> float:
    """The least speed-up that 2 threads should reach."""
    if cell.regime == "batch" and cell.hidden_size >= 256:
        return BATCH_TARGET
    if cell.regime == "sequence" and cell.hidden_size >= 256:
        return SEQUENCE_TARGET
    return ANY_TARGET


def speedup_line(figures: dict[str, Any]) -> str:
    """The figures as a line for a terminal."""
    cell = Cell(**figures["cell"])
    gain, crowd = Estimate(**figures["of_2"]), Estimate(**figures["crowd"])
    wanted = speedup_target(cell)
    marks = ("  SHORT" if gain.median < wanted else "") + (
        "  CROWDED" if crowd.median > CROWD_TARGET else ""
    )
    name = cell.id.rpartition(" ")[0]
    return (
        f"{name}: 2 threads x{gain.median:.2f} [{gain.low:.2f}, {gain.high:.2f}] "
        f"(wanted: {wanted}), 4 asked for / 2: {crowd.median:.2f}{marks}"
    )


# ---- Idle


def idle_cpu(rounds: int) -> dict[str, float]:
    """CPU time of a call: back to back with 2 threads, and every 32 ms with 2 threads and with 1.

    The additional cost of 2 threads for a call every 32 ms is waking, waiting, and the CPU time
    that workers use after it; cold caches and a lowered clock rate cost the same for both.
    """
    layer = tg.LSTM(512, 512, seed=0)
    x = np.random.default_rng(0).standard_normal((20, 1, 512), np.float32)
    y = np.empty_like(x)

    def cpu_us(threads: int, period: float, calls: int) -> float:
        with tg.num_threads(threads):
            layer(x, out=y)
            begin = time.process_time()
            for _ in range(calls):
                time.sleep(period)
                layer(x, out=y)
            # Include the CPU time that workers use after the last call.
            time.sleep(PERIOD_SECONDS)
            return (time.process_time() - begin) / calls * 1e6

    calls = 5 * rounds
    return {
        "back_to_back_us": cpu_us(2, 0, calls),
        "spaced_us": cpu_us(2, PERIOD_SECONDS, calls),
        "spaced_serial_us": cpu_us(1, PERIOD_SECONDS, calls),
    }


def idle_line(figures: dict[str, float]) -> str:
    """The figures as a line for a terminal."""
    return (
        f"CPU time of a call (lstm 512 N1 T20): {figures['back_to_back_us']:.0f} us back to back "
        f"with 2 threads; every {PERIOD_SECONDS * 1e3:.0f} ms "
        f"{figures['spaced_us']:.0f} us with 2, {figures['spaced_serial_us']:.0f} us with 1"
    )


# ---- Sharing


def two_processes(cell: Cell, rounds: int, timeout: float = 60.0) -> dict[str, Any]:
    """Two processes of 2 threads at once on 2 processors: their time over twice that alone."""
    cpus = choose_cpus(2)
    workers = [Worker(OURS, cell.threads, cpus, timeout) for _ in range(2)]
    try:
        for worker in workers:
            worker.begin()
            worker.ask("prepare", cell=cell.as_dict(), results=None)
        ratios = []
        for _ in range(rounds):
            alone = workers[0].ask("run_for", seconds=_SHARING_SECONDS)["ns"]
            for worker in workers:
                worker.send("run_for", seconds=_SHARING_SECONDS)
            both = [worker.receive()["ns"] for worker in workers]
            ratios.append(max(both) / (2 * alone))
    finally:
        for worker in workers:
            worker.close()
    return vars(estimate(ratios))


def sharing_line(figures: dict[str, Any]) -> str:
    """The figures as a line for a terminal."""
    return (
        f"two processes at once ({Cell(**figures['cell']).network}): "
        f"{figures['median']:.2f} [{figures['low']:.2f}, {figures['high']:.2f}] of twice the time "
        f"alone (wanted: at most {SHARING_TARGETS[figures['division']]:g})"
    )


def text(figures: dict[str, Any]) -> str:
    """A summary for a terminal, after the lines printed while measuring."""
    gains = {
        "batch, H >= 256": BATCH_TARGET,
        "sequence, H >= 256": SEQUENCE_TARGET,
        "others": ANY_TARGET,
    }
    lines = []
    for name, wanted in gains.items():
        own = [f for f in figures["speedups"] if speedup_target(Cell(**f["cell"])) == wanted]
        if own:
            medians = [f["of_2"]["median"] for f in own]
            lines.append(
                f"2 threads, {name}: x{geometric_mean(medians):.2f} "
                f"({min(medians):.2f} to {max(medians):.2f}; wanted: at least {wanted})"
            )
    crowd = max((f["crowd"]["median"] for f in figures["speedups"]), default=0)
    lines.append(f"4 threads asked for: at most {crowd:.2f} of the time of 2 (wanted: at most 1.3)")
    return "\n".join(lines)
