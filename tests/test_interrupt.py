"""Signals during long calls: a handler runs meanwhile, and what it raises ends the call."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

import numpy as np
import pytest

import tidegate as tg
from layer_cases import assert_same_bits
from tidegate import _core

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="timers are POSIX's")

# By itself a call of these sizes takes many seconds; its result is small.
STEPS, BATCH, SIZE, OUTPUT = 60_000, 64, 256, 2


class Stop(Exception):
    """What a handler raises."""


@contextlib.contextmanager
def alarm(handler, seconds=0.05):
    """Has `handler` called after a while, on the main thread."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def stop():
    raise Stop


@pytest.fixture(scope="module")
def lstm():
    return tg.LSTM(SIZE, SIZE, proj_size=OUTPUT, seed=0)


@pytest.fixture
def x():
    return np.broadcast_to(np.full(SIZE, 0.1, np.float32), (STEPS, BATCH, SIZE))


@pytest.fixture
def out():
    return np.full((STEPS, BATCH, OUTPUT), 7, np.float32)


def ended_early(out):
    """Whether the last steps have not been written."""
    return (out[-1] == 7).all()


def in_precision(layer, precision):
    """The layer, or for a low precision a new one in it."""
    return layer if precision == "float32" else layer.quantize(precision)


every_precision = pytest.mark.parametrize(
    "precision", ["float32", "bfloat16", "bfloat16-dot", "int8"]
)


@every_precision
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_call_ends(lstm, x, out, num_threads, precision):
    lstm = in_precision(lstm, precision)
    with pytest.raises(Stop), alarm(stop):
        lstm(x, out=out, num_threads=num_threads)
    assert ended_early(out)
    assert_same_bits(lstm(x[:3])[0], lstm(x[:3], num_threads=1)[0])


def wide(rows, features):
    """Rows of a step that takes much longer than an alarm, in little memory."""
    return np.broadcast_to(np.full(features, 0.1, np.float32), (rows, features))


@every_precision
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("cell", [tg.LSTM, tg.GRU, tg.MGU])
def test_a_call_of_one_step_ends(cell, num_threads, precision):
    layer = in_precision(cell(8000, 64, seed=0), precision)
    x = wide(100_000, 8000)[np.newaxis]
    out = np.full((1, 100_000, 64), 7, np.float32)
    with pytest.raises(Stop), alarm(stop):
        layer(x, out=out, num_threads=num_threads)
    assert ended_early(out[0])


