"""The demo: a network learns which of nine men is speaking. Copy this file to start your own.

The data are Japanese Vowels (data/README.md): 270 utterances for training and 370 for testing, each
7 to 29 frames of 12 cepstral coefficients. The network reads an utterance in both directions; a
linear layer scores the nine speakers from the last states.

The recipe (the defaults below) was chosen by cross-validation within the 270 (5 folds, several
seeds). The test utterances were not used to choose anything: their accuracy is printed after every
epoch, and the last epoch's is the result.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import tidegate as tg
from tidegate.terminal import at_least, clear_progress, positive, show_progress, writable

Array: TypeAlias = NDArray[Any]

FEATURES, SPEAKERS = 12, 9
# The part of the recipe without options: dropout before the last layer; noise on the training
# inputs, in standard deviations of a feature; and the gradient norm at which gradients are clipped.
DROPOUT, NOISE, MAX_NORM = 0.2, 0.6, 1.0


class SpeakerNet:
    """GRU or LSTM, forward and backward in time -> both last states -> dropout -> linear."""

    def __init__(
        self, cell: str, hidden: int, rng: np.random.Generator, precision: str | None = None
    ) -> None:
        self.precision = precision  # of the products in training
        layer = {"gru": tg.GRU, "lstm": tg.LSTM}[cell]
        self.rnn: Any = layer(FEATURES, hidden, bidirectional=True, seed=rng)
        self.dropout = tg.Dropout(DROPOUT)
        self.head = tg.Linear(2 * hidden, SPEAKERS, seed=rng)
        self.params = [self.rnn.params, self.head.params]

    def __call__(self, x: Array, lengths: Array) -> Array:
        """The scores (N, 9) of a batch x (T, N, 12)."""
        _, state = self.rnn(x, lengths=lengths)
        return self.head(last_states(state))

    def loss_and_gradients(
        self, x: Array, lengths: Array, speakers: Array, rng: np.random.Generator
    ) -> tuple[float, list[tg.Gradients]]:
        """The loss of a batch, and its gradients with respect to `params`."""
        _, state, rnn_tape = self.rnn.forward(x, lengths=lengths, precision=self.precision)
        dropped, dropout_tape = self.dropout.forward(last_states(state), rng)
        scores, head_tape = self.head.forward(dropped)
        loss, dscores = tg.losses.softmax_cross_entropy(scores, speakers)

        head_grads = self.head.backward(head_tape, dscores)
        dlast = self.dropout.backward(dropout_tape, head_grads.x)
        dh = np.stack(np.split(dlast, 2, axis=1))
        dstate = (dh, None) if isinstance(self.rnn, tg.LSTM) else dh
        rnn_grads = self.rnn.backward(rnn_tape, dstate=dstate)
        return loss, [rnn_grads.params, head_grads.params]


def last_states(state: Any) -> Array:
    """h_n (2, N, H) of a GRU's or LSTM's state, the two directions side by side: (N, 2H)."""
    h_n = state[0] if isinstance(state, tuple) else state
    return np.concatenate(h_n, axis=1)


def load(part: str) -> tuple[list[Array], Array]:
    """The "train" or the "test" utterances, each (frames, 12), and their speakers, 0 to 8."""
    with (resources.files("tidegate") / "data" / "japanese_vowels.npz").open("rb") as file:
        data = np.load(file)
        ends = np.cumsum(data[f"{part}_lengths"])
        return np.split(data[f"{part}_x"], ends[:-1]), data[f"{part}_y"]


def pad(utterances: Sequence[Array]) -> tuple[Array, Array]:
    """Utterances as one batch x (T, N, 12), where T is the longest, and their lengths (N,)."""
    lengths = np.array([len(utterance) for utterance in utterances])
    x = np.zeros((lengths.max(), len(utterances), FEATURES), np.float32)
    for n, utterance in enumerate(utterances):
        x[: len(utterance), n] = utterance
    return x, lengths


def train(
    net: SpeakerNet,
    utterances: list[Array],
    speakers: Array,
    args: argparse.Namespace,
    rng: np.random.Generator,
) -> Iterator[float]:
    """Trains `net`; yields the mean loss of each epoch when it ends."""
    optimizer = tg.optim.Adam(net.params)
    batches = math.ceil(len(utterances) / args.batch)
    steps = args.epochs * batches
    for epoch in range(args.epochs):
        total = 0.0
        for k, chosen in enumerate(np.array_split(rng.permutation(len(utterances)), batches)):
            x, lengths = pad([utterances[n] for n in chosen])
            x += rng.normal(0, NOISE, x.shape).astype(x.dtype)
            loss, grads = net.loss_and_gradients(x, lengths, speakers[chosen], rng)
            tg.optim.clip_grad_norm(grads, MAX_NORM)
            done = (epoch * batches + k + 1) / steps
            # A linear rise over the first tenth, then half a cosine down to zero.
            optimizer.lr = args.lr * min(1, 10 * done) * (1 + math.cos(math.pi * done)) / 2
            optimizer.step(grads)
            total += loss * len(chosen)
            show_progress(done, f"epoch {epoch + 1}, loss {loss:.3f}")
        yield total / len(utterances)


def run(args: argparse.Namespace) -> float:
    """Trains and tests the network, and prints the results; returns the test accuracy."""
    rng = np.random.default_rng(args.seed)
    (train_x, train_y), (test_x, test_y) = load("train"), load("test")
    frames = np.concatenate(train_x)
    mean, deviation = frames.mean(axis=0), frames.std(axis=0)
    train_x = [(utterance - mean) / deviation for utterance in train_x]
    test_batch = pad([(utterance - mean) / deviation for utterance in test_x])

    net = SpeakerNet(args.cell, args.hidden, rng, args.precision)
    print(f"{net.rnn} -> last states -> {net.dropout} -> {net.head}")
    print(f"{len(train_x)} utterances to train on, {len(test_x)} to test on")

    losses: list[float] = []
    accuracies: list[float] = []
    seconds, start = 0.0, time.perf_counter()
    for loss in train(net, train_x, train_y, args, rng):
        seconds += time.perf_counter() - start
        predicted = net(*test_batch).argmax(axis=1)
        losses.append(loss)
        accuracies.append(float(np.mean(predicted == test_y)))
        clear_progress()
        print(
            f"epoch {len(losses):{len(str(args.epochs))}}/{args.epochs}  loss {loss:.4f}  "
            f"test accuracy {accuracies[-1]:6.2%}",
            flush=True,
        )
        start = time.perf_counter()

    right = int(np.sum(predicted == test_y))
    print(f"\ntest accuracy {right / len(test_y):.2%}: {right} of {len(test_y)}\n")
    print_confusion(test_y, predicted)
    print_throughput("training", args.epochs * len(train_x), args.epochs * len(frames), seconds)
    print_inference_throughput(net, *test_batch)
    if args.save is not None:
        save(args.save, net, mean, deviation)
    if args.plot is not None:
        plot(args.plot, losses, accuracies)
    return accuracies[-1]


def print_confusion(spoken: Array, predicted: Array) -> None:
    """Prints how often each speaker (row) was recognised as each speaker (column)."""
    counts = np.zeros((SPEAKERS, SPEAKERS), int)
    np.add.at(counts, (spoken, predicted), 1)
    print("confusion matrix: actual speaker (rows), recognised speaker (columns)")
    print("     " + "".join(f"{k:5}" for k in range(1, SPEAKERS + 1)))
    for k, row in enumerate(counts, 1):
        print(f"{k:5}" + "".join(f"{count or '.':>5}" for count in row))
    print()


def print_throughput(what: str, utterances: int, frames: int, seconds: float) -> None:
    """Prints the utterances and frames processed per second."""
    print(f"{what:9} {utterances / seconds:9,.0f} utterances/s {frames / seconds:11,.0f} frames/s")


def print_inference_throughput(net: SpeakerNet, x: Array, lengths: Array) -> None:
    """Runs one batch for a fifth of a second or more, and prints the throughput."""
    repeats, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < 0.2:
        net(x, lengths)
        repeats += 1
    print_throughput("inference", repeats * len(lengths), repeats * int(lengths.sum()), seconds)


def save(path: Path, net: SpeakerNet, mean: Array, deviation: Array) -> None:
    """Saves everything needed to run the trained network elsewhere, for `tidegate.load`."""
    tg.save(path, {"rnn": net.rnn, "head": net.head, "mean": mean, "deviation": deviation})
    print(f"network saved to {path}; tidegate.load reads it")


def plot(path: Path, losses: list[float], accuracies: list[float]) -> None:
    """Draws the loss and the test accuracy by epoch."""
    figure = matplotlib_figure(figsize=(9, 4), layout="constrained")
    epochs = range(1, len(losses) + 1)
    for axes, values, title in zip(
        figure.subplots(1, 2),
        (losses, accuracies),
        ("training loss", "test accuracy"),
        strict=True,
    ):
        axes.plot(epochs, values)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    figure.savefig(path)
    print(f"curves saved to {path}")


def matplotlib_figure(**options: Any) -> Any:
    """A matplotlib Figure; an ImportError if matplotlib, which is an extra, is not installed."""
    return importlib.import_module("matplotlib.figure").Figure(**options)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments and checks all of them before any work starts."""
    parser = argparse.ArgumentParser(
        prog="tidegate demo",
        description="Trains a bidirectional network to recognise nine speakers (Japanese Vowels).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--cell", choices=["gru", "lstm"], default="gru", help="kind of network")
    parser.add_argument("--hidden", type=at_least(1), default=64, help="units of each direction")
    parser.add_argument("--epochs", type=at_least(1), default=30, help="passes over the data")
    parser.add_argument("--batch", type=at_least(1), default=16, help="utterances of a step")
    parser.add_argument("--lr", type=positive, default=0.01, help="peak learning rate")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of all random numbers")
    parser.add_argument(
        "--precision",
        choices=["bfloat16", "bfloat16-dot"],
        help="precision of the products in training",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw loss and accuracy")
    parser.add_argument("--save", type=Path, metavar="FILE.safetensors", help="keep the network")
    args = parser.parse_args(argv)
    for option in ("plot", "save"):
        path = getattr(args, option)
        if path is not None and not writable(path):
            parser.error(f"argument --{option}: {path} cannot be written to")
    if args.plot is not None:
        try:
            kinds = matplotlib_figure().canvas.get_supported_filetypes()
        except ImportError:
            parser.error("argument --plot: needs matplotlib: pip install 'tidegate[plot]'")
        if args.plot.suffix[1:].lower() not in kinds:
            parser.error(f"argument --plot: {args.plot} is not one of {', '.join(sorted(kinds))}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """`tidegate demo`: returns the exit code."""
    run(parse(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
