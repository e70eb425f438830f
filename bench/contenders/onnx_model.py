"""A cell as an ONNX model, for the peers that run these. Only this module knows ONNX's layout.

Inputs: x (T, N, I), h_<layer> and c_<layer> (D, N, H), lengths (N,) int32. Outputs: y (T, N, D*H),
hn_<layer> and cn_<layer>.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.problem import Problem

# The indices of Tidegate's gates in ONNX's order: i, o, f, c; z, r, h.
_ORDER = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "gru-before": [1, 0, 2]}
_OPSET = 17
_IR_VERSION = 10


def _reordered(kind: str, array: Any) -> Any:
    blocks = np.split(array, len(_ORDER[kind]))
    return np.concatenate([blocks[k] for k in _ORDER[kind]])


def state_names(problem: Problem) -> list[tuple[str, str, str, int]]:
    """(input, output, member "h" or "c", layer) of each state."""
    return [
        (f"{member}_{layer}", f"{member}n_{layer}", member, layer)
        for layer in range(problem.cell.num_layers)
        for member, _ in zip("hc", problem.state)
    ]


def layer_states(problem: Problem) -> dict[str, Any]:
    """The initial states by the model's input names."""
    d = problem.cell.directions
    members = dict(zip("hc", problem.state))
    return {
        name: np.ascontiguousarray(members[member][layer * d : (layer + 1) * d])
        for name, _, member, layer in state_names(problem)
    }


def joined_states(problem: Problem, outputs: dict[str, Any]) -> dict[str, Any]:
    """h_n, and c_n of an LSTM, from the model's outputs by name."""
    names = state_names(problem)
    return {
        f"{member}_n": np.concatenate([outputs[out] for _, out, of, _ in names if of == member])
        for member, _ in zip("hc", problem.state)
    }


def make_model(problem: Problem, any_batch: bool = False) -> bytes:
    """The serialised model; with `any_batch` N is not fixed."""
    cell = problem.cell
    steps, hidden, d = cell.steps, cell.hidden_size, cell.directions
    batch: int | str = "N" if any_batch else cell.batch
    element = TensorProto.FLOAT if cell.dtype == "float32" else TensorProto.DOUBLE
    nodes, initializers = [], []

    def constant(name: str, array: Any) -> str:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    directed = problem.directed_layers()
    x = "x"
    for layer in range(cell.num_layers):
        own = directed[layer * d : (layer + 1) * d]
        w, r, wb, rb = (
            np.stack([_reordered(cell.kind, params[name]) for params in own])
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        inputs = [
            x,
            constant(f"W_{layer}", w),
            constant(f"R_{layer}", r),
            constant(f"B_{layer}", np.concatenate([wb, rb], axis=1)),
            "" if problem.lengths is None else "lengths",
            f"h_{layer}",
        ]
        outputs = [f"Y_{layer}", f"hn_{layer}"]
        options: dict[str, Any] = {
            "hidden_size": hidden,
            "direction": "bidirectional" if cell.bidirectional else "forward",
        }
        if cell.kind == "lstm":
            inputs.append(f"c_{layer}")
            outputs.append(f"cn_{layer}")
        else:
            options["linear_before_reset"] = int(cell.kind == "gru")
        nodes.append(
            helper.make_node("LSTM" if cell.kind == "lstm" else "GRU", inputs, outputs, **options)
        )
        # (T, D, N, H) -> (T, N, D*H).
        last = layer == cell.num_layers - 1
        merged = "y" if last else f"y_{layer}"
        if d == 1:
            axes = constant(f"axes_{layer}", np.array([1], np.int64))
            nodes.append(helper.make_node("Squeeze", [f"Y_{layer}", axes], [merged]))
        else:
            nodes.append(
                helper.make_node("Transpose", [f"Y_{layer}"], [f"Z_{layer}"], perm=[0, 2, 1, 3])
            )
            shape = constant(f"shape_{layer}", np.array([steps, -1, d * hidden], np.int64))
            nodes.append(helper.make_node("Reshape", [f"Z_{layer}", shape], [merged]))
        x = merged

    def info(name: str, *shape: int | str, of: int = element) -> Any:
        return helper.make_tensor_value_info(name, of, shape)

    states = state_names(problem)
    graph_inputs = [info("x", steps, batch, cell.input_size)]
    graph_inputs += [info(name, d, batch, hidden) for name, *_ in states]
    if problem.lengths is not None:
        graph_inputs.append(info("lengths", batch, of=TensorProto.INT32))
    graph_outputs = [info("y", steps, batch, d * hidden)]
    graph_outputs += [info(out, d, batch, hidden) for _, out, *_ in states]
    graph = helper.make_graph(nodes, "cell", graph_inputs, graph_outputs, initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
