"""Synthetic biographies: worlds in which only knowing names beforehand tells a person's gender, by version.

`version1` is simple: little but the gender is known beforehand. `version2` has names of two pieces, whose gender no
piece tells; benign tasks (origin, region, pastime) that need the same names or words; and jargon that meta-training
does not show. Version 2 is what methods are compared on.
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
    """The biographies of all tasks: `world.num_examples` rows of string columns, as the module of its version says.

    Args:
        world: the world.
        splits: shares that the rows will be split by (default: `SplitFractions()`). In version 2 the words of a row
            follow the split of its person.
        split_seed: salt of that split.
    """
    if world.version == 1:
        return version1.task_table(world)
    return version2.task_table(world, splits or SplitFractions(), split_seed)


def pretraining_texts(world: SyntheticWorld) -> list[str]:
    """`world.num_pretraining_texts` texts in which names stand beside gendered words; no profession is named."""
    return version1.pretraining_texts(world) if world.version == 1 else version2.pretraining_texts(world)


def vocabulary(world: SyntheticWorld) -> list[str]:
    """Every word that the table or the corpus can hold, lower case, sorted: a word-level vocabulary without misses."""
    return version1.vocabulary(world) if world.version == 1 else version2.vocabulary(world)


def people(world: SyntheticWorld) -> dict[str, str]:
    """Gender by name, as the table's column `name` writes it: lower case, the pieces of a pair with a space between."""
    if world.version == 1:
        return version1.people(world)
    return {person.name: person.gender for person in names.people(world)}


def gendered_words() -> frozenset[str]:
    """The words that tell a gender; in the corpus only."""
    return frozenset(word for gendered in GENDERED.values() for word in gendered.words())


def telling_words(world: SyntheticWorld) -> frozenset[str]:
    """The words that a text must lack to tell no gender: all names and their pieces, and gendered words."""
    return gendered_words() | {piece for name in people(world) for piece in name.split()}


def fingerprint(world: SyntheticWorld) -> str:
    """16 hexadecimal digits of what the generator makes of a world: changes when the generator does.

    Covers the vocabulary, and the first 500 rows and texts (each is a prefix, so sizes above that do not matter).
    """
    sample = world.model_copy(update={"num_examples": 500, "num_pretraining_texts": 500})
    parts = [*vocabulary(sample), *pretraining_texts(sample)]
    parts += ["\t".join(row.values()) for row in task_table(sample).to_pylist()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
