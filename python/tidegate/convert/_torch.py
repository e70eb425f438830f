"""PyTorch modules, state_dicts and files as layers, and back. Both libraries use the same names."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from tidegate.checks import Array, Precision, check_bool
from tidegate.convert._quantized import QuantizedWeight
from tidegate.convert._torch_computed import PARTS, PREFIX, computed_weights, module_weights
from tidegate.convert._torch_files import Stored, read_checkpoint
from tidegate.convert._torch_quantized import PACKED, unpacked
from tidegate.convert._weights import (
    GATES,
    Path,
    RecurrentLayer,
    as_layer_weights,
    as_path,
    as_weights,
    carried_parameters,
    check_layer,
    check_rank,
    check_shape,
    check_wanted_precision,
    import_extra,
    in_precision,
    listed,
    make_layer,
)
from tidegate.layers import GRU, LSTM
from tidegate.linear import Linear
from tidegate.tensors import array_of, is_tensor, values_of

if TYPE_CHECKING:
    import torch

# Names of parameters: of nn.LSTM and nn.GRU, and of their cells (without _l...); of Linear and
# Embedding.
_RECURRENT = r"(?:weight|bias)_(?:ih|hh|hr)(?:_l(?:0|[1-9]\d{0,5})(?:_reverse)?)?"
_PLAIN = r"weight|bias"
# The names that other quantised (and quantizable) modules have instead.
_QUANTISED = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?:_packed_\w+|layers\.\d+\.layer_(?:fw|bw)\.cell\.).*",
    re.DOTALL,
)
# Checkpoints are not searched more deeply.
_MAX_DEPTH = 8
# The most entries that are searched again because they are reachable by several keys.
_MAX_REPEATED = 100_000
# Longer names are not searched for prefixes.
_MAX_NAME = 1000

_Source: TypeAlias = "torch.nn.Module | Mapping[str, Any] | Path"


@overload
def from_torch(
    module_or_state_dict: _Source,
    prefix: str = "",
    *,
    cell: Literal["LSTM"],
    batch_first: bool | None = None,
    dequantize: bool = False,
    precision: Precision | None = None,
) -> LSTM: ...
@overload
def from_torch(
    module_or_state_dict: _Source,
    prefix: str = "",
    *,
    cell: Literal["GRU"],
    batch_first: bool | None = None,
    dequantize: bool = False,
    precision: Precision | None = None,
) -> GRU: ...
@overload
def from_torch(
    module_or_state_dict: _Source,
    prefix: str = "",
    *,
    cell: Literal["Linear"],
    precision: Precision | None = None,
) -> Linear: ...
@overload
def from_torch(
    module_or_state_dict: _Source, prefix: str = "", *, cell: Literal["Embedding"]
) -> Array: ...
@overload
def from_torch(
    module_or_state_dict: _Source,
    prefix: str = "",
    *,
    cell: str | None = None,
    batch_first: bool | None = None,
    dequantize: bool = False,
    precision: Precision | None = None,
) -> RecurrentLayer | Any: ...
def from_torch(
    module_or_state_dict: _Source,
    prefix: str = "",
    *,
    cell: str | None = None,
    batch_first: bool | None = None,
    dequantize: bool = False,
    precision: Precision | None = None,
) -> RecurrentLayer | Linear | Array:
    """A layer with the weights of a PyTorch module: an LSTM, a GRU or a Linear.

    Layers, directions, biases, `proj_size` and the cell follow from names and shapes. The layer has
    the weights' dtype, bit for bit; float16 and bfloat16 become float32, which holds them exactly.
    No name may be missing or surplus.

    `batch_first` and `dropout` come from the module, also from a traced one (which has them in its
    graph). **A state_dict or a file contains neither**: pass `batch_first=True` if the module had
    it, otherwise x and y are (T, N, ...). `dropout`, which only training uses, is then 0.

    Weights that a module computes at each forward are computed as in evaluation mode: those of
    parametrised modules (weight_norm, spectral_norm, orthogonal, or a custom class), of the older
    weight_norm and spectral_norm, and of prune. In a state_dict the names reveal how the weights of
    prune, weight_norm and spectral_norm are computed (with a warning for parametrizations, whose
    class it does not contain); others are refused.

    `torch.ao.nn.quantized.dynamic.LSTM` and `GRU`, as `quantize_dynamic` makes them, with scales
    per tensor or per channel, give a layer in int8 with the integers and scales of the module; with
    float16 weights a float32 layer. The state_dict of such a module, which holds packed weights,
    can be converted too, but not a file of it, which has to be loaded with `weights_only=False`.
    An int8 layer quantises x and h by its own rule (`LSTM.quantize`): a scale for each row and
    step, symmetric, in 255 levels. PyTorch has one scale and zero point for all rows, with 128
    levels ("reduced range"), so results differ by these roundings. For LSTM(64, 128) with random
    weights, 100 steps and normal x, y differs from that of the dequantised weights by at most 0.006
    (rms 0.0008), and PyTorch's by 0.016 (rms 0.0022); for GRU(64, 128) by 0.010 (rms 0.0014) and
    0.025 (rms 0.0044).

    Args:
        module_or_state_dict: `nn.LSTM`, `nn.GRU`, `nn.LSTMCell`, `nn.GRUCell`, `nn.Linear`,
            `nn.Embedding`, or a module that contains one of these; its state_dict, of tensors or
            ndarrays (which need no PyTorch); a dict that has either under some key, as checkpoints
            do; or the path of a `.safetensors` file, a file of `torch.save` (which is read with
            `weights_only=True`), an index of shards (`*.index.json`), or a folder that holds the
            shards or the only file of a model. For a subclass the parameters are used, without what
            its own `forward` adds; hooks are ignored.
        prefix: the prefix of the names, "encoder.rnn." or "encoder.rnn". Other names are ignored.
            It may include keys of nested dicts: "model.encoder.rnn"; without them, only one of the
            nested dicts may have the prefix.
        cell: "LSTM" or "GRU", which must agree with the shapes; "Linear" or "Embedding". None takes
            it from the module, or from names and shapes; a `weight` alone is ambiguous between the
            last two.
        batch_first: whether x and y are (N, T, ...). None takes it from the module, else False.
        dequantize: True makes float32 weights of quantised ones: (integer - zero point) * scale.
        precision: the low precision of the layer, as by `quantize`, for example "int8"; None:
            that of the weights. With "bfloat16" or "bfloat16-dot" a bfloat16 checkpoint keeps its
            weights bit for bit.

    Returns:
        layer: a cell becomes a layer of its own size, for sequences and streams. For an Embedding,
            the weight: a new array (num_embeddings, embedding_dim), to be indexed.

    Raises:
        TypeError: the argument is none of these, or weights are neither float32, float64, float16
            nor bfloat16 (quantised weights, for example), or of different dtypes.
        ValueError: names are missing, surplus or of the wrong shape; there is no LSTM or GRU with
            this prefix (the message lists the existing ones), or more than one; a state_dict does
            not reveal how to compute a weight; masked elements; an Embedding with max_norm; a file
            that cannot be read, or one of several shards; quantised weights with a zero point other
            than 0; a precision for an Embedding, or weights of float64.
        ImportError: a file's format needs a package that is not installed.
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: got {type(prefix).__name__}, wanted a str")
    if cell is not None:
        cell = _check_cell(cell)
    if batch_first is not None:
        batch_first = check_bool("batch_first", batch_first)
    dequantize = check_bool("dequantize", dequantize)
    precision = check_wanted_precision(precision)
    source: Any = module_or_state_dict
    path = as_path(source)
    if path is not None:
        where, source = str(path), read_checkpoint(path)
    elif isinstance(source, Mapping):
        where = "state_dict"
    elif _is_module(source):
        where = type(source).__name__
    else:
        raise TypeError(
            f"module_or_state_dict: got {type(source).__name__}, wanted a torch.nn.Module, a "
            "mapping or a path"
        )
    found = _find(where, source, prefix, cell)
    given = found.given
    if found.owner is not None and not _is_scripted(found.owner):
        given = module_weights(found.owner, given)
    names = _RECURRENT if found.recurrent else _PLAIN
    advice = "pass the module instead of its state_dict"
    if found.owner is not None:
        advice = "make it a plain parameter first (for example by torch.nn.utils.prune.remove)"
    given = computed_weights(given, names, _as_array, advice)
    given = unpacked(where, given, found.owner)
    if dequantize:
        given = {
            name: value.dequantized() if isinstance(value, QuantizedWeight) else value
            for name, value in given.items()
        }
    if found.recurrent:
        options = _module_options(found.owner)
        is_cell = "weight_hh" in given or "weight_ih" in given  # an nn.LSTMCell or nn.GRUCell
        if batch_first is None:
            batch_first = options.get("batch_first", False)
            if _is_scripted(found.owner) and not is_cell and "batch_first" not in options:
                raise ValueError(
                    "batch_first: got None, but this scripted module does not contain it"
                )
        dropout = options.get("dropout", 0.0)
        layer = _from_arrays(where, given, is_cell, cell, batch_first, dropout)
        return in_precision(layer, precision)
    if batch_first is not None:
        raise ValueError(f"batch_first: got {batch_first}, but {prefix!r} is not recurrent")
    plain = _plain_from_arrays(where, given, found.owner, cell)
    if isinstance(plain, Linear):
        return in_precision(plain, precision)
    if precision is not None:
        raise ValueError(f"precision: got {precision!r}, but an Embedding's weight is an array")
    return plain


