"""The registry: what becomes a version, what becomes the champion, and that it loads back to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
from transformers import AutoModelForSequenceClassification

from sdm_ray.config import DataSettings, EncoderSettings, TrackingSettings, TrialSettings, parse_settings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.files import read_json, write_json
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.tracking import open_tracker
from sdm_ray.tracking import registry as registry_module
from sdm_ray.tracking.address import sqlite_uri
from sdm_ray.tracking.registry import register
from sdm_ray.tracking.runs import TrackedRun, connect, run_of_trial
from sdm_ray.trial.run import run_trial
from tests.cli.test_app import run as command
from tests.trial.test_run import SMALL, with_method

GOOD = {"desired/accuracy": 0.95, "harmful/worst_accuracy": 0.52, "audit/passed": 1.0}
POINTS: dict[str, dict[str, Any]] = {
    "good": {},
    "worse": {"metrics": {"desired/accuracy": 0.952, "harmful/worst_accuracy": 0.6}},
    "wanted": {"metrics": {"desired/accuracy": 0.97, "harmful/worst_accuracy": 0.6}},
    "audited": {"metrics": {"audit/passed": 0.0}, "failed_checks": {"label_leak": "labels stand in the text"}},
    "scratched": {"metrics": {"scratch/dominates": 1.0, "scratch/desired_accuracy": 0.96}},
    "infeasible": {"status": Status.INFEASIBLE, "error": "desired accuracy 0.200 is below 0.914"},
    "elsewhere": {"data": "other"},
    "shone": {},
    "shone-final": {"metrics": {"harmful/worst_accuracy": 0.7, "audit/passed": 0.0}, "attack": "stronger"},
    "stronger": {"attack": "stronger"},
    "swapped": {"weights": "of another model"},
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, data_file: Path, encoder_folder: Path) -> Path:
    """A tracked sweep of trials whose model is one and the same, and whose metrics are made up."""
    folder = tmp_path_factory.mktemp("runs") / "unit"
    document = {
        "data": DataSettings(source=str(data_file), max_length=24).model_dump(mode="json"),
        "encoder": EncoderSettings(name=str(encoder_folder)).model_dump(mode="json"),
        "runtime": {"cache_dir": str(folder / "cache"), "device": "cpu"},
    }
    trial = folder / "trial"
    result = run_trial(with_method(parse_settings(TrialSettings, document, SMALL), "tuned"), trial)
    tracker = open_tracker(TrackingSettings(), folder)
    tracker.start_sweep("unit", {}, {})
    for name, changes in POINTS.items():
        tracker.start_trial(name, {}, {"method": "mlac"})
        provenance = result.provenance | {"data": changes.get("data", "d")}
        provenance["attack"] = changes.get("attack", "usual")
        provenance["weights"] = changes.get("weights", provenance["weights"])
        values = {"status": Status.COMPLETE, "error": None} | {
            k: v for k, v in changes.items() if k in ("status", "error", "failed_checks")
        }
        made: TrialResult = dataclasses.replace(
            result, trial_id=name, metrics=GOOD | changes.get("metrics", {}), provenance=provenance, **values
        )
        tracker.finish_trial(made)
    tracker.finish_sweep("complete")
    (folder / "sweep.yaml").write_text("name: unit\n")
    return folder


def trial(sweep: Path, name: str) -> TrackedRun:
    return run_of_trial(sweep, name)


def test_the_champion_loads_back_to_the_bit(sweep: Path) -> None:
    import mlflow

    made = register(trial(sweep, "good"), "bits")
    assert (made.version, made.alias, made.uri) == ("1", "champion", "models:/bits@champion")
    again = register(trial(sweep, "good"), "bits")
    assert (again.version, again.replaced) == ("1", None), "registered again, it is the same version"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(sqlite_uri(sweep.parent / "mlflow.db"))
    try:
        classify = mlflow.transformers.load_model(made.uri)
    finally:
        mlflow.set_tracking_uri(before)
    exported = AutoModelForSequenceClassification.from_pretrained(sweep / "trial" / "model")
    theirs = classify.model.state_dict()
    assert theirs.keys() == exported.state_dict().keys()
    for name, value in exported.state_dict().items():
        assert torch.equal(theirs[name].cpu(), value)
    assert classify("a nurse in the city")[0]["label"] in exported.config.id2label.values()
    version = connect(sqlite_uri(sweep.parent / "mlflow.db")).get_model_version_by_alias("bits", "champion")
    assert version.tags["sdm_ray.harmful/worst_accuracy"] == "0.52"
    assert version.tags["sdm_ray.trial_id"] == "good"
    assert version.run_id == trial(sweep, "good").run_id


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("worse", r"\(desired 0\.952, harmful 0\.600\) is worse than version 1 of 'rules', the champion"),
        ("audited", "fails the audit"),
        ("scratched", r"is no better than training from scratch.*0\.950 against 0\.960"),
        ("infeasible", r"is infeasible: desired accuracy 0\.200 is below 0\.914"),
        ("elsewhere", "was measured on other data"),
        ("stronger", "was measured by another attack"),
    ],
)
def test_what_may_not_be_champion(sweep: Path, name: str, words: str) -> None:
    """Refused without a trace; by force, or without promotion, it is a version."""
    register(trial(sweep, "good"), "rules", force=True)
    client = connect(sqlite_uri(sweep.parent / "mlflow.db"))
    before = len(client.search_model_versions("name = 'rules'"))
    with pytest.raises(UsageError, match=words + r".*nothing is registered; --force"):
        register(trial(sweep, name), "rules")
    assert len(client.search_model_versions("name = 'rules'")) == before
    made = register(trial(sweep, name), "rules", promote=False)
    assert made.alias is None
    assert made.uri == f"models:/rules/{made.version}"
    assert client.get_model_version_by_alias("rules", "champion").run_id == trial(sweep, "good").run_id
    assert register(trial(sweep, name), "rules", force=True).replaced == "1"


def test_other_weights_than_those_tracked_are_refused_even_by_force(sweep: Path) -> None:
    with pytest.raises(RunError, match="are not those that run"):
        register(trial(sweep, "swapped"), "swapped", force=True)


def test_a_trade_off_may_replace_the_champion(sweep: Path) -> None:
    """More desired accuracy for more harmful accuracy is not worse at the same desired accuracy."""
    register(trial(sweep, "good"), "trade")
    assert register(trial(sweep, "wanted"), "trade").replaced == "1"


def test_a_model_that_fits_no_flavour_is_refused(sweep: Path) -> None:
    path = sweep / "trial" / "model" / "sdm_ray.json"
    document = read_json(path)
    changed = {**document, "settings": {**document["settings"]}}
    changed["settings"]["encoder"] = document["settings"]["encoder"] | {"pooling": "mean"}
    write_json(path, changed)
    try:
        with pytest.raises(UsageError, match=r"pools by 'mean', .*train with encoder\.pooling=native"):
            register(trial(sweep, "good"), "flavour")
    finally:
        write_json(path, document)


def test_nothing_is_left_of_a_registration_that_fails(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, flavour: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry_module, "_save", full)
    with pytest.raises(RunError, match=r"refused the model 'half': .*No space left"):
        register(trial(sweep, "good"), "half")
    client = connect(sqlite_uri(sweep.parent / "mlflow.db"))
    assert not client.search_registered_models("name = 'half'")
    with pytest.raises(RunError, match="refused the model 'a/b'"):
        register(trial(sweep, "good"), "a/b")


def test_a_registry_without_aliases_is_said(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any) -> None:
        raise MlflowException("no such endpoint", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr("mlflow.MlflowClient.get_model_version_by_alias", missing)
    with pytest.raises(RunError, match="has no aliases: nothing is registered"):
        register(trial(sweep, "good"), "plain")
    assert not connect(sqlite_uri(sweep.parent / "mlflow.db")).search_registered_models("name = 'plain'")
    assert register(trial(sweep, "good"), "plain", promote=False).version == "1"


def test_the_final_attack_is_what_counts(sweep: Path) -> None:
    """A trial that looked good is not promoted over its own final attack; a version shows that one's figures."""
    with pytest.raises(UsageError, match=r"\(shone-final\) fails the audit"):
        register(trial(sweep, "shone"), "final")
    made = register(trial(sweep, "shone"), "final", force=True)
    version = connect(sqlite_uri(sweep.parent / "mlflow.db")).get_model_version("final", made.version)
    assert version.tags["sdm_ray.harmful/worst_accuracy"] == "0.7"
    assert version.tags["sdm_ray.attack"] == "stronger"
    assert version.run_id == trial(sweep, "shone").run_id


