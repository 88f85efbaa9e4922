"""The frontier as a self-contained HTML page; hovering over a trial shows what an attacker recovers from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdm_ray.core.files import null_for_nan, write_text
from sdm_ray.core.metric_names import Metric
from sdm_ray.figures.curves import cell_numbers
from sdm_ray.figures.kinds import Kind, kinds
from sdm_ray.figures.style import FAINT, FRONT, INK, LABELS, TRIAL, model_styles
from sdm_ray.frontier.details import Extras
from sdm_ray.frontier.kept import WORDS, Kept, good_metric, kept
from sdm_ray.frontier.points import Point, hypervolume, pareto_front

TEMPLATE = "page.html"
MARK = "/*DATA*/"
MAX_GROWTH = 400
"""Most points of the curve of hypervolume against number of trials."""
TRAINING_COST = (Metric.COST_TRAIN_TEXTS, Metric.COST_TRAIN_FLOPS)
ATTACK_COST = (Metric.COST_ATTACK_SECONDS, Metric.COST_NUM_FINE_TUNES)


def write_page(points: Sequence[Point], path: Path, *, title: str, extras: Extras | None = None) -> Path:
    """Write the page, atomically.

    Args:
        points: all trials, in order of their start, and references.
        path: path of the page.
        title: name of the sweep.
        extras: additional information about the points.

    Raises:
        RunError: if the file cannot be written.
    """
    template = (files("sdm_ray.figures") / TEMPLATE).read_text(encoding="utf-8")
    data = page_data(points, title=title, extras=extras)
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    # Within a script element only "<" could end the data or start a comment.
    write_text(path, template.replace(MARK, text.replace("<", "\\u003c")))
    return path


def page_data(points: Sequence[Point], *, title: str, extras: Extras | None = None) -> dict[str, Any]:
    """Data of the page as JSON values; NaN becomes null."""
    extras = extras or Extras()
    numbers = cell_numbers(points)
    good = good_metric(points)
    shares = [kept(point, good) for point in points]
    trials = [point for point in points if not point.is_reference]
    return {
        "title": title,
        "hypervolume": hypervolume(points),
        "numbers": list(numbers),
        "colors": {"front": FRONT, "trial": TRIAL, "faint": FAINT, "ink": INK},
        "styles": {
            name: list(style)
            for name, style in model_styles(point.trial_id for point in points if point.is_reference).items()
        },
        "labels": LABELS,
        "params": sorted({name for point in trials for name in point.params}),
        "growth": _growth(trials),
        "importances": {name: dict(shares) for name, shares in extras.importances.items()},
        "details": {name: null_for_nan(one.to_json()) for name, one in extras.details.items()},
        "kept": WORDS[good] if any(share.known for share in shares) else None,
        "points": [
            _plain(point, numbers, kind) | _plain_kept(share)
            for point, kind, share in zip(points, kinds(points), shares, strict=True)
        ],
    }


def _plain_kept(share: Kept) -> dict[str, Any]:
    """Shares of the good and the harmful head start kept, with intervals; null if unknown."""
    return {
        "kx": null_for_nan(share.good),
        "ky": null_for_nan(share.harmful),
        "kxi": None if share.good_interval is None else list(share.good_interval),
        "kyi": None if share.harmful_interval is None else list(share.harmful_interval),
    }


def _plain(point: Point, numbers: Sequence[int], kind: Kind) -> dict[str, Any]:
    curve = [
        [null_for_nan(point.metrics.get(name)) for name in (accuracy, Metric.low(accuracy), Metric.high(accuracy))]
        for accuracy in map(Metric.harmful_accuracy, numbers)
    ]
    return {
        "id": point.trial_id,
        "method": point.method,
        "kind": kind,
        "x": null_for_nan(point.desired),
        "y": null_for_nan(point.harmful),
        "xi": None if point.desired_interval is None else list(point.desired_interval),
        "yi": None if point.harmful_interval is None else list(point.harmful_interval),
        "params": {name: null_for_nan(value) for name, value in point.params.items()},
        "curve": curve,
        "seconds": null_for_nan(point.metrics.get(Metric.COST_TRAIN_SECONDS)),
        "training": [null_for_nan(point.metrics.get(name)) for name in TRAINING_COST],
        "attack": [
            null_for_nan(point.metrics.get(name)) for name in (Metric.COST_ATTACK_SECONDS, Metric.COST_NUM_FINE_TUNES)
        ],
    }


def _growth(trials: Sequence[Point]) -> list[list[float]]:
    """Pairs [number of trials, hypervolume of the first so many trials], at up to `MAX_GROWTH` numbers."""
    count = len(trials)
    steps = min(MAX_GROWTH, count)
    counts = [round(count * (index + 1) / steps) for index in range(steps)]
    grown: list[list[float]] = []
    front: list[Point] = []
    before = 0
    for number in counts:
        front = pareto_front([*front, *trials[before:number]])
        before = number
        grown.append([number, hypervolume(front)])
    return grown
