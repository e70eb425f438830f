"""The self-test: it passes on what is right, and fails on whatever small thing is wrong."""

from __future__ import annotations

import numpy as np
import pytest

import tidegate as tg
from tidegate import _core, selftest


def run(capsys, *argv):
    code = selftest.main(argv)
    captured = capsys.readouterr()
    return code, captured.out


def test_it_passes_on_every_instruction_set(capsys):
    code, out = run(capsys)
    assert code == 0
    lines = out.splitlines()
    for isa in _core.available_isas():
        rows = [line.split() for line in lines if line.startswith(f"{isa} ")]
        assert [row[1] for row in rows] == list(selftest.PRECISIONS)
        for _, precision, cases, forward, backward, changed_bits in rows:
            assert int(cases) == len(selftest.NETWORKS) * len(selftest.SHAPES)
            assert 0 < float(forward) <= 1
            assert (0 < float(backward) <= 1) == (precision != "int8")
            assert changed_bits == "0"
    assert lines[-1].startswith("passed in ")


def test_one_case_of_one_instruction_set(capsys):
    isa = _core.available_isas()[0]
    code, out = run(capsys, "--isa", isa, "--case", "7", "--seed", "3")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines() if line.startswith(f"{isa} ")] == [
        [isa, precision, "1"] for precision in selftest.PRECISIONS
    ]


def test_settings_are_as_before(capsys):
    before = tg.config()
    run(capsys, "--case", "0")
    assert tg.config() == before


@pytest.mark.parametrize(
    "argv", [["--isa", "pentium"], ["--seed", "-1"], ["--case", "x"], ["--case", "-1"], ["more"]]
)
def test_wrong_arguments(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        selftest.main(argv)
    assert exit_.value.code == 2
    assert "usage: tidegate selftest" in capsys.readouterr().err


def off_by(values, index, relative):
    """Changes one element by a part of the largest."""
    values.flat[index] += values.dtype.type(relative) * np.abs(values).max()


def wrong_call(original):
    def run(self, x, *rest):
        y, state = original(self, x, *rest)
        off_by(y, -1, 1e-3)
        return y, state

    return run


def nan_call(original):
    def run(self, x, *rest):
        y, state = original(self, x, *rest)
        y.flat[0] = np.nan
        return y, state

    return run


def wrong_state(original):
    def record(self, *arguments, **options):
        y, state, tape = original(self, *arguments, **options)
        off_by(state[-1] if isinstance(state, tuple) else state, 0, 1e-3)
        return y, state, tape

    return record


def wrong_gradient(original):
    def backward(self, *arguments):
        dx, dstate, flat = original(self, *arguments)
        off_by(flat, flat.size // 2, 1e-3)
        return dx, dstate, flat

    return backward


def changed_bits(original):
    def backward(self, tape, dy, dstate, num_threads):
        dx, dstate, flat = original(self, tape, dy, dstate, num_threads)
        if num_threads == 3:
            flat[0] = np.nextafter(flat[0], np.inf, dtype=flat.dtype)
        return dx, dstate, flat

    return backward


def crash(original):
    def run(self, *arguments):
        raise MemoryError("of the test")

    return run


@pytest.mark.parametrize(
    ("method", "wrong", "message"),
    [
        ("run", wrong_call, "y of a call is off by"),
        ("run", nan_call, "y of a call is off by inf"),
        ("record", wrong_state, "_n is off by"),
        ("backward", wrong_gradient, "is off by"),
        ("backward", changed_bits, "has other bits on 3 threads"),
        ("run", crash, "MemoryError: of the test"),
    ],
)
def test_it_fails_on_a_wrong_result(method, wrong, message, capsys, monkeypatch):
    monkeypatch.setattr(_core.Model, method, wrong(getattr(_core.Model, method)))
    isa = _core.isa()
    for case in (0, 8):
        code, out = run(capsys, "--isa", isa, "--case", str(case))
        assert code == 1
        assert message in out
        assert f"tidegate selftest --isa {isa} --seed 0 --case {case}" in out
        assert out.splitlines()[-1].startswith("FAILED")


def test_progress_is_shown_on_a_terminal_alone(capsys, monkeypatch):
    selftest.main(["--case", "0"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    selftest.main(["--case", "0"])
    assert "100%" in capsys.readouterr().err
