"""ONNX Runtime: an ONNX model, inputs and outputs bound beforehand, so that nothing is copied.

In int8, the model is quantised by `onnxruntime.quantization.quantize_dynamic`.

One step, stateful: two bindings take turns, each writing the states that the other one reads.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort

from bench.contenders import Contender, OpenClients, Step, Task
from bench.contenders.onnx_model import joined_states, layer_states, make_model, state_names
from bench.problem import Problem


class Contestant(Contender):
    """ONNX Runtime with its CPU provider."""

    name = "onnxruntime"
    trains = False
    low_precisions: ClassVar[dict[str, tuple[str, ...]]] = {"int8": ("lstm",)}

    def versions(self) -> dict[str, str]:
        """The versions of ONNX Runtime and of the onnx package, which builds its models."""
        import onnx

        return {"onnxruntime": ort.__version__, "onnx": onnx.__version__}

    def prepare(self, problem: Problem) -> Task:
        """Makes a session with its bindings."""
        model = make_model(problem)
        session = self._session(_quantised(model) if problem.cell.precision else model)
        value = ort.OrtValue.ortvalue_from_numpy
        fixed = {"x": value(problem.x)}
        if problem.lengths is not None:
            fixed["lengths"] = value(problem.lengths.astype(np.int32))
        names = state_names(problem)
        initial = layer_states(problem)
        states = [{n: value(a) for n, a in initial.items()} for _ in range(2)]
        cell = problem.cell
        y = np.empty((cell.steps, cell.batch, cell.directions * cell.hidden_size), cell.dtype)
        y_value = value(y)

        def bind(read: dict[str, Any], written: dict[str, Any]) -> Any:
            outputs = {out: written[name] for name, out, *_ in names}
            return _bind(session, fixed | read, {"y": y_value} | outputs)

        bindings = [bind(states[0], states[1])]
        if cell.stateful:
            bindings.append(bind(states[1], states[0]))
        turn = [0]
        run_bound = session.run_with_iobinding

        def step() -> None:
            k = turn[0]
            run_bound(bindings[k])
            turn[0] = 1 - k

        def run() -> None:
            run_bound(bindings[0])

        def results() -> dict[str, Any]:
            written = states[turn[0] if cell.stateful else 1]
            outputs = {out: written[name].numpy() for name, out, *_ in names}
            return {"y": y_value.numpy()} | joined_states(problem, outputs)

        return Task(step if cell.stateful else run, results)

    def load(self, problem: Problem) -> OpenClients:
        """Buffers shared by all clients, states copied in and out; or buffers for each client."""
        cell = problem.cell
        session = self._session(make_model(replace(problem, cell=replace(cell, steps=1)), True))

        def open_clients(count: int, batched: bool) -> Step:
            return (_step_together if batched else _step_alone)(session, problem, count)

        return open_clients

    def _session(self, model: bytes) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _quantised(model: bytes) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "quantised.onnx")
        source.write_bytes(model)
        quantize_dynamic(source, target, weight_type=QuantType.QInt8)
        return target.read_bytes()


def _bind(session: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
    """A binding of OrtValues."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    return binding


def _bind_step(
    session: Any, names: list[Any], x: Any, y: Any, read: list[Any], written: list[Any]
) -> Any:
    """A binding of arrays, which must outlive it: it holds no reference to them."""
    value = ort.OrtValue.ortvalue_from_numpy
    inputs = {name: value(array) for (name, *_), array in zip(names, read)}
    outputs = {out: value(array) for (_, out, *_), array in zip(names, written)}
    return _bind(session, inputs | {"x": value(x)}, outputs | {"y": value(y)})


def _make_buffers(problem: Problem, count: int) -> tuple[Any, Any, list[Any]]:
    """x (1, count, I), y (1, count, H), and states (1, count, H) in the order of `state_names`."""
    cell = problem.cell
    x = np.zeros((1, count, cell.input_size), np.float32)
    y = np.zeros((1, count, cell.hidden_size), np.float32)
    return x, y, [np.zeros_like(y) for _ in problem.state]


def _step_together(session: Any, problem: Problem, count: int) -> Step:
    names = state_names(problem)
    x, y, states = _make_buffers(problem, count)
    *_, read = _make_buffers(problem, count)
    *_, written = _make_buffers(problem, count)
    # By the number of clients in a call: making a binding takes longer than running.
    bindings = []
    for n in range(1, count + 1):
        first = [[array[:, :n] for array in arrays] for arrays in (read, written)]
        bindings.append(_bind_step(session, names, x[:, :n], y[:, :n], *first))
    run_bound = session.run_with_iobinding

    def step(rows: Any, given: Any) -> Any:
        n = len(rows)
        x[0, :n] = given
        for state, array in zip(states, read):
            # Any mode but the default writes directly into `out`.
            np.take(state[0], rows, axis=0, out=array[0, :n], mode="clip")
        run_bound(bindings[n - 1])
        for state, array in zip(states, written):
            state[0, rows] = array[0, :n]
        return y[0, :n]

    return step


def _step_alone(session: Any, problem: Problem, count: int) -> Step:
    names = state_names(problem)
    x, y, _ = _make_buffers(problem, 1)
    clients = []
    for _ in range(count):
        # Two sets of states that take turns: a call reads one and writes the other.
        a, b = (_make_buffers(problem, 1)[2] for _ in range(2))
        bindings = [_bind_step(session, names, x, y, *pair) for pair in ((a, b), (b, a))]
        clients.append((bindings, a, b))
    run_bound = session.run_with_iobinding

    def step(rows: Any, given: Any) -> Any:
        x[0] = given
        bindings, *_ = clients[rows[0]]
        run_bound(bindings[0])
        bindings.reverse()
        return y[0]

    return step
