"""PyTorch: modules, state_dicts and files of them to layers, and back. PyTorch's names are ours."""

from __future__ import annotations

import pathlib
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate.checks import Array, check_bool
from tidegate.convert._weights import (
    GATES,
    Path,
    RecurrentLayer,
    as_path,
    as_weights,
    carried_parameters,
    check_layer,
    check_rank,
    import_extra,
    listed,
    make_layer,
)
from tidegate.files import TensorFile
from tidegate.layers import GRU, LSTM

if TYPE_CHECKING:
    import torch

# Parameters of nn.LSTM and nn.GRU, and without _l... those of the cells.
_NAME = re.compile(r"(weight|bias)_(ih|hh|hr)(_l(?P<layer>0|[1-9]\d{0,5})(?P<reverse>_reverse)?)?")


def from_torch(
    module_or_state_dict: torch.nn.Module | Mapping[str, Any] | Path,
    prefix: str = "",
    *,
    cell: str | None = None,
    batch_first: bool | None = None,
) -> RecurrentLayer:
    """An LSTM or a GRU with the weights of one of PyTorch's.

    Layers, directions, biases, `proj_size` and the cell follow from names and shapes; a module
    tells `batch_first` and `dropout` too. The layer has the weights' dtype, bit for bit; float16
    and bfloat16 become float32, which holds them exactly. No name may be missing or left over.

    Args:
        module_or_state_dict: `nn.LSTM`, `nn.GRU`, `nn.LSTMCell`, `nn.GRUCell`, or a module that
            holds such a one; its state_dict, of tensors or ndarrays (no PyTorch needed); a
            `.safetensors` file; or a file of `torch.save`, which is read with `weights_only=True`
            and may hold the state_dict under the key "state_dict". Of a subclass the parameters
            are taken, not what its own `forward` adds.
        prefix: what stands before the names, "encoder.rnn." or "encoder.rnn". What does not begin
            with it is ignored.
        cell: "LSTM" or "GRU", to be held against the shapes; None takes what they say.
        batch_first: whether x and y are (N, T, ...). None is what the module says, else False.

    Returns:
        layer: a cell becomes a layer of its own size, for sequences and streams.

    Raises:
        TypeError: no such thing, or weights that are neither float32, float64, float16 nor
            bfloat16, or not all the same.
        ValueError: names are missing, surplus or of the wrong shape, or there is no LSTM or GRU of
            this prefix (the message lists those that there are); a file that cannot be read.
        ImportError: a file's format needs a package that is not installed.
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: got {type(prefix).__name__}, wanted a str")
    if cell is not None:
        cell = _check_cell(cell)
    if batch_first is not None:
        batch_first = check_bool("batch_first", batch_first)
    dropout = 0.0
    path = as_path(module_or_state_dict)
    if path is not None:
        given: Mapping[str, Any] = _read_file(path)
        where = str(path)
    elif isinstance(module_or_state_dict, Mapping):
        given, where = module_or_state_dict, "state_dict"
    elif _is_module(module_or_state_dict):
        module: Any = module_or_state_dict
        given, where = module.state_dict(), type(module).__name__
        owner = _owner(module, prefix)
        if batch_first is None:
            batch_first = getattr(owner, "batch_first", False) is True
        told = getattr(owner, "dropout", 0.0)
        dropout = float(told) if isinstance(told, (int, float)) else 0.0
    else:
        raise TypeError(
            f"module_or_state_dict: got {type(module_or_state_dict).__name__}, wanted a "
            "torch.nn.Module, a mapping or a path"
        )
    arrays = _select(given, prefix, where)
    return _from_arrays(where, arrays, cell, bool(batch_first), dropout)


def _check_cell(cell: object) -> str:
    wanted = str(cell).upper()
    if not isinstance(cell, str) or wanted not in GATES:
        raise ValueError(f"cell: got {cell!r}, wanted 'LSTM', 'GRU' or None")
    return wanted


def _is_module(value: object) -> bool:
    """Whether it is a torch.nn.Module. If PyTorch is not imported yet, nothing can be one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _owner(module: Any, prefix: str) -> Any:
    """The module that the prefix leads to, or None. `get_submodule` does not know scripted ones."""
    for part in prefix.removesuffix(".").split(".") if prefix else ():
        module = getattr(module, part, None)
    return module


