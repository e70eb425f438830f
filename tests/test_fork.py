"""Forked children work and never hang, whatever ran before. Each test is a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tidegate as tg

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# What every script begins with. `works()` holds calls of 2 and 3 threads against one thread's bits;
# `in_child(f)` runs f in a forked child and fails if that fails, or takes longer than any call may.
PRELUDE = """
import multiprocessing, os, signal, sys, threading, time, traceback, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "This process .* is multi-threaded, use of fork")
import numpy as np
import tidegate as tg
from tidegate import _core

CHILD_SECONDS = 30
tg.set_num_threads(3)
layer = tg.GRU(16, 64, bidirectional=True, seed=0)
x = np.random.default_rng(0).standard_normal((6, 8, 16)).astype(np.float32)

def results(num_threads):
    y, h_n, tape = layer.forward(x, num_threads=num_threads)
    grads = layer.backward(tape, y, h_n, num_threads=num_threads)
    return b"".join(a.tobytes() for a in (y, h_n, grads.x, grads.state, grads.params.flat))

expected = results(1)

def works():
    for division in ("rows", "units"):
        _core.select_division(division)
        for num_threads in (2, 3):
            assert results(num_threads) == expected
    _core.select_division("auto")

def in_child(function):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + CHILD_SECONDS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.001)
    assert status == 0, status

def tasks():
    return len(os.listdir("/proc/self/task"))
"""


def run(script, *arguments):
    """Runs a script, which must end by itself, with all its threads and children, and succeed."""
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr


def test_the_child_is_the_first_to_use_threads():
    run("in_child(works)\nworks()\nin_child(works)")


def test_use_then_fork():
    run("works()\nin_child(works)\nworks()\nin_child(works)\nworks()")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tasks are counted in /proc")
def test_the_child_has_threads_again():
    run(
        """
works()
def child():
    assert tasks() == 1
    works()
    assert tasks() >= 3
in_child(child)
"""
    )


def test_many_forks():
    run(
        """
works()
for k in range(60):
    in_child(works)
    if k % 7 == 0:
        works()
"""
    )


def test_grandchildren():
    run(
        """
def generation(depth):
    works()
    if depth:
        in_child(lambda: generation(depth - 1))
        works()
generation(4)
"""
    )


def test_a_child_that_uses_no_threads_may_fork_on():
    run("works()\nin_child(lambda: in_child(lambda: in_child(works)))\nworks()")


def test_a_child_may_end_as_programs_do():
    # With its exit handlers and its static objects' ends, its threads still waiting for work.
    run(
        """
works()
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        works()
        sys.exit(0)
    deadline = time.monotonic() + CHILD_SECONDS
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.001)
    assert done[1] == 0
works()
"""
    )


def test_children_side_by_side():
    run(
        """
