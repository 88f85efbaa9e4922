"""Settings of the data and of the encoder."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sdm_ray.config.base import MOST, WIDEST, NonNegativeInt, PositiveFloat, PositiveInt, Probability, Seed, Settings

VERSION_2_FIELDS = ("num_pairs", "pair_share", "entanglement")
"""Fields of `SyntheticWorld` that version 1 does not have."""


class SyntheticWorld(Settings):
    """Settings of the generator of synthetic biographies (frozen versions: a changed generator is a new version)."""

    LATER: ClassVar[frozenset[str]] = frozenset(VERSION_2_FIELDS)

    version: Literal[1, 2] = 2
    """Version of the generator. In version 1 prior knowledge helps with little besides the gender of names. Version 2
    adds two-word names, benign tasks, and jargon that does not occur in meta-training."""
    seed: Seed = 0
    """Seed of names, templates and texts."""
    num_names: PositiveInt = 600
    """Number of one-word names; each has one gender and is in one split. The default of version 1 is 1000."""
    num_pairs: NonNegativeInt = 150
    """Number of two-word names, at most 196. Their gender depends on both words together. (Version 2.)"""
    pair_share: Probability = 0.4
    """Fraction of the texts that are about two-word names. (Version 2.)"""
    entanglement: Probability = 1.0
    """Strength of the correlation of trade and gender in pretraining texts: at 1 the fraction of women rises from 0.2
    in the first trade to 0.8 in the last, at 0 it is one half in all. In task texts they are independent.
    (Version 2.)"""
    num_professions: Annotated[int, Field(ge=2, le=28)] = 8
    """Number of classes of the desired task; at most 8 in version 2."""
    num_examples: PositiveInt = 12_000
    """Number of biographies in the task table (all four splits together)."""
    num_pretraining_texts: PositiveInt = 60_000
    """Number of texts in the pretraining corpus, in which names occur with gendered words."""

    @model_validator(mode="before")
    @classmethod
    def _version_1_had_more_names(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("version") == 1 and values.get("num_names") is None:
            return {**values, "num_names": 1000}
        return values

    @model_validator(mode="after")
    def _within_version_2(self) -> Self:
        if self.version == 1:
            return self
        if self.num_professions > 8:
            raise ValueError(
                f"num_professions is {self.num_professions}, and version 2 has jargon for 8 trades; ask for 8 or "
                "fewer, or for version 1"
            )
        if self.num_pairs > 196:
            raise ValueError(
                f"num_pairs is {self.num_pairs}, and 14 first and 14 second pieces make 196 names; ask for 196 or fewer"
            )
        return self


class VectorWorld(Settings):
    """The paper's regression with two random linear labels, whose signs are the classes (as in the paper's code)."""

    seed: Seed = 0
    """Seed of the vectors and of both labels."""
    num_examples: Annotated[int, Field(ge=10, le=MOST)] = 6000
    """Number of vectors (all four splits together)."""
    input_dim: Annotated[int, Field(ge=2, le=WIDEST)] = 25
    """Length of a vector."""


class SplitFractions(Settings):
    """Fractions of the examples (of the groups, if there is a group column) in the four splits; they sum to 1."""

    meta_train: PositiveFloat = 0.55
    """For the defender's training."""
    attacker_train: PositiveFloat = 0.15
    """For the attacker's n labelled examples."""
    attacker_val: PositiveFloat = 0.10
    """For the attacker's hyper-parameter search."""
    test: PositiveFloat = 0.20
    """For the final scores."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.meta_train + self.attacker_train + self.attacker_val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four fractions must sum to 1, they sum to {total:g}")
        return self


class DataSettings(Settings):
    """The texts, their labels and their splits."""

    LATER: ClassVar[frozenset[str]] = frozenset({"desired_labels", "benign_classes", "benign_columns"})

    source: str = "synthetic"
    """`synthetic`, a local file or folder (.parquet, .csv, .jsonl, .arrow), a Hugging Face dataset id, a source that a
    module in `modules` registers, or `regression` (vectors instead of texts)."""
    revision: str | None = None
    """Revision of a hub dataset."""
    text_column: str = "text"
    """Column with the text."""
    desired_column: str = "profession"
    """Column with the desired label."""
    harmful_column: str = "gender"
    """Column with the harmful label."""
    group_column: str | None = None
    """Column with a group (a name, a person); all examples of a group are in one split. By default each text is its own
    group. The synthetic world always groups by name."""
    scrub_pronouns: bool = False
    """Replace she/he by they, her/his by their, him by them, before any other processing (as in the paper)."""
    max_length: Annotated[int, Field(ge=4, le=WIDEST)] = 64
    """Longer texts are truncated to this many tokens, special tokens included."""
    max_examples: PositiveInt | None = None
    """Keep this many examples, chosen by content hash; None keeps all."""
    splits: SplitFractions = SplitFractions()
    """Fractions of the four splits."""
    split_seed: Seed = 0
    """Salt of the content hash that assigns splits."""
    desired_labels: Annotated[int, Field(ge=2, le=MOST)] | Literal["all"] = "all"
    """Number of meta-training texts that keep their desired label, chosen by content hash, at least one per class; the
    others keep only their harmful label. `all` keeps all labels."""
    benign_classes: NonNegativeInt | tuple[str, ...] = 0
    """Classes of the desired column (names, or their number) that are held out: meta-training does not get their texts,
    and few-shot learning of these classes is a benign task (`held_out`)."""
    benign_columns: tuple[str, ...] = ()
    """Columns with further labels, which training never uses; each is a benign task. Version 2 of the synthetic world
    has benign columns by default."""
    synthetic: SyntheticWorld = SyntheticWorld()
    """The synthetic world; used only if `source` is `synthetic`."""
    regression: VectorWorld = VectorWorld()
    """The vectors; used only if `source` is `regression`. The settings of splits and texts have no effect then."""


class EncoderSettings(Settings):
    """The encoder and its pooling."""

    MEANT: ClassVar[dict[str, dict[Any, Any]]] = {"pooling": {"auto": "native"}}

    name: str = "builtin"
    """`builtin` (a small ModernBERT pretrained on the synthetic corpus), a local folder, a hub id, or `mlp`: randomly
    initialised linear layers with ReLU for `data.source: regression`."""
    revision: str | None = None
    """Revision of a hub encoder."""
    pooling: Literal["auto", "native", "cls", "mean"] = "auto"
    """`cls` is the first token's last hidden state, `mean` the mean over tokens, and `native` what the architecture's
    ForSequenceClassification does before its last linear layer. `auto` follows the encoder's own files
    (`1_Pooling/config.json` of a sentence encoder) and is `native` without them; a trial records the choice."""
    num_layers: PositiveInt | None = None
    """Keep only this many layers, the lowest ones; None keeps all (`mlp`: two layers)."""
    width: PositiveInt = 64
    """Width of `mlp`."""
