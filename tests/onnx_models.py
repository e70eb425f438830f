# Small ONNX models for tests of the converter.
from __future__ import annotations

from typing import Any

import numpy as np

import golden_cases

OPSET = 14


def make_model(
    nodes: list[Any],
    tensors: dict[str, np.ndarray],
    inputs: tuple[str, ...] = ("X",),
    outputs: tuple[str, ...] = ("Y",),
    opset: int = OPSET,
    element: int = 1,
    **options: Any,
) -> Any:
    import onnx

    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(name, 6 if name == "sequence_lens" else element, None)
            for name in inputs
        ],
        [helper.make_tensor_value_info(name, element, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    options.setdefault("ir_version", 8)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **options)


def weights(
    op: str = "LSTM", hidden: int = 3, inputs: int = 2, directions: int = 1, seed: int = 0
) -> dict[str, np.ndarray]:
    gates = {"LSTM": 4, "GRU": 3}[op] * hidden
    rng = np.random.default_rng(seed)
    shapes = {"W": (gates, inputs), "R": (gates, hidden), "B": (2 * gates,)}
    return {
        role: rng.uniform(-1, 1, (directions, *shape)).astype(np.float32)
        for role, shape in shapes.items()
    }


def make_node(op: str, *args: Any, **attributes: Any) -> Any:
    import onnx

    return onnx.helper.make_node(op, *args, **attributes)


def body(nodes: list[Any], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    import onnx

    infos = onnx.helper.make_tensor_value_info
    return onnx.helper.make_graph(
        nodes,
        "body",
        [infos(name, 1, None) for name in inputs],
        [infos(name, 1, None) for name in outputs],
    )


def same(layer: Any, expected: Any) -> None:
    assert repr(layer) == repr(expected)
    assert layer.params.flat.tobytes() == expected.params.flat.tobytes()


def node_model(op: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any]) -> Any:
    """One node; all but X are float32 initialisers."""
    import onnx

    roles = golden_cases.ONNX_INPUTS if op == "LSTM" else golden_cases.ONNX_INPUTS[:6]
    tensors = {
        role: array.astype(np.int32 if role == "sequence_lens" else np.float32)
        for role, array in inputs.items()
        if role != "X"
    }
    names = [role if role in (*tensors, "X") else "" for role in roles]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    node = onnx.helper.make_node(op, names, outputs, name="the node", **attributes)
    return make_model([node], tensors)