def _check_cell(cell: object) -> str:
    for wanted in (*GATES, *_PLAIN_MODULES):
        if isinstance(cell, str) and cell.upper() == wanted.upper():
            return wanted
    raise ValueError(f"cell: got {cell!r}, wanted 'LSTM', 'GRU', 'Linear', 'Embedding' or None")


# ---- Modules -------------------------------------------------------------------------------------

_PLAIN_MODULES = ("Linear", "Embedding")


def _is_module(value: object) -> bool:
    """Whether it is a torch.nn.Module, which it cannot be if PyTorch is not imported yet."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _is_scripted(module: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(module, torch.jit.ScriptModule)


def _owner(module: Any, prefix: str) -> Any:
    """The module at the prefix, or None. `get_submodule` does not work for scripted modules."""
    for part in prefix.removesuffix(".").split(".") if prefix else ():
        module = getattr(module, part, None)
    return module if _is_module(module) else None


def _plain_kind(module: Any) -> str | None:
    """The name of the module's plain layer; None if it is another module or unknown."""
    if module is None:
        return None
    kinds = sys.modules["torch"].nn
    return next((kind for kind in _PLAIN_MODULES if isinstance(module, getattr(kinds, kind))), None)


def _module_options(module: Any) -> dict[str, Any]:
    """The module's `batch_first` and `dropout`, from its attributes or its graph, if present."""
    found = {name: getattr(module, name, None) for name in ("batch_first", "dropout")}
    if _is_scripted(module) and found["batch_first"] is None:
        found = _traced_options(module)
    options: dict[str, Any] = {}
    if isinstance(found["batch_first"], bool):
        options["batch_first"] = found["batch_first"]
    if isinstance(found["dropout"], (int, float)):
        options["dropout"] = float(found["dropout"])
    return options


