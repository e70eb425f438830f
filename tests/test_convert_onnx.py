# ONNX to layers and back: arrays always, models if onnx is installed, ONNX Runtime's answers if it
# is. Constants are in test_convert_onnx_fold.py, trained models in test_real_models.py.
from __future__ import annotations

import contextlib
import os
import pathlib
import re
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden_cases
import tidegate as tg
from golden_cases import Case
from onnx_models import OPSET, body, make_model, make_node, node_model, same, weights
from tidegate import convert

# ---- Goldens -------------------------------------------------------------------------------------

CASES = {case.name: case for case in golden_cases.covered_cases()}
# Whose directions have activations of their own, which a layer's have not.
SPLIT = {name.removesuffix("-forward") for name in CASES if name.endswith("-forward")}


def onnx_goldens() -> list[tuple[str, str, dict[str, Any], dict[str, np.ndarray]]]:
    """Name, operator, attributes and inputs by role, as the sources have them, in float64."""
    result = []
    for number, golden in enumerate(golden_cases._read("golden_cases.json")):
        if golden["framework"] == "onnx":
            name = f"onnx-{number}-{golden['test']}".replace(" ", "")
            inputs = dict(zip(golden_cases.ONNX_INPUTS, golden["inputs"], strict=False))
            result.append((name, golden["op"], golden["attrs"], inputs))
    for golden in golden_cases._read("onnx_node_cases.json"):
        if golden["op"] in ("LSTM", "GRU"):
            result.append((golden["name"], golden["op"], golden["attrs"], golden["inputs"]))
    return [
        (
            name,
            op,
            attributes,
            {
                role: golden_cases._onnx_array(entry)
                for role, entry in inputs.items()
                if entry is not None
            },
        )
        for name, op, attributes, inputs in result
    ]


GOLDENS = onnx_goldens()
every_golden = pytest.mark.parametrize(
    ("name", "op", "attributes", "inputs"), GOLDENS, ids=[golden[0] for golden in GOLDENS]
)


def raw(op: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any]) -> Any:
    arrays = {role: array for role, array in inputs.items() if role in ("W", "R", "B", "P")}
    kind = {"LSTM": convert.onnx_lstm, "GRU": convert.onnx_gru}[op]
    return kind(**arrays, **attributes)


def assert_golden(layer: Any, case: Case, atol: float = 0.0) -> None:
    def cast(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array.astype(layer.dtype)

    state = case.state
    state = tuple(map(cast, state)) if isinstance(state, tuple) else cast(state)
    x = cast(case.x)
    if layer.batch_first:
        y, state_n = layer(x.transpose(1, 0, 2), state, lengths=case.lengths)
        y = y.transpose(1, 0, 2)
    else:
        y, state_n = layer(x, state, lengths=case.lengths)
    assert case.expected
    for expected in case.expected:
        error = np.abs(expected.of(y, state_n) - expected.values)
        assert (error <= expected.atol + atol).all(), (expected.output, error.max())


def test_all_goldens_are_here() -> None:
    assert len(GOLDENS) == 60 + 12
    assert {name for name, *_ in GOLDENS} - SPLIT <= CASES.keys()
    assert len(SPLIT) == 1


@every_golden
def test_golden_arrays(name: str, op: str, attributes: Any, inputs: Any) -> None:
    if name not in SPLIT:
        layer = raw(op, inputs, attributes)
        assert layer.batch_first == bool(attributes.get("layout", 0))
        assert_golden(layer, CASES[name])
        return
    with pytest.raises(ValueError, match=r"activations: .* the same for both directions"):
        raw(op, inputs, attributes)
    for d, direction in enumerate(("forward", "reverse")):
        own = {role: array[d : d + 1] for role, array in inputs.items() if role in "WRB"}
        case = CASES[f"{name}-{direction}"]
        roles = ("recurrent_activation", "activation")
        activations = [case.options[role] for role in roles]
        names = {"leaky_relu": "LeakyRelu", "scaled_tanh": "ScaledTanh"}
        told = [a if isinstance(a, str) else a[0] for a in activations]
        values = [() if isinstance(a, str) else a[1:] for a in activations]
        one = {
            **attributes,
            "direction": direction,
            "activations": [names.get(a, a.capitalize()) for a in told],
            "activation_alpha": [v[0] for v in values if v],
            "activation_beta": [v[1] for v in values if len(v) > 1],
        }
        assert_golden(raw(op, own, one), case)


@every_golden
def test_golden_models(name: str, op: str, attributes: Any, inputs: Any) -> None:
    pytest.importorskip("onnx")
    model = node_model(op, inputs, attributes)
    if name in SPLIT:
        with pytest.raises(ValueError, match="node 'the node': activations: "):
            convert.onnx_nodes(model)
        return
    (node,) = convert.onnx_nodes(model).values()
    assert node.layer.dtype == np.float32
    case = CASES[name]
    eps = np.finfo(np.float32).eps
    terms = case.x.shape[2] + case.hidden_size + 8
    largest = max(np.abs(e.values).max(initial=1.0) for e in case.expected)
    assert_golden(node.layer, case, atol=case.x.shape[0] * terms * eps * largest)
    assert node.fed == ()
    wanted = case.state if case.state is None or isinstance(case.state, tuple) else (case.state,)
    got = node.state if node.state is None or isinstance(node.state, tuple) else (node.state,)
    if wanted is None or not any(array.any() for array in wanted):
        assert got is None
    else:
        for ours, theirs in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(0 if ours is None else ours, theirs)
    if case.lengths is None:
        assert node.lengths is None
    else:
        np.testing.assert_array_equal(node.lengths, case.lengths)


# ---- Types of weights ----------------------------------------------------------------------------


def test_half_precision_weights_become_float32() -> None:
    onnx = pytest.importorskip("onnx")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        halves = {role: array.astype(dtype) for role, array in weights().items()}
        node = make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=3)
        wanted = {role: array.astype(np.float32) for role, array in halves.items()}
        element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        model = make_model([node], halves, element=element)
        same(convert.from_onnx(model), convert.onnx_lstm(**wanted))
        same(convert.onnx_lstm(**halves), convert.onnx_lstm(**wanted))


def test_doubles_stay_doubles() -> None:
    pytest.importorskip("onnx")
    w = {role: array.astype(np.float64) for role, array in weights("GRU").items()}
    node = make_node("GRU", ["X", "W", "R", "B"], ["Y"], hidden_size=3)
    same(convert.from_onnx(make_model([node], w, element=11)), convert.onnx_gru(**w))


# ---- Where nodes are -----------------------------------------------------------------------------


def lstm_node(out: str, prefix: str = "", name: str = "") -> Any:
    roles = ["X", *(prefix + role for role in "WRB")]
    return make_node("LSTM", roles, [out], name=name, hidden_size=3)


