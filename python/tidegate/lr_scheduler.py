"""Schedules of the learning rate. Names and formulas are those of `torch.optim.lr_scheduler`.

    opt = tg.optim.AdamW([gru, head], lr=1e-3)
    warm_up = lr_scheduler.LinearLR(opt, start_factor=0.1, total_iters=100)
    decay = lr_scheduler.CosineAnnealingLR(opt, T_max=900)
    schedule = lr_scheduler.SequentialLR(opt, [warm_up, decay], milestones=[100])
    for batch in batches:
        ...
        opt.step(grads)
        schedule.step()

A scheduler sets `group["lr"]` of each of the optimiser's groups: when it is made, and in each
`step()`. It computes a rate from the group's initial one, which is the rate at the time when the
optimiser got its first scheduler, and from the number of steps k since then; not from the rate
before, so that rates do not accumulate rounding errors.

`state_dict()` holds what a scheduler has counted, not its options: `load_state_dict` restores it in
a scheduler that was made with the same options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from tidegate.checks import (
    Array,
    check_bool,
    check_integer,
    check_mapping,
    check_number,
    check_probability,
    check_size,
)
from tidegate.optim import _Optimizer

__all__ = [
    "CosineAnnealingLR",
    "LambdaLR",
    "LinearLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "SequentialLR",
]


def __dir__() -> list[str]:
    """The schedulers, without the names that this module imports."""
    return list(__all__)


class _Scheduler:
    """Base class: the optimiser, and the counts of which `_counts` names the attributes."""

    _counts: tuple[str, ...] = ("last_epoch",)

    def __init__(self, optimizer: _Optimizer) -> None:
        if not isinstance(optimizer, _Optimizer):
            raise TypeError(
                f"optimizer: got {type(optimizer).__name__}, wanted one of tidegate.optim"
            )
        self.optimizer = optimizer
        self.last_epoch = 0
        initial = optimizer._initial_lrs or [group["lr"] for group in optimizer.param_groups]
        optimizer._initial_lrs = initial

    def _apply(self) -> None:
        """Sets what follows from `last_epoch`."""
        for group, initial in zip(self.optimizer.param_groups, self.optimizer._initial_lrs):
            group["lr"] = self._lr(initial, self.last_epoch)

    def _lr(self, initial: float, k: int) -> float:
        """A group's rate after k steps."""
        raise NotImplementedError

    def step(self) -> None:
        """Counts a step, and sets the learning rates."""
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The learning rates that are set, one of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Array]:
        """Names -> 0-d arrays: what has been counted, and a rate for each group."""
        counts = {name: np.asarray(getattr(self, name)) for name in self._counts}
        return {**counts, "lrs": np.asarray(self.get_last_lr())}

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Restores what another scheduler with the same options has counted. All or nothing.

        Raises:
            TypeError: `state_dict` is not a mapping, or nothing but dtypes is wrong.
            ValueError: keys are missing, surplus or of another shape, or a value is out of range.
        """
        wanted = {name: (a.shape, a.dtype) for name, a in self.state_dict().items()}
        given = check_mapping("state_dict", state_dict, wanted)
        counts = {name: given[name].item() for name in self._counts}
        if any(isinstance(count, int) and count < 0 for count in counts.values()):
            raise ValueError(f"state_dict: got {counts}, wanted counts of at least 0")
        lrs = [check_number("state_dict: lrs", lr) for lr in given["lrs"].tolist()]
        for name, count in counts.items():
            setattr(self, name, count)
        for group, lr in zip(self.optimizer.param_groups, lrs):
            group["lr"] = lr


class LambdaLR(_Scheduler):
    """lr = initial * lr_lambda(k).

    Args:
        optimizer: one of `tidegate.optim`.
        lr_lambda: a function of the number of steps, or one for each group.

    Raises:
        TypeError: an argument of another type.
        ValueError: the number of functions is not that of the groups; a rate is negative or not
            finite.
    """

    def __init__(
        self,
        optimizer: _Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
    ) -> None:
        super().__init__(optimizer)
        count = len(optimizer.param_groups)
        functions = [lr_lambda] * count if callable(lr_lambda) else list(lr_lambda)
        if len(functions) != count:
            raise ValueError(f"lr_lambda: got {len(functions)} functions, wanted {count}")
        for function in functions:
            if not callable(function):
                raise TypeError(f"lr_lambda: got {function!r}, wanted a function")
        self._functions = functions
        self._apply()

    def _apply(self) -> None:
        lrs = [
            initial * function(self.last_epoch)
            for initial, function in zip(self.optimizer._initial_lrs, self._functions)
        ]
        for group, lr in zip(self.optimizer.param_groups, lrs):
            group["lr"] = lr


class LinearLR(_Scheduler):
    """lr = initial * f, where f goes from `start_factor` to `end_factor` in `total_iters` steps.

        f = start_factor + (end_factor - start_factor) * min(k, total_iters) / total_iters

    Args:
        optimizer: one of `tidegate.optim`.
        start_factor: above 0, at most 1; by default 1/3.
        end_factor: 0 to 1.
        total_iters: the number of steps.

    Raises:
        TypeError, ValueError: an argument of another type, or out of its range.
    """

    def __init__(
        self,
        optimizer: _Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:
        self._start = check_probability("start_factor", start_factor)
        if self._start == 0:
            raise ValueError("start_factor: got 0, wanted a number above 0")
        self._end = check_probability("end_factor", end_factor)
        self._total = check_size("total_iters", total_iters)
        super().__init__(optimizer)
        self._apply()

    def _lr(self, initial: float, k: int) -> float:
        done = min(k, self._total) / self._total
        return initial * (self._start + (self._end - self._start) * done)


class CosineAnnealingLR(_Scheduler):
    """lr = eta_min + (initial - eta_min) * (1 + cos(pi k / T_max)) / 2.

    Without the restarts of Loshchilov and Hutter (2017), "SGDR: Stochastic Gradient Descent with
    Warm Restarts".

    Args:
        optimizer: one of `tidegate.optim`.
        T_max: the number of steps to the minimum; afterwards the rate rises again.
        eta_min: the minimum.

    Raises:
        TypeError, ValueError: an argument of another type, or out of its range.
    """

    def __init__(self, optimizer: _Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self._steps = check_size("T_max", T_max)
        self._least = check_number("eta_min", eta_min)
        super().__init__(optimizer)
        self._apply()

    def _lr(self, initial: float, k: int) -> float:
        return _cosine(initial, self._least, k / self._steps)


def _cosine(start: float, end: float, done: float) -> float:
    """Half a wave from `start` (done = 0) to `end` (done = 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _linear(start: float, end: float, done: float) -> float:
    return start + (end - start) * done


class SequentialLR(_Scheduler):
    """Several schedulers, one after the other: each counts from 0 from its milestone on.

    Args:
        optimizer: the optimiser of all schedulers.
        schedulers: of this module, but not `ReduceLROnPlateau`, whose steps need a metric.
        milestones: the numbers of steps, ascending, at which the second scheduler begins, the
            third ...

    Raises:
        TypeError: an argument of another type.
        ValueError: a scheduler of another optimiser; milestones that do not ascend, or another
            number of them than one fewer than there are schedulers.
    """

    def __init__(
        self, optimizer: _Optimizer, schedulers: Sequence[_Scheduler], milestones: Sequence[int]
    ) -> None:
        given: list[object] = list(schedulers)
        self._milestones = [check_size("milestones", milestone) for milestone in milestones]
        self._schedulers: list[_Scheduler] = []
        for scheduler in given:
            if not isinstance(scheduler, _Scheduler) or isinstance(scheduler, ReduceLROnPlateau):
                raise TypeError(
                    f"schedulers: got {type(scheduler).__name__}, wanted schedulers of this module "
                    "whose steps need no metric"
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError("schedulers: got one of another optimiser")
            self._schedulers.append(scheduler)
        if len(self._milestones) != len(self._schedulers) - 1:
            raise ValueError(
                f"milestones: got {len(self._milestones)}, wanted "
                f"{len(self._schedulers) - 1} for {len(self._schedulers)} schedulers"
            )
        if any(a >= b for a, b in zip(self._milestones, self._milestones[1:])):
            raise ValueError(f"milestones: got {self._milestones}, wanted ascending numbers")
        super().__init__(optimizer)
        self._apply()

    def _apply(self) -> None:
        place = sum(milestone <= self.last_epoch for milestone in self._milestones)
        current = self._schedulers[place]
        current.last_epoch = self.last_epoch - ([0, *self._milestones][place])
        current._apply()

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """As of the other schedulers."""
        super().load_state_dict(state_dict)
        self._apply()


class OneCycleLR(_Scheduler):
    """One cycle: up to `max_lr`, then down to almost nothing (Smith and Topin 2019).

    The rate goes from max_lr / div_factor to max_lr in the first pct_start of the steps, and then
    to max_lr / (div_factor * final_div_factor). Meanwhile the momentum (of Adam betas[0]) goes from
    `max_momentum` to `base_momentum` and back.

    Args:
        optimizer: one of `tidegate.optim`.
        max_lr: the greatest rate, or one for each group.
        total_steps: the number of steps; the last one is k = total_steps - 1.
        pct_start: the part of the steps in which the rate rises, 0 to 1.
        anneal_strategy: "cos" or "linear".
        cycle_momentum: whether the momentum changes.
        base_momentum, max_momentum: its range.
        div_factor, final_div_factor: see above.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range; cycle_momentum with an SGD that has no momentum;
            a step beyond the last.
    """

    def __init__(
        self,
        optimizer: _Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        self._total = check_size("total_steps", total_steps)
        self._rise = check_probability("pct_start", pct_start) * self._total - 1
        strategies = {"cos": _cosine, "linear": _linear}
        if anneal_strategy not in strategies:
            raise ValueError(f"anneal_strategy: got {anneal_strategy!r}, wanted 'cos' or 'linear'")
        self._anneal = strategies[anneal_strategy]
        self._momenta = (
            check_number("max_momentum", max_momentum, below=1),
            check_number("base_momentum", base_momentum, below=1),
        )
        self._div, self._final_div = (
            _above_zero(name, value)
            for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor))
        )
        super().__init__(optimizer)
        groups = optimizer.param_groups
        given = list(max_lr) if isinstance(max_lr, Sequence) else [max_lr] * len(groups)
        if len(given) != len(groups):
            raise ValueError(f"max_lr: got {len(given)} rates, wanted {len(groups)}")
        self._greatest = [check_number("max_lr", rate) for rate in given]
        self._cycles = check_bool("cycle_momentum", cycle_momentum)
        if self._cycles and any(group.get("momentum", 1.0) == 0 for group in groups):
            raise ValueError(
                "cycle_momentum: got an optimiser without momentum, wanted momentum > 0, or "
                "cycle_momentum=False"
            )
        self._apply()

    def step(self) -> None:
        """Counts a step, and sets the learning rates and momenta."""
        if self.last_epoch + 1 >= self._total:
            raise ValueError(
                f"step: got step {self.last_epoch + 1} of a cycle of total_steps={self._total}; "
                "make a new scheduler"
            )
        super().step()

    def _apply(self) -> None:
        for group, greatest in zip(self.optimizer.param_groups, self._greatest):
            first = greatest / self._div
            last = first / self._final_div
            group["lr"] = self._at(first, greatest, last)
            if self._cycles:
                most, least = self._momenta
                momentum = self._at(most, least, most)
                if "betas" in group:
                    group["betas"] = (momentum, group["betas"][1])
                else:
                    group["momentum"] = momentum

    def _at(self, first: float, middle: float, last: float) -> float:
        k, end = self.last_epoch, self._total - 1
        if self._rise > 0 and k <= self._rise:
            return self._anneal(first, middle, k / self._rise)
        done = (k - self._rise) / (end - self._rise) if self._rise < end else 1.0
        return self._anneal(middle, last, done)

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """As of the other schedulers."""
        super().load_state_dict(state_dict)
        self._apply()


class ReduceLROnPlateau(_Scheduler):
    """Multiplies the rates by `factor` when a metric has not improved for `patience` steps.

    A metric improves on the best one if it is below best * (1 - threshold), or with
    threshold_mode="abs" below best - threshold; with mode="max", above best * (1 + threshold) or
    best + threshold.

    Args:
        optimizer: one of `tidegate.optim`.
        mode: "min" for a loss, "max" for an accuracy.
        factor: 0 to 1, below 1.
        patience: the number of steps without improvement that are passed over.
        threshold: the least improvement that counts.
        threshold_mode: "rel" or "abs".
        cooldown: the number of steps after a reduction in which nothing is counted.
        min_lr: the least rate.
        eps: a rate is not changed by less than that.

    Raises:
        TypeError, ValueError: an argument of another type, or out of its range.
    """

    _counts = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")

    def __init__(
        self,
        optimizer: _Optimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode: got {mode!r}, wanted 'min' or 'max'")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold_mode: got {threshold_mode!r}, wanted 'rel' or 'abs'")
        self._sign = 1.0 if mode == "min" else -1.0
        self._factor = check_number("factor", factor, below=1)
        self._patience = _count("patience", patience)
        self._threshold = check_number("threshold", threshold)
        self._relative = threshold_mode == "rel"
        self._cooldown = _count("cooldown", cooldown)
        self._least = check_number("min_lr", min_lr)
        self._eps = check_number("eps", eps)
        super().__init__(optimizer)
        self.best = self._sign * math.inf
        self.num_bad_epochs = 0
        self.cooldown_counter = 0

    def step(self, metric: float) -> None:  # type: ignore[override]
        """Counts a step with this metric, a number; NaN is no improvement."""
        metric = float(metric)
        self.last_epoch += 1
        if self._improves(metric):
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self._patience:
            for group in self.optimizer.param_groups:
                reduced = max(group["lr"] * self._factor, self._least)
                if group["lr"] - reduced > self._eps:
                    group["lr"] = reduced
            self.cooldown_counter, self.num_bad_epochs = self._cooldown, 0

    def _improves(self, metric: float) -> bool:
        if math.isinf(self.best):
            limit = self.best
        elif self._relative:
            limit = self.best * (1 - self._sign * self._threshold)
        else:
            limit = self.best - self._sign * self._threshold
        return self._sign * metric < self._sign * limit


def _count(name: str, value: object) -> int:
    count = check_integer(name, value)
    if count < 0:
        raise ValueError(f"{name}: got {count}, wanted at least 0")
    return count


def _above_zero(name: str, value: object) -> float:
    number = check_number(name, value)
    if number == 0:
        raise ValueError(f"{name}: got 0, wanted a number above 0")
    return number
