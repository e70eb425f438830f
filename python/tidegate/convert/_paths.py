"""Paths that the converters are given: what may be opened, and what other formats look like."""

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


_TO_ONNX = "convert it with tf2onnx (python -m tf2onnx.convert)"
_LARGEST_HEADER = 1 << 10

# First bytes of files, from an offset: what the file is, and what to do with it.
_SIGNATURES = (
    (4, b"ORTM", "a model in ONNX Runtime's .ort format: use the .onnx file it was made from"),
    (4, b"TFL3", "a TensorFlow Lite model: use the model it was made from"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file: a Keras model is read by from_keras"),
    (
        0,
        b"PK\x03\x04",
        "a zip archive: from_keras reads .keras models, from_torch files of torch.save",
    ),
    (0, b"\x80\x02", "a pickle: a file of torch.save is read by from_torch"),
    (8, b'{"', "a safetensors file: it is read by from_torch"),
    (0, b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (0, b"version https://git-lfs", "a Git LFS pointer: get the file itself with git lfs pull"),
    (0, b"<!DOCTYPE html", "an HTML page: the download went wrong"),
)


def other_format(path: pathlib.Path) -> str | None:
    """What a path holds if it is a known format other than ONNX, and what to do; else None.

    Folders, the prefixes of TensorFlow's checkpoints (which are no files themselves), and regular
    files, whose first bytes are read. The text completes a sentence: "is a SavedModel folder ...".
    """
    if path.is_dir():
        if any((path / f"saved_model.{ending}").is_file() for ending in ("pb", "pbtxt")):
            return f"a SavedModel folder of TensorFlow: {_TO_ONNX}, or load it into Keras"
        if any(path.glob("*.index")) or (path / "checkpoint").is_file():
            return f"a folder of TensorFlow checkpoints: {_TO_ONNX}"
        return None
    if path.suffix in (".index", ".meta") or ".data-0" in path.name:
        return f"a part of a TensorFlow checkpoint: {_TO_ONNX}"
    if not path.exists():
        is_prefix = path.with_name(path.name + ".index").is_file()
        return f"the prefix of a TensorFlow checkpoint: {_TO_ONNX}" if is_prefix else None
    if path.name in ("saved_model.pb", "saved_model.pbtxt"):
        return f"the graph of a SavedModel folder of TensorFlow: {_TO_ONNX}"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        header = file.read(_LARGEST_HEADER)
    for offset, signature, meaning in _SIGNATURES:
        if header.startswith(signature, offset):
            return meaning
    return None
