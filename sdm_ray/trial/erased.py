"""The erasure at the start of a training, computed once for trials that share encoder, data, settings and seed."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

from sdm_ray.config import TrialSettings, digest
from sdm_ray.core.files import write_json
from sdm_ray.core.progress import Progress
from sdm_ray.meta.outer.erase import FoundErasure, Removed, check_erasure, find_erasure
from sdm_ray.meta.validation import split_meta_train
from sdm_ray.models.encoder import Trunk
from sdm_ray.models.erasure import Erasure
from sdm_ray.models.stream import stream_of
from sdm_ray.trial.kept import Kept, trained_once
from sdm_ray.trial.workspace import Workspace

REPORT = "erasure.json"
FORMAT_VERSION = 2
"""Increase this when the same settings give other directions."""


def found_erasure(
    work: Workspace, settings: TrialSettings, trunk: Trunk
) -> Generator[Progress, None, FoundErasure | None]:
    """Compute a trial's erasure, or read it from the cache; None if nothing is erased.

    Args:
        work: data and device.
        settings: the trial.
        trunk: the public encoder.

    Raises:
        UsageError: for an encoder or data that erasure does not work with.
    """
    erase = settings.train.erase
    if not erase.is_on():
        return None
    check_erasure(erase, trunk, work.data)
    indices, _ = split_meta_train(work.data, settings.train)
    asked = [FORMAT_VERSION, trunk.digest(), work.data.digest, erase.identity(), indices.tolist(), settings.seed]
    key = digest(asked)

    def unpack(kept: Kept) -> FoundErasure:
        removed = tuple(
            Removed(one["state"], tuple(one["accuracies"]), one.get("kind", "mean")) for one in kept.facts["removed"]
        )
        erasure = Erasure.from_state(stream_of(trunk), dict(kept.tensors))
        costs = kept.facts.get("costs", {})
        return FoundErasure(erasure=erasure, removed=removed, seconds=kept.facts["seconds"], costs=costs)

    find = partial(find_erasure, erase, trunk=trunk, data=work.data, indices=indices, seed=settings.seed)
    found = yield from trained_once(work, "erasure", key, find, pack=_pack, unpack=unpack)
    return found


def write_erasure(found: FoundErasure, path: Path) -> None:
    """Write `seconds`, `costs`, and for each direction or pair of directions its hidden state and readers' accuracies.

    The accuracies are those of each site's reader on held-out names before the direction was erased.

    Raises:
        RunError: if the file cannot be written.
    """
    write_json(path, _facts(found))


def _facts(found: FoundErasure) -> dict[str, Any]:
    return {"removed": [removed._asdict() for removed in found.removed], "seconds": found.seconds, "costs": found.costs}


def _pack(found: FoundErasure) -> Kept:
    return Kept(found.erasure.state_dict(), _facts(found))
