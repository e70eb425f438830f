"""LSTM, GRU and MGU as Python objects: layouts, strides, parameters, tapes. Not their numbers."""

from __future__ import annotations

import gc
import inspect
import math
import threading
import time

import numpy as np
import pytest

import tidegate as tg
from layer_cases import (
    CASES,
    FORMS_OF_INTEGERS,
    INPUT_SIZE,
    Readable,
    assert_same_bits,
    integers_in_form,
    is_lstm,
    make,
    map_state,
    output_size,
    parts,
    random_state,
    state_shapes,
)
from tidegate import reference

T, N = 6, 3
LENGTHS = np.array([6, 0, 4])
DTYPES = [np.float32, np.float64]

every_case = pytest.mark.parametrize("case", CASES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])


def random_x(layer, rng, steps=T, batch=N):
    return rng.standard_normal((steps, batch, layer.input_size)).astype(layer.dtype)


def random_reset(rng, steps=T, batch=N):
    return rng.random((steps, batch)) < 0.3


def random_dy(layer, rng, steps=T, batch=N):
    return rng.standard_normal((steps, batch, output_size(layer))).astype(layer.dtype)


def swap(array):
    """Time-major <-> batch-first, contiguous."""
    return np.ascontiguousarray(array.swapaxes(0, 1))


# ---- Layouts -------------------------------------------------------------------------------------


@every_case
@every_dtype
def test_layouts_agree_bit_for_bit(isa, case, dtype, rng):
    layer = make(case, dtype=dtype)
    other = make(case, dtype=dtype, batch_first=True)
    x, reset, dy = random_x(layer, rng), random_reset(rng), random_dy(layer, rng)
    state, dstate = random_state(layer, N, rng), random_state(layer, N, rng)

    y, state_n, tape = layer.forward(x, state, LENGTHS, reset)
    grads = layer.backward(tape, dy, dstate)
    y_other, state_other, tape = other.forward(swap(x), state, LENGTHS, swap(reset))
    grads_other = other.backward(tape, swap(dy), dstate)

    assert y_other.flags.c_contiguous
    assert y_other.shape == (N, T, output_size(layer))
    assert_same_bits(swap(y_other), y)
    assert_same_bits(state_other, state_n)
    assert_same_bits(swap(grads_other.x), grads.x)
    assert_same_bits(grads_other.state, grads.state)
    assert_same_bits(grads_other.params.flat, grads.params.flat)


@every_case
@every_dtype
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("length", [None, 0, 4])
def test_unbatched_is_a_batch_of_one_without_its_axis(case, dtype, batch_first, length, rng):
    layer = make(case, dtype=dtype)
    unbatched = make(case, dtype=dtype, batch_first=batch_first)
    x, reset, dy = (
        random_x(layer, rng, batch=1),
        random_reset(rng, batch=1),
        random_dy(layer, rng, batch=1),
    )
    state, dstate = random_state(layer, 1, rng), random_state(layer, 1, rng)
    lengths = None if length is None else np.array([length])

    def drop(array):
        return array[:, 0].copy()

    y, state_n, tape = layer.forward(x, state, lengths, reset)
    grads = layer.backward(tape, dy, dstate)
    y_1, state_1, tape_1 = unbatched.forward(drop(x), map_state(drop, state), length, drop(reset))
    grads_1 = unbatched.backward(tape_1, drop(dy), map_state(drop, dstate))
    y_call, state_call = unbatched(
        drop(x), map_state(drop, state), lengths=length, reset=drop(reset)
    )

    assert_same_bits(y_1, drop(y))
    assert_same_bits(y_call, y_1)
    assert_same_bits(state_1, map_state(drop, state_n))
    assert_same_bits(state_call, state_1)
    assert_same_bits(grads_1.x, drop(grads.x))
    assert_same_bits(grads_1.state, map_state(drop, grads.state))
    assert_same_bits(grads_1.params.flat, grads.params.flat)
    for name, values in tape_1.gates().items():
        assert_same_bits(values, drop(tape.gates()[name]))


@every_case
def test_shapes_and_new_arrays(case, rng):
    layer = make(case)
    x = random_x(layer, rng)
    y, state = layer(x)
    assert y.shape == (T, N, output_size(layer))
    assert [part.shape for part in parts(state)] == state_shapes(layer, N)
    for array in [y, *parts(state)]:
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.flags.owndata


