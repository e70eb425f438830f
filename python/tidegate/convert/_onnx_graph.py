"""ONNX graphs: files, local functions, and nodes at any depth with the names around them.

`_onnx_fold` evaluates constants; `_onnx_operators` converts recurrent nodes.
"""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from tidegate.convert._formats import ONNX, refuse_other
from tidegate.convert._onnx_operators import INPUTS, QUANTIZED_LSTM
from tidegate.convert._paths import check_regular_file
from tidegate.convert._weights import import_extra, listed

if TYPE_CHECKING:
    import onnx

DOMAINS = ("", "ai.onnx")
_MICROSOFT = "com.microsoft"
# The recurrent operators of each domain that are converted.
_RECURRENT = {**dict.fromkeys(DOMAINS, ("LSTM", "GRU")), _MICROSOFT: (QUANTIZED_LSTM,)}
# Its rules are those that LSTM had in this opset, with more inputs.
_LSTM_OPSET = 7
# The inputs of DynamicQuantizeLSTM that a node must have.
_NEEDED = ("X", "W", "R", *(role for role in INPUTS[QUANTIZED_LSTM] if role not in INPUTS["LSTM"]))

# No real model nests graphs or calls more deeply. Protobuf and the inliner of the onnx package have
# limits of the same size.
_DEEPEST = 100
# Limits on the result of inlining: this much for any model, and this multiple of what the file
# holds. A chain of functions that each call the previous one twice would make 2^n nodes.
_INLINED_NODES = 100_000
_INLINED_BYTES = 1 << 26
_INLINED_RATIO = 16


@dataclass(eq=False)
class Scope:
    """A graph's names: its own, and through `outer` those of the graphs around it.

    Attributes:
        outer: the scope around this one; None for the main graph.
        path: the names of the nodes and branches that contain the graph.
        graph: the graph itself.
        inputs: the graph's inputs, by name.
        tensors: initialisers, by name.
        makers: name -> the node of this graph that makes it, and the output's index.
        replaceable: whether a caller may replace an initialiser that is an input as well. Before
            IR version 4 every initialiser had to be an input.
    """

    outer: Scope | None
    path: tuple[str, ...]
    graph: onnx.GraphProto
    replaceable: bool
    inputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    makers: dict[str, tuple[onnx.NodeProto, int]] = field(default_factory=dict)
    _repeated: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        stored = [tensor.name for tensor in self.graph.initializer]
        stored += [tensor.values.name for tensor in self.graph.sparse_initializer]
        made = [name for node in self.graph.node for name in node.output if name]
        given = [value.name for value in self.graph.input]
        # An input may also have an initialiser, which is its default.
        for names in ([*stored, *made], [*given, *made]):
            self._repeated.update(name for name, n in Counter(names).items() if n > 1)
        self.inputs.update((value.name, value) for value in self.graph.input)
        self.tensors.update((tensor.name, tensor) for tensor in self.graph.initializer)
        self.tensors.update((t.values.name, t) for t in self.graph.sparse_initializer)
        for node in self.graph.node:
            self.makers.update((name, (node, i)) for i, name in enumerate(node.output) if name)

    def owner(self, name: str) -> Scope | None:
        """The innermost scope that defines the name.

        Raises:
            ValueError: it is defined twice there.
        """
        scope: Scope | None = self
        while scope is not None:
            if name in scope._repeated:
                raise ValueError(f"{name!r}: several inputs, initialisers or nodes have this name")
            if name in scope.tensors or name in scope.makers or name in scope.inputs:
                return scope
            scope = scope.outer
        return None

    def is_input(self, name: str) -> bool:
        """Whether the caller of the graph gives this value, or may give it."""
        scope = self.owner(name)
        if scope is None or name not in scope.inputs:
            return False
        return name not in scope.tensors or scope.replaceable

    def declared_type(self, name: str) -> int:
        """The element type (of TensorProto) that a graph declares for an input; 0: none."""
        scope = self.owner(name)
        if scope is None or name not in scope.inputs:
            return 0
        return int(scope.inputs[name].type.tensor_type.elem_type)

    def declared(self, name: str) -> tuple[int | None, ...] | None:
        """The shape that the main graph declares for an input; None for unknown sizes."""
        scope = self.owner(name)
        if scope is None or scope.outer is not None or name not in scope.inputs:
            return None
        tensor = scope.inputs[name].type.tensor_type
        if not tensor.HasField("shape"):
            return None
        # Exporters write 0 and -1 for unknown sizes.
        return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)


