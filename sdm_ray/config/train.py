"""Settings of meta-training: the method and the outer loop."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sdm_ray.config.adversary import AdversarySettings
from sdm_ray.config.base import (
    BatchSize,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Settings,
)
from sdm_ray.config.blocking import BlockingSettings
from sdm_ray.config.distil import DEFAULT_STEPS, DistilSettings
from sdm_ray.config.erase import DEFAULT_DIRECTIONS, EraseSettings

Method = Literal["pretrained", "random", "scratch", "tuned", "erase", "distil", "distilled_scratch", "ac", "mlac"]
UNTRAINED = ("pretrained", "random")
"""Methods that leave the trunk as it is."""
ERASING = ("erase", "ac", "mlac")
"""Methods that may take directions out of the residual stream."""
DISTILLING = ("erase", "distil", "distilled_scratch", "ac", "mlac")
"""Methods whose model may be distilled anew."""
BLOCKING = ("ac", "mlac")
"""Methods that train against adversaries."""
ADAPTED_TERMS = (
    "harmful_adapted", "harmful_adapted_calibrated", "harmful_adapted_clamped", "harmful_adapted_entropy",
    "harmful_adapted_inverse", "harmful_adapted_uniform",
)  # fmt: skip
"""Terms that any adversary serves, fresh or persistent."""
FRESH_TERMS = ("adapted_grad_norm", "desired_adapted", "desired_adapted_harmful", "mutual_information")
"""Terms that are read off the inner steps of fresh adversaries alone."""
DEFAULT_TERM = {"mlac": "harmful_adapted_calibrated", "ac": "harmful_base"}
"""The term that a method blocks with when the settings give no weights."""

GradientMode = Literal["auto", "unrolled", "adjoint_stored", "adjoint", "truncated", "first_order"]


class ValidationSettings(Settings):
    """Watching the desired task while training, on examples that are held out of meta-training."""

    every_steps: NonNegativeInt = 0
    """Outer steps between two validations; 0 holds nothing out and never validates."""
    fraction: Probability = 0.1
    """Share of the meta-training examples that is held out."""
    min_desired_accuracy: Probability | None = None
    """Stop training when the desired accuracy lies below this; the trial is then infeasible. None never stops."""
    patience: NonNegativeInt = 1
    """Validations below the bound that are let pass before one stops the training."""


class RetainSettings(Settings):
    """The general text that the `retain_*` terms are read on."""

    source: str | None = None
    """None takes the texts of meta-training, `pretraining` the corpus of the synthetic world; else a local file or
    folder (.parquet, .csv, .jsonl, .arrow) or a Hugging Face dataset id."""
    revision: str | None = None
    """Revision of a hub dataset."""
    text_column: str = "text"
    """Column that holds the text."""
    max_texts: PositiveInt = 20_000
    """Texts kept, chosen by content hash."""
    batch_size: BatchSize = 16
    """Texts of an outer step."""
    mask_share: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of tokens that the masked-LM loss predicts."""


