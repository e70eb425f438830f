"""A worker process: one contender, which answers the requests of the driver (bench/processes.py).

    python -m bench.worker NAME --threads N [--cpus 0,1]

Requests and replies are lines of JSON, with a reply to each request. Once its library is imported,
the worker forks a child for every cell, so that each has a fresh process without repeating the
import; the child answers the requests, and the parent waits for it to end. A library that has made
threads by then cannot be forked: its worker serves one cell and ends.

Nothing runs between requests: the process is blocked in a read.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import re
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import tidegate
from bench.contenders import Contender, make_contender
from bench.grid import Cell
from bench.problem import make_problem
from bench.sampling import Sampler
from tidegate.bench import product_rate, read_rate

# The name of the worker that measures the machine's limits and has no contender.
LIMITS = "limits"
# The size of NumPy's matrix product, large enough for its best rate.
SGEMM_SIZE = 1024


class Channel:
    """The connection to the driver. The library's output goes to standard error instead."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._rest = b""

    def read(self) -> dict[str, Any] | None:
        """The next request; None if the driver has ended."""
        while b"\n" not in self._rest:
            read = os.read(0, 1 << 16)
            if not read:
                return None
            self._rest += read
        line, self._rest = self._rest.split(b"\n", 1)
        request: dict[str, Any] = json.loads(line)
        return request

    def reply(self, **fields: Any) -> None:
        """Sends a reply."""
        data = json.dumps(fields).encode() + b"\n"
        while data:
            data = data[os.write(self._out, data) :]


class Server:
    """Serves one cell."""

    def __init__(self, contender: Contender | None, threads: int, channel: Channel) -> None:
        self._contender = contender
        self._threads = threads
        self._channel = channel
        self._sampler: Sampler

    def serve(self) -> None:
        """Answers requests until "end", or until the driver has ended."""
        self._channel.reply(pid=os.getpid())
        while (request := self._channel.read()) is not None:
            what = request.pop("do")
            if what == "end":
                self._channel.reply(ended=True)
                return
            try:
                reply = getattr(self, f"do_{what}")(**request)
            except Exception as error:
                reply = {"failed": f"{type(error).__name__}: {error}"}
            self._channel.reply(**reply)

    def do_prepare(self, cell: dict[str, Any], results: str | None) -> dict[str, Any]:
        """Prepares the cell and runs it once; saves the results in the file `results`."""
        assert self._contender is not None
        what = Cell(**cell)
        if lack := self._contender.lacks(what):
            return {"lacks": lack}
        problem = make_problem(what)
        gc.collect()
        memory = Memory()
        task = self._contender.prepare(problem)
        task.run()
        first = memory.peak()
        if results is not None:
            np.savez(results, **task.results())
        gc.collect()
        gc.freeze()
        gc.disable()
        memory.forget_peak()
        if task.change is not None:
            task.change()
        task.run()
        self._sampler = Sampler(task)
        return {"peak_bytes": first, "call_bytes": memory.peak()}

    def do_calibrate(self, sample_ns: float) -> dict[str, Any]:
        """Finds how many calls a sample of this length takes."""
        return {"ns": self._sampler.calibrate(sample_ns)}

    def do_go(self) -> dict[str, Any]:
        """Takes one sample: nanoseconds per call, and the number of calls."""
        return {"ns": self._sampler.sample(), "calls": self._sampler.calls}

    def do_run_for(self, seconds: float) -> dict[str, Any]:
        """Calls repeatedly for this time: the number of calls, and nanoseconds of each."""
        ns, calls = self._sampler.run_for(seconds)
        return {"ns": ns, "calls": calls}

    def do_limits(self, precision: str, size: int, sgemm: bool) -> dict[str, Any]:
        """The machine's current rates, per second, for all threads together."""
        kind = tidegate.fastest_bfloat16() if precision == "bfloat16" else precision
        rates = {
            "fma": product_rate(kind, self._threads),
            "read": read_rate(size, self._threads),
        }
        if sgemm:
            rates["sgemm"] = sgemm_rate()
        return rates


class Memory:
    """Peak of this process's resident memory, beyond the memory when this object was made."""

    def __init__(self) -> None:
        self.forget_peak()
        self._before = self.highest()

    def forget_peak(self) -> None:
        """Restarts the measurement at the current resident memory, if the system can (Linux)."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        """Bytes."""
        return self.highest() - self._before

    @staticmethod
    def highest() -> int:
        """The absolute peak in bytes."""
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii")
        except OSError:
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


def sgemm_rate() -> float:
    """Flops per second of NumPy's product of two large square float32 matrices: best of three."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, SGEMM_SIZE, SGEMM_SIZE), np.float32)
    out = np.empty_like(a)
    best = math.inf
    for _ in range(4):  # the first one is the warm-up
        begin = time.perf_counter()
        np.matmul(a, b, out=out)
        best = min(best, time.perf_counter() - begin)
    return 2 * SGEMM_SIZE**3 / best


def thread_count() -> int:
    """The number of threads of this process, if the system reports it."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 2


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.worker")
    parser.add_argument("name")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cpus", help="processors to run on, by number, separated by commas")
    args = parser.parse_args(argv)
    # Before the import, since libraries count the processors only once.
    if args.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in args.cpus.split(",")})
    # The driver handles interrupts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    channel = Channel()
    contender = None
    versions: dict[str, str] = {}
    if args.name != LIMITS:
        try:
            contender = make_contender(args.name, args.threads)
            versions = contender.versions()
        except ImportError as error:
            channel.reply(missing=f"{error}")
            return 0
        except Exception as error:
            channel.reply(failed=f"{type(error).__name__}: {error}")
            return 0
    forks = thread_count() == 1
    channel.reply(versions=versions, forks=forks)
    while (request := channel.read()) is not None:
        # Other requests were for a child that has died, which has been reported.
        if request["do"] == "end":
            channel.reply(ended=True)
        if request["do"] != "begin":
            continue
        if not forks:
            Server(contender, args.threads, channel).serve()
            return 0
        child = os.fork()
        if child == 0:
            Server(contender, args.threads, channel).serve()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            channel.reply(failed=f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
        elif os.WEXITSTATUS(status) != 0:
            channel.reply(failed=f"ended with exit code {os.WEXITSTATUS(status)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
