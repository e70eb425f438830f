"""Files and folders that are mistaken for ONNX models: what they are, and what to do with them."""

from __future__ import annotations

import pathlib

_TO_ONNX = "convert it with tf2onnx (python -m tf2onnx.convert)"
_HEADER_BYTES = 64
# Their parsers in the onnx package recurse without a limit.
_TEXTS = (".onnxtxt", ".onnxtext", ".onnxjson", ".json", ".textproto", ".txtpb", ".prototxt")

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
    *(
        (0, begin, "an HTML page: the download went wrong")
        for begin in (b"<!DOCTYPE html", b"<!doctype html", b"<html")
    ),
)


def other_format(path: pathlib.Path) -> str | None:
    """What a path holds if it is a known format other than ONNX, and what to do; else None.

    Folders, prefixes of TensorFlow's checkpoints (which are no files themselves), and regular
    files, whose first bytes are read. The text completes a sentence: "not an ONNX model, but ...".
    """
    if path.is_dir():
        if any((path / f"saved_model.{ending}").is_file() for ending in ("pb", "pbtxt")):
            return f"a SavedModel folder of TensorFlow: {_TO_ONNX}, or load it into Keras"
        if any(path.glob("*.index")) or (path / "checkpoint").is_file():
            return f"a folder of TensorFlow checkpoints: {_TO_ONNX}"
        return None
    if not path.exists():
        is_prefix = path.with_name(path.name + ".index").is_file()
        return f"the prefix of a TensorFlow checkpoint: {_TO_ONNX}" if is_prefix else None
    if not path.is_file():
        return None
    if path.suffix in (".index", ".meta") or ".data-0" in path.name:
        return f"a part of a TensorFlow checkpoint: {_TO_ONNX}"
    if path.name in ("saved_model.pb", "saved_model.pbtxt"):
        return f"the graph of a SavedModel folder of TensorFlow: {_TO_ONNX}"
    if path.suffix == ".pb":
        return f"another protobuf; if it is a frozen graph of TensorFlow, {_TO_ONNX}"
    if path.suffix in _TEXTS:
        return "text: if it is a model, pass onnx.load(path) instead of the path"
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    for offset, signature, meaning in _SIGNATURES:
        if header.startswith(signature, offset):
            return meaning
    return None
