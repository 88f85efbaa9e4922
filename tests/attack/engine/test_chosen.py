"""Validation chooses among readings, and says of a text only what other names bear out."""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.attack.engine.chosen import choose, choose_apart


def drawn(count: int, names: int, *, telling: int) -> tuple[Tensor, Tensor, Tensor]:
    """(M, N) readings of which the first few tell the label of a name, labels, and names."""
    generator = torch.Generator().manual_seed(0)
    name = torch.arange(400) % names
    label = torch.randint(2, (names,), generator=generator)
    readings = torch.randn(count, names, generator=generator, dtype=torch.float64)
    signs = 1 - 2.0 * (torch.arange(telling) % 2)
    if telling:
        readings[:telling] += 3 * signs[:, None] * (2.0 * label - 1)
    return readings[:, name], label[name], name


def right(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).double().mean())


def test_readings_that_tell_are_heeded_whatever_their_sign_and_scale() -> None:
    readings, labels, _ = drawn(30, 60, telling=4)
    readings[0] *= 1e-6
    vote = choose(readings, labels, 2)
    heeded = vote.weight.abs().sum(1).nonzero()[:, 0].tolist()
    assert set(range(4)) <= set(heeded)
    assert len(heeded) == 5
    assert right(vote(readings), labels) > 0.97
    assert not choose(readings, torch.zeros_like(labels), 2).weight.any(), "one class says nothing"


def test_what_is_said_of_validation_is_no_better_than_chance_where_nothing_tells() -> None:
    """Among many readings some fit the names at hand; that is not credited."""
    readings, labels, names = drawn(300, 60, telling=0)
    vote, apart = choose_apart(readings, labels, 2, names)
    assert right(vote(readings), labels) > 0.7
    assert right(apart, labels) < 0.6
    readings, labels, names = drawn(300, 60, telling=4)
    assert right(choose_apart(readings, labels, 2, names)[1], labels) > 0.9
