"""The kernels as operators of PyTorch, for tracing by torch.compile and torch.export.

`tidegate::recurrence` has a fake kernel, so that a compiler knows the shapes of its results, and a
gradient, `tidegate::recurrence_backward`. Eager calls bypass the operators: dispatch costs more
than a short call.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tidegate import _core
from tidegate.torch.calls import Call, fastest_kind
from tidegate.torch.models import ModelKey, Models


class _TapeMemory(np.ndarray[Any, Any]):
    """The memory of a tensor that represents a tape in a graph, and keeps the tape alive."""

    call: Call
    tape: _core.Tape


# The tapes, by the address of the tensor that represents each.
_tape_memories: weakref.WeakValueDictionary[int, _TapeMemory] = weakref.WeakValueDictionary()


def _tensor_of_tape(call: Call, tape: _core.Tape) -> Tensor:
    memory = np.zeros(1, np.uint8).view(_TapeMemory)
    memory.call, memory.tape = call, tape
    _tape_memories[memory.ctypes.data] = memory
    return torch.from_numpy(memory)


@functools.lru_cache(maxsize=32)
def _models(address: int) -> Models:  # noqa: ARG001
    """The models of the network whose first parameter is at this address, kept between calls."""
    return Models()


@torch.library.custom_op(
    "tidegate::recurrence",
    mutates_args=(),
    device_types="cpu",
    tags=torch.Tag.nondeterministic_seeded,  # because of dropout
    schema=(
        "(Tensor x, Tensor? batch_sizes, Tensor[] states, Tensor[] weights, str cell, "
        "int input_size, int hidden_size, int num_layers, bool bias, bool bidirectional, "
        "int proj_size, bool batch_first, float dropout, int num_threads, bool record, "
        "str? precision=None) "
        "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor tape)"
    ),
)
def recurrence(
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bias: bool,
    bidirectional: bool,
    proj_size: int,
    batch_first: bool,
    dropout: float,
    num_threads: int,
    record: bool,
    precision: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A call of an LSTM or GRU.

    Args:
        x: (T, N, I), (N, T, I) with `batch_first`, or (T, I); for a PackedSequence its data.
        batch_sizes: those of a PackedSequence, or None.
        states: h_0, and c_0 for an LSTM, in the order of the rows; empty for zeros.
        weights: the parameters in torch.nn's order.
        cell: "LSTM" or "GRU".
        input_size, hidden_size, num_layers, bias, bidirectional, proj_size, batch_first: the
            module's options.
        dropout: the probability, 0 unless dropout has to be drawn.
        num_threads: the most threads that the call may use; 0: the lesser of PyTorch's and
            Tidegate's limits.
        record: whether a gradient is wanted.
        precision: of the products: "bfloat16", for which the faster of the two is taken, or None,
            the dtype of the weights.

    Returns:
        y and h_n; c_n, without elements for a GRU; and a tensor that represents the tape if
        `record`.
    """
    key = ModelKey(
        cell=cell,
        input_size=input_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        bias=bias,
        bidirectional=bidirectional,
        proj_size=proj_size,
        dtype=x.dtype,
        batch_first=batch_first,
    )
    models = _models(weights[0].data_ptr())
    model = models.take(key, list(weights))
    try:
        kind = fastest_kind(precision)
        call = Call(key, model, batch_sizes, dropout, num_threads or threads(), precision=kind)
        if record:
            y, states_n, recorded = call.record(x, states)
            tape = _tensor_of_tape(call, recorded)
        else:
            y, states_n = call.run(x, states)
            tape = torch.empty(0, dtype=torch.uint8)
    finally:
        models.give_back(key, model)
    c_n = states_n[1] if cell == "LSTM" else x.new_empty(0)
    return y, states_n[0], c_n, tape


@recurrence.register_fake
def _(
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],  # noqa: ARG001
    cell: str,
    input_size: int,  # noqa: ARG001
    hidden_size: int,
    num_layers: int,
    bias: bool,  # noqa: ARG001
    bidirectional: bool,
    proj_size: int,
    batch_first: bool,
    dropout: float,  # noqa: ARG001
    num_threads: int,  # noqa: ARG001
    record: bool,
    precision: str | None = None,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    directions = 2 if bidirectional else 1
    output_size = proj_size or hidden_size
    batch: tuple[Any, ...]
    if batch_sizes is not None:  # N is the first of them, which is not known here
        batch = (states[0].shape[1] if states else torch.library.get_ctx().new_dynamic_size(),)
    else:
        batch = () if x.dim() == 2 else (x.shape[0 if batch_first else 1],)
    rows = num_layers * directions
    return (
        x.new_empty((*x.shape[:-1], directions * output_size)),
        x.new_empty((rows, *batch, output_size)),
        x.new_empty((rows, *batch, hidden_size)) if cell == "LSTM" else x.new_empty(0),
        x.new_empty(int(record), dtype=torch.uint8),
    )


@torch.library.custom_op(
    "tidegate::recurrence_backward",
    mutates_args=(),
    device_types="cpu",
    schema=(
        "(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor tape, Tensor x, Tensor[] states, "
        "Tensor[] weights) -> Tensor[]"
    ),
)
def recurrence_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    tape: Tensor,
    x: Tensor,  # noqa: ARG001
    states: Sequence[Tensor],
    weights: Sequence[Tensor],  # noqa: ARG001
) -> list[Tensor]:
    """Gradients for x, the states and the weights of a `recurrence` that recorded `tape`.

    Raises:
        RuntimeError: `tape` is not the tensor that `recurrence` returned, but a copy of it.
    """
    recorded = _tape_memories.get(tape.data_ptr())
    if recorded is None:
        raise RuntimeError(
            "tidegate::recurrence_backward: tape: got a tensor that represents no tape, wanted the "
            "one that tidegate::recurrence returned; a copy of it does not work"
        )
    call = recorded.call
    dstates = (dh_n, dc_n) if call.key.cell == "LSTM" else (dh_n,)
    dx, dstates_0, dweights = call.backward(recorded.tape, dy, dstates, True, True)
    return [grad for grad in (dx, *dstates_0[: len(states)], *dweights) if grad is not None]


@recurrence_backward.register_fake
def _(
    dy: Tensor | None,  # noqa: ARG001
    dh_n: Tensor | None,  # noqa: ARG001
    dc_n: Tensor | None,  # noqa: ARG001
    tape: Tensor,  # noqa: ARG001
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (x, *states, *weights)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, states, weights, *_ = inputs
    ctx.state_count = len(states)
    # Without `precision`, which PyTorch leaves out of the arguments if it has its default.
    ctx.argument_count = len(inputs) - (inputs[-1] is None)
    ctx.is_lstm = len(output[2].shape) > 1
    ctx.save_for_backward(output[3], x, *states, *weights)


def _backward(
    ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    tape, x, *tensors = ctx.saved_tensors
    states, weights = tensors[: ctx.state_count], tensors[ctx.state_count :]
    dc_n = dc_n if ctx.is_lstm else None
    dx, *grads = recurrence_backward(dy, dh_n, dc_n, tape, x, states, weights)
    count = ctx.state_count
    return dx, None, grads[:count], grads[count:], *[None] * (ctx.argument_count - 4)


recurrence.register_autograd(_backward, setup_context=_setup_context)


def threads() -> int:
    """The lesser of PyTorch's and Tidegate's limits on threads."""
    return min(torch.get_num_threads(), _core.num_threads())
