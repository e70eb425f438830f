"""Layers in safetensors files: `load` and `save`, and reading any such file. Never pickle.

A file holds the parameters as tensors and the options of each layer in its metadata; arrays and
texts may be saved beside the layers. The C++ header `tidegate/safetensors.h` documents the format,
and its reader is the one used here: C++ programs load the same files, and the `safetensors` package
can read them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np

from tidegate import _core
from tidegate.checks import (
    Array,
    Precision,
    check_precision,
    check_unmasked,
    have_same_parameters,
)
from tidegate.layers import CELLS, GRU, LSTM, MGU, RecurrentLayer
from tidegate.linear import Dropout, Linear

Layer: TypeAlias = LSTM | GRU | MGU | Linear | Dropout
# What a file may hold under a name.
Entry: TypeAlias = Layer | Array | str
Kind = TypeVar("Kind", bound=LSTM | GRU | MGU | Linear | Dropout | np.ndarray[Any, Any] | str)
Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# The types of entries, with their names in messages.
_KINDS = {
    LSTM: "an LSTM",
    GRU: "a GRU",
    MGU: "an MGU",
    Linear: "a Linear",
    Dropout: "a Dropout",
    np.ndarray: "an ndarray",
    str: "a str",
}


@overload
def load(
    path: Path, kind: None = None, name: str | None = None, *, precision: Precision | None = None
) -> Any: ...
@overload
def load(
    path: Path, kind: type[Kind], name: str | None = None, *, precision: Precision | None = None
) -> Kind: ...
def load(
    path: Path,
    kind: type[Any] | None = None,
    name: str | None = None,
    *,
    precision: Precision | None = None,
) -> Any:
    """The contents of a file that `save`, or a layer's `save`, wrote.

    Files are not trusted: a hostile or damaged one is a ValueError that names the file, the key and
    the reason, and takes no memory that the file itself is too small for.

    Without `kind`, the result depends on the file, so its static type is Any. A type checker knows
    the type of `load(path, tg.LSTM)`, which is checked at run time too.

    Args:
        path: the file.
        kind: the type of one entry: LSTM, GRU, MGU, Linear, Dropout, numpy.ndarray or str. The
            entry of this type is returned alone; there must be exactly one, unless `name` selects
            one.
        name: the name of the one entry to return.
        precision: "bfloat16", "bfloat16-dot" or "int8": the float32 layers that are returned are
            quantised to it (see `LSTM.quantize`). None: layers have the precision in which they
            were saved.

    Returns:
        Without kind and name: the layer, if it was saved without a name; else a dict of names and
        entries, in the order in which they were saved. Options, dtypes, precisions, parameters,
        arrays and texts are restored bit for bit.

    Raises:
        TypeError: path is not a path; kind is not one of those types; name or precision is not a
            str.
        OSError: the file cannot be opened or read.
        ValueError: the file is not a safetensors file; its content is not supported: no layers, a
            newer version of the format, an unknown kind or option, tensors that are missing,
            surplus, or of another dtype or shape than the options require, scales that are not
            positive; or it has no such entry. precision is not one of those names; a layer that is
            returned is of float64 or in another low precision, or `quantize` refuses it.
    """
    if kind is not None and kind not in _KINDS:
        raise TypeError(f"kind: got {kind!r}, wanted the type of {_listed_kinds()}")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name: got {name!r}, wanted a str")
    if precision is not None:
        check_precision(precision)
    encoded = _encoded(path)
    file = _core.Safetensors(encoded)
    where = encoded.decode("utf-8", "replace")
    if "tidegate.format" not in file.metadata:
        raise ValueError(
            f'{where}: "tidegate.format" is missing in the metadata: not a file of tidegate.save; '
            "tidegate.TensorFile reads the tensors of any safetensors file, "
            "tidegate.convert.from_torch makes layers of PyTorch's"
        )
    entries = {name: _make(kind, options, data) for name, kind, options, data in file.entries()}
    if kind is not None or name is not None:
        name = _chosen(where, entries, kind, name)
        return _in_precision(where, name, entries[name], precision)
    made = {name: _in_precision(where, name, e, precision) for name, e in entries.items()}
    return made.get("", made)


def _chosen(
    where: str, entries: Mapping[str, Entry], kind: type[Entry] | None, name: str | None
) -> str:
    """The name of the only entry of this type and this name; None accepts any."""
    found = {
        key: entry
        for key, entry in entries.items()
        if (kind is None or type(entry) is kind) and (name is None or key == name)
    }
    if len(found) != 1:
        what = "" if kind is None else f" ({_KINDS[kind]})"
        named = "" if name is None else f" named {name!r}"
        there = ", ".join(f"{key!r} ({_KINDS[type(entry)]})" for key, entry in entries.items())
        raise ValueError(
            f"{where}: wanted one entry{what}{named}, got {len(found)}; the file has {there}"
        )
    return next(iter(found))


def _in_precision(where: str, name: str, entry: Entry, precision: Precision | None) -> Entry:
    """The entry; if it is a layer with parameters, and precision is given, the layer in that."""
    if precision is None or isinstance(entry, (np.ndarray, str, Dropout)):
        return entry
    if entry.precision == precision:
        return entry
    what = f"{where}: layer{f' {name!r}' if name else ''}: "
    if entry.precision == "float64":
        raise ValueError(
            f"{what}got float64, wanted float32 for precision={precision!r}; load it without a "
            f"precision, then layer.astype(numpy.float32).quantize({precision!r})"
        )
    if entry.precision != "float32" and not have_same_parameters(entry.precision, precision):
        raise ValueError(
            f"{what}got a layer in {entry.precision}, wanted float32 for precision={precision!r}; "
            "load it without a precision, or quantise the layer from which it was made"
        )
    try:
        return entry.quantize(precision)
    except ValueError as error:
        raise ValueError(what + str(error)) from None


def save(path: Path, layers: Layer | Mapping[str, Entry]) -> None:
    """Writes layers to a safetensors file, which `load` reads: options, dtypes and parameters.

    Layers in low precision (`LSTM.quantize`) are written as they are: in "int8" a file is about a
    quarter as large as that of the float32 layer, in both bfloat16's half as large.

    The file is written completely or not at all: to a temporary file beside it, which is renamed.

    Args:
        path: the file; an existing one is replaced. The new file has its permissions, and its group
            if the system allows that. Links are followed.
        layers: an LSTM, GRU, MGU, Linear or Dropout, whose tensors then have the parameters' names;
            or a mapping of names and entries. An entry is such a layer, whose tensors are
            "name.parameter"; an array, which becomes a tensor of this name; or a str, which goes
            into the metadata. Instances of subclasses of the layers are refused, as the file cannot
            record the class. Arrays are of bool, integers of 8 to 64 bits, float16, float32,
            float64 or complex64, with at most 32 axes.

    Raises:
        TypeError: path is not a path; an entry's type or an array's dtype is not supported; a name
            is not a str.
        ValueError: there are no entries; a name is empty; a name or a text cannot be encoded; an
            array has masked elements; the name of an array is that of a layer's parameter, or
            "__metadata__", which the format reserves.
        OSError: the file cannot be written.
    """
    encoded = _encoded(path)
    if isinstance(layers, Mapping):
        named = dict(layers)
        for name in named:
            _check_name(name)
        if not named:
            raise ValueError("layers: got an empty mapping, wanted at least one layer")
        entries = [_entry(name, f"layers[{name!r}]", entry) for name, entry in named.items()]
    else:
        entries = [_layer_entry("", "layers", layers)]
    _core.save_entries(encoded, entries)


class TensorFile(Mapping[str, Array]):
    """Any safetensors file as a mapping of names to arrays, each read anew at every access.

    A header of more than 8 MiB is refused.

    Args:
        path: the file, which stays open as long as this object exists.

    Attributes:
        metadata: the file's `__metadata__`.

    Raises:
        TypeError: path is not a path; from `file[name]`: NumPy does not have the tensor's dtype
            (`raw` reads its bytes).
        OSError: the file cannot be opened or read.
        ValueError: it is not a safetensors file; from `file[name]`: the tensor has more than 32
            axes.
        KeyError: from `file[name]`: there is no such tensor.
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
        """Whether there is such a tensor; does not read it."""
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def raw(self, name: str) -> Array:
        """A tensor's bytes as stored, (n,) uint8: for dtypes that NumPy does not have, as BF16."""
        if name not in self._tensors:
            raise KeyError(name)
        return self._file.read_bytes(name)

    def dtype_and_shape(self, name: str) -> tuple[str, tuple[int, ...]]:
        """A tensor's dtype in the format's own terms ("F32", "BF16") and shape; reads no values."""
        return self._tensors[name]


