"""A pre-forking service of live streams, and the load on it; started by bench/service.py.

    python -m bench.server JOB

One process loads the network and forks the workers; where the library cannot be forked once it is
imported, each worker loads it. The clients are simulated in the worker: each sends a frame every
period, at its own phase, whether or not earlier frames have been answered. A frame's latency counts
from the moment when it was due, so that it includes waiting behind others.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bench.contenders import OpenClients, Step, make_contender
from bench.grid import Cell
from bench.problem import Problem, make_problem
from bench.runner import TOLERANCE, largest_error
from bench.worker import Memory

# The number of different frames of a client, which it sends again and again.
FRAMES = 8
# Importing these creates threads, and only the calling thread survives a fork.
_LOADED_BY_EACH_WORKER = ("onnxruntime",)
_STATUS = {ImportError: "missing", NotImplementedError: "lacks"}


@dataclass(frozen=True)
class Load:
    """The load on each contender, and its resources.

    Attributes:
        clients: the number of clients of all workers.
        workers: the number of worker processes.
        threads: the number of threads of each worker.
        cpus: the processors that all of them may run on; empty for any.
        period: seconds between a client's frames.
        seconds: how long the clients send.
    """

    clients: int
    workers: int
    threads: int
    cpus: list[int]
    period: float
    seconds: float


@dataclass(frozen=True)
class Job:
    """A turn of one contender.

    Attributes:
        contender: the contender's name.
        batched: whether all clients that have a frame ready take the step in one call.
        tick: seconds; frames wait for the next multiple of it. 0: they do not wait.
        seed: the seed of the clients' phases.
        wanted: a file with the correct outputs of the first FRAMES frames, (FRAMES, clients, H).
    """

    load: Load
    contender: str
    batched: bool
    tick: float
    seed: int
    wanted: str


def service_problem(clients: int) -> Problem:
    """A network for voice activity detection, the clients' frames, and zero states."""
    problem = make_problem(Cell("service", "lstm", 128, 128, clients, FRAMES))
    h_0, c_0 = (np.zeros_like(member) for member in problem.state)
    return replace(problem, h_0=h_0, c_0=c_0)


# ---- A worker


@dataclass(frozen=True)
class Report:
    """The measurements of a worker.

    Attributes:
        latencies: seconds from when a frame was due until its output was ready.
        calls: seconds of each call, including gathering its frames.
        cpu: CPU seconds of the load.
        seconds: the duration of the load, until its last frame was done.
        peak: bytes, the largest resident memory.
    """

    latencies: Any
    calls: Any
    cpu: float
    seconds: float
    peak: int


def check(step: Step, x: Any, wanted: Any, rng: np.random.Generator, batched: bool) -> float:
    """The largest error of clients served in random groups, relative to the largest element.

    Args:
        step: the step of clients whose states are zero.
        x: (T, n, I). wanted: (T, n, H).
        rng: chooses the groups.
        batched: whether a group may have more than one client.
    """
    y = np.empty(wanted.shape, x.dtype)
    for t in range(len(x)):
        waiting = rng.permutation(x.shape[1])
        while waiting.size:
            rows, waiting = np.split(waiting, [rng.integers(1, waiting.size + 1) if batched else 1])
            y[t, rows] = step(rows, x[t, rows])
    return largest_error({"y": y}, {"y": wanted})[0]


def run_load(step: Step, x: Any, job: Job, phases: Any, start: float) -> Report:
    """Serves clients until the load is over.

    Args:
        step: the clients' step.
        x: (T, n, I), their frames, which they send again and again.
        phases: (n,) seconds below the period, ascending: when each client's first frame is due.
        start: the start time on the clock `time.perf_counter`.
    """
    period = job.load.period
    rounds = max(1, round(job.load.seconds / period))
    due = (phases + period * np.arange(rounds)[:, np.newaxis]).ravel().tolist()
    clients = np.tile(np.arange(len(phases)), rounds)
    frames = np.repeat(np.arange(rounds) % len(x), len(phases))
    # This many consecutive frames belong to different clients.
    most = len(phases) if job.batched else 1
    done, calls = np.empty(len(due)), []
    clock = time.perf_counter
    cpu = -time.process_time()
    first = 0
    while first < len(due):
        at = math.ceil(due[first] / job.tick) * job.tick if job.tick else due[first]
        if (wait := start + at - clock()) > 0:
            time.sleep(wait)
        begin = clock()
        end = bisect.bisect_right(due, begin - start, first + 1, min(first + most, len(due)))
        step(clients[first:end], x[frames[first:end], clients[first:end]])
        now = clock()
        calls.append(now - begin)
        done[first:end] = now - start
        first = end
    cpu += time.process_time()
    return Report(done - due, np.array(calls), cpu, float(done[-1]), Memory.highest())


_Loaded = tuple[dict[str, str], OpenClients]


