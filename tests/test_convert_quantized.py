# Quantised models of other frameworks as int8 layers: the same integers and scales. Results lie
# within bounds of the exact results of the dequantised weights, in NumPy.
from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidegate as tg
from onnx_models import make_model, make_node, same
from tidegate import convert

INPUTS, HIDDEN = 5, 6
# The gates in the order of each source, and in that of Tidegate's layers. ONNX calls an LSTM's
# candidate c and a GRU's h.
ORDERS = {
    ("LSTM", "onnx"): "iofg",
    ("LSTM", "torch"): "ifgo",
    ("LSTM", "layer"): "ifgo",
    ("GRU", "onnx"): "zrn",
    ("GRU", "torch"): "rzn",
    ("GRU", "layer"): "rzn",
}


def regrouped(cell: str, source: str, rows: np.ndarray) -> np.ndarray:
    """Rows of one direction in the order of the layer."""
    order = ORDERS[cell, source]
    gates = dict(zip(order, np.split(rows, len(order)), strict=True))
    return np.concatenate([gates[gate] for gate in ORDERS[cell, "layer"]])


# ---- Weights -------------------------------------------------------------------------------------


@dataclass
class Weights:
    """W and R in int8 with scales (D, G*H) of rows, in ONNX's order and layout, and B."""

    cell: str
    w: np.ndarray
    r: np.ndarray
    b: np.ndarray
    w_scale: np.ndarray
    r_scale: np.ndarray

    @property
    def directions(self) -> int:
        return len(self.w)

    @property
    def floats(self) -> dict[str, np.ndarray]:
        return {
            "W": self.w * self.w_scale[..., None],
            "R": self.r * self.r_scale[..., None],
            "B": self.b,
        }

    def layer(self, **options: Any) -> Any:
        """The float32 layer of the dequantised weights."""
        kind = {"LSTM": convert.onnx_lstm, "GRU": convert.onnx_gru}[self.cell]
        if self.directions == 2:
            options["direction"] = "bidirectional"
        if self.cell == "GRU":
            options["linear_before_reset"] = 1
        return kind(**self.floats, **options)

    def quantized(self) -> tuple[np.ndarray, np.ndarray]:
        """The integers and scales of the layer."""
        integers, scales = [], []
        for d in range(self.directions):
            for values, scale in ((self.w, self.w_scale), (self.r, self.r_scale)):
                integers.append(regrouped(self.cell, "onnx", values[d]).reshape(-1))
                scales.append(regrouped(self.cell, "onnx", scale[d]))
        return np.concatenate(integers), np.concatenate(scales)


def make_weights(
    cell: str = "LSTM", directions: int = 1, per_channel: bool = False, seed: int = 0
) -> Weights:
    """Random integers, which also occur at both ends, with gates of different size."""
    rng = np.random.default_rng(seed)
    gates = len(ORDERS[cell, "onnx"])
    rows = gates * HIDDEN

    def matrix(columns: int) -> tuple[np.ndarray, np.ndarray]:
        values = rng.integers(-127, 128, (directions, rows, columns)).astype(np.int8)
        values[:, :, 0] = rng.choice([-127, 127], (directions, rows))
        scale = np.float32(0.5) / 127 * rng.uniform(0.5, 1, (directions, 1)).astype(np.float32)
        if per_channel:
            sizes = np.repeat(np.linspace(0.3, 1, gates, dtype=np.float32), HIDDEN)
            scale = scale * sizes * rng.uniform(0.5, 1, (directions, rows)).astype(np.float32)
        else:
            scale = np.broadcast_to(scale, (directions, rows))
        return values, np.ascontiguousarray(scale)

    w, w_scale = matrix(INPUTS)
    r, r_scale = matrix(HIDDEN)
    b = rng.uniform(-0.5, 0.5, (directions, 2 * rows)).astype(np.float32)
    return Weights(cell, w, r, b, w_scale, r_scale)


def assert_integers(layer: Any, integers: np.ndarray, scales: np.ndarray) -> None:
    assert layer.precision == "int8"
    quantized = layer._model.quantized
    np.testing.assert_array_equal(quantized["int8"], integers)
    assert quantized["scales"].tobytes() == scales.astype(np.float32).tobytes()


def assert_weights(layer: Any, weights: Weights, **options: Any) -> None:
    """The layer has these integers and scales, and what else the float32 layer has."""
    expected = weights.layer(**options)
    assert repr(layer) == f"{expected!r}.quantize('int8')"
    assert_integers(layer, *weights.quantized())
    for name, array in expected.params.items():
        assert layer.params[name].tobytes() == array.tobytes(), name


# ---- Bounds --------------------------------------------------------------------------------------


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


# Of the float32 operations: those of products are of 1e-7, and vector sigmoid and tanh are within
# some 1e-7 too; a few steps multiply this.
FLOAT32_ERROR = 1e-5


@dataclass
class Rounding:
    """How far an element of x and of h may be from what a product sees of it.

    Attributes:
        x: (T, N, 1).
        h: a number, for |h| <= 1.
    """

    x: np.ndarray
    h: float


def own_rounding(x: np.ndarray) -> Rounding:
    """Half a step of a row's scale max|x| / 127; h has the scale 1 / 127."""
    return Rounding(np.abs(x).max(axis=2, keepdims=True) / 254, 1 / 254)


def tensor_rounding(x: np.ndarray, levels: int) -> Rounding:
    """A step of one scale for all of x: half for the rounding, half for that of the zero point.

    The range includes 0. That of h, chosen at each step, is within -1..1.
    """
    step = (max(x.max(), 0) - min(x.min(), 0)) / levels
    return Rounding(np.full((*x.shape[:2], 1), step), 2 / levels)