def test_the_command_says_how_to_load(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "register", sweep, "--trial", "good", "--name", "cli", "--alias", "best")
    assert code == 0
    assert "version 1 of cli, best" in out
    assert "mlflow.transformers.load_model('models:/cli@best')" in out
    code, _, error = command(capsys, "register", sweep, "--trial", "absent", "--name", "cli")
    assert (code, "trial 'absent' of" in error) == (2, True)
    run_id = trial(sweep, "good").run_id
    uri = sqlite_uri(sweep.parent / "mlflow.db")
    code, _, error = command(
        capsys, "register", f"mlflow:{run_id}", "--name", "x", "--trial", "t", "--tracking-uri", uri
    )
    assert (code, "is one trial already" in error) == (2, True)
    code, out, _ = command(capsys, "register", f"mlflow:{run_id}", "--name", "x", "--no-promote", "--tracking-uri", uri)
    assert (code, "models:/x/1" in out) == (0, True)


def test_the_command_names_failed_checks_of_a_run_too(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, uri = trial(sweep, "audited"), sqlite_uri(sweep.parent / "mlflow.db")
    assert run.failed_checks == {"label_leak": "labels stand in the text"}
    options = ("--name", "held-back", "--force", "--tracking-uri", uri)
    code, out, _ = command(capsys, "register", f"mlflow:{run.run_id}", *options)
    assert (code, "verdict the audit failed: label leak" in out) == (0, True)
