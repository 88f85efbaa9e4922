"""Collects the details of points that the page shows, from a sweep's results and its trials' folders."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdm_ray.core.errors import RunError
from sdm_ray.core.files import MALFORMED, read_json
from sdm_ray.core.result import FINAL
from sdm_ray.frontier.details import Details
from sdm_ray.frontier.points import Point, pareto_front
from sdm_ray.sweep.state.ledger import Entry, Role, trial_folder
from sdm_ray.sweep.state.state import SweepState

ATTACK_REPORT, MODEL = "attack.json", "model"
MAX_ATTACKED = 60
"""Maximum number of points whose attack reports are read: references first, then points on the front."""


def details_of(
    state: SweepState, folder: Path, points: Sequence[Point], run_link: Callable[[str], Mapping[str, str]]
) -> dict[str, Details]:
    """Details of points, by id.

    Args:
        state: the sweep's state.
        folder: the sweep's folder; reports and models that are only on another node's disk are omitted.
        points: points on the page.
        run_link: `Tracker.run_link`.
    """
    entries = dict(state.trials)
    seeds: dict[tuple[str, Role], list[Entry]] = defaultdict(list)
    for one in entries.values():
        seeds[one.point, one.role].append(one)
    front = {point.trial_id for point in pareto_front(points)}
    ranked = sorted(points, key=lambda point: (not point.is_reference, point.trial_id not in front))
    read = {point.trial_id for point in ranked[:MAX_ATTACKED]}
    found = {}
    for point in points:
        entry = entries.get(point.trial_id)
        if entry is None or entry.result is None:
            continue
        last = entries.get(f"{point.trial_id}{FINAL}")
        measured = entry if last is None or last.result is None else last
        result = state.judgement.ended(measured.point, measured.role) or measured.result or entry.result
        judged = state.judgement.judged(dataclasses.replace(result, trial_id=point.trial_id), entry.role)
        link = run_link(entry.trial_id)
        model = trial_folder(folder, entry.trial_id) / MODEL
        found[point.trial_id] = Details(
            reason=judged.error or "",
            failed=dict(judged.failed_checks),
            uninformative=dict(judged.uninformative_checks),
            model=model.relative_to(folder).as_posix() if model.is_dir() else "",
            run=link.get("mlflow_run", ""),
            run_url=link.get("mlflow_url", ""),
            found=_found(folder, seeds[measured.point, measured.role]) if point.trial_id in read else {},
        )
    return found


def _found(folder: Path, entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """Mean accuracy over training seeds, by attack family and number of examples."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        try:
            for cell in _cells(trial_folder(folder, entry.trial_id) / ATTACK_REPORT):
                if (accuracy := cell["accuracy"]) is not None and math.isfinite(accuracy):
                    values[str(cell["family"])][str(cell["num_examples"])].append(float(accuracy))
        except (RunError, *MALFORMED):
            continue
    return {
        family: {count: sum(all_seeds) / len(all_seeds) for count, all_seeds in by_count.items()}
        for family, by_count in values.items()
    }


def _cells(path: Path) -> list[dict[str, Any]]:
    """Results of each family at each number of examples, from an attack report; empty if there is no report."""
    return list(read_json(path)["family_cells"]) if path.is_file() else []
