"""Linear and Dropout: closed forms, finite differences, PyTorch, tapes, refusals."""

import copy
import math
import pickle

import numpy as np
import pytest

from tidegate import Dropout, Linear, _core


def rand(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def numeric_gradient(f, x, step=1e-6):
    """Central differences of the scalar f() by every element of x, which f reads."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        saved = x[index]
        x[index] = saved + step
        above = f()
        x[index] = saved - step
        gradient[index] = (above - f()) / (2 * step)
        x[index] = saved
    return gradient


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3), (4, 5, 3), (0, 3), (4, 0, 3)])
def test_linear_is_its_formula(shape, bias, dtype):
    layer = Linear(3, 2, bias=bias, dtype=dtype, seed=1)
    x = rand(*shape, dtype=dtype)
    w, b = layer.params["weight"], layer.params["bias"] if bias else np.zeros(2, dtype)
    want = np.einsum("...i,oi->...o", x.astype(float), w.astype(float)) + b
    y = layer(x)
    assert y.dtype == dtype
    assert y.shape == (*shape[:-1], 2)
    # A sum of in_features products and a bias, each rounded: (in_features + 1) eps of their sizes.
    size = np.einsum("...i,oi->...o", np.abs(x), np.abs(w)) + np.abs(b)
    assert (np.abs(y - want) <= 4 * np.finfo(dtype).eps * size).all()
    y_forward, tape = layer.forward(x)
    assert (y_forward == y).all()
    dy = rand(*y.shape, dtype=dtype, seed=2)
    grads = layer.backward(tape, dy)
    assert grads.x.shape == x.shape
    assert grads.x.dtype == grads.params.dtype == dtype
    assert list(grads.params) == list(layer.params)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("features", [(1, 1), (17, 33), (100, 3), (257, 130), (1500, 16)])
def test_linear_has_the_same_bits_for_any_batch_and_threads(features, dtype, isa):
    layer = Linear(*features, dtype=dtype, seed=1)
    x = rand(101, features[0], dtype=dtype)
    y, tape = layer.forward(x, num_threads=1)
    dy = rand(*y.shape, dtype=dtype, seed=2)
    grads = layer.backward(tape, dy, num_threads=1)
    # Within (K + 1) eps of the sizes of the products: they are summed in short blocks.
    size = np.abs(x) @ np.abs(layer.params["weight"].T) + 1
    want = x.astype(np.longdouble) @ layer.params["weight"].T + layer.params["bias"]
    assert (np.abs(y - want) <= np.finfo(dtype).eps * min(features[0] + 1, 160) * size).all()
    _core.select_division("rows")  # all the threads that are asked for
    try:
        for threads in (2, 3):
            assert np.array_equal(layer(x, num_threads=threads), y)
            other = layer.backward(tape, dy, num_threads=threads)
            assert np.array_equal(other.x, grads.x)
            assert np.array_equal(other.params.flat, grads.params.flat)
            for rows in (slice(0, 1), slice(7, 10), slice(5, 38)):
                assert np.array_equal(layer(x[rows], num_threads=threads), y[rows])
                _, part = layer.forward(x[rows], num_threads=threads)
                assert np.array_equal(layer.backward(part, dy[rows]).x, grads.x[rows])
    finally:
        _core.select_division("auto")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3)])
def test_linear_gradients_agree_with_finite_differences(shape, bias):
    layer = Linear(3, 2, bias=bias, dtype=np.float64, seed=1)
    x = rand(*shape)
    y, tape = layer.forward(x)
    dy = rand(*y.shape, seed=2)
    grads = layer.backward(tape, dy)

    def loss():
        return float((layer(x) * dy).sum())

    np.testing.assert_allclose(grads.x, numeric_gradient(loss, x), rtol=1e-7, atol=1e-8)
    flat = layer.params.flat.copy()

    def loss_of_flat():
        layer.params.flat = flat
        return loss()

    want = numeric_gradient(loss_of_flat, flat)
    np.testing.assert_allclose(grads.params.flat, want, rtol=1e-7, atol=1e-8)


def test_linear_agrees_with_torch():
    torch = pytest.importorskip("torch")
    layer = Linear(7, 5, dtype=np.float64, seed=3)
    twin = torch.nn.Linear(7, 5, dtype=torch.float64)
    twin.load_state_dict({name: torch.from_numpy(w) for name, w in layer.state_dict().items()})
    x, dy = rand(4, 6, 7), rand(4, 6, 5, seed=2)
    x_torch = torch.from_numpy(x.copy()).requires_grad_()
    y_torch = twin(x_torch)
    y_torch.backward(torch.from_numpy(dy))
    y, tape = layer.forward(x)
    grads = layer.backward(tape, dy)
    for ours, theirs in [
        (y, y_torch.detach()),
        (grads.x, x_torch.grad),
        (grads.params["weight"], twin.weight.grad),
        (grads.params["bias"], twin.bias.grad),
    ]:
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-12)
    assert repr(Linear(7, 5)) == repr(twin)
    assert repr(Linear(7, 5, bias=False)) == repr(torch.nn.Linear(7, 5, bias=False))


def test_linear_takes_any_strides_and_read_only_input():
    layer = Linear(3, 2, dtype=np.float64, seed=1)
    x = rand(8, 6)[::2, ::-2]
    x.flags.writeable = False
    y, tape = layer.forward(x)
    np.testing.assert_allclose(y, layer(np.ascontiguousarray(x)), rtol=1e-14)
    dy = np.broadcast_to(np.array([1.0, -1.0]), y.shape)
    want = layer.backward(tape, dy.copy())
    got = layer.backward(tape, dy)
    np.testing.assert_allclose(got.x, want.x, rtol=1e-14)
    np.testing.assert_allclose(got.params.flat, want.params.flat, rtol=1e-14)


def test_linear_tape_outlives_changes_and_may_be_used_again():
    layer = Linear(3, 2, dtype=np.float64, seed=1)
    x, dy = rand(4, 3), rand(4, 2, seed=2)
    _, tape = layer.forward(x)
    first = layer.backward(tape, dy)
    x[:] = np.nan
    layer.params.flat = np.full(8, np.nan)
    second = layer.backward(tape, dy)
    assert (first.x == second.x).all()
    assert (first.params.flat == second.params.flat).all()
    assert not np.shares_memory(first.params.flat, second.params.flat)


def test_linear_initialisation():
    layer = Linear(16, 400, seed=5)
    flat = layer.params.flat
    assert layer.params["weight"].shape == (400, 16)
    assert layer.params["bias"].shape == (400,)
    assert np.abs(flat).max() <= 1 / math.sqrt(16)
    # The mean and variance of U(-1/4, 1/4), to five standard errors.
    deviation = 0.25 / math.sqrt(3)
    assert abs(flat.mean()) < 5 * deviation / math.sqrt(flat.size)
    assert abs(flat.var() / deviation**2 - 1) < 5 * math.sqrt(0.8 / flat.size)
    assert (flat == Linear(16, 400, seed=5).params.flat).all()
    assert (flat == Linear(16, 400, seed=np.random.default_rng(5)).params.flat).all()
    assert (flat != Linear(16, 400, seed=6).params.flat).any()
    assert (flat != Linear(16, 400).params.flat).any()
    double = Linear(16, 400, dtype="float64", seed=5)
    assert (double.params.flat.astype(np.float32) == flat).all()


def test_linear_astype_state_dict_and_repr():
    layer = Linear(3, 2, seed=1)
    double = layer.astype(np.float64)
    assert layer.dtype == np.float32
    assert double.dtype == np.float64
    assert (double.params.flat == layer.params.flat).all()
    assert repr(double) == "Linear(in_features=3, out_features=2, bias=True, dtype=float64)"
    other = Linear(3, 2, seed=2)
    other.load_state_dict(layer.state_dict())
    assert (other.params.flat == layer.params.flat).all()
    with pytest.raises(ValueError, match="missing bias"):
        other.load_state_dict(Linear(3, 2, bias=False).state_dict())
    with pytest.raises(TypeError, match=r"weight.*float32.*float64"):
        double.load_state_dict(layer.state_dict())


def round_trip(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("duplicate", [round_trip, copy.copy, copy.deepcopy])
def test_linear_copies_have_parameters_of_their_own(duplicate):
    layer = Linear(3, 2, bias=False, dtype=np.float64, seed=1)
    twin = duplicate(layer)
    x = rand(4, 3)
    assert (twin(x) == layer(x)).all()
    assert repr(twin) == repr(layer)
    twin.params.flat = np.zeros(6)
    assert layer.params.flat.all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_features": 0}, ValueError, r"in_features.*0.*at least 1"),
        ({"out_features": -2}, ValueError, r"out_features.*-2"),
        ({"in_features": 2.0}, TypeError, r"in_features.*2\.0.*integer"),
        ({"out_features": True}, TypeError, r"out_features.*True.*integer"),
        ({"dtype": np.float16}, TypeError, r"dtype.*float16.*float32 or float64"),
        ({"dtype": int}, TypeError, r"dtype.*int64"),
        ({"dtype": "no such type"}, TypeError, "dtype.*no such type"),
        ({"dtype": None}, TypeError, "dtype: got None, wanted float32 or float64"),
        ({"bias": "no"}, TypeError, "bias: got 'no', wanted True or False"),
        ({"bias": 1}, TypeError, "bias: got 1, wanted True or False"),
        ({"seed": "a"}, TypeError, r"seed: got 'a', wanted None, an integer >= 0"),
        ({"seed": 1.5}, TypeError, r"seed: got 1\.5, wanted"),
        ({"seed": -1}, ValueError, r"seed: got -1, wanted None, an integer >= 0"),
    ],
)
def test_linear_refuses_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Linear(**({"in_features": 3, "out_features": 2} | arguments))


def test_linear_takes_numpy_bools_and_refuses_none_as_a_dtype():
    assert Linear(3, 2, bias=np.False_).bias is False
    with pytest.raises(TypeError, match="dtype: got None"):
        Linear(3, 2).astype(None)


def test_reprs_of_what_training_returns():
    layer = Linear(3, 2)
    y, tape = layer.forward(np.zeros((5, 4, 3), np.float32))
    assert repr(tape) == "<LinearTape of a Linear(3, 2): x (5, 4, 3), float32>"
    grads = layer.backward(tape, y)
    assert repr(grads) == "LinearGrads(x: (5, 4, 3), params: 8 x float32)"
    _, tape = Dropout(0.5).forward(y, np.random.default_rng(0))
    assert repr(tape) == "<DropoutTape: (5, 4, 2), float32>"


def test_linear_refuses_wrong_arrays():
    layer = Linear(3, 2, seed=1)
    with pytest.raises(TypeError, match=r"x.*float64.*float32"):
        layer(rand(4, 3))
    with pytest.raises(TypeError, match=r"x.*list.*ndarray"):
        layer([[1.0, 2.0, 3.0]])
    for shape in [(4, 2), (), (3, 1)]:
        with pytest.raises(ValueError, match=r"x: got shape .*wanted \(\.\.\., 3\)"):
            layer.forward(rand(*shape, dtype=np.float32))
    y, tape = layer.forward(rand(4, 3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"dy.*\(2, 4\).*\(4, 2\)"):
        layer.backward(tape, y.T)
    with pytest.raises(TypeError, match=r"dy.*float64.*float32"):
        layer.backward(tape, y.astype(float))
    with pytest.raises(TypeError, match=r"tape.*tuple.*LinearTape"):
        layer.backward((1, 2), y)
    with pytest.raises(TypeError, match=r"tape.*float32.*float64"):
        layer.astype(float).backward(tape, y.astype(float))
    with pytest.raises(ValueError, match=r"tape: got .*\(3, 2, True\), wanted \(3, 5, True\)"):
        Linear(3, 5).backward(tape, y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_p_and_keeps_the_mean(p, dtype):
    dropout = Dropout(p)
    x = np.ones((100, 400), dtype)
    y, tape = dropout.forward(x, np.random.default_rng(1))
    assert y.dtype == dtype
    kept = y != 0
    np.testing.assert_allclose(y[kept], 1 / (1 - p), rtol=np.finfo(dtype).eps)
    assert abs(1 - kept.mean() - p) < 5 * math.sqrt(p * (1 - p) / x.size)
    dy = rand(100, 400, dtype=dtype)
    dx = dropout.backward(tape, dy)
    assert dx.dtype == dtype
    assert (dx == dy * y).all()
    assert dropout(x) is x


def test_dropout_is_seeded_alike_in_both_dtypes():
    double, _ = Dropout(0.3).forward(np.ones((5, 7)), np.random.default_rng(1))
    single, _ = Dropout(0.3).forward(np.ones((5, 7), np.float32), np.random.default_rng(1))
    assert ((double == 0) == (single == 0)).all()
    again, _ = Dropout(0.3).forward(np.ones((5, 7)), np.random.default_rng(1))
    assert (again == double).all()
    other, _ = Dropout(0.3).forward(np.ones((5, 7)), np.random.default_rng(2))
    assert (other != double).any()


def test_dropout_of_zero_needs_no_rng_and_changes_nothing():
    rng = np.random.default_rng(1)
    state = rng.bit_generator.state
    x = rand(5, 3)
    for y, tape in (Dropout(0).forward(x), Dropout(0.0).forward(x, rng)):
        assert (y == x).all()
        assert not np.shares_memory(x, y)
        assert (Dropout(0).backward(tape, x) == x).all()
    assert rng.bit_generator.state == state


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_of_one_leaves_zeros(dtype):
    dropout, x = Dropout(1), rand(50, 3, dtype=dtype)
    y, tape = dropout.forward(x, np.random.default_rng(1))
    assert y.dtype == dtype
    assert (y == 0).all()
    assert (dropout.backward(tape, x) == 0).all()
    assert dropout(x) is x


def test_dropout_multiplies_as_ieee_says():
    y, _ = Dropout(0.5).forward(np.full(50, np.nan), np.random.default_rng(1))
    assert np.isnan(y).all()


def test_dropout_tape_copies_and_dropout_pickles():
    x = np.ones((4, 3))
    y, tape = Dropout(0.5).forward(x, np.random.default_rng(1))
    want = y.copy()
    x[:] = y[:] = 7
    assert (Dropout(0.5).backward(tape, np.ones((4, 3))) == want).all()
    assert round_trip(Dropout(0.25)).p == copy.copy(Dropout(0.25)).p == 0.25
    assert repr(Dropout(0.25)) == "Dropout(p=0.25)"


@pytest.mark.parametrize(
    ("p", "error"),
    [
        (1.001, ValueError),
        (-0.1, ValueError),
        (math.nan, ValueError),
        ("0.5", TypeError),
        (None, TypeError),
    ],
)
def test_dropout_refuses_a_wrong_p(p, error):
    with pytest.raises(error, match=r"^p: "):
        Dropout(p)


def test_dropout_refuses_wrong_arguments():
    dropout, x, rng = Dropout(0.5), rand(4, 3), np.random.default_rng(1)
    with pytest.raises(ValueError, match=r"rng.*None"):
        dropout.forward(x)
    with pytest.raises(TypeError, match=r"rng.*int.*Generator"):
        dropout.forward(x, 3)
    with pytest.raises(TypeError, match=r"x.*int64"):
        dropout.forward(np.ones(3, int), rng)
    with pytest.raises(TypeError, match=r"x.*list"):
        dropout([1.0])
    _, tape = dropout.forward(x, rng)
    with pytest.raises(ValueError, match=r"dy.*\(3, 4\).*\(4, 3\)"):
        dropout.backward(tape, x.T)
    with pytest.raises(TypeError, match=r"dy.*float32.*float64"):
        dropout.backward(tape, x.astype(np.float32))
    with pytest.raises(TypeError, match=r"tape.*ndarray.*DropoutTape"):
        dropout.backward(x, x)


@pytest.mark.parametrize("size", [1000, 4096, 20000])
def test_errors_do_not_grow_with_the_length_of_a_sum(size, isa):
    """Equal terms make the roundings of one chain add up; blocks and groups of them do not."""
    layer = Linear(size, 3, seed=0)
    layer.params.flat = np.full(layer.params.flat.size, np.float32(0.1))
    x = np.ones((5, size), np.float32)
    exact = float(np.float32(0.1)) * (size + 1)
    # At most 128 roundings within a block, 8 of blocks within a group, and one for each group.
    bound = (128 + 8 + math.ceil(size / 1024)) * np.finfo(np.float32).eps / 2 * exact
    assert np.abs(layer(x) - exact).max() <= bound
    rows = np.full((size, 2), np.float32(0.1))
    _, tape = Linear(2, 1).forward(np.ones((size, 2), np.float32))
    grads = Linear(2, 1).backward(tape, rows[:, :1])
    exact = float(np.float32(0.1)) * size
    bound = (128 + math.ceil(size / 128)) * np.finfo(np.float32).eps / 2 * exact
    assert np.abs(grads.params.flat - exact).max() <= bound
