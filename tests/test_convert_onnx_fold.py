# Constants of ONNX models: what operators make of stored tensors, and the bounds of that.
from __future__ import annotations

import os
import pathlib
import tracemalloc
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnx_models import make_model, make_node, node_model, same, weights
from tidegate import convert
from tidegate.convert import _onnx_fold

onnx = pytest.importorskip("onnx")

# ---- Operators -----------------------------------------------------------------------------------


def chains() -> dict[str, tuple[int, list[Any], dict[str, np.ndarray]]]:
    """Opset, nodes that make W out of something, and that something."""
    from_array, w = onnx.numpy_helper.from_array, weights()["W"]

    def one(*args: Any, **attributes: Any) -> Any:
        return make_node(*args, **attributes)

    half = w.astype(np.float16)
    return {
        "Constant": (14, [one("Constant", [], ["W"], value=from_array(w))], {}),
        "Transpose": (14, [one("Transpose", ["a"], ["W"], perm=[2, 1, 0])], {"a": w.T.copy()}),
        "Unsqueeze attribute": (11, [one("Unsqueeze", ["a"], ["W"], axes=[0])], {"a": w[0]}),
        "Unsqueeze input": (
            14,
            [
                one("Constant", [], ["axes"], value_ints=[0]),
                one("Unsqueeze", ["a", "axes"], ["W"]),
            ],
            {"a": w[0]},
        ),
        "Squeeze": (11, [one("Squeeze", ["a"], ["W"], axes=[1])], {"a": w[:, None]}),
        "Cast": (14, [one("Cast", ["a"], ["W"], to=1)], {"a": w.astype(np.float64)}),
        "Cast of half": (14, [one("Cast", ["a"], ["W"], to=1)], {"a": half}),
        "Identity": (14, [one("Identity", ["a"], ["b"]), one("Identity", ["b"], ["W"])], {"a": w}),
        "Reshape": (
            14,
            [one("Reshape", ["a", "s"], ["W"])],
            {"a": w.reshape(-1), "s": np.array([1, -1, 2])},
        ),
        "Concat and Slice": (
            14,
            [
                one("Slice", ["a", "zero", "six", "zero"], ["b"]),
                one("Slice", ["a", "six", "all", "zero"], ["c"]),
                one("Concat", ["b", "c"], ["d"], axis=0),
                one("Unsqueeze", ["d", "zero"], ["W"]),
            ],
            {
                "a": w[0],
                "zero": np.array([0]),
                "six": np.array([6]),
                "all": np.array([99]),
            },
        ),
        "Split": (
            11,
            [one("Split", ["a"], ["", "W"], axis=0, split=[1, 1])],
            {"a": np.concatenate([w + 1, w])},
        ),
        "Gather": (
            14,
            [one("Gather", ["a", "i"], ["W"], axis=1)],
            {"a": w[:, ::-1].copy(), "i": np.arange(11, -1, -1)},
        ),
        "Transpose, Cast, Unsqueeze": (
            11,
            [
                one("Transpose", ["a"], ["b"]),
                one("Cast", ["b"], ["c"], to=1),
                one("Unsqueeze", ["c"], ["W"], axes=[0]),
            ],
            {"a": w[0].T.astype(np.float64)},
        ),
    }


CHAINS = [
    "Constant",
    "Transpose",
    "Unsqueeze attribute",
    "Unsqueeze input",
    "Squeeze",
    "Cast",
    "Cast of half",
    "Identity",
    "Reshape",
    "Concat and Slice",
    "Split",
    "Gather",
    "Transpose, Cast, Unsqueeze",
]


def chain_model(chain: str) -> Any:
    opset, nodes, tensors = chains()[chain]
    w = weights()
    lstm = make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=3)
    return make_model([*nodes, lstm], {**tensors, "R": w["R"], "B": w["B"]}, opset=opset)


@pytest.mark.parametrize("chain", CHAINS)
def test_weights_behind_operators(chain: str) -> None:
    model, w = chain_model(chain), weights()
    if chain == "Cast of half":
        w["W"] = w["W"].astype(np.float16).astype(np.float32)
    same(convert.from_onnx(model), convert.onnx_lstm(**w))


def test_every_chain_is_tried() -> None:
    assert list(chains()) == CHAINS


