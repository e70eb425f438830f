"""LSTM and GRU as PyTorch modules that run on Tidegate's kernels. No mathematics: all of it is C++.

    import torch, tidegate.torch

    gru = tidegate.torch.GRU(40, 128, batch_first=True)  # as torch.nn.GRU, and interchangeable
    tidegate.torch.accelerate(model)                     # every nn.LSTM and nn.GRU of a model
    tidegate.torch.accelerate(model.eval(), freeze=True)  # to serve it

`LSTM` and `GRU` are subclasses of `torch.nn.LSTM` and `torch.nn.GRU`: constructor, parameters and
how they are drawn, `state_dict`, hooks, copies and pickles are theirs; `forward` and its gradient
are ours, one node in the graph. Tensors are float32 or float64 on the CPU; their memory is read as
it is, that of a PackedSequence too, whatever the strides, as long as the last axis is contiguous.

Parameters are read at every call, since a write to `parameter.data` leaves no trace that could be
relied on; `accelerate(model, freeze=True)` packs them once. What a gradient needs, the weights too,
is kept by value when the forward call returns: later in-place writes cannot spoil it.

Dropout is drawn as PyTorch draws it: for each layer but the last one `torch.dropout` of that
layer's output, (T, N, D*S) in time-major order or (sum of lengths, D*S) of a PackedSequence, from
the default `torch.Generator`. After the same `torch.manual_seed` it drops what torch.nn drops.

Refused by name: other devices and dtypes, autocast, `torch.func` transforms (vmap, jvp, grad),
forward-mode AD, tracing, tensor subclasses, and gradients of gradients (`create_graph=True`).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from tidegate import _core
from tidegate.checks import Array, check_bool

__all__ = ["GRU", "LSTM", "accelerate"]

_DTYPES: dict[Any, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
_PLAIN = (torch.Tensor, torch.nn.Parameter)

_Key: TypeAlias = tuple[np.dtype[Any], bool]  # of a model: dtype, batch_first
_Refs: TypeAlias = list[weakref.ref[torch.Tensor]]


class _Call(NamedTuple):
    """One call of a module: what is not a tensor."""

    model: _core.Model  # with the module's parameters in it
    batch_sizes: Array | None  # of a PackedSequence
    dropout: float  # 0 unless it is to be drawn
    num_threads: int
    frozen: bool

    def pair(self, states: tuple[torch.Tensor | None, ...]) -> Any:
        """A state, or its gradient, as the core takes it."""
        arrays = tuple(None if state is None else _array(state) for state in states)
        if self.model.config.cell == "lstm":
            return arrays or None
        return arrays[0] if arrays else None

    def run(
        self, x: torch.Tensor, states: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """y and the last states, and nothing for a gradient."""
        if self.dropout > 0:
            y, state, _ = self.record(x, states)
            return y, state
        model, array, state = self.model, _array(x), self.pair(states)
        if self.batch_sizes is None:
            return _tensors(*model.run(array, state, None, None, None, self.num_threads))
        return _tensors(*model.run_packed(array, self.batch_sizes, state, self.num_threads))

    def record(
        self, x: torch.Tensor, states: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], _core.Tape]:
        """y, the last states, and what the gradient needs."""
        draw = self._draw_dropout if self.dropout > 0 else None
        model, array, state = self.model, _array(x), self.pair(states)
        if self.batch_sizes is None:
            y, state, tape = model.record(array, state, None, None, draw, self.num_threads)
        else:
            sizes = self.batch_sizes
            y, state, tape = model.record_packed(array, sizes, state, draw, self.num_threads)
        return (*_tensors(y, state), tape)

    def _draw_dropout(self, shape: tuple[int, ...]) -> Array:
        """(L-1, T, N, D*S): 0 for what is dropped, 1/(1 - dropout) for what is kept."""
        scale = np.zeros(shape, self.model.dtype)
        live: Any = ...  # where there is something to drop
        if self.batch_sizes is not None:
            live = np.arange(shape[2]) < self.batch_sizes[:, np.newaxis]
        ones = torch.from_numpy(np.ones_like(scale[0][live]))
        for layer in scale:
            layer[live] = torch.dropout(ones, self.dropout, True).numpy()
        return scale


def _array(tensor: torch.Tensor) -> Array:
    """A tensor's memory. Where gradients are enabled, of a detached one."""
    return tensor.resolve_neg().numpy()


