"""Optimisers and gradient clipping, on the layers' flat vectors. Names and formulas are PyTorch's.

    opt = tg.optim.Adam([gru, head], lr=1e-3)
    tg.optim.clip_grad_norm([gru_grads, head_grads], max_norm=1.0)
    opt.step([gru_grads, head_grads])

A layer, or an object of your own with `params = tg.Params.from_arrays({"weight": array})`, is
accepted in place of its Params (`HasParams`). In the same way, anything with Gradients as its
`params` (`HasGradients`), as what `backward` returns, is accepted in place of Gradients.

The arithmetic runs in the core, in one pass over memory: after a step a parameter has the same bits
for any number of threads (`tg.set_num_threads`) and any instruction set. Subnormal numbers count as
zero, as in the layers. A Ctrl-C takes effect between the updates of two Params, never within one.

Parameters may come in groups with hyperparameters of their own:

    opt = tg.optim.AdamW([{"params": gru}, {"params": head, "lr": 1e-2}], lr=1e-3)

`opt.lr` may be set between steps, and so may `opt.param_groups[k]["lr"]`: the schedulers of
`tidegate.lr_scheduler` do it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, overload

import numpy as np

from tidegate import _core
from tidegate.checks import Array, check_bool, check_mapping, check_number
from tidegate.params import Gradients, Params

__all__ = ["SGD", "Adam", "AdamW", "HasGradients", "HasParams", "ParamGroup", "clip_grad_norm"]


def __dir__() -> list[str]:
    """The optimisers and their types, without the names that this module imports."""
    return list(__all__)


class HasParams(Protocol):
    """Anything with parameters: a layer of this package, or an object of your own."""

    @property
    def params(self) -> Params:
        """The parameters, always the same object; `Params.from_arrays` makes them."""


class HasGradients(Protocol):
    """Anything with gradients for parameters, such as the result of a layer's `backward`."""

    @property
    def params(self) -> Gradients:
        """The gradients; `Gradients.from_arrays` and `Gradients.zeros_like` make them."""


AnyParams: TypeAlias = Params | HasParams
AnyGradients: TypeAlias = Gradients | HasGradients
# Either all elements of a sequence are groups, or none is. One sequence type for both lets type
# checkers infer the type of a list of different layers.
GivenParams: TypeAlias = AnyParams | Sequence[AnyParams | Mapping[str, Any]]


class ParamGroup(MutableMapping[str, Any]):
    """Parameters that share hyperparameters: `group["lr"]`, `group["params"]`.

    Hyperparameters may be set between steps; a wrong value is refused at once, with the error of
    the optimiser's constructor. Keys can be neither added nor removed, and "params" cannot be set.
    """

    def __init__(
        self, kind: type[_Optimizer], params: list[Params], values: dict[str, Any]
    ) -> None:
        self._kind = kind
        self._params = params
        self._values = kind._checked(values)

    def __getitem__(self, name: str) -> Any:
        return tuple(self._params) if name == "params" else self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._values:
            raise KeyError(f"{name!r} cannot be set; {', '.join(self._values)} can")
        self._values = self._kind._checked({**self._values, name: value})

    def __delitem__(self, name: str) -> None:
        raise TypeError("an optimiser's group keeps its keys")

    def __iter__(self) -> Iterator[str]:
        return iter(("params", *self._values))

    def __len__(self) -> int:
        return 1 + len(self._values)

    def __repr__(self) -> str:
        values = "".join(f", {name}={value}" for name, value in self._values.items())
        return f"ParamGroup(params=<{len(self._params)} Params>{values})"