# ---- Files ---------------------------------------------------------------------------------------


def _read_file(path: pathlib.Path) -> Mapping[str, Any]:
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    torch = import_extra("torch", "torch")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is worth one is an error below
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # zipfile's, pickle's and PyTorch's own, of any type
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise ValueError(f"{path}: not a file of weights of torch.save: {reason}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path}: got {type(loaded).__name__}, wanted a state_dict")
    return loaded


def _read_safetensors(path: pathlib.Path) -> dict[str, Any]:
    file = TensorFile(path)
    if "tidegate.format" in file.metadata:
        # It says more of its layers than their shapes do.
        raise ValueError(f"{path}: got a file of tidegate.save, which tidegate.load reads")
    return {name: _Stored(file, name) for name in file}


@dataclass(frozen=True)
class _Stored:
    """A tensor of a safetensors file, read when it turns out to be wanted."""

    file: TensorFile
    name: str

    def read(self) -> Array:
        dtype, shape = self.file.dtype_and_shape(self.name)
        if dtype == "BF16":  # the upper half of a float32
            bits = self.file.raw(self.name).view(np.uint16)
            return (bits.astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if dtype not in ("F16", "F32", "F64"):
            raise TypeError(f"{self.name}: got dtype {dtype}, wanted F16, BF16, F32 or F64")
        return self.file[self.name]


# ---- Names and shapes ----------------------------------------------------------------------------


def _select(given: Mapping[str, Any], prefix: str, where: str) -> dict[str, Any]:
    """What begins with the prefix, by the names behind it; one of them must be a parameter's."""
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"{where}: got the key {name!r}, wanted names")
    for stem in (prefix, prefix + "."):
        chosen = {name.removeprefix(stem): name for name in given if name.startswith(stem)}
        if any(_NAME.fullmatch(name) for name in chosen):
            return {name: given[key] for name, key in chosen.items()}
    matches = [re.fullmatch(f"(?P<prefix>.*?){_NAME.pattern}", name, re.DOTALL) for name in given]
    prefixes = dict.fromkeys(match["prefix"] for match in matches if match)
    raise ValueError(
        f"{where}: no LSTM or GRU has the prefix {prefix!r}; prefixes of those that there are: "
        f"{listed(prefixes)}"
    )


