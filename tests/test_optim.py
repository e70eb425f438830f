"""SGD, Adam, AdamW and clipping: closed forms, PyTorch step by step, saved state, refusals."""

import contextlib
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import tidegate as tg
from tidegate import _core, optim
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
KINDS = [optim.SGD, optim.Adam, optim.AdamW]
ALL = [
    *((optim.SGD, o) for o in SGD_OPTIONS),
    *((kind, o) for kind in (optim.Adam, optim.AdamW) for o in ADAM_OPTIONS),
]


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


def test_adamw_decays_apart_from_the_gradient():
    (params,) = layers()[:1]
    before = params.flat.copy()
    opt = optim.AdamW(params, lr=0.1, weight_decay=0.5)
    opt.step(Gradients(SPECS[0], np.zeros(15)))
    np.testing.assert_allclose(params.flat, 0.95 * before, rtol=1e-15)


def test_adam_adds_its_penalty_to_the_gradient():
    (params,) = layers()[:1]
    before = params.flat.copy()
    opt = optim.Adam(params, lr=0.1, eps=0.0, weight_decay=0.5)
    opt.step(Gradients(SPECS[0], np.zeros(15)))
    # The gradient is 0.5 * p, however small: a first step is lr times its sign.
    np.testing.assert_allclose(params.flat, before - 0.1 * np.sign(before), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "options"), ALL)
def test_steps_agree_with_torch(kind, options, dtype):
    torch = pytest.importorskip("torch")
    params = layers(dtype)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.flat.copy())) for p in params]
    twin = getattr(torch.optim, kind.__name__)(theirs, lr=0.05, **options)
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


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_torchs(kind):
    torch = pytest.importorskip("torch")
    leaf = torch.nn.Parameter(torch.zeros(1))
    theirs = getattr(torch.optim, kind.__name__)([leaf]).defaults
    for name in kind._hyperparameters:
        assert getattr(kind(layers()), name) == theirs[name]


# ---- The formulas in NumPy, each operation rounded to the parameters' dtype ----------------------


def plain_sgd(p, g, state, step, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    if weight_decay:
        g = p * weight_decay + g
    if momentum:
        buffer = g if step == 1 else state["buffer"] * momentum + g * (1 - dampening)
        state["buffer"] = buffer
        g = g + buffer * momentum if nesterov else buffer
    return p - g * lr


def plain_adam(
    p, g, state, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False
):
    beta1, beta2 = betas
    if decoupled:
        p = p * (1 - lr * weight_decay)
    elif weight_decay:
        g = p * weight_decay + g
    state["m"] = m = state.get("m", np.zeros_like(p)) * beta1 + g * (1 - beta1)
    state["v"] = v = state.get("v", np.zeros_like(p)) * beta2 + g * (1 - beta2) * g
    denominator = np.sqrt(v) / math.sqrt(1 - beta2**step) + eps
    return p - m / denominator * (lr / (1 - beta1**step))


def plain_adamw(p, g, state, step, lr, weight_decay=0.01, **options):
    return plain_adam(p, g, state, step, lr, weight_decay=weight_decay, decoupled=True, **options)


PLAIN = {optim.SGD: plain_sgd, optim.Adam: plain_adam, optim.AdamW: plain_adamw}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "options"), ALL)
def test_steps_have_the_bits_of_the_formula(kind, options, dtype, isa):
    """Whatever the instruction set and the number of threads, and wherever parts begin."""
    rng = np.random.default_rng(3)
    sizes = [1, 33, 5000]
    initial = [rng.standard_normal(size).astype(dtype) for size in sizes]
    grads = [[rng.standard_normal(size).astype(dtype) for size in sizes] for _ in range(3)]
    wanted, states = list(initial), [{} for _ in sizes]
    for step, now in enumerate(grads, 1):
        wanted = [
            PLAIN[kind](p, g, state, step, 0.05, **options)
            for p, g, state in zip(wanted, now, states, strict=True)
        ]
    for threads in (1, 2, 3):
        params = [Params.from_arrays({"p": p}) for p in initial]
        opt = kind(params, lr=0.05, **options)
        for now in grads:
            with forced_threads(threads):
                opt.step([Gradients.from_arrays({"p": g}) for g in now])
        for got, want in zip(params, wanted, strict=True):
            assert got.dtype == dtype
            assert (got.flat == want).all()


