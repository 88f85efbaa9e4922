"""Settings of the distribution that simulated adversaries are drawn from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sdm_ray.config.base import (
    BatchSize,
    LogRange,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Settings,
)
from sdm_ray.config.support import Support

InnerOptimizer = Literal["sgd", "momentum", "adam", "adamw", "rmsprop"]
RateSchedule = Literal["constant", "warmup", "linear", "cosine"]


class PoolSettings(Settings):
    """Persistent adversaries: each keeps its displacement from the weights across outer steps."""

    size: NonNegativeInt = 0
    """Adversaries in the pool; 0 switches the pool off."""
    lifespan_steps: PositiveInt = 100
    """An adversary's life ends uniformly between 1 and this many of its own steps; then it is drawn anew."""
    subset_size: PositiveInt | None = 100
    """Labelled examples that each adversary owns; None lets it see all of meta-training."""
    steps_per_turn: PositiveInt = 1
    """Steps that one adversary takes in an outer step, when it is its turn."""
    second_order: bool = False
    """Differentiate through the steps of a turn (by `train.gradient_mode`) and evaluate every one of them, instead of
    taking the first-order gradient where the turn ends."""
    learning_rate: LogRange = LogRange(low=3e-4, high=5e-3)
    """Range of learning rates, log-uniform."""
    frozen_probability: Probability = 0.2
    """Share of adversaries that train the head alone (at ten times the learning rate)."""


