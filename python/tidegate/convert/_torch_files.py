"""Files of PyTorch weights as names and values: torch.save, safetensors, and shards of either.

Which of them belong to a layer is not decided here. Nothing in a file is executed.
"""

from __future__ import annotations

import json
import pathlib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidegate.checks import Array
from tidegate.convert._formats import PICKLE, TORCH, ZIP, refuse_other
from tidegate.convert._paths import check_regular_file
from tidegate.convert._weights import import_extra, listed
from tidegate.files import TensorFile
from tidegate.tensors import from_bfloat16

SAFETENSORS = ".safetensors"
_INDEX = ".index.json"
# An index names each tensor of a model once: of the largest that are published, some megabytes.
_MAX_INDEX = 64 << 20
# model-00001-of-00002.safetensors, pytorch_model_00001-of-00002.bin, model-00001-of-00002.fp16.bin
_SHARD = re.compile(r"(?P<stem>.*)[-_.](?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\..+)")


def read_checkpoint(path: pathlib.Path) -> Mapping[Any, Any]:
    """What a file, an index of shards, or a folder of shards holds.

    Args:
        path: a `.safetensors` file; a file of torch.save; an index of shards (`*.index.json`); or a
            folder that holds one index, one file without an index, or all shards of one model.

    Returns:
        Names and values; a file of torch.save may hold such mappings under keys. Values are
        tensors, or `Stored` of safetensors.

    Raises:
        ValueError: no such file, one of another format, or one of several shards. The message says
            what it is and what to do with it.
        OSError: it is not there or cannot be read.
        ImportError: a file of torch.save, without PyTorch.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        _refuse_other_format(path)
    check_regular_file("module_or_state_dict", path)
    if path.name.endswith(".json"):
        return _read_index(path)
    _refuse_shard(path)
    return _read_file(path)


def _read_file(path: pathlib.Path) -> Mapping[Any, Any]:
    if path.suffix.lower() == SAFETENSORS:
        return _read_safetensors(path)
    return _read_torch(path)


# ---- safetensors ---------------------------------------------------------------------------------


# The dtypes of quantised weights.
_QUANTISED = ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file, which is read when it is needed."""

    file: TensorFile
    name: str

    def read(self) -> Array:
        """Its values; BF16 as float32, which holds them exactly.

        Raises:
            TypeError: it is not of floating point.
        """
        dtype, shape = self.file.dtype_and_shape(self.name)
        if dtype == "BF16":
            return from_bfloat16(self.file.raw(self.name).view(np.uint16)).reshape(shape)
        if dtype not in ("F16", "F32", "F64"):
            hint = "; convert the float model, before quantisation" if dtype in _QUANTISED else ""
            raise TypeError(f"{self.name}: got dtype {dtype}, wanted F16, BF16, F32 or F64{hint}")
        return self.file[self.name]


def _read_safetensors(path: pathlib.Path) -> dict[str, Stored]:
    file = TensorFile(path)
    if "tidegate.format" in file.metadata:
        # Its metadata say more of the layers than their shapes do.
        raise ValueError(f"{path}: got a file of tidegate.save, which tidegate.load reads")
    return {name: Stored(file, name) for name in file}


# ---- torch.save ----------------------------------------------------------------------------------


def _read_torch(path: pathlib.Path) -> Mapping[Any, Any]:
    _refuse_other_format(path)
    torch = import_extra("torch", "torch")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is worth one is an error below
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # zipfile's, pickle's and PyTorch's own, of any type
            raise ValueError(
                f"{path}: not a file of weights of torch.save: {_reason(str(error))}"
            ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path}: got {type(loaded).__name__}, wanted a state_dict")
    return loaded


def _refuse_other_format(path: pathlib.Path) -> None:
    refuse_other(path, "a file of weights of torch.save", own=(TORCH, PICKLE, ZIP))


def _reason(message: str) -> str:
    """What torch.load says, with its hint, and what to do about it."""
    refused = re.search(r"WeightsUnpickler error: (.*?)(\n\n|$)", message, re.DOTALL)
    if refused is None:
        return message.partition("\n")[0].partition(". ")[0]
    hint = " ".join(refused[1].split())
    if re.search(r"\btorch\.ScriptObject\b|\bquantized\b", hint):
        return "its weights are quantised; convert the float model, before quantisation"
    return (
        f"it holds more than tensors: {hint} Or, if you trust the file, pass what "
        "torch.load(path, weights_only=False) returns instead of the path."
    )


# ---- Shards --------------------------------------------------------------------------------------


def _refuse_shard(path: pathlib.Path) -> None:
    """Raises if the file is one of several: its name or an index beside it says so."""
    match = _SHARD.fullmatch(path.name)
    if match and int(match["count"]) > 1:
        raise ValueError(
            f"{path}: got shard {int(match['number'])} of {int(match['count'])}, which may hold a "
            f"part of the layer alone; pass the index (*{_INDEX}) or the folder"
        )
    for index in sorted(path.parent.glob(f"*{_INDEX}")):
        try:
            shards = set(_weight_map(index).values())
        except (OSError, ValueError):
            continue  # not an index of shards, so it says nothing of this file
        if path.name in shards and len(shards) > 1:
            raise ValueError(
                f"{path}: got one of the {len(shards)} shards of {index.name}, which may hold a "
                "part of the layer alone; pass the index or the folder"
            )


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    """The index's names of tensors, and the file beside it that holds each."""
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
        plain = isinstance(shard, str) and shard not in ("", ".", "..")
        if not plain or pathlib.PurePath(shard).name != shard or "\0" in shard:
            raise ValueError(
                f"{index}: weight_map[{name!r}]: got {shard!r}, wanted the name of a file in the "
                "index's folder"
            )
    return weight_map


def _read_index(index: pathlib.Path) -> dict[str, Any]:
    """All tensors of the shards; each shard must hold just those that the index says."""
    names: dict[str, set[str]] = {}
    for name, shard in _weight_map(index).items():
        names.setdefault(shard, set()).add(name)
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
    """The one model in a folder: by its index, its only file, or all of its shards."""
    # The same weights often lie there in both formats; safetensors need no PyTorch.
    for ending in (SAFETENSORS, ".bin"):
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
        f"{folder}: got a folder without PyTorch weights (*{SAFETENSORS}, *.bin); pass the path of "
        "a file"
    )


def _read_shards(folder: pathlib.Path, shards: Iterable[pathlib.Path]) -> dict[str, Any]:
    """All tensors of the shards of a folder without an index."""
    models: dict[tuple[str, int, str], dict[int, pathlib.Path]] = {}
    for path in shards:
        match = _SHARD.fullmatch(path.name)
        assert match is not None
        key = (match["stem"], int(match["count"]), match["ending"])
        models.setdefault(key, {})[int(match["number"])] = path
    if len(models) > 1:
        names = listed(path.name for path in shards)
        raise ValueError(f"{folder}: got shards of {len(models)} models, wanted one: {names}")
    ((_, count, _), numbered), *_ = models.items()
    if len(numbered) != count or max(numbered) - min(numbered) != count - 1:
        names = listed(path.name for path in numbered.values())
        raise ValueError(f"{folder}: got {len(numbered)} of {count} shards: {names}")
    tensors: dict[str, Any] = {}
    for path in numbered.values():
        check_regular_file("module_or_state_dict", path)
        held = _read_file(path)
        twice = held.keys() & tensors.keys()
        if twice:
            raise ValueError(f"{path}: {listed(sorted(map(str, twice)))} are in another shard too")
        tensors.update(held)
    return tensors
