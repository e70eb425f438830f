"""Keras files: the recurrent layers in them, options and arrays. What they mean is next door.

Two layouts: that of Keras 3 (and of TensorFlow's Keras from 2.12 on), where a layer's variables are
numbered in a group `vars`, and the older one, where groups list `weight_names`.
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
from typing import Any

import numpy as np

from tidegate.checks import Array
from tidegate.convert._weights import import_extra

# Models nest a few levels; Python's recursion ends at about 1000 calls.
_DEEPEST = 100
# Of a `.keras` archive: whole models and their descriptions are far smaller.
_LARGEST_MEMBER = {"metadata.json": 2**20, "config.json": 2**28, "model.weights.h5": 2**34}
# Deflate's best ratio: an array cannot stand for more bytes than that per byte stored.
_LARGEST_RATIO = 1032


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """A recurrent layer as a file or an object holds it.

    Attributes:
        name: the layer's, or where its weights lie in a file that has no names.
        class_name: Keras's; without a configuration "LSTM" or "GRU", from the shapes.
        config: its configuration; None if the file has none.
        version: Keras's major version; None if it is unknown.
        weights: kernel, recurrent_kernel and maybe bias, for each direction.
    """

    name: str
    class_name: str
    config: Mapping[str, Any] | None
    version: int | None
    weights: list[list[Array]]


def read_layers(
    path: pathlib.Path, name: str | None, class_names: Sequence[str]
) -> list[LayerWeights]:
    """The layers of a file that are of one of these classes; arrays just of that name (None: all).

    Raises:
        ValueError: it is no file of Keras, or damaged.
        ImportError: h5py is not installed.
    """
    with path.open("rb"):  # that there is none is no fault of its format
        pass
    with _open(path) as file:
        # A subclassed model has a configuration, but none of its layers.
        found = list(_described(file, class_names)) or list(_undescribed(file))
        wanted = [layer for layer in found if name in (None, layer.name)]
        if len(wanted) != 1:
            wanted = []  # the names are all that is asked for
        return [_read(file, layer, layer in wanted) for layer in found]


# ---- An open file --------------------------------------------------------------------------------


@dataclass(eq=False)
class _File:
    """Weights and the architecture, if it is there.

    Attributes:
        path: for messages.
        datasets: path -> h5py.Dataset of all that are really in this file, links not followed.
        attributes: path -> attributes of every group.
        version: Keras's, as it is written.
        config: that of the model.
    """

    path: pathlib.Path
    datasets: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: str = ""
    config: Mapping[str, Any] | None = None

    @property
    def major_version(self) -> int | None:
        number = self.version.partition(".")[0]
        return int(number) if re.fullmatch(r"\d{1,3}", number) else None

    def array(self, name: str) -> Array:
        """A dataset's values; nothing is read that the file itself does not hold."""
        dataset = self.datasets[name]
        if dataset.dtype.kind not in "fiuV" or dataset.dtype.itemsize > 16:
            raise TypeError(f"{name!r}: got dtype {dataset.dtype}, wanted floating point")
        stored = dataset.id.get_storage_size()
        if dataset.external or dataset.is_virtual or dataset.nbytes > stored * _LARGEST_RATIO:
            raise ValueError(
                f"{self.path}: {name!r}: its {dataset.nbytes} bytes are not in the file"
            )
        try:
            array = np.asarray(dataset[()])
        except Exception as error:  # h5py raises many types for a damaged file
            raise ValueError(f"{self.path}: {name!r}: cannot be read: {error}") from error
        # Stored as two bytes without meaning.
        if array.dtype == "V2" and _attributes(dataset).get("dtype") == "bfloat16":
            return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return array


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[_File]:
    h5py = import_extra("h5py", "keras")
    file = _File(path)
    with contextlib.ExitStack() as stack:
        source: Any = path
        try:
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
                members = {name: _member(archive, name) for name in _LARGEST_MEMBER}
                file.version = str(_object(members["metadata.json"]).get("keras_version", ""))
                file.config = _object(members["config.json"])
                source = io.BytesIO(members["model.weights.h5"])
            hdf5 = stack.enter_context(h5py.File(source, "r"))
            _index(file, hdf5)
        except Exception as error:  # zipfile's, zlib's, json's and h5py's, of many types
            raise ValueError(f"{path}: not a file of Keras: {error}") from error
        yield file


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > _LARGEST_MEMBER[name]:
        raise ValueError(f"{name} claims {size} bytes")
    return archive.read(name)


