"""Wrong arguments: an error that names the argument, before anything is written; never a crash."""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import tidegate as tg
from layer_cases import (
    CASES,
    INPUT_SIZE,
    STREAMABLE,
    assert_same_bits,
    is_lstm,
    make,
    output_size,
    random_state,
)
from tidegate import _core
from tidegate.layers import CELLS, RecurrentLayer

quick = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)

# ---- A good call, of which one argument is then spoilt -------------------------------------------


def good_call(kind: str, case: str, dtype: Any, layout: str, steps: int, batch: int):
    """A layer or stream and the arguments of a call that would succeed."""
    rng = np.random.default_rng(0)
    layer = make(case, dtype=dtype, batch_first=layout == "batch_first")
    width = output_size(layer)

    def sequence(features):
        if layout == "unbatched":
            shape = (steps, features)
        elif layout == "batch_first":
            shape = (batch, steps, features)
        else:
            shape = (steps, batch, features)
        return rng.standard_normal(shape).astype(dtype)

    def state():
        value = random_state(layer, batch if layout != "unbatched" else 1, rng)
        if layout != "unbatched":
            return value
        return tuple(v[:, 0] for v in value) if isinstance(value, tuple) else value[:, 0]

    if kind in ("step", "run"):
        shape = (steps, batch) if kind == "run" else (batch,)
        x = rng.standard_normal((*shape, INPUT_SIZE)).astype(dtype)
        return layer.stream(batch), {"x": x, "out": np.full((*shape, width), 7, dtype)}
    x = sequence(INPUT_SIZE)
    if kind == "backward":
        _, _, tape = layer.forward(x)
        return layer, {"tape": tape, "dy": sequence(width), "dstate": state(), "num_threads": 1}
    lengths = 1 if layout == "unbatched" else rng.integers(0, steps + 1, batch)
    arguments = {
        "x": x,
        "state": state(),
        "lengths": lengths,
        "reset": rng.random(x.shape[:-1]) < 0.3,
        "num_threads": 1,
    }
    if kind == "call":
        arguments["out"] = np.full_like(sequence(width), 7)
    return layer, arguments


def call(kind: str, target: Any, arguments: dict[str, Any]) -> Any:
    function = target if kind == "call" else getattr(target, kind)
    return function(**arguments)


other_dtypes = st.sampled_from(
    ["f2", "i4", "i8", "c8", "O", "?", "u1", ">f4", ">f8", "f4", "f8", "g"]
)


@st.composite
def spoilt_array(draw, array: np.ndarray, writable: bool = False):
    """Something in the place of `array` that is wrong, and the error that it should raise."""
    ways = ["list", "scalar", "dtype", "shape", "ndim"]
    if writable:
        ways += ["read-only", "strides", "overlaps itself", "misaligned"]
    way = draw(st.sampled_from(ways))
    if way == "list":
        return array.tolist(), TypeError
    if way == "scalar":
        return draw(
            st.sampled_from([1.5, "x", b"x", 3, True, object(), {}, np.float32(1)])
        ), TypeError
    if way == "dtype":
        dtype = draw(other_dtypes.filter(lambda d: np.dtype(d) != array.dtype))
        return array.astype(dtype), TypeError
    if way == "shape":
        axis = draw(st.integers(0, array.ndim - 1))
        size = draw(st.integers(0, 9).filter(lambda n: n != array.shape[axis]))
        shape = list(array.shape)
        shape[axis] = size
        return np.zeros(shape, array.dtype), ValueError
    if way == "ndim":
        shapes = [(), array.shape[1:], (1, *array.shape), (*array.shape, 1), (2, 2, 2, 2, 2)]
        shape = draw(st.sampled_from([s for s in shapes if len(s) != array.ndim]))
        return np.zeros(shape, array.dtype), ValueError
    assume(array.size > 0)
    if way == "read-only":
        array.flags.writeable = False
        return array, ValueError
    if way == "misaligned":
        raw = np.full(array.nbytes + 1, 7, np.uint8)
        return raw[1:].view(array.dtype).reshape(array.shape), ValueError
    if way == "strides":
        assume(array.shape[-1] > 1)
        return np.full((*array.shape, 2), 7, array.dtype)[..., 0], ValueError
    axis = draw(st.integers(0, array.ndim - 2))
    assume(array.shape[axis] > 1)
    strides = list(array.strides)
    strides[axis] = draw(st.sampled_from([0, array.itemsize, -array.itemsize]))
    room = np.full(3 * array.size, 7, array.dtype)
    assume(array.shape[-1] > 1)
    start = room[array.size :]
    return np.lib.stride_tricks.as_strided(start, array.shape, strides), ValueError


