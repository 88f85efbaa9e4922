"""Settings of the distribution from which simulated adversaries are sampled."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple, Self

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
from sdm_ray.config.starts import ATTACK_EDITS, StartSettings
from sdm_ray.config.support import Support

InnerOptimizer = Literal["sgd", "momentum", "adam", "adamw", "rmsprop"]
RateSchedule = Literal["constant", "warmup", "linear", "cosine"]
HeadKind = Literal["pooled", "attention", "max"]
"""What a head reads: the pooled features; the mean of token states under a learned query's softmax weights; or, for
each class, the largest of its scores over tokens."""
ATTACK_HEADS: dict[HeadKind, str] = {"attention": "attention", "max": "maximum"}
"""The attack's name of each head that reads tokens."""


class PoolSettings(Settings):
    """Persistent adversaries: each keeps its displacement from the current weights across outer steps."""

    size: NonNegativeInt = 0
    """Number of adversaries in the pool; 0 turns the pool off."""
    lifespan_steps: PositiveInt = 100
    """Largest number of steps of an adversary. Its lifespan is drawn uniformly from 1 to this; then a newly sampled one
    replaces it."""
    subset_size: PositiveInt | None = 100
    """Labelled examples of each adversary; None gives it the whole meta-training split."""
    steps_per_turn: PositiveInt = 1
    """Inner steps in one turn. The adversaries take turns, one adversary in each outer step."""
    second_order: bool = False
    """Differentiate through the steps of a turn (with `train.gradient_mode`) and evaluate the model at each of them. If
    false, take the first-order gradient at the end of the turn."""
    learning_rate: LogRange = LogRange(low=3e-4, high=5e-3)
    """Range of the learning rate; sampled log-uniformly."""
    frozen_probability: Probability = 0.2
    """Probability that an adversary trains only the head (at ten times the learning rate)."""


class _Edited(NamedTuple):
    """Weights that adversaries may start from, in the attack's terms."""

    words: str
    edit: str
    amount: tuple[float, float]


