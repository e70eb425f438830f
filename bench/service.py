"""Live streams at a fixed rate, served by forked workers: latency, CPU and memory, against peers.

bench/server.py has the service and its load; this module runs the contenders and makes the table.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.processes import environment
from bench.reference import solve
from bench.report import bytes_text
from bench.server import Job, Load, service_problem


def measure(
    contenders: Sequence[str],
    load: Load,
    tick: float,
    rounds: int,
    timeout: float,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Measures every contender in three ways: one client at a time, batched, and batched on a tick.

    Args:
        contenders: the contenders' names.
        load: the load on each.
        tick: the tick of the third way, in seconds.
        rounds: the number of turns of each, in new processes each time.
        timeout: seconds, beyond the load's, after which a service fails.
        tell: a function that prints a line for each turn.

    Returns:
        load, and services: for each contender and way, its turns (`bench.server.serve`). For JSON.
    """
    ways = [(False, 0.0), (True, 0.0), (True, tick)]
    services: list[dict[str, Any]] = [
        {"contender": name, "batched": batched, "tick": wait, "turns": []}
        for name, (batched, wait) in itertools.product(contenders, ways)
    ]
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.npy"
        np.save(wanted, solve(service_problem(load.clients))["y"])
        for seed, service in itertools.product(range(rounds), services):
            turns = service["turns"]
            # Services that have failed are not run again.
            if turns and turns[-1]["status"] != "ok":
                continue
            way = {key: service[key] for key in ("contender", "batched", "tick")}
            job = Job(load, **way, seed=seed, wanted=str(wanted))
            turns.append(_serve(job, timeout))
            tell(f"[{seed + 1}/{rounds}] {_row(_texts(service, turns[-1:]))}")
    return {"load": dataclasses.asdict(load), "services": services}


def _serve(job: Job, timeout: float) -> dict[str, Any]:
    """Runs one turn."""
    load = job.load
    seconds = load.seconds + timeout
    command = [sys.executable, "-m", "bench.server", json.dumps(dataclasses.asdict(job))]
    # In its own session, so that its workers can be ended with it.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(load.threads),
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return {"status": "failed", "why": f"no answer within {seconds:g} s"}
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        return {"status": "failed", "why": ": ".join(["its process ended", *last])}
    reply: dict[str, Any] = json.loads(out)
    return reply


# ---- The table

_HEAD = ["", "p50 ms", "p99 ms", "max ms", "call us", "frames", "CPU", "memory", "a worker"]
_LEGEND = """\
p50, p99, max: a frame's time from when it was due. call: median time of a call, including gathering
its frames; frames: per call. CPU: processors in use. memory: all processes, shared pages counted
once; a worker: its peak. Medians of the turns; for the maximum the largest.
"""


def text(figures: dict[str, Any]) -> str:
    """The figures as text for a terminal."""
    load = Load(**figures["load"])
    versions = {
        s["contender"]: s["turns"][0]["versions"]
        for s in figures["services"]
        if s["turns"][0]["status"] == "ok"
    }
    about = (
        f"{load.clients} clients, a frame each {load.period * 1e3:g} ms; {load.workers} workers of "
        f"{load.threads} thread(s) on {len(load.cpus) or 'all'} processors; turns of "
        f"{load.seconds:g} s; {', '.join(f'{name} {v[name]}' for name, v in versions.items())}."
    )
    rows = [_texts(service, service["turns"]) for service in figures["services"]]
    return "\n".join([about, _LEGEND, _row(_HEAD), *map(_row, rows)])


def _texts(service: dict[str, Any], turns: Sequence[dict[str, Any]]) -> list[str]:
    """A service's row of the table, from these turns."""
    how = "batched" if service["batched"] else "one at a time"
    tick = f" each {service['tick'] * 1e3:g} ms" if service["tick"] else ""
    name = f"{service['contender']}, {how}{tick}"
    last = turns[-1]
    if last["status"] != "ok":
        return [name, f"{last['status']}: {last['why']}"]

    def median(key: str, part: str | None = None) -> float:
        return float(statistics.median(turn[key][part] if part else turn[key] for turn in turns))

    return [
        name,
        f"{median('latency_ms', 'p50'):.3f}",
        f"{median('latency_ms', 'p99'):.3f}",
        f"{max(turn['latency_ms']['max'] for turn in turns):.3f}",
        f"{median('call_us', 'p50'):.1f}",
        f"{median('frames_per_call'):.2f}",
        f"{median('cpu'):.3f}",
        "-" if last["memory"] is None else bytes_text(median("memory")),
        bytes_text(median("worker_peak")),
    ]


def _row(texts: Sequence[str]) -> str:
    return f"{texts[0]:<30}" + "".join(f" {text:>9}" for text in texts[1:])
