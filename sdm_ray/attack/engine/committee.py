"""Ensembles of readers of the same examples. Validation has few names, so selecting one reader would overfit to
them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from sdm_ray.attack.engine.outcome import Outcome


def vote(members: Sequence[Outcome]) -> Outcome:
    """Combine the outcomes of several readers of the same examples into one: the mean of their scores, each centred
    over classes and scaled to standard deviation 1 on attacker-validation."""
    deviations = [_centred(member.val_logits).std().clamp_min(1e-12) for member in members]

    def mean(split: str) -> Tensor:
        parts = zip(members, deviations, strict=True)
        return torch.stack([_centred(getattr(member, split)) / deviation for member, deviation in parts]).mean(0)

    return dataclasses.replace(
        members[0],
        seconds=sum(member.seconds for member in members),
        flops=sum(member.flops for member in members),
        val_logits=mean("val_logits"),
        test_logits=mean("test_logits"),
    )


def _centred(scores: Tensor | None) -> Tensor:
    assert scores is not None
    return scores - scores.mean(1, keepdim=True)
