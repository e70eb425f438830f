"""What is mistaken for a file of weights: each converter names it and says what to do with it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tidegate import convert
from tidegate.convert import _formats

# What torch.save writes first, if it does not write a zip archive.
MAGIC = 0x1950A86A20F9469CFC6C


def safetensors(length: int) -> bytes:
    return length.to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}'.ljust(length)


SAFETENSORS = safetensors(80)


def archive(*members: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for member in members:
            file.writestr(member, b"")
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, kernel=np.zeros(3))
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


LOADERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "onnx": (convert.from_onnx, "not an ONNX model, but "),
    "keras": (convert.from_keras, "not a file of Keras, but "),
    "torch": (convert.from_torch, "not a file of weights of PyTorch, but "),
}

# A file's name, its content, what it is, what to do, and the converters that read such a file or
# refuse it in other words.
OTHERS: list[tuple[str, bytes, str, str, tuple[str, ...]]] = [
    ("m.ort", b"\x10\0\0\0ORTM12345", ".ort format", "use the .onnx file", ()),
    ("m.tflite", b"\x10\0\0\0TFL312345", "TensorFlow Lite", "use the model that", ()),
    ("m.gguf", b"GGUF\3\0\0\0", "a GGUF file", "use the model that", ()),
    ("m.h5", b"\x89HDF\r\n\x1a\n123", "an HDF5 file", "from_keras reads it", ("keras",)),
    ("m.bin", archive("config.json", "metadata.json"), "a .keras", "from_keras", ("keras",)),
    ("cut.zip", b"PK\x03\x04123", "a damaged or incomplete zip archive", "download it again", ()),
    ("a.zip", archive("a"), "a zip archive", "from_torch files of torch.save", ("keras",)),
    ("empty.zip", archive(), "a zip archive", "from_torch files of torch.save", ("keras",)),
    ("m.npz", npz(), "an .npz file", r"numpy\.load\(path\)", ()),
    ("m.pt", archive("m/data.pkl"), "a file of torch.save", "from_torch", ("torch",)),
    *(
        (
            f"old{k}.pt",
            pickle.dumps(MAGIC, k),
            "a file of torch.save",
            "from_torch reads",
            ("torch",),
        )
        for k in (2, 4)
    ),
    ("p.pt", pickle.dumps(3), "a pickle that torch.save did not", "a mapping of names", ()),
    ("m.npy", npy(), "an .npy file", r"numpy\.load\(path\)", ()),
    ("empty.pt", b"", "an empty file", "download it again", ()),
    ("loss.pt", "épochs 3, loss 0.1\n".encode() * 30, "text", "the file of the weights", ()),
    ("p0.pt", pickle.dumps([1], 0), "text", "the file of the weights", ()),
    ("m.tar", b"model" + bytes(252) + b"ustar\0" + bytes(300), "a tar archive", "unpack", ()),
    ("m.bz2", bz2.compress(b"weights"), "compressed by bzip2", "unpack", ()),
    ("m.xz", lzma.compress(b"weights"), "compressed by xz", "unpack", ()),
    ("s.pt", archive("m/data.pkl", "m/constants.pkl"), "a TorchScript", r"torch\.jit\.load", ()),
    ("e.pt2", archive("m/archive_format", "m/data.pkl"), "a file of torch.export", "trust", ()),
    ("s.bin", SAFETENSORS, "a safetensors file", r"a name that ends in \.safetensors", ()),
    ("s128.bin", safetensors(128), "a safetensors file", r"a name that ends in", ()),
    ("m.gz", gzip.compress(b"weights"), "compressed by gzip", "unpack", ()),
    ("lfs.bin", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS", "git lfs pull", ()),
    ("page.bin", b"<!DOCTYPE html>\n<html>", "a web page", "download the file", ()),
    ("page2.bin", b"<html>", "a web page", "download the file", ()),
    ("saved_model.pb", b"\x08\x01", "a part of a SavedModel", "tf2onnx", ()),
    ("frozen.pb", b"\x0a\x02ab", "another protobuf", r"save the model as \.keras", ()),
    ("a.ckpt.index", b"\0\0", "a part of a TensorFlow checkpoint", "tf2onnx", ()),
    ("a.data-00000-of-00001", b"\0", "a part of a TensorFlow checkpoint", "tf2onnx", ()),
    ("deep.onnxtxt", b"seq(" * 200_000, "text", r"pass onnx\.load\(path\)", ()),
    ("m.json", b'{"class_name": "Model"}', "text", "use the .keras", ("torch",)),
    ("m.txt", b'{"graph": {"node": []}}', "text", r"pass onnx\.load\(path\)", ()),
    ("m.onnx", b"\xff", "an ONNX model", "from_onnx reads it", ("onnx",)),
]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", [row[0] for row in OTHERS])
def test_files(loader: str, name: str, tmp_path: pathlib.Path) -> None:
    if loader == "onnx":
        pytest.importorskip("onnx")
    load, beginning = LOADERS[loader]
    content, what, advice, own = next(row[1:] for row in OTHERS if row[0] == name)
    path = tmp_path / name
    path.write_bytes(content)
    if loader in own:
        known = _formats.recognised(path)
        assert known is not None
        assert what in known.name
    else:
        with pytest.raises(ValueError, match=rf"{name}: {beginning}.*{what}.*: .*{advice}"):
            load(path)


@pytest.mark.parametrize("loader", LOADERS)
def test_folders(loader: str, tmp_path: pathlib.Path) -> None:
    if loader == "onnx":
        pytest.importorskip("onnx")
    load, beginning = LOADERS[loader]
    beginning = beginning.replace("a file of weights of PyTorch", "a folder of PyTorch weights")

    def refused(what: str, *files: str) -> None:
        folder = tmp_path / files[0]
        folder.mkdir()
        for file in files:
            (folder / file).touch()
        with pytest.raises(ValueError, match=beginning + what):
            load(folder)

    refused("a SavedModel folder of TensorFlow: load it", "saved_model.pb")
    refused("a SavedModel folder of TensorFlow: load it", "saved_model.pbtxt", "model.weights.h5")
    refused("a folder of TensorFlow checkpoints: load it", "checkpoint")
    refused("a folder of TensorFlow checkpoints: load it", "a.ckpt.index")
    refused("an unpacked .keras archive: zip", "model.weights.h5")
    refused("a folder with a .metadata file, .*: make one file of it with .*dcp", ".metadata")


@pytest.mark.parametrize("loader", LOADERS)
def test_prefixes_of_checkpoints(loader: str, tmp_path: pathlib.Path) -> None:
    """Such a prefix is what TensorFlow is given, but not the name of a file."""
    if loader == "onnx":
        pytest.importorskip("onnx")
    load, beginning = LOADERS[loader]
    (tmp_path / "a.ckpt.index").touch()
    with pytest.raises(ValueError, match=f"{beginning}the prefix of a TensorFlow checkpoint: load"):
        load(tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "b.ckpt")
