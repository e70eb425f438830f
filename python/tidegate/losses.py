"""Losses, each returning its value and its gradient. Names and formulas are PyTorch's.

Masks are for padding. A mask is True where an element counts. What it leaves out is never read (NaN
or any target may stand there) and has a gradient of zero. If nothing is left, the loss is 0 and so
is its gradient (where PyTorch's mean is NaN). NaN and infinities propagate, silently. Losses are
summed in double precision.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from tidegate.checks import Array, check_array, check_unmasked
from tidegate.tensors import is_tensor, values_of

__all__ = ["binary_cross_entropy", "mse", "softmax_cross_entropy"]

Reduction: TypeAlias = Literal["mean", "sum"]


def __dir__() -> list[str]:
    """The losses, without what they are made with."""
    return list(__all__)


@np.errstate(all="ignore")
def softmax_cross_entropy(
    logits: Array, targets: Array, mask: Array | None = None, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """-log softmax(logits)[target], as `torch.nn.functional.cross_entropy`.

    Args:
        logits: (..., C), C the number of classes; float32 or float64.
        targets: (...), integers in 0..C-1.
        mask: (...) bool, or fewer of its leading axes; None: all count.
        reduction: "mean" over what counts, or "sum".

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
    counts = _counts(mask, targets.shape)
    _check_reduction(reduction)

    scores, labels = logits[counts], targets[counts]
    classes = logits.shape[-1]
    _check_range("targets", labels, 0, classes - 1)
    rows = np.arange(len(labels))

    # log-softmax is unchanged by a shift; this one keeps exp from overflowing.
    scores = scores - scores.max(axis=-1, keepdims=True)
    exps = np.exp(scores)
    sums = exps.sum(axis=-1, keepdims=True)
    losses = np.log(sums[:, 0]) - scores[rows, labels]
    gradient = exps / sums
    gradient[rows, labels] -= 1
    return _reduced(losses, gradient, counts, logits, reduction)


@np.errstate(all="ignore")
def binary_cross_entropy(
    logits: Array, targets: Array, mask: Array | None = None, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """-t log s(a) - (1-t) log(1 - s(a)) with s the sigmoid, on LOGITS a, not on probabilities.

    So it is `torch.nn.functional.binary_cross_entropy_with_logits`: computed as
    max(a, 0) - a t + log(1 + exp(-|a|)), which no logit makes overflow.

    Args:
        logits: (...), float32 or float64.
        targets: (...), of the same dtype, in 0..1, or bool.
        mask: (...) bool, or fewer of its leading axes; None: all count.
        reduction: "mean" over what counts, or "sum".

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
    counts = _counts(mask, logits.shape)
    _check_reduction(reduction)

    a, t = logits[counts], targets[counts]
    _check_range("targets", t, 0, 1)
    small = np.exp(-np.abs(a))
    losses = np.maximum(a, 0) - a * t + np.log1p(small)
    sigmoid = np.where(a >= 0, 1, small) / (1 + small)
    return _reduced(losses, sigmoid - t, counts, logits, reduction)


@np.errstate(all="ignore")
def mse(
    prediction: Array, target: Array, mask: Array | None = None, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """(prediction - target)^2, as `torch.nn.functional.mse_loss`.

    Args:
        prediction: (...), float32 or float64.
        target: (...), of the same dtype.
        mask: (...) bool, or fewer of its leading axes, so that (T, N) masks (T, N, F); None: all
            count.
        reduction: "mean" over what counts (elements, not rows), or "sum".

    Returns:
        loss, and its gradient like prediction: 2 (prediction - target) / count.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape.
    """
    check_array("prediction", prediction)
    check_array("target", target, shape=prediction.shape, dtype=prediction.dtype)
    counts = _counts(mask, prediction.shape)
    _check_reduction(reduction)

    error = prediction[counts] - target[counts]
    return _reduced(error * error, 2 * error, counts, prediction, reduction)


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction: got {reduction!r}, wanted "mean" or "sum"')


def _check_range(name: str, values: Array, low: int, high: int) -> None:
    """Refuses values outside low..high; NaN passes, to propagate."""
    outside = values[(values < low) | (values > high)]
    if outside.size:
        raise ValueError(f"{name}: got {outside.flat[0]}, wanted {low}..{high}")


def _counts(mask: Array | None, shape: tuple[int, ...]) -> Array:
    """The mask as an index of arrays with leading axes `shape`: it selects one row an element."""
    if mask is None:
        return np.ones(shape, bool)
    check_array("mask", mask, dtype=np.dtype(bool))
    if mask.shape != shape[: mask.ndim]:
        raise ValueError(f"mask: got shape {mask.shape}, wanted {shape} or its leading axes")
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)


def _reduced(
    losses: Array, gradient: Array, counts: Array, like: Array, reduction: Reduction
) -> tuple[float, Array]:
    """The sum or mean of `losses`, and the gradient of it, put in its places among zeros."""
    divisor = max(len(losses), 1) if reduction == "mean" else 1
    full = np.zeros(like.shape, like.dtype)
    full[counts] = gradient / divisor
    return float(losses.sum(dtype=np.float64)) / divisor, full
