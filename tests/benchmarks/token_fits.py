"""What readers of tokens cost by gradients that are written out, beside automatic differentiation and PyTorch's Adam.

    python -m tests.benchmarks.token_fits [--repeats 3]

Seconds of the processor on one thread, of stacks as attacks fit them; both sides in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from sdm_ray.attack.engine import token_fits as fits
from tests.fakes import token_fits as reference

SHAPES = ((1, 20, 64), (2, 100, 64), (4, 100, 128), (3, 250, 64))
"""(readers, examples, width), two classes."""
LENGTH = 48


def sides(kind: str, many: int, count: int, width: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The training by automatic differentiation, and the product's."""
    drawn = torch.Generator().manual_seed(0)
    labels, penalties = torch.randint(2, (count,), generator=drawn), torch.full((many,), 0.1)
    weights = {"weight": torch.zeros(many, width, 2), "bias": torch.zeros(many, 1, 2)}
    if kind == "query":
        states = torch.randn(many, count, LENGTH, width, generator=drawn)
        mask = torch.ones(count, LENGTH, dtype=torch.bool)
        start = {"query": torch.randn(many, width, generator=drawn) / width} | weights
        losses = reference.query_losses(states, mask, labels)
        return (
            lambda: reference.trained(start, losses, fits.QUERY_STEPS, fits.QUERY_RATE),
            lambda: fits.train_queries(states, mask, labels, 2, drawn, lambda: None),
        )
    features = torch.randn(many, count, width, generator=drawn)
    if kind == "logistic":
        losses = reference.logistic_losses(features, labels, penalties)
        return (
            lambda: reference.trained(weights, losses, fits.LOGISTIC_STEPS, fits.LOGISTIC_RATE),
            lambda: fits.train_logistic(features, labels, 2, penalties, drawn, lambda: None),
        )
    start = {
        "inner": torch.randn(many, width, fits.HIDDEN, generator=drawn) / width**0.5,
        "shift": torch.zeros(many, 1, fits.HIDDEN),
        "weight": torch.randn(many, fits.HIDDEN, 2, generator=drawn) / fits.HIDDEN**0.5,
        "bias": torch.zeros(many, 1, 2),
    }
    losses = reference.perceptron_losses(features, labels, penalties)
    return (
        lambda: reference.trained(start, losses, fits.PERCEPTRON_STEPS, fits.PERCEPTRON_RATE),
        lambda: fits.train_perceptrons(features, labels, 2, penalties, drawn, lambda: None),
    )


def seconds(train: Callable[[], object]) -> float:
    """Of the processor, for one training."""
    started = time.process_time()
    train()
    return time.process_time() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a row for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args(arguments).repeats
    torch.set_num_threads(1)
    print("readers of A x N x F, milliseconds: by automatic differentiation, here, times faster")
    for kind in ("query", "logistic", "perceptron"):
        for shape in SHAPES:
            both = sides(kind, *shape)
            for train in both:
                train()
            times = [[seconds(train) for train in both] for _ in range(repeats)]
            before, now = (1e3 * min(values) for values in zip(*times, strict=True))
            print(f"{kind:10} {shape[0]} x {shape[1]:3} x {shape[2]:3} {before:6.0f} {now:6.0f} {before / now:5.1f}")


if __name__ == "__main__":
    main()
