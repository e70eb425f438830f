"""Results as JSON: saved after each cell, resumed, summarised, compared. Measures nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contenders import OURS
from bench.grid import Cell
from bench.runner import Settings
from bench.stats import Estimate, estimate, paired_ratios
from tidegate import _core
from tidegate.bench import machine

FORMAT = 1

# Ratios of a peer's time to Tidegate's above this one get a remark. A peer's overhead beside the
# arithmetic is up to some 200 us per call, and Tidegate's shortest calls take one.
PLAUSIBLE_RATIO = 200
# So do ratios whose interval spans more than this factor: their median says little.
STEADY_SPAN = 5
# If the median exceeds the least sample by this factor, the calls were not all alike.
ALIKE = 3


class ResultsError(Exception):
    """A file cannot be read or resumed."""


def build_id() -> str:
    """Identifies a build of the extension: builds may have the same version."""
    assert _core.__file__ is not None
    return hashlib.sha256(Path(_core.__file__).read_bytes()).hexdigest()[:12]


class Results:
    """A run's results in a file, which is rewritten after every cell.

    The file holds an object:
        format: 1.
        machine: `tidegate.bench.machine()` and `build`, which identifies the build of tidegate.
        settings: the run's suite and its `bench.runner.Settings`.
        versions: contender -> the versions that it reported.
        cells: a cell's id -> its record:
            cell: the arguments of `bench.grid.Cell`.
            limits: flops; fma_rate, read_rate, sgemm_rate per second, the best of the readings
                among the rounds; thread_bytes, the working set of read_rate; limit_ns, the least
                time that the call can take.
            contenders: name -> status (ok, missing, lacks, wrong, failed), why; ns, the samples,
                one per round; calls, the number of calls in the last; error against the reference;
                peak_bytes of memory until the end of the first call, call_bytes in the second;
                quiet_ms, how long the others waited after its turns.
            load: the system's load average before; seconds: the duration of the measurement.
            summary: the result of `summarize`.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path = path
        self.data: dict[str, Any] = {
            "format": FORMAT,
            "machine": machine() | {"build": build_id()},
            "settings": settings,
            "versions": {},
            "cells": {},
        }

    def resume(self) -> None:
        """Loads the file's results, if it exists.

        Raises:
            ResultsError: they are from another machine, build or settings.
        """
        if self._path is None or not self._path.exists():
            return
        old = load(self._path)
        for what, keys in (
            ("machine", ("cpu", "cpus", "isa", "build", "versions")),
            ("settings", tuple(self.data["settings"])),
        ):
            for key in keys:
                before, now = old[what].get(key), self.data[what][key]
                if before != now:
                    raise ResultsError(
                        f"{self._path}: its {key} is {before}, now it is {now}: "
                        "give another --out, or --fresh to measure anew"
                    )
        self.data = old

    def has(self, cell: Cell) -> bool:
        """Whether the cell has been measured."""
        return cell.id in self.data["cells"]

    def add(self, cell: Cell, record: dict[str, Any], versions: dict[str, Any]) -> None:
        """Adds a cell's record and saves the file.

        Raises:
            ResultsError: a contender's version has changed since the file was begun.
        """
        for name, version in versions.items():
            before = self.data["versions"].setdefault(name, version)
            if before != version:
                raise ResultsError(f"{self._path}: {name} was {before}, now it is {version}")
        self.data["cells"][cell.id] = record | {"summary": summarize(record).as_dict()}
        if self._path is not None:
            unfinished = self._path.with_name(self._path.name + ".part")
            unfinished.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
            unfinished.replace(self._path)


def run_settings(suite: str, settings: Settings) -> dict[str, Any]:
    """A run's settings as a file stores them."""
    return json.loads(json.dumps({"suite": suite, **dataclasses.asdict(settings)}))  # type: ignore[no-any-return]


