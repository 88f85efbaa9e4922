"""A trial on vectors in place of texts: the paper's regression, its labels turned into classes by their sign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdm_ray.attack.report import AttackReport
from sdm_ray.config import SweepSettings, TrialSettings, override, parse_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.types import Split, Task
from sdm_ray.data.regression import RegressionWorld, SignedVectors
from sdm_ray.trial.cost import probe
from sdm_ray.trial.run import run_trial
from sdm_ray.trial.workspace import check_inputs, open_workspace

SETTINGS: dict[str, Any] = {
    "data": {"source": "regression", "regression": {"num_examples": 1000, "input_dim": 8}},
    "encoder": {"name": "mlp", "width": 16},
    "train": {
        "num_outer_steps": 60,
        "learning_rate": 5e-3,
        "head_learning_rate": 2e-2,
        "adversary": {"num_steps": 2, "learning_rate_initial": 1e-3, "pool": {"size": 2, "subset_size": 20}},
    },
    "attack": {
        "families": ["fine_tune", "head", "lora", "knn"],
        "num_examples": [8, 16],
        "num_search_trials": 2,
        "num_rerun_seeds": 2,
        "num_steps_min": 5,
        "num_steps_max": 10,
    },
    "runtime": {"device": "cpu"},
}


@pytest.fixture
def settings(tmp_path: Path) -> TrialSettings:
    document = {**SETTINGS, "runtime": {"device": "cpu", "cache_dir": str(tmp_path / "cache")}}
    return parse_settings(TrialSettings, document)


def test_classes_are_the_signs_of_the_labels() -> None:
    world = RegressionWorld(100, 3, input_dim=5)
    signed = SignedVectors(world)
    rows = torch.tensor([[4, 9], [1, 0]])
    for task in Task:
        batch = signed.batch(rows, task)
        assert torch.equal(batch.labels, (world.batch(rows, task).labels > 0).long())
        assert torch.equal(batch.inputs[0], world.batch(rows, task).inputs[0])
        assert torch.equal(batch.inputs[1], torch.ones(2, 2, 1, dtype=torch.int64))
        assert torch.equal(signed.labels_host(task)[rows], batch.labels)
        assert len(signed.label_names(task)) == signed.num_classes(task) == 2
    assert all(torch.equal(signed.indices(split), world.indices(split)) for split in Split)
    assert signed.digest not in (world.digest, SignedVectors(RegressionWorld(100, 4, input_dim=5)).digest)


def test_a_trial_trains_attacks_and_releases(settings: TrialSettings, tmp_path: Path) -> None:
    check_inputs(settings)
    result = run_trial(settings, tmp_path / "t")
    assert result.metrics[Metric.DESIRED_ACCURACY] > 0.8
    report = AttackReport.read_json(tmp_path / "t" / "attack.json")
    assert {cell.family for cell in report.family_cells} == {"fine_tune", "head", "lora", "knn"} - {
        line.split()[0] for line in report.not_tried
    }
    assert all(cell.valid for cell in report.family_cells)
    weights = load_file(tmp_path / "t" / "model" / "weights.safetensors")
    trunk = open_workspace(settings).trunk(settings.encoder, "pretrained", settings.seed)
    assert weights.keys() == {name for name, _ in trunk.named_parameters()} | {"desired_head"}
    assert weights["layers.0.weight"].shape == (16, 8)
    assert weights["desired_head"].shape == (2, 16)
    assert run_trial(settings, tmp_path / "t").metrics == result.metrics


def test_width_and_layers_are_those_of_the_settings(settings: TrialSettings) -> None:
    wider = override(settings, {"encoder.width": 24, "encoder.num_layers": 3})
    trunk: Any = open_workspace(wider).trunk(wider.encoder, "random", 0)
    assert [tuple(layer.weight.shape) for layer in trunk.layers] == [(24, 8), (24, 24), (24, 24)]


def test_a_probe_times_it(settings: TrialSettings) -> None:
    assert probe(settings).seconds_per_fine_tune > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder.name": "builtin"}, "'mlp' and 'regression' belong together"),
        ({"data.source": "synthetic"}, "'mlp' and 'regression' belong together"),
        ({"train": {"method": "pretrained", "blocking": {}}}, "has no pretrained encoder"),
        ({"data.regression.input_dim": 1}, "input_dim"),
        ({"data.regression.num_examples": 9}, "num_examples"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: TrialSettings, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        override(settings, change)


def test_a_final_stage_is_refused() -> None:
    with pytest.raises(UsageError, match="final attacks exported encoders of text"):
        parse_settings(SweepSettings, {"trial": SETTINGS, "final": {"num_points": 1}})
