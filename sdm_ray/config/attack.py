"""Settings of the attack evaluation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sdm_ray.config.base import (
    MOST,
    BatchSize,
    LogRange,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Seed,
    Settings,
)

NumExamples = Annotated[int, Field(ge=4, le=MOST)] | Literal["all"]
Preset = Literal["quick", "standard", "paper", "worst-case"]
AttackOptimizer = Literal["adam", "adamw", "momentum", "rmsprop", "adadelta", "adafactor", "lion"]
AttackSchedule = Literal["constant", "warmup", "linear", "cosine"]

GRADIENT_FREE_FAMILIES = ("linear_probe", "logistic_regression", "knn")
FAMILIES = (
    "fine_tune", "rescale", "full", "head", "partial", "lora", "attention_head", *GRADIENT_FREE_FAMILIES, "token_probe",
    "noise", "reinit", "prune", "interpolate", "graft", "benign_first", "masked_lm", "composed",
)  # fmt: skip
"""Attack families by name, as `sdm_ray.attack.families` registers them."""

WALKING_BACK = ("interpolate", "graft")
"""Families that need the public encoder. Whoever has it needs no attack, so they are reported apart."""
SHARING = ("fine_tune", "rescale")
"""Families that share a budget where `shared_search` is set: the same attacker on plain and on rescaled weights."""

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    "standard": {
        "families": ("full", "head", "linear_probe", "rescale", "token_probe"),
        "num_examples": (20, 50, 100, 200, "all"),
        "num_rerun_seeds": 10,
        "num_search_seeds": 2,
        "num_steps_max": 600,
        "benign_num_examples": (100,),
    },
    "paper": {
        "shared_search": False,
        "num_rerun_seeds": 15,
        "num_searches": 6,
        "num_search_trials": 50,
        "num_search_seeds": 1,
        "learning_rate": {"low": 1e-5, "high": 1e-2},
        "num_steps_min": 100,
        "num_steps_max": 1000,
        "batch_sizes": (8, 16, 24),
        "frozen_probability": 0.5,
    },
    "worst-case": {
        "families": FAMILIES,
        "shared_search": False,
        "num_examples": (20, 50, 100, 200, "all"),
        "num_rerun_seeds": 15,
        "num_search_trials": 24,
        "num_search_seeds": 2,
        "learning_rate": {"low": 1e-5, "high": 3e-2},
        "num_steps_max": 1000,
        "benign_num_examples": (100,),
    },
}
"""What the settings are where they are not given, by preset."""


EDIT_CHAINS = (
    "rescale_embedding+benign_first",
    "rescale_gains+rescale_weights+rescale_embedding",
    "rescale_embedding+reinit",
    "rescale_embedding+noise",
    "rescale_embedding+prune",
    "rescale_embedding+masked_lm",
    "reinit+benign_first",
    "noise+rescale_embedding",
)
"""Edits that `composed` makes one after the other."""


class AttackSettings(Settings):
    """An attacker that searches on attacker-validation and is scored once on test."""

    LATER: ClassVar[frozenset[str]] = frozenset(
        {
            "benign_families",
            "edit_chains",
            "measure_information",
            "num_probe_trials",
            "portfolio",
            "shared_search",
            "utility_share",
        }
    )

    preset: Preset | None = None
    """Gives the settings that are not given other defaults: `quick` (those of this class, for a trial), `standard`,
    `paper` (the published protocol: Adam, whole model or head, 50 trials and 15 re-runs at each n, six times) or
    `worst-case` (every family)."""
    families: Annotated[tuple[str, ...], Field(min_length=1)] = ("fine_tune", "rescale", "token_probe")
    """Attack families; each is searched by itself at each n, and the worst of them is the result. A family that a model
    does not allow (interpolation where no public encoder is known, say) is listed as not tried."""
    num_examples: Annotated[tuple[NumExamples, ...], Field(min_length=1)] = (20, 50, 100, 200)
    """Labelled examples n that the attacker has; `all` is all of attacker-train."""
    num_searches: PositiveInt = 1
    """Repetitions of the whole search at each n, on other seeds; intervals are then over repetitions."""
    num_search_trials: PositiveInt = 16
    """Points of the attacker's search of a family at each n, but of `token_probe`'s."""
    num_probe_trials: PositiveInt = 32
    """Points of `token_probe`'s search at each n. They are cheap, and 32 read every layer of a small encoder in every
    way once."""
    shared_search: bool = True
    """Whether `fine_tune` and `rescale`, where both are tried, share `num_search_trials` and the re-runs: each searches
    half of the points, and at each n only the one that did better in the search is run again."""
    num_search_seeds: PositiveInt = 1
    """Seeds (subset, order, head) that each search point is averaged over."""
    halving: bool = False
    """Successive halving: after each seed only the better half of the points goes on to the next one."""
    sampler: Literal["sobol", "tpe"] = "sobol"
    """Who proposes points: the same quasi-random ones for every model, or Optuna's TPE, which learns from scores."""
    num_rerun_seeds: PositiveInt = 5
    """Fresh seeds that the winner is re-run on; their test scores are the result."""
    learning_rate: LogRange = LogRange(low=1e-4, high=1e-2)
    """Learning rates of Adam, log-uniform; other optimisers and low-rank factors take multiples of them."""
    optimizers: Annotated[tuple[AttackOptimizer, ...], Field(min_length=1)] = (
        "adam", "adamw", "momentum", "rmsprop", "adadelta", "adafactor", "lion",
    )  # fmt: skip
    """Optimisers of all families but `fine_tune`, which is Adam's."""
    schedules: Annotated[tuple[AttackSchedule, ...], Field(min_length=1)] = ("constant", "warmup", "cosine", "linear")
    """Learning rate schedules of all families but `fine_tune`."""
    num_steps_min: PositiveInt = 50
    """Fewest fine-tuning steps."""
    num_steps_max: PositiveInt = 200
    """Most fine-tuning steps."""
    batch_sizes: Annotated[tuple[BatchSize, ...], Field(min_length=1)] = (8, 16, 24)
    """Batch sizes (never above n)."""
    frozen_probability: Probability = 0.25
    """Share of `fine_tune`'s points that train the head alone, at ten times the learning rate."""
    lora_ranks: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1)] = (1, 4, 16, 64)
    """Ranks of `lora`."""
    edit_chains: Annotated[tuple[str, ...], Field(min_length=1)] = EDIT_CHAINS
    """Edits that `composed` makes one after the other, `+` between them, how much of each being searched."""
    portfolio: str | None = None
    """JSON file of winners of earlier searches (`sdm-ray attack --add-winners`), which each search of a family at an n
    begins with, within its number of points and half of them at most; None begins with the sampler's."""
    max_validation_examples: PositiveInt | None = 512
    """Attacker-validation examples that search and label permutation are scored on, chosen at random once, the same for
    every model; None takes all. Test is always scored in full."""
    class_balanced: bool = True
    """Draw the same number of examples from each class (`all` takes all of them)."""
    seed: Seed = 0
    """Seed of the search, the subsets, the orders and the heads; equal for all models, which pairs them."""
    max_failed_share: Probability = 0.2
    """Share of a cell's re-runs that may be missing (crashed or diverged twice, or timed out) before it is invalid."""
    timeout_seconds: PositiveFloat | None = None
    """Seconds that a stack of fine-tunes may take; None waits. After that its fine-tunes share the same time once more,
    one by one, and those that take longer count as crashed."""
    num_curve_points: NonNegativeInt = 6
    """Steps of a re-run after which it is scored on attacker-validation; this curve gives the steps to recover."""
    utility_share: Probability = 0.9
    """What counts as still doing the desired task: this share of the released model's accuracy. The worst case among
    such attacks is reported beside the worst of all."""
    recovery_share: Probability = 0.9
    """What counts as recovered: this share of the accuracy above chance that the undefended encoder gives way to."""
    benign_num_examples: tuple[NumExamples, ...] = ()
    """Labelled examples at which benign trainability is measured, by the same search: on the desired task, on a
    grouping of its classes that was never trained on, and on the data's benign tasks. Empty measures nothing."""
    benign_families: tuple[str, ...] = ()
    """Families that benign tasks are searched with; empty takes `families`."""
    benign_groups: Annotated[int, Field(ge=2, le=MOST)] = 3
    """Classes of that grouping."""
    measure_information: bool = True
    """Read every site of the model with all labels of attacker-train, and of random initialisation, for the audit."""

    def for_benign_tasks(self) -> AttackSettings:
        """The search on benign tasks: their sizes and families, and classes as they occur."""
        changes = {
            "num_examples": self.benign_num_examples,
            "families": self.benign_families or self.families,
            "class_balanced": False,
            "benign_num_examples": (),
            "benign_families": (),
            "preset": None,
        }
        return AttackSettings.model_validate(self.model_dump() | changes)

    def search_trials(self, family: str) -> int:
        """Points of the search of a family at each n."""
        if family == "token_probe":
            return self.num_probe_trials
        if not self.shares_search or family not in SHARING:
            return self.num_search_trials
        half = self.num_search_trials // 2
        return max(1, half if family == SHARING[1] else self.num_search_trials - half)

    def search_seeds(self, family: str) -> int:
        """Seeds that each point of a family's search is averaged over; the cheap `token_probe` has two at least."""
        return max(2, self.num_search_seeds) if family == "token_probe" else self.num_search_seeds

    @property
    def shares_search(self) -> bool:
        """Whether two of the families share a budget."""
        return self.shared_search and set(SHARING) <= set(self.families)

    @property
    def num_fine_tunes(self) -> int:
        """Fine-tunes of an attack on one model at one n, retries and halving apart, and readers of tokens apart, which
        cost next to nothing beside them."""
        counted = [family for family in self.families if family != "token_probe"] or self.families
        points = sum(self.search_trials(family) * self.search_seeds(family) for family in counted)
        reruns = self.num_rerun_seeds * (len(counted) - self.shares_search)
        return (points + reruns) * self.num_searches

    @model_validator(mode="before")
    @classmethod
    def _preset_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") not in PRESETS:
            return values
        return {**PRESETS[values["preset"]], **values}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_steps_min > self.num_steps_max:
            raise ValueError(
                f"num_steps_min ({self.num_steps_min}) must not exceed num_steps_max ({self.num_steps_max})"
            )
        for name in ("num_examples", "families", "benign_num_examples", "benign_families"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must not repeat a value, got {list(values)}")
        return self