def bounded_run(
    cell: str, source: str, x: np.ndarray, params: dict[str, np.ndarray], rounding: Rounding
) -> tuple[np.ndarray, np.ndarray]:
    """y (T, N, H) of one direction in float64, and bounds of what the rounding makes of it.

    The bound of each element follows from those before it: products add |w| times that of each
    operand; a sigmoid takes a quarter, tanh all of it; and a product of two gates
    |a' b' - a b| <= (|a| + da) db + |b| da.

    Args:
        cell: "LSTM" or "GRU", the latter with the reset gate after the product.
        source: whose order of gates the parameters have.
        x: (T, N, I).
        params: w, r, b_w, b_r of one direction.
        rounding: of x and h.
    """
    order = ORDERS[cell, source]
    hidden = params["r"].shape[1]
    parts = {
        name: dict(zip(order, np.split(array.astype(np.float64), len(order)), strict=True))
        for name, array in params.items()
    }
    h = np.zeros((x.shape[1], hidden))
    dh, c, dc = np.zeros_like(h), np.zeros_like(h), np.zeros_like(h)
    ys, bounds = [], []
    for x_t, rounding_t in zip(x.astype(np.float64), rounding.x, strict=True):
        of_x = {g: x_t @ parts["w"][g].T + parts["b_w"][g] for g in order}
        of_h = {g: h @ parts["r"][g].T + parts["b_r"][g] for g in order}
        d_x = {g: rounding_t * np.abs(parts["w"][g]).sum(axis=1) for g in order}
        d_h = {g: (dh + rounding.h) @ np.abs(parts["r"][g]).T for g in order}
        s = {g: sigmoid(of_x[g] + of_h[g]) for g in order}
        ds = {g: (d_x[g] + d_h[g]) / 4 for g in order}
        if cell == "LSTM":
            g, dg = np.tanh(of_x["g"] + of_h["g"]), d_x["g"] + d_h["g"]
            dc = (s["f"] + ds["f"]) * dc + np.abs(c) * ds["f"]
            dc += (s["i"] + ds["i"]) * dg + np.abs(g) * ds["i"]
            c = s["f"] * c + s["i"] * g
            dh = (s["o"] + ds["o"]) * dc + np.abs(np.tanh(c)) * ds["o"]
            h = s["o"] * np.tanh(c)
        else:
            n = np.tanh(of_x["n"] + s["r"] * of_h["n"])
            dn = d_x["n"] + (s["r"] + ds["r"]) * d_h["n"] + np.abs(of_h["n"]) * ds["r"]
            dh = (s["z"] + ds["z"]) * dh + (1 - s["z"] + ds["z"]) * dn + np.abs(h - n) * ds["z"]
            h = s["z"] * h + (1 - s["z"]) * n
        ys.append(h)
        bounds.append(dh + FLOAT32_ERROR)
    return np.stack(ys), np.stack(bounds)


def onnx_run(
    weights: Weights, x: np.ndarray, rounding: Rounding, source: str = "onnx"
) -> tuple[np.ndarray, np.ndarray]:
    """`bounded_run` of all directions: y (T, N, D*H)."""
    results = []
    for d in range(weights.directions):
        w, r, b = (weights.floats[role][d] for role in "WRB")
        b_w, b_r = np.split(b, 2)
        params = {"w": w, "r": r, "b_w": b_w, "b_r": b_r}
        step = -1 if d == 1 else 1
        own = Rounding(rounding.x[::step], rounding.h)
        y, bound = bounded_run(weights.cell, source, x[::step], params, own)
        results.append((y[::step], bound[::step]))
    ys, bounds = zip(*results, strict=True)
    return np.concatenate(ys, axis=2), np.concatenate(bounds, axis=2)


def make_x(seed: int = 0, steps: int = 7, batch: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (steps, batch, INPUTS)).astype(np.float32)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_bounds_tell_the_order_of_gates(cell: str) -> None:
    """So a layer with gates in another order would lie outside them."""
    weights, x = make_weights(cell, per_channel=True), make_x()
    y, bound = onnx_run(weights, x, tensor_rounding(x, 127))
    np.testing.assert_allclose(weights.layer()(x)[0], y, rtol=0, atol=FLOAT32_ERROR)
    other, _ = onnx_run(weights, x, own_rounding(x), source="torch")
    assert (np.abs(other - y) > bound).any()


# ---- DynamicQuantizeLSTM -------------------------------------------------------------------------


def dynamic_model(
    weights: Weights,
    per_channel: bool = False,
    unsigned: bool = False,
    replaced: dict[str, np.ndarray | None] | None = None,
    inputs: tuple[str, ...] = ("X",),
    outputs: tuple[str, ...] = ("Y",),
    **attributes: Any,
) -> Any:
    """A model of one node.

    Args:
        weights: of an LSTM.
        per_channel: whether there is a scale per row, not per direction.
        unsigned: whether the integers are stored as uint8.
        replaced: initialisers in the place of those of the weights; None leaves an input out.
        inputs: the inputs of the graph.
        outputs: the outputs.
        attributes: of the node.
    """
    import onnx

    dtype = np.uint8 if unsigned else np.int8
    middle = 128 if unsigned else 0
    tensors: dict[str, Any] = {"B": weights.b}
    parts = {"W": (weights.w, weights.w_scale), "R": (weights.r, weights.r_scale)}
    for role, (values, scale) in parts.items():
        transposed = values.transpose(0, 2, 1)
        scale = scale if per_channel else scale[:, 0]
        tensors[role] = (transposed.astype(np.int16) + middle).astype(dtype)
        tensors[f"{role}_scale"] = np.ascontiguousarray(scale)
        tensors[f"{role}_zero_point"] = np.full(scale.shape, middle, dtype)
    tensors.update(replaced or {})
    tensors = {name: array for name, array in tensors.items() if array is not None}
    roles = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    roles += ("W_scale", "W_zero_point", "R_scale", "R_zero_point")
    names = [role if role in tensors or role in inputs else "" for role in roles]
    attributes.setdefault("hidden_size", HIDDEN)
    if weights.directions == 2:
        attributes["direction"] = "bidirectional"
    node = make_node(
        "DynamicQuantizeLSTM", names, list(outputs), name="q", domain="com.microsoft", **attributes
    )
    model = make_model([node], tensors, inputs=inputs, outputs=outputs)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_dynamic_lstm(directions: int, per_channel: bool, unsigned: bool) -> None:
    pytest.importorskip("onnx")
    weights = make_weights("LSTM", directions, per_channel)
    model = dynamic_model(weights, per_channel, unsigned)
    layer = convert.from_onnx(model)
    assert_weights(layer, weights)
    (node,) = convert.onnx_nodes(model).values()
    assert_weights(node.layer, weights)
    assert node.fed == ()
    same(convert.from_onnx(model, dequantize=True), weights.layer())
    (node,) = convert.onnx_nodes(model, dequantize=True).values()
    same(node.layer, weights.layer())
    x = make_x()
    y, bound = onnx_run(weights, x, own_rounding(x))
    assert (np.abs(layer(x)[0] - y) <= bound).all()


def ort_run(model: Any, feeds: dict[str, np.ndarray], outputs: list[str] | None = None) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    source = model if isinstance(model, str) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    # Without VNNI its products of uint8 and int8 saturate at 16 bits, which changes results by much
    # more than their quantisation. This makes exact products of uint8 and uint8 of them.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


def joined(y: np.ndarray) -> np.ndarray:
    """ONNX's Y (T, D, N, H) as a layer's y."""
    return y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_dynamic_lstm_against_onnx_runtime(
    directions: int, per_channel: bool, unsigned: bool
) -> None:
    pytest.importorskip("onnx")
    weights = make_weights("LSTM", directions, per_channel)
    model = dynamic_model(weights, per_channel, unsigned)
    x = make_x()
    theirs = joined(ort_run(model, {"X": x})[0])
    y, bound = onnx_run(weights, x, tensor_rounding(x, 255))
    assert (np.abs(theirs - y) <= bound).all()
    y, own_bound = onnx_run(weights, x, own_rounding(x))
    assert (np.abs(convert.from_onnx(model)(x)[0] - theirs) <= bound + own_bound).all()


