"""A trial that erases: its directions are found once, are in what it releases and exports, and stand in its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sdm_ray.config import DataSettings, EncoderSettings, TrialSettings, override, parse_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.files import read_json
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import run_through
from sdm_ray.core.result import Status
from sdm_ray.meta.outer import linear_readers
from sdm_ray.meta.outer.erase import FoundErasure, find_erasure
from sdm_ray.models.encoder import params_digest
from sdm_ray.models.export import load_exported
from sdm_ray.trial.erased import found_erasure
from sdm_ray.trial.run import run_trial
from sdm_ray.trial.workspace import check_inputs, open_workspace
from tests.meta.outer.test_erase import leak
from tests.trial.test_run import SMALL


@pytest.fixture(autouse=True)
def short_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_readers, "READER_STEPS", 10)
    monkeypatch.setattr(linear_readers, "READER_BATCH", 32)


@pytest.fixture
def make(data_settings: DataSettings, tmp_path: Path) -> Callable[..., TrialSettings]:
    """Settings with an encoder of a folder, and changes."""

    def build(encoder: Path, *changes: str) -> TrialSettings:
        document = {
            "data": data_settings.model_dump(mode="json"),
            "encoder": EncoderSettings(name=str(encoder)).model_dump(mode="json"),
            "runtime": {"cache_dir": str(tmp_path / "cache"), "device": "cpu"},
        }
        return parse_settings(TrialSettings, document, (*SMALL, *changes))

    return build


def found_by(settings: TrialSettings) -> tuple[FoundErasure, Any, Any]:
    """What a trial erases, its data and its public encoder."""
    settings = override(settings, {"encoder.pooling": "native"})
    work = open_workspace(settings)
    trunk = work.trunk(settings.encoder, "pretrained", 0)
    found = run_through(found_erasure(work, settings, trunk), lambda progress: None)
    assert found is not None
    return found, work.data, trunk


@pytest.mark.parametrize("encoder", ["encoder_folder", "bert_folder"])
def test_what_is_exported_is_what_was_trained_and_reads_nothing(
    encoder: str, make: Callable[..., TrialSettings], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings = make(
        request.getfixturevalue(encoder), "train.erase.num_directions=2", "attack.num_examples=[4]",
        "attack.num_search_trials=1", "attack.measure_information=false",
    )  # fmt: skip
    settings = settings.model_copy(update={"train": settings.train.for_method("erase")})
    stages = set()
    result = run_trial(settings, tmp_path / "trial", on_progress=lambda seen: stages.add(seen.stage))
    assert (result.status, result.method) == (Status.COMPLETE, "erase")
    assert stages == {"erase", "train", "attack"}
    found, data, trunk = found_by(settings)
    exported = load_exported(tmp_path / "trial" / "model")
    assert params_digest(exported.params) == result.provenance["weights"]
    assert leak((trunk, data), found.erasure, exported.params) < 1e-4

    folder = str(tmp_path / "trial" / "model")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["some words", "more of them here"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
        features = exported.trunk(inputs["input_ids"], inputs["attention_mask"])
    assert exported.head is not None
    torch.testing.assert_close(logits, features @ exported.head.T)

    report = read_json(tmp_path / "trial" / "erasure.json")
    assert [len(one["accuracies"]) for one in report["removed"]] == [3, 3]
    assert result.metrics[Metric.COST_TRAIN_SECONDS] >= report["seconds"] > 0
    trained = settings.train.num_outer_steps * settings.train.desired_batch_size
    erased = report["costs"]
    assert result.metrics[Metric.COST_TRAIN_TEXTS] == trained + erased[Metric.COST_TRAIN_TEXTS]
    assert erased[Metric.COST_TRAIN_TEXTS] % 2 == 0, "two directions: all texts are read twice"
    assert result.metrics[Metric.COST_TRAIN_FLOPS] > erased[Metric.COST_TRAIN_FLOPS] > 0


def test_directions_are_found_once_for_all_trials_that_share_what_they_depend_on(
    make: Callable[..., TrialSettings], bert_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, calls = make(bert_folder, "train.erase.num_directions=2"), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["seed"])
        return find_erasure(*args, **kwargs)

    monkeypatch.setattr("sdm_ray.trial.erased.find_erasure", counted)
    first, _, _ = found_by(settings)
    again, _, _ = found_by(override(settings, {"train.learning_rate": 0.01}))
    assert calls == [0]
    wanted, read = first.erasure.state_dict(), again.erasure.state_dict()
    assert wanted.keys() == read.keys()
    assert all(torch.equal(wanted[name], read[name]) for name in wanted)
    assert (first.removed, first.seconds) == (again.removed, again.seconds)
    for change in ({"seed": 1}, {"train.erase.estimator": "leace"}, {"train.validation.every_steps": 5}):
        found_by(override(settings, change))
    assert calls == [0, 1, 0, 0]

    (kept, *_) = sorted((tmp_path / "cache" / "erasure").glob("*.safetensors"))
    kept.write_bytes(b"damaged")
    for change in ({}, {"seed": 1}, {"train.erase.estimator": "leace"}, {"train.validation.every_steps": 5}):
        found_by(override(settings, change))
    assert len(calls) == 5, "what is damaged is found anew"


def test_an_entry_of_something_else_is_not_taken(
    make: Callable[..., TrialSettings], bert_folder: Path, tmp_path: Path
) -> None:
    settings = make(bert_folder, "train.erase.num_directions=1")
    found, _, _ = found_by(settings)
    (kept,) = (tmp_path / "cache" / "erasure").glob("*.safetensors")
    save_file(load_file(kept), kept, metadata={"sdm_ray": "{}", "asked": "another"})
    again, _, _ = found_by(settings)
    assert again.removed == found.removed


def test_what_an_encoder_cannot_do_is_said_before_anything_starts(
    make: Callable[..., TrialSettings], bert_folder: Path
) -> None:
    with pytest.raises(UsageError, match="names hidden state 7"):
        check_inputs(make(bert_folder, "train.erase.num_directions=1", "train.erase.sites=[7]"))
    searched = make(bert_folder, "train.erase.num_directions=15", "train.erase.spare_general=1").train.erase
    with pytest.raises(UsageError, match="leave nothing of the encoder's 16"):
        check_inputs(make(bert_folder), erasures=[searched])