@st.composite
def spoilt_state(draw, name: str, state: Any):
    if not isinstance(state, tuple):
        way = draw(st.sampled_from(["array", "pair"]))
        if way == "pair":
            return (state, state), TypeError, name
        return *draw(spoilt_array(state)), name
    way = draw(st.sampled_from(["no pair", "one", "three", "member"]))
    if way == "no pair":
        wrong = [state[0], np.stack([state[0], state[0]]), 3, {"h": 1, "c": 2}, "hc"]
        return draw(st.sampled_from(wrong)), TypeError, name
    if way == "one":
        return state[:1], ValueError, name
    if way == "three":
        return (*state, state[0]), ValueError, name
    index = draw(st.integers(0, 1))
    value, error = draw(spoilt_array(state[index]))
    spoilt = [value if i == index else part for i, part in enumerate(state)]
    return draw(st.sampled_from([tuple, list]))(spoilt), error, f"{name}[{index}]"


@st.composite
def spoilt_lengths(draw, lengths: Any, steps: int):
    too_much = [-1, steps + 1, 2**62, -(2**62)]
    if isinstance(lengths, int):
        number = st.sampled_from([*too_much, 2**64, np.int64(-5), np.array(steps + 1)])
        wrong = st.sampled_from(
            [1.0, "1", [1.0], True, np.float32(1), np.array(1.0), np.array(True)]
        )
        shape = st.sampled_from([np.array([1]), np.array([], int), [1]])
        return draw(
            st.one_of(
                number.map(lambda v: (v, ValueError)),
                wrong.map(lambda v: (v, TypeError)),
                shape.map(lambda v: (v, ValueError)),
            )
        )
    way = draw(st.sampled_from(["value", "kind", "int", "dtype", "shape"]))
    if way == "value":
        assume(lengths.size > 0)
        wrong = lengths.copy()
        wrong[draw(st.integers(0, lengths.size - 1))] = draw(st.sampled_from(too_much))
        if draw(st.booleans()):
            wrong = wrong.astype(np.uint64)
        return wrong, ValueError
    if way == "kind":
        values = lengths.tolist()
        wrong = [{}, set(values), str(values), [*values, 1.0], [*values, True], [values]]
        return draw(st.sampled_from(wrong)), TypeError
    if way == "int":
        return 1, TypeError
    if way == "dtype":
        return lengths.astype(
            draw(st.sampled_from(["f8", "f4", "?", "O", "U3", "m8[s]"]))
        ), TypeError
    shapes = [(), (lengths.size + 1,), (lengths.size, 1), (1, lengths.size)]
    return np.zeros(draw(st.sampled_from(shapes)), int), ValueError


@st.composite
def spoilt_reset(draw, reset: np.ndarray):
    way = draw(st.sampled_from(["list", "dtype", "shape", "ndim"]))
    if way == "list":
        return reset.tolist(), TypeError
    if way == "dtype":
        return reset.astype(draw(st.sampled_from(["u1", "i8", "f4", "O"]))), TypeError
    if way == "ndim":
        shape = draw(st.sampled_from([(), (*reset.shape, 1), (1, *reset.shape), (2, 2, 2, 2)]))
        return np.zeros(shape, bool), ValueError
    axis = draw(st.integers(0, reset.ndim - 1))
    shape = list(reset.shape)
    shape[axis] += draw(st.sampled_from([1, 2, 5]))
    return np.zeros(shape, bool), ValueError


wrong_num_threads = st.one_of(
    st.sampled_from([0, -1, 2**31, 2**80, -(2**80), np.int64(0)]).map(lambda v: (v, ValueError)),
    st.sampled_from([1.0, "1", True, [1], np.ones(2, int), np.float64(2)]).map(
        lambda v: (v, TypeError)
    ),
)