@contextlib.contextmanager
def forced_threads(count):
    """Divides all work among `count` threads, however small it is."""
    before = tg.get_num_threads()
    tg.set_num_threads(count)
    _core.select_division("rows")
    try:
        yield
    finally:
        _core.select_division("auto")
        tg.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_large_layers_are_updated_in_place(kind):
    """Large enough for threads; calls after the step run on the new weights."""
    layer = tg.LSTM(64, 256, seed=0)
    x = np.random.default_rng(1).standard_normal((3, 2, 64)).astype(np.float32)
    layer(x)
    before, view = layer.params.flat.copy(), layer.params.flat
    gradient = np.random.default_rng(2).standard_normal(before.size).astype(np.float32)
    grads = Gradients(layer.params._layout(), gradient)
    kind(layer, lr=0.01).step(grads)
    assert (view == PLAIN[kind](before, gradient, {}, 1, 0.01)).all()
    twin = tg.LSTM(64, 256, seed=5)
    twin.params.flat = layer.params.flat
    assert (layer(x)[0] == twin(x)[0]).all()


def test_parameters_of_another_store_are_updated_by_a_copy():
    class Store:
        def __init__(self):
            self.values = np.ones(3)
            self.writes = []

        @property
        def flat(self):
            return self.values

        def write(self, offset, values):
            self.writes.append(offset)
            self.values = values.copy()

    store = Store()
    optim.SGD(Params([("p", (3,), 0)], store), lr=0.5).step(
        Gradients.from_arrays({"p": np.full(3, 0.5)})
    )
    assert store.writes == [0]
    assert store.values.tolist() == [0.75] * 3


def test_subnormal_numbers_count_as_zero():
    tiny = np.full(5, 1e-40, np.float32)
    params = Params.from_arrays({"p": np.ones(5, np.float32)})
    opt = optim.Adam(params, lr=0.1)
    opt.step(Gradients.from_arrays({"p": tiny}))
    assert not opt.state_dict()["exp_avg_0"].any()
    assert (params.flat == 1).all()


def test_training_from_several_threads_while_others_run():
    """Calls see the parameters from before a step or after it, and nothing waits forever."""
    layer = tg.Linear(300, 200, seed=0)
    x = np.ones((1, 300), np.float32)
    layer.params.flat = np.zeros_like(layer.params.flat)
    grads = Gradients(layer.params._layout(), np.full(layer.params.flat.size, -1, np.float32))
    opt = optim.SGD(layer, lr=1.0)
    done = threading.Event()
    seen = []

    def call():
        while not done.is_set():
            y = layer(x)
            seen.append((y == y[0, 0]).all() and y[0, 0] % 301 == 0)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        opt.step(grads)
    done.set()
    for thread in threads:
        thread.join()
    assert seen
    assert all(seen)
    assert layer(x)[0, 0] == 100 * 301


# ---- Groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (optim.SGD, {"lr": 0.2, "momentum": 0.7}),
        (optim.Adam, {"betas": (0.5, 0.6)}),
        (optim.AdamW, {"weight_decay": 0.0, "lr": 0.01}),
    ],
)
def test_groups_agree_with_torch(kind, own):
    torch = pytest.importorskip("torch")
    params = layers()
    theirs = [torch.nn.Parameter(torch.from_numpy(p.flat.copy())) for p in params]
    common = {"lr": 0.05, "weight_decay": 0.3}
    opt = kind([{"params": params[0]}, {"params": [params[1]], **own}], **common)
    twin = getattr(torch.optim, kind.__name__)(
        [{"params": [theirs[0]]}, {"params": [theirs[1]], **own}], **common
    )
    for step in range(8):
        if step == 4:
            opt.param_groups[1]["lr"] = twin.param_groups[1]["lr"] = 0.02
        g = gradients(step)
        for leaf, gradient in zip(theirs, g, strict=True):
            leaf.grad = torch.from_numpy(gradient.flat.copy())
        opt.step(g)
        twin.step()
    want = np.concatenate([leaf.detach().numpy() for leaf in theirs])
    np.testing.assert_allclose(flats(params), want, rtol=1e-12, atol=1e-12)


def test_a_group_shows_its_values_and_checks_new_ones():
    a, b = layers()
    opt = optim.Adam([{"params": a, "eps": 0.1}, {"params": b}], lr=0.5)
    first, second = opt.param_groups
    assert first["params"] == (a,)
    assert second["params"] == (b,)
    assert list(first) == ["params", "lr", "betas", "eps", "weight_decay"]
    assert (first["eps"], second["eps"]) == (0.1, 1e-8)
    assert opt.lr == 0.5
    first["lr"] = np.float32(0.25)
    assert (first["lr"], second["lr"]) == (0.25, 0.5)
    for name, bad, error in [("lr", -1, ValueError), ("betas", 3, TypeError)]:
        with pytest.raises(error, match=f"^{name}: "):
            first[name] = bad
    with pytest.raises(KeyError, match=r"momentum.*cannot be set; lr, betas"):
        first["momentum"] = 0.9
    with pytest.raises(KeyError, match=r"params.*cannot be set"):
        first["params"] = b
    with pytest.raises(TypeError, match="keeps its keys"):
        del first["lr"]
    assert first["lr"] == 0.25
    # What is not the same in all groups cannot be read as one number, but set to one.
    with pytest.raises(ValueError, match=r"lr: the groups have 0.25, 0.5; .*param_groups\[0\]"):
        opt.lr  # noqa: B018
    opt.lr = 0.125
    assert (first["lr"], second["lr"], first["eps"]) == (0.125, 0.125, 0.1)
    assert repr(opt) == (
        "Adam(\n  {lr=0.125, betas=(0.9, 0.999), eps=0.1, weight_decay=0.0},\n"
        "  {lr=0.125, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0},\n)"
    )