def test_nodes_in_bodies_of_if_loop_and_scan() -> None:
    """Their weights may be constants of the graphs around them."""
    pytest.importorskip("onnx")
    tensors = {
        prefix + role: array
        for seed, prefix in enumerate("abcd")
        for role, array in weights(seed=seed).items()
    }
    inner = make_node(
        "If",
        ["flag"],
        ["deep"],
        name="inner",
        then_branch=body([lstm_node("deep_then", "a", "deepest")], (), ("deep_then",)),
        else_branch=body(
            [make_node("Transpose", ["bRT"], ["bR"], perm=[0, 2, 1]), lstm_node("deep_else", "b")],
            (),
            ("deep_else",),
        ),
    )
    tensors["bRT"] = tensors.pop("bR").transpose(0, 2, 1).copy()
    loop = make_node(
        "Loop", ["", "flag"], ["n"], body=body([inner], ("i", "cond"), ("cond", "deep"))
    )
    scan = make_node(
        "Scan", ["X"], ["s"], num_scan_inputs=1, body=body([lstm_node("Ys", "c")], ("x",), ("Ys",))
    )
    model = make_model([loop, scan, lstm_node("Y", "d")], tensors, inputs=("X", "flag"))
    nodes = convert.onnx_nodes(model)
    assert list(nodes) == ["deep_else", "deepest", "Ys", "Y"]
    for seed, node in zip((1, 0, 2, 3), nodes.values()):
        same(node.layer, convert.onnx_lstm(**weights(seed=seed)))
    same(convert.from_onnx(model, "deep_else"), nodes["deep_else"].layer)
    message = (
        "several: 'deep_else' (LSTM, input 2, hidden 3 in n/body/inner/else_branch), "
        "'deepest' (LSTM, input 2, hidden 3 in n/body/inner/then_branch), "
        "'Ys' (LSTM, input 2, hidden 3 in s/body), 'Y' (LSTM, input 2, hidden 3)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        convert.from_onnx(model)
    with pytest.raises(ValueError, match=r"node: got 'nowhere', wanted one of 'deep_else' \(LST"):
        convert.from_onnx(model, "nowhere")


def test_nodes_in_local_functions() -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    function = helper.make_function(
        "own",
        "Encoder",
        ["x", "w", "r", "b"],
        ["y"],
        [make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=3)],
        [helper.make_opsetid("", OPSET)],
    )
    call = make_node("Encoder", ["X", "W", "R", "B"], ["Y"], domain="own")
    model = make_model([call], weights(), functions=[function])
    model.opset_import.append(helper.make_opsetid("own", 1))
    same(convert.from_onnx(model), convert.onnx_lstm(**weights()))


def test_where_nodes_lie() -> None:
    """Two networks in branches, each for a first and a later call."""
    pytest.importorskip("onnx")
    tensors = {
        prefix + role: array
        for prefix, size in (("a", 4), ("b", 5))
        for role, array in weights(inputs=size).items()
    }

    def network(prefix: str) -> Any:
        first = lstm_node("first", prefix)
        roles = ["X", *(prefix + role for role in "WRB"), "", "h", "h"]
        later = make_node("LSTM", roles, ["later"], hidden_size=3)
        branches = {
            "then_branch": body([first], (), ("first",)),
            "else_branch": body([later], (), ("later",)),
        }
        return body([make_node("If", ["fresh"], ["Z"], name="state", **branches)], (), ("Z",))

    choice = make_node(
        "If", ["rate"], ["Y"], name="rate", then_branch=network("a"), else_branch=network("b")
    )
    model = make_model([choice], tensors, inputs=("X", "h", "rate", "fresh"))
    nodes = convert.onnx_nodes(model)
    fed = ", fed=('initial_h', 'initial_c')"
    assert list(map(repr, nodes.values())) == [
        f"OnnxNode(LSTM(5, 3), path='rate/else_branch/state/else_branch'{fed})",
        "OnnxNode(LSTM(5, 3), path='rate/else_branch/state/then_branch')",
        f"OnnxNode(LSTM(4, 3), path='rate/then_branch/state/else_branch'{fed})",
        "OnnxNode(LSTM(4, 3), path='rate/then_branch/state/then_branch')",
    ]
    assert [name for name, node in nodes.items() if node.path[1] == "else_branch"] == [
        "rate/else_branch/state/else_branch/later",
        "rate/else_branch/state/then_branch/first",
    ]
    message = "'rate/else_branch/state/then_branch/first' (LSTM, input 5, hidden 3 in rate/else_bra"
    with pytest.raises(ValueError, match=re.escape(message)):
        convert.from_onnx(model)


def test_names() -> None:
    """Nodes of the same name go by their outputs, and if those are alike by where they are."""
    pytest.importorskip("onnx")
    branches = {
        f"{branch}_branch": body([lstm_node("Z", name="rnn")], (), ("Z",))
        for branch in ("then", "else")
    }
    nodes = [
        lstm_node("Y1", name="twice"),
        lstm_node("Y2", name="twice"),
        lstm_node("Y3"),
        make_node("If", ["flag"], ["Y"], name="choice", **branches),
    ]
    model = make_model(nodes, weights(), inputs=("X", "flag"))
    assert set(convert.onnx_nodes(model)) == {
        "Y1",
        "Y2",
        "Y3",
        "choice/then_branch/rnn",
        "choice/else_branch/rnn",
    }


def no_node(nodes: list[Any], tensors: dict[str, np.ndarray], **options: Any) -> str:
    """What is said of a model without LSTM and GRU nodes."""
    with pytest.raises(ValueError, match="path_or_model: no LSTM or GRU node; ") as caught:
        convert.from_onnx(make_model(nodes, tensors, **options))
    return str(caught.value).partition("; ")[2]


def test_no_node_but_others_of_the_kind() -> None:
    pytest.importorskip("onnx")
    rnn = make_node("RNN", ["X", "W", "R"], ["Y"], name="r", hidden_size=3)
    message = "the RNN node 'r' is a plain recurrent network without gates, a cell that Tidegate "
    assert no_node([rnn], weights()).startswith(message)
    quantised = make_node("QLinearGRU", ["X"], ["Y"], name="q", domain="com.example")
    message = (
        "the com.example.QLinearGRU node 'q' is quantised, and not one of the quantised operators "
        "that can be converted (com.microsoft.DynamicQuantizeLSTM): convert the float model that"
    )
    assert no_node([quantised], {}).startswith(message)
    foreign = make_node("LSTM", ["X", "W", "R"], ["Y"], domain="com.example", hidden_size=3)
    message = (
        "the com.example.LSTM node 'Y' is not an ONNX operator, but one of the domain 'com.example'"
    )
    assert no_node([foreign], weights()).startswith(message)
    aten = make_node("ATen", ["X"], ["Y"], domain="org.pytorch.aten", operator="lstm")
    assert "'Y' is PyTorch's own operator: export the module again" in no_node([aten], {})
    many = [make_node("RNN", ["X"], [f"Y{i}"]) for i in range(9)]
    assert no_node(many, {}).endswith("; and 4 more")
    nothing = no_node([make_node("Identity", ["X"], ["Y"])], {})
    assert nothing == "it has no other operator of a gated recurrent network either"

    model = make_model([quantised, lstm_node("Y2")], weights())
    same(convert.from_onnx(model), convert.onnx_lstm(**weights()))
    message = "node: got 'q', but that com.example.QLinearGRU node 'q' is quantised, "
    with pytest.raises(ValueError, match=message):
        convert.from_onnx(model, "q")