works()
def family():
    threads = [threading.Thread(target=in_child, args=(works,)) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
failures = []
threading.excepthook = lambda args: failures.append(args.exc_value)
family()
in_child(family)
works()
assert not failures, failures
"""
    )


@pytest.mark.parametrize("used_before", [True, False])
def test_multiprocessing(used_before):
    run(
        """
if sys.argv[1] == "True":
    works()
context = multiprocessing.get_context("fork")
def task(k):
    works()
    return k
with context.Pool(3) as pool:
    works()
    assert pool.map_async(task, range(12)).get(60) == list(range(12))
process = context.Process(target=works)
process.start()
process.join(60)
assert process.exitcode == 0
works()
""",
        used_before,
    )


def test_fork_in_the_middle_of_other_threads_calls():
    run(
        """
works()
stop = threading.Event()
wrong = []
def call():
    while not stop.is_set():
        if results(2) != expected:
            wrong.append(1)
_core.select_division("units")
threads = [threading.Thread(target=call, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
def child():
    for _ in range(3):
        assert results(2) == expected
for _ in range(40):
    in_child(child)
stop.set()
for thread in threads: thread.join()
assert not wrong
"""
    )


def test_fork_while_other_threads_change_and_pack_parameters():
    run(
        """
big = tg.LSTM(64, 256, seed=0)
sets = [tg.LSTM(64, 256, seed=seed).params.flat.copy() for seed in (1, 2)]
z = np.random.default_rng(0).standard_normal((1, 1, 64)).astype(np.float32)

def gradients(layer):
    y, _, tape = layer.forward(z)
    return layer.backward(tape, y).params.flat.tobytes()

def expected_gradients(values):
    layer = tg.LSTM(64, 256)
    layer.params.flat = values
    return gradients(layer)

expected = {values.tobytes(): expected_gradients(values) for values in sets}
stop = threading.Event()
def train():
    while not stop.is_set():
        for values in sets:
            big.params.flat = values
            gradients(big)
big.params.flat = sets[0]
threads = [threading.Thread(target=train, daemon=True) for _ in range(2)]
for thread in threads: thread.start()
def child():
    assert gradients(big) == expected[big.params.flat.tobytes()]
    in_child(lambda: gradients(big))
for _ in range(30):
    in_child(child)
stop.set()
for thread in threads: thread.join()
"""
    )


def test_tapes_and_streams_made_before_the_fork():
    run(
        """
_core.select_division("units")
tapes = []
for precision in (None, "bfloat16", "bfloat16-dot"):
    y, h_n, tape = layer.forward(x, num_threads=2, precision=precision)
    grads = layer.backward(tape, y, num_threads=2).params.flat.tobytes()
    tapes.append((tape, y, grads))
lstm = tg.LSTM(16, 64, seed=0)
streams = []
for each in (lstm, *map(lstm.quantize, ("bfloat16", "bfloat16-dot", "int8"))):
    whole = each(x)[0]
    stream = each.stream(8)
    for t in range(3):
        assert stream.step(x[t]).tobytes() == whole[t].tobytes()
    streams.append((stream, whole))
def go_on():
    for stream, whole in streams:
        for t in range(3, 6):
            assert stream.step(x[t]).tobytes() == whole[t].tobytes()
    for tape, y, grads in tapes:
        assert layer.backward(tape, y, num_threads=2).params.flat.tobytes() == grads
    lstm.params.flat = lstm.params.flat * 2
    stream.step(x[0])
in_child(go_on)
go_on()
"""
    )


def test_settings_are_the_parents():
    run(
        """
tg.set_num_threads(2)
def child():
    assert tg.get_num_threads() == 2
    with tg.num_threads(3):
        assert tg.get_num_threads() == 3
    assert tg.get_num_threads() == 2
in_child(child)
"""
    )


# ---- With another user of OpenMP -----------------------------------------------------------------

OPENMP_SOURCE = """
#include <omp.h>
int count_threads(int wanted) {
  int count = 0;
#pragma omp parallel num_threads(wanted)
  {
#pragma omp atomic
    ++count;
  }
  return count;
}
void run_inside(void (*body)(void)) {
#pragma omp parallel num_threads(2)
  {
#pragma omp master
    body();
  }
}
"""


@pytest.fixture(scope="module")
def openmp_library(tmp_path_factory):
    """A library that opens parallel regions of its own, as PyTorch does."""
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("openmp")
    source, library = folder / "user.c", folder / "user.so"
    source.write_text(OPENMP_SOURCE)
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-fopenmp", "-o", library, source],
        capture_output=True,
        check=False,
    )
    if built.returncode != 0:
        pytest.skip("the C compiler has no OpenMP")
    return library


LOAD = """
import ctypes
user = ctypes.CDLL(sys.argv[1])
def other_regions():
    assert user.count_threads(3) == 3
"""


@pytest.mark.parametrize("order", ["other first", "ours first", "other only", "mixed"])
def test_fork_after_another_openmp_user(order, openmp_library):
    # The other one's own regions may hang in a child (libgomp has no way out): only ours may not.
    run(
        LOAD
        + """
order = sys.argv[2]
if order == "other first":
    other_regions(); works()
elif order == "ours first":
    works(); other_regions()
elif order == "other only":
    other_regions()
else:
    for _ in range(3):
        other_regions(); works()
for _ in range(5):
    in_child(works)
    other_regions()
    works()
in_child(lambda: in_child(works))
""",
        openmp_library,
        order,
    )


def test_fork_beside_another_openmp_users_threads(openmp_library):
    run(
        LOAD
        + """
stop = threading.Event()
def regions():
    while not stop.is_set():
        other_regions()
thread = threading.Thread(target=regions)
thread.start()
works()
for _ in range(10):
    in_child(works)
works()
stop.set()
thread.join()
""",
        openmp_library,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tasks are counted in /proc")
def test_inside_another_users_region_a_call_has_one_thread(openmp_library):
    """Only OpenMP's team sees such a region: std::thread has all the threads asked for there."""
    with_openmp = tg.config()["thread_runtime"].startswith("OpenMP")
    if with_openmp and any((Path(tg.__file__).parent.parent / "tidegate.libs").glob("lib*omp*")):
        pytest.skip("the OpenMP run-time library of a repaired wheel does not see others' regions")
    run(
        LOAD
        + """
counts = []
def body():
    before = tasks()
    works()
    counts.append(tasks() - before)
user.run_inside(ctypes.CFUNCTYPE(None)(body))
assert counts == [0] if sys.argv[2] == "True" else counts[0] >= 2, counts
works()
assert tasks() >= 3
""",
        openmp_library,
        with_openmp,
    )
