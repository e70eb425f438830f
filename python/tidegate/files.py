"""Layers in safetensors files: `load` and `save`, and reading any such file. Never pickle.

A file holds the parameters as tensors, and in its metadata what each layer is. The C++ header
`tidegate/safetensors.h` tells the format; its reader is the one that is used here. So C++ programs
load the same files, and the `safetensors` package can read them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from tidegate import _core
from tidegate.checks import Array
from tidegate.layers import GRU, LSTM
from tidegate.linear import Linear

Layer: TypeAlias = LSTM | GRU | Linear
Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def load(path: Path) -> Layer | dict[str, Layer]:
    """The layers of a file that `save`, or a layer's `save`, wrote.

    Files are read for what they are worth: a hostile or damaged one is a ValueError that names the
    file, the key and the reason, and takes no memory that the file itself is too small for.

    Args:
        path: the file.

    Returns:
        The layer, if it was saved without a name; else a dict of names and layers, in the order in
        which they were saved. Options, dtype and parameters are what they were, bit for bit.

    Raises:
        TypeError: path is no path.
        OSError: the file cannot be opened or read.
        ValueError: it is no safetensors file; or something in it is not understood: no layers, a
            newer version of the format, an unknown kind or option, tensors that are missing,
            surplus, or of another dtype or shape than the options say.
    """
    layers = {
        name: _make(kind, options, flat)
        for name, kind, options, flat in _core.load_layers(_encoded(path))
    }
    return layers.get("", layers)


def save(path: Path, layers: Layer | Mapping[str, Layer]) -> None:
    """Writes layers to a safetensors file, which `load` reads: options, dtypes and parameters.

    The file is written whole or not at all: beside its place first, then renamed.

    Args:
        path: the file; one that is there is replaced, and keeps its permissions (its owner and
            group where the system allows). Links are followed.
        layers: an LSTM, GRU or Linear, whose tensors then bear the parameters' names; or a mapping
            of names and such layers, whose tensors are "name.parameter". A class that derives from
            one of these is not one: the file could not tell.

    Raises:
        TypeError: path is no path; a layer is of another type; a name is no str.
        ValueError: there are no layers; a name is empty or cannot be encoded.
        OSError: the file cannot be written.
    """
    encoded = _encoded(path)
    if isinstance(layers, Mapping):
        named = dict(layers)
        for name in named:
            _check_name(name)
        if not named:
            raise ValueError("layers: got an empty mapping, wanted at least one layer")
    else:
        named = {"": layers}
    _core.save_layers(encoded, [_entry(name, layer) for name, layer in named.items()])


class TensorFile(Mapping[str, Array]):
    """Any safetensors file as names and arrays, each read anew when it is asked for.

    A header of more than 8 MiB is refused.

    Args:
        path: the file, which stays open as long as this.

    Attributes:
        metadata: its `__metadata__`.

    Raises:
        TypeError: path is no path; of `file[name]`: the tensor's dtype is none of NumPy's, which
            `raw` reads.
        OSError: the file cannot be opened or read.
        ValueError: it is no safetensors file; of `file[name]`: the tensor has more than 32 axes.
        KeyError: of `file[name]`: there is no such tensor.
    """

    def __init__(self, path: Path) -> None:
        self._file = _core.Safetensors(_encoded(path))
        self._tensors = self._file.tensors
        self.metadata = self._file.metadata

    def __getitem__(self, name: str) -> Array:
        if name not in self._tensors:
            raise KeyError(name)
        return self._file.read(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor, which is not read."""
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def raw(self, name: str) -> Array:
        """A tensor's bytes as they stand, (n,) uint8: for dtypes that NumPy has not, as BF16."""
        if name not in self._tensors:
            raise KeyError(name)
        return self._file.read_bytes(name)

    def dtype_and_shape(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Of a tensor, without reading it; the dtype as the format writes it: "F32", "BF16"."""
        return self._tensors[name]


def _encoded(path: Path) -> bytes:
    try:
        return os.fsencode(path)
    except TypeError:
        raise TypeError(f"path: got {type(path).__name__}, wanted a path") from None


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"layers: got {name!r} as a name, wanted a str")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"layers: the name {name!r} cannot be encoded") from None
    if not encoded:
        raise ValueError("layers: got '' as a name, wanted one of at least a character")


def _entry(name: str, layer: Layer) -> tuple[str, str, tuple[Any, ...], Array]:
    """A layer as the extension takes it. The parameters are copied: a snapshot."""
    where = f"layers[{name!r}]" if name else "layers"
    options: tuple[Any, ...]
    if type(layer) is Linear:
        options = (layer.in_features, layer.out_features, layer.bias)
    elif type(layer) is LSTM or type(layer) is GRU:
        options = (layer._config, layer.batch_first, layer.dropout)
    else:
        raise TypeError(f"{where}: got {type(layer).__name__}, wanted LSTM, GRU or Linear")
    return name, type(layer).__name__, options, layer.params.flat.copy()


def _make(kind: str, options: tuple[Any, ...], flat: Array) -> Layer:
    if kind == "Linear":
        in_features, out_features, bias = options
        return Linear._from_flat(in_features, out_features, bias, flat)
    config, batch_first, dropout = options
    layer: LSTM | GRU = LSTM.__new__(LSTM) if kind == "LSTM" else GRU.__new__(GRU)
    layer.__setstate__(
        {
            "options": {name: getattr(config, name) for name in layer._OPTIONS},
            "batch_first": batch_first,
            "dropout": dropout,
            "flat": flat,
            "attributes": {},
        }
    )
    return layer
