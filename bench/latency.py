"""Small costs: the time of a streamed step from Python, the import time, and the installed size.

Only Tidegate, in this process; peers' steps are in the grid's "step" cells.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import tidegate as tg
from bench.contenders import OURS, make_contender
from bench.grid import Cell
from bench.problem import make_problem
from bench.processes import choose_cpus, pinned
from bench.sampling import Sampler
from bench.stats import Estimate, estimate

STEP_SIZES = (1, 16, 64, 128, 256, 512)
STEP_TARGETS_NS = {1: 400.0, 64: 2000.0}
IMPORT_TARGET_MS = 30.0
WHEEL_TARGET = 3_000_000

_IMPORT = """
import time
import numpy
begin = time.perf_counter()
import tidegate
print(time.perf_counter() - begin)
"""


def measure(rounds: int, sample_ms: float, wheel: Path | None) -> dict[str, Any]:
    """Nanoseconds of `stream.step(x, out=y)` by kind and size, and the rest; for JSON."""
    with pinned(choose_cpus(1)):
        steps = _steps(rounds, sample_ms)
        imports = [float(_python(_IMPORT)) * 1e3 for _ in range(rounds)]
    package = Path(tg.__file__).parent
    installed = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {
        "stream_step_ns": steps,
        "import_ms": vars(estimate(imports)),
        "installed_bytes": sum(path.stat().st_size for path in installed),
        "wheel_bytes": None if wheel is None else wheel.stat().st_size,
    }


def _steps(rounds: int, sample_ms: float) -> list[dict[str, Any]]:
    contender = make_contender(OURS, 1)
    samplers = {}
    for kind in ("lstm", "gru"):
        for size in STEP_SIZES:
            cell = Cell("step", kind, size, size, 1, 1)
            samplers[kind, size] = Sampler(contender.prepare(make_problem(cell)))
    samples: dict[tuple[str, int], list[float]] = {key: [] for key in samplers}
    for sampler in samplers.values():
        sampler.calibrate(sample_ms * 1e6)
    for _ in range(rounds):
        for key, sampler in samplers.items():
            samples[key].append(sampler.sample())
    return [
        {"kind": kind, "size": size, **vars(estimate(values))}
        for (kind, size), values in samples.items()
    ]


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def text(figures: dict[str, Any]) -> str:
    """The figures as text for a terminal."""
    lines = ["stream.step(x, out=y), batch 1, I = H, 1 thread: median [95 % interval]"]
    for step in figures["stream_step_ns"]:
        target = STEP_TARGETS_NS.get(step["size"])
        lines.append(
            f"  {step['kind']:5}{step['size']:>5}  {step['median'] / 1e3:8.3f} us "
            f"[{step['low'] / 1e3:.3f}, {step['high'] / 1e3:.3f}]"
            + (f"  wanted: at most {target / 1e3:g} us" if target else "")
        )
    took = Estimate(**figures["import_ms"])
    lines.append(
        f"import beyond NumPy's: {took.median:.1f} ms [{took.low:.1f}, {took.high:.1f}]  "
        f"wanted: at most {IMPORT_TARGET_MS:g} ms"
    )
    lines.append(f"installed: {figures['installed_bytes'] / 1e6:.2f} MB")
    if figures["wheel_bytes"] is not None:
        lines.append(
            f"wheel: {figures['wheel_bytes'] / 1e6:.2f} MB  "
            f"wanted: at most {WHEEL_TARGET / 1e6:g} MB"
        )
    return "\n".join(lines)