SMALL = np.linspace(-1, 1, 24, dtype=np.float32).reshape(1, 12, 2)
SCALES = np.linspace(0.01, 0.02, 12, dtype=np.float32)
BYTES = np.arange(-12, 12, dtype=np.int8).reshape(1, 12, 2)
AXES = {"i1": np.array([1]), "i0": np.array([0]), "i2": np.array([2])}

# Opset, nodes that make W (1, 12, 2), and the tensors that they use; beside these there are a, the
# small values, and the axes i0, i1 and i2.
ARITHMETIC: dict[str, tuple[int, list[str], dict[str, np.ndarray]]] = {
    "arithmetic": (
        13,
        [
            "b = Mul(a, s)",
            "c = Add(b, a)",
            "d = Sub(c, s)",
            "e = Div(d, s)",
            "W = Neg(e)",
        ],
        {"s": SCALES[:, None]},
    ),
    "arithmetic of opset 7": (7, ["W = Mul(a, s)"], {"s": SCALES[:2]}),
    "quantised": (
        10,
        ["W = DequantizeLinear(q, s, z)"],
        {"q": BYTES, "s": np.float32(0.03125), "z": np.int8(3)},
    ),
    "quantised by rows": (
        13,
        ["W = DequantizeLinear<axis = 1>(q, s, z)"],
        {"q": BYTES, "s": SCALES, "z": np.arange(12, dtype=np.int8)},
    ),
    "quantised by columns": (
        17,
        ["W = DequantizeLinear<axis = -1>(q, s)"],
        {"q": BYTES.astype(np.uint8), "s": SCALES[:2]},
    ),
    "quantised in blocks": (
        21,
        ["W = DequantizeLinear<axis = 1, block_size = 4>(q, s)"],
        {"q": BYTES, "s": np.linspace(0.1, 0.6, 6, dtype=np.float32).reshape(1, 3, 2)},
    ),
    "quantised int32": (
        13,
        ["W = DequantizeLinear(q, s)"],
        {"q": BYTES.astype(np.int32) * 1000, "s": np.float32(0.001)},
    ),
    "pretended quantisation": (
        13,
        ["q = QuantizeLinear(a, s, z)", "W = DequantizeLinear(q, s, z)"],
        {"s": np.float32(0.03125), "z": np.uint8(100)},
    ),
    "weight norm": (
        13,
        ["n = ReduceL2<axes = [2], keepdims = 1>(a)", "d = Div(a, n)", "W = Mul(d, g)"],
        {"g": SCALES[:, None]},
    ),
    "weight norm of opset 18": (
        18,
        ["n = ReduceL2<keepdims = 1>(a, i2)", "d = Div(a, n)", "W = Mul(g, d)"],
        {"g": SCALES[:, None]},
    ),
    "weight norm by hand": (
        13,
        [
            "p = Pow(a, two)",
            "t = ReduceSum<keepdims = 1>(p, i2)",
            "r = Sqrt(t)",
            "m = Max(r, tiny)",
            "o = Reciprocal(m)",
            "W = Mul(a, o)",
        ],
        {"two": np.float32(2), "tiny": np.float32(1e-6)},
    ),
    "low rank": (
        13,
        ["p = MatMul(u, v)", "q = Unsqueeze(p, i0)", "W = Add(a, q)"],
        {"u": SMALL[0, :, :1], "v": SMALL[0, :1]},
    ),
    "functions": (
        13,
        [
            "b = Abs(a)",
            "c = Exp(a)",
            "d = Log(c)",
            "e = Sigmoid(d)",
            "f = Tanh(b)",
            "g = Softplus(e)",
            "h = Relu(a)",
            "k = Sum(e, f, g, h)",
            "l = Floor(k)",
            "m = Ceil(a)",
            "n = Round(k)",
            "o = Sign(a)",
            "p = Mean(l, m, n, o)",
            "W = Min(p, k)",
        ],
        {},
    ),
    "clipped": (
        13,
        ["b = Clip(a, , high)", "W = Clip(b, low)"],
        {"high": SCALES[3], "low": -SCALES[4]},
    ),
    "clipped by attributes": (6, ["W = Clip<min = -0.5, max = 0.25>(a)"], {}),
    "pruned": (
        13,
        [
            "m = Greater(a, zero)",
            "n = Less(a, low)",
            "o = Or(m, n)",
            "p = Not(o)",
            "f = Cast<to = 1>(o)",
            "b = Mul(a, f)",
            "W = Where(p, s, b)",
        ],
        {"zero": np.float32(0), "low": np.float32(-0.5), "s": np.float32(7)},
    ),
    "shapes": (
        13,
        [
            "s = Shape(a)",
            "n = Size(a)",
            "r = ConstantOfShape<value = int64[1] {-1}>(i3)",
            "e = Equal(t, r)",
            "w = Where(e, s, t)",
            "b = Expand(c, w)",
            "f = Cast<to = 1>(n)",
            "W = Mul(b, f)",
        ],
        {"i3": np.array([3]), "t": np.array([1, -1, 2]), "c": SMALL[:, :, :1]},
    ),
    "permuted": (
        13,
        [
            "r = Range(eleven, less, minus)",
            "b = Gather<axis = 1>(a, r)",
            "c = Tile(b, twice)",
            "W, rest = Split<axis = 2>(c, two)",
        ],
        {
            "eleven": np.array(11),
            "less": np.array(-1),
            "minus": np.array(-1),
            "twice": np.array([1, 1, 2]),
            "two": np.array([2, 2]),
        },
    ),
    "split in two": (
        18,
        ["b, c = Split<axis = 1, num_outputs = 2>(a)", "W = Concat<axis = 1>(c, b)"],
        {},
    ),
    "axes in any order": (
        11,
        [
            "b = Unsqueeze<axes = [3, 0]>(a)",
            "c = Squeeze<axes = [3, 0]>(b)",
            "d = Unsqueeze<axes = [-1]>(c)",
            "W = Squeeze<axes = [-1]>(d)",
        ],
        {},
    ),
    "reductions": (
        13,
        [
            f"{name.lower()} = Reduce{name}<axes = [1], keepdims = 0>(b)"
            for name in ("L1", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
        ]
        + [
            "b = Exp(a)",
            "c = Concat<axis = 0>(l1, logsum, logsumexp, max, mean, min, prod, sumsquare)",
            "d = Concat<axis = 0>(c, l1, max, min, mean)",
            "W = Unsqueeze(d, i0)",
        ],
        {},
    ),
    "others": (
        16,
        [
            "b = GreaterOrEqual(a, s)",
            "c = LessOrEqual(a, s)",
            "d = And(b, c)",
            "e = CastLike(d, a)",
            "f = Flatten<axis = 2>(e)",
            "g = Reshape(f, t)",
            "h = Transpose<perm = [0, 2, 1]>(g)",
            "k = Slice(h, last, first, i2, last)",
            "l = Transpose<perm = [0, 2, 1]>(k)",
            "m = Identity(l)",
            "W = Add(a, m)",
        ],
        {
            "s": SMALL[0, 5, 0],
            "t": np.array([1, 12, 2]),
            "last": np.array([-1]),
            "first": np.array([-(2**63)]),
        },
    ),
}


def arithmetic_model(name: str) -> Any:
    """An LSTM node whose W is evaluated."""
    opset, texts, tensors = ARITHMETIC[name]
    w = weights()
    lstm = make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=3)
    nodes = [onnx.parser.parse_node(text) for text in texts]
    tensors = {"a": SMALL, **AXES, **tensors, "R": w["R"], "B": w["B"]}
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    return make_model([*nodes, lstm], arrays, opset=opset)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_of_constants(name: str) -> None:
    """What ONNX Runtime makes of the same nodes."""
    model = arithmetic_model(name)
    onnxruntime = pytest.importorskip("onnxruntime")
    layer = convert.from_onnx(model)
    alone = type(model)()
    alone.CopyFrom(model)
    del alone.graph.node[-1], alone.graph.input[:], alone.graph.output[:]
    alone.graph.output.add(name="W").type.tensor_type.elem_type = 1
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        alone.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (w,) = session.run(None, {})
    assert w.shape == (1, 12, 2)
    wanted = convert.onnx_lstm(w, weights()["R"], weights()["B"])
    assert repr(layer) == repr(wanted)
    for ours, theirs in zip(layer.params.values(), wanted.params.values()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_every_operator_that_is_folded_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = set()
    run = _onnx_fold._Tensors.run

    def recorded(self: Any, node: Any, inputs: Any) -> Any:
        tried.add(node.op_type)
        return run(self, node, inputs)

    monkeypatch.setattr(_onnx_fold._Tensors, "run", recorded)
    for name in ARITHMETIC:
        convert.from_onnx(arithmetic_model(name))
    for chain in CHAINS:
        convert.from_onnx(chain_model(chain))
    assert tried == set(_onnx_fold._FOLDED)


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0"])
def test_pytorchs_weight_norm(name: str, tmp_path: pathlib.Path) -> None:
    """The exporter leaves the norm in the graph."""
    torch = pytest.importorskip("torch")
    module = torch.nn.LSTM(5, 7).eval()
    torch.nn.utils.parametrizations.weight_norm(module, name)
    path = tmp_path / "model.onnx"
    x = torch.randn(9, 3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, dynamo=False)
    layer = convert.from_onnx(path)
    parameters = dict(zip(layer.params, (p.detach().numpy() for p in module._flat_weights)))
    for key, array in layer.params.items():
        np.testing.assert_allclose(array, parameters[key], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(layer(x.numpy())[0], module(x)[0].detach(), rtol=1e-5, atol=1e-6)


# ---- Stored tensors ------------------------------------------------------------------------------


def test_external_data(tmp_path: pathlib.Path) -> None:
    model = node_model("LSTM", weights(), {"hidden_size": 3})
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    same(convert.from_onnx(path), convert.onnx_lstm(**weights()))
    same(convert.from_onnx(str(path)), convert.onnx_lstm(**weights()))
    same(convert.from_onnx(onnx.load(path)), convert.onnx_lstm(**weights()))
    unloaded = onnx.load(path, load_external_data=False)
    with pytest.raises(ValueError, match=r"'the node': 'W': its data are in another file: give"):
        convert.from_onnx(unloaded)
    (tmp_path / "data.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"'the node': 'W': cannot be read"):
        convert.from_onnx(path)
    (tmp_path / "data.bin").unlink()
    with pytest.raises(ValueError, match=r"'the node': 'W': cannot be read"):
        convert.from_onnx(path)


def test_external_data_stay_in_the_models_folder(tmp_path: pathlib.Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(bytes(10_000))
    model = node_model("LSTM", weights(), {"hidden_size": 3})
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")
    (inside / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="'W': cannot be read"):
        convert.from_onnx(inside / "model.onnx")


def test_external_data_of_constants_are_in_the_models_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the current one, where files of the same names are."""
    w = weights()
    folder = tmp_path / "model"
    folder.mkdir()
    w["W"].tofile(folder / "w.bin")
    np.float32(7).tofile(folder / "fill.bin")
    np.full(24, 9, np.float32).tofile(tmp_path / "w.bin")
    np.float32(8).tofile(tmp_path / "fill.bin")
    monkeypatch.chdir(tmp_path)

    def stored(shape: tuple[int, ...], location: str) -> Any:
        tensor = onnx.TensorProto(name="t", data_type=1, dims=shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        return tensor

    nodes = [
        make_node("Constant", [], ["W"], value=stored((1, 12, 2), "w.bin")),
        make_node("ConstantOfShape", ["s"], ["B"], value=stored((1,), "fill.bin")),
        make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=3),
    ]
    model = make_model(nodes, {"R": w["R"], "s": np.array([1, 24])})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    wanted = convert.onnx_lstm(w["W"], w["R"], np.full((1, 24), 7, np.float32))
    for path in ("model/model.onnx", folder / "model.onnx"):
        same(convert.from_onnx(path), wanted)
    monkeypatch.chdir(folder)
    same(convert.from_onnx("model.onnx"), wanted)
    (folder / "w.bin").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'W': cannot be read: .*model/w\.bin"):
        convert.from_onnx("model/model.onnx")
    with pytest.raises(ValueError, match="its data are in another file: give the model's path"):
        convert.from_onnx(model)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "/etc/passwd"}, "external data '/etc/passwd': not in the model's folder"),
        ({"location": "a/../../secret"}, "external data 'a/../../secret': not in the model's"),
        ({"location": ""}, "folder|directory"),
        ({"location": "fifo"}, "regular file"),
        ({"location": "w", "offset": "4"}, "got 92 bytes at 4 in a file of 96, wanted 96 for dim"),
        ({"location": "w", "offset": "-4"}, "got 100 bytes at -4 in a file of 96, wanted 96"),
        ({"location": "w", "length": "-4"}, "got -4 bytes at 0 in a file of 96, wanted 96"),
        ({"location": "w", "length": "many"}, "invalid literal"),
        ({"location": "w", "length": str(2**60)}, f"got {2**60} bytes at 0 in a file of 96"),
    ],
)
def test_damaged_external_data(
    entries: dict[str, str], message: str, tmp_path: pathlib.Path
) -> None:
    weights()["W"].tofile(tmp_path / "w")
    os.mkfifo(tmp_path / "fifo")
    model = node_model("LSTM", weights(), {"hidden_size": 3})
    tensor = next(t for t in model.graph.initializer if t.name == "W")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=f"'W': cannot be read: .*({message})"):
        convert.from_onnx(path)


def test_damaged_tensors() -> None:

    def refused(message: str, **fields: Any) -> None:
        model = node_model("LSTM", weights(), {"hidden_size": 3})
        tensor = next(t for t in model.graph.initializer if t.name == "W")
        tensor.CopyFrom(onnx.TensorProto(name="W", **fields))
        with pytest.raises(ValueError, match=f"node 'the node': 'W': {message}"):
            convert.from_onnx(model)

    proto = onnx.TensorProto
    data = weights()["W"].tobytes()
    refused("cannot be read: got 96 bytes, wanted 100", data_type=1, dims=[25], raw_data=data)
    negative = r"cannot be read: got \[-1, 2\] as sizes, wanted none below 0"
    refused(negative, data_type=1, dims=[-1, 2], raw_data=data)
    refused("cannot be read: ", data_type=1, dims=[2**40], float_data=[1.0])
    refused("cannot be read: got elements of type STRING", data_type=8, string_data=[b"a"])
    refused("cannot be read: got elements of type UNDEFINED", dims=[1], raw_data=data)
    refused("cannot be read: ", data_type=99, dims=[1], raw_data=data)
    held = "cannot be read: got data in float_data and raw_data, wanted only one of these fields"
    floats = weights()["W"].ravel().tolist()
    refused(held, data_type=1, dims=[1, 12, 2], raw_data=data, float_data=floats)
    both = "cannot be read: got data in float_data and double_data"
    refused(both, data_type=1, dims=[1, 12, 2], float_data=floats, double_data=[1.0])
    huge = f"wanted {2**39} for dimensions"
    for kind in (proto.INT4, proto.UINT4):  # which onnx before 1.20 pads with zeros
        refused(
            f"cannot be read: got 96 bytes, {huge}", data_type=kind, dims=[2**40], raw_data=data
        )
        refused(
            f"cannot be read: got 1 bytes, {huge}", data_type=kind, dims=[2**40], int32_data=[1]
        )


# ---- Bounds --------------------------------------------------------------------------------------


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fails if NumPy and Python took more than a few megabytes, even for a moment."""
    pytest.importorskip("onnx.reference")  # importing it takes memory too
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26


ONES = np.ones((1, 1, 1), np.float32)
LINE = np.ones(2**14, np.float32)
HUGE = np.array([2**20, 2**20, 2**20])
# What makes W, and of what.
BOMBS: dict[str, tuple[list[str], dict[str, np.ndarray]]] = {
    "Expand": (["W = Expand(a, s)"], {"a": ONES, "s": HUGE}),
    "ConstantOfShape": (["W = ConstantOfShape(s)"], {"s": HUGE}),
    "Tile": (["W = Tile(a, s)"], {"a": ONES, "s": HUGE}),
    "Range": (["W = Range(a, s, d)"], {"a": np.float32(0), "s": np.float32(1e9), "d": ONES[0, 0]}),
    "Gather": (["W = Gather(a, s)"], {"a": LINE[None], "s": np.zeros(2**14, int)}),
    "Add": (["b = Unsqueeze(a, i)", "W = Add(a, b)"], {"a": LINE, "i": np.array([1])}),
    "Equal": (["b = Unsqueeze(a, i)", "W = Equal(b, a)"], {"a": LINE, "i": np.array([1])}),
    "Clip": (["b = Unsqueeze(a, i)", "W = Clip(b, a)"], {"a": LINE, "i": np.array([1])}),
    "MatMul": (["W = MatMul(a, b)"], {"a": LINE[:, None], "b": LINE[None]}),
    "Concat": (
        [f"a{k + 1} = Concat<axis = 0>(a{k}, a{k})" for k in range(100)] + ["W = Neg(a100)"],
        {"a0": ONES},
    ),
    "Max": (  # each takes what the one before it made, and no more: 2000 times
        [f"a{k + 1} = Max(a{k}, a0)" for k in range(2000)] + ["W = Neg(a2000)"],
        {"a0": np.ones(2**17, np.float32)},
    ),
    "ReduceMax": (  # little is made of much
        [f"a{k} = ReduceMax(a)" for k in range(200)]
        + [f"W = Sum({', '.join(f'a{k}' for k in range(200))})"],
        {"a": np.ones(2**20, np.float32)},
    ),
}


@pytest.mark.parametrize("operator", BOMBS)
def test_what_is_made_is_bounded_before_it_is_made(operator: str, little_memory: None) -> None:
    texts, tensors = BOMBS[operator]
    nodes = [onnx.parser.parse_node(text) for text in texts]
    lstm = make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=3)
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    model = make_model([*nodes, lstm], {**arrays, "R": weights()["R"]}, opset=18)
    with pytest.raises(ValueError, match=f"{operator} node .*makes too much from the"):
        convert.from_onnx(model)


def made_wrong(text: str, opset: int = 18, **tensors: Any) -> str:
    """What is said of a node that makes W."""
    lstm = make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=3)
    nodes = [onnx.parser.parse_node(text), lstm]
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    with pytest.raises(ValueError, match=r"node 'Y': .* node 'W': cannot be evaluated: ") as caught:
        convert.from_onnx(make_model(nodes, {**arrays, "R": weights()["R"]}, opset=opset))
    return str(caught.value).partition("evaluated: ")[2]


def test_contradictory_operators(little_memory: None) -> None:
    a = np.arange(12, dtype=np.float32)
    split = "W, b = Split<num_outputs = 1000000000>(a)"
    assert made_wrong(split, a=a) == "it has 2 outputs, but is asked for 1000000000"
    assert (
        made_wrong("W, b = Split(a, s)", a=a, s=[20, -8]) == "split: got [20, -8] for an axis of 12"
    )
    assert made_wrong("W, b = Split(a, s)", a=a, s=[9, 9]) == "split: got [9, 9] for an axis of 12"
    assert "outputs, but is asked for 1" in made_wrong("W, b = Split(a, s)", a=a, s=[12])
    assert "differ in length: [1, 2]" in made_wrong("W = Slice(a, s, s, t)", a=a, s=[0, 0], t=[0])
    assert "wanted none below 0" in made_wrong("W = Tile(a, s)", a=a, s=[-1])
    assert "wanted none below 0" in made_wrong("W = Expand(a, s)", a=a, s=[-1])
    quantised = "W = DequantizeLinear<axis = 1>(a, b)"
    scales = np.ones(2**14, np.float32)
    data = np.ones((2**14, 1), np.int8)
    assert "scale: got shape (16384,) for data of shape (16384, 1)" in made_wrong(
        quantised, a=data, b=scales
    )
    data = np.ones((4, 12), np.int8)
    for opset, block, shape in ((21, 2**40, (4, 1)), (21, 5, (4, 2)), (21, 5, (3, 3))):
        text = f"W = DequantizeLinear<axis = 1, block_size = {block}>(a, b)"
        message = made_wrong(text, opset, a=data, b=np.ones(shape, np.float32))
        assert message.startswith(f"scale: got shape {shape} for data of shape (4, 12), axis 1 and")
    zero = np.ones(11, np.int8)
    message = made_wrong("W = DequantizeLinear(a, b, c)", a=data, b=scales[:12], c=zero)
    assert message == "zero point: got (11,), wanted (12,) of scale"
    assert "at least one axis" in made_wrong("W = MatMul(a, s)", a=a, s=np.float32(1))
    assert made_wrong("W = Range(a, b, a)", a=np.float32(0), b=np.float32(1))
    assert made_wrong("W = Range(a, b, b)", a=np.float32(0), b=np.float32("nan"))
    assert made_wrong("W = Range(a, b, b)", a=np.float32(0), b=np.float32("inf"))
    assert made_wrong("W = Gather<axis = 5>(a, i)", a=a, i=[1])
    assert made_wrong("W = Gather(a, i)", a=a, i=[99])
    assert made_wrong("W = Reshape(a, s)", a=a, s=[7])
    assert made_wrong("W = Add(a, b)", a=a, b=a[:5])
    message = made_wrong("W = Add(a, b)", a=a, b=a.astype(int))
    assert message == "B: got elements of type int64, but A has float"
    two = a.reshape(3, 4)
    assert "repeats: got shape (1,), wanted one for each of" in made_wrong(
        "W = Tile(a, s)", a=two, s=[2]
    )
    message = made_wrong("W = Tile(a, s)", a=two, s=np.array([1, 2], np.float32))
    assert message == "repeats: got elements of type float"
    message = made_wrong("W = Where(b, a, a)", a=a, b=a)
    assert message == "condition: got elements of type float"
    message = made_wrong("W = DequantizeLinear(a, b)", a=a, b=np.float32(1))
    assert message == "x: got elements of type float"
    for dtype in (np.int32, np.uint8, np.int64):
        divided = made_wrong("W = Div(a, b)", a=np.arange(2, dtype=dtype), b=np.zeros(2, dtype))
        assert divided == "got a 0 in the divisor of integers"
    assert made_wrong("W = Concat<axis = 0>(a, b)", a=a, b=a.astype(np.float64))
    assert made_wrong("W = Reshape(a, s)", a=a, s=np.array([12.0], np.float32))
    assert "Unrecognized attribute: axis" in made_wrong("W = Add<axis = 1>(a, a)", a=a)
    assert "input size 1" in made_wrong("W = Add(a)", a=a)
    assert made_wrong("W = Cast<to = 8>(a)", a=a) == "got strings, wanted numbers"
    assert "got value_string, wanted" in made_wrong('W = Constant<value_string = "a">()')
    assert "got value_strings, wanted" in made_wrong('W = Constant<value_strings = ["a"]>()')


def test_sparse_tensors_are_refused() -> None:
    values = onnx.helper.make_tensor("W", 1, [1], [1.0])
    sparse = onnx.helper.make_sparse_tensor(
        values, onnx.helper.make_tensor("i", 7, [1], [0]), [2**20, 2**20]
    )
    lstm = make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=3)
    model = make_model([lstm], {"R": weights()["R"]})
    model.graph.sparse_initializer.append(sparse)
    with pytest.raises(ValueError, match="'W': got a sparse tensor, wanted a dense one"):
        convert.from_onnx(model)
    constant = make_node("Constant", [], ["W"], sparse_value=sparse)
    model = make_model([constant, lstm], {"R": weights()["R"]})
    with pytest.raises(ValueError, match="got sparse_value, wanted a dense tensor or numbers"):
        convert.from_onnx(model)


def test_tensors_that_share_external_data(tmp_path: pathlib.Path, little_memory: None) -> None:
    """A file of 1 MB is read as often as it is asked for, within bounds."""
    np.zeros(2**18, np.float32).tofile(tmp_path / "data")
    count = 200
    tensors = []
    for k in range(count):
        tensor = onnx.TensorProto(name=f"a{k}", data_type=1, dims=[2**18])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="data")
        tensors.append(tensor)
    nodes = [
        make_node("Sum", [f"a{k}" for k in range(count)], ["W"]),
        make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=3),
    ]
    model = make_model(nodes, {"R": weights()["R"]})
    model.graph.initializer.extend(tensors)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="external data 'data': makes too much from the 262144"):
        convert.from_onnx(path)


