"""Measures cells: checks the contenders, then lets them take turns. No printing, no files kept."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.grid import Cell
from bench.problem import make_problem
from bench.processes import Worker, WorkerFailed, choose_cpus
from bench.reference import solve
from bench.worker import LIMITS

# Largest error against the reference, relative to an array's largest element. bfloat16 and TF32
# exceed the float32 tolerance by far; sums in another order stay within it, over hundreds of steps.
# In low precision the errors themselves are reported, and only nonsense is thrown out: ONNX Runtime
# saturates sums in int8 on processors without VNNI, and is off by 0.3. PyTorch 2.13's gradients of
# an LSTM in bfloat16 are wrong for some H (1024, 1152, 1280, 1536, 2048), by more than their size.
TOLERANCE = {"float32": 1e-4, "float64": 1e-11, "bfloat16": 0.1, "int8": 0.5}


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        contenders: the libraries to measure, including Tidegate.
        min_rounds, max_rounds: bounds on the number of rounds.
        sample_ms: the least length of a sample, which consists of as many calls as needed.
        quiet_limit: seconds that the others wait for a contender to become quiet after its turn.
        timeout: seconds for one request to a worker, such as preparing.
    """

    contenders: tuple[str, ...]
    min_rounds: int = 7
    max_rounds: int = 25
    sample_ms: float = 2.0
    quiet_limit: float = 0.05
    timeout: float = 300.0


