# tidegate.reference against what does not depend on it: finite differences, other projects'
# expected values, PyTorch, formulas written out by hand. The C++ core is not in here.
"""The reference is what all else is measured by, so nothing of this project is used to check it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import golden_cases
from tidegate import reference

EPS = float(np.finfo(np.float64).eps)
INPUT, HIDDEN, PROJ, STEPS = 2, 3, 2, 5
LENGTHS = np.array([3, 0, STEPS, 1])
ROWS = len(LENGTHS)


# ---- A problem: a network, all that it reads, and the derivatives that it is given ---------------


@dataclasses.dataclass
class Problem:
    """One call forward and backward. `state` and `dstate` are pairs for an LSTM."""

    network: Any
    params: dict[str, np.ndarray]
    x: np.ndarray
    state: Any
    lengths: np.ndarray | None
    reset: np.ndarray | None
    dropout_scale: np.ndarray | None
    dy: np.ndarray
    dstate: Any

    def forward(self, **changes: Any) -> tuple[np.ndarray, Any, Any]:
        """Runs it, with some of its members replaced."""
        new = dataclasses.replace(self, **changes) if changes else self
        return self.network.forward(
            new.params,
            new.x,
            new.state,
            lengths=new.lengths,
            reset=new.reset,
            dropout_scale=new.dropout_scale,
        )

    def gradients(self, **changes: Any) -> dict[str, np.ndarray]:
        """By x, the states (h_0, c_0) and the parameters, by name."""
        new = dataclasses.replace(self, **changes)
        grads = self.network.backward(new.forward()[2], new.dy, new.dstate)
        return {"x": grads.x, **named(grads.state), **grads.params}

    def outputs(self, **changes: Any) -> dict[str, np.ndarray]:
        y, state, _ = self.forward(**changes)
        return {"y": y, **named(state)}


def named(state: Any) -> dict[str, np.ndarray]:
    if state is None:
        return {}
    return dict(zip(("h_0", "c_0"), state if isinstance(state, tuple) else (state,), strict=False))


def as_state(parts: Iterable[np.ndarray]) -> Any:
    """The opposite of `named`: None, h, or (h, c)."""
    parts = tuple(parts)
    return parts if len(parts) > 1 else (parts[0] if parts else None)


def valid(array: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """(T, N, ...) with zeros at padded steps."""
    if lengths is None:
        return array
    steps = np.arange(array.shape[0])[:, None, None]
    return np.where(steps < lengths[:, None], array, 0.0)


def problem(
    cell: str,
    *,
    lengths: bool = True,
    reset: bool = True,
    state: bool = True,
    dropout: bool = True,
    seed: int = 0,
    **options: Any,
) -> Problem:
    """A random one. With `lengths`, x, dy and the dropout scale are NaN at padded steps."""
    network = getattr(reference, cell)(INPUT, HIDDEN, **options)
    rng = np.random.default_rng(seed)
    shapes = network.parameter_shapes()
    params = {name: rng.uniform(-0.8, 0.8, shape) for name, shape in shapes.items()}
    layers, directions = network.num_layers, network.num_directions
    width = directions * network.state_size

    def sequences(*shape: int) -> np.ndarray:
        array = rng.normal(size=shape)
        if lengths:
            array[..., np.arange(STEPS)[:, None] >= LENGTHS, :] = np.nan
        return array

    def states() -> Any:
        h = rng.normal(size=(layers * directions, ROWS, network.state_size))
        if cell != "LSTM":
            return h
        return h, rng.normal(size=(layers * directions, ROWS, HIDDEN))

    scale = sequences(layers - 1, STEPS, ROWS, width)
    scale[np.abs(scale) < 0.5] = 0.0  # dropped
    resets = rng.random((STEPS, ROWS)) < 0.3
    resets[:, 2] = [True, False, True, False, True]
    return Problem(
        network=network,
        params=params,
        x=sequences(STEPS, ROWS, INPUT),
        state=states() if state else None,
        lengths=LENGTHS if lengths else None,
        reset=resets if reset else None,
        dropout_scale=scale if dropout else None,
        dy=sequences(STEPS, ROWS, width),
        dstate=states(),
    )


DIRECTIONS = [{}, {"reverse": True}, {"bidirectional": True}]
LSTM_OPTIONS = [
    {"bias": bias, "proj_size": proj_size, "peephole": peephole}
    for bias, proj_size, peephole in itertools.product([True, False], [0, PROJ], [False, True])
]
GRU_OPTIONS = [
    {"bias": bias, "reset_after": reset_after, "update_gate": update_gate}
    for bias, reset_after, update_gate in itertools.product(
        [True, False], [True, False], ["carry", "write"]
    )
]
MGU_OPTIONS = [{"bias": bias} for bias in (True, False)]
NETWORKS = [
    (cell, {"num_layers": layers, **direction, **options})
    for cell, all_options in [("LSTM", LSTM_OPTIONS), ("GRU", GRU_OPTIONS), ("MGU", MGU_OPTIONS)]
    for options in all_options
    for direction in DIRECTIONS
    for layers in (1, 2)
]
# Where one network of each kind does: everything on. Every third is bidirectional.
FULL = [
    (cell, {"num_layers": 2, **direction, **options})
    for cell, options in [
        ("LSTM", {"proj_size": PROJ, "peephole": True}),
        ("GRU", {"reset_after": True, "update_gate": "write"}),
        ("GRU", {"reset_after": False, "update_gate": "write"}),
        ("MGU", {}),
    ]
    for direction in DIRECTIONS
]

# Every activation, those that have parameters with others than the usual.
ACTIVATIONS = [
    "sigmoid",
    "tanh",
    "relu",
    ("hard_sigmoid", 0.3, 0.4),
    ("affine", -0.6, 0.25),
    ("leaky_relu", 0.2),
    ("thresholded_relu", 0.3),
    ("scaled_tanh", 1.3, 0.7),
    ("elu", 0.8),
    "softsign",
    "softplus",
]
# Each in each place; and all that there is at once.
CHOSEN = [
    (cell, {place: activation, **options})
    for cell, options, places in [
        ("LSTM", {"proj_size": PROJ, "peephole": True}, ["recurrent_activation", "activation"]),
        ("LSTM", {}, ["output_activation"]),
        ("GRU", {"update_gate": "write"}, ["recurrent_activation", "activation"]),
        ("GRU", {"reset_after": False}, ["recurrent_activation", "activation"]),
        ("MGU", {}, ["recurrent_activation", "activation"]),
    ]
    for place in places
    for activation in ACTIVATIONS
] + [
    ("LSTM", {"clip": 0.5}),
    ("LSTM", {"clip": 0.5, "peephole": True}),
    ("LSTM", {"input_forget": True}),
    ("LSTM", {"input_forget": True, "peephole": True, "recurrent_activation": "hard_sigmoid"}),
    ("GRU", {"clip": 0.5}),
    ("GRU", {"clip": 0.5, "reset_after": False, "update_gate": "write"}),
    ("MGU", {"clip": 0.5}),
    *[
        (
            "LSTM",
            {
                "num_layers": 2,
                "bidirectional": True,
                "peephole": True,
                "recurrent_activation": "hard_sigmoid",
                "activation": "softsign",
                "output_activation": ("scaled_tanh", 1.5, 0.5),
                "clip": 0.75,
                "input_forget": input_forget,
            },
        )
        for input_forget in (False, True)
    ],
    *[
        (
            cell,
            {
                "num_layers": 2,
                "bidirectional": True,
                "recurrent_activation": "softsign",
                "activation": ("elu", 0.5),
                "clip": 0.75,
            },
        )
        for cell in ("GRU", "MGU")
    ],
]


def describe(value: Any) -> str | None:
    if isinstance(value, dict):
        return "-".join(f"{key}={item}" for key, item in value.items()) or "none"
    return None


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """The same bits, by name."""
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def assert_near(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Equal but for the order of summation.

    A sum of a thousand terms, at most, is off by that many eps/2 times their magnitude; rounding
    errors behave like a random walk, so 64*eps of the largest value leaves an order of magnitude.
    """
    assert set(got) == set(want)
    for name in want:
        atol = 64 * EPS * max(1.0, float(np.abs(want[name]).max(initial=0.0)))
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=atol, err_msg=name)


