"""A trial that distils: what it releases, that it goes on after an interruption, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from sdm_ray.config import DataSettings, DistilSettings, EncoderSettings, TrialSettings, override, parse_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import run_through
from sdm_ray.core.types import Split
from sdm_ray.meta.trainer import Trainer, TrainOutcome
from sdm_ray.models.export import load_exported
from sdm_ray.trial.distilled import distilled
from sdm_ray.trial.run import run_trial
from sdm_ray.trial.workspace import check_inputs, distillation_texts, open_workspace
from tests.fakes.files import make_rows, write_rows
from tests.meta.test_trainer import same
from tests.trial.test_run import SMALL

DISTIL = (
    "train.method=distil", "train.num_outer_steps=2", "train.distil.num_steps=4", "train.log_every_steps=2",
    "train.checkpoint_every_steps=2", "train.distil.desired_batch_size=4", "train.distil.general_batch_size=4",
    "encoder.pooling=native",
)  # fmt: skip
MLAC = ("train.method=mlac", "train.distil.adversaries=true", "train.blocking.harmful_adapted=1")
Phase = tuple[TrainOutcome, TrainOutcome]
"""A teacher and its student."""


@pytest.fixture
def make(encoder_folder: Path, tmp_path: Path) -> Callable[..., TrialSettings]:
    """Settings of a small trial with changes; names stand inside sentences, where they are known for names."""
    rows = make_rows()
    rows["text"] = [f"every {text}" for text in rows["text"]]
    data = DataSettings(source=str(write_rows(tmp_path / "data" / "biographies.parquet", rows)), max_length=24)

    def build(*changes: str) -> TrialSettings:
        document = {
            "data": data.model_dump(mode="json"),
            "encoder": EncoderSettings(name=str(encoder_folder)).model_dump(mode="json"),
            "runtime": {"cache_dir": str(tmp_path / "cache"), "device": "cpu"},
        }
        return parse_settings(TrialSettings, document, (*SMALL[:-1], "scratch.enabled=false", *DISTIL, *changes))

    return build


def phases(settings: TrialSettings, folder: Path, stop_after: int | None = None) -> Phase | None:
    """Train and distil; None where the distillation was interrupted after some of its rows."""
    work = open_workspace(settings)
    trunk = work.trunk(settings.encoder, "pretrained", 0)
    trained = Trainer(settings.train, trunk=trunk, data=work.data, seed=0, checkpoint_dir=folder).iterate()
    teacher: TrainOutcome = run_through(trained, lambda progress: None)
    steps = distilled(settings, work, trunk, teacher, erasure=None, checkpoint_dir=folder / "distil")
    for _ in range(stop_after or 0):
        next(steps)
    if stop_after is not None:
        return None
    return teacher, run_through(steps, lambda progress: None)


def test_a_trial_releases_the_student(make: Callable[..., TrialSettings], tmp_path: Path) -> None:
    settings = make(
        "attack.num_examples=[4]", "attack.num_search_trials=1", "attack.num_rerun_seeds=1",
        "attack.measure_information=false",
    )  # fmt: skip
    seen = []
    result = run_trial(settings, tmp_path / "trial", on_progress=seen.append)
    teacher, student = phases(settings, tmp_path / "again") or (None, None)
    assert teacher is not None
    assert student is not None
    exported = load_exported(tmp_path / "trial" / "model").params
    assert all(torch.equal(exported[name], value) for name, value in student.params.items())
    assert not same(teacher, student)
    rows = [one for one in seen if one.stage == "distil"]
    assert [(one.done, one.total) for one in rows] == [(4, 6), (6, 6)]
    assert all(one.metrics[Metric.TRAIN_TEXT_SPEED] == 8 * one.metrics[Metric.TRAIN_SPEED] for one in rows)
    log = pq.read_table(tmp_path / "trial" / "train.parquet").to_pydict()
    assert log["train/step"] == [2, 4, 6]
    assert [value is None for value in log["train/distil_outputs"]] == [True, False, False]
    metrics = result.metrics
    assert metrics[Metric.COST_DISTIL_TEXTS] == 4 * 8
    assert teacher.costs.keys() == {Metric.COST_TRAIN_TEXTS, Metric.COST_TRAIN_FLOPS}
    assert metrics[Metric.COST_TRAIN_TEXTS] == teacher.costs[Metric.COST_TRAIN_TEXTS] + 4 * 8
    assert metrics[Metric.COST_TRAIN_FLOPS] > teacher.costs[Metric.COST_TRAIN_FLOPS]
    speed = metrics[Metric.COST_DISTIL_TEXTS] / metrics[Metric.COST_DISTIL_SECONDS]
    assert metrics[Metric.COST_DISTIL_SPEED] == pytest.approx(speed)
    assert metrics[Metric.COST_TRAIN_SECONDS] > metrics[Metric.COST_DISTIL_SECONDS] > 0


@pytest.mark.parametrize("changes", [(), MLAC], ids=["own", "mlac"])
def test_an_interrupted_distillation_ends_to_the_bit_as_one_that_was_not(
    make: Callable[..., TrialSettings], tmp_path: Path, changes: tuple[str, ...]
) -> None:
    settings = make(*changes)
    whole = phases(settings, tmp_path / "whole")
    assert whole is not None
    phases(settings, tmp_path / "cut", stop_after=1)
    assert list((tmp_path / "cut" / "distil").glob("step-000000002"))
    again = phases(settings, tmp_path / "cut")
    assert again is not None
    assert same(again[1], whole[1])
    assert again[1].log == whole[1].log
    has_terms = "train/harmful_adapted" in whole[1].log[-1]
    assert has_terms == bool(changes)


def test_a_teacher_of_another_training_is_not_gone_on_with(make: Callable[..., TrialSettings], tmp_path: Path) -> None:
    phases(make(), tmp_path / "one", stop_after=1)
    (tmp_path / "one" / "distil").rename(tmp_path / "kept")
    phases(make("train.learning_rate=0.01"), tmp_path / "two", stop_after=0)
    (tmp_path / "kept").rename(tmp_path / "two" / "distil")
    with pytest.raises(UsageError, match="teacher"):
        phases(make("train.learning_rate=0.01"), tmp_path / "two")


def test_alpha_0_is_the_teacher_and_takes_no_step(make: Callable[..., TrialSettings], tmp_path: Path) -> None:
    found = phases(make("train.distil.alpha=0"), tmp_path)
    assert found is not None
    assert found[1] is found[0]
    moved = phases(make("train.distil.alpha=0", "train.distil.alpha_by_depth.upper=0.5"), tmp_path / "upper")
    assert moved is not None
    assert not same(*moved)


def test_settings_of_a_distillation_act(make: Callable[..., TrialSettings], tmp_path: Path) -> None:
    def student(*changes: str) -> TrainOutcome:
        found = phases(make(*changes), tmp_path / str(len(list(tmp_path.iterdir()))))
        assert found is not None
        return found[1]

    plain = student()
    assert same(plain, student())
    for change in (
        "learning_rate=0.01", "temperature=5", "general_weight=3", "features=pooled", "scrub=all", "output_weight=0.1",
        "num_steps=2", "general.max_texts=5",
    ):  # fmt: skip
        assert not same(plain, student(f"train.distil.{change}")), change


def test_texts_are_scrubbed_of_names_as_asked(make: Callable[..., TrialSettings], tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("words\nToday Alice met her friend.\nWe like it here.\n", encoding="utf-8")
    source = f"train.distil.general={{source: '{tmp_path / 'texts.csv'}', text_column: words}}"

    def read(*changes: str) -> tuple[list[int], list[int]]:
        """Tokens of desired and of general texts."""
        settings = make(*changes)
        work = open_workspace(settings)
        trunk = work.trunk(settings.encoder, "pretrained", 0)
        texts = distillation_texts(work, settings, settings.train.distil, trunk)
        sizes = [[] if text is None else text._lengths_host.tolist() for text in texts]
        return sum(sizes[0]), sum(sizes[1])  # type: ignore[return-value]

    whole, own = read("train.distil.scrub=none")
    assert whole == own
    assert read() == (whole, read("train.distil.scrub=all")[0])
    assert read("train.distil.scrub=all")[0] < whole
    assert read("train.distil.general_batch_size=0") == (whole, 0)
    assert read(source, "train.distil.scrub=none")[1] - read(source)[1] == 1, "Alice is gone"


def test_what_cannot_be_distilled_on_is_said_before_anything_starts(make: Callable[..., TrialSettings]) -> None:
    with pytest.raises(UsageError, match=r"train\.distil\.general\.source 'nowhere' is neither"):
        check_inputs(make("train.distil.general.source=nowhere"))
    plain = override(make(), {"train": make().train.for_method("tuned").model_dump(mode="json")})
    searched = DistilSettings.model_validate({"num_steps": 1, "general": {"source": "nowhere"}})
    with pytest.raises(UsageError, match=r"train\.distil\.general\.source 'nowhere' is neither"):
        check_inputs(plain, distillations=[searched])


def test_validation_holds_texts_out_and_stops_nothing(make: Callable[..., TrialSettings], tmp_path: Path) -> None:
    settings = make(
        "train.validation={every_steps: 2, min_desired_accuracy: 0.0, fraction: 0.5}", "train.distil.alpha=1"
    )
    phase = settings.train.of_distillation()
    assert phase.validation.min_desired_accuracy is None
    work = open_workspace(settings)
    trunk = work.trunk(settings.encoder, "pretrained", 0)
    desired, _ = distillation_texts(work, settings, settings.train.distil, trunk)
    assert len(desired) <= len(work.data.indices(Split.META_TRAIN)) // 2 + 1
    found = phases(settings, tmp_path)
    assert found is not None
    assert str(Metric.VALIDATION_ACCURACY) in found[1].log[-1]
