"""Many Python threads at once: on one model, within one budget of threads, while weights change."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
import threading
import time

import numpy as np
import pytest

import tidegate as tg
from layer_cases import assert_same_bits, make, parts
from tidegate import selftest

CASES = ["lstm-everything", "gru-stacked-bidirectional", "gru-reset-before", "mgu"]
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def _threads_to_divide_among():
    before = tg.get_num_threads()
    tg.set_num_threads(max(before, 4))
    yield
    tg.set_num_threads(before)


def on_threads(*functions):
    """Runs each function on a thread of its own, all begun together; raises what any raises."""
    barrier = threading.Barrier(len(functions))
    errors = []

    def body(function):
        try:
            barrier.wait(30)
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a call hangs"
    if errors:
        raise errors[0]


def flatten(results):
    return {name: values for way in results for name, values in way.items()}


@every_case
@pytest.mark.parametrize("division", ["auto", "rows", "units"])
def test_one_model_many_threads(case, division, isa, rng):
    layer = make(case)
    cases = [selftest.draw_case(layer, 40, 6, k % 2 == 0, rng) for k in range(8)]
    expected = [flatten(selftest.results(c, 1)) for c in cases]

    def work(k):
        for turn in range(12):
            drawn, wanted = cases[(k + turn) % 8], expected[(k + turn) % 8]
            got = flatten(selftest.results(drawn, 1 + (k + turn) % 3))
            for name, values in got.items():
                assert_same_bits(values, wanted[name])

    with selftest.dividing(division):
        on_threads(*(lambda k=k: work(k) for k in range(8)))


@every_case
def test_one_tape_many_threads(case, isa, rng):
    layer = make(case)
    drawn = selftest.draw_case(layer, 20, 4, True, rng)
    _, _, tape = layer.forward(drawn.x, drawn.state, drawn.lengths, drawn.reset)
    expected = make(case).backward(tape, drawn.dy, drawn.dstate)
    # The tape of a new layer: no earlier backward call has used its packed weights.
    _, _, fresh = make(case).forward(drawn.x, drawn.state, drawn.lengths, drawn.reset)

    def work(num_threads):
        for _ in range(10):
            grads = layer.backward(fresh, drawn.dy, drawn.dstate, num_threads=num_threads)
            assert_same_bits(grads.params.flat, expected.params.flat)
            assert_same_bits(grads.x, expected.x)

    with selftest.dividing("units"):
        on_threads(*(lambda k=k: work(1 + k % 3) for k in range(6)))


@every_case
def test_weights_written_meanwhile_are_one_snapshot(case, isa, rng):
    layer = make(case)
    drawn = selftest.draw_case(layer, 10, 3, True, rng)
    snapshots = [make(case, seed=seed).params.flat.copy() for seed in range(3)]
    expected = []
    for flat in snapshots:
        layer.params.flat = flat
        # y of a call may be of another snapshot than y of forward, whose tape backward uses.
        results = flatten(selftest.results(drawn, 1))
        call = results.pop("y of a call").tobytes()
        expected.append((call, {name: values.tobytes() for name, values in results.items()}))
    calls = {call for call, _ in expected}
    reading = threading.Semaphore(0)
    seen = set()
    # However little the writer gets of a busy machine, the readers wait for more than one snapshot.
    patience = time.monotonic() + 60

    def read(num_threads):
        try:
            turn = 0
            while turn < 60 or (len(seen) < 2 and time.monotonic() < patience):
                turn += 1
                results = flatten(selftest.results(drawn, num_threads))
                assert results.pop("y of a call").tobytes() in calls
                got = {name: values.tobytes() for name, values in results.items()}
                matches = [k for k, (_, wanted) in enumerate(expected) if got == wanted]
                assert len(matches) == 1
                seen.update(matches)
        finally:
            reading.release()

    def write():
        turn = 0
        finished = 0
        while finished < 3:
            flat = snapshots[turn % 3]
            ways = turn // 3 % 3
            if ways == 0:
                layer.params.flat = flat
            elif ways == 1:
                with layer.params.update() as vector:
                    vector[...] = flat
            else:
                named = make(case)
                named.params.flat = flat
                layer.load_state_dict(named.state_dict())
            turn += 1
            finished += reading.acquire(timeout=0.0002)

    with selftest.dividing("units"):
        on_threads(write, *(lambda k=k: read(k) for k in (1, 2, 2)))
    assert len(seen) > 1


def test_many_streams_many_threads(isa, rng):
    layer = make("lstm-projected-no-bias")
    x = rng.standard_normal((6, 200, 2, layer.input_size)).astype(np.float32)
    expected = [layer(part)[0] for part in x]

    def work(k):
        stream = layer.stream(2)
        out = np.empty((2, expected[k].shape[2]), np.float32)
        for _ in range(3):
            stream.reset()
            for t in range(100):
                assert_same_bits(stream.step(x[k, t], out=out), expected[k][t])
            assert_same_bits(stream.run(x[k, 100:]), expected[k][100:])

    on_threads(*(lambda k=k: work(k) for k in range(6)))


def test_streams_take_new_weights_at_a_step_whole(isa, rng):
    layer = make("gru-reset-before")
    x = rng.standard_normal((2, layer.input_size)).astype(np.float32)
    snapshots = [make("gru-reset-before", seed=seed) for seed in (1, 2)]
    stop = threading.Event()

    def write():
        turn = 0
        while not stop.is_set():
            layer.params.flat = snapshots[turn % 2].params.flat
            turn += 1
            time.sleep(0.0001)

    def step():
        try:
            stream = layer.stream(2)
            for _ in range(400):
                before = stream.state
                y = stream.step(x)
                candidates = [twin(x[None], before)[0][0].tobytes() for twin in snapshots]
                assert y.tobytes() in candidates
        finally:
            stop.set()

    on_threads(write, step)


def test_a_long_call_lets_other_python_threads_run(rng):
    layer = tg.GRU(64, 256, seed=0)
    x = rng.standard_normal((400, 32, 64)).astype(np.float32)
    layer(x[:2])
    over = threading.Event()
    ticks = []

    def call():
        try:
            for run in (layer, layer.forward):
                run(x, num_threads=1)
        finally:
            over.set()

    def tick():
        while not over.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    on_threads(call, tick)
    assert len(ticks) >= 10


def test_each_python_thread_has_its_own_setting():
    seen = {}

    def work(count):
        with tg.num_threads(count):
            time.sleep(0.01)
            seen[count] = tg.get_num_threads()

    outside = tg.get_num_threads()
    on_threads(*(lambda k=k: work(k) for k in range(1, 9)))
    assert seen == {k: k for k in range(1, 9)}
    assert tg.get_num_threads() == outside


BUDGET = """
import os, threading, time
import numpy as np
import tidegate as tg
from tidegate import _core

