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
from sdm_ray.config.terms import TermSettings

Method = Literal["pretrained", "random", "scratch", "tuned", "erase", "distil", "distilled_scratch", "ac", "mlac"]
UNTRAINED = ("pretrained", "random")
"""Methods that do not train the trunk."""
ERASING = ("erase", "ac", "mlac")
"""Methods that can remove directions from the residual stream."""
DISTILLING = ("erase", "distil", "distilled_scratch", "ac", "mlac")
"""Methods whose trained model can be distilled."""
BLOCKING = ("ac", "mlac")
"""Methods that train against adversaries."""
ADAPTED_TERMS = (
    "harmful_adapted", "harmful_adapted_calibrated", "harmful_adapted_clamped", "harmful_adapted_entropy",
    "harmful_adapted_inverse", "harmful_adapted_uniform",
)  # fmt: skip
"""Terms that are computed on fresh and on persistent adversaries."""
FRESH_TERMS = ("adapted_grad_norm", "desired_adapted", "desired_adapted_harmful", "mutual_information")
"""Terms that are computed on fresh adversaries only."""
DEFAULT_TERM = {"mlac": "harmful_adapted_calibrated", "ac": "harmful_base"}
"""Blocking term with weight 1, by method, if the settings give no weights."""

GradientMode = Literal["auto", "unrolled", "adjoint_stored", "adjoint", "truncated", "first_order"]


class ValidationSettings(Settings):
    """Validation of the desired task during training, on examples that are held out of meta-training."""

    every_steps: NonNegativeInt = 0
    """Outer steps between two validations; 0 never validates and holds out nothing."""
    fraction: Probability = 0.1
    """Fraction of the meta-training examples to hold out."""
    min_desired_accuracy: Probability | None = None
    """Stop the training if the desired accuracy is below this; the trial is then infeasible. None never stops."""
    patience: NonNegativeInt = 1
    """Number of validations below the bound before the one that stops the training."""


