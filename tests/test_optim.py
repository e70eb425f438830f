"""SGD, Adam and clipping: closed forms, PyTorch step by step, saved state, refusals."""

import math

import numpy as np
import pytest

from tidegate import optim
from tidegate.params import ArrayStore, Gradients, Params

SPECS = [
    [("weight", (3, 4), 0), ("bias", (3,), 12)],
    [("weight", (2, 3), 0)],
]
SIZES = [15, 6]

SGD_OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
]
ADAM_OPTIONS = [
    {},
    {"betas": (0.5, 0.7)},
    {"betas": (0.0, 0.0)},
    {"eps": 0.1},
    {"weight_decay": 0.3},
]
ALL = [(optim.SGD, o) for o in SGD_OPTIONS] + [(optim.Adam, o) for o in ADAM_OPTIONS]


def layers(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Params(specs, ArrayStore(rng.standard_normal(size).astype(dtype)))
        for specs, size in zip(SPECS, SIZES, strict=True)
    ]


def gradients(step=0, dtype=np.float64, scale=1.0):
    rng = np.random.default_rng([99, step])
    return [
        Gradients(specs, (scale * rng.standard_normal(size)).astype(dtype))
        for specs, size in zip(SPECS, SIZES, strict=True)
    ]


def flats(params):
    return np.concatenate([p.flat for p in params])


def test_sgd_is_its_formula():
    params, g = layers(), gradients()
    before = flats(params)
    optim.SGD(params, lr=0.1).step(g)
    np.testing.assert_allclose(flats(params), before - 0.1 * flats(g), rtol=1e-15, atol=1e-15)


def test_momentum_adds_up_a_geometric_series():
    (params,), (g,) = layers()[:1], gradients()[:1]
    before = params.flat.copy()
    opt = optim.SGD(params, lr=0.1, momentum=0.5)
    for _ in range(4):
        opt.step(g)
    # Velocities 1, 1.5, 1.75, 1.875 times the gradient.
    np.testing.assert_allclose(params.flat, before - 0.1 * 6.125 * g.flat, rtol=1e-14, atol=1e-14)


def test_adam_of_a_constant_gradient_moves_by_lr():
    (params,), (g,) = layers()[:1], gradients()[:1]
    before = params.flat.copy()
    opt = optim.Adam(params, lr=0.01, eps=0.0)
    for _ in range(5):
        opt.step(g)
    # The corrected averages are the gradient and its square: each step is lr times the sign.
    np.testing.assert_allclose(params.flat, before - 0.05 * np.sign(g.flat), rtol=1e-12, atol=1e-12)


def test_adam_decays_apart_from_the_gradient():
    (params,) = layers()[:1]
    before = params.flat.copy()
    opt = optim.Adam(params, lr=0.1, weight_decay=0.5)
    opt.step(Gradients(SPECS[0], np.zeros(15)))
    np.testing.assert_allclose(params.flat, 0.95 * before, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "options"), ALL)
def test_steps_agree_with_torch(kind, options, dtype):
    torch = pytest.importorskip("torch")
    params = layers(dtype)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.flat.copy())) for p in params]
    twin_kind = torch.optim.SGD if kind is optim.SGD else torch.optim.AdamW
    twin = twin_kind(theirs, lr=0.05, **({"weight_decay": 0.0} | options))
    opt = kind(params, lr=0.05, **options)
    for step in range(12):
        opt.lr = twin.param_groups[0]["lr"] = 0.05 / (1 + step)
        g = gradients(step, dtype)
        for leaf, gradient in zip(theirs, g, strict=True):
            leaf.grad = torch.from_numpy(gradient.flat.copy())
        opt.step(g)
        twin.step()
        want = np.concatenate([leaf.detach().numpy() for leaf in theirs])
        tolerance = 1e-12 if dtype == np.float64 else 1e-5
        np.testing.assert_allclose(flats(params), want, rtol=tolerance, atol=tolerance)


def test_adam_without_decay_is_torch_adam():
    torch = pytest.importorskip("torch")
    (params,) = layers()[:1]
    leaf = torch.nn.Parameter(torch.from_numpy(params.flat.copy()))
    opt, twin = optim.Adam(params, lr=0.05), torch.optim.Adam([leaf], lr=0.05)
    for step in range(5):
        g = gradients(step)[0]
        leaf.grad = torch.from_numpy(g.flat.copy())
        opt.step(g)
        twin.step()
    np.testing.assert_allclose(params.flat, leaf.detach().numpy(), rtol=1e-12, atol=1e-12)


def test_defaults_are_torchs():
    torch = pytest.importorskip("torch")
    leaf = torch.nn.Parameter(torch.zeros(1))
    ours = optim.SGD(layers())
    theirs = torch.optim.SGD([leaf]).defaults
    for name in ("lr", "momentum", "dampening", "weight_decay", "nesterov"):
        assert getattr(ours, name) == theirs[name]
    ours = optim.Adam(layers())
    theirs = torch.optim.Adam([leaf]).defaults
    for name in ("lr", "betas", "eps", "weight_decay"):
        assert getattr(ours, name) == theirs[name]


