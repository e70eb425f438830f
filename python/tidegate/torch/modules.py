"""Replacements of torch.nn's LSTM and GRU: the checks of a call, and where it is computed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from tidegate.torch import operator
from tidegate.torch.calls import PLAIN, Call, Recurrence, fastest_kind
from tidegate.torch.memory import DTYPES
from tidegate.torch.models import ModelKey, Models


def kind_of(value: object) -> str:
    """The qualified name of a value's class, for messages."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _refusal(name: str, tensor: Any, dtype: Any) -> Exception:
    """The error for a tensor that the kernels cannot read; the parameters are of `dtype`."""
    if type(tensor) not in PLAIN:
        return TypeError(f"{name}: got {kind_of(tensor)}, wanted a plain torch.Tensor")
    if not tensor.is_cpu:
        return ValueError(f"{name}: got device {tensor.device}, wanted cpu")
    if tensor.layout is not torch.strided:
        return ValueError(f"{name}: got {tensor.layout}, wanted a dense tensor")
    if tensor.dtype not in DTYPES:
        return TypeError(f"{name}: got {tensor.dtype}, wanted torch.float32 or torch.float64")
    return TypeError(f"{name}: got {tensor.dtype}, wanted {dtype} as the parameters")


def _autocast_precision(weights: Sequence[Any]) -> str | None:
    """The precision of a call's products that autocast asks for; None: that of the parameters.

    Autocast concerns float32 alone. It may have lowered some weights, if they were computed.
    """
    if not torch.is_autocast_enabled("cpu"):
        return None
    if all(getattr(weight, "dtype", None) is not torch.float32 for weight in weights):
        return None
    return "bfloat16" if torch.get_autocast_dtype("cpu") is torch.bfloat16 else "float16"


def _widened(tensor: Any) -> Any:
    """A tensor under autocast: the result of other operations, in low precision, as float32."""
    dtype = getattr(tensor, "dtype", None)
    return tensor.float() if dtype is torch.bfloat16 or dtype is torch.float16 else tensor


def _mode_in_force(tensors: list[torch.Tensor]) -> str | None:
    """The mode of PyTorch, if any, that makes a call more than its arithmetic, or None."""
    if _autocast_precision(tensors) == "float16":
        return "autocast to torch.float16"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func"
    if torch.jit.is_tracing():
        return "a tracer"
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        return "forward-mode AD"
    return None


class _EqualToTorchClass(type):
    """Metaclass of modules that are equal to a class of torch.nn in tables keyed by class.

    `quantize_dynamic` looks modules up by their exact class, and finds swapped modules in this way.
    A subclass is equal only to itself, as is a subclass of torch.nn's.
    """

    def __eq__(cls, other: object) -> bool:
        return cls is other or (other is not None and cls.__dict__.get("_torch_class") is other)

    def __hash__(cls) -> int:
        return type.__hash__(cls.__dict__.get("_torch_class", cls))


