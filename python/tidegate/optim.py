"""Optimisers and gradient clipping, on the layers' flat vectors. Names and formulas are PyTorch's.

    opt = tg.optim.Adam([gru.params, head.params], lr=1e-3)
    tg.optim.clip_grad_norm([gru_grads.params, head_grads.params], max_norm=1.0)
    opt.step([gru_grads.params, head_grads.params])

`opt.lr` may be set between steps: that is how a schedule is written. No layer and no schedule here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import numpy as np

from tidegate.checks import Array, check_mapping, check_number
from tidegate.params import Gradients, Params


class _Optimizer:
    """What SGD and Adam share: the Params, the step count, and what is kept for each parameter.

    A subclass names its hyperparameters (attributes, fixed but for lr) and its buffers (one array
    per Params, beginning at zero), and says how one flat vector is updated.
    """

    _hyperparameters: ClassVar[tuple[str, ...]]
    _buffer_names: ClassVar[tuple[str, ...]]

    def __init__(self, params: Params | Sequence[Params], lr: float) -> None:
        self._params = _as_list("params", params, Params)
        if len({id(p) for p in self._params}) < len(self._params):
            raise ValueError("params: the same Params is given twice")
        self.lr = lr
        self._step = 0
        self._buffers = {
            name: [np.zeros_like(p.flat) for p in self._params] for name in self._buffer_names
        }

    @property
    def lr(self) -> float:
        """The learning rate; may be set between steps.

        Raises:
            TypeError: it is no number.
            ValueError: it is negative, infinite or NaN.
        """
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = check_number("lr", value)

    def step(self, grads: Gradients | Sequence[Gradients]) -> None:
        """Updates all parameters by their gradients.

        Args:
            grads: one Gradients for each Params, in the same order.

        Raises:
            TypeError: not that, or another dtype.
            ValueError: too few or many, or their names or shapes are not the parameters'. Nothing
                is written then.
        """
        gradients = _as_list("grads", grads, Gradients)
        if len(gradients) != len(self._params):
            raise ValueError(f"grads: got {len(gradients)}, wanted {len(self._params)}")
        for k, (params, gradient) in enumerate(zip(self._params, gradients, strict=True)):
            if gradient.dtype != params.dtype:
                raise TypeError(f"grads[{k}]: got dtype {gradient.dtype}, wanted {params.dtype}")
            if gradient.shapes != params.shapes:
                raise ValueError(
                    f"grads[{k}]: got {gradient.shapes}, wanted those of {params.shapes}"
                )
        self._step += 1
        for k, (params, gradient) in enumerate(zip(self._params, gradients, strict=True)):
            buffers = [self._buffers[name][k] for name in self._buffer_names]
            with params.update() as flat:
                self._update(flat, gradient.flat, *buffers)

    def _update(self, flat: Array, grad: Array, *buffers: Array) -> None:
        """Updates one flat vector and its buffers in place; `_step` counts from 1."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """Names -> copies of all that a step depends on, but for parameters and gradients.

        `numpy.savez(file, **opt.state_dict())` can save them. `step` and the hyperparameters are
        short or 0-d arrays; each buffer has PyTorch's name and its place in the list of Params:
        `exp_avg_0`.
        """
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state_dict: Mapping[str, Array]) -> None:
        """Takes up a saved state, hyperparameters such as lr included. All or nothing.

        Args:
            state_dict: from an optimiser of the same kind, for Params of the same sizes and dtypes
                in the same order; an open `.npz` file will do.

        Raises:
            TypeError: `state_dict` is no mapping, or all that is wrong are dtypes.
            ValueError: keys are missing, surplus or of another shape (one message names every
                problem), or a value is out of range.
        """
        wanted = {name: (array.shape, array.dtype) for name, array in self._state().items()}
        given = check_mapping("state_dict", state_dict, wanted)
        if given["step"] < 0:
            raise ValueError(f"state_dict: step: got {given['step']}, wanted at least 0")
        loaded = type(self)(
            self._params, **{name: given[name].tolist() for name in self._hyperparameters}
        )
        loaded._step = int(given["step"])
        for name, buffers in loaded._buffers.items():
            for k, buffer in enumerate(buffers):
                buffer[...] = given[f"{name}_{k}"]
        vars(self).update(vars(loaded))

    def _state(self) -> dict[str, Array]:
        state = {"step": np.asarray(self._step, np.int64)}
        for name in self._hyperparameters:
            state[name] = np.asarray(getattr(self, name))
        for name, buffers in self._buffers.items():
            state |= {f"{name}_{k}": buffer for k, buffer in enumerate(buffers)}
        return state

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)}" for name in self._hyperparameters)
        return f"{type(self).__name__}({values})"


class SGD(_Optimizer):
    """Stochastic gradient descent, as `torch.optim.SGD`.

        g = grad + weight_decay * p
        buf = momentum * buf + (1 - dampening) * g      (the first step: buf = g)
        p -= lr * buf                                   (nesterov: p -= lr * (g + momentum * buf))

    Args:
        params: one Params or a sequence of them.
        lr: the learning rate.
        momentum: 0 is none, and then p -= lr * g.
        dampening: see the formula.
        weight_decay: the factor of an L2 penalty.
        nesterov: Nesterov's momentum; needs momentum > 0 and dampening = 0.

    Raises:
        TypeError: an argument of another type.
        ValueError: a negative or infinite number, or nesterov without what it needs.
    """

    _hyperparameters = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    _buffer_names = ("momentum_buffer",)

    def __init__(
        self,
        params: Params | Sequence[Params],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr)
        self.momentum = check_number("momentum", momentum)
        self.dampening = check_number("dampening", dampening)
        self.weight_decay = check_number("weight_decay", weight_decay)
        self.nesterov = bool(nesterov)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov: got it with momentum={self.momentum}, dampening={self.dampening}, "
                "wanted momentum > 0 and dampening = 0 with it"
            )

    def _update(self, flat: Array, grad: Array, *buffers: Array) -> None:
        (buffer,) = buffers
        if self.weight_decay:
            grad = grad + self.weight_decay * flat
        if self.momentum:
            if self._step == 1:
                buffer[...] = grad
            else:
                buffer *= self.momentum
                buffer += (1 - self.dampening) * grad
            grad = grad + self.momentum * buffer if self.nesterov else buffer
        flat -= self.lr * grad


class Adam(_Optimizer):
    """Adam with decoupled weight decay: `torch.optim.AdamW`; without decay, `torch.optim.Adam` too.

        p -= lr * weight_decay * p
        exp_avg    = beta1 * exp_avg    + (1 - beta1) * grad
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad^2
        p -= lr * (exp_avg / (1 - beta1^t)) / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)

    for step t = 1, 2, ... (Kingma and Ba, 2015; Loshchilov and Hutter, 2019). `torch.optim.Adam`'s
    own weight_decay, an L2 penalty added to the gradient, is not offered.

    Args:
        params: one Params or a sequence of them.
        lr: the learning rate.
        betas: decay rates of the two averages, each 0 <= beta < 1.
        eps: keeps the division finite.
        weight_decay: AdamW's; it decays biases too.

    Raises:
        TypeError: an argument of another type.
        ValueError: a negative or infinite number, or a beta out of range.
    """

    _hyperparameters = ("lr", "betas", "eps", "weight_decay")
    _buffer_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params | Sequence[Params],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr)
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise TypeError(f"betas: got {betas!r}, wanted a pair of numbers") from None
        self.betas = (
            check_number("betas[0]", beta1, below=1),
            check_number("betas[1]", beta2, below=1),
        )
        self.eps = check_number("eps", eps)
        self.weight_decay = check_number("weight_decay", weight_decay)

    def _update(self, flat: Array, grad: Array, *buffers: Array) -> None:
        exp_avg, exp_avg_sq = buffers
        beta1, beta2 = self.betas
        flat *= 1 - self.lr * self.weight_decay
        exp_avg *= beta1
        exp_avg += (1 - beta1) * grad
        exp_avg_sq *= beta2
        exp_avg_sq += (1 - beta2) * grad * grad
        correction1, correction2 = 1 - beta1**self._step, 1 - beta2**self._step
        denominator = np.sqrt(exp_avg_sq) / math.sqrt(correction2) + self.eps
        flat -= self.lr / correction1 * exp_avg / denominator


def clip_grad_norm(
    grads: Gradients | Sequence[Gradients], max_norm: float, *, error_if_nonfinite: bool = False
) -> float:
    """Scales gradients in place so that their common 2-norm is at most max_norm.

    As `torch.nn.utils.clip_grad_norm_`: all are multiplied by min(1, max_norm / (norm + 1e-6)); so
    if the norm is infinite the finite ones become zero, and if it is NaN all become NaN.

    Args:
        grads: one Gradients or a sequence of them.
        max_norm: at least 0; infinity measures without scaling.
        error_if_nonfinite: refuse a norm that is infinite or NaN, before anything is written.

    Returns:
        The norm before scaling; squares are summed in double precision.

    Raises:
        TypeError: an argument of another type.
        ValueError: max_norm is negative or NaN, or the norm is not finite and that was to be
            refused.
    """
    gradients = _as_list("grads", grads, Gradients)
    if max_norm != math.inf:
        max_norm = check_number("max_norm", max_norm)
    with np.errstate(all="ignore"):
        squares = sum(float(np.sum(np.square(g.flat, dtype=np.float64))) for g in gradients)
        norm = math.sqrt(squares)
        if error_if_nonfinite and not math.isfinite(norm):
            raise ValueError(f"grads: got {norm}, wanted a finite norm")
        scale = max_norm / (norm + 1e-6)
        if max_norm < math.inf and not scale >= 1:
            for gradient in gradients:
                gradient.flat *= scale
    return norm


_T = TypeVar("_T", Params, Gradients)


def _as_list(name: str, value: _T | Sequence[_T], kind: type[_T]) -> list[_T]:
    values = [value] if isinstance(value, kind) else value
    if not isinstance(values, Sequence):
        got = type(value).__name__
        raise TypeError(f"{name}: got {got}, wanted {kind.__name__} or a sequence of them")
    for k, one in enumerate(values):
        if not isinstance(one, kind):
            raise TypeError(f"{name}[{k}]: got {type(one).__name__}, wanted {kind.__name__}")
    if not values:
        raise ValueError(f"{name}: got none, wanted at least one {kind.__name__}")
    return list(values)
