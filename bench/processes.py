"""The driver's side of the worker processes: starts them, sends requests, waits until they idle.

Each contender has a process of its own, because thread runtimes (several OpenMPs, TBB, thread pools
that spin) disturb each other within one. They take turns; after its turn a contender must have no
running thread before the next one begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tidegate as tg
from bench.worker import LIMITS

ROOT = Path(__file__).resolve().parents[1]
# The variables by which the libraries set their number of threads.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TIDEGATE_NUM_THREADS")
# Threads of NumPy's products, which only the limits need: they would prevent forking elsewhere.
_NUMPY_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_POLL_SECONDS = 0.0002


class WorkerFailed(Exception):
    """A worker cannot continue; the message says why."""


def choose_cpus(count: int) -> list[int]:
    """Processors for `count` threads, on different cores as far as possible; [] where unknown.

    The last processors come first, since interrupts usually go to the first ones.

    Raises:
        ValueError: this process may run on fewer processors.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    if count > len(allowed):
        raise ValueError(f"threads: got {count}, wanted at most the {len(allowed)} processors")
    cores: dict[str, list[int]] = {}
    for cpu in allowed:
        try:
            path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            siblings = path.read_text(encoding="ascii").strip()
        except OSError:
            siblings = str(cpu)
        cores.setdefault(siblings, []).append(cpu)
    first_threads = [cpus[0] for cpus in cores.values()]
    others = [cpu for cpus in cores.values() for cpu in cpus[1:]]
    return (first_threads + others)[:count]


@contextlib.contextmanager
def pinned(cpus: list[int]) -> Iterator[None]:
    """Pins this process to these processors, if any; restores its affinity and threads after."""
    count = tg.get_num_threads()
    before = os.sched_getaffinity(0) if cpus else set()
    if cpus:
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        if cpus:
            os.sched_setaffinity(0, before)
        tg.set_num_threads(count)


def environment(threads: int, numpy_threads: int = 1) -> dict[str, str]:
    """A contender's environment: that of this process, with the number of threads it may use."""
    return {
        **os.environ,
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        **dict.fromkeys(_NUMPY_THREAD_VARIABLES, str(numpy_threads)),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "JAX_PLATFORMS": "cpu",
    }


class Worker:
    """A worker process of one contender with one number of threads.

    Args:
        name: the contender's name, or bench.worker.LIMITS.
        threads: the number of threads that it may use.
        cpus: the processors that it may run on; [] for any.
        timeout: seconds after which a request fails.

    Attributes:
        versions: the versions that the contender reported.
        absent: why it cannot take part at all, ("missing" or "failed", reason); None if it can.
    """

    def __init__(self, name: str, threads: int, cpus: list[int], timeout: float) -> None:
        self.name = name
        self.versions: dict[str, str] = {}
        self.absent: tuple[str, str] | None = None
        self._command = [sys.executable, "-m", "bench.worker", name, "--threads", str(threads)]
        if cpus:
            self._command += ["--cpus", ",".join(map(str, cpus))]
        self._environment = environment(threads, threads if name == LIMITS else 1)
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._pid: int | None = None
        self._stopped = False
        self._start()

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=self._environment,
        )
        self._rest = b""
        self._hello = False

    def _await_import(self) -> None:
        """Waits until the library is imported, unless that has been done."""
        if self._hello or self.absent is not None:
            return
        self._hello = True
        try:
            reply = self.receive()
        except WorkerFailed as error:
            self.absent = ("failed", str(error))
            return
        if "missing" in reply:
            self.absent = ("missing", reply["missing"])
        else:
            self.versions = reply["versions"]
            self._forks = reply["forks"]

    def begin(self) -> None:
        """Starts a fresh process for a cell.

        Raises:
            WorkerFailed: it is absent or has failed.
        """
        if self._process is None:
            self._start()
        self._await_import()
        if self.absent is not None:
            raise WorkerFailed(self.absent[1])
        self._pid = self.ask("begin")["pid"]

    def end(self) -> None:
        """Ends the cell, even after a failure."""
        if self._pid is None:
            return
        try:
            self.send("end")
            # Replies about a process that died by itself come before this one.
            while "ended" not in self._read_reply():
                pass
        except WorkerFailed:
            self.close()
            return
        self._pid = None
        if not self._forks:
            self.close()
            self._start()

    def send(self, what: str, **fields: Any) -> None:
        """Sends a request."""
        self._resume()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **fields}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerFailed(self._last_error()) from None

    def receive(self) -> dict[str, Any]:
        """Returns the reply to the last request.

        Raises:
            WorkerFailed: the contender failed, or its process ended or hangs (and is then killed).
        """
        reply = self._read_reply()
        if "failed" in reply:
            raise WorkerFailed(reply["failed"])
        return reply

    def _read_reply(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        end = time.monotonic() + self._timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([out], [], [], max(0, end - time.monotonic()))
            if not ready:
                self.close()
                raise WorkerFailed(f"no answer within {self._timeout:g} s")
            read = os.read(out, 1 << 16)
            if not read:
                words = self._last_error()
                self.close()
                raise WorkerFailed(words)
            self._rest += read
        line, self._rest = self._rest.split(b"\n", 1)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        """Sends a request and returns its reply."""
        self.send(what, **fields)
        return self.receive()

    def wait_until_quiet(self, limit: float) -> float:
        """Waits until no thread of the worker is running, and returns the seconds that this took.

        A worker that still runs after `limit` is stopped (SIGSTOP) until the next request.
        """
        if self._pid is None or not Path("/proc").is_dir():
            time.sleep(0.02)
            return 0.02
        begin = time.perf_counter()
        quiet = 0
        # Check again, since a sleeping thread may be about to be woken by another.
        while quiet < 2:
            quiet = 0 if _is_running(self._pid) else quiet + 1
            if time.perf_counter() - begin > limit:
                os.kill(self._pid, signal.SIGSTOP)
                self._stopped = True
                break
            time.sleep(_POLL_SECONDS)
        return time.perf_counter() - begin

    def _resume(self) -> None:
        """Resumes a stopped worker."""
        if self._stopped and self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGCONT)
        self._stopped = False

    def close(self) -> None:
        """Ends the process, and the process of the cell."""
        self._resume()
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._pid = None
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._errors.close()
        self._process = None

    def _last_error(self) -> str:
        """The last line that an ended process wrote to standard error, for a message."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return "its process ended" + (f": {lines[-1]}" if lines else "")


def _is_running(pid: int) -> bool:
    """Whether any of the process's threads is running or runnable."""
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            # The state follows the name, which may contain anything, up to the last parenthesis.
            state = task.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if state == "R":
            return True
    return False