def cell_nodes(cell: str, h: str, out: str) -> list[Any]:
    """A step of an LSTM or a GRU in operators of its own, as exporters unroll them."""
    gates = [
        make_node("MatMul", ["X", "W"], ["a"]),
        make_node("Add", ["a", h], ["b"]),
        make_node("Split", ["b"], ["p", "q", "r"], axis=1),
        make_node("Sigmoid", ["p"], ["s"]),
        make_node("Tanh", ["q"], ["t"]),
    ]
    if cell == "LSTM":
        return [*gates, make_node("Mul", ["s", "t"], [out], name="first")]
    rest = [
        make_node("Sub", ["one", "s"], ["u"]),
        make_node("Mul", ["u", "t"], [out], name="first"),
    ]
    return gates + rest


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_no_node_but_unrolled_cells(cell: str) -> None:
    pytest.importorskip("onnx")
    message = no_node(cell_nodes(cell, "h", "Y"), {}, inputs=("X", "h"))
    assert message.startswith("but matrix products, and products of a sigmoid and a tanh, ")
    assert "written by hand: 1 in the main graph (the first: Mul node 'first'). Such " in message
    step = body(cell_nodes(cell, "h", "y"), ("i", "cond", "h"), ("cond", "y"))
    loop = make_node("Loop", ["", "", "h0"], ["Y"], name="steps", body=step)
    message = no_node([loop], {})
    assert "hand: 1 in steps/body (the first: Mul node 'first'). Such cells are not " in message
    assert "pass their weights to onnx_lstm or onnx_gru, or export a module with a whole" in message
    # A gate alone makes no recurrent network, nor do the activations.
    gates = cell_nodes(cell, "h", "Y")[1:]
    for nodes in (gates, cell_nodes(cell, "h", "Y")[:-1]):
        assert no_node(nodes, {}).startswith("it has no other operator")


def test_pytorchs_exports_of_cells_are_recognised(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("onnx")
    torch = pytest.importorskip("torch")

    class Cells(torch.nn.Module):
        def __init__(self, kind: Any) -> None:
            super().__init__()
            self.cell = kind(5, 7)

        def forward(self, x: Any) -> Any:
            state = self.cell(x[0])
            return self.cell(x[1], state)

    for kind in (torch.nn.LSTMCell, torch.nn.GRUCell):
        path = tmp_path / "cells.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(Cells(kind).eval(), (torch.zeros(2, 1, 5),), path, dynamo=False)
        with pytest.raises(
            ValueError, match=r"unrolled or written by hand: [24] in the main graph"
        ):
            convert.from_onnx(path)


# ---- Beside the layer ----------------------------------------------------------------------------


def test_constant_states_come_beside_the_layer(rng: np.random.Generator) -> None:
    pytest.importorskip("onnx")
    h_0 = rng.normal(size=(2, 4, 3)).astype(np.float32)
    tensors = {**weights(directions=2), "h": h_0, "z": np.zeros_like(h_0)}

    def nodes(names: list[str], **attributes: Any) -> Any:
        node = make_node(
            "LSTM",
            ["X", "W", "R", "B", *names],
            ["Y"],
            name="n",
            hidden_size=3,
            direction="bidirectional",
            **attributes,
        )
        return make_model([node], tensors, inputs=("X", "given", "sequence_lens"))

    got = convert.onnx_nodes(nodes(["", "h", "z"]))["n"]
    np.testing.assert_array_equal(got.state[0], h_0)
    assert got.state[1] is None
    assert got.fed == ()
    x = rng.normal(size=(5, 4, 2)).astype(np.float32)
    y, _ = got.layer(x, got.state)
    np.testing.assert_array_equal(y, got.layer(x, (h_0, np.zeros_like(h_0)))[0])
    with pytest.raises(ValueError, match="'n': has a constant initial state, which is not part"):
        convert.from_onnx(nodes(["", "h"]))

    zero = convert.onnx_nodes(nodes(["", "z", "z"]))["n"]
    assert (zero.state, zero.fed) == (None, ())
    same(convert.from_onnx(nodes(["", "z"])), zero.layer)
    fed = convert.onnx_nodes(nodes(["sequence_lens", "given", "h"]))["n"]
    assert fed.fed == ("sequence_lens", "initial_h")
    assert fed.state[0] is None
    np.testing.assert_array_equal(fed.state[1], h_0)

    tensors["h"] = h_0.transpose(1, 0, 2)  # batch first, in layout 1
    batch_first = convert.onnx_nodes(nodes(["", "h"], layout=1))["n"]
    assert batch_first.layer.batch_first
    np.testing.assert_array_equal(batch_first.state[0], h_0)
    message = r"initial_h: got shape \(4, 2, 3\), wanted \(2, N, 3\): W has \(2, 12, 2\), R has "
    with pytest.raises(ValueError, match=message):
        convert.onnx_nodes(nodes(["", "h"]))

    tensors["h"] = np.array([5, 0, 2, 5], np.int32)
    lengths = convert.onnx_nodes(nodes(["h"]))["n"].lengths
    np.testing.assert_array_equal(lengths, [5, 0, 2, 5])
    assert lengths.dtype == np.int64
    with pytest.raises(ValueError, match="constant sequence_lens"):
        convert.from_onnx(nodes(["h"]))
    with pytest.raises(ValueError, match=r"sequence_lens: got shape \(2, 4, 3\), wanted \(N,\)"):
        convert.onnx_nodes(nodes(["z"]))
    for wrong, message in (
        (np.zeros(4, np.float32), "got dtype float32, wanted integers"),
        (np.array([1, -1]), "got values from -1 to 1, wanted 0 to the number of steps"),
    ):
        tensors["h"] = wrong
        with pytest.raises(ValueError, match=f"'n': sequence_lens: {message}"):
            convert.onnx_nodes(nodes(["h"]))


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initialisers_that_are_inputs(ir_version: int) -> None:
    """Before IR version 4 all had to be; since then such a one is a default to be replaced."""
    pytest.importorskip("onnx")
    tensors = {**weights(), "h": np.ones((1, 1, 3), np.float32)}
    node = make_node("LSTM", ["X", "W", "R", "B", "", "h"], ["Y"], name="n", hidden_size=3)
    model = make_model([node], tensors, inputs=("X", *tensors), ir_version=ir_version)
    (got,) = convert.onnx_nodes(model).values()
    same(got.layer, convert.onnx_lstm(**weights()))
    if ir_version < 4:
        np.testing.assert_array_equal(got.state[0], tensors["h"])
    else:
        assert (got.state, got.fed) == (None, ("initial_h",))


def test_zeros_of_a_shape_known_only_at_run_time() -> None:
    """As exporters write the default state of a batch of any size."""
    pytest.importorskip("onnx")
    tensors = {**weights(), "one": np.array([1]), "axis": np.array(0), "i": np.array(1)}
    tensors |= {"three": np.array([3]), "zero": np.zeros((1, 1, 3), np.float32), "a": np.array([0])}
    nodes = [
        make_node("Shape", ["X"], ["s"]),
        make_node("Gather", ["s", "i"], ["n"]),
        make_node("Unsqueeze", ["n", "a"], ["n1"]),
        make_node("Concat", ["one", "n1", "three"], ["shape"], axis=0),
        make_node("ConstantOfShape", ["shape"], ["h"]),
        make_node("Expand", ["zero", "shape"], ["c0"]),
        make_node("Concat", ["c0", "c0"], ["c1"], axis=0),
        make_node("Slice", ["c1", "a", "one", "a"], ["c"]),
        make_node("LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y"], hidden_size=3),
    ]
    (node,) = convert.onnx_nodes(make_model(nodes, tensors)).values()
    assert (node.state, node.fed) == (None, ())
    tensors["zero"] = np.ones((1, 1, 3), np.float32)
    (node,) = convert.onnx_nodes(make_model(nodes, tensors)).values()
    assert (node.state, node.fed) == (None, ("initial_c",))


# ---- Sizes that must agree -----------------------------------------------------------------------


def sized(
    tensors: dict[str, Any], nodes: list[Any] | None = None, declared: Any = None, **attributes: Any
) -> Any:
    """An LSTM node of 2 inputs and 3 units with these tensors and declared shapes of inputs."""
    import onnx

    declared = {"X": None, **(declared or {})}
    arrays = {**weights(), **{name: np.asarray(array) for name, array in tensors.items()}}
    made = {name for node in nodes or [] for name in node.output}
    roles = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    names = [role if role in {*arrays, *made, *declared} else "" for role in roles]
    node = make_node("LSTM", names, ["Y"], name="n", **attributes)
    model = make_model([*(nodes or []), node], arrays)
    del model.graph.input[:]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in declared.items()
    )
    return model


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