def test_options_of_dynamic_lstm() -> None:
    pytest.importorskip("onnx")
    weights = make_weights("LSTM", 2, per_channel=True)
    peepholes = np.random.default_rng(1).normal(size=(2, 3 * HIDDEN)).astype(np.float32)
    options = {
        "clip": 2.0,
        "input_forget": 1,
        "activations": ["HardSigmoid", "Softsign", "Tanh"] * 2,
        "activation_alpha": [0.25] * 2,
    }
    replaced = {
        "P": peepholes,
        "initial_h": np.ones((2, 3, HIDDEN), np.float32),
        "sequence_lens": np.array([3, 7, 5], np.int32),
    }
    inputs = ("X", "initial_c")
    model = dynamic_model(weights, True, replaced=replaced, inputs=inputs, **options)
    (node,) = convert.onnx_nodes(model).values()
    assert_weights(node.layer, weights, P=peepholes, **options)
    assert node.fed == ("initial_c",)
    np.testing.assert_array_equal(node.lengths, [3, 7, 5])
    np.testing.assert_array_equal(node.state[0], replaced["initial_h"])
    with pytest.raises(ValueError, match="node 'q': has a constant initial state"):
        convert.from_onnx(model)
    single = make_weights("LSTM")
    for direction in ("forward", "reverse"):
        layer = convert.from_onnx(dynamic_model(single, direction=direction))
        assert_weights(layer, single, direction=direction)
    no_bias = dynamic_model(single, replaced={"B": None})
    assert not convert.from_onnx(no_bias).bias
    assert convert.from_onnx(no_bias)._model.quantized["vectors"].size == 0


def test_states_and_lengths_against_onnx_runtime() -> None:
    pytest.importorskip("onnx")
    weights = make_weights("LSTM", 2)
    inputs = ("X", "sequence_lens", "initial_h", "initial_c")
    peepholes = np.random.default_rng(1).uniform(-0.3, 0.3, (2, 3 * HIDDEN)).astype(np.float32)
    model = dynamic_model(
        weights, replaced={"P": peepholes}, inputs=inputs, outputs=("Y", "Y_h", "Y_c")
    )
    layer = convert.from_onnx(model)
    rng = np.random.default_rng(2)
    x, lengths = make_x(), np.array([7, 2, 4], np.int32)
    h_0, c_0 = rng.uniform(-0.9, 0.9, (2, 2, 3, HIDDEN)).astype(np.float32)
    feeds = {"X": x, "sequence_lens": lengths, "initial_h": h_0, "initial_c": c_0}
    theirs = ort_run(model, feeds)
    y, (h_n, c_n) = layer(x, (h_0, c_0), lengths=lengths)
    exact = weights.layer(P=peepholes)
    exact_y, (exact_h, exact_c) = exact(x, (h_0, c_0), lengths=lengths)
    # Steps of x and h of 4/255 and 2/255 and weights of 1/4 in the mean, with random signs, make
    # a standard deviation of (4/255)/sqrt(12) * sqrt(5 + 6)/4 = 0.004 in an argument.
    for ours, ort, wanted in zip(
        (y, h_n, c_n), (joined(theirs[0]), *theirs[1:]), (exact_y, exact_h, exact_c), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=0.03)
        np.testing.assert_allclose(ort, wanted, rtol=0, atol=0.03)
    assert np.abs(exact(x)[0] - exact_y).max() > 0.3


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_models_of_quantize_dynamic(
    tmp_path: pathlib.Path, bidirectional: bool, per_channel: bool
) -> None:
    onnx = pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    paths = tmp_path / "float.onnx", tmp_path / "dynamic.onnx"
    float_layer = tg.LSTM(INPUTS, HIDDEN, bidirectional=bidirectional, seed=0)
    float_layer.to_onnx(paths[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_dynamic(*paths, per_channel=per_channel)
    model = onnx.load(str(paths[1]))
    (node,) = (node for node in model.graph.node if node.op_type == "DynamicQuantizeLSTM")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    w, r, b = (stored[name] for name in node.input[1:4])
    rows = w.shape[0], w.shape[2]
    scales = [stored[node.input[k]] for k in (8, 10)]
    assert all(scale.shape == (rows if per_channel else rows[:1]) for scale in scales)
    w_scale, r_scale = (
        np.broadcast_to(scale.reshape(len(w), -1), rows).astype(np.float32) for scale in scales
    )
    weights = Weights("LSTM", w.transpose(0, 2, 1), r.transpose(0, 2, 1), b, w_scale, r_scale)
    layer = convert.from_onnx(paths[1])
    assert_weights(layer, weights)
    assert repr(layer) == f"{float_layer!r}.quantize('int8')"
    same(convert.from_onnx(paths[1], dequantize=True), weights.layer())
    x = make_x()
    y, bound = onnx_run(weights, x, tensor_rounding(x, 255))
    theirs = ort_run(str(paths[1]), {"x": x}, ["y"])[0]
    assert (np.abs(theirs - y) <= bound).all()
    y, own_bound = onnx_run(weights, x, own_rounding(x))
    assert (np.abs(layer(x)[0] - y) <= own_bound).all()


def edited(array: np.ndarray, value: Any, place: Any) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


ADVICE = r".*: pass dequantize=True for a float32 layer$"


def test_what_an_int8_layer_cannot_hold_is_refused() -> None:
    pytest.importorskip("onnx")
    weights = make_weights("LSTM", 2, per_channel=True)
    zeros = np.zeros(weights.w_scale.shape, np.int8)
    scale = weights.r_scale
    refused: list[tuple[bool, dict[str, Any], str]] = [
        (
            False,
            {"W_zero_point": edited(zeros, 3, (1, 4))},
            r"W: got the zero point 3 at \[1, 4\], wanted 0 for int8 weights, as an int8 layer h",
        ),
        (
            True,
            {"R_zero_point": np.full(zeros.shape, 127, np.uint8)},
            r"R: got the zero point 127 at \[0, 0\], wanted 128 for uint8 weights",
        ),
    ]
    for bad in (0, -0.5, np.nan, np.inf, 1e-40, 3e38):
        shown = re.escape(str(np.float32(bad)))
        refused.append(
            (
                False,
                {"R_scale": edited(scale, bad, (1, 2))},
                rf"R: got the scale {shown} at \[1, 2\], wanted a positive finite number",
            )
        )
    for unsigned, replaced, message in refused:
        model = dynamic_model(weights, True, unsigned, replaced=replaced)
        with pytest.raises(ValueError, match=f"^node 'q': {message}{ADVICE}"):
            convert.from_onnx(model)
        with pytest.raises(ValueError, match=f"^node 'q': {message}{ADVICE}"):
            convert.onnx_nodes(model)
        assert convert.from_onnx(model, dequantize=True).precision == "float32"


@pytest.mark.parametrize("unsigned", [False, True])
def test_dequantised_with_zero_points(unsigned: bool) -> None:
    """The results are those of ONNX Runtime's DequantizeLinear, by the operator's formula."""
    pytest.importorskip("onnx")
    weights = make_weights("LSTM", 2, per_channel=True)
    info = np.iinfo(np.uint8 if unsigned else np.int8)
    rng = np.random.default_rng(3)
    replaced: dict[str, np.ndarray | None] = {}
    floats = {"B": weights.b}
    for role, scale in (("W", weights.w_scale), ("R", weights.r_scale)):
        shape = (2, {"W": INPUTS, "R": HIDDEN}[role], 4 * HIDDEN)
        values = rng.integers(info.min, info.max + 1, shape).astype(info.dtype)
        values[0, 0, :2] = info.min, info.max
        zero_points = rng.integers(info.min, info.max + 1, scale.shape).astype(info.dtype)
        replaced.update({role: values, f"{role}_zero_point": zero_points})
        centred = values.transpose(0, 2, 1).astype(np.float32) - zero_points[..., None]
        floats[role] = centred * scale[..., None]
    model = dynamic_model(weights, True, unsigned, replaced=replaced)
    layer = convert.from_onnx(model, dequantize=True)
    same(layer, convert.onnx_lstm(**floats, direction="bidirectional"))
    nodes = []
    for role in "WR":
        nodes.append(make_node("Transpose", [role], [f"{role}t"], perm=[0, 2, 1]))
        names = [f"{role}t", f"{role}_scale", f"{role}_zero_point"]
        # One axis only: directions one after the other in the rows.
        nodes.append(make_node("Reshape", [names[0], f"{role}_rows"], [f"{role}f"]))
        nodes += [make_node("Reshape", [name, "flat"], [f"{name}f"]) for name in names[1:]]
        flat = [f"{role}f", *(f"{name}f" for name in names[1:])]
        nodes.append(make_node("DequantizeLinear", flat, [f"{role}d"], axis=0))
    tensors = {name: array for name, array in replaced.items() if array is not None}
    tensors.update(W_scale=weights.w_scale, R_scale=weights.r_scale, flat=np.array([-1]))
    tensors.update(W_rows=np.array([-1, INPUTS]), R_rows=np.array([-1, HIDDEN]))
    for role in "WR":
        only = [node for node in nodes if any(role in name for name in node.output)]
        theirs = ort_run(make_model(only, tensors, inputs=(), outputs=(f"{role}d",)), {})[0]
        np.testing.assert_array_equal(theirs, floats[role].reshape(theirs.shape))


def test_wrong_inputs_of_dynamic_lstm() -> None:
    onnx = pytest.importorskip("onnx")
    weights = make_weights("LSTM", 2)
    w = weights.w.transpose(0, 2, 1)
    scale = weights.w_scale
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"W_scale": None}, r"DynamicQuantizeLSTM: got 12 inputs, without 'W_scale'; wanted 'X', "),
        ({"R_zero_point": None}, r"DynamicQuantizeLSTM: .* without 'R_zero_point'"),
        ({"W_scale": scale[:1, 0]}, r"W_scale: got shape \(1,\), wanted \(2,\) or \(2, 24\)"),
        ({"R_zero_point": np.int8(0)}, r"R_zero_point: got shape \(\), wanted \(2,\) or \(2, 24\)"),
        ({"R_scale": scale[:, :6]}, r"R_scale: got shape \(2, 6\), wanted \(2,\) or \(2, 24\)"),
        ({"W": w[0]}, r"W: got shape \(5, 24\), wanted three axes"),
        ({"W": w[:, :0]}, r"W: got shape \(2, 0, 24\), wanted three axes, none of them empty"),
        ({"W": weights.w}, r"W_scale: got shape \(2,\)|W: got shape \(2, 5, 24\), wanted"),
        ({"R": w}, r"R: got shape \(2, 24, 5\), wanted|W: got shape"),
        ({"B": weights.b[:, :3]}, r"B: got shape \(2, 3\), wanted \(2, 48\)"),
    ]
    wrong_types: list[tuple[dict[str, Any], str]] = [
        ({"W": w.astype(np.float32)}, "W: got dtype float32, wanted int8 or uint8"),
        ({"W": w.astype(np.int16)}, "W: got dtype int16, wanted int8 or uint8"),
        ({"W_scale": np.ones(2)}, "W_scale: got dtype float64, wanted float32"),
        ({"W_zero_point": np.zeros(2, np.uint8)}, "W_zero_point: got dtype uint8, wanted int8"),
        ({"B": weights.b.astype(np.float64)}, "B: got float64, wanted float32, as W is int8"),
    ]
    for error, cases in ((ValueError, wrong), (TypeError, wrong_types)):
        for replaced, message in cases:
            with pytest.raises(error, match=f"^node 'q': ({message})"):
                convert.from_onnx(dynamic_model(weights, replaced=replaced))
    model = dynamic_model(weights, replaced={"W_scale": None}, inputs=("X", "W_scale"))
    with pytest.raises(ValueError, match="node 'q': W_scale: got 'W_scale', which is not constant"):
        convert.from_onnx(model)
    with pytest.raises(ValueError, match="node 'q': Unrecognized attribute: layout"):
        convert.from_onnx(dynamic_model(weights, layout=1))
    model = dynamic_model(weights)
    model.graph.node[0].input.append("more")
    with pytest.raises(ValueError, match="node 'q': DynamicQuantizeLSTM: got 13 inputs, without n"):
        convert.from_onnx(model)
    model = dynamic_model(weights)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(TypeError, match="node 'q': X: is declared DOUBLE, wanted FLOAT"):
        convert.from_onnx(model)
    for call in (convert.from_onnx, convert.onnx_nodes):
        with pytest.raises(TypeError, match="dequantize: got "):
            call(model, dequantize="yes")


