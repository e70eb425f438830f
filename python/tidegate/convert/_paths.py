"""Paths that the converters are given: what may be opened."""

from __future__ import annotations

import os
import pathlib
import stat

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def check_regular_file(name: str, path: str | os.PathLike[str]) -> None:
    """Raises unless `path` is a regular file, or a link to one.

    Reading a FIFO or a device may wait, or go on, for ever. The file is not opened.

    Args:
        name: the argument or the entry that the path came from, for the message.
        path: the path to check.

    Raises:
        OSError: the path does not exist or cannot be inspected.
        ValueError: it is something else, which the message names.
    """
    mode = pathlib.Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise ValueError(f"{name}: {os.fspath(path)!r} is {kind}, wanted a regular file")
