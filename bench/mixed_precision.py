"""Accuracy of networks trained in bfloat16 and in float32: `python bench/mixed_precision.py`.

Two tasks, each for several seeds. A seed has the same initial parameters, batches and noise in both
precisions.

- vowels: the demo's network, which recognises nine speakers (Japanese Vowels); the accuracy on the
  370 test utterances. Its linear layer is trained in float32.
- reversal: an encoder and a decoder, of one layer each, learn to write symbols backwards;
  the accuracy of the symbols, each predicted from those before it, on sequences not trained on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import tidegate as tg
from tidegate import demo
from tidegate.terminal import at_least

Array: TypeAlias = NDArray[Any]

PRECISIONS = (None, "bfloat16")  # of `forward`; None is float32


def vowels(cell: str, precision: str | None, seed: int) -> float:
    """The test accuracy of the demo's network."""
    options = ["--cell", cell, "--seed", str(seed)]
    if precision is not None:
        options += ["--precision", precision]
    with contextlib.redirect_stdout(io.StringIO()):
        return demo.run(demo.parse(options))


SYMBOLS, LENGTHS, HIDDEN, BATCH, STEPS = 12, (4, 10), 96, 64, 1500


class Reversal:
    """Encoder and decoder with one-hot symbols; symbol 0 begins the output."""

    def __init__(self, cell: str, precision: str | None, rng: np.random.Generator) -> None:
        layer = {"gru": tg.GRU, "lstm": tg.LSTM}[cell]
        self.encoder: Any = layer(SYMBOLS, HIDDEN, seed=rng)
        self.decoder: Any = layer(SYMBOLS, HIDDEN, seed=rng)
        self.head = tg.Linear(HIDDEN, SYMBOLS, seed=rng)
        self.params = [self.encoder.params, self.decoder.params, self.head.params]
        self.precision = precision

    def accuracy(self, batch: Batch) -> float:
        """The share of a batch's symbols that are predicted, in float32."""
        _, state = self.encoder(batch.source, lengths=batch.lengths)
        y, _ = self.decoder(batch.shifted, state, lengths=batch.lengths)
        right = self.head(y).argmax(axis=-1) == batch.target
        return float(right[batch.mask].mean())

    def gradients(self, batch: Batch) -> list[tg.Gradients]:
        """The gradients of a batch's loss for `params`."""
        lengths, precision = batch.lengths, self.precision
        _, state, encoder_tape = self.encoder.forward(
            batch.source, lengths=lengths, precision=precision
        )
        y, _, decoder_tape = self.decoder.forward(
            batch.shifted, state, lengths=lengths, precision=precision
        )
        scores, head_tape = self.head.forward(y)
        _, dscores = tg.losses.softmax_cross_entropy(scores, batch.target, mask=batch.mask)
        head = self.head.backward(head_tape, dscores)
        decoder = self.decoder.backward(decoder_tape, head.x)
        encoder = self.encoder.backward(encoder_tape, dstate=decoder.state)
        return [encoder.params, decoder.params, head.params]


class Batch:
    """Random sequences of symbols, one-hot, (T, N, SYMBOLS), and their reversals, (T, N)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.lengths = rng.integers(LENGTHS[0], LENGTHS[1] + 1, BATCH)
        longest = int(self.lengths.max())
        symbols = rng.integers(1, SYMBOLS, (longest, BATCH))
        self.target = np.zeros((longest, BATCH), np.int64)
        for n, length in enumerate(self.lengths):
            self.target[:length, n] = symbols[:length, n][::-1]
        self.mask = np.arange(longest)[:, np.newaxis] < self.lengths
        one_hot = np.eye(SYMBOLS, dtype=np.float32)
        self.source = one_hot[symbols]
        self.shifted = one_hot[np.vstack([np.zeros((1, BATCH), np.int64), self.target[:-1]])]


def reversal(cell: str, precision: str | None, seed: int) -> float:
    """The accuracy of symbols after training."""
    rng = np.random.default_rng(seed)
    network = Reversal(cell, precision, rng)
    optimizer = tg.optim.Adam(network.params)
    for step in range(STEPS):
        optimizer.lr = 0.005 * (1 - step / STEPS)
        grads = network.gradients(Batch(rng))
        tg.optim.clip_grad_norm(grads, 1.0)
        optimizer.step(grads)
    return float(np.mean([network.accuracy(Batch(rng)) for _ in range(20)]))


def main() -> None:
    """Prints a line for each task and cell: accuracies in % by seed, and their means."""
    parser = argparse.ArgumentParser(description="Accuracy after training in bfloat16, float32.")
    parser.add_argument("--seeds", type=at_least(1), default=5, help="seeds, from 0 on")
    args = parser.parse_args()
    tasks: dict[str, Callable[[str, str | None, int], float]] = {
        "vowels": vowels,
        "reversal": reversal,
    }
    for name, task in tasks.items():
        for cell in ("gru", "lstm"):
            for precision in PRECISIONS:
                found = [100 * task(cell, precision, seed) for seed in range(args.seeds)]
                each = "  ".join(f"{accuracy:6.2f}" for accuracy in found)
                print(
                    f"{name:9} {cell:5} {precision or 'float32':9} {each}   "
                    f"mean {np.mean(found):6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