class Model:
    """A model whose nodes can be visited.

    Args:
        proto: an `onnx.ModelProto`; its local functions are inlined.
        directory: the folder of its external data; None if it did not come from a file.

    Attributes:
        proto: the model after inlining.
        directory: as given.
        opset: the version of ONNX's own operators that it uses.

    Raises:
        ValueError: the local functions call each other in a cycle, would make too many nodes, or
            cannot be inlined.
    """

    def __init__(self, proto: onnx.ModelProto, directory: pathlib.Path | None) -> None:
        if len(proto.functions) > 0:
            proto = _inlined(proto)
        self.proto = proto
        self.directory = directory
        self.opset = _opset(proto.opset_import)
        self._checker = import_extra("onnx.checker", "onnx")

    def check(self, node: onnx.NodeProto) -> None:
        """Raises a ValueError unless a node satisfies its operator's rules in the model's opset.

        The rules are the numbers of inputs and outputs, and the names and types of attributes. A
        tensor attribute must not have external data: the onnx package would look for them in the
        current folder.
        """
        opset = self.opset
        if recurrent_operator(node) == QUANTIZED_LSTM:
            node, opset = _as_lstm(node), _LSTM_OPSET
        context = type(self._checker.DEFAULT_CONTEXT)()
        context.ir_version = max(3, self.proto.ir_version)
        context.opset_imports = dict.fromkeys(DOMAINS, opset)
        try:
            self._checker.check_node(node, context)
        except Exception as error:  # the package's ValidationError, which is not a ValueError
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{reason} (in opset {opset})") from error

    def nodes(self) -> Iterator[tuple[onnx.NodeProto, Scope]]:
        """Every node, in the order of the file, with its scope."""
        yield from self._walk(self.proto.graph, None, ())

    def _walk(
        self, graph: onnx.GraphProto, outer: Scope | None, path: tuple[str, ...]
    ) -> Iterator[tuple[onnx.NodeProto, Scope]]:
        if len(path) > 2 * _DEEPEST:  # a node's name and a branch's for each level
            raise ValueError(f"graphs are nested more than {_DEEPEST} levels deep")
        scope = Scope(outer, path, graph, self.proto.ir_version >= 4)
        for node in graph.node:
            yield node, scope
            for name, body in _bodies(node):
                yield from self._walk(body, scope, (*path, node_label(node), name))


def _bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs among a node's attributes, with the attributes' names."""
    for attribute in node.attribute:
        if attribute.type == attribute.GRAPH:
            yield attribute.name, attribute.g
        for body in attribute.graphs:
            yield attribute.name, body


def _opset(imports: Any) -> int:
    """The version of ONNX's own operators; the oldest files do not record one."""
    return max((entry.version for entry in imports if entry.domain in DOMAINS), default=1)


def recurrent_operator(node: onnx.NodeProto) -> str | None:
    """The node's operator, if it is a recurrent one that is converted; else None."""
    return node.op_type if node.op_type in _RECURRENT.get(node.domain, ()) else None


def _as_lstm(node: onnx.NodeProto) -> onnx.NodeProto:
    """A DynamicQuantizeLSTM node as an LSTM node, for the checker, which does not know the former.

    Raises:
        ValueError: it has too few inputs or too many.
    """
    roles, given = INPUTS[QUANTIZED_LSTM], list(node.input)
    missing = [role for role in _NEEDED if role not in dict(zip(roles, given))]
    missing += [role for role, name in zip(roles, given) if role in _NEEDED and not name]
    if missing or len(given) > len(roles):
        raise ValueError(
            f"{node.op_type}: got {len(given)} inputs, without {listed(missing)}; wanted "
            f"{listed(roles)}"
        )
    lstm = type(node)()
    lstm.CopyFrom(node)
    lstm.domain, lstm.op_type = "", "LSTM"
    del lstm.input[len(INPUTS["LSTM"]) :]
    return lstm


def node_label(node: onnx.NodeProto) -> str:
    """A node's name; without one, the name of its first output."""
    return node.name or next((name for name in node.output if name), "")


def node_title(node: onnx.NodeProto) -> str:
    """A node's operator and name, for messages."""
    domain = "" if node.domain in DOMAINS else f"{node.domain}."
    return f"{domain}{node.op_type} node {node_label(node)!r}"


