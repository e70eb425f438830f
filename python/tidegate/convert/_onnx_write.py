"""Writes layers as ONNX models. `_onnx_operators` documents the operators' inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate.checks import Array, check_bool
from tidegate.convert._onnx_operators import ACTIVATIONS, INPUTS, KINDS, ORDERS, ROLES, STANDARD
from tidegate.convert._paths import check_regular_file
from tidegate.convert._weights import (
    ONNX_PEEPHOLE,
    Path,
    RecurrentLayer,
    as_path,
    carried_parameters,
    check_layer,
    import_extra,
    inverse,
    regroup,
)
from tidegate.layers import GRU, LSTM

if TYPE_CHECKING:
    import onnx

_OPSET = 14
_IR_VERSION = 7  # that of the first onnx release with this opset


def to_onnx(
    layer: RecurrentLayer, path: Path, *, state: bool = False, lengths: bool = False
) -> None:
    """Writes an ONNX model (opset 14) that computes a call of the layer, in its layout.

    Its input is `x`; its outputs are `y`, `h_n` and for an LSTM `c_n`. The weights are the layer's,
    bit for bit (`update_gate="write"` becomes ONNX's form, in which the parameters of z have the
    opposite sign). ONNX Runtime does not support float64 (`layer.astype` converts), and for a row
    of length 0 it returns zeros as the last state, whereas a layer returns the initial state.

    Args:
        layer: an LSTM or a GRU.
        path: the file to write; an existing regular file is replaced.
        state: whether the model has the inputs `h_0`, and `c_0` for an LSTM; else they are zero.
        lengths: whether the model has the input `lengths` (N,), int32.

    Raises:
        TypeError: layer is neither an LSTM nor a GRU, or path is not a path.
        ValueError: the layer has a projection, which ONNX's LSTM does not have; or path is a
            folder, a FIFO or another special file.
        OSError: the file cannot be written.
        ImportError: onnx is not installed.
    """
    layer = check_layer(layer)
    target = as_path(path)
    if target is None:
        raise TypeError(f"path: got {type(path).__name__}, wanted a str or a path")
    if target.exists():
        check_regular_file("path", target)
    if isinstance(layer, LSTM) and layer.proj_size:
        raise ValueError(f"layer: ONNX's LSTM has no proj_size={layer.proj_size}")
    onnx = import_extra("onnx", "onnx")
    writer = _Writer(layer, check_bool("state", state), check_bool("lengths", lengths))
    onnx.save(writer.model(), str(target))


class _Writer:
    """Builds the model of a layer, node by node, starting at its input."""

    def __init__(self, layer: RecurrentLayer, state: bool, lengths: bool) -> None:
        self._helper = import_extra("onnx.helper", "onnx")
        self._numpy = import_extra("onnx.numpy_helper", "onnx")
        self._layer = layer
        self._state = state
        self._lengths = lengths
        self._cell = "GRU" if isinstance(layer, GRU) else "LSTM"
        self._states = ("h",) if self._cell == "GRU" else ("h", "c")
        self._directions = 2 if layer.bidirectional else 1
        self._params = carried_parameters(layer)
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []

    def model(self) -> onnx.ModelProto:
        layer, directions = self._layer, self._directions
        x = self._add("Transpose", ["x"], ["x_steps"], perm=[1, 0, 2]) if layer.batch_first else "x"
        last: dict[str, list[str]] = {name: [] for name in self._states}
        for k in range(layer.num_layers):
            taken = {
                name: self._layer_state(f"{name}_0", k) for name in self._states if self._state
            }
            outputs = [f"Y_l{k}", *(f"{name}_n_l{k}" for name in self._states)]
            x = self._recurrent(k, x, taken, outputs)
            for name, output in zip(self._states, outputs[1:]):
                last[name].append(output)
        if layer.batch_first:
            self._add("Transpose", [x], ["y"], perm=[1, 0, 2])
        else:
            self._add("Identity", [x], ["y"])
        for name, parts in last.items():
            self._add("Concat", parts, [f"{name}_n"], axis=0)

        info = self._helper.make_tensor_value_info
        element = self._helper.np_dtype_to_tensor_dtype(layer.dtype)
        steps = ["N", "T"] if layer.batch_first else ["T", "N"]
        state = [layer.num_layers * directions, "N", layer.hidden_size]
        inputs = [info("x", element, [*steps, layer.input_size])]
        if self._lengths:
            integer = self._helper.np_dtype_to_tensor_dtype(np.dtype(np.int32))
            inputs.append(info("lengths", integer, ["N"]))
        inputs += [info(f"{name}_0", element, state) for name in self._states if self._state]
        outputs = [info("y", element, [*steps, directions * layer.hidden_size])]
        outputs += [info(f"{name}_n", element, state) for name in self._states]
        graph = self._helper.make_graph(
            self._nodes, repr(layer), inputs, outputs, initializer=self._initializers
        )
        model: onnx.ModelProto = self._helper.make_model(
            graph,
            opset_imports=[self._helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="tidegate",
        )
        return model

    def _add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Appends a node; returns the name of its first output."""
        name = f"{operator}_{outputs[0]}"
        node = self._helper.make_node(operator, inputs, outputs, name=name, **attributes)
        self._nodes.append(node)
        return outputs[0]

    def _constant(self, name: str, array: Array) -> str:
        self._initializers.append(self._numpy.from_array(np.ascontiguousarray(array), name))
        return name

    def _layer_state(self, state: str, layer: int) -> str:
        if self._layer.num_layers == 1:
            return state
        bounds = [
            self._constant(f"{state}_{end}_l{layer}", np.array([self._directions * number]))
            for end, number in (("first", layer), ("end", layer + 1))
        ]
        return self._add("Slice", [state, *bounds], [f"{state}_l{layer}"])

    def _recurrent(self, layer: int, x: str, state: Mapping[str, str], outputs: list[str]) -> str:
        """One layer's node; returns the name of its y (T, N, D*H)."""
        weights = {
            role: self._constant(f"{role}_l{layer}", array)
            for role, array in self._weights(layer).items()
        }
        given = {
            "X": x,
            **weights,
            "sequence_lens": "lengths" if self._lengths else "",
            **{f"initial_{name}": value for name, value in state.items()},
        }
        inputs = [given.get(role, "") for role in INPUTS[self._cell]]
        while not inputs[-1]:
            inputs.pop()
        self._add(self._cell, inputs, outputs, **self._attributes())
        steps = self._add("Transpose", outputs[:1], [f"Y_l{layer}_steps"], perm=[0, 2, 1, 3])
        if layer == 0:
            self._constant("side_by_side", np.array([0, 0, -1]))
        return self._add("Reshape", [steps, "side_by_side"], [f"y_l{layer}"])

    def _weights(self, layer: int) -> dict[str, Array]:
        """W, R, B and P of one node."""
        order = inverse(ORDERS[self._cell])
        parts: dict[str, list[Array]] = {}
        for suffix in ("", "_reverse")[: self._directions]:

            def own(name: str, order: Sequence[int], suffix: str = suffix) -> Array:
                return regroup(self._params[f"{name}_l{layer}{suffix}"], order)

            parts.setdefault("W", []).append(own("weight_ih", order))
            parts.setdefault("R", []).append(own("weight_hh", order))
            if self._layer.bias:
                biases = np.concatenate([own("bias_ih", order), own("bias_hh", order)])
                parts.setdefault("B", []).append(biases)
            if isinstance(self._layer, LSTM) and self._layer.peephole:
                parts.setdefault("P", []).append(own("weight_peephole", inverse(ONNX_PEEPHOLE)))
        return {role: np.stack(arrays) for role, arrays in parts.items()}

    def _attributes(self) -> dict[str, Any]:
        layer = self._layer
        attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
        if layer.bidirectional or layer.reverse:
            attributes["direction"] = "bidirectional" if layer.bidirectional else "reverse"
        if isinstance(layer, GRU):
            attributes["linear_before_reset"] = int(layer.reset_after)
        elif layer.input_forget:
            attributes["input_forget"] = 1
        if layer.clip is not None:
            attributes["clip"] = layer.clip
        activations = [getattr(layer, role) for role in ROLES[self._cell]]
        if activations[-1] is None:
            activations[-1] = layer.activation
        if tuple(activations) != STANDARD[self._cell]:
            attributes.update(_write_activations(activations * self._directions))
        return attributes


def _write_activations(activations: Sequence[Any]) -> dict[str, Any]:
    """ONNX's attributes; parameters are always written, as they are consumed in order."""
    onnx_names = {activation.name: name for name, activation in ACTIVATIONS.items()}
    result: dict[str, Any] = {"activations": []}
    for activation in activations:
        name, *values = (activation,) if isinstance(activation, str) else activation
        key = onnx_names[name]
        result["activations"].append(key)
        for kind, value in zip(KINDS, values or ACTIVATIONS[key].usual):
            result.setdefault(f"activation_{kind}", []).append(value)
    return result
