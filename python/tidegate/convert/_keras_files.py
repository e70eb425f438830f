"""Keras files: their recurrent layers, with options and arrays. `_keras` interprets them.

There are two layouts: that of Keras 3 (and of TensorFlow's Keras from 2.12 on), where a layer's
variables are numbered in a group `vars`, and the older one, where groups list `weight_names`.

Files are not trusted. Members of archives must be stored or deflated, each member's size is checked
against its compressed size before it is read, JSON is limited in size and in items, and HDF5 is
read by the bounded reader `_hdf5`.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

import numpy as np

from tidegate.checks import Array
from tidegate.convert import _hdf5
from tidegate.convert._formats import HDF5, KERAS, ZIP, refuse_other
from tidegate.convert._paths import check_regular_file
from tidegate.convert._weights import listed

# Real models nest a few levels; Python's recursion ends at about 1000 calls.
_DEEPEST = 100
# Limits on a `.keras` archive: real models and their descriptions are far smaller.
_LARGEST_MEMBER = {"metadata.json": 2**16, "config.json": 2**24, "model.weights.h5": 2**34}
_LARGEST_JSON = 2**24
_MOST_ITEMS = 2**20  # of JSON; each takes up to a hundred bytes of memory
_MOST_LAYERS = 2**10  # recurrent layers; each is compared with each group of arrays
_LONGEST_NAME = 2**10


# ---- Layers and their names ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Layer:
    """A recurrent layer in a file or an object.

    Attributes:
        name: the layer's own name.
        path: the names of the models that it is in, without the outermost, and its own: "enc/rnn".
        place: the group of its weights in a file, such as "layers/lstm"; "" for an object.
        class_name: Keras's; without a configuration "LSTM" or "GRU", from the shapes.
        config: its configuration; None if the file has none.
    """

    name: str
    path: str
    place: str
    class_name: str
    config: Mapping[str, Any] | None


@dataclass(frozen=True, eq=False)
class LayerWeights(Layer):
    """A recurrent layer with its arrays.

    Attributes:
        version: Keras's version, as written in the file; "" if it is unknown.
        numbered: whether it comes from the newer layout, that of Keras 2.12 and later.
        weights: kernel, recurrent_kernel and optionally bias, for each direction.
    """

    version: str
    numbered: bool
    weights: list[list[Array]]


_AnyLayer = TypeVar("_AnyLayer", bound=Layer)


def select(layers: Sequence[_AnyLayer], name: str | None, where: str) -> _AnyLayer:
    """The layer with this path, place or name; the only layer if `name` is None.

    Paths take precedence over names: "rnn" is a layer of the outermost model if it has one, as in
    Keras's `get_layer`, even if an inner model has a layer of that name too.

    Raises:
        ValueError: there is none, or there are several; the message lists them.
    """
    names = collections.Counter(layer.name for layer in layers)
    paths = collections.Counter(layer.path for layer in layers)
    # For each layer, the shortest of its name, path and place that no other layer has.
    labels = [
        layer.name
        if names[layer.name] == 1
        else layer.path
        if paths[layer.path] == 1
        else layer.place or layer.path
        for layer in layers
    ]
    if name is None:
        if len(layers) == 1:
            return layers[0]
        raise ValueError(f"name: got None, but {where} has several: {listed(labels)}")
    for found in (
        [layer for layer in layers if layer.path == name],
        [layer for layer in layers if layer.place == name],
        [layer for layer in layers if layer.name == name],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"name: got {name!r}, which several layers of {where} have: wanted one of "
                f"{listed(labels)}"
            )
    raise ValueError(f"name: got {name!r}, wanted one of {listed(labels)}")


def read_layer(path: pathlib.Path, name: str | None, class_names: Sequence[str]) -> LayerWeights:
    """The layer of a file that has this name (see `select`) and one of these classes.

    Raises:
        OSError: the file cannot be opened.
        ValueError: there is no such layer; it is not a file of Keras, or damaged.
    """
    _check_kind(path)
    with _open(path) as file:
        # The configuration of a subclassed model describes none of its layers.
        found = list(_described(file, class_names)) or list(_undescribed(file))
        if not found:
            raise ValueError(f"{path}: no LSTM or GRU{_what_else(file)}")
        layer = select(found, name, str(path))
        return LayerWeights(
            layer.name,
            layer.path,
            layer.place,
            layer.class_name,
            layer.config,
            version=file.version,
            numbered=not file.old,
            weights=[[file.array(name, layer) for name in names] for names in layer.directions],
        )


# ---- Formats -------------------------------------------------------------------------------------


def _check_kind(path: pathlib.Path) -> None:
    """Raises unless it is a regular file that begins as an HDF5 file or a zip archive does."""
    found = refuse_other(path, "a file of Keras", own=(HDF5, KERAS, ZIP))
    check_regular_file("layer_or_path", path)
    if found is None:
        raise ValueError(f"{path}: not a file of Keras: neither a zip archive nor HDF5")


# ---- An open file --------------------------------------------------------------------------------


@dataclass(eq=False)
class _File:
    """An open file: the weights, and the architecture if the file has it.

    Attributes:
        path: the file's path, for messages.
        datasets: the datasets, by path.
        attributes: the attributes of every group, by path.
        version: Keras's version, as written in the file.
        config: the model's configuration.
    """

    path: pathlib.Path
    datasets: Mapping[str, _hdf5.Dataset] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, str | list[str]]] = field(default_factory=dict)
    version: str = ""
    config: Mapping[str, Any] | None = None

    @property
    def old(self) -> bool:
        """Whether the layout is the older one."""
        places = (self.attributes[""], self.attributes.get("model_weights", {}))
        return any(_names(attributes, "layer_names") for attributes in places)

    def array(self, name: str, layer: Layer) -> Array:
        """The values of a dataset; allocates no more than the file itself holds."""
        dataset = self.datasets[name]
        try:
            array = dataset.read()
        except ValueError as error:
            raise ValueError(f"{self.path}: {name!r}: cannot be read: {error}") from error
        # bfloat16 is stored as two opaque bytes; the older layout does not mark it by an attribute.
        kinds = (dataset.attributes.get("dtype"), dtype_name(layer.config or {}))
        if array.dtype == "V2" and "bfloat16" in kinds:
            return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return array


def dtype_name(config: Mapping[str, Any]) -> str:
    """The name of a configuration's dtype or dtype policy; "" without one."""
    dtype = config.get("dtype")
    if isinstance(dtype, Mapping):
        inner = dtype.get("config")
        inner = inner if isinstance(inner, Mapping) else {}
        if "mode" in inner:  # a QuantizedDTypePolicy
            return f"{inner['mode']}_from_{inner.get('source_name')}"
        dtype = inner.get("name")
    return "" if dtype is None else str(dtype)


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[_File]:
    file = _File(path)
    with path.open("rb") as stream:
        try:
            source: BinaryIO = stream
            if stream.read(2) == b"PK":
                source = _unpack(file, stream)
            tree = _hdf5.read(source)
            file.datasets, file.attributes = tree.datasets, tree.groups
            _read_description(file)
        except Exception as error:  # zipfile, zlib and json raise many types
            raise ValueError(f"{path}: not a file of Keras: {error}") from error
        yield file


