"""Switches the recurrent modules of a model to Tidegate, and back."""

from __future__ import annotations

import logging

import torch

from tidegate.checks import Precision, check_bool, check_precision
from tidegate.torch.modules import (
    PAIRS,
    Recurrent,
    freeze_module,
    kind_of,
    restore_module,
    swap_module,
)

_log = logging.getLogger("tidegate.torch")

_RECURRENT_NAMES = {"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"}


def accelerate(
    model: torch.nn.Module, freeze: bool = False, precision: Precision | None = None
) -> torch.nn.Module:
    """Makes every `torch.nn.LSTM` and `torch.nn.GRU` in a model run on Tidegate, in place.

    The modules keep their identity, parameters and hooks, and other objects that refer to them (an
    optimiser, another module) keep doing so: they become `tidegate.torch.LSTM` and `GRU`.
    Subclasses of torch.nn's, and modules with parametrizations, are left unchanged. The logger
    "tidegate.torch" reports how many modules were swapped, and which recurrent ones were left and
    why: as information, or as a warning if none was swapped.

    Where Tidegate cannot run a call (another device or dtype, autocast to float16, torch.func,
    tracing, torch.export), a module swapped here runs PyTorch's own forward instead, unless it is
    frozen; one that was made as `tidegate.torch.LSTM` raises an error. `torch.compile` with
    `torch._dynamo.config.allow_rnn` sees one operator; `torch.fx` a leaf; `quantize_dynamic` a
    module of torch.nn. `torch.jit.script` restores the modules of the model that it compiles: call
    `accelerate` again before using that model further.

    A pickle of an accelerated model (`torch.save(model)`) names Tidegate's classes and loads only
    where Tidegate is installed. For other machines save a `state_dict`, or a pickle of
    `restore(copy.deepcopy(model))`.

    Args:
        model: the model whose modules are swapped, itself included.
        freeze: for serving. False: parameters are copied and packed at every call. True: they are
            packed once, and again only when a parameter is replaced or its version counter has
            changed (`load_state_dict`, an optimiser's step). A write to `parameter.data` does not
            change it, and has no effect until `accelerate(model, freeze=True)` is called again. A
            frozen module has no gradient: backward through it raises an error, and so does a call
            in training mode that would need a gradient or draw dropout. `freeze=False` undoes it.
        precision: "bfloat16", "bfloat16-dot" or "int8": frozen modules, of float32, compute in
            it, as `tidegate.LSTM.quantize` describes; their parameters stay as they are. Such a
            call cannot be traced (torch.compile, torch.export). None: in the parameters' own
            precision.

    Returns:
        The model itself.

    Raises:
        TypeError: model is not a Module, freeze is not a bool, or precision is not a str.
        ValueError: precision has another value, is given without freeze, or a module is not of
            float32.
    """
    _check_module(model)
    freeze = check_bool("freeze", freeze)
    if precision is not None:
        check_precision(precision)
        if not freeze:
            raise ValueError(
                f"precision: got {precision!r} with freeze=False; only frozen modules are "
                "quantised, wanted freeze=True"
            )
        _check_float32(model)
    taken, left = 0, []
    for name, module in model.named_modules():
        if any(type(module) is theirs for theirs, _ in PAIRS.values()):
            swap_module(module, freeze, precision)
        elif isinstance(module, Recurrent):
            freeze_module(module, freeze, precision)
        else:
            reason = _why_left(module)
            if reason is not None:
                left.append(f"{name or 'the model'} ({kind_of(module)}): {reason}")
            continue
        taken += 1
    _log.log(
        logging.INFO if taken else logging.WARNING,
        "accelerate: %s on Tidegate, %s left%s",
        "1 module runs" if taken == 1 else f"{taken} modules run",
        "1 recurrent module is" if len(left) == 1 else f"{len(left)} recurrent modules are",
        "".join(f"\n  {line}" for line in left),
    )
    return model


def restore(model: torch.nn.Module) -> torch.nn.Module:
    """Undoes `accelerate`: every `tidegate.torch.LSTM` and `GRU` becomes torch.nn's, in place.

    The modules keep their identity, parameters and hooks. The result can be pickled for a machine
    without Tidegate. A model from a pickle may be restored, too. Subclasses of Tidegate's modules,
    and modules that have been parametrised since, are left unchanged: remove their parametrizations
    first.

    Args:
        model: the model whose modules are swapped, itself included.

    Returns:
        The model itself.

    Raises:
        TypeError: model is not a Module.
    """
    _check_module(model)
    restored, left = 0, []
    for name, module in model.named_modules():
        if any(type(module) is own_class for _, own_class in PAIRS.values()):
            restore_module(module)
            restored += 1
        elif isinstance(module, Recurrent):
            left.append(f"\n  {name or 'the model'} ({kind_of(module)})")
    _log.log(
        logging.WARNING if left else logging.INFO,
        "restore: %s torch.nn's again%s",
        "1 module is" if restored == 1 else f"{restored} modules are",
        f"; subclasses or parametrised, left: {''.join(left)}" if left else "",
    )
    return model


def _check_float32(model: torch.nn.Module) -> None:
    """Refuses modules that cannot be quantised, before any is swapped."""
    for name, module in model.named_modules():
        if type(module) in (c for pair in PAIRS.values() for c in pair):
            dtype = next(module.parameters()).dtype
            if dtype is not torch.float32:
                raise ValueError(
                    f"precision: {name or 'the model'} ({kind_of(module)}) has parameters of "
                    f"{dtype}, wanted torch.float32"
                )


def _check_module(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: got {kind_of(model)}, wanted a torch.nn.Module")


def _why_left(module: torch.nn.Module) -> str | None:
    """Why a recurrent module is not swapped; None if the module is not recurrent."""
    if isinstance(module, torch.jit.ScriptModule):
        is_recurrent = getattr(module, "original_name", None) in _RECURRENT_NAMES
        return "it is scripted" if is_recurrent else None
    if type(module).__module__.startswith("torch.ao.nn."):
        if type(module).__name__ not in _RECURRENT_NAMES:
            return None
        if type(module).__module__.startswith("torch.ao.nn.quantizable"):
            return "a float module made to be quantised, which is not a torch.nn.LSTM"
        return "it is quantised"
    if isinstance(module, torch.nn.RNNCellBase):
        return "cells are not supported"
    if isinstance(module, torch.nn.RNN):
        return "neither LSTM nor GRU"
    if isinstance(module, torch.nn.RNNBase):
        if torch.nn.utils.parametrize.is_parametrized(module):
            return "it has parametrizations"
        return f"a subclass of torch.nn.{module.mode} may compute something else"
    return None
