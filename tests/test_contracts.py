"""What is promised of every call, one test a promise: bits, NaN, the float environment, memory.

Errors are in test_errors.py, forks in test_fork.py, Python threads in test_concurrency.py.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import platform
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import tidegate as tg
from layer_cases import (
    ARITHMETIC_OPTIONS,
    CASES,
    INPUT_SIZE,
    STREAMABLE,
    assert_same_bits,
    is_lstm,
    make,
    map_state,
    output_size,
    parts,
    random_state,
)
from tidegate import _core, reference, selftest

T, N = 7, 6

every_case = pytest.mark.parametrize("case", CASES)
every_streamable = pytest.mark.parametrize("case", STREAMABLE)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
every_arithmetic = pytest.mark.parametrize(
    "arithmetic", ARITHMETIC_OPTIONS.values(), ids=ARITHMETIC_OPTIONS
)
every_division = pytest.mark.parametrize("division", ["rows", "units"])


@pytest.fixture(autouse=True)
def _threads_to_divide_among():
    """However few CPUs there are, a call gets the threads that it asks for."""
    before = tg.get_num_threads()
    tg.set_num_threads(max(before, 8))
    yield
    tg.set_num_threads(before)


def wide(case, precision=None, **options):
    """The case's layer with several vectors of units, so that threads and tiles have parts."""
    layer = make(case, **options)
    names = ["bias", "bidirectional", "reverse", "peephole", "reset_after", "update_gate"]
    kwargs = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    if is_lstm(layer):
        kwargs |= {"proj_size": layer.proj_size and 19}
    kwargs |= {"dtype": layer.dtype, "dropout": layer.dropout, "seed": 1}
    layer = type(layer)(INPUT_SIZE, 37, layer.num_layers, **kwargs)
    return layer if precision is None else layer.quantize(precision)


def draw(layer, rng, steps=T, batch=N):
    return selftest.draw_case(layer, steps, batch, True, rng)


def forward(case, num_threads=1, rows=slice(None), lengths=None):
    """y and the last state of some rows of a case, by a call."""
    y, state = case.layer(
        case.x[:, rows],
        map_state(lambda s: s[:, rows], case.state),
        lengths=(case.lengths if lengths is None else lengths)[rows],
        reset=case.reset[:, rows],
        num_threads=num_threads,
    )
    return (y, *parts(state))


def row_of(results, n):
    return tuple(part[:, n].copy() for part in results)


# ---- Same bits -----------------------------------------------------------------------------------


@every_case
@every_arithmetic
@every_division
@pytest.mark.parametrize("num_threads", [2, 3, 5])
def test_threads_change_no_bit(case, arithmetic, division, num_threads, any_isa, rng):
    # Rows: some threads may have none. Units: 37 are 2 to 10 vectors, for 5 threads.
    drawn = draw(wide(case, **arithmetic), rng)
    one = selftest.results(drawn, 1)
    with selftest.dividing(division):
        several = selftest.results(drawn, num_threads)
    for way, other in zip(one, several):
        for name in way:
            assert_same_bits(other[name], way[name])


@every_case
@every_arithmetic
def test_the_batch_around_a_row_changes_no_bit(case, arithmetic, any_isa, rng):
    drawn = draw(wide(case, **arithmetic), rng, batch=17)
    whole = forward(drawn)
    for n in [0, 5, 16]:
        alone = forward(drawn, rows=[n])
        assert_same_bits(row_of(alone, 0), row_of(whole, n))
    for rows in [slice(0, 2), slice(3, 7), slice(1, 17), slice(None, None, -1)]:
        some = forward(drawn, rows=rows)
        for k, n in enumerate(range(17)[rows]):
            assert_same_bits(row_of(some, k), row_of(whole, n))


@every_case
@every_arithmetic
def test_the_place_in_the_batch_changes_no_bit(case, arithmetic, any_isa, rng):
    drawn = draw(wide(case, **arithmetic), rng, batch=11)
    whole = forward(drawn)
    order = rng.permutation(11)
    shuffled = forward(drawn, rows=order)
    for k, n in enumerate(order):
        assert_same_bits(row_of(shuffled, k), row_of(whole, n))


@every_case
@every_arithmetic
def test_neighbours_lengths_change_no_bit(case, arithmetic, any_isa, rng):
    drawn = draw(wide(case, **arithmetic), rng)
    lengths = np.array([0, 1, 4, 5, T, T])
    expected = forward(drawn, lengths=lengths)
    for n in range(N):
        for others in (0, 1, 3, T):
            other = np.full(N, others)
            other[n] = lengths[n]
            assert_same_bits(row_of(forward(drawn, lengths=other), n), row_of(expected, n))


