"""Statistics of samples: medians, their 95 % intervals, geometric means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
# With fewer samples no interval between two of them covers the median with this confidence.
LEAST_SAMPLES = 6


@dataclass(frozen=True)
class Estimate:
    """A median, and the interval that covers the true one with at least 95 % probability."""

    median: float
    low: float
    high: float


def estimate(samples: Sequence[float]) -> Estimate:
    """The median with its interval by order statistics, valid for any distribution.

    The true median lies below the k-th smallest of n samples if fewer than k of them are below it,
    each of which is below with probability 1/2: a binomial tail. k is the largest for which the two
    tails sum to at most 5 %.

    Raises:
        ValueError: there are fewer than 6 samples.
    """
    n = len(samples)
    if n < LEAST_SAMPLES:
        raise ValueError(f"samples: got {n}, wanted at least {LEAST_SAMPLES}")
    ordered = sorted(samples)
    k = 0
    tail = 2**-n
    while 2 * tail <= 1 - CONFIDENCE:
        k += 1
        tail += math.comb(n, k) * 2**-n
    return Estimate(statistics.median(ordered), ordered[k - 1], ordered[n - k])


def paired_ratios(peer_times: Sequence[float], own_times: Sequence[float]) -> list[float]:
    """A peer's times over Tidegate's, round by round: above 1 Tidegate is faster.

    Raises:
        ValueError: the numbers of rounds differ.
    """
    return [a / b for a, b in zip(peer_times, own_times, strict=True)]


def geometric_mean(ratios: Iterable[float]) -> float:
    """The geometric mean of ratios; nan if there are none."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(statistics.fmean(logs)) if logs else math.nan
