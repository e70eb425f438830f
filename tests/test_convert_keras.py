# Keras to layers: arrays and files always, objects if Keras is installed. keras_files/ has what
# Keras 2 and 3 wrote; files that no Keras writes any more, or ever should, are made here by h5py.
from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import struct
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden_cases
from tidegate import convert

# Of Keras's own, on PyTorch and NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FILES = pathlib.Path(__file__).parent / "keras_files"
HARD_2 = "hard_sigmoid"
HARD_3 = ("hard_sigmoid", 1 / 6, 0.5)


def same(layer: Any, expected: Any) -> None:
    assert repr(layer) == repr(expected)
    assert layer.params.flat.tobytes() == expected.params.flat.tobytes()


def arrays(
    cell: str = "LSTM", inputs: int = 2, units: int = 3, seed: int = 0, rows: int = 1
) -> list[np.ndarray]:
    """kernel, recurrent_kernel, bias; the bias has `rows` rows if more than one."""
    width = {"LSTM": 4, "GRU": 3}[cell] * units
    rng = np.random.default_rng(seed)
    shapes = [(inputs, width), (units, width), (width,) if rows == 1 else (rows, width)]
    return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


# ---- Goldens -------------------------------------------------------------------------------------

GOLDENS = {
    f"keras-{number}-{golden['test']}".replace(" ", ""): golden
    for number, golden in enumerate(golden_cases._read("golden_cases.json"))
    if golden["framework"] == "keras"
}
CASES = {case.name: case for case in golden_cases.covered_cases()}


def test_all_goldens_are_here() -> None:
    assert len(GOLDENS) == 43
    assert GOLDENS.keys() <= CASES.keys()


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    golden, case = GOLDENS[name], CASES[name]
    parts = [part for part in ("layer", "forward", "backward") if part in golden["config"]]
    config = golden["config"][parts[0]]
    weights = [
        [golden_cases._float32(array) for array in golden["weights"][part]] for part in parts
    ]
    options = {"go_backwards": config["go_backwards"]}
    if golden["op"] == "GRU":
        options["reset_after"] = config["reset_after"]
    if len(weights) > 1:
        options["backward"] = weights[1]
    make = {"LSTM": convert.keras_lstm, "GRU": convert.keras_gru}[golden["op"]]
    layer = make(*weights[0], **options)
    assert layer.batch_first
    y, state = layer(case.x.transpose(1, 0, 2), case.state, lengths=case.lengths)
    assert case.expected
    for expected in case.expected:
        error = np.abs(expected.of(y.transpose(1, 0, 2), state) - expected.values)
        assert (error <= expected.atol).all(), (expected.output, error.max())

    mask = golden["inputs"]["mask"]
    if mask is not None:
        mask = np.array(mask, bool)
        holes = (mask[:, 1:] & ~mask[:, :-1]).any()
        with pytest.raises(ValueError, match="valid steps after") if holes else _nothing():
            np.testing.assert_array_equal(convert.keras_lengths(mask), case.lengths)


_nothing = contextlib.nullcontext


# ---- Arrays --------------------------------------------------------------------------------------


def test_gates_and_biases_of_an_lstm() -> None:
    kernel, recurrent, bias = arrays()
    layer = convert.keras_lstm(kernel, recurrent, bias)
    assert repr(layer) == "LSTM(2, 3, batch_first=True)"
    np.testing.assert_array_equal(layer.params["weight_ih_l0"], kernel.T)
    np.testing.assert_array_equal(layer.params["weight_hh_l0"], recurrent.T)
    np.testing.assert_array_equal(layer.params["bias_ih_l0"], bias)
    np.testing.assert_array_equal(layer.params["bias_hh_l0"], 0)
    plain = convert.keras_lstm(kernel, recurrent, time_major=True, go_backwards=True)
    assert repr(plain) == "LSTM(2, 3, bias=False, reverse=True)"
    own = convert.keras_lstm(kernel, recurrent, recurrent_activation=HARD_3, activation="relu")
    assert (own.recurrent_activation, own.activation) == (HARD_3, "relu")


def test_gates_and_biases_of_a_gru() -> None:
    """Ours are r z n, Keras's z r h."""
    kernel, recurrent, bias = arrays("GRU", rows=2)
    layer = convert.keras_gru(kernel, recurrent, bias)
    assert repr(layer) == "GRU(2, 3, batch_first=True)"
    z, r, h = np.split(recurrent.T, 3)
    np.testing.assert_array_equal(layer.params["weight_hh_l0"], np.concatenate([r, z, h]))
    z, r, h = np.split(bias[1], 3)
    np.testing.assert_array_equal(layer.params["bias_hh_l0"], np.concatenate([r, z, h]))
    assert not convert.keras_gru(kernel, recurrent, bias[0]).reset_after
    assert convert.keras_gru(kernel, recurrent).reset_after
    assert not convert.keras_gru(kernel, recurrent, reset_after=False).reset_after
    for wrong, given_bias in ((False, bias), (True, bias[0])):
        with pytest.raises(ValueError, match=f"reset_after: got {wrong}, but the bias has the sha"):
            convert.keras_gru(kernel, recurrent, given_bias, reset_after=wrong)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_cudnn_layout(cell: str) -> None:
    """A CuDNN layer's kernel holds, gate by gate, cuDNN's own matrix (H, in) read row by row."""
    gates = {"LSTM": 4, "GRU": 3}[cell]
    make = {"LSTM": convert.keras_lstm, "GRU": convert.keras_gru}[cell]
    kernel, recurrent, bias = arrays(cell, rows=2)
    stored = [
        np.concatenate(
            [block.T.reshape(block.shape) for block in np.split(array, gates, axis=1)], axis=1
        )
        for array in (kernel, recurrent)
    ]
    layer = make(*stored, bias.reshape(-1))
    params = make(kernel, recurrent).params
    for name in ("weight_ih_l0", "weight_hh_l0"):
        np.testing.assert_array_equal(layer.params[name], params[name])
    if cell == "GRU":
        same(layer, convert.keras_gru(kernel, recurrent, bias))
    else:
        np.testing.assert_array_equal(layer.params["bias_ih_l0"], bias[0])
        np.testing.assert_array_equal(layer.params["bias_hh_l0"], bias[1])


def test_bidirectional_arrays() -> None:
    layer = convert.keras_lstm(*arrays(seed=0), backward=arrays(seed=1))
    assert repr(layer) == "LSTM(2, 3, bidirectional=True, batch_first=True)"
    np.testing.assert_array_equal(layer.params["weight_hh_l0_reverse"], arrays(seed=1)[1].T)


