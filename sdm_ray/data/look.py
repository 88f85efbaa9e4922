"""Looks at labelled texts and proposes how to split them and how many labels an attacker may have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdm_ray.config import DataSettings, SplitFractions
from sdm_ray.config.sizes import largest_size
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Split
from sdm_ray.data.assignment import SPLITS
from sdm_ray.data.sources import Examples, load_examples
from sdm_ray.data.splits import assign_splits, check_classes

MOST_CLASSES = 28
"""A column with more distinct values than this is not taken for a label."""
LEAST_EXAMPLES = 10
"""Fewest labelled examples with which an attack is meaningful."""
WANTED = (20, 50, 100, 200)
"""Numbers of labelled examples that are proposed: the first of them, and the largest that fits."""
SHARES = (
    SplitFractions(),
    SplitFractions(meta_train=0.4, attacker_train=0.3, attacker_val=0.1, test=0.2),
    SplitFractions(meta_train=0.3, attacker_train=0.3, attacker_val=0.2, test=0.2),
)
"""Splits that are tried in turn: the usual one, then ones for few texts."""
NUM_SEEDS = 10
"""Split seeds that are tried for each of them."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The proposal for texts with two labels."""

    examples: Examples
    data: DataSettings
    """Data settings whose splits hold every class where it is needed."""
    counts: dict[str, int]
    """Texts of each split, by name."""
    sizes: tuple[int, ...]
    """Numbers of labelled examples that an attacker may have."""


def look_at(settings: DataSettings) -> Look:
    """Read the data and find splits that carry an attack.

    Args:
        settings: source and columns; the splits are chosen here.

    Raises:
        UsageError: for a source or a column that cannot be used, labels that are none, or too few texts.
        RunError: when the hub cannot be reached.
    """
    examples = load_examples(settings)
    columns = {"desired": settings.desired_column, "harmful": settings.harmful_column}
    for task, labels in (("desired", examples.desired_labels), ("harmful", examples.harmful_labels)):
        if len(labels) > MOST_CLASSES:
            raise UsageError(
                f"{settings.source}: column {columns[task]!r} has {len(labels)} different values in "
                f"{len(examples.texts)} texts, which is no label; name a column with {MOST_CLASSES} or fewer as the "
                f"{task} one"
            )
    refused: UsageError | None = None
    best: Look | None = None
    for shares in SHARES:
        for seed in range(NUM_SEEDS):
            chosen = settings.model_copy(update={"splits": shares, "split_seed": seed})
            try:
                found = _looked(examples, chosen)
            except UsageError as error:
                refused = refused or error
                continue
            if best is None or max(found.sizes) > max(best.sizes):
                best = found
            break
        if best is not None and max(best.sizes) >= WANTED[1]:
            return best
    if best is None:
        raise UsageError(f"{settings.source}: {len(examples.texts)} texts are too few: {refused}") from None
    return best


def _looked(examples: Examples, settings: DataSettings) -> Look:
    split = assign_splits(examples, settings)
    check_classes(examples, split, settings)
    counts = {name.value: int((split == code).sum()) for code, name in enumerate(SPLITS)}
    pool = split == SPLITS.index(Split.ATTACKER_TRAIN)
    by_class = np.bincount(examples.harmful[pool], minlength=len(examples.harmful_labels)).tolist()
    most = largest_size(by_class, balanced=True)
    least = max(LEAST_EXAMPLES, 2 * len(examples.harmful_labels))
    if most < least:
        scarce = examples.harmful_labels[int(np.argmin(by_class))]
        raise UsageError(
            f"an attack needs {least} labelled texts or more, as many of each class, and the attacker's share has "
            f"{min(by_class)} of the harmful class {scarce!r}"
        )
    fitting = [n for n in WANTED if least <= n <= most]
    sizes = tuple(dict.fromkeys((fitting[0], fitting[-1]))) if fitting else (most,)
    return Look(examples=examples, data=settings, counts=counts, sizes=sizes)