DISAGREEING: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"W": zeros(1, 8, 2)},
        {},
        r"W: got shape \(1, 8, 2\), wanted \(1, 12, 2\), .*R has shape \(1, 12",
    ),
    ({"R": zeros(1, 12, 4)}, {}, r"W: got .*, wanted \(1, 16, 2\), .*R has shape \(1, 12, 4\)"),
    ({"R": zeros(2, 12, 3)}, {}, r"R: got shape \(2, 12, 3\), wanted \(1, 12, 3\), .*'forward'"),
    (
        {"B": zeros(1, 23)},
        {},
        r"B: got shape \(1, 23\), wanted \(1, 24\), .*R has shape \(1, 12, 3\)",
    ),
    ({"P": zeros(1, 8)}, {}, r"P: got shape \(1, 8\), wanted \(1, 9\), .*R has shape \(1, 12, 3\)"),
    (
        {"initial_h": zeros(1, 4, 7)},
        {},
        r"initial_h: got shape \(1, 4, 7\), wanted \(1, N, 3\): W has \(1, 12, 2\), R has \(1, 12",
    ),
    ({"initial_h": zeros(2, 4, 3)}, {}, r"initial_h: got shape \(2, 4, 3\), wanted \(1, N, 3\)"),
    ({"initial_h": zeros(4, 3)}, {}, r"initial_h: got shape \(4, 3\), wanted \(1, N, 3\)"),
    ({"initial_c": zeros(1, 4, 2)}, {}, r"initial_c: got shape \(1, 4, 2\), wanted \(1, N, 3\)"),
    ({"initial_h": zeros(1, 4, 3)}, {"layout": 1}, r"got shape \(1, 4, 3\), wanted \(N, 1, 3\)"),
    (
        {"initial_h": zeros(1, 4, 3), "initial_c": zeros(1, 5, 3)},
        {},
        r"initial_c: got shape \(1, 5, 3\), in which N is 5, but initial_h says 4",
    ),
    (
        {"initial_h": zeros(1, 4, 3), "sequence_lens": zeros(3, dtype=np.int32)},
        {},
        r"initial_h: got shape \(1, 4, 3\), in which N is 4, but sequence_lens says 3",
    ),
    ({"sequence_lens": zeros(1, 3, dtype=np.int32)}, {}, r"got shape \(1, 3\), wanted \(N,\)"),
]


@pytest.mark.parametrize(("tensors", "attributes", "message"), DISAGREEING)
def test_inputs_that_disagree(
    tensors: dict[str, Any], attributes: dict[str, Any], message: str
) -> None:
    """Also zeros, which are no part of the layer."""
    pytest.importorskip("onnx")
    for read in (convert.from_onnx, convert.onnx_nodes):
        with pytest.raises(ValueError, match=f"node 'n': .*{message}"):
            read(sized(tensors, **attributes))


def test_states_of_another_type_are_refused() -> None:
    pytest.importorskip("onnx")
    for state in (zeros(1, 4, 3, dtype=np.float64), zeros(1, 4, 3, dtype=np.int64)):
        with pytest.raises(TypeError, match=f"initial_h: got {state.dtype}, but W is float32"):
            convert.from_onnx(sized({"initial_h": state}))


def test_declared_inputs_must_agree() -> None:
    pytest.importorskip("onnx")
    lengths = np.array([5, 2, 3, 4], np.int32)

    def refused(message: str, declared: dict[str, Any], **tensors: Any) -> None:
        with pytest.raises(ValueError, match=message):
            convert.onnx_nodes(sized(tensors, declared=declared))

    for shape in ([5, 4, 2], ["T", "N", 2], [0, -1, "I"], None):
        node = convert.onnx_nodes(sized({"sequence_lens": lengths}, declared={"X": shape}))["n"]
        np.testing.assert_array_equal(node.lengths, lengths)
    refused(r"X: got shape \(\?, \?, 7\), wanted \(T, N, 2\): W has", {"X": ["T", "N", 7]})
    refused(r"X: got shape \(\?, 2\), wanted \(T, N, 2\)", {"X": ["T", 2]})
    message = r"sequence_lens: got shape \(4,\), in which N is 4, but X says 3"
    refused(message, {"X": ["T", 3, 2]}, sequence_lens=lengths)
    message = "sequence_lens: got values from 2 to 5, wanted 0 to 4, as X has it"
    refused(message, {"X": [4, 4, 2]}, sequence_lens=lengths)
    state = ["D", "N", 5]
    refused(r"initial_h: got shape \(\?, \?, 5\), wanted \(1, N, 3\)", {"initial_h": state})
    batch_first = sized({}, declared={"X": [4, 5, 2], "initial_h": [4, 1, 3]}, layout=1)
    assert convert.onnx_nodes(batch_first)["n"].fed == ("initial_h",)


def test_declared_inputs_of_another_type() -> None:
    pytest.importorskip("onnx")
    for role, declared, message in (
        ("X", 11, "X: is declared DOUBLE, wanted FLOAT, as W has it"),
        ("initial_h", 11, "initial_h: is declared DOUBLE, wanted FLOAT"),
        ("initial_c", 10, "initial_c: is declared FLOAT16, wanted FLOAT"),
        ("sequence_lens", 1, "sequence_lens: is declared FLOAT, wanted INT32$"),
        ("X", 99, "X: is declared 99, wanted FLOAT"),
    ):
        model = sized({}, declared={role: None})
        assert role in [value.name for value in model.graph.input]
        for value in model.graph.input:
            right = 6 if value.name == "sequence_lens" else 1
            value.type.tensor_type.elem_type = declared if value.name == role else right
        with pytest.raises(TypeError, match=f"^node 'n': {message}"):
            convert.from_onnx(model)


def test_names_that_are_given_twice() -> None:
    onnx = pytest.importorskip("onnx")
    make_tensor = onnx.numpy_helper.from_array
    one = make_node("LSTM", ["X", "W", "R"], ["Y"], name="n", hidden_size=3)

    def refused(name: str, model: Any) -> None:
        with pytest.raises(ValueError, match=rf"'{name}': several inputs, initialisers or nodes"):
            convert.from_onnx(model)

    tensors = {role: array for role, array in weights().items() if role != "B"}
    for name in tensors:
        model = make_model([one], tensors)
        model.graph.initializer.append(make_tensor(tensors[name] + 1, name))
        refused(name, model)
    made = make_node("Identity", ["W0"], ["W"])
    refused("W", make_model([made, one], {**tensors, "W0": tensors["W"]}))
    without = {"W0": tensors["W"], "R": tensors["R"]}
    refused("W", make_model([made, made, one], without))
    refused("W", make_model([made, one], without, inputs=("X", "W")))
    refused("X", make_model([one], tensors, inputs=("X", "X")))
    same(convert.from_onnx(make_model([made, one], without)), convert.onnx_lstm(**tensors))


