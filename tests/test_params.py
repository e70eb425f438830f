"""Params and Gradients over a flat vector: views, checked writes, all-or-nothing loading."""

import copy
import pickle
from collections.abc import Mapping

import numpy as np
import pytest

import tidegate as tg
from tidegate.params import ArrayStore, Gradients, Params

SPECS = [("weight", (2, 3), 0), ("bias", (2,), 6)]


class CountingStore(ArrayStore):
    """Counts writes: what a layer with packed weights would renew."""

    def __init__(self, flat):
        super().__init__(flat)
        self.writes = []

    def write(self, offset, values):
        assert values.ndim == 1
        assert values.flags.c_contiguous
        assert values.dtype == self.flat.dtype
        self.writes.append((offset, values.size))
        super().write(offset, values)


@pytest.fixture
def store():
    return CountingStore(np.arange(8, dtype=np.float32))


@pytest.fixture
def params(store):
    return Params(SPECS, store)


def test_masked_elements_are_refused(params):
    before = params.flat.copy()
    masked = np.ma.masked_equal(np.arange(2, dtype=np.float32), 1)
    with pytest.raises(ValueError, match="bias: got a masked array with 1 masked elements, wanted"):
        params["bias"] = masked
    with pytest.raises(ValueError, match="state_dict: bias: got a masked array"):
        params.load_state_dict({**params.state_dict(), "bias": masked})
    assert np.array_equal(params.flat, before)
    params["bias"] = np.ma.array([3, 4], dtype=np.float32)  # without any
    assert params["bias"].tolist() == [3, 4]


def test_is_a_mapping_of_shaped_views(params):
    assert isinstance(params, Mapping)
    assert list(params) == ["weight", "bias"]
    assert len(params) == 2
    assert "bias" in params
    assert "weight_ih_l0" not in params
    assert params["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert params["bias"].tolist() == [6, 7]
    assert params.shapes == {"weight": (2, 3), "bias": (2,)}
    assert params.dtype == np.float32
    assert dict(params.items()).keys() == {"weight", "bias"}
    assert "weight: (2, 3)" in repr(params)


def test_from_arrays_copies_values_in_this_order():
    weight, bias = np.arange(6, dtype=np.float32).reshape(3, 2).T, np.array(7, np.float32)
    params = Params.from_arrays({"weight": weight, "bias": bias})
    grads = Gradients.from_arrays({"weight": weight, "bias": bias})
    weight[:] = 0
    for named in (params, grads):
        assert named.shapes == {"weight": (2, 3), "bias": ()}
        assert named.dtype == np.float32
        assert named.flat.tolist() == [0, 2, 4, 1, 3, 5, 7]
    params["bias"] = np.array(8, np.float32)
    grads["weight"][0, 0] = 9
    assert (params.flat[-1], grads.flat[0]) == (8, 9)
    zeros = Gradients.zeros_like(params)
    assert zeros.shapes == params.shapes
    assert zeros.dtype == np.float32
    assert not zeros.flat.any()


@pytest.mark.parametrize("kind", [Params, Gradients])
@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ([np.zeros(3)], TypeError, "arrays: got list, wanted a mapping"),
        ({}, ValueError, "arrays: got none"),
        ({1: np.zeros(3)}, TypeError, "arrays: got the name 1, wanted a str"),
        ({"w": [1.0]}, TypeError, "w: got list, wanted a float32 or float64 ndarray"),
        ({"w": np.zeros(3, int)}, TypeError, "w: got dtype int64, wanted float32 or float64"),
        ({"w": np.zeros(3), "b": np.zeros(3, "f4")}, TypeError, "b: .*float32, wanted float64"),
    ],
)
def test_from_arrays_refuses_what_is_no_mapping_of_arrays(kind, arrays, error, message):
    with pytest.raises(error, match=message):
        kind.from_arrays(arrays)


def test_zeros_like_refuses_what_has_no_names():
    with pytest.raises(TypeError, match="params: got ndarray"):
        Gradients.zeros_like(np.zeros(3))


def test_unknown_names_list_what_exists(params):
    with pytest.raises(KeyError, match=r"wieght.*weight, bias"):
        params["wieght"]
    with pytest.raises(KeyError, match=r"wieght.*weight, bias"):
        params["wieght"] = np.zeros((2, 3), np.float32)
    with pytest.raises(KeyError, match="weight, bias"):
        params[["weight"]]