class RetainSettings(Settings):
    """Source and batches of the general text for the `retain_*` terms."""

    LATER: ClassVar[frozenset[str]] = frozenset({"scrub"})

    source: str | None = None
    """None uses the meta-training texts, `pretraining` the corpus of the synthetic world. Otherwise a local file or
    folder (.parquet, .csv, .jsonl, .arrow) or a Hugging Face dataset id."""
    revision: str | None = None
    """Revision of a hub dataset."""
    text_column: str = "text"
    """Column with the text."""
    max_texts: PositiveInt = 20_000
    """Most texts to keep, chosen by content hash."""
    batch_size: BatchSize = 16
    """Number of texts per outer step."""
    mask_share: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Fraction of the tokens that the masked-LM loss predicts."""
    scrub: Literal["none", "words", "all"] = "none"
    """Clues to the harmful label that are removed from the general text. `words` removes gendered words from the
    synthetic world's corpus and pronouns from other sources, so that what else names tell is retained; `all` also
    removes names (from meta-training texts; from other sources capitalised words within sentences, and words that look
    like names anywhere)."""


class TrainSettings(Settings):
    """Meta-training of one model."""

    LATER: ClassVar[frozenset[str]] = frozenset({"erase", "distil", "terms"})

    method: Method = "mlac"
    """`pretrained` and `random` train the desired head on a frozen trunk. `scratch` trains a randomly initialised
    encoder on the desired task with the trial's `scratch` settings. `tuned` minimises only the desired loss. `erase`
    does the same with the directions of `train.erase` removed from the residual stream. `distil` does the same as
    `tuned` and then distils the model with the settings of `train.distil`; `distilled_scratch` distils it into randomly
    initialised weights. `ac` (adversarial censoring) maximises the loss of a harmful head on the un-adapted model.
    `mlac` trains against simulated adversaries."""
    num_outer_steps: PositiveInt = 1000
    """Number of outer steps."""
    desired_batch_size: BatchSize = 32
    """Number of examples in the outer desired batch."""
    harmful_batch_size: BatchSize = 32
    """Number of examples in the outer harmful batch."""
    learning_rate: PositiveFloat = 3e-4
    """Outer learning rate of the trunk."""
    head_learning_rate: PositiveFloat = 3e-3
    """Outer learning rate of the desired head."""
    embedding_map_learning_rate: NonNegativeFloat = 0.0
    """Outer learning rate of a linear map that is applied to all rows of the token embedding, so that unlearning on the
    tokens that occur in training extends to tokens that do not (names of other people). With 0 there is no map, and
    only rows of tokens that occur change."""
    adversary_learning_rate: PositiveFloat = 1e-3
    """Outer learning rate of the adversaries' meta-learned parameters: head, logarithm of the learning rate,
    predictors."""
    optimizer: str = "Adam"
    """Outer optimiser: a class of `torch.optim`."""
    optimizer_options: dict[str, Any] = {}
    """Further arguments of the optimiser, such as betas or weight_decay."""
    schedule: str = "constant"
    """Schedule of the outer learning rates after the warm-up: `constant`, or a class of `torch.optim.lr_scheduler`."""
    schedule_options: dict[str, Any] = {}
    """Arguments of the schedule, such as T_max."""
    warmup_steps: NonNegativeInt = 0
    """Number of outer steps over which the learning rates rise linearly."""
    gradient_clip: PositiveFloat = 10.0
    """The trunk's outer gradient is clipped to this norm."""
    accumulation_steps: PositiveInt = 1
    """Number of micro-steps (with their own batches and adversaries) whose gradients are averaged in an outer step."""
    gradient_mode: GradientMode = "auto"
    """How meta-gradients are computed. `unrolled`: autograd through the whole inner loop. `adjoint_stored`: backward
    step by step over stored graphs (fastest). `adjoint`: backward with each step recomputed (memory does not grow with
    K). `truncated`: only through the last `truncation_steps` updates. `first_order`: through no update. `auto`: the
    faster exact mode that fits into memory."""
    truncation_steps: PositiveInt = 4
    """Number of updates that `truncated` differentiates."""
    outer_steps: Literal["all", "last", "sampled"] = "all"
    """Inner steps at which the adapted model is evaluated: all, the last, or `num_outer_evaluations` sampled uniformly
    (an unbiased estimate of `all`)."""
    num_outer_evaluations: PositiveInt = 4
    """Number of inner steps that `sampled` evaluates."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` computes first derivatives under autocast. Parts that are differentiated twice, and the adjoint, stay
    in float32."""
    dropout: Literal["off", "sampled"] = "off"
    """`sampled` uses dropout in inner steps, with a new mask in each step and the encoder's probabilities."""
    compile: bool = False
    """Compile the step functions of `adjoint` and `first_order` (with CUDA graphs on a GPU). The first steps then take
    a minute, and results differ in the last bits."""
    term_modules: tuple[str, ...] = ()
    """Modules to import before training, which register blocking terms. The trial's `modules` is more general: any kind
    of registration, and the source is part of the content hash."""
    blocking: BlockingSettings = BlockingSettings()
    """Weights of the outer loss. Without a weight for a blocking term, `mlac` uses `harmful_adapted_calibrated: 1` and
    `ac` uses `harmful_base: 1`; the other methods have no blocking terms."""
    terms: TermSettings = TermSettings()
    """Settings of single blocking terms."""
    adversary: AdversarySettings = AdversarySettings()
    """The distribution of adversaries."""
    retain: RetainSettings = RetainSettings()
    """General text for the `retain_*` terms."""
    erase: EraseSettings = EraseSettings()
    """Directions that are removed from the residual stream throughout training. For method `erase` this is the whole
    defence; with `ac` and `mlac` adversaries start from the erased trunk."""
    distil: DistilSettings = DistilSettings()
    """Shrinking, perturbing and distilling the trained model. For methods `distil` and `distilled_scratch` this follows
    training on the desired loss; with `erase`, `ac` and `mlac` it is a last phase after theirs."""
    validation: ValidationSettings = ValidationSettings()
    """Validation of the desired task during training."""
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
        """Set the default number of directions for method `erase`."""
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
        """Set the default number of steps for `distil` and `distilled_scratch`, and an alpha of 1 for the latter."""
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
        if self.method == "erase" and not self.erase.is_on():
            raise ValueError(
                "method 'erase' takes directions out: set erase.num_directions above 0, or take method 'tuned'"
            )
        if self.erase.is_on() and self.method not in ERASING:
            name = "num_directions" if self.erase.num_directions else "num_products"
            raise ValueError(
                f"method '{self.method}' erases nothing, but erase.{name} is {getattr(self.erase, name)}: set "
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
        """The same settings with another method; blocking weights and adversary become that method's defaults.

        Erasure is kept only for method `erase`, distillation only for `distil` and `distilled_scratch`.
        """
        if method == self.method:
            return self
        values = self.model_dump(mode="json", exclude={"blocking", "adversary", "erase", "distil"})
        if method == "erase":
            own = self.erase.model_dump(mode="json")
            values["erase"] = own if self.erase.is_on() else {**own, "num_directions": DEFAULT_DIRECTIONS}
        if method in ("distil", "distilled_scratch"):
            kept = self.distil.model_dump(mode="json") | {"adversaries": False}
            kept["num_steps"] = kept["num_steps"] or DEFAULT_STEPS
            values["distil"] = kept | ({"alpha": 1.0, "alpha_by_depth": {}} if method == "distilled_scratch" else {})
        return TrainSettings.model_validate({**values, "method": method})

    def of_distillation(self) -> TrainSettings:
        """Training settings of the distillation: its steps and learning rate, and adversaries if they continue.

        Validation does not stop it, because re-initialised weights have to be trained first.
        """
        own = {
            "num_outer_steps": self.distil.num_steps,
            "learning_rate": self.distil.learning_rate,
            "validation": self.validation.model_copy(update={"min_desired_accuracy": None}),
        }
        if not self.distil.adversaries:
            own |= {"blocking": BlockingSettings(), "adversary": AdversarySettings()}
        return self.model_copy(update=own)
