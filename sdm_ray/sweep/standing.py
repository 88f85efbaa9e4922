"""Tracks the status of trials relative to the frontier, and metrics and description of the sweep as a whole."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import FINAL, Status, TrialResult
from sdm_ray.core.verdict import verdict
from sdm_ray.figures.kinds import Kind, kinds
from sdm_ray.figures.tables import markdown_table
from sdm_ray.frontier.points import Point, hypervolume
from sdm_ray.sweep.search.models import axes
from sdm_ray.sweep.state.labels import run_name, run_params, trial_tags
from sdm_ray.sweep.state.state import SweepState
from sdm_ray.tracking import Tracker

FRONTIER, VERDICT = "frontier", "verdict"
"""Names of tags of a trial's run."""
AUDITED_OUT = "audited out"
WORDS: dict[Kind, str] = {"superseded": "not attacked again", "scratch": "no better than scratch"}
"""Labels for kinds of points whose names are not self-explanatory."""
BUSY_SHARE = 0.01
"""Maximum fraction of a sweep's time for computing and sending the tags."""
DESCRIBE_SECONDS = 60.0
"""Interval at which the description of a running sweep is updated."""
MAX_DESCRIPTION = 5000
"""Maximum length of a description in characters, which every MLflow server accepts."""

ARTIFACTS = "\n\nAmong the artifacts are the picture, `frontier.png`, and the interactive page, `frontier.html`."


def standings(state: SweepState) -> dict[str, dict[str, str | None]]:
    """Tags of every ended trial, by id: the kind of its point relative to the frontier, and the trial's verdict."""
    judgement = state.judgement
    points = judgement.points()
    by_point = {point.trial_id: _word(point, kind) for point, kind in zip(points, kinds(points), strict=True)}
    found: dict[str, dict[str, str | None]] = {}
    for entry in list(state.trials.values()):
        result = entry.result
        if result is None:
            continue
        word, said = str(result.status), verdict(result.metrics)
        if result.status is Status.COMPLETE:
            ended = judgement.ended(entry.point, entry.role)
            word = by_point.get(entry.point.removesuffix(FINAL)) or ("open" if ended is None else str(ended.status))
        found[entry.trial_id] = {FRONTIER: word, VERDICT: None if said is None else str(said.outcome)}
    return found


def _word(point: Point, kind: Kind) -> str:
    if kind in ("infeasible", "audit") and point.metrics.get(Metric.AUDIT_PASSED) == 0.0:
        return AUDITED_OUT
    return WORDS.get(kind, kind)


def record_again(state: SweepState, tracker: Tracker) -> int:
    """Record ended trials that the tracker does not know, because its journal was lost or damaged.

    Returns:
        Number of these trials.
    """
    count = 0
    for entry in state.trials.values():
        if entry.result is not None and not tracker.is_recorded(entry.trial_id):
            params, name = run_params(state.settings, entry), run_name(state.settings, entry)
            tracker.start_trial(entry.trial_id, params, trial_tags(entry), name=name)
            tracker.finish_trial(state.judged_trial(entry.result))
            count += 1
    return count


@dataclass(kw_only=True)
class SweepReport:
    """Tracks a sweep as a whole: metrics over trials, tags of each trial, and a table as description."""

    state: SweepState
    tracker: Tracker
    _num_ended: int = field(init=False)
    _due: float = field(default=-math.inf, init=False)
    _described: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        self._num_ended = sum(entry.result is not None for entry in self.state.trials.values())

    def take(self, result: TrialResult) -> None:
        """Log the metrics of the sweep after a trial has ended and is recorded in the tracker; update tags if due."""
        self._num_ended += 1
        self._log(result if self.state.trials[result.trial_id].role == "search" else None)
        started = time.monotonic()
        if started >= self._due:
            self._annotate(describe=started - self._described >= DESCRIBE_SECONDS)
            self._due = time.monotonic() + (time.monotonic() - started) / BUSY_SHARE

    def close(self) -> None:
        """Log final metrics, tags and description at the end of the sweep."""
        self._log(None)
        self._annotate(describe=True)

    def _log(self, result: TrialResult | None) -> None:
        judgement, drawn = self.state.judgement, axes(self.state.settings)
        front, counts = judgement.front(), judgement.counts()
        metrics = {"sweep/hypervolume": hypervolume(front), "sweep/on_front": float(len(front))}
        metrics |= {f"sweep/{status}": float(count) for status, count in counts.items()}
        if result is not None and result.status in (Status.COMPLETE, Status.INFEASIBLE):
            measured = {"sweep/desired": drawn["desired_metric"], "sweep/harmful": drawn["harmful_metric"]}
            metrics |= {name: result.metrics[metric] for name, metric in measured.items() if metric in result.metrics}
        self.tracker.log_sweep(metrics, self._num_ended)

    def _annotate(self, *, describe: bool) -> None:
        if describe:
            self._described = time.monotonic()
        self.tracker.annotate(standings(self.state), description=self._description() if describe else None)

    def _description(self) -> str:
        judgement, settings = self.state.judgement, self.state.settings
        counts = {str(status): count for status, count in judgement.counts().items() if count}
        ended = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none ended"
        front = judgement.front()
        head = (
            f"{settings.search.num_trials} trials: {ended}; {len(front)} on the front, "
            f"hypervolume {hypervolume(front):.4f}\n\n"
        )
        room = MAX_DESCRIPTION - len(head) - len(ARTIFACTS)
        return head + markdown_table(judgement.points(), max_characters=room) + ARTIFACTS
