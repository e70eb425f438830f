"""Losses, each returning its value and its gradient. Names and formulas are PyTorch's.

Masks are for padding: True where an element counts. Masked elements are never read (they may hold
NaN or any target) and have a gradient of zero. If no element counts, the loss and its gradient are
0 (where PyTorch's mean is NaN). NaN and infinities propagate, silently. Losses are summed in double
precision.

The arithmetic runs in the core, in one pass over memory. On one instruction set the results have
the same bits for any number of threads (`tg.set_num_threads`), and whether a mask leaves elements
out or they are absent. Subnormal numbers count as zero, as in the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np

from tidegate import _core
from tidegate.checks import Array, check_array, check_unmasked
from tidegate.tensors import is_tensor, values_of

__all__ = ["binary_cross_entropy", "mse", "softmax_cross_entropy"]

Reduction: TypeAlias = Literal["mean", "sum"]


def __dir__() -> list[str]:
    """The losses, without the names that this module imports."""
    return list(__all__)


def softmax_cross_entropy(
    logits: Array, targets: Array, mask: Array | None = None, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """-log softmax(logits)[target], as `torch.nn.functional.cross_entropy`.

    Args:
        logits: (..., C), C the number of classes; float32 or float64.
        targets: (...), integers in 0..C-1.
        mask: (...) bool, or fewer of its leading axes; None: all elements count.
        reduction: "mean" over the elements that count, or "sum".

    Returns:
        loss, and its gradient like logits: (softmax(logits) - onehot(target)) / count.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, or a target out of range where it
            counts.
    """
    check_array("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: got shape {logits.shape}, wanted (..., C) with C >= 1")
    check_unmasked("targets", targets)
    targets = values_of("targets", targets) if is_tensor(targets) else np.asarray(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets: got dtype {targets.dtype}, wanted integers")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets: got shape {targets.shape}, wanted {logits.shape[:-1]}")
    counts = _counting_rows(mask, targets.shape)
    if counts is not None and counts.size < targets.size:
        counts = np.repeat(counts, targets.size // counts.size)
    mean = _is_mean(reduction)
    if targets.dtype == np.uint64:  # values that do not fit into int64 are out of range
        targets = np.minimum(targets, np.uint64(2**63 - 1))
    loss, gradient = _core.softmax_cross_entropy(
        np.asarray(logits).reshape(-1, logits.shape[-1]),
        targets.astype(np.int64, copy=False).reshape(-1),
        counts,
        mean,
    )
    return loss, gradient.reshape(logits.shape)


def binary_cross_entropy(
    logits: Array, targets: Array, mask: Array | None = None, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """-t log s(a) - (1-t) log(1 - s(a)) with s the sigmoid, on LOGITS a, not on probabilities.

    This is `torch.nn.functional.binary_cross_entropy_with_logits`, computed as
    max(a, 0) - a t + log(1 + exp(-|a|)), which does not overflow for any logit.

    Args:
        logits: (...), float32 or float64.
        targets: (...), of the same dtype, in 0..1, or bool.
        mask: (...) bool, or fewer of its leading axes; None: all elements count.
        reduction: "mean" over the elements that count, or "sum".

    Returns:
        loss, and its gradient like logits: (s(a) - t) / count.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, or a target out of range where it
            counts.
    """
    check_array("logits", logits)
    given: object = targets
    if isinstance(given, np.ndarray) and given.dtype == bool:
        targets = targets.astype(logits.dtype)
    check_array("targets", targets, shape=logits.shape, dtype=logits.dtype)
    return _elementwise(_core.binary_cross_entropy, logits, targets, mask, reduction)


def mse(
    prediction: Array, target: Array, mask: Array | None = None, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """(prediction - target)^2, as `torch.nn.functional.mse_loss`.

    Args:
        prediction: (...), float32 or float64.
        target: (...), of the same dtype.
        mask: (...) bool, or fewer of its leading axes, so that (T, N) masks (T, N, F); None: all
            elements count.
        reduction: "mean" over the elements that count (not over rows), or "sum".

    Returns:
        loss, and its gradient like prediction: 2 (prediction - target) / count.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape.
    """
    check_array("prediction", prediction)
    check_array("target", target, shape=prediction.shape, dtype=prediction.dtype)
    return _elementwise(_core.mse, prediction, target, mask, reduction)


def _elementwise(
    loss: Callable[[Array, Array, Array | None, bool], tuple[float, Array]],
    prediction: Array,
    target: Array,
    mask: Array | None,
    reduction: Reduction,
) -> tuple[float, Array]:
    """An elementwise loss. Checks `mask` and `reduction`; the caller has checked the rest."""
    shape = prediction.shape
    counts = _counting_rows(mask, shape)
    mean = _is_mean(reduction)
    leading = 0 if mask is None else mask.ndim
    rows = (math.prod(shape[:leading]), math.prod(shape[leading:]))
    value, gradient = loss(
        np.asarray(prediction).reshape(rows), np.asarray(target).reshape(rows), counts, mean
    )
    return value, gradient.reshape(shape)


def _is_mean(reduction: str) -> bool:
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction: got {reduction!r}, wanted "mean" or "sum"')
    return reduction == "mean"


def _counting_rows(mask: Array | None, shape: tuple[int, ...]) -> Array | None:
    """A mask over leading axes of `shape`, as a vector; None is returned as it is."""
    if mask is None:
        return None
    check_array("mask", mask, dtype=np.dtype(bool))
    if mask.shape != shape[: mask.ndim]:
        raise ValueError(f"mask: got shape {mask.shape}, wanted {shape} or its leading axes")
    return np.asarray(mask).reshape(-1)
