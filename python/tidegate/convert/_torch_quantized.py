"""Packed weights of PyTorch's dynamically quantised LSTM and GRU, as parameters by name."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from tidegate.convert._quantized import QuantizedWeight, repeated_for_rows
from tidegate.tensors import is_tensor, values_of

# The names in the state_dict of torch.ao.nn.quantized.dynamic.LSTM and GRU: one for each direction
# of each layer.
PACKED = r"_all_weight_values\.(?:0|[1-9]\d{0,5})\.param"


def unpacked(where: str, given: Mapping[str, Any], owner: Any) -> dict[str, Any]:
    """Names and values, with those of nn.LSTM and nn.GRU in the place of packed weights.

    Args:
        where: the source, for messages.
        given: names and values of one module.
        owner: the module, or None. Without it, the number of directions follows from shapes.

    Returns:
        names -> values: of packed weights, `QuantizedWeight` for weights in int8, else tensors.

    Raises:
        TypeError: a packed weight is of another type.
        ValueError: some are missing, or their shapes do not reveal the number of directions.
    """
    packed = [name for name in given if re.fullmatch(PACKED, name)]
    values = {name: value for name, value in given.items() if name not in packed}
    if not packed:
        return values
    wanted = [f"_all_weight_values.{k}.param" for k in range(len(packed))]
    if set(packed) != set(wanted):
        missing = next(name for name in wanted if name not in packed)
        raise ValueError(f"{where}: missing {missing!r}, but has {packed[-1]!r}")
    cells = [_cell_parameters(name, given[name]) for name in wanted]
    directions = _directions(where, cells, owner)
    for number, parameters in enumerate(cells):
        layer, direction = divmod(number, directions)
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        values.update((name + suffix, value) for name, value in parameters.items())
    return values


def _directions(where: str, cells: list[dict[str, Any]], owner: Any) -> int:
    """1, or 2 if bidirectional. The input size of a cell tells which layer it is in."""
    known = getattr(owner, "bidirectional", None)
    if isinstance(known, bool):
        return 1 + known
    columns = [parameters["weight_ih"].shape[-1] for parameters in cells]
    hidden_size = cells[0]["weight_hh"].shape[-1]
    possible = [
        directions
        for directions in (1, 2)
        if len(cells) % directions == 0
        and columns[:directions] == [columns[0]] * directions
        and set(columns[directions:]) <= {directions * hidden_size}
    ]
    if len(possible) != 1:
        raise ValueError(
            f"{where}: {len(cells)} packed weights with input sizes {columns} and hidden_size "
            f"{hidden_size} do not reveal whether the module is bidirectional: pass the module "
            "instead of its state_dict"
        )
    return possible[0]


def _cell_parameters(name: str, value: Any) -> dict[str, Any]:
    """The parameters of one direction of one layer, without suffix."""
    parameters = {}
    kind, packed = _state(name, value)
    if kind not in ("quantized_dynamic", "quantized_fp16") or len(packed) != 2:
        raise TypeError(
            f"{name}: got packed weights of the kind {kind!r}, wanted those of quantize_dynamic "
            "with qint8 or float16; convert the float model, before quantisation"
        )
    for role, pack in zip(("ih", "hh"), packed):
        weight, bias = _unpack(name, pack)
        parameters[f"weight_{role}"] = _weight(f"{name}: weight_{role}", weight)
        if bias is not None:
            parameters[f"bias_{role}"] = bias
    return parameters


def _state(name: str, value: Any) -> tuple[str, list[Any]]:
    """What a CellParamsBase object holds: its kind, and the packed weights of x and of h."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch is None or not isinstance(value, torch.ScriptObject):
            raise TypeError(f"is a {type(value).__name__}")
        # (kind, tensors, numbers, flags, packed weights), and the name of the class.
        kind, _, _, _, packed = value.__getstate__()[0]
        return str(kind), list(packed)
    except Exception as error:  # PyTorch raises any type for an object of another class
        raise TypeError(
            f"{name}: got {type(value).__name__}, wanted packed weights of a "
            f"torch.ao.nn.quantized.dynamic.LSTM or GRU ({error})"
        ) from error


def _unpack(name: str, pack: Any) -> tuple[Any, Any]:
    """The weight and the bias of a LinearPackedParamsBase object."""
    try:
        weight, bias = pack.__getstate__()[0]
    except Exception as error:  # as above
        raise TypeError(f"{name}: its packed weights cannot be unpacked: {error}") from error
    return weight, bias


def _weight(name: str, weight: Any) -> Any:
    """A quantised tensor with its scales; other tensors are returned."""
    torch: Any = sys.modules["torch"]
    if not is_tensor(weight) or not weight.is_quantized:
        return weight
    if weight.dtype is not torch.qint8:
        raise TypeError(f"{name}: got dtype {weight.dtype}, wanted qint8 or float16")
    values = values_of(name, weight.int_repr())
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scales = np.array(weight.q_scale(), np.float32)
        zero_points = np.array(weight.q_zero_point(), np.int8)
    elif weight.qscheme() in _per_channel(torch) and weight.q_per_channel_axis() == 0:
        scales = values_of(name, weight.q_per_channel_scales()).astype(np.float32)
        zero_points = values_of(name, weight.q_per_channel_zero_points()).astype(np.int8)
    else:
        raise TypeError(
            f"{name}: got the scheme {weight.qscheme()}, wanted a scale per tensor or per row"
        )
    rows = values.shape[:1]
    return QuantizedWeight(
        values, repeated_for_rows(scales, rows), repeated_for_rows(zero_points, rows)
    )


def _per_channel(torch: Any) -> tuple[Any, ...]:
    return torch.per_channel_affine, torch.per_channel_symmetric