@pytest.mark.parametrize("precision", [None, "bfloat16", "bfloat16-dot"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_backward_call_of_one_step_ends(num_threads, precision):
    layer = tg.GRU(256, 64, seed=0)
    x = wide(30_000, 256)[np.newaxis]
    y, _, tape = layer.forward(x, precision=precision)
    dy = np.ones_like(y)
    wanted = layer.backward(tape, dy)
    for seconds in (0.02, 0.1):
        with contextlib.suppress(Stop), alarm(stop, seconds):
            for _ in range(1000):
                layer.backward(tape, dy, num_threads=num_threads)
            pytest.fail("no call has ended")
    again = layer.backward(tape, dy, num_threads=num_threads)
    assert_same_bits(again.x, wanted.x)
    assert_same_bits(again.params.flat, wanted.params.flat)


def test_a_wide_step_of_a_stream_ends():
    stream = tg.GRU(2000, 64, seed=0).stream(100_000)
    with pytest.raises(Stop), alarm(stop):
        stream.step(wide(100_000, 2000))
    assert not stream.state.any()


@pytest.fixture
def ctrl_c():
    """Python's own handler of SIGINT, which a process in the background starts without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_call(lstm, x, out):
    with pytest.raises(KeyboardInterrupt), alarm(lambda: os.kill(os.getpid(), signal.SIGINT)):
        lstm(x, out=out)
    assert ended_early(out)


def test_a_stream_keeps_its_state(lstm, x, out):
    stream = lstm.stream(BATCH)
    stream.run(x[:3])
    before = [part.copy() for part in stream.state]
    with pytest.raises(Stop), alarm(stop):
        stream.run(x, out=out)
    assert ended_early(out)
    assert_same_bits(stream.state, tuple(before))
    assert_same_bits(stream.step(x[0]), lstm(x[:4])[0][3])


@pytest.mark.parametrize("precision", [None, "bfloat16", "bfloat16-dot"])
def test_training_ends(precision):
    # Wide and short: the tape is small, and yet the calls are long.
    layer = tg.GRU(1500, 1500, seed=0)
    x = np.full((60, 300, 1500), 0.1, np.float32)
    with pytest.raises(Stop), alarm(stop):
        layer.forward(x, precision=precision)
    y, _, tape = layer.forward(x[:6, :3], precision=precision)
    wanted = layer.backward(tape, y).params.flat
    _, _, long = layer.forward(x[:40, :100], precision=precision)
    with pytest.raises(Stop), alarm(stop):
        layer.backward(long, dstate=np.ones((1, 100, 1500), np.float32))
    assert_same_bits(layer.backward(tape, y).params.flat, wanted)


@every_precision
@pytest.mark.parametrize("num_threads", [1, 2])
def test_products_end(num_threads, precision):
    # One row, read again and again; by itself each call takes some tenths of a second.
    layer = in_precision(tg.Linear(4000, 100, seed=0), precision)
    x = np.broadcast_to(np.full(4000, 0.1, np.float32), (300_000, 4000))
    with pytest.raises(Stop), alarm(stop):
        layer(x, num_threads)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_gradients_of_products_end(num_threads):
    layer = tg.Linear(2000, 2000, seed=0)
    x = np.full((4000, 2000), 0.1, np.float32)
    y, tape = layer.forward(x)
    with pytest.raises(Stop), alarm(stop):
        layer.backward(tape, y, num_threads)
    assert_same_bits(layer(x[:3], num_threads), y[:3])


def test_a_handler_that_returns_changes_nothing():
    layer = tg.LSTM(64, 64, 2, seed=0)
    x = np.full((10_000, 8, 64), 0.1, np.float32)
    wanted = layer(x, num_threads=1)
    out = np.full((10_000, 8, 64), 7, np.float32)
    seen = []

    def handler():
        # In a float environment of its own, and with calls of its own.
        seen.append((ended_early(out), np.float32(1e-38) / np.float32(4) > 0, layer(x[:2])[0]))

    with alarm(handler):
        got = layer(x, out=out, num_threads=1)
    assert_same_bits(got[0], wanted[0])
    ((during, denormals, inner),) = seen
    assert during
    assert denormals
    assert_same_bits(inner, wanted[0][:2])


def test_other_threads_are_not_interrupted():
    layer = tg.LSTM(64, 64, seed=0)
    x = np.full((10_000, 8, 64), 0.1, np.float32)
    wanted = layer(x, num_threads=1)
    results, done = [], threading.Event()

    def call():
        results.append(layer(x, num_threads=1))
        done.set()

    threading.Thread(target=call, daemon=True).start()
    with pytest.raises(Stop), alarm(stop, 0.01):
        done.wait(60)
    assert done.wait(60)
    assert_same_bits(results[0][0], wanted[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("division", ["rows", "units"])
def test_threads_leave_together(division, num_layers, bidirectional):
    layer = tg.GRU(32, 256, num_layers, bidirectional=bidirectional, update_gate="write", seed=0)
    x = np.broadcast_to(np.full(32, 0.1, np.float32), (300, 16, 32))
    dy, _, tape = layer.forward(x)
    before = tg.get_num_threads()
    tg.set_num_threads(max(before, 4))
    _core.select_division(division)
    try:
        wanted = layer(x[:5], num_threads=2)[0]
        with contextlib.suppress(Stop), alarm(stop):
            while True:
                layer(x, num_threads=2)
        with contextlib.suppress(Stop), alarm(stop):
            while True:
                layer.backward(tape, dy, num_threads=2)
        assert_same_bits(layer(x[:5], num_threads=2)[0], wanted)
    finally:
        _core.select_division("auto")
        tg.set_num_threads(before)