class AdversarySettings(Settings):
    """The distribution that simulated adversaries are drawn from."""

    version: Literal[1] = 1
    """Version of what the settings below mean; a change of meaning is a new version."""
    num_adversaries: PositiveInt = 1
    """Fresh adversaries of an outer step; their gradients are averaged. Those that are alike run as one batch."""
    num_steps: NonNegativeInt = 4
    """Inner steps K of a fresh adversary; 0 takes none (adversarial censoring, or the pool alone)."""
    num_steps_min: PositiveInt | None = None
    """Draw the inner steps uniformly between this and `num_steps`; None always takes `num_steps`."""
    growing_steps: NonNegativeInt = 0
    """Outer steps over which the largest number of inner steps grows linearly from `num_steps_min` (or 1)."""
    optimizers: Annotated[tuple[InnerOptimizer, ...], Field(min_length=1)] = ("adam",)
    """Inner optimisers, drawn uniformly."""
    learning_rate_mode: Literal["meta_learned", "log_uniform", "fixed"] = "meta_learned"
    """Learn the inner learning rate (it descends the adversary's loss), draw it afresh each time, or keep it."""
    learning_rate_initial: PositiveFloat = 3e-4
    """The fixed learning rate, or the start of the meta-learned one."""
    learning_rate: LogRange = LogRange(low=1e-6, high=1e-2)
    """Bounds of the learning rate; it is drawn from here when the mode is `log_uniform`."""
    learning_rate_schedules: Annotated[tuple[RateSchedule, ...], Field(min_length=1)] = ("constant",)
    """Schedules of the learning rate over the inner steps, drawn uniformly: `warmup` rises over the first tenth and
    stays, `linear` and `cosine` rise likewise and fall to zero."""
    batch_sizes: Annotated[tuple[BatchSize, ...], Field(min_length=1)] = (8, 16, 24)
    """Inner batch sizes, drawn uniformly."""
    head: Literal["meta_learned", "reset", "mixture"] = "meta_learned"
    """Start from the meta-learned harmful head, from a fresh one, or from either."""
    head_reset_probability: Probability = 0.5
    """Share of fresh heads where `head` is `mixture`."""
    frozen_probability: Probability = 0.0
    """Probability that an adversary trains the head alone (at ten times the learning rate)."""
    partly_frozen_probability: Probability = 0.0
    """Probability that it freezes the embeddings and the lowest layers, their number drawn uniformly."""
    lora_probability: Probability = 0.0
    """Probability that it trains low-rank factors of the weight matrices, and the head."""
    lora_ranks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (4, 16)
    """Ranks of the factors, drawn uniformly."""
    subset_size: PositiveInt | None = None
    """Labelled examples an adversary has; None lets it see all of meta-training."""
    parameter_noise: NonNegativeFloat = 0.0
    """Largest standard deviation of Gaussian noise on the trunk at the start, relative to the root mean square of each
    parameter; each adversary draws its own, uniformly from 0."""
    gradient_clip: PositiveFloat = 100.0
    """Norm that inner gradients are clipped to."""
    pool: PoolSettings = PoolSettings()
    """Persistent adversaries."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.learning_rate.low, self.learning_rate.high
        # A rate that is drawn has no initial value.
        if self.learning_rate_mode != "log_uniform" and not low <= self.learning_rate_initial <= high:
            raise ValueError(
                f"learning_rate_initial ({self.learning_rate_initial:g}) must lie in learning_rate [{low:g}, {high:g}]"
            )
        if self.num_steps_min is not None and self.num_steps_min > self.num_steps:
            raise ValueError(f"num_steps_min ({self.num_steps_min}) must not exceed num_steps ({self.num_steps})")
        total = self.frozen_probability + self.partly_frozen_probability + self.lora_probability
        if total > 1:
            raise ValueError(
                "frozen_probability, partly_frozen_probability and lora_probability exclude each other, so their sum "
                f"({total:g}) must not exceed 1"
            )
        return self

    def supports(self) -> tuple[Support, ...]:
        """The supports of the draws: fresh adversaries, one entry for each way of adapting, and members of the pool.

        `learning_rate` is that of the whole model; the head alone is trained at ten times it. `partial` is `head` in a
        trunk of one block.
        """
        fresh = self._fresh_supports() if self.num_steps else ()
        return (*fresh, *self._pool_supports()) if self.pool.size else fresh

    def _fresh_supports(self) -> tuple[Support, ...]:
        rates = (self.learning_rate.low, self.learning_rate.high)
        if self.learning_rate_mode == "fixed":
            rates = (self.learning_rate_initial, self.learning_rate_initial)
        fewest = self.num_steps if self.num_steps_min is None and not self.growing_steps else self.num_steps_min or 1
        resets = {"meta_learned": 0.0, "reset": 1.0, "mixture": self.head_reset_probability}[self.head]
        heads = [name for name, share in (("meta_learned", 1 - resets), ("reset", resets)) if share]
        shares = {
            "head": self.frozen_probability,
            "partial": self.partly_frozen_probability,
            "lora": self.lora_probability,
        }
        shares["full"] = 1 - sum(shares.values())
        return tuple(
            Support(
                name=f"fresh adversaries ({adaptation})",
                optimizers=frozenset(self.optimizers),
                schedules=frozenset(self.learning_rate_schedules),
                adaptations=frozenset({adaptation}),
                heads=frozenset(heads),
                ranks=frozenset(self.lora_ranks) if adaptation == "lora" else None,
                batch_sizes=frozenset(self.batch_sizes),
                learning_rate=rates,
                num_steps=(fewest, self.num_steps),
                num_examples=None if self.subset_size is None else (self.subset_size, self.subset_size),
            )
            for adaptation, share in shares.items()
            if share > 1e-12
        )

    def _pool_supports(self) -> tuple[Support, ...]:
        pool = self.pool
        shares = {"head": pool.frozen_probability, "full": 1 - pool.frozen_probability}
        return (
            Support(
                name="persistent adversaries",
                optimizers=frozenset(self.optimizers),
                schedules=frozenset({"constant"}),
                adaptations=frozenset(adaptation for adaptation, share in shares.items() if share),
                heads=frozenset({"reset"}),
                batch_sizes=frozenset(self.batch_sizes),
                learning_rate=(pool.learning_rate.low, pool.learning_rate.high),
                num_steps=(1, pool.lifespan_steps),
                num_examples=None if pool.subset_size is None else (pool.subset_size, pool.subset_size),
            ),
        )