def test_nodes_that_share_weights() -> None:
    """Each becomes a layer of its own."""
    w = weights(hidden=200)
    lstm = [make_node("LSTM", ["X", "W", "R"], [f"Y{k}"], hidden_size=200) for k in range(100)]
    few = convert.onnx_nodes(make_model(lstm[:5], w))
    assert [node.layer.hidden_size for node in few.values()] == [200] * 5
    with pytest.raises(ValueError, match=r"'Y\d+': a layer of 161600 parameters: makes too much"):
        convert.onnx_nodes(make_model(lstm, w))
    assert convert.from_onnx(make_model(lstm, w), "Y99").hidden_size == 200


def test_long_chains() -> None:
    """No recursion limits them: an exporter may write thousands of small operators."""
    w = weights()
    w["a0"] = w.pop("W")
    chain = [make_node("Identity", [f"a{k}"], [f"a{k + 1}"]) for k in range(1200)]
    lstm = make_node("LSTM", ["X", "a1200", "R", "B"], ["Y"], hidden_size=3)
    same(convert.from_onnx(make_model([*chain, lstm], w)), convert.onnx_lstm(**weights()))
    deep = [make_node("Neg", [f"s{k}"], [f"s{k + 1}"]) for k in range(3000)]
    lstm = make_node("LSTM", ["X", "W", "R", "B", "", "s3000"], ["Y"], hidden_size=3)
    model = make_model([*deep, lstm], weights(), inputs=("X", "s0"))
    (node,) = convert.onnx_nodes(model).values()
    assert node.fed == ("initial_h",)


