"""Thread settings and what show_config says."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import tidegate as tg
from tidegate import _core


def test_the_innermost_setting_of_this_thread_holds():
    outside = tg.get_num_threads()
    seen = []
    with tg.num_threads(outside + 3):
        assert tg.get_num_threads() == outside + 3
        with tg.num_threads(outside + 7):
            assert tg.get_num_threads() == outside + 7
            other = threading.Thread(target=lambda: seen.append(tg.get_num_threads()))
            other.start()
            other.join()
        assert tg.get_num_threads() == outside + 3
    assert tg.get_num_threads() == outside
    assert seen == [outside]


def test_a_block_left_by_an_error_restores():
    outside = tg.get_num_threads()
    with pytest.raises(RuntimeError, match=r"over"), tg.num_threads(outside + 1):
        raise RuntimeError("over")
    assert tg.get_num_threads() == outside


@pytest.mark.parametrize(
    ("count", "error"),
    [(0, ValueError), (-1, ValueError), (2**31, ValueError), (1.0, TypeError), ("2", TypeError)],
)
def test_wrong_counts(count, error):
    outside = tg.get_num_threads()
    with pytest.raises(error, match=r"^num_threads: "):
        tg.set_num_threads(count)
    with pytest.raises(error, match=r"^num_threads: "), tg.num_threads(count):
        pass
    assert tg.get_num_threads() == outside


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_process_setting_counts_for_every_thread():
    code = """
import threading, tidegate as tg
tg.set_num_threads(5)
seen = [tg.get_num_threads()]
thread = threading.Thread(target=lambda: seen.append(tg.get_num_threads()))
thread.start(); thread.join()
with tg.num_threads(2):
    seen.append(tg.get_num_threads())
print(seen)
"""
    assert run(code).stdout.strip() == "[5, 5, 2]"


def test_the_environment_sets_the_default():
    code = "import tidegate as tg; print(tg.get_num_threads()); tg.show_config()"
    output = run(code, TIDEGATE_NUM_THREADS="3").stdout
    assert output.startswith("3\n")
    assert "TIDEGATE_NUM_THREADS" in output


def test_an_empty_variable_counts_as_unset():
    code = "import tidegate as tg; print(tg.get_num_threads(), _core.num_threads_reason())"
    code = "from tidegate import _core; " + code
    unset, empty = (run(code, TIDEGATE_NUM_THREADS=count).stdout.strip() for count in ("1", ""))
    assert unset == "1 TIDEGATE_NUM_THREADS"
    assert empty
    assert not empty.endswith("TIDEGATE_NUM_THREADS")


# A stack that no address space holds; one that the system refuses, or that is too small for the
# kernels' frames; and no size, which is ignored.
@pytest.mark.parametrize(
    "size", ["1000000G", " 900000000 m ", "999999999999999", "1B", "16k", "33", "many"]
)
def test_threads_whose_stacks_find_no_place_or_are_too_small_are_not_made(size):
    """OpenMP's, that is: std::thread knows no such variable, and all threads are made."""
    code = """
import os, time
import numpy as np, tidegate as tg

def tasks():
    return len(os.listdir("/proc/self/task"))

before = tasks()
tg.set_num_threads(3)
layer = tg.GRU(16, 64, seed=0)
x = np.ones((20, 64, 16), np.float32)
tg._core.select_division("rows")
assert np.array_equal(layer(x, num_threads=3)[0], layer(x, num_threads=1)[0])
print(tasks() > before + 1)  # one may be the thread that tried to make the others
"""
    result = run(code, OMP_STACKSIZE=size)
    made = size == "many" or tg.config()["thread_runtime"] == "std::thread"
    assert (result.returncode, result.stdout) == (0, f"{made}\n"), result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_build_tells_what_makes_its_threads():
    code = """
import re
import numpy

def openmp():
    return set(re.findall(r"lib[gi]?omp\\b\\S*", open("/proc/self/maps").read()))

before = openmp()
import tidegate as tg
print(bool(before), bool(openmp() - before), tg.config()["thread_runtime"])
"""
    numpys, ours, runtime = run(code).stdout.strip().split(maxsplit=2)
    assert runtime == tg.config()["thread_runtime"]
    assert runtime in ("OpenMP (libgomp)", "OpenMP (libomp)", "std::thread")
    if numpys == "False":
        assert ours == str(runtime.startswith("OpenMP"))


