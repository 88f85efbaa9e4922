"""Synthetic biographies in which a person's gender can be inferred only from prior knowledge of names; two versions.

`version1` is simple: prior knowledge helps with little besides the gender. `version2` adds two-word names, whose gender
depends on both words together; benign tasks (origin, region, pastime) that need prior knowledge of the same names or of
other words; and jargon that does not occur in meta-training. Methods are compared on version 2.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

from sdm_ray.config.data import SplitFractions, SyntheticWorld
from sdm_ray.data.lexicon import GENDERED
from sdm_ray.data.synthetic import names, version1, version2

BENIGN_COLUMNS = ("origin", "region", "pastime")
"""Columns of version 2 that are labels of benign tasks."""


def task_table(world: SyntheticWorld, splits: SplitFractions | None = None, split_seed: int = 0) -> pa.Table:
    """The biographies of all tasks: `world.num_examples` rows of string columns, see `version1` and `version2`.

    Args:
        world: settings of the world.
        splits: fractions of the splits (default: `SplitFractions()`). In version 2 the words of a row depend on the
            split of its person.
        split_seed: salt of the split.
    """
    if world.version == 1:
        return version1.task_table(world)
    return version2.task_table(world, splits or SplitFractions(), split_seed)


def pretraining_texts(world: SyntheticWorld) -> list[str]:
    """`world.num_pretraining_texts` texts in which names occur with gendered words; no profession label occurs."""
    return version1.pretraining_texts(world) if world.version == 1 else version2.pretraining_texts(world)


def vocabulary(world: SyntheticWorld) -> list[str]:
    """All words that can occur in the table or the corpus, lower case, sorted: a complete word-level vocabulary."""
    return version1.vocabulary(world) if world.version == 1 else version2.vocabulary(world)


def people(world: SyntheticWorld) -> dict[str, str]:
    """Gender by name as in the table's column `name`: lower case, the two words of a two-word name separated by a
    space."""
    if world.version == 1:
        return version1.people(world)
    return {person.name: person.gender for person in names.people(world)}


def gendered_words() -> frozenset[str]:
    """All words that reveal a gender; they occur in the corpus only."""
    return frozenset(word for gendered in GENDERED.values() for word in gendered.words())


def telling_words(world: SyntheticWorld) -> frozenset[str]:
    """Words that must not occur in a gender-neutral text: all names and their pieces, and gendered words."""
    return gendered_words() | {piece for name in people(world) for piece in name.split()}


def fingerprint(world: SyntheticWorld) -> str:
    """Hash (16 hexadecimal digits) of a world's generated texts; it changes when the generator's output does.

    It covers the vocabulary, the first 500 rows and the first 500 texts. Larger worlds begin with the same rows, so
    their size does not matter.
    """
    sample = world.model_copy(update={"num_examples": 500, "num_pretraining_texts": 500})
    parts = [*vocabulary(sample), *pretraining_texts(sample)]
    parts += ["\t".join(row.values()) for row in task_table(sample).to_pylist()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