def test_a_model_with_several_nodes_lists_their_sizes() -> None:
    pytest.importorskip("onnx")
    weights = make_weights("LSTM", 2)
    model = dynamic_model(weights)
    second = model.graph.node.add()
    second.CopyFrom(model.graph.node[0])
    second.name, second.output[0] = "other", "Z"
    del second.attribute[:]
    shown = "(DynamicQuantizeLSTM, input 5, hidden 6"
    with pytest.raises(ValueError, match="there are several") as caught:
        convert.from_onnx(model)
    assert f"'q' {shown}, bidirectional)" in str(caught.value)
    assert f"'other' {shown})" in str(caught.value)


# ---- DequantizeLinear ----------------------------------------------------------------------------


def qdq_model(
    weights: Weights,
    nodes: list[Any],
    tensors: dict[str, np.ndarray],
    opset: int = 13,
    **attributes: Any,
) -> Any:
    """A node whose W and R the nodes make, or are among the tensors."""
    if weights.directions == 2:
        attributes["direction"] = "bidirectional"
    if weights.cell == "GRU":
        attributes["linear_before_reset"] = 1
    node = make_node(
        weights.cell, ["X", "W", "R", "B"], ["Y"], name="q", hidden_size=HIDDEN, **attributes
    )
    return make_model([*nodes, node], {"B": weights.b, **tensors}, opset=opset)


