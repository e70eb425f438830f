"""Numbers, on every instruction set: against the reference, finite differences, others' results."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest

import tidegate as tg
from golden_cases import covered_cases
from isas import exact_isas
from layer_cases import map_state, parts
from tidegate import _bounds, reference, selftest
from tolerance import assert_correct, assert_steps_correct, assert_within, make_contracting

DTYPES = [np.float32, np.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
# As the topmost mark it varies fastest, and the reference's results are used again at once.
every_isa_in_turn = pytest.mark.parametrize("isa", exact_isas(), indirect=True)

NETWORKS: dict[str, tuple[type, dict[str, Any]]] = {
    "lstm": (tg.LSTM, {}),
    "lstm-no-bias-reverse": (tg.LSTM, {"bias": False, "reverse": True}),
    "lstm-bidirectional-2": (tg.LSTM, {"bidirectional": True, "num_layers": 2}),
    "lstm-projected": (tg.LSTM, {"proj_size": 2}),
    "lstm-peephole": (tg.LSTM, {"peephole": True}),
    "lstm-peephole-no-bias-reverse": (tg.LSTM, {"peephole": True, "bias": False, "reverse": True}),
    "lstm-everything": (
        tg.LSTM,
        {"proj_size": 2, "peephole": True, "bidirectional": True, "num_layers": 2},
    ),
    "gru": (tg.GRU, {}),
    "gru-no-bias-reverse": (tg.GRU, {"bias": False, "reverse": True}),
    "gru-bidirectional-2": (tg.GRU, {"bidirectional": True, "num_layers": 2}),
    "gru-before": (tg.GRU, {"reset_after": False}),
    "gru-write": (tg.GRU, {"update_gate": "write"}),
    "gru-before-no-bias-bidirectional": (
        tg.GRU,
        {"reset_after": False, "bias": False, "bidirectional": True},
    ),
    "gru-everything": (
        tg.GRU,
        {"reset_after": False, "update_gate": "write", "bidirectional": True, "num_layers": 2},
    ),
    "mgu": (tg.MGU, {}),
    "mgu-no-bias-reverse": (tg.MGU, {"bias": False, "reverse": True}),
    "mgu-bidirectional-2": (tg.MGU, {"bidirectional": True, "num_layers": 2}),
}
ONE_LAYER = [name for name, (_, options) in NETWORKS.items() if "num_layers" not in options]
INPUT = [5, 1, 16, 40, 2, 9, 31, 8]
HIDDEN = [1, 3, 15, 16, 17, 33, 100, 257]
BATCH = [1, 2, 3, 4, 5, 7, 16, 33]
STEPS = [9, 1, 6, 4, 2, 5, 3, 2]


def sweep():
    """Every network with every H and nearly every N: (name, I, H, N, T)."""
    for k, (name, (_, options)) in enumerate(NETWORKS.items()):
        for j, hidden in enumerate(HIDDEN):
            if options.get("proj_size", 0) >= hidden:
                continue
            if hidden == 257 and "num_layers" in options:
                continue  # the reference takes its time
            batch = BATCH[(j + k) % len(BATCH)]
            yield name, INPUT[(j + 3 * k) % len(INPUT)], hidden, batch, STEPS[(j * 3 + k) % 8]


@functools.lru_cache(maxsize=2)
def expected_case(name, input_size, hidden, batch, steps, dtype, ragged):
    """The reference's results, which instruction sets share."""
    kind, options = NETWORKS[name]
    rng = np.random.default_rng([hidden, batch, steps, len(name)])
    layer = kind(input_size, hidden, **options, dtype=dtype, seed=rng)
    make_contracting(layer)
    case = selftest.draw_case(layer, steps, batch, ragged, rng)
    return case, selftest.expect(case)


@pytest.fixture(autouse=True)
def _threads_to_divide_among():
    """However few CPUs there are, a call gets the threads that it asks for."""
    before = tg.get_num_threads()
    tg.set_num_threads(max(before, 8))
    yield
    tg.set_num_threads(before)


# ---- Whole sequences, forward and backward, one thread and several -------------------------------


@every_isa_in_turn
@pytest.mark.parametrize("shape", list(sweep()), ids=lambda s: "-".join(map(str, s)))
@every_dtype
def test_every_network_and_size(shape, dtype, isa):
    _, _, hidden, batch, _ = shape
    ragged = (hidden + batch) % 3 > 0  # the others come whole, and without a state
    assert_correct(*expected_case(*shape, dtype, ragged))


