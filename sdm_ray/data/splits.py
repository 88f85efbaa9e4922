"""Assign examples to four splits by content hash, and check that the splits are disjoint.

The SHA-256 of a salt and the content, read as a number in [0, 1), is compared with the cumulative fractions of the
splits. A row's split therefore depends only on its own content and does not change when rows are added or reordered.
The content is the text (ignoring case and white space), or the group if there are groups. Groups that share a text are
merged into one block, assigned by the smallest of their hashes, so a text is in one split only. (A new row can move old
rows only if it merges two blocks.)
"""

from __future__ import annotations

import hashlib

import numpy as np

from sdm_ray.config import DataSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.types import Split, Task
from sdm_ray.data.assignment import SPLITS, split_codes, unit_hash
from sdm_ray.data.interface import UNLABELLED
from sdm_ray.data.sources import Examples, normalise


def assign_splits(examples: Examples, settings: DataSettings) -> np.ndarray:
    """Compute the split of each example.

    Returns:
        (N,) int8 codes: indices into `SPLITS`.
    """
    contents = [normalise(text) for text in examples.texts]
    blocks = contents if examples.groups is None else _tie_groups(examples.groups, contents, settings.split_seed)
    position = {block: unit_hash(block, settings.split_seed) for block in set(blocks)}
    positions = np.array([position[block] for block in blocks])
    return split_codes(positions, settings.splits)


def check_disjoint(examples: Examples, split: np.ndarray) -> None:
    """Check that no text and no group occurs in two splits, however the splits were assigned.

    Raises:
        RunError: if a text or a group occurs in two splits.
    """
    columns = [("text", [normalise(text) for text in examples.texts])]
    if examples.groups is not None:
        columns.append(("group", examples.groups))
    for kind, values in columns:
        seen: dict[bytes, int] = {}
        for value, code in zip(values, split.tolist(), strict=True):
            other = seen.setdefault(hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest(), code)
            if other != code:
                raise RunError(
                    f"the {kind} {_short(value)} occurs in the splits {SPLITS[other]} and {SPLITS[code]}: "
                    "what is measured on one would be known from the other"
                )


def check_classes(examples: Examples, split: np.ndarray, settings: DataSettings) -> None:
    """Check that every split contains the classes that are trained or scored on it.

    The attacker's two splits need only the harmful classes; rare desired classes may be absent there.

    Raises:
        UsageError: for a missing class; the message names the split and the class.
    """
    tasks = {
        Task.DESIRED: (examples.desired, examples.desired_labels, (Split.META_TRAIN, Split.TEST)),
        Task.HARMFUL: (examples.harmful, examples.harmful_labels, SPLITS),
    }
    for code, name in enumerate(SPLITS):
        for task, (labels, label_names, needing) in tasks.items():
            if name not in needing:
                continue
            here = labels[split == code]
            counts = np.bincount(here[here != UNLABELLED], minlength=len(label_names))
            if not counts.all():
                missing = label_names[int(np.argmin(counts))]
                raise UsageError(
                    f"split {name} ({int(counts.sum())} of {len(split)} examples) has no example of the {task} "
                    f"class {missing!r}: give more data, drop rare classes, or change data.splits or data.split_seed"
                )


def _tie_groups(groups: list[str], contents: list[str], seed: int) -> list[str]:
    """The block of each example: the group with the smallest hash among those merged with its own (union-find)."""
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        parent.setdefault(group, group)
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    first: dict[str, str] = {}
    for group, content in zip(groups, contents, strict=True):
        one, other = sorted((root(group), root(first.setdefault(content, group))), key=lambda key: unit_hash(key, seed))
        parent[other] = one
    return [root(group) for group in groups]


def _short(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "...")
