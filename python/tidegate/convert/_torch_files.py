"""Files of PyTorch weights as names and values: torch.save, safetensors, and shards of either.

`_torch` decides which of them belong to a layer. No content of a file is executed.
"""

from __future__ import annotations

import json
import pathlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidegate.checks import Array
from tidegate.convert._formats import SAFETENSORS, TORCH, Format, refuse_other
from tidegate.convert._paths import check_regular_file
from tidegate.convert._weights import import_extra, listed
from tidegate.files import TensorFile
from tidegate.tensors import from_bfloat16

_SAFETENSORS = ".safetensors"
_INDEX = ".index.json"
# An index names each tensor of a model once; those of the largest published models have some
# megabytes.
_MAX_INDEX = 64 << 20
# model-00001-of-00002.safetensors, model-00001-of-00002.fp16.bin, model_1_of_2.pt
_SHARD = re.compile(
    r"(?P<stem>.*?)(?<!\d)(?P<number>\d{1,9})[-_. ]of[-_. ](?P<count>\d{1,9})(?P<ending>(\D.*)?)",
    re.IGNORECASE | re.DOTALL,
)


def read_checkpoint(path: pathlib.Path) -> Mapping[Any, Any]:
    """The contents of a file, an index of shards, or a folder of shards.

    Args:
        path: a `.safetensors` file; a file of torch.save; an index of shards (`*.index.json`); or a
            folder that holds one index, one file without an index, or all shards of one model.

    Returns:
        Names and values; a file of torch.save may hold such mappings under keys. Values are
        tensors, or `Stored` from safetensors.

    Raises:
        ValueError: a file of another format, or one of several shards. The message says what it is
            and what to do with it.
        OSError: it does not exist or cannot be read.
        ImportError: it is a file of torch.save, and PyTorch is not installed.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        _refuse_other_format(path, TORCH)
    check_regular_file("module_or_state_dict", path)
    if path.name.endswith(".json"):
        return _read_index(path)
    _refuse_shard(path)
    return _read_file(path)


def _read_file(path: pathlib.Path) -> Mapping[Any, Any]:
    if path.suffix.lower() == _SAFETENSORS:
        return _read_safetensors(path)
    return _read_torch(path)


# ---- safetensors ---------------------------------------------------------------------------------


# The dtypes of quantised weights.
_QUANTISED = ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file; `read` reads its values."""

    file: TensorFile
    name: str

    def read(self) -> Array:
        """Its values; BF16 as float32, which holds them exactly.

        Raises:
            TypeError: its dtype is not a floating-point one.
        """
        dtype, shape = self.file.dtype_and_shape(self.name)
        if dtype == "BF16":
            return from_bfloat16(self.file.raw(self.name).view(np.uint16)).reshape(shape)
        if dtype not in ("F16", "F32", "F64"):
            hint = "; convert the float model, before quantisation" if dtype in _QUANTISED else ""
            raise TypeError(f"{self.name}: got dtype {dtype}, wanted F16, BF16, F32 or F64{hint}")
        return self.file[self.name]


def _read_safetensors(path: pathlib.Path) -> dict[str, Stored]:
    _refuse_other_format(path, SAFETENSORS)
    file = TensorFile(path)
    if "tidegate.format" in file.metadata:
        # The metadata specify the layers completely, unlike the shapes.
        raise ValueError(f"{path}: got a file of tidegate.save, which tidegate.load reads")
    return {name: Stored(file, name) for name in file}


# ---- torch.save ----------------------------------------------------------------------------------


def _read_torch(path: pathlib.Path) -> Mapping[Any, Any]:
    _refuse_other_format(path, TORCH)
    torch = import_extra("torch", "torch")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # relevant problems raise an error below
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # zipfile, pickle and PyTorch raise any type
            raise ValueError(
                f"{path}: not a file of weights of torch.save: {_reason(error)}"
            ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"{path}: got a {type(loaded).__name__}, wanted a state_dict{_way(loaded)}"
        )
    return loaded


