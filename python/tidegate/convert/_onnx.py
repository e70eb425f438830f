"""LSTM and GRU nodes of ONNX models as layers.

`_onnx_graph` reads graphs, `_onnx_fold` evaluates constants, and `_onnx_operators` converts the
operators.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate.checks import Array, Precision, check_bool
from tidegate.convert import _onnx_absent, _onnx_graph
from tidegate.convert._onnx_fold import Constants
from tidegate.convert._onnx_operators import (
    CELLS,
    DIRECTIONS,
    INPUTS,
    QUANTIZED_LSTM,
    from_arrays,
)
from tidegate.convert._quantized import QuantizedWeight, Weight, repeated_for_rows
from tidegate.convert._weights import (
    GATES,
    Path,
    RecurrentLayer,
    as_path,
    as_weights,
    check_wanted_precision,
    import_extra,
    in_precision,
)

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, eq=False, repr=False)
class OnnxNode:
    """An LSTM or GRU node of a model.

    Its `repr` shows the layer with its sizes, the node's path, and the other attributes.

    Attributes:
        layer: the layer that computes what the node does; its `input_size`, `hidden_size` and
            `bidirectional` are the node's sizes.
        state: the node's initial state, if it is constant and not zero, as the layer's call takes
            it: h_0 (D, N, H), or (h_0, c_0), None for a member that is zero or not constant. Else
            None.
        lengths: the node's sequence_lens (N,), if they are constant; else None.
        fed: which of "sequence_lens", "initial_h" and "initial_c" the graph computes or takes as
            inputs: the caller of the layer must pass them to it.
        path: the names of the nodes that contain the node, each followed by the name of the branch
            or body, as in ("If_25", "then_branch"). Empty in the main graph.
    """

    layer: RecurrentLayer
    state: Any
    lengths: Array | None
    fed: tuple[str, ...]
    path: tuple[str, ...] = ()

    def __repr__(self) -> str:
        parts = [repr(self.layer)]
        if self.path:
            parts.append(f"path={'/'.join(self.path)!r}")
        beside = {"state": self.state, "lengths": self.lengths}
        parts += [f"{name}=..." for name, value in beside.items() if value is not None]
        if self.fed:
            parts.append(f"fed={self.fed!r}")
        return f"OnnxNode({', '.join(parts)})"


def from_onnx(
    path_or_model: onnx.ModelProto | Path,
    node: str | None = None,
    *,
    dequantize: bool = False,
    precision: Precision | None = None,
) -> RecurrentLayer:
    """The layer of one LSTM or GRU node of an ONNX model; `onnx_lstm` compares the two.

    Nodes are found at any depth, in the bodies of If, Loop and Scan and in local functions too.
    Their weights may be initialisers, external data, or results that common operators compute from
    these: Constant, Cast, Transpose, Concat, Mul, DequantizeLinear, ReduceL2 and others. The onnx
    package evaluates the operators, in the precision of the graph. Initialisers that are inputs as
    well, which a caller of the graph may replace, are used as stored. float16 and bfloat16 weights
    become float32, which holds them exactly.

    Quantised weights give a layer in int8 with the integers and scales of the file:

    - ONNX Runtime's `DynamicQuantizeLSTM`, with scales per tensor or per channel.
    - LSTM and GRU with W and R from DequantizeLinear of int8 or uint8, directly or through
      operators that only move elements (Transpose, Unsqueeze, Concat and others), with one scale
      for each row, however it was stored. The layer is of float32 if only one of W and R is
      quantised, or if a row has several scales (axis=2, blocks).

    uint8 weights become int8, less 128. An int8 layer has no zero points: others than 0 (int8) and
    128 (uint8) are refused, unless `dequantize` is True.

    An int8 layer quantises x and h by its own rule (`LSTM.quantize`): a scale for each row and
    step, symmetric. ONNX Runtime has one scale and zero point for all of x, and one for all of h at
    a step, so results differ by these roundings. For LSTM(64, 128) with random weights, 100 steps
    and normal x, y differs from that of the dequantised weights by at most 0.006 (rms 0.0007), and
    ONNX Runtime's by 0.007 (rms 0.001). On x86 CPUs without VNNI its products of uint8 and int8
    saturate, unless a session has "session.x64quantprecision" = "1": there it differs by 0.3 (rms
    0.015).

    Args:
        path_or_model: a file, or an `onnx.ModelProto`. External data are read from the file's
            folder.
        node: the name of the node, or of its first output if it has none (`onnx_nodes` lists
            all); None if the model has just one.
        dequantize: True makes float32 weights of quantised ones: (integer - zero point) * scale.
        precision: the low precision of the layer, as by `quantize`, for example "int8"; None:
            that of the weights.

    Raises:
        TypeError: neither a path nor a model; weights of another dtype.
        OSError: the file cannot be read.
        ValueError: the file is not an ONNX model (the message names some other formats), or not a
            regular file; there is no such node, or several and no name (the message lists them with
            their sizes and places), or none at all (the message says what the model has instead);
            weights that are not constant (it names the operator that is not); inputs whose shapes
            disagree; an attribute that the opset does not have or a layer cannot represent; a
            constant initial state other than zero, or constant sequence_lens, which a layer does
            not have: `onnx_nodes` returns them beside it; a model that makes far more elements than
            it stores.
        ValueError: quantised weights with a zero point other than 0 (int8) or 128 (uint8), or with
            a scale that is not a positive finite number.
        ImportError: onnx is not installed.
    """
    precision = check_wanted_precision(precision)
    if node is not None and not isinstance(node, str):
        raise TypeError(f"node: got {type(node).__name__}, wanted a str or None")
    reader = _Reader(path_or_model, dequantize)
    if node is None:
        if len(reader.nodes) > 1:
            raise ValueError(f"node: got None, but there are several: {reader.listed()}")
        node = next(iter(reader.nodes))
    if node not in reader.nodes:
        reason = _onnx_absent.why_unknown(reader.model, node)
        raise ValueError(f"node: got {node!r}{reason}, wanted one of {reader.listed()}")
    converted = reader.convert(node)
    beside = {"initial state": converted.state, "sequence_lens": converted.lengths}
    for what, value in beside.items():
        if value is not None:
            raise ValueError(
                f"node {node!r}: has a constant {what}, which is not part of a layer: "
                "onnx_nodes returns it beside the layer"
            )
    return in_precision(converted.layer, precision)


def onnx_nodes(
    path_or_model: onnx.ModelProto | Path, *, dequantize: bool = False
) -> dict[str, OnnxNode]:
    """All LSTM and GRU nodes of an ONNX model, by name: layers, sizes and paths.

    The key of a node without a name, or with a name that another node has, is its first output, and
    if that is not unique either, the names of the nodes and branches around it are added. Printing
    the result gives an overview: a model with networks for two sampling rates, in the branches of
    an If node, gives

        {"lstm": OnnxNode(LSTM(128, 128), path='If_0/then_branch', fed=('initial_h', 'initial_c')),
         "lstm_1": OnnxNode(LSTM(64, 128), path='If_0/else_branch', fed=...)}

    Args:
        path_or_model: as for `from_onnx`.
        dequantize: as for `from_onnx`.

    Raises:
        TypeError, OSError, ValueError, ImportError: as `from_onnx`; also if any one node cannot be
            converted (`from_onnx` can still convert the others).
    """
    reader = _Reader(path_or_model, dequantize)
    return {name: reader.convert(name) for name in reader.nodes}


class _Reader:
    """A model with its LSTM and GRU nodes by name; there is at least one."""

    def __init__(self, path_or_model: object, dequantize: bool) -> None:
        self._dequantize = check_bool("dequantize", dequantize)
        path = as_path(path_or_model)
        self.model = _onnx_graph.load(path_or_model, path)
        found = [
            (node, scope)
            for node, scope in self.model.nodes()
            if _onnx_graph.recurrent_operator(node)
        ]
        if not found:
            where = "path_or_model" if path is None else str(path)
            raise ValueError(f"{where}: no LSTM or GRU node; {_onnx_absent.why(self.model)}")
        self.nodes = dict(zip(_unique_names(found), found))
        self._constants = Constants(self.model)

    def listed(self) -> str:
        """The nodes, for a message: names, sizes as far as they are stored, and paths."""
        return ", ".join(
            f"{name!r} ({_outline(node, scope)})" for name, (node, scope) in self.nodes.items()
        )

    def convert(self, name: str) -> OnnxNode:
        node, scope = self.nodes[name]
        try:
            self.model.check(node)
            return _Converter(node, scope, self._constants, self._dequantize).node()
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"node {name!r}: {error}") from error


def _unique_names(
    found: Sequence[tuple[onnx.NodeProto, _onnx_graph.Scope]],
) -> Iterator[str]:
    labels = collections.Counter(_onnx_graph.node_label(node) for node, _ in found)
    outputs = collections.Counter(_first_output(node) for node, _ in found)
    taken: set[str] = set()
    for number, (node, scope) in enumerate(found):
        name = _onnx_graph.node_label(node)
        if labels[name] > 1:
            output = _first_output(node)
            name = output if outputs[output] == 1 else "/".join((*scope.path, name))
        if name in taken:
            name = f"{name}#{number}"
        taken.add(name)
        yield name


def _first_output(node: onnx.NodeProto) -> str:
    return next((name for name in node.output if name), "")


def _outline(node: onnx.NodeProto, scope: _onnx_graph.Scope) -> str:
    """A node's sizes and path, without evaluating constants."""
    w, r = ([*_stored_sizes(scope, key), "?", "?", "?"] for key in [*node.input, "", ""][1:3])
    attributes = _attributes(node)
    if node.op_type == QUANTIZED_LSTM:
        w[1], w[2] = w[2], w[1]
    hidden = attributes.get("hidden_size", r[2] if node.op_type != QUANTIZED_LSTM else r[1])
    if hidden == "?" and isinstance(w[1], int):
        hidden = w[1] // GATES[CELLS[node.op_type]]
    direction = attributes.get("direction", "forward")
    more = "" if direction == "forward" else f", {direction}"
    where = f" in {'/'.join(scope.path)}" if scope.path else ""
    return f"{node.op_type}, input {w[2]}, hidden {hidden}{more}{where}"