tg.set_num_threads(3)
_core.select_division("units")
layer = tg.GRU(16, 128, seed=0)
x = np.random.default_rng(0).standard_normal((200, 8, 16)).astype(np.float32)
expected = layer(x, num_threads=1)[0].tobytes()
tasks = lambda: len(os.listdir("/proc/self/task"))
before = tasks()
wrong = []
def work():
    for _ in range(20):
        if layer(x, num_threads=3)[0].tobytes() != expected:
            wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong
# Two workers beside a caller, and one thread that opened their region. Python's own threads may
# take a moment to vanish after they were joined.
deadline = time.monotonic() + 10
while tasks() - before > 3 and time.monotonic() < deadline:
    time.sleep(0.01)
assert tasks() - before <= 3, tasks() - before
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tasks are counted in /proc")
def test_many_callers_share_one_budget():
    subprocess.run([sys.executable, "-c", BUDGET], check=True, timeout=120)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="takes two CPUs")
def test_more_threads_than_cpus_still_end(rng):
    layer = tg.LSTM(16, 64, seed=0)
    x = rng.standard_normal((100, 4, 16)).astype(np.float32)
    expected = layer(x, num_threads=1)[0]
    before = tg.get_num_threads()
    tg.set_num_threads(16)
    try:
        with selftest.dividing("units"):
            for _ in range(5):
                assert_same_bits(layer(x, num_threads=16)[0], expected)
    finally:
        tg.set_num_threads(before)


def test_one_threads_errors_are_its_own(rng):
    layer = make("gru")
    x = rng.standard_normal((30, 4, layer.input_size)).astype(np.float32)
    expected = layer(x)

    def right():
        for _ in range(100):
            for a, b in zip(parts(layer(x)), parts(expected)):
                assert_same_bits(a, b)

    def wrong():
        for _ in range(100):
            with pytest.raises(ValueError, match=r"^x: "):
                layer(x[..., 1:])

    on_threads(right, wrong, right, wrong)


