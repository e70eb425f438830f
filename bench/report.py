"""Results as text: a table for the terminal, short and full Markdown, and missed targets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.contenders import MODULES, PEERS
from bench.results import Change, Summary, summaries
from bench.stats import Estimate, geometric_mean

# The targets: geometric means of the best peer's time over Tidegate's, and fractions of the limit.
MEAN_TARGETS = {False: 2.0, True: 1.8}
BATCH_TARGETS = {False: {128: 0.82, 256: 0.88}, True: {128: 0.75, 256: 0.82}}
SEQUENCE_TARGET = 0.85


def time_text(ns: float) -> str:
    """A time with three digits and a unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def bytes_text(size: float) -> str:
    """A size in MB."""
    return f"{size / 1e6:.1f} MB"


def ratio_text(ratio: Estimate | None) -> str:
    """A ratio's median and interval."""
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def cell_line(summary: Summary) -> str:
    """A cell's results in one line."""
    cell = summary.cell
    if summary.ours is None:
        return f"{cell.id}: {', '.join(f'{n} {why}' for n, why in summary.absent.items())}"
    best = f", {summary.best} x {ratio_text(summary.ratio)}" if summary.best else ""
    behind = "  BEHIND" if summary.behind else ""
    doubts = f"  DOUBTFUL: {', '.join(summary.remarks)}" if summary.remarks else ""
    return (
        f"{cell.id}: {time_text(summary.ours.median)}, {summary.reached:.0%} of limit"
        f"{best}{behind}{doubts}"
    )


def _work(training: bool) -> str:
    return "fwd+bwd" if training else "inference"


def _network(summary: Summary) -> str:
    cell = summary.cell
    return cell.network + ("" if cell.arithmetic == "float32" else f" {cell.arithmetic}")


def _peer_text(summary: Summary, name: str) -> str:
    if name in summary.peers:
        return f"{summary.peers[name].median:.2f}" + _mark(summary, name)
    return summary.absent.get(name, "-")


def _mark(summary: Summary, name: str) -> str:
    """A question mark for a figure with a remark."""
    return "?" if name in summary.remarks else ""


def _reached_text(summary: Summary) -> str:
    if summary.reached is None:
        return "-"
    return f"{summary.reached:.0%}" + _mark(summary, "limit")


def _best_text(summary: Summary) -> str:
    mark = "" if summary.best is None else _mark(summary, summary.best)
    return ratio_text(summary.ratio) + mark + (" BEHIND" if summary.behind else "")


def _plausible_ratios(items: Iterable[Summary]) -> list[float]:
    """The best peers' ratios, except those with a remark."""
    return [s.ratio.median for s in items if s.ratio and s.best not in s.remarks]


def _memory_text(summary: Summary) -> str:
    """Tidegate's memory, and the least of the peers'."""
    own = summary.memory.get("tidegate")
    peers = [size for name, size in summary.memory.items() if name in summary.peers]
    return " / ".join(bytes_text(size) if size else "-" for size in (own, min(peers, default=0)))


def _errors_text(summary: Summary) -> str:
    """In low precision, Tidegate's error, and the best peer's."""
    if not summary.cell.precision:
        return "-"
    names = ("tidegate", summary.best or "")
    return " / ".join(f"{summary.errors[n]:.1e}" if n in summary.errors else "-" for n in names)


_Column = tuple[str, Callable[[Summary], str]]


def _columns() -> list[_Column]:
    def peer_column(name: str) -> _Column:
        return name, lambda summary: _peer_text(summary, name)

    return [
        ("call", _network),
        (
            "Tidegate",
            lambda s: time_text(s.ours.median) if s.ours else s.absent.get("tidegate", "-"),
        ),
        ("of limit", _reached_text),
        *(peer_column(name) for name in PEERS),
        ("best peer's time / Tidegate's", _best_text),
        ("memory, Tidegate / least", _memory_text),
        ("error, Tidegate / best peer", _errors_text),
    ]


