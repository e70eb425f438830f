"""ONNX graphs: nodes at any depth, and the constants that reach their inputs.

What an LSTM or a GRU node means is not in here.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate.checks import Array
from tidegate.convert._weights import import_extra

if TYPE_CHECKING:
    import onnx

DOMAINS = ("", "ai.onnx")

# Operators through which a constant stays one: they move values or convert them. onnx's own
# reference implementation runs them. The first of them make zeros of zeros, whatever their other
# inputs say.
_KEEPS_ZEROS = frozenset(
    {
        "Cast",
        "CastLike",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
_MOVING = _KEEPS_ZEROS | {"Concat", "Constant", "ConstantOfShape", "Shape"}

# Operators may make this many elements in one model, and so many more for each that it stores: a
# few bytes cannot ask for gigabytes.
_MADE_ELEMENTS = 2**22
_MADE_PER_STORED = 16
# Longer chains are no model's; Python's recursion ends at about 1000 calls.
_LONGEST_CHAIN = 200


@dataclass(eq=False)
class Scope:
    """A graph's names: those of its own, and through `outer` those of the graphs around it.

    Attributes:
        path: names of the nodes and branches that lead here.
        inputs: names that are given from outside when the graph runs.
        tensors: initialisers.
        makers: name -> the node of this graph that makes it, and as which output.
        values: constants that have been worked out already; None for what is no constant.
        zeros: answers of `is_zero`.
    """

    model: Model
    outer: Scope | None
    path: tuple[str, ...]
    inputs: set[str] = field(default_factory=set)
    tensors: dict[str, Any] = field(default_factory=dict)
    makers: dict[str, tuple[onnx.NodeProto, int]] = field(default_factory=dict)
    values: dict[str, Array | None] = field(default_factory=dict)
    zeros: dict[str, bool] = field(default_factory=dict)

    def owner(self, name: str) -> Scope | None:
        """The scope in which the name is defined."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.tensors or name in scope.makers or name in scope.inputs:
                return scope
            scope = scope.outer
        return None

    def is_input(self, name: str) -> bool:
        """Whether the caller may give it. Before IR version 4 initialisers had to be inputs too."""
        scope = self.owner(name)
        if scope is None:
            return False
        fixed = name in scope.tensors and scope.model.proto.ir_version < 4
        return name in scope.inputs and not fixed

    def constant(self, name: str, depth: int = 0) -> Array | None:
        """The value of a name, if it is the same whenever the graph runs; an input's default.

        Raises:
            ValueError: it is damaged, or too large to be meant.
        """
        scope = self.owner(name)
        if scope is None:
            raise ValueError(f"{name!r}: nothing in the graph has this name")
        if name not in scope.values:
            if depth > _LONGEST_CHAIN:
                raise ValueError(f"{name!r}: comes from more than {_LONGEST_CHAIN} nodes in a row")
            scope.values[name] = scope._find(name, depth + 1)
        return scope.values[name]

    def _find(self, name: str, depth: int) -> Array | None:
        if name in self.tensors:
            return self.model.array(self.tensors[name], name)
        if name not in self.makers:
            return None
        node, position = self.makers[name]
        if node.domain not in DOMAINS or node.op_type not in _MOVING:
            return None
        feeds: dict[str, Array] = {}
        for key in node.input:
            value = self.constant(key, depth) if key else None
            if key and value is None:
                return None
            if value is not None:
                feeds[key] = value
        return self.model.run(node, feeds)[position]

    def is_zero(self, name: str, depth: int = 0) -> bool:
        """Whether all of its elements are zero, even where its shape is known only at run time."""
        scope = self.owner(name)
        if scope is None or depth > _LONGEST_CHAIN or scope.is_input(name):
            return False
        if name not in scope.zeros:
            scope.zeros[name] = scope._find_zero(name, depth + 1)
        return scope.zeros[name]

    def _find_zero(self, name: str, depth: int) -> bool:
        value = self.constant(name, depth)
        if value is not None:
            return not np.any(value)
        node, _ = self.makers.get(name, (None, 0))
        if node is None or node.domain not in DOMAINS or not node.input:
            return False
        if node.op_type == "ConstantOfShape":
            fills = [self.model.array(a.t, name) for a in node.attribute if a.name == "value"]
            return not any(np.any(fill) for fill in fills)
        if node.op_type == "Concat":
            return all(self.is_zero(key, depth) for key in node.input)
        return node.op_type in _KEEPS_ZEROS and self.is_zero(node.input[0], depth)