def _way(loaded: object) -> str:
    """Advice about the result of torch.load, as the end of a message."""
    if isinstance(loaded, (list, tuple)):
        found = [k for k, entry in enumerate(loaded) if isinstance(entry, Mapping)]
        if found:
            entries = " or ".join(f"[{k}]" for k in found[:3])
            return f": pass torch.load(path, weights_only=True){entries} instead of the path"
    return ", a mapping of names and tensors: save module.state_dict(), or pass such a mapping"


def _refuse_other_format(path: pathlib.Path, own: Format) -> None:
    """Raises if a path holds a known format other than this one."""
    refuse_other(path, "a file of weights of PyTorch", own=(own,))


def _reason(error: Exception) -> str:
    """The reason in an error of torch.load, and what to do about it."""
    message = str(error)
    refused = re.search(r"WeightsUnpickler error:\s*(.*?)(\n\n|$)", message, re.DOTALL)
    blocked = re.search(r"[^\n]*unsupported GLOBAL[^\n]*", message)
    if blocked:  # it would run other code: do not suggest to trust it
        return f"it holds more than tensors: {blocked[0]}"
    if refused is None:
        reason = message.partition("\n")[0].partition(". ")[0] or "it ends too early"
        return f"it is damaged: {reason}"
    hint = " ".join(refused[1].split())
    if re.search(r"\btorch\.ScriptObject\b|\bquantized\b", hint):
        return (
            "its weights are quantised, and packed in objects that are not read from a file: "
            "convert the float model, before quantisation, or, if you trust the file, pass what "
            "torch.load(path, weights_only=False) returns instead of the path"
        )
    if not re.search(r"\b(global|class|type)\b", hint, re.IGNORECASE):
        return f"it is damaged, or holds more than tensors: {hint}"
    return (
        f"it holds more than tensors: {hint} Or, if you trust the file, pass what "
        "torch.load(path, weights_only=False) returns instead of the path."
    )


# ---- Shards --------------------------------------------------------------------------------------


def _refuse_shard(path: pathlib.Path) -> None:
    """Raises if the file is one of several shards, by its name or an index.

    The index is in the file's folder or the one above, and may have any name (*.json).
    """
    match = _SHARD.fullmatch(path.name)
    if match and int(match["count"]) > 1:
        raise ValueError(
            f"{path}: got shard {int(match['number'])} of {int(match['count'])}, which may "
            f"hold only a part of the layer; pass the index (*{_INDEX}) or the folder, or rename "
            "the file if it holds the whole"
        )
    place = path.parent.resolve() / path.name  # the file itself may be a link, as in caches
    for index in _near_indices(place):
        try:
            shards = {index.parent / shard for shard in _weight_map(index).values()}
        except (OSError, ValueError):
            continue  # it is not an index of shards
        if place in shards and len(shards) > 1:
            raise ValueError(
                f"{path}: got one of the {len(shards)} shards of {index.name}, which may hold only "
                "a part of the layer; pass the index or the folder"
            )


def _near_indices(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """The JSON files in a file's folder and the one above, except those that are too large."""
    size = 0
    for folder in (place.parent, place.parent.parent):
        named = sorted(folder.glob("*.json"), key=lambda index: not index.name.endswith(_INDEX))
        for index in named:
            size += index.stat().st_size if index.is_file() else 0
            if size <= _MAX_INDEX:
                yield index


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    """The names of tensors in an index, and the name of the file that holds each."""
    check_regular_file("module_or_state_dict", index)
    size = index.stat().st_size
    if size > _MAX_INDEX:
        raise ValueError(f"{index}: got {size} bytes, wanted an index of at most {_MAX_INDEX}")
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index}: not a JSON file: {error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f'{index}: not an index of shards, which has an object "weight_map" of names and files'
        )
    for name, shard in weight_map.items():
        place = pathlib.PurePath(shard if isinstance(shard, str) else "")
        if not place.name or place.is_absolute() or ".." in place.parts or "\0" in shard:
            raise ValueError(
                f"{index}: weight_map[{name!r}]: got {shard!r}, wanted the name of a file in the "
                "index's folder or below it"
            )
    return weight_map