def _groups(items: Sequence[Summary]) -> Iterable[tuple[str, list[Summary]]]:
    """Groups cells by threads, work and regime, in the order of the grid."""
    keys: dict[tuple[int, bool, str], list[Summary]] = {}
    for item in items:
        cell = item.cell
        keys.setdefault((cell.threads, cell.training, cell.regime), []).append(item)
    for (threads, training, regime), group in sorted(keys.items(), key=lambda kv: kv[0][:2]):
        count = "1 thread" if threads == 1 else f"{threads} threads"
        yield f"{regime}, {_work(training)}, {count}", group


def about(data: dict[str, Any]) -> str:
    """Machine, versions and date in one line."""
    machine = data["machine"]
    versions = ", ".join(
        f"{name} {version.get(name, '?')}" for name, version in data["versions"].items()
    )
    return (
        f"{machine['cpu']}, {machine['cpus']} processors, {machine['isa']}; {versions}; "
        f"Python {machine['versions']['python']}, {machine['versions']['compiler']}; "
        f"{machine['date']}"
    )


def table(data: dict[str, Any]) -> str:
    """The whole grid as text for a terminal."""
    columns = _columns()
    lines = [about(data), "Peers: their time divided by Tidegate's, medians of paired rounds.", ""]
    for title, group in _groups(summaries(data)):
        rows = [[name for name, _ in columns]]
        rows += [[text(summary) for _, text in columns] for summary in group]
        widths = [max(len(row[k]) for row in rows) for k in range(len(columns))]
        lines.append(title)
        for row in rows:
            cells = [f"{row[0]:<{widths[0]}}"]
            cells += [f"{text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  " + "  ".join(cells).rstrip())
        lines.append("")
    return "\n".join([*lines, *verdict(data)])


def full_markdown(data: dict[str, Any]) -> str:
    """The whole grid as Markdown."""
    columns = _columns()
    lines = [
        f"{about(data)}.",
        "Peers: their time divided by Tidegate's, medians of paired rounds.",
        "",
    ]
    for title, group in _groups(summaries(data)):
        lines += [f"**{title}**", "", _row(name for name, _ in columns)]
        lines.append(_row(["---"] + ["---:"] * (len(columns) - 1)))
        lines += [_row(text(summary) for _, text in columns) for summary in group]
        lines.append("")
    return "\n".join([*lines, *(f"- {line}" for line in verdict(data)), ""])


def _row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def short_markdown(data: dict[str, Any]) -> str:
    """A table for a README: geometric means of ratios and ranges of the limit, by regime."""
    items = summaries(data)
    counts = sorted({item.cell.threads for item in items})
    names = ["1 thread" if count == 1 else f"{count} threads" for count in counts]
    head = ["calls", "", *(f"best peer's time / Tidegate's, {name}" for name in names)]
    head += [f"of the limit, {name}" for name in names]
    lines = [_row(head), _row(["---", "---"] + ["---:"] * (len(head) - 2))]
    rows: dict[tuple[str, str], list[Summary]] = {}
    for regime in (None, "**all**"):
        for item in sorted(items, key=lambda item: item.cell.training):
            cell = item.cell
            work = ", ".join(filter(None, (_work(cell.training), cell.precision)))
            rows.setdefault((regime or cell.regime, work), []).append(item)
    lines += [_short_row(*calls, group, counts) for calls, group in rows.items()]
    legend = (
        f"{len(items)} cells; {about(data)}. Ratios: geometric mean (least, greatest); above 1 "
        "Tidegate is faster. Limit: median (least, greatest)."
    )
    left_out = sum(item.best in item.remarks for item in items)
    if left_out:
        legend += f" Left out: {left_out} ratios that are implausible."
    return "\n".join([*lines, "", legend, ""])


def _short_row(regime: str, work: str, group: list[Summary], counts: list[int]) -> str:
    ratios, limits = [], []
    for count in counts:
        own = [item for item in group if item.cell.threads == count]
        best = _plausible_ratios(own)
        reached = [item.reached for item in own if item.reached]
        ratios.append(
            f"{geometric_mean(best):.2f} ({min(best):.2f}, {max(best):.2f})" if best else "-"
        )
        limits.append(
            f"{statistics.median(reached):.0%} ({min(reached):.0%}, {max(reached):.0%})"
            if reached
            else "-"
        )
    return _row([regime, work, *ratios, *limits])


