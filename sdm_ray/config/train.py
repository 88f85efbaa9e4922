"""Settings of meta-training: the adversary distribution, the blocking terms, the outer loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sdm_ray.config.base import (
    LogRange,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Settings,
)

Method = Literal["pretrained", "random", "tuned", "ac", "mlac"]
DEFAULT_TERM = {"mlac": "harmful_adapted_calibrated", "ac": "harmful_base"}
"""The term that a method blocks with when the settings give no weights."""

InnerOptimizer = Literal["sgd", "momentum", "adam"]


class PoolSettings(Settings):
    """Persistent adversaries: each keeps its displacement from the weights across outer steps."""

    size: NonNegativeInt = 0
    """Adversaries in the pool; 0 switches the pool off."""
    lifespan_steps: PositiveInt = 100
    """An adversary's life ends uniformly between 1 and this many of its own steps; then it is drawn anew."""
    subset_size: PositiveInt | None = 100
    """Labelled examples that each adversary owns; None lets it see all of meta-training."""
    steps_per_turn: PositiveInt = 1
    """Steps the adversary whose turn it is takes in an outer step."""
    learning_rate: LogRange = LogRange(low=3e-4, high=5e-3)
    """Range of learning rates, log-uniform."""
    frozen_probability: Probability = 0.2
    """Share of adversaries that train the head alone (at ten times the learning rate)."""


class AdversarySettings(Settings):
    """The distribution that simulated adversaries are drawn from."""

    num_steps: NonNegativeInt = 4
    """Inner steps K of a fresh adversary; 0 takes none (adversarial censoring, or the pool alone)."""
    optimizers: Annotated[tuple[InnerOptimizer, ...], Field(min_length=1)] = ("adam",)
    """Inner optimisers, drawn uniformly."""
    learning_rate_mode: Literal["meta_learned", "log_uniform"] = "meta_learned"
    """Learn the inner learning rate (it descends the adversary's loss), or draw it afresh each time."""
    learning_rate_initial: PositiveFloat = 3e-4
    """Start of the meta-learned learning rate."""
    learning_rate: LogRange = LogRange(low=1e-6, high=1e-2)
    """Bounds of the learning rate; it is drawn from here when the mode is `log_uniform`."""
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 16, 24)
    """Inner batch sizes, drawn uniformly."""
    head: Literal["meta_learned", "reset"] = "meta_learned"
    """Start from the meta-learned harmful head, or from a fresh one."""
    frozen_probability: Probability = 0.0
    """Probability that an adversary trains the head alone."""
    subset_size: PositiveInt | None = None
    """Labelled examples an adversary has; None lets it see all of meta-training."""
    gradient_clip: PositiveFloat = 100.0
    """Norm that inner gradients are clipped to."""
    pool: PoolSettings = PoolSettings()
    """Persistent adversaries."""

    @model_validator(mode="after")
    def _initial_in_range(self) -> Self:
        low, high = self.learning_rate.low, self.learning_rate.high
        if not low <= self.learning_rate_initial <= high:
            raise ValueError(
                f"learning_rate_initial ({self.learning_rate_initial:g}) must lie in learning_rate [{low:g}, {high:g}]"
            )
        return self


class BlockingSettings(Settings):
    """Weights of the outer loss. Base and adapted terms are those of the method; a weight of 0 leaves a term out."""

    desired_base: NonNegativeFloat = 1.0
    """Desired loss of the un-adapted model; minimised."""
    harmful_base: NonNegativeFloat = 0.0
    """Harmful loss of the un-adapted model; maximised (adversarial censoring)."""
    harmful_adapted: NonNegativeFloat = 0.0
    """Mean over inner steps of the adapted harmful loss; maximised."""
    harmful_adapted_calibrated: NonNegativeFloat = 0.0
    """The same after calibration, so that flipped labels do not count; maximised."""
    harmful_adapted_clamped: NonNegativeFloat = 0.0
    """The same with each example's cross-entropy clamped at log C; maximised (MLAC-AR)."""

    def adapted_weight(self) -> float:
        """Sum of the weights of terms that need an adapted model."""
        return self.harmful_adapted + self.harmful_adapted_calibrated + self.harmful_adapted_clamped


class TrainSettings(Settings):
    """Meta-training of one model."""

    method: Method = "mlac"
    """`pretrained` and `random` fit the desired head on a frozen trunk; `tuned` minimises the desired loss alone; `ac`
    adds a harmful head without adaptation; `mlac` blocks simulated adversaries."""
    num_outer_steps: PositiveInt = 1000
    """Outer steps."""
    desired_batch_size: PositiveInt = 32
    """Examples in the outer desired batch."""
    harmful_batch_size: PositiveInt = 32
    """Examples in the outer harmful batch."""
    learning_rate: PositiveFloat = 3e-4
    """Outer learning rate of trunk (Adam)."""
    head_learning_rate: PositiveFloat = 3e-3
    """Outer learning rate of the desired head (Adam)."""
    adversary_learning_rate: PositiveFloat = 1e-3
    """Outer learning rate of the adversary's head and of the logarithm of its learning rate (Adam)."""
    warmup_steps: NonNegativeInt = 0
    """Outer steps over which the learning rates rise linearly."""
    gradient_clip: PositiveFloat = 10.0
    """Norm that the outer gradient of the trunk is clipped to."""
    gradient_mode: Literal["unrolled", "first_order"] = "unrolled"
    """`unrolled` differentiates through the inner loop (second order); `first_order` does not."""
    blocking: BlockingSettings = BlockingSettings()
    """Weights of the outer loss. When no harmful weight is given, `mlac` takes `harmful_adapted_calibrated: 1`, `ac`
    `harmful_base: 1`, and the others block nothing."""
    adversary: AdversarySettings = AdversarySettings()
    """The adversary distribution."""
    log_every_steps: PositiveInt = 50
    """Outer steps between two rows of the log (metrics stay on the device in between)."""
    checkpoint_every_steps: PositiveInt = 200
    """Outer steps between two checkpoints."""

    @model_validator(mode="before")
    @classmethod
    def _default_blocking(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("blocking", {}), dict):
            return values
        blocking, term = values.get("blocking", {}), DEFAULT_TERM.get(values.get("method", "mlac"))
        if term is None or any(name.startswith("harmful") for name in blocking):
            return values
        return {**values, "blocking": {**blocking, term: 1.0}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        blocking, adversary = self.blocking, self.adversary
        blocks = blocking.adapted_weight() + blocking.harmful_base
        if self.method in ("pretrained", "random", "tuned") and blocks:
            raise ValueError(f"method '{self.method}' does not block: set every harmful weight of blocking to 0")
        if self.method == "ac" and (blocking.adapted_weight() or not blocking.harmful_base):
            raise ValueError("method 'ac' uses blocking.harmful_base alone: give it a weight and the adapted terms 0")
        if self.method == "mlac" and not blocking.adapted_weight():
            raise ValueError("method 'mlac' needs an adapted term: give a blocking.harmful_adapted* weight above 0")
        if self.method == "mlac" and adversary.num_steps == 0 and adversary.pool.size == 0:
            raise ValueError("method 'mlac' needs an adversary: set adversary.num_steps or adversary.pool.size above 0")
        if not blocking.desired_base:
            raise ValueError("blocking.desired_base must be above 0, or nothing trains the desired head")
        return self

    def for_method(self, method: Method) -> TrainSettings:
        """The same training with another method: blocking weights and adversary return to that method's defaults."""
        if method == self.method:
            return self
        values = self.model_dump(mode="json", exclude={"blocking", "adversary"})
        return TrainSettings.model_validate({**values, "method": method})