@quick
@given(st.data())
def test_one_wrong_argument(data):
    draw = data.draw
    kind = draw(st.sampled_from(["call", "forward", "backward", "step", "run"]))
    case = draw(st.sampled_from(STREAMABLE if kind in ("step", "run") else list(CASES)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    layout = draw(st.sampled_from(["time_major", "batch_first", "unbatched"]))
    steps, batch = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    target, arguments = good_call(kind, case, dtype, layout, steps, batch)
    names = sorted(set(arguments) - {"tape"})
    name = blamed = draw(st.sampled_from(names))
    value = arguments[name]
    if name in ("state", "dstate"):
        wrong, error, blamed = draw(spoilt_state(name, value))
    elif name == "lengths":
        wrong, error = draw(spoilt_lengths(value, steps))
    elif name == "reset":
        wrong, error = draw(spoilt_reset(value))
    elif name == "num_threads":
        wrong, error = draw(wrong_num_threads)
    else:
        wrong, error = draw(spoilt_array(value, writable=name == "out"))
        # A 2-D x is an unbatched one, a 3-D x a batch: then the others do not fit it.
        assume(
            not (
                name == "x"
                and isinstance(wrong, np.ndarray)
                and wrong.dtype == dtype
                and wrong.shape[-1:] == (INPUT_SIZE,)
                and wrong.ndim in (2, 3)
            )
        )
    arguments[name] = wrong
    out = arguments.get("out")
    before = out.tobytes() if isinstance(out, np.ndarray) else None

    with pytest.raises(error) as caught:
        call(kind, target, arguments)
    assert type(caught.value) is error
    # An element of a list is blamed by its index.
    assert str(caught.value).startswith((f"{blamed}: ", f"{blamed}[")), str(caught.value)
    if before is not None:
        assert out.tobytes() == before
    # It still works, and nothing of the wrong call is left in it.
    target, arguments_again = good_call(kind, case, dtype, layout, steps, batch)
    call(kind, target, arguments_again)


@pytest.mark.parametrize("batch_first", [False, True])
def test_shapes_of_x_are_told_as_the_layer_wants_them(batch_first):
    gru = tg.GRU(5, 4, batch_first=batch_first)
    x = np.zeros((3, 4), np.float32)
    axes = "N, T" if batch_first else "T, N"
    with pytest.raises(ValueError, match=r"^x: ") as caught:
        gru(x)
    assert str(caught.value) == f"x: got shape (3, 4), wanted ({axes}, 5) or unbatched (T, 5)"
    with pytest.raises(TypeError, match=r"^x: got dtype float64, wanted float32$"):
        gru(np.zeros((3, 4, 5)))
    with pytest.raises(TypeError, match=r"^x: got list, wanted an array of float32$"):
        gru([[1.0]])
    with pytest.raises(TypeError, match=r"^x: got dtype >f4, wanted float32$"):
        gru(np.zeros((3, 4, 5), ">f4"))


def test_a_wrong_x_leaves_out_untouched():
    gru = tg.GRU(5, 4)
    out = np.full((3, 4, 4), 7, np.float32)
    for x in [np.zeros((3, 5, 5), np.float32), np.zeros((3, 5), np.float32), np.zeros((3, 4, 6))]:
        with pytest.raises((TypeError, ValueError), match=r"^(x|out): "):
            gru(x, out=out)
    assert (out == 7).all()


# ---- Overlap -------------------------------------------------------------------------------------


@st.composite
def window(draw, shape: tuple[int, ...], room: int):
    """A view of that shape into a vector of `room` elements, with a contiguous last axis."""
    gaps = [draw(st.integers(0, 3)) for _ in shape[:-1]]
    strides = [1]
    reach = shape[-1]
    for size, gap in zip(reversed(shape[:-1]), gaps):
        strides.insert(0, reach + gap)
        reach = (size - 1) * strides[0] + reach
    flip = [draw(st.sampled_from([1, -1])) for _ in shape[:-1]]
    assume(reach <= room)
    offset = draw(st.integers(0, room - reach))

    def take(vector):
        view = np.lib.stride_tricks.as_strided(
            vector[offset:], shape, [s * vector.itemsize for s in strides]
        )
        return view[tuple(slice(None, None, f) for f in flip)]

    return take


@quick
@given(st.data())
def test_out_may_share_a_buffer_but_no_element(data):
    layer = make("gru")
    room = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    x = data.draw(window((3, 2, INPUT_SIZE), room.size))(room)
    h_0 = data.draw(window((1, 2, layer.hidden_size), room.size))(room)
    out = data.draw(window((3, 2, layer.hidden_size), room.size))(room)
    expected = layer(x.copy(), h_0.copy())
    before = room.copy()
    for name, array in [("x", x), ("state", h_0)]:
        if np.shares_memory(out, array):
            with pytest.raises(ValueError, match=rf"^out: overlaps {name} in memory$"):
                layer(x, h_0, out=out)
            assert_same_bits(room, before)
            return
    y, h_n = layer(x, h_0, out=out)
    assert_same_bits((y.copy(), h_n), expected)


def test_out_overlaps_masks_and_steps():
    layer = make("gru")
    out = np.zeros((3, 2, layer.hidden_size), np.float32)
    x = np.zeros((3, 2, INPUT_SIZE), np.float32)
    with pytest.raises(ValueError, match=r"^out: overlaps reset"):
        layer(x, reset=out.reshape(-1).view(bool)[:6].reshape(3, 2), out=out)
    with pytest.raises(ValueError, match=r"^out: overlaps lengths"):
        layer(x, lengths=out.reshape(-1).view(np.int64)[:2], out=out)
    lstm = make("lstm")
    h = np.zeros((1, 2, 7), np.float32)
    for state, name in [((out[:1], h), "state[0]"), ((h, out[1:2]), "state[1]")]:
        with pytest.raises(ValueError, match=rf"^out: overlaps {name[:5]}.{name[6]}.") as caught:
            lstm(x, state, out=out)
        assert name in str(caught.value)
    square = tg.GRU(4, 4, seed=0)
    room = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"^out: overlaps x"):
        square.stream(2).step(room, room)
    with pytest.raises(ValueError, match=r"^out: overlaps x"):
        square.stream().step(room[:1], out=room.reshape(-1)[2:6].reshape(1, 4))
    with pytest.raises(ValueError, match=r"^out: overlaps x"):
        square.stream(2).run(room[None], room[None])


# ---- Constructors --------------------------------------------------------------------------------

BAD_OPTIONS = [
    ("input_size", 0, ValueError),
    ("input_size", -3, ValueError),
    ("input_size", 2.0, TypeError),
    ("input_size", "3", TypeError),
    ("input_size", True, TypeError),
    ("input_size", None, TypeError),
    ("input_size", 2**63, ValueError),
    ("hidden_size", 0, ValueError),
    ("hidden_size", np.float32(4), TypeError),
    ("hidden_size", np.array([4, 4]), TypeError),
    ("num_layers", 0, ValueError),
    ("num_layers", 1.5, TypeError),
    ("bias", 1, TypeError),
    ("bias", "no", TypeError),
    ("batch_first", None, TypeError),
    ("bidirectional", "yes", TypeError),
    ("reverse", 0, TypeError),
    ("dropout", -0.1, ValueError),
    ("dropout", 1.1, ValueError),
    ("dropout", float("nan"), ValueError),
    ("dropout", "0.1", TypeError),
    ("dtype", np.int32, TypeError),
    ("dtype", np.float16, TypeError),
    ("dtype", ">f4", TypeError),
    ("dtype", "no such thing", TypeError),
    ("dtype", None, TypeError),
    ("seed", "a", TypeError),
    ("seed", 0.5, TypeError),
    ("seed", -1, ValueError),
]
BAD_LSTM_OPTIONS = [
    ("proj_size", -1, ValueError),
    ("proj_size", 4, ValueError),
    ("proj_size", 9, ValueError),
    ("proj_size", 1.0, TypeError),
    ("peephole", 1, TypeError),
]
BAD_GRU_OPTIONS = [
    ("reset_after", None, TypeError),
    ("update_gate", "keep", ValueError),
    ("update_gate", 3, TypeError),
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "error"),
    [(kind, *bad) for kind in (tg.LSTM, tg.GRU, tg.MGU) for bad in BAD_OPTIONS]
    + [(tg.LSTM, *bad) for bad in BAD_LSTM_OPTIONS]
    + [(tg.GRU, *bad) for bad in BAD_GRU_OPTIONS],
)
def test_wrong_options(kind, name, value, error):
    options = {"input_size": 3, "hidden_size": 4, name: value}
    with pytest.raises(error, match=rf"^{name}: "):
        kind(**options)


