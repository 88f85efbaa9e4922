"""Checks whether two sweeps were measured in the same way, so that their hypervolumes can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdm_ray.config import SweepSettings
from sdm_ray.sweep.records.folder import differences
from sdm_ray.sweep.records.points import trial_result

ALIKE = ("trial.attack", "trial.data", "final", "objectives", "search.num_trials")
"""Settings that affect the meaning of a hypervolume: attack, data, objectives and number of trials."""
FREE = ("trial.attack.seed",)


def data_digest(folder: Path) -> str | None:
    """Digest of the data of a sweep, from the first trial result in its folder that records it; None if none does."""
    for path in sorted((folder / "trials").glob("*/result.json")):
        result = trial_result(folder, path.parent.name)
        if result is not None and "data" in result.provenance:
            return result.provenance["data"]
    return None


def unlike(first: tuple[str, SweepSettings, str | None], second: tuple[str, SweepSettings, str | None]) -> list[str]:
    """Differences between two sweeps in the settings of `ALIKE` and in their data, each with both values.

    Args:
        first: name, settings and digest of the data (None if unknown) of a sweep.
        second: the same for another sweep.
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
    """Value at a dotted path; None if there is none."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values