def test_refused_arrays() -> None:
    kernel, recurrent, bias = arrays()
    lstm: Any = convert.keras_lstm

    def refused(kind: type[Exception], message: str, *args: Any, **options: Any) -> None:
        with pytest.raises(kind, match=message):
            lstm(*args, **options)

    refused(TypeError, "kernel: got list, wanted an ndarray", [[1.0]], recurrent)
    refused(TypeError, "^kernel: got None, wanted an ndarray", None, recurrent)
    refused(TypeError, "bias: got dtype int64", kernel, recurrent, np.zeros(12, int))
    refused(TypeError, "wanted one dtype", kernel, recurrent, bias.astype(float))
    refused(ValueError, r"recurrent_kernel: got shape \(3, 11\), wanted", kernel, recurrent[:, 1:])
    refused(ValueError, r"^kernel: got shape \(2, 11\), wanted \(2, 12\)", kernel[:, 1:], recurrent)
    refused(ValueError, r"^kernel: got shape \(0, 12\)", kernel[:0], recurrent)
    refused(ValueError, r"bias: got shape \(5,\), wanted \(12,\), or two", *arrays()[:2], bias[:5])
    refused(TypeError, "go_backwards: got 1", kernel, recurrent, go_backwards=1)
    refused(TypeError, "time_major: got None", kernel, recurrent, time_major=None)
    refused(TypeError, "backward: wanted a sequence of kernel", kernel, recurrent, backward=kernel)
    both = {"backward": arrays(), "go_backwards": True}
    refused(ValueError, "go_backwards: got True in a Bidirectional", *arrays(), **both)
    refused(ValueError, "backward bias: has another form", *arrays(), backward=arrays()[:2])
    wide = arrays(units=4)
    refused(ValueError, "weight_ih_l0_reverse: got shape", *arrays(), backward=wide)
    with pytest.raises(ValueError, match=r"for the 3 gates of 3 units of a GRU"):
        convert.keras_gru(*arrays())


