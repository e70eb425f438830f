"""Files of layers: what is saved is loaded, others can read it, and bad files are named errors."""

from __future__ import annotations

import errno
import inspect
import json
import os
import stat
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import layer_cases
import tidegate as tg
from layer_cases import CASES, INPUT_SIZE
from tidegate import files

ACTIVATIONS = [
    "sigmoid",
    "tanh",
    "relu",
    "hard_sigmoid",
    ("hard_sigmoid", 1 / 6, 0.5),
    ("affine", 0.5, -0.125),
    ("leaky_relu", 0.3),
    ("scaled_tanh", 1.7159, 2 / 3),
    "softsign",
]

# Values of every option, beside the default, that a file must keep.
LSTM_OPTIONS = {
    "num_layers": [1, 2, 3],
    "bias": [True, False],
    "batch_first": [False, True],
    "dropout": [0.0, 0.1, 1 / 3, 1.0],
    "bidirectional": [False, True],
    "proj_size": [0, 2],
    "peephole": [False, True],
    "reverse": [False, True],
    "recurrent_activation": ACTIVATIONS,
    "activation": ACTIVATIONS,
    "output_activation": [None, *ACTIVATIONS],
    "clip": [None, 3.5, 0.1],
    "input_forget": [False, True],
}
GRU_OPTIONS = {
    **{name: LSTM_OPTIONS[name] for name in ("num_layers", "bias", "batch_first", "dropout")},
    **{name: LSTM_OPTIONS[name] for name in ("bidirectional", "reverse", "activation", "clip")},
    "recurrent_activation": ["sigmoid", "hard_sigmoid"],
    "reset_after": [True, False],
    "update_gate": ["carry", "write"],
}
MGU_OPTIONS = {
    **{
        name: GRU_OPTIONS[name]
        for name in GRU_OPTIONS
        if name not in ("reset_after", "update_gate")
    },
    "recurrent_activation": ACTIVATIONS,
}
LINEAR_OPTIONS = {"bias": [True, False]}
LOW = ["bfloat16", "bfloat16-dot", "int8"]
# Not of the layer, or what the tensors say.
ELSEWHERE = {"self", "input_size", "hidden_size", "in_features", "out_features", "dtype", "seed"}


def make(kind, dtype=np.float32, seed=0, precision=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # dropout with one layer
        layer = getattr(tg, kind)(3, 4, dtype=dtype, seed=seed, **options)
    return layer if precision is None else layer.quantize(precision)


def quantized(layer):
    """The arrays of a layer in low precision, as the core has them; none of an exact layer."""
    core = layer._layer if isinstance(layer, tg.Linear) else layer._model
    return {k: v for k, v in (core.quantized or {}).items() if k != "precision"}


def same_layer(got, wanted):
    assert type(got) is type(wanted)
    for option in inspect.signature(type(wanted).__init__).parameters:
        if option not in ("self", "seed"):
            assert getattr(got, option) == getattr(wanted, option), option
    if not isinstance(wanted, tg.Linear):
        assert got._config == wanted._config
    assert got.params.shapes == wanted.params.shapes
    assert got.params.flat.tobytes() == wanted.params.flat.tobytes()
    assert got.precision == wanted.precision
    arrays = quantized(got)
    assert set(arrays) == set(quantized(wanted))
    for name, array in quantized(wanted).items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].tobytes() == array.tobytes()


def saved(path, layers):
    files.save(path, layers)
    return files.load(path)


# ---- What is saved is loaded ---------------------------------------------------------------------


@pytest.mark.parametrize("precision", [None, *LOW])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", LSTM_OPTIONS),
        ("GRU", GRU_OPTIONS),
        ("MGU", MGU_OPTIONS),
        ("Linear", LINEAR_OPTIONS),
    ],
)
def test_every_option_is_kept(kind, options, precision, tmp_path):
    parameters = inspect.signature(getattr(tg, kind).__init__).parameters
    assert set(options) == set(parameters) - ELSEWHERE, "an option that is not tested here"
    for name, values in options.items():
        for value in values:
            layer = make(kind, precision=precision, **{name: value})
            same_layer(saved(tmp_path / "layer", layer), layer)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_options_and_names_are_kept(data, tmp_path):
    def layer():
        tables = {"LSTM": LSTM_OPTIONS, "GRU": GRU_OPTIONS, "MGU": MGU_OPTIONS, "Linear": {}}
        kind, table = data.draw(st.sampled_from(list(tables.items())))
        options = {name: data.draw(st.sampled_from(values)) for name, values in table.items()}
        if options.get("bidirectional"):
            options["reverse"] = False
        dtype = data.draw(st.sampled_from([np.float32, np.float64]))
        precision = data.draw(st.sampled_from([None, *LOW])) if dtype == np.float32 else None
        return make(kind, dtype, data.draw(st.integers(0, 9)), precision, **options)

    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)
    layers = {name: layer() for name in data.draw(st.lists(names, min_size=1, unique=True))}
    loaded = saved(tmp_path / "layers", layers)
    assert list(loaded) == list(layers)
    for name, wanted in layers.items():
        same_layer(loaded[name], wanted)


def test_one_layer_without_a_name_comes_back_as_itself(tmp_path):
    assert isinstance(saved(tmp_path / "a", make("GRU")), tg.GRU)
    assert list(saved(tmp_path / "b", {"only": make("GRU")})) == ["only"]


@pytest.mark.parametrize("precision", [None, *LOW])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "MGU", "Linear"])
def test_a_layer_saves_itself(kind, precision, tmp_path):
    layer = make(kind, precision=precision)
    layer.save(tmp_path / "f")
    same_layer(tg.load(tmp_path / "f"), layer)


def test_names_may_have_points(tmp_path):
    layers = {"a": make("GRU"), "a.b": make("LSTM"), ".": make("Linear"), "a.b.": make("GRU")}
    for name, layer in saved(tmp_path / "f", layers).items():
        same_layer(layer, layers[name])


def test_any_bits_are_kept(tmp_path):
    layer = make("LSTM")
    bits = np.random.default_rng(0).integers(0, 1 << 32, layer.params.flat.size, np.uint32)
    layer.params.flat = bits.view(np.float32)  # NaN and subnormals among them
    same_layer(saved(tmp_path / "f", layer), layer)


def test_a_loaded_layer_is_one_of_its_own(tmp_path):
    layer = make("LSTM")
    first, second = saved(tmp_path / "f", layer), files.load(tmp_path / "f")
    x = np.ones((2, 1, 3), np.float32)
    assert np.array_equal(first(x)[0], layer(x)[0])
    first.params.flat = np.zeros_like(first.params.flat)
    same_layer(second, layer)