@pytest.mark.parametrize("kind", [tg.LSTM, tg.GRU, tg.MGU])
def test_options_that_exclude_each_other(kind):
    with pytest.raises(ValueError, match=r"^reverse: .*bidirectional"):
        kind(3, 4, bidirectional=True, reverse=True)


# The options that only some cells have: a value that is not the default, and the cells.
OPTIONS_OF_SOME_CELLS = {
    "proj_size": (2, {"LSTM"}),
    "peephole": (True, {"LSTM"}),
    "reset_after": (False, {"GRU"}),
    "update_gate": ("write", {"GRU"}),
    "output_activation": ("relu", {"LSTM"}),
    "input_forget": (True, {"LSTM"}),
}


def test_the_options_of_some_cells_are_all_tested():
    parameters = {name: set(inspect.signature(kind).parameters) for name, kind in CELLS.items()}
    some = set.union(*parameters.values()) - set.intersection(*parameters.values())
    assert some == set(OPTIONS_OF_SOME_CELLS)
    # An option of all cells would not be refused below.
    assert set(RecurrentLayer._OPTIONS) <= {"cell"} | set.union(*parameters.values())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("option", OPTIONS_OF_SOME_CELLS)
def test_options_of_other_cells(cell, option, tmp_path):
    value, cells = OPTIONS_OF_SOME_CELLS[option]
    config = {"cell": cell, "input_size": 3, "hidden_size": 4, option: value}
    if cell in cells:
        layer = CELLS[cell](3, 4, **{option: value})
        assert getattr(layer, option) == value
        assert getattr(_core.Config(**config), option) == value
        return
    assert not hasattr(CELLS[cell], option)
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{option}'"):
        CELLS[cell](3, 4, **{option: value})
    with pytest.raises(ValueError, match=rf"^{option}: an? {cell} has no such option; wanted "):
        _core.Config(**config)
    # And in files.
    layer = CELLS[cell](3, 4, seed=0)
    layer.save(tmp_path / "f")
    data = (tmp_path / "f").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = json.loads(header["__metadata__"]["tidegate.layer"]) | {option: value}
    header["__metadata__"]["tidegate.layer"] = json.dumps(text)
    changed = json.dumps(header).encode()
    (tmp_path / "f").write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + size :])
    message = rf'"{option}": an option that this version\'s {cell} does not have'
    with pytest.raises(ValueError, match=message):
        tg.load(tmp_path / "f")


