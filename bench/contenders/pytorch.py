"""PyTorch, eager: `torch.nn.LSTM` and `torch.nn.GRU`, from tensors to tensors.

In bfloat16, modules, inputs and states are of that dtype, and in training they are float32 under
`torch.autocast`; in int8 the module is quantised dynamically (`torch.ao.quantization`).

Inference runs in inference mode. Ragged batches go through `pack_padded_sequence` and back, both
timed, as a user's padded batch would. Live streams use `torch.nn.LSTMCell`, which has less overhead
per step.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bench.contenders import Contender, OpenClients, Step, Task
from bench.problem import Problem


class Contestant(Contender):
    """PyTorch."""

    name = "torch"
    kinds = ("lstm", "gru")
    low_precisions = dict.fromkeys(("bfloat16", "int8"), kinds)
    low_training = ("bfloat16",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        self._inference_mode: Any = None

    def versions(self) -> dict[str, str]:
        """The version of PyTorch, and the instruction set in use."""
        return {"torch": torch.__version__, "isa": torch.backends.cpu.get_cpu_capability()}

    def prepare(self, problem: Problem) -> Task:
        """Makes a module."""
        if self._inference_mode is not None:
            self._inference_mode.__exit__(None, None, None)
            self._inference_mode = None
        cell = problem.cell
        make: Any = torch.nn.LSTM if cell.kind == "lstm" else torch.nn.GRU
        module = make(
            cell.input_size,
            cell.hidden_size,
            cell.num_layers,
            bidirectional=cell.bidirectional,
            dtype=getattr(torch, cell.dtype),
        )
        _write(module, problem.params)
        dtype = getattr(torch, cell.dtype)
        if cell.precision == "bfloat16" and not cell.training:
            dtype = torch.bfloat16
        module = module.to(dtype)
        if cell.precision == "int8":
            module = _quantised(module)
        x = torch.tensor(problem.x).to(dtype)
        state = tuple(torch.tensor(member).to(dtype) for member in problem.state)
        lengths = None if problem.lengths is None else torch.tensor(problem.lengths)
        if cell.training:
            return _training(module, x, state, lengths, problem)
        self._enter_inference_mode()
        return _inference(module, x, state, lengths, cell.stateful)

    def load(self, problem: Problem) -> OpenClients:
        """One tensor of all clients' states, from which calls gather; or one for each client."""
        lstm = torch.nn.LSTMCell(problem.cell.input_size, problem.cell.hidden_size)
        (params,) = problem.directed_layers()
        _write(lstm, params)

        def open_clients(count: int, batched: bool) -> Step:
            self._enter_inference_mode()
            states = [torch.zeros(count, problem.cell.hidden_size) for _ in problem.state]
            return (_step_together if batched else _step_alone)(lstm, states)

        return open_clients

    def _enter_inference_mode(self) -> None:
        """Enters it for good, so that entering it is not timed."""
        self._inference_mode = torch.inference_mode()
        self._inference_mode.__enter__()


def _write(module: Any, params: dict[str, Any]) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(params[name]))


def _quantised(module: Any) -> Any:
    kinds = {torch.nn.LSTM, torch.nn.GRU}
    model = torch.nn.Sequential(module)
    return torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)[0]


def _forward(module: Any, x: Any, state: tuple[Any, ...], lengths: Any) -> Any:
    """y, state_n."""
    given = state if len(state) == 2 else state[0]
    if lengths is None:
        return module(x, given)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, state_n = module(packed, given)
    return pad_packed_sequence(y, total_length=len(x))[0], state_n


def _array(tensor: Any) -> Any:
    """NumPy has no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _members(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def _inference(module: Any, x: Any, state: tuple[Any, ...], lengths: Any, stateful: bool) -> Task:
    last: list[Any] = [None, state]

    def run() -> None:
        last[:] = None, state
        last[:] = _forward(module, x, state, lengths)

    def step() -> None:
        last[:] = _forward(module, x, _members(last[1]), None)

    def results() -> dict[str, Any]:
        named = dict(zip(("h_n", "c_n"), _members(last[1]))) | {"y": last[0]}
        return {name: _array(tensor) for name, tensor in named.items()}

    return Task(step if stateful else run, results)


def _training(module: Any, x: Any, state: tuple[Any, ...], lengths: Any, problem: Problem) -> Task:
    dy = torch.tensor(problem.dy)
    names, params = zip(*module.named_parameters(), strict=True)
    inputs = (x, *state)
    for tensor in inputs:
        tensor.requires_grad_(True)
    versions = [problem.params, problem.changed_params()]
    last: list[Any] = [None]
    # In float32 without autocast, which takes time even if it is disabled.
    precision: Any = contextlib.nullcontext()
    if problem.cell.precision:
        precision = torch.autocast("cpu", torch.bfloat16)

    def run() -> None:
        last[0] = None
        with precision:
            y, state_n = _forward(module, x, state, lengths)
        last[0] = y, state_n, torch.autograd.grad(y, (*inputs, *params), dy.to(y.dtype))

    def change() -> None:
        versions.reverse()
        _write(module, versions[0])

    def results() -> dict[str, Any]:
        y, state_n, gradients = last[0]
        wanted = ["dx", *(f"d{name}_0" for name, _ in zip("hc", state))]
        wanted += [f"d{name}" for name in names]
        named = {f"{n}_n": _array(m.detach()) for n, m in zip("hc", _members(state_n))}
        named |= {n: _array(gradient) for n, gradient in zip(wanted, gradients, strict=True)}
        return {"y": _array(y.detach())} | named

    return Task(run, results, change)


def _step_together(lstm: Any, states: list[Any]) -> Step:
    def step(rows: Any, x: Any) -> Any:
        index = torch.from_numpy(rows)
        given = tuple(member.index_select(0, index) for member in states)
        state_n = lstm(torch.from_numpy(x), given)
        for member, new in zip(states, state_n):
            member.index_copy_(0, index, new)
        return state_n[0].numpy()

    return step


def _step_alone(lstm: Any, states: list[Any]) -> Step:
    clients = list(zip(*(member.split(1) for member in states)))

    def step(rows: Any, x: Any) -> Any:
        row = rows[0]
        clients[row] = lstm(torch.from_numpy(x), clients[row])
        return clients[row][0].numpy()

    return step
