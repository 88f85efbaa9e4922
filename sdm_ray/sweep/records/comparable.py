"""Whether two sweeps were measured alike, so that their hypervolumes can be held against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdm_ray.config import SweepSettings
from sdm_ray.sweep.records.folder import differences
from sdm_ray.sweep.records.points import trial_result

ALIKE = ("trial.attack", "trial.data", "final", "objectives", "search.num_trials")
"""Settings that decide what a hypervolume means: attack, data, what is optimised, and how many trials sought it."""
FREE = ("trial.attack.seed",)


def data_digest(folder: Path) -> str | None:
    """Digest of the data that the trials of a sweep's folder were measured on; None where none has a result."""
    for path in sorted((folder / "trials").glob("*/result.json")):
        result = trial_result(folder, path.parent.name)
        if result is not None and "data" in result.provenance:
            return result.provenance["data"]
    return None


def unlike(first: tuple[str, SweepSettings, str | None], second: tuple[str, SweepSettings, str | None]) -> list[str]:
    """What differs between two sweeps in what `ALIKE` lists and in their data, each with both values.

    Args:
        first: name, settings and digest of the data (None where it is not known) of a sweep.
        second: the same of another.
    """
    mine, theirs = first[1].model_dump(mode="json"), second[1].model_dump(mode="json")
    found = [
        f"{path} is {_at(mine, path)!r} in {first[0]}, {_at(theirs, path)!r} in {second[0]}"
        for path in differences(first[1], second[1])
        if _below(path, ALIKE) and not _below(path, FREE)
    ]
    if None not in (first[2], second[2]) and first[2] != second[2]:
        found.append(f"the data are {str(first[2])[:12]} in {first[0]}, {str(second[2])[:12]} in {second[0]} (digests)")
    return found


def _below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def _at(values: Any, path: str) -> Any:
    """A value by its dotted path; None where it is not there."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values
