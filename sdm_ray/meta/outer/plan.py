"""Which adversaries an outer step simulates, and which blocking terms are computed on each."""

from __future__ import annotations

from typing import NamedTuple

from sdm_ray.config import TrainSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.meta.objectives import TERMS

FRESH_READS = ("harmful_adapted", "predicted", "inner_gradient")
RETENTION_READS = ("masked_lm", "hidden_states")


class Plan(NamedTuple):
    """Weights of the blocking terms, grouped by the model on which a term is computed; a group may be empty."""

    fresh: dict[str, float]
    """Terms of fresh adversaries; of the un-adapted model where no fresh adversary takes a step."""
    pool: dict[str, float]
    """Terms of the persistent adversary that this outer step trains."""
    desired: dict[str, float]
    """Terms of an adversary that adapts to the desired task."""
    gradients: dict[str, float]
    """Terms of both tasks' gradients at the un-adapted model."""
    retention: dict[str, float]
    """Terms of the un-adapted model on general text or on the outer desired batch."""
    num_steps: int
    """Largest number of inner steps K of a fresh adversary."""

    @staticmethod
    def of(settings: TrainSettings) -> Plan:
        """The plan of a training.

        With fresh adversaries and a pool, a term of adapted models is the mean over both. The method `ac` computes its
        terms on the un-adapted model only and takes no inner step, whatever the adversary's settings say.

        Raises:
            UsageError: for a term that needs inner steps when the settings have none.
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

    def fresh_adapts(self) -> bool:
        """Whether fresh adversaries take steps against the harmful task."""
        return any(TERMS[name].reads != "harmful_base" for name in self.fresh)

    def reads_harmful_after_desired(self) -> bool:
        """Whether a term reads the harmful task in models that adapted to the desired one."""
        return any(TERMS[name].reads == "desired_adapted_harmful" for name in self.desired)

    def draws_harmful(self) -> bool:
        """Whether a term but those of retention is computed: all of these need a harmful batch."""
        return bool(self.fresh or self.pool or self.desired or self.gradients)

    def terms(self) -> list[str]:
        """All terms, each once."""
        return list(dict.fromkeys([*self.fresh, *self.pool, *self.desired, *self.gradients, *self.retention]))
