# PyTorch to layers and back: state_dicts of ndarrays always, modules and files if PyTorch is
# installed. Trained models are in test_real_models.py.
from __future__ import annotations

import argparse
import json
import os
import pathlib
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidegate as tg
from layer_cases import CASES, make
from tidegate import convert

# What PyTorch's layers can be.
PLAIN = [  # what torch.nn has
    name
    for name, (kind, _, _, options) in CASES.items()
    if kind is not tg.MGU and options.keys() <= {"bias", "bidirectional", "proj_size"}
]


def same(layer: Any, expected: Any) -> None:
    assert repr(layer) == repr(expected)
    assert layer.params.flat.tobytes() == expected.params.flat.tobytes()


# ---- Arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", PLAIN)
def test_options_follow_from_names_and_shapes(name: str, dtype: Any) -> None:
    layer = make(name, dtype=dtype)
    state_dict = layer.state_dict()
    same(convert.from_torch(state_dict), layer)
    same(convert.from_torch(state_dict, cell=type(layer).__name__.lower()), layer)
    same(
        convert.from_torch(dict(reversed(state_dict.items())), batch_first=True), batch_first(layer)
    )


def batch_first(layer: Any) -> Any:
    state = layer.__getstate__()
    state["batch_first"] = True
    result = type(layer).__new__(type(layer))
    result.__setstate__(state)
    return result


@pytest.mark.parametrize("prefix", ["encoder.rnn.", "encoder.rnn", "enc_"])
def test_prefix(prefix: str) -> None:
    layer = make("gru")
    stem = prefix if prefix.endswith((".", "_")) else prefix + "."
    state_dict = {stem + name: array for name, array in layer.state_dict().items()}
    state_dict["decoder.weight"] = np.zeros(3)
    state_dict["other.weight_hh"] = np.zeros((4, 1))
    same(convert.from_torch(state_dict, prefix), layer)
    with pytest.raises(ValueError, match=rf"has the prefix ''; .*: '{stem}', 'other\.'"):
        convert.from_torch({**state_dict, "other.weight_ih": np.zeros((4, 1))})
    with pytest.raises(ValueError, match="has the prefix 'absent'; "):
        convert.from_torch(state_dict, "absent")


def test_cells_become_layers() -> None:
    for layer in (make("lstm"), make("gru")):
        cell = {name.removesuffix("_l0"): a for name, a in layer.state_dict().items()}
        same(convert.from_torch(cell), layer)


def test_npz_files_are_mappings(tmp_path: pathlib.Path) -> None:
    layer = make("lstm")
    np.savez(tmp_path / "weights.npz", **layer.state_dict())
    with np.load(tmp_path / "weights.npz") as arrays:
        same(convert.from_torch(arrays), layer)


def test_halves_become_float32() -> None:
    half = {name: a.astype(np.float16) for name, a in make("lstm").state_dict().items()}
    layer = convert.from_torch(half)
    assert layer.dtype == np.float32
    for name, array in half.items():
        np.testing.assert_array_equal(layer.params[name], array)


def test_foreign_byte_order_and_strides() -> None:
    layer = make("gru")
    swapped = {
        name: np.asfortranarray(a.astype(a.dtype.newbyteorder("S")))
        for name, a in layer.state_dict().items()
    }
    same(convert.from_torch(swapped), layer)


def test_the_layer_has_copies() -> None:
    state_dict = make("lstm").state_dict()
    layer = convert.from_torch(state_dict)
    before = layer.params.flat.copy()
    for array in state_dict.values():
        array[...] = 0
    np.testing.assert_array_equal(layer.params.flat, before)