class Model:
    """A model whose nodes and constants can be looked at.

    Args:
        proto: an `onnx.ModelProto`; its local functions are put where they are called.
        directory: where its external data are; None if it did not come from a file.
    """

    def __init__(self, proto: onnx.ModelProto, directory: pathlib.Path | None) -> None:
        self.onnx = import_extra("onnx", "onnx")
        if len(proto.functions) > 0:
            inliner = import_extra("onnx.inliner", "onnx")
            try:
                proto = inliner.inline_local_functions(proto)
            except Exception as error:  # onnx's own, of several types
                raise ValueError(f"local functions cannot be inlined: {error}") from error
        self.proto = proto
        self._directory = directory
        self._stored = 0
        self._made = 0

    def recurrent_nodes(self) -> Iterator[tuple[onnx.NodeProto, Scope]]:
        """Every LSTM and GRU node, in the order of the file, with the scope that it is in."""
        for node, scope in self._walk(self.proto.graph, None, ()):
            if node.domain in DOMAINS and node.op_type in ("LSTM", "GRU"):
                yield node, scope

    def operators(self) -> set[str]:
        """The types of all nodes."""
        return {node.op_type for node, _ in self._walk(self.proto.graph, None, ())}

    def _walk(
        self, graph: onnx.GraphProto, outer: Scope | None, path: tuple[str, ...]
    ) -> Iterator[tuple[onnx.NodeProto, Scope]]:
        scope = Scope(self, outer, path)
        scope.inputs.update(value.name for value in graph.input)
        scope.tensors.update((tensor.name, tensor) for tensor in graph.initializer)
        scope.tensors.update((t.values.name, t) for t in graph.sparse_initializer)
        for node in graph.node:
            makes = ((name, (node, i)) for i, name in enumerate(node.output) if name)
            scope.makers.update(makes)
        for node in graph.node:
            yield node, scope
            for attribute in node.attribute:
                bodies = list(attribute.graphs)
                if attribute.type == self.onnx.AttributeProto.GRAPH:
                    bodies.append(attribute.g)
                for body in bodies:
                    yield from self._walk(body, scope, (*path, node_label(node), attribute.name))

    def array(self, tensor: Any, name: str) -> Array:
        """A tensor's values; external data are read from the model's folder.

        Raises:
            ValueError: it is damaged, sparse, or its data are not there.
        """
        proto = self.onnx.TensorProto
        if not isinstance(tensor, proto):
            raise ValueError(f"{name!r}: got a sparse tensor, wanted a dense one")
        external = tensor.data_location == proto.EXTERNAL
        if external and self._directory is None:
            raise ValueError(
                f"{name!r}: its data are in another file: give the model's path, or load them with "
                "onnx.load_external_data_for_model"
            )
        numpy_helper = import_extra("onnx.numpy_helper", "onnx")
        try:
            array: Array = numpy_helper.to_array(tensor, str(self._directory or ""))
        except Exception as error:  # onnx raises many types for a damaged tensor
            raise ValueError(f"{name!r}: cannot be read: {error}") from error
        self._stored += array.size
        return array

    def run(self, node: onnx.NodeProto, feeds: dict[str, Array]) -> list[Array]:
        """The outputs of one node.

        Raises:
            ValueError: it fails on these inputs, or asks for more than a model can mean.
        """
        label = f"{node.op_type} node {node_label(node)!r}"
        try:
            self._made += _made_elements(node, [feeds[key] for key in node.input if key])
        except (IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{label}: cannot be worked out: {error}") from error
        if self._made > _MADE_ELEMENTS + _MADE_PER_STORED * self._stored:
            raise ValueError(f"{label}: makes too much of the {self._stored} elements stored")
        helper = import_extra("onnx.helper", "onnx")
        reference = import_extra("onnx.reference", "onnx")

        def described(names: Any) -> list[Any]:
            undefined = self.onnx.TensorProto.UNDEFINED
            return [helper.make_tensor_value_info(name, undefined, None) for name in names]

        outputs = [name for name in node.output if name]
        graph = helper.make_graph([node], "constant", described(feeds), described(outputs))
        try:
            model = helper.make_model(graph, opset_imports=self.proto.opset_import)
            results = dict(zip(outputs, reference.ReferenceEvaluator(model).run(None, feeds)))
        except Exception as error:  # whatever the reference implementation stumbles over
            raise ValueError(f"{label}: cannot be worked out: {error}") from error
        arrays = [np.asarray(results[name]) if name else np.empty(0) for name in node.output]
        if node.op_type == "Constant":
            self._stored += arrays[0].size
        return arrays


def _made_elements(node: onnx.NodeProto, inputs: list[Array]) -> int:
    """How many elements the result has of an operator that makes more than it is given; else 0."""
    if node.op_type == "ConstantOfShape":
        return math.prod(map(int, inputs[0]))
    if node.op_type == "Concat":
        return sum(array.size for array in inputs)
    if node.op_type == "Expand":
        return math.prod(np.broadcast_shapes(inputs[0].shape, tuple(inputs[1].tolist())))
    if node.op_type == "Tile":
        return inputs[0].size * math.prod(map(int, inputs[1]))
    if node.op_type == "Gather":
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return int(inputs[0].size // max(1, inputs[0].shape[axis]) * inputs[1].size)
    return 0


def node_label(node: onnx.NodeProto) -> str:
    """A node's name; without one, that of its first output."""
    return node.name or next((name for name in node.output if name), "")


def load(path_or_model: object, path: pathlib.Path | None) -> Model:
    """The model of a file, whose external data are read as they are needed, or of a ModelProto.

    Raises:
        TypeError: neither.
        ValueError: the file is none of ONNX.
        ImportError: onnx is not installed.
    """
    onnx = import_extra("onnx", "onnx")
    if path is None:
        if not isinstance(path_or_model, onnx.ModelProto):
            raise TypeError(
                f"path_or_model: got {type(path_or_model).__name__}, wanted a path or an "
                "onnx.ModelProto"
            )
        return Model(path_or_model, None)
    with path.open("rb"):  # that there is none is no fault of its format
        pass
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, and what other serialisations raise
        raise ValueError(f"{path}: not an ONNX model: {error}") from error
    return Model(proto, path.parent)