class Ring:
    """The workers that use one number of threads, and take turns."""

    def __init__(self, threads: int, settings: Settings) -> None:
        self.cpus = choose_cpus(threads)
        self._settings = settings
        names = (*settings.contenders, LIMITS)
        self._workers = {name: Worker(name, threads, self.cpus, settings.timeout) for name in names}

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def versions(self) -> dict[str, dict[str, str]]:
        """The versions that contenders report, of those that have begun a cell."""
        return {name: w.versions for name, w in self._workers.items() if w.versions}

    def measure(self, cell: Cell, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
        """Measures a cell for about `seconds`; returns its record, for JSON.

        Args:
            cell: the cell to measure; it has the same number of threads as the workers.
            seconds: the rounds end after this time, within the bounds of the settings.
            tell: a function that prints a warning.
        """
        begin = time.monotonic()
        record: dict[str, Any] = {"cell": cell.as_dict(), "load": _load()}
        entries = self._begin(cell)
        self._check(cell, entries, tell)
        running = [name for name, entry in entries.items() if entry["status"] == "ok"]
        try:
            if running:
                self._calibrate(running, entries)
                record["limits"] = self._rounds(cell, running, entries, begin + seconds)
        finally:
            for worker in self._workers.values():
                worker.end()
        return record | {"contenders": entries, "seconds": time.monotonic() - begin}

    # ---- Before the rounds

    def _begin(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """Starts a process for each contender, runs the cell once; returns entries with status."""
        entries: dict[str, dict[str, Any]] = {}
        self._directory = tempfile.TemporaryDirectory()
        asked = []
        for name in self._settings.contenders:
            worker = self._workers[name]
            try:
                worker.begin()
                worker.send("prepare", cell=cell.as_dict(), results=str(self._results(name)))
                asked.append(name)
                entries[name] = {}
            except WorkerFailed as error:
                status = worker.absent[0] if worker.absent else "failed"
                entries[name] = {"status": status, "why": str(error)}
        for name in asked:
            try:
                reply = self._workers[name].receive()
            except WorkerFailed as error:
                entries[name] = {"status": "failed", "why": str(error)}
                continue
            if "lacks" in reply:
                entries[name] = {"status": "lacks", "why": reply["lacks"]}
            else:
                entries[name] = {"status": "ok", **reply}
        return entries

    def _results(self, name: str) -> Path:
        return Path(self._directory.name) / f"{name}.npz"

    def _check(
        self, cell: Cell, entries: dict[str, dict[str, Any]], tell: Callable[[str], None]
    ) -> None:
        """Excludes contenders with wrong results."""
        with self._directory:
            if all(entry["status"] != "ok" for entry in entries.values()):
                return
            wanted = solve(make_problem(cell))
            for name, entry in entries.items():
                if entry["status"] != "ok":
                    continue
                with np.load(self._results(name)) as got:
                    entry["error"], where = largest_error(dict(got), wanted)
                if not entry["error"] <= TOLERANCE[cell.arithmetic]:
                    why = f"{where} is off by {entry['error']:.1e} of its largest element"
                    entry.update(status="wrong", why=why)
                    tell(f"WRONG, thrown out: {name}, {cell.id}: {why}")

    # ---- Rounds

    def _calibrate(self, running: list[str], entries: dict[str, dict[str, Any]]) -> None:
        # Preparing may have left threads running.
        for name in running:
            self._workers[name].wait_until_quiet(self._settings.quiet_limit)
        for name in list(running):
            entry = entries[name]
            reply = self._turn(name, entry, running, "calibrate", sample_ns=self._sample_ns())
            if reply is not None:
                entry.update(ns=[], quiet_ms=[])

    def _sample_ns(self) -> float:
        return self._settings.sample_ms * 1e6

    def _rounds(
        self, cell: Cell, running: list[str], entries: dict[str, dict[str, Any]], end: float
    ) -> dict[str, Any]:
        """Fills in the entries' samples; returns the machine's rates and the cell's limit."""
        work = cell.work()
        request = {
            "precision": cell.arithmetic,
            "size": work.thread_bytes(cell.threads),
        }
        readings: list[dict[str, float]] = []
        self._workers[LIMITS].begin()
        rounds = 0
        while running and (
            rounds < self._settings.min_rounds
            or (rounds < self._settings.max_rounds and time.monotonic() < end)
        ):
            for name in list(running):
                entry = entries[name]
                reply = self._turn(name, entry, running, "go")
                if reply is not None:
                    entry["ns"].append(reply["ns"])
                    entry["calls"] = reply["calls"]
            # In the first rounds, and then less often: the machine changes slowly if at all.
            if rounds & (rounds - 1) == 0:
                readings.append(self._workers[LIMITS].ask("limits", sgemm=rounds == 0, **request))
                self._workers[LIMITS].wait_until_quiet(self._settings.quiet_limit)
            rounds += 1
        # The best of the readings: disturbances, such as a lower clock, only lower a reading.
        rates = {
            name: max(r[name] for r in readings if name in r) for name in ("fma", "read", "sgemm")
        }
        limit = work.limit(rates["fma"], rates["read"])
        return {
            "flops": work.flops,
            "thread_bytes": request["size"],
            "limit_ns": limit * 1e9,
            **{f"{name}_rate": rate for name, rate in rates.items()},
        }

    def _turn(
        self, name: str, entry: dict[str, Any], running: list[str], what: str, **fields: Any
    ) -> dict[str, Any] | None:
        """One turn of one contender, until it is quiet; None if it fails."""
        worker = self._workers[name]
        try:
            reply = worker.ask(what, **fields)
        except WorkerFailed as error:
            entry.update(status="failed", why=str(error))
            running.remove(name)
            return None
        entry.setdefault("quiet_ms", []).append(
            worker.wait_until_quiet(self._settings.quiet_limit) * 1e3
        )
        return reply


def largest_error(got: dict[str, Any], wanted: dict[str, Any]) -> tuple[float, str]:
    """The largest error of all arrays, relative to each array's largest element, and its name.

    A missing array, another shape and NaN are infinite errors.
    """
    errors = {}
    for name, right in wanted.items():
        array = got.get(name)
        if array is None or array.shape != right.shape or not np.isfinite(array).all():
            errors[name] = np.inf
        else:
            largest = np.abs(right).max(initial=0) or 1
            errors[name] = float(np.abs(array - right).max(initial=0) / largest)
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


def _load() -> float | None:
    """The system's load average over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


class Budget:
    """Divides a time among cells in proportion to the time they are expected to take.

    Args:
        cells: all cells to be measured, in order.
        seconds: the time for all of them.
        contenders: the number of contenders that take turns.
    """

    def __init__(self, cells: Sequence[Cell], seconds: float, contenders: int) -> None:
        self._weights = [_expected_seconds(cell, contenders) for cell in cells]
        self._done = 0
        self._begin = time.monotonic()
        self._seconds = seconds

    def next(self) -> float:
        """The seconds that the next cell may take."""
        return max(0.0, self._left()) * self._weights[self._done] / sum(self._weights[self._done :])

    def finish_one(self) -> None:
        """Marks the next cell as measured."""
        self._done += 1

    def remaining(self) -> float:
        """An estimate of the seconds left, from those that have passed."""
        ahead = sum(self._weights[self._done :])
        passed = time.monotonic() - self._begin
        if self._done == 0:
            return self._seconds
        return passed * ahead / sum(self._weights[: self._done])

    def _left(self) -> float:
        return self._seconds - (time.monotonic() - self._begin)


# Rough figures of a machine: its flops per second, and the cost of a cell before its first round.
_FLOP_RATE = 40e9
_PREPARE_SECONDS = 3.0
_SAMPLE_SECONDS = 0.02


def _expected_seconds(cell: Cell, contenders: int) -> float:
    call = cell.work().flops / _FLOP_RATE
    rounds: float = 10 * contenders * max(_SAMPLE_SECONDS, call / cell.threads**0.5)
    return _PREPARE_SECONDS + rounds