# ---- Finite differences --------------------------------------------------------------------------


def check_finite_differences(p: Problem) -> None:
    """Every element of every gradient against the central difference of the loss.

    With step s, rounding costs eps*|loss|/s and truncation s^2/6*|loss'''|. At s = eps^(1/3) both
    are eps^(2/3) times a scale: at most the sum of what weights the outputs, as outputs are below
    1 but for a few cell states and activations without a bound, and so are, over 6, their third
    derivatives by any one input.
    """
    step = EPS ** (1 / 3)
    weights = {"y": valid(p.dy, p.lengths), **named(p.dstate)}
    scale = 1 + sum(np.abs(weight).sum() for weight in weights.values())
    gradients = p.gradients()
    inputs = {"x": p.x, **named(p.state), **p.params}

    def loss() -> float:
        outputs = p.outputs()
        return sum(float(np.vdot(outputs[name], weights[name])) for name in outputs)

    for name, array in inputs.items():
        gradient = gradients[name]
        assert gradient.shape == array.shape
        for index in np.ndindex(array.shape):
            value = array[index]
            if np.isnan(value):  # padding: not read, and no gradient
                assert gradient[index] == 0
                continue
            array[index] = value + step
            above = loss()
            array[index] = value - step
            below = loss()
            array[index] = value
            difference = (above - below) / (2 * step)
            assert abs(gradient[index] - difference) <= EPS ** (2 / 3) * scale, (name, index)


@pytest.mark.parametrize(("cell", "options"), NETWORKS, ids=describe)
def test_gradients_every_network_option(cell: str, options: dict[str, Any]) -> None:
    """With lengths (a zero among them), resets, initial states and dropout all at once."""
    check_finite_differences(problem(cell, **options))


@pytest.mark.parametrize(("cell", "options"), CHOSEN, ids=describe)
def test_gradients_every_activation(cell: str, options: dict[str, Any]) -> None:
    """No number that an activation is taken of lies within a step of a kink."""
    check_finite_differences(problem(cell, **options))


@pytest.mark.parametrize("absent", ["lengths", "reset", "state", "dropout"])
@pytest.mark.parametrize(("cell", "options"), FULL[2::3], ids=describe)
def test_gradients_without_an_argument(cell: str, options: dict[str, Any], absent: str) -> None:
    check_finite_differences(problem(cell, **options, **{absent: False}))


@pytest.mark.parametrize(("cell", "options"), FULL, ids=describe)
def test_gradients_are_linear_in_what_they_are_given(cell: str, options: dict[str, Any]) -> None:
    """dy=None and dstate=None, or one of an LSTM's pair, are zeros; both parts add up."""
    p = problem(cell, **options)
    by_y, by_state = p.gradients(dstate=None), p.gradients(dy=None)
    assert_near({name: by_y[name] + by_state[name] for name in by_y}, p.gradients())
    if cell == "LSTM":
        dh, dc = p.dstate
        by_h = p.gradients(dy=None, dstate=(dh, None))
        by_c = p.gradients(dy=None, dstate=(None, dc))
        assert_near({name: by_h[name] + by_c[name] for name in by_h}, by_state)
    assert not any(gradient.any() for gradient in p.gradients(dy=None, dstate=None).values())


# ---- Other projects' expected values -------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases.covered_cases(), ids=lambda case: case.name)
def test_golden(case: golden_cases.Case) -> None:
    network = getattr(reference, case.cell)(case.input_size, case.hidden_size, **case.options)
    y, state, _ = network.forward(case.params, case.x, case.state, lengths=case.lengths)
    assert case.expected
    for expected in case.expected:
        got = expected.of(y, state)
        assert got.shape == expected.values.shape
        error = np.abs(got - expected.values)
        assert (error <= expected.atol).all(), (expected.output, error.max())


def test_goldens_are_all_covered_or_left_out_for_a_reason() -> None:
    covered = golden_cases.covered_cases()
    counts = {cell: sum(case.cell == cell for case in covered) for cell in ("LSTM", "GRU")}
    assert counts == {"LSTM": 61, "GRU": 58}
    assert sum(not case.standard for case in covered) == 13
    assert list(golden_cases.left_out().values()) == 6 * ["op RNN"]


# ---- PyTorch -------------------------------------------------------------------------------------

