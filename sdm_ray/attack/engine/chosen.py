"""A classifier that selects a few of many scalar readings by their losses on attacker-validation.

A reading is one number per text. The class means on validation define its scores, and the readings with the lowest
cross-entropies are added up. Scores of validation texts are cross-fitted: for each fold of names, readings are selected
on the other folds, so that validation scores are not inflated by the selection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

VOTERS = 5
"""Number of readings that are selected."""
PARTS = 5
"""Number of folds of validation names."""
STEPS = 14
"""Bisection steps in the search for a scale."""
CAUTION = 2.0
"""Precision of a Gaussian prior around 0 on a scale."""
LARGEST = 8.0
"""Largest scale."""


@dataclass(frozen=True)
class Chosen:
    """A linear classifier on the selected readings."""

    centre: Tensor
    """(M,) mean of the class means of each reading."""
    weight: Tensor
    """(M, C); zero for readings that are not selected."""

    def __call__(self, readings: Tensor) -> Tensor:
        """(N, C) scores of readings (M, N)."""
        return (readings - self.centre[:, None]).T @ self.weight


def choose(readings: Tensor, labels: Tensor, num_classes: int) -> Chosen:
    """Select the readings with the lowest losses on labelled texts.

    Args:
        readings: (M, N) float64.
        labels: (N,).
        num_classes: C.

    Returns:
        The classifier; its scores are all zero if a class has no text.
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
    """As `choose`, with cross-fitted scores of the same texts.

    Args:
        readings: (M, N) float64.
        labels: (N,).
        num_classes: C.
        names: (N,) int64; equal for texts about the same name.

    Returns:
        The classifier selected on all texts, and (N, C) scores of each text by one selected without its name.
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
    """(M,) mean cross-entropies of scores (M, N, C), each at its best scale, and these scales (M, 1, 1)."""
    wanted = (scores * one_hot).sum(2).sum(1)
    low = scores.new_zeros(len(scores))
    high = low + LARGEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        slope = ((middle[:, None, None] * scores).softmax(2) * scores).sum(2).sum(1) - wanted + CAUTION * middle
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    scale = low[:, None, None]
    return -((scale * scores).log_softmax(2) * one_hot).sum(2).mean(1), scale
