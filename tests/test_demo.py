"""The demo through the command line: what it prints, saves, refuses and reaches."""

import re
import sys

import numpy as np
import pytest

import tidegate as tg
from tidegate import cli, demo

# Small enough for a second.
QUICK = ["demo", "--epochs", "2", "--hidden", "8"]


def accuracy(out):
    return float(re.search(r"^test accuracy ([\d.]+)%", out, re.MULTILINE)[1]) / 100


def test_data_are_the_published_ones():
    (train_x, train_y), (test_x, test_y) = demo.load("train"), demo.load("test")
    assert np.bincount(train_y).tolist() == [30] * 9
    assert np.bincount(test_y).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert len(train_x) == 270
    assert len(test_x) == 370
    lengths = [len(utterance) for utterance in train_x + test_x]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert all(u.shape[1:] == (12,) and u.dtype == np.float32 for u in train_x + test_x)
    assert all(np.isfinite(u).all() for u in train_x + test_x)


def test_pad():
    x, lengths = demo.pad([np.ones((2, 12), np.float32), np.full((3, 12), 2, np.float32)])
    assert x.shape == (3, 2, 12)
    assert lengths.tolist() == [2, 3]
    assert x[:, :, 0].tolist() == [[1, 2], [1, 2], [0, 2]]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gradients_agree_with_finite_differences(cell):
    """The network as a whole, in double precision, without dropout."""
    rng = np.random.default_rng(0)
    net = demo.SpeakerNet(cell, 3, rng)
    net.rnn, net.head, net.dropout = net.rnn.astype(float), net.head.astype(float), tg.Dropout(0)
    net.params = [net.rnn.params, net.head.params]
    x, lengths = rng.standard_normal((6, 4, 12)), np.array([6, 2, 4, 1])
    speakers = np.array([0, 8, 3, 3])
    _, grads = net.loss_and_gradients(x, lengths, speakers, rng)
    step = 1e-6
    for params, gradient in zip(net.params, grads, strict=True):
        for k in rng.choice(params.flat.size, 20, replace=False):
            around = []
            for sign in (1, -1):
                with params.update() as flat:
                    flat[k] += sign * step
                around.append(tg.losses.softmax_cross_entropy(net(x, lengths), speakers)[0])
                with params.update() as flat:
                    flat[k] -= sign * step
            want = (around[0] - around[1]) / (2 * step)
            assert gradient.flat[k] == pytest.approx(want, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_it_prints_every_part_and_saves_what_it_trained(cell, tmp_path, capsys):
    file = tmp_path / "speakers.safetensors"
    assert cli.main([*QUICK, "--cell", cell, "--save", str(file)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{cell.upper()}(12, 8, bidirectional=True) -> ")
    assert "270 utterances to train on, 370 to test on" in out
    assert re.search(r"^epoch 1/2 +loss \d\.\d{4} +test accuracy +[\d.]+%$", out, re.MULTILINE)
    assert re.search(r"^epoch 2/2 ", out, re.MULTILINE)
    right = int(re.search(r": (\d+) of 370$", out, re.MULTILINE)[1])
    assert accuracy(out) == pytest.approx(right / 370, abs=1e-4)
    rows = re.findall(r"^ +([1-9])((?: +[\d.]+){9})$", out, re.MULTILINE)
    matrix = np.array([[0 if n == "." else int(n) for n in row.split()] for _, row in rows])
    assert matrix.sum(axis=1).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert matrix.trace() == right
    for part in ("training", "inference"):
        assert re.search(rf"^{part} +[\d,]+ utterances/s +[\d,]+ frames/s$", out, re.MULTILINE)

    # What was saved is the network that was tested.
    assert f"network saved to {file}" in out
    saved = tg.load(file)
    assert list(saved) == ["rnn", "head", "mean", "deviation"]
    test_x, test_y = demo.load("test")
    x, lengths = demo.pad([(u - saved["mean"]) / saved["deviation"] for u in test_x])
    _, state = saved["rnn"](x, lengths=lengths)
    scores = saved["head"](demo.last_states(state))
    assert int((scores.argmax(axis=1) == test_y).sum()) == right


def test_a_seed_repeats_a_run(capsys):
    def lines(*more):
        assert cli.main([*QUICK, *more]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "/s" not in line]

    first = lines("--seed", "3")
    assert lines("--seed", "3") == first
    assert lines("--seed", "4") != first


def test_the_bar_is_for_terminals_alone(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main(QUICK) == 0
    out, err = capsys.readouterr()
    assert re.search(r"\r\[#{20} {20}\] +50% epoch 1, loss ", err)
    assert err.endswith("\r\x1b[K")
    assert "\r" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs.*0.*at least 1"),
        (["--hidden", "-3"], "--hidden.*-3.*at least 1"),
        (["--batch", "1.5"], "--batch.*1.5"),
        (["--seed", "-1"], "--seed.*-1.*at least 0"),
        (["--lr", "nan"], "--lr.*nan.*above 0"),
        (["--lr", "fast"], "--lr.*fast"),
        (["--cell", "rnn"], "--cell.*rnn"),
        (["--save", "no/such/folder/net.safetensors"], "--save.*no/such/folder.*cannot be written"),
        (["--save", "."], "--save.*cannot be written"),
        (["--plot", "no/such/folder/curves.png"], "--plot.*no/such/folder.*cannot be written"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", *arguments])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert re.search(message, err)


def test_plot_without_matplotlib_is_refused_before_any_work(capsys, monkeypatch, tmp_path):
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--plot", str(tmp_path / "curves.png")])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert "--plot: needs matplotlib: pip install 'tidegate[plot]'" in err


def test_plot(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit):
        cli.main(["demo", "--plot", str(tmp_path / "curves.xyz")])
    assert "curves.xyz" in capsys.readouterr().err
    file = tmp_path / "curves.png"
    assert cli.main([*QUICK, "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert f"curves saved to {file}" in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_it_learns(cell, capsys):
    """The default run, on one seed."""
    assert cli.main(["demo", "--cell", cell]) == 0
    assert accuracy(capsys.readouterr().out) >= 0.94
