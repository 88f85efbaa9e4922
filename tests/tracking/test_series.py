"""Which metrics are logged, and that none is lost."""

from __future__ import annotations

import math

import pytest

from sdm_ray.core.metric_names import Metric
from sdm_ray.tracking.naming import MAX_TAG, tag_values
from sdm_ray.tracking.series import KEPT_TAG, kept_tags, measured, split

SIZES = (20, 100)
SINGLE = [
    Metric.DESIRED_ACCURACY, Metric.HARMFUL_WORST_ACCURACY, Metric.REGRET_ACCURACY, Metric.SCRATCH_REGRET,
    Metric.RECOVERED_SHARE, Metric.KEPT_HARMFUL, Metric.KEPT_DESIRED, Metric.KEPT_BENIGN, Metric.UTILITY_DESIRED,
    Metric.RECOVERY_EXAMPLES, Metric.AUDIT_PASSED, Metric.AUDIT_GAP, Metric.SCRATCH_DOMINATES,
    Metric.COST_TRAIN_SECONDS, Metric.COST_ATTACK_SECONDS, Metric.COST_TRAIN_TEXTS, Metric.COST_TRAIN_FLOPS,
]  # fmt: skip
LEFT_OUT = [
    Metric.DESIRED_LOSS, Metric.HARMFUL_MEAN_ACCURACY, Metric.HARMFUL_BASE_RATE, Metric.HARMFUL_BOUNDED_ACCURACY,
    Metric.REGRET_LOSS, Metric.SCRATCH_DESIRED, Metric.SCRATCH_HARMFUL, Metric.RECOVERY_STEPS, Metric.RECOVERY_TRIALS,
    Metric.RECOVERY_FLOPS, Metric.COST_NUM_FINE_TUNES, *(Metric.kept_benign(name) for name in ("origin", "n20")),
    *(Metric.benign("desired", number) for number in SIZES), *(Metric.kept_at("desired", number) for number in SIZES),
    *(name(number) for number in SIZES for name in (
        Metric.harmful_loss, Metric.harmful_f1, Metric.harmful_information, Metric.regret, Metric.utility
    )),
]  # fmt: skip
BY_N = {
    "harmful/accuracy_by_n": Metric.harmful_accuracy,
    "recovered/share_by_n": Metric.recovered_share,
    "regret/accuracy_by_n": Metric.regret_accuracy,
    "kept/harmful_by_n": lambda number: Metric.kept_at("harmful", number),
}


def all_metrics() -> dict[str, float]:
    """What a trial of the quickstart measures, with intervals."""
    names = [*map(str, SINGLE + LEFT_OUT), *(name(number) for name in BY_N.values() for number in SIZES)]
    names += [end(name) for name in names for end in (Metric.low, Metric.high)]
    return {name: math.sin(index) for index, name in enumerate(names)}


def test_what_was_measured_at_several_n_is_one_metric_and_the_rest_is_kept() -> None:
    metrics = all_metrics()
    assert len(metrics) > 100
    single, series = split(metrics)
    assert single == {str(name): metrics[name] for name in SINGLE}
    assert series == {name: {number: metrics[of(number)] for number in SIZES} for name, of in BY_N.items()}
    tags = kept_tags(metrics, single)
    assert len(tags) > 1, "more than one tag takes"
    assert tag_values(tags) == tags, "none is cut"
    last = single | {name: values[max(values)] for name, values in series.items()}
    assert measured(last, tags) == metrics


def test_objectives_and_metrics_of_others_are_logged_under_their_names() -> None:
    name = Metric.harmful_accuracy(20)
    values = {name: 0.6, "harmful/base_rate": 0.5, "mine": 1.0, "mine/low": 0.5, "mine_by_n": 2.0}
    single, series = split(values, [name, "harmful/base_rate"])
    assert single == {name: 0.6, "harmful/base_rate": 0.5, "mine": 1.0, "mine_by_n": 2.0}
    assert series == {"harmful/accuracy_by_n": {20: 0.6}}
    assert measured(single | {"harmful/accuracy_by_n": 0.6}, kept_tags(values, single)) == values


def test_rungs_are_a_series_over_outer_steps_and_later_attacks_are_split_alike() -> None:
    values = {Metric.rung_desired(100): 0.9, Metric.rung_desired(200): 0.8, Metric.TRAIN_SECONDS_LEFT: 3.0}
    assert split(values) == ({}, {"rung/desired_accuracy": {100: 0.9, 200: 0.8}})
    again = {Metric.again("large", name): value for name, value in all_metrics().items()}
    single, series = split(again)
    assert set(single) == {Metric.again("large", name) for name in SINGLE}
    assert set(series) == {Metric.again("large", name) for name in BY_N}


def test_runs_of_before_are_read_as_they_are() -> None:
    metrics = all_metrics()
    assert measured(metrics, {"status": "complete"}) == metrics
    assert kept_tags({"a": 1.0}, ["a"]) == {}


def test_a_shorter_text_may_be_written_over_a_longer_one() -> None:
    longer = kept_tags({f"metric {index:04d}": 0.5 for index in range(400)}, [])
    assert len(longer[f"{KEPT_TAG}0"]) == MAX_TAG
    assert measured({}, longer | kept_tags({"a": 1.0}, [])) == {"a": 1.0}
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        measured({}, {f"{KEPT_TAG}0": longer[f"{KEPT_TAG}0"]})