def dequantize_nodes(
    weights: Weights, unsigned: bool = False, per_channel: bool = False
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """W and R from one DequantizeLinear each: by a scalar, or by rows of the one direction."""
    nodes, tensors = [], {}
    middle, dtype = (128, np.uint8) if unsigned else (0, np.int8)
    for role, values, scale in (
        ("W", weights.w, weights.w_scale),
        ("R", weights.r, weights.r_scale),
    ):
        scale = scale[0] if per_channel else scale[0, 0]
        tensors[f"{role}q"] = (values.astype(np.int16) + middle).astype(dtype)
        tensors[f"{role}s"] = scale
        tensors[f"{role}z"] = np.full(scale.shape, middle, dtype)
        names = [f"{role}{part}" for part in "qsz"]
        axis = {"axis": 1} if per_channel else {}
        nodes.append(make_node("DequantizeLinear", names, [role], **axis))
    return nodes, tensors


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_dequantize_linear(cell: str, per_channel: bool, unsigned: bool) -> None:
    pytest.importorskip("onnx")
    weights = make_weights(cell, 1, per_channel)
    nodes, tensors = dequantize_nodes(weights, unsigned, per_channel)
    model = qdq_model(weights, nodes, tensors)
    layer = convert.from_onnx(model)
    assert_weights(layer, weights)
    same(convert.from_onnx(model, dequantize=True), weights.layer())
    x = make_x()
    y, bound = onnx_run(weights, x, own_rounding(x))
    assert (np.abs(layer(x)[0] - y) <= bound).all()
    # ONNX Runtime computes these with the dequantised weights.
    theirs = joined(ort_run(model, {"X": x})[0])
    assert (np.abs(theirs - y) <= FLOAT32_ERROR).all()


MOVED = {
    "Transpose": ["a = Transpose<perm = [0, 2, 1]>(q)", "W = Transpose<perm = [0, 2, 1]>(a)"],
    "Identity": ["a = Identity(q)", "W = Identity(a)"],
    "Reshape": ["a = Reshape(q, flat)", "W = Reshape(a, shape)"],
    "Unsqueeze": ["a = Squeeze(q, none)", "W = Unsqueeze(a, none)"],
    "Flatten": ["a = Flatten<axis = 2>(q)", "W = Unsqueeze(a, none)"],
    "Concat": ["a, b = Split<axis = 1>(q)", "W = Concat<axis = 1>(a, b)"],
    "Slice": [
        "a = Slice(q, none, three, one)",
        "b = Slice(q, three, many, one)",
        "W = Concat<axis = 1>(a, b)",
    ],
    "Gather": ["a = Gather<axis = 1>(q, back)", "W = Gather<axis = 1>(a, back)"],
    "Expand": ["a = Expand(q, shape)", "W = Gather<axis = 0>(a, none)"],
    "Tile": ["a = Tile(q, twice)", "W = Gather<axis = 0>(a, none)"],
}


@pytest.mark.parametrize("moves", list(MOVED))
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_moved_weights_keep_their_integers(cell: str, moves: str) -> None:
    """The scales of rows move with them."""
    onnx = pytest.importorskip("onnx")
    weights = make_weights(cell, 1, per_channel=True)
    nodes, tensors = dequantize_nodes(weights, per_channel=True)
    rows = weights.w.shape[1]
    nodes[0].output[0] = "q"
    body = "\n".join(MOVED[moves])
    parsed = onnx.parser.parse_graph(f"moves (float[] q) => (float[] W) {{ {body} }}")
    nodes += list(parsed.node)
    tensors.update(
        flat=np.array([-1]),
        shape=np.array(weights.w.shape),
        none=np.array([0]),
        one=np.array([1]),
        three=np.array([3]),
        many=np.array([rows]),
        back=np.arange(rows)[::-1].copy(),
        twice=np.array([2, 1, 1]),
    )
    model = qdq_model(weights, nodes, tensors)
    assert_weights(convert.from_onnx(model), weights)
    same(convert.from_onnx(model, dequantize=True), weights.layer())


@pytest.mark.parametrize("per_channel", [False, True])
def test_directions_joined_after_dequantize_linear(per_channel: bool) -> None:
    """As exporters do: matrices are stored transposed, and an axis of directions is added."""
    pytest.importorskip("onnx")
    weights = make_weights("LSTM", 2, per_channel)
    nodes, tensors = [], {"axis": np.array([0])}
    for role, values, scale in (
        ("W", weights.w, weights.w_scale),
        ("R", weights.r, weights.r_scale),
    ):
        for d in range(2):
            own = f"{role}{d}"
            tensors[f"{own}q"] = np.ascontiguousarray(values[d].T)
            tensors[f"{own}s"] = scale[d] if per_channel else scale[d, :1]
            names = [f"{own}q", f"{own}s"]
            nodes += [
                make_node("DequantizeLinear", names, [f"{own}a"], axis=1),
                make_node("Transpose", [f"{own}a"], [f"{own}b"]),
                make_node("Unsqueeze", [f"{own}b", "axis"], [f"{own}c"]),
            ]
            if not per_channel:
                tensors[f"{own}s"] = tensors[f"{own}s"].reshape(())
        nodes.append(make_node("Concat", [f"{role}0c", f"{role}1c"], [role], axis=0))
    model = qdq_model(weights, nodes, tensors)
    assert_weights(convert.from_onnx(model), weights)
    same(convert.from_onnx(model, dequantize=True), weights.layer())


def test_quantize_linear_of_stored_floats() -> None:
    pytest.importorskip("onnx")
    weights = make_weights("GRU")
    nodes, tensors = dequantize_nodes(weights)
    for role in "WR":
        tensors[f"{role}f"] = weights.floats[role]
        del tensors[f"{role}q"]
        names = [f"{role}f", f"{role}s", f"{role}z"]
        nodes.insert(0, make_node("QuantizeLinear", names, [f"{role}q"]))
    assert_weights(convert.from_onnx(qdq_model(weights, nodes, tensors)), weights)


def test_scales_of_blocks_of_rows() -> None:
    pytest.importorskip("onnx")
    weights = make_weights("LSTM")
    nodes, tensors = dequantize_nodes(weights)
    for k, (role, columns) in enumerate((("W", INPUTS), ("R", HIDDEN))):
        blocks = np.repeat(np.float32([0.01, 0.02, 0.03]), 8)[None]
        scales = np.repeat(blocks[:, ::8, None], columns, axis=2)
        tensors[f"{role}s"] = np.ascontiguousarray(scales)
        tensors[f"{role}z"] = np.zeros(scales.shape, np.int8)
        nodes[k].attribute.extend(make_node("", [], [], axis=1, block_size=8).attribute)
        setattr(weights, f"{role.lower()}_scale", blocks)
    assert_weights(convert.from_onnx(qdq_model(weights, nodes, tensors, opset=21)), weights)


def test_layouts_that_an_int8_layer_has_not_are_float32() -> None:
    pytest.importorskip("onnx")
    weights = make_weights("LSTM")

    def converted(opset: int = 13, **tensors: np.ndarray) -> Any:
        """W by these values, scales and so on; R as usual."""
        nodes, usual = dequantize_nodes(weights)
        if "axis" in tensors:
            axis = {"axis": int(tensors.pop("axis"))}
            nodes[0].attribute.extend(make_node("", [], [], **axis).attribute)
        model = qdq_model(weights, nodes, {**usual, **tensors}, opset=opset)
        return convert.from_onnx(model)

    assert converted().precision == "int8"
    scales = np.linspace(0.01, 0.02, INPUTS, dtype=np.float32)
    by_columns = converted(axis=np.array(2), Ws=scales, Wz=np.zeros(INPUTS, np.int8))
    floats = {**weights.floats, "W": weights.w * scales}
    same(by_columns, convert.onnx_lstm(**floats))
    # Equal scales of all columns are one scale of each row.
    scales = np.full(INPUTS, weights.w_scale[0, 0])
    equal = converted(axis=np.array(2), Ws=scales, Wz=np.zeros(INPUTS, np.int8))
    assert_weights(equal, weights)
    # Zero points of columns, and integers of another size.
    zero_points = np.arange(INPUTS, dtype=np.int8)
    assert converted(axis=np.array(2), Ws=scales, Wz=zero_points).precision == "float32"
    wide = converted(opset=21, Wq=weights.w.astype(np.int16), Wz=np.int16(0))
    same(wide, weights.layer())

    nodes, tensors = dequantize_nodes(weights)
    for role, position in (("W", 0), ("R", 1)):  # one of them is stored in float32
        one = [nodes[1 - position]]
        stored = {**tensors, role: weights.floats[role]}
        same(convert.from_onnx(qdq_model(weights, one, stored)), weights.layer())
    doubled = [*nodes, make_node("Add", ["W0", "W0"], ["W"])]
    nodes[0].output[0] = "W0"
    layer = convert.from_onnx(qdq_model(weights, doubled, tensors))
    same(layer, convert.onnx_lstm(**{**weights.floats, "W": 2 * weights.floats["W"]}))


def test_dequantize_linear_that_an_int8_layer_cannot_hold_is_refused() -> None:
    pytest.importorskip("onnx")
    weights = make_weights("LSTM")
    unsigned = (weights.r.astype(np.int16) + 128).astype(np.uint8)
    refused: list[tuple[dict[str, np.ndarray], str]] = [
        ({"Wz": np.int8(3)}, r"W: got the zero point 3 at \[0, 0\], wanted 0 for int8 weights"),
        (
            {"Rz": np.uint8(0), "Rq": unsigned},
            r"R: got the zero point 0 at \[0, 0\], wanted 128 for uint8 weights",
        ),
        ({"Rs": np.float32(np.nan)}, r"R: got the scale nan at \[0, 0\]"),
    ]
    for replaced, message in refused:
        nodes, tensors = dequantize_nodes(weights)
        model = qdq_model(weights, nodes, {**tensors, **replaced})
        with pytest.raises(ValueError, match=f"^node 'q': {message}{ADVICE}"):
            convert.from_onnx(model)
        assert convert.from_onnx(model, dequantize=True).precision == "float32"


def test_large_weights_are_not_too_much() -> None:
    """Moving integers and scales is not counted beside moving the floats."""
    pytest.importorskip("onnx")
    rows = 4 * 600
    tensors = {
        "Wq": np.ones((600, rows), np.int8),
        "Rq": np.ones((600, rows), np.int8),
        "s": np.full(rows, 0.01, np.float32),
        "axis": np.array([0]),
    }
    nodes = []
    for role in "WR":
        names = [role + part for part in "qabcdef"]
        nodes += [
            make_node("DequantizeLinear", [names[0], "s"], names[1:2], axis=1),
            make_node("Transpose", names[1:2], names[2:3]),
            make_node("Unsqueeze", [names[2], "axis"], names[3:4]),
            *(make_node("Identity", names[k : k + 1], names[k + 1 : k + 2]) for k in (3, 4, 5)),
            make_node("Identity", names[6:], [role]),
        ]
    node = make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=600)
    layer = convert.from_onnx(make_model([*nodes, node], tensors, opset=13))
    assert_integers(layer, np.ones(2 * 600 * rows, np.int8), np.tile(tensors["s"], 2))


