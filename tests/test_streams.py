"""Streams: the same bits as a whole call, states in and out, one thread at a time."""

from __future__ import annotations

import gc
import inspect
import threading
import tracemalloc

import numpy as np
import pytest

import tidegate as tg
from layer_cases import (
    CASES,
    FORMS_OF_INTEGERS,
    INPUT_SIZE,
    STREAMABLE,
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

T = 9

every_case = pytest.mark.parametrize("case", STREAMABLE)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
every_batch = pytest.mark.parametrize("batch", [1, 3, 8])


def random_x(layer, rng, batch, steps=T):
    return rng.standard_normal((steps, batch, INPUT_SIZE)).astype(layer.dtype)


@every_case
@every_dtype
@every_batch
def test_steps_are_one_whole_call_bit_for_bit(isa, case, dtype, batch, rng):
    layer = make(case, dtype=dtype)
    x, state = random_x(layer, rng, batch), random_state(layer, batch, rng)
    y, state_n = layer(x, state)
    stream = layer.stream(batch)
    stream.state = state
    steps = [stream.step(x_t) for x_t in x]
    assert_same_bits(np.stack(steps), y)
    assert_same_bits(stream.state, state_n)


@every_case
@every_dtype
@pytest.mark.parametrize("cuts", [[9], [4, 5], [1, 0, 7, 1]])
def test_chunks_are_one_whole_call_bit_for_bit(isa, case, dtype, cuts, rng):
    layer = make(case, dtype=dtype)
    x = random_x(layer, rng, 3)
    y, state_n = layer(x)
    stream = layer.stream(3)
    chunks = np.split(x, np.cumsum(cuts)[:-1])
    assert_same_bits(np.concatenate([stream.run(chunk) for chunk in chunks]), y)
    assert_same_bits(stream.state, state_n)


@every_case
def test_a_new_stream_starts_at_zero_and_reset_goes_back(case, rng):
    layer = make(case)
    x = random_x(layer, rng, 2)
    stream = layer.stream(2)
    assert [part.shape for part in parts(stream.state)] == state_shapes(layer, 2)
    assert not any(part.any() for part in parts(stream.state))
    first = stream.run(x)
    assert any(part.any() for part in parts(stream.state))
    stream.reset()
    assert not any(part.any() for part in parts(stream.state))
    assert_same_bits(stream.run(x), first)
    stream.state = None
    assert_same_bits(stream.run(x), first)


@every_case
def test_the_state_is_a_copy_both_ways(case, rng):
    layer = make(case)
    stream, other = layer.stream(2), layer.stream(2)
    x = random_x(layer, rng, 2)
    stream.run(x)
    state = stream.state
    kept = map_state(np.copy, state)
    other.state = state
    for part in parts(state):
        part[...] = np.nan
    assert_same_bits(stream.state, kept)
    assert_same_bits(other.state, kept)
    assert_same_bits(stream.run(x), other.run(x))


def test_a_state_of_any_strides(rng):
    layer = make("lstm-projected-no-bias")
    stream, state = layer.stream(2), random_state(layer, 2, rng)
    stream.state = [np.asfortranarray(part) for part in state]
    assert_same_bits(stream.state, state)
    stream.state = (state[0], None)
    assert_same_bits(stream.state, (state[0], np.zeros_like(state[1])))


@pytest.mark.parametrize("case", ["lstm", "gru", "mgu"])
def test_wrong_states(case, rng):
    layer = make(case)
    stream = layer.stream(2)
    stream.run(random_x(layer, rng, 2))
    kept = stream.state
    h = parts(kept)[0]
    wrong = [h[:, :1], h.astype(float), h[0], 3, "h", h.tolist()]
    for value in wrong if not is_lstm(layer) else [h, *((h, v) for v in wrong), (h,), (h, h, h)]:
        with pytest.raises((TypeError, ValueError), match=r"^state"):
            stream.state = value
    assert_same_bits(stream.state, kept)


@every_case
@every_dtype
def test_out(case, dtype, rng):
    layer = make(case, dtype=dtype)
    x = random_x(layer, rng, 3)
    y, _ = layer(x)
    stream, out = layer.stream(3), np.empty((3, output_size(layer)), dtype)
    for t in range(T):
        assert (stream.step(x[t], out=out) if t % 2 else stream.step(x[t], out)) is out
        assert_same_bits(out, y[t])
    stream.reset()
    whole = np.empty_like(y)
    assert stream.run(x, out=whole) is whole
    assert_same_bits(whole, y)


@every_dtype
def test_any_strides(dtype, rng):
    layer = make("gru", dtype=dtype)
    x = random_x(layer, rng, 3)
    y, _ = layer(x)
    width = output_size(layer)

    def windowed(array):
        room = np.zeros((2 * array.shape[0], array.shape[1] + 3), array.dtype)
        room[::-2, 1:-2] = array
        return room[::-2, 1:-2]

    raw = np.zeros(x[0].nbytes + 1, np.uint8)
    misaligned = raw[1:].view(dtype).reshape(x[0].shape)

    def shifted(array):
        misaligned[...] = array
        return misaligned

    for form in [windowed, np.asfortranarray, shifted, lambda a: np.repeat(a, 2, axis=1)[:, ::2]]:
        stream = layer.stream(3)
        room = np.full((6, width + 3), 7, dtype)
        out = room[::-2, 2:-1]
        for t in range(T):
            assert_same_bits(stream.step(form(x[t]), out=out).copy(), y[t])
        out[...] = 7
        assert (room == 7).all()
    stream = layer.stream(3)
    assert_same_bits(stream.run(x.transpose(2, 0, 1).copy().transpose(1, 2, 0)), y)


def test_batch_first_has_no_say(rng):
    layer, other = make("lstm"), make("lstm", batch_first=True)
    x = random_x(layer, rng, 2)
    assert_same_bits(other.stream(2).run(x), layer.stream(2).run(x))


@every_case
def test_new_parameters_count_from_the_next_step(isa, case, rng):
    layer, other = make(case), make(case, seed=7)
    x = random_x(layer, rng, 2, steps=4)
    stream, expected = layer.stream(2), make(case).stream(2)
    for t in range(2):
        assert_same_bits(stream.step(x[t]), expected.step(x[t]))
    layer.params.flat = other.params.flat
    after = other.stream(2)
    after.state = stream.state
    for t in range(2, 4):
        assert_same_bits(stream.step(x[t]), after.step(x[t]))
    layer.params.flat = make(case).params.flat
    expected.state = after.state
    assert_same_bits(stream.run(x), expected.run(x))


def test_streams_of_one_layer_are_independent_and_outlive_it(rng):
    layer = make("gru")
    x = random_x(layer, rng, 1)
    y, _ = layer(x)
    streams = [layer.stream() for _ in range(3)]
    del layer
    gc.collect()
    for t in range(T):
        for stream in streams[: 1 + t % 3]:
            stream.step(x[t])
    assert_same_bits(streams[0].step(x[0]), streams[0].layer(x[:1], streams[0].layer(x)[1])[0][0])
    assert_same_bits(streams[2].step(x[0]), streams[2].layer(x[[2, 5, 8, 0]])[0][-1])
    assert y.shape[0] == T


@every_case
@every_dtype
def test_picked_rows_step_as_they_would_among_all(isa, case, dtype, rng):
    layer = make(case, dtype=dtype)
    x = random_x(layer, rng, 5)
    y, state_n = layer(x)
    stream = layer.stream(5)
    taken = np.zeros(5, int)
    turns = [[3], np.arange(5), (4, 0), np.array([2, 1, 3], np.uint8), []]
    turn = 0
    while taken.min() < T:
        rows = np.array([row for row in turns[turn % len(turns)] if taken[row] < T], int)
        out = np.empty((len(rows), output_size(layer)), dtype) if turn % 2 else None
        given = rows if turn % 3 else rows.tolist()
        got = stream.step(x[taken[rows], rows], rows=given, out=out)
        assert out is None or got is out
        assert_same_bits(got, y[taken[rows], rows])
        taken[rows] += 1
        turn += 1
    assert_same_bits(stream.state, state_n)


@pytest.mark.parametrize("form", FORMS_OF_INTEGERS)
def test_rows_of_any_form(form, rng):
    layer = make("lstm")
    x = random_x(layer, rng, 4)
    picked = [2, 0]
    rows = integers_in_form(form, picked)
    stream, wanted = layer.stream(4), layer.stream(4)
    assert_same_bits(stream.step(x[0, picked], rows=rows), wanted.step(x[0, picked], rows=picked))
    for got, expected in zip(stream.get_state(rows), wanted.get_state(picked)):
        assert_same_bits(got, expected)
    stream.set_state(wanted.get_state([0, 2]), rows)
    wanted.set_state(wanted.get_state([0, 2]), picked)
    assert_same_bits(stream.state, wanted.state)
    stream.reset(rows)
    assert not any(part.any() for part in stream.state)


@pytest.mark.parametrize("form", ["array interface", "Series", "tensor"])
@pytest.mark.parametrize("values", [[0.0, 1.0], [True, False]], ids=["float", "bool"])
def test_rows_that_are_no_integers_in_any_form(form, values):
    stream = make("gru").stream(4)
    rows = integers_in_form(form, values)
    for call in (stream.reset, stream.get_state, lambda rows: stream.set_state(None, rows)):
        with pytest.raises(TypeError, match=r"^rows: got dtype \w+, wanted integers"):
            call(rows)


@every_case
def test_states_of_picked_rows(case, rng):
    layer = make(case)
    stream, state = layer.stream(4), random_state(layer, 4, rng)
    stream.state = state
    picked = [3, 1]
    assert_same_bits(
        map_state(np.ascontiguousarray, stream.get_state(picked)),
        map_state(lambda part: np.ascontiguousarray(part[:, picked]), state),
    )
    stream.reset(rows=[2])
    stream.set_state(map_state(lambda part: part[:, [0, 2]], state), rows=[1, 0])
    expected = map_state(lambda part: part[:, [2, 0, 0, 3]], state)
    for part in parts(expected):
        part[:, 2] = 0
    assert_same_bits(stream.state, map_state(np.ascontiguousarray, expected))
    stream.set_state(None, rows=[3])
    assert not any(part[:, 2:].any() for part in parts(stream.state))


@every_case
def test_rows_come_and_go(case, rng):
    layer = make(case)
    stream, state = layer.stream(2), random_state(layer, 2, rng)
    stream.state = state
    stream.grow(3)
    assert stream.batch == 5
    assert_same_bits(stream.get_state([0, 1]), state)
    assert not any(part.any() for part in parts(stream.get_state([2, 3, 4])))
    x = random_x(layer, rng, 5, 1)[0]
    y = layer(x[None], stream.state)[0][0]
    assert_same_bits(stream.step(x), y)
    kept = stream.get_state([0])
    stream.shrink(4)
    assert stream.batch == 1
    assert_same_bits(stream.state, kept)
    stream.shrink()
    assert stream.step(x[:0]).shape == (0, output_size(layer))
    stream.grow()
    assert not any(part.any() for part in parts(stream.state))


def test_what_a_stream_is():
    layer = make("lstm-projected-no-bias", dtype=np.float64)
    stream = layer.stream(4)
    assert isinstance(stream, tg.Stream)
    assert stream.layer is layer
    assert stream.batch == 4
    assert stream.dtype == np.float64
    assert repr(stream) == f"Stream({layer!r}, batch=4)"
    assert str(inspect.signature(stream.step)) == "(x, out=None, rows=None)"
    assert tg.Stream.step.__doc__.startswith("Takes one step.")


# ---- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [name for name in CASES if name not in STREAMABLE])
def test_layers_that_would_need_the_future_are_refused(case):
    layer = make(case)
    with pytest.raises(ValueError, match=r"bidirectional" if layer.bidirectional else "reverse"):
        layer.stream()


@pytest.mark.parametrize(
    ("batch", "error"), [(-1, ValueError), (2**63, ValueError), (1.0, TypeError), (None, TypeError)]
)
def test_wrong_batch(batch, error):
    with pytest.raises(error, match=r"^batch: "):
        make("gru").stream(batch)


def test_wrong_layer():
    for layer in [None, 3, tg.Linear(2, 3), make("gru").stream()]:
        with pytest.raises(TypeError, match=r"^layer: "):
            tg.Stream(layer)


def test_wrong_calls_of_step():
    stream = make("gru").stream()
    x, y = np.zeros((1, INPUT_SIZE), np.float32), np.zeros((1, 7), np.float32)
    for args, kwargs in [
        ((), {}),
        ((x, y, None, y), {}),
        ((x, y, None), {"rows": None}),
        ((x,), {"x": x}),
        ((x, y), {"out": y}),
        ((), {"out": y}),
        ((x,), {"y": y}),
        ((x,), {"num_threads": 1}),
    ]:
        with pytest.raises(TypeError, match=r"^step\(\) "):
            stream.step(*args, **kwargs)
    assert not stream.state.any()
    with pytest.raises(TypeError):
        tg.Stream.step(3, x)


def test_a_stream_that_was_never_made():
    stream = tg.Stream.__new__(tg.Stream)
    with pytest.raises(TypeError):
        stream.step(np.zeros((1, INPUT_SIZE), np.float32))


def test_a_wrong_step_does_not_move_the_state(rng):
    layer = make("lstm")
    x = random_x(layer, rng, 2)
    stream = layer.stream(2)
    stream.run(x)
    state = stream.state
    out = np.zeros((2, 7), np.float32)
    for wrong in [
        (x[0].astype(float), out),
        (x[0][:1], out),
        (x[0], out[:1]),
        (x[0], out.T),
        (x, out),
        (x[0], 3),
        (None, out),
    ]:
        with pytest.raises((TypeError, ValueError), match=r"^(x|out): "):
            stream.step(*wrong)
    assert_same_bits(stream.state, state)
    assert not out.any()


def test_two_threads_at_once_are_told():
    layer = tg.GRU(8, 128, seed=0)
    stream = layer.stream(16)
    x = np.zeros((4000, 16, 8), np.float32)
    started = threading.Event()

    def work():
        started.set()
        stream.run(x, num_threads=1)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    refused = ""
    while thread.is_alive() and not refused:
        try:
            stream.step(x[0])
        except RuntimeError as error:
            refused = str(error)
    thread.join()
    assert "another thread" in refused
    stream.reset()
    assert stream.step(x[0]).shape == (16, 128)


def test_threads_with_streams_of_their_own(rng):
    layer = make("lstm-projected-no-bias")
    xs = [random_x(layer, rng, 2, steps=50) for _ in range(4)]
    expected = [layer(x)[0] for x in xs]
    results = [np.empty_like(y) for y in expected]

    def work(x, result):
        stream = layer.stream(2)
        for t in range(len(x)):
            stream.step(x[t], out=result[t])

    threads = [threading.Thread(target=work, args=pair) for pair in zip(xs, results)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, y in zip(results, expected):
        assert_same_bits(result, y)


def test_step_allocates_no_python_memory(rng):
    layer = make("gru")
    stream = layer.stream()
    x, out = random_x(layer, rng, 1)[0], np.empty((1, 7), np.float32)
    stream.step(x, out=out)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(100):
            stream.step(x, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < 500  # the loop itself: an array of NumPy would be 112 bytes a step


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([4], ValueError),
        ([-1], ValueError),
        ([1, 1], ValueError),
        ([0.0, 1.0], TypeError),
        (np.array([0.5]), TypeError),
        (np.array([[0, 1]]), ValueError),
        (np.array([True, False]), TypeError),
        (3, TypeError),
        ("01", TypeError),
        ([2**70], (ValueError, OverflowError)),
    ],
)
def test_wrong_rows(rows, error, rng):
    layer = make("gru")
    stream = layer.stream(4)
    stream.state = random_state(layer, 4, rng)
    kept = stream.state
    x, out = random_x(layer, rng, 2)[0], np.full((2, 7), 7, np.float32)
    for call in [
        lambda: stream.step(x, out, rows),
        lambda: stream.reset(rows),
        lambda: stream.get_state(rows),
        lambda: stream.set_state(None, rows),
    ]:
        with pytest.raises(error, match=r"^rows: "):
            call()
    with pytest.raises(ValueError, match=r"^x: "):
        stream.step(x, out, [0])
    assert_same_bits(stream.state, kept)
    assert (out == 7).all()


def test_wrong_counts_of_rows():
    stream = make("gru").stream(2)
    for call, count in [(stream.grow, -1), (stream.shrink, -1), (stream.shrink, 3)]:
        with pytest.raises(ValueError, match=r"^count: "):
            call(count)
    with pytest.raises((MemoryError, ValueError)):
        stream.grow(2**60)
    assert stream.batch == 2