# ---- Local functions and bodies ------------------------------------------------------------------


def function_model(functions: dict[str, list[Any]], called: str) -> Any:
    """A model that calls one of these functions of one input and one output, a and b."""
    helper = onnx.helper
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    protos = [
        helper.make_function("f", name, ["a"], ["b"], nodes, imports)
        for name, nodes in functions.items()
    ]
    nodes = [
        make_node(called, ["W"], ["W2"], domain="f"),
        make_node("LSTM", ["X", "W2", "R", "B"], ["Y"], hidden_size=3),
    ]
    model = make_model(nodes, weights(), functions=protos, ir_version=9, opset=18)
    model.opset_import.append(imports[1])
    return model


def call(name: str, a: str = "a", b: str = "b") -> Any:
    return make_node(name, [a], [b], domain="f")


@pytest.mark.parametrize("length", [1, 5, 26, 90])
def test_functions_that_call_each_other_twice(length: int, little_memory: None) -> None:
    functions = {"F0": [make_node("Identity", ["a"], ["b"])]}
    for k in range(length):
        functions[f"F{k + 1}"] = [call(f"F{k}", "a", "c"), call(f"F{k}", "c", "b")]
    model = function_model(functions, f"F{length}")
    if length <= 5:
        same(convert.from_onnx(model), convert.onnx_lstm(**weights()))
        return
    message = r"local functions: inlining makes too much from the \d+ nodes stored: \d+ nodes"
    for read in (convert.from_onnx, convert.onnx_nodes):
        with pytest.raises(ValueError, match=message):
            read(model)