@pytest.mark.parametrize(("kind", "options"), ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saved_state_continues_with_the_same_bits(kind, options, dtype, tmp_path):
    straight, params = layers(dtype), layers(dtype)
    opt = kind(straight, lr=0.05, **options)
    for step in range(6):
        opt.step(gradients(step, dtype))
    first = kind(params, lr=0.05, **options)
    for step in range(3):
        first.step(gradients(step, dtype))
    np.savez(tmp_path / "optimizer.npz", **first.state_dict())
    second = kind(params)
    with np.load(tmp_path / "optimizer.npz") as file:
        second.load_state_dict(file)
    assert repr(second) == repr(first)
    for step in range(3, 6):
        second.step(gradients(step, dtype))
    assert (flats(params) == flats(straight)).all()


def test_state_dict_is_a_copy_with_torchs_names():
    opt = optim.Adam(layers())
    state = opt.state_dict()
    assert list(state) == [
        *("step", "lr", "betas", "eps", "weight_decay"),
        *("exp_avg_0", "exp_avg_1", "exp_avg_sq_0", "exp_avg_sq_1"),
    ]
    state["exp_avg_0"][:] = 7
    assert not opt.state_dict()["exp_avg_0"].any()
    assert "momentum_buffer_1" in optim.SGD(layers()).state_dict()


def test_load_state_dict_is_strict_and_all_or_nothing():
    opt = optim.Adam(layers(), lr=0.5)
    opt.step(gradients())
    before = opt.state_dict()

    def refused(error, message, **changes):
        state = {k: v for k, v in (before | changes).items() if v is not None}
        with pytest.raises(error, match=message):
            opt.load_state_dict(state)
        after = opt.state_dict()
        assert all((after[name] == before[name]).all() for name in before)

    refused(
        ValueError,
        r"missing step; surplus 'more'; exp_avg_1: got shape \(5,\), wanted \(6,\); "
        r"exp_avg_sq_0: got dtype float32, wanted float64",
        step=None,
        more=np.zeros(1),
        exp_avg_1=np.zeros(5),
        exp_avg_sq_0=np.zeros(15, np.float32),
    )
    refused(TypeError, "exp_avg_0.*float32.*float64", exp_avg_0=np.zeros(15, np.float32))
    refused(ValueError, "lr.*-1", lr=np.asarray(-1.0), exp_avg_0=np.ones(15))
    refused(ValueError, r"betas\[1\].*1\.5", betas=np.array([0.5, 1.5]), exp_avg_0=np.ones(15))
    refused(ValueError, r"step.*-1", step=np.asarray(-1), exp_avg_0=np.ones(15))
    with pytest.raises(TypeError, match=r"state_dict.*NoneType.*mapping"):
        opt.load_state_dict(None)
    with pytest.raises(ValueError, match=r"missing.*momentum"):
        optim.SGD(layers()).load_state_dict(before)


def test_lr_is_checked_whenever_it_is_set():
    opt = optim.SGD(layers(), lr=1)
    opt.lr = np.float32(0.5)
    assert opt.lr == 0.5
    for bad, error in [
        (-0.1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("1", TypeError),
    ]:
        with pytest.raises(error, match=r"^lr: "):
            opt.lr = bad
        with pytest.raises(error, match=r"^lr: "):
            optim.Adam(layers(), lr=bad)
    assert opt.lr == 0.5


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (optim.SGD, {"momentum": -0.5}, ValueError, "momentum.*-0.5"),
        (optim.SGD, {"dampening": math.nan}, ValueError, "dampening.*nan"),
        (optim.SGD, {"weight_decay": None}, TypeError, "weight_decay.*None"),
        (optim.SGD, {"nesterov": True}, ValueError, "nesterov.*momentum=0.0"),
        (
            *(optim.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
            *(ValueError, "nesterov.*dampening=0.1"),
        ),
        (optim.Adam, {"betas": (0.9, 1.0)}, ValueError, r"betas\[1\].*1\.0.*below 1"),
        (optim.Adam, {"betas": (-0.1, 0.9)}, ValueError, r"betas\[0\].*-0.1"),
        (optim.Adam, {"betas": 0.9}, TypeError, "betas.*0.9.*pair"),
        (optim.Adam, {"betas": (0.9, 0.9, 0.9)}, TypeError, "betas.*pair"),
        (optim.Adam, {"betas": ("a", 0.9)}, TypeError, r"betas\[0\].*'a'"),
        (optim.Adam, {"eps": -1e-8}, ValueError, "eps"),
        (optim.Adam, {"weight_decay": math.inf}, ValueError, "weight_decay.*inf"),
    ],
)
def test_wrong_hyperparameters_are_refused(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(layers(), **options)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_wrong_params_are_refused(kind):
    with pytest.raises(TypeError, match=r"params\[0\].*ndarray.*Params"):
        kind([np.zeros(3, int)])
    with pytest.raises(TypeError, match=r"params: .*int.*Params"):
        kind(3)
    with pytest.raises(ValueError, match=r"params.*at least one"):
        kind([])
    params = layers()
    with pytest.raises(ValueError, match=r"params.*twice"):
        kind([params[0], params[1], params[0]])


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_wrong_gradients_are_refused_and_nothing_is_written(kind):
    params = layers()
    opt = kind(params)
    before, state = flats(params), opt.state_dict()
    g = gradients()
    for wrong, error, message in [
        (g[:1], ValueError, "grads: got 1, wanted 2"),
        (g[0], ValueError, "grads: got 1, wanted 2"),
        ([g[1], g[0]], ValueError, r"grads\[0\].*weight"),
        ([g[0], gradients(dtype=np.float32)[1]], TypeError, r"grads\[1\].*float32.*float64"),
        ([g[0], g[1].flat], TypeError, r"grads\[1\].*ndarray.*Gradients"),
        (None, TypeError, "grads.*NoneType.*Gradients"),
        ([], ValueError, "grads.*at least one"),
    ]:
        with pytest.raises(error, match=message):
            opt.step(wrong)
    assert (flats(params) == before).all()
    after = opt.state_dict()
    assert all((after[name] == state[name]).all() for name in state)


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_steps_leave_gradients_alone_and_keep_float32(kind, options):
    params, g = layers(np.float32), gradients(dtype=np.float32)
    before = flats(g)
    opt = kind(params, lr=0.1, **options)
    opt.step(g)
    opt.step(g)
    assert (flats(g) == before).all()
    assert flats(params).dtype == np.float32
    assert all(v.dtype == np.float32 for name, v in opt.state_dict().items() if name[-1].isdigit())


def test_a_single_params_and_gradients_may_stand_alone():
    (a, _), (b, _), (g, _) = layers(), layers(), gradients()
    optim.SGD(a, lr=0.1).step(g)
    optim.SGD([b], lr=0.1).step((g,))
    assert (a.flat == b.flat).all()


def test_repr_tells_the_hyperparameters():
    assert repr(optim.Adam(layers(), lr=0.01)) == (
        "Adam(lr=0.01, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)"
    )
    assert repr(optim.SGD(layers())) == (
        "SGD(lr=0.001, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False)"
    )


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 4.0, 1000.0, math.inf])
def test_clip_grad_norm(max_norm):
    g = gradients()
    before = flats(g)
    norm = optim.clip_grad_norm(g, max_norm)
    assert isinstance(norm, float)
    assert norm == pytest.approx(math.sqrt((before**2).sum()), rel=1e-14)
    if max_norm > norm:
        assert (flats(g) == before).all()
    else:
        scale = max_norm / (norm + 1e-6)
        np.testing.assert_allclose(flats(g), before * scale, rtol=1e-14)
        assert np.linalg.norm(flats(g)) <= max_norm


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-9, 0.1, 100.0])
@pytest.mark.parametrize("bad", [None, math.inf, math.nan])
def test_clip_grad_norm_agrees_with_torch(scale, bad, dtype):
    torch = pytest.importorskip("torch")
    g = gradients(dtype=dtype, scale=scale)
    if bad is not None:
        g[0]["weight"][1, 2] = bad
    leaves = [torch.nn.Parameter(torch.from_numpy(gradient.flat.copy())) for gradient in g]
    for leaf in leaves:
        leaf.grad = leaf.detach().clone()
    theirs = torch.nn.utils.clip_grad_norm_(leaves, 1.0).item()
    tolerance = 64 * float(np.finfo(dtype).eps)
    assert optim.clip_grad_norm(g, 1.0) == pytest.approx(theirs, rel=tolerance, nan_ok=True)
    want = np.concatenate([leaf.grad.numpy() for leaf in leaves])
    np.testing.assert_allclose(flats(g), want, rtol=tolerance)