@pytest.fixture(scope="module")
def serialised() -> list[bytes]:
    pytest.importorskip("onnx")
    weights = make_weights("LSTM", 1, per_channel=True)
    nodes, tensors = dequantize_nodes(weights, per_channel=True)
    nodes[0].output[0] = "a"
    nodes += [make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1])]
    nodes += [make_node("Transpose", ["b"], ["W"], perm=[0, 2, 1])]
    models = dynamic_model(weights, True, clip=2.0), qdq_model(weights, nodes, tensors)
    return [model.SerializeToString() for model in models]


@settings(max_examples=200, deadline=None)
@given(
    which=st.integers(0, 1),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    dequantize=st.booleans(),
)
def test_damaged_models_convert_or_are_refused(
    serialised: list[bytes], which: int, edits: list[tuple[int, int]], dequantize: bool
) -> None:
    onnx = pytest.importorskip("onnx")
    damaged = bytearray(serialised[which])
    for position, value in edits:
        # Half of them not among the weights, but in the nodes and names.
        position %= 1000 if position % 2 else len(damaged)
        damaged[position % len(damaged)] = value
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(damaged))
    except Exception:  # protobuf's DecodeError
        return
    with contextlib.suppress(TypeError, ValueError):
        convert.onnx_nodes(model, dequantize=dequantize)


# ---- PyTorch -------------------------------------------------------------------------------------


@pytest.fixture
def torch() -> Any:
    torch = pytest.importorskip("torch")
    if not hasattr(torch, "ao") or not torch.backends.quantized.supported_engines:
        pytest.skip("this PyTorch has no engine for quantised layers")
    return torch


def quantize_dynamic(torch: Any, module: Any, scheme: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated
        ao = torch.ao.quantization
        config = {
            "per tensor": ao.default_dynamic_qconfig,
            "per channel": ao.per_channel_dynamic_qconfig,
            "float16": ao.float16_dynamic_qconfig,
        }[scheme]
        try:
            return ao.quantize_dynamic(module, dict.fromkeys((torch.nn.LSTM, torch.nn.GRU), config))
        except RuntimeError as error:
            pytest.skip(f"this engine does not quantise it: {error}")


def float_module(torch: Any, cell: str, seed: int = 0, extreme: float = 1.0, **options: Any) -> Any:
    """A module whose rows have a number of greatest magnitude, of the sign of `extreme`.

    PyTorch's scale is this magnitude / 127.5. If the number is negative, it becomes -128, which
    layers of `quantize` do not have.
    """
    torch.manual_seed(seed)
    module = getattr(torch.nn, cell)(INPUTS, HIDDEN, **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("weight"):
                gates = len(ORDERS[cell, "torch"])
                sizes = np.repeat(np.linspace(0.4, 1, gates), HIDDEN)
                parameter *= torch.tensor(sizes[:, None], dtype=torch.float32)
                parameter[:, 0] = 1.1 * parameter.abs().max(dim=1).values * extreme
    return module


def stored_weights(module: Any) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The integers and scales of a quantised module in the layer's order, and all as floats."""
    integers, scales, floats = [], [], {}
    weight, bias = module.get_weight(), module.get_bias()
    for name, tensor in weight.items():
        if tensor.is_quantized:
            values = tensor.int_repr().numpy()
            if "channel" in str(tensor.qscheme()):
                own = tensor.q_per_channel_scales().numpy().astype(np.float32)
            else:
                own = np.full(len(values), tensor.q_scale(), np.float32)
            integers.append(values.reshape(-1))
            scales.append(own)
            floats[name] = values * own[:, None]
        else:
            floats[name] = tensor.numpy()
    floats.update((name, tensor.detach().numpy()) for name, tensor in bias.items())
    if not integers:
        return np.empty(0), np.empty(0), floats
    return np.concatenate(integers), np.concatenate(scales), floats


MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"num_layers": 3},
    "bidirectional": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "dropout": {"num_layers": 2, "dropout": 0.25},
}


