"""Fine-tunes that run together as one stack: which of them train at a step, on what, and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdm_ray.attack.engine.optim import rate_factors
from sdm_ray.attack.families.base import Attacker

if TYPE_CHECKING:
    pass


class AttackTimeoutError(RuntimeError):
    """A stack of fine-tunes took longer than the settings allow."""


@dataclass(frozen=True)
class Plan:
    """Fine-tunes that run together: equal batch size and optimiser, longest first. All tensors are on the host."""

    attackers: tuple[Attacker, ...]
    subsets: tuple[Tensor, ...]
    """(n,) example indices of each attacker."""
    orders: tuple[Tensor, ...]
    """(num_steps, B) batch order of each attacker, as positions in its subset."""
    heads: Tensor
    """(S, C, D) initial heads."""
    evaluated_steps: tuple[tuple[int, ...], ...] = ()
    """Numbers of steps at which each attacker is scored during training; empty for never."""
    deadline: float | None = None
    """Time limit, as a value of `time.perf_counter`; None for no limit."""

    def segments(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (start, stop, active): intervals of at most `length` steps in which the first `active` attackers train.

        Raises:
            AttackTimeoutError: after the deadline.
        """
        ends = sorted({attacker.num_steps for attacker in self.attackers}.union(*self.evaluated_steps))
        start = 0
        for end in ends:
            active = sum(attacker.num_steps > start for attacker in self.attackers)
            while start < end:
                if self.deadline is not None and time.perf_counter() > self.deadline:
                    raise AttackTimeoutError("timed out")
                stop = min(start + length, end)
                yield start, stop, active
                start = stop

    def held(self, active: int, sizes: int) -> int:
        """Number of attackers in a step's stack, rounded up so that at most `sizes` sizes occur; 0 for no rounding."""
        if not sizes:
            return active
        started = sum(attacker.num_steps > 0 for attacker in self.attackers)
        unit = -(-started // sizes)
        return min(started, -(-active // unit) * unit)

    def indices(self, start: int, stop: int, held: int) -> Tensor:
        """(T, S', B) example indices of the first `held` attackers at steps `start` to `stop`.

        Attackers that have finished repeat their last step.
        """
        steps = torch.arange(start, stop)
        chosen = [
            subset[order[steps.clamp(max=len(order) - 1)]]
            for subset, order in zip(self.subsets[:held], self.orders[:held], strict=True)
        ]
        return torch.stack(chosen, dim=1)

    def learning_rates(self) -> Tensor:
        """(T, S) learning rate of each attacker at each step; 0 once it has finished."""
        longest = self.attackers[0].num_steps
        columns = [
            [attacker.learning_rate * factor for factor in rate_factors(attacker.schedule, attacker.num_steps)]
            + [0.0] * (longest - attacker.num_steps)
            for attacker in self.attackers
        ]
        return torch.tensor(columns, dtype=torch.float64).T.contiguous()

    def due(self, step: int) -> list[int]:
        """Indices of the attackers that are scored after `step` steps."""
        return [index for index, steps in enumerate(self.evaluated_steps) if step in steps]