def _tensors(sequence: Array, state: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """What the core returns: a sequence, and a state of one or two arrays."""
    states = state if isinstance(state, tuple) else (state,)
    return torch.from_numpy(sequence), tuple(torch.from_numpy(array) for array in states)


class _Recurrence(torch.autograd.Function):
    """A call of the kernels as one node of PyTorch's graph."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, state_count: int, x: torch.Tensor, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """`tensors`: the initial states, `state_count` of them, then the parameters."""
        ctx.set_materialize_grads(False)
        ctx.call, ctx.tape, ctx.state_count = call, None, state_count
        states = tensors[:state_count]
        if call.frozen:
            y, states_n = call.run(x, states)
        else:
            y, states_n, ctx.tape = call.record(x, states)
        ctx.shapes = [tensor.shape for tensor in tensors[state_count:]]
        return (y, *states_n)

    @staticmethod
    def backward(
        ctx: Any, dy: torch.Tensor | None, *dstates: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """Gradients by what `forward` was given, where they are wanted."""
        call: _Call = ctx.call
        if call.frozen:
            raise RuntimeError(
                "tidegate.torch: the module is frozen, and a frozen one has no gradient; "
                "accelerate(model, freeze=False) makes it trainable"
            )
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "tidegate.torch: got create_graph=True, but gradients of gradients are not "
                "supported: use torch.nn's own module for double backward"
            )
        tape = ctx.tape
        if tape is None:
            raise RuntimeError(
                "tidegate.torch: trying to backward through the graph a second time, but what it "
                "needs has been freed; the first time wants retain_graph=True"
            )
        # As PyTorch's own nodes: memory is free once the graph is used up, not when it is dropped.
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.tape = None
        _, _, x_wanted, *wanted = ctx.needs_input_grad
        states_wanted, weights_wanted = wanted[: ctx.state_count], wanted[ctx.state_count :]
        dx, dstate_0, flat = call.model.backward(
            tape,
            None if dy is None else _array(dy),
            call.pair(dstates),
            call.num_threads,
            x_wanted,
            any(weights_wanted),
        )
        grads: list[torch.Tensor | None] = [None, None, dx if dx is None else torch.from_numpy(dx)]
        dstates_0 = dstate_0 if isinstance(dstate_0, tuple) else (dstate_0,)
        for array, want in zip(dstates_0, states_wanted):
            grads.append(torch.from_numpy(array) if want else None)
        end = 0
        for shape, want in zip(ctx.shapes, weights_wanted):
            begin, end = end, end + shape.numel()
            # Slices, each a storage of its own: what saves one gradient saves just that.
            grads.append(torch.from_numpy(flat[begin:end].reshape(shape)) if want else None)
        return tuple(grads)


class _Packed:
    """The core's models of one module. Never copied or pickled with it.

    A call takes an idle model, or makes one, and copies the parameters in; so calls from several
    threads do not wait for each other, and each runs with the parameters that it found.
    """

    def __init__(self) -> None:
        self._idle: dict[_Key, list[_core.Model]] = {}
        self._frozen: dict[_Key, tuple[_core.Model, _Refs, list[tuple[int, int]]]] = {}
        self._views: tuple[_Refs, list[int], list[Array]] = ([], [], [])

    def take(
        self, config: Callable[[], _core.Config], weights: list[torch.Tensor], key: _Key
    ) -> _core.Model:
        """A model with these parameters in it; to be given back."""
        idle = self._idle.setdefault(key, [])
        try:
            model = idle.pop()
        except IndexError:
            model = _core.Model(config(), *key)
        self._write(model, weights)
        return model

    def give_back(self, model: _core.Model) -> None:
        """For the next call: a tape keeps what it needs by itself."""
        self._idle[model.dtype, model.batch_first].append(model)

    def frozen(
        self, config: Callable[[], _core.Config], weights: list[torch.Tensor], key: _Key
    ) -> _core.Model:
        """The one model of all calls. Made anew if a parameter was visibly changed or replaced."""
        # An address and a version say nothing of writes to `parameter.data`; see `accelerate`.
        marks = [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
        model, refs, kept_marks = self._frozen.get(key, (None, [], []))
        if model is None or marks != kept_marks or not _are(weights, refs):
            model = _core.Model(config(), *key)
            self._write(model, weights)
            self._frozen[key] = model, [weakref.ref(weight) for weight in weights], marks
        return model

    def _write(self, model: _core.Model, weights: list[torch.Tensor]) -> None:
        offset = 0
        for view in self._flat_views(weights):
            model.write(offset, view)
            offset += view.size

    def _flat_views(self, weights: list[torch.Tensor]) -> list[Array]:
        """The parameters' memory. Kept, for to ask PyTorch for it takes as long as a short call."""
        refs, addresses, views = self._views
        contiguous = all(weight.is_contiguous() for weight in weights)
        found = [weight.data_ptr() for weight in weights]
        if contiguous and found == addresses and _are(weights, refs):
            return views
        views = [_array(weight.detach()).reshape(-1) for weight in weights]
        if contiguous:  # else they are copies
            self._views = [weakref.ref(weight) for weight in weights], found, views
        return views


def _are(weights: list[torch.Tensor], refs: _Refs) -> bool:
    # Weakly held: a weight that was computed holds on to its graph.
    return len(weights) == len(refs) and all(ref() is w for ref, w in zip(refs, weights))


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _refusal(name: str, tensor: Any, dtype: Any) -> Exception:
    """What to raise for a tensor that the kernels cannot read; the parameters are of `dtype`."""
    if type(tensor) not in _PLAIN:
        return TypeError(f"{name}: got {_kind(tensor)}, wanted a plain torch.Tensor")
    if not tensor.is_cpu:
        return ValueError(f"{name}: got device {tensor.device}, wanted cpu")
    if tensor.layout is not torch.strided:
        return ValueError(f"{name}: got {tensor.layout}, wanted a dense tensor")
    if tensor.dtype not in _DTYPES:
        return TypeError(f"{name}: got {tensor.dtype}, wanted torch.float32 or torch.float64")
    return TypeError(f"{name}: got {tensor.dtype}, wanted {dtype} as the parameters")


def _mode_in_force(tensors: list[torch.Tensor]) -> str | None:
    """A mode of PyTorch in which a call is more than its arithmetic; None: there is none."""
    if torch.is_autocast_enabled("cpu"):
        return "autocast, which wants a lower precision"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func"
    if torch.jit.is_tracing():
        return "a tracer"
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        return "forward-mode AD"
    return None


class _Recurrent(torch.nn.Module):
    """What LSTM and GRU have in place of torch.nn's forward."""

    num_threads: int | None = None  # of a call; None: the lesser of PyTorch's and Tidegate's
    _is_frozen = False
    _uncompiled: Callable[..., Any] | None = None  # _forward, where there is a compiler
    _falls_back = False  # to PyTorch's own forward, where ours refuses

    def _config(self) -> _core.Config:
        return _core.Config(
            cell=self.mode.lower(),
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bias=self.bias,
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
        )

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002
        """As the module of torch.nn: the same arguments, results, and errors of shape.

        T steps, N rows, I input_size, D 2 if bidirectional else 1, S the size of h.

        Args:
            input: (T, N, I), (N, T, I) with `batch_first`, unbatched (T, I), or a PackedSequence
                (with `batch_first` too). T is at least 1; N may be 0.
            hx: the initial state, h_0 (L*D, N, S) of a GRU, a pair (h_0, c_0) of an LSTM; of
                unbatched input without N; in the order of the unsorted rows of a PackedSequence.
                None is zeros.

        Returns:
            y, h_n of a GRU; y, (h_n, c_n) of an LSTM. y (T, N, D*S), laid out like `input`, or a
            PackedSequence.

        Raises:
            TypeError: something is no plain tensor, or not of the parameters' dtype.
            ValueError, RuntimeError: a wrong shape, as PyTorch has it; a tensor that is not dense
                or not on the CPU; a frozen module in training.
            NotImplementedError: autocast, torch.func, forward-mode AD or tracing.
        """
        # torch.compile would take NumPy's arrays for tensors of its own. Whoever compiles has
        # imported this module of PyTorch, which takes seconds.
        if "torch._dynamo" in sys.modules:
            if _Recurrent._uncompiled is None:
                _Recurrent._uncompiled = staticmethod(torch.compiler.disable(_Recurrent._forward))
            return _Recurrent._uncompiled(self, input, hx)
        return self._forward(input, hx)

    def _forward(self, input: Any, hx: Any) -> tuple[Any, Any]:  # noqa: A002
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, order, unorder = input if packed else (input, None, None, None)
        states = self._states(hx)
        # Read by name: torch.func.functional_call and weight_norm replace them.
        own = self._parameters
        weights = [
            own[name] if name in own else getattr(self, name) for name in self._flat_weights_names
        ]
        tensors = [x, *states, *weights]
        obstacle = self._obstacle(tensors, len(states))
        if obstacle is not None:
            if self._falls_back and not self._is_frozen:
                return super().forward(input, hx)
            raise obstacle
        self._check_shapes(x, states, batch_sizes)
        if order is not None:
            states = tuple(state.index_select(1, order) for state in states)

        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if self._is_frozen and self.training and (differentiable or dropout > 0):
            raise RuntimeError(
                f"{self._name()}: got a call in training mode, but the module is frozen: call "
                ".eval(), or accelerate(model, freeze=False)"
            )
        store: _Packed = self.__dict__.get("_packed") or self.__dict__.setdefault(
            "_packed", _Packed()
        )
        key: _Key = (_DTYPES[x.dtype], bool(self.batch_first and not packed))
        get = store.frozen if self._is_frozen else store.take
        model = get(self._config, weights, key)
        try:
            sizes = None if batch_sizes is None else batch_sizes.numpy()
            call = _Call(model, sizes, dropout, self._threads(), self._is_frozen)
            if differentiable:
                y, *states_n = _Recurrence.apply(call, len(states), x, *states, *weights)
            else:
                y, states_n = call.run(x, states)
        finally:
            if not self._is_frozen:
                store.give_back(model)

        if unorder is not None:
            states_n = [state.index_select(1, unorder) for state in states_n]
        if packed:
            y = PackedSequence(y, batch_sizes, order, unorder)
        return y, tuple(states_n) if self.mode == "LSTM" else states_n[0]

    def _name(self) -> str:
        return f"tidegate.torch.{self.mode}"

    def _threads(self) -> int:
        if self.num_threads is not None:
            return self.num_threads
        return min(torch.get_num_threads(), _core.num_threads())

    def _states(self, hx: Any) -> tuple[Any, ...]:
        if hx is None:
            return ()
        if self.mode == "GRU":
            return (hx,)
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise TypeError(f"{self._name()}: hx: got {_kind(hx)}, wanted a pair (h_0, c_0)")
        return tuple(hx)

    def _obstacle(self, tensors: list[Any], state_count: int) -> Exception | None:
        """What keeps our kernels from running this call; None if nothing does."""
        dtype = getattr(tensors[-1], "dtype", None)  # the parameters'
        for i, tensor in enumerate(tensors):
            if (
                type(tensor) in _PLAIN
                and tensor.is_cpu
                and tensor.layout is torch.strided
                and tensor.dtype in _DTYPES
                and (tensor.dtype is dtype or i == 0)  # of the input PyTorch's check says it
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
            "float64 tensors, and gradients by backward()"
        )

    def _check_shapes(
        self, x: torch.Tensor, states: tuple[torch.Tensor, ...], batch_sizes: torch.Tensor | None
    ) -> None:
        """PyTorch's own checks where they can be called, and its kinds of error."""
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

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_packed", None)
        return state


class LSTM(_Recurrent, torch.nn.LSTM):
    """`torch.nn.LSTM` on Tidegate's kernels, forward and backward; `proj_size` too.

    Attributes:
        num_threads: how many threads a call may use at most. None, the default: as many as both
            `torch.get_num_threads()` and `tidegate.get_num_threads()` allow.
    """


class GRU(_Recurrent, torch.nn.GRU):
    """`torch.nn.GRU` on Tidegate's kernels, forward and backward.

    Attributes:
        num_threads: how many threads a call may use at most. None, the default: as many as both
            `torch.get_num_threads()` and `tidegate.get_num_threads()` allow.
    """


_OURS = {torch.nn.LSTM: LSTM, torch.nn.GRU: GRU}


def accelerate(model: torch.nn.Module, freeze: bool = False) -> torch.nn.Module:
    """Lets every `torch.nn.LSTM` and `torch.nn.GRU` in a model run on Tidegate, in place.

    The modules stay the objects that they are, and so do their parameters, hooks, and whatever
    refers to them (an optimiser, another module): they become `tidegate.torch.LSTM` and `GRU`.
    Subclasses of torch.nn's, and modules with parametrizations, are left alone. Where Tidegate
    would refuse a call (another device or dtype, autocast, torch.func, tracing), a module swapped
    here runs PyTorch's own forward instead, unless it is frozen; one that was made as
    `tidegate.torch.LSTM` raises.

    Args:
        model: whose modules are swapped, itself included.
        freeze: for serving. False: parameters are copied and packed at every call. True: once, and
            again only when a parameter is replaced or its version counter has moved
            (`load_state_dict`, an optimiser's step). A write to `parameter.data`, which moves none,
            is not seen until `accelerate(model, freeze=True)` is called again. A frozen module has
            no gradient: backward through it raises, and so does a call in training mode that would
            need a gradient or draw dropout. `freeze=False` undoes it.

    Returns:
        The model itself.

    Raises:
        TypeError: model is no Module, or freeze no bool.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: got {_kind(model)}, wanted a torch.nn.Module")
    freeze = check_bool("freeze", freeze)
    for module in model.modules():
        ours = _OURS.get(type(module))
        if ours is not None:
            module.__class__ = ours
            module._falls_back = True
        if isinstance(module, _Recurrent):
            module._is_frozen = freeze
            module.__dict__.pop("_packed", None)
    return model
