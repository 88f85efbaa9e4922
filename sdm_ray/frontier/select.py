"""Rules that select one point of the frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.suggest import nearest
from sdm_ray.frontier.points import Point, is_dominated_by_scratch, pareto_front

Rule = Literal["constrained", "knee", "weighted", "trial"]
SCRATCH_HINT = "choose a trial of the frontier, which `sdm-ray frontier` lists"


def select(
    points: Sequence[Point],
    *,
    rule: Rule = "constrained",
    min_desired: float | None = None,
    desired_weight: float = 0.5,
    trial_id: str | None = None,
) -> Point:
    """Select one point.

    Args:
        points: all points of a sweep.
        rule: `constrained`: the lowest harmful value with desired at least `min_desired`. `knee`: the point of the
            front furthest from the line between its two ends, with both objectives scaled to the front's range (Das
            1999); for a front of two points the one with the larger desired - harmful. `weighted`: the largest
            `desired_weight * desired - (1 - desired_weight) * harmful`. `trial`: the trial `trial_id`, which may be a
            reference but not a trial that is no better than `scratch`.
        min_desired: for `constrained`; None means no bound.
        desired_weight: for `weighted`, in [0, 1].
        trial_id: for `trial`.

    Raises:
        UsageError: if no point qualifies, with the reason.
    """
    if rule == "trial":
        return _by_trial_id(points, trial_id)
    front = pareto_front(points)
    if not front:
        raise UsageError(f"the frontier is empty: {why_empty(points)}")
    if rule == "knee":
        return _knee(front)
    if rule == "weighted":
        if not 0 <= desired_weight <= 1:
            raise UsageError(f"desired_weight must lie in [0, 1], got {desired_weight:g}")
        return max(front, key=lambda point: desired_weight * point.desired - (1 - desired_weight) * point.harmful)
    if rule != "constrained":
        raise UsageError(f"unknown rule {rule!r}; choose constrained, knee, weighted or trial")
    qualified = [point for point in front if min_desired is None or point.desired >= min_desired]
    if not qualified:
        raise UsageError(
            f"no feasible trial has a desired value of at least {min_desired:g}: the best is {front[-1].desired:.4f} "
            f"(trial {front[-1].trial_id}); lower the bound"
        )
    return qualified[0]


def rule_of(
    rule: Rule | None, *, min_desired: float | None, desired_weight: float | None, trial_id: str | None
) -> Rule:
    """Rule to apply: the given one, or the one that uses the given argument.

    Args:
        rule: as for `select`; None derives it from the other arguments (default `constrained`).
        min_desired: see `select`; None, here and below, means "not given".
        desired_weight: see `select`.
        trial_id: see `select`.

    Raises:
        UsageError: for an argument that the rule does not use.
    """
    given: dict[Rule, tuple[str, object]] = {
        "constrained": ("a least desired accuracy", min_desired),
        "weighted": ("a weight", desired_weight),
        "trial": ("a trial", trial_id),
    }
    asked = [name for name, (_, value) in given.items() if value is not None]
    meant = rule or (asked[0] if asked else "constrained")
    for name in asked:
        if name != meant:
            argument, value = given[name]
            raise UsageError(
                f"{argument} ({value}) belongs to rule '{name}' and means nothing to rule '{meant}'; give one of them"
            )
    return meant


def _by_trial_id(points: Sequence[Point], trial_id: str | None) -> Point:
    if not trial_id:
        raise UsageError("rule 'trial' needs the id of a trial")
    for point in points:
        if point.trial_id == trial_id:
            if not point.is_reference:
                refuse_scratch(f"trial {trial_id!r}", point.metrics)
            return point
    known = [point.trial_id for point in points]
    close = nearest(trial_id, known, count=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {len(known)} trials"
    raise UsageError(f"no trial {trial_id!r} in this sweep; {hint}")


def refuse_scratch(who: str, metrics: Mapping[str, float], hint: str = SCRATCH_HINT) -> None:
    """Reject a trial that is no better than training from scratch.

    Args:
        who: the trial, for the message.
        metrics: metrics of the trial.
        hint: what to do instead.

    Raises:
        UsageError: if it is no better.
    """
    if not is_dominated_by_scratch(metrics):
        return
    pairs = (
        ("desired", Metric.DESIRED_ACCURACY, Metric.SCRATCH_DESIRED),
        ("harmful", Metric.HARMFUL_WORST_ACCURACY, Metric.SCRATCH_HARMFUL),
    )
    known = [pair for pair in pairs if pair[1] in metrics and pair[2] in metrics]
    numbers = ", ".join(f"{name} {metrics[mine]:.3f} against {metrics[theirs]:.3f}" for name, mine, theirs in known)
    raise UsageError(
        f"{who} is no better than training from scratch, neither in what it keeps nor in what it blocks"
        f"{f' ({numbers})' if numbers else ''}; {hint}"
    )


def why_empty(points: Sequence[Point]) -> str:
    """Why the front is empty, as a clause."""
    trials = [point for point in points if not point.is_reference]
    if not trials:
        return "no trial but the references has finished"
    held = sum(point.held_back for point in trials)
    infeasible = sum(not point.feasible for point in trials) - held
    scratch = sum(point.feasible and point.dominated_by_scratch for point in trials)
    also = f", {scratch} are no better than training from scratch" if scratch else ""
    also = (f", {held} are held back by the audit" if held else "") + also
    return (
        f"of {len(trials)} trials {infeasible} failed, were stopped or are infeasible{also}, and "
        f"{len(trials) - held - infeasible - scratch} lack a finite objective"
    )


def _knee(front: list[Point]) -> Point:
    values = np.array([(point.desired, -point.harmful) for point in front])
    span = np.ptp(values, axis=0)
    if len(front) == 1 or not span.all():
        return front[-1]
    scaled = (values - values.min(axis=0)) / span
    if len(front) == 2:
        return min(front, key=lambda point: (point.harmful - point.desired, -point.desired))
    return front[int(np.argmax(scaled.sum(axis=1)))]
