"""OpenVINO: an ONNX model compiled for latency, inputs and outputs set beforehand.

In bfloat16 by its precision hint. In int8 the operands of products are quantised by FakeQuantize
operations, from which the CPU plugin makes its kernels in int8: x and h in 256 levels of a fixed
range, here that of the very x of the call (the plugin has one scale for both: another range of h
changes no result); weights symmetric for each unit. It has none for a GRU.

One step, stateful: two requests take turns, each writing the states that the other one reads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import openvino as ov
import openvino.passes

from bench.contenders import Contender, Task
from bench.contenders.onnx_model import joined_states, layer_states, make_model, state_names
from bench.grid import KINDS
from bench.problem import Problem


class Contestant(Contender):
    """OpenVINO with its CPU plugin."""

    name = "openvino"
    trains = False
    low_precisions: ClassVar[dict[str, tuple[str, ...]]] = {"bfloat16": KINDS, "int8": ("lstm",)}

    def versions(self) -> dict[str, str]:
        """OpenVINO's."""
        return {"openvino": ov.get_version()}

    def prepare(self, problem: Problem) -> Task:
        """Makes a compiled model with its requests."""
        cell = problem.cell
        core = ov.Core()
        model = core.read_model(model=make_model(problem))
        if cell.precision == "int8":
            _quantise(model, float(np.abs(problem.x).max()))
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if cell.precision == "bfloat16" else "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": self.threads,
                "NUM_STREAMS": 1,
            },
        )

        def tensor(array: Any) -> Any:
            return ov.Tensor(array, shared_memory=True)

        fixed = {"x": problem.x}
        if problem.lengths is not None:
            fixed["lengths"] = problem.lengths.astype(np.int32)
        names = state_names(problem)
        initial = layer_states(problem)
        states = [{n: a.copy() for n, a in initial.items()} for _ in range(2)]
        y = np.empty((cell.steps, cell.batch, cell.directions * cell.hidden_size), cell.dtype)

        def request(read: dict[str, Any], written: dict[str, Any]) -> Any:
            made = compiled.create_infer_request()
            for name, given in (fixed | read).items():
                made.set_tensor(name, tensor(given))
            made.set_tensor("y", tensor(y))
            for name, out, *_ in names:
                made.set_tensor(out, tensor(written[name]))
            return made

        requests = [request(states[0], states[1])]
        if cell.stateful:
            requests.append(request(states[1], states[0]))
        turn = [0]

        def step() -> None:
            k = turn[0]
            requests[k].infer()
            turn[0] = 1 - k

        def run() -> None:
            requests[0].infer()

        def results() -> dict[str, Any]:
            written = states[turn[0] if cell.stateful else 1]
            outputs = {out: written[name] for name, out, *_ in names}
            return {"y": y.copy()} | joined_states(problem, outputs)

        return Task(step if cell.stateful else run, results)


def _quantise(model: Any, greatest: float) -> None:
    """Puts FakeQuantize operations before the operands; `greatest`: the largest magnitude of x."""
    folding = ov.passes.Manager()  # weights in the plugin's order of gates
    folding.register_pass(ov.passes.ConstantFolding())
    folding.run_passes(model)
    high = np.float32(max(greatest, 1.0))
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "LSTMSequence":
            continue
        for operand in (0, 1):  # x and h; -high is the first of 256 levels, 0 is one
            _insert(operation.input(operand), -high, high * np.float32(127 / 128), 256)
        for operand in (4, 5):  # their weights
            weights = operation.input(operand).get_source_output().get_node().data
            most = np.abs(weights).max(axis=2, keepdims=True)
            _insert(operation.input(operand), -most, most, 255)


def _insert(operand: Any, low: Any, high: Any, levels: int) -> None:
    bounds = [ov.opset13.constant(bound) for bound in (low, high)]
    source = operand.get_source_output()
    quantised = ov.opset13.fake_quantize(source, *bounds, *bounds, levels)
    operand.replace_source_output(quantised.output(0))