def test_functions_that_repeat_much(little_memory: None) -> None:
    """A constant of 40 kB, 4,000 times; calls in a body count too."""
    value = onnx.numpy_helper.from_array(np.zeros(10_000, np.float32))
    functions = {
        "F": [make_node("Constant", [], ["c"], value=value), make_node("Neg", ["a"], ["b"])]
    }
    calls = [call("F", "a", f"b{k}") for k in range(4000)]
    infos = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("b0", "b1")]
    body = onnx.helper.make_graph(calls, "body", [], infos[:1])
    functions["G"] = [make_node("If", ["a"], ["b"], then_branch=body, else_branch=body)]
    with pytest.raises(
        ValueError, match=r"makes too much from the .* nodes stored: .* \d{9} bytes"
    ):
        convert.from_onnx(function_model(functions, "G"))


def test_functions_that_never_end() -> None:
    circle = {"A": [call("B")], "B": [call("A")]}
    with pytest.raises(ValueError, match="local function 'A': calls itself"):
        convert.from_onnx(function_model(circle, "A"))
    chain = {"F0": [make_node("Identity", ["a"], ["b"])]}
    chain |= {f"F{k + 1}": [call(f"F{k}")] for k in range(3000)}
    for order in (chain, dict(reversed(chain.items()))):
        with pytest.raises(ValueError, match="calls are nested more than 100 levels deep"):
            convert.from_onnx(function_model(order, "F3000"))


def test_functions_of_another_opset() -> None:
    """These the onnx package does not inline."""
    model = function_model({"F": [make_node("LSTM", ["a", "a", "a"], ["b"])]}, "F")
    model.functions[0].opset_import[0].version = 11
    message = "local function 'F': uses opset 11, the model 18, so it cannot be inlined: convert "
    with pytest.raises(ValueError, match=message):
        convert.from_onnx(model)


def test_deeply_nested_bodies() -> None:
    model = onnx.ModelProto(ir_version=8)
    graph = model.graph
    for _ in range(300):
        node = graph.node.add(op_type="If", name="if", input=["c"], output=["Y"])
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        graph = attribute.g
    graph.node.append(make_node("Identity", ["X"], ["Y"]))
    with pytest.raises(ValueError, match="graphs are nested more than 100 levels deep"):
        convert.from_onnx(model)