@every_case
@every_arithmetic
def test_padding_at_the_end_changes_no_bit(case, arithmetic, any_isa, rng):
    drawn = draw(wide(case, **arithmetic), rng)
    y, *state = forward(drawn, lengths=np.full(N, 4))
    short = selftest.Case(**{**vars(drawn), "x": drawn.x[:4], "reset": drawn.reset[:4]})
    y_short, *state_short = forward(short, lengths=np.full(N, 4))
    assert_same_bits(y[:4].copy(), y_short)
    assert not y[4:].any()
    assert_same_bits(tuple(state), tuple(state_short))


@every_streamable
@every_arithmetic
@pytest.mark.parametrize("batch", [1, 4])
def test_chunks_change_no_bit(case, arithmetic, batch, any_isa, rng):
    # 300 steps are more than the input projection does at once (256 rows of 4 at 37 units and up).
    layer = wide(case, **arithmetic)
    drawn = draw(layer, rng, steps=300, batch=batch)
    y, state_n = layer(drawn.x, drawn.state)
    for size in (1, 7, 299):
        state, got = drawn.state, []
        for t in range(0, 300, size):
            piece, state = layer(drawn.x[t : t + size], state)
            got.append(piece)
        assert_same_bits(np.concatenate(got), y)
        assert_same_bits(state, state_n)
    stream = layer.stream(batch)
    stream.state = drawn.state
    assert_same_bits(np.stack([stream.step(x_t) for x_t in drawn.x]), y)
    assert_same_bits(stream.state, state_n)
    stream.state = drawn.state
    with selftest.dividing("units"):
        whole = stream.run(drawn.x, num_threads=3)
    assert_same_bits(whole, y)


@every_case
def test_a_second_run_has_the_same_bits(case, isa, rng):
    drawn = draw(wide(case), rng)
    first, second = selftest.results(drawn, 1), selftest.results(drawn, 1)
    for a, b in zip(first, second):
        for name in a:
            assert_same_bits(a[name], b[name])


@pytest.mark.parametrize("case", ["lstm-everything", "gru-reset-before"])
@every_division
def test_threads_change_no_bit_with_dropout(case, division, isa, rng):
    layer = wide(case, dropout=0.4)
    drawn = draw(layer, rng)

    def run(num_threads):
        y, state, tape = layer.forward(
            drawn.x,
            drawn.state,
            drawn.lengths,
            drawn.reset,
            np.random.default_rng(5),
            num_threads=num_threads,
        )
        grads = layer.backward(tape, drawn.dy, drawn.dstate, num_threads=num_threads)
        return (y, *parts(state), grads.x, *parts(grads.state), grads.params.flat)

    one = run(1)
    with selftest.dividing(division):
        for num_threads in (2, 3, 5):
            assert_same_bits(run(num_threads), one)


# ---- NaN and infinities --------------------------------------------------------------------------


def poison(case, value):
    """A copy of the case that holds `value` wherever nothing may read: in its padding."""
    padding = np.arange(T)[:, None] >= case.lengths
    x, dy, reset = case.x.copy(), case.dy.copy(), case.reset.copy()
    x[padding], dy[padding] = value, value
    reset[padding] ^= True
    return selftest.Case(**{**vars(case), "x": x, "dy": dy, "reset": reset})


@every_case
@every_arithmetic
@pytest.mark.parametrize("division", ["auto", "rows", "units"])
def test_padding_is_never_read(case, arithmetic, division, any_isa, rng):
    clean = draw(wide(case, **arithmetic), rng)
    assert (clean.lengths < T).any()
    with selftest.dividing(division):
        expected = selftest.results(clean, 2)
        for value in (np.nan, np.inf):
            got = selftest.results(poison(clean, value), 2)
            for way, other in zip(expected, got):
                for name in way:
                    assert np.isfinite(way[name]).all()
                    assert_same_bits(other[name], way[name])


def test_padding_is_never_read_with_dropout(isa, rng):
    layer = wide("lstm-everything", dropout=0.4)
    clean = draw(layer, rng)
    results = []
    for case in (clean, poison(clean, np.nan)):
        y, state, tape = layer.forward(
            case.x, case.state, case.lengths, case.reset, np.random.default_rng(5)
        )
        grads = layer.backward(tape, case.dy, case.dstate)
        results.append((y, *parts(state), grads.x, *parts(grads.state), grads.params.flat))
    assert np.isfinite(results[0][-1]).all()
    assert_same_bits(*results)