class _Hyperparameter:
    """An attribute of an optimiser that gets and sets a hyperparameter of all of its groups."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, optimizer: None, kind: type) -> _Hyperparameter: ...
    @overload
    def __get__(self, optimizer: _Optimizer, kind: type) -> Any: ...
    def __get__(self, optimizer: _Optimizer | None, kind: type) -> Any:
        if optimizer is None:
            return self
        values = [group[self._name] for group in optimizer.param_groups]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"{self._name}: the groups have {', '.join(map(str, values))}; read one of them, "
                f'as opt.param_groups[0]["{self._name}"]'
            )
        return values[0]

    def __set__(self, optimizer: _Optimizer, value: Any) -> None:
        changed = [{**group._values, self._name: value} for group in optimizer.param_groups]
        checked = [optimizer._checked(values) for values in changed]
        for group, values in zip(optimizer.param_groups, checked):
            group._values = values


class _Optimizer:
    """Base class of the optimisers: groups of Params, the step count, buffers for each parameter.

    A subclass names its hyperparameters (attributes) and its buffers (one array per Params,
    initially zero), checks the hyperparameters, and calls the core's step with them.
    """

    _hyperparameters: ClassVar[tuple[str, ...]]
    _buffer_names: ClassVar[tuple[str, ...]]

    def __init__(self, params: GivenParams, **defaults: Any) -> None:
        self._groups = [
            ParamGroup(type(self), group.pop("params"), group)
            for group in _as_groups(params, defaults)
        ]
        self._params = [p for group in self._groups for p in group["params"]]
        if len({id(p) for p in self._params}) < len(self._params):
            raise ValueError("params: got the same Params twice, wanted each once")
        self._step = 0
        self._initial_lrs: list[float] = []  # of the groups, once there is a scheduler
        self._buffers = {
            name: [np.zeros_like(p.flat) for p in self._params] for name in self._buffer_names
        }

    @classmethod
    def _checked(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Hyperparameters by name, converted to the types in which they are stored.

        Raises:
            TypeError, ValueError: a value is wrong; see the class.
        """
        raise NotImplementedError

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """The groups, in the order given; one, if the parameters were given without groups."""
        return tuple(self._groups)

    def step(self, grads: AnyGradients | Sequence[AnyGradients]) -> None:
        """Updates all parameters by their gradients.

        Args:
            grads: one Gradients for each Params, in the order of the parameters, group by group.

        Raises:
            TypeError: grads are not Gradients, or have another dtype.
            ValueError: their number, names or shapes differ from the parameters'. Nothing has been
                written.
        """
        gradients = _as_list("grads", grads, Gradients)
        if len(gradients) != len(self._params):
            raise ValueError(f"grads: got {len(gradients)}, wanted {len(self._params)}")
        for k, (params, gradient) in enumerate(zip(self._params, gradients)):
            if gradient.dtype != params.dtype:
                raise TypeError(f"grads[{k}]: got dtype {gradient.dtype}, wanted {params.dtype}")
            if list(gradient.shapes.items()) != list(params.shapes.items()):
                raise ValueError(
                    f"grads[{k}]: got {gradient.shapes}, wanted {params.shapes}, in this order"
                )
        self._step += 1
        k = 0
        for group in self._groups:
            for params in group["params"]:
                buffers = [self._buffers[name][k] for name in self._buffer_names]
                self._update(group, params, gradients[k].flat, *buffers)
                k += 1

    def _update(self, group: ParamGroup, params: Params, grad: Array, *buffers: Array) -> None:
        """Updates `params` and their buffers in place; `_step` counts from 1."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """Names -> copies of all that a step depends on, except parameters and gradients.

        `numpy.savez(file, **opt.state_dict())` can save them. `step` and the hyperparameters are
        short or 0-d arrays, with the groups along a first axis if there are several; each buffer
        has PyTorch's name and its index in the list of Params: `exp_avg_0`.
        """
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Restores a saved state, including hyperparameters such as lr. All or nothing.

        Args:
            state_dict: from an optimiser of the same kind, for the same number of groups and for
                Params of the same sizes and dtypes in the same order; an open `.npz` file will do.

        Raises:
            TypeError: `state_dict` is not a mapping, or nothing but dtypes is wrong.
            ValueError: keys are missing, surplus or of another shape (one message names every
                problem), or a value is out of range.
        """
        wanted = {name: (array.shape, array.dtype) for name, array in self._state().items()}
        given = check_mapping("state_dict", self._upgrade_state(state_dict), wanted)
        if given["step"] < 0:
            raise ValueError(f"state_dict: step: got {given['step']}, wanted at least 0")
        self._check_kind(given)
        rows = {name: given[name].tolist() for name in self._hyperparameters}
        if len(self._groups) == 1:
            rows = {name: [row] for name, row in rows.items()}
        values = [
            self._checked({name: row[k] for name, row in rows.items()})
            for k in range(len(self._groups))
        ]
        for group, group_values in zip(self._groups, values):
            group._values = group_values
        self._step = int(given["step"])
        for name, buffers in self._buffers.items():
            for k, buffer in enumerate(buffers):
                buffer[...] = given[f"{name}_{k}"]

    def _upgrade_state(self, state_dict: Any) -> Any:
        """Converts a state that an earlier version may have written to this version's form."""
        return state_dict

    def _check_kind(self, given: Mapping[str, Array]) -> None:
        """Refuses a state from another kind of optimiser whose state has the same names."""

    def _state(self) -> dict[str, Array]:
        state = {"step": np.asarray(self._step, np.int64)}
        for name in self._hyperparameters:
            rows = [group[name] for group in self._groups]
            state[name] = np.asarray(rows[0] if len(rows) == 1 else rows)
        for name, buffers in self._buffers.items():
            state |= {f"{name}_{k}": buffer for k, buffer in enumerate(buffers)}
        return state

    def __repr__(self) -> str:
        groups = [
            ", ".join(f"{name}={group[name]}" for name in self._hyperparameters)
            for group in self._groups
        ]
        if len(groups) == 1:
            return f"{type(self).__name__}({groups[0]})"
        return "\n".join([f"{type(self).__name__}(", *(f"  {{{one}}}," for one in groups), ")"])