def test_clip_grad_norm_sums_float32_in_double():
    g = Gradients([("weight", (2,), 0)], np.array([3e30, 4e30], np.float32))
    assert optim.clip_grad_norm(g, 1.0) == pytest.approx(5e30, rel=1e-6)
    np.testing.assert_allclose(g.flat, [0.6, 0.8], rtol=1e-6)


def test_clip_grad_norm_refuses_before_it_writes():
    g = gradients()
    g[1]["weight"][0, 0] = math.nan
    before = flats(g)
    with pytest.raises(ValueError, match=r"grads.*nan.*finite"):
        optim.clip_grad_norm(g, 0.1, error_if_nonfinite=True)
    for bad, error in [(-1.0, ValueError), (math.nan, ValueError), ("1", TypeError)]:
        with pytest.raises(error, match="max_norm"):
            optim.clip_grad_norm(g, bad)
    with pytest.raises(TypeError, match=r"grads\[0\].*ndarray.*Gradients"):
        optim.clip_grad_norm([before], 1.0)
    np.testing.assert_array_equal(flats(g), before)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_the_error_halves_on_a_convex_problem(kind):
    (params,) = layers()[:1]
    goal = np.linspace(-1, 1, 15)
    opt = kind(params, lr=0.1)
    start = np.abs(params.flat - goal).max()
    for _ in range(60):
        opt.step(Gradients(SPECS[0], params.flat - goal))
    assert np.abs(params.flat - goal).max() < start / 2
