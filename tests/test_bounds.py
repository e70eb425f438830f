"""The bounds themselves: random networks keep within them, and what has no bound says so."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tidegate as tg
from random_networks import changed_by_threads, draw_case, expect, ratios
from tidegate import _bounds, _core, selftest

SINGLE, DOUBLE = np.finfo(np.float32), np.finfo(np.float64)


def assert_within_bounds(case: selftest.Case) -> None:
    """Checks every instruction set against one result of the reference."""
    expected = expect(case)
    with selftest.preserved_settings():
        for isa in _core.available_isas():
            _core.select_isa(isa)
            found = ratios(case, expected)
            assert max(found.values()) <= 1, (isa, case.layer, found)
            assert not changed_by_threads(case), (isa, case.layer)


@pytest.mark.parametrize("seed", range(48))
def test_random_networks_keep_within_their_bounds(seed):
    """A part of the search that `python tests/random_networks.py` goes on with."""
    assert_within_bounds(draw_case(seed))


@pytest.mark.parametrize("seed", range(16))
def test_random_mgus_keep_within_their_bounds(seed):
    assert_within_bounds(draw_case(seed, "MGU"))


def one_unit(kind, dtype, weights, x, **options):
    """A layer of one unit, all of its parameters zero but for some, and one step of one row."""
    layer = kind(1, 1, dtype=dtype, seed=0, **options)
    layer.params.flat = np.zeros_like(layer.params.flat)
    for name, values in weights.items():
        layer.params[name] = np.array(values, dtype).reshape(layer.params[name].shape)
    ones = np.ones((1, 1, 1), dtype)
    state = (ones, ones) if kind is tg.LSTM else ones
    return selftest.Case(
        layer=layer,
        x=np.full((1, 1, 1), x, dtype),
        state=state,
        lengths=None,
        reset=None,
        dy=ones,
        dstate=state,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("x", [-40.0, -34.0, 8.0, 34.0, 40.0, 300.0])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", ("hard_sigmoid", 1e-3, 0.5)])
def test_an_update_gate_that_saturates(gate, x, reset_after, dtype):
    for update_gate in ("carry", "write"):
        options = {"update_gate": update_gate, "reset_after": reset_after}
        weights = {"weight_ih_l0": [0, 1, 0.01], "bias_hh_l0": [0, 0, 1e-3]}
        case = one_unit(tg.GRU, dtype, weights, x, recurrent_activation=gate, **options)
        assert_within_bounds(case)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [1e-30, 1e-36, 1e-38, 1e-50, -1e-37, 0.0, 1e30, 1e39])
def test_a_scaled_tanh_whose_product_underflows_or_overflows(alpha, dtype):
    """Its slope is computed from y / alpha, and y is zero where alpha * tanh(x) is too small."""
    for x in (1e-9, 0.4, 3.0):
        weights = {"weight_ih_l0": [0, 0, 1, 0]}
        activation = ("scaled_tanh", alpha, 1.5)
        case = one_unit(tg.LSTM, dtype, weights, x, activation=activation)
        assert_within_bounds(case)


@np.errstate(invalid="ignore")
def test_what_may_overflow_has_no_bound():
    huge = _bounds.Bounded.given(np.array([3e38, 1.0]), SINGLE)
    total = huge + huge
    assert total.error.tolist() == [math.inf, pytest.approx(SINGLE.eps)]
    # An infinity may become NaN; what is certain is that there is no bound, not that it is NaN.
    zero = _bounds.Bounded.zeros((2,), SINGLE)
    for result in (total - total, total * zero, total.tanh(), total.sum_rows()):
        assert result.error.flat[0] == math.inf
    assert (total * zero).error[1] < 1e-30
    product = _bounds.accumulate([(total[None], huge[None])])
    assert product.error.tolist() == [[math.inf]]
    # In between, too: 3e38 + 3e38 - 3e38.
    terms = _bounds.Bounded.given(np.array([[3e38], [3e38], [-3e38]]), SINGLE)
    assert terms.sum_rows().error.tolist() == [math.inf]


def test_an_overflow_in_float32_alone():
    case = one_unit(tg.LSTM, np.float32, {"weight_ih_l0": [1, 0, 1, 0]}, 1e30, activation="relu")
    x = case.layer.params["weight_ih_l0"] * np.float32(1e20)
    case.layer.params["weight_ih_l0"] = x
    y, _ = case.layer(case.x, case.state)
    assert not np.isfinite(y).all()
    assert_within_bounds(case)
    with np.errstate(all="ignore"):
        expected = selftest.expect(case)
    wanted, bound = expected.forward["y"]
    assert np.isfinite(wanted).all()
    assert (bound.error == math.inf).all()


def test_a_branch_is_unknown_within_the_error_of_double_as_well():
    one = _bounds.Bounded.given(np.array(1.0), DOUBLE)
    zero = _bounds.Bounded.zeros((), DOUBLE)
    for distance, unknown in ((1.9, True), (2.1, False)):
        value = _bounds.Bounded(np.array(distance * 1e-16), np.array(1e-16), DOUBLE)
        assert (value.choose(zero, zero, one).error == 1) == unknown
        value = _bounds.Bounded(np.array(distance * 1e-16), np.array(1e-16), SINGLE)
        assert value.choose(zero, zero, one).error == 0


def test_ratios_to_a_bound():
    bound = _bounds.Bounded(np.array([1.0, 1.0]), np.array([0.5, math.inf]), SINGLE)
    wanted = np.array([1.0, 1.0])

    def ratio(*got: float) -> float:
        return _bounds.worst_ratio(np.array(got, np.float32), wanted, bound)

    assert ratio(1, 1) == 0
    assert ratio(1.25, 1) == pytest.approx(0.5)
    assert ratio(2, math.nan) == pytest.approx(2)
    assert ratio(1, math.inf) == 0
    assert ratio(math.nan, 1) == math.inf
    assert ratio(math.inf, 1) == math.inf


def test_bits_are_the_same_but_for_those_of_nan():
    values = np.array([1.0, np.nan, 0.0], np.float32)
    other = values.copy()
    other[1] = -other[1]
    assert other.tobytes() != values.tobytes()
    assert selftest.same_bits(values, other)
    for index, wrong in ((0, np.nextafter(np.float32(1), 2)), (1, 2.0), (2, -0.0), (2, np.nan)):
        other = values.copy()
        other[index] = wrong
        assert not selftest.same_bits(values, other)