def _traced_options(module: Any) -> dict[str, Any]:
    """The constants with which a traced module's graph calls the LSTM or GRU, if they agree."""
    calls: dict[str, set[Any]] = {"batch_first": set(), "dropout": set()}
    for kind in ("aten::lstm", "aten::gru"):
        for node in module.graph.findAllNodes(kind):
            # Calls with packed sequences have no batch_first.
            arguments = re.findall(r"(\w+)(?:=[^,)]*)?[,)]", node.schema().partition("->")[0])
            for name, value in zip(arguments, node.inputs()):
                if name in calls:
                    calls[name].add(value.toIValue())
    return {name: values.pop() if len(values) == 1 else None for name, values in calls.items()}


# ---- Search for weights --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Holder:
    """A module, or a mapping of names and values, at a path of keys within the source."""

    path: str
    values: Mapping[Any, Any]
    identity: int  # the same at each path of one object
    module: Any = None

    def names(self, before: str) -> dict[str, str]:
        """Its names with the prefix `before`, without that prefix, and their keys."""
        return {before + key: key for key in self.values if isinstance(key, str)}

    @property
    def stem(self) -> str:
        """The prefix of its full names."""
        return self.path and self.path + "."


@dataclass(frozen=True)
class _Match:
    """Names without the prefix, and values; their module, if there is one."""

    path: str
    identity: int
    given: dict[str, Any]
    owner: Any
    recurrent: bool