def _stored_sizes(scope: _onnx_graph.Scope, name: str) -> list[int]:
    owner = scope.owner(name)
    if owner is None:
        return []
    if name in owner.makers:
        maker, _ = owner.makers[name]
        return [size for a in maker.attribute if maker.op_type == "Constant" for size in a.t.dims]
    return list(getattr(owner.tensors.get(name), "dims", ()))


class _Converter:
    """One node with its inputs.

    Args:
        node: an LSTM or GRU node that satisfies its operator's rules.
        scope: the scope that it is in.
        constants: the constants of the model.
        dequantize: whether quantised weights become float32.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        scope: _onnx_graph.Scope,
        constants: Constants,
        dequantize: bool,
    ) -> None:
        self._operator = node.op_type
        self._cell = CELLS[self._operator]
        self._dequantize = dequantize
        self._keys = {role: key for role, key in zip(INPUTS[self._operator], node.input) if key}
        self._attributes = _attributes(node)
        self._scope = scope
        self._constants = constants

    def node(self) -> OnnxNode:
        weights = self._weights()
        made = sum(array.size for array in weights.values())
        self._constants.count(made, f"a layer of {made} parameters")
        layer = from_arrays(self._cell, weights, self._attributes)
        self._check_types(weights["W"])
        self._check_sizes(layer, weights)

        constant: dict[str, Array] = {}
        fed = []
        for role in ("sequence_lens", "initial_h", "initial_c"):
            if role in self._keys:
                value = self._constant_input(role)
                if value is not None:
                    constant[role] = value
                elif role == "sequence_lens" or not self._is_zero(role):
                    fed.append(role)
        states = [
            self._state(role, constant[role], layer, weights["W"]) if role in constant else None
            for role in ("initial_h", "initial_c")
        ]
        lengths = constant.get("sequence_lens")
        return OnnxNode(
            layer,
            self._joined(states),
            None if lengths is None else self._lengths(lengths),
            tuple(fed),
            self._scope.path,
        )

    def _weights(self) -> dict[str, Weight]:
        """W, R, B and P, as far as the node has them."""
        weights: dict[str, Weight] = {
            role: self._weight(role) for role in ("W", "R", "B", "P") if role in self._keys
        }
        quantized: dict[str, QuantizedWeight | None]
        if self._operator == QUANTIZED_LSTM:
            quantized = {role: self._stored_integers(role, self._weight(role)) for role in "WR"}
        elif self._dequantize:
            return weights
        else:
            quantized = {
                role: self._constants.quantized(self._scope, self._keys[role]) for role in "WR"
            }
            if None in quantized.values():
                return weights
        for role, weight in quantized.items():
            assert weight is not None
            weights[role] = weight.dequantized() if self._dequantize else weight
        return weights

    def _stored_integers(self, role: str, values: Array) -> QuantizedWeight:
        """W or R of a DynamicQuantizeLSTM, in the layout of an LSTM's."""
        if values.dtype not in (np.int8, np.uint8):
            raise TypeError(f"{role}: got dtype {values.dtype}, wanted int8 or uint8")
        if values.ndim != 3 or values.size == 0:
            raise ValueError(
                f"{role}: got shape {values.shape}, wanted three axes, none of them empty"
            )
        values = values.transpose(0, 2, 1)
        rows = values.shape[:2]
        parameters = []
        for suffix, dtype in (("_scale", np.dtype(np.float32)), ("_zero_point", values.dtype)):
            parameter = self._weight(role + suffix)
            if parameter.dtype != dtype:
                raise TypeError(f"{role}{suffix}: got dtype {parameter.dtype}, wanted {dtype}")
            if parameter.shape not in (rows, rows[:1]):
                raise ValueError(
                    f"{role}{suffix}: got shape {parameter.shape}, wanted {rows[:1]} or {rows}, a "
                    f"number for each direction, or for each row: {role} has shape {values.shape} "
                    "when transposed"
                )
            parameters.append(repeated_for_rows(parameter, rows))
        return QuantizedWeight(values, *parameters)

    def _weight(self, role: str) -> Array:
        key = self._keys[role]
        value = self._constants.value(self._scope, key)
        if value is None:
            ending = self._constants.ending(self._scope, key)
            raise ValueError(f"{role}: got {key!r}, which is not constant: {ending}")
        return value

    def _constant_input(self, role: str) -> Array | None:
        """The value of an optional input, if it is constant; it may also be given from outside."""
        key = self._keys[role]
        if self._scope.is_input(key):
            return None
        return self._constants.value(self._scope, key)

    def _is_zero(self, role: str) -> bool:
        return self._constants.is_zero(self._scope, self._keys[role])

    def _check_types(self, w: Weight) -> None:
        """Raises if an input is declared with an element type that the node does not take."""
        types = import_extra("onnx", "onnx").TensorProto.DataType
        own = import_extra("onnx.helper", "onnx").np_dtype_to_tensor_dtype(w.dtype)
        wanted = dict.fromkeys(("X", "initial_h", "initial_c"), own)
        wanted["sequence_lens"] = types.Value("INT32")
        for role in [role for role in wanted if role in self._keys]:
            declared = self._scope.declared_type(self._keys[role])
            if declared not in (0, wanted[role]):
                name = types.Name(declared) if declared in types.values() else declared
                why = "" if role == "sequence_lens" else ", as W has it"
                raise TypeError(
                    f"{role}: is declared {name}, wanted {types.Name(wanted[role])}{why}"
                )

    def _check_sizes(self, layer: RecurrentLayer, weights: dict[str, Weight]) -> None:
        """Raises unless all known sizes agree: those of constants, and of declared inputs.

        The wanted values of T and N are those of the first input that has them.
        """
        steps: tuple[int | str, ...] = ("N", "T") if layer.batch_first else ("T", "N")
        directions = DIRECTIONS[self._attributes.get("direction", "forward")]
        state: tuple[int | str, ...] = (directions, "N", layer.hidden_size)
        if layer.batch_first:
            state = ("N", directions, layer.hidden_size)
        wanted: dict[str, tuple[int | str, ...]] = {
            "X": (*steps, layer.input_size),
            "sequence_lens": ("N",),
            "initial_h": state,
            "initial_c": state,
        }
        self._bound: dict[str, tuple[str, int]] = {}
        for role in [role for role in wanted if role in self._keys]:
            sizes = self._constants.sizes(self._scope, self._keys[role], len(wanted[role]))
            if sizes is None:
                continue
            if len(sizes) != len(wanted[role]) or any(
                isinstance(want, int) and size not in (None, want)
                for size, want in zip(sizes, wanted[role])
            ):
                shapes = ", ".join(f"{name} has {a.shape}" for name, a in weights.items())
                raise ValueError(
                    f"{role}: got shape {_shape(sizes)}, wanted {_shape(wanted[role])}: {shapes}"
                )
            for size, want in zip(sizes, wanted[role]):
                if size is not None and isinstance(want, str):
                    first, other = self._bound.setdefault(want, (role, size))
                    if other != size:
                        raise ValueError(
                            f"{role}: got shape {_shape(sizes)}, in which {want} is {size}, but "
                            f"{first} says {other}"
                        )

    def _state(self, role: str, value: Array, layer: RecurrentLayer, w: Weight) -> Array | None:
        """A state (D, N, H) in the layer's dtype, or None for zeros; its shape has been checked."""
        if value.dtype != w.dtype:
            raise TypeError(f"{role}: got {value.dtype}, but W is {w.dtype}, wanted one dtype")
        if not np.any(value):
            return None
        array = as_weights({role: value})[role]
        if layer.batch_first:  # in ONNX's layout 1 states are batch first too
            array = array.transpose(1, 0, 2)
        return np.ascontiguousarray(array, layer.dtype)

    def _joined(self, states: list[Array | None]) -> Any:
        """The states as a layer's call takes them."""
        h_0, c_0 = states
        return h_0 if self._cell == "GRU" or (h_0 is None and c_0 is None) else (h_0, c_0)

    def _lengths(self, value: Array) -> Array:
        if value.dtype.kind not in "iu":
            raise ValueError(f"sequence_lens: got dtype {value.dtype}, wanted integers")
        role, steps = self._bound.get("T", ("", np.iinfo(np.int64).max))
        if value.size and not 0 <= int(value.min()) <= int(value.max()) <= steps:
            most = f"{steps}, as {role} has it" if role else "the number of steps"
            raise ValueError(
                f"sequence_lens: got values from {value.min()} to {value.max()}, wanted 0 to {most}"
            )
        return value.astype(np.int64)


def _shape(sizes: Sequence[int | str | None]) -> str:
    parts = ["?" if size is None else str(size) for size in sizes]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name, with text as str."""
    helper = import_extra("onnx.helper", "onnx")
    return {a.name: _text(helper.get_attribute_value(a)) for a in node.attribute}


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [_text(item) for item in value] if isinstance(value, list) else value
