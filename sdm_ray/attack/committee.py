"""Ensembles of readers of the same examples. Validation has few names, so selecting one reader would overfit to them.

Scores are combined separately for texts with one-token and with two-token names, for which different readers are good.
A reader's weight is exp(-loss / `PATIENCE`), with its calibrated loss on attacker-validation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdm_ray.attack.engine.outcome import Outcome
from sdm_ray.attack.scores import Calibration, evaluate, fit_calibration

PATIENCE = 0.025
"""Difference in validation loss, in nats, that reduces a weight by a factor of e."""
FEWEST = 20
"""Fewest validation texts of each kind; with fewer, both kinds are combined with the same weights."""


def vote(members: Sequence[Outcome], labels: Tensor, kinds: tuple[Tensor, Tensor] | None = None) -> Outcome:
    """Combine the outcomes of several readers of the same examples into one.

    Args:
        members: the readers.
        labels: (N,) of attacker-validation.
        kinds: (N,) and (M,) bool, the kind of each text of attacker-validation and of test; None for one kind.

    Returns:
        Weighted means of the members' scores, each centred over classes and scaled to deviation 1 on validation, and as
        large as validation bears out, kind by kind.
    """
    first = members[0]
    assert first.val_logits is not None
    assert first.test_logits is not None
    own, other = kinds or (torch.zeros(len(labels)).bool(), torch.zeros(len(first.test_logits)).bool())
    if min(int(own.sum()), int((~own).sum())) < FEWEST:
        own, other = torch.zeros_like(own), torch.zeros_like(other)
    val, test = torch.zeros_like(first.val_logits), torch.zeros_like(first.test_logits)
    for kind in sorted(set(own.tolist())):
        mine, theirs = own == kind, other == kind
        scores = [_centred(member.val_logits)[mine] for member in members]
        sizes = [1 / values.std().clamp_min(1e-12) for values in scores]
        losses = torch.tensor([_loss(values, labels[mine]) for values in scores], dtype=torch.float64)
        weights = ((losses.min() - losses) / PATIENCE).exp().tolist()
        factors = [weight * size / sum(weights) for weight, size in zip(weights, sizes, strict=True)]
        said = sum(factor * values for factor, values in zip(factors, scores, strict=True))
        there = [_centred(member.test_logits)[theirs] for member in members]
        said_there = sum(factor * values for factor, values in zip(factors, there, strict=True))
        assert isinstance(said, Tensor)
        assert isinstance(said_there, Tensor)
        calibration = fit_calibration(said, labels[mine])
        val[mine], test[theirs] = _read(said, calibration).to(val), _read(said_there, calibration).to(test)
    return dataclasses.replace(
        first,
        seconds=sum(member.seconds for member in members),
        flops=sum(member.flops for member in members),
        val_logits=val,
        test_logits=test,
    )


def _loss(scores: Tensor, labels: Tensor) -> float:
    return evaluate(scores, labels, fit_calibration(scores, labels)).loss


def _read(scores: Tensor, calibration: Calibration) -> Tensor:
    """Scores after a calibration's class permutation and scale."""
    return scores[:, np.argsort(calibration.permutation).tolist()] * calibration.scale


def _centred(scores: Tensor | None) -> Tensor:
    assert scores is not None
    return scores - scores.mean(1, keepdim=True)
