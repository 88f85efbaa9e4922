"""Settings of the data and of the encoder."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sdm_ray.config.base import MOST, WIDEST, NonNegativeInt, PositiveFloat, PositiveInt, Probability, Seed, Settings

VERSION_2_FIELDS = ("num_pairs", "pair_share", "entanglement")
"""Fields of `SyntheticWorld` that version 1 does not know."""


class SyntheticWorld(Settings):
    """The generator of synthetic biographies (versions are frozen: a change of the generator is a new version)."""

    LATER: ClassVar[frozenset[str]] = frozenset(VERSION_2_FIELDS)

    version: Literal[1, 2] = 2
    """Version of the generator. In version 1 only the gender of names is known beforehand; version 2 has two-piece
    names, benign tasks and jargon that meta-training does not show."""
    seed: Seed = 0
    """Seed of names, templates and texts."""
    num_names: PositiveInt = 600
    """Names of one word in the world; each belongs to one gender and one split. By default 1000 in version 1."""
    num_pairs: NonNegativeInt = 150
    """Names of two pieces, at most 196, whose gender only both pieces together tell. (Version 2.)"""
    pair_share: Probability = 0.4
    """Share of texts that are about names of two pieces. (Version 2.)"""
    entanglement: Probability = 1.0
    """How strongly trade and gender go together in pretraining texts: at 1 the share of women goes from 0.2 to 0.8 over
    the trades, at 0 it is one half in all. They are independent in the table. (Version 2.)"""
    num_professions: Annotated[int, Field(ge=2, le=28)] = 8
    """Classes of the desired task; at most 8 in version 2."""
    num_examples: PositiveInt = 12_000
    """Biographies of the task table (all four splits together)."""
    num_pretraining_texts: PositiveInt = 60_000
    """Texts of the pretraining corpus, where pronouns stand next to names."""

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
    """The paper's regression, its two random linear labels turned into classes by their sign (as its code does)."""

    seed: Seed = 0
    """Seed of the vectors and of both labels."""
    num_examples: Annotated[int, Field(ge=10, le=MOST)] = 6000
    """Vectors (all four splits together)."""
    input_dim: Annotated[int, Field(ge=2, le=WIDEST)] = 25
    """Length of a vector."""


class SplitFractions(Settings):
    """Shares of the examples (of the groups, where a group column is given); they sum to 1."""

    meta_train: PositiveFloat = 0.55
    """For the defender's training."""
    attacker_train: PositiveFloat = 0.15
    """The pool that an attacker draws its n labelled examples from."""
    attacker_val: PositiveFloat = 0.10
    """Where the attacker selects."""
    test: PositiveFloat = 0.20
    """Scored once."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.meta_train + self.attacker_train + self.attacker_val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four fractions must sum to 1, they sum to {total:g}")
        return self


class DataSettings(Settings):
    """Which biographies, which labels, which splits."""

    LATER: ClassVar[frozenset[str]] = frozenset({"desired_labels", "benign_classes", "benign_columns"})

    source: str = "synthetic"
    """`synthetic`, a local file or folder (.parquet, .csv, .jsonl, .arrow), a Hugging Face dataset id, what a module in
    `modules` registers, or `regression`: vectors in place of texts."""
    revision: str | None = None
    """Revision of a hub dataset."""
    text_column: str = "text"
    """Column that holds the text."""
    desired_column: str = "profession"
    """Column that holds the desired label."""
    harmful_column: str = "gender"
    """Column that holds the harmful label."""
    group_column: str | None = None
    """Column whose values (a name, a person) are kept within one split; by default each text is its own group.
    The synthetic world always groups by name."""
    scrub_pronouns: bool = False
    """Replace she/he by they, her/his by their, him by them, before anything else (as the paper)."""
    max_length: Annotated[int, Field(ge=4, le=WIDEST)] = 64
    """Tokens kept of a text, special tokens included."""
    max_examples: PositiveInt | None = None
    """Keep this many examples, chosen by content hash; None keeps all."""
    splits: SplitFractions = SplitFractions()
    """Shares of the four splits."""
    split_seed: Seed = 0
    """Salt of the content hash that assigns splits."""
    desired_labels: Annotated[int, Field(ge=2, le=MOST)] | Literal["all"] = "all"
    """Meta-training texts that have a desired label, chosen by content hash, at least one a class; the others have a
    harmful label only. `all` labels all."""
    benign_classes: NonNegativeInt | tuple[str, ...] = 0
    """Classes of the desired column (their names, or how many) that no training sees: meta-training is without their
    texts, and few-shot learning of them is a benign task (`held_out`)."""
    benign_columns: tuple[str, ...] = ()
    """Columns of further labels that no training reads; each is a benign task. The synthetic world, from version 2 on,
    has some of its own."""
    synthetic: SyntheticWorld = SyntheticWorld()
    """The synthetic world; used only when `source` is `synthetic`."""
    regression: VectorWorld = VectorWorld()
    """The world of vectors; used only when `source` is `regression`. Splits and texts have no meaning there."""


class EncoderSettings(Settings):
    """Which encoder, and how a text becomes one vector."""

    MEANT: ClassVar[dict[str, dict[Any, Any]]] = {"pooling": {"auto": "native"}}

    name: str = "builtin"
    """`builtin` (a small ModernBERT pretrained on the synthetic corpus), a local folder, a hub id, or `mlp`: linear
    layers with ReLU for `data.source: regression`, freshly initialised, for there is nothing to know beforehand."""
    revision: str | None = None
    """Revision of a hub encoder."""
    pooling: Literal["auto", "native", "cls", "mean"] = "auto"
    """`native` does what the architecture's ForSequenceClassification does before its last linear layer. `auto` is what
    the encoder's own files say (`1_Pooling/config.json` of a sentence encoder), else `native`; a trial writes down
    which it was."""
    num_layers: PositiveInt | None = None
    """Keep only the first layers; None keeps all (of `mlp`: makes two)."""
    width: PositiveInt = 64
    """Width of `mlp`."""
