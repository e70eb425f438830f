"""ONNX: LSTM and GRU nodes to layers, and layers to models. How graphs are read is next door."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate.checks import Array, check_bool
from tidegate.convert import _onnx_graph
from tidegate.convert._weights import (
    GATES,
    ONNX_LSTM,
    ONNX_PEEPHOLE,
    ZRH_GRU,
    Path,
    RecurrentLayer,
    as_path,
    as_weights,
    carried_parameters,
    check_layer,
    check_rank,
    check_shape,
    import_extra,
    inverse,
    listed,
    make_layer,
    named_parameters,
    regroup,
)
from tidegate.layers import GRU, LSTM

if TYPE_CHECKING:
    import onnx

_ORDERS = {"LSTM": ONNX_LSTM, "GRU": ZRH_GRU}
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
# What the operators' activations do: gates, candidate, and for an LSTM c' on its way into h'.
_ROLES = {
    "LSTM": ("recurrent_activation", "activation", "output_activation"),
    "GRU": ("recurrent_activation", "activation"),
}
_STANDARD = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}


@dataclass(frozen=True)
class _Activation:
    """An activation of the operators: our name, and its parameters' usual values, which are ours.

    For the first `unagreed` of them a node must say them: where it does not, the standard's text
    and ONNX Runtime take different values.
    """

    name: str
    usual: tuple[float, ...] = ()
    unagreed: int = 0


_ACTIVATIONS = {
    "Sigmoid": _Activation("sigmoid"),
    "Tanh": _Activation("tanh"),
    "Relu": _Activation("relu"),
    "HardSigmoid": _Activation("hard_sigmoid", (0.2, 0.5)),
    "Affine": _Activation("affine", (1.0, 0.0), unagreed=1),
    "LeakyRelu": _Activation("leaky_relu", (0.01,)),
    "ThresholdedRelu": _Activation("thresholded_relu", (1.0,), unagreed=1),
    "ScaledTanh": _Activation("scaled_tanh", (1.0, 1.0), unagreed=2),
    "Elu": _Activation("elu", (1.0,)),
    "Softsign": _Activation("softsign"),
    "Softplus": _Activation("softplus"),
}
_KINDS = ("alpha", "beta")
# Beyond, sigmoid and tanh have their limits as values, in double too: such a clip does nothing.
_NO_CLIP = 750.0


# ---- From arrays ---------------------------------------------------------------------------------


def onnx_lstm(
    W: Array,
    R: Array,
    B: Array | None = None,
    P: Array | None = None,
    *,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    input_forget: int = 0,
    layout: int = 0,
    hidden_size: int | None = None,
) -> LSTM:
    """An LSTM from the inputs and attributes of ONNX's LSTM operator.

    The layer's y is (T, N, D*H), ONNX's Y (T, D, N, H); h and c are alike, (D, N, H), but that
    `layout=1` moves ONNX's batch axis to the front in states too, `batch_first=True` in x and y
    alone.

    Args:
        W: (D, 4*H, I), D 2 if bidirectional else 1; gates in the order i, o, f, c.
        R: (D, 4*H, H).
        B: (D, 8*H), the biases of W, then those of R; None: none.
        P: (D, 3*H), peepholes in the order i, o, f; None: none.
        direction: "forward", "reverse" or "bidirectional".
        activations: three of ONNX's names for each direction; both directions must have the same.
        activation_alpha: parameters of those activations that have some, in their order.
        activation_beta: likewise.
        clip: the bound of all arguments of gates and candidate.
        input_forget: 1 couples the gates: f = 1 - i.
        layout: 1 has the batch first.
        hidden_size: H, to be held against R.

    Raises:
        TypeError: an array is no float32, float64, float16 or bfloat16 ndarray.
        ValueError: a shape does not fit; an attribute is out of range or cannot be represented.
    """
    attributes = {
        "direction": direction,
        "activations": activations,
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "clip": clip,
        "input_forget": input_forget,
        "layout": layout,
        "hidden_size": hidden_size,
    }
    layer = _from_arrays("LSTM", {"W": W, "R": R, "B": B, "P": P}, attributes)
    assert isinstance(layer, LSTM)
    return layer


def onnx_gru(
    W: Array,
    R: Array,
    B: Array | None = None,
    *,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    linear_before_reset: int = 0,
    layout: int = 0,
    hidden_size: int | None = None,
) -> GRU:
    """A GRU from the inputs and attributes of ONNX's GRU operator; `onnx_lstm` tells the rest.

    Args:
        W: (D, 3*H, I); gates in the order z, r, h.
        R: (D, 3*H, H).
        B: (D, 6*H), the biases of W, then those of R; None: none.
        direction: as `onnx_lstm`'s, and likewise the others.
        activations: two for each direction.
        activation_alpha: as `onnx_lstm`'s.
        activation_beta: as `onnx_lstm`'s.
        clip: as `onnx_lstm`'s.
        linear_before_reset: 1 is a layer's `reset_after=True`. ONNX's default is 0.
        layout: as `onnx_lstm`'s.
        hidden_size: as `onnx_lstm`'s.

    Raises:
        TypeError, ValueError: as `onnx_lstm`.
    """
    attributes = {
        "direction": direction,
        "activations": activations,
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "clip": clip,
        "linear_before_reset": linear_before_reset,
        "layout": layout,
        "hidden_size": hidden_size,
    }
    layer = _from_arrays("GRU", {"W": W, "R": R, "B": B}, attributes)
    assert isinstance(layer, GRU)
    return layer


def _from_arrays(
    cell: str, inputs: Mapping[str, Any], attributes: Mapping[str, Any]
) -> RecurrentLayer:
    direction = attributes.get("direction") or "forward"
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction: got {direction!r}, wanted one of {listed(_DIRECTIONS)}")
    directions, gates = _DIRECTIONS[direction], GATES[cell]
    arrays = as_weights(inputs)
    for name in ("W", "R"):
        if name not in arrays:
            raise TypeError(f"{name}: got None, wanted an ndarray")
        check_rank(name, arrays[name], 3, "three axes, none of them empty")
    hidden_size, input_size = arrays["R"].shape[2], arrays["W"].shape[2]
    sizes = f"for a hidden_size of {hidden_size} and direction={direction!r}"
    shapes = {
        "W": (directions, gates * hidden_size, input_size),
        "R": (directions, gates * hidden_size, hidden_size),
        "B": (directions, 2 * gates * hidden_size),
        "P": (directions, 3 * hidden_size),
    }
    for name, array in arrays.items():
        check_shape(name, array, shapes[name], sizes)
    if attributes.get("hidden_size") not in (None, hidden_size):
        raise ValueError(
            f"hidden_size: got {attributes['hidden_size']!r}, but R has {hidden_size} columns"
        )
    params = named_parameters(
        _direction_parameters(cell, {name: array[d] for name, array in arrays.items()})
        for d in range(directions)
    )
    return make_layer(
        cell,
        params,
        input_size=input_size,
        hidden_size=hidden_size,
        bias="B" in arrays,
        bidirectional=direction == "bidirectional",
        reverse=direction == "reverse",
        batch_first=_flag("layout", attributes),
        **({"peephole": True} if "P" in arrays else {}),
        **_cell_options(cell, directions, attributes),
    )


def _direction_parameters(cell: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """One direction's parameters in our order, without the suffix of their names."""
    order = _ORDERS[cell]
    result = {
        "weight_ih": regroup(arrays["W"], order),
        "weight_hh": regroup(arrays["R"], order),
    }
    if "B" in arrays:
        bias_ih, bias_hh = np.split(arrays["B"], 2)
        result["bias_ih"], result["bias_hh"] = regroup(bias_ih, order), regroup(bias_hh, order)
    if "P" in arrays:
        result["weight_peephole"] = regroup(arrays["P"], ONNX_PEEPHOLE)
    return result