def _from_arrays(
    where: str, given: Mapping[str, Any], cell: str | None, batch_first: bool, dropout: float
) -> RecurrentLayer:
    alone = "weight_hh" in given or "weight_ih" in given  # of an nn.LSTMCell or nn.GRUCell
    num_layers = 1
    while f"weight_hh_l{num_layers}" in given:
        num_layers += 1
    bidirectional = any(name.endswith("_reverse") for name in given)
    bias = any(name.startswith("bias_") for name in given)
    projected = any(name.startswith("weight_hr") for name in given)
    kinds = ["weight_ih", "weight_hh"]
    kinds += ["bias_ih", "bias_hh"] if bias else []
    kinds += ["weight_hr"] if projected else []
    suffixes = [
        f"_l{k}{r}" for k in range(num_layers) for r in ("", "_reverse")[: 1 + bidirectional]
    ]
    wanted = [kind + suffix for suffix in ([""] if alone else suffixes) for kind in kinds]
    missing = [name for name in wanted if name not in given]
    surplus = [name for name in given if name not in wanted]
    if missing or surplus:
        raise ValueError(f"{where}: missing {listed(missing)}; surplus {listed(surplus)}")

    arrays = as_weights({name: _as_array(name, given[name]) for name in wanted})
    if alone:
        arrays = {f"{name}_l0": array for name, array in arrays.items()}
    for name in ("weight_ih_l0", "weight_hh_l0"):
        check_rank(name, arrays[name], 2, "two axes, none of them empty")
    rows, state_size = arrays["weight_hh_l0"].shape
    hidden_size = state_size
    options: dict[str, Any] = {}
    if projected:
        check_rank("weight_hr_l0", arrays["weight_hr_l0"], 2, "(proj_size, hidden_size)")
        hidden_size = arrays["weight_hr_l0"].shape[1]
        options["proj_size"] = state_size
    found = {4 * hidden_size: "LSTM", 3 * hidden_size: "GRU"}.get(rows)
    if found is None or (projected and found == "GRU"):
        raise ValueError(
            f"weight_hh: got shape {(rows, state_size)} for a hidden_size of {hidden_size}, wanted "
            "4*hidden_size rows (LSTM) or 3*hidden_size (GRU, without a projection)"
        )
    if cell not in (None, found):
        raise ValueError(f"cell: got {cell!r}, but weight_hh has the shape of a {found}")
    if num_layers > 1:  # where dropout acts; nn.LSTM takes it along without effect
        options["dropout"] = dropout
    return make_layer(
        found,
        arrays,
        input_size=arrays["weight_ih_l0"].shape[1],
        hidden_size=hidden_size,
        num_layers=num_layers,
        bias=bias,
        bidirectional=bidirectional,
        batch_first=batch_first,
        **options,
    )


def _as_array(name: str, value: Any) -> Any:
    """A tensor's values as an ndarray; what is no tensor is left for others to check."""
    if isinstance(value, _Stored):
        return value.read()
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    if value.is_meta or value.layout is not torch.strided or not value.is_floating_point():
        raise TypeError(
            f"{name}: got a {value.dtype} tensor ({value.layout}, on {value.device}), wanted a "
            "dense one of floating point"
        )
    tensor = value.detach().cpu()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: got dtype {tensor.dtype}, wanted float32, float64 or a half")
    return tensor.numpy()


# ---- Back ----------------------------------------------------------------------------------------


def to_torch(layer: RecurrentLayer) -> torch.nn.LSTM | torch.nn.GRU:
    """An `nn.LSTM` or `nn.GRU` with copies of a layer's parameters, bit for bit, in its dtype.

    `update_gate="write"` becomes PyTorch's form, in which the parameters of z have the other sign.
    The module is in training mode, as PyTorch makes them, and draws no random numbers.

    Raises:
        TypeError: layer is neither an LSTM nor a GRU.
        ValueError: it has what PyTorch's have not: peepholes, reset_after=False, reverse=True,
            other activations, clip, input_forget. The message names each.
        ImportError: PyTorch is not installed.
    """
    layer = check_layer(layer)
    unknown = {
        "peephole": False,
        "reset_after": True,
        "reverse": False,
        "recurrent_activation": "sigmoid",
        "activation": "tanh",
        "output_activation": None,
        "clip": None,
        "input_forget": False,
    }
    options = {name: getattr(layer, name, usual) for name, usual in unknown.items()}
    if options["output_activation"] == options["activation"]:
        options["output_activation"] = None
    refused = [f"{name}={options[name]!r}" for name in unknown if options[name] != unknown[name]]
    if refused:
        raise ValueError(f"layer: torch.nn.{type(layer).__name__} has no {', '.join(refused)}")
    torch = import_extra("torch", "torch")
    own: dict[str, Any] = {}
    if isinstance(layer, LSTM) and layer.proj_size:
        own["proj_size"] = layer.proj_size
    if layer.num_layers > 1:
        own["dropout"] = layer.dropout
    kind = torch.nn.GRU if isinstance(layer, GRU) else torch.nn.LSTM
    module = kind(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bias=layer.bias,
        batch_first=layer.batch_first,
        bidirectional=layer.bidirectional,
        device="meta",  # without memory of its own: nothing is drawn
        **own,
    )
    params = carried_parameters(layer)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in params.items()}, assign=True)
    return module