# ---- Local functions -----------------------------------------------------------------------------


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions inlined."""
    _Calls(proto).check()
    inliner = import_extra("onnx.inliner", "onnx")
    try:
        result: onnx.ModelProto = inliner.inline_local_functions(proto)
    except Exception as error:  # the package raises several types of its own
        raise ValueError(f"local functions cannot be inlined: {error}") from error
    # The package does not inline functions of another opset than the model's.
    opset = _opset(proto.opset_import)
    for function in result.functions:
        if any(recurrent_operator(node) for node in _flat(function.node)):
            raise ValueError(
                f"local function {function.name!r}: uses opset {_opset(function.opset_import)}, "
                f"the model {opset}, so it cannot be inlined: convert both to one version with "
                "onnx.version_converter"
            )
    return result


_Key: TypeAlias = tuple[str, str, str]


def _key(domain: str, name: str, overload: str) -> _Key:
    return ("" if domain in DOMAINS else domain, name, overload)


@dataclass(frozen=True)
class _Size:
    """The size of a graph's or a function's nodes after inlining."""

    nodes: int
    bytes: int
    depth: int  # depth of nested calls


class _Calls:
    """The calls between local functions, and the size of the model after inlining them."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        # The field `overload` exists since IR version 10.
        self._functions: dict[_Key, onnx.FunctionProto] = {
            _key(f.domain, f.name, getattr(f, "overload", "")): f for f in proto.functions
        }
        self._sizes: dict[_Key, _Size] = {}
        self._open: set[_Key] = set()

    def check(self) -> None:
        """Raises a ValueError unless inlining terminates and its result is small enough."""
        size = self._measure(self._proto.graph.node, 0)
        stored = sum(1 for _ in _flat(self._proto.graph.node))
        stored += sum(1 for function in self._functions.values() for _ in _flat(function.node))
        if (
            size.nodes > _INLINED_NODES + _INLINED_RATIO * stored
            or size.bytes > _INLINED_BYTES + _INLINED_RATIO * self._proto.ByteSize()
        ):
            raise ValueError(
                f"local functions: inlining makes too much from the {stored} nodes stored: "
                f"{size.nodes} nodes, {size.bytes} bytes"
            )

    def _measure(self, nodes: Any, depth: int) -> _Size:
        """The size of these nodes and of the functions they call; `depth` counts nested calls."""
        count, length, deepest = 0, sum(node.ByteSize() for node in nodes), 0
        for node in _flat(nodes):
            key = _key(node.domain, node.op_type, getattr(node, "overload", ""))
            called = self._called(key, depth + 1) if key in self._functions else _Size(0, 0, -1)
            count += 1 + called.nodes
            length += called.bytes
            deepest = max(deepest, called.depth + 1)
        return _Size(count, length, deepest)

    def _called(self, key: _Key, depth: int) -> _Size:
        if key in self._open:
            raise ValueError(f"local function {key[1]!r}: calls itself")
        if key not in self._sizes and depth <= _DEEPEST:
            self._open.add(key)
            self._sizes[key] = self._measure(self._functions[key].node, depth)
            self._open.remove(key)
        if depth > _DEEPEST or self._sizes[key].depth > _DEEPEST:
            raise ValueError(f"local functions: calls are nested more than {_DEEPEST} levels deep")
        return self._sizes[key]


def _flat(nodes: Any) -> Iterator[onnx.NodeProto]:
    """The nodes, including those of their bodies, in no particular order."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        for _, body in _bodies(node):
            stack.extend(body.node)


# ---- Files ---------------------------------------------------------------------------------------


def load(path_or_model: object, path: pathlib.Path | None) -> Model:
    """The model of a file, whose external data are read when needed, or of a ModelProto.

    Raises:
        TypeError: path_or_model is neither.
        ValueError: the path is not a regular file, or has another format.
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
    if path.is_dir() or not path.exists():
        _refuse_other_format(path)
    if path.is_dir():
        files = listed(sorted(file.name for file in path.glob("*.onnx")))
        raise ValueError(
            f"path_or_model: {str(path)!r} is a folder, wanted a file; its .onnx files: {files}"
        )
    check_regular_file("path_or_model", path)
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, and the errors of other serialisations
        _refuse_other_format(path)
        raise ValueError(f"{path}: not an ONNX model: {error}") from error
    if not proto.graph.node:
        _refuse_other_format(path)
        raise ValueError(f"{path}: not an ONNX model, or an empty one: its graph has no nodes")
    return Model(proto, path.parent)


def _refuse_other_format(path: pathlib.Path) -> None:
    refuse_other(path, "an ONNX model", own=(ONNX,))
