"""Advice for a sweep whose frontier is empty: one line for each reason that excluded trials."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from sdm_ray.config import SweepSettings
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import FINAL, Status, TrialResult
from sdm_ray.frontier.points import Point, is_dominated_by_scratch

CHECKS = {
    "complete": "let more fine-tunes end: lower trial.attack.learning_rate.high, or raise trial.attack.timeout_seconds",
    "label_flip": "block with train.blocking.harmful_adapted_calibrated or harmful_adapted_clamped, which gain nothing "
    "by flipped labels",
    "sub_chance": "block with train.blocking.harmful_adapted_calibrated or harmful_adapted_clamped, which gain nothing "
    "by predictions below chance",
    "collapse": "lower trial.train.learning_rate or the weights of train.blocking: features have collapsed",
    "gradient_masking": "lower trial.train.learning_rate or the weights of train.blocking: gradients are masked",
    "scale_free_optimisers": "train against more optimisers (trial.train.adversary.optimizers)",
    "search_failure": "give the attack more points and steps (trial.attack.num_search_trials, num_steps_max)",
    "held_out_gap": "train against more kinds of adversary (trial.train.adversary: optimizers, head, batch_sizes)",
    "data_overlap": "raise trial.data.max_length, or remove near-duplicates from the data",
    "information": "what is hidden is not removed: train longer (trial.train.num_outer_steps), or with a larger "
    "train.blocking weight",
}
"""Advice by audit check, for trials that the check excluded from the frontier."""

_SEARCHED = re.compile(r"t\d+(-s\d+)?(-final)?$")


def what_to_change(settings: SweepSettings, results: Sequence[TrialResult], points: Sequence[Point]) -> list[str]:
    """Advice for a sweep whose frontier is empty, one sentence for each reason, the most frequent first.

    Args:
        settings: the sweep's settings.
        results: results of its trials, with status `infeasible` if they violate a constraint.
        points: its points.
    """
    # The result of a final attack, if there is one, replaces that of its trial.
    trials = {result.trial_id.removesuffix(FINAL): result for result in results if _SEARCHED.match(result.trial_id)}
    reasons: Counter[str] = Counter()
    for result in trials.values():
        reasons.update(_reasons(settings, result, points))
    return [f"{count} of {len(trials)} trials: {text}" for text, count in reasons.most_common()]


def _reasons(settings: SweepSettings, result: TrialResult, points: Sequence[Point]) -> list[str]:
    """Reasons why a trial is not on the frontier, each with advice."""
    if result.status is Status.FAILED:
        return [f"failed ({result.error}); put that right and go on with --resume"]
    if result.status is Status.STOPPED:
        return ["stopped at a rung; loosen search.stopping, or drop trial.rungs"]
    reasons = [f"the audit's check {name.replace('_', ' ')} failed; {CHECKS[name]}" for name in result.failed_checks]
    if result.status is Status.INFEASIBLE and not reasons:
        reasons.append(_desired(settings, points))
    if is_dominated_by_scratch(result.metrics):
        reasons.append(
            "no better than training from scratch, so that the encoder gives no head start to keep or to block; take "
            "more layers (trial.encoder.num_layers), an encoder that knows these labels, another harmful column, or "
            "keep more of the desired task (lower trial.train.learning_rate)"
        )
    if not reasons and not _is_measured(settings, result):
        reasons.append("an objective was not measured; lower trial.attack.learning_rate.high, so that fine-tunes end")
    return reasons


def _desired(settings: SweepSettings, points: Sequence[Point]) -> str:
    """Advice for trials with too low an accuracy on the desired task."""
    searched = [point.desired for point in points if not point.is_reference and math.isfinite(point.desired)]
    tuned = [point.desired for point in points if point.trial_id == "tuned"]
    drop = settings.search.max_desired_drop
    if drop is None or not searched or not tuned:
        return (
            "does the desired task too badly; lower trial.train.learning_rate or the weights of train.blocking, or "
            "loosen trial.train.validation.min_desired_accuracy"
        )
    least = math.ceil((tuned[0] - max(searched)) * 100 + 1e-9) / 100
    return (
        f"does the desired task worse than tuned by more than search.max_desired_drop ({drop:g}); set it to {least:g} "
        "or more, train longer (trial.train.num_outer_steps), or lower the weights of train.blocking"
    )


def _is_measured(settings: SweepSettings, result: TrialResult) -> bool:
    names = [objective.metric for objective in settings.objectives] or [str(Metric.DESIRED_ACCURACY)]
    return all(math.isfinite(result.metrics.get(name, math.nan)) for name in names)
