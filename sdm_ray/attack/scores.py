"""Scores of one classifier from its logits, label permutations, and intervals over seeds. All on the host, in float64.

A defence must not win by flipping labels or by saturating logits, so a classifier is scored after a calibration fitted
on attacker-validation: the best one-to-one renaming of its classes, and one temperature. Without the temperature an
attack that is right on most examples and confidently wrong on some has a higher cross-entropy than guessing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Scores(NamedTuple):
    """How well a classifier predicts."""

    accuracy: float
    """Balanced: mean over classes of the share predicted right."""
    plain_accuracy: float
    """Share of all examples predicted right."""
    macro_f1: float
    """Mean over classes of the harmonic mean of precision and recall; 0 for a class that is never right."""
    loss: float
    """Mean cross-entropy in nats, after renaming and temperature."""
    raw_loss: float
    """The same without the temperature."""
    mutual_information: float
    """Between prediction and label, in nats; no renaming of classes changes it."""


class Calibration(NamedTuple):
    """How a classifier's logits are read."""

    permutation: tuple[int, ...]
    """The label that each predicted class is read as."""
    scale: float
    """What logits are multiplied by: the inverse of the temperature; 0 where they say nothing."""


LARGEST_SCALE = 1e6
"""Bound of `Calibration.scale`."""


def fit_calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Renaming and temperature for logits (N, C) and labels (N,) of attacker-validation."""
    scores, targets = _as_arrays(logits, labels)
    permutation = best_permutation(confusion(scores, targets))
    return Calibration(permutation, best_scale(scores[:, np.argsort(permutation)], targets))


def best_scale(scores: Floats, labels: Ints) -> float:
    """The factor in [0, LARGEST_SCALE] of logits (N, C) with the least cross-entropy against smoothed labels (N,).

    One extra example of each class is spread evenly over the targets, as Platt (1999) does, so that a validation
    sample without errors does not ask for infinite confidence. The problem is convex: bisection on the derivative.
    """
    count, classes = scores.shape
    smoothing = classes / (count + classes)
    wanted = (1 - smoothing) * scores[np.arange(count), labels] + smoothing * scores.mean(axis=1)

    def slope(scale: float) -> float:
        return float((np.exp(_log_softmax(scale * scores)) * scores).sum(axis=1).mean() - wanted.mean())

    low, high = 0.0, 1.0
    if slope(low) >= 0:
        return 0.0
    while slope(high) < 0:
        if high >= LARGEST_SCALE:
            return LARGEST_SCALE
        low, high = high, high * 4
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


def confusion(scores: Floats, labels: Ints) -> Floats:
    """(C, C) counts of [predicted class, label] from logits (N, C) and labels (N,)."""
    classes = scores.shape[1]
    pairs = np.argmax(scores, axis=1) * classes + labels
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def best_permutation(counts: Floats) -> tuple[int, ...]:
    """The label that each predicted class is read as, one to one, for the highest balanced accuracy.

    Args:
        counts: (C, C) confusion [predicted class, label]; every label occurs.
    """
    gains = counts / counts.sum(axis=0)
    # Among equals keep the names as they are: a constant prediction stays what it is.
    return _assignment(-(gains + 1e-9 * np.eye(len(counts))))


def evaluate(logits: Tensor, labels: Tensor, calibration: Calibration) -> Scores:
    """Scores of logits (N, C) against labels (N,), read as `calibration` says."""
    scores, targets = _as_arrays(logits, labels)
    renamed = scores[:, np.argsort(calibration.permutation)]
    counts = confusion(renamed, targets)
    rows = np.arange(len(targets))
    return Scores(
        accuracy=float((np.diag(counts) / counts.sum(axis=0)).mean()),
        plain_accuracy=float(np.diag(counts).sum() / len(targets)),
        macro_f1=float((2 * np.diag(counts) / (counts.sum(axis=0) + counts.sum(axis=1))).mean()),
        loss=-float(_log_softmax(calibration.scale * renamed)[rows, targets].mean()),
        raw_loss=-float(_log_softmax(renamed)[rows, targets].mean()),
        mutual_information=mutual_information(counts),
    )


def permuted_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Balanced accuracy of logits (N, C) after the renaming of classes that is best for these labels (N,)."""
    counts = confusion(*_as_arrays(logits, labels))
    permutation = np.asarray(best_permutation(counts))
    return float((counts[np.arange(len(counts)), permutation] / counts.sum(axis=0)[permutation]).mean())


def raw_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Balanced accuracy of logits (N, C) with classes as they are named."""
    counts = confusion(*_as_arrays(logits, labels))
    return float((np.diag(counts) / counts.sum(axis=0)).mean())


def _as_arrays(logits: Tensor, labels: Tensor) -> tuple[Floats, Ints]:
    return logits.numpy().astype(np.float64), labels.numpy()


def _log_softmax(scores: Floats) -> Floats:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def mutual_information(counts: Floats) -> float:
    """Mutual information in nats of a table of counts."""
    joint = counts / counts.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return max(0.0, float((joint[seen] * np.log(joint[seen] / independent[seen])).sum()))


def _assignment(cost: Floats) -> tuple[int, ...]:
    """Column of each row in the one-to-one assignment of least cost (Hungarian method with potentials, O(C^3))."""
    size = len(cost)
    row_potential, column_potential = np.zeros(size + 1), np.zeros(size + 1)
    row_of = np.zeros(size + 1, dtype=np.int64)  # rows and columns count from 1; 0 is "none"
    for row in range(1, size + 1):
        row_of[0], column = row, 0
        slack, previous = np.full(size + 1, np.inf), np.zeros(size + 1, dtype=np.int64)
        visited = np.zeros(size + 1, dtype=bool)
        while row_of[column]:
            visited[column] = True
            current = row_of[column]
            reduced = cost[current - 1] - row_potential[current] - column_potential[1:]
            better = ~visited[1:] & (reduced < slack[1:])
            slack[1:][better], previous[1:][better] = reduced[better], column
            following = 1 + int(np.argmin(np.where(visited[1:], np.inf, slack[1:])))
            delta = slack[following]
            row_potential[row_of[visited]] += delta
            column_potential[visited] -= delta
            slack[~visited] -= delta
            column = following
        while column:
            row_of[column], column = row_of[previous[column]], int(previous[column])
    result = np.empty(size, dtype=np.int64)
    result[row_of[1:] - 1] = np.arange(size)
    return tuple(int(column) for column in result)