@pytest.mark.parametrize("scheme", ["per tensor", "per channel"])
@pytest.mark.parametrize("options", list(MODULES))
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_quantised_modules(torch: Any, cell: str, options: str, scheme: str) -> None:
    module = quantize_dynamic(
        torch, torch.nn.ModuleDict({"rnn": float_module(torch, cell, **MODULES[options])}), scheme
    )
    layer = convert.from_torch(module, "rnn")
    plain = getattr(tg, cell)(INPUTS, HIDDEN, **MODULES[options])
    assert repr(layer) == f"{plain!r}.quantize('int8')"
    integers, scales, floats = stored_weights(module["rnn"])
    if scheme == "per channel":
        assert len(np.unique(scales)) > 2 * len(ORDERS[cell, "torch"])
    assert_integers(layer, integers, scales)
    for name, array in floats.items():
        assert layer.params[name].tobytes() == array.tobytes(), name
    dequantized = convert.from_torch(module, "rnn", dequantize=True)
    assert repr(dequantized) == repr(plain)
    assert dequantized.params.flat.tobytes() == layer.params.flat.tobytes()

    for kwargs in ({}, {"cell": cell}):
        assert_integers(convert.from_torch(module["rnn"], **kwargs), integers, scales)
    known = MODULES[options].get("batch_first", False)
    from_state = convert.from_torch(module.state_dict(), "rnn.", batch_first=known)
    assert_integers(from_state, integers, scales)
    assert from_state.bidirectional == plain.bidirectional
    other = {"LSTM": "GRU", "GRU": "LSTM"}[cell]
    with pytest.raises(ValueError, match=f"cell: got '{other}', but weight_hh has the shape of a"):
        convert.from_torch(module, "rnn", cell=other)


