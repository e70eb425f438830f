"""ONNX Runtime: an ONNX model, inputs and outputs bound beforehand, so that nothing is copied.

One step, stateful: two bindings take turns, each writing the states that the other one reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from bench.contenders import Contender, Task
from bench.contenders.onnx_model import joined_states, layer_states, make_model, state_names
from bench.problem import Problem


class Contestant(Contender):
    """ONNX Runtime, its CPU provider."""

    name = "onnxruntime"
    trains = False

    def versions(self) -> dict[str, str]:
        """ONNX Runtime's, and that of what builds its models."""
        import onnx

        return {"onnxruntime": ort.__version__, "onnx": onnx.__version__}

    def prepare(self, problem: Problem) -> Task:
        """A session with its bindings."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = ort.InferenceSession(
            make_model(problem), options, providers=["CPUExecutionProvider"]
        )
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
            binding = session.io_binding()
            for name, given in (fixed | read).items():
                binding.bind_ortvalue_input(name, given)
            binding.bind_ortvalue_output("y", y_value)
            for name, out, *_ in names:
                binding.bind_ortvalue_output(out, written[name])
            return binding

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
