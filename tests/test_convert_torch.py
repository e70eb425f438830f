# PyTorch to layers and back: state_dicts of ndarrays always, modules and files if PyTorch is
# installed. Trained models are in test_real_models.py.
from __future__ import annotations

import json
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
PLAIN = [
    name
    for name, (_, _, _, options) in CASES.items()
    if options.keys() <= {"bias", "bidirectional", "proj_size"}
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
    with pytest.raises(ValueError, match="cell: got 'RNN', wanted 'LSTM', 'GRU' or None"):
        convert.from_torch(good, cell="RNN")
    with pytest.raises(TypeError, match="module_or_state_dict: got int, wanted"):
        convert.from_torch(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prefix: got int"):
        convert.from_torch(good, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="batch_first: got 1, wanted True or False"):
        convert.from_torch(good, batch_first=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got the key 3, wanted names"):
        convert.from_torch({3: np.zeros(3)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="prefixes of those that there are: none"):
        convert.from_torch({})
    vanilla = {"weight_ih_l0": np.zeros((3, 2)), "weight_hh_l0": np.zeros((3, 3))}
    with pytest.raises(ValueError, match=r"wanted 4\*hidden_size rows \(LSTM\) or 3\*hidden_size"):
        convert.from_torch(vanilla)
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
    whole = path.read_bytes()
    for damaged, reason in (
        (b"", "got 0 bytes, wanted a safetensors file"),
        (b"\xff" * 64, "the header's length, 18446744073709551615, reaches beyond"),
        (whole[:-10], "header: .*data_offsets .* do not lie in"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"model\.safetensors: {reason}"):
            convert.from_torch(path)
    with pytest.raises(FileNotFoundError):
        convert.from_torch(tmp_path / "absent.safetensors")


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
    with pytest.raises(ValueError, match=r"Linear: no LSTM or GRU has the prefix ''; .*: none"):
        convert.from_torch(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"weight_hh: got shape \(3, 3\) for a hidden_size of 3"):
        convert.from_torch(nn.RNN(2, 3))


def test_scripted_modules(torch: Any) -> None:
    module = torch.nn.GRU(3, 4, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        scripted = torch.jit.script(module)
        outer = torch.jit.script(torch.nn.Sequential(module))
    same(convert.from_torch(scripted), convert.from_torch(module))
    same(convert.from_torch(outer, "0"), convert.from_torch(module))


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
    with pytest.raises(ValueError, match=r"model\.pt: not a file of weights of torch\.save: "):
        convert.from_torch(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"model\.pt: got list, wanted a state_dict"):
        convert.from_torch(path)
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model\.pt: not a file of weights"):
        convert.from_torch(path)
    with pytest.raises(FileNotFoundError):
        convert.from_torch(tmp_path / "absent.pt")


def test_bfloat16_in_safetensors(torch: Any, tmp_path: pathlib.Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    module = torch.nn.GRU(3, 4, dtype=torch.bfloat16)
    path = tmp_path / "model.safetensors"
    safetensors.save_file(module.state_dict(), path)
    same(convert.from_torch(path), convert.from_torch(module))
