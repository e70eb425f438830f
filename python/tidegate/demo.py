"""The demo: a recurrent network learns who of nine men is speaking. Copy this file to start your own.

The data are Japanese Vowels (see data/README.md): 270 utterances to learn from and 370 to be tested
on, each 7 to 29 frames of 12 cepstral coefficients. The network reads an utterance in both directions,
averages what it made of the frames, and a linear layer scores the nine speakers.

The recipe (sizes, learning rate, dropout, noise) was chosen by cross-validation inside the training
part. The test part is only reported on: the network that counts is the last epoch's, whatever
came before.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import tidegate as tg
from tidegate.checks import Array

SPEAKERS = 9
FEATURES = 12


class SpeakerNet:
    """Bidirectional LSTM or GRU -> mean over each utterance's own frames -> dropout -> linear."""

    def __init__(self, cell: str, hidden: int, dropout: float, rng: np.random.Generator) -> None:
        layer = {"gru": tg.GRU, "lstm": tg.LSTM}[cell]
        self.rnn = layer(FEATURES, hidden, bidirectional=True, seed=rng)
        self.dropout = tg.Dropout(dropout)
        self.head = tg.Linear(2 * hidden, SPEAKERS, seed=rng)
        self.rng = rng

    def __call__(self, x: Array, lengths: Array) -> Array:
        """Scores (N, 9) of a padded batch x (T, N, 12)."""
        y, _ = self.rnn(x, lengths=lengths)
        # Outputs past an utterance's end are zero: the sum is over its own frames.
        return self.head(y.sum(axis=0) / lengths[:, None].astype(y.dtype))

    def gradients(
        self, x: Array, lengths: Array, speakers: Array
    ) -> tuple[float, list[tg.Gradients]]:
        """The loss of a batch, and its gradients by the parameters of rnn and head."""
        frames = lengths[:, None].astype(x.dtype)
        y, _, rnn_tape = self.rnn.forward(x, lengths=lengths)
        kept, dropout_tape = self.dropout.forward(y.sum(axis=0) / frames, self.rng)
        scores, head_tape = self.head.forward(kept)
        loss, dscores = tg.softmax_cross_entropy(scores, speakers)

        head_grads = self.head.backward(head_tape, dscores)
        dmean = self.dropout.backward(dropout_tape, head_grads.x)
        rnn_grads = self.rnn.backward(rnn_tape, dy=np.broadcast_to(dmean / frames, y.shape))
        return loss, [rnn_grads.params, head_grads.params]


def load(part: str) -> tuple[list[Array], Array]:
    """The "train" or "test" utterances, each (frames, 12), and who spoke them, 0..8."""
    file = resources.files("tidegate") / "data" / "japanese_vowels.npz"
    with file.open("rb") as opened, np.load(opened) as data:
        ends = np.cumsum(data[f"{part}_lengths"])
        return np.split(data[f"{part}_x"], ends[:-1]), data[f"{part}_y"]


def pad(utterances: Sequence[Array]) -> tuple[Array, Array]:
    """One time-major batch (T, N, 12), T the longest, and the lengths (N,)."""
    lengths = np.array([len(utterance) for utterance in utterances])
    x = np.zeros((lengths.max(), len(utterances), FEATURES), np.float32)
    for n, utterance in enumerate(utterances):
        x[: len(utterance), n] = utterance
    return x, lengths


def train(
    net: SpeakerNet, args: argparse.Namespace, utterances: list[Array], speakers: Array, test: Any
) -> None:
    pass