@every_case
@every_dtype
def test_inference_is_the_forward_pass(isa, case, dtype, rng):
    layer = make(case, dtype=dtype)
    x, reset, state = random_x(layer, rng), random_reset(rng), random_state(layer, N, rng)
    y, state_n = layer(x, state, lengths=LENGTHS, reset=reset)
    y_forward, state_forward, _ = layer.forward(x, state, LENGTHS, reset)
    assert_same_bits(y, y_forward)
    assert_same_bits(state_n, state_forward)


@every_case
def test_no_state_is_zeros(case, rng):
    layer = make(case)
    x = random_x(layer, rng)
    zeros = map_state(np.zeros_like, random_state(layer, N, rng))
    assert_same_bits(layer(x)[0], layer(x, zeros)[0])
    if is_lstm(layer):
        h_0, c_0 = random_state(layer, N, rng)
        assert_same_bits(layer(x, (h_0, None))[0], layer(x, (h_0, zeros[1]))[0])
        assert_same_bits(layer(x, [None, c_0])[0], layer(x, (zeros[0], c_0))[0])


# ---- Strides -------------------------------------------------------------------------------------


def strided_forms(array):
    """The same values in other memory: what NumPy users pass without thinking."""
    yield "fortran", np.asfortranarray(array)
    flipped = np.ascontiguousarray(np.flip(array))
    yield "negative", np.flip(flipped)
    spread = np.zeros([2 * size for size in array.shape], array.dtype)
    view = spread[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    yield "spread", view
    outer = np.zeros((2 * array.shape[0], *array.shape[1:-1], array.shape[-1] + 3), array.dtype)
    view = outer[::2, ..., 1:-2]
    view[...] = array
    yield "window", view
    raw = np.zeros(array.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(array.dtype).reshape(array.shape)
    misaligned[...] = array
    yield "misaligned", misaligned
    records = np.zeros(array.shape, [("tag", np.uint8), ("value", array.dtype)])
    records["value"] = array
    yield "field", records["value"]
    row = ("value", array.dtype, array.shape[-1:])
    gapped = np.zeros(array.shape[:-1], [("tag", np.uint8), row])
    gapped["value"] = array
    yield "field of rows", gapped["value"]
    read_only = array.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only


@pytest.mark.parametrize("case", ["lstm-everything", "gru-reset-before", "mgu"])
@pytest.mark.parametrize("batch_first", [False, True])
@every_dtype
def test_any_strides(case, batch_first, dtype, rng):
    layer = make(case, dtype=dtype, batch_first=batch_first)
    x, reset, dy = random_x(layer, rng), random_reset(rng), random_dy(layer, rng)
    if batch_first:
        x, reset, dy = swap(x), swap(reset), swap(dy)
    state, dstate = random_state(layer, N, rng), random_state(layer, N, rng)
    y, state_n, tape = layer.forward(x, state, LENGTHS, reset)
    grads = layer.backward(tape, dy, dstate)

    def forms(value):
        return dict(strided_forms(value))

    lengths = np.repeat(LENGTHS, 2)[::2]
    for name in forms(x):
        other_state = map_state(lambda part, name=name: forms(part)[name], state)
        y_other, state_other, tape = layer.forward(
            forms(x)[name], other_state, lengths, forms(reset)[name]
        )
        grads_other = layer.backward(
            tape, forms(dy)[name], map_state(lambda part, name=name: forms(part)[name], dstate)
        )
        assert_same_bits(y_other, y)
        assert_same_bits(state_other, state_n)
        assert_same_bits(grads_other.x, grads.x)
        assert_same_bits(grads_other.state, grads.state)
        assert_same_bits(grads_other.params.flat, grads.params.flat)


def test_broadcast_input(rng):
    layer = make("gru")
    step = rng.standard_normal((1, 1, INPUT_SIZE)).astype(np.float32)
    for shape in [(T, 1, INPUT_SIZE), (1, N, INPUT_SIZE), (T, N, INPUT_SIZE)]:
        x = np.broadcast_to(step, shape)
        assert_same_bits(layer(x)[0], layer(x.copy())[0])
    column = np.broadcast_to(np.float32(0.5), (T, N, INPUT_SIZE))
    assert_same_bits(layer(column)[0], layer(column.copy())[0])


def test_subclasses_of_ndarray_give_plain_arrays():
    class Tagged(np.ndarray):
        pass

    layer = make("gru")
    y, h_n = layer(np.ones((T, N, INPUT_SIZE), np.float32).view(Tagged))
    assert type(y) is np.ndarray
    assert type(h_n) is np.ndarray


@every_case
def test_inputs_are_left_alone(case, rng):
    layer = make(case)
    x, dy = random_x(layer, rng), random_dy(layer, rng)
    state, dstate = random_state(layer, N, rng), random_state(layer, N, rng)
    arrays = [x, dy, *parts(state), *parts(dstate), layer.params.flat]
    before = [array.tobytes() for array in arrays]
    _, _, tape = layer.forward(x, state, LENGTHS)
    layer.backward(tape, dy, dstate)
    layer(x, state)
    assert [array.tobytes() for array in arrays] == before


# ---- Lengths and empty things --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4"])
def test_lengths_of_any_integer_dtype(dtype, rng):
    layer = make("lstm-stacked-bidirectional")
    x = random_x(layer, rng)
    expected = layer(x, lengths=LENGTHS)[0]
    assert_same_bits(layer(x, lengths=LENGTHS.astype(dtype))[0], expected)


@pytest.mark.parametrize("form", FORMS_OF_INTEGERS)
def test_lengths_of_any_form(form, rng):
    layer = make("lstm-stacked-bidirectional")
    x = random_x(layer, rng)
    lengths = integers_in_form(form, LENGTHS.tolist())
    assert_same_bits(layer(x, lengths=lengths)[0], layer(x, lengths=LENGTHS)[0])
    assert_same_bits(layer.forward(x, lengths=lengths)[0], layer(x, lengths=LENGTHS)[0])


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("list", [6, 1.0, 4]),
        ("list", [6, True, 4]),
        ("list", [6, None, 4]),
        ("list", [[6, 0, 4]]),
        ("tuple", [6, "0", 4]),
        ("array interface", [6.0, 0.0, 4.0]),
        ("array interface", [True, False, True]),
        ("Series", [6.0, 0.0, 4.0]),
        ("Series", [True, False, True]),
        ("nullable Series", [6, None, 4]),
        ("tensor", [6.0, 0.0, 4.0]),
        ("tensor", [True, False, True]),
    ],
)
def test_lengths_that_are_no_integers_in_any_form(form, values, rng):
    layer = make("gru")
    x = random_x(layer, rng)
    lengths = integers_in_form(form, values)
    for call in (layer, layer.forward):
        with pytest.raises(TypeError, match=r"^lengths.*wanted (an )?integer"):
            call(x, lengths=lengths)