@pytest.mark.parametrize("extreme", [1.0, -1.0])
@pytest.mark.parametrize("scheme", ["per tensor", "per channel"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_quantised_modules_against_pytorch(
    torch: Any, cell: str, scheme: str, extreme: float, any_isa: str
) -> None:
    source = float_module(torch, cell, extreme=extreme)
    module = quantize_dynamic(torch, torch.nn.Sequential(source), scheme)[0]
    assert (stored_weights(module)[0].min() == -128) == (extreme < 0)
    layer = convert.from_torch(module)
    floats = stored_weights(module)[2]
    names = {"w": "weight_ih", "r": "weight_hh", "b_w": "bias_ih", "b_r": "bias_hh"}
    params = {short: floats[f"{name}_l0"] for short, name in names.items()}
    x = make_x()
    with torch.no_grad():
        theirs = module(torch.tensor(x))[0].numpy()
    y, bound = bounded_run(cell, "torch", x, params, tensor_rounding(x, 127))
    assert (np.abs(theirs - y) <= bound).all()
    y, own_bound = bounded_run(cell, "torch", x, params, own_rounding(x))
    ours = layer(x)[0]
    assert (np.abs(ours - y) <= own_bound).all()
    other, _ = bounded_run(cell, "onnx", x, params, own_rounding(x))
    assert (np.abs(other - y) > bound).any()


def test_integers_that_only_pytorch_has(torch: Any) -> None:
    module = quantize_dynamic(
        torch, torch.nn.Sequential(float_module(torch, "LSTM", extreme=-1.0)), "per channel"
    )
    integers, scales, floats = stored_weights(module[0])
    quantised = convert.from_torch(module, "0")
    assert_integers(quantised, integers, scales)
    layer = convert.from_torch(module, "0", dequantize=True)
    assert quantised.params.flat.tobytes() == layer.params.flat.tobytes()
    assert layer.precision == "float32"
    for name, array in floats.items():
        assert layer.params[name].tobytes() == array.tobytes(), name
    both = convert.from_torch(module, "0", dequantize=True, precision="int8")
    assert repr(both) == repr(layer.quantize("int8"))
    assert_integers(both, *(layer.quantize("int8")._model.quantized[k] for k in ("int8", "scales")))


def test_float16_modules_are_float32(torch: Any) -> None:
    for cell in ("LSTM", "GRU"):
        source = float_module(torch, cell, num_layers=2)
        module = quantize_dynamic(torch, torch.nn.Sequential(source), "float16")
        layer = convert.from_torch(module, "0")
        assert repr(layer) == repr(getattr(tg, cell)(INPUTS, HIDDEN, 2))
        for name, tensor in source.named_parameters():
            wanted = tensor.detach().numpy()
            if name.startswith("weight"):
                wanted = wanted.astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(layer.params[name], wanted)
        same(convert.from_torch(module, "0", dequantize=True), layer)


def test_layers_of_which_only_some_are_int8_are_float32(torch: Any) -> None:
    source = float_module(torch, "LSTM", num_layers=2)
    module, halves = (
        quantize_dynamic(torch, torch.nn.Sequential(source), scheme)[0]
        for scheme in ("per tensor", "float16")
    )
    module._all_weight_values[1] = halves._all_weight_values[1]
    layer = convert.from_torch(module)
    assert repr(layer) == repr(tg.LSTM(INPUTS, HIDDEN, 2))
    floats = stored_weights(module)[2]
    for name, array in floats.items():
        np.testing.assert_array_equal(layer.params[name], array)


def test_packed_weights_that_do_not_reveal_directions(torch: Any) -> None:
    torch.manual_seed(0)
    source = torch.nn.LSTM(HIDDEN, HIDDEN, num_layers=2)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if name.startswith("weight"):
                parameter[:, 0] = 1
    module = quantize_dynamic(torch, torch.nn.Sequential(source), "per tensor")[0]
    assert convert.from_torch(module).num_layers == 2
    with pytest.raises(
        ValueError, match=r"2 packed weights with input sizes \[6, 6\] and hidden_size 6 do not rev"
    ):
        convert.from_torch(module.state_dict())
    state = dict(module.state_dict())
    first, second = state
    with pytest.raises(
        ValueError, match=f"state_dict: missing '{re.escape(first)}', but has '_all"
    ):
        convert.from_torch({second: state[second]})
    single = convert.from_torch({first: state[first]})
    assert (single.num_layers, single.bidirectional) == (1, False)
    with pytest.raises(TypeError, match=rf"{re.escape(first)}: got Tensor, wanted packed weights"):
        convert.from_torch({first: torch.zeros(3)})
    inner = state[first].__getstate__()[0][4][0]
    with pytest.raises(TypeError, match=rf"{re.escape(first)}: got ScriptObject, wanted packed"):
        convert.from_torch({first: inner})


def test_files_of_packed_weights(torch: Any, tmp_path: pathlib.Path) -> None:
    module = quantize_dynamic(torch, torch.nn.Sequential(float_module(torch, "GRU")), "per tensor")
    torch.save(module.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"pass what torch\.load\(path, weights_only=False\) ret"):
        convert.from_torch(tmp_path / "model.pt", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own use of what it deprecates
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert_integers(convert.from_torch(loaded, "0"), *stored_weights(module[0])[:2])


# ---- precision= ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_bfloat16_checkpoints_keep_their_bits(
    torch: Any, tmp_path: pathlib.Path, cell: str
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    module = getattr(torch.nn, cell)(INPUTS, HIDDEN, num_layers=2, bidirectional=True)
    module = module.to(torch.bfloat16)
    safetensors.save_file(module.state_dict(), tmp_path / "model.safetensors")
    torch.save(module.state_dict(), tmp_path / "model.pt")
    sources = [module, module.state_dict(), tmp_path / "model.safetensors", tmp_path / "model.pt"]
    weights = {name: tensor for name, tensor in module.named_parameters() if "weight" in name}
    bits = np.concatenate(
        [tensor.detach().view(torch.int16).numpy().reshape(-1) for tensor in weights.values()]
    )
    for source in sources:
        exact = convert.from_torch(source)
        assert exact.precision == "float32"
        layer = convert.from_torch(source, precision="bfloat16")
        assert layer.precision == "bfloat16"
        np.testing.assert_array_equal(layer._model.quantized["bfloat16"], bits.view(np.uint16))
        same(layer.dequantize(), exact)
        layer = convert.from_torch(source, precision="int8")
        assert repr(layer) == repr(exact.quantize("int8"))
        assert layer.params.flat.tobytes() == exact.quantize("int8").params.flat.tobytes()


def test_precision_of_other_sources(tmp_path: pathlib.Path) -> None:
    state_dict = tg.LSTM(3, 4, seed=0).state_dict()
    halves = {name: array.astype(np.float16) for name, array in state_dict.items()}
    exact = convert.from_torch(halves)
    for precision in ("bfloat16", "bfloat16-dot", "int8"):
        layer = convert.from_torch(halves, precision=precision)
        assert layer.params.flat.tobytes() == exact.quantize(precision).params.flat.tobytes()
    linear = {"weight": np.eye(3, dtype=np.float32), "bias": np.ones(3, np.float32)}
    assert convert.from_torch(linear, precision="int8").precision == "int8"
    with pytest.raises(ValueError, match="precision: got 'int8', but an Embedding's weight is an"):
        convert.from_torch({"weight": np.eye(3)}, cell="Embedding", precision="int8")
    doubles = {name: array.astype(np.float64) for name, array in state_dict.items()}
    with pytest.raises(ValueError, match=r"precision: got 'int8' for weights in float64: .*astype"):
        convert.from_torch(doubles, precision="int8")
    with pytest.raises(ValueError, match="precision: got 'float16', wanted 'bfloat16', 'bf"):
        convert.from_torch(state_dict, precision="float16")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="precision: got 8, wanted"):
        convert.from_torch(state_dict, precision=8)  # type: ignore[call-overload]

    file = pathlib.Path(__file__).parent / "keras_files" / "keras3_lstm_hard.keras"
    layer = convert.from_keras(file, precision="int8")
    assert repr(layer) == repr(convert.from_keras(file).quantize("int8"))
    with pytest.raises(ValueError, match="precision: got 'int4', wanted"):
        convert.from_keras(file, precision="int4")


def test_precision_of_merged_directions() -> None:
    file = pathlib.Path(__file__).parent / "keras_files" / "keras3_bi_ave.keras"
    merged = convert.from_keras(file, precision="bfloat16")
    assert isinstance(merged, convert.Merged)
    assert merged.merge_mode == "ave"
    assert merged.layer.precision == "bfloat16"


def test_precision_of_onnx_models() -> None:
    pytest.importorskip("onnx")
    weights = make_weights("GRU")
    floats = qdq_model(weights, [], {role: weights.floats[role] for role in "WR"})
    layer = convert.from_onnx(floats, precision="bfloat16")
    assert repr(layer) == repr(weights.layer().quantize("bfloat16"))
    model = qdq_model(weights, *dequantize_nodes(weights))
    assert_weights(convert.from_onnx(model, precision="int8"), weights)
    with pytest.raises(
        ValueError, match="precision: got 'bfloat16' for weights in int8: pass dequantize=True"
    ):
        convert.from_onnx(model, precision="bfloat16")
    layer = convert.from_onnx(model, precision="bfloat16", dequantize=True)
    assert repr(layer) == repr(weights.layer().quantize("bfloat16"))
    with pytest.raises(ValueError, match="precision: got 'int4', wanted"):
        convert.from_onnx(model, precision="int4")  # type: ignore[arg-type]


# ---- A published model ---------------------------------------------------------------------------


def test_text_recognition_of_ddddocr() -> None:
    """The package's model with an int8 LSTM reads the same text through the layer.

    The graph runs in ONNX Runtime up to the node, and from its output on.
    """
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    spec = importlib.util.find_spec("ddddocr")  # without importing it, which needs OpenCV
    if spec is None or spec.origin is None:
        pytest.skip("ddddocr is not installed")
    image = pytest.importorskip("PIL.Image")
    draw, font = pytest.importorskip("PIL.ImageDraw"), pytest.importorskip("PIL.ImageFont")
    path = pathlib.Path(spec.origin).parent / "common_old.onnx"
    model = onnx.load(str(path))
    layer = convert.from_onnx(path)
    assert repr(layer) == "LSTM(512, 512, bidirectional=True).quantize('int8')"

    (node,) = (node for node in model.graph.node if node.op_type == "DynamicQuantizeLSTM")
    whole, rest = onnx.ModelProto(), onnx.ModelProto()
    whole.CopyFrom(model)
    rest.CopyFrom(model)
    (result,) = (output.name for output in model.graph.output)
    for name in (node.input[0], node.output[0]):
        whole.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    rest.graph.node.remove(node)
    rest.graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], 1, None))
    sessions = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
        for m in (whole, rest)
    ]
    for text in ("8kQ3F", "tidegate", "W7xm2"):
        picture = image.new("L", (30 * len(text), 64), 255)
        draw.Draw(picture).text((8, 10), text, fill=20, font=font.load_default(size=36))
        pixels = (np.asarray(picture, np.float32)[None, None] / 255 - 0.5) / 0.5
        names = [node.input[0], node.output[0], result]
        x, y, wanted = sessions[0].run(names, {"input1": pixels})
        own = layer(x)[0].reshape(*x.shape[:2], 2, -1).transpose(0, 2, 1, 3)
        assert np.abs(own - y).mean() < 0.02
        feeds = {"input1": pixels, node.output[0]: np.ascontiguousarray(own)}
        (got,) = sessions[1].run([result], feeds)
        assert (wanted.argmax(axis=-1) > 0).sum() >= len(text) - 2
        np.testing.assert_array_equal(got.argmax(axis=-1), wanted.argmax(axis=-1))
