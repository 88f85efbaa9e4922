"""Diagnostics of released weights without fine-tuning: spread of features, gradient norms, loss along the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from sdm_ray.attack.engine.scoring import ScoringSet, trunk_features, validation_sample
from sdm_ray.core.seeds import seeded
from sdm_ray.core.types import Params, Split, Task
from sdm_ray.models.heads import init_head, logits
from sdm_ray.models.interface import TrunkLike, as_module

if TYPE_CHECKING:
    from sdm_ray.data.interface import AttackDataset

NUM_EXAMPLES, NUM_HEADS = 128, 3
"""Number of attacker-validation examples, and of fresh heads over which gradients are averaged."""
RELATIVE_STEPS = tuple(10.0**power for power in (-5, -4, -3.5, -3, -2.5, -2, -1.5, -1))
"""Lengths of steps along the negative gradient, relative to the weights' norm."""


@dataclass(frozen=True, kw_only=True)
class Signals:
    """Diagnostics on attacker-validation examples."""

    effective_rank: float
    """exp(entropy) of the shares of variance along principal axes of the pooled features (Roy and Vetterli, 2007)."""
    relative_spread: float
    """Variance of the pooled features between examples over their mean squared norm."""
    sensitivity: float
    """Gradient norm of the harmful loss times the weights' norm: the slope of the loss for a relative step."""
    best_decrease: float
    """Largest relative decrease of the harmful loss by one gradient step, over step lengths."""


def measure_signals(trunk: TrunkLike, params: Params, data: AttackDataset, task: Task, seed: int) -> Signals:
    """Compute the diagnostics of released weights.

    Args:
        trunk: the architecture.
        params: its weights.
        data: attacker-validation is used.
        task: task of the labels.
        seed: seed of the sample and the heads.
    """
    candidates, num_classes = data.indices(Split.ATTACKER_VAL), data.num_classes(task)
    labels = data.labels_host(task)[candidates]
    sample = validation_sample(candidates, labels, NUM_EXAMPLES, num_classes, seeded(seed, "signals"))
    examples = ScoringSet.of(data, sample, task)
    features = trunk_features(trunk, params, examples)
    rank, spread = _spread(features.double())
    found = [
        _along_gradient(trunk, params, examples, _head(features, num_classes, seed, index))
        for index in range(NUM_HEADS)
    ]
    slopes, decreases = zip(*found, strict=True)
    return Signals(
        effective_rank=rank,
        relative_spread=spread,
        sensitivity=sum(slopes) / len(slopes),
        best_decrease=max(decreases),
    )


def _head(features: Tensor, num_classes: int, seed: int, index: int) -> Tensor:
    head = init_head(features.shape[1], num_classes, seeded(seed, "signals head", index))
    return head.to(features)


def _spread(features: Tensor) -> tuple[float, float]:
    centred = features - features.mean(0)
    variances = torch.linalg.svdvals(centred).square()
    total = float(variances.sum())
    scale = float(features.square().sum())
    if not total > 0 or not math.isfinite(total):
        return 0.0, 0.0
    shares = (variances / total).clamp_min(1e-30)
    return float((-(shares * shares.log()).sum()).exp()), total / scale


def _along_gradient(trunk: TrunkLike, params: Params, examples: ScoringSet, head: Tensor) -> tuple[float, float]:
    """Sensitivity, and the largest relative decrease of the loss by a gradient step."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        moving_head = head.detach().requires_grad_()
        loss = _loss(trunk, leaves, examples, moving_head)
        grads = torch.autograd.grad(loss, [*leaves.values(), moving_head], materialize_grads=True)
    norm = _norm(grads)
    weights = _norm([*params.values(), head])
    if not norm > 0 or not math.isfinite(norm):
        return (0.0 if norm == 0 else norm), 0.0
    best = 0.0
    for length in RELATIVE_STEPS:
        scale = length * weights / norm
        moved = {name: value - scale * grad for (name, value), grad in zip(params.items(), grads, strict=False)}
        with torch.no_grad():
            there = float(_loss(trunk, moved, examples, head - scale * grads[-1]))
        if math.isfinite(there):
            best = max(best, 1 - there / float(loss.detach()))
    return norm * weights, best


def _loss(trunk: TrunkLike, params: Params, examples: ScoringSet, head: Tensor) -> Tensor:
    labels = examples.labels.to(head.device)
    scores = [logits(functional_call(as_module(trunk), params, batch.inputs), head) for batch in examples.batches]
    return F.cross_entropy(torch.cat(scores), labels)


def _norm(values: list[Tensor] | tuple[Tensor, ...]) -> float:
    return float(torch.stack([value.detach().double().square().sum() for value in values]).sum().sqrt())
