"""Shared by the commands: types of their arguments, and a progress bar."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path


def writable(path: Path) -> bool:
    """Whether a file can be created or overwritten at `path`."""
    if path.exists():
        return path.is_file() and os.access(path, os.W_OK)
    return path.parent.is_dir() and os.access(path.parent, os.W_OK)


def at_least(low: int) -> Callable[[str], int]:
    """An argument type: an integer of at least `low`."""

    def integer(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"got {text}, wanted at least {low}")
        return int(text)

    return integer


def positive(text: str) -> float:
    """An argument type: a finite number above 0."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, wanted a number above 0")
    return float(text)


def show_progress(done: float, text: str) -> None:
    """Draws a progress bar over the last one on standard error, if that is a terminal."""
    if sys.stderr.isatty():
        bar = "#" * int(40 * done)
        print(f"\r[{bar:40}] {done:4.0%} {text}\x1b[K", end="", file=sys.stderr, flush=True)


def clear_progress() -> None:
    """Erases the progress bar."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
