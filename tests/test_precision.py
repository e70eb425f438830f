"""Layers in low precision: what they compute, and what they refuse.

What is promised of every call is in test_contracts.py, the arithmetic of the reference in
test_reference_precision.py.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest

import tidegate as tg
from layer_cases import CASES, assert_same_bits, make, parts
from tidegate import _bounds, reference, selftest

BFLOAT16 = ["bfloat16", "bfloat16-dot"]
PRECISIONS = [*BFLOAT16, "int8"]
SIZES = [1, 3, 15, 16, 17, 33, 100, 257]

every_case = pytest.mark.parametrize("case", CASES)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
every_bfloat16 = pytest.mark.parametrize("precision", BFLOAT16)


def rounded(weight, precision):
    """A matrix as it is stored, dequantised."""
    if precision != "int8":
        return reference.round_to_bfloat16(weight)
    q, scale = reference.quantize(weight)
    return q * scale[:, None]


# ---- What is computed ----------------------------------------------------------------------------


@every_precision
@pytest.mark.parametrize("rows", [1, 5, 150])
@pytest.mark.parametrize("size", SIZES)
def test_products_have_the_bits_of_the_reference(size, rows, precision, any_isa, rng):
    layer = tg.Linear(size, 37, seed=1)
    x = (rng.standard_normal((rows, size)) * 10.0 ** rng.integers(-3, 4, (rows, 1))).astype("f4")
    x[0, 0] = 0
    if rows > 2:
        x[1] = 0
        x[2, size // 2] = np.inf
    quantised = layer.quantize(precision)
    bias = np.broadcast_to(layer.params["bias"], (rows, 37))
    if precision == "bfloat16":
        wanted = reference.bfloat16_product(bias, x, layer.params["weight"])
    elif precision == "bfloat16-dot":
        wanted = reference.bfloat16_dot_product(bias, x, layer.params["weight"])
    else:
        weight_q, weight_scale = reference.quantize(layer.params["weight"])
        wanted = reference.int8_product(bias, *reference.quantize(x), weight_q, weight_scale)
    for threads in (1, 2, 3):
        assert selftest.same_bits(quantised(x, num_threads=threads), wanted)


@every_precision
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("kind", [tg.LSTM, tg.GRU, tg.MGU])
def test_a_step_is_within_its_bound(kind, hidden, batch, precision, any_isa, rng):
    layer = kind(hidden % 50 + 3, hidden, seed=1).quantize(precision)
    case = selftest.draw_case(layer, 1, batch, True, rng)
    expected = selftest.expect(case)
    for name, values in selftest.results(case, 1)[0].items():
        assert _bounds.worst_ratio(values, *expected.forward[name]) <= 1


@every_case
def test_integers_and_scales_of_other_frameworks(case, any_isa, rng):
    """Scales that are not max / 127, and -128, which has no opposite to negate it to."""
    layer = make(case).quantize("int8")
    given = layer._model.quantized
    given["int8"] = rng.integers(-128, 40, given["int8"].shape).astype(np.int8)
    given["scales"] = rng.uniform(0.002, 0.01, given["scales"].shape).astype(np.float32)
    layer = layer._with(quantized=given)
    if layer.num_layers > 1:
        layer(np.zeros((1, 1, layer.input_size), np.float32))
        return
    drawn = selftest.draw_case(layer, 1, 4, True, rng)
    expected = selftest.expect(drawn)
    for name, values in selftest.results(drawn, 1)[0].items():
        assert _bounds.worst_ratio(values, *expected.forward[name]) <= 1


@every_case
@every_precision
def test_the_weights_are_the_rounded_ones(case, precision):
    layer = make(case)
    quantised = layer.quantize(precision)
    for name, array in layer.params.items():
        wanted = rounded(array, precision) if array.ndim > 1 else array
        assert_same_bits(quantised.params[name], wanted)
    assert_same_bits(quantised.dequantize().params.flat, quantised.params.flat)
    assert_same_bits(quantised.dequantize().quantize(precision).params.flat, quantised.params.flat)


@pytest.mark.parametrize("case", [name for name, (_, _, layers, _) in CASES.items() if layers == 1])
@every_bfloat16
def test_numbers_that_are_not_rounded_give_the_bits_of_float32(case, precision, any_isa, rng):
    """In bfloat16, a step from zero with weights and x of few bits, whose sums are exact."""
    layer = make(case)
    with layer.params.update() as flat:
        flat[:] = np.round(flat * 8) / 8
    x = (rng.integers(-8, 9, (1, 3, layer.input_size)) / 4).astype(np.float32)
    y, state = layer(x)
    y_rounded, state_rounded = layer.quantize(precision)(x)
    assert_same_bits(y_rounded, y)
    for got, wanted in zip(parts(state_rounded), parts(state)):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize(
    ("kind", "precision", "allowed"),
    [
        (tg.LSTM, "bfloat16", 5e-3),
        (tg.LSTM, "bfloat16-dot", 5e-3),
        (tg.LSTM, "int8", 2e-2),
        (tg.GRU, "bfloat16", 7e-3),
        (tg.GRU, "bfloat16-dot", 7e-3),
        (tg.GRU, "int8", 3e-2),
    ],
)
@pytest.mark.parametrize(
    ("size", "batch", "steps"), [(64, 1, 1), (256, 32, 10), (512, 1, 40), (512, 8, 10)]
)
def test_the_error_of_rounding(size, batch, steps, kind, precision, allowed, rng):
    layer = kind(size, size, seed=3)
    x = rng.standard_normal((steps, batch, size)).astype(np.float32)
    wanted, _ = layer.astype(np.float64)(x.astype(np.float64))
    got, _ = layer.quantize(precision)(x)
    error = np.abs(got - wanted).max()
    assert 1e-5 < error <= allowed


@every_precision
def test_a_large_state_has_a_scale_of_its_own(precision, any_isa):
    # h_0 beyond 1, as only a caller can set it, is not cut off.
    layer = tg.GRU(2, 20, seed=1)
    x = np.zeros((1, 2, 2), np.float32)
    h_0 = np.full((1, 2, 20), 0.5, np.float32)
    h_0[:, 1] = 40
    h_0[:, 1, 3] = -30.0
    quantised = layer.quantize(precision)
    y, _ = quantised(x, h_0)
    # With the same weights; of h_0, -30 is rounded by up to 40 / 127 / 2.
    wanted, _ = quantised.dequantize()(x, h_0)
    np.testing.assert_allclose(y, wanted, rtol=0.03, atol=0.03)


@every_precision
def test_a_row_that_is_not_finite(precision, any_isa):
    layer = tg.LSTM(4, 20, seed=1)
    x = np.ones((3, 3, 4), np.float32)
    clean, _ = layer.quantize(precision)(x)
    for value in (np.nan, np.inf):
        bad = x.copy()
        bad[1, 1, 2] = value
        y, _ = layer.quantize(precision)(bad)
        assert_same_bits(y[:, [0, 2]].copy(), clean[:, [0, 2]].copy())
        assert_same_bits(y[0].copy(), clean[0].copy())
        if precision == "int8" or np.isnan(value):
            assert np.isnan(y[1:, 1]).all()


def test_the_faster_bfloat16(any_isa):
    if any_isa != "amx":  # there a process may not be permitted to use it
        assert tg.fastest_bfloat16() == "bfloat16-dot"


# ---- Training in bfloat16 ------------------------------------------------------------------------


def within_bounds(case, threads=(1, 2, 3)):
    """Checks all results against their bounds, and that they have the same bits for all threads."""
    expected = selftest.expect(case)
    first = selftest.results(case, threads[0])
    for values, wanted in zip(first, (expected.forward, expected.backward)):
        for name in values:
            ratio = _bounds.worst_ratio(values[name], *wanted[name])
            assert ratio <= 1, (name, ratio)
    for count in threads[1:]:
        for values, again in zip(first, selftest.results(case, count)):
            assert all(selftest.same_bits(values[name], again[name]) for name in values)


@every_bfloat16
@every_case
def test_training_of_every_network_is_within_its_bounds(case, precision, any_isa, rng):
    drawn = selftest.draw_case(make(case, dtype="float32"), 6, 5, True, rng)
    within_bounds(dataclasses.replace(drawn, precision=precision))


@every_bfloat16
@pytest.mark.parametrize("batch", [1, 7, 40])
@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("kind", [tg.LSTM, tg.GRU, tg.MGU])
def test_training_of_every_size_is_within_its_bounds(kind, hidden, batch, precision, any_isa, rng):
    layer = kind(hidden % 50 + 3, hidden, seed=1)
    drawn = selftest.draw_case(layer, 3, batch, False, rng)
    within_bounds(dataclasses.replace(drawn, precision=precision))


def rms(array):
    return float(np.sqrt(np.mean(np.square(np.float64(array)))))


@every_bfloat16
@every_case
@pytest.mark.parametrize("steps", [1, 3])
def test_training_rounds_what_the_reference_rounds(case, steps, precision, any_isa, rng):
    """Each gradient is much nearer to the reference's in bfloat16 than to that in float64.

    A number on the border between two roundings may be rounded to the other side by the kernels:
    this is rare, since their error is below 2^-16 of the distance of neighbours in bfloat16.
    """
    drawn = selftest.draw_case(make(case, dtype="float32"), steps, 5, True, rng)
    drawn = dataclasses.replace(drawn, precision=precision)
    wanted = selftest.expect(drawn)
    exact = selftest.expect(dataclasses.replace(drawn, precision=None))
    for values, rounded, other in zip(
        selftest.results(drawn, 1),
        (wanted.forward, wanted.backward),
        (exact.forward, exact.backward),
    ):
        for name, value in values.items():
            if name.startswith("d"):
                difference = rms(rounded[name][0] - other[name][0])
                assert rms(value - rounded[name][0]) <= 0.2 * difference, name


@every_bfloat16
def test_more_rows_and_columns_than_a_gradient_takes_at_once(precision, any_isa, rng):
    drawn = selftest.draw_case(tg.GRU(1030, 70, seed=1), 40, 30, False, rng)
    within_bounds(dataclasses.replace(drawn, precision=precision))


@every_bfloat16
@every_case
def test_training_leaves_the_layer_exact(case, precision, rng):
    layer = make(case)
    x = rng.standard_normal((4, 3, layer.input_size)).astype("f4")
    wanted = layer(x)[0]
    y, _, tape = layer.forward(x, precision=precision, rng=np.random.default_rng(0))
    assert selftest.same_bits(y, layer.quantize(precision)(x)[0])
    assert not selftest.same_bits(y, wanted)
    assert layer.precision == "float32"
    assert selftest.same_bits(layer(x)[0], wanted)
    grads = layer.backward(tape, np.ones_like(y))
    assert all(grads.params[name].dtype == np.float32 for name in layer.params)


@pytest.mark.parametrize(
    ("precision", "dtype", "error", "message"),
    [
        (
            "int8",
            "float32",
            ValueError,
            "precision: got 'int8', wanted 'bfloat16', '.*or None",
        ),
        (
            "float16",
            "float32",
            ValueError,
            "precision: got 'float16', wanted 'bfloat16', '.*or None",
        ),
        (16, "float32", TypeError, "precision: got int, wanted 'bfloat16', '.*or None"),
        ("bfloat16", "float64", ValueError, "got bfloat16 for the products of a model of float64"),
    ],
)
def test_precisions_that_training_refuses(precision, dtype, error, message):
    layer = tg.GRU(3, 4, dtype=dtype)
    with pytest.raises(error, match=message):
        layer.forward(np.zeros((2, 1, 3), dtype), precision=precision)


def test_a_refused_precision_draws_no_dropout():
    layer = tg.GRU(3, 4, num_layers=2, dropout=0.5, dtype="float64")
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    with pytest.raises(ValueError, match="precision: got bfloat16 for the products"):
        layer.forward(np.zeros((2, 1, 3)), rng=rng, precision="bfloat16")
    assert rng.bit_generator.state == before


# ---- A layer like any other ----------------------------------------------------------------------


@every_case
@every_precision
def test_a_layer_in_low_precision(case, precision, rng):
    layer = make(case, batch_first=True)
    layer.comment = "kept"
    quantised = layer.quantize(precision)
    assert type(quantised) is type(layer)
    assert (quantised.precision, layer.precision) == (precision, "float32")
    assert quantised.dtype == np.float32
    assert quantised.batch_first
    assert quantised.comment == "kept"
    assert repr(quantised) == f"{layer!r}.quantize({precision!r})"
    assert repr(quantised.dequantize()) == repr(layer)
    assert quantised.dequantize().precision == "float32"
    x = rng.standard_normal((3, 5, layer.input_size)).astype(np.float32)
    y, state = quantised(x)
    out = np.empty_like(y)
    assert quantised(x, out=out)[0] is out
    assert_same_bits(out, y)
    assert not np.array_equal(y, layer(x)[0])
    for other in (pickle.loads(pickle.dumps(quantised)), copy.copy(quantised)):
        assert repr(other) == repr(quantised)
        assert_same_bits(other.params.flat, quantised.params.flat)
        again, state_again = other(x)
        assert_same_bits(again, y)
        for got, wanted in zip(parts(state_again), parts(state)):
            assert_same_bits(got, wanted)


@every_precision
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_in_low_precision(precision, bias, rng):
    layer = tg.Linear(20, 7, bias=bias, seed=2)
    quantised = layer.quantize(precision)
    assert quantised.precision == precision
    assert repr(quantised) == f"{layer!r}.quantize({precision!r})"
    assert_same_bits(quantised.params["weight"], rounded(layer.params["weight"], precision))
    x = rng.standard_normal((2, 3, 20)).astype(np.float32)
    y = quantised(x)
    assert y.shape == (2, 3, 7)
    np.testing.assert_allclose(y, layer(x), atol=0.05)
    assert_same_bits(pickle.loads(pickle.dumps(quantised))(x), y)
    assert_same_bits(quantised.dequantize().params.flat, quantised.params.flat)
    assert quantised(np.zeros((0, 20), np.float32)).shape == (0, 7)


@every_precision
def test_nothing_to_do(precision):
    layer = tg.LSTM(3, 4).quantize(precision)
    for shape in [(0, 2, 3), (2, 0, 3)]:
        y, (h, _) = layer(np.zeros(shape, np.float32))
        assert y.shape == (*shape[:2], 4)
        assert not h.any()


@every_precision
def test_a_stream_copies_and_pickles(precision, rng):
    layer = tg.GRU(3, 20, 2, seed=1).quantize(precision)
    stream = layer.stream(2)
    x = rng.standard_normal((6, 2, 3)).astype(np.float32)
    for x_t in x[:3]:
        stream.step(x_t)
    other = pickle.loads(pickle.dumps(stream))
    assert other.layer.precision == precision
    for x_t in x[3:]:
        assert_same_bits(other.step(x_t), stream.step(x_t))


@every_case
@every_precision
def test_what_quantising_changes(case, precision, rng):
    layer = make(case)
    quantised = layer.quantize(precision)
    x = rng.standard_normal((6, 3, layer.input_size)).astype(np.float32)
    lengths = [6, 0, 4]
    found = quantised.compare(layer, x, lengths=lengths)
    (y, _), (wanted, _) = (each(x, lengths=lengths) for each in (quantised, layer))
    error = (y - wanted).astype(np.float64)
    valid = np.arange(6)[:, None] < np.array(lengths)
    rms = np.sqrt(np.mean(error[valid] ** 2))
    assert found["y"].max == np.abs(error).max() > 0
    assert found["y"].rms == pytest.approx(rms)
    signal = np.sqrt(np.mean(wanted[valid].astype(np.float64) ** 2))
    assert found["y"].snr == pytest.approx(20 * np.log10(signal / rms))
    _, _, tape = layer.forward(x, lengths=lengths)
    names = [f"l0.{name}" for name in tape.gates()]
    assert set(names) < set(found)
    assert len(found) == 1 + len(names) * layer.num_layers * (1 + layer.bidirectional)
    assert all(0 < found[name].max < 0.1 for name in names)
    assert "dB" in repr(found)
    same = quantised.compare(quantised.dequantize(), np.zeros_like(x))
    if precision != "int8" and not layer.bias:
        assert same["y"].snr == np.inf


def test_arguments_of_compare():
    layer = tg.LSTM(3, 4)
    quantised = layer.quantize("int8")
    x = np.zeros((2, 1, 3), np.float32)
    with pytest.raises(ValueError, match="compare: got a layer in float32"):
        layer.compare(layer, x)
    with pytest.raises(TypeError, match="layer: got int, wanted an LSTM"):
        quantised.compare(3, x)
    with pytest.raises(ValueError, match="layer: got a layer in int8, wanted one in float32"):
        quantised.compare(quantised, x)
    with pytest.raises(ValueError, match=r"layer: got LSTM\(3, 5\), wanted the options of LSTM"):
        quantised.compare(tg.LSTM(3, 5), x)
    with pytest.raises(TypeError, match="x: got dtype float64"):
        quantised.compare(layer, x.astype(np.float64))


# ---- Refusals ------------------------------------------------------------------------------------


@every_precision
@pytest.mark.parametrize("kind", ["recurrent", "linear"])
def test_the_parameters_cannot_be_changed(kind, precision):
    layer = (tg.GRU(3, 4) if kind == "recurrent" else tg.Linear(3, 4)).quantize(precision)
    name = next(iter(layer.params))
    before = layer.params.flat.copy()
    refused = pytest.raises(ValueError, match=f"parameters: those in {precision} cannot be changed")
    with refused:
        layer.params[name] = layer.params[name]
    with refused:
        layer.params.flat = before
    with refused, layer.params.update() as flat:
        flat *= 2
    with refused:
        layer.load_state_dict(layer.state_dict())
    with refused:
        tg.optim.SGD(layer.params, lr=0.1).step(tg.Gradients.zeros_like(layer.params))
    with pytest.raises(ValueError, match="read-only"):
        layer.params.flat[0] = 1
    assert_same_bits(layer.params.flat, before)


@every_precision
def test_training_and_conversions_are_refused(precision, tmp_path):
    exact = tg.LSTM(3, 4)
    layer = exact.quantize(precision)
    x = np.zeros((2, 1, 3), np.float32)
    tape = exact.forward(x)[2]
    wanted = f"got a layer in {precision}, wanted one in float32: layer.dequantize"
    for name, call in {
        "forward": lambda: layer.forward(x),
        "backward": lambda: layer.backward(tape, np.zeros((2, 1, 4), np.float32)),
        "astype": lambda: layer.astype(np.float64),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: {wanted}"):
            call()
    linear = tg.Linear(3, 4).quantize(precision)
    for call in (lambda: linear.forward(x), lambda: linear.astype(np.float64)):
        with pytest.raises(ValueError, match=wanted):
            call()
    for other in PRECISIONS:
        if precision != other and {precision, other} == set(BFLOAT16):
            assert_same_bits(layer.quantize(other)(x)[0], exact.quantize(other)(x)[0])
            continue
        with pytest.raises(ValueError, match=f"already in {precision}"):
            layer.quantize(other)
    with pytest.raises(ValueError, match="dequantize: got a layer in float32"):
        exact.dequantize()


def test_conversions_are_refused(tmp_path):
    layer = tg.LSTM(3, 4).quantize("int8")
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="layer: got a layer in int8, wanted one in float32"):
        layer.to_torch()
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match="layer: got a layer in int8, wanted one in float32"):
        layer.to_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("make_layer", [tg.LSTM, tg.Linear])
def test_arguments_of_quantize(make_layer):
    layer = make_layer(3, 4)
    with pytest.raises(TypeError, match="precision: got 8, wanted 'bfloat16', 'bf"):
        layer.quantize(8)
    with pytest.raises(ValueError, match="precision: got 'int4', wanted 'bfloat16', 'bf"):
        layer.quantize("int4")
    with pytest.raises(ValueError, match=r"precision: .*float32.*convert"):
        make_layer(3, 4, dtype=np.float64).quantize("int8")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_int8_refuses_weights_that_are_not_finite(value):
    layer = tg.GRU(3, 4)
    weight = layer.params["weight_hh_l0"].copy()
    weight[5, 2] = value
    layer.params["weight_hh_l0"] = weight
    with pytest.raises(ValueError, match=r"weight_hh_l0: got a number that is not finite in row 5"):
        layer.quantize("int8")
    kept = layer.quantize("bfloat16").params["weight_hh_l0"][5, 2]
    assert np.array_equal(kept, np.float32(value), equal_nan=True)


def test_int8_refuses_sums_that_are_not_exact():
    assert tg.Linear(131072, 1).quantize("int8").precision == "int8"
    with pytest.raises(ValueError, match="weight: got rows of 131073 elements"):
        tg.Linear(131073, 1).quantize("int8")
    assert tg.Linear(131073, 1).quantize("bfloat16").precision == "bfloat16"
