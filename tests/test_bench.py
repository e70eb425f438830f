"""The benchmark itself: statistics, limits, checks, processes, files. No speed is asserted."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from bench import __main__ as command
from bench import latency, memory, plots, processes, report, runner, server, service, threads
from bench.contenders import MODULES, OURS, PEERS
from bench.grid import GATES, KINDS, Cell, suite
from bench.problem import make_problem
from bench.processes import Worker, WorkerFailed, choose_cpus
from bench.reference import solve
from bench.results import Results, ResultsError, compare, load, run_settings, summarize
from bench.runner import Budget, Ring, Settings, largest_error
from bench.sampling import Sampler
from bench.stats import estimate, geometric_mean, paired_ratios
from bench.worker import LIMITS
from tidegate import bench, reference

TINY = Cell("batch", "lstm", 5, 7, 3, 4)


# ---- Statistics


def test_an_interval_covers_the_median_surely_enough():
    # By brute force: of n fair coins, how likely do k..n-k show heads?
    for n in range(6, 16):
        interval = estimate(list(range(n)))
        k = int(interval.low) + 1
        assert interval.high == n - k
        covered = sum(k <= sum(coins) <= n - k for coins in itertools.product((0, 1), repeat=n))
        assert covered / 2**n >= 0.95
        closer = sum(k < sum(coins) < n - k for coins in itertools.product((0, 1), repeat=n))
        assert closer / 2**n < 0.95


def test_an_estimate_does_not_depend_on_the_order():
    assert estimate([3.0, 9.0, 1.0, 2.0, 5.0, 4.0]) == estimate([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])
    assert estimate([3.0, 9.0, 1.0, 2.0, 5.0, 4.0]).median == 3.5


def test_five_samples_have_no_interval():
    with pytest.raises(ValueError, match="got 5, wanted at least 6"):
        estimate([1.0] * 5)


def test_ratios_are_paired_by_round():
    assert paired_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        paired_ratios([1.0, 2.0], [1.0])


def test_geometric_mean():
    assert geometric_mean([1.0, 4.0, 16.0]) == pytest.approx(4)
    assert np.isnan(geometric_mean([]))


# ---- Grid and limits


def test_the_full_suite_has_every_cell_once():
    cells = suite("full", (1, 2))
    assert len({cell.id for cell in cells}) == len(cells)
    regimes = {cell.regime for cell in cells}
    grid = {"step", "sequence", "small batch", "batch", "stacked", "ragged"}
    assert regimes == {*grid, "field", "alone"}
    for regime in grid:
        own = [cell for cell in cells if cell.regime == regime]
        for kind, count in itertools.product(KINDS, (1, 2)):
            works = {cell.training for cell in own if (cell.kind, cell.threads) == (kind, count)}
            assert works == ({False} if regime == "step" else {False, True})
    assert {cell.dtype for cell in cells if not cell.training} == {"float32"}
    assert {cell.dtype for cell in cells if cell.training} == {"float32", "float64"}


def test_the_quick_suite_is_a_part_of_the_full_one():
    quick, full = suite("quick", (1, 2)), suite("full", (1, 2))
    assert {cell.id for cell in quick} <= {cell.id for cell in full}
    assert {cell.regime for cell in quick} == {cell.regime for cell in full}
    assert 20 <= len(quick) <= 40


def test_the_suite_in_low_precision():
    cells = suite("low", (1, 2))
    assert len({cell.id for cell in cells}) == len(cells) == 2 * (9 * 4 + 3)
    assert not {cell.id for cell in cells} & {cell.id for cell in suite("full", (1, 2))}
    assert {cell.arithmetic for cell in cells} == {"bfloat16", "int8"}
    size = {"bfloat16": 2, "int8": 1}
    for cell in cells:
        exact = replace(cell, precision="")
        assert cell.work().step_bytes * 4 == exact.work().step_bytes * size[cell.precision]


def test_a_cell_survives_json():
    cell = Cell("ragged", "gru", 8, 16, 4, 10, ragged=True, training=True, threads=2)
    assert Cell(**json.loads(json.dumps(cell.as_dict()))) == cell


def test_work_of_a_sequence():
    # 4 gates, I 3, H 5, T 2, N 7.
    work = bench.work_of_call(4, 3, 5, [7, 7])
    assert work.hoisted_flops == 2 * 2 * 7 * 4 * 5 * 3
    assert work.steps == ((2, 2 * 7 * 4 * 5 * 5),)
    assert work.step_bytes == 4 * 5 * 5 * 4
    assert work.flops == work.hoisted_flops + 2 * 2 * 7 * 4 * 5 * 5
    training = bench.work_of_call(4, 3, 5, [7, 7], training=True)
    assert training.flops == 3 * work.flops
    assert training.steps == ((4, 2 * 7 * 4 * 5 * 5),)


def test_work_of_one_step_reads_all_weights():
    work = bench.work_of_call(3, 3, 5, [2], num_layers=2, directions=2)
    weights = 2 * 3 * 5 * (3 + 5) + 2 * 3 * 5 * (10 + 5)
    assert work.hoisted_flops == 0
    assert work.steps == ((1, 2 * 2 * weights),)
    assert work.step_bytes == 4 * weights


def test_work_of_ragged_rows_counts_the_live_ones():
    work = bench.work_of_call(3, 4, 4, [3, 2, 2, 0])
    assert work.hoisted_flops == 2 * 7 * 3 * 4 * 4
    assert work.steps == ((1, 2 * 3 * 48), (2, 2 * 2 * 48))
    cell = replace(TINY, ragged=True)
    assert cell.work().flops < TINY.work().flops
    assert cell.lengths().min() >= 1
    assert cell.lengths().max() <= cell.steps


def test_a_limit_is_flops_or_bytes_whichever_takes_longer():
    work = bench.Work(hoisted_flops=100, steps=((3, 20), (1, 400)), step_bytes=40, directions=1)
    # Steps of 20 flops take 2 s by arithmetic but 4 by reading; that of 400 takes 40 by arithmetic.
    assert work.limit(flop_rate=10, byte_rate=10) == pytest.approx(10 + 3 * 4 + 40)


def test_threads_share_the_weights():
    work = bench.Work(0, ((1, 1),), step_bytes=100, directions=2)
    assert [work.thread_bytes(threads) for threads in (1, 2, 4)] == [100, 100, 50]


def test_rates_are_those_of_all_threads(monkeypatch):
    monkeypatch.setattr(bench._core, "product_rate", {"float32": 12.0, "int8": 24.0}.get)
    monkeypatch.setattr(bench._core, "read_rate", lambda size: float(size))
    assert bench.product_rate("float32", 1) == 12e9
    assert bench.product_rate("int8", 3) == 72e9
    assert bench.read_rate(5000, 2) == 10000e9
    assert bench.read_rate(1, 1) == 1024e9  # the least that can be measured


# ---- The check


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True}, {"ragged": True, "bidirectional": True}],
    ids=["plain", "stacked", "ragged"],
)
def test_the_check_agrees_with_the_specification(kind, options):
    cell = Cell("check", kind, 5, 7, 4, 6, training=True, dtype="float64", **options)
    problem = make_problem(cell)
    make = {"lstm": reference.LSTM, "mgu": reference.MGU}.get(kind, reference.GRU)
    form = {"reset_after": kind == "gru"} if make is reference.GRU else {}
    sizes = (cell.input_size, cell.hidden_size, cell.num_layers)
    network = make(*sizes, bidirectional=cell.bidirectional, **form)
    state = problem.state if kind == "lstm" else problem.h_0
    y, state_n, tape = network.forward(problem.params, problem.x, state, lengths=problem.lengths)
    grads = network.backward(tape, problem.dy)
    wanted = {"y": y, "dx": grads.x} | {f"d{name}": g for name, g in grads.params.items()}
    pairs = zip(*((s if kind == "lstm" else (s,)) for s in (state_n, grads.state)))
    for name, (last, gradient) in zip("hc", pairs, strict=False):
        wanted |= {f"{name}_n": last, f"d{name}_0": gradient}
    got = solve(problem)
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-13, err_msg=name)


def test_errors_are_relative_to_the_largest_element():
    wanted = {"y": np.array([1.0, -4.0]), "h_n": np.array([0.5])}
    assert largest_error(wanted, wanted)[0] == 0
    error, name = largest_error({"y": np.array([1.2, -4.0]), "h_n": np.array([0.51])}, wanted)
    assert (error, name) == (pytest.approx(0.05), "y")


@pytest.mark.parametrize(
    "got",
    [{}, {"y": np.zeros(3)}, {"y": np.array([1.0, np.nan])}],
    ids=["missing", "shape", "nan"],
)
def test_what_cannot_be_right_is_infinitely_wrong(got):
    assert largest_error(got, {"y": np.array([1.0, 2.0])}) == (np.inf, "y")


# ---- Processes


def ring_settings(**options):
    return Settings(
        **({"contenders": (OURS,), "min_rounds": 6, "max_rounds": 6, "sample_ms": 0.01} | options)
    )


def test_processors_are_different_and_allowed():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")
    allowed = os.sched_getaffinity(0)
    assert sorted(choose_cpus(len(allowed))) == sorted(allowed)
    with pytest.raises(ValueError, match="threads: got"):
        choose_cpus(len(allowed) + 1)


@pytest.mark.parametrize("name", PEERS)
def test_peers_compute_the_same(name, tmp_path):
    cells = [
        TINY,
        Cell("step", "gru-before", 5, 7, 2, 1),
        Cell("stacked", "gru", 5, 7, 3, 4, num_layers=2, bidirectional=True, training=True),
        Cell("ragged", "lstm", 5, 7, 4, 6, ragged=True),
        Cell("alone", "mgu", 5, 7, 3, 4, training=True),
        *(
            Cell("batch", kind, 20, 24, 3, steps, precision=precision)
            for kind, steps, precision in itertools.product(
                ("lstm", "gru"), (1, 4), ("bfloat16", "int8")
            )
        ),
    ]
    worker = Worker(name, 1, choose_cpus(1), 120)
    results = tmp_path / "results.npz"
    try:
        for cell in cells:
            try:
                worker.begin()
            except WorkerFailed as error:
                pytest.skip(str(error))
            reply = worker.ask("prepare", cell=cell.as_dict(), results=str(results))
            assert cell.kind != "mgu" or "lacks" in reply
            if "lacks" not in reply:
                with np.load(results) as got:
                    error = largest_error(dict(got), solve(make_problem(cell)))[0]
                if cell.precision:
                    assert 1e-4 < error < (0.05 if cell.precision == "bfloat16" else 0.5), cell.id
                else:
                    assert error < 1e-6, cell.id
                assert worker.ask("go")["ns"] > 0
            worker.end()
    finally:
        worker.close()


def test_a_cell_is_checked_and_measured():
    told = []
    cell = replace(TINY, training=True)
    with Ring(1, ring_settings()) as ring:
        record = ring.measure(cell, 0, told.append)
        assert OURS in ring.versions()[OURS]
    entry = record["contenders"][OURS]
    assert entry["status"] == "ok"
    assert len(entry["ns"]) == 6
    assert entry["error"] < 1e-6
    assert entry["peak_bytes"] >= 0
    assert record["limits"]["flops"] == cell.work().flops
    assert record["limits"]["limit_ns"] > 0
    assert told == []
    json.dumps(record, allow_nan=False)


class _SlowAtFirst:
    """A task whose first calls take long, whatever it is that keeps them."""

    change = None

    def __init__(self, calls):
        self.left = calls

    def run(self):
        self.left -= 1
        if self.left >= 0:
            time.sleep(0.025)


def test_a_sample_calibrated_in_a_bad_moment_gets_more_calls():
    task = _SlowAtFirst(3)
    sampler = Sampler(task)
    sampler.calibrate(2e6)
    assert (sampler.calls, task.left) == (1, 0)  # all that it saw was slow
    sampler.sample()
    assert sampler.calls > 1


def test_a_wrong_contender_is_thrown_out_loudly(monkeypatch):
    told = []
    monkeypatch.setattr(runner, "solve", lambda problem: {"y": solve(problem)["y"] * 1.01})
    with Ring(1, ring_settings()) as ring:
        record = ring.measure(TINY, 0, told.append)
    entry = record["contenders"][OURS]
    assert entry["status"] == "wrong"
    assert "ns" not in entry
    assert len(told) == 1
    assert "WRONG" in told[0]
    assert summarize(record).ours is None


def test_a_worker_that_dies_can_begin_again():
    worker = Worker(OURS, 1, [], 60)
    try:
        worker.begin()
        os.kill(worker._pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match=r"SIGKILL|ended"):
            worker.ask("prepare", cell=TINY.as_dict(), results=None)
        worker.end()
        worker.begin()
        assert "peak_bytes" in worker.ask("prepare", cell=TINY.as_dict(), results=None)
        worker.end()
    finally:
        worker.close()


def test_a_failure_is_told_and_the_worker_goes_on():
    worker = Worker(OURS, 1, [], 60)
    try:
        worker.begin()
        cell = TINY.as_dict() | {"hidden_size": -1}
        with pytest.raises(WorkerFailed, match="Error"):
            worker.ask("prepare", cell=cell, results=None)
        assert "peak_bytes" in worker.ask("prepare", cell=TINY.as_dict(), results=None)
    finally:
        worker.close()


def test_a_worker_that_does_not_answer_is_given_up():
    worker = Worker(OURS, 1, [], 60)
    try:
        worker.begin()
        worker.ask("prepare", cell=TINY.as_dict(), results=None)
        worker._timeout = 0.05
        with pytest.raises(WorkerFailed, match="no answer"):
            worker.ask("run_for", seconds=60)
    finally:
        worker.close()


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc")  # noqa: PTH112
def test_whoever_is_not_quiet_is_stopped_and_goes_on():
    worker = Worker(OURS, 1, [], 60)
    try:
        worker.begin()
        worker.ask("prepare", cell=TINY.as_dict(), results=None)
        worker.send("run_for", seconds=0.3)
        assert worker.wait_until_quiet(0.02) < 0.3
        assert worker._stopped
        worker._resume()
        assert worker.receive()["calls"] > 0
        assert worker.wait_until_quiet(5) < 5
        assert not worker._stopped
    finally:
        worker.close()


def test_a_budget_gives_what_is_left_to_what_is_left():
    cells = [TINY, replace(TINY, batch=64, hidden_size=1024, steps=100), TINY]
    budget = Budget(cells, 1000, 5)
    assert budget.remaining() == 1000
    shares = []
    for _ in cells:
        shares.append(budget.next())
        budget.finish_one()
    assert shares[0] < shares[1]
    assert shares[2] == pytest.approx(1000, rel=1e-3)
    assert Budget(cells, 0, 5).next() == 0


# ---- Files and reports


def make_record(cell=TINY, ours=10.0, theirs=None, limit=8.0):
    entries = {
        name: {
            "status": "ok",
            "ns": [ns * (1 + 0.001 * k) for k in range(7)],
            "calls": 1,
            "error": 1e-7,
            "peak_bytes": 1000,
            "call_bytes": 900,
            "quiet_ms": [0.5] * 7,
        }
        for name, ns in ({OURS: ours} | (theirs or {"torch": 20.0, "jax": 30.0})).items()
    }
    entries["onnxruntime"] = {"status": "lacks", "why": "training"}
    entries["openvino"] = {"status": "missing", "why": "no such module"}
    limits = {"flops": 100, "thread_bytes": 4096, "limit_ns": limit}
    rates = {"fma_rate": 1e11, "read_rate": 1e11, "sgemm_rate": 9e10}
    return {
        "cell": cell.as_dict(),
        "load": 0.0,
        "contenders": entries,
        "limits": limits | rates,
        "seconds": 1.0,
    }


def make_results(path, *records, **options):
    results = Results(path, run_settings("quick", ring_settings(**options)))
    for record in records:
        results.add(Cell(**record["cell"]), record, {OURS: {OURS: "1"}})
    return results


def test_a_summary():
    summary = summarize(make_record())
    assert summary.ours.median == pytest.approx(10.03)
    assert summary.reached == pytest.approx(8 / 10.03)
    assert summary.best == "torch"
    assert summary.ratio.median == pytest.approx(2)
    assert summary.absent == {"onnxruntime": "lacks", "openvino": "missing"}
    assert not summary.behind
    assert summarize(make_record(theirs={"jax": 9.9})).behind  # certainly, if by little
    assert summarize(make_record(theirs={"jax": 9.0})).behind


def test_results_are_kept_as_they_come_and_gone_on_with(tmp_path):
    path = tmp_path / "results.json"
    other = replace(TINY, hidden_size=9)
    make_results(path, make_record())
    again = make_results(path)
    again.resume()
    assert again.has(TINY)
    assert not again.has(other)
    again.add(other, make_record(other), {})
    data = load(path)
    assert set(data["cells"]) == {TINY.id, other.id}
    assert not list(tmp_path.glob("*.part"))


def test_the_file_says_what_ran(tmp_path):
    path = tmp_path / "results.json"
    make_results(path, make_record())
    data = json.loads(path.read_text())
    assert set(data) == {"format", "machine", "settings", "versions", "cells"}
    assert {"cpu", "cpus", "caches", "isa", "versions", "date", "build"} <= set(data["machine"])
    assert {"python", "numpy", "compiler", "tidegate"} <= set(data["machine"]["versions"])
    assert data["settings"]["suite"] == "quick"
    summary = data["cells"][TINY.id]["summary"]
    assert set(summary["peers"]["torch"]) == {"median", "low", "high"}
    assert summary["best"] == "torch"


@pytest.mark.parametrize("key", ["machine", "settings"])
def test_results_of_another_kind_are_not_gone_on_with(tmp_path, key):
    path = tmp_path / "results.json"
    make_results(path, make_record())
    data = json.loads(path.read_text())
    data[key]["isa" if key == "machine" else "sample_ms"] = "other"
    path.write_text(json.dumps(data))
    with pytest.raises(ResultsError, match=r"other.*--fresh"):
        make_results(path).resume()


def test_a_contender_must_not_change_on_the_way(tmp_path):
    results = make_results(tmp_path / "results.json", make_record())
    with pytest.raises(ResultsError, match="tidegate was"):
        results.add(TINY, make_record(), {OURS: {OURS: "2"}})


@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": 0}'])
def test_a_file_that_holds_no_results(tmp_path, text):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultsError, match=r"results\.json"):
        load(path)


def test_comparison_is_held_against_the_limit(tmp_path):
    other = replace(TINY, hidden_size=9)
    old = make_results(None, make_record(ours=10), make_record(other, ours=10)).data
    # One is slower by half; the other took longer by half on a machine that did so too.
    slow, same = make_record(ours=15), make_record(other, ours=15, limit=12)
    new = make_results(None, slow, same).data
    first, second = compare(old, new)
    assert first.cell == TINY
    assert (first.time, first.relative) == (pytest.approx(1.5), pytest.approx(1.5))
    assert first.certain
    assert (second.time, second.relative) == (pytest.approx(1.5), pytest.approx(1))
    assert not second.certain
    text = report.comparison([first, second], 0.05)
    assert "slower by more than 5%: 1" in text
    assert TINY.id in text
    assert other.id not in text
    assert "faster by more than 5%: 1" in report.comparison(compare(new, old), 0.05)


def many_records():
    return [
        make_record(replace(TINY, threads=threads, training=training, hidden_size=hidden))
        for threads in (1, 2)
        for training in (False, True)
        for hidden in (128, 256)
    ]


def test_tables_name_every_cell_and_contender():
    data = make_results(None, *many_records()).data
    for text in (report.table(data), report.full_markdown(data)):
        for name in MODULES:
            assert name in text
        assert "lstm 5->128 N3 T4" in text
        assert "2.00" in text
        assert "lacks" in text
        assert "missing" in text
        assert "80%" in text
    short = report.short_markdown(data).splitlines()
    columns = {line.count("|") for line in short if line.startswith("|")}
    assert columns == {7}
    assert any("2.00 (2.00, 2.00)" in line for line in short)


def test_the_verdict_names_what_misses():
    behind = make_record(replace(TINY, hidden_size=256), theirs={"torch": 5.0}, limit=1.0)
    lines = "\n".join(report.verdict(make_results(None, make_record(), behind).data))
    assert "cells behind a peer: 1" in lines
    assert "below their part of the limit: 2 of 2" in lines  # of the other one: 80 %, wanted 82
    assert "10% (wanted: 88%)" in lines
    assert "not installed: openvino" in lines


def records_without_peers():
    """Of cells that no peer has."""
    records = []
    for training in (False, True):
        record = make_record(Cell("alone", "mgu", 5, 256, 3, 4, training=training))
        for name in ("torch", "jax", "onnxruntime"):
            record["contenders"][name] = {"status": "lacks", "why": "an MGU"}
        records.append(record)
    return records


@pytest.mark.parametrize("others", [[], many_records()], ids=["alone", "beside others"])
def test_cells_without_peers(others, tmp_path):
    data = make_results(None, *others, *records_without_peers()).data
    summary = summarize(records_without_peers()[0])
    assert (summary.peers, summary.best, summary.ratio) == ({}, None, None)
    assert not summary.behind
    assert report.cell_line(summary).endswith("80% of limit")
    for text in (report.table(data), report.full_markdown(data)):
        line = next(line for line in text.splitlines() if "mgu 5->256 N3 T4" in line)
        assert line.split().count("lacks") == 3
        assert "80%" in line
        assert "x" not in line
        assert "nan" not in text
    short = report.short_markdown(data)
    assert "nan" not in short
    columns = 2 if others else 1
    ratio, limit = ["-"] * columns, ["80% (80%, 80%)"] + ["-"] * (columns - 1)
    for work in ("inference", "fwd+bwd"):
        assert f"| alone | {work} | {' | '.join(ratio + limit)} |" in short
    verdict = "\n".join(report.verdict(data))
    assert ("geometric mean" in verdict) == bool(others)
    assert "cells behind a peer: 0" in verdict
    assert compare(data, data)[0].relative == 1
    pytest.importorskip("matplotlib")
    plots.draw(data, tmp_path)


def doubtful_record():
    """The best peer has been disturbed, and another one in every call; ours beats its limit."""
    record = make_record(theirs={"torch": 20.0, "jax": 13157 * 10.0}, limit=11.0)
    samples = record["contenders"]["torch"]["ns"]
    samples[2:] = [ns * (1000 + k) for k, ns in enumerate(samples[2:])]
    return record


def test_implausible_figures_are_remarked_on():
    assert not summarize(make_record()).remarks
    remarks = summarize(doubtful_record()).remarks
    assert set(remarks) == {"torch", "jax", "limit"}
    assert "its samples range from 20 to" in remarks["torch"]
    assert "its samples agree" in remarks["jax"]
    assert "above 100 %" in remarks["limit"]
    ours = make_record()
    ours["contenders"][OURS]["ns"][3:] = [1e5] * 4
    assert "Tidegate's samples range from 10 to 100000 ns" in summarize(ours).remarks["torch"]


def test_a_large_ratio_that_is_steady_and_of_a_calls_overhead_is_plausible():
    assert not summarize(make_record(theirs={"jax": 900.0})).remarks


def test_implausible_figures_are_marked_and_left_out_of_the_means():
    record = doubtful_record() | {"cell": replace(TINY, hidden_size=9).as_dict()}
    data = make_results(None, make_record(), record).data
    lines = "\n".join(report.verdict(data))
    assert "geometric mean of best peer's time / Tidegate's 2.00 over 1 cells" in lines
    assert "implausible figures, marked with ?, not in the means: 3" in lines
    assert re.search(r"jax 13157\.00 \[.*\]: its samples agree", lines)
    assert re.search(r"110% of the limit: above 100 %", lines)
    table = report.table(data)
    assert "13157.00?" in table
    assert "110%?" in table
    short = report.short_markdown(data)
    assert "2.00 (2.00, 2.00)" in short
    assert "Left out: 1 ratios that are implausible." in short
    doubtful = [s for s in map(summarize, data["cells"].values()) if s.remarks]
    assert report.cell_line(doubtful[0]).endswith("DOUBTFUL: torch, jax, limit")


@pytest.mark.parametrize(
    ("ns", "text"), [(12.0, "12 ns"), (1234.0, "1.23 us"), (5.67e6, "5.67 ms"), (2.5e9, "2.5 s")]
)
def test_times_have_a_unit(ns, text):
    assert report.time_text(ns) == text


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    paths = plots.draw(make_results(None, *many_records()).data, tmp_path / "new")
    assert [path.name for path in paths] == ["ratios.png", "limits.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


# ---- Commands


def test_list(capsys):
    assert command.main(["list", "--cells", "ragged"]) == 0
    out = capsys.readouterr().out
    assert "ragged: gru 128 ragged N32 T100 training 1t" in out
    assert "2 cells" in out


def test_run_report_compare(capsys, tmp_path):
    out = tmp_path / "new" / "results.json"
    argv = ["--cells", "^step: lstm", "--threads", "1", "--contenders", OURS, "--min-rounds", "6"]
    argv += ["--max-rounds", "6", "--sample-ms", "0.01", "--minutes", "0.01", "--out", str(out)]
    assert command.main(argv) == 0
    printed = capsys.readouterr().out
    assert "[1/1, " in printed
    assert re.search(r"step: lstm 64 N1 T1 inference 1t: .* of limit", printed)
    before = out.read_text()
    assert command.main(argv) == 0
    assert "1 of 1 cells are in" in capsys.readouterr().out
    assert out.read_text() == before
    markdown = tmp_path / "short.md"
    assert command.main(["report", str(out), "--markdown", str(markdown)]) == 0
    assert "| step |" in markdown.read_text()
    assert command.main(["compare", str(out), str(out)]) == 0
    capsys.readouterr()
    slower = json.loads(before)
    for record in slower["cells"].values():
        record["contenders"][OURS]["ns"] = [2e9] * 6
    other = tmp_path / "slower.json"
    other.write_text(json.dumps(slower))
    assert command.main(["compare", str(out), str(other)]) == 1
    assert command.main([*argv, "--suite", "full"]) == 2
    assert "its suite is quick, now it is full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bogus"], "bogus"),
        (["--threads", "0"], "at least 1"),
        (["--threads", "100000"], "processors"),
        (["--contenders", "foo"], "foo"),
        (["--min-rounds", "3"], "at least 6"),
        (["--cells", "("], "unterminated"),
        (["--minutes", "0"], "above 0"),
    ],
)
def test_wrong_arguments(capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        command.main(argv)
    assert message in capsys.readouterr().err


def test_latency(capsys, monkeypatch):
    monkeypatch.setattr(latency, "STEP_SIZES", (1, 64))
    monkeypatch.setattr(latency, "_python", lambda code: "0.01")
    assert command.main(["latency", "--rounds", "6", "--sample-ms", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "wanted: at most 0.4 us" in out
    assert "import beyond NumPy's: 10.0 ms" in out


def test_importing_is_timed_in_a_new_process():
    assert 0 < float(latency._python(latency._IMPORT)) < 60


def test_threads(monkeypatch):
    try:
        choose_cpus(2)
    except ValueError:
        pytest.skip("needs two processors")
    monkeypatch.setattr(threads, "PERIOD_SECONDS", 0.001)
    monkeypatch.setattr(threads, "_SHARING_SECONDS", 0.01)
    tiny = replace(TINY, threads=2)
    monkeypatch.setattr(threads, "_SHARING", {"rows": tiny})
    told = []
    figures = threads.measure([TINY], 6, 0.01, told.append)
    json.dumps(figures)
    assert len(told) == 3
    assert figures["idle"]["spaced_us"] > 0
    assert [f["division"] for f in figures["sharing"]] == ["rows"]
    assert "others" in threads.text(figures)


def test_memory(monkeypatch):
    monkeypatch.setattr(memory, "STEPS", (2, 4))
    monkeypatch.setattr(memory, "_CELLS", [replace(TINY, training=True)])
    told = []
    (figures,) = memory.measure((OURS,), 60, told.append)
    assert set(figures["peak_bytes"]) == {2, 4}
    assert "bytes a step, row and unit" in told[0]


# ---- A service

LOAD = server.Load(clients=3, workers=2, threads=1, cpus=[], period=0.004, seconds=0.02)


def serve(*contenders):
    return service.measure(contenders, LOAD, 0.002, 1, 60, lambda line: None)


@pytest.mark.parametrize("name", [OURS, "torch", "onnxruntime"])
def test_a_service_is_checked_and_measured(name):
    figures = serve(name)
    turns = [turn for each in figures["services"] for turn in each["turns"]]
    if turns[0]["status"] == "missing":
        pytest.skip(turns[0]["why"])
    assert [turn["status"] for turn in turns] == ["ok"] * 3
    for turn in turns:
        assert turn["error"] < 1e-6
        assert 0 < turn["latency_ms"]["p50"] <= turn["latency_ms"]["max"]
        assert turn["cpu"] > 0
        assert 1 <= turn["frames_per_call"] <= 2
        assert turn["memory"] is None or turn["memory"] > turn["worker_peak"] / 2
    assert turns[0]["frames_per_call"] == 1
    assert f"{name}, batched each 2 ms" in service.text(json.loads(json.dumps(figures)))


def test_who_cannot_serve_is_left_out(monkeypatch):
    (first, *_) = serve("openvino")["services"]
    assert first["turns"][0]["status"] in ("lacks", "missing")
    monkeypatch.setattr(service, "solve", lambda problem: {"y": solve(problem)["y"] * 1.01})
    figures = serve(OURS)
    assert [each["turns"][0]["status"] for each in figures["services"]] == ["wrong"] * 3
    assert "off by" in service.text(figures)


def test_a_service_that_does_not_answer_is_given_up():
    job = server.Job(LOAD, OURS, batched=True, tick=0, seed=0, wanted="")
    assert service._serve(job, 60)["status"] == "failed"  # there is no such file
    reply = service._serve(replace(job, load=replace(LOAD, seconds=60)), -59.99)
    assert reply == {"status": "failed", "why": "no answer within 0.01 s"}


def test_a_worker_that_dies_is_told():
    pipe, theirs = multiprocessing.Pipe()
    theirs.close()
    with pipe, pytest.raises(server._WorkerFailed, match="a worker died"):
        server._receive([pipe])


class FakeTime:
    """Clocks that stand still but for sleeping."""

    def __init__(self):
        self.now = 100.0

    def sleep(self, seconds):
        self.now += seconds

    def perf_counter(self):
        return self.now

    process_time = perf_counter


def run_load(monkeypatch, seconds, phases, batched, tick, call_seconds):
    """Clients that send the numbers of their frames: who stepped with which, and the report."""
    clock = FakeTime()
    monkeypatch.setattr(server, "time", clock)
    calls = []

    def step(rows, x):
        calls.append((rows.tolist(), x[:, 0].tolist()))
        clock.sleep(call_seconds[len(calls) - 1])

    load = replace(LOAD, period=4.0, seconds=seconds)
    job = server.Job(load, OURS, batched, tick, seed=0, wanted="")
    x = np.repeat(np.arange(2.0), len(phases)).reshape(2, -1, 1)
    return calls, server.run_load(step, x, job, np.array(phases), start=100.0)


def test_latency_counts_from_when_a_frame_was_due(monkeypatch):
    # Frames are due at 0, 1, 4, 5, 8, 9. During the first call three become so, but no call has a
    # client twice.
    took = [7.0, 0.5, 2.0, 0.5]
    calls, result = run_load(monkeypatch, 12, [0.0, 1.0], True, 0, took)
    assert calls == [([0], [0]), ([1, 0], [0, 1]), ([1], [1]), ([0, 1], [0, 0])]
    assert result.latencies.tolist() == [7, 6.5, 3.5, 4.5, 2, 1]
    assert result.calls.tolist() == took
    assert (result.cpu, result.seconds) == (10, 10)


def test_one_at_a_time(monkeypatch):
    calls, result = run_load(monkeypatch, 8, [0.0, 1.0], False, 0, [3.0, 1.0, 1.0, 1.0])
    assert calls == [([0], [0]), ([1], [0]), ([0], [1]), ([1], [1])]
    assert result.latencies.tolist() == [3, 3, 1, 1]


def test_frames_wait_for_a_tick(monkeypatch):
    calls, result = run_load(monkeypatch, 4, [1.0, 2.5], True, 3.0, [0.5])
    assert calls == [([0, 1], [0, 0])]
    assert result.latencies.tolist() == [2.5, 1.0]


def test_the_services_command(capsys, tmp_path):
    path = tmp_path / "figures.json"
    argv = "service --contenders tidegate --clients 2 --workers 3 --period-ms 4 --tick-ms 2"
    argv += f" --cpus 1 --seconds 0.01 --rounds 1 --json {path}"
    assert command.main(argv.split()) == 0
    assert "2 clients, a frame each 4 ms; 2 workers of 1 thread(s) on 1" in capsys.readouterr().out
    assert len(json.loads(path.read_text())["services"]) == 3
    with pytest.raises(SystemExit, match="2"):
        command.main(["service", "--cpus", "100000"])
    assert "wanted at most" in capsys.readouterr().err


# ---- The short form


@pytest.fixture
def small_bench(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", [("LSTM", 3, 5, 1, 4), ("GRU", 3, 5, 2, 4)])
    monkeypatch.setattr(bench, "STEP_SIZES", [1])
    monkeypatch.setattr(bench, "STEPS_A_ROUND", 3)
    monkeypatch.setattr(bench._core, "product_rate", {"float32": 100.0, "float64": 50.0}.get)
    monkeypatch.setattr(bench._core, "read_rate", lambda size: 50.0)


def test_the_limit_is_of_the_best_readings(monkeypatch, small_bench):
    rates = itertools.cycle([50.0, 100.0, 25.0])
    monkeypatch.setattr(bench._core, "product_rate", lambda precision: next(rates))
    monkeypatch.setattr(bench._core, "read_rate", lambda size: 1e9)
    figures = bench.measure(1, 3)
    call = bench._Call(*bench.SHAPES[0], training=False)
    assert figures["calls"][0]["limit_seconds"] == call.work.limit(100e9, 1e18)


def test_calls_above_their_limit_are_remarked_on(capsys, monkeypatch, small_bench):
    assert bench.main(["--threads", "1", "--rounds", "1"]) == 0
    assert "above 100 % of their limit" not in capsys.readouterr().out
    monkeypatch.setattr(bench._core, "product_rate", lambda precision: 1e-9)
    assert bench.main(["--threads", "1", "--rounds", "1"]) == 0
    assert "4 of 4 calls are above 100 % of their limit" in capsys.readouterr().out


def test_the_short_form(capsys, tmp_path, small_bench):
    path = tmp_path / "figures.json"
    assert bench.main(["--threads", "1", "--rounds", "2", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "FMA, float32      100.0 GFLOP/s" in out
    assert "stream.step(x, out=y)" in out
    data = json.loads(path.read_text())
    assert [call["training"] for call in data["calls"]] == [False, True] * 2
    assert all(call["seconds"] > 0 and call["reached"] > 0 for call in data["calls"])
    assert {step["cell"] for step in data["stream_steps"]} == {"LSTM", "GRU", "MGU"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--threads", "0"], "at least 1"),
        (["--threads", "100000"], "a call may use"),
        (["--rounds", "0"], "at least 1"),
        (["--json", "no/such/folder/f.json"], "cannot be written to"),
    ],
)
def test_wrong_arguments_of_the_short_form(capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        bench.main(argv)
    assert message in capsys.readouterr().err


def test_workers_leave_the_environment_alone():
    worker = Worker(LIMITS, 1, [], 60)
    worker.close()
    assert worker._environment["OMP_NUM_THREADS"] == "1"
    assert worker._environment["PYTHONPATH"].startswith(str(processes.ROOT))
