"""What is decided on the host before anything runs: seeds, subsets and batch orders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdm_ray.attack.families import Attacker, the_family
from sdm_ray.attack.search import the_sampler
from sdm_ray.config.attack import AttackSettings
from sdm_ray.errors import UsageError
from sdm_ray.types import Split, Task

if TYPE_CHECKING:
    from sdm_ray.data.device import DeviceData


def derived_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (no process, platform or call order)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator seeded with `derived_seed(*parts)`."""
    return torch.Generator().manual_seed(derived_seed(*parts))


def subset_generator(base_seed: int, attacker: Attacker) -> torch.Generator:
    """Equal for all attackers of one phase, n and seed index, whatever their hyper-parameters."""
    return seeded(base_seed, "subset", *_seeds(attacker))


def order_generator(base_seed: int, attacker: Attacker) -> torch.Generator:
    """The subset's generator arguments and the attempt."""
    return seeded(base_seed, "order", *_seeds(attacker), attacker.attempt)


def head_generator(base_seed: int, attacker: Attacker) -> torch.Generator:
    """The subset's generator arguments and the attempt."""
    return seeded(base_seed, "head", *_seeds(attacker), attacker.attempt)


def _seeds(attacker: Attacker) -> tuple[object, ...]:
    repeat = (attacker.repeat,) if attacker.repeat else ()
    return attacker.phase, attacker.num_examples, attacker.seed_index, *repeat


def resolve_sizes(sizes: Sequence[int | str], data: DeviceData) -> tuple[int, ...]:
    """Numbers of examples, `all` as the size of attacker-train; ascending and without repetition."""
    total = len(data.indices(Split.ATTACKER_TRAIN))
    return tuple(sorted({total if size == "all" else int(size) for size in sizes}))


def choose_subset(
    indices: Tensor, labels: Tensor, num_examples: int, num_classes: int, *, balanced: bool, generator: torch.Generator
) -> Tensor:
    """The attacker's labelled examples.

    Args:
        indices: (M,) candidates.
        labels: (M,) their labels.
        num_examples: n.
        num_classes: C.
        balanced: n // C of each class, the remainder from classes chosen at random; otherwise, and where n is all
            there are, uniform.
        generator: host generator.

    Returns:
        (n,) of `indices`, without repetition, in random order.
    """
    if not balanced or num_examples == len(indices):
        return indices[torch.randperm(len(indices), generator=generator)[:num_examples]]
    share, remainder = divmod(num_examples, num_classes)
    favoured = set(torch.randperm(num_classes, generator=generator)[:remainder].tolist())
    parts = []
    for label in range(num_classes):
        members = indices[labels == label]
        parts.append(members[torch.randperm(len(members), generator=generator)[: share + (label in favoured)]])
    chosen = torch.cat(parts)
    return chosen[torch.randperm(len(chosen), generator=generator)]


def batch_order(num_examples: int, batch_size: int, num_steps: int, generator: torch.Generator) -> Tensor:
    """(num_steps, batch_size) positions in the subset: freshly shuffled epochs end to end, cut into batches."""
    num_epochs = max(1, -(-num_steps * batch_size // num_examples))
    epochs = [torch.randperm(num_examples, generator=generator) for _ in range(num_epochs)]
    return torch.cat(epochs)[: num_steps * batch_size].view(num_steps, batch_size)


def check_data(data: DeviceData, settings: AttackSettings, task: Task) -> None:
    """Refuse an attack that the data cannot carry, or that names what is not there.

    Raises:
        UsageError: for an unknown family or sampler; where n is below the number of classes, attacker-train has too
            few examples for n, or attacker-validation or test lacks a class.
    """
    for family in settings.families:
        the_family(family)
    the_sampler(settings.sampler)
    names, labels = data.label_names(task), data.labels_host(task)
    counts = {
        split: torch.bincount(labels[data.indices(split)], minlength=len(names)).tolist()
        for split in (Split.ATTACKER_TRAIN, Split.ATTACKER_VAL, Split.TEST)
    }
    for n in resolve_sizes(settings.num_examples, data):
        _check_size(n, counts[Split.ATTACKER_TRAIN], names, balanced=settings.class_balanced)
    for split in (Split.ATTACKER_VAL, Split.TEST):
        for name, count in zip(names, counts[split], strict=True):
            if count == 0:
                raise UsageError(
                    f"data: split '{split}' has no example of {task} label '{name}', so no attack can be scored on it; "
                    "use more data, a larger split or another label column"
                )


def _check_size(n: int, counts: list[int], names: tuple[str, ...], *, balanced: bool) -> None:
    if n < len(names):
        raise UsageError(f"attack.num_examples: n = {n} is below the number of classes ({len(names)}); raise it")
    split = Split.ATTACKER_TRAIN
    if n > sum(counts):
        raise UsageError(
            f"attack.num_examples: n = {n}, but split '{split}' has {sum(counts)} examples; lower n or use more data"
        )
    needed = -(-n // len(names))
    for name, count in zip(names, counts, strict=True):
        if balanced and count < needed and n < sum(counts):
            raise UsageError(
                f"attack.num_examples: n = {n} needs {needed} examples of each class, but split '{split}' has {count} "
                f"of '{name}'; lower n, use more data or set attack.class_balanced to false"
            )
