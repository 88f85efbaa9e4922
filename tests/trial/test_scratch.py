"""The reference `scratch`: trained once, kept by content, and compared with every trial."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sdm_ray.attack.findings.desired import desired_scores
from sdm_ray.config import DataSettings, EncoderSettings, ScratchSettings, TrialSettings, override, parse_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.types import Split
from sdm_ray.models.encoder import params_digest
from sdm_ray.trial.run import run_trial
from sdm_ray.trial.scratch import Scratch, train_scratch
from sdm_ray.trial.workspace import Workspace, open_workspace, trunk_params
from tests.trial.test_run import SMALL

SHORT = ScratchSettings(
    learning_rates=(1e-5, 1e-2), batch_size=8, screen_steps=20, max_steps=60, every_steps=10, patience=2
)


@pytest.fixture
def settings(data_settings: DataSettings, encoder_settings: EncoderSettings, tmp_path: Path) -> TrialSettings:
    document = {
        "data": data_settings.model_dump(mode="json"),
        "encoder": encoder_settings.model_dump(mode="json"),
        "runtime": {"cache_dir": str(tmp_path / "cache"), "device": "cpu"},
    }
    changes = {"scratch": SHORT.model_dump(mode="json"), "attack.benign_num_examples": [8]}
    return override(parse_settings(TrialSettings, document, SMALL), changes)


def trained(work: Workspace, settings: TrialSettings, scratch: ScratchSettings = SHORT) -> tuple[Scratch, int]:
    """The reference, and how many steps of progress it took to get it."""
    seen: list[Progress] = []
    generator = train_scratch(work, settings.encoder, scratch, settings.seed)
    while True:
        try:
            seen.append(next(generator))
        except StopIteration as stop:
            return stop.value, len(seen)


def test_the_best_learning_rate_learns_the_desired_task(settings: TrialSettings) -> None:
    work = open_workspace(settings)
    found, _ = trained(work, settings)
    assert found.learning_rate == 1e-2
    assert 0 < found.num_steps <= 60
    accuracy, _ = desired_scores(found.trunk, found.params, found.head, work.data, Split.ATTACKER_VAL)
    start, _ = desired_scores(found.trunk, trunk_params(found.trunk), found.head, work.data, Split.ATTACKER_VAL)
    assert accuracy > max(start, 0.8)
    random = work.trunk(settings.encoder, "random", settings.seed)
    assert params_digest(trunk_params(random)) == params_digest(trunk_params(found.trunk))  # left as it was


def test_it_is_trained_once(settings: TrialSettings, tmp_path: Path) -> None:
    work = open_workspace(settings)
    first, steps = trained(work, settings)
    again, none = trained(open_workspace(settings), settings)
    assert steps
    assert none == 0
    assert params_digest(again.params) == params_digest(first.params)
    assert torch.equal(again.head, first.head)
    assert (again.learning_rate, again.num_steps, again.seconds) == (
        first.learning_rate, first.num_steps, first.seconds
    )  # fmt: skip
    (file,) = (tmp_path / "cache" / "scratch").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    repaired, steps = trained(open_workspace(settings), settings)
    assert steps
    assert params_digest(repaired.params) == params_digest(first.params)
    other, steps = trained(open_workspace(settings), settings.model_copy(update={"seed": 1}))
    assert steps
    assert params_digest(other.params) != params_digest(first.params)
    for entry in (tmp_path / "cache" / "scratch").glob("*.safetensors"):
        entry.write_bytes(file.read_bytes())
    ours, steps = trained(open_workspace(settings), settings.model_copy(update={"seed": 1}))
    assert steps, "a copy of another entry is not what was asked for"
    assert params_digest(ours.params) == params_digest(other.params)


def test_patience_and_most_steps(settings: TrialSettings) -> None:
    work = open_workspace(settings)
    _, screening = trained(work, settings, SHORT.model_copy(update={"max_steps": 20}))
    assert screening == 4  # two learning rates, scored twice each
    _, longer = trained(work, settings, SHORT.model_copy(update={"patience": 100}))
    assert longer == 4 + 4  # one of them goes on up to 60 steps


def test_a_trial_is_measured_against_it(settings: TrialSettings, tmp_path: Path) -> None:
    train = settings.train.for_method("tuned")
    metrics = run_trial(settings.model_copy(update={"train": train}), tmp_path / "tuned").metrics
    names = (Metric.SCRATCH_DESIRED, Metric.SCRATCH_HARMFUL, Metric.SCRATCH_REGRET, Metric.SCRATCH_DOMINATES)
    assert all(math.isfinite(metrics[str(name)]) for name in names)
    assert metrics[Metric.SCRATCH_REGRET] == pytest.approx(
        metrics[Metric.HARMFUL_WORST_ACCURACY] - metrics[Metric.SCRATCH_HARMFUL]
    )
    without = override(settings.model_copy(update={"train": train}), {"scratch.enabled": False})
    plain = run_trial(without, tmp_path / "without").metrics
    assert not [name for name in plain if "scratch" in name or name.startswith("kept/")]
    same = [name for name in plain if not name.startswith("cost/")]
    assert {name: metrics[name] for name in same} == {name: plain[name] for name in same}


def test_scratch_itself_keeps_nothing(settings: TrialSettings, tmp_path: Path) -> None:
    train = settings.train.for_method("scratch")
    result = run_trial(settings.model_copy(update={"train": train}), tmp_path / "scratch")
    metrics = result.metrics
    assert metrics[Metric.DESIRED_ACCURACY] == metrics[Metric.SCRATCH_DESIRED]
    assert metrics[Metric.HARMFUL_WORST_ACCURACY] == metrics[Metric.SCRATCH_HARMFUL]
    assert metrics[Metric.SCRATCH_REGRET] == 0.0
    assert metrics[Metric.SCRATCH_DOMINATES] == 1.0
    for name in (Metric.KEPT_HARMFUL, Metric.KEPT_DESIRED, Metric.KEPT_BENIGN):
        assert metrics.get(str(name), 0.0) == 0.0
    assert (tmp_path / "scratch" / "model" / "model.safetensors").is_file()


def test_bad_settings(settings: TrialSettings) -> None:
    with pytest.raises(UsageError, match="must not fall in this order"):
        override(settings, {"scratch.max_steps": 5})
    with pytest.raises(UsageError, match=r"'scratch' needs scratch\.enabled"):
        override(settings, {"scratch.enabled": False, "train": {"method": "scratch"}})
    with pytest.raises(UsageError, match="does not block"):
        override(settings, {"train": {"method": "scratch", "blocking": {"harmful_base": 1}}})