@every_isa_in_turn
@pytest.mark.parametrize("name", NETWORKS)
@every_dtype
def test_neither_state_nor_lengths(name, dtype, isa):
    assert_correct(*expected_case(name, 3, 10, 3, 4, dtype, ragged=False))


@every_isa_in_turn
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["lstm-peephole", "lstm-projected", "gru", "gru-before", "mgu"])
@every_dtype
def test_sequences_longer_than_a_chunk(name, batch, dtype, isa):
    # Backward sums 512 rows at once, forward projects up to 1024: N = 4 crosses both.
    assert_correct(*expected_case(name, 3, 8, batch, 300, dtype, ragged=batch > 1))


@every_isa_in_turn
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_one_row_longer_than_every_chunk(name, isa):
    assert_correct(*expected_case(name, 3, 8, 1, 2000, np.float32, ragged=False))


@every_isa_in_turn
@pytest.mark.parametrize(
    ("name", "input_size", "hidden", "batch"),
    [
        # Sums longer than the block of a panel that stays in L1, ending at its border and beside.
        ("lstm", 100, 28, 7),
        ("lstm", 100, 29, 8),
        ("lstm-projected", 1000, 40, 7),
        ("gru", 1, 130, 13),
        ("gru-before", 600, 140, 9),
        ("gru-write", 127, 128, 12),
        ("mgu", 300, 131, 10),
    ],
)
@every_dtype
def test_sums_in_blocks(name, input_size, hidden, batch, dtype, isa):
    assert_correct(*expected_case(name, input_size, hidden, batch, 2, dtype, ragged=False))


# ---- Single steps, with weights as they are drawn ------------------------------------------------


@pytest.mark.parametrize(("hidden", "batch"), [(17, 7), (100, 3), (257, 4)])
@pytest.mark.parametrize("name", ONE_LAYER)
@every_dtype
def test_step_by_step(name, hidden, batch, dtype, isa, rng):
    kind, options = NETWORKS[name]
    layer = kind(20, hidden, **options, dtype=dtype, seed=rng)
    case = selftest.draw_case(layer, 12, batch, True, rng)
    for num_threads in (1, 2):
        assert_steps_correct(case, num_threads)


@pytest.mark.parametrize("name", ONE_LAYER)
def test_large_pre_activations(name, isa, rng):
    # Gates saturate, at sums whose rounding is large: tanh and sigmoid at their ends.
    kind, options = NETWORKS[name]
    layer = kind(20, 30, **options, seed=rng)
    with layer.params.update() as flat:
        flat *= 60
    assert_steps_correct(selftest.draw_case(layer, 10, 5, True, rng), 1)


# ---- Are the bounds worth anything? --------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@every_dtype
def test_bounds_are_small_and_about_the_same_network(name, dtype):
    _, expected = expected_case(name, 5, 17, 5, 9, dtype, ragged=True)
    for wanted, bound in (expected.forward | expected.backward).values():
        size = np.abs(wanted).max()
        np.testing.assert_allclose(bound.value, wanted, rtol=1e-9, atol=1e-12 * size)
        assert bound.error.max() <= 1e5 * np.finfo(dtype).eps * size  # 1 % in float32


@pytest.mark.parametrize("name", NETWORKS)
def test_one_lost_product_is_seen(name):
    # The smallest of mistakes: one weight is zero, in one row of one matrix.
    case, expected = expected_case(name, 5, 17, 5, 9, np.float32, ragged=True)
    for weight, index in itertools.product(case.layer.params, [0, -1]):
        state = case.layer.__getstate__()
        layer = type(case.layer).__new__(type(case.layer))
        layer.__setstate__(state)
        values = layer.params[weight].copy()
        values.flat[index] = 0
        layer.params[weight] = values
        wrong = selftest.Case(**{**vars(case), "layer": layer})
        tally = selftest.Tally()
        selftest.check(wrong, expected, tally)
        assert tally.forward > 1
        assert tally.backward > 1
        assert tally.misses


# ---- Finite differences --------------------------------------------------------------------------


