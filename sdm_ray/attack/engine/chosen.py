"""A classifier made of many simple readings, of which attacker-validation says which are heeded and what they mean.

Each reading is one number a text. Validation gives every class a place on it, and the few readings that tell the most
there vote. What such a classifier says of a validation text is said without that text's name: readings are chosen once
more for each part of the names, on all others. So its score on validation is no better than it deserves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

VOTERS = 5
"""Readings that vote."""
PARTS = 5
"""Parts of validation's names."""
STEPS = 14
"""Bisections of a scale."""
CAUTION = 2.0
"""Curvature that is added for a scale, as a Gaussian prior around 0 would."""
LARGEST = 8.0
"""Of a scale, in logits a deviation."""


@dataclass(frozen=True)
class Chosen:
    """A vote of readings."""

    centre: Tensor
    """(M,) of each reading, half-way between the classes."""
    weight: Tensor
    """(M, C)."""

    def __call__(self, readings: Tensor) -> Tensor:
        """(N, C) scores of readings (M, N)."""
        return (readings - self.centre[:, None]).T @ self.weight


def choose(readings: Tensor, labels: Tensor, num_classes: int) -> Chosen:
    """The readings that tell most of some labels.

    Args:
        readings: (M, N) float64.
        labels: (N,).
        num_classes: C.

    Returns:
        A vote; one that says nothing where a class has no text.
    """
    one_hot = F.one_hot(labels, num_classes).to(readings)
    counts = one_hot.sum(0)
    if not len(readings) or not bool((counts > 0).all()):
        nothing = readings.new_zeros(len(readings))
        return Chosen(nothing, nothing[:, None].expand(-1, num_classes).clone())
    places = readings @ (one_hot / counts)
    centre, deviation = places.mean(1), readings.std(1, correction=0)
    telling = torch.where(deviation > 1e-9 * deviation.max().clamp_min(1e-300), 1 / deviation.clamp_min(1e-300), 0.0)
    places = (places - centre[:, None]) * telling[:, None]
    places = places / places.norm(dim=1, keepdim=True).clamp_min(1e-300)
    scaled = (readings - centre[:, None]) * telling[:, None]
    losses, _ = _scales(scaled[:, :, None] * places[:, None], one_hot)
    best = losses.argsort(stable=True)[:VOTERS]
    weight = torch.zeros_like(places)
    weight[best] = places[best] * telling[best, None]
    _, scale = _scales(Chosen(centre, weight)(readings)[None], one_hot)
    return Chosen(centre, weight * scale[0, 0, 0])


def choose_apart(readings: Tensor, labels: Tensor, num_classes: int, names: Tensor) -> tuple[Chosen, Tensor]:
    """As `choose`, and what is said of each text by a vote that was chosen without its name.

    Args:
        readings: (M, N) float64.
        labels: (N,).
        num_classes: C.
        names: (N,) int64; equal for texts about the same name.

    Returns:
        The vote chosen on all texts, and (N, C) scores.
    """
    _, kinds = torch.unique(names, return_inverse=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(int(kinds.max()) + 1 if len(kinds) else 0, generator=generator).to(kinds.device)
    part = order[kinds] % PARTS if len(kinds) else kinds
    scores = readings.new_zeros(len(labels), num_classes)
    for number in range(PARTS):
        left_out = part == number
        if bool(left_out.any()):
            vote = choose(readings[:, ~left_out], labels[~left_out], num_classes)
            scores[left_out] = vote(readings[:, left_out])
    return choose(readings, labels, num_classes), scores


def _scales(scores: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) mean cross-entropies of scores (M, N, C) under the best scale of each, and these (M, 1, 1)."""
    wanted = (scores * one_hot).sum(2).sum(1)
    low = scores.new_zeros(len(scores))
    high = low + LARGEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        slope = ((middle[:, None, None] * scores).softmax(2) * scores).sum(2).sum(1) - wanted + CAUTION * middle
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    scale = low[:, None, None]
    return -((scale * scores).log_softmax(2) * one_hot).sum(2).mean(1), scale
