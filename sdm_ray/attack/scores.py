"""Scores of one classifier from its logits, label permutations, and intervals over seeds. All on the host, in float64.

Flipped labels or saturated logits must not count as a defence, so a classifier is scored after a calibration fitted on
attacker-validation: the best one-to-one permutation of its classes, and a temperature. Without the temperature, an
attack that is right on most examples and confidently wrong on some has a higher cross-entropy than guessing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Scores(NamedTuple):
    """Scores of a classifier."""

    accuracy: float
    """Balanced accuracy: mean recall over the classes that occur among the labels."""
    plain_accuracy: float
    """Share of correct predictions."""
    macro_f1: float
    """Mean F1 score over the classes that occur among labels or predictions; 0 for a class that is never predicted
    correctly."""
    loss: float
    """Mean cross-entropy in nats, after permutation and temperature."""
    raw_loss: float
    """The same without the temperature."""
    mutual_information: float
    """Mutual information of prediction and label in nats; invariant to permutations of classes."""


class Calibration(NamedTuple):
    """Calibration of a classifier's logits."""

    permutation: tuple[int, ...]
    """Label for each predicted class."""
    scale: float
    """Factor for the logits, the inverse of the temperature; 0 if they are uninformative."""


LARGEST_SCALE = 1e6
"""Bound of `Calibration.scale`."""


def fit_calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit permutation and temperature to logits (N, C) and labels (N,) of attacker-validation."""
    scores, targets = _as_arrays(logits, labels)
    permutation = best_permutation(confusion(scores, targets))
    return Calibration(permutation, best_scale(scores[:, np.argsort(permutation)], targets))


def best_scale(scores: Floats, labels: Ints) -> float:
    """Factor in [0, LARGEST_SCALE] that minimises the cross-entropy of logits (N, C) with smoothed labels (N,).

    The smoothing adds one example of each class, spread over all targets (Platt, 1999), so that a sample without errors
    does not lead to infinite confidence. The problem is convex and solved by bisection on the derivative.
    """
    count, classes = scores.shape
    smoothing = classes / (count + classes)
    wanted = (1 - smoothing) * scores[np.arange(count), labels] + smoothing * scores.mean(axis=1)

    def slope(scale: float) -> float:
        return float((np.exp(log_softmax(scale * scores, axis=1)) * scores).sum(axis=1).mean() - wanted.mean())

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
    """One-to-one label for each predicted class with the highest balanced accuracy.

    Args:
        counts: (C, C) confusion [predicted class, label].
    """
    gains = counts / np.maximum(counts.sum(axis=0), 1)
    # Among equally good permutations prefer the identity, so that a constant prediction is unchanged.
    _, labels = linear_sum_assignment(gains + 1e-9 * np.eye(len(counts)), maximize=True)
    return tuple(int(label) for label in labels)


def evaluate(logits: Tensor, labels: Tensor, calibration: Calibration) -> Scores:
    """Scores of logits (N, C) with labels (N,) under a calibration."""
    scores, targets = _as_arrays(logits, labels)
    renamed = scores[:, np.argsort(calibration.permutation)]
    counts = confusion(renamed, targets)
    rows = np.arange(len(targets))
    return Scores(
        accuracy=_balanced(np.diag(counts), counts.sum(axis=0)),
        plain_accuracy=float(np.diag(counts).sum() / len(targets)),
        macro_f1=_balanced(2 * np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1)),
        loss=-float(log_softmax(calibration.scale * renamed, axis=1)[rows, targets].mean()),
        raw_loss=-float(log_softmax(renamed, axis=1)[rows, targets].mean()),
        mutual_information=mutual_information(counts),
    )


def permuted_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Balanced accuracy of logits (N, C) with the permutation of classes that is best for these labels (N,)."""
    counts = confusion(*_as_arrays(logits, labels))
    permutation = np.asarray(best_permutation(counts))
    return _balanced(counts[np.arange(len(counts)), permutation], counts.sum(axis=0)[permutation])


def raw_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Balanced accuracy of logits (N, C) without a permutation."""
    counts = confusion(*_as_arrays(logits, labels))
    return _balanced(np.diag(counts), counts.sum(axis=0))


def _balanced(right: Floats, totals: Floats) -> float:
    """Mean of right / totals over the classes that occur."""
    occurs = totals > 0
    return float((right[occurs] / totals[occurs]).mean())


def _as_arrays(logits: Tensor, labels: Tensor) -> tuple[Floats, Ints]:
    return logits.numpy().astype(np.float64), labels.numpy()


def mutual_information(counts: Floats) -> float:
    """Mutual information in nats of a table of counts."""
    joint = counts / counts.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return max(0.0, float((joint[seen] * np.log(joint[seen] / independent[seen])).sum()))