def differences(function, array, step=1e-3):
    """d function() / d array by central differences, with an error of step**4 / 30 * f'''''."""
    result = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        values = []
        for k in (-2, -1, 1, 2):
            array[index] = kept + k * step
            values.append(function())
        array[index] = kept
        result[index] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return result


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_are_finite_differences(name, ragged, isa, rng):
    kind, options = NETWORKS[name]
    layer = kind(2, 3, **options, dtype=np.float64, seed=rng)
    case = selftest.draw_case(layer, 4, 3, True, rng)
    lengths = np.array([4, 0, 3]) if ragged else None
    reset = np.zeros((4, 3), bool)
    reset[2, 0] = reset[0, 2] = reset[3, 2] = ragged

    def loss():
        y, state = layer(case.x, case.state, lengths=lengths, reset=reset)
        total = np.sum(y * case.dy)
        return total + sum(np.sum(a * b) for a, b in zip(parts(state), parts(case.dstate)))

    def loss_of(flat):
        layer.params.flat = flat
        return loss()

    _, _, tape = layer.forward(case.x, case.state, lengths, reset)
    grads = layer.backward(tape, case.dy, case.dstate)
    # 1e-12/30 of a fifth derivative, which sums of tens of terms of order one keep below 1e3;
    # 1e-16/1e-3 of rounding.
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
    same(grads.x, differences(loss, case.x))
    for grad, values in zip(parts(grads.state), parts(case.state)):
        same(grad, differences(loss, values))
    flat = layer.params.flat.copy()
    same(grads.params.flat, differences(lambda: loss_of(flat), flat))


# ---- From a paper's equations, in NumPy ----------------------------------------------------------


def mgu_of_the_paper(w_f, w_h, b_f, b_h, xs, h):
    """Zhou et al. 2016, equations 9: a weight multiplies [h, x]; every h."""
    states = []
    for x in xs:
        f = 1 / (1 + np.exp(-(np.concatenate([h, x], axis=1) @ w_f.T + b_f)))
        candidate = np.tanh(np.concatenate([f * h, x], axis=1) @ w_h.T + b_h)
        h = (1 - f) * h + f * candidate
        states.append((f, candidate, h))
    return [np.stack(quantity) for quantity in zip(*states)]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
@every_dtype
def test_mgu_is_the_papers(hidden, num_threads, dtype, isa, rng):
    layer = tg.MGU(5, hidden, dtype=dtype, seed=rng)
    x = rng.standard_normal((6, 4, 5)).astype(dtype)
    h_0 = rng.standard_normal((1, 4, hidden)).astype(dtype)
    p = {name: values.astype(np.float64) for name, values in layer.params.items()}
    weights = np.concatenate([p["weight_hh_l0"], p["weight_ih_l0"]], axis=1)
    biases = p["bias_ih_l0"] + p["bias_hh_l0"]
    halves = (*np.split(weights, 2), *np.split(biases, 2))
    wanted = mgu_of_the_paper(*halves, x.astype(np.float64), h_0[0].astype(np.float64))
    y, h_n, tape = layer.forward(x, h_0, num_threads=num_threads)
    # Sums of at most 262 products of order 1/16, and 6 steps that do not expand.
    tolerance = {"rtol": 0, "atol": 300 * np.finfo(dtype).eps}
    np.testing.assert_allclose(y, wanted[2], **tolerance)
    np.testing.assert_array_equal(h_n[0], y[-1])
    for name, values in zip("fnh", wanted, strict=True):
        np.testing.assert_allclose(tape.gates()[name], values, **tolerance)


# ---- Dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("division", ["auto", "rows", "units"])
@pytest.mark.parametrize("name", ["lstm-everything", "gru-everything", "mgu-bidirectional-2"])
@every_dtype
def test_dropout(name, dtype, division, isa, rng):
    p = 0.3
    kind, options = NETWORKS[name]
    layer = kind(5, 17, **options, dtype=dtype, dropout=p, seed=rng)
    make_contracting(layer)
    case = selftest.draw_case(layer, 7, 5, True, rng)
    network = reference.from_layer(layer)
    shape = (1, 7, 5, network.num_directions * network.state_size)
    kept = np.random.default_rng(11).random(shape, np.float32) >= p
    given = {"lengths": case.lengths, "reset": case.reset, "dropout_scale": kept / (1 - p)}
    wanted, wanted_state, wanted_tape = network.forward(layer.params, case.x, case.state, **given)
    wanted_grads = network.backward(wanted_tape, case.dy, case.dstate)
    run = _bounds.forward(network, layer.params, case.x, case.state, dtype=dtype, **given)
    back = _bounds.backward(run, case.dy, case.dstate)

    with selftest.dividing(division):
        y, state, tape = layer.forward(
            case.x, case.state, case.lengths, case.reset, np.random.default_rng(11), num_threads=3
        )
        grads = layer.backward(tape, case.dy, case.dstate, num_threads=3)
    got = {"y": y, "h": parts(state)[0], "dx": grads.x, "dh": parts(grads.state)[0], **grads.params}
    assert_within(
        got,
        {
            "y": (wanted, run.y),
            "h": (parts(wanted_state)[0], run.h),
            "dx": (wanted_grads.x, back.x),
            "dh": (parts(wanted_grads.state)[0], back.h),
            **{name: (wanted_grads.params[name], back.params[name]) for name in layer.params},
        },
    )