def _check_complete(where: pathlib.Path, shards: Iterable[str]) -> None:
    """Raises if the names of shards imply that some are missing."""
    for (_, count, _), named in _models(shards).items():
        numbers = named.keys()
        if len(numbers) != count or max(numbers) - min(numbers) != count - 1:
            raise ValueError(
                f"{where}: got {len(numbers)} of {count} shards: {listed(named.values())}"
            )


def _models(shards: Iterable[str]) -> dict[tuple[str, int, str], dict[int, str]]:
    """The names of shards, by model (stem, number of shards, ending) and by number within it.

    Names without such numbers are left out.
    """
    models: dict[tuple[str, int, str], dict[int, str]] = {}
    for shard in shards:
        match = _SHARD.fullmatch(shard)
        if match:
            key = (match["stem"], int(match["count"]), match["ending"])
            models.setdefault(key, {})[int(match["number"])] = shard
    return models


def _read_index(index: pathlib.Path) -> dict[str, Any]:
    """All tensors of the shards; each shard must hold exactly those in the index."""
    names: dict[str, set[str]] = {}
    for name, shard in _weight_map(index).items():
        names.setdefault(shard, set()).add(name)
    _check_complete(index, names)
    absent = [shard for shard in names if not (index.parent / shard).exists()]
    if absent:
        raise ValueError(f"{index}: the shards {listed(absent)} are not in its folder")
    tensors: dict[str, Any] = {}
    for shard, wanted in names.items():
        path = index.parent / shard
        check_regular_file("module_or_state_dict", path)
        held = _read_file(path)
        if held.keys() != wanted:
            missing = listed(sorted(wanted - held.keys()))
            surplus = listed(sorted(map(str, held.keys() - wanted)))
            raise ValueError(f"{path}: missing {missing}; surplus {surplus}, by {index.name}")
        tensors.update(held)
    return tensors


def _read_folder(folder: pathlib.Path) -> Mapping[Any, Any]:
    """The only model in a folder, from its index, its only file, or all of its shards."""
    # Folders often have the same weights in both formats; safetensors need no PyTorch.
    for ending in (_SAFETENSORS, ".bin"):
        indices = sorted(folder.glob(f"*{ending}{_INDEX}"))
        files = sorted(folder.glob(f"*{ending}"))
        shards = [path for path in files if _SHARD.fullmatch(path.name)]
        found = indices or [path for path in files if path not in shards]
        if len(found) == 1 and (indices or not shards):
            return read_checkpoint(found[0])
        if found:
            names = listed(path.name for path in (*indices, *files))
            raise ValueError(f"{folder}: pass the path of one of its files: {names}")
        if shards:
            return _read_shards(folder, shards)
    refuse_other(folder, "a folder of PyTorch weights", own=())
    raise ValueError(
        f"{folder}: got a folder without PyTorch weights (*{_SAFETENSORS}, *.bin); pass the path "
        "of a file"
    )


def _read_shards(folder: pathlib.Path, shards: Sequence[pathlib.Path]) -> dict[str, Any]:
    """All tensors of the shards of a folder without an index."""
    names = [path.name for path in shards]
    models = _models(names)
    if len(models) > 1:
        raise ValueError(
            f"{folder}: got shards of {len(models)} models, wanted one: {listed(names)}"
        )
    _check_complete(folder, names)
    tensors: dict[str, Any] = {}
    for path in shards:
        check_regular_file("module_or_state_dict", path)
        held = _read_file(path)
        twice = held.keys() & tensors.keys()
        if twice:
            raise ValueError(f"{path}: {listed(sorted(map(str, twice)))} are in another shard too")
        tensors.update(held)
    return tensors
