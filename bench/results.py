"""Results as JSON: kept as they come, resumed, summed up, compared. No measuring, no printing."""

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

# A peer's time over ours is remarked on above this ratio. What a peer does beside the arithmetic
# takes up to some 200 us a call, and our shortest calls take one: more comes of neither.
PLAUSIBLE_RATIO = 200
# And so is a ratio whose interval spans more than this factor: its median says little.
STEADY_SPAN = 5
# A median that exceeds the least sample by this factor comes from calls that were not all alike.
ALIKE = 3


class ResultsError(Exception):
    """A file cannot be read, or not be gone on with."""


def build_id() -> str:
    """Tells builds of the extension apart, whose version may be the same."""
    assert _core.__file__ is not None
    return hashlib.sha256(Path(_core.__file__).read_bytes()).hexdigest()[:12]


class Results:
    """A run's results in a file, written anew after every cell.

    The file holds an object:
        format: 1.
        machine: `tidegate.bench.machine()` and `build`, which tells builds of tidegate apart.
        settings: of the run: suite, and those of `bench.runner.Settings`.
        versions: contender -> what it said of itself.
        cells: a cell's id -> its record:
            cell: the arguments of `bench.grid.Cell`.
            limits: flops; fma_rate, read_rate, sgemm_rate per second, the best of the readings
                among the rounds; thread_bytes, the working set of read_rate; limit_ns, the least
                that the call can take.
            contenders: name -> status (ok, missing, lacks, wrong, failed), why; ns, the samples,
                one a round; calls, how many the last has; error against the reference; peak_bytes
                of memory until the first call's end, call_bytes likewise in the second; quiet_ms,
                how long the others waited after its turns.
            load: the system's load average before; seconds: what measuring it took.
            summary: of `summarize`.
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
        """Takes up what the file holds, if there is one.

        Raises:
            ResultsError: that is of another machine, build or settings.
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
        """Keeps a cell's record.

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
    """What a file keeps of a run's settings."""
    return json.loads(json.dumps({"suite": suite, **dataclasses.asdict(settings)}))  # type: ignore[no-any-return]


def load(path: Path) -> dict[str, Any]:
    """A file's results.

    Raises:
        ResultsError: it holds none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ResultsError(f"{path}: holds no results of format {FORMAT}")
    return data


# ---- Summing up


@dataclass(frozen=True)
class Summary:
    """What is said of a cell.

    Attributes:
        cell: which.
        ours: nanoseconds of our call; None if we have none.
        reached: the part of the machine's limit.
        peers: peer -> its time over ours, of the same rounds.
        best: the peer with the least median ratio; None if there is none.
        absent: contender -> its status, of those that have no time.
        memory: contender -> peak bytes.
        remarks: what makes a figure implausible, and its likely cause: by peer, of its ratio; by
            "limit", of the part that is reached.
    """

    cell: Cell
    ours: Estimate | None
    reached: float | None
    peers: dict[str, Estimate]
    best: str | None
    absent: dict[str, str]
    memory: dict[str, int]
    remarks: dict[str, str]

    @property
    def ratio(self) -> Estimate | None:
        """Of the best peer."""
        return None if self.best is None else self.peers[self.best]

    @property
    def behind(self) -> bool:
        """Whether the best peer is faster, beyond doubt or by more than 3 %."""
        ratio = self.ratio
        return ratio is not None and (ratio.high < 1 or ratio.median < 0.97)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["cell"]
        fields["ours"] = self.ours and dataclasses.asdict(self.ours)
        fields["peers"] = {name: dataclasses.asdict(ratio) for name, ratio in self.peers.items()}
        return fields


def summarize(record: dict[str, Any]) -> Summary:
    """A cell's record in short."""
    entries = record["contenders"]
    times = {name: entry["ns"] for name, entry in entries.items() if entry["status"] == "ok"}
    ours = times.get(OURS)
    peers = {
        name: estimate(paired_ratios(ns, ours))
        for name, ns in times.items()
        if name != OURS and ours is not None
    }
    our_estimate = None if ours is None else estimate(ours)
    reached = None if our_estimate is None else record["limits"]["limit_ns"] / our_estimate.median
    remarks = {
        name: why
        for name, ratio in peers.items()
        if (why := _implausible(ratio, entries[name], entries[OURS])) is not None
    }
    if reached is not None and reached > 1:
        remarks["limit"] = "above 100 %: the limit was measured while the machine was slower"
    return Summary(
        cell=Cell(**record["cell"]),
        ours=our_estimate,
        reached=reached,
        peers=peers,
        best=min(peers, key=lambda name: peers[name].median, default=None),
        remarks=remarks,
        absent={n: entry["status"] for n, entry in entries.items() if entry["status"] != "ok"},
        memory={n: entry["peak_bytes"] for n, entry in entries.items() if "peak_bytes" in entry},
    )


def _implausible(ratio: Estimate, peer: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """Why a peer's time over ours cannot be taken at its word; None if it can."""
    if ratio.median <= PLAUSIBLE_RATIO and ratio.high <= STEADY_SPAN * ratio.low:
        return None
    causes = []
    for whose, entry in (("its", peer), ("our", ours)):
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
    """Of all cells of a file."""
    return [summarize(record) for record in data["cells"].values()]


# ---- Comparing


@dataclass(frozen=True)
class Change:
    """How a cell's time has changed.

    Attributes:
        cell: which.
        time: new over old.
        relative: the same, each held against the limit that was measured along with it, which takes
            out most of a change of the machine.
        certain: whether the intervals of the two, so held, have no point in common.
    """

    cell: Cell
    time: float
    relative: float
    certain: bool


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Our changes in the cells that both have, the worst first."""
    changes = []
    for name in old["cells"].keys() & new["cells"].keys():
        sides = []
        for data in (old, new):
            record = data["cells"][name]
            ours = summarize(record).ours
            if ours is not None:
                sides.append((ours, record["limits"]["limit_ns"]))
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