def test_setting_a_wrong_value_for_all_groups_changes_none():
    a, b = layers()
    groups = [{"params": a, "momentum": 0.9, "nesterov": True}, {"params": b}]
    opt = optim.SGD(groups)
    with pytest.raises(ValueError, match="nesterov"):
        opt.momentum = 0.0
    assert opt.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (lambda a, b: {"params": a}, TypeError, "params: got dict.*list of dicts.*from_arrays"),
        (lambda a, b: [{"params": a}, b], TypeError, r"params\[1\]: got Params among groups"),
        (lambda a, b: [{"weight": np.ones(2)}], ValueError, r"params\[0\].*without.*from_arrays"),
        (lambda a, b: [{"params": a, "betas": 1}], ValueError, r"surplus 'betas'; a group has.*lr"),
        (lambda a, b: [{"params": a, "lr": -1}], ValueError, "lr: got -1"),
        (lambda a, b: [{"params": a}, {"params": [b, a]}], ValueError, "twice"),
        (lambda a, b: [{"params": []}], ValueError, r"params\[0\]\['params'\]: got none"),
        (lambda a, b: [{"params": [1.0]}], TypeError, r"params\[0\]\['params'\]\[0\]: got float"),
    ],
)
def test_wrong_groups_are_refused(groups, error, message):
    with pytest.raises(error, match=message):
        optim.SGD(groups(*layers()))


def test_a_state_of_groups_is_for_as_many_groups(tmp_path):
    a, b = layers()
    groups = [{"params": a, "lr": 0.1}, {"params": b, "betas": (0.5, 0.6)}]
    opt = optim.AdamW(groups, lr=0.3)
    opt.step(gradients())
    np.savez(tmp_path / "state.npz", **opt.state_dict())
    again = optim.AdamW([{"params": p} for p in layers()])
    with np.load(tmp_path / "state.npz") as file:
        assert file["lr"].tolist() == [0.1, 0.3]
        again.load_state_dict(file)
    assert repr(again) == repr(opt)
    with pytest.raises(ValueError, match=r"lr: got shape \(2,\), wanted \(\)"):
        optim.AdamW(layers()).load_state_dict(opt.state_dict())


# ---- Layers, and parameters of one's own ---------------------------------------------------------


def test_layers_and_what_backward_returns_are_accepted():
    trained = []
    for direct in (False, True):
        gru, head = tg.GRU(3, 4, seed=1), tg.Linear(4, 2, seed=2)
        opt = optim.SGD([gru, head] if direct else [gru.params, head.params], lr=0.1)
        x = np.random.default_rng(3).standard_normal((5, 2, 3)).astype(np.float32)
        y, _, tape = gru.forward(x)
        out, head_tape = head.forward(y)
        head_grads = head.backward(head_tape, np.ones_like(out))
        grads = gru.backward(tape, head_grads.x)
        given = [grads, head_grads] if direct else [grads.params, head_grads.params]
        assert optim.clip_grad_norm(given, 0.5) > 0.5
        opt.step(given)
        trained.append(np.concatenate([gru.params.flat, head.params.flat]))
    assert (trained[0] == trained[1]).all()


class Embedding:
    """A layer of one's own: the protocol is its `params`."""

    def __init__(self, rows, size):
        weight = np.zeros((rows, size), np.float32)
        self.params = tg.Params.from_arrays({"weight": weight})

    def backward(self, indices, dy):
        grads = tg.Gradients.zeros_like(self.params)
        np.add.at(grads["weight"], indices, dy)
        return grads


def test_a_layer_of_ones_own_is_trained():
    embedding = Embedding(5, 3)
    target = np.arange(15, dtype=np.float32).reshape(5, 3)
    indices = np.array([0, 2, 2, 4])
    opt = optim.SGD(embedding, lr=0.25)
    for _ in range(40):
        dy = embedding.params["weight"][indices] - target[indices]
        opt.step(embedding.backward(indices, dy))
    wanted = np.where(np.isin(np.arange(5), indices)[:, None], target, 0)
    np.testing.assert_allclose(embedding.params["weight"], wanted, atol=1e-3)


