"""Activations other than sigmoid and tanh, clip and input_forget: values, slopes, NaN, refusals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import tidegate as tg
from layer_cases import assert_same_bits

# By the formulas of the ONNX operators, with the parameters that are used if none are given.
FORMULAS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "hard_sigmoid": lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1),
    "affine": lambda x, alpha=1.0, beta=0.0: alpha * x + beta,
    "leaky_relu": lambda x, alpha=0.01: np.where(x < 0, alpha * x, x),
    "thresholded_relu": lambda x, alpha=1.0: np.where(x > alpha, x, 0),
    "scaled_tanh": lambda x, alpha=1.0, beta=1.0: alpha * np.tanh(beta * x),
    "elu": lambda x, alpha=1.0: np.where(x < 0, alpha * np.expm1(x), x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": lambda x: np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0),
}
ACTIVATIONS = [
    *FORMULAS,
    ("hard_sigmoid", 1 / 6, 0.5),
    ("affine", 0.5, 0.25),
    ("leaky_relu", 0.3),
    ("thresholded_relu", 0.25),
    ("scaled_tanh", 0.9, 1.2),
    ("elu", 0.5),
]
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])


def formula(activation):
    name, *parameters = (activation,) if isinstance(activation, str) else activation
    return lambda x: FORMULAS[name](x, *parameters)


def candidate_of(activation, x, dtype):
    """activation(x), by a GRU whose gates are zero: its h is then the candidate's activation."""
    gru = tg.GRU(
        1, 1, recurrent_activation=("affine", 0.0, 0.0), activation=activation, dtype=dtype
    )
    gru.params.flat = np.zeros(gru.params.flat.size, dtype)
    weight = np.zeros((3, 1), dtype)
    weight[2] = 1
    gru.params["weight_ih_l0"] = weight
    return gru(x.reshape(1, -1, 1))[0].reshape(x.shape)


@every_activation
@every_dtype
def test_values(isa, activation, dtype, rng):
    x = np.concatenate([rng.uniform(-6, 6, 101), [0, -0.0, 1, -1, 30, -30, 700, -700]]).astype(
        dtype
    )
    with np.errstate(over="ignore"):
        expected = formula(activation)(x.astype(np.float64))
    # Two roundings of a term (alpha * x, then + beta), two ulp of the function.
    error = np.abs(candidate_of(activation, x, dtype) - expected)
    assert (
        error <= 4 * np.finfo(dtype).eps * (np.abs(expected) + np.abs(x) * (activation != "tanh"))
    ).all()
    nan = candidate_of(activation, np.array([np.nan], dtype), dtype)
    assert np.isnan(nan).all()
    # Far out they neither overflow on the way nor turn round.
    far = np.array([1e30, -1e30], dtype)
    with np.errstate(all="ignore"):
        limits = formula(activation)(far.astype(np.float64))
    assert (np.abs(candidate_of(activation, far, dtype) - limits) <= 1e-6 * np.abs(limits)).all()


LSTM_PLACES = ["recurrent_activation", "activation", "output_activation"]
GRU_PLACES = LSTM_PLACES[:2]
TRAINED = [
    *[(tg.LSTM, {}, place) for place in LSTM_PLACES],
    *[(tg.LSTM, {"peephole": True, "proj_size": 2}, place) for place in LSTM_PLACES],
    *[(tg.LSTM, {"peephole": True, "input_forget": True}, place) for place in LSTM_PLACES],
    *[(tg.GRU, {}, place) for place in GRU_PLACES],
    *[(tg.GRU, {"reset_after": False}, place) for place in GRU_PLACES],
    *[(tg.MGU, {}, place) for place in GRU_PLACES],
]


@every_activation
@pytest.mark.parametrize(("kind", "options", "place"), TRAINED)
def test_gradients_by_finite_differences(isa, kind, options, activation, place, rng):
    layer = kind(3, 5, dtype=np.float64, seed=2, **options, **{place: activation})
    x = rng.uniform(-2, 2, (4, 2, 3))
    y, _, tape = layer.forward(x)
    dy = rng.standard_normal(y.shape)
    grads = layer.backward(tape, dy)
    assert_same_bits(layer(x)[0], y)

    step = 1e-6
    flat = layer.params.flat.copy()
    for index in rng.choice(flat.size, 12, replace=False):
        values = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[index] += sign * step
            layer.params.flat = moved
            values.append((layer(x)[0] * dy).sum())
        # A kink within the step would spoil a difference: these seeds have none.
        assert grads.params.flat[index] == pytest.approx(
            (values[0] - values[1]) / (2 * step), rel=1e-6, abs=1e-7
        )


