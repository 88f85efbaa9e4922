"""What a trial will cost, from running a little of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdm_ray.config import DataSettings, TrialSettings, parse_settings
from sdm_ray.meta.trainer import Trainer
from sdm_ray.trial.cost import Probe, extrapolated, probe


def settings(folder: Path, **train: Any) -> TrialSettings:
    """A trial of vectors, whose attack takes a moment."""
    document = {
        "data": {"source": "regression", "regression": {"num_examples": 400}},
        "encoder": {"name": "mlp"},
        "train": train,
        "attack": {
            "num_examples": [8], "num_search_trials": 1, "num_rerun_seeds": 2, "num_steps_min": 2, "num_steps_max": 4,
        },
        "runtime": {"cache_dir": str(folder)},
    }  # fmt: skip
    return parse_settings(TrialSettings, document)


def test_a_validation_that_would_end_the_training_does_not_end_the_probe(tmp_path: Path) -> None:
    strict = {"every_steps": 1, "min_desired_accuracy": 1.0, "patience": 0}
    measured = probe(settings(tmp_path, validation=strict))
    assert measured.seconds_per_step > 0
    assert measured.seconds_of_first_step is None


def test_inner_steps_that_grow_are_timed_at_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[tuple[int, int]] = []
    begin = Trainer.__init__

    def noted(self: Trainer, train: Any, **options: Any) -> None:
        timed.append((train.adversary.num_steps, train.adversary.growing_steps))
        begin(self, train, **options)

    monkeypatch.setattr(Trainer, "__init__", noted)
    measured = probe(settings(tmp_path, adversary={"num_steps": 3, "growing_steps": 1000}))
    assert timed == [(1, 0), (3, 0)]
    assert measured.seconds_of_first_step is not None


@pytest.mark.parametrize(
    ("num_outer_steps", "growing_steps", "seconds"),
    [
        (100, 0, 100 * 4.0),
        (100, 50, 50 * (1.0 + 4.0) / 2 + 50 * 4.0),
        (100, 200, 100 * (1.0 + 2.5) / 2),  # it ends half-way up
    ],
)
def test_seconds_rise_while_inner_steps_grow(
    tmp_path: Path, num_outer_steps: int, growing_steps: int, seconds: float
) -> None:
    measured = Probe(
        device="cpu", seconds_per_step=4.0, seconds_per_fine_tune=1.0, memory_bytes=0, seconds_of_first_step=1.0
    )
    adversary = {"num_steps": 8, "growing_steps": growing_steps}
    trial = settings(tmp_path, num_outer_steps=num_outer_steps, adversary=adversary)
    assert measured.training_seconds(trial) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("steps", "short", "long", "seconds"),
    [
        ((4.0, 16.0, 80.0), 2.0, 5.0, 1.0 + 80 * 0.25),  # a second of scoring, a quarter of a second a step
        ((4.0, 16.0, 80.0), 5.0, 2.0, 5.0),  # the machine was busy in the short timing
        ((1.0, 1.0, 1.0), 2.0, 3.0, 3.0),
    ],
)
def test_an_attack_is_extrapolated_from_two_timings(
    steps: tuple[float, ...], short: float, long: float, seconds: float
) -> None:
    assert extrapolated(steps, short, long) == pytest.approx(seconds)


def test_a_distillation_is_timed_beside_a_training_that_erases(
    tmp_path: Path, data_settings: DataSettings, encoder_folder: Path
) -> None:
    document = settings(tmp_path).model_dump(mode="json") | {
        "data": data_settings.model_dump(mode="json"),
        "encoder": {"name": str(encoder_folder)},
        "train": {"method": "erase", "num_outer_steps": 3, "distil": {"num_steps": 100, "desired_batch_size": 4}},
    }
    trial = parse_settings(TrialSettings, document)
    measured = probe(trial)
    assert measured.seconds_per_distil_step > 0
    wanted = 3 * measured.seconds_per_step + 100 * measured.seconds_per_distil_step
    assert measured.training_seconds(trial) == pytest.approx(wanted)