def test_cells_that_there_are_not():
    wanted = r'^cell: got "{}", wanted one of "LSTM", "GRU", "MGU"$'
    for cell in ("RNN", "", "lstm"):
        with pytest.raises(ValueError, match=wanted.format(cell)):
            _core.Config(cell=cell, input_size=3, hidden_size=4)


@pytest.mark.parametrize(
    "sizes",
    [(1, 2**20), (2**40, 2**10), (2**62, 2**62), (1, 2**62), (2**32, 2**32)],
)
def test_parameters_that_no_memory_holds(sizes):
    input_size, hidden_size = sizes
    name, value = "hidden_size", hidden_size
    if input_size > hidden_size:
        name, value = "input_size", input_size
    with pytest.raises(MemoryError, match=rf"^{name}: got {value}, but .* bytes"):
        tg.GRU(*sizes)


def test_memory_errors_name_an_argument_and_the_bytes():
    with pytest.raises(MemoryError) as caught:
        tg.LSTM(10, 10**6)
    assert str(caught.value) == (
        "hidden_size: got 1000000, but the parameters would take 16000192000000 bytes "
        "(1.49e+04 GiB), more memory than the system provides"
    )
    layer = tg.LSTM(10, 16, seed=0)
    stream = layer.stream(2)
    with pytest.raises(MemoryError, match=r"^batch: got 1000000000000, but .* \d{13,} bytes "):
        layer.stream(10**12)
    with pytest.raises(MemoryError, match=r"^count: got 1000000000000, but .* \d{13,} bytes "):
        stream.grow(10**12)
    with pytest.raises(MemoryError, match=r"^count: got \d+, but .* more bytes than can be "):
        stream.grow(2**61)
    assert stream.batch == 2
    x = np.broadcast_to(np.zeros(10, np.float32), (10**11, 1, 10))
    for function in [layer, layer.forward, layer.stream().run]:
        with pytest.raises(MemoryError) as caught:
            function(x)
        assert str(caught.value) == (
            "y: an array of shape (100000000000, 1, 16) and float32 would take 6400000000000 bytes "
            "(5960 GiB), more memory than the system provides"
        )
    x = np.broadcast_to(np.float32(0), (10**11, 1, 10))  # whose last axis is not contiguous
    with pytest.raises(MemoryError, match=r"^a contiguous copy of .* take 4000000000000 bytes "):
        layer(x)


# ---- Sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2**58, 2**50, 2**44])
@pytest.mark.parametrize("hidden_size", [1, 64])
def test_results_that_no_memory_holds(steps, hidden_size):
    layer = tg.LSTM(1, hidden_size, 2, bidirectional=True)
    x = np.broadcast_to(np.float32(0), (steps, 1, 1))
    for function in [layer, layer.forward, tg.LSTM(1, hidden_size).stream().run]:
        with pytest.raises(MemoryError, match=r"^[xy]: .* bytes|^a contiguous copy of .* bytes"):
            function(x)


# ---- Tapes, rng, parameters ----------------------------------------------------------------------


def test_wrong_tapes():
    layer = tg.GRU(5, 4, seed=0)
    x = np.zeros((3, 2, 5), np.float32)
    _, _, tape = layer.forward(x)
    for wrong in [None, "tape", layer, 3, x]:
        with pytest.raises(TypeError, match=r"^tape: "):
            layer.backward(wrong)
    for other in [tg.GRU(5, 3), tg.GRU(4, 4), tg.LSTM(5, 4), tg.GRU(5, 4, update_gate="write")]:
        with pytest.raises(ValueError, match=r"^tape: got one from GRU\(5, 4\), wanted "):
            other.backward(tape)
    with pytest.raises(TypeError, match=r"^tape: got dtype float32, wanted float64"):
        layer.astype(np.float64).backward(tape)
    for wrong in [(1, False), (-1, False)]:
        with pytest.raises(ValueError, match=r"^layer: "):
            tape.gates(*wrong)
    for wrong in [1.0, "0", True, None, np.zeros(2, int)]:
        with pytest.raises(TypeError, match=r"^layer: "):
            tape.gates(wrong)
    for wrong in [0, "no", None]:
        with pytest.raises(TypeError, match=r"^reverse: "):
            tape.gates(0, wrong)
    with pytest.raises(ValueError, match=r"^reverse: "):
        tape.gates(0, True)