RUN_TIME_SHAPE = [
    ("Shape", ["X"], ["s"]),
    ("Gather", ["s", "i"], ["n"]),
    ("Unsqueeze", ["n", "a"], ["n1"]),
]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["one", "n1", "three"], ""),
        (["one", "n1", "seven"], r"got shape \(1, \?, 7\), wanted \(1, N, 3\)"),
        (["seven", "n1", "three"], r"got shape \(7, \?, 3\), wanted \(1, N, 3\)"),
        (["one", "n1", "n1"], ""),
        (["seven", "n1", "n1"], r"got shape \(7, \?, \?\), wanted \(1, N, 3\)"),
        (["s"], ""),
    ],
)
@pytest.mark.parametrize("through", [False, True])
def test_zeros_of_a_shape_that_is_partly_known(
    parts: list[str], message: str, through: bool
) -> None:
    pytest.importorskip("onnx")
    numbers = {"one": [1], "three": [3], "seven": [7], "a": [0], "i": 1}
    tensors = {name: np.array(value) for name, value in numbers.items()}
    tensors["zero"] = zeros(1, 1)
    out = "h" if through else "initial_h"
    fills = [
        make_node("ConstantOfShape", ["shape"], [out]),
        make_node("Expand", ["zero", "shape"], [out]),
    ]
    for fill in fills:
        nodes = [make_node(*arguments) for arguments in RUN_TIME_SHAPE]
        nodes += [make_node("Concat", parts, ["shape"], axis=0), fill]
        if through:
            nodes += [make_node("Identity", ["h"], ["initial_h"])]
        model = sized(tensors, nodes)
        if message:
            with pytest.raises(ValueError, match=f"initial_h: {message}"):
                convert.from_onnx(model)
        else:
            same(convert.from_onnx(model), convert.onnx_lstm(**weights()))


def test_expanded_zeros_keep_the_sizes_they_have() -> None:
    pytest.importorskip("onnx")
    tensors = {"zero": zeros(7), "one": np.array([1]), "i": np.array(1), "a": np.array([0])}
    nodes = [make_node(*arguments) for arguments in RUN_TIME_SHAPE]
    nodes += [
        make_node("Concat", ["one", "n1", "one"], ["shape"], axis=0),
        make_node("Expand", ["zero", "shape"], ["initial_h"]),
    ]
    with pytest.raises(ValueError, match=r"initial_h: got shape \(1, \?, 7\), wanted \(1, N, 3\)"):
        convert.from_onnx(sized(tensors, nodes))


# ---- Everything that the operators can say -------------------------------------------------------

VERSIONS = {"LSTM": (1, 7, 14, 22), "GRU": (1, 3, 7, 14, 22)}
# A value that is not the default, and what becomes of it: options of the layer, or an error.
ATTRIBUTES: dict[str, tuple[Any, dict[str, Any] | str]] = {
    "activations": (["HardSigmoid", "Softsign", "Relu"], {"recurrent_activation": "hard_sigmoid"}),
    "activation_alpha": ([0.5], {"recurrent_activation": ("hard_sigmoid", 0.5, 0.5)}),
    "activation_beta": ([0.25], {"recurrent_activation": ("hard_sigmoid", 0.2, 0.25)}),
    "clip": (0.5, {"clip": 0.5}),
    "direction": ("reverse", {"reverse": True}),
    "hidden_size": (4, "hidden_size: got 4, but R has 3 columns"),
    "input_forget": (1, {"input_forget": True}),
    "layout": (1, {"batch_first": True}),
    "linear_before_reset": (1, {"reset_after": True}),
    "output_sequence": (1, {}),  # whether Y is an output: a layer returns it in any case
}
WITH_ACTIVATIONS = ("activation_alpha", "activation_beta")


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_every_version_of_the_operators_is_known(op: str) -> None:
    onnx = pytest.importorskip("onnx")
    schemas = [
        schema
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == op and schema.domain == ""
    ]
    assert {schema.since_version for schema in schemas} == set(VERSIONS[op])
    for schema in schemas:
        assert set(schema.attributes) <= set(ATTRIBUTES)
        roles = golden_cases.ONNX_INPUTS if op == "LSTM" else golden_cases.ONNX_INPUTS[:6]
        assert tuple(i.name for i in schema.inputs) == tuple(roles)
        outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]  # y, h_n and c_n of a call
        assert [o.name for o in schema.outputs] == outputs


@pytest.mark.parametrize(
    ("op", "version"), [(op, version) for op in VERSIONS for version in VERSIONS[op]]
)
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_counts(op: str, version: int, name: str) -> None:
    onnx = pytest.importorskip("onnx")
    value, wanted = ATTRIBUTES[name]
    attributes = {name: value}
    if name in ("activations", *WITH_ACTIVATIONS):
        names = ATTRIBUTES["activations"][0][: 3 if op == "LSTM" else 2]
        attributes["activations"] = names
    node = make_node(op, ["X", "W", "R", "B"], ["Y", "Y_h"], **attributes)
    model = make_model([node], weights(op), opset=version)
    schema = onnx.defs.get_schema(op, version, "")
    if name not in schema.attributes:
        message = rf"Unrecognized attribute: {name} for operator {op} \(in opset {version}\)"
        with pytest.raises(ValueError, match=f"node 'Y': {message}"):
            convert.from_onnx(model)
    elif isinstance(wanted, str):
        with pytest.raises(ValueError, match=f"node 'Y': {wanted}"):
            convert.from_onnx(model)
    else:
        layer = convert.from_onnx(model)
        assert {option: getattr(layer, option) for option in wanted} == wanted
        del node.attribute[:]
        plain = convert.from_onnx(make_model([node], weights(op), opset=version))
        assert (repr(layer) != repr(plain)) == bool(wanted)


@pytest.mark.parametrize(
    ("role", "value", "found"),
    [
        ("B", None, lambda node: not node.layer.bias),
        ("P", np.ones((1, 9), np.float32), lambda node: node.layer.peephole),
        ("sequence_lens", np.array([2, 1]), lambda node: list(node.lengths) == [2, 1]),
        ("initial_h", np.ones((1, 2, 3), np.float32), lambda node: node.state[0].all()),
        ("initial_c", np.ones((1, 2, 3), np.float32), lambda node: node.state[1].all()),
    ],
)
def test_every_input_counts(role: str, value: Any, found: Any) -> None:
    pytest.importorskip("onnx")
    inputs = {**weights(), role: value}
    model = node_model("LSTM", {k: a for k, a in inputs.items() if a is not None}, {})
    assert found(convert.onnx_nodes(model)["the node"])
    if value is not None:  # and where the graph is given it
        model = node_model("LSTM", inputs, {})
        model.graph.input.add(name=role)
        for tensor in list(model.graph.initializer):
            if tensor.name == role:
                model.graph.initializer.remove(tensor)
        if role == "P":
            with pytest.raises(ValueError, match="P: got 'P', which is not constant: "):
                convert.onnx_nodes(model)
        else:
            assert convert.onnx_nodes(model)["the node"].fed == (role,)


def test_nodes_that_break_the_rules() -> None:
    onnx = pytest.importorskip("onnx")

    def refused(message: str, inputs: list[str], **attributes: Any) -> Any:
        node = make_node("LSTM", inputs, ["Y"], **attributes)
        with pytest.raises(ValueError, match=message):
            convert.from_onnx(make_model([node], {**weights(), "h": zeros(1)}))
        return node

    wr = ["X", "W", "R"]
    refused("Unrecognized attribute: projection for operator LSTM", wr, projection=1)
    refused("Mismatched attribute type.*clip", wr, clip=1)
    refused("has input size 9 not in range", [*wr, *["h"] * 6])
    refused("input 0 is marked single but has an empty string", ["", "W", "R"])
    refused("has input size 2 not in range", ["X", "W"])
    refused("direction: got '', wanted one of 'forward', ", wr, direction="")
    node = make_node("LSTM", wr, ["Y"], clip=1.0)
    node.attribute.append(node.attribute[0])
    with pytest.raises(ValueError, match="'clip' appeared multiple times"):
        convert.from_onnx(make_model([node], weights()))
    gru = make_node("GRU", wr, ["Y", "Y_h", "Y_c"])
    with pytest.raises(ValueError, match="has output size 3 not in range"):
        convert.from_onnx(make_model([gru], weights("GRU")))
    node = onnx.helper.make_node("LSTM", wr, ["Y"])
    node.attribute.add(name="clip", type=1, ref_attr_name="outer")
    with pytest.raises(ValueError, match="clip"):
        convert.from_onnx(make_model([node], weights()))


