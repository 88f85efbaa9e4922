"""Inspects labelled texts and proposes their splits and the attacker's numbers of labels."""

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
"""Most distinct values of a label column."""
LEAST_EXAMPLES = 10
"""Fewest labelled examples for a meaningful attack."""
WANTED = (20, 50, 100, 200)
"""Candidate numbers of labelled examples; the smallest and the largest that fit are proposed."""
SHARES = (
    SplitFractions(),
    SplitFractions(meta_train=0.4, attacker_train=0.3, attacker_val=0.1, test=0.2),
    SplitFractions(meta_train=0.3, attacker_train=0.3, attacker_val=0.2, test=0.2),
)
"""Split fractions to try in turn: the default, then those for few texts."""
NUM_SEEDS = 10
"""Number of split seeds to try for each of them."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The proposal for texts with two labels."""

    examples: Examples
    data: DataSettings
    """Data settings whose splits contain every class where it is needed."""
    counts: dict[str, int]
    """Number of texts per split, by name."""
    sizes: tuple[int, ...]
    """Proposed numbers of an attacker's labelled examples."""


def look_at(settings: DataSettings) -> Look:
    """Read the data and find splits that are large enough for an attack.

    Args:
        settings: source and columns; the splits are chosen here.

    Raises:
        UsageError: for an unusable source or column, invalid labels, or too few texts.
        RunError: if the hub cannot be reached.
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