def _object(text: str | bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}, wanted a JSON object")
    return value


def _index(file: _File, hdf5: Any) -> None:
    h5py = import_extra("h5py", "keras")

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            file.datasets[name] = item
        else:
            file.attributes[name] = _attributes(item)

    file.attributes[""] = _attributes(hdf5)
    hdf5.visititems(note)
    root = file.attributes[""]
    if file.config is None and "model_config" in root:
        file.config = _object(_text(root["model_config"]))
    for place in (root, file.attributes.get("model_weights", {})):
        file.version = file.version or _text(place.get("keras_version", ""))


def _attributes(item: Any) -> dict[str, Any]:
    """The attributes that are strings, or arrays of strings.

    No others are read: on damaged ones of other types the HDF5 library may crash.
    """
    h5a, h5t = import_extra("h5py.h5a", "keras"), import_extra("h5py.h5t", "keras")
    result = {}
    for name in item.attrs:
        kind = h5a.open(item.id, name.encode("utf-8", "surrogateescape")).get_type()
        if isinstance(kind, h5t.TypeStringID):
            result[name] = item.attrs[name]
    return result


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# ---- Layers --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer before its arrays are read: `directions` are lists of datasets' paths."""

    name: str
    class_name: str
    config: Mapping[str, Any] | None
    directions: list[list[str]]


def _read(file: _File, layer: _Layer, arrays: bool) -> LayerWeights:
    weights = [[file.array(name) for name in names] for names in layer.directions if arrays]
    return LayerWeights(layer.name, layer.class_name, layer.config, file.major_version, weights)


def _described(file: _File, class_names: Sequence[str]) -> Iterator[_Layer]:
    """Those of the configuration, each with its arrays."""
    blocks = _blocks(file)
    for name, class_name, config, place, group in _walk(file.config or {}, "", "", 0):
        if class_name in class_names:
            yield _Layer(name, class_name, config, _find_block(blocks, name, place, group))


def _walk(
    model: Mapping[str, Any], place: str, group: str, depth: int
) -> Iterator[tuple[str, str, Mapping[str, Any], str, str]]:
    """Every layer's name, class, configuration, and where its weights lie in either layout.

    A group of the newer layout is named by the class and the number of such before it, one of the
    older layout by the layer of the outermost model.
    """
    config = model.get("config")
    # Before Keras 2.2 a Sequential's configuration was the list itself.
    layers = config.get("layers") if isinstance(config, Mapping) else config
    if not isinstance(layers, list) or depth > _DEEPEST:
        return
    used: dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer, Mapping) or not isinstance(layer.get("class_name"), str):
            continue
        class_name, own = layer["class_name"], layer.get("config")
        slug = _snake_case(class_name)
        used[slug] = used.get(slug, -1) + 1
        number = f"_{used[slug]}" if used[slug] else ""
        inner_place = f"{place}layers/{slug}{number}"
        name = own.get("name") if isinstance(own, Mapping) else layer.get("name")
        if not isinstance(name, str):
            name = inner_place
        inner_group = group or name
        if isinstance(own, Mapping) and "layers" not in own:
            yield name, class_name, own, inner_place, inner_group
        else:
            yield from _walk(layer, f"{inner_place}/", inner_group, depth + 1)