@pytest.mark.parametrize(
    ("case", "where"),
    [(c, w) for c in CASES for w in ("x", "h_0", "c_0") if w != "c_0" or c.startswith("lstm")],
)
@every_arithmetic
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_row_stays_alone_forward(case, arithmetic, value, where, any_isa, rng):
    layer = wide(case, **arithmetic)
    clean = draw(layer, rng)
    clean.lengths[2] = T
    expected = forward(clean)
    bad = selftest.Case(
        **{**vars(clean), "x": clean.x.copy(), "state": map_state(np.copy, clean.state)}
    )
    target = bad.x[3] if where == "x" else parts(bad.state)["hc".index(where[0])][0]
    target[2, 1] = value
    for num_threads, division in [(1, "auto"), (2, "rows"), (3, "units")]:
        with selftest.dividing(division):
            got = forward(bad, num_threads)
        for n in range(N):
            if n != 2:
                assert_same_bits(row_of(got, n), row_of(expected, n))


@every_case
@every_dtype
def test_a_bad_row_stays_alone_backward(case, dtype, isa, rng):
    layer = wide(case, dtype=dtype)
    clean = draw(layer, rng)
    clean.lengths[2] = T
    bad = selftest.Case(**{**vars(clean), "x": clean.x.copy(), "dy": clean.dy.copy()})
    bad.x[3, 2, 1] = np.nan
    bad.dy[1, 2] = np.inf
    for num_threads, division in [(1, "auto"), (2, "rows"), (3, "units")]:
        with selftest.dividing(division):
            (_, wanted), (_, got) = (selftest.results(c, num_threads) for c in (clean, bad))
        for name in ("dx", "dh_0", "dc_0"):
            if name in wanted:
                others = np.arange(N) != 2
                assert_same_bits(got[name][:, others].copy(), wanted[name][:, others].copy())
        assert np.isnan(got["dx"][:, 2]).any()
        assert np.isnan(got["weight_hh_l0"]).any()


@every_case
@every_dtype
def test_nan_is_not_laundered(case, dtype, isa, rng):
    # Not by a clamp, not by a gate that is closed.
    layer = wide(case, dtype=dtype)
    with layer.params.update() as flat:
        flat *= 50
    drawn = draw(layer, rng, batch=1)
    x = drawn.x.copy()
    x[2, 0, 0] = np.nan
    y, state = layer(x)
    forwards = not layer.reverse
    columns = output_size(layer) // (2 if layer.bidirectional else 1)
    after = y[2:] if forwards else y[:3]
    assert np.isnan(after[..., :columns]).all()
    assert np.isnan(parts(state)[0][0]).all()


@every_case
@every_dtype
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinities_are_ieees(case, dtype, value, isa, rng):
    """NaN, infinite or finite exactly where the reference is."""
    layer = wide(case, dtype=dtype)
    drawn = draw(layer, rng)
    for k, n in enumerate(range(0, N, 2)):
        drawn.x[k, n, k] = value
        for part in parts(drawn.state):
            part[0, n, k] = value
    network = reference.from_layer(layer)
    with np.errstate(all="ignore"):
        y, state, tape = network.forward(
            layer.params, drawn.x, drawn.state, lengths=drawn.lengths, reset=drawn.reset
        )
        grads = network.backward(tape, drawn.dy, drawn.dstate)
    ours = layer.forward(drawn.x, drawn.state, drawn.lengths, drawn.reset)
    back = layer.backward(ours[2], drawn.dy, drawn.dstate)
    pairs = [(ours[0], y), *zip(parts(ours[1]), parts(state))]
    pairs += [(back.x, grads.x), *zip(parts(back.state), parts(grads.state))]
    pairs += [(back.params[name], grads.params[name]) for name in layer.params]
    for got, wanted in pairs:
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
        np.testing.assert_array_equal(np.isposinf(got), np.isposinf(wanted))
        np.testing.assert_array_equal(np.isneginf(got), np.isneginf(wanted))


