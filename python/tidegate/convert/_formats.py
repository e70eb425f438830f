"""Recognises the format of a file or folder of weights, whatever its name says, and what reads it.

The converters recognise each other's formats and those that are commonly mistaken for theirs, so
that their errors say what to do.
"""

from __future__ import annotations

import codecs
import pathlib
import re
import zipfile
from collections.abc import Container
from dataclasses import dataclass

_HEADER_BYTES = 512
# torch.save begins with this pickled number, unless it writes a zip archive.
_TORCH_PICKLE = re.compile(rb"\x80.(\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
# The safetensors format limits the length of its header to this.
_LONGEST_DESCRIPTION = 100_000_000
# Suffixes of text; the parsers of some of them in the onnx package recurse without a limit.
_TEXTS = (".onnxtxt", ".onnxtext", ".onnxjson", ".json", ".textproto", ".txtpb", ".prototxt")
_TENSORFLOW = (
    "load it with the Keras or TensorFlow that wrote it and save the model as .keras or .h5, which "
    "from_keras reads; or convert it with tf2onnx (python -m tf2onnx.convert) for from_onnx"
)


@dataclass(frozen=True)
class Format:
    """The format of a file or folder.

    Attributes:
        name: a noun phrase, such as "a TorchScript file".
        advice: what to do with such a file.
    """

    name: str
    advice: str


HDF5 = Format("an HDF5 file", "from_keras reads it if Keras wrote it")
KERAS = Format("a .keras file", "from_keras reads it")
ZIP = Format("a zip archive", "from_keras reads .keras files, from_torch files of torch.save")
TORCH = Format("a file of torch.save", "from_torch reads it, by any name but *.safetensors")
ONNX = Format("an ONNX model", "from_onnx reads it")
SAFETENSORS = Format(
    "a safetensors file",
    "tidegate.load reads what tidegate.save wrote, from_torch all others, by a name that ends in "
    ".safetensors",
)

_KERAS_FOLDER = Format(
    "an unpacked .keras archive", "zip the files in it into one .keras file for from_keras"
)
_KERAS_SHARD = Format(
    "a shard of Keras weights", "save the whole with model.save_weights('name.weights.h5')"
)
_TORCHSCRIPT = Format(
    "a TorchScript file", "if you trust it, pass torch.jit.load(path) to from_torch"
)
_TORCH_EXPORT = Format(
    "a file of torch.export",
    "if you trust it, pass torch.export.load(path).state_dict to from_torch",
)
_DAMAGED_ZIP = Format("a damaged or incomplete zip archive", "copy or download it again")
_PICKLE = Format(
    "a pickle that torch.save did not write",
    "pass the arrays in it to from_torch as a mapping of names, or save them by torch.save",
)
_NPY = Format(
    "an .npy file", "numpy.load(path) reads its array; pass a mapping of names to from_torch"
)
_NPZ = Format(
    "an .npz file",
    "numpy.load(path) reads its arrays, which from_torch takes as a state_dict, and keras_lstm and "
    "onnx_lstm one by one",
)
_TEXT = Format(
    "text, from which no weights are read",
    "use the .keras, .h5 or .weights.h5 file beside a Keras model's JSON; pass onnx.load(path) of "
    "ONNX's text formats to from_onnx",
)
_EMPTY = Format("an empty file", "copy or download it again")
_OTHER_TEXT = Format("text, from which no weights are read", "use the file of the weights")
_FROZEN_GRAPH = Format("another protobuf, such as a frozen graph of TensorFlow", _TENSORFLOW)
_SAVED_MODEL = Format("a SavedModel folder of TensorFlow", _TENSORFLOW)
_SAVED_MODEL_PART = Format("a part of a SavedModel folder of TensorFlow", _TENSORFLOW)
_CHECKPOINT_FOLDER = Format("a folder of TensorFlow checkpoints", _TENSORFLOW)
_CHECKPOINT_PREFIX = Format("the prefix of a TensorFlow checkpoint", _TENSORFLOW)
_CHECKPOINT_PART = Format("a part of a TensorFlow checkpoint", _TENSORFLOW)
_DISTRIBUTED = Format(
    "a folder with a .metadata file, as a checkpoint of torch.distributed.checkpoint",
    "make one file of it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save for "
    "from_torch",
)

# (offset, bytes at this offset, format)
_SIGNATURES = (
    (0, b"\x89HDF\r\n\x1a\n", HDF5),
    (0, b"\x80", _PICKLE),
    (0, b"\x93NUMPY", _NPY),
    (4, b"ORTM", Format("a model in ONNX Runtime's .ort format", "use the .onnx file behind it")),
    (4, b"TFL3", Format("a TensorFlow Lite model", "use the model that it was made from")),
    (0, b"GGUF", Format("a GGUF file", "use the model that it was made from")),
    (0, b"\x1f\x8b", Format("compressed by gzip", "unpack it first")),
    (0, b"BZh", Format("compressed by bzip2", "unpack it first")),
    (0, b"\xfd7zXZ\0", Format("compressed by xz", "unpack it first")),
    (0, b"\x28\xb5\x2f\xfd", Format("compressed by zstd", "unpack it first")),
    (257, b"ustar", Format("a tar archive", "unpack it first")),
    (
        0,
        b"version https://git-lfs",
        Format("a Git LFS pointer", "get the file itself with git lfs pull"),
    ),
    (0, b"<", Format("a web page or XML", "download the file itself")),
    (0, b"{", _TEXT),
)


def refuse_other(path: pathlib.Path, wanted: str, own: Container[Format]) -> Format | None:
    """Raises if a path holds a known format that is not one of `own`.

    Args:
        path: a path of anything; it need not exist, as the prefix of a checkpoint is not a file.
        wanted: the expected format, such as "an ONNX model".
        own: the formats that the caller reads, or refuses with more detail.

    Returns:
        The one of `own` that it is; None if it is unknown.

    Raises:
        ValueError: another known format; the message names it and says what to do.
        OSError: the file cannot be read.
    """
    found = recognised(path)
    if found is not None and found not in own:
        raise ValueError(f"{path}: not {wanted}, but {found.name}: {found.advice}")
    return found


def recognised(path: pathlib.Path) -> Format | None:
    """The format of a path, by its name, the files beside it and its first bytes; None: unknown.

    Special files, which may block or be endless, are not opened.
    """
    if path.is_dir():
        return _format_of_folder(path)
    if not path.exists():
        is_prefix = path.with_name(path.name + ".index").is_file()
        return _CHECKPOINT_PREFIX if is_prefix else None
    if not path.is_file():
        return None
    return (
        _format_of_name(path)
        or _format_of_content(path)
        or (ONNX if path.suffix == ".onnx" else None)
    )


def _format_of_folder(path: pathlib.Path) -> Format | None:
    if any((path / f"saved_model.{suffix}").is_file() for suffix in ("pb", "pbtxt")):
        return _SAVED_MODEL
    if (path / "model.weights.h5").is_file():
        return _KERAS_FOLDER
    if (path / "checkpoint").is_file() or any(path.glob("*.index")):
        return _CHECKPOINT_FOLDER
    return _DISTRIBUTED if (path / ".metadata").is_file() else None


def _format_of_name(path: pathlib.Path) -> Format | None:
    if path.name in ("saved_model.pb", "saved_model.pbtxt"):
        return _SAVED_MODEL_PART
    if path.suffix in (".index", ".meta") or re.search(r"\.data-\d+-of-\d+$", path.name):
        return _CHECKPOINT_PART
    if path.suffix == ".pb":
        return _FROZEN_GRAPH
    if path.suffix in _TEXTS:
        return _TEXT
    # Keras names the shards of weights in this way; their index lies beside them.
    shard = re.fullmatch(r"(.*)_\d{5}\.weights\.h5", path.name)
    indices = [f"{shard[1]}{suffix}" for suffix in (".weights.json", ".json")] if shard else []
    return _KERAS_SHARD if any(path.with_name(index).exists() for index in indices) else None


def _format_of_content(path: pathlib.Path) -> Format | None:
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if not header:
        return _EMPTY
    # Safetensors come first: the length in their first bytes may look like any other signature.
    is_description = header[8:9] == b"{"
    if is_description and int.from_bytes(header[:8], "little") <= _LONGEST_DESCRIPTION:
        return SAFETENSORS
    if header.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _format_of_archive(path)
    if _TORCH_PICKLE.match(header):
        return TORCH
    for offset, signature, kind in _SIGNATURES:
        if header.startswith(signature, offset):
            return kind
    return _OTHER_TEXT if _is_text(header) else None


def _is_text(beginning: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(beginning)  # may end in mid-character
    except UnicodeDecodeError:
        return False
    return text != "" and all(character.isprintable() or character.isspace() for character in text)


def _format_of_archive(path: pathlib.Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError):
        return _DAMAGED_ZIP
    if "config.json" in names and "metadata.json" in names:
        return KERAS
    if names and all(name.endswith(".npy") for name in names):
        return _NPZ
    # PyTorch's members are in a folder of the archive.
    members = {name.partition("/")[2] for name in names}
    if "constants.pkl" in members:
        return _TORCHSCRIPT
    if "archive_format" in members or "models/model.json" in members:
        return _TORCH_EXPORT
    return TORCH if "data.pkl" in members else ZIP