class TrainSettings(Settings):
    """Meta-training of one model."""

    LATER: ClassVar[frozenset[str]] = frozenset({"erase", "distil"})

    method: Method = "mlac"
    """`pretrained` and `random` fit the desired head on a frozen trunk; `scratch` trains random initialisation on the
    desired task as the trial's `scratch` says; `tuned` minimises the desired loss alone;
    `erase` does so with what `erase` says kept out of the residual stream; `distil` does so and then distils what came
    out as `distil` says, `distilled_scratch` into freshly drawn weights; `ac` adds a harmful head without adaptation;
    `mlac` blocks simulated adversaries."""
    num_outer_steps: PositiveInt = 1000
    """Outer steps."""
    desired_batch_size: BatchSize = 32
    """Examples in the outer desired batch."""
    harmful_batch_size: BatchSize = 32
    """Examples in the outer harmful batch."""
    learning_rate: PositiveFloat = 3e-4
    """Outer learning rate of the trunk."""
    head_learning_rate: PositiveFloat = 3e-3
    """Outer learning rate of the desired head."""
    embedding_map_learning_rate: NonNegativeFloat = 0.0
    """Outer learning rate of a linear map that all rows of the token embedding go through, so that what is unlearnt of
    the tokens that occur in training is unlearnt of those that never do (names of other people). 0 moves the rows of
    tokens that occur and leaves the others as they were."""
    adversary_learning_rate: PositiveFloat = 1e-3
    """Outer learning rate of what the adversary learns: head, logarithm of its learning rate, predictors."""
    optimizer: str = "Adam"
    """Outer optimiser: a class of `torch.optim`."""
    optimizer_options: dict[str, Any] = {}
    """Its further arguments, such as betas or weight_decay."""
    schedule: str = "constant"
    """Schedule of the outer learning rates after the warm-up: `constant`, or a class of `torch.optim.lr_scheduler`."""
    schedule_options: dict[str, Any] = {}
    """Its arguments, such as T_max."""
    warmup_steps: NonNegativeInt = 0
    """Outer steps over which the learning rates rise linearly."""
    gradient_clip: PositiveFloat = 10.0
    """Norm that the outer gradient of the trunk is clipped to."""
    accumulation_steps: PositiveInt = 1
    """Batches and adversaries whose gradients are averaged before an outer step is taken."""
    gradient_mode: GradientMode = "auto"
    """How meta-gradients pass the inner loop. `unrolled` is autograd through all of it, `adjoint_stored` walks it back
    step by step (the fastest), `adjoint` recomputes each step on the way back (memory flat in K), `truncated`
    differentiates the last `truncation_steps` updates only, `first_order` none. `auto` is the faster exact one that the
    memory allows."""
    truncation_steps: PositiveInt = 4
    """Updates that `truncated` differentiates."""
    outer_steps: Literal["all", "last", "sampled"] = "all"
    """Inner steps after which the adapted model is evaluated: all, the last, or `num_outer_evaluations` drawn
    uniformly (an unbiased estimate of all)."""
    num_outer_evaluations: PositiveInt = 4
    """Inner steps that `sampled` draws."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` runs first derivatives under autocast; whatever is differentiated twice, and the adjoint, stays in
    float32."""
    dropout: Literal["off", "sampled"] = "off"
    """`sampled` gives every inner step a dropout mask of its own, with the encoder's probabilities."""
    compile: bool = False
    """Compile the step functions of `adjoint` and `first_order` (as CUDA graphs on a GPU); the first steps then take
    a minute, and results differ in the last bits."""
    term_modules: tuple[str, ...] = ()
    """Modules that are imported before training because they register blocking terms: what `modules` does too, for
    whatever a module registers, and with its source in the content hash."""
    blocking: BlockingSettings = BlockingSettings()
    """Weights of the outer loss. When no harmful weight is given, `mlac` takes `harmful_adapted_calibrated: 1`, `ac`
    `harmful_base: 1`, and the others block nothing."""
    adversary: AdversarySettings = AdversarySettings()
    """The adversary distribution."""
    retain: RetainSettings = RetainSettings()
    """General text for the `retain_*` terms."""
    erase: EraseSettings = EraseSettings()
    """Directions that are kept out of the residual stream from the first step to the last; with method `erase` all
    that blocks, with `ac` and `mlac` what adversaries start from."""
    distil: DistilSettings = DistilSettings()
    """Shrinking, perturbing and distilling what was trained; with methods `distil` and `distilled_scratch` all that
    follows the desired loss, with `erase`, `ac` and `mlac` a last phase after theirs."""
    validation: ValidationSettings = ValidationSettings()
    """Watching the desired task while training."""
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
        if term is None or blocking.keys() - {"desired_base"}:
            return values
        return {**values, "blocking": {**blocking, term: 1.0}}

    @model_validator(mode="before")
    @classmethod
    def _default_erasure(cls, values: Any) -> Any:
        """`erase` without a number of directions takes the default one."""
        if not isinstance(values, dict) or values.get("method") != "erase":
            return values
        given = values.get("erase", {})
        given = given.model_dump(exclude_unset=True) if isinstance(given, EraseSettings) else given
        if not isinstance(given, dict) or "num_directions" in given:
            return values
        return {**values, "erase": {**given, "num_directions": DEFAULT_DIRECTIONS}}

    @model_validator(mode="before")
    @classmethod
    def _default_distillation(cls, values: Any) -> Any:
        """`distil` and `distilled_scratch` take a number of steps where none is given, the latter an alpha of 1 too."""
        if not isinstance(values, dict) or values.get("method") not in ("distil", "distilled_scratch"):
            return values
        given = values.get("distil", {})
        given = given.model_dump(exclude_unset=True) if isinstance(given, DistilSettings) else given
        if not isinstance(given, dict):
            return values
        own = {"num_steps": DEFAULT_STEPS} | ({"alpha": 1.0} if values["method"] == "distilled_scratch" else {})
        return {**values, "distil": {**own, **given}}

    @model_validator(mode="after")
    def _distils_what_it_says(self) -> Self:
        distil, method = self.distil, self.method
        if method in ("distil", "distilled_scratch") and not distil.num_steps:
            raise ValueError(f"method '{method}' distils: set distil.num_steps above 0, or take method 'tuned'")
        if distil.num_steps and method not in DISTILLING:
            raise ValueError(
                f"method '{method}' distils nothing, but distil.num_steps is {distil.num_steps}: set it to 0, or take "
                f"one of {', '.join(DISTILLING)}"
            )
        if method == "distilled_scratch" and set(distil.alphas()) != {1.0}:
            raise ValueError(
                f"method 'distilled_scratch' keeps no weight, but distil.alpha by depth is {tuple(distil.alphas())}: "
                "set it to 1, or take method 'distil'"
            )
        if distil.adversaries and method not in BLOCKING:
            raise ValueError(
                f"method '{method}' has no adversaries: set distil.adversaries to false, or take one of "
                f"{', '.join(BLOCKING)}"
            )
        if not distil.output_weight and not distil.feature_weight:
            raise ValueError("distil.output_weight and distil.feature_weight are 0, one must be above: nothing is left")
        if not distil.output_weight and distil.alphas().upper > 0 and distil.num_steps:
            raise ValueError(
                "distil.output_weight is 0, but the desired head is drawn anew and only the outputs train it: set it "
                "above 0, or distil.alpha_by_depth.upper to 0"
            )
        return self

    @model_validator(mode="after")
    def _erases_what_it_says(self) -> Self:
        if self.method == "erase" and not self.erase.num_directions:
            raise ValueError(
                "method 'erase' takes directions out: set erase.num_directions above 0, or take method 'tuned'"
            )
        if self.erase.num_directions and self.method not in ERASING:
            raise ValueError(
                f"method '{self.method}' erases nothing, but erase.num_directions is {self.erase.num_directions}: set "
                f"it to 0, or take one of {', '.join(ERASING)}"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        weights, adversary = self.blocking.weights(), self.adversary
        if self.method in (*UNTRAINED, "scratch", "tuned", "erase", "distil", "distilled_scratch") and weights:
            raise ValueError(
                f"method '{self.method}' does not block: set every weight of blocking but desired_base to 0"
            )
        if self.method == "ac" and weights.keys() != {"harmful_base"}:
            raise ValueError("method 'ac' uses blocking.harmful_base alone: give it a weight and the other terms 0")
        if self.method == "mlac" and not weights.keys() - {"harmful_base"}:
            raise ValueError("method 'mlac' needs a blocking term besides harmful_base: give one a weight above 0")
        if weights.keys() & set(ADAPTED_TERMS) and adversary.num_steps == 0 and adversary.pool.size == 0:
            raise ValueError("method 'mlac' needs an adversary: set adversary.num_steps or adversary.pool.size above 0")
        if weights.keys() & set(FRESH_TERMS) and adversary.num_steps == 0:
            named = ", ".join(sorted(weights.keys() & set(FRESH_TERMS)))
            raise ValueError(f"blocking.{named} needs inner steps: set adversary.num_steps above 0")
        if not self.blocking.desired_base:
            raise ValueError("blocking.desired_base must be above 0, or nothing trains the desired head")
        return self

    def for_method(self, method: Method) -> TrainSettings:
        """The same training with another method: blocking weights and adversary return to that method's defaults,
        `erase` alone keeps what is erased, and `distil` and `distilled_scratch` how is distilled."""
        if method == self.method:
            return self
        values = self.model_dump(mode="json", exclude={"blocking", "adversary", "erase", "distil"})
        if method == "erase":
            own = self.erase.model_dump(mode="json")
            values["erase"] = own if own["num_directions"] else {**own, "num_directions": DEFAULT_DIRECTIONS}
        if method in ("distil", "distilled_scratch"):
            kept = self.distil.model_dump(mode="json") | {"adversaries": False}
            kept["num_steps"] = kept["num_steps"] or DEFAULT_STEPS
            values["distil"] = kept | ({"alpha": 1.0, "alpha_by_depth": {}} if method == "distilled_scratch" else {})
        return TrainSettings.model_validate({**values, "method": method})

    def of_distillation(self) -> TrainSettings:
        """The distillation as a training of its own: its steps and rate, and the adversaries where they go on.

        Validation measures and stops nothing, for what is drawn anew has to learn first.
        """
        own = {
            "num_outer_steps": self.distil.num_steps,
            "learning_rate": self.distil.learning_rate,
            "validation": self.validation.model_copy(update={"min_desired_accuracy": None}),
        }
        if not self.distil.adversaries:
            own |= {"blocking": BlockingSettings(), "adversary": AdversarySettings()}
        return self.model_copy(update=own)