def test_lengths_that_are_no_sequence(rng):
    layer = make("gru")
    x = random_x(layer, rng)
    for wrong in ("777", b"777", {4, 5}, iter([1]), {"a": 1}):
        with pytest.raises(TypeError, match=r"^lengths: got .*wanted an array of integers"):
            layer(x, lengths=wrong)
    unreadable = Readable(TypeError("it is on another device"))
    with pytest.raises(TypeError, match=r"^lengths: got a .*Readable.*on another device"):
        layer(x, lengths=unreadable)
    with pytest.raises(ValueError, match=r"^lengths\[1\]: got 18446744073709551616"):
        layer(x, lengths=[1, 2**64, *[1] * (N - 2)])
    with pytest.raises(ValueError, match=r"^lengths: got shape \(1,\)"):
        layer(x, lengths=[1])
    with pytest.raises(ValueError, match=r"^lengths: got -1 at row 0"):
        layer(x, lengths=[-1, *[1] * (N - 1)])


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_other_layout_is_pointed_out(batch_first: bool) -> None:
    layer = tg.LSTM(3, 4, batch_first=batch_first)
    x = np.zeros((5, 2, 3) if batch_first else (2, 5, 3), np.float32)  # T 2, N 5
    hint = f"; if x is .*, the layer needs batch_first={not batch_first}"
    states = np.zeros((2, 1, 2, 4), np.float32)
    with pytest.raises(ValueError, match=rf"^state\[0\]: got shape \(1, 2, 4\), wanted .*{hint}"):
        layer(x, (states[0], states[1]))
    with pytest.raises(ValueError, match=rf"^lengths: got shape \(2,\), wanted .*{hint}"):
        layer(x, lengths=[1, 1])
    with pytest.raises(ValueError, match=r"^lengths: got shape \(3,\), wanted \(5,\)$"):
        layer(x, lengths=[1, 1, 1])


