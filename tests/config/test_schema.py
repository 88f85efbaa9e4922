"""The JSON schema: it takes every file that is shipped, completes names and paths, and refuses what settings refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sdm_ray.config import SweepSettings, TrialSettings, json_schema, read_document
from sdm_ray.config.attack import FAMILIES
from sdm_ray.config.schema import NOT_SEARCHED
from sdm_ray.sweep.search.check import NOT_SEARCHABLE
from tests import ROOT

jsonschema = pytest.importorskip("jsonschema")


def validator(kind: type[TrialSettings] | type[SweepSettings], **more: Any) -> Any:
    schema = json_schema(kind, **more)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


SWEEP, TRIAL = validator(SweepSettings), validator(TrialSettings)


def problems(checker: Any, text: str) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in checker.iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_files_pass_a_stock_validator(path: Path) -> None:
    document = read_document(path)
    checker = SWEEP if "trial" in document else TRIAL
    assert problems(checker, path.read_text()) == []


@pytest.mark.parametrize("text", [
    "extends: base.yaml",
    "trial: {extends: trial.yaml}",
    "extends: [a.yaml, b.yaml]",
    "trial: {train: {num_outer_steps: '${env:STEPS:-10}', method: '${env:METHOD}', compile: '${env:COMPILE}'}}",
    "objectives: [{metric: benign/desired/n100/accuracy, direction: maximize}]",
    "objectives: [{metric: kept/benign, direction: maximize}, {metric: harmful/n20/loss, direction: maximize}]",
    "space: {train.blocking.custom.mine: {type: float, low: 1, high: 2}}",
    "{extends: base.yaml, space: {train.learning_rate: null}}",
    "space: {seed: {type: int, low: 1, high: 2, when: {train.method: mlac}}}",
    "variants: {k4: {train.adversary.num_steps: 4}}",
    "search: {points: [{train.learning_rate: 1.0e-3}]}",
    "final: {attack: {preset: paper}}",
])  # fmt: skip
def test_what_settings_take_passes(text: str) -> None:
    assert problems(SWEEP, text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trial: {attack: {families: [fine_tuen]}}", "fine_tuen"),
        ("objectives: [{metric: desired/acuracy, direction: maximize}]", "desired/acuracy"),
        ("space: {train.lerning_rate: {type: float, low: 1, high: 2}}", "train.lerning_rate"),
        ("space: {name: {type: categorical, choices: [a]}}", "'name'"),
        ("space: {seed: {type: int, low: 1, high: 2, when: {train.methd: mlac}}}", ""),
        ("variants: {k4: {train.adversary.num_steps: -4}}", "-4"),
        ("search: {points: [{train.lerning_rate: 1.0e-3}]}", "train.lerning_rate"),
        ("final: {attack: {familys: [full]}}", "familys"),
        ("trial: {rungs: [{step: 1, attack: {num_rerun_seeds: 0}}]}", "0 is not valid"),
        ("seed: ${env:}", "is not valid"),
        ("seed: $HOME", "is not valid"),
    ],
)
def test_what_settings_refuse_is_refused(text: str, message: str) -> None:
    found = problems(SWEEP, text)
    assert len(found) == 1, found
    assert message in found[0]


def test_editors_complete_names_and_paths_with_their_meaning() -> None:
    """A path of `space` has the description of its setting."""
    schema = json_schema(SweepSettings, families=[*FAMILIES, "mine"], metrics=["own/spread"])
    paths = schema["properties"]["space"]["properties"]
    assert paths["train.adversary.num_steps"]["description"].startswith("Inner steps K of a fresh adversary")
    assert not {path.split(".")[0] for path in paths} & set(NOT_SEARCHED)
    assert set(NOT_SEARCHED) == set(NOT_SEARCHABLE)
    own = "{trial: {attack: {families: [mine]}}, objectives: [{metric: own/spread, direction: minimize}]}"
    assert len(problems(SWEEP, own)) == 2
    assert problems(validator(SweepSettings, families=[*FAMILIES, "mine"], metrics=["own/spread"]), own) == []