def test_what_is_no_layer_is_refused_with_a_way_out():
    odd = SimpleNamespace(params={"weight": np.zeros(3)})
    message = r"params\[0\]: got SimpleNamespace with params of type dict.*tg.Params.from_arrays"
    with pytest.raises(TypeError, match=message):
        optim.SGD([odd])
    with pytest.raises(TypeError, match=r"grads\[0\].*ndarray.*tg.Gradients.from_arrays"):
        optim.SGD(layers()[0]).step([np.zeros(3)])


def test_gradients_in_another_order_are_refused():
    params = tg.Params.from_arrays({"a": np.zeros(2), "b": np.zeros(2)})
    grads = tg.Gradients.from_arrays({"b": np.ones(2), "a": np.zeros(2)})
    with pytest.raises(ValueError, match="in this order"):
        optim.SGD(params).step(grads)
    assert not params.flat.any()


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
        *("exp_avg_0", "exp_avg_1", "exp_avg_sq_0", "exp_avg_sq_1", "decoupled_weight_decay"),
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


def test_states_of_adam_and_adamw_are_told_apart():
    adam, adamw = optim.Adam(layers()), optim.AdamW(layers())
    with pytest.raises(
        ValueError,
        match=r"that of AdamW \(as that of Adam was .*wanted Adam's",
    ):
        adam.load_state_dict(adamw.state_dict())
    with pytest.raises(ValueError, match=r"that of Adam, wanted AdamW's.*tg.optim.Adam$"):
        adamw.load_state_dict(adam.state_dict())


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_a_state_of_the_adam_that_decoupled_its_decay(weight_decay):
    """Such states say nothing of a kind. Without decay both optimisers are the same."""
    saved = optim.AdamW(layers(), lr=0.25, weight_decay=weight_decay)
    saved.step(gradients())
    earlier = saved.state_dict()
    del earlier["decoupled_weight_decay"]
    again = optim.AdamW(layers())
    again.load_state_dict(earlier)
    assert repr(again) == repr(saved)
    adam = optim.Adam(layers())
    if weight_decay:
        with pytest.raises(ValueError, match=r"versions before AdamW.*tg.optim.AdamW"):
            adam.load_state_dict(earlier)
        assert adam.lr == 1e-3
    else:
        adam.load_state_dict(earlier)
        assert adam.lr == 0.25


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
        (
            optim.SGD,
            {"nesterov": "no", "momentum": 0.9},
            TypeError,
            "nesterov.*'no'.*True or False",
        ),
        (optim.SGD, {"nesterov": 1, "momentum": 0.9}, TypeError, "nesterov: got 1, wanted True"),
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


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norms_have_the_same_bits_on_every_isa_and_for_any_threads(dtype):
    flat = np.random.default_rng(4).standard_normal(20_000).astype(dtype)
    norms, scaled = set(), set()
    before = _core.isa()
    try:
        for name in _core.available_isas():
            _core.select_isa(name)
            for threads in (1, 2, 3):
                grads = Gradients.from_arrays({"p": flat})
                with forced_threads(threads):
                    norms.add(optim.clip_grad_norm(grads, 1.0))
                scaled.add(grads.flat.tobytes())
    finally:
        _core.select_isa(before)
    assert len(norms) == len(scaled) == 1
    (norm,) = norms
    assert norm == pytest.approx(np.linalg.norm(flat.astype(np.float64)), rel=1e-14)
    assert scaled == {(flat * dtype(1 / (norm + 1e-6))).tobytes()}


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
    with pytest.raises(TypeError, match="error_if_nonfinite: got 'no', wanted True or False"):
        optim.clip_grad_norm(g, 0.1, error_if_nonfinite="no")
    for bad, error in [(-1.0, ValueError), (math.nan, ValueError), ("1", TypeError)]:
        with pytest.raises(error, match="max_norm"):
            optim.clip_grad_norm(g, bad)
    with pytest.raises(TypeError, match=r"grads\[0\].*ndarray.*Gradients"):
        optim.clip_grad_norm([before], 1.0)
    np.testing.assert_array_equal(flats(g), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_halves_on_a_convex_problem(kind):
    (params,) = layers()[:1]
    goal = np.linspace(-1, 1, 15)
    opt = kind(params, lr=0.1)
    start = np.abs(params.flat - goal).max()
    for _ in range(60):
        opt.step(Gradients(SPECS[0], params.flat - goal))
    assert np.abs(params.flat - goal).max() < start / 2