class Recurrent(torch.nn.Module):
    """The implementation of `forward` that LSTM and GRU have in place of torch.nn's."""

    num_threads: int | None = (
        None  # at most, for a call; None: the lesser of both libraries' limits
    )
    _cell: str  # the name of the class
    _is_frozen = False
    _precision: str | None = None  # of a frozen module; None: that of its parameters
    _uncompiled: Callable[..., Any] | None = None  # _forward, excluded from torch.compile
    _falls_back = False  # whether calls that the kernels cannot run go to PyTorch's own forward

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002
        """As the module of torch.nn: the same arguments, results, and errors for shapes.

        T steps, N rows, I input_size, D 2 if bidirectional else 1, S the size of h.

        Args:
            input: (T, N, I), (N, T, I) with `batch_first`, unbatched (T, I), or a PackedSequence
                (with `batch_first` too). T is at least 1; N may be 0.
            hx: the initial state, h_0 (L*D, N, S) for a GRU, a pair (h_0, c_0) for an LSTM; without
                N for unbatched input; in the order of the unsorted rows for a PackedSequence. None
                is zeros.

        Returns:
            y, h_n for a GRU; y, (h_n, c_n) for an LSTM. y (T, N, D*S), laid out like `input`, or a
            PackedSequence.

        Raises:
            TypeError: an argument is not a plain tensor, or not of the parameters' dtype.
            ValueError, RuntimeError: a wrong shape, with PyTorch's error, also of a parameter; a
                tensor that is not dense or not on the CPU, or whose storage is too small for it; a
                frozen module in training.
            NotImplementedError: autocast to float16, torch.func, forward-mode AD or tracing.

        Under `torch.autocast("cpu", torch.bfloat16)` the operands of a float32 module's products
        are rounded to bfloat16, forward and backward; all else is float32. (A module that is frozen
        in a precision keeps it.) There `input`, `hx` and computed parameters may be bfloat16 or
        float16, and all results have the dtype of h_0, or if `hx` is None of `input`.
        """
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
            return self._traced(input, hx)
        # If a compiler leaves this module uncompiled, it must not compile the functions that the
        # module calls either, as it would take NumPy's arrays for tensors. Importing the compiler
        # here would take seconds.
        if "torch._dynamo" in sys.modules:
            if Recurrent._uncompiled is None:
                Recurrent._uncompiled = staticmethod(torch.compiler.disable(Recurrent._forward))
            return Recurrent._uncompiled(self, input, hx)
        return self._forward(input, hx)

    def _forward(self, input: Any, hx: Any) -> tuple[Any, Any]:  # noqa: A002
        if isinstance(input, torch.fx.Proxy) or isinstance(hx, torch.fx.Proxy):
            return self._leaf(input, hx)
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, order, unorder = input if packed else (input, None, None, None)
        x, states, weights, precision, dtype = self._arguments(x, hx)
        tensors = [x, *states, *weights]
        obstacle = self._obstacle(tensors, len(states))
        if obstacle is not None:
            return self._fall_back(input, hx, obstacle)
        self._check_shapes(x, states, batch_sizes)
        precision = fastest_kind(precision)
        if order is not None:
            states = tuple(state.index_select(1, order) for state in states)

        dropout = self._dropout()
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        self._check_frozen(differentiable, dropout)
        models = self.__dict__.get("_models") or self.__dict__.setdefault("_models", Models())
        key = self._key(x.dtype, packed)
        if self._is_frozen:
            model, precision = models.frozen(key, weights, self._precision or precision), None
        else:
            model = models.take(key, weights)
        try:
            call = Call(
                key, model, batch_sizes, dropout, self._threads(), self._is_frozen, precision
            )
            if differentiable:
                y, *states_n = Recurrence.apply(call, len(states), x, *states, *weights)
            else:
                y, states_n = call.run(x, states)
        finally:
            if not self._is_frozen:
                models.give_back(key, model)

        return self._results(y, states_n, dtype, batch_sizes, order, unorder)

    def _traced(self, input: Any, hx: Any) -> tuple[Any, Any]:  # noqa: A002
        """A call under torch.compile, torch.export or a TorchDispatchMode.

        It is one operator, or PyTorch's own operators where it must run without Tidegate.
        """
        if self._falls_back and (
            torch.compiler.is_exporting() or not torch.compiler.is_compiling()
        ):
            return super().forward(input, hx)
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, order, unorder = input if packed else (input, None, None, None)
        x, states, weights, precision, dtype = self._arguments(x, hx)
        tensors = [x, *states, *weights]
        obstacle = self._obstacle_to_tracing(tensors)
        if obstacle is not None:
            return self._fall_back(input, hx, obstacle)
        self._check_shapes(x, states, batch_sizes)
        if order is not None:
            states = tuple(state.index_select(1, order) for state in states)
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        dropout = self._dropout()
        self._check_frozen(differentiable, dropout)
        y, h_n, c_n, _ = operator.recurrence(
            x,
            batch_sizes,
            list(states),
            weights,
            self._cell,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.bias,
            self.bidirectional,
            self.proj_size,
            self.batch_first and not packed,
            dropout,
            self.num_threads or 0,
            differentiable,
            precision,
        )
        states_n = (h_n, c_n) if self.mode == "LSTM" else (h_n,)
        return self._results(y, states_n, dtype, batch_sizes, order, unorder)

    def _obstacle_to_tracing(self, tensors: list[Any]) -> Exception | None:
        """Why the operator cannot replace this call; None if it can."""
        found = None
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
            found = "an argument that is not a tensor"
        elif any(t.dtype not in DTYPES or t.dtype is not tensors[-1].dtype for t in tensors):
            found = f"dtypes {', '.join(sorted({str(t.dtype) for t in tensors}))}"
        elif any(t.device.type != "cpu" for t in tensors):
            found = "a device other than cpu"
        elif _autocast_precision(tensors) == "float16":
            found = "autocast to torch.float16"
        elif self._precision is not None:
            found = f"a module in {self._precision}"
        if found is None:
            return None
        return NotImplementedError(
            f"{self._name()}: got {found} in a traced call; Tidegate's operator wants float32 or "
            "float64 tensors on the CPU, all of one dtype"
        )

    def _results(
        self,
        y: torch.Tensor,
        states_n: Sequence[torch.Tensor],
        dtype: torch.dtype,
        batch_sizes: torch.Tensor | None,
        order: torch.Tensor | None,
        unorder: torch.Tensor | None,
    ) -> tuple[Any, Any]:
        """Assembles what `forward` returns."""
        if y.dtype is not dtype:
            y, states_n = y.to(dtype), [state.to(dtype) for state in states_n]
        if unorder is not None:
            states_n = [state.index_select(1, unorder) for state in states_n]
        result = y if batch_sizes is None else PackedSequence(y, batch_sizes, order, unorder)
        return result, tuple(states_n) if self.mode == "LSTM" else states_n[0]

    def _leaf(self, input: Any, hx: Any) -> Any:  # noqa: A002
        """The module's call in a torch.fx graph, where modules of torch.nn are leaves."""
        tracer = (input if isinstance(input, torch.fx.Proxy) else hx).tracer
        target = tracer.path_of_module(self)
        if not target:  # the root itself is traced, and a root cannot be a leaf
            return super().forward(input, hx)
        arguments = (input,) if hx is None else (input, hx)
        return tracer.create_proxy("call_module", target, arguments, {})

    def _fall_back(self, input: Any, hx: Any, obstacle: Exception) -> tuple[Any, Any]:  # noqa: A002
        if self._falls_back and not self._is_frozen:
            return super().forward(input, hx)
        raise obstacle

    def _arguments(self, x: Any, hx: Any) -> tuple[Any, tuple[Any, ...], list[Any], Any, Any]:
        """x, the states and the weights that the kernels read; then, of the call, the precision of
        the products (None: that of the weights), and the dtype of the results."""
        states, weights = self._states(hx), self._weights()
        dtype = getattr(states[0] if states else x, "dtype", None)
        precision = _autocast_precision(weights)
        if precision is not None:
            x, states = _widened(x), tuple(map(_widened, states))
            weights = [_widened(weight) for weight in weights]
        return x, states, weights, precision, dtype

    def _weights(self) -> list[torch.Tensor]:
        # Looked up by name, because torch.func.functional_call and weight_norm replace them.
        own = self._parameters
        return [
            own[name] if name in own else getattr(self, name) for name in self._flat_weights_names
        ]

    def _key(self, dtype: torch.dtype, packed: bool) -> ModelKey:
        return ModelKey._make(  # takes half the time of ModelKey(...)
            (
                self._cell,
                self.input_size,
                self.hidden_size,
                self.num_layers,
                self.bias,
                self.bidirectional,
                self.proj_size,
                dtype,
                bool(self.batch_first and not packed),
            )
        )

    def _dropout(self) -> float:
        """The dropout probability of a call."""
        return self.dropout if self.training and self.num_layers > 1 else 0.0

    def _check_frozen(self, differentiable: bool, dropout: float) -> None:
        if self._is_frozen and self.training and (differentiable or dropout > 0):
            raise RuntimeError(
                f"{self._name()}: got a call in training mode, but the module is frozen: call "
                ".eval(), or accelerate(model, freeze=False)"
            )

    def _name(self) -> str:
        return f"tidegate.torch.{self.mode}"

    def _threads(self) -> int:
        if self.num_threads is not None:
            return self.num_threads
        return operator.threads()

    def _states(self, hx: Any) -> tuple[Any, ...]:
        if hx is None:
            return ()
        if self.mode == "GRU":
            return (hx,)
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise TypeError(f"{self._name()}: hx: got {kind_of(hx)}, wanted a pair (h_0, c_0)")
        return tuple(hx)

    def _obstacle(self, tensors: list[Any], state_count: int) -> Exception | None:
        """Why the kernels cannot run this call; None if they can."""
        dtype = getattr(tensors[-1], "dtype", None)  # the parameters'
        for i, tensor in enumerate(tensors):
            if (
                type(tensor) in PLAIN
                and tensor.is_cpu
                and tensor.layout is torch.strided
                and tensor.dtype in DTYPES
                # PyTorch's own check covers the input, except under autocast.
                and (tensor.dtype is dtype or (i == 0 and not torch._C._is_any_autocast_enabled()))
            ):
                continue
            states = ["hx"] if state_count == 1 else ["hx[0]", "hx[1]"]
            name = ["input", *states[:state_count], *self._flat_weights_names][i]
            return _refusal(f"{self._name()}: {name}", tensor, dtype)
        mode = _mode_in_force(tensors)
        if mode is None:
            return None
        return NotImplementedError(
            f"{self._name()}: got a call under {mode}; Tidegate computes plain float32 and "
            "float64 tensors, also under autocast to torch.bfloat16, and gradients by backward()"
        )

    def _check_shapes(
        self, x: torch.Tensor, states: tuple[torch.Tensor, ...], batch_sizes: torch.Tensor | None
    ) -> None:
        """Runs PyTorch's own checks where they can be called, and raises its kinds of error."""
        if batch_sizes is None:
            if x.dim() not in (2, 3):
                raise ValueError(
                    f"{self.mode}: Expected input to be 2D or 3D, got {x.dim()}D instead"
                )
            dims = [state.dim() for state in states]
            if dims and set(dims) != {x.dim()}:
                kind = "batched 3-D" if x.dim() == 3 else "unbatched 2-D"
                raise RuntimeError(
                    f"{self.mode}: For {kind} input, hx should also be {x.dim()}-D but got "
                    f"{' and '.join(f'{dim}-D' for dim in dims)}"
                )
            if x.dim() == 2:
                x = x.unsqueeze(0 if self.batch_first else 1)
                states = tuple(state.unsqueeze(1) for state in states)
        if self.mode == "LSTM" and states:
            self.check_forward_args(x, states, batch_sizes)
        elif states:
            self.check_forward_args(x, states[0], batch_sizes)
        else:
            self.check_input(x, batch_sizes)
        if batch_sizes is None and x.shape[1 if self.batch_first else 0] == 0:
            raise RuntimeError(
                f"{self.mode}: Expected sequence length to be larger than 0 in RNN, got input of "
                f"shape {tuple(x.shape)}"
            )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        # PyTorch swaps a parameter's content only if it has no weak references.
        self.__dict__.pop("_models", None)
        return super()._apply(fn, recurse)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """What `torch.jit.script` compiles: the module, converted back to torch.nn's."""
        if not self._falls_back:
            raise NotImplementedError(
                f"{self._name()}: got torch.jit.script, which compiles only torch.nn's modules: "
                "call tidegate.torch.restore(model) first"
            )
        restore_module(self)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_models", None)
        return state