@every_dtype
def test_clip(isa, dtype, rng):
    x = rng.uniform(-3, 3, 50).astype(dtype)
    clipped = tg.GRU(1, 1, activation="affine", clip=0.75, dtype=dtype, seed=0)
    plain = tg.GRU(1, 1, activation="affine", dtype=dtype, seed=0)
    for gru in (clipped, plain):
        weight = np.zeros((3, 1), dtype)
        weight[2] = 1
        gru.params.flat = np.zeros(gru.params.flat.size, dtype)
        gru.params["weight_ih_l0"] = weight
    assert_same_bits(
        clipped(x.reshape(1, -1, 1))[0], plain(np.clip(x, -0.75, 0.75).reshape(1, -1, 1))[0]
    )
    assert np.isnan(clipped(np.array([[[np.nan]]], dtype))[0]).all()
    with pytest.raises(ValueError, match=r"^clip: "):
        clipped.forward(x.reshape(1, -1, 1))


@every_dtype
def test_input_forget_ties_the_forget_gate(isa, dtype, rng):
    tied = tg.LSTM(3, 7, input_forget=True, dtype=dtype, seed=1)
    x = rng.standard_normal((5, 2, 3)).astype(dtype)
    _, _, tape = tied.forward(x)
    gates = tape.gates()
    assert_same_bits(gates["f"], (1 - gates["i"]).astype(dtype))


def test_the_standard_ones_by_name_are_the_standard_cell(isa, rng):
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    named = tg.LSTM(
        3, 7, recurrent_activation="sigmoid", activation="tanh", output_activation="tanh", seed=1
    )
    assert_same_bits(named(x)[0], tg.LSTM(3, 7, seed=1)(x)[0])
    assert repr(named) == repr(tg.LSTM(3, 7))
    # And as parameters that happen to say the same, through the other kernels.
    scaled = tg.LSTM(3, 7, activation="scaled_tanh", seed=1)
    assert np.abs(scaled(x)[0] - named(x)[0]).max() < 1e-6


def test_how_they_are_shown_and_kept():
    layer = tg.LSTM(
        3,
        4,
        recurrent_activation=("hard_sigmoid", 0.2, 0.5),
        activation=("leaky_relu", 0.5),
        clip=3,
        input_forget=True,
    )
    assert layer.recurrent_activation == "hard_sigmoid"
    assert layer.activation == ("leaky_relu", 0.5)
    assert layer.output_activation is None
    assert layer.clip == 3.0
    assert layer.input_forget
    assert repr(layer) == (
        "LSTM(3, 4, recurrent_activation='hard_sigmoid', activation=('leaky_relu', 0.5), clip=3.0, "
        "input_forget=True)"
    )
    copy = pickle.loads(pickle.dumps(layer))
    assert repr(copy) == repr(layer)
    x = np.ones((2, 1, 3), np.float32)
    assert_same_bits(copy(x)[0], layer(x)[0])


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"activation": "swish"}, ValueError, "activation"),
        ({"activation": 3}, TypeError, "activation"),
        ({"activation": None}, TypeError, "activation"),
        ({"activation": ("tanh", 1.0)}, ValueError, "activation"),
        ({"activation": ("elu", 1.0, 2.0)}, ValueError, "activation"),
        ({"activation": ("elu", "1")}, TypeError, "activation"),
        ({"activation": ("elu", True)}, TypeError, "activation"),
        ({"activation": ()}, TypeError, "activation"),
        ({"activation": ("elu", float("nan"))}, ValueError, "activation"),
        ({"recurrent_activation": "swish"}, ValueError, "recurrent_activation"),
        ({"clip": 0}, ValueError, "clip"),
        ({"clip": -1.0}, ValueError, "clip"),
        ({"clip": float("inf")}, ValueError, "clip"),
        ({"clip": "3"}, TypeError, "clip"),
    ],
    ids=str,
)
def test_refusals(options, error, name):
    for kind in (tg.LSTM, tg.GRU, tg.MGU):
        with pytest.raises(error, match=rf"^{name}: "):
            kind(2, 3, **options)


def test_what_cannot_be_represented_or_trained():
    with pytest.raises(ValueError, match=r"^update_gate: "):
        tg.GRU(2, 3, update_gate="write", recurrent_activation="tanh")
    tg.GRU(2, 3, update_gate="write", recurrent_activation="hard_sigmoid")
    x = np.ones((1, 1, 2), np.float32)
    for name in ("leaky_relu", "elu", "thresholded_relu"):
        layer = tg.GRU(2, 3, activation=(name, -0.5))
        layer(x)
        with pytest.raises(ValueError, match=r"^activation: "):
            layer.forward(x)