def _encoded(path: Path) -> bytes:
    try:
        return os.fsencode(path)
    except TypeError:
        raise TypeError(f"path: got {type(path).__name__}, wanted a path") from None


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"layers: got {name!r} as a name, wanted a str")
    _check_encodable(f"layers: the name {name!r}", name)
    if not name:
        raise ValueError("layers: got '' as a name, wanted one of at least a character")


def _check_encodable(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} cannot be encoded as UTF-8") from None


def _listed_kinds() -> str:
    names = list(_KINDS.values())
    return f"{', '.join(names[:-1])} or {names[-1]}"


# An entry in the form that the extension takes: name, kind, options, data.
_PlainEntry: TypeAlias = tuple[str, str, tuple[Any, ...], Any]


def _entry(name: str, where: str, entry: object) -> _PlainEntry:
    if isinstance(entry, str):
        _check_encodable(f"{where}: the text", entry)
        return name, "text", (), entry
    if isinstance(entry, np.ndarray):
        check_unmasked(where, entry)
        # A copy in C order and native byte order, which keeps an array without axes as it is.
        return name, "array", (), np.array(entry, entry.dtype.newbyteorder("="), order="C")
    return _layer_entry(name, where, entry)


def _layer_entry(name: str, where: str, layer: object) -> _PlainEntry:
    """A layer as an entry, with a copy of its parameters."""
    if type(layer) is Dropout:
        return name, "Dropout", (layer.p,), None
    options: tuple[Any, ...]
    core: _core.Parameters
    if type(layer) is Linear:
        options = (layer.in_features, layer.out_features, layer.bias)
        core = layer._layer
    elif isinstance(layer, RecurrentLayer) and type(layer) in CELLS.values():
        options = (layer._config, layer.batch_first, layer.dropout)
        core = layer._model
    else:
        hint = "" if name else ", or a mapping of names to layers, arrays and texts"
        wanted = _listed_kinds() if name else "an LSTM, a GRU, an MGU, a Linear or a Dropout"
        raise TypeError(f"{where}: got {type(layer).__name__}, wanted {wanted}{hint}")
    quantized = core.quantized
    data = core.flat.copy() if quantized is None else quantized
    return name, type(layer).__name__, options, data


def _make(kind: str, options: tuple[Any, ...], data: Any) -> Entry:
    """An entry made from the extension's form of it."""
    if kind in ("array", "text"):
        entry: Array | str = data
        return entry
    if kind == "Dropout":
        return Dropout(*options)
    is_exact = isinstance(data, np.ndarray)
    if kind == "Linear":
        in_features, out_features, bias = options
        make = Linear._from_flat if is_exact else Linear._from_quantized
        return make(in_features, out_features, bias, data)
    config, batch_first, dropout = options
    cell = CELLS[kind]
    layer = cell.__new__(cell)
    layer.__setstate__(
        {
            "options": {name: getattr(config, name) for name in layer._OPTIONS},
            "batch_first": batch_first,
            "dropout": dropout,
            "flat" if is_exact else "quantized": data,
            "attributes": {},
        }
    )
    return layer
