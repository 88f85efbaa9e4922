"""Which adversaries an outer step simulates, and which blocking terms are computed on each."""

from __future__ import annotations

from typing import NamedTuple

from sdm_ray.config import TrainSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.meta.objectives import TERMS

FRESH_READS = ("harmful_adapted", "predicted", "inner_gradient")
RETENTION_READS = ("masked_lm", "hidden_states")


class Plan(NamedTuple):
    """Terms and weights by where they are read; each is empty where nothing is."""

    fresh: dict[str, float]
    """Off fresh adversaries (or the un-adapted model where none takes a step)."""
    pool: dict[str, float]
    """Off the persistent adversary whose turn it is."""
    desired: dict[str, float]
    """Off an adversary that adapts to the desired task."""
    gradients: dict[str, float]
    """Off the gradients of both tasks at the un-adapted model."""
    retention: dict[str, float]
    """Off the un-adapted model on general text."""
    num_steps: int
    """Largest number of inner steps K of a fresh adversary."""

    @staticmethod
    def of(settings: TrainSettings) -> Plan:
        """Fresh adversaries and a pool share the terms of adapted models: each such term is the mean over both.

        `ac` evaluates the un-adapted model alone, so it takes no inner step whatever the adversary's settings say.

        Raises:
            UsageError: where a term needs what the adversary's settings do not give.
        """
        weights, adversary = settings.blocking.weights(), settings.adversary

        def reading(*reads: str) -> dict[str, float]:
            return {name: weight for name, weight in weights.items() if TERMS[name].reads in reads}

        adapted, only_fresh = reading("harmful_adapted"), reading("predicted", "inner_gradient")
        desired = reading("desired_adapted", "desired_adapted_harmful")
        num_steps = adversary.num_steps if settings.method == "mlac" else 0
        if (only_fresh or desired) and not num_steps:
            named = next(iter(only_fresh | desired))
            raise UsageError(f"train.blocking.{named} needs inner steps: set train.adversary.num_steps above 0")
        has_pool = bool(adapted) and adversary.pool.size > 0
        has_fresh = bool(num_steps) and bool(adapted or only_fresh)
        share = 0.5 if has_pool and has_fresh else 1.0
        shared = {name: weight * share for name, weight in adapted.items()}
        return Plan(
            fresh=reading("harmful_base") | ({**shared, **only_fresh} if has_fresh else {}),
            pool=shared if has_pool else {},
            desired=desired,
            gradients=reading("gradients"),
            retention=reading(*RETENTION_READS),
            num_steps=num_steps if has_fresh or desired else 0,
        )

    def simulates(self) -> bool:
        """Whether any adversary takes a step against the harmful task."""
        return bool(self.pool) or any(TERMS[name].reads in FRESH_READS for name in self.fresh)

    def terms(self) -> list[str]:
        """All terms, each once."""
        return list(dict.fromkeys([*self.fresh, *self.pool, *self.desired, *self.gradients, *self.retention]))