def test_no_lengths_for_no_rows():
    layer = make("gru")
    y, _ = layer(np.zeros((T, 0, layer.input_size), np.float32), lengths=[])
    assert y.shape == (T, 0, layer.hidden_size)


@pytest.mark.parametrize("length", [4, np.int8(4), np.uint64(4), np.array(4), np.array(4, ">i2")])
def test_unbatched_length(length, rng):
    layer = make("lstm-stacked-bidirectional")
    x = random_x(layer, rng)[:, 0]
    assert_same_bits(layer(x, lengths=length)[0], layer(x, lengths=4)[0])
    assert not layer(x, lengths=length)[0][4:].any()


@every_case
@every_dtype
@pytest.mark.parametrize("shape", [(0, N), (T, 0), (10**12, 0), (0, 0)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_no_steps_or_no_rows(case, dtype, shape, batch_first, rng):
    steps, batch = shape
    layer = make(case, dtype=dtype, batch_first=batch_first)
    x = np.zeros((batch, steps, INPUT_SIZE) if batch_first else (steps, batch, INPUT_SIZE), dtype)
    state, dstate = random_state(layer, batch, rng), random_state(layer, batch, rng)
    reset = np.zeros(x.shape[:2], bool)
    y, state_n, tape = layer.forward(x, state, np.zeros(batch, int), reset)
    assert y.shape == (*x.shape[:2], output_size(layer))
    assert_same_bits(state_n, state)
    assert_same_bits(layer(x, state)[1], state)
    grads = layer.backward(tape, np.ones_like(y), dstate)
    assert grads.x.shape == x.shape
    assert_same_bits(grads.state, dstate)
    assert not grads.params.flat.any()
    assert all(v.shape == (steps, batch, layer.hidden_size) for v in tape.gates().values())


@every_case
def test_a_row_of_length_zero_keeps_its_state(isa, case, rng):
    layer = make(case)
    x, state = random_x(layer, rng), random_state(layer, N, rng)
    y, state_n = layer(x, state, lengths=LENGTHS)
    assert not y[:, 1].any()
    assert not y[4:, 2].any()
    for before, after in zip(parts(state), parts(state_n)):
        assert_same_bits(after[:, 1].copy(), before[:, 1].copy())


# ---- out -----------------------------------------------------------------------------------------


@every_case
@every_dtype
@pytest.mark.parametrize("batch_first", [False, True])
def test_out_is_filled_and_returned(case, dtype, batch_first, rng):
    layer = make(case, dtype=dtype, batch_first=batch_first)
    x = random_x(layer, rng)
    x = swap(x) if batch_first else x
    expected, _ = layer(x, lengths=LENGTHS)
    out = np.full_like(expected, np.nan)
    y, _ = layer(x, lengths=LENGTHS, out=out)
    assert y is out
    assert_same_bits(out, expected)

    room = np.full((expected.shape[0] + 1, 2 * expected.shape[1], expected.shape[2] + 5), 7, dtype)
    window = room[:-1, ::-2, 2:-3]
    assert layer(x, lengths=LENGTHS, out=window)[0] is window
    assert_same_bits(window.copy(), expected)
    window[...] = 7
    assert (room == 7).all()


def test_out_may_lie_between_the_inputs_elements():
    layer = make("gru")
    room = np.zeros((T, N, INPUT_SIZE + layer.hidden_size), np.float32)
    x, out = room[..., :INPUT_SIZE], room[..., INPUT_SIZE:]
    x[...] = np.linspace(-1, 1, x.size).reshape(x.shape)
    expected, _ = layer(x.copy())
    layer(x, out=out)
    assert_same_bits(out.copy(), expected)


# ---- Parameters ----------------------------------------------------------------------------------


def test_names_and_shapes_are_pytorchs():
    lstm = tg.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, peephole=True)
    expected = {}
    for suffix, size in [("_l0", 3), ("_l0_reverse", 3), ("_l1", 4), ("_l1_reverse", 4)]:
        expected[f"weight_ih{suffix}"] = (16, size)
        expected[f"weight_hh{suffix}"] = (16, 2)
        expected[f"bias_ih{suffix}"] = (16,)
        expected[f"bias_hh{suffix}"] = (16,)
        expected[f"weight_hr{suffix}"] = (2, 4)
        expected[f"weight_peephole{suffix}"] = (12,)
    assert {name: array.shape for name, array in lstm.params.items()} == expected
    assert list(lstm.params) == list(expected)
    assert list(tg.GRU(3, 4, bias=False).params) == ["weight_ih_l0", "weight_hh_l0"]
    assert {name: array.shape for name, array in tg.MGU(3, 4).params.items()} == {
        "weight_ih_l0": (8, 3),
        "weight_hh_l0": (8, 4),
        "bias_ih_l0": (8,),
        "bias_hh_l0": (8,),
    }


@every_case
def test_seed(case):
    a, b = make(case, seed=5, dtype=np.float64), make(case, seed=5, dtype=np.float64)
    assert_same_bits(a.params.flat, b.params.flat)
    assert_same_bits(make(case, seed=5).params.flat, a.params.flat.astype(np.float32))
    generator = np.random.default_rng(5)
    assert_same_bits(make(case, seed=generator, dtype=np.float64).params.flat, a.params.flat)
    assert make(case, seed=6).params.flat.tobytes() != make(case, seed=5).params.flat.tobytes()
    drawn = [make(case, seed=None).params.flat.tobytes() for _ in range(2)]
    assert drawn[0] != drawn[1]
    # As documented: parameter by parameter, in order, from U(-1/sqrt(H), 1/sqrt(H)).
    generator = np.random.default_rng(5)
    bound = 1 / math.sqrt(a.hidden_size)
    for array in a.params.values():
        assert_same_bits(array, generator.uniform(-bound, bound, array.shape))


def ways_to_write(layer, flat):
    twin = type(layer).__new__(type(layer))
    twin.__setstate__(layer.__getstate__())
    twin.params.flat = flat
    arrays = twin.state_dict()

    def by_name():
        for name, array in arrays.items():
            layer.params[name] = array

    def by_flat():
        layer.params.flat = flat

    def by_update():
        with layer.params.update() as vector:
            vector[...] = flat

    def by_state_dict():
        layer.load_state_dict(arrays)

    return [by_name, by_flat, by_update, by_state_dict]


@every_case
@pytest.mark.parametrize("way", range(4))
def test_new_parameters_count_from_the_next_call(case, way, rng):
    layer = make(case)
    x = random_x(layer, rng)
    layer(x)
    flat = make(case, seed=99).params.flat
    view, whole = layer.params["weight_hh_l0"], layer.params.flat
    ways_to_write(layer, flat)[way]()
    assert_same_bits(layer.params.flat, flat)
    assert_same_bits(whole, flat)
    assert_same_bits(view, layer.params["weight_hh_l0"])
    assert_same_bits(layer(x)[0], make(case, seed=99)(x)[0])
    assert_same_bits(layer.forward(x)[0], make(case, seed=99)(x)[0])


def test_parameters_cannot_be_written_behind_the_layers_back():
    layer = make("lstm")
    for view in [layer.params.flat, layer.params["weight_ih_l0"]]:
        with pytest.raises(ValueError, match=r"read-only"):
            view[...] = 0
        with pytest.raises(ValueError, match=r"WRITEABLE"):
            view.flags.writeable = True
    with pytest.raises(AttributeError):
        layer.params = {}


def test_views_of_the_parameters_outlive_the_layer():
    layer = make("lstm")
    expected = layer.params.flat.copy()
    view, name = layer.params.flat, layer.params["bias_hh_l0"]
    del layer
    gc.collect()
    assert_same_bits(view, expected)
    assert name.base is not None


@every_case
def test_astype(case, rng):
    layer = make(case, dropout=0.25) if CASES[case][2] > 1 else make(case)
    double = layer.astype(np.float64)
    assert type(double) is type(layer)
    assert double.dtype == np.float64
    assert double.dropout == layer.dropout
    assert_same_bits(double.params.flat, layer.params.flat.astype(np.float64))
    back = double.astype("float32")
    assert_same_bits(back.params.flat, layer.params.flat)
    x = random_x(layer, rng)
    assert_same_bits(back(x)[0], layer(x)[0])
    back.params.flat = np.zeros_like(back.params.flat)
    assert layer.params.flat.any()
    assert double.params.flat.any()


def test_attributes_are_the_arguments_and_fixed():
    lstm = tg.LSTM(3, 4, 2, bias=False, batch_first=True, dropout=0.5, proj_size=2, peephole=True)
    gru = tg.GRU(3, 4, reset_after=False, update_gate="write", reverse=True, dtype=np.float64)
    mgu = tg.MGU(3, 4, activation="relu", clip=2, seed=0)
    for layer in [lstm, gru, mgu]:
        names = set(inspect.signature(type(layer)).parameters) - {"seed"}
        for name in names:
            value = getattr(layer, name)
            with pytest.raises(AttributeError):
                setattr(layer, name, value)
    assert (lstm.input_size, lstm.hidden_size, lstm.num_layers) == (3, 4, 2)
    assert (lstm.bias, lstm.batch_first, lstm.bidirectional, lstm.reverse) == (
        False,
        True,
        False,
        False,
    )
    assert (lstm.dropout, lstm.proj_size, lstm.peephole, lstm.dtype) == (0.5, 2, True, np.float32)
    assert (gru.reset_after, gru.update_gate, gru.reverse) == (False, "write", True)
    assert (mgu.activation, mgu.recurrent_activation, mgu.clip) == ("relu", "sigmoid", 2)
    assert gru.dtype == np.float64


def test_repr():
    assert repr(tg.LSTM(3, 4)) == "LSTM(3, 4)"
    options = {"dropout": 0.5, "bidirectional": True, "proj_size": 2, "peephole": True}
    lstm = tg.LSTM(3, 4, 2, bias=False, batch_first=True, **options)
    assert repr(lstm) == (
        "LSTM(3, 4, num_layers=2, bias=False, bidirectional=True, proj_size=2, peephole=True, "
        "batch_first=True, dropout=0.5)"
    )
    gru = tg.GRU(3, 4, reset_after=False, update_gate="write", reverse=True, dtype=np.float64)
    assert repr(gru) == (
        "GRU(3, 4, reset_after=False, update_gate='write', reverse=True, dtype=float64)"
    )

    assert repr(tg.MGU(3, 4, 2, batch_first=True)) == "MGU(3, 4, num_layers=2, batch_first=True)"
    _, _, tape = tg.MGU(3, 4).forward(np.zeros((5, 2, 3), np.float32))
    assert repr(tape) == "<Tape of an MGU(3, 4): 5 steps, batch 2, float32>"

    class Mine(tg.GRU):
        pass

    assert repr(Mine(1, 2)) == "Mine(1, 2)"


def test_sizes_may_be_numpy_integers():
    layer = tg.LSTM(np.int64(3), np.uint8(4), np.array(2), bias=np.True_)
    assert repr(layer) == "LSTM(3, 4, num_layers=2)"


# ---- Tapes ---------------------------------------------------------------------------------------


@every_case
@every_dtype
def test_a_tape_outlives_everything_and_serves_many_times(isa, case, dtype, rng):
    layer, other = make(case, dtype=dtype), make(case, dtype=dtype, seed=50)
    x, state, reset = random_x(layer, rng), random_state(layer, N, rng), random_reset(rng)
    dy, dstate = random_dy(layer, rng), random_state(layer, N, rng)
    lengths = LENGTHS.copy()
    y, state_n, tape = layer.forward(x, state, lengths, reset)
    expected = layer.backward(tape, dy, dstate)
    expected_gates = tape.gates()

    for array in [x, y, *parts(state), *parts(state_n), lengths]:
        array[...] = 3
    reset[...] = ~reset
    layer.params.flat = np.full_like(layer.params.flat, np.nan)
    del layer
    gc.collect()
    for _ in range(2):
        grads = other.backward(tape, dy, dstate)
        assert_same_bits(grads.x, expected.x)
        assert_same_bits(grads.state, expected.state)
        assert_same_bits(grads.params.flat, expected.params.flat)
    for name, values in tape.gates().items():
        assert_same_bits(values, expected_gates[name])


@every_case
def test_gradients_not_given_are_zeros(case, rng):
    layer = make(case)
    y, _, tape = layer.forward(random_x(layer, rng), random_state(layer, N, rng))
    dy, dstate = random_dy(layer, rng), random_state(layer, N, rng)
    zeros = map_state(np.zeros_like, dstate)

    def same(a, b):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.params.flat, b.params.flat)
        for left, right in zip(parts(a.state), parts(b.state)):
            np.testing.assert_array_equal(left, right)

    same(layer.backward(tape, dy), layer.backward(tape, dy, zeros))
    same(layer.backward(tape, dstate=dstate), layer.backward(tape, np.zeros_like(y), dstate))
    if is_lstm(layer):
        h, c = dstate
        same(layer.backward(tape, dy, (h, None)), layer.backward(tape, dy, (h, zeros[1])))
        same(layer.backward(tape, dy, (None, c)), layer.backward(tape, dy, (zeros[0], c)))
    with pytest.raises(ValueError, match=r"^dy: got None"):
        layer.backward(tape)


