"""Memory as a function of a call's length: what training keeps, and inference beyond its output.

Each measurement runs in its own process: the peak of its resident memory in the second call, minus
the memory after the library was imported and the arrays were made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bench.grid import Cell
from bench.processes import Worker, WorkerFailed, choose_cpus

STEPS = (100, 200, 400)
_CELLS = [
    Cell("memory", kind, 256, 256, 16, STEPS[0], training=training)
    for training in (True, False)
    for kind in ("lstm", "gru", "gru-before")
]


def measure(
    contenders: Sequence[str], timeout: float, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Peaks by number of steps, and bytes per step, row and unit; for JSON."""
    figures = []
    cpus = choose_cpus(1)
    workers = {name: Worker(name, 1, cpus, timeout) for name in contenders}
    try:
        for cell in _CELLS:
            for name, worker in workers.items():
                figures.append({"contender": name, "cell": cell.as_dict()} | _peaks(worker, cell))
                tell(line(figures[-1]))
    finally:
        for worker in workers.values():
            worker.close()
    return figures


def _peaks(worker: Worker, cell: Cell) -> dict[str, Any]:
    peaks = {}
    for steps in STEPS:
        try:
            worker.begin()
            what = replace(cell, steps=steps)
            reply = worker.ask("prepare", cell=what.as_dict(), results=None)
        except WorkerFailed as error:
            return {"absent": str(error)}
        finally:
            worker.end()
        if "lacks" in reply:
            return {"absent": f"lacks {reply['lacks']}"}
        peaks[steps] = reply["call_bytes"]
    # Between the longest two, where memory that does not depend on the length cancels out.
    first, last = STEPS[-2:]
    slope = (peaks[last] - peaks[first]) / (last - first)
    return {"peak_bytes": peaks, "bytes_per_unit": slope / (cell.batch * cell.hidden_size)}


def line(figures: dict[str, Any]) -> str:
    """A line for a terminal. y alone takes 4 bytes per step, row and unit, as does dx if I = H."""
    cell = Cell(**figures["cell"])
    what = f"{cell.kind:11}{'fwd+bwd' if cell.training else 'inference':10}"
    what += f"{figures['contender']:12}"
    if "absent" in figures:
        return f"{what}{figures['absent']}"
    peaks = "  ".join(f"T{t} {peak / 1e6:6.1f} MB" for t, peak in figures["peak_bytes"].items())
    return f"{what}{peaks}  {figures['bytes_per_unit']:5.1f} bytes a step, row and unit"
