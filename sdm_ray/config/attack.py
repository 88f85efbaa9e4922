"""Settings of the attack evaluation."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from sdm_ray.config.base import LogRange, NonNegativeInt, PositiveInt, Probability, Settings


class AttackSettings(Settings):
    """An attacker that searches on attacker-validation and is scored once on test."""

    num_examples: Annotated[tuple[Annotated[int, Field(ge=4)], ...], Field(min_length=1)] = (20, 50, 100, 200)
    """Labelled examples n that the attacker has; one search for each."""
    num_search_trials: PositiveInt = 16
    """Points of the attacker's search at each n."""
    num_search_seeds: PositiveInt = 1
    """Seeds (subset, order, head) that each search point is averaged over."""
    num_rerun_seeds: PositiveInt = 5
    """Fresh seeds that the winner is re-run on; their test scores are the result."""
    learning_rate: LogRange = LogRange(low=1e-4, high=1e-2)
    """Learning rates of Adam, log-uniform."""
    num_steps_min: PositiveInt = 50
    """Fewest fine-tuning steps."""
    num_steps_max: PositiveInt = 200
    """Most fine-tuning steps."""
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 16, 24)
    """Batch sizes (never above n)."""
    frozen_probability: Probability = 0.25
    """Share of search points that train the head alone, at ten times the learning rate."""
    max_validation_examples: PositiveInt | None = 512
    """Attacker-validation examples that search and label permutation are scored on, chosen at random once, the same for
    every model; None takes all. Test is always scored in full."""
    class_balanced: bool = True
    """Draw the same number of examples from each class."""
    seed: NonNegativeInt = 0
    """Seed of the search, the subsets, the orders and the heads; equal for all models, which pairs them."""
    max_failed_share: Probability = 0.2
    """Share of a cell's re-runs that may be missing (crashed or diverged twice) before the cell is invalid."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_steps_min > self.num_steps_max:
            raise ValueError(
                f"num_steps_min ({self.num_steps_min}) must not exceed num_steps_max ({self.num_steps_max})"
            )
        if len(set(self.num_examples)) != len(self.num_examples):
            raise ValueError(f"num_examples must not repeat a value, got {list(self.num_examples)}")
        return self