class SGD(_Optimizer):
    """Stochastic gradient descent, as `torch.optim.SGD`.

        g = grad + weight_decay * p
        buf = momentum * buf + (1 - dampening) * g      (the first step: buf = g)
        p -= lr * buf                                   (nesterov: p -= lr * (g + momentum * buf))

    Args:
        params: a Params or an object with `params`, or a sequence of these; or a sequence of
            groups, each a dict of "params" and of the hyperparameters that differ for them.
        lr: the learning rate.
        momentum: with 0 there is none, and p -= lr * g.
        dampening: see the formula.
        weight_decay: the factor of an L2 penalty.
        nesterov: Nesterov's momentum; needs momentum > 0 and dampening = 0.

    Raises:
        TypeError: an argument of another type.
        ValueError: a negative or infinite number, or nesterov without what it needs.
    """

    _hyperparameters = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    _buffer_names = ("momentum_buffer",)
    lr = _Hyperparameter()
    momentum = _Hyperparameter()
    dampening = _Hyperparameter()
    weight_decay = _Hyperparameter()
    nesterov = _Hyperparameter()

    def __init__(
        self,
        params: GivenParams,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )

    @classmethod
    def _checked(cls, values: dict[str, Any]) -> dict[str, Any]:
        numbers = ("lr", "momentum", "dampening", "weight_decay")
        checked: dict[str, Any] = {name: check_number(name, values[name]) for name in numbers}
        checked["nesterov"] = check_bool("nesterov", values["nesterov"])
        if checked["nesterov"] and (checked["momentum"] == 0 or checked["dampening"] != 0):
            raise ValueError(
                f"nesterov: got it with momentum={checked['momentum']}, "
                f"dampening={checked['dampening']}, wanted momentum > 0 and dampening = 0 with it"
            )
        return checked

    def _update(self, group: ParamGroup, params: Params, grad: Array, *buffers: Array) -> None:
        values = {name: group[name] for name in self._hyperparameters}
        params._step_by(_core.sgd_step, grad, *buffers, self._step, **values)