@pytest.mark.parametrize("isa", _core.available_isas())
def test_the_environment_chooses_the_instruction_set(isa):
    code = "import tidegate as tg; print(tg.config()['isa'])"
    assert run(code, TIDEGATE_ISA=isa).stdout.strip() == isa


def test_an_unknown_instruction_set_fails_the_import():
    result = run("import tidegate", TIDEGATE_ISA="pentium")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    for word in ["TIDEGATE_ISA", "pentium", *_core.available_isas()]:
        assert word in last


def test_select_isa_refuses_unknown_names():
    before = _core.isa()
    with pytest.raises(ValueError, match=r"pentium"):
        _core.select_isa("pentium")
    assert _core.isa() == before


def test_config(capsys):
    c = tg.config()
    assert c["version"] == tg.__version__
    assert c["isa"] in c["available_isas"]
    assert c["num_threads"] == tg.get_num_threads() >= 1
    assert c["numpy"] == np.__version__
    assert tg.show_config() is None
    printed = capsys.readouterr().out
    for value in [c["version"], c["isa"], c["compiler"], c["num_threads_reason"], c["numpy"]]:
        assert str(value) in printed
    assert f"threads made by: {c['thread_runtime']}\n" in printed


def test_config_shows_the_measured_machine(capsys):
    with tg.num_threads(2):
        tg.show_config()
    printed = capsys.readouterr().out
    machine = tg.config()["machine"]
    assert machine["gflop_per_s"] > 0
    for team in machine["teams"]:  # none where no second thread is available
        assert team["threads"] >= 2
        assert 1 <= team["speedup"] <= team["threads"]
        assert team["barrier_ns"] > 0
    rates = {(read["bytes"], read["threads"]): read["gb_per_s"] for read in machine["read_rates"]}
    sizes = [2**k * 256 * 1024 for k in range(8)]
    assert {size for size, threads in rates if threads == 1} == set(sizes)
    assert all(rate > 0 for rate in rates.values())
    for name in ["arithmetic", "read 256 kB", "read 32 MB"]:
        assert name in printed
    tg.show_config()  # what was measured is kept
    kept = tg.config()["machine"]
    assert kept["gflop_per_s"] == machine["gflop_per_s"]
    for read in machine["read_rates"]:
        assert read in kept["read_rates"]


PLANS = """
import numpy as np, tidegate as tg
lstm = tg.LSTM(4, 8, seed=0)
for _ in range(3):
    lstm(np.zeros((3, 2, 4), np.float32))
stream = tg.GRU(4, 8, seed=0).stream(3)
for _ in range(3):
    stream.step(np.zeros((3, 4), np.float32))
_, _, tape = tg.GRU(4, 8, seed=0).forward(np.zeros((3, 2, 4), np.float32))
tg.GRU(4, 8, seed=0).backward(tape, np.zeros((3, 2, 8), np.float32))
"""


def test_the_environment_has_plans_explained():
    result = run(PLANS, TIDEGATE_PLAN="explain")
    assert result.returncode == 0
    lines = result.stderr.splitlines()
    assert all(line.startswith("tidegate: ") for line in lines)
    calls = [line.split(":")[1].strip() for line in lines]
    assert "forward of LSTM(4, 8) x 1, float32, T 3, N 2" in calls
    assert "step of GRU(4, 8) x 1, float32, T 1, N 3" in calls
    assert "backward of GRU(4, 8) x 1, float32, T 3, N 2" in calls
    assert len(calls) == len(set(calls)) == 4  # each choice once
    for line in lines:
        assert "1 thread " in line
        assert " us" in line


def test_plans_are_not_explained_unasked():
    for value in ["", "no"]:
        result = run(PLANS, TIDEGATE_PLAN=value)
        assert result.returncode == 0
        lines = result.stderr.splitlines()
        assert len(lines) == (1 if value else 0)
        assert all("TIDEGATE_PLAN" in line and "explain" in line for line in lines)