TORCH_NETWORKS = [
    (cell, {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, **proj})
    for cell in ("LSTM", "GRU")
    for layers in (1, 3)
    for bidirectional in (False, True)
    for bias in (True, False)
    for proj in ([{}, {"proj_size": PROJ}] if cell == "LSTM" else [{}])
]


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize(("cell", "options"), TORCH_NETWORKS, ids=describe)
def test_pytorch(cell: str, options: dict[str, Any], packed: bool) -> None:
    """Outputs, states and all gradients in float64; lengths as PyTorch's packed sequences."""
    torch = pytest.importorskip("torch")
    p = problem(cell, reset=False, dropout=False, lengths=False, **options)
    lengths = np.array([3, 2, STEPS, 1])  # PyTorch takes no zeros
    if packed:
        p.lengths = lengths
    theirs = getattr(torch.nn, cell)(INPUT, HIDDEN, **options).double()
    theirs.load_state_dict({name: torch.tensor(value) for name, value in p.params.items()})
    x = torch.tensor(p.x, requires_grad=True)
    states = [torch.tensor(s, requires_grad=True) for s in named(p.state).values()]
    rnn = torch.nn.utils.rnn
    sequences = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x
    y, last = theirs(sequences, tuple(states) if cell == "LSTM" else states[0])
    if packed:
        y, _ = rnn.pad_packed_sequence(y, total_length=STEPS)
    outputs = [y, *(last if cell == "LSTM" else [last])]
    given = [valid(p.dy, p.lengths), *named(p.dstate).values()]
    torch.autograd.backward(outputs, [torch.tensor(g) for g in given])

    names = list(p.outputs())
    assert_near(p.outputs(), {n: o.detach().numpy() for n, o in zip(names, outputs, strict=True)})
    want = {"x": x.grad, **{n: s.grad for n, s in zip(named(p.state), states, strict=True)}}
    want |= {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert_near(p.gradients(), {name: gradient.numpy() for name, gradient in want.items()})


# ---- Activations ---------------------------------------------------------------------------------

FORMULAS: dict[str, Any] = {  # of x, alpha, beta: the ONNX operators'
    "sigmoid": lambda x, *_: np.exp(-np.logaddexp(0, -x)),
    "tanh": lambda x, *_: np.tanh(x),
    "relu": lambda x, *_: np.maximum(x, 0),
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "leaky_relu": lambda x, alpha, _: np.maximum(x, 0) + alpha * np.minimum(x, 0),
    "thresholded_relu": lambda x, alpha, _: x * (x > alpha),
    "scaled_tanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "elu": lambda x, alpha, _: np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0)),
    "softsign": lambda x, *_: x / (1 + np.abs(x)),
    "softplus": lambda x, *_: np.logaddexp(x, 0),
}
USUAL = {
    "hard_sigmoid": (0.2, 0.5),
    "affine": (1, 0),
    "leaky_relu": (0.01,),
    "thresholded_relu": (1,),
    "scaled_tanh": (1, 1),
    "elu": (1,),
}


def name_and_parameters(activation: Any) -> tuple[str, tuple[float, ...]]:
    """What a name, or a tuple that lacks the last ones, stands for: (alpha, beta), 0 if unused."""
    name, *own = (activation,) if isinstance(activation, str) else activation
    usual = USUAL.get(name, ())
    return name, (*own, *usual[len(own) :], 0, 0)[:2]


def formula(activation: Any, x: np.ndarray) -> np.ndarray:
    name, parameters = name_and_parameters(activation)
    return FORMULAS[name](x, *parameters)


def activated(activation: Any, x: Any, clip: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """f(x) and f'(x): of a GRU's n, each unit's seeing nothing but its bias; z is 1/2, h' = n/2."""
    hidden = np.size(x)
    network = reference.GRU(1, hidden, activation=activation, clip=clip)
    params = {name: np.zeros(shape) for name, shape in network.parameter_shapes().items()}
    params["bias_ih_l0"][2 * hidden :] = x
    _, _, tape = network.forward(params, np.zeros((1, 1, 1)))
    grads = network.backward(tape, np.ones((1, 1, hidden)))
    return tape.saved(0, False, "n").ravel(), 2 * grads.params["bias_ih_l0"][2 * hidden :]


BARE = [name_and_parameters(activation)[0] for activation in ACTIVATIONS]
PARTIAL = [("hard_sigmoid", 0.3), ("affine", 2.0), ("scaled_tanh", 0.5)]
GRID = np.concatenate([np.linspace(-5, 5, 101) + 1 / 300, [-30, -1e-3, -1e-9, 1e-9, 1e-3, 30]])
every_activation = pytest.mark.parametrize("activation", [*ACTIVATIONS, *BARE, *PARTIAL], ids=str)


def test_every_activation_is_tested() -> None:
    assert set(BARE) == set(FORMULAS)
    with pytest.raises(ValueError, match=", ".join(FORMULAS)):
        reference.LSTM(1, 1, activation="gelu")


@every_activation
def test_activation_is_the_formula(activation: Any) -> None:
    """Off by a few roundings of either; relative, but for a sum's that cancels (affine)."""
    got, _ = activated(activation, GRID)
    np.testing.assert_allclose(got, formula(activation, GRID), rtol=8 * EPS, atol=EPS)


@every_activation
def test_slope_is_the_formulas(activation: Any) -> None:
    """Central differences of fourth order: s^4/30 of a fifth derivative, which is below 50 where
    the function is smooth, and 3*eps/s of values that are at most 60.
    """
    step = 1e-3
    name, (alpha, beta) = name_and_parameters(activation)
    kinks = [0.0]
    if name == "hard_sigmoid":
        kinks = [-beta / alpha, (1 - beta) / alpha]
    if name == "thresholded_relu":
        kinks = [alpha]
    far = np.abs(GRID[:, None] - kinks).min(axis=1) > 2 * step
    x = GRID[far]
    near, further = (
        formula(activation, x + k * step) - formula(activation, x - k * step) for k in (1, 2)
    )
    _, got = activated(activation, x)
    np.testing.assert_allclose(got, (8 * near - further) / (12 * step), rtol=0, atol=2e-10)


@pytest.mark.parametrize(
    ("activation", "x", "slopes"),
    [
        ("relu", [0.0, -0.0], [0, 0]),
        (("hard_sigmoid", 0.25, 0.5), [-2.0, 2.0], [0, 0]),
        (("hard_sigmoid", -0.25, 0.5), [-2.0, 0.0, 2.0], [0, -0.25, 0]),
        (("leaky_relu", 0.25), [0.0, -0.0], [0.25, 0.25]),
        ("thresholded_relu", [1.0], [0]),
        (("elu", 0.25), [0.0, -0.0], [0.25, 0.25]),
        ("softsign", [0.0], [1]),
        ("softplus", [0.0], [0.5]),
    ],
    ids=str,
)
def test_slope_at_a_kink(activation: Any, x: list[float], slopes: list[float]) -> None:
    np.testing.assert_array_equal(activated(activation, x)[1], slopes)


@pytest.mark.parametrize(
    ("activation", "ends", "slopes"),
    [
        ("sigmoid", [0, 1], [0, 0]),
        ("tanh", [-1, 1], [0, 0]),
        ("relu", [0, np.inf], [0, 1]),
        ("hard_sigmoid", [0, 1], [0, 0]),
        ("affine", [-np.inf, np.inf], [1, 1]),
        ("leaky_relu", [-np.inf, np.inf], [0.01, 1]),
        ("thresholded_relu", [0, np.inf], [0, 1]),
        (("scaled_tanh", 2.0, 0.5), [-2, 2], [0, 0]),
        (("elu", 0.5), [-0.5, np.inf], [0, 1]),
        ("softsign", [-1, 1], [0, 0]),
        ("softplus", [0, np.inf], [0, 1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("far", [1e305, np.inf])
def test_activation_at_its_ends(
    far: float, activation: Any, ends: list[float], slopes: list[float]
) -> None:
    """No overflow on the way to the limits; far out, what is not bounded is about far itself."""
    got, got_slopes = activated(activation, [-far, far])
    wanted = formula(activation, np.array([-far, far])) if np.isfinite(far) else ends
    np.testing.assert_allclose(got, wanted, rtol=8 * EPS, atol=1e-300)
    np.testing.assert_allclose(got_slopes, slopes, rtol=0, atol=1e-300)


@every_activation
@pytest.mark.parametrize("clip", [None, 0.5])
def test_activation_of_nan(activation: Any, clip: float | None) -> None:
    assert np.isnan(activated(activation, [np.nan], clip)[0]).all()


@every_activation
def test_clip_clamps_what_is_activated(activation: Any) -> None:
    """The gradient passes up to the ends themselves."""
    clip = 0.75
    x = np.array([-np.inf, -1e9, -0.76, -0.75, -0.7, 0.1, 0.7, 0.75, np.nextafter(0.75, 1), np.inf])
    got, slopes = activated(activation, x, clip)
    inner, inner_slopes = activated(activation, np.clip(x, -clip, clip))
    np.testing.assert_array_equal(got, inner)
    np.testing.assert_array_equal(slopes, np.where(np.abs(x) <= clip, inner_slopes, 0))


TORCH_FORMULAS: dict[str, Any] = {  # of torch.nn.functional, x, alpha, beta
    "sigmoid": lambda F, x, *_: F.sigmoid(x),
    "tanh": lambda F, x, *_: F.tanh(x),
    "relu": lambda F, x, *_: F.relu(x),
    "hard_sigmoid": lambda F, x, alpha, beta: F.hardtanh(alpha * x + beta, 0.0, 1.0),
    "affine": lambda F, x, alpha, beta: alpha * x + beta,
    "leaky_relu": lambda F, x, alpha, _: F.leaky_relu(x, alpha),
    "thresholded_relu": lambda F, x, alpha, _: F.threshold(x, alpha, 0.0),
    "scaled_tanh": lambda F, x, alpha, beta: alpha * F.tanh(beta * x),
    "elu": lambda F, x, alpha, _: F.elu(x, alpha),
    "softsign": lambda F, x, *_: F.softsign(x),
    "softplus": lambda F, x, *_: F.softplus(x, threshold=1e3),
}


@every_activation
@pytest.mark.parametrize("clip", [None, 0.5])
def test_pytorch_activation(activation: Any, clip: float | None) -> None:
    """Values and slopes, kinks included."""
    torch = pytest.importorskip("torch")
    name, (alpha, beta) = name_and_parameters(activation)
    points = np.array([*GRID, -2.5, -0.5, -0.3, 0.0, 0.3, 0.5, 1.0, 2.0, 2.5])
    x = torch.tensor(points, requires_grad=True)
    inner = x if clip is None else torch.clamp(x, -clip, clip)
    y = TORCH_FORMULAS[name](torch.nn.functional, inner, alpha, beta)
    y.sum().backward()
    got, slopes = activated(activation, points, clip)
    np.testing.assert_allclose(got, y.detach().numpy(), rtol=16 * EPS, atol=2 * EPS)
    np.testing.assert_allclose(slopes, x.grad.numpy(), rtol=16 * EPS, atol=4 * EPS)


def test_each_activation_has_its_place() -> None:
    """Told by what a tape shows; without output_activation, c' goes through that of g."""
    x = np.array([[[0.4]]])
    lstm_gates = {"i": 0, "f": 1, "g": 2, "o": 3}
    names = {"recurrent_activation": "softsign", "activation": ("elu", 0.5)}
    for output in (None, "softplus"):
        network = reference.LSTM(1, 1, bias=False, output_activation=output, **names)
        params = {
            "weight_ih_l0": np.array([[1.0], [-2.0], [-3.0], [4.0]]),
            "weight_hh_l0": np.zeros((4, 1)),
        }
        y, _, tape = network.forward(params, x)
        for gate, row in lstm_gates.items():
            a = params["weight_ih_l0"][row] * x
            kind = names["activation" if gate == "g" else "recurrent_activation"]
            np.testing.assert_allclose(tape.saved(0, False, gate), formula(kind, a), rtol=8 * EPS)
        c = tape.saved(0, False, "c")
        squashed = formula(output or names["activation"], c)
        np.testing.assert_allclose(y, tape.saved(0, False, "o") * squashed, rtol=8 * EPS)
    for cell, gates in ((reference.GRU, "rzn"), (reference.MGU, "fn")):
        network = cell(1, 1, bias=False, **names)
        weight = np.array([[1.0], [-3.0], [2.0]])[: len(gates)]
        params = {"weight_ih_l0": weight, "weight_hh_l0": np.zeros_like(weight)}
        _, _, tape = network.forward(params, x)
        for row, gate in enumerate(gates):
            kind = names["activation" if gate == "n" else "recurrent_activation"]
            expected = formula(kind, weight[row] * x)
            np.testing.assert_allclose(tape.saved(0, False, gate), expected, rtol=8 * EPS)


@pytest.mark.parametrize("peephole", [False, True])
def test_input_forget_does_not_read_the_forget_gates_parameters(peephole: bool) -> None:
    """They may be NaN, and their gradients are zero; what a tape shows as f is 1 - i."""
    p = problem("LSTM", input_forget=True, peephole=peephole, proj_size=PROJ, bidirectional=True)
    params = {name: value.copy() for name, value in p.params.items()}
    own = slice(HIDDEN, 2 * HIDDEN)  # of the peepholes i f o, too
    for name, value in params.items():
        if "weight_hr" not in name:
            value[own] = np.nan
    assert_same(p.outputs(params=params), p.outputs())
    gradients = p.gradients(params=params)
    assert_same(gradients, p.gradients())
    for name in params:
        if "weight_hr" not in name:
            assert not gradients[name][own].any()
            assert gradients[name].any()
    _, _, tape = p.forward()
    i, f = tape.saved(0, True, "i"), tape.saved(0, True, "f")
    padded = (np.arange(STEPS)[:, None] >= LENGTHS)[..., None]
    np.testing.assert_array_equal(f, np.where(padded, 0, 1 - i))


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("update_gate", ["carry", "write"])
def test_an_update_gate_near_one_loses_no_digits(update_gate: str, reset_after: bool) -> None:
    """1 - z has none left where z = sigmoid(37); sigmoid(-37) has all of them."""
    gru = reference.GRU(1, 1, bias=False, update_gate=update_gate, reset_after=reset_after)
    params = {"weight_ih_l0": [[0], [1], [0.25]], "weight_hh_l0": np.zeros((3, 1))}
    params = {name: np.array(values, float) for name, values in params.items()}
    a = 37.0
    small, n = 1 / (1 + math.exp(a)), math.tanh(0.25 * a)
    h = np.full((1, 1, 1), 2.0 if update_gate == "write" else 0.0)
    y, _, tape = gru.forward(params, np.full((1, 1, 1), a), h)
    grads = gru.backward(tape, np.ones((1, 1, 1)))
    if update_gate == "write":
        np.testing.assert_allclose(y, small * 2 + (1 - small) * n, rtol=1e-15)
        np.testing.assert_allclose(grads.state, small, rtol=1e-14)
    else:
        np.testing.assert_allclose(y, small * n, rtol=1e-14)
        da_n = small / math.cosh(0.25 * a) ** 2
        np.testing.assert_allclose(grads.params["weight_ih_l0"][2], da_n * a, rtol=1e-14)


def test_a_forget_gate_near_one_loses_no_digits() -> None:
    """An MGU's 1 - f, as a GRU's 1 - z."""
    mgu = reference.MGU(1, 1, bias=False)
    params = {"weight_ih_l0": np.array([[37.0], [0.0]]), "weight_hh_l0": np.zeros((2, 1))}
    y, _, tape = mgu.forward(params, np.ones((1, 1, 1)), np.full((1, 1, 1), 2.0))
    small = 1 / (1 + math.exp(37))
    np.testing.assert_allclose(y, small * 2, rtol=1e-14)  # n = 0
    grads = mgu.backward(tape, np.ones((1, 1, 1)))
    np.testing.assert_allclose(grads.state, small, rtol=1e-14)
    # f' = f*(1-f), of which 1 - f is the small one, too; h' = 2*(1-f).
    np.testing.assert_allclose(grads.params["weight_ih_l0"][0], -2 * small, rtol=1e-13)


def test_a_clip_beyond_everything_changes_nothing() -> None:
    for cell in ("LSTM", "GRU", "MGU"):
        p, clipped = problem(cell), problem(cell, clip=1e6)
        assert_same(clipped.outputs(), p.outputs())
        assert_same(clipped.gradients(), p.gradients())


# ---- Formulas written out by hand ----------------------------------------------------------------


def logistic(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def scalar(values: Any) -> np.ndarray:
    return np.reshape(np.asarray(values, dtype=np.float64), (-1, 1, 1))


def clamp(a: float, limit: float) -> float:
    return min(max(a, -limit), limit)


@pytest.mark.parametrize("input_forget", [False, True])
@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("chosen", [False, True], ids=["usual", "chosen"])
@pytest.mark.parametrize("peephole", [False, True])
def test_lstm_by_hand(peephole: bool, chosen: bool, clip: float | None, input_forget: bool) -> None:
    """Two steps of one unit. Some gates are clipped, some by their peephole or bias alone."""
    w_i, w_f, w_g, w_o = w = [0.5, -0.25, 1.5, 0.75]
    u_i, u_f, u_g, u_o = u = [-1.0, 0.125, 0.25, -0.5]
    p_i, p_f, p_o = peepholes = [0.3, -0.7, 1.1] if peephole else [0.0, 0.0, 0.0]
    b, b_h = [0.1, 0.2, 0.3, 0.4], [0.01, 0.02, 0.03, 0.04]
    kinds: list[Any] = ["sigmoid", "tanh", "tanh"]
    if chosen:
        kinds = [("hard_sigmoid", 0.3, 0.4), "softplus", "softsign"]
    gate, candidate, output = (functools.partial(formula, kind) for kind in kinds)
    limit = math.inf if clip is None else clip
    h, c, outputs = 0.6, -0.9, []
    for x in (2.0, -1.0):
        i = gate(clamp(w_i * x + b[0] + u_i * h + b_h[0] + p_i * c, limit))
        f = gate(clamp(w_f * x + b[1] + u_f * h + b_h[1] + p_f * c, limit))
        if input_forget:
            f = 1 - i
        g = candidate(clamp(w_g * x + b[2] + u_g * h + b_h[2], limit))
        c = f * c + i * g
        o = gate(clamp(w_o * x + b[3] + u_o * h + b_h[3] + p_o * c, limit))
        h = o * output(c)
        outputs.append(h)
    params = {
        "weight_ih_l0": np.array(w)[:, None],
        "weight_hh_l0": np.array(u)[:, None],
        "bias_ih_l0": np.array(b),
        "bias_hh_l0": np.array(b_h),
    }
    if peephole:
        params["weight_peephole_l0"] = np.array(peepholes)
    network = reference.LSTM(
        1,
        1,
        peephole=peephole,
        recurrent_activation=kinds[0],
        activation=kinds[1],
        output_activation=kinds[2],
        clip=clip,
        input_forget=input_forget,
    )
    y, (h_n, c_n), _ = network.forward(params, scalar([2, -1]), (scalar(0.6), scalar(-0.9)))
    # Not relative: c' is a difference of numbers below 1.
    np.testing.assert_allclose(y, scalar(outputs), rtol=0, atol=8 * EPS)
    np.testing.assert_allclose([h_n.item(), c_n.item()], [h, c], rtol=0, atol=8 * EPS)


def test_lstm_projection_by_hand() -> None:
    """One step of two units from zero, projected to one: h = weight_hr m; c is not projected."""
    params = {
        "weight_ih_l0": np.array([[0.5], [-0.5], [9.0], [9.0], [1.0], [2.0], [0.25], [0.75]]),
        "weight_hh_l0": np.full((8, 1), 9.0),
        "weight_hr_l0": np.array([[3.0, -2.0]]),
    }
    network = reference.LSTM(1, 2, bias=False, proj_size=1)
    y, (h, c), _ = network.forward(params, scalar(1.0))
    c_0, c_1 = logistic(0.5) * math.tanh(1), logistic(-0.5) * math.tanh(2)
    m_0, m_1 = logistic(0.25) * math.tanh(c_0), logistic(0.75) * math.tanh(c_1)
    np.testing.assert_allclose(c.ravel(), [c_0, c_1], rtol=8 * EPS)
    np.testing.assert_allclose(y.item(), 3 * m_0 - 2 * m_1, rtol=16 * EPS)
    assert h.item() == y.item()


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("chosen", [False, True], ids=["usual", "chosen"])
@pytest.mark.parametrize("update_gate", ["carry", "write"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_by_hand(reset_after: bool, update_gate: str, chosen: bool, clip: float | None) -> None:
    """Two steps of two units, so that U_n mixes them before or after r."""
    kinds: list[Any] = ["softsign", ("elu", 0.7)] if chosen else ["sigmoid", "tanh"]
    squash, candidate = (functools.partial(formula, kind) for kind in kinds)
    limit = math.inf if clip is None else clip
    w = [[0.5], [-1.0], [0.25], [0.75], [1.5], [-0.5]]
    u = [[0.1, -0.2], [0.3, 0.4], [-0.5, 0.6], [0.7, -0.8], [0.9, 1.0], [-1.1, 1.2]]
    b, b_h = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7, -0.6, 0.5, -0.4, 0.3, -0.2]
    h, outputs = [0.6, -0.9], []
    for x in (2.0, -1.0):

        def gate(row: int, h: list[float], x: float = x) -> float:
            return w[row][0] * x + b[row] + u[row][0] * h[0] + u[row][1] * h[1] + b_h[row]

        r = [squash(clamp(gate(row, h), limit)) for row in (0, 1)]
        z = [squash(clamp(gate(row, h), limit)) for row in (2, 3)]
        n = []
        for j, row in enumerate((4, 5)):
            if reset_after:
                q = u[row][0] * h[0] + u[row][1] * h[1] + b_h[row]
                a = w[row][0] * x + b[row] + r[j] * q
            else:
                a = gate(row, [r[0] * h[0], r[1] * h[1]])
            n.append(candidate(clamp(a, limit)))
        if update_gate == "carry":
            h = [z[j] * h[j] + (1 - z[j]) * n[j] for j in range(2)]
        else:
            h = [(1 - z[j]) * h[j] + z[j] * n[j] for j in range(2)]
        outputs.append(h)
    params = {
        "weight_ih_l0": np.array(w),
        "weight_hh_l0": np.array(u),
        "bias_ih_l0": np.array(b),
        "bias_hh_l0": np.array(b_h),
    }
    network = reference.GRU(
        1,
        2,
        reset_after=reset_after,
        update_gate=update_gate,
        recurrent_activation=kinds[0],
        activation=kinds[1],
        clip=clip,
    )
    y, h_n, _ = network.forward(params, scalar([2, -1]), np.array([[[0.6, -0.9]]]))
    np.testing.assert_allclose(y[:, 0], outputs, rtol=16 * EPS)
    np.testing.assert_allclose(h_n[0, 0], h, rtol=16 * EPS)


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("chosen", [False, True], ids=["usual", "chosen"])
def test_mgu_by_hand(chosen: bool, clip: float | None) -> None:
    """Two steps of two units, so that U_n mixes what f has multiplied."""
    kinds: list[Any] = ["softsign", ("elu", 0.7)] if chosen else ["sigmoid", "tanh"]
    squash, candidate = (functools.partial(formula, kind) for kind in kinds)
    limit = math.inf if clip is None else clip
    w = [[0.5], [-1.0], [0.25], [0.75]]
    u = [[0.1, -0.2], [0.3, 0.4], [-0.5, 0.6], [0.7, -0.8]]
    b, b_h = [0.1, 0.2, 0.3, 0.4], [0.7, -0.6, 0.5, -0.4]
    h, outputs = [0.6, -0.9], []
    for x in (2.0, -1.0):

        def gate(row: int, h: list[float], x: float = x) -> float:
            return w[row][0] * x + b[row] + u[row][0] * h[0] + u[row][1] * h[1] + b_h[row]

        f = [squash(clamp(gate(row, h), limit)) for row in (0, 1)]
        fh = [f[0] * h[0], f[1] * h[1]]
        n = [candidate(clamp(gate(row, fh), limit)) for row in (2, 3)]
        h = [(1 - f[j]) * h[j] + f[j] * n[j] for j in range(2)]
        outputs.append(h)
    params = {
        "weight_ih_l0": np.array(w),
        "weight_hh_l0": np.array(u),
        "bias_ih_l0": np.array(b),
        "bias_hh_l0": np.array(b_h),
    }
    network = reference.MGU(1, 2, recurrent_activation=kinds[0], activation=kinds[1], clip=clip)
    y, h_n, _ = network.forward(params, scalar([2, -1]), np.array([[[0.6, -0.9]]]))
    np.testing.assert_allclose(y[:, 0], outputs, rtol=16 * EPS)
    np.testing.assert_allclose(h_n[0, 0], h, rtol=16 * EPS)


@pytest.mark.parametrize("a", [-745.0, -700.0, -40.0, -1e-300, 0.0, 40.0, 700.0, 1e308, np.inf])
def test_sigmoid_is_accurate_in_both_tails(a: float) -> None:
    """An update gate with no weight but its bias; far below 0 it is exp(a) to the last bit."""
    network = reference.GRU(1, 1)
    params = {name: np.zeros(shape) for name, shape in network.parameter_shapes().items()}
    params["bias_ih_l0"][1] = a
    _, _, tape = network.forward(params, np.zeros((1, 1, 1)))
    want = math.exp(a) if a <= -40 else logistic(a)
    np.testing.assert_allclose(tape.saved(0, False, "z").item(), want, rtol=4 * EPS)


# ---- Rows, padding, resets -----------------------------------------------------------------------


def alone(p: Problem, row: int) -> Problem:
    """That row by itself, its padding cut off."""

    def rows(state: Any) -> Any:
        return as_state(s[:, row : row + 1] for s in named(state).values())

    length = int(p.lengths[row])
    one = (slice(0, length), slice(row, row + 1))
    return Problem(
        network=p.network,
        params=p.params,
        x=p.x[one],
        state=rows(p.state),
        lengths=None,
        reset=p.reset[one],
        dropout_scale=p.dropout_scale[(slice(None), *one)],
        dy=p.dy[one],
        dstate=rows(p.dstate),
    )


@pytest.mark.parametrize(("cell", "options"), FULL, ids=describe)
def test_each_row_is_what_it_is_alone(cell: str, options: dict[str, Any]) -> None:
    """NaN in padding (x, dy, dropout) does no harm; padded y and dx are zero; dparams add up."""
    p = problem(cell, **options)
    outputs, gradients = p.outputs(), p.gradients()
    sums = {name: np.zeros_like(value) for name, value in p.params.items()}
    for row, length in enumerate(LENGTHS):
        one = alone(p, row)
        for whole, part in [(outputs, one.outputs()), (gradients, one.gradients())]:
            for name in set(part) - set(p.params):
                if name in ("y", "x"):
                    np.testing.assert_array_equal(whole[name][:length, row], part[name][:, 0])
                    assert not whole[name][length:, row].any()
                else:
                    np.testing.assert_array_equal(whole[name][:, row], part[name][:, 0])
        row_gradients = one.gradients()
        for name in sums:
            sums[name] += row_gradients[name]
    assert_near({name: gradients[name] for name in sums}, sums)


@pytest.mark.parametrize(("cell", "options"), FULL, ids=describe)
def test_length_zero_passes_the_state_through(cell: str, options: dict[str, Any]) -> None:
    p = problem(cell, **options)
    row = int(np.flatnonzero(LENGTHS == 0)[0])
    outputs, gradients = p.outputs(), p.gradients()
    for name, initial in named(p.state).items():
        np.testing.assert_array_equal(outputs[name][:, row], initial[:, row])
        np.testing.assert_array_equal(gradients[name][:, row], named(p.dstate)[name][:, row])


@pytest.mark.parametrize(("steps", "rows"), [(0, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize(("cell", "options"), FULL, ids=describe)
def test_empty(cell: str, options: dict[str, Any], steps: int, rows: int) -> None:
    network = getattr(reference, cell)(INPUT, HIDDEN, **options)
    params = {name: np.ones(shape) for name, shape in network.parameter_shapes().items()}
    y, state, tape = network.forward(params, np.zeros((steps, rows, INPUT)))
    assert y.shape == (steps, rows, network.num_directions * network.state_size)
    grads = network.backward(tape, y, state)
    assert grads.x.shape == (steps, rows, INPUT)
    assert not any(gradient.any() for gradient in grads.params.values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("cell", "options"), FULL, ids=describe)
def test_nan_stays_in_its_row(cell: str, options: dict[str, Any], value: float) -> None:
    p = problem(cell, **options)
    sick, others = 2, [0, 1, 3]
    x = p.x.copy()
    x[3, sick] = value
    healthy, sickened = p.outputs(), p.outputs(x=x)
    by_healthy, by_sickened = p.gradients(), p.gradients(x=x)
    for name in healthy:
        np.testing.assert_array_equal(sickened[name][:, others], healthy[name][:, others])
    for name in ("x", *named(p.state)):
        np.testing.assert_array_equal(by_sickened[name][:, others], by_healthy[name][:, others])
    if np.isnan(value):
        assert np.isnan(sickened["y"][3, sick]).any()


def split_at(p: Problem, row: int, t: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A row's outputs and gradients from two calls, of the steps before t and of those from t on.

    The forward direction's initial state goes to the first, a reverse one's to the second; the
    others are zero. Last states, and gradients by them, go the other way.
    """
    whole = alone(p, row)
    cells = p.network.num_layers * p.network.num_directions
    backwards = np.zeros((cells, 1, 1), dtype=bool)
    backwards[p.network.num_directions - 1 :: p.network.num_directions] = (
        p.network.bidirectional or p.network.reverse
    )

    def select(mask: np.ndarray, state: Any) -> Any:
        return as_state(np.where(mask, s, 0.0) for s in named(state).values())

    pieces = []
    for part, starts, ends in [
        (slice(0, t), ~backwards, backwards),
        (slice(t, None), backwards, ~backwards),
    ]:
        pieces.append(
            dataclasses.replace(
                whole,
                x=whole.x[part],
                state=select(starts, whole.state),
                reset=whole.reset[part] & (np.arange(len(whole.x[part])) > 0)[:, None],
                dropout_scale=whole.dropout_scale[:, part],
                dy=whole.dy[part],
                dstate=select(ends, whole.dstate),
            )
        )
    first, second = pieces
    outputs = {"y": np.concatenate([first.outputs()["y"], second.outputs()["y"]])}
    gradients = {"x": np.concatenate([first.gradients()["x"], second.gradients()["x"]])}
    for name in named(p.state):
        ends = np.where(backwards, first.outputs()[name], second.outputs()[name])
        starts = np.where(backwards, second.gradients()[name], first.gradients()[name])
        outputs[name], gradients[name] = ends, starts
    for name in p.params:
        gradients[name] = first.gradients()[name] + second.gradients()[name]
    return outputs, gradients


@pytest.mark.parametrize("t", [1, 2, 4])
@pytest.mark.parametrize(("cell", "options"), FULL, ids=describe)
def test_a_reset_splits_the_sequence(cell: str, options: dict[str, Any], t: int) -> None:
    """In both directions, forward and backward; other boundaries lie on either side."""
    row = 2
    p = problem(cell, **options)
    p.reset[:, row] = False
    p.reset[[t, 3], row] = True
    whole = alone(p, row)
    outputs, gradients = split_at(p, row, t)
    assert_same(whole.outputs(), outputs)
    assert_near(whole.gradients(), gradients)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("cell", "options"), FULL, ids=describe)
def test_a_reset_is_a_select(cell: str, options: dict[str, Any], bad: float) -> None:
    """What is not finite does not cross a boundary, nor does the gradient by what lies behind."""
    row, t = 2, 2
    p = problem(cell, **options)
    p.reset[:, row] = np.arange(STEPS) == t
    x, dy = p.x.copy(), p.dy.copy()
    x[t - 1, row] = bad
    dy[t - 1, row] = bad
    y, y_bad = p.outputs()["y"], p.outputs(x=x)["y"]
    np.testing.assert_array_equal(y_bad[t:, row], y[t:, row])
    dx, dx_bad = p.gradients()["x"], p.gradients(x=x, dy=dy)["x"]
    np.testing.assert_array_equal(dx_bad[t:, row], dx[t:, row])


@pytest.mark.parametrize(("cell", "options"), FULL, ids=describe)
def test_a_reset_at_the_first_step(cell: str, options: dict[str, Any]) -> None:
    """Zeroes the forward initial state alone; in padding, or in a row of length 0, nothing."""
    p = problem(cell, **options)
    none = np.zeros((STEPS, ROWS), dtype=bool)
    first, padded = none.copy(), np.arange(STEPS)[:, None] >= LENGTHS
    first[0, LENGTHS > 0] = True
    assert_same(p.outputs(reset=padded), p.outputs(reset=none))
    assert_same(p.gradients(reset=padded), p.gradients(reset=none))

    forward = np.ones(p.network.num_layers * p.network.num_directions, dtype=bool)
    if p.network.reverse:
        forward[:] = False
    if p.network.bidirectional:
        forward[1::2] = False
    zeroed = {name: s.copy() for name, s in named(p.state).items()}
    for s in zeroed.values():
        s[np.ix_(forward, LENGTHS > 0)] = 0
    state = as_state(zeroed.values())
    assert_same(p.outputs(reset=first), p.outputs(reset=none, state=state))
    got, want = p.gradients(reset=first), p.gradients(reset=none, state=state)
    for name in named(p.state):
        want[name][np.ix_(forward, LENGTHS > 0)] = 0
    assert_same(got, want)


# ---- Options in terms of each other --------------------------------------------------------------


@pytest.mark.parametrize("activation", ["sigmoid", ("hard_sigmoid", 0.3)], ids=str)
@pytest.mark.parametrize("reset_after", [True, False])
def test_write_is_carry_with_the_update_gate_negated(reset_after: bool, activation: Any) -> None:
    """1 - sigmoid(a) = sigmoid(-a); the z that a tape shows is the network's own."""
    options = {
        "reset_after": reset_after,
        "bidirectional": True,
        "recurrent_activation": activation,
        "clip": 0.9,
    }
    write = problem("GRU", update_gate="write", **options)
    carry = problem("GRU", update_gate="carry", **options)

    def negated(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = {name: value.copy() for name, value in values.items()}
        for name in write.params:
            values[name][HIDDEN : 2 * HIDDEN] *= -1
        return values

    carry.params = negated(write.params)
    assert_near(carry.outputs(), write.outputs())
    assert_near(negated(carry.gradients()), write.gradients())
    z_write = write.forward()[2].saved(0, True, "z")
    z_carry = carry.forward()[2].saved(0, True, "z")
    padded = (np.arange(STEPS)[:, None] >= LENGTHS)[..., None]
    assert_near({"z": np.where(padded, 0, 1 - z_carry)}, {"z": z_write})


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "MGU"])
def test_bidirectional_is_a_forward_and_a_reverse_layer(cell: str) -> None:
    both = problem(cell, bidirectional=True)
    y, gradients = both.outputs()["y"], both.gradients()
    dx = np.zeros_like(both.x)
    for direction in (0, 1):
        columns = slice(direction * HIDDEN, (direction + 1) * HIDDEN)
        one = problem(cell, reverse=direction == 1)
        one.lengths, one.reset, one.x = both.lengths, both.reset, both.x
        one.dropout_scale = None
        suffix = "_reverse" if direction else ""
        one.params = {name: both.params[name + suffix] for name in one.params}
        cells = slice(direction, direction + 1)
        one.state = as_state(s[cells] for s in named(both.state).values())
        one.dstate = as_state(s[cells] for s in named(both.dstate).values())
        one.dy = both.dy[..., columns]
        np.testing.assert_array_equal(one.outputs()["y"], y[..., columns])
        for name, gradient in one.gradients().items():
            if name == "x":
                dx += gradient
            elif name in one.params:
                np.testing.assert_array_equal(gradient, gradients[name + suffix])
            else:
                np.testing.assert_array_equal(gradient[0], gradients[name][direction])
    assert_near({"x": gradients["x"]}, {"x": dx})


@pytest.mark.parametrize(("cell", "options"), FULL, ids=describe)
def test_layers_are_networks_on_networks(cell: str, options: dict[str, Any]) -> None:
    """With dropout's scale in between."""
    p = problem(cell, **options)
    directions = p.network.num_directions
    x = p.x
    for layer in (0, 1):
        single = dict(options, num_layers=1)
        network = getattr(reference, cell)(x.shape[2], HIDDEN, **single)
        names = network.parameter_shapes()
        params = {name: p.params[name.replace("_l0", f"_l{layer}")] for name in names}
        cells = slice(layer * directions, (layer + 1) * directions)
        state = as_state(s[cells] for s in named(p.state).values())
        x, last, _ = network.forward(params, x, state, lengths=p.lengths, reset=p.reset)
        for name, s in named(last).items():
            np.testing.assert_array_equal(p.outputs()[name][cells], s)
        if layer == 0:
            x = valid(x * p.dropout_scale[0], p.lengths)
    np.testing.assert_array_equal(p.outputs()["y"], x)


# ---- Tapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "options"), NETWORKS[::5], ids=describe)
def test_saved_values_satisfy_the_equations(cell: str, options: dict[str, Any]) -> None:
    p = problem(cell, reset=False, state=False, **options)
    y, _, tape = p.forward()
    network = p.network
    last_layer = network.num_layers - 1
    padded = np.arange(STEPS)[:, None] >= LENGTHS
    for reverse in (False, True)[: network.num_directions]:
        names = {"LSTM": "ifgoch", "GRU": "rznh", "MGU": "fnh"}[cell]
        saved = {name: tape.saved(last_layer, reverse, name) for name in names}
        for name, value in saved.items():
            size = network.state_size if name == "h" else HIDDEN
            assert value.shape == (STEPS, ROWS, size)
            assert not value[padded].any()
        columns = slice(int(reverse) * network.state_size, (int(reverse) + 1) * network.state_size)
        np.testing.assert_array_equal(saved["h"], y[..., columns])
        backwards = reverse or network.reverse
        for row, length in enumerate(LENGTHS):
            c, h = np.zeros(HIDDEN), np.zeros(HIDDEN)
            for t in range(length)[:: -1 if backwards else 1]:
                at = {name: value[t, row] for name, value in saved.items()}
                if cell == "LSTM":
                    c = at["f"] * c + at["i"] * at["g"]
                    assert_near({"c": at["c"]}, {"c": c})
                    m = at["o"] * np.tanh(c)
                    suffix = f"_l{last_layer}" + ("_reverse" if reverse else "")
                    want = p.params["weight_hr" + suffix] @ m if network.proj_size else m
                else:
                    if cell == "MGU":
                        carried = 1 - at["f"]
                    else:
                        carried = at["z"] if network.update_gate == "carry" else 1 - at["z"]
                    want = h = carried * h + (1 - carried) * at["n"]
                assert_near({"h": at["h"]}, {"h": want})


@pytest.mark.parametrize(("cell", "options"), FULL, ids=describe)
def test_a_tape_keeps_copies_and_is_used_many_times(cell: str, options: dict[str, Any]) -> None:
    p = problem(cell, **options)
    want = p.gradients()
    _, _, tape = p.forward()
    arrays = [p.x, p.reset, p.dropout_scale, *p.params.values(), *named(p.state).values()]
    tape.saved(0, False, "h").fill(np.nan)
    for array in arrays:
        array.fill(1)
    p.lengths = None
    for _ in range(2):
        grads = p.network.backward(tape, p.dy, p.dstate)
        assert_same({"x": grads.x, **named(grads.state), **grads.params}, want)
    assert not any(np.isnan(array).any() for array in (p.dy[0, :1], *named(p.dstate).values()))


def test_nothing_given_is_written_to() -> None:
    p = problem("LSTM", num_layers=2, bidirectional=True, peephole=True)
    given = [p.x, p.reset, p.dropout_scale, p.dy, *p.params.values()]
    given += [*named(p.state).values(), *named(p.dstate).values()]
    for array in given:
        array.flags.writeable = False
    p.gradients()


def test_other_dtypes_and_layouts_are_converted() -> None:
    p = problem("GRU", num_layers=2)
    strided = np.asfortranarray(p.x.astype(np.float32))
    lengths = LENGTHS.astype(np.uint8)
    assert_same(
        p.outputs(x=strided, lengths=lengths, reset=np.asfortranarray(p.reset)),
        p.outputs(x=p.x.astype(np.float32).astype(np.float64)),
    )


# ---- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "sizes", "options", "match"),
    [
        ("LSTM", (0, 3), {}, "input_size"),
        ("LSTM", (2, 0), {}, "hidden_size"),
        ("GRU", (2, 3, 0), {}, "num_layers"),
        ("GRU", (2, 3), {"bidirectional": True, "reverse": True}, "reverse"),
        ("LSTM", (2, 3), {"proj_size": 3}, "proj_size"),
        ("LSTM", (2, 3), {"proj_size": -1}, "proj_size"),
        ("GRU", (2, 3), {"update_gate": "both"}, "update_gate"),
        ("GRU", (2, 3), {"recurrent_activation": "gelu"}, "recurrent_activation: got 'gelu'"),
        ("GRU", (2, 3), {"activation": ("Elu", 1.0)}, "activation: got .*, wanted one of"),
        ("LSTM", (2, 3), {"output_activation": ""}, "output_activation: got ''"),
        ("LSTM", (2, 3), {"activation": ("relu", 1.0)}, "activation: .*at most 0 parameters"),
        ("LSTM", (2, 3), {"activation": ("elu", 1.0, 1.0)}, "activation: .*at most 1 param"),
        ("LSTM", (2, 3), {"activation": ("elu", np.nan)}, "activation: got nan"),
        ("LSTM", (2, 3), {"clip": 0}, "clip: got 0"),
        ("LSTM", (2, 3), {"clip": -1.0}, "clip: got -1.0"),
        ("GRU", (2, 3), {"clip": np.inf}, "clip: got inf"),
        ("GRU", (2, 3), {"clip": np.nan}, "clip: got nan"),
        ("MGU", (2, 3), {"bidirectional": True, "reverse": True}, "reverse"),
        ("MGU", (2, 3), {"clip": 0}, "clip: got 0"),
    ],
)
def test_wrong_options(cell: str, sizes: tuple, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        getattr(reference, cell)(*sizes, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"recurrent_activation": None}, "recurrent_activation: got None"),
        ({"activation": ()}, r"activation: got \(\)"),
        ({"activation": (0.2, "elu")}, "activation: got"),
        ({"activation": ["elu", 0.2]}, "activation: got"),
        ({"output_activation": ("elu", "1")}, "output_activation: got '1', wanted a number"),
        ({"activation": ("elu", True)}, "activation: got True"),
        ({"clip": "1"}, "clip: got '1', wanted a number"),
        ({"clip": True}, "clip: got True"),
    ],
)
def test_options_of_wrong_types(options: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        reference.LSTM(2, 3, **options)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("relu", "relu"),
        (("relu",), "relu"),
        (("elu", 1), "elu"),
        (("elu", 2), ("elu", 2.0)),
        (("hard_sigmoid", 0.2), "hard_sigmoid"),
        (("hard_sigmoid", np.float32(0.25)), ("hard_sigmoid", 0.25, 0.5)),
        (("affine", 1, 1), ("affine", 1.0, 1.0)),
    ],
    ids=str,
)
def test_activations_have_one_form(given: Any, shown: Any) -> None:
    """That of the layers: a bare name where the parameters are the usual ones."""
    network = reference.LSTM(
        1, 1, recurrent_activation=given, activation=given, output_activation=given, clip=2
    )
    assert network.recurrent_activation == network.activation == shown
    assert network.output_activation is None  # as `activation`
    network = reference.LSTM(1, 1, output_activation=given)
    assert network.output_activation == shown
    assert reference.GRU(1, 1, activation=given).activation == shown
    name, parameters = name_and_parameters(given)
    assert reference.activation_parameters(shown) == (name, *parameters)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"x": np.zeros((STEPS, ROWS, INPUT + 1))}, ValueError, "x: got shape"),
        ({"x": np.zeros((ROWS, INPUT))}, ValueError, "x: got shape"),
        ({"x": np.zeros((STEPS, ROWS, INPUT), dtype=complex)}, TypeError, "x: got dtype"),
        ({"state": np.zeros((1, ROWS, HIDDEN))}, ValueError, "state: wanted the pair"),
        ({"state": (np.zeros((1, ROWS, 9)), None)}, ValueError, "state, h: got shape"),
        ({"state": (None, np.zeros((1, ROWS, 9)))}, ValueError, "state, c: got shape"),
        ({"lengths": np.array([1, 2, 3])}, ValueError, "lengths: got shape"),
        ({"lengths": np.array([1, 2, 3, STEPS + 1])}, ValueError, "lengths: got"),
        ({"lengths": np.array([1, 2, 3, -1])}, ValueError, "lengths: got"),
        ({"lengths": np.array([1.0, 2.0, 3.0, 4.0])}, TypeError, "lengths: got dtype"),
        ({"reset": np.zeros((ROWS, STEPS), dtype=bool)}, ValueError, "reset: got shape"),
        ({"reset": np.zeros((STEPS, ROWS))}, TypeError, "reset: got dtype"),
        ({"dropout_scale": np.ones((1, STEPS, ROWS, HIDDEN))}, ValueError, "dropout_scale: got"),
        ({"params": {}}, ValueError, "params: missing .*weight_ih_l0"),
        ({"dy": np.zeros((STEPS, ROWS, HIDDEN + 1))}, ValueError, "dy: got shape"),
        ({"dstate": (np.zeros((1, 1, 1)), None)}, ValueError, "dstate, h: got shape"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        problem("LSTM").gradients(**changes)


def test_wrong_parameters() -> None:
    p = problem("GRU")
    with pytest.raises(ValueError, match=r"surplus \['weight_hr_l0'\]"):
        p.forward(params={**p.params, "weight_hr_l0": np.zeros((2, 3))})
    with pytest.raises(ValueError, match="bias_hh_l0: got shape"):
        p.forward(params={**p.params, "bias_hh_l0": np.zeros(8)})


def test_wrong_tapes() -> None:
    p = problem("GRU")
    _, _, tape = p.forward()
    with pytest.raises(ValueError, match="tape"):
        reference.GRU(INPUT, HIDDEN, reset_after=False).backward(tape)
    with pytest.raises(ValueError, match="tape"):
        reference.GRU(INPUT, HIDDEN, activation="relu").backward(tape)
    for arguments, match in [
        ((1, False, "h"), "layer"),
        ((0, True, "h"), "reverse"),
        ((0, False, "c"), "name"),
    ]:
        with pytest.raises(ValueError, match=match):
            tape.saved(*arguments)


@pytest.mark.parametrize(("cell", "options"), FULL + CHOSEN[-9:], ids=describe)
def test_from_layer_reads_the_options(cell: str, options: dict[str, Any]) -> None:
    network = getattr(reference, cell)(INPUT, HIDDEN, **options)
    twin = reference.from_layer(network)
    assert type(twin) is type(network)
    assert vars(twin) == vars(network)
    with pytest.raises(TypeError, match="layer"):
        reference.from_layer(object())
