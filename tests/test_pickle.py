"""Layers and streams after pickling and copying: the same bits, nothing shared by accident."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import tidegate as tg
from layer_cases import CASES, INPUT_SIZE, STREAMABLE, assert_same_bits, make, output_size

T, N = 5, 2
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

ways = pytest.mark.parametrize(
    "way",
    [lambda v, p=p: pickle.loads(pickle.dumps(v, p)) for p in PROTOCOLS]
    + [copy.copy, copy.deepcopy],
    ids=[f"pickle{p}" for p in PROTOCOLS] + ["copy", "deepcopy"],
)


class Named(tg.GRU):
    """A user's own layer."""

    name = "none"


def random_x(dtype, rng):
    return rng.standard_normal((T, N, INPUT_SIZE)).astype(dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@ways
def test_layers(case, dtype, way, rng):
    layer = make(case, dtype=dtype)
    x = random_x(dtype, rng)
    twin = way(layer)
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    assert_same_bits(twin.params.flat, layer.params.flat)
    y, state = layer(x)
    y_twin, state_twin = twin(x)
    assert_same_bits(y_twin, y)
    assert_same_bits(state_twin, state)
    # A tape of one is a tape of the other.
    _, _, tape = layer.forward(x)
    dy = np.ones((T, N, output_size(layer)), dtype)
    assert_same_bits(twin.backward(tape, dy).params.flat, layer.backward(tape, dy).params.flat)
    # The parameters are its own.
    twin.params.flat = np.zeros_like(twin.params.flat)
    assert_same_bits(layer(x)[0], y)
    assert twin(x)[0].tobytes() != y.tobytes()


@ways
def test_options_and_attributes(way):
    layer = Named(3, 4, 2, batch_first=True, dropout=0.3, seed=0)
    layer.name = "encoder"
    twin = way(layer)
    assert type(twin) is Named
    assert twin.name == "encoder"
    assert repr(twin) == "Named(3, 4, num_layers=2, batch_first=True, dropout=0.3)"
    assert (twin.dropout, twin.batch_first) == (0.3, True)
    assert layer.astype(np.float64).name == "encoder"


@ways
def test_a_layer_that_warned_warns_no_more(way):
    with pytest.warns(UserWarning, match=r"dropout"):
        layer = tg.GRU(3, 4, dropout=0.3)
    assert way(layer).dropout == 0.3


@pytest.mark.parametrize("case", STREAMABLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@ways
def test_streams_go_on_where_they_were(case, dtype, way, rng):
    layer = make(case, dtype=dtype)
    x = random_x(dtype, rng)
    stream = layer.stream(N)
    stream.run(x)
    twin = way(stream)
    assert type(twin) is tg.Stream
    assert repr(twin) == repr(stream)
    assert_same_bits(twin.state, stream.state)
    first = twin.step(x[0])
    assert_same_bits(stream.step(x[0]), first)
    assert (twin.layer is layer) == (way is copy.copy)
    twin.reset()
    assert_same_bits(stream.step(x[1]), layer(x[[0, 1, 2, 3, 4, 0, 1]])[0][-1])


def test_a_pickled_pair_stays_a_pair(rng):
    layer = make("gru")
    other, stream = pickle.loads(pickle.dumps((layer, layer.stream())))
    assert stream.layer is other


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_pickles_of_versions_without_mgu(cell, rng):
    """They have the cell's name in lower case."""
    kind = {"lstm": tg.LSTM, "gru": tg.GRU}[cell]
    options = {
        "cell": cell,
        "input_size": INPUT_SIZE,
        "hidden_size": 4,
        "num_layers": 2,
        "bias": False,
        "bidirectional": False,
        "proj_size": 3 if cell == "lstm" else 0,
        "peephole": cell == "lstm",
        "reset_after": cell == "lstm",
        "update_gate": "carry",
        "reverse": False,
        "recurrent_activation": "sigmoid",
        "activation": "tanh",
        "output_activation": None,
        "clip": None,
        "input_forget": False,
    }
    own = ("proj_size", "peephole") if cell == "lstm" else ("reset_after",)
    wanted = kind(
        INPUT_SIZE, 4, 2, bias=False, batch_first=True, seed=1, **{n: options[n] for n in own}
    )
    layer = kind.__new__(kind)
    layer.__setstate__(
        {
            "options": options,
            "batch_first": True,
            "dropout": 0.0,
            "flat": wanted.params.flat.copy(),
            "attributes": {"name": "encoder"},
        }
    )
    assert layer.name == "encoder"
    assert repr(layer) == repr(wanted)
    x = random_x(np.float32, rng)
    assert_same_bits(layer(x)[0], wanted(x)[0])
    assert repr(pickle.loads(pickle.dumps(layer))) == repr(wanted)


def bound_objects():
    """An object of each bound class, or one that holds such an object, by name."""
    layer, linear = make("gru"), tg.Linear(3, 2, seed=0)
    _, _, tape = layer.forward(np.zeros((T, N, INPUT_SIZE), np.float32))
    _, linear_tape = linear.forward(np.zeros((N, 3), np.float32))
    return {
        "Config": layer._config,
        "Model": layer._model,
        "Tape": tape,
        "Tape that __init__ has not made": tg.Tape.__new__(tg.Tape),
        "LinearTape": linear_tape,
        "Params": layer.params,
        "Params of Linear": linear.params,
        "Adam": tg.optim.Adam([layer, linear]),
    }


def test_what_cannot_be_pickled_is_refused_alike_by_every_protocol():
    for name, value in bound_objects().items():
        ways = [lambda v, p=p: pickle.dumps(v, p) for p in PROTOCOLS]
        for way in [*ways, copy.copy, copy.deepcopy]:
            if name in ("LinearTape", "Params", "Params of Linear", "Adam") and way is copy.copy:
                continue  # of these, a shallow copy shares the bound object
            with pytest.raises(TypeError, match=r"^cannot pickle 'tidegate\._core\.\w+' object"):
                way(value)


def test_files_cannot_be_pickled(tmp_path):
    tg.save(tmp_path / "layers.safetensors", make("gru"))
    file = tg.TensorFile(tmp_path / "layers.safetensors")
    for protocol in PROTOCOLS:
        with pytest.raises(TypeError, match=r"^cannot pickle 'tidegate\._core\.Safetensors'"):
            pickle.dumps(file, protocol)


def test_the_base_of_bound_classes_has_no_instances():
    base = tg.Tape.__mro__[-2]

    class Derived(base):
        pass

    for kind in (base, Derived):
        for call in (kind, lambda kind=kind: kind.__new__(kind)):
            with pytest.raises(TypeError, match=rf"^cannot create '{kind.__name__}' instances"):
                call()
    with pytest.raises(TypeError, match=r"^cannot pickle 'tidegate\._core\.Tape' object"):
        tg.Tape.__new__(tg.Tape).__reduce__()