@every_case
def test_gradients_have_the_parameters_names(case, rng):
    layer = make(case)
    _, _, tape = layer.forward(random_x(layer, rng))
    grads = layer.backward(tape, random_dy(layer, rng))
    assert isinstance(grads.params, tg.Gradients)
    assert grads.params.flat.shape == layer.params.flat.shape
    assert {n: g.shape for n, g in grads.params.items()} == {
        n: p.shape for n, p in layer.params.items()
    }
    grads.params["weight_ih_l0"][...] = 1
    assert (grads.params.flat[: layer.params["weight_ih_l0"].size] == 1).all()


@every_case
@pytest.mark.parametrize("batch_first", [False, True])
def test_gates(isa, case, batch_first, rng):
    layer = make(case, batch_first=batch_first, dtype=np.float64)
    x = random_x(layer, rng)
    y, _, tape = layer.forward(swap(x) if batch_first else x, lengths=LENGTHS)
    assert (tape.steps, tape.batch, tape.dtype) == (T, N, np.float64)
    directions = [False, True] if layer.bidirectional else [False]
    for index in range(layer.num_layers):
        for reverse in directions:
            gates = tape.gates(layer=index, reverse=reverse)
            shown = {tg.LSTM: "ifgoc", tg.GRU: "rznh", tg.MGU: "fnh"}
            assert list(gates) == list(shown[type(layer)])
            for name, values in gates.items():
                assert values.shape == (T, N, layer.hidden_size)
                assert values.dtype == layer.dtype
                assert not values[:, 1].any()
                assert not values[4:, 2].any()
                if name in "ifgornz":
                    assert (np.abs(values[:4]) <= 1).all()
    if is_lstm(layer) and not layer.proj_size and not layer.bidirectional:
        last = tape.gates(layer.num_layers - 1)
        shown = swap(y) if batch_first else y
        np.testing.assert_allclose(last["o"] * np.tanh(last["c"]), shown, rtol=1e-12, atol=1e-300)
    if not is_lstm(layer) and not layer.bidirectional:
        assert_same_bits(tape.gates(layer.num_layers - 1)["h"], swap(y) if batch_first else y)


