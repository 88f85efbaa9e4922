"""Results of fine-tunes, one per attacker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sdm_ray.attack.engine.flops import Counter
from sdm_ray.attack.engine.plan import Plan
from sdm_ray.attack.engine.stack import Curves
from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.report import RecordStatus
from sdm_ray.core.types import Split


@dataclass(frozen=True)
class Outcome:
    """One finished or failed fine-tune."""

    attacker: Attacker
    status: RecordStatus
    seconds: float
    flops: float = float("nan")
    train_losses: tuple[float, ...] = ()
    """Mean training loss between successive evaluated steps."""
    evaluated_steps: tuple[int, ...] = ()
    """Numbers of steps at which it was scored; the last is its number of steps."""
    val_curve_logits: tuple[Tensor, ...] = ()
    """(N, C) logits on attacker-validation at the evaluated steps before the end."""
    val_logits: Tensor | None = None
    """(N, C) on the host, in the order of `Executor.val`."""
    test_logits: Tensor | None = None
    """(N, C) on the host, in the order of `Executor.test`; None in the search, which never uses test."""
    desired_accuracy: float = math.nan
    """Accuracy (not class-balanced) on test of the released head on the desired task after the attack; NaN without
    one."""
    error: str = ""
    timed_out: bool = False
    """Whether it was stopped by the time limit; it is not retried, because a retry would take as long."""


class StackResult(NamedTuple):
    """Results of a stack of S attackers, before they are split by attacker."""

    scored: dict[Split, Tensor]
    """(S, N, C) logits on the host."""
    healthy: Tensor
    """(S,) whether all parameters are finite."""
    curves: Curves
    desired: Sequence[float]
    """(S,) see `Outcome.desired_accuracy`."""


def outcomes_of(plan: Plan, result: StackResult, counter: Counter, seconds: float) -> list[Outcome]:
    """Outcomes of a stack that took `seconds`, which its attackers share in proportion to their steps."""
    shares = [max(attacker.num_steps, 1) for attacker in plan.attackers]
    healthy = result.healthy
    for values in result.scored.values():
        healthy = healthy & values.flatten(1).isfinite().all(1)
    outcomes = []
    for i, attacker in enumerate(plan.attackers):
        steps = (*plan.evaluated_steps[i], attacker.num_steps)
        outcomes.append(
            Outcome(
                attacker,
                "ok" if healthy[i] else "diverged",
                seconds * shares[i] / sum(shares),
                flops=counter.of(attacker),
                train_losses=_means(result.curves.losses[: attacker.num_steps, i], steps),
                evaluated_steps=steps,
                val_curve_logits=result.curves.scored[i],
                val_logits=result.scored[Split.ATTACKER_VAL][i],
                test_logits=result.scored[Split.TEST][i] if Split.TEST in result.scored else None,
                desired_accuracy=result.desired[i],
                error="" if healthy[i] else "parameters or predictions are not finite",
            )
        )
    return outcomes


def _means(losses: Tensor, ends: Sequence[int]) -> tuple[float, ...]:
    """Means of losses (T,) between successive ends."""
    starts = (0, *ends[:-1])
    return tuple(float(losses[a:b].mean()) for a, b in zip(starts, ends, strict=True) if b > a)