def _unpack(file: _File, stream: BinaryIO) -> BinaryIO:
    """The weights of a `.keras` archive; also sets the version and configuration of `file`."""
    with zipfile.ZipFile(stream) as archive:
        missing = [name for name in _LARGEST_MEMBER if name not in archive.NameToInfo]
        if missing:
            raise ValueError(f"a zip archive without {missing[0]}")
        size = stream.seek(0, io.SEEK_END)
        members = {name: _member(archive, name, size) for name in _LARGEST_MEMBER}
    file.version = str(_object(members["metadata.json"]).get("keras_version", ""))
    file.config = _object(members["config.json"])
    return io.BytesIO(members["model.weights.h5"])


def _member(archive: zipfile.ZipFile, name: str, archive_size: int) -> bytes:
    member = archive.getinfo(name)
    if member.header_offset + member.compress_size > archive_size:
        raise ValueError(f"{name} claims {member.compress_size} bytes, which are not in the file")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is neither stored nor deflated, as all of Keras's are")
    largest = min(_LARGEST_MEMBER[name], _hdf5.largest_expansion(member.compress_size))
    if member.file_size > largest:
        raise ValueError(f"{name} claims {member.file_size} bytes, wanted at most {largest}")
    return archive.read(member)


def _object(text: str | bytes) -> dict[str, Any]:
    data = text.encode() if isinstance(text, str) else text
    items = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if len(data) > _LARGEST_JSON or items > _MOST_ITEMS:
        raise ValueError(f"JSON of {len(data)} bytes and up to {items} items is too large")
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}, wanted a JSON object")
    return value