def _flag(name: str, attributes: Mapping[str, Any]) -> bool:
    value = attributes.get(name) or 0
    if value not in (0, 1):
        raise ValueError(f"{name}: got {value!r}, wanted 0 or 1")
    return bool(value)


def _cell_options(cell: str, directions: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor's options for what is not the standard cell; what is usual is left out."""
    options: dict[str, Any] = {}
    if cell == "GRU":
        options["reset_after"] = _flag("linear_before_reset", attributes)
    elif _flag("input_forget", attributes):
        options["input_forget"] = True
    names = attributes.get("activations")
    if names:
        found = _read_activations(cell, directions, list(names), attributes)
        for role, usual, activation in zip(_ROLES[cell], _STANDARD[cell], found):
            if activation != usual:
                options[role] = activation
        # A layer's output_activation is that of the candidate unless it is named.
        if "activation" in options and cell == "LSTM":
            options.setdefault("output_activation", found[2])
    clip = attributes.get("clip")
    if clip is not None:
        if not clip > 0:
            raise ValueError(f"clip: got {clip!r}, wanted a number above 0")
        if clip < _NO_CLIP or {"recurrent_activation", "activation"} & options.keys():
            options["clip"] = float(clip)
    return options


def _read_activations(
    cell: str, directions: int, names: list[str], attributes: Mapping[str, Any]
) -> list[Any]:
    """One direction's activations as a layer takes them.

    Parameters are consumed in the order of the activations that have some, as ONNX's text says and
    ONNX Runtime does.
    """
    roles = _ROLES[cell]
    if len(names) != directions * len(roles):
        raise ValueError(
            f"activations: got {len(names)}, wanted {len(roles)} for each of the {directions} "
            "direction(s)"
        )
    lists = {kind: list(attributes.get(f"activation_{kind}") or ()) for kind in _KINDS}
    left = {kind: list(values) for kind, values in lists.items()}
    found = [_read_activation(name, left) for name in names]
    for kind, values in left.items():
        if values and len(values) < len(lists[kind]):
            raise ValueError(
                f"activation_{kind}: got {len(lists[kind])} values, {len(values)} more than "
                f"{listed(names)} have"
            )
    if found[: len(roles)] * directions != found:
        raise ValueError(
            f"activations: got {found}, wanted the same for both directions: convert each "
            f"direction to a layer of its own with onnx_{cell.lower()}"
        )
    return found[: len(roles)]


def _read_activation(name: str, left: Mapping[str, list[float]]) -> Any:
    """A layer's activation; takes its parameters off the lists."""
    known = {key.lower(): key for key in _ACTIVATIONS}
    key = known.get(str(name).lower())
    if key is None:
        raise ValueError(f"activations: got {name!r}, wanted one of {listed(_ACTIVATIONS)}")
    activation = _ACTIVATIONS[key]
    values: list[float] = []
    for position, (kind, usual) in enumerate(zip(_KINDS, activation.usual)):
        if left[kind]:
            value = float(left[kind].pop(0))
            # Attributes are float32, in which 0.2 is another number.
            values.append(usual if np.float32(value) == np.float32(usual) else value)
        elif position >= activation.unagreed:
            values.append(usual)
        else:
            raise ValueError(
                f"activation_{kind}: got none for {key}, of which implementations disagree what "
                "that means"
            )
    return activation.name if tuple(values) == activation.usual else (activation.name, *values)


# ---- From models ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """An LSTM or GRU node of a model.

    Attributes:
        layer: what the node does.
        state: its initial state, if that is constant and not zero, as the layer's call takes it:
            h_0 (D, N, H), or (h_0, c_0) with None for what is zero or not constant. Else None.
        lengths: its sequence_lens (N,), if they are constant; else None.
        fed: which of "sequence_lens", "initial_h" and "initial_c" the graph itself works out or
            is given: whoever runs the layer must pass them on.
    """

    layer: RecurrentLayer
    state: Any
    lengths: Array | None
    fed: tuple[str, ...]


def from_onnx(path_or_model: onnx.ModelProto | Path, node: str | None = None) -> RecurrentLayer:
    """The layer of one LSTM or GRU node of an ONNX model; `onnx_lstm` tells how the two compare.

    Nodes are found at any depth, in the bodies of If, Loop and Scan and in local functions too.
    Their weights may be initialisers, external data, or come from those through Constant, Cast,
    Transpose, Unsqueeze and other operators that move values. float16 and bfloat16 weights become
    float32, which holds them exactly.

    Args:
        path_or_model: a file, or an `onnx.ModelProto`.
        node: the name of the node, or of its first output if it has none (`onnx_nodes` gives all);
            None if the model has just one.

    Raises:
        TypeError: neither a path nor a model; weights of another dtype.
        ValueError: the file is none of ONNX; there is no such node, or several and no name (the
            message lists them); weights that are not constant; an attribute that a layer cannot
            represent; a constant initial state other than zero, or constant sequence_lens, which
            are no part of a layer: `onnx_nodes` gives them beside it.
        ImportError: onnx is not installed.
    """
    if node is not None and not isinstance(node, str):
        raise TypeError(f"node: got {type(node).__name__}, wanted a str or None")
    nodes = _find_nodes(path_or_model)
    if node is None:
        if len(nodes) > 1:
            raise ValueError(f"node: got None, but there are several: {listed(nodes)}")
        node = next(iter(nodes))
    if node not in nodes:
        raise ValueError(f"node: got {node!r}, wanted one of {listed(nodes)}")
    converted = nodes[node]()
    beside = {"initial state": converted.state, "sequence_lens": converted.lengths}
    for what, value in beside.items():
        if value is not None:
            raise ValueError(
                f"node {node!r}: has a constant {what}, which is no part of a layer: onnx_nodes "
                "gives it beside the layer"
            )
    return converted.layer


def onnx_nodes(path_or_model: onnx.ModelProto | Path) -> dict[str, OnnxNode]:
    """All LSTM and GRU nodes of an ONNX model, by name.

    A node without a name, or with the name of another one, goes by its first output, and failing
    that by the names of the nodes and branches around it too.

    Raises:
        TypeError, ValueError, ImportError: as `from_onnx`; also if just one node cannot be
            converted (`from_onnx` can still convert the others).
    """
    return {name: convert() for name, convert in _find_nodes(path_or_model).items()}


def _find_nodes(path_or_model: object) -> dict[str, Callable[[], OnnxNode]]:
    """Names to what converts the node; at least one."""
    path = as_path(path_or_model)
    model = _onnx_graph.load(path_or_model, path)
    found = list(model.recurrent_nodes())
    if not found:
        where = "path_or_model" if path is None else str(path)
        others = sorted(name for name in model.operators() if "LSTM" in name or "GRU" in name)
        others += ["RNN"] if "RNN" in model.operators() else []
        raise ValueError(f"{where}: no LSTM or GRU node; of their kind there are: {listed(others)}")

    def converter(
        name: str, node: onnx.NodeProto, scope: _onnx_graph.Scope
    ) -> Callable[[], OnnxNode]:
        return lambda: _convert(name, node, scope)

    names = _unique_names(found)
    return {name: converter(name, *pair) for name, pair in zip(names, found)}


def _unique_names(found: Sequence[tuple[onnx.NodeProto, _onnx_graph.Scope]]) -> Iterator[str]:
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


_INPUTS = {
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}


def _convert(name: str, node: onnx.NodeProto, scope: _onnx_graph.Scope) -> OnnxNode:
    try:
        return _convert_node(node, scope)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"node {name!r}: {error}") from error


def _convert_node(node: onnx.NodeProto, scope: _onnx_graph.Scope) -> OnnxNode:
    cell = node.op_type
    keys = {role: key for role, key in zip(_INPUTS[cell], node.input) if key}
    arrays: dict[str, Any] = {}
    for role in ("W", "R", "B", "P"):
        if role in keys:
            arrays[role] = scope.constant(keys[role])
            if arrays[role] is None:
                raise ValueError(f"{role}: got {keys[role]!r}, which is not constant")
    layer = _from_arrays(cell, arrays, _attributes(node))

    constant: dict[str, Array] = {}
    fed = []
    for role in ("sequence_lens", "initial_h", "initial_c"):
        if role not in keys or (role != "sequence_lens" and scope.is_zero(keys[role])):
            continue
        value = None if scope.is_input(keys[role]) else scope.constant(keys[role])
        if value is None:
            fed.append(role)
        else:
            constant[role] = value
    h_0, c_0 = (
        _initial_state(role, constant[role], layer) if role in constant else None
        for role in ("initial_h", "initial_c")
    )
    state = h_0 if cell == "GRU" or (h_0 is None and c_0 is None) else (h_0, c_0)
    lengths = constant.get("sequence_lens")
    if lengths is not None:
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
            raise ValueError(
                f"sequence_lens: got {lengths.dtype} {lengths.shape}, wanted integers (N,)"
            )
        lengths = lengths.astype(np.int64)
    return OnnxNode(layer, state, lengths, tuple(fed))


def _initial_state(role: str, value: Array, layer: RecurrentLayer) -> Array:
    """(D, N, H), of the layer's dtype; ONNX's layout 1 has the batch first in states too."""
    array = as_weights({role: value})[role]
    if array.ndim == 3 and layer.batch_first:
        array = array.transpose(1, 0, 2)
    directions = 2 if layer.bidirectional else 1
    if array.ndim != 3 or array.shape[::2] != (directions, layer.hidden_size):
        raise ValueError(
            f"{role}: got shape {value.shape}, wanted {directions} directions of "
            f"{layer.hidden_size} units"
        )
    return np.ascontiguousarray(array, layer.dtype)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    helper = import_extra("onnx.helper", "onnx")
    known = {
        "direction",
        "activations",
        "activation_alpha",
        "activation_beta",
        "clip",
        "hidden_size",
        "layout",
        "input_forget" if node.op_type == "LSTM" else "linear_before_reset",
        "output_sequence",  # of the first opset: whether Y is wanted
    }
    result = {}
    for attribute in node.attribute:
        if attribute.name not in known:
            raise ValueError(f"attribute {attribute.name!r}: not known of {node.op_type}")
        result[attribute.name] = _text(helper.get_attribute_value(attribute))
    return result


def _text(value: Any) -> Any:
    """Attributes' strings come as bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [_text(item) for item in value] if isinstance(value, list) else value


# ---- To models -----------------------------------------------------------------------------------

_OPSET = 14
_IR_VERSION = 7  # of the first onnx that has this opset


def to_onnx(
    layer: RecurrentLayer, path: Path, *, state: bool = False, lengths: bool = False
) -> None:
    """Writes an ONNX model (opset 14) that does what a call of the layer does, in its layout.

    Its input is `x`; its outputs are `y`, `h_n` and for an LSTM `c_n`. The weights are the layer's,
    bit for bit (`update_gate="write"` becomes ONNX's form, in which the parameters of z have the
    other sign). ONNX Runtime takes no float64 (`layer.astype` converts), and for a row of length 0
    it returns zeros as the last state, where a layer returns the initial one.

    Args:
        layer: an LSTM or a GRU.
        path: the file to write.
        state: whether the model has further inputs `h_0`, and `c_0` of an LSTM; else they are zero.
        lengths: whether the model has a further input `lengths` (N,), int32.

    Raises:
        TypeError: layer is neither an LSTM nor a GRU, or path no path.
        ValueError: the layer has a projection, which ONNX's LSTM has not.
        ImportError: onnx is not installed.
    """
    layer = check_layer(layer)
    target = as_path(path)
    if target is None:
        raise TypeError(f"path: got {type(path).__name__}, wanted a str or a path")
    if isinstance(layer, LSTM) and layer.proj_size:
        raise ValueError(f"layer: ONNX's LSTM has no proj_size={layer.proj_size}")
    onnx = import_extra("onnx", "onnx")
    writer = _Writer(layer, check_bool("state", state), check_bool("lengths", lengths))
    onnx.save(writer.model(), str(target))


class _Writer:
    """A layer as a model, built from its input on."""

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
            taken = {name: self._of_layer(f"{name}_0", k) for name in self._states if self._state}
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
        return self._helper.make_model(
            graph,
            opset_imports=[self._helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="tidegate",
        )

    def _add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Appends a node; returns the name of its first output."""
        name = f"{operator}_{outputs[0]}"
        node = self._helper.make_node(operator, inputs, outputs, name=name, **attributes)
        self._nodes.append(node)
        return outputs[0]

    def _constant(self, name: str, array: Array) -> str:
        self._initializers.append(self._numpy.from_array(np.ascontiguousarray(array), name))
        return name

    def _of_layer(self, state: str, layer: int) -> str:
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
        inputs = [given.get(role, "") for role in _INPUTS[self._cell]]
        while not inputs[-1]:
            inputs.pop()
        self._add(self._cell, inputs, outputs, **self._attributes())
        steps = self._add("Transpose", outputs[:1], [f"Y_l{layer}_steps"], perm=[0, 2, 1, 3])
        if layer == 0:
            self._constant("side_by_side", np.array([0, 0, -1]))
        return self._add("Reshape", [steps, "side_by_side"], [f"y_l{layer}"])

    def _weights(self, layer: int) -> dict[str, Array]:
        """W, R, B and P of one node."""
        order = inverse(_ORDERS[self._cell])
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
        activations = [getattr(layer, role) for role in _ROLES[self._cell]]
        if activations[-1] is None:
            activations[-1] = layer.activation
        if tuple(activations) != _STANDARD[self._cell]:
            attributes.update(_write_activations(activations * self._directions))
        return attributes


def _write_activations(activations: Sequence[Any]) -> dict[str, Any]:
    """ONNX's attributes; parameters are always told, as they are consumed in order."""
    onnx_names = {activation.name: name for name, activation in _ACTIVATIONS.items()}
    result: dict[str, Any] = {"activations": []}
    for activation in activations:
        name, *values = (activation,) if isinstance(activation, str) else activation
        key = onnx_names[name]
        result["activations"].append(key)
        for kind, value in zip(_KINDS, values or _ACTIVATIONS[key].usual):
            result.setdefault(f"activation_{kind}", []).append(value)
    return result