def _load(job: Job) -> _Loaded:
    """The contender's versions, and its network."""
    contender = make_contender(job.contender, job.load.threads)
    return contender.versions(), contender.load(service_problem(job.load.clients))


def _work(job: Job, number: int, driver: Connection, loaded: _Loaded | None) -> None:
    """Worker `number`: opens its clients, sends the check's error, and serves them when told to."""
    try:
        load = job.load
        problem = service_problem(load.clients)
        versions, open_clients = loaded or _load(job)
        x = np.ascontiguousarray(problem.x[:, number :: load.workers])
        wanted = np.load(job.wanted)[:, number :: load.workers]
        rng = np.random.default_rng([job.seed, number])
        phases = np.sort(rng.uniform(0, load.period, x.shape[1]))
        step = open_clients(x.shape[1], job.batched)
        driver.send((check(step, x, wanted, rng, job.batched), versions))
        start = driver.recv()
        driver.send(run_load(step, x, job, phases, start))
        driver.recv()  # blocks until the parent has read the memory and ends the process
    except Exception as error:
        driver.send(_error_status(error))


# ---- The parent of the workers


def serve(job: Job) -> dict[str, Any]:
    """Runs a job; returns its figures, for JSON.

    Returns:
        status, and why if that is not ok; else versions, the check's error, latency_ms and call_us
        (p50, p99, max), frames_per_call, cpu (CPU seconds of all workers per second), and in bytes
        worker_peak (the largest resident memory of a worker) and memory (of all processes, when the
        last frame is done, with shared pages counted once; None if the system does not report it).
    """
    loaded = None
    if job.contender not in _LOADED_BY_EACH_WORKER:
        try:
            loaded = _load(job)
        except Exception as error:
            return _error_status(error)
    context = multiprocessing.get_context("fork")
    pipes, pids = [], [os.getpid()]
    for number in range(job.load.workers):
        pipe, worker_pipe = context.Pipe()
        process = context.Process(
            target=_work, args=(job, number, worker_pipe, loaded), daemon=True
        )
        process.start()
        worker_pipe.close()
        pipes.append(pipe)
        pids.append(process.pid or 0)
    try:
        errors, versions = zip(*_receive(pipes))
        worst = max(errors)
        if not worst <= TOLERANCE["float32"]:
            return {"status": "wrong", "why": f"off by {worst:.1e} of the largest element"}
        start = time.perf_counter() + 0.1
        for pipe in pipes:
            pipe.send(start)
        reports = _receive(pipes)
    except _WorkerFailed as failed:
        return failed.args[0]  # type: ignore[no-any-return]
    about = {"status": "ok", "versions": versions[0], "error": worst, "memory": _memory(pids)}
    return about | _summary(reports)


class _WorkerFailed(Exception):
    """A worker could not continue; holds its status and the reason."""


def _receive(pipes: Sequence[Connection]) -> list[Any]:
    """Receives one message from each worker."""
    received = []
    for pipe in pipes:
        try:
            received.append(pipe.recv())
        except EOFError:
            raise _WorkerFailed({"status": "failed", "why": "a worker died"}) from None
        if isinstance(received[-1], dict):
            raise _WorkerFailed(received[-1])
    return received


def _error_status(error: Exception) -> dict[str, str]:
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return {"status": status, "why": str(error)}
    return {"status": "failed", "why": f"{type(error).__name__}: {error}"}


def _summary(reports: Sequence[Report]) -> dict[str, Any]:
    latencies = np.concatenate([report.latencies for report in reports])
    calls = np.concatenate([report.calls for report in reports])

    def quantiles(seconds: Any, unit: float) -> dict[str, float]:
        p50, p99, most = np.quantile(seconds, (0.5, 0.99, 1)) / unit
        return {"p50": float(p50), "p99": float(p99), "max": float(most)}

    return {
        "latency_ms": quantiles(latencies, 1e-3),
        "call_us": quantiles(calls, 1e-6),
        "frames_per_call": len(latencies) / len(calls),
        "cpu": sum(report.cpu for report in reports) / max(report.seconds for report in reports),
        "worker_peak": max(report.peak for report in reports),
    }


def _memory(pids: Sequence[int]) -> int | None:
    """Resident bytes of these processes; a page that several share is counted once."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            return None
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        assert found is not None
        total += int(found[1]) * 1024
    return total


def main(argv: Sequence[str]) -> int:
    (text,) = argv
    fields = json.loads(text)
    job = Job(load=Load(**fields.pop("load")), **fields)
    # Before the import, since libraries count the processors only once.
    if job.load.cpus:
        os.sched_setaffinity(0, job.load.cpus)
    warnings.simplefilter("ignore")
    # Redirect the libraries' output to standard error.
    with contextlib.redirect_stdout(sys.stderr):
        reply = serve(job)
    print(json.dumps(reply))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