def _find(where: str, source: Any, prefix: str, cell: str | None) -> _Match:
    """The names with the prefix; if mappings are nested, those of the only one that has it."""
    holders = list(_holders(source))
    for recurrent in (True, False):
        if cell is not None and recurrent != (cell in GATES):
            continue
        # A prefix that includes the keys of nested dicts takes precedence over one without them.
        for relative in (False, True):
            candidates = (_select(holder, prefix, recurrent, relative) for holder in holders)
            found = [
                candidate
                for candidate in candidates
                if candidate is not None and (recurrent or cell or _may_be_plain(candidate))
            ]
            if len({candidate.identity for candidate in found}) > 1:
                paths = listed(candidate.path for candidate in found)
                raise ValueError(
                    f"{where}: the prefix {prefix!r} is found under several keys, {paths}; put the "
                    f"key before the prefix: {f'{found[0].path}.{prefix}'!r}"
                )
            if found:
                return found[0]
    raise _absent(where, holders, prefix, cell)


def _holders(source: Any) -> Iterator[_Holder]:
    """The source and the mappings and modules nested in it, the outer ones first.

    A value under several keys is yielded once for each, up to a limit: lists that contain each
    other repeatedly have more paths than can be tried.
    """
    seen: set[int] = set()
    repeated = 0
    # (path, ids of the values that contain it, value); a value that contains itself is a cycle.
    waiting: deque[tuple[str, tuple[int, ...], Any]] = deque([("", (), source)])
    while waiting:
        path, around, value = waiting.popleft()
        values = value.state_dict() if _is_module(value) else value
        if id(value) in seen:
            repeated += 1 + len(values)
            if repeated > _MAX_REPEATED:
                continue
        seen.add(id(value))
        children: Any = ()
        if _is_module(value):
            yield _Holder(path, values, id(value), value)
        elif isinstance(value, Mapping):
            yield _Holder(path, values, id(value))
            # Mappings that are not dicts may read a file for each value.
            children = value.items() if isinstance(value, dict) else ()
        else:
            children = enumerate(value)
        within = (*around, id(value))
        for key, child in children:
            nested = isinstance(child, (dict, list, tuple)) or _is_module(child)
            if nested and len(within) <= _MAX_DEPTH and id(child) not in within:
                waiting.append((f"{path}.{key}" if path else str(key), within, child))


def _select(holder: _Holder, prefix: str, recurrent: bool, relative: bool) -> _Match | None:
    """The names with the prefix, without it; at least one of them must be a parameter's."""
    if relative and not holder.path:
        return None  # the same as not relative
    parameter = _pattern(f"{_RECURRENT}|{PACKED}" if recurrent else "weight")
    before = "" if relative else holder.stem
    names = holder.names(before)
    for stem in (prefix, prefix + "."):
        chosen = {
            name.removeprefix(stem): key for name, key in names.items() if name.startswith(stem)
        }
        if any(parameter.fullmatch(name) for name in chosen):
            owner = None
            if holder.module is not None:
                owner = _owner(holder.module, prefix.removeprefix(before))
            given = {name: holder.values[key] for name, key in chosen.items()}
            return _Match(holder.path, holder.identity, given, owner, recurrent)
    return None


