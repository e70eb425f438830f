"""Progress of a run: rich's bar if it is installed and the output is a terminal, else lines."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """Shows the progress of a run. `with Progress(total) as progress:`.

    Nothing is drawn between calls: a redrawing thread would disturb the measurements.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._bar: Any = None
        self._task: Any = None
        if sys.stdout.isatty():
            try:
                from rich import progress
            except ImportError:
                return
            self._bar = progress.Progress(
                progress.TextColumn("{task.completed}/{task.total}"),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[left]}  {task.description}"),
                auto_refresh=False,
            )
            self._task = self._bar.add_task("", total=total, left="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, text: str, seconds_left: float) -> None:
        """Shows the next measurement, and the time left."""
        left = (
            f"{seconds_left / 60:.0f} min left"
            if seconds_left > 90
            else f"{seconds_left:.0f} s left"
        )
        if self._bar is None:
            print(f"[{self._done + 1}/{self._total}, {left}] {text} ...", flush=True)
        else:
            self._bar.update(self._task, description=text, left=left)
            self._bar.refresh()

    def tell(self, text: str) -> None:
        """Prints a permanent line."""
        if self._bar is None:
            print(f"  {text}", flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def finish_one(self) -> None:
        """Marks the current measurement as done."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
            self._bar.refresh()