def test_loading_does_not_warn_again(tmp_path):
    layer = make("GRU", dropout=0.5)  # that dropout has nothing to act on
    assert saved(tmp_path / "f", layer).dropout == 0.5


# ---- Arrays, texts and layers without parameters -------------------------------------------------


def test_arrays_and_texts_beside_layers(tmp_path):
    rng = np.random.default_rng(0)
    dtypes = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]
    entries = {
        "labels": "yes\nno \u2713 \0",
        "mean": rng.standard_normal(3),
        "rnn": make("LSTM", clip=2),
        **{dtype: rng.integers(0, 2, (2, 3)).astype(dtype) for dtype in dtypes},
        "scalar": np.array(7, np.int16),
        "empty": np.zeros((0, 5), np.float32),
        "note": "",
        "head": make("Linear", np.float64),
        "rnn.mean": np.arange(3),
        "dropout": tg.Dropout(0.25),
    }
    loaded = saved(tmp_path / "f", entries)
    assert list(loaded) == list(entries)
    for name, wanted in entries.items():
        got = loaded[name]
        if isinstance(wanted, str):
            assert got == wanted
        elif isinstance(wanted, np.ndarray):
            assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
            assert got.tobytes() == wanted.tobytes()
            assert got.flags.writeable
        elif isinstance(wanted, tg.Dropout):
            assert type(got) is tg.Dropout
            assert got.p == wanted.p
        else:
            same_layer(got, wanted)
    header = parts(tmp_path / "f")[0]
    sizes = {"BOOL": 1, "BF16": 2, "C64": 8}
    for name, tensor in header.items():
        if name != "__metadata__":
            size = sizes.get(tensor["dtype"]) or int(tensor["dtype"][1:]) // 8
            assert tensor["data_offsets"][0] % size == 0