def _pattern(name: str) -> re.Pattern[str]:
    """A parameter's name, or the name of a part that it is computed from."""
    return re.compile(f"{PREFIX}(?:{name}){PARTS}")


def _may_be_plain(found: _Match) -> bool:
    """Whether the names, or the module, allow it to be a Linear or an Embedding."""
    if found.owner is None or _is_scripted(found.owner):
        return True
    return _plain_kind(found.owner) is not None


def _absent(where: str, holders: list[_Holder], prefix: str, cell: str | None) -> Exception:
    """The error for a prefix that does not occur; it lists the existing ones."""
    what = "LSTM or GRU" if cell is None else cell
    name = "weight" if cell in _PLAIN_MODULES else f"{_RECURRENT}|{PACKED}"
    parameter = re.compile(f"(?P<prefix>.*?){_pattern(name).pattern}", re.DOTALL)
    prefixes: dict[str, None] = {}
    quantised: dict[str, None] = {}
    for holder in holders:
        for full in holder.names(holder.stem):
            if len(full) > _MAX_NAME:
                continue
            # Quantised modules first: a cell's packed weights have names that end in a parameter's.
            for pattern, found in ((_QUANTISED, quantised), (parameter, prefixes)):
                match = pattern.fullmatch(full)
                if match:
                    found[match["prefix"]] = None
                    break
    message = f"{where}: no {what} has the prefix {prefix!r}; "
    message += f"existing prefixes: {listed(prefixes)}"
    if quantised:
        message += (
            "; prefixes of quantised modules, whose float model must be converted instead: "
            f"{listed(quantised)}"
        )
    keys = list(holders[0].values)
    if not prefixes and not quantised and keys:
        unnamed = [key for key in keys if not isinstance(key, str)]
        if len(unnamed) == len(keys):
            return TypeError(f"{where}: got the key {unnamed[0]!r}, wanted names")
        message += f"; existing names: {listed(map(str, keys))}"
    return ValueError(message)


# ---- Names and shapes ----------------------------------------------------------------------------


def _check_names(where: str, given: Mapping[str, Any], wanted: list[str]) -> None:
    missing = [name for name in wanted if name not in given]
    surplus = [name for name in given if name not in wanted]
    if missing or surplus:
        raise ValueError(f"{where}: missing {listed(missing)}; surplus {listed(surplus)}")


def _from_arrays(
    where: str,
    given: Mapping[str, Any],
    is_cell: bool,
    cell: str | None,
    batch_first: bool,
    dropout: float,
) -> RecurrentLayer:
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
    wanted = [kind + suffix for suffix in ([""] if is_cell else suffixes) for kind in kinds]
    _check_names(where, given, wanted)

    arrays = as_layer_weights({name: _as_array(name, given[name]) for name in wanted})
    if is_cell:
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
        vanilla = ", as a plain nn.RNN has, which has no gates;" if rows == hidden_size else ","
        raise ValueError(
            f"weight_hh: got shape {(rows, state_size)} for a hidden_size of {hidden_size}{vanilla}"
            " wanted 4*hidden_size rows (LSTM) or 3*hidden_size (GRU, without a projection)"
        )
    if cell not in (None, found):
        raise ValueError(f"cell: got {cell!r}, but weight_hh has the shape of a {found}")
    if num_layers > 1:  # dropout acts between layers; nn.LSTM keeps it without effect
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