def _read_description(file: _File) -> None:
    """Reads the configuration and the version from the attributes of an `.h5` file."""
    root = file.attributes[""]
    if file.config is None and "model_config" in root:
        file.config = _object(_text(root["model_config"]))
    for place in (root, file.attributes.get("model_weights", {})):
        file.version = file.version or _text(place.get("keras_version", ""))


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _names(attributes: Mapping[str, str | list[str]], key: str) -> list[str]:
    """A list of names, which Keras splits into key0, key1 and so on if it is long."""
    parts = [attributes[key]] if key in attributes else []
    while f"{key}{len(parts)}" in attributes:
        parts.append(attributes[f"{key}{len(parts)}"])
    return [name for part in parts for name in ([part] if isinstance(part, str) else part)]


# ---- Layers of a configuration -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _StoredLayer(Layer):
    """A layer whose arrays have not been read: `directions` are lists of datasets' paths."""

    directions: list[list[str]]


@dataclass(frozen=True, eq=False)
class _Described(Layer):
    """A layer of the configuration whose arrays have not been located.

    Attributes:
        group: the outermost model's layer that it is, or is in: a group of the older layout.
        is_only: whether the group has no other layer.
    """

    group: str
    is_only: bool


def _described(file: _File, class_names: Sequence[str]) -> Iterator[_StoredLayer]:
    """The configuration's recurrent layers, each with its arrays."""
    described = _walk(file.config or {}, "", ())
    layers = [layer for layer in described if layer.class_name in class_names]
    if len(layers) > _MOST_LAYERS:
        raise ValueError(f"{file.path}: has {len(layers)} recurrent layers")
    blocks = _blocks(file)
    if file.old:
        found = [tuple(_find_old(blocks, layer)) for layer in layers]
    else:
        found = [(layer.place,) if layer.place in blocks else () for layer in layers]
    claims = collections.Counter(found)
    for layer, places in zip(layers, found):
        # If two layers match the same arrays, it is ambiguous which of them has these.
        own = layer.is_only or claims[places] == 1
        block = _joined([blocks[place] for place in places if own])
        yield _StoredLayer(
            layer.name, layer.path, layer.place, layer.class_name, layer.config, block.in_order()
        )


def _walk(model: Mapping[str, Any], place: str, names: tuple[str, ...]) -> Iterator[_Described]:
    """Every layer that is not a model, in the order of the configuration.

    A group of the newer layout is named by the class and the number of such layers before it. A
    layer inside TimeDistributed is handled as if it were in a model.
    """
    config = model.get("config")
    # Before Keras 2.2 the configuration of a Sequential was just the list of layers.
    layers = config.get("layers") if isinstance(config, Mapping) else config
    if not isinstance(layers, list) or len(names) > _DEEPEST:
        return
    used: dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer, Mapping) or not isinstance(layer.get("class_name"), str):
            continue
        slug = _snake_case(layer["class_name"])
        used[slug] = used.get(slug, -1) + 1
        number = f"_{used[slug]}" if used[slug] else ""
        yield from _walk_layer(layer, f"{place}layers/{slug}{number}", names, bool(names))


def _walk_layer(
    layer: Mapping[str, Any], place: str, names: tuple[str, ...], inside: bool
) -> Iterator[_Described]:
    """One layer; `inside`: whether its model is inside another one."""
    class_name, own = layer["class_name"][:_LONGEST_NAME], layer.get("config")
    name = own.get("name") if isinstance(own, Mapping) else layer.get("name")
    name = name[:_LONGEST_NAME] if isinstance(name, str) else place
    names = (*names, name)
    if not isinstance(own, Mapping) or "layers" in own:
        yield from _walk(layer, f"{place}/", names)
        return
    wrapped = own.get("layer")
    if class_name == "TimeDistributed" and isinstance(wrapped, Mapping) and len(names) < _DEEPEST:
        if isinstance(wrapped.get("class_name"), str):
            yield from _walk_layer(wrapped, f"{place}/layer", names, inside)
        return
    yield _Described(name, "/".join(names), place, class_name, own, names[0], not inside)