def test_arrays_of_any_layout(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    with_gaps = np.zeros((6, 8), np.float32)
    with_gaps[::2, ::2] = array
    memory = np.memmap(tmp_path / "memory", np.float32, "w+", shape=(3, 4))
    memory[:] = array
    entries = {
        "fortran": np.asfortranarray(array),
        "gaps": with_gaps[::2, ::2],
        "swapped": array.astype(">f4"),
        "memory": memory,
        "plain mask": np.ma.array(array),
    }
    for name, got in saved(tmp_path / "f", entries).items():
        assert type(got) is np.ndarray, name
        assert got.dtype == np.float32
        assert np.array_equal(got, array), name


def test_arrays_alone(tmp_path):
    assert np.array_equal(saved(tmp_path / "f", {"a": np.arange(3)})["a"], [0, 1, 2])
    dropout = saved(tmp_path / "f", tg.Dropout(1 / 3))
    assert type(dropout) is tg.Dropout
    assert dropout.p == 1 / 3


def test_one_entry(tmp_path):
    path = tmp_path / "f"
    layers = {"a": make("GRU"), "b": make("GRU", seed=1), "head": make("Linear")}
    tg.save(path, {**layers, "mean": np.ones(3), "labels": "x"})
    same_layer(tg.load(path, tg.GRU, "b"), layers["b"])
    same_layer(tg.load(path, name="b"), layers["b"])
    same_layer(tg.load(path, tg.Linear), layers["head"])
    assert tg.load(path, np.ndarray).tolist() == [1, 1, 1]
    assert tg.load(path, str, "labels") == "x"
    for kind, name, message in (
        (tg.GRU, None, r"wanted one entry \(a GRU\), got 2; the file has 'a' \(a GRU\), 'b' "),
        (tg.LSTM, None, r"wanted one entry \(an LSTM\), got 0"),
        (tg.LSTM, "a", r"wanted one entry \(an LSTM\) named 'a', got 0"),
        (None, "c", r"wanted one entry named 'c', got 0"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            tg.load(path, kind, name)
        assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(
        TypeError, match=r"kind: got <class 'int'>, wanted the type of an LSTM, a G"
    ):
        tg.load(path, int)
    with pytest.raises(TypeError, match="name: got 3, wanted a str"):
        tg.load(path, tg.GRU, 3)
    tg.save(path, make("LSTM"))
    same_layer(tg.load(path, tg.LSTM), make("LSTM"))
    with pytest.raises(ValueError, match=r"wanted one entry \(a GRU\), got 0; the file has ''"):
        tg.load(path, tg.GRU)


def test_files_of_the_first_version_are_read(tmp_path):
    """As releases before arrays and texts wrote them."""
    numpy = pytest.importorskip("safetensors.numpy")
    layer = make("GRU")
    text = '{"kind": "GRU", "input_size": 3, "hidden_size": 4}'
    metadata = {"tidegate.format": "1", "tidegate.layer": text}
    numpy.save_file(dict(layer.params.items()), tmp_path / "f", metadata)
    same_layer(files.load(tmp_path / "f"), layer)


def test_a_foreign_file(tmp_path):
    write(tmp_path / "f", {"w": entry("F32", [1], 0, 4)}, bytes(4))
    refused(tmp_path / "f", r"not a file of tidegate\.save; tidegate\.TensorFile .*from_torch")


# ---- Low precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("case", CASES)
def test_low_precision_has_the_same_results(case, precision, tmp_path):
    layer = layer_cases.make(case, precision=precision)
    loaded = saved(tmp_path / "f", layer)
    same_layer(loaded, layer)
    x = np.random.default_rng(1).standard_normal((6, 3, INPUT_SIZE), np.float32)
    for got, wanted in zip(loaded(x), layer(x)):
        layer_cases.assert_same_bits(got, wanted)
    with pytest.raises(ValueError, match="cannot be changed"):
        loaded.params.flat = layer.params.flat


def test_layers_of_each_precision_in_one_file(tmp_path):
    entries = {
        "rnn": make("LSTM", peephole=True, precision="int8"),
        "exact": make("LSTM", np.float64),
        "half": make("GRU", precision="bfloat16"),
        "head": make("Linear", precision="int8"),
        "half head": make("Linear", precision="bfloat16", bias=False),
        "mean": np.ones(3, np.int8),
        "float": make("MGU"),
        "note": "x",
    }
    loaded = saved(tmp_path / "f", entries)
    assert list(loaded) == list(entries)
    for name, layer in entries.items():
        if not isinstance(layer, (np.ndarray, str)):
            same_layer(loaded[name], layer)
    x = np.random.default_rng(0).standard_normal((5, 3), np.float32)
    for name in ("head", "half head"):
        assert loaded[name](x).tobytes() == entries[name](x).tobytes()
    sizes = {"I8": 1, "BF16": 2, "F32": 4, "F64": 8}
    for name, tensor in parts(tmp_path / "f")[0].items():
        if name != "__metadata__":
            assert tensor["data_offsets"][0] % sizes[tensor["dtype"]] == 0


def test_what_a_file_in_low_precision_says(tmp_path):
    layers = {"a": make("GRU", precision="int8", bias=False), "b": make("Linear")}
    layers["b"] = layers["b"].quantize("bfloat16")
    files.save(tmp_path / "f", layers)
    header = parts(tmp_path / "f")[0]
    assert header.pop("__metadata__") == {
        "tidegate.format": "1",
        "tidegate.layer.a": '{"kind": "GRU", "input_size": 3, "hidden_size": 4, "bias": false, '
        '"precision": "int8"}',
        "tidegate.layer.b": '{"kind": "Linear", "in_features": 3, "out_features": 4, '
        '"precision": "bfloat16"}',
    }
    assert {name: (tensor["dtype"], tensor["shape"]) for name, tensor in header.items()} == {
        "a.weight_ih_l0": ("I8", [12, 3]),
        "a.weight_ih_l0_scale": ("F32", [12]),
        "a.weight_hh_l0": ("I8", [12, 4]),
        "a.weight_hh_l0_scale": ("F32", [12]),
        "b.weight": ("BF16", [4, 3]),
        "b.bias": ("F32", [4]),
    }


@pytest.mark.parametrize(("precision", "part"), [("int8", 1 / 4), ("bfloat16", 1 / 2)])
def test_the_size_of_a_file_in_low_precision(precision, part, tmp_path):
    layer = tg.LSTM(256, 256)
    files.save(tmp_path / "exact", layer)
    files.save(tmp_path / "low", layer.quantize(precision))
    sizes = [(tmp_path / name).stat().st_size for name in ("low", "exact")]
    assert part < sizes[0] / sizes[1] < 1.05 * part


def tensors_of(layer):
    """The tensors of a layer in low precision, as (dtype, array), computed from its arrays."""
    arrays, tensors = quantized(layer), {}
    matrices = arrays["int8" if layer.precision == "int8" else "bfloat16"]
    scales, vectors = arrays.get("scales"), arrays["vectors"]
    for name, shape in layer.params.shapes.items():
        size = int(np.prod(shape))
        if len(shape) == 1:
            tensors[name], vectors = ("F32", vectors[:size]), vectors[size:]
            continue
        dtype = "I8" if layer.precision == "int8" else "BF16"
        tensors[name], matrices = (dtype, matrices[:size].reshape(shape)), matrices[size:]
        if layer.precision == "int8":
            tensors[f"{name}_scale"], scales = ("F32", scales[: shape[0]]), scales[shape[0] :]
    return tensors


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "MGU", "Linear"])
def test_the_safetensors_package_reads_low_precision(kind, precision, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    options = {"LSTM": {"proj_size": 2, "peephole": True, "bidirectional": True}}.get(kind, {})
    layer = make(kind, precision=precision, **options)
    files.save(tmp_path / "f", layer)
    read = dict(safetensors.deserialize((tmp_path / "f").read_bytes()))
    wanted = tensors_of(layer)
    assert set(read) == set(wanted)
    for name, (dtype, array) in wanted.items():
        assert read[name]["dtype"] == dtype
        assert read[name]["shape"] == list(array.shape)
        assert bytes(read[name]["data"]) == array.tobytes()
    if precision == "int8":  # NumPy has no bfloat16
        # What that package writes, with these metadata, is as good.
        numpy = pytest.importorskip("safetensors.numpy")
        arrays = numpy.load_file(tmp_path / "f")
        numpy.save_file(arrays, tmp_path / "g", parts(tmp_path / "f")[0]["__metadata__"])
        same_layer(files.load(tmp_path / "g"), layer)


def test_values_in_low_precision_are_those_of_the_file(tmp_path):
    """Files written here byte by byte: weights are integers times scales, or halves of floats."""
    text = '{"kind": "Linear", "in_features": 2, "out_features": 2, "precision": "int8"}'
    metadata = {"tidegate.format": "1", "tidegate.layer": text}
    tensors = {
        "bias": entry("F32", [2], 0, 8),
        "weight_scale": entry("F32", [2], 8, 16),
        "weight": entry("I8", [2, 2], 16, 20),
    }
    data = struct.pack("<ff ff bbbb", 0.5, -1, 0.25, 2, 127, -127, 0, 1)
    write(tmp_path / "f", {"__metadata__": metadata, **tensors}, data)
    loaded = files.load(tmp_path / "f")
    assert loaded.precision == "int8"
    assert loaded.params["weight"].tolist() == [[31.75, -31.75], [0, 2]]
    assert loaded.params["bias"].tolist() == [0.5, -1]

    metadata["tidegate.layer"] = text.replace("int8", "bfloat16")
    tensors = {"bias": entry("F32", [2], 0, 8), "weight": entry("BF16", [2, 2], 8, 16)}
    data = struct.pack("<ff HHHH", 0.5, -1, 0x3F80, 0xC000, 0x7F80, 0x0001)
    write(tmp_path / "f", {"__metadata__": metadata, **tensors}, data)
    loaded = files.load(tmp_path / "f")
    assert loaded.precision == "bfloat16"
    assert loaded.params["weight"].tolist() == [[1, -2], [np.inf, 2.0**-133]]


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "MGU", "Linear"])
def test_float32_layers_are_quantised_on_load(kind, precision, tmp_path):
    layer = make(kind)
    files.save(tmp_path / "f", layer)
    same_layer(files.load(tmp_path / "f", precision=precision), layer.quantize(precision))
    same_layer(files.load(tmp_path / "f", precision=None), layer)
    files.save(tmp_path / "f", layer.quantize(precision))
    same_layer(files.load(tmp_path / "f", precision=precision), layer.quantize(precision))


def test_entries_that_have_no_precision_are_loaded_as_they_are(tmp_path):
    entries = {
        "a": make("LSTM"),
        "b": make("Linear", precision="int8"),
        "mean": np.ones(3),
        "drop": tg.Dropout(0.25),
        "note": "x",
    }
    files.save(tmp_path / "f", entries)
    loaded = files.load(tmp_path / "f", precision="int8")
    assert list(loaded) == list(entries)
    same_layer(loaded["a"], entries["a"].quantize("int8"))
    same_layer(loaded["b"], entries["b"])
    assert loaded["mean"].dtype == np.float64
    assert loaded["drop"].p == 0.25
    assert loaded["note"] == "x"
    assert files.load(tmp_path / "f", str, precision="int8") == "x"
    # Only what is returned must have the precision.
    with pytest.raises(ValueError, match="layer 'b': got a layer in int8"):
        files.load(tmp_path / "f", precision="bfloat16")
    got = files.load(tmp_path / "f", tg.LSTM, precision="bfloat16")
    same_layer(got, entries["a"].quantize("bfloat16"))