class LSTM(Recurrent, torch.nn.LSTM, metaclass=_EqualToTorchClass):
    """`torch.nn.LSTM` on Tidegate's kernels, forward and backward; `proj_size` too.

    Attributes:
        num_threads: the most threads that a call may use. None, the default: the lesser of
            `torch.get_num_threads()` and `tidegate.get_num_threads()`.
    """


class GRU(Recurrent, torch.nn.GRU, metaclass=_EqualToTorchClass):
    """`torch.nn.GRU` on Tidegate's kernels, forward and backward.

    Attributes:
        num_threads: the most threads that a call may use. None, the default: the lesser of
            `torch.get_num_threads()` and `tidegate.get_num_threads()`.
    """


PAIRS = {"LSTM": (torch.nn.LSTM, LSTM), "GRU": (torch.nn.GRU, GRU)}
for _torch_class, _own_class in PAIRS.values():
    _own_class._torch_class, _own_class._cell = _torch_class, _torch_class.__name__
    _own_class.__module__ = "tidegate.torch"  # the public name, in pickles


def swap_module(module: torch.nn.Module, freeze: bool, precision: str | None) -> None:
    """Turns a `torch.nn.LSTM` or `GRU` into the class of this package, in place."""
    module.__class__ = PAIRS[module.mode][1]
    module._falls_back = True
    freeze_module(module, freeze, precision)


def freeze_module(module: torch.nn.Module, freeze: bool, precision: str | None) -> None:
    """Sets whether the parameters are packed only once, from now on, and in which precision."""
    module._is_frozen = freeze
    module._precision = precision
    module.__dict__.pop("_models", None)


def restore_module(module: torch.nn.Module) -> None:
    """Turns a module of this package back into torch.nn's, in place, removing all attributes."""
    module.__class__ = PAIRS[module.mode][0]
    for name in ("_falls_back", "_is_frozen", "_precision", "_models", "num_threads"):
        module.__dict__.pop(name, None)