def test_is_compared_by_identity(params, store):
    assert params == params
    assert params != Params(SPECS, store)
    assert len({params, params}) == 1


def test_views_are_read_only_and_live(params):
    view, flat = params["weight"], params.flat
    for array in (view, flat):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        params.flat += 1
    params["weight"] = np.full((2, 3), 9, np.float32)
    assert (view == 9).all()
    assert flat.tolist() == [9] * 6 + [6, 7]


def test_assignment_copies_in(params, store):
    source = np.ones((2, 3), np.float32)
    params["weight"] = source
    source[:] = 5
    assert (params["weight"] == 1).all()
    assert params["bias"].tolist() == [6, 7]
    params["bias"] = np.array([3, 4], np.float32)
    assert store.writes == [(0, 6), (6, 2)]


@pytest.mark.parametrize(
    "source",
    [
        np.arange(6, dtype=np.float32).reshape(3, 2).T,
        np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::2],
        np.arange(6, dtype=np.float32).reshape(2, 3)[::-1, ::-1],
        np.broadcast_to(np.float32(7), (2, 3)),
    ],
    ids=["transposed", "strided", "reversed", "broadcast"],
)
def test_any_strides_are_taken(params, source):
    params["weight"] = source
    assert (params["weight"] == source).all()


def test_its_own_memory_may_be_the_source(params):
    params["weight"] = params["weight"][::-1, ::-1]
    assert params["weight"].tolist() == [[5, 4, 3], [2, 1, 0]]
    params["bias"] = params.flat[1:3]
    assert params["bias"].tolist() == [4, 3]
    params.flat = params.flat[::-1]
    assert params.flat.tolist() == [3, 4, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.zeros((2, 3)), TypeError, r"weight.*float64.*float32"),
        (np.zeros((2, 3), int), TypeError, r"weight.*int64.*float32"),
        (np.zeros((2, 3), ">f4"), TypeError, r"weight.*>f4.*float32"),
        ([[1, 2, 3], [4, 5, 6]], TypeError, r"weight.*list.*float32"),
        (None, TypeError, r"weight.*NoneType"),
        (np.float32(1), TypeError, r"weight.*ndarray"),
        (np.zeros((3, 2), np.float32), ValueError, r"weight.*\(3, 2\).*\(2, 3\)"),
        (np.zeros(6, np.float32), ValueError, r"weight.*\(6,\).*\(2, 3\)"),
        (np.zeros((), np.float32), ValueError, r"weight.*\(\).*\(2, 3\)"),
    ],
)
def test_wrong_values_are_refused_by_name(params, store, value, error, message):
    with pytest.raises(error, match=message):
        params["weight"] = value
    assert store.writes == []
    assert params.flat.tolist() == list(range(8))


def test_flat_setter(params, store):
    params.flat = np.arange(8, 0, -1).astype(np.float32)
    assert params["bias"].tolist() == [2, 1]
    assert store.writes == [(0, 8)]
    with pytest.raises(TypeError, match=r"flat.*float64.*float32"):
        params.flat = np.zeros(8)
    with pytest.raises(ValueError, match=r"flat.*\(7,\).*\(8,\)"):
        params.flat = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match=r"flat.*\(2, 4\).*\(8,\)"):
        params.flat = np.zeros((2, 4), np.float32)
    assert len(store.writes) == 1


def test_update_writes_once_on_leaving(params, store):
    with params.update() as flat:
        flat *= 2
        assert params.flat.tolist() == list(range(8))
    assert store.writes == [(0, 8)]
    assert params.flat.tolist() == list(range(0, 16, 2))
    flat[:] = -1
    assert params.flat.tolist() == list(range(0, 16, 2))


def test_update_drops_everything_if_the_body_raises(params, store):
    def fail():
        with params.update() as flat:
            flat[:] = 0
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="middle"):
        fail()
    assert store.writes == []
    assert params.flat.tolist() == list(range(8))


def test_state_dict_is_a_copy_and_loads(params, store, tmp_path):
    state = params.state_dict()
    assert list(state) == ["weight", "bias"]
    state["weight"][:] = -1
    assert params.flat.tolist() == list(range(8))
    params.load_state_dict(state)
    assert store.writes == [(0, 8)]
    assert params.flat.tolist() == [-1] * 6 + [6, 7]
    np.savez(tmp_path / "weights.npz", **params.state_dict())
    params.flat = np.zeros(8, np.float32)
    with np.load(tmp_path / "weights.npz") as file:
        params.load_state_dict(file)
    assert params.flat.tolist() == [-1] * 6 + [6, 7]