@pytest.mark.parametrize("kind", ["LSTM", "Linear"])
def test_bfloat16_is_loaded_as_either_kind(kind, tmp_path):
    layer = make(kind)
    names = ["bfloat16", "bfloat16-dot"]
    for saved in names:
        files.save(tmp_path / "f", layer.quantize(saved))
        for wanted in names:
            got = files.load(tmp_path / "f", precision=wanted)
            same_layer(got, layer.quantize(wanted))


def test_layers_that_cannot_be_loaded_in_a_precision(tmp_path):
    path = tmp_path / "f"
    not_finite = make("GRU")
    not_finite.params["weight_hh_l0"] = np.full((12, 4), np.nan, np.float32)
    for layer, message in (
        (make("LSTM", np.float64), r"got float64, wanted float32 for .*layer\.astype\(numpy\.f"),
        (
            make("Linear", precision="bfloat16"),
            "got a layer in bfloat16, wanted float32 for .*or quantise the layer from which it was",
        ),
        (not_finite, "weight_hh_l0: got a number that is not finite in row 0"),
    ):
        for layers, name in ((layer, ""), ({"a": layer}, " 'a'")):
            files.save(path, layers)
            with pytest.raises(ValueError, match=f"{path}: layer{name}: {message}"):
                files.load(path, precision="int8")
    with pytest.raises(ValueError, match="precision: got 'int4', wanted 'bfloat16', 'bf"):
        files.load(tmp_path / "nothing", precision="int4")
    with pytest.raises(TypeError, match="precision: got 8, wanted 'bfloat16', 'bf"):
        files.load(tmp_path / "nothing", precision=8)


# ---- Others can read it --------------------------------------------------------------------------