def verdict(data: dict[str, Any]) -> list[str]:
    """How the results compare with the targets, and each cell that misses its target."""
    items = summaries(data)
    lines = []
    for training, wanted in MEAN_TARGETS.items():
        ratios = _plausible_ratios(s for s in items if s.cell.training == training)
        mean = geometric_mean(ratios)
        if not math.isnan(mean):
            lines.append(
                f"{_work(training)}: geometric mean of best peer's time / Tidegate's {mean:.2f} "
                f"over {len(ratios)} cells (wanted: {wanted})"
            )
    behind = [item for item in items if item.behind]
    lines.append(f"cells behind a peer: {len(behind)}")
    lines += [f"  {item.cell.id}: {item.best} {ratio_text(item.ratio)}" for item in behind]
    short = [(item, part) for item in items if (part := _limit_target(item)) is not None]
    missed = [(item, part) for item, part in short if (item.reached or 0) < part]
    lines.append(f"cells below their part of the limit: {len(missed)} of {len(short)}")
    lines += [f"  {item.cell.id}: {item.reached:.0%} (wanted: {part:.0%})" for item, part in missed]
    doubts = [
        f"  {item.cell.id}: {_doubted(item, name)}: {why}"
        for item in items
        for name, why in item.remarks.items()
    ]
    if doubts:
        lines.append(f"implausible figures, marked with ?, not in the means: {len(doubts)}")
        lines += doubts
    wrong = [
        f"{name} in {item.cell.id}"
        for item in items
        for name, status in item.absent.items()
        if status in ("wrong", "failed")
    ]
    if wrong:
        lines.append(f"wrong or failed: {len(wrong)}")
        lines += [f"  {text}" for text in wrong]
    waits = _waits(data)
    if waits:
        lines.append(f"ms until quiet after a turn, medians: {waits}")
    missing = {
        name for item in items for name, status in item.absent.items() if status == "missing"
    }
    if missing:
        lines.append(f"not installed: {', '.join(name for name in MODULES if name in missing)}")
    return lines


def _doubted(item: Summary, name: str) -> str:
    """The figure that a remark refers to."""
    if name == "limit":
        return f"{item.reached:.0%} of the limit"
    return f"{name} {ratio_text(item.peers[name])}"


def _waits(data: dict[str, Any]) -> str:
    """How long the others had to wait for each contender, in ms."""
    waits: dict[str, list[float]] = {}
    for record in data["cells"].values():
        for name, entry in record["contenders"].items():
            waits.setdefault(name, []).extend(entry.get("quiet_ms", []))
    return ", ".join(f"{name} {statistics.median(ms):.1f}" for name, ms in waits.items() if ms)


def _limit_target(item: Summary) -> float | None:
    """The target fraction of the limit for the cell, if it has one."""
    cell = item.cell
    if cell.threads > 1 or item.ours is None:
        return None
    if cell.regime == "batch":
        return BATCH_TARGETS[cell.training][128 if cell.hidden_size < 256 else 256]
    if cell.regime == "sequence" and cell.hidden_size >= 256 and not cell.training:
        return SEQUENCE_TARGET
    return None


def comparison(changes: Sequence[Change], threshold: float) -> str:
    """The cells that got slower or faster by more than `threshold`, as text for a terminal."""
    slower = [c for c in changes if c.certain and c.relative > 1 + threshold]
    faster = [c for c in reversed(changes) if c.certain and c.relative < 1 / (1 + threshold)]
    lines = [f"{len(changes)} cells in both; times new / old, relative to the measured limits:"]
    for title, group in (("slower", slower), ("faster", faster)):
        lines.append(f"{title} by more than {threshold:.0%}: {len(group)}")
        lines += [f"  {c.relative:.2f} (absolute {c.time:.2f})  {c.cell.id}" for c in group]
    if changes:
        lines.append(f"geometric mean {geometric_mean(c.relative for c in changes):.3f}")
    return "\n".join(lines)