def test_lengths_of_masks() -> None:
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    lengths = convert.keras_lengths(mask)
    np.testing.assert_array_equal(lengths, [2, 0, 3])
    assert lengths.dtype == np.int64
    with pytest.raises(ValueError, match="mask: row 1 has valid steps after masked ones"):
        convert.keras_lengths(np.array([[1, 0], [0, 1]], bool))
    with pytest.raises(TypeError, match="mask: got float64, wanted an ndarray of bool"):
        convert.keras_lengths(np.ones((2, 2)))
    with pytest.raises(TypeError, match="mask: got list, wanted an ndarray of bool"):
        convert.keras_lengths([[True]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mask: got shape \(2,\), wanted \(N, T\)"):
        convert.keras_lengths(np.ones(2, bool))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_arrays_convert_or_are_refused_by_name(data: st.DataObject) -> None:
    cell = data.draw(st.sampled_from(["LSTM", "GRU"]))
    given = arrays(cell)
    for position in data.draw(st.lists(st.integers(0, 2), max_size=2)):
        shape = tuple(data.draw(st.lists(st.sampled_from([0, 2, 3, 9, 12, 18, 24]), max_size=3)))
        given[position] = np.zeros(shape, data.draw(st.sampled_from([np.float32, np.int8, bool])))
    make = {"LSTM": convert.keras_lstm, "GRU": convert.keras_gru}[cell]
    message = ""
    try:
        layer = make(*given)
    except (TypeError, ValueError) as error:
        message = str(error)
    if message:
        assert message.split(":")[0] in ("kernel", "recurrent_kernel", "bias")
    else:
        assert layer.hidden_size == given[1].shape[0]


# ---- Files that Keras wrote ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def h5py() -> Any:
    return pytest.importorskip("h5py")


WRITTEN: list[tuple[str, dict[str, Any] | None, str, dict[str, Any]]] = [
    # File, configuration if it has none, merge mode, options of the layer.
    ("keras2_lstm_w.h5", {}, "concat", {}),
    (
        "keras2_lstm_hard.h5",
        None,
        "concat",
        {"recurrent_activation": HARD_2, "activation": "relu", "bias": False},
    ),
    (
        "keras2_gru_before.keras",
        None,
        "concat",
        {"recurrent_activation": HARD_2, "reset_after": False},
    ),
    ("keras2_bi_sum.h5", None, "sum", {"bidirectional": True}),
    ("keras2_bi_none.keras", None, "none", {"bidirectional": True, "reset_after": True}),
    ("keras2_back.h5", None, "concat", {"reverse": True}),
    ("keras2_rnncell.h5", None, "concat", {}),
    ("keras2_cudnnlstm.h5", None, "concat", {}),
    ("keras2_cudnngru.keras", None, "concat", {"reset_after": True}),
    ("keras2_bicudnn.keras", None, "concat", {"bidirectional": True}),
    ("keras2_bicudnn_w.h5", {}, "concat", {"bidirectional": True}),
    (
        "keras3_lstm_hard.keras",
        None,
        "concat",
        {"recurrent_activation": HARD_3, "activation": "relu", "bias": False},
    ),
    (
        "keras3_gru_before.h5",
        None,
        "concat",
        {"recurrent_activation": HARD_3, "reset_after": False},
    ),
    ("keras3_bi_ave.keras", None, "ave", {"bidirectional": True}),
    ("keras3_bi_mul.weights.h5", {"merge_mode": "mul"}, "mul", {"bidirectional": True}),
]


@pytest.mark.parametrize(("file", "config", "merge_mode", "options"), WRITTEN)
def test_files(file: str, config: Any, merge_mode: str, options: dict[str, Any]) -> None:
    converted = convert.from_keras(FILES / file, config=config)
    layer: Any = converted
    if merge_mode != "concat":
        assert isinstance(converted, convert.Merged)
        assert converted.merge_mode == (None if merge_mode == "none" else merge_mode)
        layer = converted.layer
    for option, value in options.items():
        assert getattr(layer, option) == value
    with np.load(FILES / "outputs.npz") as outputs:
        x = outputs["x"]
        wanted = outputs[file.split(".")[0].removesuffix("_w")]
    y, _ = layer(x)
    if layer.bidirectional and merge_mode != "concat":
        forward, backward = np.split(y, 2, axis=-1)
        y = {
            "sum": forward + backward,
            "mul": forward * backward,
            "ave": (forward + backward) / 2,
            "none": np.stack([forward, backward]),
        }[merge_mode]
    if layer.reverse:
        y = y[:, ::-1]
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-6)


def test_names() -> None:
    """The same layers from every format, by whatever name the file has for them."""
    layers = []
    for file, names in {
        "keras2_nested.h5": ["inner_gru", "outer", "lstm_7"],
        "keras2_nested.keras": ["inner_gru", "outer", "lstm_7"],
        "keras2_nested_w.h5": ["inner", "outer", "lstm_7"],
        "keras3_nested.keras": ["inner_gru", "outer", "lstm_9"],
        "keras3_nested.weights.h5": ["inner_gru", "outer", "lstm_9"],
    }.items():
        config = {} if "_w." in file or ".weights." in file else None
        layers.append([convert.from_keras(FILES / file, name, config=config) for name in names])
        assert [repr(layer) for layer in layers[-1]] == [
            "GRU(5, 7, batch_first=True)",
            "LSTM(5, 3, batch_first=True)",
            "LSTM(3, 4, batch_first=True)",
        ]
        with pytest.raises(
            ValueError, match=rf"name: got None, but .*{file} has several: "
        ) as info:
            convert.from_keras(FILES / file)
        assert all(repr(name) in str(info.value) for name in names)
        with pytest.raises(ValueError, match="name: got 'absent', wanted one of '"):
            convert.from_keras(FILES / file, "absent")
    for group in (layers[:3], layers[3:]):
        for others in group[1:]:
            for layer, other in zip(group[0], others):
                same(layer, other)
    two = FILES / "keras2_two.weights.h5"
    with pytest.raises(ValueError, match=r"several: 'layers/gru', 'layers/lstm'$"):
        convert.from_keras(two)
    assert convert.from_keras(two, "layers/gru", config={}).hidden_size == 4


def test_configurations_for_files_without(h5py: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        for number, array in enumerate(arrays("GRU")[:2]):
            file[f"layers/gru/cell/vars/{number}"] = array
    with pytest.raises(ValueError, match=r"config: got None, but .* only weights.* or config=\{\}"):
        convert.from_keras(path)
    assert convert.from_keras(path, config={}).reset_after
    layer = convert.from_keras(
        path,
        config={
            "reset_after": False,
            "go_backwards": True,
            "units": 3,
            "recurrent_activation": HARD_3,
            "activation": "linear",
        },
    )
    wanted = convert.keras_gru(
        *arrays("GRU")[:2],
        reset_after=False,
        go_backwards=True,
        recurrent_activation=HARD_3,
        activation="affine",
    )
    same(layer, wanted)

    def refused(message: str, **config: Any) -> None:
        with pytest.raises(ValueError, match=message):
            convert.from_keras(path, config={"reset_after": True, **config})

    refused("units: got 4, but the weights have 3", units=4)
    refused("got 2 arrays for a direction, wanted 3", use_bias=True)
    refused(
        "activation: got 'swish', which no layer has: wanted one of 'tanh', ", activation="swish"
    )
    refused("does not have Keras's version: wanted", recurrent_activation="hard_sigmoid")
    leaky = {"module": "keras.layers", "class_name": "LeakyReLU", "config": {"alpha": 0.3}}
    refused("activation: got LeakyReLU with {'alpha': 0.3}, which no layer has", activation=leaky)
    function = {"module": "builtins", "class_name": "function", "config": "mine"}
    refused("activation: got 'mine', which no layer has", activation=function)
    refused("config: got 'go_backward', which no recurrent layer of Keras has$", go_backward=True)
    refused(
        "config: got 'class_name', 'config', .* a serialised layer, pass only its 'config'",
        class_name="GRU",
        config={"units": 3},
    )
    with pytest.raises(TypeError, match="config: got int"):
        convert.from_keras(path, config=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"config: .*keras3_bi_ave\.keras has one of its own"):
        convert.from_keras(FILES / "keras3_bi_ave.keras", config={})


# ---- Files made here -----------------------------------------------------------------------------


def write_old(
    h5py: Any,
    path: pathlib.Path,
    layers: dict[str, dict[str, np.ndarray]],
    config: Any = None,
    version: str = "2.1.6",
    chunks: int = 1,
) -> None:
    """The layout of Keras 2 and before: layer -> name of a weight -> array."""
    with h5py.File(path, "w") as file:
        root = file
        if config is not None:
            file.attrs["model_config"] = json.dumps(config).encode()
            file.attrs["keras_version"] = version.encode()
            root = file.create_group("model_weights")
        else:
            root.attrs["keras_version"] = version.encode()
        names = [name.encode() for name in layers]
        if chunks == 1:
            root.attrs["layer_names"] = names
        else:
            for number, part in enumerate(np.array_split(np.array(names), chunks)):
                root.attrs[f"layer_names{number}"] = part
        for name, weights in layers.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, array in weights.items():
                group[weight] = array


def old_weights(prefix: str, values: list[np.ndarray]) -> dict[str, np.ndarray]:
    names = ("kernel", "recurrent_kernel", "bias")
    return {f"{prefix}/{name}:0": array for name, array in zip(names, values)}


def old_config(class_name: str, name: str, **options: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": {"name": name, **options}}


def test_old_files(h5py: Any, tmp_path: pathlib.Path) -> None:
    """Names without cells, configurations that are lists or lack options, names in parts."""
    path = tmp_path / "old.h5"
    layers = {
        "embedding_1": {"embedding_1/embeddings:0": np.zeros((4, 2), np.float32)},
        "lstm_1": old_weights("lstm_1", arrays(seed=1)),
        "gru_1": old_weights("gru_1", arrays("GRU", seed=2)),
        "bidirectional_1": {
            **old_weights("bidirectional_1/backward_lstm_2", arrays(seed=4)),
            **old_weights("bidirectional_1/forward_lstm_2", arrays(seed=3)),
        },
    }
    inner = old_config("LSTM", "lstm_2", units=3, use_bias=True)
    config = {
        "class_name": "Sequential",
        "config": [
            old_config("Embedding", "embedding_1"),
            old_config("LSTM", "lstm_1", units=3, recurrent_activation="hard_sigmoid"),
            old_config("GRU", "gru_1", units=3, recurrent_activation="hard_sigmoid"),
            old_config("Bidirectional", "bidirectional_1", merge_mode="ave", layer=inner),
        ],
    }
    for options in ({"config": config}, {"config": config, "chunks": 3}, {"chunks": 2}):
        write_old(h5py, path, layers, **options)
        described = "config" in options
        more: Any = {} if described else {"config": {}}
        hard = {"recurrent_activation": HARD_2}  # the default of this version
        lstm = convert.keras_lstm(*arrays(seed=1), **hard)
        same(convert.from_keras(path, "lstm_1", **more), lstm)
        gru = convert.keras_gru(*arrays("GRU", seed=2), reset_after=False, **hard)
        same(convert.from_keras(path, "gru_1", **more), gru)
        both: Any = convert.from_keras(path, "bidirectional_1", **more)
        if described:
            assert both.merge_mode == "ave"
            both = both.layer
        same(both, convert.keras_lstm(*arrays(seed=3), backward=arrays(seed=4), **hard))


DEFAULTS: list[tuple[str, str | None, bool | None]] = [
    # keras_version of a file, and the defaults of that version: recurrent_activation, reset_after.
    ("2.0.8", "hard_sigmoid", False),
    ("2.1.4", "hard_sigmoid", False),
    ("2.2.5", "hard_sigmoid", False),
    ("2.3.0", "sigmoid", False),
    ("2.3.1", "sigmoid", False),
    ("2.4.0", "sigmoid", True),
    ("2.15.0", "sigmoid", True),
    ("3.15.1", "sigmoid", True),
    ("2.1.6-tf", "hard_sigmoid", False),
    ("2.3.0-tf", "sigmoid", True),
    ("2.2.4-tf", None, None),  # of TensorFlow 1.13 to 2.1, whose defaults differ
    ("", None, None),
    ("new", None, None),
]


@pytest.mark.parametrize(("version", "gates", "reset_after"), DEFAULTS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_defaults_of_versions(
    h5py: Any,
    tmp_path: pathlib.Path,
    cell: str,
    version: str,
    gates: Any,
    reset_after: bool | None,
) -> None:
    """Weights alone: `config` is asked for, and its absent entries are that version's defaults."""
    path = tmp_path / "model.h5"
    make: Any = {"LSTM": convert.keras_lstm, "GRU": convert.keras_gru}[cell]
    values = arrays(cell)[:2]
    write_old(h5py, path, {"l": old_weights("l", values)}, version=version)
    with pytest.raises(ValueError, match="config: got None, but the file has only weights") as e:
        convert.from_keras(path)
    assert f"recurrent_activation={gates!r}" in str(e.value) or gates is None
    before: dict[str, Any] = {"reset_after": False} if cell == "GRU" else {}
    if gates is None:
        with pytest.raises(ValueError, match="recurrent_activation: unknown for this file: give"):
            convert.from_keras(path, config={})
        if cell == "GRU":
            with pytest.raises(ValueError, match="reset_after: unknown without a bias"):
                convert.from_keras(path, config={"recurrent_activation": "sigmoid"})
    else:
        layer = convert.from_keras(path, config={})
        if cell == "GRU":
            before["reset_after"] = reset_after
        same(layer, make(*values, recurrent_activation=gates, **before))
    config = {"recurrent_activation": "tanh", "go_backwards": True}
    layer = convert.from_keras(path, config={**config, **before})
    same(layer, make(*values, **config, **before))


def test_cudnn_layers_have_no_other_gates(h5py: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.h5"
    kernel, recurrent, bias = arrays(rows=2)
    values = [kernel, recurrent, bias.reshape(-1)]
    for version in ("2.2.0", "2.2.4-tf"):
        write_old(h5py, path, {"l": old_weights("l", values)}, version=version)
        same(convert.from_keras(path, config={}), convert.keras_lstm(*values))


def test_configurations_of_cells_and_wrappers_for_weights_alone(
    h5py: Any, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "model.h5"
    write_old(h5py, path, {"l": old_weights("l", arrays())}, version="3.0.0")
    cell = {"class_name": "LSTMCell", "config": {"units": 3, "activation": "relu"}}
    layer = convert.from_keras(path, config={"cell": cell, "go_backwards": True})
    same(layer, convert.keras_lstm(*arrays(), activation="relu", go_backwards=True))
    both = {
        **old_weights("l/forward_a", arrays(seed=1)),
        **old_weights("l/backward_a", arrays(seed=2)),
    }
    write_old(h5py, path, {"l": both}, version="3.0.0")
    child = old_config("LSTM", "a", activation="relu")
    merged: Any = convert.from_keras(path, config={"layer": child, "merge_mode": "sum"})
    assert merged.merge_mode == "sum"
    wanted = convert.keras_lstm(*arrays(seed=1), backward=arrays(seed=2), activation="relu")
    same(merged.layer, wanted)
    same(convert.from_keras(path, config={"activation": "relu"}), wanted)


# Every option that Keras 1 to 3 writes into the configuration of an LSTM, a GRU, their CuDNN
# variants and cells, RNN and Bidirectional: a value that is not the default, and what the layer
# then is. "same": the option has no effect on what a layer here computes; its reason is in
# `_keras._WITHOUT_EFFECT`. A dict: options of the layer that it becomes. A str: the error.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "activation": ("relu", {"activation": "relu"}),
    "recurrent_activation": ("hard_sigmoid", {"recurrent_activation": HARD_3}),
    "units": (4, "units: got 4, but the weights have 3"),
    "use_bias": (False, "got 3 arrays for a direction, wanted 2"),
    "reset_after": (False, {}),  # of a GRU, see test_files
    "go_backwards": (True, {"go_backwards": True}),
    "time_major": (True, {"time_major": True}),
    "num_constants": (1, "num_constants: got 1, wanted none"),
    "quantization_config": ({}, "dtype: got '', which is quantised"),
    "output_dim": (3, "was written by Keras 1"),
    "inner_activation": ("sigmoid", "was written by Keras 1"),
    "dtype": (
        {
            "class_name": "QuantizedDTypePolicy",
            "config": {"mode": "int8", "source_name": "float32"},
        },
        "dtype: got 'int8_from_float32', which is quantised",
    ),
    **dict.fromkeys(
        ("kernel_initializer", "recurrent_initializer", "bias_initializer"), ("zeros", "same")
    ),
    **dict.fromkeys(
        ("kernel_regularizer", "recurrent_regularizer", "bias_regularizer", "activity_regularizer"),
        ({"class_name": "L2", "config": {"l2": 0.5}}, "same"),
    ),
    **dict.fromkeys(
        ("kernel_constraint", "recurrent_constraint", "bias_constraint"),
        ({"class_name": "MaxNorm", "config": {"max_value": 2}}, "same"),
    ),
    "unit_forget_bias": (False, "same"),
    "dropout": (0.5, "same"),
    "recurrent_dropout": (0.5, "same"),
    "seed": (3, "same"),
    "trainable": (False, "same"),
    "batch_input_shape": ([None, 5, 2], "same"),
    "batch_shape": ([None, 5, 2], "same"),
    "input_shape": ([5, 2], "same"),
    "input_dim": (2, "same"),
    "input_length": (5, "same"),
    "batch_size": (7, "same"),
    "ragged": (True, "same"),
    "sparse": (False, "same"),
    "return_sequences": (True, "same"),
    "return_state": (True, "same"),
    "stateful": (True, "same"),
    "unroll": (True, "same"),
    "implementation": (2, "same"),
    "use_cudnn": (True, "same"),
    "autocast": (False, "same"),
    "zero_output_for_mask": (True, "same"),
}
STRUCTURE = {"name", "cell", "layer", "backward_layer", "merge_mode"}  # tested by themselves


@pytest.mark.parametrize("option", OPTIONS)
def test_options(h5py: Any, tmp_path: pathlib.Path, option: str) -> None:
    path = tmp_path / "model.h5"
    value, wanted = OPTIONS[option]

    def converted(*layers: dict[str, Any]) -> Any:
        model = {"class_name": "Model", "config": {"name": "m", "layers": layers}}
        write_old(h5py, path, {"l": old_weights("l", arrays())}, config=model, version="3.0.0")
        return convert.from_keras(path)

    cell = old_config("LSTMCell", "c", **{option: value})
    layers = [old_config("LSTM", "l", **{option: value}), old_config("RNN", "l", cell=cell)]
    if option in ("go_backwards", "time_major"):  # the layer's, not the cell's
        layers[1] = old_config("RNN", "l", cell=old_config("LSTMCell", "c"), **{option: value})
    for layer in layers:
        if isinstance(wanted, str) and wanted != "same":
            with pytest.raises(ValueError, match=f"layer 'l': {wanted}"):
                converted(layer)
        else:
            more = {} if wanted == "same" else wanted
            same(converted(layer), convert.keras_lstm(*arrays(), **more))


def test_all_known_options_are_tabled() -> None:
    module = importlib.import_module("tidegate.convert._keras")
    without_effect = {option for option, (_, wanted) in OPTIONS.items() if wanted == "same"}
    assert without_effect | {"name"} == set(module._WITHOUT_EFFECT)
    read = OPTIONS.keys() - without_effect - {"output_dim", "inner_activation"}
    assert read | STRUCTURE - {"name"} == module._READ


def test_unknown_options_are_a_warning(h5py: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.h5"
    layer = old_config("LSTM", "l", zoneout=0.1)
    model = {"class_name": "Model", "config": {"name": "m", "layers": [layer]}}
    write_old(h5py, path, {"l": old_weights("l", arrays())}, config=model, version="3.0.0")
    with pytest.warns(UserWarning, match="LSTM: its options 'zoneout' are not known") as warned:
        converted = convert.from_keras(path)
    assert warned[0].filename == __file__
    same(converted, convert.keras_lstm(*arrays()))


def test_mixed_precision(h5py: Any, tmp_path: pathlib.Path) -> None:
    """The weights decide the dtype; that in which Keras computes would only be less exact."""
    path = tmp_path / "model.h5"
    policy = {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}
    for dtype in ("float32", "float64", "mixed_bfloat16", policy):
        values = [array.astype(np.float64 if dtype == "float64" else None) for array in arrays()]
        layer = old_config("LSTM", "l", dtype=dtype)
        model = {"class_name": "Model", "config": {"name": "m", "layers": [layer]}}
        write_old(h5py, path, {"l": old_weights("l", values)}, config=model, version="3.0.0")
        same(convert.from_keras(path), convert.keras_lstm(*values))


def test_cells_that_no_layer_has(h5py: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.h5"

    def refused(message: str, **options: Any) -> None:
        layer = old_config(options.pop("class_name", "RNN"), "l", **options)
        model = {"class_name": "Model", "config": {"name": "m", "layers": [layer]}}
        values = [array[:, :3] for array in arrays()[:2]] if "Simple" in message else arrays()
        write_old(h5py, path, {"l": old_weights("l", values)}, config=model, version="3.0.0")
        with pytest.raises(ValueError, match=message):
            convert.from_keras(path)

    stacked = {"class_name": "StackedRNNCells", "config": {"cells": []}}
    refused("cell: got a StackedRNNCells, wanted .*: convert each of its cells by", cell=stacked)
    wrapped = {"class_name": "ResidualWrapper", "config": {"cell": {}}}
    refused("cell: got a ResidualWrapper, .*: convert the cell that it wraps", cell=wrapped)
    refused("cell: got a Own, wanted an LSTMCell", cell={"class_name": "Own", "config": {}})
    own = {"class_name": "function", "config": "mine", "registered_name": "function"}
    message = (
        "activation: got 'mine', which no layer has: wanted one of 'tanh', .* must stay in Keras"
    )
    refused(message, class_name="LSTM", activation=own)
    refused("no LSTM or GRU; its layers are of the classes 'SimpleRNN'", class_name="SimpleRNN")


def test_keras_1(h5py: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.h5"
    weights = {f"l_{kind}": np.zeros((3, 3), np.float32) for kind in ("W_i", "U_i", "b_i")}
    for version in ("1.2.2", ""):
        write_old(h5py, path, {"l": weights}, version=version)
        with pytest.raises(
            ValueError, match=r"no LSTM or GRU as Keras 2 .* load it with Keras 2\.2"
        ):
            convert.from_keras(path)


def test_layers_of_one_name(h5py: Any, tmp_path: pathlib.Path) -> None:
    """A path with the models' names tells them apart, in every format."""
    path = tmp_path / "model.h5"
    inner = [old_config("LSTM", "rnn", units=3), old_config("LSTM", "other", units=3)]
    deep = {"class_name": "Sequential", "config": {"name": "deep", "layers": inner}}
    shallow = {"class_name": "Model", "config": {"name": "enc", "layers": [inner[0], deep]}}
    model = {"config": {"name": "m", "layers": [shallow, inner[0]]}}
    enc = {
        **old_weights("rnn/lstm_cell", arrays(seed=1)),
        **old_weights("deep/rnn/lstm_cell", arrays(seed=2)),
        **old_weights("deep/other/lstm_cell", arrays(seed=3)),
    }
    outer = old_weights("rnn/lstm_cell", arrays(seed=4))
    write_old(h5py, path, {"enc": enc, "rnn": outer}, config=model, version="3.0.0")
    numbered = tmp_path / "model.weights.h5"
    with h5py.File(numbered, "w") as file:
        places = {
            "layers/functional/layers/lstm": ("rnn", 1),
            "layers/functional/layers/sequential/layers/lstm": ("rnn", 2),
            "layers/functional/layers/sequential/layers/lstm_1": ("other", 3),
            "layers/lstm": ("rnn", 4),
            "layers/functional": ("enc", 0),
            "layers/functional/layers/sequential": ("deep", 0),
        }
        for place, (name, seed) in places.items():
            file.create_group(f"{place}/vars").attrs["name"] = name
            for number, array in enumerate(arrays(seed=seed) if seed else []):
                file[f"{place}/cell/vars/{number}"] = array
    names = {"rnn": 4, "enc/rnn": 1, "enc/deep/rnn": 2, "enc/deep/other": 3, "other": 3}
    for file, options in ((path, {}), (numbered, {"config": {}})):
        for name, seed in names.items():
            layer = convert.from_keras(file, name, **options)
            same(layer, convert.keras_lstm(*arrays(seed=seed)))
        with pytest.raises(
            ValueError, match=r"several: '(rnn|enc/rnn)', .*'enc/deep/rnn', .*'other'"
        ):
            convert.from_keras(file, **options)
    for place in ("layers/functional/layers/lstm", "layers/lstm"):
        layer = convert.from_keras(numbered, place, config={})
        same(layer, convert.keras_lstm(*arrays(seed=places[place][1])))
    model["config"]["layers"].pop()
    write_old(h5py, path, {"enc": enc}, config=model, version="3.0.0")
    with pytest.raises(
        ValueError, match=r"name: got 'rnn', which several layers of .* have: wanted"
    ):
        convert.from_keras(path, "rnn")


def test_messages_show_some_names(h5py: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.h5"
    layers = [old_config("LSTM", f"l_{number}") for number in range(60)]
    write_old(h5py, path, {}, config={"config": {"name": "m", "layers": layers}})
    with pytest.raises(ValueError, match=r"has several: 'l_0', .*'l_19' and 40 more$"):
        convert.from_keras(path)
    layers = [old_config("LSTM", f"l_{number}") for number in range(2000)]
    write_old(h5py, path, {}, config={"config": {"name": "m", "layers": layers}})
    with pytest.raises(ValueError, match="has 2000 recurrent layers"):
        convert.from_keras(path)


def test_names_that_do_not_tell_layers_apart(h5py: Any, tmp_path: pathlib.Path) -> None:
    """The older layout may not say which model's layer has some arrays: no guess is made."""
    path = tmp_path / "model.h5"
    layer = old_config("LSTM", "rnn", units=3)
    models = [
        {"class_name": "Model", "config": {"name": name, "layers": [layer]}} for name in ("a", "b")
    ]
    outer = {"class_name": "Model", "config": {"name": "enc", "layers": models}}
    weights = old_weights("rnn/lstm_cell", arrays())
    write_old(h5py, path, {"enc": weights}, config={"config": {"name": "m", "layers": [outer]}})
    for name in ("enc/a/rnn", "enc/b/rnn"):
        with pytest.raises(ValueError, match="got weights of 0 directions, wanted 1: the file"):
            convert.from_keras(path, name)


def test_a_backward_layer_with_a_name_of_its_own(h5py: Any, tmp_path: pathlib.Path) -> None:
    """Keras 3 leaves its name as it is, so the older layout does not tell its direction."""
    path = tmp_path / "model.h5"
    weights = {
        **old_weights("bi/forward_a/lstm_cell", arrays(seed=1)),
        **old_weights("bi/own/lstm_cell", arrays(seed=2)),
    }
    own = old_config("LSTM", "own", go_backwards=True)
    layer = old_config("Bidirectional", "bi", layer=old_config("LSTM", "a"), backward_layer=own)
    inner = {"class_name": "Model", "config": {"name": "enc", "layers": [layer, layer]}}
    inner["config"]["layers"][1] = old_config("LSTM", "other")
    other = old_weights("other/lstm_cell", arrays(seed=3))
    wanted = convert.keras_lstm(*arrays(seed=1), backward=arrays(seed=2))
    for top, groups in ((layer, {"bi": weights}), (inner, {"enc": {**other, **weights}})):
        model = {"config": {"name": "m", "layers": [top]}}
        write_old(h5py, path, groups, config=model, version="3.0.0")
        same(convert.from_keras(path, "bi"), wanted)


def test_time_distributed(h5py: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.h5"
    layer = old_config("TimeDistributed", "each", layer=old_config("LSTM", "l"))
    model = {"config": {"name": "m", "layers": [layer]}}
    for prefix in ("each", "each/l/lstm_cell"):
        weights = {"each": old_weights(prefix, arrays())}
        write_old(h5py, path, weights, config=model, version="3.0.0")
        for name in (None, "l", "each/l"):
            same(convert.from_keras(path, name), convert.keras_lstm(*arrays()))


def test_a_configuration_decides(h5py: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.h5"

    def refused(message: str, layer: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
        model = {"class_name": "Model", "config": {"name": "m", "layers": [layer]}}
        write_old(h5py, path, {"l": weights}, config=model)
        with pytest.raises(ValueError, match=rf"model\.h5: layer 'l': {message}"):
            convert.from_keras(path)

    one = old_weights("l", arrays())
    two = {**old_weights("l/forward_a", arrays()), **old_weights("l/backward_a", arrays())}
    a = old_config("LSTM", "a")
    refused("got weights of 0 directions, wanted 1", old_config("LSTM", "l"), {})
    refused("got weights of 2 directions, wanted 1", old_config("LSTM", "l"), two)
    refused("got weights of 1 directions, wanted 2", old_config("Bidirectional", "l", layer=a), one)
    refused("recurrent_kernel: got shape", old_config("GRU", "l"), one)
    refused("units: got 'x'", old_config("LSTM", "l", units="x"), one)
    refused(
        "activation: got {}, which no layer has: wanted",
        old_config("LSTM", "l", activation={}),
        one,
    )
    refused(
        "merge_mode: got 'max', wanted one of",
        old_config("Bidirectional", "l", layer=a, merge_mode="max"),
        two,
    )
    refused("layer: got 3, wanted", old_config("Bidirectional", "l", layer=3), two)
    refused(
        "got a SimpleRNN, wanted one of",
        old_config("Bidirectional", "l", layer=old_config("SimpleRNN", "a")),
        two,
    )
    refused(
        "go_backwards: got True in a Bidirectional's forward layer",
        old_config("Bidirectional", "l", layer=old_config("LSTM", "a", go_backwards=True)),
        two,
    )
    refused(
        "go_backwards: got False in a Bidirectional's backward",
        old_config("Bidirectional", "l", layer=a, backward_layer=a),
        two,
    )
    other = old_config("LSTM", "b", go_backwards=True, activation="relu")
    refused(
        "activation: got 'relu' in the backward layer and 'tanh' in the forward",
        old_config("Bidirectional", "l", layer=a, backward_layer=other),
        two,
    )
    refused("cell: got a None, wanted an LSTMCell", old_config("RNN", "l"), one)
    write_old(h5py, path, {"l": one}, config={"config": {"layers": [old_config("LSTM", "l")]}})
    bad = {"config": {"layers": [old_config("LSTM", "l", go_backwards=3)]}}
    write_old(h5py, path, {"l": one}, config=bad)
    with pytest.raises(TypeError, match="layer 'l': go_backwards: got 3"):
        convert.from_keras(path)


def test_what_is_not_in_the_file_is_not_read(h5py: Any, tmp_path: pathlib.Path) -> None:
    """Links and external storage may point anywhere; a shape may claim anything."""
    secret = tmp_path / "secret.h5"
    kernel, recurrent, _ = arrays()
    with h5py.File(secret, "w") as file:
        file["kernel"] = kernel
    (tmp_path / "raw").write_bytes(bytes(10_000))
    path = tmp_path / "model.weights.h5"
    place = "layers/lstm/cell/vars"

    def refused(message: str, kernel_of: Any) -> None:
        message = (
            f"'{place}/0': cannot be read: {message}" if kernel_of is not external_link else message
        )
        with h5py.File(path, "w") as file:
            file[f"{place}/1"] = recurrent
            kernel_of(file)
        with pytest.raises(ValueError, match=message):
            convert.from_keras(path)

    def external_link(file: Any) -> None:
        file[f"{place}/0"] = h5py.ExternalLink(str(secret), "kernel")

    def external_storage(file: Any) -> None:
        storage = [(str(tmp_path / "raw"), 0, 10_000)]
        file.create_dataset(f"{place}/0", (2, 12), np.float32, external=storage)

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout(kernel.shape, np.float32)
        layout[...] = h5py.VirtualSource(str(secret), "kernel", kernel.shape)
        file.create_virtual_dataset(f"{place}/0", layout)

    def huge(file: Any) -> None:
        file.create_dataset(f"{place}/0", (2**38, 12), np.float32, chunks=(1024, 12))

    refused("no LSTM or GRU", external_link)
    refused("its bytes are in another file or object", external_storage)
    refused("its layout is of version 4, wanted 3", virtual)
    refused(f"its {2**40 * 12} bytes are not in the file", huge)


def test_damaged_files(h5py: Any, tmp_path: pathlib.Path) -> None:
    for file in ("keras2_lstm_hard.h5", "keras3_lstm_hard.keras"):
        path = tmp_path / file
        whole = (FILES / file).read_bytes()
        for content in (b"", b"\x89HDF", b"PK\x03\x04", whole[: len(whole) // 2]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"keras\d_lstm_hard\..*: not a file of Keras"):
                convert.from_keras(path)
    with pytest.raises(FileNotFoundError):
        convert.from_keras(tmp_path / "absent.keras")
    with pytest.raises(TypeError, match="layer_or_path: got int, wanted a Keras layer or model"):
        convert.from_keras(3)
    with pytest.raises(TypeError, match="name: got int"):
        convert.from_keras(path, 3)  # type: ignore[arg-type]


def test_other_files(tmp_path: pathlib.Path) -> None:
    """Beside the formats that all converters know (test_convert_formats.py)."""

    def refused(message: str, name: str, content: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            convert.from_keras(path)

    refused("neither a zip archive nor HDF5", "other.h5", b"\0\1\2\3")
    whole = (FILES / "keras2_two.weights.h5").read_bytes()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("x", b"")
    other = (tmp_path / "other.zip").read_bytes()
    refused("a zip archive without metadata.json$", "other.zip", other)
    refused("several", "m_00000.weights.h5", whole)
    (tmp_path / "m.weights.json").write_text("{}")
    refused("a shard of Keras weights: save the whole", "m_00000.weights.h5", whole)


def test_special_files(tmp_path: pathlib.Path) -> None:
    fifo = tmp_path / "model.keras"
    os.mkfifo(fifo)
    link = tmp_path / "link.keras"
    link.symlink_to(fifo)
    for path, kind in (
        (fifo, "a FIFO"),
        (link, "a FIFO"),
        (pathlib.Path("/dev/zero"), "a character device"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(ValueError, match=f"layer_or_path: .* is {kind}, wanted a regular file"):
            convert.from_keras(path)


def test_archives_that_expand(tmp_path: pathlib.Path) -> None:
    """Refused before they are read: by their method, or by their sizes."""
    path = tmp_path / "model.keras"
    names = ("metadata.json", "config.json", "model.weights.h5")

    def refused(message: str, method: int, **contents: bytes) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in names:
                archive.writestr(name, contents.get(name.split(".")[0], b"{}"))
        assert path.stat().st_size < 2**17
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=message):
                convert.from_keras(path)
            assert tracemalloc.get_traced_memory()[1] < 2**23
        finally:
            tracemalloc.stop()

    zeros = bytes(2**24 + 2**23)
    refused("is neither stored nor deflated", zipfile.ZIP_BZIP2, model=zeros)
    refused("is neither stored nor deflated", zipfile.ZIP_LZMA, model=zeros)
    deflated = zipfile.ZIP_DEFLATED
    refused(f"model.weights.h5 claims {len(zeros)} bytes, wanted at most", deflated, model=zeros)
    refused(
        "metadata.json claims 65537 bytes, wanted at most 65536", deflated, metadata=b" " * 65537
    )
    spaces = b" " * (2**24 + 1)
    refused("config.json claims 16777217 bytes, wanted", deflated, config=spaces)
    refused("up to 1200001 items is too large", deflated, config=b"[" + b"[]," * 600_000)


def test_claims_of_sizes_that_are_not_there(tmp_path: pathlib.Path) -> None:
    """A directory's sizes are claims too: what is read is no more than what there is."""
    path = tmp_path / "model.keras"
    whole = bytearray((FILES / "keras3_lstm_hard.keras").read_bytes())
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"model.weights.h5"))
    for compressed, size in ((2**31, 2**31), (2**28, 2**31), (10, 2**31), (10, 10)):
        whole[entry + 20 : entry + 28] = struct.pack("<II", compressed, size)
        path.write_bytes(whole)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match="not a file of Keras: "):
                convert.from_keras(path)
            assert tracemalloc.get_traced_memory()[1] < 2**23
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("file", ["keras2_nested.h5", "keras3_bi_mul.weights.h5"])
def test_any_damage_of_hdf5_converts_or_is_refused(tmp_path: pathlib.Path, file: str) -> None:
    content = (FILES / file).read_bytes()
    chance = np.random.default_rng(0)
    path = tmp_path / file
    for offset in chance.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[offset] ^= 1 << chance.integers(8)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError, TypeError, UserWarning):
            convert.from_keras(path, "outer" if "nested" in file else None)


def test_damaged_archives(h5py: Any, tmp_path: pathlib.Path) -> None:
    source = zipfile.ZipFile(FILES / "keras3_lstm_hard.keras")
    members = {name: source.read(name) for name in source.namelist()}
    path = tmp_path / "model.keras"

    def refused(message: str, **changes: bytes | None) -> None:
        names = {
            "config": "config.json",
            "metadata": "metadata.json",
            "weights": "model.weights.h5",
        }
        changed = {**members, **{names[key]: value for key, value in changes.items()}}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in changed.items():
                if content is not None:
                    archive.writestr(name, content)
        name = "deep" if message.startswith("name") else None
        with pytest.raises(ValueError, match=message):
            convert.from_keras(path, name)

    refused(r"model\.keras: not a file of Keras: a zip archive without config.json", config=None)
    refused("not a file of Keras: ", config=b"{")
    refused("not a file of Keras: got list, wanted a JSON object", metadata=b"[]")
    refused("not a file of Keras: ", config=b"[" * 100_000)
    refused("not a file of Keras: metadata.json claims", metadata=b" " * (2**20 + 1))
    refused("not a file of Keras: ", weights=b"damaged")
    nested: Any = old_config("LSTM", "deep", units=4)
    for _ in range(150):
        nested = {"class_name": "Model", "config": {"layers": [nested]}}
    refused("name: got 'deep', wanted one of 'lstm_1'", config=json.dumps(nested).encode())


@settings(max_examples=100, deadline=None)
@given(
    member=st.sampled_from(["config.json", "metadata.json"]),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_any_edit_converts_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, member: str, edits: list[tuple[int, int]]
) -> None:
    """Of JSON; `test_convert_hdf5.py` has the damaged HDF5."""
    source = zipfile.ZipFile(FILES / "keras3_bi_ave.keras")
    members = {name: bytearray(source.read(name)) for name in source.namelist()}
    for position, value in edits:
        members[member][position % len(members[member])] = value
    path = tmp_path_factory.mktemp("edited") / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(content))
    # An option whose name is damaged is not known.
    with contextlib.suppress(TypeError, ValueError, UserWarning):
        convert.from_keras(path)


def test_bfloat16_in_files(h5py: Any, tmp_path: pathlib.Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    path = tmp_path / "model.weights.h5"
    halves = [array.astype(ml_dtypes.bfloat16) for array in arrays()]
    with h5py.File(path, "w") as file:
        for number, array in enumerate(halves):
            stored = file.create_dataset(f"layers/lstm/cell/vars/{number}", data=array.view("V2"))
            stored.attrs["dtype"] = "bfloat16"
    wanted = convert.keras_lstm(*(array.astype(np.float32) for array in halves))
    same(convert.from_keras(path, config={}), wanted)
    same(convert.keras_lstm(*halves), wanted)
    # The older layout has no attribute that gives the dtype; the configuration does.
    old = tmp_path / "model.h5"
    weights = old_weights("l", [array.view("V2") for array in halves])
    for dtype in ("bfloat16", {"class_name": "DTypePolicy", "config": {"name": "bfloat16"}}):
        layer = old_config("LSTM", "l", dtype=dtype)
        model = {"class_name": "Model", "config": {"name": "m", "layers": [layer]}}
        write_old(h5py, old, {"l": weights}, config=model, version="3.15.1")
        same(convert.from_keras(old), wanted)


# ---- Objects -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("h5py")
    if importlib.util.find_spec("keras") is None:
        pytest.skip("could not import 'keras'")
    backends = ("torch", "jax", "tensorflow")
    found = [backend for backend in backends if importlib.util.find_spec(backend) is not None]
    if not found:
        pytest.skip("Keras has no backend")
    os.environ.setdefault("KERAS_BACKEND", found[0])
    return importlib.import_module("keras")


def randomised(keras: Any, layer: Any, x: np.ndarray) -> np.ndarray:
    """Builds the layer, gives it random weights; returns its output."""
    rng = np.random.default_rng(0)
    layer(x)
    layer.set_weights([rng.uniform(-0.6, 0.6, array.shape) for array in layer.get_weights()])
    return keras.ops.convert_to_numpy(layer(x))


OBJECTS: dict[str, tuple[Any, str]] = {
    "LSTM": (lambda layers: layers.LSTM(3, return_sequences=True), "LSTM(2, 3, batch_first=True)"),
    "dropout": (
        lambda layers: layers.LSTM(3, return_sequences=True, dropout=0.5, recurrent_dropout=0.5),
        "LSTM(2, 3, batch_first=True)",
    ),
    "no bias": (
        lambda layers: layers.GRU(3, return_sequences=True, use_bias=False),
        "GRU(2, 3, bias=False, batch_first=True)",
    ),
    "activations": (
        lambda layers: layers.GRU(
            3,
            return_sequences=True,
            reset_after=False,
            activation="elu",
            recurrent_activation="hard_sigmoid",
        ),
        (
            f"GRU(2, 3, reset_after=False, recurrent_activation={HARD_3}, activation='elu', "
            "batch_first=True)"
        ),
    ),
    "Bidirectional": (
        lambda layers: layers.Bidirectional(layers.GRU(3, return_sequences=True)),
        "GRU(2, 3, bidirectional=True, batch_first=True)",
    ),
    "RNN": (
        lambda layers: layers.RNN(layers.LSTMCell(3), return_sequences=True),
        "LSTM(2, 3, batch_first=True)",
    ),
    "go_backwards": (
        lambda layers: layers.LSTM(3, return_sequences=True, go_backwards=True),
        "LSTM(2, 3, reverse=True, batch_first=True)",
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects(keras: Any, name: str, rng: np.random.Generator) -> None:
    make, wanted = OBJECTS[name]
    x = rng.normal(size=(4, 5, 2)).astype(np.float32)
    theirs = make(keras.layers)
    expected = randomised(keras, theirs, x)
    layer = convert.from_keras(theirs)
    assert repr(layer) == wanted
    y, _ = layer(x)
    y = y[:, ::-1] if layer.reverse else y
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)


def test_every_activation(keras: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 5, 2)).astype(np.float32)
    names = ["tanh", "sigmoid", "relu", "elu", "softsign", "softplus", "linear", "leaky_relu"]
    for name in [*names, "hard_sigmoid"]:
        theirs = keras.layers.LSTM(3, return_sequences=True, activation=name)
        expected = randomised(keras, theirs, x)
        y, _ = convert.from_keras(theirs)(x)
        np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6, err_msg=name)
    for name in ("silu", "gelu", "exponential", "selu"):
        theirs = keras.layers.LSTM(3, recurrent_activation=name)
        theirs.build((None, None, 2))
        message = (
            f"recurrent_activation: got '{name}', which no layer has: wanted one of .* stay in"
        )
        with pytest.raises(ValueError, match=message):
            convert.from_keras(theirs)


@pytest.mark.parametrize("merge_mode", ["sum", "mul", "ave", None])
def test_merge_modes(keras: Any, merge_mode: str | None) -> None:
    theirs = keras.layers.Bidirectional(keras.layers.LSTM(3), merge_mode=merge_mode)
    theirs.build((None, None, 2))
    layer, mode = convert.from_keras(theirs)
    assert mode == merge_mode
    assert repr(layer) == "LSTM(2, 3, bidirectional=True, batch_first=True)"


def test_right_padding(keras: Any, rng: np.random.Generator) -> None:
    """Masks become lengths; at padded steps y is zero, as Keras's with zero_output_for_mask."""
    x = rng.normal(size=(4, 5, 2)).astype(np.float32)
    lengths = np.array([5, 1, 3, 4])
    mask = np.arange(5) < lengths[:, None]
    layers = keras.layers
    theirs = layers.Bidirectional(
        layers.GRU(3, return_sequences=True, zero_output_for_mask=True),
    )
    randomised(keras, theirs, x)
    given = keras.ops.convert_to_tensor(mask)
    expected = keras.ops.convert_to_numpy(theirs(x, mask=given))
    y, _ = convert.from_keras(theirs)(x, lengths=convert.keras_lengths(mask))
    np.testing.assert_allclose(y[mask], expected[mask], rtol=0, atol=1e-6)
    assert not y[~mask].any()


def test_models_and_their_files(keras: Any, tmp_path: pathlib.Path) -> None:
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((None, 2)), layers.GRU(3, return_sequences=True, name="g")]
    )
    model = keras.Sequential(
        [keras.Input((None, 2)), inner, layers.LSTM(3, stateful=False, name="l"), layers.Dense(2)]
    )
    wanted = {name: convert.from_keras(model, name) for name in ("g", "l")}
    with pytest.raises(ValueError, match="name: got None, but Sequential has several: 'g', 'l'"):
        convert.from_keras(model)
    for file in ("model.keras", "model.weights.h5"):
        path = tmp_path / file
        (model.save if file == "model.keras" else model.save_weights)(path)
        config = None if file == "model.keras" else {}
        for name, layer in wanted.items():
            same(convert.from_keras(path, name, config=config), layer)


def test_options_of_the_installed_keras(keras: Any) -> None:
    """An option that a new release adds is missing in the table."""
    layers = keras.layers
    lstm = layers.LSTM(3)
    for layer in (
        lstm,
        layers.GRU(3),
        layers.LSTMCell(3),
        layers.GRUCell(3),
        layers.RNN(layers.GRUCell(3)),
        layers.Bidirectional(lstm),
    ):
        assert layer.get_config().keys() <= OPTIONS.keys() | STRUCTURE


def test_layers_of_one_name_in_keras(keras: Any, tmp_path: pathlib.Path) -> None:
    """By path, from a model and its files; also inside TimeDistributed."""
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((5, 2)), layers.GRU(3, return_sequences=True, name="rnn")], name="enc"
    )
    own = layers.LSTM(3, go_backwards=True, return_sequences=True, name="own")
    model = keras.Sequential(
        [
            keras.Input((4, 5, 2)),
            layers.TimeDistributed(inner, name="each"),
            layers.TimeDistributed(layers.LSTM(4, name="rnn"), name="last"),
            layers.LSTM(3, return_sequences=True, name="rnn"),
            layers.Bidirectional(
                layers.LSTM(3, return_sequences=True), backward_layer=own, name="bi"
            ),
        ]
    )
    names = ["each/enc/rnn", "last/rnn", "rnn", "bi"]
    wanted = {name: convert.from_keras(model, name) for name in names}
    assert [repr(layer) for layer in wanted.values()] == [
        "GRU(2, 3, batch_first=True)",
        "LSTM(3, 4, batch_first=True)",
        "LSTM(4, 3, batch_first=True)",
        "LSTM(3, 3, bidirectional=True, batch_first=True)",
    ]
    for file in ("model.keras", "model.h5", "model.weights.h5"):
        path = tmp_path / file
        (model.save_weights if "weights" in file else model.save)(path)
        config = {} if "weights" in file else None
        for name, layer in wanted.items():
            same(convert.from_keras(path, name, config=config), layer)


def test_stateful_layers(keras: Any, tmp_path: pathlib.Path) -> None:
    """Their states, which might pass for weights, are none."""
    layer = keras.layers.LSTM(2, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(8, 5, 3)), layer])
    wanted = convert.from_keras(layer)
    for file in ("model.keras", "model.weights.h5"):
        path = tmp_path / file
        (model.save if file == "model.keras" else model.save_weights)(path)
        same(convert.from_keras(path, config=None if file == "model.keras" else {}), wanted)


def test_subclasses(keras: Any, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.LSTM(3, return_sequences=True, name="a")
            self.second = keras.layers.Bidirectional(keras.layers.GRU(4), name="b")

        def call(self, x: Any) -> Any:
            return self.second(self.first(x))

    model = Own()
    model(rng.normal(size=(4, 5, 2)).astype(np.float32))
    wanted = {name: convert.from_keras(model, name) for name in "ab"}
    for file in ("model.keras", "model.weights.h5"):
        path = tmp_path / file
        (model.save if file == "model.keras" else model.save_weights)(path)
        for name, layer in wanted.items():
            same(convert.from_keras(path, name, config={}), layer)

    class Named(keras.layers.LSTM):  # type: ignore[misc]
        pass

    named = Named(3)
    named.build((None, None, 2))
    assert repr(convert.from_keras(named)) == "LSTM(2, 3, batch_first=True)"


def test_refused_objects(keras: Any) -> None:
    layers = keras.layers

    def refused(message: str, layer: Any, build: bool = True) -> None:
        if build:
            layer.build((None, None, 2))
        with pytest.raises(ValueError, match=message):
            convert.from_keras(layer)

    refused("SimpleRNN: no LSTM or GRU", layers.SimpleRNN(3))
    refused("Dense: no LSTM or GRU", layers.Dense(3))
    refused("a layer has none before it is built", layers.LSTM(3), build=False)
    stacked = layers.RNN([layers.LSTMCell(3), layers.LSTMCell(3)])
    refused("cell: got a StackedRNNCells, wanted an LSTMCell or a GRUCell: convert each", stacked)