# ---- The end of the program ----------------------------------------------------------------------

# A loop for a daemon thread: every kind of call that gives up the GIL, or runs Python code.
LOOPS = {
    "call": "layer(x)",
    "backward": "layer.backward(tape, y)",
    "dropout": "deep.forward(x, rng=rng)",
    "run": "layer.stream(8).run(x)",
    "step": "stream.step(wide)",
    "parameters": "big.params.flat = values",
    "load": "tg.load(path)",
    "save": "tg.save(f'{path}-{threading.get_ident()}', layer)",
    "index": "layer(x, num_threads=Index())",
    "measure": "_core.product_rate('float32')",
}
AT_EXIT = """
import sys, threading, time
import numpy as np
import tidegate as tg
from tidegate import _core

path, body = sys.argv[1:]
layer = tg.LSTM(64, 64, seed=0)
deep = tg.LSTM(64, 64, 2, dropout=0.5, seed=0)
big = tg.LSTM(500, 500, seed=0)
values = big.params.flat.copy()
x, wide = np.zeros((50, 8, 64), np.float32), np.zeros((300, 500), np.float32)
stream = big.stream(300)
rng = np.random.default_rng(0)
y, _, tape = layer.forward(x)
layer.save(path)

class Index:
    def __index__(self):
        sum(range(1000))
        return 1

loop = compile(f"while True:\\n    {body}", "loop", "exec")
for _ in range(1 if body.startswith("stream") else 2):
    threading.Thread(target=exec, args=(loop, dict(globals())), daemon=True).start()
time.sleep(0.2)
"""


@pytest.mark.parametrize("name", list(LOOPS))
def test_daemon_threads_at_the_end_of_the_program(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(tmp_path / "layer.safetensors"), LOOPS[name]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- Python without the GIL ----------------------------------------------------------------------


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="Python has the GIL")
def test_importing_leaves_the_gil_off():
    code = "import sys, tidegate, tidegate.reference; sys.exit(sys._is_gil_enabled())"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)


def test_first_calls_on_many_threads_at_once():
    """What the modules make at first need, they make once."""
    code = """
import threading
import numpy as np
import tidegate as tg
from tidegate import reference

layer = tg.LSTM(3, 4, num_layers=2, peephole=True, seed=0)
x = np.random.default_rng(0).standard_normal((5, 2, 3), np.float32)
barrier = threading.Barrier(8)
results, errors = [], []

def body():
    try:
        barrier.wait(60)
        y, state, tape = layer.forward(x)
        grads = layer.backward(tape, np.ones_like(y))
        stepped = np.stack([layer.stream(batch=2).step(x=x[0], out=None) for _ in range(5)])
        wanted = reference.from_layer(layer).forward(layer.params, x.astype(np.float64))[0]
        np.testing.assert_allclose(y, wanted, atol=1e-5)
        results.append([y, grads.params.flat, stepped, *tape.gates().values()])
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=body) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if errors:
    raise errors[0]
for result in results[1:]:
    for one, other in zip(results[0], result, strict=True):
        assert np.array_equal(one, other)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_growing_a_stream_on_many_threads_loses_no_row():
    stream = tg.GRU(2, 3, seed=0).stream(batch=0)
    grown = []

    def grow():
        for _ in range(50):
            with contextlib.suppress(RuntimeError):  # in use by another thread
                stream.grow(3)
                grown.append(3)

    on_threads(*[grow] * 4)
    assert stream.batch == sum(grown)


def test_steps_while_parameters_are_written_on_other_threads(rng):
    """Each step is of one of the two sets of parameters, never of a mixture."""
    layer = tg.GRU(4, 8, seed=0)
    sets = [layer.params.flat.copy(), rng.standard_normal(layer.params.flat.size, np.float32)]
    x = rng.standard_normal((1, 4), np.float32)
    wanted = []
    for flat in sets:
        layer.params.flat = flat
        wanted.append(layer.stream().step(x))
    done = threading.Event()

    def write():
        for i in range(200):
            layer.params.flat = sets[i % 2]
        done.set()

    def step():
        while not done.is_set():
            y = layer.stream().step(x)
            assert any(np.array_equal(y, one) for one in wanted)

    on_threads(write, step, step)
