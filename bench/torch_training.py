"""Speed-ups of PyTorch programs by tidegate.torch: training, batch 1, packed sequences.

    python bench/torch_training.py [--threads N] [--rounds N]

For each case: the time with torch.nn's module, with Tidegate's, and the ratio. Training is forward,
a sum as the loss, backward for the input and all parameters, and a step of SGD, so that parameters
are packed again each time. Serving is a call under `torch.inference_mode()` of a module frozen by
`accelerate(model, freeze=True)`. Both modules have the same parameters and input. In every round
the two run one after the other, in alternating order, and the ratio is taken within the round, so
that changes of the machine's speed affect both. Figures are medians.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import tidegate as tg
import tidegate.torch
from tidegate import _core

# (work, cell, I, H, N, T)
CASES = [
    ("train", "GRU", 64, 128, 32, 50),
    ("train", "GRU", 256, 256, 32, 50),
    ("train", "GRU", 64, 128, 1, 100),
    ("train", "LSTM", 64, 128, 32, 50),
    ("train", "LSTM", 256, 256, 32, 50),
    ("train", "LSTM", 64, 128, 1, 100),
    ("train packed", "GRU", 64, 128, 32, 50),
    ("train packed", "LSTM", 64, 128, 32, 50),
    ("serve", "GRU", 64, 128, 1, 100),
    ("serve", "LSTM", 64, 128, 1, 100),
    ("serve", "GRU", 64, 128, 1, 1),
    ("serve", "LSTM", 64, 128, 1, 1),
    ("serve packed", "GRU", 64, 128, 32, 50),
]
SECONDS_A_TURN = 0.02  # short calls are repeated for about this time


def trainer(module: torch.nn.Module, given: Any, x: torch.Tensor) -> Callable[[], None]:
    # A tiny rate, so that the network hardly changes from the first round to the last.
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-7)

    def train() -> None:
        optimizer.zero_grad()
        x.grad = None
        y = module(given)[0]
        (y if given is x else y.data).sum().backward()
        optimizer.step()

    return train


def server(module: torch.nn.Module, given: Any) -> Callable[[], None]:
    def serve() -> None:
        with torch.inference_mode():
            module(given)

    return serve


def make_pair(what: str, cell: str, inputs: int, hidden: int, batch: int, steps: int) -> list[Any]:
    """The work of a case as functions: PyTorch's and Tidegate's."""
    torch.manual_seed(0)
    torch_module = getattr(torch.nn, cell)(inputs, hidden)
    own_module = tidegate.torch.accelerate(copy.deepcopy(torch_module))
    training = what.startswith("train")
    x = torch.randn(steps, batch, inputs)
    given: Any = x
    if what.endswith("packed"):
        # Lengths spread evenly between a fifth of T and all of it.
        lengths = torch.linspace(steps, steps / 5, batch).long()
        given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
        x = given.data
    x.requires_grad_(training)
    if training:
        return [trainer(module, given, x) for module in (torch_module, own_module)]
    tidegate.torch.accelerate(own_module.eval(), freeze=True)
    return [server(module, given) for module in (torch_module.eval(), own_module)]


def seconds(work: Callable[[], None], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - begin) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of each library (default 1)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tg.set_num_threads(args.threads)

    pairs = [make_pair(*case) for case in CASES]
    repeats = []
    for pair in pairs:
        for work in pair:
            work()  # warm-up
        repeats.append(max(1, int(SECONDS_A_TURN / seconds(pair[0], 1))))
    times: list[list[tuple[float, float]]] = [[] for _ in CASES]
    for round_ in range(args.rounds):
        for pair, count, taken in zip(pairs, repeats, times, strict=True):
            took = [0.0, 0.0]
            for i in (0, 1) if round_ % 2 == 0 else (1, 0):
                took[i] = seconds(pair[i], count)
            taken.append((took[0], took[1]))

    print(
        f"PyTorch {torch.__version__}, Tidegate {tg.__version__} ({_core.isa()}), "
        f"{args.threads} thread(s), float32\n"
    )
    print(f"{'':>19}{'I':>5}{'H':>5}{'N':>4}{'T':>5}{'torch.nn':>13}{'tidegate':>13}{'ratio':>8}")
    for (what, cell, inputs, hidden, batch, steps), taken in zip(CASES, times, strict=True):
        torch_ms, own_ms = (statistics.median(column) * 1e3 for column in zip(*taken, strict=True))
        ratio = statistics.median(a / b for a, b in taken)
        print(
            f"{what:>13}{cell:>6}{inputs:>5}{hidden:>5}{batch:>4}{steps:>5}"
            f"{torch_ms:>11.3f}ms{own_ms:>11.3f}ms{ratio:>7.2f}x"
        )


if __name__ == "__main__":
    main()