@pytest.mark.parametrize("case", ["gru", "lstm"])
def test_backward_needs_a_gradient(case):
    layer = make(case)
    y, _, tape = layer.forward(np.zeros((3, 2, INPUT_SIZE), np.float32))
    nothing = [None] if case == "gru" else [None, (None, None), [None, None]]
    for dstate in nothing:
        with pytest.raises(ValueError, match=r"^dy: got None, and no dstate; wanted "):
            layer.backward(tape, None, dstate)
    layer.backward(tape, y)
    layer.backward(tape, dstate=random_state(layer, 2, np.random.default_rng(0)))


def test_dropout_needs_a_generator():
    layer = tg.GRU(5, 4, 2, dropout=0.5)
    x = np.zeros((3, 2, 5), np.float32)
    with pytest.raises(ValueError, match=r"^rng: "):
        layer.forward(x)
    for wrong in [3, np.random.RandomState(3), "rng"]:
        with pytest.raises(TypeError, match=r"^rng: "):
            layer.forward(x, rng=wrong)
    with pytest.raises(TypeError, match=r"^rng: "):
        tg.GRU(5, 4).forward(x, rng=3)


def test_wrong_parameters():
    layer = tg.GRU(5, 4, seed=0)
    before = layer.params.flat.copy()
    with pytest.raises(KeyError, match=r"weight_ih_l0"):
        layer.params["weight_ih"] = np.zeros((12, 5), np.float32)
    with pytest.raises(ValueError, match=r"^weight_ih_l0: .*\(5, 12\).*\(12, 5\)"):
        layer.params["weight_ih_l0"] = np.zeros((5, 12), np.float32)
    with pytest.raises(TypeError, match=r"^weight_ih_l0: .*float64"):
        layer.params["weight_ih_l0"] = np.zeros((12, 5))
    with pytest.raises(ValueError, match=r"^flat: "):
        layer.params.flat = before[1:]
    wrong = layer.state_dict()
    wrong["bias"] = wrong.pop("bias_ih_l0")
    wrong["weight_hh_l0"] = wrong["weight_hh_l0"].T
    with pytest.raises(ValueError, match=r"state_dict: ") as caught:
        layer.load_state_dict(wrong)
    for word in ["bias_ih_l0", "'bias'", "weight_hh_l0", "(12, 4)", "(4, 12)"]:
        assert word in str(caught.value)
    assert_same_bits(layer.params.flat, before)