class _AdamBase(_Optimizer):
    """Base class of Adam and AdamW, which differ only in their weight decay."""

    _hyperparameters = ("lr", "betas", "eps", "weight_decay")
    _buffer_names = ("exp_avg", "exp_avg_sq")
    _decoupled: ClassVar[bool]  # whether the weight decay is kept out of the gradient
    lr = _Hyperparameter()
    betas = _Hyperparameter()
    eps = _Hyperparameter()
    weight_decay = _Hyperparameter()

    @classmethod
    def _checked(cls, values: dict[str, Any]) -> dict[str, Any]:
        betas = values["betas"]
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise TypeError(f"betas: got {betas!r}, wanted a pair of numbers") from None
        return {
            "lr": check_number("lr", values["lr"]),
            "betas": (
                check_number("betas[0]", beta1, below=1),
                check_number("betas[1]", beta2, below=1),
            ),
            "eps": check_number("eps", values["eps"]),
            "weight_decay": check_number("weight_decay", values["weight_decay"]),
        }

    def _update(self, group: ParamGroup, params: Params, grad: Array, *buffers: Array) -> None:
        beta1, beta2 = group["betas"]
        params._step_by(
            _core.adam_step,
            grad,
            *buffers,
            self._step,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=self._decoupled,
        )

    def _state(self) -> dict[str, Array]:
        # PyTorch's name for it. Without it, Adam would accept a state of AdamW.
        return super()._state() | {"decoupled_weight_decay": np.asarray(self._decoupled)}

    def _upgrade_state(self, state_dict: Any) -> Any:
        """Earlier versions had only Adam, with decoupled weight decay, and wrote no kind."""
        key = "decoupled_weight_decay"
        if not isinstance(state_dict, Mapping) or key in state_dict:
            return state_dict
        decays = "weight_decay" in state_dict and np.any(np.asarray(state_dict["weight_decay"]))
        return {**state_dict, key: np.asarray(bool(decays) or self._decoupled)}

    def _check_kind(self, given: Mapping[str, Array]) -> None:
        if bool(given["decoupled_weight_decay"]) != self._decoupled:
            mine, other = ("AdamW", "Adam") if self._decoupled else ("Adam", "AdamW")
            earlier = "" if self._decoupled else " (as that of Adam was in versions before AdamW)"
            raise ValueError(
                f"state_dict: got the state of an optimiser whose weight decay is that of {other}"
                f"{earlier}, wanted {mine}'s; load it into tg.optim.{other}"
            )