def test_refused() -> None:
    good = make("lstm-stacked-bidirectional").state_dict()

    def refused(message: str, kind: type[Exception] = ValueError, **changes: Any) -> None:
        changed = {**good, **changes}
        changed = {name: array for name, array in changed.items() if array is not None}
        with pytest.raises(kind, match=message):
            convert.from_torch(changed)

    refused("missing 'bias_hh_l1_reverse'; surplus none", bias_hh_l1_reverse=None)
    refused("missing none; surplus 'extra'", extra=np.zeros(3))
    refused("missing none; surplus 'weight_peephole_l0'", weight_peephole_l0=np.zeros(3))
    refused("surplus 'weight_ih_l3'", weight_ih_l3=good["weight_ih_l0"])
    refused("surplus 'weight_ih_l999999'", weight_ih_l999999=good["weight_ih_l0"])
    refused(r"bias_ih_l1: got shape \(3,\), wanted \(24,\)", bias_ih_l1=np.zeros(3, np.float32))
    refused(r"weight_hh: got shape \(24, 5\) for", weight_hh_l0=np.zeros((24, 5), np.float32))
    refused(r"weight_ih_l0: got shape \(0, 3\)", weight_ih_l0=np.zeros((0, 3), np.float32))
    refused(r"weight_hh_l0: got shape \(\), wanted", weight_hh_l0=np.array(1.0, np.float32))
    refused("bias_ih_l0: got dtype int64", TypeError, bias_ih_l0=np.zeros(24, np.int64))
    refused("bias_ih_l0: got list, wanted an ndarray", TypeError, bias_ih_l0=[0.0] * 24)
    refused("wanted one dtype", TypeError, bias_ih_l0=np.zeros(24))
    with pytest.raises(ValueError, match="cell: got 'GRU', but weight_hh has the shape of a LSTM"):
        convert.from_torch(good, cell="GRU")
    with pytest.raises(ValueError, match="cell: got 'RNN', wanted 'LSTM', 'GRU', 'Linear', 'Em"):
        convert.from_torch(good, cell="RNN")
    with pytest.raises(TypeError, match="module_or_state_dict: got int, wanted"):
        convert.from_torch(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prefix: got int"):
        convert.from_torch(good, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="batch_first: got 1, wanted True or False"):
        convert.from_torch(good, batch_first=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got the key 3, wanted names"):
        convert.from_torch({3: np.zeros(3)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="existing prefixes: none"):
        convert.from_torch({})
    vanilla = {"weight_ih_l0": np.zeros((3, 2)), "weight_hh_l0": np.zeros((3, 3))}
    with pytest.raises(ValueError, match=r"as a plain nn\.RNN has, .* wanted 4\*hidden_size rows"):
        convert.from_torch(vanilla)
    with pytest.raises(ValueError, match=r"got shape \(14, 7\) .* wanted 4\*hidden_size rows"):
        convert.from_torch(make("mgu").state_dict())
    projected = {**make("gru").state_dict(), "weight_hr_l0": np.zeros((7, 7), np.float32)}
    with pytest.raises(ValueError, match="without a projection"):
        convert.from_torch(projected)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_mapping_converts_or_is_refused(data: st.DataObject) -> None:
    layer = make(data.draw(st.sampled_from(PLAIN)))
    given = layer.state_dict()
    names = [*given, "weight_ih", "weight_hr_l1", "weight_hh_l2", "bias_ih_l0_reverse", ""]
    edited = False
    for name in data.draw(st.lists(st.sampled_from(names), max_size=3)):
        edited = True
        if data.draw(st.booleans()):
            given.pop(name, None)
            continue
        shape = tuple(data.draw(st.lists(st.integers(0, 30), max_size=3)))
        given[name] = np.zeros(shape, data.draw(st.sampled_from([np.float32, np.int32, "U1"])))
    message = ""
    try:
        converted = convert.from_torch(given)
    except (TypeError, ValueError) as error:
        message = str(error)
    if not message:
        assert converted.params.flat.size == sum(array.size for array in given.values())
    assert edited or not message


# ---- Files ---------------------------------------------------------------------------------------


def test_safetensors(tmp_path: pathlib.Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    layer = make("lstm-projected-no-bias")
    tensors = {f"rnn.{name}": array for name, array in layer.state_dict().items()}
    tensors |= {"steps": np.arange(3), "flag": np.zeros(2, bool)}
    path = tmp_path / "model.safetensors"
    numpy.save_file(tensors, path)
    same(convert.from_torch(path, "rnn"), layer)
    same(convert.from_torch(str(path), "rnn."), layer)
    with pytest.raises(ValueError, match=r"model\.safetensors: no LSTM or GRU has the prefix ''"):
        convert.from_torch(path)

    half = {name: a.astype(np.float16) for name, a in make("gru").state_dict().items()}
    numpy.save_file(half, path)
    np.testing.assert_array_equal(convert.from_torch(path).params["bias_hh_l0"], half["bias_hh_l0"])
    numpy.save_file({**half, "bias_hh_l0": np.zeros(21, np.int16)}, path)
    with pytest.raises(TypeError, match="bias_hh_l0: got dtype I16, wanted F16, BF16, F32 or F64"):
        convert.from_torch(path)
    numpy.save_file({**half, "bias_hh_l0": np.zeros(21, np.int8)}, path)
    with pytest.raises(TypeError, match=r"got dtype I8, .*; convert the float model, before quant"):
        convert.from_torch(path)
    whole = path.read_bytes()
    for damaged, reason in (
        (b"", "not a file of weights of PyTorch, but an empty file"),
        (b"\1", "got 1 bytes, wanted a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "not a file of .*, but a Git LFS p"),
        (b"<!DOCTYPE html><html></html>", "not a file of .*, but a web page"),
        (b"\xff" * 64, "the header's length, 18446744073709551615, reaches beyond"),
        (whole[:-10], "header: .*data_offsets .* do not lie in"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"model\.safetensors: {reason}"):
            convert.from_torch(path)
    with pytest.raises(FileNotFoundError):
        convert.from_torch(tmp_path / "absent.safetensors")


def sharded(folder: pathlib.Path) -> tuple[Any, pathlib.Path]:
    """A layer, and the index of its two shards."""
    numpy = pytest.importorskip("safetensors.numpy")
    layer = make("lstm-stacked-bidirectional")
    weight_map = {
        f"rnn.{name}": f"model-0000{1 + ('l1' in name)}-of-00002.safetensors"
        for name in layer.state_dict()
    }
    for shard in set(weight_map.values()):
        names = [name for name in weight_map if weight_map[name] == shard]
        tensors = {name: layer.params[name.removeprefix("rnn.")].copy() for name in names}
        numpy.save_file(tensors, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return layer, index


def test_shards(tmp_path: pathlib.Path) -> None:
    layer, index = sharded(tmp_path)
    same(convert.from_torch(index, "rnn"), layer)
    same(convert.from_torch(str(tmp_path), "rnn"), layer)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    with pytest.raises(
        ValueError, match=r"got shard 1 of 2, which may hold only a part of the layer"
    ):
        convert.from_torch(shard, "rnn")

    # Shards whose names do not tell.
    text = index.read_text()
    for k in (1, 2):
        name = f"model-0000{k}-of-00002.safetensors"
        (tmp_path / name).rename(tmp_path / f"part{k}.safetensors")
        text = text.replace(name, f"part{k}.safetensors")
    index.write_text(text)
    same(convert.from_torch(index, "rnn"), layer)
    with pytest.raises(ValueError, match=r"one of the 2 shards of model\.safetensors\.index\.json"):
        convert.from_torch(tmp_path / "part1.safetensors", "rnn")


# Names of the first of two or three shards.
SHARDS = [
    "model-00001-of-00002.safetensors",
    "model-1-of-3.safetensors",
    "model_1_of_3.safetensors",
    "model-01-of-03.safetensors",
    "model-000001-of-000002.safetensors",
    "model-00001-OF-00002.safetensors",
    "model-rank-1-of-3.safetensors",
    "0-of-2.safetensors",
    "pytorch_model-00001-of-00002.fp16.safetensors",
]


@pytest.mark.parametrize("name", SHARDS)
def test_names_of_shards(name: str, tmp_path: pathlib.Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(make("gru").state_dict(), tmp_path / name)
    with pytest.raises(
        ValueError, match=r"got shard \d of [23], .* or rename the file if it holds"
    ):
        convert.from_torch(tmp_path / name)
    with pytest.raises(ValueError, match=r"got 1 of [23] shards: "):
        convert.from_torch(tmp_path)
    for whole in (
        "model-00001-of-00001.safetensors",
        "proof-3.safetensors",
        "top5of10.safetensors",
    ):
        (tmp_path / name).rename(tmp_path / whole)
        same(convert.from_torch(tmp_path / whole), make("gru"))
        name = whole


@pytest.mark.parametrize("present", [True, False])
def test_an_index_without_one_of_the_shards(present: bool, tmp_path: pathlib.Path) -> None:
    _, index = sharded(tmp_path)
    text = index.read_text()
    for k in (1, 2):
        name = f"model-0000{k}-of-0000"
        (tmp_path / f"{name}2.safetensors").rename(tmp_path / f"{name}3.safetensors")
    index.write_text(text.replace("-of-00002", "-of-00003"))
    if present:
        (tmp_path / "model-00003-of-00003.safetensors").write_bytes(
            (tmp_path / "model-00002-of-00003.safetensors").read_bytes()
        )
    for source in (index, tmp_path):
        with pytest.raises(ValueError, match=r"index\.json: got 2 of 3 shards: 'model-00001-of"):
            convert.from_torch(source, "rnn")


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "weights.json"])
@pytest.mark.parametrize("folder", ["", "sub/"])
def test_where_an_index_may_be(name: str, folder: str, tmp_path: pathlib.Path) -> None:
    layer, index = sharded(tmp_path)
    weight_map = json.loads(index.read_text())["weight_map"]
    index.unlink()
    (tmp_path / folder).mkdir(exist_ok=True)
    for k in (1, 2):
        shard = tmp_path / f"model-0000{k}-of-00002.safetensors"
        shard.rename(tmp_path / folder / f"part{k}.safetensors")
    places = {
        key: f"{folder}part{1 + ('-00002-of' in s)}.safetensors" for key, s in weight_map.items()
    }
    (tmp_path / name).write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "a.json")
    same(convert.from_torch(tmp_path / name, "rnn"), layer)
    for k in (1, 2):
        with pytest.raises(ValueError, match=rf"one of the 2 shards of {name}, which"):
            convert.from_torch(tmp_path / folder / f"part{k}.safetensors", "rnn")
    (tmp_path / folder / "part2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"one of the 2 shards|part2\.safetensors' are not in its"):
        convert.from_torch(tmp_path / folder, "rnn")


def test_folders(tmp_path: pathlib.Path) -> None:
    layer, index = sharded(tmp_path)
    index.unlink()
    same(convert.from_torch(tmp_path, "rnn"), layer)
    other = tmp_path / "model-00002-of-00002.safetensors"
    content = other.read_bytes()
    other.unlink()
    with pytest.raises(ValueError, match="got 1 of 2 shards: 'model-00001-of-00002"):
        convert.from_torch(tmp_path, "rnn")
    other.write_bytes((tmp_path / "model-00001-of-00002.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"'rnn\.weight_ih_l0', .* are in another shard too"):
        convert.from_torch(tmp_path, "rnn")
    other.write_bytes(content)
    (tmp_path / "best-00001-of-00001.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="got shards of 2 models, wanted one"):
        convert.from_torch(tmp_path, "rnn")
    (tmp_path / "best.safetensors").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"pass the path of one of its files: 'best-0.*'best\.safe"
    ):
        convert.from_torch(tmp_path, "rnn")

    whole = tmp_path / "whole"
    whole.mkdir()
    with pytest.raises(ValueError, match="got a folder without PyTorch weights"):
        convert.from_torch(whole)
    (whole / "saved_model.pb").touch()
    with pytest.raises(ValueError, match=r"not a folder of .*, but a SavedModel folder"):
        convert.from_torch(whole)
    pytest.importorskip("safetensors.numpy").save_file(
        make("gru").state_dict(), whole / "model.safetensors"
    )
    same(convert.from_torch(whole), make("gru"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(weight_map={}), "not an index of shards"),
        (lambda index: index.pop("weight_map"), "not an index of shards"),
        (
            lambda index: index["weight_map"].update(
                {"rnn.extra": "model-00001-of-00002.safetensors"}
            ),
            r"model-00001.*: missing 'rnn\.extra'; surplus none, by model\.safetensors\.index",
        ),
        (
            lambda index: index["weight_map"].pop("rnn.bias_hh_l1"),
            r"model-00002.*: missing none; surplus 'rnn\.bias_hh_l1', by ",
        ),
        (
            lambda index: index["weight_map"].update({"x": "absent.safetensors"}),
            r"the shards 'absent\.safetensors' are not in its folder",
        ),
        (
            lambda index: index["weight_map"].update({"x": "../f"}),
            r"\['x'\]: got '\.\./f', wanted the",
        ),
        (
            lambda index: index["weight_map"].update({"x": "/dev/zero"}),
            "got '/dev/zero', wanted the",
        ),
        (lambda index: index["weight_map"].update({"x": ".."}), r"got '\.\.', wanted the name"),
        (lambda index: index["weight_map"].update({"x": 3}), "got 3, wanted the name"),
    ],
)
def test_bad_indices(change: Callable[[Any], Any], message: str, tmp_path: pathlib.Path) -> None:
    _, path = sharded(tmp_path)
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        convert.from_torch(path, "rnn")


def test_indices_that_are_no_json(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    for content in (b"", b"\xff", b"{", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"index\.json: not a JSON file"):
            convert.from_torch(path)
    path.write_bytes(b"[]")
    with pytest.raises(ValueError, match="not an index of shards"):
        convert.from_torch(path)
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(ValueError, match="wanted an index of at most"):
        convert.from_torch(path)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.safetensors.index.json"])
def test_what_is_no_regular_file(name: str, tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="is a FIFO, wanted a regular file"):
        convert.from_torch(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is a character device, wanted a regular file"):
        convert.from_torch(tmp_path / name)
    with pytest.raises(ValueError, match="path: got '', wanted the path of a file"):
        convert.from_torch("")


def test_masked_arrays_are_refused() -> None:
    layer = make("gru")
    state_dict = layer.state_dict()
    bias = np.ma.array(state_dict["bias_hh_l0"])
    same(convert.from_torch({**state_dict, "bias_hh_l0": bias}), layer)
    bias[1] = np.ma.masked
    for dtype in (np.float32, np.float16):
        masked = {name: array.astype(dtype) for name, array in state_dict.items()}
        with pytest.raises(ValueError, match="bias_hh_l0: got a masked array with 1 masked elem"):
            convert.from_torch({**masked, "bias_hh_l0": bias.astype(dtype)})


def test_bfloat16_without_any_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    layer = make("gru")
    # Rounded to the upper halves, some of them subnormal; what is below them is zero.
    halves = {n: (a * 2.0**-125).view(np.uint32) >> 16 for n, a in layer.state_dict().items()}
    entries, data = {}, b""
    for name, bits in halves.items():
        end = len(data) + 2 * bits.size
        entries[name] = {"dtype": "BF16", "shape": bits.shape, "data_offsets": [len(data), end]}
        data += bits.astype("<u2").tobytes()
    header = json.dumps(entries).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    layer.load_state_dict({name: (bits << 16).view(np.float32) for name, bits in halves.items()})
    same(convert.from_torch(path), layer)


def test_our_own_files_are_for_load(tmp_path: pathlib.Path) -> None:
    """Their options would be lost: a GRU of the other form has PyTorch's names and shapes."""
    path = tmp_path / "model.safetensors"
    make("gru").save(path)
    with pytest.raises(ValueError, match=r"model\.safetensors: got a file of tidegate\.save"):
        convert.from_torch(path)


def test_without_pytorch(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    same(convert.from_torch(make("gru").state_dict()), make("gru"))
    (tmp_path / "model.pt").write_bytes(bytes(64))
    for call in (
        lambda: convert.from_torch(tmp_path / "model.pt"),
        lambda: convert.to_torch(make("gru")),
    ):
        with pytest.raises(ImportError, match=r"needs torch: pip install 'tidegate\[torch\]'"):
            call()


# ---- PyTorch -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def torch_module(torch: Any, layer: Any, **options: Any) -> Any:
    """A PyTorch layer of the same options, with its own random weights."""
    if isinstance(layer, tg.LSTM):
        options["proj_size"] = layer.proj_size
    return getattr(torch.nn, type(layer).__name__)(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bias=layer.bias,
        bidirectional=layer.bidirectional,
        **options,
    )


def assert_same_outputs(torch: Any, module: Any, layer: Any, rng: np.random.Generator) -> None:
    shape = (4, 3, layer.input_size) if layer.batch_first else (3, 4, layer.input_size)
    x = rng.normal(size=shape).astype(layer.dtype)
    module.eval()
    with torch.no_grad():
        wanted, wanted_state = module(torch.from_numpy(x))
    y, state = layer(x)
    parts = (state, wanted_state) if isinstance(state, tuple) else ((state,), (wanted_state,))
    eps = np.finfo(layer.dtype).eps
    for ours, theirs in zip((y, *parts[0]), (wanted, *parts[1]), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=50 * eps)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"double": True}], ids=str)
def test_modules_there_and_back(
    torch: Any, name: str, options: dict[str, Any], rng: np.random.Generator
) -> None:
    options = dict(options)
    double = options.pop("double", False)
    like = make(name)
    if like.num_layers > 1:
        options["dropout"] = 0.25
    module = torch_module(torch, like, dtype=torch.float64 if double else None, **options)
    layer = convert.from_torch(module)
    assert layer.batch_first == module.batch_first
    assert layer.dropout == module.dropout
    assert layer.dtype == (np.float64 if double else np.float32)
    assert_same_outputs(torch, module, layer, rng)
    same(
        convert.from_torch({"a.b." + k: v for k, v in module.state_dict().items()}, "a.b"),
        convert.from_torch(module.state_dict()),
    )

    back = convert.to_torch(layer)
    assert repr(back) == repr(module)
    assert back.training
    for key, tensor in module.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor)
        assert back.state_dict()[key].dtype == tensor.dtype
    assert all(parameter.requires_grad for parameter in back.parameters())
    assert_same_outputs(torch, back, layer, rng)
    same(convert.from_torch(back), layer)


def test_to_torch_has_copies_and_draws_nothing(torch: Any) -> None:
    layer = make("lstm")
    before = layer.params.flat.copy()
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    module = convert.to_torch(layer)
    assert torch.equal(torch.rand(3), wanted)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(layer.params.flat, before)


def test_to_torch_tells_write_as_carry(torch: Any, rng: np.random.Generator) -> None:
    layer = tg.GRU(5, 4, 2, update_gate="write", bidirectional=True, seed=0)
    module = convert.to_torch(layer)
    assert_same_outputs(torch, module, layer, rng)
    weight = module.weight_hh_l1_reverse.detach().numpy()
    ours = layer.params["weight_hh_l1_reverse"]
    np.testing.assert_array_equal(weight[:4], ours[:4])
    np.testing.assert_array_equal(weight[4:8], -ours[4:8])
    np.testing.assert_array_equal(weight[8:], ours[8:])


UNKNOWN_TO_TORCH: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (tg.LSTM, {"peephole": True}, "peephole=True"),
    (tg.LSTM, {"reverse": True, "input_forget": True}, "reverse=True, input_forget=True"),
    (tg.LSTM, {"output_activation": "relu"}, "output_activation='relu'"),
    (tg.GRU, {"reset_after": False, "clip": 2.0}, "reset_after=False, clip=2.0"),
    (tg.GRU, {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation='hard_sigmoid'"),
    (tg.GRU, {"activation": ("elu", 0.5)}, r"activation=\('elu', 0.5\)"),
]


@pytest.mark.parametrize(("kind", "options", "message"), UNKNOWN_TO_TORCH)
def test_to_torch_refuses(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"layer: torch\.nn\.{kind.__name__} has no {message}"):
        convert.to_torch(kind(2, 3, **options))


def test_to_torch_takes_layers_alone() -> None:
    with pytest.raises(TypeError, match="layer: got int, wanted an LSTM or a GRU"):
        convert.to_torch(3)  # type: ignore[arg-type]
    mgu: Any = tg.MGU(2, 3)
    for refused in (mgu.to_torch, lambda: convert.to_torch(mgu)):
        with pytest.raises(TypeError, match=r"layer: got an MGU, which PyTorch, .*tidegate\.save"):
            refused()


def test_cells_and_submodules(torch: Any, rng: np.random.Generator) -> None:
    nn = torch.nn

    class Speller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(3, 5), nn.GRU(5, 4, batch_first=True))
            self.decoder = nn.LSTMCell(4, 6)

    model = Speller()
    encoder = convert.from_torch(model, "encoder.1")
    assert encoder.batch_first
    assert_same_outputs(torch, model.encoder[1], encoder, rng)
    same(convert.from_torch(model.encoder[1]), encoder)
    same(convert.from_torch(model, "encoder.1", batch_first=True), encoder)

    decoder = convert.from_torch(model, "decoder.")
    same(convert.from_torch(model.decoder), decoder)
    x = rng.normal(size=(2, 4)).astype(np.float32)
    with torch.no_grad():
        h, c = model.decoder(torch.from_numpy(x))
    stream = decoder.stream(batch=2)
    np.testing.assert_allclose(stream.step(x), h.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(stream.state[1][0], c.numpy(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"Speller: .*: 'encoder\.1\.', 'decoder\.'"):
        convert.from_torch(model)
    with pytest.raises(ValueError, match=r"Conv1d: no LSTM or GRU has the prefix ''; .*: none"):
        convert.from_torch(nn.Conv1d(2, 2, 3))
    for plain in (nn.RNN(2, 3), nn.RNNCell(2, 3)):
        with pytest.raises(
            ValueError, match=r"weight_hh: got shape \(3, 3\) .*as a plain nn\.RNN has"
        ):
            convert.from_torch(plain)


def test_scripted_modules(torch: Any) -> None:
    module = torch.nn.GRU(3, 4, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        scripted = torch.jit.script(module)
        outer = torch.jit.script(torch.nn.Sequential(module))
    same(convert.from_torch(scripted), convert.from_torch(module))
    same(convert.from_torch(outer, "0"), convert.from_torch(module))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"dropout": 0.25}], ids=str)
def test_traced_modules_tell_their_options(
    torch: Any, name: str, options: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    module = getattr(torch.nn, name)(3, 4, 2, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        traced = torch.jit.trace(
            torch.nn.Sequential(module), torch.zeros(2, 5, 3), check_trace=False
        )
        traced.save(tmp_path / "traced.pt")
        loaded = torch.jit.load(tmp_path / "traced.pt")
    for model in (traced, loaded):
        same(convert.from_torch(model, "0"), convert.from_torch(module))
        assert convert.from_torch(model, "0", batch_first=False).batch_first is False
    with pytest.raises(ValueError, match=r"traced\.pt: .* a TorchScript file: .*torch\.jit\.load"):
        convert.from_torch(tmp_path / "traced.pt", "0")


def test_a_traced_module_that_does_not_tell_the_layout(torch: Any) -> None:
    class Packed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.GRU(3, 4, batch_first=True)
            self.cell = torch.nn.GRUCell(3, 4)

        def forward(self, x: Any, sizes: Any) -> Any:
            packed = torch.nn.utils.rnn.PackedSequence(x, sizes)
            return self.rnn(packed)[1], self.cell(x)

    model = Packed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            model, (torch.zeros(3, 3), torch.tensor([2, 1])), check_trace=False
        )
    with pytest.raises(
        ValueError, match="batch_first: got None, but this scripted module does not"
    ):
        convert.from_torch(traced, "rnn")
    same(convert.from_torch(traced, "rnn", batch_first=True), convert.from_torch(model.rnn))
    same(convert.from_torch(traced, "cell"), convert.from_torch(model.cell))


# ---- Linear and Embedding ------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_linear(torch: Any, bias: bool, rng: np.random.Generator) -> None:
    module = torch.nn.Linear(3, 2, bias=bias, dtype=torch.float64)
    layer = convert.from_torch(module)
    assert isinstance(layer, tg.Linear)
    x = rng.standard_normal((4, 3))
    wanted = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(layer(x), wanted, rtol=0, atol=1e-14)
    model = torch.nn.ModuleDict({"head": module})
    same(convert.from_torch(model, "head"), layer)
    same(convert.from_torch(model.state_dict(), "head", cell="Linear"), layer)
    same(convert.from_torch({"model": model.state_dict()}, "head", cell="linear"), layer)
    if bias:
        same(convert.from_torch(model.state_dict(), "head"), layer)
    else:
        with pytest.raises(ValueError, match="may be an Embedding's or a Linear's; pass cell="):
            convert.from_torch(model.state_dict(), "head")


def test_embedding(torch: Any) -> None:
    module = torch.nn.Embedding(5, 3, padding_idx=0)
    weight = module.weight.detach().numpy().copy()
    np.testing.assert_array_equal(convert.from_torch(module), weight)
    array = convert.from_torch({"e.weight": module.weight}, "e", cell="Embedding")
    array[:] = 0  # a copy
    np.testing.assert_array_equal(module.weight.detach().numpy(), weight)
    with pytest.raises(ValueError, match=r"got max_norm=1\.0, by which look-ups change the weight"):
        convert.from_torch(torch.nn.Embedding(5, 3, max_norm=1.0))
    with pytest.raises(ValueError, match=r"cell: got 'Linear', but the module is an nn\.Embedding"):
        convert.from_torch(module, cell="Linear")


def test_plain_layers_refused() -> None:
    weight, bias = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=r"bias: got shape \(3,\), wanted \(2,\)"):
        convert.from_torch({"weight": weight, "bias": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"weight: got shape \(2,\), wanted \(out_features, in_f"):
        convert.from_torch({"weight": bias, "bias": bias})
    with pytest.raises(ValueError, match="surplus 'running_mean'"):
        convert.from_torch({"weight": weight, "bias": bias, "running_mean": bias})
    with pytest.raises(ValueError, match="surplus 'bias'"):
        convert.from_torch({"weight": weight, "bias": bias}, cell="Embedding")
    with pytest.raises(ValueError, match=r"no Linear has the prefix 'x'; .*: 'head\.', 'e\.'"):
        convert.from_torch({"head.weight": weight, "e.weight": weight}, "x", cell="Linear")
    with pytest.raises(ValueError, match="batch_first: got True, but '' is not recurrent"):
        convert.from_torch({"weight": weight, "bias": bias}, batch_first=True)


# ---- Computed weights ----------------------------------------------------------------------------


def weight_norm(torch: Any, module: Any, name: str) -> None:
    torch.nn.utils.parametrizations.weight_norm(module, name)


def spectral_norm(torch: Any, module: Any, name: str) -> None:
    torch.nn.utils.parametrizations.spectral_norm(module, name)


def orthogonal(torch: Any, module: Any, name: str) -> None:
    torch.nn.utils.parametrizations.orthogonal(module, name)


def own_parametrisation(torch: Any, module: Any, name: str) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return 2 * x

    torch.nn.utils.parametrize.register_parametrization(module, name, Doubled())


def old_weight_norm(torch: Any, module: Any, name: str) -> None:
    torch.nn.utils.weight_norm(module, name)


def old_weight_norm_of_all(torch: Any, module: Any, name: str) -> None:
    torch.nn.utils.weight_norm(module, name, dim=None)


def old_spectral_norm(torch: Any, module: Any, name: str) -> None:
    torch.nn.utils.spectral_norm(module, name)


def pruned(torch: Any, module: Any, name: str) -> None:
    prune = pytest.importorskip("torch.nn.utils.prune")
    prune.l1_unstructured(module, name, 0.3)
    prune.random_unstructured(module, name, 0.3)


# A state_dict tells how the weight of these modules is computed: with certainty, or as PyTorch's
# own modules do.
CERTAIN = [old_weight_norm, old_weight_norm_of_all, old_spectral_norm, pruned]
LIKELY = [weight_norm, spectral_norm]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("cell", ["LSTM", "GRUCell", "Linear"])
@pytest.mark.parametrize("compute", [*CERTAIN, *LIKELY, orthogonal, own_parametrisation])
def test_computed_weights(
    torch: Any, compute: Callable[..., None], cell: str, rng: np.random.Generator
) -> None:
    torch.manual_seed(0)
    module = getattr(torch.nn, cell)(5, 7)
    name = {"LSTM": "weight_hh_l0", "GRUCell": "weight_ih", "Linear": "weight"}[cell]
    compute(torch, module, name)
    with torch.no_grad():  # what the attribute holds of a hook's weight is of the last forward
        for parameter in module.parameters():
            parameter.mul_(1.25)
    outer = torch.nn.ModuleDict({"inner": module})
    before = {key: tensor.clone() for key, tensor in outer.state_dict().items()}
    layer = convert.from_torch(outer, "inner")
    assert outer.training
    assert all(module.training for module in outer.modules())
    for key, tensor in outer.state_dict().items():
        assert torch.equal(tensor, before[key]), key

    module.eval()
    x = rng.standard_normal((4, 5)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x))
    wanted = (wanted[0] if cell == "LSTM" else wanted).numpy()
    y = layer(x[None] if cell == "GRUCell" else x)
    y = y if cell == "Linear" else y[0]
    np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=0, atol=1e-6)

    state_dict = outer.state_dict()
    if compute in CERTAIN:
        told = convert.from_torch(state_dict, "inner")
    elif compute in LIKELY:
        with pytest.warns(UserWarning, match=f"{name}: .* are taken for .*{compute.__name__}"):
            told = convert.from_torch(state_dict, "inner")
    else:
        with pytest.raises(
            ValueError, match=f"{name}: .* do not reveal how it is computed; pass the"
        ):
            convert.from_torch(state_dict, "inner")
        return
    for key, array in layer.params.items():
        np.testing.assert_allclose(told.params[key], array, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weights_computed_in_several_ways(torch: Any) -> None:
    module = torch.nn.LSTM(3, 4)
    pruned(torch, module, "weight_hh_l0")
    weight_norm(torch, module, "weight_ih_l0")
    layer = convert.from_torch(module)
    for name in ("weight_hh_l0", "weight_ih_l0"):
        wanted = getattr(module, name).detach().numpy()
        np.testing.assert_array_equal(layer.params[name], wanted)
    old_weight_norm(torch, module, "bias_ih_l0")
    pruned(torch, module, "bias_ih_l0_v")
    with pytest.raises(
        ValueError, match=r"bias_ih_l0: .* do not reveal how .*; make it a plain param"
    ):
        convert.from_torch(module)


def test_parts_that_do_not_fit() -> None:
    layer = make("lstm")
    good = layer.state_dict()
    weight = good.pop("weight_hh_l0")

    def refused(message: str, **parts: Any) -> None:
        named = {f"weight_hh_l0_{part}": value for part, value in parts.items()}
        with pytest.raises(ValueError, match=message):
            convert.from_torch({**good, **named})

    ones = np.ones_like
    same(
        convert.from_torch(
            {**good, "weight_hh_l0_orig": weight, "weight_hh_l0_mask": ones(weight)}
        ),
        layer,
    )
    refused("weight_hh_l0: the names 'weight_hh_l0_g' do not reveal", g=weight[:, :1])
    refused("weight_hh_l0: the names 'weight_hh_l0_orig' do not reveal", orig=weight)
    refused("which is not a norm's for", g=weight[:2, :1], v=weight)
    refused("got a mask of shape", orig=weight, mask=weight[1:])
    refused("do not reveal the axis", orig=weight, u=ones(weight[0, :1]), v=ones(weight[0]))
    with pytest.raises(ValueError, match="do not reveal how it is computed"):
        convert.from_torch({**good, "weight_hh_l0": weight, "weight_hh_l0_orig": weight})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_tensors_become_float32(torch: Any, dtype: str) -> None:
    module = torch.nn.LSTM(3, 4, dtype=getattr(torch, dtype))
    layer = convert.from_torch(module)
    assert layer.dtype == np.float32
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(layer.params[name], tensor.float().numpy())


def test_refused_tensors(torch: Any) -> None:
    good = torch.nn.LSTM(3, 4).state_dict()
    for wrong in (
        torch.zeros(16, dtype=torch.int32),
        torch.zeros(16, device="meta"),
        torch.zeros(16).to_sparse(),
        torch.zeros(16, dtype=torch.complex64),
    ):
        with pytest.raises(TypeError, match=r"bias_hh_l0: got a .* tensor"):
            convert.from_torch({**good, "bias_hh_l0": wrong})
    with pytest.raises(TypeError, match=r"bias_hh_l0: got dtype torch\.float8"):
        convert.from_torch({**good, "bias_hh_l0": torch.zeros(16).to(torch.float8_e4m3fn)})


def test_files_of_torch_save(torch: Any, tmp_path: pathlib.Path) -> None:
    module = torch.nn.LSTM(3, 4, 2)
    layer = convert.from_torch(module)
    path = tmp_path / "model.pt"
    torch.save(module.state_dict(), path)
    same(convert.from_torch(path), layer)
    torch.save({"epoch": 3, "state_dict": module.state_dict(prefix="net.rnn.")}, path)
    same(convert.from_torch(path, "net.rnn"), layer)
    torch.save(module, path)  # a pickled module, which could run anything
    with pytest.raises(
        ValueError, match=r"model\.pt: not a .*: it holds more than tensors: .*LSTM"
    ):
        convert.from_torch(path)
    same(convert.from_torch(torch.load(path, weights_only=False)), layer)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"model\.pt: got a list, wanted a state_dict, a mapping"):
        convert.from_torch(path)
    torch.save((3, module.state_dict()), path)
    with pytest.raises(
        ValueError, match=r"got a tuple, .*: pass torch\.load\(path, weights_only=True\)\[1\] inst"
    ):
        convert.from_torch(path)
    same(convert.from_torch(torch.load(path, weights_only=True)[1]), layer)
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match=r"got a Tensor, .* save module\.state_dict"):
        convert.from_torch(path)
    with pytest.raises(FileNotFoundError):
        convert.from_torch(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    "key", ["model_state_dict", "state_dict", "model", "net", "module", "generator"]
)
def test_nested_checkpoints(torch: Any, key: str, tmp_path: pathlib.Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LSTM(3, 4))
    layer, head = convert.from_torch(model[1]), convert.from_torch(model[0])
    optimizer = torch.optim.Adam(model.parameters())
    checkpoint = {"epoch": 3, key: model.state_dict(), "optimizer": optimizer.state_dict()}
    path = tmp_path / "model.ckpt"
    torch.save(checkpoint, path)
    for source in (path, checkpoint, {"deeper": [checkpoint]}, {**checkpoint, key: model}):
        same(convert.from_torch(source, "1"), layer)
        same(convert.from_torch(source, "0"), head)
    for prefix in (f"{key}.1", f"{key}.1."):
        same(convert.from_torch(path, prefix), layer)
    with pytest.raises(
        ValueError, match=rf"model\.ckpt: no LSTM .* existing prefixes: '{key}\.1\.'$"
    ):
        convert.from_torch(path, "rnn")

    twice = {**checkpoint, "ema": {"shadow": torch.nn.Sequential(*model).state_dict()}}
    with pytest.raises(
        ValueError,
        match=rf"the prefix '1' is found under several keys, '{key}', 'ema\.shadow'; put",
    ):
        convert.from_torch(twice, "1")
    same(convert.from_torch(twice, "ema.shadow.1"), layer)


def test_what_is_held_under_several_keys(torch: Any, tmp_path: pathlib.Path) -> None:
    module = torch.nn.GRU(3, 4)
    state_dict = module.state_dict(prefix="rnn.")
    layer = convert.from_torch(module)
    path = tmp_path / "model.pt"
    checkpoint = {"model": state_dict, "best": state_dict, "deep": {"net": state_dict}}
    torch.save(checkpoint, path)
    for source in (path, checkpoint, {"model": module, "best": module, "deep": [{"net": module}]}):
        stem = "" if isinstance(source, dict) and source["model"] is module else ".rnn"
        for prefix in ("model", "best"):
            same(convert.from_torch(source, prefix + stem), layer)
        same(convert.from_torch(source, stem[1:]), layer)  # one thing, so not ambiguous
    same(convert.from_torch(checkpoint, "deep.net.rnn"), layer)
    with pytest.raises(ValueError, match=r"prefixes: 'model\.rnn\.', 'best\.rnn\.', 'deep\.net"):
        convert.from_torch(path, "absent")
    lists: Any = [{"epoch": 3}]
    for _ in range(8):
        lists = [lists] * 2000
    with pytest.raises(ValueError, match="existing prefixes: none"):
        convert.from_torch({"lists": lists})


def test_nested_checkpoints_without_weights(torch: Any) -> None:
    with pytest.raises(ValueError, match=r"prefixes: none; existing names: 'epoch', 'args'"):
        convert.from_torch({"epoch": 3, "args": {"lr": 0.1}})
    loop: dict[str, Any] = {"epoch": 3}
    loop["again"] = [loop]
    with pytest.raises(ValueError, match="existing prefixes: none"):
        convert.from_torch(loop)


def test_files_that_are_refused_say_what_to_do(torch: Any, tmp_path: pathlib.Path) -> None:
    state_dict = torch.nn.LSTM(3, 4).state_dict()
    path = tmp_path / "model.pt"

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=rf"model\.pt: not a file of weights.*{message}"):
            convert.from_torch(path)

    for beside in (argparse.Namespace(a=1), np.float64(0.3)):
        torch.save({"state_dict": state_dict, "beside": beside}, path)
        refused(
            r"it holds more than tensors: .*add_safe_globals.*torch\.load\(path, weights_only=F"
        )
        loaded = torch.load(path, weights_only=False)
        same(convert.from_torch(loaded), convert.from_torch(state_dict))
    torch.save({"state_dict": state_dict, "beside": os.system}, path)
    refused(r"it holds more than tensors: .*posix\.system .*blocked\.$")

    # No refusal of a global: unpickling by other means would not help.
    torch.save(state_dict, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    same(convert.from_torch(path), convert.from_torch(state_dict))
    for damaged in (whole[:-10], whole[:40], whole[:17] + b"\xff" * 40, b"\0\1\2" * 40):
        path.write_bytes(damaged)
        refused("it is damaged(?!.*weights_only=False).")
    path.rename(tmp_path / "m.safetensors")
    torch.save(state_dict, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"but a file of torch\.save: from_torch reads it, by any"):
        convert.from_torch(tmp_path / "m.safetensors")


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_quantised_modules(torch: Any, tmp_path: pathlib.Path) -> None:
    nn = torch.nn
    kinds = {nn.LSTM, nn.GRU, nn.Linear, nn.LSTMCell, nn.GRUCell}
    model = nn.Sequential(
        nn.LSTM(3, 4), nn.GRU(4, 4), nn.Linear(4, 4), nn.LSTMCell(3, 4), nn.GRUCell(3, 4)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantised = torch.ao.quantization.quantize_dynamic(model, kinds)
    except RuntimeError:
        pytest.skip("this PyTorch has no engine for quantised layers")
    for prefix in "234":
        with pytest.raises(
            ValueError,
            match=r"prefixes: '0\.', '1\.'; .* quantised modules, .*: '2\.', '2.*'3\.', '4\.'$",
        ):
            convert.from_torch(quantised, prefix)
    with pytest.raises(TypeError, match=r"^weight_ih: got a packed weight .* convert the float"):
        convert.from_torch(quantised, "3._packed_")
    torch.save(quantised.state_dict(), tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"model\.pt: .*its weights are quantised, and packed in objects that"
    ):
        convert.from_torch(tmp_path / "model.pt", "0")
    good = nn.LSTM(3, 4).state_dict()
    for bias in (
        torch.quantize_per_tensor(good["bias_hh_l0"], 0.1, 0, torch.qint8),
        torch.zeros(16, dtype=torch.int8),
    ):
        with pytest.raises(
            TypeError, match=r"bias_hh_l0: got a torch\.q?int8 tensor, which is quant"
        ):
            convert.from_torch({**good, "bias_hh_l0": bias})


def test_tensors_that_are_not_plain(torch: Any) -> None:
    class Wrapped(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, *args: Any) -> Any:
            raise NotImplementedError

    good = torch.nn.LSTM(3, 4).state_dict()
    wrapped = torch.Tensor._make_wrapper_subclass(Wrapped, (16,))
    with pytest.raises(
        TypeError, match="bias_hh_l0: got a Wrapped, wanted a tensor of plain values"
    ):
        convert.from_torch({**good, "bias_hh_l0": wrapped})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that lazy modules are new
        lazy = torch.nn.LazyLinear(3)
    with pytest.raises(
        TypeError, match="weight: got an uninitialised parameter; run the lazy module"
    ):
        convert.from_torch(lazy)


def test_an_index_of_torch_files(torch: Any, tmp_path: pathlib.Path) -> None:
    module = torch.nn.GRU(3, 4, 2)
    shards: dict[str, dict[str, Any]] = {}
    for name, tensor in module.state_dict().items():
        shard = f"pytorch_model-0000{1 + ('l1' in name)}-of-00002.bin"
        shards.setdefault(shard, {})[name] = tensor
    for shard, tensors in shards.items():
        torch.save(tensors, tmp_path / shard)
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    layer = convert.from_torch(module)
    same(convert.from_torch(index), layer)
    same(convert.from_torch(tmp_path), layer)
    for shard in shards:
        with pytest.raises(ValueError, match=r"got shard \d of 2, .*; pass the index"):
            convert.from_torch(tmp_path / shard)


def test_bfloat16_in_safetensors(torch: Any, tmp_path: pathlib.Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    module = torch.nn.GRU(3, 4, dtype=torch.bfloat16)
    path = tmp_path / "model.safetensors"
    safetensors.save_file(module.state_dict(), path)
    same(convert.from_torch(path), convert.from_torch(module))