# ---- Options -------------------------------------------------------------------------------------


def test_missing_inputs_and_options() -> None:
    w = weights("GRU")
    assert repr(convert.onnx_gru(**w)) == "GRU(2, 3, reset_after=False)"
    gru = convert.onnx_gru(w["W"], w["R"], linear_before_reset=1, direction="reverse", layout=1)
    assert repr(gru) == "GRU(2, 3, bias=False, reverse=True, batch_first=True)"
    w = weights(directions=2)
    p = np.ones((2, 9), np.float32)
    lstm = convert.onnx_lstm(**w, P=p, direction="bidirectional", clip=2.0, input_forget=1)
    assert (lstm.bidirectional, lstm.peephole, lstm.clip, lstm.input_forget) == (
        True,
        True,
        2,
        True,
    )


def test_a_clip_beyond_what_saturates_is_none() -> None:
    w = weights()
    assert convert.onnx_lstm(**w, clip=749.0).clip == 749
    assert convert.onnx_lstm(**w, clip=750.0).clip is None
    relu = convert.onnx_lstm(**w, clip=9999.0, activations=["Sigmoid", "Relu", "Tanh"])
    assert relu.clip == 9999
    layer = convert.onnx_lstm(**{role: 1e4 * array.astype(float) for role, array in w.items()})
    x = np.linspace(-1, 1, 20).reshape(5, 2, 2)
    clipped = tg.LSTM(2, 3, clip=750.0, dtype=np.float64)
    clipped.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(layer(x)[0], clipped(x)[0])


def test_activations() -> None:
    def options(*names: str, **attributes: Any) -> tuple[Any, ...]:
        lstm = convert.onnx_lstm(**weights(), activations=names, **attributes)
        return lstm.recurrent_activation, lstm.activation, lstm.output_activation

    assert options("Sigmoid", "Tanh", "Tanh") == options("sigmoid", "TANH", "tanh")
    assert options("Sigmoid", "Tanh", "Tanh") == ("sigmoid", "tanh", None)
    assert options("HardSigmoid", "Softsign", "Tanh") == ("hard_sigmoid", "softsign", "tanh")
    assert options("Sigmoid", "Tanh", "Relu")[2] == "relu"
    # Float32 attributes: 0.2 is another number in them, and means the default all the same.
    got = options(
        "HardSigmoid",
        "LeakyRelu",
        "ScaledTanh",
        activation_alpha=[float(np.float32(0.2)), 0.25, 1.5],
        activation_beta=[0.5, 0.75],
    )
    assert got == ("hard_sigmoid", ("leaky_relu", 0.25), ("scaled_tanh", 1.5, 0.75))
    message = r"activation_alpha: got \[0.5\], which has no effect: 'Sigmoid', 'Tanh', 'Tanh' have"
    with pytest.warns(UserWarning, match=message):
        assert options("Sigmoid", "Tanh", "Tanh", activation_alpha=[0.5])[0] == "sigmoid"
    with pytest.warns(UserWarning, match="activation_beta: got"):
        convert.onnx_gru(**weights("GRU"), activation_beta=[1.0])
    assert options("Sigmoid", "Tanh", "Tanh", activation_alpha=[0, 0, 0]) == (
        "sigmoid",
        "tanh",
        None,
    )
    gru = convert.onnx_gru(
        **weights("GRU", directions=2),
        direction="bidirectional",
        activations=["Elu", "Affine"] * 2,
        activation_alpha=[0.5, 2, 0.5, 2],
        activation_beta=[-1, -1],
    )
    assert (gru.recurrent_activation, gru.activation) == (("elu", 0.5), ("affine", 2, -1))


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("direction: got 'sideways', wanted one of 'forward', ", {"direction": "sideways"}),
    (r"W: got shape \(1, 12, 2\), wanted \(2, 12, 2\), for", {"direction": "bidirectional"}),
    ("layout: got 2, wanted 0 or 1", {"layout": 2}),
    ("input_forget: got -1, wanted 0 or 1", {"input_forget": -1}),
    ("clip: got -1.0, wanted a number above 0", {"clip": -1.0}),
    ("clip: got nan, wanted a number above 0", {"clip": float("nan")}),
    ("hidden_size: got 4, but R has 3 columns", {"hidden_size": 4}),
    ("activations: got 2, wanted 3 for each", {"activations": ["Sigmoid", "Tanh"]}),
    ("activations: got 'Swish', wanted one of 'Sigmoid', ", {"activations": ["Swish"] * 3}),
    (
        "activation_alpha: got none for Affine, for which implementations have different",
        {"activations": ["Sigmoid", "Affine", "Tanh"]},
    ),
    ("alpha: got none for ThresholdedRelu", {"activations": ["ThresholdedRelu"] * 3}),
    (
        "activation_beta: got none for ScaledTanh",
        {"activations": ["ScaledTanh"] * 3, "activation_alpha": [1, 1, 1]},
    ),
    (
        "activation_alpha: got 3 values, 2 more than 'Elu', 'Tanh', 'Tanh' have",
        {"activations": ["Elu", "Tanh", "Tanh"], "activation_alpha": [1, 0, 0]},
    ),
]