@every_dtype
def test_padding_of_vectors_meets_no_infinity(dtype, isa):
    # Zero weights beyond the last unit, times infinity, would be NaN: sums stop at the real sizes.
    for hidden in (1, 3, 5, 9):
        layer = tg.LSTM(3, hidden, 2, proj_size=0, dtype=dtype, seed=0)
        x = np.zeros((2, 3, 3), dtype)
        x[:, :, 0] = np.inf
        y, (h, c) = layer(x)
        for part in (y, h, c):
            assert np.isfinite(part).all()


@every_arithmetic
def test_a_reset_is_a_select(arithmetic, any_isa, rng):
    layer = wide("gru", **arithmetic)
    drawn = draw(layer, rng)
    state = drawn.state.copy()
    reset = np.zeros((T, N), bool)
    reset[0, 1] = reset[3, 2] = True
    expected, _ = layer(drawn.x, state * 0, reset=reset)
    state[:, 1] = np.inf
    x = drawn.x.copy()
    x[:3, 2] = np.nan
    y, _ = layer(x, state, reset=reset)
    assert_same_bits(y[:, 1].copy(), expected[:, 1].copy())
    assert_same_bits(y[3:, 2].copy(), expected[3:, 2].copy())


# ---- The float environment -----------------------------------------------------------------------


def libm():
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("no libm to call by its name")
    return ctypes.CDLL(name)


ROUNDING = {"x86_64": {"down": 0x400, "up": 0x800, "to zero": 0xC00}}
ROUNDING["aarch64"] = {"up": 0x400000, "down": 0x800000, "to zero": 0xC00000}