def load(path: Path) -> dict[str, Any]:
    """A file's results.

    Raises:
        ResultsError: the file has none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ResultsError(f"{path}: holds no results of format {FORMAT}")
    return data


# ---- Summaries


@dataclass(frozen=True)
class Summary:
    """The summary of a cell.

    Attributes:
        cell: the cell.
        ours: nanoseconds of Tidegate's call; None if it has no time.
        reached: the fraction of the machine's limit that is reached.
        peers: peer -> its time over Tidegate's, in the same rounds.
        best: the peer with the least median ratio; None if there is none.
        absent: contender -> its status, for those without a time.
        memory: contender -> peak bytes.
        remarks: why a figure is implausible, with the likely cause: by peer, for its ratio; by
            "limit", for the fraction reached.
        errors: contender -> its largest error, relative to an array's largest element.
    """

    cell: Cell
    ours: Estimate | None
    reached: float | None
    peers: dict[str, Estimate]
    best: str | None
    absent: dict[str, str]
    memory: dict[str, int]
    remarks: dict[str, str]
    errors: dict[str, float]

    @property
    def ratio(self) -> Estimate | None:
        """The best peer's ratio."""
        return None if self.best is None else self.peers[self.best]

    @property
    def behind(self) -> bool:
        """Whether the best peer is faster, beyond doubt or by more than 3 %."""
        ratio = self.ratio
        return ratio is not None and (ratio.high < 1 or ratio.median < 0.97)

    def as_dict(self) -> dict[str, Any]:
        """The summary, for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["cell"]
        fields["ours"] = self.ours and dataclasses.asdict(self.ours)
        fields["peers"] = {name: dataclasses.asdict(ratio) for name, ratio in self.peers.items()}
        return fields


def summarize(record: dict[str, Any]) -> Summary:
    """The summary of a cell's record."""
    entries = record["contenders"]
    times = {name: entry["ns"] for name, entry in entries.items() if entry["status"] == "ok"}
    own_times = times.get(OURS)
    peers = {
        name: estimate(paired_ratios(ns, own_times))
        for name, ns in times.items()
        if name != OURS and own_times is not None
    }
    own_estimate = None if own_times is None else estimate(own_times)
    reached = None if own_estimate is None else record["limits"]["limit_ns"] / own_estimate.median
    remarks = {
        name: why
        for name, ratio in peers.items()
        if (why := _implausible(ratio, entries[name], entries[OURS])) is not None
    }
    if reached is not None and reached > 1:
        remarks["limit"] = "above 100 %: the limit was measured while the machine was slower"
    return Summary(
        cell=Cell(**record["cell"]),
        ours=own_estimate,
        reached=reached,
        peers=peers,
        best=min(peers, key=lambda name: peers[name].median, default=None),
        remarks=remarks,
        absent={n: entry["status"] for n, entry in entries.items() if entry["status"] != "ok"},
        memory={n: entry["peak_bytes"] for n, entry in entries.items() if "peak_bytes" in entry},
        errors={n: entry["error"] for n, entry in entries.items() if "error" in entry},
    )


def _implausible(ratio: Estimate, peer: dict[str, Any], own: dict[str, Any]) -> str | None:
    """Why the ratio of a peer's time to Tidegate's is implausible; None if it is plausible."""
    if ratio.median <= PLAUSIBLE_RATIO and ratio.high <= STEADY_SPAN * ratio.low:
        return None
    causes = []
    for whose, entry in (("its", peer), ("Tidegate's", own)):
        samples = sorted(entry["ns"])
        if samples[len(samples) // 2] > ALIKE * samples[0]:
            causes.append(
                f"{whose} samples range from {samples[0]:.0f} to {samples[-1]:.0f} ns: threads "
                "slept or lost their processor in most of them"
            )
    if not causes and ratio.median > PLAUSIBLE_RATIO:
        causes.append(
            "its samples agree, so it is as slow in every call: threads that wait for each other "
            "on too few processors, or a path without kernels of its own"
        )
    return "; ".join(causes) or "rounds differ"


def summaries(data: dict[str, Any]) -> list[Summary]:
    """The summaries of all cells of a file."""
    return [summarize(record) for record in data["cells"].values()]


# ---- Comparison


@dataclass(frozen=True)
class Change:
    """How a cell's time has changed.

    Attributes:
        cell: the cell.
        time: new time over old time.
        relative: the same ratio with each time divided by the limit measured along with it, which
            removes most of a change of the machine's speed.
        certain: whether the intervals of these two relative times are disjoint.
    """

    cell: Cell
    time: float
    relative: float
    certain: bool


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Tidegate's changes in the cells that both files have, the worst first."""
    changes = []
    for name in old["cells"].keys() & new["cells"].keys():
        sides = []
        for data in (old, new):
            record = data["cells"][name]
            own = summarize(record).ours
            if own is not None:
                sides.append((own, record["limits"]["limit_ns"]))
        if len(sides) < 2:
            continue
        (before, limit_before), (after, limit_after) = sides
        drift = limit_before / limit_after
        changes.append(
            Change(
                cell=Cell(**new["cells"][name]["cell"]),
                time=after.median / before.median,
                relative=after.median / before.median * drift,
                certain=after.low * drift > before.high or after.high * drift < before.low,
            )
        )
    return sorted(changes, key=lambda change: -change.relative)