@pytest.mark.parametrize(("message", "attributes"), REFUSED, ids=[m for m, _ in REFUSED])
def test_refused_options(message: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        convert.onnx_lstm(**weights(), **attributes)


def test_refused_arrays() -> None:
    w = weights()
    with pytest.raises(TypeError, match="W: got list, wanted an ndarray"):
        convert.onnx_lstm([[[1.0]]], w["R"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="R: got None, wanted an ndarray"):
        convert.onnx_lstm(w["W"], None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="B: got dtype int64, wanted float32 or float64"):
        convert.onnx_lstm(w["W"], w["R"], np.zeros((1, 24), int))
    with pytest.raises(TypeError, match="weights: got W float32, R float64, wanted one dtype"):
        convert.onnx_lstm(w["W"], w["R"].astype(float))
    with pytest.raises(ValueError, match=r"R: got shape \(12, 3\), wanted three axes"):
        convert.onnx_lstm(w["W"], w["R"][0])
    with pytest.raises(ValueError, match=r"P: got shape \(1, 8\), wanted \(1, 9\), for a hidden"):
        convert.onnx_lstm(**w, P=np.zeros((1, 8), np.float32))


def test_folders_and_special_files(tmp_path: pathlib.Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "folder"
    folder.mkdir()

    def refused(message: str, path: Any = folder) -> None:
        for read in (convert.from_onnx, convert.onnx_nodes):
            with pytest.raises(ValueError, match=message):
                read(path)

    refused("is a folder, wanted a file; its .onnx files: none")
    onnx.save(make_model([], {}), folder / "model.onnx")
    refused("is a folder, wanted a file; its .onnx files: 'model.onnx'")
    refused("not an ONNX model, or an empty one: its graph has no nodes", folder / "model.onnx")
    os.mkfifo(tmp_path / "fifo")
    refused("path_or_model: .*regular file", tmp_path / "fifo")
    refused("path_or_model: .*regular file", "/dev/zero")


def test_refused_models(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("onnx")
    for wrong in (3, None, b"bytes"):
        with pytest.raises(TypeError, match=r"path_or_model: got .*, wanted a path or an onnx"):
            convert.from_onnx(wrong)  # type: ignore[arg-type]
    model = node_model("LSTM", weights(), {"hidden_size": 3})
    with pytest.raises(TypeError, match="node: got int, wanted a str or None"):
        convert.from_onnx(model, 3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        convert.from_onnx(tmp_path / "absent.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"damaged\.onnx: not an ONNX model"):
        convert.from_onnx(damaged)

    def refused(message: str, nodes: list[Any], tensors: dict[str, np.ndarray]) -> None:
        with pytest.raises(ValueError, match=message):
            convert.from_onnx(make_model(nodes, tensors))

    w = weights()
    lstm = make_node("LSTM", ["X", "W", "R"], ["Y"], name="n", hidden_size=3)
    refused("node 'n': 'R': nothing in the graph has this name", [lstm], {"W": w["W"]})
    softmax = make_node("Softmax", ["a"], ["b"], name="s")
    negative = make_node("Neg", ["b"], ["W"])
    message = (
        "W: got 'W', which is not constant: it comes from the Softmax node 's', an operator that "
        "is not folded here: fold constants first, with onnxsim or "
    )
    refused(message, [softmax, negative, lstm], {"a": w["W"], "R": w["R"]})
    old = make_node("Add", ["a", "a"], ["W"], name="old")
    with pytest.raises(
        ValueError, match="the Add node 'old', which is not folded for opsets before 7"
    ):
        convert.from_onnx(make_model([old, lstm], {"a": w["W"], "R": w["R"]}, opset=6))
    given = make_node("LSTM", ["X", "Z", "R"], ["Y"], name="n", hidden_size=3)
    total = make_node("Add", ["R", "X"], ["Z"])
    message = "W: got 'Z', which is not constant: it depends on the input 'X'"
    refused(message, [total, given], w)
    inside = body([total, given], ("X",), ("Y",))
    loop = make_node("Loop", [], ["L"], name="loop", body=inside)
    refused(f"{message} of the graph in loop/body", [loop], w)
    reshape = make_node("Reshape", ["a", "s"], ["W"])
    tensors = {"a": w["W"], "R": w["R"], "s": np.array([7])}
    refused("Reshape node 'W': cannot be evaluated: ", [reshape, lstm], tensors)
    ring = [make_node("Identity", ["W"], ["a"]), make_node("Identity", ["a"], ["W"])]
    refused("'n': 'W': depends on itself", [*ring, lstm], {"R": w["R"]})


# ---- Properties ----------------------------------------------------------------------------------

SMALL = st.integers(0, 6)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_arrays_convert_or_are_refused_by_name(data: st.DataObject) -> None:
    op = data.draw(st.sampled_from(["LSTM", "GRU"]))
    direction = data.draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    arrays = weights(op, directions=2 if direction == "bidirectional" else 1)
    if op == "LSTM":
        arrays["P"] = np.zeros((arrays["W"].shape[0], 9), np.float32)
    for role in data.draw(st.lists(st.sampled_from(sorted(arrays)), max_size=2)):
        shape = tuple(data.draw(st.lists(SMALL, max_size=4)))
        dtype = data.draw(st.sampled_from([np.float32, np.float64, np.int8, np.complex64, object]))
        arrays[role] = np.zeros(shape, dtype)
    message = ""
    try:
        layer = raw(op, arrays, {"direction": direction})
    except (TypeError, ValueError) as error:
        message = str(error)
    if message:
        assert message.split(":")[0] in (*arrays, "weights")
    else:
        assert layer.params.flat.size == sum(array.size for array in arrays.values())
        assert layer.bidirectional == (len(arrays["W"]) == 2)


@pytest.fixture(scope="module")
def serialised() -> bytes:
    pytest.importorskip("onnx")
    tensors = {**weights(), "h": np.ones((1, 1, 3), np.float32), "i": np.array([0])}
    tensors["q"] = (100 * tensors.pop("W")[0].T).astype(np.int8)
    tensors["scale"] = np.full(12, 0.01, np.float32)
    nodes = [
        make_node("DequantizeLinear", ["q", "scale"], ["a"]),
        make_node("Transpose", ["a"], ["b"]),
        make_node("Unsqueeze", ["b", "i"], ["c"]),
        make_node("Mul", ["c", "c"], ["W"]),
        make_node(
            "LSTM",
            ["X", "W", "R", "B", "", "h"],
            ["Y"],
            hidden_size=3,
            clip=2.0,
            activations=["HardSigmoid", "Tanh", "Tanh"],
            activation_alpha=[0.3],
        ),
    ]
    return make_model(nodes, tensors).SerializeToString()


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.integers(0, 400),
)
def test_damaged_models_convert_or_are_refused(
    serialised: bytes, edits: list[tuple[int, int]], end: int
) -> None:
    onnx = pytest.importorskip("onnx")
    damaged = bytearray(serialised)
    for position, value in edits:
        damaged[position % len(damaged)] = value
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(damaged[: len(damaged) - (end if end < 100 else 0)]))
    except Exception:  # protobuf's DecodeError
        return
    with contextlib.suppress(TypeError, ValueError):
        convert.onnx_nodes(model)


# ---- ONNX Runtime --------------------------------------------------------------------------------


def ort_run(model: Any, feeds: dict[str, np.ndarray], outputs: list[str] | None = None) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    source = str(model) if isinstance(model, pathlib.Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


def ort_attributes() -> list[dict[str, Any]]:
    activations = [
        {"activations": ["HardSigmoid", "Softsign", "Tanh"]},
        {"activations": ["HardSigmoid", "Tanh", "Relu"], "activation_alpha": [1 / 6]},
        {"activations": ["Sigmoid", "LeakyRelu", "Elu"], "activation_alpha": [0.05, 0.5]},
        {"activations": ["Sigmoid", "Softplus", "Tanh"]},
        {
            "activations": ["Sigmoid", "ScaledTanh", "ThresholdedRelu"],
            "activation_alpha": [1.7, 0.3],
            "activation_beta": [0.6],
        },
        {"activations": ["Tanh", "Affine", "Tanh"], "activation_alpha": [0.7]},
    ]
    return [{}, {"clip": 0.5}, {"input_forget": 1}, {"clip": 0.7, "input_forget": 1}, *activations]


@pytest.mark.parametrize("attributes", ort_attributes(), ids=str)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("peephole", [False, True])
def test_lstm_does_as_onnx_runtime_does(
    attributes: dict[str, Any], direction: str, peephole: bool, rng: np.random.Generator
) -> None:
    pytest.importorskip("onnx")
    check_against_ort("LSTM", attributes, direction, peephole, rng)


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("linear_before_reset", [0, 1])
@pytest.mark.parametrize("names", [None, ["HardSigmoid", "Softsign"]])
def test_gru_does_as_onnx_runtime_does(
    clip: float | None, direction: str, linear_before_reset: int, names: Any, rng: Any
) -> None:
    pytest.importorskip("onnx")
    attributes: dict[str, Any] = {"linear_before_reset": linear_before_reset}
    attributes |= {} if clip is None else {"clip": clip}
    attributes |= {} if names is None else {"activations": names}
    check_against_ort("GRU", attributes, direction, False, rng)


def check_against_ort(
    op: str, attributes: dict[str, Any], direction: str, peephole: bool, rng: Any
) -> None:
    """With bias, lengths and initial states; rows of length 0 aside, whose last state differs."""
    directions = 2 if direction == "bidirectional" else 1
    attributes = {"hidden_size": 3, "direction": direction, **attributes}
    for key in ("activations", "activation_alpha", "activation_beta"):
        if key in attributes:
            attributes[key] = list(attributes[key]) * directions
    inputs = weights(op, directions=directions)
    if peephole:
        inputs["P"] = rng.uniform(-1, 1, (directions, 9)).astype(np.float32)
    for role in ("initial_h", "initial_c")[: 2 if op == "LSTM" else 1]:
        inputs[role] = rng.normal(size=(directions, 4, 3)).astype(np.float32)
    inputs["sequence_lens"] = np.array([5, 2, 1, 4])
    x = rng.normal(size=(5, 4, 2)).astype(np.float32)
    model = node_model(op, inputs, attributes)
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    for name in outputs[1:]:
        model.graph.output.add(name=name).type.tensor_type.elem_type = 1
    wanted = ort_run(model, {"X": x}, outputs)
    (node,) = convert.onnx_nodes(model).values()
    y, state = node.layer(x, node.state, lengths=node.lengths)
    got = [y.reshape(5, 4, directions, 3).transpose(0, 2, 1, 3)]
    got += list(state) if isinstance(state, tuple) else [state]
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)


# ---- Back ----------------------------------------------------------------------------------------

LSTMS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
    {"bias": False, "reverse": True, "num_layers": 2},
    {"peephole": True, "bidirectional": True, "clip": 0.75},
    {"input_forget": True, "recurrent_activation": ("hard_sigmoid", 0.25, 0.5)},
    {"activation": "softsign", "output_activation": ("leaky_relu", 0.125)},
]
GRUS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "reset_after": False},
    {"update_gate": "write", "num_layers": 2},
    {"bias": False, "reverse": True, "update_gate": "write", "reset_after": False},
    {"recurrent_activation": "hard_sigmoid", "activation": "relu", "clip": 1.5},
]
LAYERS = [(tg.LSTM, options) for options in LSTMS] + [(tg.GRU, options) for options in GRUS]


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)
@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("given_lengths", [False, True])
def test_to_onnx_and_back(
    kind: Any,
    options: dict[str, Any],
    given_state: bool,
    given_lengths: bool,
    tmp_path: pathlib.Path,
    rng: np.random.Generator,
) -> None:
    onnx = pytest.importorskip("onnx")
    layer = kind(4, 5, seed=1, **options)
    path = tmp_path / "layer.onnx"
    convert.to_onnx(layer, path, state=given_state, lengths=given_lengths)
    onnx.checker.check_model(path, full_check=True)

    nodes = convert.onnx_nodes(path)
    assert len(nodes) == layer.num_layers
    write = options.get("update_gate") == "write"
    for k, node in enumerate(nodes.values()):
        fed = ("sequence_lens",) if given_lengths else ()
        states = ("initial_h", "initial_c")[: 2 if kind is tg.LSTM else 1]
        assert node.fed == (fed + states if given_state else fed)
        for option in ("bidirectional", "reverse", "clip", "recurrent_activation", "activation"):
            assert getattr(node.layer, option) == getattr(layer, option)
        for name, array in node.layer.params.items():
            wanted = layer.params[name.replace("_l0", f"_l{k}")].copy()
            if write:
                wanted[5:10] *= -1
            assert array.tobytes() == wanted.tobytes()

    x = rng.normal(size=(6, 3, 4)).astype(np.float32)
    x = x.transpose(1, 0, 2).copy() if layer.batch_first else x
    feeds, state, lengths = {"x": x}, None, None
    if given_state:
        directions = 2 if layer.bidirectional else 1
        shape = (layer.num_layers * directions, 3, 5)
        parts = [rng.normal(size=shape).astype(np.float32) for _ in "hc"]
        state = tuple(parts) if kind is tg.LSTM else parts[0]
        feeds |= dict(zip(("h_0", "c_0"), parts if kind is tg.LSTM else parts[:1]))
    if given_lengths:
        lengths = np.array([6, 1, 4])
        feeds["lengths"] = lengths.astype(np.int32)
    wanted = layer(x, state, lengths=lengths)
    wanted = [wanted[0], *(wanted[1] if kind is tg.LSTM else wanted[1:])]
    for ours, theirs in zip(wanted, ort_run(path, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=3e-6, atol=3e-6)


def test_to_onnx_of_doubles(tmp_path: pathlib.Path) -> None:
    onnx = pytest.importorskip("onnx")
    layer = tg.LSTM(4, 5, seed=0, dtype=np.float64)
    path = tmp_path / "layer.onnx"
    convert.to_onnx(layer, path)
    onnx.checker.check_model(path, full_check=True)
    same(convert.from_onnx(path), layer)


def test_to_onnx_refuses(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "layer.onnx"
    with pytest.raises(ValueError, match="ONNX's LSTM has no proj_size=2"):
        convert.to_onnx(tg.LSTM(4, 5, proj_size=2), path)
    with pytest.raises(TypeError, match="layer: got int, wanted an LSTM or a GRU"):
        convert.to_onnx(3, path)  # type: ignore[arg-type]
    mgu: Any = tg.MGU(4, 5)
    for refused in (mgu.to_onnx, lambda path: convert.to_onnx(mgu, path)):
        with pytest.raises(TypeError, match=r"layer: got an MGU, which .*ONNX.*tidegate\.save"):
            refused(path)
    with pytest.raises(TypeError, match="path: got int, wanted a str or a path"):
        convert.to_onnx(tg.LSTM(4, 5), 3)  # type: ignore[arg-type]
    assert not path.exists()


def test_to_onnx_writes_regular_files_alone(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("onnx")
    layer = tg.GRU(4, 5, seed=0)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to(fifo)
    for path, kind in (
        (fifo, "a FIFO"),
        (tmp_path / "link", "a FIFO"),
        (pathlib.Path("/dev/null"), "a character device"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(ValueError, match=rf"^path: .* is {kind}, wanted a regular file"):
            convert.to_onnx(layer, path)
    (tmp_path / "dangling").symlink_to(tmp_path / "new.onnx")
    for path in (tmp_path / "dangling", tmp_path / "new.onnx"):
        convert.to_onnx(layer, path)
        same(convert.from_onnx(tmp_path / "new.onnx"), layer)


def test_without_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (
        lambda: convert.from_onnx(tmp_path / "model.onnx"),
        lambda: convert.to_onnx(tg.LSTM(4, 5), tmp_path / "model.onnx"),
    ):
        with pytest.raises(ImportError, match=r"needs onnx: pip install 'tidegate\[onnx\]'"):
            call()


@pytest.mark.parametrize(
    "activation",
    [
        "sigmoid",
        "tanh",
        "relu",
        "hard_sigmoid",
        "affine",
        "leaky_relu",
        "thresholded_relu",
        "scaled_tanh",
        "elu",
        "softsign",
        "softplus",
    ],
)
def test_every_activation_goes_to_onnx_and_back(
    activation: str, tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    pytest.importorskip("onnx")
    layer = tg.GRU(4, 5, activation=activation, seed=0)
    path = tmp_path / "layer.onnx"
    convert.to_onnx(layer, path)
    same(convert.from_onnx(path), layer)
    x = rng.normal(size=(3, 2, 4)).astype(np.float32)
    y, _ = ort_run(path, {"x": x})
    np.testing.assert_allclose(layer(x)[0], y, rtol=2e-6, atol=2e-6)
