"""Checks of the paths that the converters open."""

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

    Reading a FIFO or a device may block or never end. The file is not opened here.

    Args:
        name: the argument or the entry that the path comes from, for the message.
        path: the path to check.

    Raises:
        OSError: the path does not exist or cannot be inspected.
        ValueError: it is not a regular file; the message says what it is.
    """
    mode = pathlib.Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise ValueError(f"{name}: {os.fspath(path)!r} is {kind}, wanted a regular file")