def _plain_from_arrays(
    where: str, given: Mapping[str, Any], owner: Any, cell: str | None
) -> Linear | Array:
    kind = _plain_kind(owner)
    if kind is not None and cell not in (None, kind):
        raise ValueError(f"cell: got {cell!r}, but the module is an nn.{kind}")
    kind = cell or kind or ("Linear" if "bias" in given else None)
    if kind is None:
        raise ValueError(
            f"{where}: a weight without a bias may be an Embedding's or a Linear's; pass "
            "cell='Embedding' or cell='Linear'"
        )
    bias = kind == "Linear" and "bias" in given
    names = ["weight", "bias"] if bias else ["weight"]
    _check_names(where, given, names)
    arrays = as_weights({name: _as_array(name, given[name]) for name in names})
    weight = arrays["weight"]
    if kind == "Embedding":
        check_rank("weight", weight, 2, "(num_embeddings, embedding_dim), both at least 1")
        max_norm = getattr(owner, "max_norm", None)
        if max_norm is not None:
            raise ValueError(
                f"{where}: got max_norm={max_norm}, by which look-ups change the weight"
            )
        return weight.copy()
    check_rank("weight", weight, 2, "(out_features, in_features), both at least 1")
    rows, columns = weight.shape
    if bias:
        check_shape("bias", arrays["bias"], (rows,), "a number for each row of weight")
    layer = Linear(columns, rows, bias=bias, dtype=weight.dtype, seed=0)
    layer.load_state_dict(arrays)
    return layer


def _as_array(name: str, value: Any) -> Any:
    """A tensor's values as an ndarray; other values are returned, to be checked by the caller."""
    if isinstance(value, Stored):
        return value.read()
    if not is_tensor(value):
        _refuse_packed(name, value)
        return value
    torch = sys.modules["torch"]
    if isinstance(value, torch.nn.parameter.UninitializedTensorMixin):
        raise TypeError(f"{name}: got an uninitialised parameter; run the lazy module once before")
    if type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise TypeError(
            f"{name}: got a {type(value).__name__}, wanted a tensor of plain values ("
            "dequantize() of a quantised one, full_tensor() of a sharded one)"
        )
    if value.is_quantized or value.dtype in (torch.int8, torch.uint8):
        raise TypeError(
            f"{name}: got a {value.dtype} tensor, which is quantised; convert the float model, "
            "before quantisation"
        )
    if value.is_meta or value.layout is not torch.strided or not value.is_floating_point():
        raise TypeError(
            f"{name}: got a {value.dtype} tensor ({value.layout}, on {value.device}), wanted a "
            "dense one of floating point"
        )
    if value.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise TypeError(f"{name}: got dtype {value.dtype}, wanted float32, float64 or a half")
    return values_of(name, value.detach().cpu())


def _refuse_packed(name: str, value: object) -> None:
    """Raises if the value is a packed weight, which quantised modules have instead of a weight."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.ScriptObject):
        raise TypeError(
            f"{name}: got a packed weight (a torch.ScriptObject), which is quantised; convert the "
            "float model, before quantisation"
        )


# ---- Layers as modules ---------------------------------------------------------------------------


def to_torch(layer: RecurrentLayer) -> torch.nn.LSTM | torch.nn.GRU:
    """An `nn.LSTM` or `nn.GRU` with copies of a layer's parameters, bit for bit, in its dtype.

    `update_gate="write"` becomes PyTorch's form, in which the parameters of z have the opposite
    sign. The module is in training mode, like new modules, and no random numbers are drawn.

    Raises:
        TypeError: layer is neither an LSTM nor a GRU.
        ValueError: it has options that PyTorch's modules do not have: peepholes, reset_after=False,
            reverse=True, other activations, clip, input_forget. The message names each.
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
        device="meta",  # without memory, so that nothing is initialised
        **own,
    )
    tensors = {}
    for name, array in carried_parameters(layer).items():
        dtype = getattr(torch, array.dtype.name)
        tensors[name] = torch.empty(array.shape, dtype=dtype, device="cpu")
        array_of(name, tensors[name])[...] = array
    module.load_state_dict(tensors, assign=True)
    return module