def test_load_state_dict_names_every_problem_at_once():
    four = [
        ("weight", (2, 3), 0),
        ("bias", (2,), 6),
        ("gain", (1,), 8),
        ("shift", (1,), 9),
    ]
    params = Params(four, CountingStore(np.zeros(10, np.float32)))
    wrong = {
        "weight": np.zeros((3, 2), np.float32),
        "bias": np.zeros(2),
        "gain": np.ones(1, np.float32),
        "extra": np.zeros(1, np.float32),
        7: None,
    }
    with pytest.raises(ValueError, match="state_dict") as caught:
        params.load_state_dict(wrong)
    message = str(caught.value)
    for part in (
        "missing shift",
        "surplus 'extra', 7",
        "weight: got shape (3, 2), wanted (2, 3)",
    ):
        assert part in message
    assert "bias: got dtype float64, wanted float32" in message
    assert not params.flat.any()


def test_load_state_dict_of_wrong_dtypes_alone_is_a_type_error(params, store):
    with pytest.raises(TypeError, match=r"weight.*float64.*bias.*list"):
        params.load_state_dict({"weight": np.zeros((2, 3)), "bias": [1.0, 2.0]})
    with pytest.raises(TypeError, match=r"state_dict.*list.*mapping"):
        params.load_state_dict([("weight", 1)])
    assert store.writes == []


def test_pickles_and_copies_by_value():
    params = Params(SPECS, ArrayStore(np.arange(8.0)))
    for twin in (pickle.loads(pickle.dumps(params)), copy.deepcopy(params)):
        assert twin.flat.tolist() == params.flat.tolist()
        twin["bias"] = np.zeros(2)
        assert params["bias"].tolist() == [6, 7]


def test_array_store_copies_its_initial_values():
    flat = np.arange(8.0)
    params = Params(SPECS, ArrayStore(flat))
    flat[:] = 0
    assert params.flat.tolist() == list(range(8))


def test_gradients_are_writable_live_views():
    flat = np.zeros(8)
    grads = Gradients(SPECS, flat)
    assert isinstance(grads, Mapping)
    assert list(grads) == ["weight", "bias"]
    assert grads.flat is flat
    grads["weight"][1, 2] = 5
    grads["bias"][:] = 1
    assert flat.tolist() == [0, 0, 0, 0, 0, 5, 1, 1]
    grads.flat += np.ones(8)
    assert grads["bias"].tolist() == [2, 2]
    assert grads.flat is flat
    grads.flat = np.full(8, 3.0)
    assert flat.tolist() == [3] * 8
    with pytest.raises(ValueError, match=r"flat.*\(1,\).*\(8,\)"):
        grads.flat = np.zeros(1)
    with pytest.raises(TypeError, match=r"flat.*float32.*float64"):
        grads.flat = np.zeros(8, np.float32)
    with pytest.raises(KeyError, match="weight, bias"):
        grads["gain"]


def test_gradients_need_a_vector_they_can_write():
    read_only = np.zeros(8)
    read_only.flags.writeable = False
    for flat in (read_only, np.zeros(7), np.zeros(16)[::2], np.zeros((2, 4))):
        with pytest.raises(ValueError, match="flat"):
            Gradients(SPECS, flat)


def test_a_layer_without_parameters_has_none():
    params = Params([], ArrayStore(np.zeros(0)))
    assert not params
    params.load_state_dict({})
    assert params.state_dict() == {}
    assert repr(params) == "Params(0 x float64)"


def test_state_dicts_of_tensors_point_to_the_conversion():
    torch = pytest.importorskip("torch")
    state_dict = torch.nn.GRU(3, 4).state_dict()
    with pytest.raises(TypeError, match=r"bias_hh_l0: got Tensor, .*; tidegate\.convert\.from_t"):
        tg.GRU(3, 4).load_state_dict(state_dict)
    with pytest.raises(ValueError, match=r"missing weight.*; tidegate\.convert\.from_torch "):
        tg.Linear(3, 4).load_state_dict(state_dict)
