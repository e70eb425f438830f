"""The number of threads; a description of this build and this machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np

from tidegate import _core
from tidegate.checks import Precision, check_size


def _check_count(count: object) -> int:
    checked = check_size("num_threads", count)
    if checked >= 2**31:
        raise ValueError(f"num_threads: got {checked}, wanted less than 2**31")
    return checked


def set_num_threads(num_threads: int) -> None:
    """Sets how many threads a call may use, for the whole process.

    A call uses them only as far as its work justifies it, and never more than the processors that
    the process may run on. `with tidegate.num_threads(n):` and a call's own `num_threads` take
    precedence.

    Args:
        num_threads: at least 1.

    Raises:
        TypeError: num_threads is not an integer. ValueError: it is below 1.
    """
    _core.set_num_threads(_check_count(num_threads))


def get_num_threads() -> int:
    """Returns how many threads a call from this Python thread may use.

    This Python thread's setting (`with tidegate.num_threads(n):`), else the process's
    (`set_num_threads`), else the environment's (`TIDEGATE_NUM_THREADS`), else the least of the CPU
    affinity, the container's CPU quota and OpenMP's own limit (in a build with OpenMP).
    `show_config` says which it is.
    """
    return _core.num_threads()


def fastest_bfloat16() -> Precision:
    """Returns "bfloat16" or "bfloat16-dot", whichever is faster on the instruction set in force.

    That is "bfloat16" on processors with AMX, otherwise "bfloat16-dot". They differ in the order of
    sums; see `LSTM.quantize`.
    """
    return cast(Precision, _core.fastest_bfloat16())


@contextmanager
def num_threads(num_threads: int) -> Iterator[None]:
    """`with tidegate.num_threads(n):` sets how many threads this Python thread's calls may use.

    The previous setting is restored on leaving, so such blocks nest.

    Args:
        num_threads: at least 1.

    Raises:
        TypeError: num_threads is not an integer. ValueError: it is below 1.
    """
    before = _core.set_thread_num_threads(_check_count(num_threads))
    try:
        yield
    finally:
        _core.set_thread_num_threads(before)


def config() -> dict[str, Any]:
    """Returns what `show_config` prints.

    Returns:
        `version`, `isa` (the instruction set in use), `available_isas` (those of this build that
        this machine can run, best last), `num_threads` and `num_threads_reason`, `thread_runtime`
        (what makes the threads in this build: "OpenMP (libgomp)", "OpenMP (libomp)" or
        "std::thread"), `compiler`, `numpy`, `python`, and `machine`: the figures that determine the
        choice of threads, as far as calls have measured them. `gflop_per_s` for float32
        multiply-adds on one thread (0: not yet measured); `teams`, a list of `threads`,
        `barrier_ns` (the cost of a barrier between them) and `speedup` (for arithmetic divided
        among them); `read_rates`, a list of `bytes`, `threads` and `gb_per_s`: the rate at which
        each thread reads its part of an array of that size.
    """
    return {
        "version": _core.version(),
        "isa": _core.isa(),
        "available_isas": _core.available_isas(),
        "num_threads": _core.num_threads(),
        "num_threads_reason": _core.num_threads_reason(),
        "thread_runtime": _core.thread_runtime(),
        "compiler": _core.compiler(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": _core.machine_figures(False),
    }


def _machine_rows(machine: dict[str, Any]) -> dict[str, str]:
    rows = {"arithmetic": f"{machine['gflop_per_s']:.0f} GFLOP/s a thread, float32"}
    for team in machine["teams"]:
        rows[f"{team['threads']} threads"] = (
            f"{team['speedup']:.2f} times the arithmetic of one; a barrier: "
            f"{team['barrier_ns']:.0f} ns"
        )
    for read in machine["read_rates"]:
        size = read["bytes"]
        name = f"read {size >> 20} MB" if size >= 1 << 20 else f"read {size >> 10} kB"
        rate = f"{read['gb_per_s']:.0f} GB/s"
        rows[name] = (
            f"{rows[name]}, {read['threads']} threads: {rate} each" if name in rows else rate
        )
    return rows


def show_config() -> None:
    """Prints version, instruction sets, threads and their reason, compiler, NumPy, Python, machine.

    The machine's figures are those that determine the choice of threads (`config()["machine"]`);
    figures that no call has needed yet are measured now, in some 50 ms.
    """
    _core.machine_figures(True)
    c = config()
    rows = {
        "tidegate": c["version"],
        "instruction set": f"{c['isa']} (available: {', '.join(c['available_isas'])})",
        "threads": f"{c['num_threads']} ({c['num_threads_reason']})",
        "threads made by": c["thread_runtime"],
        "compiler": c["compiler"],
        "numpy": c["numpy"],
        "python": c["python"],
        **_machine_rows(c["machine"]),
    }
    for name, value in rows.items():
        print(f"{name + ':':<17}{value}")