@pytest.mark.parametrize("mode", ["down", "up", "to zero"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_callers_rounding_neither_counts_nor_changes(mode, num_threads, isa, rng):
    if platform.machine() not in ROUNDING:
        pytest.skip("fenv.h's numbers are not known here")
    maths = libm()
    drawn = draw(wide("lstm-everything"), rng)
    stream_layer = wide("gru")
    with selftest.dividing("units"):
        expected = selftest.results(drawn, num_threads)
        expected_step = stream_layer.stream(N).step(drawn.x[0])
        wanted = ROUNDING[platform.machine()][mode]
        before = maths.fegetround()
        assert maths.fesetround(wanted) == 0
        try:
            got = selftest.results(drawn, num_threads)
            step = stream_layer.stream(N).step(drawn.x[0])
            after = maths.fegetround()
        finally:
            maths.fesetround(before)
    assert after == wanted
    assert_same_bits(step, expected_step)
    for way, other in zip(expected, got):
        for name in way:
            assert_same_bits(other[name], way[name])


def test_the_callers_exception_flags_are_kept(isa, rng):
    maths = libm()
    # All but "inexact", which any division of Python's own raises.
    every = {"x86_64": 0x1D, "aarch64": 0x0F}.get(platform.machine())
    if every is None:
        pytest.skip("fenv.h's numbers are not known here")
    drawn = draw(wide("gru"), rng)
    drawn.x[0, 0, 0] = np.inf
    maths.feclearexcept(every)
    drawn.layer(drawn.x, drawn.state)
    assert maths.fetestexcept(every) == 0


@every_dtype
def test_the_callers_denormals_are_kept(dtype, isa, rng):
    drawn = draw(wide("lstm", dtype=dtype), rng)
    least = np.finfo(dtype).smallest_subnormal
    for num_threads in (1, 2):
        with selftest.dividing("units"):
            selftest.results(drawn, num_threads)
            drawn.layer.stream(N).step(drawn.x[0])
        assert np.array([least]) * dtype(3) == 3 * least != 0
        assert np.array([np.finfo(dtype).tiny]) / dtype(2) > 0


@every_case
@every_dtype
def test_denormals_count_as_zeros(case, dtype, isa, rng):
    layer = wide(case, dtype=dtype)
    drawn = draw(layer, rng)
    tiny = np.finfo(dtype).tiny

    def with_(value):
        x, state = drawn.x.copy(), map_state(np.copy, drawn.state)
        x[1], x[3, :, 0] = value, value
        for part in parts(state):
            part[..., ::2] = value
        dy = drawn.dy.copy()
        dy[2] = value
        changed = {"x": x, "state": state, "dy": dy, "lengths": np.full(N, T)}
        return selftest.Case(**{**vars(drawn), **changed})

    for division, num_threads in [("auto", 1), ("rows", 2), ("units", 3)]:
        with selftest.dividing(division):
            zeros = selftest.results(with_(0), num_threads)
            denormals = selftest.results(with_(tiny / 4), num_threads)
        for way, other in zip(zeros, denormals):
            for name in way:
                np.testing.assert_array_equal(other[name], way[name], err_msg=name)


def test_denormals_are_not_slow(isa):
    # A state that decays towards zero passes through the denormals, where each operation of a
    # processor that handles them costs a hundred cycles more.
    layer = tg.GRU(8, 64, seed=0)
    with layer.params.update() as flat:
        flat *= 1e-3
    x = np.zeros((2000, 4, 8), np.float32)

    for name in ("bias_ih_l0", "bias_hh_l0"):
        layer.params[name] = np.zeros_like(layer.params[name])
    states = {
        "zero": np.zeros((1, 4, 64), np.float32),
        "denormal": np.full((1, 4, 64), 1e-37, np.float32),
    }
    best = dict.fromkeys(states, np.inf)
    for _ in range(15):
        for name, state in states.items():
            start = time.perf_counter()
            layer(x, state, num_threads=1)
            best[name] = min(best[name], time.perf_counter() - start)
    assert best["denormal"] < 3 * best["zero"]


# ---- Threads -------------------------------------------------------------------------------------


def test_workers_burn_little_after_a_call(rng):
    # libgomp's threads spin for about 11 ms after each region; the team's poll for 0.1 ms at most.
    layer = tg.GRU(32, 128, seed=0)
    x = rng.standard_normal((4, 8, 32)).astype(np.float32)
    burnt = []
    with selftest.dividing("units"):
        for _ in range(60):
            layer(x, num_threads=2)
            start = time.process_time()
            time.sleep(0.015)
            burnt.append(time.process_time() - start)
    assert np.median(burnt) < 1e-3


def test_a_call_of_one_thread_leaves_nothing_running(rng):
    layer = tg.GRU(32, 128, seed=0)
    x = rng.standard_normal((4, 8, 32)).astype(np.float32)
    layer(x, num_threads=1)
    time.sleep(0.05)
    start = time.process_time()
    for _ in range(10):
        layer(x, num_threads=1)
        time.sleep(0.01)
    assert time.process_time() - start < 0.05


# ---- Memory --------------------------------------------------------------------------------------


def resident_bytes():
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("resident memory is read from /proc")
    return int(status.read_text().split()[1]) * 4096


@every_streamable
def test_a_step_allocates_no_python_memory(case, isa, rng):
    layer = make(case)
    stream = layer.stream(3)
    x = rng.standard_normal((3, INPUT_SIZE)).astype(np.float32)
    out = np.empty((3, output_size(layer)), np.float32)
    stream.step(x, out=out)
    steps = 2000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(steps):
            stream.step(x, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < steps  # of bytes: not one a step


@pytest.mark.parametrize("case", ["lstm-projected-no-bias", "gru-reset-before"])
def test_memory_does_not_grow_with_steps(case, rng):
    layer = make(case)
    stream = layer.stream()
    x = rng.standard_normal((1, INPUT_SIZE)).astype(np.float32)
    out = np.empty((1, output_size(layer)), np.float32)
    for _ in range(1000):
        stream.step(x, out=out)
    gc.collect()
    before = resident_bytes()
    for _ in range(100_000):
        stream.step(x, out=out)
    assert resident_bytes() - before < 1_000_000  # ten bytes a step


def test_memory_does_not_grow_with_shapes(rng):
    layer = make("lstm-everything")
    x = rng.standard_normal((40, 40, INPUT_SIZE)).astype(np.float32)

    def every_shape():
        for steps in range(1, 40, 2):
            for batch in range(1, 40, 5):
                y, _, tape = layer.forward(x[:steps, :batch], num_threads=1)
                layer.backward(tape, y, num_threads=1)
                layer(x[:steps, :batch], num_threads=1)

    every_shape()
    gc.collect()
    before = resident_bytes()
    for _ in range(3):
        every_shape()
    gc.collect()
    assert resident_bytes() - before < 4_000_000


def test_memory_does_not_grow_with_writes_and_tapes(rng):
    layer = tg.GRU(32, 64, seed=0)
    x = rng.standard_normal((20, 4, 32)).astype(np.float32)

    def train(times):
        for _ in range(times):
            y, _, tape = layer.forward(x, num_threads=1)
            grads = layer.backward(tape, y, num_threads=1)
            with layer.params.update() as flat:
                flat -= 1e-3 * grads.params.flat
        gc.collect()

    train(50)
    before = resident_bytes()
    train(500)  # a snapshot is 74 kB, a tape 200 kB
    assert resident_bytes() - before < 4_000_000


# ---- Parameters and tapes ------------------------------------------------------------------------


@every_streamable
def test_weights_are_never_stale(case, isa, rng):
    layer, other = make(case), make(case, seed=9)
    x = rng.standard_normal((3, 2, INPUT_SIZE)).astype(np.float32)
    stream = layer.stream(2)
    for source in (other, make(case), other):
        for name in layer.params:  # one at a time, used after each
            layer.params[name] = source.params[name]
            twin = make(case)
            twin.params.flat = layer.params.flat
            state = random_state(layer, 2, rng)
            assert_same_bits(layer(x, state)[0], twin(x, state)[0])
            fresh = twin.stream(2)
            stream.state = fresh.state = state
            assert_same_bits(stream.step(x[0]), fresh.step(x[0]))
            y, _, tape = layer.forward(x, state)
            y_twin, _, tape_twin = twin.forward(x, state)
            assert_same_bits(
                layer.backward(tape, y).params.flat, twin.backward(tape_twin, y_twin).params.flat
            )


def test_weights_are_never_stale_after_another_instruction_set(rng):
    layer = make("lstm")
    x = rng.standard_normal((3, 2, INPUT_SIZE)).astype(np.float32)
    stream = layer.stream(2)
    before = _core.isa()
    try:
        for isa in _core.available_isas() * 2:
            _core.select_isa(isa)
            assert_same_bits(layer(x)[0], make("lstm")(x)[0])
            stream.reset()
            assert_same_bits(stream.step(x[0]), make("lstm").stream(2).step(x[0]))
    finally:
        _core.select_isa(before)


@every_case
def test_a_tape_keeps_what_it_was_made_of(case, isa, rng):
    layer = make(case)
    drawn = draw(layer, rng)
    y, state, tape = layer.forward(drawn.x, drawn.state, drawn.lengths, drawn.reset)
    expected = layer.backward(tape, drawn.dy, drawn.dstate)
    for array in (drawn.x, y, drawn.lengths, *parts(drawn.state), *parts(state)):
        array[...] = 1
    drawn.reset[...] ^= True
    layer.params.flat = layer.params.flat * 2
    layer(drawn.x)
    got = layer.backward(tape, drawn.dy, drawn.dstate)
    assert_same_bits(got.x, expected.x)
    assert_same_bits(got.state, expected.state)
    assert_same_bits(got.params.flat, expected.params.flat)


# ---- Long stacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", [tg.LSTM, tg.GRU, tg.MGU])
@every_division
def test_a_long_stack_is_its_layers_one_after_the_other(isa, division, kind, reverse, rng):
    """Inference takes a stack's steps in blocks, whose seams must not show."""
    steps, batch, hidden = 1203, 3, 33  # the output of a layer: 476 kB, of several blocks
    stack = kind(4, hidden, 3, reverse=reverse, seed=1)
    x = rng.standard_normal((steps, batch, 4)).astype(np.float32)
    lengths = np.array([steps, 0, 700])
    y, state_n = x, []
    for index in range(3):
        layer = kind(y.shape[2], hidden, reverse=reverse)
        for name in layer.params:
            layer.params[name] = stack.params[name.replace("_l0", f"_l{index}")]
        y, state = layer(y, lengths=lengths)
        state_n.append(parts(state))
    _core.select_division(division)
    try:
        for num_threads in (1, 3):
            got, got_n = stack(x, lengths=lengths, num_threads=num_threads)
            assert_same_bits(got, y)
            for part, layers in zip(parts(got_n), zip(*state_n, strict=True), strict=True):
                assert_same_bits(part, np.concatenate(layers))
    finally:
        _core.select_division("auto")


MEMORY_OF_A_LONG_CALL = """
import resource
import numpy as np
import tidegate as tg

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

x = np.zeros((100_000, 1, 1), np.float32)
gru = tg.GRU(1, 64, 4)
out = np.ones((len(x), 1, 64), np.float32)
gru(x[:100], out=out[:100])
before = peak()
gru(x, out=out)
print(peak() - before, out.nbytes)
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="ru_maxrss is in bytes elsewhere")
def test_inference_needs_no_memory_that_grows_with_the_sequence():
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_A_LONG_CALL], check=True, capture_output=True, text=True
    )
    more, output = map(int, run.stdout.split())
    assert more < output / 8