@pytest.mark.parametrize("update_gate", ["carry", "write"])
def test_the_update_gate_is_shown_as_the_layer_defines_it(update_gate, rng):
    layer = tg.GRU(3, 4, update_gate=update_gate, dtype=np.float64, seed=0)
    x = rng.standard_normal((T, N, 3))
    y, _, tape = layer.forward(x)
    g = tape.gates()
    h = np.concatenate([np.zeros((1, N, 4)), y[:-1]])
    kept = g["z"] if update_gate == "carry" else 1 - g["z"]
    np.testing.assert_allclose(kept * h + (1 - kept) * g["n"], y, rtol=1e-12)


# ---- Dropout -------------------------------------------------------------------------------------


def forward_with_dropout(layer, x, seed=3):
    return layer.forward(x, rng=np.random.default_rng(seed))


@pytest.mark.parametrize(
    "case", ["lstm-everything", "gru-reset-before", "mgu-stacked-bidirectional"]
)
def test_dropout_is_the_references_with_the_documented_draws(isa, case, rng):
    p = 0.4
    layer = make(case, dropout=p, dtype=np.float64)
    x, dy = random_x(layer, rng), random_dy(layer, rng)
    y, state, tape = forward_with_dropout(layer, x)
    grads = layer.backward(tape, dy)
    shape = (layer.num_layers - 1, T, N, output_size(layer))
    kept = np.random.default_rng(3).random(shape, np.float32) >= p
    twin = reference.from_layer(layer)
    y_ref, state_ref, tape_ref = twin.forward(layer.params, x, dropout_scale=kept / (1 - p))
    grads_ref = twin.backward(tape_ref, dy)
    np.testing.assert_allclose(y, y_ref, rtol=1e-10, atol=1e-12)
    for a, b in zip(parts(state), parts(state_ref)):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    for name in layer.params:
        np.testing.assert_allclose(
            grads.params[name], grads_ref.params[name], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("case", ["lstm-everything", "gru-reset-before"])
def test_dropout_of_one_leaves_zeros_between_layers(case, rng):
    layer = make(case, dropout=1.0)
    x = random_x(layer, rng)
    y, _, tape = forward_with_dropout(layer, x)
    other, _, _ = forward_with_dropout(layer, random_x(layer, rng))
    assert_same_bits(y, other)  # the second layer sees zeros alone
    assert np.isfinite(y).all()
    grads = layer.backward(tape, random_dy(layer, rng))
    assert not grads.x.any()
    assert not grads.params["weight_ih_l0"].any()
    assert not grads.params["weight_ih_l1"].any()
    assert grads.params["weight_hh_l1"].any()
    assert np.isfinite(grads.params.flat).all()


def test_dropout_draws_the_same_in_every_layout_and_dtype(rng):
    single, double = make("gru-reset-before", dropout=0.5), make("gru-reset-before", dropout=0.5)
    batch_first = make("gru-reset-before", dropout=0.5, batch_first=True)
    double = double.astype(np.float64)
    x = random_x(single, rng)
    y, _, _ = forward_with_dropout(single, x)
    assert_same_bits(swap(forward_with_dropout(batch_first, swap(x))[0]), y)
    np.testing.assert_allclose(forward_with_dropout(double, x.astype(float))[0], y, atol=1e-5)
    assert_same_bits(forward_with_dropout(single, x)[0], y)
    assert forward_with_dropout(single, x, seed=4)[0].tobytes() != y.tobytes()


def test_inference_does_not_drop(rng):
    plain, dropping = make("gru-reset-before"), make("gru-reset-before", dropout=0.5)
    x = random_x(plain, rng)
    assert_same_bits(dropping(x)[0], plain(x)[0])


def test_dropout_without_a_layer_to_drop_from(rng):
    with pytest.warns(UserWarning, match=r"^dropout: .*num_layers=1") as caught:
        layer = tg.LSTM(5, 4, dropout=0.5, seed=0)
    assert caught[0].filename == __file__
    x = random_x(layer, rng)
    y, _, _ = forward_with_dropout(layer, x)
    assert_same_bits(y, layer(x)[0])
    layer.astype(np.float64)  # says nothing again


def test_a_wrong_call_draws_nothing(rng):
    layer = make("gru-reset-before", dropout=0.5)
    x = random_x(layer, rng)
    state = rng.bit_generator.state
    for arguments in [(x[..., 1:],), (x, x), (x, None, LENGTHS + 1), (x, None, None, x)]:
        with pytest.raises((TypeError, ValueError)):
            layer.forward(*arguments, rng=rng)
        assert rng.bit_generator.state == state


# ---- Threads -------------------------------------------------------------------------------------


def test_other_threads_run_meanwhile(rng):
    layer = tg.GRU(64, 256, seed=0)
    x = rng.standard_normal((200, 16, 64)).astype(np.float32)
    y, _, tape = layer.forward(x)
    for work in [
        lambda: layer(x, num_threads=1),
        lambda: layer.forward(x, num_threads=1),
        lambda: layer.backward(tape, y, num_threads=1),
    ]:
        thread = threading.Thread(target=work)
        thread.start()
        turns = 0
        while thread.is_alive():
            turns += 1
            time.sleep(1e-4)
        assert turns > 5


@pytest.mark.parametrize("num_threads", [1, 2, np.int64(3), 1000])
def test_num_threads(num_threads, rng):
    layer = make("lstm-everything")
    x = random_x(layer, rng)
    assert_same_bits(layer(x, num_threads=num_threads)[0], layer(x)[0])
    y, _, tape = layer.forward(x, num_threads=num_threads)
    layer.backward(tape, np.ones_like(y), num_threads=num_threads)