def _snake_case(class_name: str) -> str:
    """The name of a class as Keras uses it for groups: CuDNNLSTM becomes cu_dnnlstm."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _what_else(file: _File) -> str:
    """The end of a message about a file without a convertible layer: what the file has instead."""
    if file.version.startswith("1.") or any(
        re.search(r"_[UW]_\w(:0)?$", name) for name in file.datasets
    ):
        return " as Keras 2 and later store it: load it with Keras 2.2, which reads Keras 1's files"
    classes = dict.fromkeys(layer.class_name for layer in _walk(file.config or {}, "", ()))
    return f"; its layers are of the classes {listed(list(classes))}" if classes else ""


# ---- Locations of the arrays ---------------------------------------------------------------------


@dataclass(eq=False)
class _Block:
    """The arrays of one layer: those of each direction's cell, by the path of the cell.

    Attributes:
        group: in the older layout, the outermost model's layer; in the newer one "".
        names: the names of the models and of the layer, as far as the file contains them.
    """

    group: str
    names: list[str]
    cells: dict[str, list[str]] = field(default_factory=dict)

    def in_order(self) -> list[list[str]]:
        """The arrays of the forward cell, then of the backward cell."""

        def rank(path: str) -> int:
            for part in reversed(path.split("/")):
                if part.startswith(("forward_", "backward_")):
                    return 0 if part.startswith("forward_") else 2
            return 1  # a backward layer that the user passed may have any name

        return [self.cells[path] for path in sorted(self.cells, key=rank)]  # stable sort


def _undescribed(file: _File) -> Iterator[_StoredLayer]:
    """The layers of a file without configurations, recognised by the shapes of LSTMs and GRUs."""
    blocks = _blocks(file)
    groups = collections.Counter(block.group for block in blocks.values())
    for place, block in blocks.items():
        names = block.names
        if block.group:
            names = [block.group] if groups[block.group] == 1 else [block.group, block.names[-1]]
        directions = block.in_order()
        recurrent = file.datasets[directions[0][1]]
        class_name = {3: "GRU", 4: "LSTM"}[recurrent.shape[1] // recurrent.shape[0]]
        biases = [file.datasets[names[2]].shape for names in directions if len(names) == 3]
        if (2 * recurrent.shape[1],) in biases:
            class_name = f"CuDNN{class_name}"
        path = "/".join(names) or place
        yield _StoredLayer(names[-1] if names else place, path, place, class_name, None, directions)


def _joined(blocks: Sequence[_Block]) -> _Block:
    """One block with the cells of several."""
    return _Block("", [], {path: names for block in blocks for path, names in block.cells.items()})


def _find_old(blocks: Mapping[str, _Block], layer: _Described) -> list[str]:
    """The places of a layer's arrays in the older layout; none if several match equally.

    The older layout identifies arrays only by names, and often omits those of the models.
    """
    inside = {place: block for place, block in blocks.items() if block.group == layer.group}
    if layer.is_only:
        return list(inside)
    likeness = {place: _likeness(layer.path.split("/"), block) for place, block in inside.items()}
    most = max(likeness.values(), default=0)
    found = [place for place in inside if most > 0 and likeness[place] == most]
    if len(found) != 1:
        return []
    # A backward layer that the user passed does not have the name of the Bidirectional.
    own = (layer.config or {}).get("backward_layer")
    own_config = own.get("config") if isinstance(own, Mapping) else None
    backward = f"{found[0]}/{own_config.get('name')}" if isinstance(own_config, Mapping) else ""
    return found + [place for place in inside if place == backward]


def _likeness(path: Sequence[str], block: _Block) -> int:
    """Twice the number of trailing names that agree; a block's names may end in its cell's."""

    def agreeing(names: Sequence[str]) -> int:
        pairs = list(zip(reversed(path), reversed(names)))
        return next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))

    return max(2 * agreeing(block.names), 2 * agreeing(block.names[:-1]) - 1)


def _blocks(file: _File) -> dict[str, _Block]:
    """The arrays of each layer whose shapes are an LSTM's or a GRU's, by place."""
    found = _old_blocks(file) if file.old else _new_blocks(file)
    for block in found.values():
        block.cells = {
            path: names for path, names in block.cells.items() if _is_recurrent(file, names)
        }
    found = {place: block for place, block in found.items() if block.cells}
    if len(found) > _MOST_LAYERS:
        raise ValueError(f"{file.path}: has the arrays of {len(found)} recurrent layers")
    return found


def _is_recurrent(file: _File, names: Sequence[str]) -> bool:
    """Whether these are (I, G*H), (H, G*H) and maybe a bias, with G 3 or 4."""
    if len(names) not in (2, 3):
        return False
    kernel, recurrent = (file.datasets[name].shape for name in names[:2])
    if len(kernel) != 2 or len(recurrent) != 2 or recurrent[0] == 0:
        return False
    return kernel[1] == recurrent[1] and recurrent[1] in (3 * recurrent[0], 4 * recurrent[0])


def _new_blocks(file: _File) -> dict[str, _Block]:
    """layers/lstm/cell/vars/{0,1,2}; a Bidirectional has forward_layer and backward_layer."""
    found: dict[str, _Block] = {}
    counts = collections.Counter(name.rpartition("/")[0] for name in file.datasets)
    for group in sorted(counts):
        parts = group.split("/")
        if parts.pop() != "vars":
            continue
        if parts and parts[-1] == "cell":
            parts.pop()
        elif "/".join((*parts, "cell", "vars")) in counts:
            continue  # the states of a stateful layer
        cell = "/".join(parts)
        if parts and parts[-1] in ("forward_layer", "backward_layer"):
            parts.pop()
        names = [f"{group}/{number}" for number in range(counts[group])]
        if all(dataset in file.datasets for dataset in names):
            # Keras 2.13 used another name for the list of a model's layers.
            place = "/".join(parts).replace("_layer_checkpoint_dependencies", "layers")
            found.setdefault(place, _Block("", _new_names(file, parts))).cells[cell] = names
    return found


def _new_names(file: _File, parts: Sequence[str]) -> list[str]:
    """The names of a layer and of the models that it is in; none if the file has no name for it.

    The group of every layer and model has one `vars`, whose attribute is the name.
    """
    names = [
        _text(file.attributes.get("/".join((*parts[:depth], "vars")), {}).get("name", ""))
        for depth in range(1, len(parts) + 1)
    ]
    return [name for name in names if name] if names and names[-1] else []


def _old_blocks(file: _File) -> dict[str, _Block]:
    """Reads <layer>/<name of a weight>; names end in kernel:0, recurrent_kernel:0 and bias:0."""
    root = "model_weights/" if "model_weights" in file.attributes else ""
    found: dict[str, _Block] = {}
    for group in _names(file.attributes[root.rstrip("/")], "layer_names"):
        cells: dict[str, dict[str, str]] = {}
        for weight in _names(file.attributes.get(root + group, {}), "weight_names"):
            place, _, kind = weight.rpartition("/")
            cells.setdefault(place, {})[kind.partition(":")[0]] = f"{root}{group}/{weight}"
        for place, weights in cells.items():
            kinds = ("kernel", "recurrent_kernel", "bias")
            names = [weights[kind] for kind in kinds if kind in weights]
            if "recurrent_kernel" in weights and all(name in file.datasets for name in names):
                parts = _old_names([group, *place.split("/")])
                found.setdefault("/".join(parts), _Block(group, parts)).cells[place] = names
    return found


def _old_names(parts: list[str]) -> list[str]:
    """The path of a layer: that of its cell, without the cell's name and its direction."""
    if len(parts) > 2 and re.search(r"_cell(_\d+)?$", parts[-1]):
        parts = parts[:-1]
    if len(parts) > 2 and parts[-1].startswith(("forward_", "backward_")):
        parts = parts[:-1]
    return parts
