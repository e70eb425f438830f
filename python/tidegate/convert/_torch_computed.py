"""Weights that PyTorch computes from others at each forward: normalised, pruned, parametrised.

`module_weights` lets a module compute them, as it does in evaluation mode. For a state_dict, which
has only names, `computed_weights` computes the weights that these names identify.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from tidegate.checks import Array
from tidegate.convert._weights import as_weights, listed
from tidegate.tensors import check_storage, is_tensor

# The names of the parts that a weight is computed from: torch.nn.utils.parametrizations adds a
# prefix and a path to the weight's name; weight_norm, spectral_norm and prune of torch.nn.utils add
# a suffix.
PREFIX = r"(?P<parametrised>parametrizations\.)?"
PARTS = r"(?P<part>(?(parametrised)\.[\w.]+|(_orig|_mask|_g|_u|_v)?))"

_UTILITIES = ("parametrize", "weight_norm", "spectral_norm", "prune")


def module_weights(module: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """A module's part of a state_dict, with computed weights in the place of their parts.

    The module is not modified.

    Args:
        module: the torch.nn.Module that owns the weights.
        given: names without the module's own prefix, and values.

    Raises:
        ValueError: the storage of one of its tensors is too small.
    """
    for name, value in given.items():
        if is_tensor(value):
            check_storage(name, value)  # PyTorch would read beyond the end of a shortened storage
    torch: Any = sys.modules["torch"]
    # Imported by name, because torch.nn.utils has functions with the names of these modules.
    utils = {name: import_module(f"torch.nn.utils.{name}") for name in _UTILITIES}
    weights = dict(given)

    def replace(name: str, parts: str, value: Any) -> None:
        for key in [key for key in weights if re.fullmatch(parts, key)]:
            del weights[key]
        weights[name] = value

    with torch.no_grad():
        if utils["parametrize"].is_parametrized(module):
            for name, parametrisation in module.parametrizations.items():
                value = _evaluated(parametrisation)
                replace(name, rf"parametrizations\.{re.escape(name)}\..*", value)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, utils["weight_norm"].WeightNorm):
                value = hook.compute_weight(module)
                replace(hook.name, re.escape(hook.name) + "_[gv]", value)
            elif isinstance(hook, utils["spectral_norm"].SpectralNorm):
                value = hook.compute_weight(module, do_power_iteration=False)
                replace(hook.name, re.escape(hook.name) + "_(orig|u|v)", value)
            elif isinstance(hook, utils["prune"].BasePruningMethod):
                name = hook._tensor_name
                replace(name, re.escape(name) + "_(orig|mask)", hook.apply_mask(module))
    return weights


def _evaluated(parametrisation: Any) -> Any:
    """The parametrised tensor as in evaluation mode, in which spectral_norm does not iterate."""
    training = {module: module.training for module in parametrisation.modules()}
    try:
        parametrisation.eval()
        return parametrisation()
    finally:
        for module, was in training.items():
            module.training = was


def computed_weights(
    given: Mapping[str, Any], name: str, as_array: Callable[[str, Any], Any], advice: str
) -> dict[str, Any]:
    """Names and values, in which computed weights replace the parts they are computed from.

    They are computed in float64 and rounded once.

    Args:
        given: names and values.
        name: a pattern of the names of weights.
        as_array: converts a value, given its name, to an ndarray.
        advice: the advice in messages if the computation is unknown.

    Raises:
        TypeError: a part is not a floating-point array.
        ValueError: the names of the parts do not reveal how a weight is computed.
    """
    pattern = re.compile(rf"{PREFIX}(?P<weight>{name}){PARTS}")
    weights: dict[str, Any] = {}
    parts: dict[str, dict[str, str]] = {}  # by weight: a key of `given` for each part
    for key, value in given.items():
        match = pattern.fullmatch(key)
        if match is None or not match["part"]:
            weights[key] = value
        else:
            parts.setdefault(match["weight"], {})[match["part"]] = key
    for weight, keys in parts.items():
        known = next((k for k in _KINDS if set(k.parts) == set(keys)), None)
        if known is None or weight in weights:
            raise ValueError(
                f"{weight}: the names {listed(keys.values())} do not reveal how it is computed; "
                f"{advice}"
            )
        if known.parts[0].startswith("."):
            # A state_dict does not contain the class of a parametrisation.
            warnings.warn(
                f"{weight}: {listed(keys.values())} are taken for those of {known.what}; if they "
                f"are another parametrisation's, {advice}",
                stacklevel=3,
            )
        arrays = as_weights(
            {keys[part]: as_array(keys[part], given[keys[part]]) for part in known.parts}
        )
        values = [array.astype(np.float64) for array in arrays.values()]
        dtype = next(iter(arrays.values())).dtype
        with np.errstate(all="ignore"):
            weights[weight] = known.formula(weight, *values).astype(dtype)
    return weights


def _normalised(weight: str, g: Array, v: Array) -> Array:
    """g * v / |v|, the norm over those axes in which g has size 1 (or over all)."""
    axes = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis : axis + 1] == (1,))
    norm = np.sqrt(np.sum(v * v, axis=axes, keepdims=g.ndim > 0))
    if norm.shape != g.shape:
        raise ValueError(
            f"{weight}: weight_norm's magnitude has shape {g.shape}, which is not a "
            f"norm's for {v.shape}"
        )
    normalised: Array = v * (g / norm)
    return normalised


def _spectrally_normalised(weight: str, original: Array, u: Array, v: Array) -> Array:
    """W / (u W v), where u belongs to one axis of W and v to the others."""
    axes = [
        axis
        for axis, size in enumerate(original.shape)
        if (size,) == u.shape and (original.size // max(size, 1),) == v.shape
    ]
    if len(axes) != 1:
        raise ValueError(
            f"{weight}: spectral_norm's vectors of shapes {u.shape} and {v.shape} do not reveal "
            f"the axis of {original.shape}; pass the module instead of its state_dict"
        )
    matrix = np.moveaxis(original, axes[0], 0).reshape(u.size, v.size)
    scaled: Array = original / (u @ matrix @ v)
    return scaled


def _pruned(weight: str, original: Array, mask: Array) -> Array:
    if original.shape != mask.shape:
        raise ValueError(
            f"{weight}: got a mask of shape {mask.shape} for a weight of {original.shape}"
        )
    pruned: Array = original * mask
    return pruned


@dataclass(frozen=True)
class _Kind:
    """A way of computing a weight, identified by the names of its parts."""

    what: str
    formula: Callable[..., Array]
    parts: tuple[str, ...]  # in the order of the formula's arguments


_KINDS = (
    _Kind("torch.nn.utils.prune", _pruned, ("_orig", "_mask")),
    _Kind("torch.nn.utils.weight_norm", _normalised, ("_g", "_v")),
    _Kind("torch.nn.utils.spectral_norm", _spectrally_normalised, ("_orig", "_u", "_v")),
    _Kind("parametrizations.weight_norm", _normalised, (".original0", ".original1")),
    _Kind(
        "parametrizations.spectral_norm",
        _spectrally_normalised,
        (".original", ".0._u", ".0._v"),
    ),
)