def test_the_safetensors_package_reads_it(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    numpy = pytest.importorskip("safetensors.numpy")
    layers = {"rnn": make("LSTM", np.float64, peephole=True), "head": make("Linear")}
    files.save(tmp_path / "f", layers)
    arrays = numpy.load_file(tmp_path / "f")
    wanted = {f"{name}.{k}": v for name, layer in layers.items() for k, v in layer.params.items()}
    assert set(arrays) == set(wanted)
    for name, array in wanted.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
    with safetensors.safe_open(tmp_path / "f", "np") as file:
        metadata = file.metadata()
    assert metadata["tidegate.format"] == "1"
    # What was saved by another writer, with these metadata, is as good.
    numpy.save_file(arrays, tmp_path / "g", metadata)
    for name, layer in files.load(tmp_path / "g").items():
        same_layer(layer, layers[name])


def test_what_a_file_says(tmp_path):
    files.save(tmp_path / "f", {"a": make("GRU"), "b": make("LSTM", clip=2, activation="relu")})
    header = parts(tmp_path / "f")[0]
    assert header["__metadata__"] == {
        "tidegate.format": "1",
        "tidegate.layer.a": '{"kind": "GRU", "input_size": 3, "hidden_size": 4}',
        "tidegate.layer.b": '{"kind": "LSTM", "input_size": 3, "hidden_size": 4, '
        '"activation": "relu", "clip": 2}',
    }
    assert header["a.weight_ih_l0"] == {
        "dtype": "F32",
        "shape": [12, 3],
        "data_offsets": [0, 144],
    }


def test_data_are_aligned(tmp_path):
    layers = {"a": make("Linear"), "b": make("Linear", np.float64)}
    files.save(tmp_path / "f", layers)
    header, data = parts(tmp_path / "f")
    assert ((tmp_path / "f").stat().st_size - len(data)) % 8 == 0
    for name in layers:
        size = layers[name].dtype.itemsize
        assert header[f"{name}.weight"]["data_offsets"][0] % size == 0


def test_tensor_file_reads_any(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    dtypes = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]
    arrays = {name: rng.integers(0, 2, (2, 3)).astype(name) for name in dtypes}
    arrays |= {"scalar": np.array(7.0), "empty": np.ones((0, 5), np.int16)}
    numpy.save_file(arrays, tmp_path / "f", {"note": "any \u2713"})
    file = files.TensorFile(tmp_path / "f")
    assert file.metadata == {"note": "any \u2713"}
    assert set(file) == set(arrays)
    assert len(file) == len(arrays)
    for name, array in arrays.items():
        assert file[name].dtype == array.dtype
        assert np.array_equal(file[name], array)
    assert file.dtype_and_shape("c8") == ("C64", (2, 3))
    with pytest.raises(KeyError, match="nothing"):
        file["nothing"]


def test_a_dtype_that_numpy_has_not(tmp_path):
    write(tmp_path / "f", {"w": entry("BF16", [2], 0, 4)}, b"abcd")
    file = files.TensorFile(tmp_path / "f")
    assert file.dtype_and_shape("w") == ("BF16", (2,))
    assert "w" in file  # without reading it
    assert "nothing" not in file
    assert 3 not in file
    with pytest.raises(TypeError, match="w: got BF16"):
        file["w"]
    raw = file.raw("w")
    assert raw.dtype == np.uint8
    assert raw.tobytes() == b"abcd"
    with pytest.raises(KeyError, match="nothing"):
        file.raw("nothing")


# ---- Writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ({}, ValueError, "layers: got an empty mapping"),
        ({"": make("GRU")}, ValueError, "layers: got '' as a name"),
        ({1: make("GRU")}, TypeError, "layers: got 1 as a name"),
        ({"\ud800": make("GRU")}, ValueError, r"the name '\\ud800' cannot be encoded"),
        ({"a": make("GRU"), "b": 3}, TypeError, r"layers\['b'\]: got int"),
        (None, TypeError, "layers: got NoneType"),
        (type("Mine", (tg.LSTM,), {})(1, 1), TypeError, "layers: got Mine"),
        (np.zeros(3), TypeError, "layers: got ndarray, wanted .* or a mapping of names to layers"),
        (
            {"a": [1.0]},
            TypeError,
            r"layers\['a'\]: got list, wanted an LSTM, .* an ndarray or a str",
        ),
        ({"a": np.float32(1)}, TypeError, r"layers\['a'\]: got float32"),
        ({"a": "\ud800"}, ValueError, r"layers\['a'\]: the text cannot be encoded"),
        ({"a": np.array(["x"])}, TypeError, r"layers\['a'\]: got dtype <U1, wanted bool, an int"),
        ({"a": np.array([{}])}, TypeError, r"layers\['a'\]: got dtype object"),
        ({"a": np.zeros(2, complex)}, TypeError, r"layers\['a'\]: got dtype complex128"),
        ({"a": np.zeros(2, "f4,i4")}, TypeError, r"layers\['a'\]: got dtype \[\('f0'"),
        (
            {"a": np.ma.masked_equal([1.0, 2.0], 2)},
            ValueError,
            r"layers\['a'\]: got a masked array",
        ),
        (
            {"a": make("GRU"), "a.bias_hh_l0": np.zeros(3)},
            ValueError,
            r'the name "a\.bias_hh_l0" of an array is also that of a parameter of the layer "a"; ',
        ),
        (
            {"a": make("GRU", precision="int8"), "a.weight_hh_l0_scale": np.zeros(3)},
            ValueError,
            r'"a\.weight_hh_l0_scale" of an array is also that of a parameter of the layer "a"; ',
        ),
        ({"__metadata__": np.zeros(3)}, ValueError, '"__metadata__" is reserved by the'),
    ],
)
def test_what_cannot_be_saved(layers, error, message, tmp_path):
    with pytest.raises(error, match=message):
        files.save(tmp_path / "f", layers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("use", [files.load, lambda path: files.save(path, make("GRU"))])
def test_paths(use, tmp_path):
    for path in (3, None, 1.5):
        with pytest.raises(TypeError, match=f"path: got {type(path).__name__}"):
            use(path)
    for path in ("", b"a\0b"):
        with pytest.raises(ValueError, match="path: got"):
            use(path)
    with pytest.raises(FileNotFoundError) as caught:
        use(tmp_path / "no" / "where")
    assert caught.value.filename == str(tmp_path / "no" / "where")
    with pytest.raises(IsADirectoryError):
        use(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: not a regular file"):
        use(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        use("/dev/null")


def test_paths_of_every_kind(tmp_path, monkeypatch):
    layer = make("GRU")
    odd = os.fsencode(tmp_path) + b"/odd\xff"
    for path in (str(tmp_path / "text"), os.fsencode(tmp_path) + b"/bytes", odd):
        same_layer(saved(path, layer), layer)
    monkeypatch.chdir(tmp_path)
    same_layer(saved("here", layer), layer)
    Path(os.fsdecode(odd)).write_bytes(b"")
    with pytest.raises(ValueError, match=r"odd\?: got 0 bytes"):
        files.load(odd)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "f"
    first, second = make("GRU", seed=1), make("LSTM", seed=2)
    files.save(path, first)
    path.chmod(0o640)
    files.save(path, second)
    same_layer(files.load(path), second)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["f"]

    # What fails leaves the old file, and nothing beside it: a limit on the size of files stands
    # for a full disk.
    child = f"""
import resource, signal, tidegate as tg
from tidegate import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.save({str(path)!r}, tg.LSTM(99, 99))
except OSError as error:
    print(error.filename)
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}\n"
    same_layer(files.load(path), second)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    files.save(tmp_path / "real" / "f", make("GRU"))
    (tmp_path / "link").symlink_to("real/f")
    layer = make("LSTM")
    same_layer(saved(tmp_path / "link", layer), layer)
    assert (tmp_path / "link").is_symlink()
    same_layer(files.load(tmp_path / "real" / "f"), layer)

    # To a file that is not there yet, by links to links from folder to folder.
    (tmp_path / "real" / "second").symlink_to("../third")
    (tmp_path / "first").symlink_to(tmp_path / "real" / "second")
    (tmp_path / "third").symlink_to("real/new")
    same_layer(saved(tmp_path / "first", layer), layer)
    assert (tmp_path / "real" / "new").is_file()
    for link in (tmp_path / "first", tmp_path / "real" / "second", tmp_path / "third"):
        assert link.is_symlink()
    assert {p.name for p in (tmp_path / "real").iterdir()} == {"f", "new", "second"}

    (tmp_path / "round").symlink_to("about")
    (tmp_path / "about").symlink_to("round")
    (tmp_path / "into").symlink_to("round/f")
    (tmp_path / "through").symlink_to("real/f/g")
    (tmp_path / "no_folder").symlink_to("missing/f")
    for name, code in (
        ("round", errno.ELOOP),
        ("into", errno.ELOOP),
        ("through", errno.ENOTDIR),
        ("no_folder", errno.ENOENT),
    ):
        with pytest.raises(OSError, match=name) as caught:
            files.save(tmp_path / name, layer)
        assert caught.value.errno == code
        assert (tmp_path / name).is_symlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may search every folder")
def test_a_folder_that_may_not_be_searched(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    files.save(folder / "f", make("GRU"))
    (tmp_path / "link").symlink_to("closed/f")
    folder.chmod(0)
    try:
        with pytest.raises(PermissionError):
            files.save(tmp_path / "link", make("LSTM"))
    finally:
        folder.chmod(0o700)
    assert (tmp_path / "link").is_symlink()
    assert isinstance(files.load(folder / "f"), tg.GRU)


# ---- Bad files -----------------------------------------------------------------------------------


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path, header, data=b""):
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def parts(path):
    """The header as a dict, and the data."""
    raw = path.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:end]), raw[end:]


def refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        files.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "got 0 bytes"),
        (b"1234567", "got 7 bytes"),
        (struct.pack("<Q", 1) + b"", "header's length, 1, reaches beyond the file's 8 bytes"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header's length, 18446744073709551615, reaches"),
        (struct.pack("<Q", 2**63) + b"{}", "reaches beyond"),
        (struct.pack("<Q", 0), "the text ends"),
        (struct.pack("<Q", 9 << 20) + b" " * (9 << 20), "above the limit of 8388608"),
        (struct.pack("<Q", 4) + b'{"\xff"', "byte 2: not UTF-8"),
        (struct.pack("<Q", 3) + b"{}x", 'got "x", wanted the end'),
        (struct.pack("<Q", 2) + b"{}", "tidegate.format"),
        (struct.pack("<Q", 2) + b"{}abc", "the last 3 bytes of data belong to no tensor"),
        (struct.pack("<Q", 2) + b"[]", "wanted an object"),
        (b"PK\x03\x04" + bytes(100), "reaches beyond.*; it is a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "reaches.*; it is a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "reaches beyond.*; it is a web page"),
        (b"\x1f\x8b\x08" + b"\xff" * 100, "reaches beyond.*; it is compressed by gzip"),
        (b"\x80\x04" + bytes(2000), 'header: byte 0: got "\\\\u0000", wanted an object'),
    ],
)
def test_what_is_no_safetensors_file(raw, message, tmp_path):
    (tmp_path / "f").write_bytes(raw)
    refused(tmp_path / "f", message)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": entry("F32", [2], 0, 4)}, r'"w": data_offsets span 4 bytes, wanted 8 for F32 of'),
        ({"w": entry("F32", [1], 0, 12)}, "do not lie in the 8 bytes"),
        ({"w": entry("F32", [1], 8, 4)}, "do not lie in"),
        ({"w": entry("F32", [1], -4, 0)}, "got -4"),
        ({"w": entry("F32", [-1], 0, 4)}, "got -1"),
        ({"w": entry("F32", [2**62, 4], 0, 8)}, r"shape \[4611686018427387904, 4\] overflows"),
        ({"w": entry("U8", [2**62, 8, 0], 0, 0)}, r"shape \[.*, 8, 0\] overflows"),
        ({"w": entry("U8", [0, 2**62, 8], 0, 0)}, r"shape \[0, .*, 8\] overflows"),
        ({"w": entry("F32", [2**63], 0, 8)}, "got 9223372036854775808|wanted an integer of 64"),
        ({"w": entry("F32", [10**30], 0, 8)}, "wanted an integer of 64 bits"),
        ({"w": entry("F32", [1.5], 0, 4)}, "wanted an integer"),
        ({"w": entry("F32", [True], 0, 4)}, 'got "t", wanted an integer'),
        ({"w": entry("F32", ["1"], 0, 4)}, "wanted an integer"),
        ({"w": entry("F32", 2, 0, 8)}, "wanted an array"),
        ({"w": entry("F31", [2], 0, 8)}, '"w": dtype "F31" is not known'),
        ({"w": entry("F4", [15], 0, 8)}, "no whole bytes"),
        ({"w": entry(3, [2], 0, 8)}, "wanted a string"),
        ({"w": [1, 2]}, "wanted an object"),
        ({"w": {"dtype": "F32", "shape": [2]}}, '"data_offsets", two of them, are missing'),
        ({"w": {"shape": [2], "data_offsets": [0, 8]}}, '"dtype" is missing'),
        ({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, '"shape" is missing'),
        ({"w": {**entry("F32", [2], 0, 8), "stride": 1}}, '"stride": not a key of a tensor'),
        (
            {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}},
            '"data_offsets": wanted two offsets',
        ),
        (
            {"v": entry("F32", [1], 0, 4), "w": entry("U8", [6], 2, 8)},
            '"w": its data overlap',
        ),
        ({"v": entry("F32", [2], 0, 8), "w": entry("F32", [2], 0, 8)}, "its data overlap"),
        ({"v": entry("F32", [1], 0, 4), "w": entry("U8", [2], 6, 8)}, '"w": 2 bytes before'),
        ({"v": entry("F32", [1], 0, 4)}, "the last 4 bytes"),
        ({"__metadata__": {"a": 1}}, '"a": .*wanted a string'),
        ({"__metadata__": None}, '"__metadata__": .*wanted an object'),
        (b'{"w": {}, "w": {}}', '"dtype" is missing'),
        (
            b'{"w":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"w":{"dtype":"U8"}}',
            'the key "w" is there twice',
        ),
        (b'{"w":{"dtype":"U8","dtype":"U8"}}', 'the key "dtype" is there twice'),
        (b'{"__metadata__":{"a":"","a":""}}', 'the key "a" is there twice'),
        (b"{" * 5000, "wanted a string"),
        (b'{"w":' + b"[" * 100000, "wanted an object"),
        (b'{"' + b"w" * 10000 + b'":3}', r"w \.\.\. w+"),
        (b'{"a\nb":{}}', "control character"),
        (b'{"\\ud800":{}}', "half of a surrogate pair"),
        (b'{"\\ud800\\u0041":{}}', "half of a surrogate pair"),
        (b'{"\\x":{}}', "an escape that JSON does not have"),
        (b'{"\\u12g4":{}}', "four hexadecimal digits"),
        (b'{"w":{"shape":[01]}}', "a number that JSON does not have"),
        (b'{"w":{"shape":[1.]}}', "a number that JSON does not have"),
        (b'{"w":{"shape":[1e]}}', "a number that JSON does not have"),
        (b'{"w":{"shape":[-]}}', "a number that JSON does not have"),
        (b'{"w":{"shape":[1e0]}}', "wanted an integer"),
        (b'{"w":{"shape":[1,]}}', "wanted an integer"),
        (b'{"w":{"shape":[1}}', "wanted ',' or ']'"),
        (b'{"w":{},}', "is missing"),
        (b'{,"w":{}}', "wanted a string"),
        (b"{'w':{}}", "wanted a string"),
        (b"\xef\xbb\xbf{}", "wanted an object"),
    ],
)
def test_what_is_no_header(tensors, message, tmp_path):
    write(tmp_path / "f", tensors, bytes(8))
    refused(tmp_path / "f", message)


@pytest.fixture
def good(tmp_path):
    """Changes a good file: change(metadata, tensors) -> path."""
    layers = {"rnn": make("LSTM"), "head": make("Linear")}

    def changed(change):
        files.save(tmp_path / "f", layers)
        header, data = parts(tmp_path / "f")
        change(header["__metadata__"], header)
        write(tmp_path / "f", header, data)
        return tmp_path / "f"

    assert set(files.load(changed(lambda metadata, tensors: None))) == set(layers)
    return changed


RNN = "tidegate.layer.rnn"


def layer_text(text):
    return lambda metadata, tensors: metadata.update({RNN: text})


def rename(old, new):
    def change(metadata, tensors):
        tensors[new] = tensors.pop(old)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t: m.pop("tidegate.format"), '"tidegate.format" is missing'),
        (lambda m, t: t.pop("__metadata__"), '"tidegate.format" is missing'),
        (lambda m, t: m.update({"tidegate.format": "2"}), 'got "2", wanted "1"'),
        (lambda m, t: m.update({"tidegate.extra": ""}), '"tidegate.extra": a key that this'),
        (lambda m, t: m.update({"tidegate.layer.": "{}"}), "a key that this version"),
        (lambda m, t: m.update({"tidegate.layers": "{}"}), "a key that this version"),
        (lambda m, t: m.update({"tidegate.array": ""}), "a key that this version"),
        (lambda m, t: m.update({"tidegate.text.": ""}), "a key that this version"),
        (lambda m, t: m.update({"tidegate.array.x": ""}), 'missing tensors "x"'),
        (lambda m, t: m.update({"tidegate.array.x": "F32"}), 'got "F32", wanted an empty text'),
        (lambda m, t: m.update({"tidegate.text.rnn": ""}), "another entry has this name"),
        (
            lambda m, t: m.update({"tidegate.array.head.bias": ""}),
            '"head.bias": an array that is a layer\'s parameter too',
        ),
        (
            lambda m, t: m.update({"tidegate.layer.d": '{"kind": "Dropout"}'}),
            'tidegate.layer.d.*: "p" is missing',
        ),
        (
            lambda m, t: m.update({"tidegate.layer.d": '{"kind": "Dropout", "p": 2}'}),
            "p: got 2, wanted a probability",
        ),
        (lambda m, t: m.pop(RNN), 'surplus tensors "rnn.weight_ih_l0", '),
        (lambda m, t: [m.pop(RNN), m.pop("tidegate.layer.head")], "name no layer"),
        (lambda m, t: m.update({"tidegate.layer": m[RNN]}), "without a name beside others"),
        (lambda m, t: m.update({"tidegate.layer.new": m[RNN]}), 'missing tensors "new.weight_ih'),
        (rename("rnn.bias_hh_l0", "rnn.bias_hh"), r'missing .*"rnn.bias_hh_l0"; surplus .*"rnn.b'),
        (rename("head.weight", ".weight"), 'missing .*"head.weight"; surplus .*".weight"'),
        (rename("rnn.bias_hh_l0", "rnn.bias_hh_l1"), "missing"),
        (layer_text(""), "tidegate.layer.rnn.*: byte 0: the text ends"),
        (layer_text("{}"), '"kind" is missing'),
        (layer_text("3"), "wanted an object"),
        (
            layer_text('{"kind": "RNN"}'),
            'got "RNN", wanted one of "LSTM", "GRU", "MGU", "Linear", "Dropout"',
        ),
        (layer_text('{"input_size": 3, "hidden_size": 4}'), '"kind" is missing'),
        (layer_text('{"kind": "LSTM", "input_size": 3}'), '"hidden_size" is missing'),
    ],
)
def test_what_is_no_file_of_layers(change, message, good):
    refused(good(change), message)


SIZES = '{"kind": "LSTM", "input_size": 3, "hidden_size": 4'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('"reset_after": true', '"reset_after": an option that this version\'s LSTM does not'),
        ('"depth": 3', '"depth": an option that this'),
        ('"bias": true, "bias": true', 'the key "bias" is there twice'),
        ('"bias": 1', '"bias": got "1", wanted true or false'),
        ('"bias": false', r'surplus tensors "rnn.bias_ih_l0"'),
        ('"num_layers": "2"', "wanted an integer"),
        ('"num_layers": 2', 'missing tensors "rnn.weight_ih_l1"'),
        ('"num_layers": 1000000000000', "more than there are tensors"),
        ('"num_layers": 0', "num_layers: got 0"),
        ('"dropout": 1.5', "dropout: got 1.5, wanted"),
        ('"dropout": 1e999', "wanted a number that a double can hold"),
        ('"dropout": -0.5', "dropout: got -0.5"),
        ('"dropout": NaN', "wanted a number"),
        ('"proj_size": 4', "proj_size: got 4"),
        ('"proj_size": 2', r'"rnn.weight_hh_l0": got shape \[16, 4\], wanted \[16, 2\]'),
        ('"bidirectional": true, "reverse": true', "reverse: "),
        ('"activation": "gelu"', 'got "gelu", wanted one of sigmoid, '),
        ('"activation": ["tanh", 1]', "tanh has 0 parameters"),
        ('"activation": []', "empty array"),
        ('"activation": [[]]', "wanted a string"),
        ('"activation": ["affine", "1"]', "wanted a number"),
        ('"activation": null', "wanted"),
        ('"clip": -1', "clip: got -1"),
    ],
)
def test_options_that_are_not_understood(options, message, good):
    refused(good(layer_text(f"{SIZES}, {options}}}")), message)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 5), r'"rnn.weight_ih_l0": got shape \[16, 3\], wanted \[20, 3\]'),
        ((2, 4), r"wanted \[16, 2\]"),
        ((2**62, 4), "overflow"),
        ((3, 2**61), "overflow"),
        ((10**9, 10**9), "overflow|wanted"),
        ((10**7, 10**7), r"got shape \[16, 3\]"),
        ((0, 4), "input_size: got 0"),
        ((3, -4), "hidden_size: got -4"),
    ],
)
def test_sizes_that_the_file_has_not(sizes, message, good):
    options = {"kind": "LSTM", "input_size": sizes[0], "hidden_size": sizes[1]}
    text = json.dumps(options)
    refused(good(layer_text(text)), message)


def test_sizes_of_a_linear(good):
    for size, message in ((2**62, "overflow"), (0, "in_features: got 0"), (5, r"wanted \[4, 5\]")):
        text = json.dumps({"kind": "Linear", "in_features": size, "out_features": 4})
        refused(good(lambda m, t, text=text: m.update({"tidegate.layer.head": text})), message)


HEAD = "tidegate.layer.head"
INT8 = '{"kind": "Linear", "in_features": 3, "out_features": 4, "precision": "int8"}'


def first_bytes(tensor, raw):
    """A change of a file: the first bytes of a tensor's data."""

    def change(header, data):
        begin = header[tensor]["data_offsets"][0]
        data[begin : begin + len(raw)] = raw

    return change


def described(key, text):
    return lambda header, data: header["__metadata__"].update({key: text})


def renamed(old, new):
    return lambda header, data: header.update({new: header.pop(old)})


def tensor(name, **members):
    return lambda header, data: header[name].update(members)


SCALE = "head.weight_scale"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed(SCALE, "scale"), f'missing tensors "{SCALE}"; surplus tensors "scale"'),
        (tensor(SCALE, shape=[2, 2]), r"_scale\": got shape \[2, 2\], wanted \[4\] by the layer's"),
        (tensor(SCALE, shape=[16], dtype="U8"), 'scale": got dtype U8, wanted F32 in a layer of'),
        (tensor("head.weight", shape=[3, 4]), r"got shape \[3, 4\], wanted \[4, 3\]"),
        (
            tensor("head.weight", dtype="U8"),
            '"head.weight": got dtype U8, wanted I8 in a layer of the precision int8',
        ),
        (tensor("head.bias", dtype="I32"), '"head.bias": got dtype I32, wanted F32'),
        (tensor("rnn.weight_hh_l0", dtype="F16"), "got dtype F16, wanted BF16 in a layer of the p"),
        (
            described(HEAD, INT8.replace("int8", "int4")),
            '"precision": got "int4", wanted "bfloat16"',
        ),
        (
            described(HEAD, INT8.replace("int8", "float32")),
            'got "float32", wanted "bfloat16", "bf',
        ),
        (described(HEAD, INT8.replace('"int8"', "8")), '"precision": got "8", wanted a string'),
        (
            described(HEAD, INT8.replace("int8", "bfloat16")),
            '"head.weight": got dtype I8, wanted BF16',
        ),
        (
            described(HEAD, INT8.replace(', "precision": "int8"', "")),
            '"head.weight": got dtype I8, wanted F32 or F64',
        ),
        (
            described("tidegate.layer.d", '{"kind": "Dropout", "p": 0, "precision": "int8"}'),
            '"precision": an option that this version\'s Dropout does not have',
        ),
        (
            first_bytes(SCALE, struct.pack("<f", 0)),
            'tensor "head.weight": got the scale 0.* for row 0, wanted a positive finite number',
        ),
        (
            first_bytes(SCALE, struct.pack("<ff", 1, -2)),
            "got the scale -2.* for row 1, wanted a pos",
        ),
        (first_bytes(SCALE, struct.pack("<f", np.nan)), "got the scale -?nan"),
        (first_bytes(SCALE, struct.pack("<f", np.inf)), "got the scale inf"),
    ],
)
def test_defects_of_low_precision(change, message, tmp_path):
    files.save(
        tmp_path / "f",
        {"head": make("Linear", precision="int8"), "rnn": make("GRU", precision="bfloat16")},
    )
    header, data = parts(tmp_path / "f")
    data = bytearray(data)
    change(header, data)
    write(tmp_path / "f", header, data)
    refused(tmp_path / "f", message)


