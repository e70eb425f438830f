"""One call of the kernels, and its node in PyTorch's graph."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from tidegate import _core
from tidegate.checks import Array
from tidegate.settings import fastest_bfloat16
from tidegate.tensors import array_of
from tidegate.torch.memory import ALLOCATORS, DTYPES, tensor_of
from tidegate.torch.models import ModelKey

PLAIN = (torch.Tensor, torch.nn.Parameter)


def fastest_kind(precision: str | None) -> str | None:
    """The precision for autocast's bfloat16: the faster of the two. None stays None."""
    return None if precision is None else fastest_bfloat16()


class Call(NamedTuple):
    """The arguments of one call of a module that are not floating-point tensors."""

    key: ModelKey
    model: _core.Model  # holds the module's parameters
    batch_sizes: torch.Tensor | None  # those of a PackedSequence
    dropout: float  # 0 unless dropout has to be drawn
    num_threads: int
    frozen: bool = False
    precision: str | None = None  # of the products; None: that of the model's parameters

    def run(
        self, x: torch.Tensor, states: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Returns y and the last states; keeps nothing for a gradient."""
        if self.dropout > 0:
            y, state, _ = self.record(x, states)
            return y, state
        model, array, state_0, empty = self._arguments(x, states)
        if self.batch_sizes is None:
            results = model.run(
                array, state_0, None, None, None, self.num_threads, empty, self.precision
            )
        else:
            sizes = array_of("batch_sizes", self.batch_sizes)
            results = model.run_packed(
                array, sizes, state_0, self.num_threads, empty, self.precision
            )
        return tensor_of(results[0]), _tensors(results[1])

    def record(
        self, x: torch.Tensor, states: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], _core.Tape]:
        """Returns y, the last states, and the tape for the gradient."""
        draw = self._draw_dropout if self.dropout > 0 else None
        model, array, state_0, empty = self._arguments(x, states)
        if self.batch_sizes is None:
            y, state, tape = model.record(
                array, state_0, None, None, draw, self.num_threads, empty, self.precision
            )
        else:
            sizes = array_of("batch_sizes", self.batch_sizes)
            y, state, tape = model.record_packed(
                array, sizes, state_0, draw, self.num_threads, empty, self.precision
            )
        return tensor_of(y), _tensors(state), tape

    def backward(
        self,
        tape: _core.Tape,
        dy: torch.Tensor | None,
        dstates: Sequence[torch.Tensor | None],
        want_x: bool,
        want_weights: bool,
    ) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...], list[torch.Tensor]]:
        """Gradients for x, the initial states, and the parameters; None where not wanted.

        Each has its own storage, so that saving or resizing one does not affect the others.
        """
        dx, dstate_0, dweights = self.model.backward(
            tape,
            None if dy is None else array_of("dy", dy),
            self._state("dstate", dstates),
            self.num_threads,
            want_x,
            want_weights,
            ALLOCATORS[self.key.dtype],
        )
        return (
            None if dx is None else tensor_of(dx),
            _tensors(dstate_0),
            [] if dweights is None else [tensor_of(array) for array in dweights],
        )

    def by_torch(
        self, x: torch.Tensor, states: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """y and the last states by PyTorch's own functions, which can be differentiated again.

        They compute in the dtype of the arguments, whatever the precision of the call, outside of
        autocast.
        """
        key = self.key
        is_unbatched = self.batch_sizes is None and x.dim() == 2
        batch_axis = 0 if key.batch_first else 1
        if is_unbatched:
            x, states = x.unsqueeze(batch_axis), [state.unsqueeze(1) for state in states]
        if not states:
            batch = x.shape[batch_axis] if self.batch_sizes is None else int(self.batch_sizes[0])
            rows = key.num_layers * key.num_directions
            states = [x.new_zeros(rows, batch, size) for size in key.state_sizes]
        function = torch._VF.lstm if key.cell == "LSTM" else torch._VF.gru
        hx = list(states) if key.cell == "LSTM" else states[0]
        options = (key.bias, key.num_layers, self.dropout, self.dropout > 0, key.bidirectional)
        if self.batch_sizes is None:
            y, *states_n = function(x, hx, list(weights), *options, key.batch_first)
        else:
            y, *states_n = function(x, self.batch_sizes, hx, list(weights), *options)
        if is_unbatched:
            y, states_n = y.squeeze(batch_axis), [state.squeeze(1) for state in states_n]
        return (y, *states_n)

    def _arguments(
        self, x: torch.Tensor, states: Sequence[torch.Tensor]
    ) -> tuple[_core.Model, Array, Any, Any]:
        state = self._state("hx", states)
        return self.model, array_of("input", x), state, ALLOCATORS[self.key.dtype]

    def _state(self, name: str, states: Sequence[torch.Tensor | None]) -> Any:
        """A state, or its gradient, in the form that the core takes."""
        arrays = tuple(None if state is None else array_of(name, state) for state in states)
        if self.key.cell == "LSTM":
            return arrays or None
        return arrays[0] if arrays else None

    def _draw_dropout(self, shape: tuple[int, ...]) -> Array:
        """(L-1, T, N, D*S): 0 for dropped elements, 1/(1 - dropout) for the others."""
        scale = np.zeros(shape, DTYPES[self.key.dtype])
        valid: Any = ...  # selects the elements that are not padding
        if self.batch_sizes is not None:
            sizes = array_of("batch_sizes", self.batch_sizes)
            valid = np.arange(shape[2]) < sizes[:, np.newaxis]
        ones = torch.from_numpy(np.ones_like(scale[0][valid]))
        for layer in scale:
            layer[valid] = torch.dropout(ones, self.dropout, True).numpy()
        return scale


def _tensors(state: Any) -> tuple[torch.Tensor, ...]:
    """A state of one or two arrays, as tensors."""
    return tuple(tensor_of(array) for array in (state if isinstance(state, tuple) else (state,)))


def _is_plain(tensor: torch.Tensor | None) -> bool:
    """Whether a gradient is one tensor with memory; with `is_grads_batched` it holds several."""
    return tensor is None or (
        type(tensor) in PLAIN and not torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


class Recurrence(torch.autograd.Function):
    """A call of the kernels as one node of PyTorch's graph."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, state_count: int, x: torch.Tensor, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """`tensors`: the initial states, `state_count` of them, then the parameters."""
        ctx.set_materialize_grads(False)
        ctx.call, ctx.tape, ctx.state_count, ctx.rng_state = call, None, state_count, None
        states = tensors[:state_count]
        if call.frozen:
            y, states_n = call.run(x, states)
        else:
            if call.dropout > 0:
                ctx.rng_state = torch.get_rng_state()
            y, states_n, ctx.tape = call.record(x, states)
            # Only for `_by_torch`: the tape has copies, which later in-place writes cannot spoil.
            ctx.save_for_backward(x, *tensors)
        return (y, *states_n)

    @staticmethod
    def backward(
        ctx: Any, dy: torch.Tensor | None, *dstates: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """Gradients for the inputs of `forward`, where they are wanted."""
        call: Call = ctx.call
        if call.frozen:
            raise RuntimeError(
                "tidegate.torch: the module is frozen, and a frozen module has no gradient; "
                "accelerate(model, freeze=False) makes it trainable"
            )
        if all(grad is None for grad in (dy, *dstates)):
            return (None,) * len(ctx.needs_input_grad)
        if (
            torch.is_grad_enabled()
            or torch._C._are_functorch_transforms_active()
            or not all(map(_is_plain, (dy, *dstates)))
        ):
            return (None, None, *_by_torch(ctx, (dy, *dstates)))
        tape = ctx.tape
        if tape is None:
            raise RuntimeError(
                "tidegate.torch: trying to backward through the graph a second time, but the saved "
                "tape has been freed; pass retain_graph=True to the first backward"
            )
        # Like PyTorch's own nodes, free the memory once the graph is used, not when it is dropped.
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.tape = None
        _, _, x_wanted, *wanted = ctx.needs_input_grad
        states_wanted, weights_wanted = wanted[: ctx.state_count], wanted[ctx.state_count :]
        dx, dstates_0, dweights = call.backward(tape, dy, dstates, x_wanted, any(weights_wanted))
        return (
            None,
            None,
            dx,
            *(grad if want else None for grad, want in zip(dstates_0, states_wanted)),
            *(grad if want else None for grad, want in zip(dweights, weights_wanted)),
            *([None] * (len(weights_wanted) - len(dweights))),
        )


def _by_torch(ctx: Any, grads: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """`Recurrence.backward` by PyTorch's own functions: repeats the forward call.

    Needed for what the kernels cannot compute: gradients of gradients, and batches of gradients.
    """
    call: Call = ctx.call
    wanted = ctx.needs_input_grad[2:]
    create_graph = torch.is_grad_enabled()
    replay: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if ctx.rng_state is not None:
        replay = torch.random.fork_rng(devices=[])
    exact = torch.autocast("cpu", enabled=False)
    with exact, torch.enable_grad(), replay:
        if ctx.rng_state is not None:
            torch.set_rng_state(ctx.rng_state)
        # Views, so that a tensor that was passed twice has two gradients.
        inputs = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        end = 1 + ctx.state_count
        results = call.by_torch(inputs[0], inputs[1:end], inputs[end:])
    pairs = [(result, grad) for result, grad in zip(results, grads) if grad is not None]
    outputs, grad_outputs = zip(*pairs)
    with exact:
        grads = torch.autograd.grad(
            outputs,
            [tensor for tensor, want in zip(inputs, wanted) if want],
            grad_outputs,
            create_graph=create_graph,
            allow_unused=True,
        )
    found = iter(grads)
    return [next(found) if want else None for want in wanted]
