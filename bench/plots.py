"""Plots of results (PNG), by matplotlib, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.contenders import PEERS
from bench.results import Summary, summaries

_COLOURS = dict(zip(PEERS, ("#d1495b", "#edae49", "#00798c", "#7a5195", "#66a182"), strict=False))
_MARKS = {"lstm": "o", "gru": "s", "gru-before": "^", "mgu": "v"}


def draw(data: dict[str, Any], directory: Path) -> list[Path]:
    """Draws ratios.png and limits.png in `directory`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    directory.mkdir(parents=True, exist_ok=True)
    items = summaries(data)
    paths = []
    for name, draw_panel, size in (
        ("ratios.png", _ratios, (9.0, 2.6)),
        ("limits.png", _limits, (5.0, 3.2)),
    ):
        works = sorted({item.cell.training for item in items})
        counts = sorted({item.cell.threads for item in items})
        side_by_side = name == "limits.png"
        rows, columns = (len(works), len(counts)) if side_by_side else (len(works) * len(counts), 1)
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        combinations = [(training, count) for training in works for count in counts]
        for axes, (training, count) in zip(panels, combinations, strict=True):
            own = [s for s in items if (s.cell.training, s.cell.threads) == (training, count)]
            work = "forward + backward" if training else "inference"
            threads = "1 thread" if count == 1 else f"{count} threads"
            axes.set_title(f"{work}, {threads}", fontsize=10)
            draw_panel(axes, own)
            axes.grid(axis="y", alpha=0.3)
        machine = data["machine"]
        figure.suptitle(f"{machine['cpu']}, {machine['isa']}, {machine['date'][:10]}", fontsize=8)
        paths.append(directory / name)
        figure.savefig(paths[-1], dpi=150)
    return paths


def _ratios(axes: Any, items: list[Summary]) -> None:
    """Each peer's time divided by Tidegate's, if plausible, by cell in the order of the grid.

    Cells that no peer has are left out.
    """
    items = [item for item in items if item.peers]
    for peer in PEERS:
        at = [k for k, s in enumerate(items) if peer in s.peers and peer not in s.remarks]
        ratios = [items[k].peers[peer] for k in at]
        axes.errorbar(
            at,
            [ratio.median for ratio in ratios],
            yerr=[
                [ratio.median - ratio.low for ratio in ratios],
                [ratio.high - ratio.median for ratio in ratios],
            ],
            fmt=".",
            markersize=4,
            elinewidth=0.6,
            color=_COLOURS[peer],
            label=peer,
        )
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("peer's time / Tidegate's")
    axes.legend(fontsize=7, ncols=len(PEERS), loc="upper right")
    # In the order of the grid; its few float64 cells come last.
    regimes = [i.cell.regime if i.cell.dtype == "float32" else i.cell.dtype for i in items]
    starts = [k for k, regime in enumerate(regimes) if k == 0 or regime != regimes[k - 1]]
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="grey", linewidth=0.4)
    axes.set_xticks(starts, [regimes[k] for k in starts], fontsize=7, ha="left")


def _limits(axes: Any, items: list[Summary]) -> None:
    """The fraction of the machine's limit that is reached, by size."""
    regimes = list(dict.fromkeys(item.cell.regime for item in items))
    for item in items:
        if item.reached is None:
            continue
        index = regimes.index(item.cell.regime)
        # Spread out horizontally: markers of one size would hide each other.
        axes.plot(
            item.cell.hidden_size * 1.04 ** (index - len(regimes) / 2),
            100 * item.reached,
            _MARKS[item.cell.kind],
            color=f"C{index}",
            markersize=4,
            alpha=0.7,
        )
    for index, regime in enumerate(regimes):
        axes.plot([], [], "o", color=f"C{index}", label=regime)
    for kind in dict.fromkeys(item.cell.kind for item in items):
        axes.plot([], [], _MARKS[kind], color="grey", label=kind)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(0, max(105, axes.get_ylim()[1]))
    axes.axhline(100, color="black", linewidth=0.8)
    axes.set_xlabel("hidden size")
    axes.set_ylabel("% of the limit")
    axes.legend(fontsize=6, ncols=2)