def test_dtypes_that_layers_have_not(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    files.save(tmp_path / "f", make("GRU"))
    arrays, metadata = numpy.load_file(tmp_path / "f"), parts(tmp_path / "f")[0]["__metadata__"]

    def change(dtypes):
        changed = {k: v.astype(dtypes.get(k, v.dtype)) for k, v in arrays.items()}
        numpy.save_file(changed, tmp_path / "g", metadata)

    change(dict.fromkeys(arrays, np.float16))
    refused(tmp_path / "g", "got dtype F16, wanted F32 or F64")
    change(dict.fromkeys(arrays, np.int32))
    refused(tmp_path / "g", "got dtype I32, wanted F32 or F64")
    change({"bias_hh_l0": np.float64})
    refused(tmp_path / "g", 'got dtype F32|"bias_hh_l0": got dtype F64, wanted F32 as in the rest')


def test_the_kind_stands_anywhere(good):
    for text in (
        '{"hidden_size": 4, "bias": true, "kind": "LSTM", "input_size": 3}',
        '{"input_size": 3, "hidden_size": 4, "kind": "LSTM"}',
    ):
        same_layer(files.load(good(layer_text(text)))["rnn"], make("LSTM"))
    refused(
        good(layer_text('{"peephole": true, "kind": "GRU", "input_size": 3, "hidden_size": 4}')),
        '"peephole": an option that this version\'s GRU does not have',
    )


def test_more_axes_than_an_array_has(tmp_path):
    write(
        tmp_path / "f",
        {"w": entry("F32", [1] * 32, 0, 4), "v": entry("U8", [1] * 33, 4, 5)},
        bytes(5),
    )
    file = files.TensorFile(tmp_path / "f")
    assert file["w"].ndim == 32
    with pytest.raises(ValueError, match=r'/f: tensor "v": got 33 axes, wanted at most 32'):
        file["v"]
    assert file.raw("v").tobytes() == b"\0"


def test_other_metadata_are_others_business(good):
    path = good(lambda metadata, tensors: metadata.update({"format": "pt", "tidegate": "?"}))
    assert set(files.load(path)) == {"rnn", "head"}


@pytest.mark.parametrize("precision", [None, *LOW])
def test_a_file_cut_short_is_refused_wherever(precision, tmp_path):
    files.save(tmp_path / "f", make("GRU", precision=precision))
    raw = (tmp_path / "f").read_bytes()
    for size in range(len(raw)):
        (tmp_path / "g").write_bytes(raw[:size])
        with pytest.raises(ValueError, match="g: "):
            files.load(tmp_path / "g")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_a_layer_or_a_value_error(data, tmp_path):
    layers = {"a": make("GRU"), "b": make("Linear"), "c": make("MGU", precision="int8")}
    files.save(tmp_path / "f", layers)
    raw = bytearray((tmp_path / "f").read_bytes())
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        end = data.draw(st.sampled_from([header, len(raw)]))
        raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "g").write_bytes(raw)
    try:
        layers = files.load(tmp_path / "g")
    except ValueError as error:
        assert "g: " in str(error)  # noqa: PT017
    else:
        assert all(isinstance(layer, (tg.GRU, tg.Linear, tg.MGU)) for layer in layers.values())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_file_takes_no_memory_that_it_is_too_small_for(tmp_path):
    """Tensors that are there, and options alone that lie: in a process that has no more memory."""
    lies = [
        ({"input_size": 10**8, "hidden_size": 10}, "got shape [8, 3], wanted [40, 100000000]"),
        ({"input_size": 3, "hidden_size": 10**5}, "got shape [8, 3], wanted [400000, 3]"),
        ({"input_size": 3, "hidden_size": 2, "num_layers": 4}, 'missing tensors "weight_ih_l1"'),
        ({"input_size": 3, "hidden_size": 2, "num_layers": 10**7}, "num_layers: got 10000000"),
        ({"input_size": 2**40, "hidden_size": 2**30}, "the sizes overflow"),
        ({"input_size": 3, "hidden_size": 2**61}, "the sizes overflow"),
    ]
    tensors = {
        "weight_ih_l0": entry("F32", [8, 3], 0, 96),
        "weight_hh_l0": entry("F32", [8, 2], 96, 160),
        "bias_ih_l0": entry("F32", [8], 160, 192),
        "bias_hh_l0": entry("F32", [8], 192, 224),
    }
    for i, (options, _) in enumerate(lies):
        text = json.dumps({"kind": "LSTM", **options})
        metadata = {"tidegate.format": "1", "tidegate.layer": text}
        write(tmp_path / f"{i}", {"__metadata__": metadata, **tensors}, bytes(224))
    child = f"""
import re, resource
from pathlib import Path
from tidegate import files
paths = sorted(Path({str(tmp_path)!r}).iterdir())
size = int(re.search(r"VmSize:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20),) * 2)
for path in paths:
    try:
        files.load(path)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    messages = done.stdout.splitlines()
    assert len(messages) == len(lies)
    for i, (message, (_, wanted)) in enumerate(zip(messages, lies)):
        assert message.startswith(f"{tmp_path / str(i)}: ")
        assert wanted in message