class Adam(_AdamBase):
    """Adam with an L2 penalty, as `torch.optim.Adam`; for decoupled weight decay see `AdamW`.

        g = grad + weight_decay * p
        exp_avg    = beta1 * exp_avg    + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g^2
        p -= lr * (exp_avg / (1 - beta1^t)) / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)

    for step t = 1, 2, ... (Kingma and Ba, 2015). In versions without `AdamW`, weight_decay was that
    of `AdamW`; a state saved with it is refused here and loads there.

    Args:
        params: a Params or an object with `params`, or a sequence of these; or a sequence of
            groups, each a dict of "params" and of the hyperparameters that differ for them.
        lr: the learning rate.
        betas: decay rates of the two averages, each 0 <= beta < 1.
        eps: keeps the division finite.
        weight_decay: the factor of an L2 penalty.

    Raises:
        TypeError: an argument of another type.
        ValueError: a negative or infinite number, or a beta out of range.
    """

    _decoupled = False

    def __init__(
        self,
        params: GivenParams,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


class AdamW(_AdamBase):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

        p -= lr * weight_decay * p

    and then a step of `Adam` without a penalty (Loshchilov and Hutter, 2019).

    Args:
        params, lr, betas, eps: as for `Adam`.
        weight_decay: the rate at which the parameters decay, including biases; a group of biases
            with `"weight_decay": 0` excludes them.

    Raises:
        TypeError: an argument of another type.
        ValueError: a negative or infinite number, or a beta out of range.
    """

    _decoupled = True

    def __init__(
        self,
        params: GivenParams,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def clip_grad_norm(
    grads: AnyGradients | Sequence[AnyGradients],
    max_norm: float,
    *,
    error_if_nonfinite: bool = False,
) -> float:
    """Scales gradients in place so that their common 2-norm is at most max_norm.

    As `torch.nn.utils.clip_grad_norm_`: all are multiplied by min(1, max_norm / (norm + 1e-6)). If
    the norm is infinite, the finite gradients thus become zero; if it is NaN, all become NaN.

    Args:
        grads: a Gradients or an object with them as `params`, or a sequence of these.
        max_norm: at least 0; infinity measures the norm without scaling.
        error_if_nonfinite: whether an infinite or NaN norm is an error, before anything is written.

    Returns:
        The norm before scaling; squares are summed in double precision.

    Raises:
        TypeError: an argument of another type.
        ValueError: max_norm is negative or NaN, or the norm is not finite and
            `error_if_nonfinite` is set.
    """
    gradients = _as_list("grads", grads, Gradients)
    error_if_nonfinite = check_bool("error_if_nonfinite", error_if_nonfinite)
    if max_norm != math.inf:
        max_norm = check_number("max_norm", max_norm)
    norm = math.sqrt(sum(_core.sum_of_squares(gradient.flat) for gradient in gradients))
    if error_if_nonfinite and not math.isfinite(norm):
        raise ValueError(f"grads: got {norm}, wanted a finite norm")
    scale = max_norm / (norm + 1e-6)
    if max_norm < math.inf and not scale >= 1:
        for gradient in gradients:
            _core.scale(gradient.flat, scale)
    return norm


_T = TypeVar("_T", Params, Gradients)


def _as_groups(params: GivenParams, defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """Groups as dicts of "params", a list of Params, and all hyperparameters."""
    given: Any = params
    if isinstance(given, Mapping) and not isinstance(given, Params):
        raise TypeError(
            f"params: got {type(given).__name__}, wanted Params or a sequence of them; groups are "
            'a list of dicts, [{"params": ..., "lr": ...}], and tg.Params.from_arrays makes Params '
            "from arrays"
        )
    grouped = isinstance(given, Sequence) and any(
        isinstance(one, Mapping) and not isinstance(one, Params) for one in given
    )
    if not grouped:
        return [{**defaults, "params": _as_list("params", given, Params)}]
    groups = []
    for k, group in enumerate(given):
        if not isinstance(group, Mapping) or isinstance(group, Params):
            raise TypeError(
                f"params[{k}]: got {type(group).__name__} among groups, wanted a group, "
                '{"params": ...}'
            )
        if "params" not in group:
            raise ValueError(
                f'params[{k}]: got a group without "params"; tg.Params.from_arrays makes Params '
                "from arrays"
            )
        surplus = [repr(name) for name in group if name not in ("params", *defaults)]
        if surplus:
            raise ValueError(
                f"params[{k}]: surplus {', '.join(surplus)}; a group has params, "
                f"{', '.join(defaults)}"
            )
        group_params = _as_list(f"params[{k}]['params']", group["params"], Params)
        groups.append({**defaults, **group, "params": group_params})
    return groups


def _as_list(name: str, value: Any, kind: type[_T]) -> list[_T]:
    """One or several Params or Gradients, or objects that have them as `params`, as a list."""
    one = _as_kind(value, kind)
    if one is not None:
        return [one]
    if not isinstance(value, Sequence):
        raise TypeError(
            f"{name}: got {type(value).__name__}, wanted {kind.__name__}, an object with them as "
            "its `params`, or a sequence of these"
        )
    values = []
    for k, element in enumerate(value):
        one = _as_kind(element, kind)
        if one is None:
            raise TypeError(
                f"{name}[{k}]: got {_described(element)}, wanted {kind.__name__} or an object with "
                f"them as its `params`; tg.{kind.__name__}.from_arrays makes them from arrays"
            )
        values.append(one)
    if not values:
        raise ValueError(f"{name}: got none, wanted at least one {kind.__name__}")
    return values


def _as_kind(value: Any, kind: type[_T]) -> _T | None:
    """`value` or its `params`, whichever is of this kind; None if neither is."""
    if isinstance(value, kind):
        return value
    params = getattr(value, "params", None)
    return params if isinstance(params, kind) else None


def _described(value: Any) -> str:
    params = getattr(value, "params", None)
    name = type(value).__name__
    return name if params is None else f"{name} with params of type {type(params).__name__}"