# ---- Others' results -----------------------------------------------------------------------------


@pytest.mark.parametrize("golden", covered_cases(), ids=lambda g: g.name)
@every_dtype
def test_goldens(golden, dtype, isa):
    def cast(values):
        return None if values is None else values.astype(dtype)

    kind = {"LSTM": tg.LSTM, "GRU": tg.GRU}[golden.cell]
    layer = kind(golden.input_size, golden.hidden_size, **golden.options, dtype=dtype)
    layer.load_state_dict({name: cast(values) for name, values in golden.params.items()})
    x, state = cast(golden.x), map_state(cast, golden.state)
    y, state_n = layer(x, state, lengths=golden.lengths)
    run = _bounds.forward(
        reference.from_layer(layer), layer.params, x, state, dtype=dtype, lengths=golden.lengths
    )
    bounds = (run.h.error, run.c.error) if golden.cell == "LSTM" else run.h.error
    for expected in golden.expected:
        # Theirs is off by so much, ours by no more than the bound; y_sum sums two of ours.
        own = expected.of(run.y.error, bounds)
        difference = np.abs(expected.of(y, state_n).astype(float) - expected.values)
        assert (difference <= expected.atol + own + np.finfo(dtype).eps).all()


TORCH_CASES = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"bias": False, "proj_size": 3, "num_layers": 2}),
    ("LSTM", {"proj_size": 4, "bidirectional": True}),
    ("GRU", {}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"num_layers": 3, "bias": False}),
]


@pytest.mark.parametrize(("kind", "options"), TORCH_CASES)
@pytest.mark.parametrize("ragged", [False, True])
@every_dtype
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_pytorch(kind, options, ragged, dtype, isa, rng):
    torch = pytest.importorskip("torch")
    layer = getattr(tg, kind)(5, 9, **options, dtype=dtype, seed=rng)
    make_contracting(layer)
    case = selftest.draw_case(layer, 6, 4, True, rng)
    lengths = np.array([6, 1, 3, 6]) if ragged else None

    theirs = getattr(torch.nn, kind)(5, 9, **options, dtype=torch.from_numpy(case.x).dtype)
    theirs.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in layer.params.items()})
    x = torch.from_numpy(case.x).requires_grad_()
    state = map_state(lambda a: torch.from_numpy(a).requires_grad_(), case.state)
    if ragged:
        packing = torch.nn.utils.rnn
        packed = packing.pack_padded_sequence(x, torch.from_numpy(lengths), enforce_sorted=False)
        out, state_n = theirs(packed, state)
        out, _ = packing.pad_packed_sequence(out, total_length=6)
    else:
        out, state_n = theirs(x, state)
    loss = (out * torch.from_numpy(case.dy)).sum()
    for a, b in zip(parts(state_n), parts(case.dstate)):
        loss = loss + (a * torch.from_numpy(b)).sum()
    loss.backward()

    ours = selftest.Case(**{**vars(case), "lengths": lengths, "reset": None})
    expected = selftest.expect(ours)
    forward, backward = selftest.results(ours, 1)
    wanted = {"y": out, "h_n": parts(state_n)[0], "dx": x.grad, "dh_0": parts(state)[0].grad}
    wanted |= {name: parameter.grad for name, parameter in theirs.named_parameters()}
    bounds = {name: bound for name, (_, bound) in (expected.forward | expected.backward).items()}
    for name, values in wanted.items():
        # PyTorch's is as good a computation in the same dtype: both may be off, by a bound each.
        got = (forward | backward)[name]
        difference = np.abs(got.astype(float) - values.detach().numpy())
        assert (difference <= 2 * bounds[name].error).all(), name