def _snake_case(class_name: str) -> str:
    """As Keras names groups after classes: CuDNNLSTM is cu_dnnlstm."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _undescribed(file: _File) -> Iterator[_Layer]:
    """Those whose shapes are an LSTM's or a GRU's, in a file without configurations."""
    blocks = _blocks(file)
    groups = collections.Counter(block.group for block in blocks.values())
    for place, block in blocks.items():
        name = block.group if block.group and groups[block.group] == 1 else block.name
        directions = block.in_order()
        recurrent = file.datasets[directions[0][1]]
        gates = recurrent.shape[1] // recurrent.shape[0]
        yield _Layer(name or place, {3: "GRU", 4: "LSTM"}[gates], None, directions)


@dataclass(eq=False)
class _Block:
    """The arrays of one layer: of each direction's cell, by the path that leads to it.

    Attributes:
        group: in the older layout, the outermost layer's; in the newer one "".
        name: the layer's name, if the file tells.
    """

    group: str
    name: str
    cells: dict[str, list[str]] = field(default_factory=dict)

    def in_order(self) -> list[list[str]]:
        """Forward before backward."""
        paths = sorted(self.cells, key=lambda path: "backward_" in path)  # keeps the file's order
        return [self.cells[path] for path in paths]


def _find_block(blocks: Mapping[str, _Block], name: str, place: str, group: str) -> list[list[str]]:
    """The arrays of the layer of this name; none if they are not there."""
    if place in blocks:
        return blocks[place].in_order()
    inside = [block for block in blocks.values() if block.group == group]
    for block in inside:
        if block.name == name:
            return block.in_order()
    # The cell of an RNN may have a name that hides the layer's.
    return inside[0].in_order() if len(inside) == 1 and group == name else []


def _blocks(file: _File) -> dict[str, _Block]:
    """Place -> arrays of each layer that has those of an LSTM or a GRU."""
    places = (file.attributes[""], file.attributes.get("model_weights", {}))
    old = any(_names(attributes, "layer_names") for attributes in places)
    found = _old_blocks(file) if old else _new_blocks(file)
    for block in found.values():
        block.cells = {
            path: names for path, names in block.cells.items() if _is_recurrent(file, names)
        }
    return {place: block for place, block in found.items() if block.cells}


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
    groups = sorted({name.rpartition("/")[0] for name in file.datasets})
    for group in groups:
        parts = group.split("/")
        if parts.pop() != "vars":
            continue
        if parts and parts[-1] == "cell":
            parts.pop()
        elif "/".join((*parts, "cell", "vars")) in groups:
            continue  # a stateful layer's states
        cell = "/".join(parts)
        if parts and parts[-1] in ("forward_layer", "backward_layer"):
            parts.pop()
        # Keras 2.13 had another name for the list of a model's layers.
        place = "/".join(parts).replace("_layer_checkpoint_dependencies", "layers")
        name = _text(file.attributes.get("/".join((*parts, "vars")), {}).get("name", ""))
        count = sum(1 for dataset in file.datasets if dataset.startswith(f"{group}/"))
        names = [f"{group}/{number}" for number in range(count)]
        if all(dataset in file.datasets for dataset in names):
            found.setdefault(place, _Block("", name)).cells[cell] = names
    return found


def _old_blocks(file: _File) -> dict[str, _Block]:
    """<layer>/<name of a weight>, where names end in kernel:0, recurrent_kernel:0 and bias:0."""
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
                parts = place.split("/")
                if len(parts) > 1 and re.search(r"_cell(_\d+)?$", parts[-1]):
                    parts.pop()
                if len(parts) > 1 and parts[-1].startswith(("forward_", "backward_")):
                    parts.pop()
                block = _Block(group, parts[-1])
                found.setdefault(f"{group}/{'/'.join(parts)}", block).cells[place] = names
    return found


def _names(attributes: Mapping[str, Any], key: str) -> list[str]:
    """A list of names; Keras splits a long one into key0, key1 and so on."""
    parts = [attributes[key]] if key in attributes else []
    while f"{key}{len(parts)}" in attributes:
        parts.append(attributes[f"{key}{len(parts)}"])
    return [_text(name) for part in parts for name in np.ravel(part)]