class AdversarySettings(Settings):
    """The distribution from which simulated adversaries are sampled."""

    LATER: ClassVar[frozenset[str]] = frozenset({"starts", "head_kinds"})

    version: Literal[1] = 1
    """Version of the meaning of the settings below; a change of meaning needs a new version."""
    num_adversaries: PositiveInt = 1
    """Number of fresh adversaries in an outer step; their gradients are averaged. On a GPU, adversaries with equal
    optimiser, schedule, batch size, number of steps and trained parameters run as one batch."""
    num_steps: NonNegativeInt = 4
    """Inner steps K of a fresh adversary; 0 for none (adversarial censoring, or only the pool)."""
    num_steps_min: PositiveInt | None = None
    """Sample the number of inner steps uniformly from this to `num_steps`; None always uses `num_steps`."""
    growing_steps: NonNegativeInt = 0
    """Outer steps over which the largest number of inner steps grows linearly from `num_steps_min` (or 1)."""
    optimizers: Annotated[tuple[InnerOptimizer, ...], Field(min_length=1)] = ("adam",)
    """Inner optimisers, sampled uniformly."""
    learning_rate_mode: Literal["meta_learned", "log_uniform", "fixed"] = "meta_learned"
    """`meta_learned`: the outer optimiser trains the inner learning rate to lower the adversary's loss. `log_uniform`:
    sampled for every adversary. `fixed`: always `learning_rate_initial`."""
    learning_rate_initial: PositiveFloat = 3e-4
    """The fixed learning rate, or the initial value of the meta-learned one."""
    learning_rate: LogRange = LogRange(low=1e-6, high=1e-2)
    """Bounds of the learning rate, and its range in mode `log_uniform`."""
    learning_rate_schedules: Annotated[tuple[RateSchedule, ...], Field(min_length=1)] = ("constant",)
    """Schedules of the learning rate over the inner steps, sampled uniformly. `warmup` rises over the first tenth of
    the steps and is constant afterwards; `linear` and `cosine` rise in the same way and then decay to zero."""
    batch_sizes: Annotated[tuple[BatchSize, ...], Field(min_length=1)] = (8, 16, 24)
    """Inner batch sizes, sampled uniformly."""
    head: Literal["meta_learned", "reset", "mixture"] = "meta_learned"
    """Initial head: the meta-learned harmful head, a randomly initialised one (`reset`), or either at random."""
    head_reset_probability: Probability = 0.5
    """Probability of a randomly initialised head if `head` is `mixture`."""
    head_kinds: Annotated[tuple[HeadKind, ...], Field(min_length=1)] = ("pooled",)
    """Heads of adversaries of the harmful task, fresh and persistent ones, sampled uniformly. `pooled` reads the pooled
    features. `attention` (a learned query attends to the last layer's token states) and `max` (each class's largest
    score over tokens) are always randomly initialised, whatever `head` says."""
    frozen_probability: Probability = 0.0
    """Probability that an adversary trains only the head (at ten times the learning rate)."""
    partly_frozen_probability: Probability = 0.0
    """Probability that an adversary freezes the embeddings and the lowest layers; their number is sampled uniformly."""
    lora_probability: Probability = 0.0
    """Probability that an adversary trains low-rank factors of the weight matrices, and the head."""
    lora_ranks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (4, 16)
    """Ranks of the factors, sampled uniformly."""
    subset_size: PositiveInt | None = None
    """Labelled examples of an adversary; None gives it the whole meta-training split."""
    parameter_noise: NonNegativeFloat = 0.0
    """Upper bound of the standard deviation of Gaussian noise on the initial trunk, relative to each parameter's root
    mean square. Each adversary samples its standard deviation uniformly from 0 to this."""
    starts: StartSettings = StartSettings()
    """Weights that adversaries of the harmful task start from, fresh and persistent ones: the current ones or edits."""
    gradient_clip: PositiveFloat = 100.0
    """Inner gradients are clipped to this norm."""
    pool: PoolSettings = PoolSettings()
    """Persistent adversaries."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.learning_rate.low, self.learning_rate.high
        # A sampled learning rate has no initial value.
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
        """The supports of the distribution: one for each kind of adaptation of fresh adversaries, and one for the pool.

        `learning_rate` is the rate for the whole model; an adversary that trains only the head uses ten times that. In
        a trunk of one block `partial` is the same as `head`.
        """
        fresh = self._fresh_supports() if self.num_steps else ()
        return (*fresh, *self._pool_supports()) if self.pool.size else fresh

    def _fresh_supports(self) -> tuple[Support, ...]:
        rates = (self.learning_rate.low, self.learning_rate.high)
        if self.learning_rate_mode == "fixed":
            rates = (self.learning_rate_initial, self.learning_rate_initial)
        fewest = self.num_steps if self.num_steps_min is None and not self.growing_steps else self.num_steps_min or 1
        resets = {"meta_learned": 0.0, "reset": 1.0, "mixture": self.head_reset_probability}[self.head]
        pooled = [name for name, share in (("meta_learned", 1 - resets), ("reset", resets)) if share]
        shares = {
            "head": self.frozen_probability,
            "partial": self.partly_frozen_probability,
            "lora": self.lora_probability,
        }
        shares["full"] = 1 - sum(shares.values())
        return tuple(
            Support(
                name=f"fresh adversaries ({adaptation}{start.words})",
                optimizers=frozenset(self.optimizers),
                schedules=frozenset(self.learning_rate_schedules),
                adaptations=frozenset({adaptation}),
                edits=frozenset({start.edit}),
                edit_amount=start.amount,
                heads=self._heads(pooled),
                ranks=frozenset(self.lora_ranks) if adaptation == "lora" else None,
                batch_sizes=frozenset(self.batch_sizes),
                learning_rate=rates,
                num_steps=(fewest, self.num_steps),
                num_examples=None if self.subset_size is None else (self.subset_size, self.subset_size),
            )
            for adaptation, share in shares.items()
            if share > 1e-12
            for start in self._edits(self.parameter_noise)
        )

    def _heads(self, pooled: list[str]) -> frozenset[str]:
        """Initial heads in the attack's terms, given those that read the pooled features."""
        tokens = {ATTACK_HEADS[kind] for kind in self.head_kinds if kind != "pooled"}
        return frozenset(tokens | set(pooled if "pooled" in self.head_kinds else ()))

    def _edits(self, parameter_noise: float = 0.0) -> list[_Edited]:
        """Weights that adversaries may start from; parameter noise corresponds to the attack's edit `noise`."""
        found = []
        for option in self.starts.options():
            name, amounts = ATTACK_EDITS[option.kind], option.amounts
            words = "" if option.kind == "released" else f", {option.kind}"
            found.append(_Edited(words, name, (min(amounts), max(amounts))))
        if parameter_noise and self.starts.released:
            found.append(_Edited(", parameter noise", ATTACK_EDITS["noise"], (0.0, parameter_noise)))
        return found

    def _pool_supports(self) -> tuple[Support, ...]:
        pool = self.pool
        shares = {"head": pool.frozen_probability, "full": 1 - pool.frozen_probability}
        return tuple(
            Support(
                name=f"persistent adversaries{start.words and f' ({start.words[2:]})'}",
                optimizers=frozenset(self.optimizers),
                schedules=frozenset({"constant"}),
                adaptations=frozenset(adaptation for adaptation, share in shares.items() if share),
                edits=frozenset({start.edit}),
                edit_amount=start.amount,
                heads=self._heads(["reset"]),
                batch_sizes=frozenset(self.batch_sizes),
                learning_rate=(pool.learning_rate.low, pool.learning_rate.high),
                num_steps=(1, pool.lifespan_steps),
                num_examples=None if pool.subset_size is None else (pool.subset_size, pool.subset_size),
            )
            for start in self._edits()
        )