def test_the_core_checks_what_the_package_would_not_pass():
    model = tg.GRU(5, 4, seed=0)._model
    values = np.zeros(3, np.float32)
    for offset in [-1, model.flat.size - 2, model.flat.size + 1, 2**62]:
        with pytest.raises(ValueError, match=r"^offset: "):
            model.write(offset, values)
    with pytest.raises(ValueError, match=r"^values: "):
        model.write(0, values[None])
    with pytest.raises(TypeError, match=r"^values: "):
        model.write(0, values.astype(float))
    x = np.zeros((3, 2, 5), np.float32)
    for draw, error in [(lambda _: None, TypeError), (lambda _: values, ValueError)]:
        with pytest.raises(error, match=r"^dropout_scale: "):
            model.record(x, None, None, None, draw, None)
    with pytest.raises(ZeroDivisionError):
        model.record(x, None, None, None, lambda _: 1 // 0, None)


@quick
@given(st.sampled_from(list(CASES)), st.data())
def test_random_shapes_never_crash(case, data):
    """Whatever the shapes: a result of the right shape, or an error that names an argument."""
    layer = make(case)
    sizes = st.sampled_from([0, 1, 2, 3, INPUT_SIZE, layer.hidden_size])
    shapes = st.lists(sizes, min_size=0, max_size=4).map(tuple)

    def array():
        return np.ones(data.draw(shapes), np.float32)

    x, state = array(), data.draw(st.sampled_from([None, "random"]))
    if state is not None:
        state = (array(), array()) if is_lstm(layer) else array()
    lengths = data.draw(st.sampled_from([None, np.array(1), np.array([1, 0]), np.array([2, 0, 1])]))
    reset = data.draw(st.sampled_from([None, np.zeros((2, 2), bool), np.zeros(3, bool)]))
    out = data.draw(st.sampled_from([None, array()]))
    try:
        y, _ = layer(x, state, lengths=lengths, reset=reset, out=out)
    except ValueError as error:
        blamed = str(error).split(":")[0].split("[")[0]
    else:
        blamed = ""
        assert y.shape == (*x.shape[:-1], output_size(layer))
    assert blamed in ["", "x", "state", "lengths", "reset", "out"]


# ---- Integers ------------------------------------------------------------------------------------


class Index:
    """An integer of the caller's own, whose __index__ may fail."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def integer_arguments():
    """Names -> functions of one integer argument of that name, for which 1 is right."""
    layer = make("gru")
    x = np.zeros((3, 2, INPUT_SIZE), np.float32)
    _, _, tape = tg.GRU(INPUT_SIZE, 4, 2).forward(x)
    stream = layer.stream(2)
    return {
        "num_threads": lambda n: layer(x, num_threads=n),
        "num_threads ": tg.set_num_threads,
        "lengths": lambda n: layer(x[:, 0], lengths=n),
        "rows": lambda n: stream.step(x[0, :1], rows=[n]),
        "rows ": lambda n: stream.get_state(rows=[n]),
        "count": stream.grow,
        "count ": layer.stream(20).shrink,
        "batch": layer.stream,
        "layer": tape.gates,
        "hidden_size": lambda n: tg.GRU(3, n),
        "in_features": lambda n: tg.Linear(n, 3),
    }


@pytest.mark.parametrize("name", list(integer_arguments()))
def test_integers(name):
    before = tg.get_num_threads()
    function, name = integer_arguments()[name], name.strip()
    try:
        for right in [1, np.int8(1), np.uint64(1), np.array(1), Index(1)]:
            function(right)
        for wrong in [
            1.0,
            "1",
            None,
            True,
            np.True_,
            np.float32(1),
            np.ones(1, int),
            np.array(1.0),
        ]:
            optional = name in ("num_threads", "lengths") and function is not tg.set_num_threads
            if wrong is None and optional:
                continue
            shape = name == "lengths" and np.ndim(wrong) > 0
            with pytest.raises(ValueError if shape else TypeError, match=rf"^{name}: "):
                function(wrong)
        for wrong in [2**63, -(2**63) - 1, 2**64, -1]:
            with pytest.raises(ValueError, match=rf"^{name}: "):
                function(wrong)
        for error in [ZeroDivisionError, TypeError, ValueError]:
            with pytest.raises(error, match=r"^of the caller's own$"):
                function(Index(error("of the caller's own")))
    finally:
        tg.set_num_threads(before)


# ---- Masked arrays -------------------------------------------------------------------------------


def test_masked_elements_are_refused():
    layer = make("gru")
    x = np.zeros((3, 2, INPUT_SIZE), np.float32)
    h = np.zeros((1, 2, layer.hidden_size), np.float32)
    y, _, tape = layer.forward(x)
    reset = np.zeros((3, 2), bool)
    stream = layer.stream(2)
    calls = {
        "x": (x, layer),
        "state": (h, lambda a: layer(x, a)),
        "lengths": (np.array([1, 2]), lambda a: layer(x, lengths=a)),
        "reset": (reset, lambda a: layer(x, reset=a)),
        "out": (y.copy(), lambda a: layer(x, out=a)),
        "dy": (y, lambda a: layer.backward(tape, a)),
        "dstate": (h, lambda a: layer.backward(tape, dstate=a)),
        "x ": (x[0], stream.step),
        "out ": (y[0].copy(), lambda a: stream.step(x[0], a)),
        "rows": (np.array([0, 1]), lambda a: stream.reset(a)),
        "x  ": (x, stream.run),
        "state ": (h, lambda a: stream.set_state(a)),
    }
    for name, (array, call) in calls.items():
        masked = np.ma.masked_array(array)
        call(masked)  # none of its elements is masked
        masked[0] = np.ma.masked
        with pytest.raises(ValueError, match=rf"^{name.strip()}: got a masked array"):
            call(masked)

        class Other(np.ndarray):
            pass

        call(array.view(Other))


# ---- Objects that were never made ----------------------------------------------------------------

BOUND_CLASSES = [value for value in vars(_core).values() if isinstance(value, type)]


@pytest.mark.parametrize("kind", BOUND_CLASSES, ids=lambda kind: kind.__name__)
def test_objects_before_init(kind):
    class Derived(kind):
        pass

    own = [name for name in vars(kind) if name not in ("__init__", "__module__", "__doc__")]
    own = [name for name in own if not name.startswith("_pybind11") and name != "__hash__"]
    assert own
    for made in (kind.__new__(kind), Derived.__new__(Derived)):
        for name in own:
            if isinstance(vars(kind)[name], property):
                with pytest.raises(TypeError, match=rf"^{kind.__name__}: __init__"):
                    getattr(made, name)
                continue
            # An operator without its operand is not implemented.
            for count in [1] if name == "__eq__" else range(8):
                with pytest.raises(TypeError):
                    getattr(made, name)(*[None] * count)
    with pytest.raises(TypeError):
        made.__init__()
    with pytest.raises(TypeError):  # its __init__ has failed
        getattr(made, own[0])(None)


def test_arguments_before_init():
    layer = make("gru")
    with pytest.raises(TypeError, match=r"^Tape: __init__"):
        layer.backward(tg.Tape.__new__(tg.Tape))
    with pytest.raises(TypeError, match=r"^Model: __init__"):
        _core.Stream(_core.Model.__new__(_core.Model), 1)
    with pytest.raises(TypeError, match=r"^Config: __init__"):
        _core.Model(_core.Config.__new__(_core.Config), np.dtype("f4"), False)
    with pytest.raises(TypeError, match=r"^Config: __init__"):
        _ = layer._config == _core.Config.__new__(_core.Config)

    class Early(tg.Stream):
        def __init__(self, layer):
            self.size = self.batch  # before super().__init__()
            super().__init__(layer)

    with pytest.raises(TypeError, match=r"^Early: __init__|^Stream: __init__"):
        Early(layer)


# ---- What help() and a prompt show ---------------------------------------------------------------


def test_signatures():
    stream = make("gru").stream()
    shown = {
        "step": "(x, out=None, rows=None)",
        "run": "(x, out=None, *, num_threads=None)",
        "reset": "(rows=None)",
        "get_state": "(rows=None)",
        "set_state": "(state, rows=None)",
        "grow": "(count=1)",
        "shrink": "(count=1)",
    }
    for name, wanted in shown.items():
        assert str(inspect.signature(getattr(stream, name))) == wanted
        of_class = str(inspect.signature(getattr(tg.Stream, name)))
        assert of_class in (wanted.replace("(", "(self, "), wanted.replace("(", "(self, /, "))
        doc = getattr(tg.Stream, name).__doc__
        assert doc
        assert not doc.startswith(name)
    assert str(inspect.signature(tg.Tape.gates)) == "(self, /, layer=0, reverse=False)"


def test_wrong_calls_of_methods():
    """As Python's own functions refuse them: shortly, without the values of the arguments."""
    layer = make("gru")
    x = np.zeros((3, 2, layer.input_size), np.float32)
    stream = layer.stream(2)
    _, _, tape = layer.forward(x)
    wrong = {
        "run() got an unexpected keyword argument 'lengths'": lambda: stream.run(x, lengths=[1, 2]),
        "run() missing the argument 'x'": lambda: stream.run(),
        "run() takes at most 2 positional arguments, but 3 were given": lambda: stream.run(
            x, None, 1
        ),
        "reset() got an unexpected keyword argument 'row'": lambda: stream.reset(row=[1]),
        "grow() got an unexpected keyword argument 'n'": lambda: stream.grow(n=1),
        "shrink() takes at most 1 positional argument, but 2 were given": lambda: stream.shrink(
            1, 2
        ),
        "get_state() got an unexpected keyword argument 'row'": lambda: stream.get_state(row=1),
        "set_state() missing the argument 'state'": lambda: stream.set_state(rows=[0]),
        "step() got multiple values for argument 'x'": lambda: stream.step(x[0], x=x[0]),
        "step() missing the argument 'x'": lambda: stream.step(out=x[0]),
        "gates() got an unexpected keyword argument 'level'": lambda: tape.gates(level=1),
        "gates() takes at most 2 positional arguments, but 3 were given": lambda: tape.gates(
            0, False, 1
        ),
    }
    for message, call in wrong.items():
        with pytest.raises(TypeError) as error:
            call()
        assert str(error.value) == message
    # Arguments in the other ways in which they may be given.
    assert stream.run(x=x, out=None, num_threads=1).shape == (3, 2, layer.hidden_size)
    stream.set_state(rows=[1], state=None)
    stream.grow(count=2)
    stream.shrink()
    assert stream.batch == 3


def test_reprs_are_short():
    lstm = tg.LSTM(5, 4, seed=0)
    y, _, tape = lstm.forward(np.zeros((3, 2, 5), np.float32))
    assert repr(tape) == "<Tape of an LSTM(5, 4): 3 steps, batch 2, float32>"
    assert repr(lstm.backward(tape, y)) == (
        "Grads(x: (3, 2, 5), state: (1, 2, 4), (1, 2, 4), params: 176 x float32)"
    )
