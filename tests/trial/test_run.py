"""One trial from its settings to its result, its resumption, and what a released model is compared with."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import pipeline

from sdm_ray.attack.families.edits import Editor
from sdm_ray.attack.report import AttackReport
from sdm_ray.config import DataSettings, EncoderSettings, Origin, TrialSettings, load_settings, override, parse_settings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.progress import Progress
from sdm_ray.core.result import Status, TrialResult, read_result
from sdm_ray.meta import checkpoint
from sdm_ray.meta.outer.step import OuterStep
from sdm_ray.models.encoder import load_trunk, params_digest
from sdm_ray.models.export import load_exported
from sdm_ray.sweep.cluster.worker import Job, TrialWorker
from sdm_ray.trial.final import iterate_final
from sdm_ray.trial.floors import floor_report
from sdm_ray.trial.run import iterate_trial, run_trial
from sdm_ray.trial.workspace import _open_data, open_workspace, resolve_device
from tests.fakes.attack_world import drain

SMALL = (
    "train.num_outer_steps=12",
    "train.log_every_steps=4",
    "train.checkpoint_every_steps=4",
    "train.desired_batch_size=8",
    "train.harmful_batch_size=8",
    "train.adversary.num_steps=2",
    "train.adversary.pool={size: 2, subset_size: 8}",
    "attack.num_examples=[4, 8]",
    "attack.families=[fine_tune]",
    "attack.num_search_trials=2",
    "attack.num_rerun_seeds=2",
    "attack.num_steps_min=2",
    "attack.num_steps_max=4",
    "attack.batch_sizes=[4]",
    "scratch.enabled=false",
)


@pytest.fixture(scope="module")
def settings(data_file: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialSettings:
    """A small trial. Its cache is that of all tests here: what several need, floors above all, is built once."""
    document = {
        "data": DataSettings(source=str(data_file), max_length=24).model_dump(mode="json"),
        "encoder": EncoderSettings(name=str(encoder_folder)).model_dump(mode="json"),
        "runtime": {"cache_dir": str(tmp_path_factory.mktemp("trial") / "cache"), "device": "cpu"},
    }
    return parse_settings(TrialSettings, document, SMALL)


@pytest.fixture
def alone(settings: TrialSettings, tmp_path: Path) -> TrialSettings:
    """`settings` with an empty cache of its own, for what is counted or altered there."""
    return override(settings, {"runtime.cache_dir": str(tmp_path / "cache")})


class Whole(NamedTuple):
    """A trial that ran undisturbed, to be read only; what alters its folder takes a copy."""

    result: TrialResult
    folder: Path
    seen: list[Progress]


@pytest.fixture(scope="module")
def whole(settings: TrialSettings, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The trial of `settings`."""
    folder, seen = tmp_path_factory.mktemp("whole") / "t1", list[Progress]()
    result = run_trial(settings, folder, trial_id="t1", on_progress=seen.append)
    return Whole(result, folder, seen)


def with_method(settings: TrialSettings, method: str) -> TrialSettings:
    train = settings.train.for_method(method)  # type: ignore[arg-type]
    return settings.model_copy(update={"train": train})


def test_a_trial_leaves_everything_that_its_result_speaks_of(settings: TrialSettings, whole: Whole) -> None:
    result, folder, seen = whole
    assert result.status is Status.COMPLETE
    assert {progress.stage for progress in seen} == {"train", "attack"}
    names = {Metric.DESIRED_ACCURACY, Metric.HARMFUL_WORST_ACCURACY, Metric.REGRET_ACCURACY, Metric.COST_TRAIN_SECONDS}
    assert all(math.isfinite(result.metrics[str(name)]) for name in names)
    assert result.metrics[Metric.COST_TRAIN_TEXTS] >= 12 * (
        settings.train.desired_batch_size + settings.train.harmful_batch_size
    )
    assert result.metrics[Metric.COST_TRAIN_FLOPS] > 1e6
    assert read_result(folder) == result
    written = load_settings(TrialSettings, folder / "config.yaml")
    assert written.encoder.pooling == "native", "what was left open is settled"
    assert written == override(settings, {"encoder.pooling": "native"})
    assert pq.read_table(folder / "train.parquet")["train/step"].to_pylist() == [4, 8, 12]
    assert pq.read_table(folder / "attack.parquet").num_rows == 2 * (2 + 2)
    assert pq.read_table(folder / "trajectory.parquet")["inner_step"].to_pylist() == [0, 1, 2] * 2
    assert (folder / "trajectory.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "checkpoint").exists()

    exported = load_exported(folder / "model")
    assert params_digest(exported.params) == result.provenance["weights"]
    predicted = pipeline("text-classification", model=str(folder / "model"))("some words")[0]["label"]
    assert exported.meta is not None
    assert predicted in exported.meta.label_names


def test_the_headline_is_the_mean_of_the_cells_on_disk(whole: Whole) -> None:
    report = AttackReport.read_json(whole.folder / "attack.json")
    mean = sum(cell.accuracy for cell in report.cells) / len(report.cells)
    assert whole.result.metrics[Metric.HARMFUL_WORST_ACCURACY] == pytest.approx(mean)


def test_an_interrupted_trial_ends_as_an_undisturbed_one(settings: TrialSettings, tmp_path: Path, whole: Whole) -> None:
    generator = iterate_trial(settings, tmp_path / "broken")
    for _ in range(2):
        next(generator)
    generator.close()
    assert (tmp_path / "broken" / "checkpoint").is_dir()
    resumed = run_trial(settings, tmp_path / "broken")
    assert resumed.provenance == whole.result.provenance
    same = [name for name in whole.result.metrics if not name.startswith("cost/")]
    assert [resumed.metrics[name] for name in same] == [whole.result.metrics[name] for name in same]


def test_a_training_that_is_stopped_is_infeasible_and_not_attacked(settings: TrialSettings, tmp_path: Path) -> None:
    validation = {"every_steps": 2, "min_desired_accuracy": 1.0, "patience": 1}
    strict = override(settings, {"train.validation": validation})
    seen: list[Progress] = []
    folder = tmp_path / "trial"
    result = run_trial(strict, folder, on_progress=seen.append)
    assert result.status is Status.INFEASIBLE
    assert result.error is not None
    assert result.error.startswith("training stopped at outer step 4: the desired accuracy on held-out examples is 0.")
    measured = {Metric.DESIRED_ACCURACY, Metric.DESIRED_LOSS, Metric.COST_TRAIN_SECONDS}
    measured |= {Metric.COST_TRAIN_TEXTS, Metric.COST_TRAIN_FLOPS}
    assert result.metrics.keys() == measured | {Metric.VALIDATION_ACCURACY, Metric.VALIDATION_LOSS}
    assert {progress.stage for progress in seen} == {"train"}
    assert read_result(folder) == result
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["config.yaml", "result.json", "train.parquet", "trajectory.parquet", "trajectory.png"]
    log = pq.read_table(folder / "train.parquet")
    assert log["train/step"].to_pylist() == [2, 4]
    assert log["validation/desired_accuracy"].null_count == 0
    assert log["train/desired_loss"].null_count == 1
    assert run_trial(strict, folder) == result


def test_a_diverged_training_leaves_its_log_and_its_last_good_checkpoint(
    settings: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, plain, calls = with_method(settings, "tuned"), OuterStep.step, iter(range(100))

    def poisoned(step: OuterStep) -> Tensor:
        return plain(step) * (math.nan if next(calls) == 9 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(OuterStep, "step", poisoned)
        with pytest.raises(RunError, match="training diverged at outer step 10: desired_loss is nan"):
            run_trial(tuned, tmp_path / "trial")
    assert pq.read_table(tmp_path / "trial" / "train.parquet")["train/step"].to_pylist() == [4, 8]
    assert [path.name for path in (tmp_path / "trial" / "checkpoint").iterdir()] == ["step-000000008"]
    assert read_result(tmp_path / "trial") is None
    assert run_trial(tuned, tmp_path / "trial").status is Status.COMPLETE
    assert not (tmp_path / "trial" / "trajectory.png").exists(), "tuning simulates no adversary"


def test_a_finished_trial_is_not_run_again(settings: TrialSettings, whole: Whole) -> None:
    generator = iterate_trial(settings, whole.folder)
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value == whole.result
    with pytest.raises(UsageError, match="holds the result of config"):
        run_trial(settings.model_copy(update={"seed": 1}), whole.folder)


def test_a_result_on_other_data_is_not_taken_for_one_on_these(alone: TrialSettings, tmp_path: Path) -> None:
    source, folder = Path(alone.data.source), tmp_path / "trial"
    random = with_method(alone, "random")
    first = run_trial(random, folder, trial_id="trial")
    shutil.copy(source, tmp_path / "kept.parquet")
    pq.write_table(pq.read_table(source).slice(1), source)
    _open_data.cache_clear()
    with pytest.raises(
        UsageError, match=rf"{first.provenance['data'][:12]} and now \w{{12}}; restore .* output folder"
    ):
        run_trial(random, folder)
    origin = Origin(sweep="s", trial_id="trial", rule="final attack")
    with pytest.raises(UsageError, match="the data had digest"):
        drain(iterate_final(random.model_copy(update={"origin": origin}), tmp_path / "trial-final"))
    shutil.copy(tmp_path / "kept.parquet", source)
    _open_data.cache_clear()
    assert run_trial(random, folder) == first
    written = json.loads((folder / "result.json").read_text())
    written["provenance"]["encoder"] = "f" * 64
    (folder / "result.json").write_text(json.dumps(written))
    with pytest.raises(UsageError, match="the encoder had digest ffffffffffff and now"):
        run_trial(random, folder)


def test_untrained_references_release_the_weights_that_they_are_named_after(
    settings: TrialSettings, tmp_path: Path
) -> None:
    work = open_workspace(settings)
    for method in ("pretrained", "random"):
        result = run_trial(with_method(settings, method), tmp_path / method)
        trunk = work.trunk(settings.encoder, method, settings.seed)  # type: ignore[arg-type]
        assert result.provenance["weights"] == params_digest(dict(trunk.named_parameters()))
        if method == "random":
            assert result.metrics[Metric.REGRET_ACCURACY] == 0


@pytest.mark.parametrize("method", ["tuned", "ac"])
def test_trained_references_move_the_trunk(settings: TrialSettings, tmp_path: Path, method: str) -> None:
    result = run_trial(with_method(settings, method), tmp_path / method)
    trunk = open_workspace(settings).trunk(settings.encoder, "pretrained", 0)
    assert result.provenance["weights"] != params_digest(dict(trunk.named_parameters()))


def test_a_disk_that_fills_up_during_training_costs_the_steps_since_the_last_checkpoint(
    settings: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Whole
) -> None:
    """The trial fails in one sentence, as a worker reports it, and goes on from what it had once there is space."""
    folder = tmp_path / "trial"
    job = Job(trial_id="trial", output_dir=str(folder), settings=settings.model_dump(mode="json"))
    write = checkpoint.write_bytes

    def fills_up(path: Path, content: bytes, *, sync: bool = False) -> None:
        if "000000008" in str(path):
            path.write_bytes(content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content, sync=sync)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_bytes", fills_up)
        failed = finish(TrialWorker(job))
    assert failed.status is Status.FAILED
    assert re.fullmatch(
        r"cannot write the checkpoint of step 8 to .*: No space left on device; free space.*", str(failed.error)
    )
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["step-000000004"]
    assert not (folder / "result.json").exists()
    ended = finish(TrialWorker(job))
    assert ended.status is Status.COMPLETE
    assert ended.provenance["weights"] == whole.result.provenance["weights"]


def finish(worker: TrialWorker) -> TrialResult:
    while (report := worker.advance(60.0)).result is None:
        pass
    return report.result


def test_floors_are_attacked_once(alone: TrialSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    work = open_workspace(alone)
    first = drain(floor_report(work, alone.encoder, alone.attack, "random", 0))

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("attacked again")

    monkeypatch.setattr("sdm_ray.trial.floors.attack_model", refuse)
    assert drain(floor_report(work, alone.encoder, alone.attack, "random", 0)).cells == first.cells
    with pytest.raises(AssertionError, match="attacked again"):
        drain(floor_report(work, alone.encoder, alone.attack, "random", 1))


def test_devices_that_are_not_there_are_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    for name in ("tpu-pod", "cuda:99"):
        with pytest.raises(UsageError, match=r"runtime\.device"):
            resolve_device(name)


@pytest.mark.parametrize("method", ["mlac", "random"])
def test_the_final_attack_is_on_the_released_model_with_fresh_seeds(
    settings: TrialSettings, tmp_path: Path, method: str, whole: Whole
) -> None:
    chosen = settings if method == "mlac" else with_method(settings, method)
    if method == "mlac":
        shutil.copytree(whole.folder, tmp_path / "t1")
    first = run_trial(chosen, tmp_path / "t1", trial_id="t1")
    origin = Origin(sweep="s", trial_id="t1", rule="final attack")
    attack = chosen.attack.model_copy(update={"seed": 99, "num_rerun_seeds": 3})
    again = chosen.model_copy(update={"attack": attack, "origin": origin})
    final = drain(iterate_final(again, tmp_path / "t1-final", trial_id="t1-final"))
    assert final.status is Status.COMPLETE
    assert final.provenance == first.provenance | {"attack": final.provenance["attack"]}
    assert final.provenance["attack"] != first.provenance["attack"], "another attack, not comparable with the trial's"
    name = str(Metric.DESIRED_ACCURACY)
    assert final.metrics[name] == first.metrics[name], "the same model"
    for cost in (Metric.COST_TRAIN_SECONDS, Metric.COST_TRAIN_TEXTS, Metric.COST_TRAIN_FLOPS):
        assert final.metrics[cost] == first.metrics[cost]
    report = AttackReport.read_json(tmp_path / "t1-final" / "attack.json")
    assert report.settings["seed"] == 99
    assert read_result(tmp_path / "t1-final") == final
    assert drain(iterate_final(again, tmp_path / "t1-final", trial_id="t1-final")) == final
    lost = again.model_copy(update={"origin": origin.model_copy(update={"trial_id": "t2"})})
    with pytest.raises(RunError, match="holds no released model"):
        drain(iterate_final(lost, tmp_path / "t2-final"))


def test_rungs_are_climbed_once_and_change_nothing(settings: TrialSettings, tmp_path: Path, whole: Whole) -> None:
    """Attacks on the way are told even after an interruption, and the model is the one without rungs."""
    rungs = [{"step": 3}, {"step": 8, "attack": {"num_rerun_seeds": 3}}]
    chosen = override(settings, {"rungs": rungs})
    generator = iterate_trial(chosen, tmp_path / "broken")
    first = next(progress for progress in generator if progress.stage == "rung")
    generator.close()
    seen: list[Progress] = []
    resumed = run_trial(chosen, tmp_path / "broken", on_progress=seen.append)
    assert resumed.provenance == whole.result.provenance
    told = [progress for progress in seen if progress.stage == "rung"]
    assert told[0] == first
    assert [(progress.done, progress.total) for progress in told] == [(3, 12), (8, 12)]
    for progress in told:
        names = {Metric.rung_desired(progress.done), Metric.rung_harmful(progress.done)}
        assert progress.metrics.keys() == names
        assert all(0 <= value <= 1 for value in progress.metrics.values())
    assert chosen.rung_attack(0).seed != settings.attack.seed
    assert chosen.rung_attack(1).num_rerun_seeds == 3


def test_rungs_that_cannot_be_are_refused(settings: TrialSettings) -> None:
    for steps in ([3, 3], [5, 4], [12]):
        with pytest.raises(UsageError, match=r"rising steps below train\.num_outer_steps \(12\)"):
            override(settings, {"rungs": [{"step": step} for step in steps]})
    with pytest.raises(UsageError, match="num_rerun_seed"):
        override(settings, {"rungs": [{"step": 3, "attack": {"num_rerun_seed": 2}}]})


def test_every_encoder_is_loaded_once(alone: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack, its floors and the families that need the public encoder share what the training loaded."""
    loaded: list[str] = []

    def counted(encoder: Any, *, initialisation: str, **options: Any) -> Any:
        loaded.append(initialisation)
        return load_trunk(encoder, initialisation=initialisation, **options)

    monkeypatch.setattr("sdm_ray.trial.workspace.load_trunk", counted)
    pretrain = Editor._masked_lm
    monkeypatch.setattr(Editor, "_masked_lm", lambda self, params, amount, seed: pretrain(self, params, 2.0, seed))
    few = {"attack.num_examples": (4,), "attack.num_search_trials": 1, "attack.num_rerun_seeds": 1}
    families = ("fine_tune", "interpolate", "masked_lm")
    run_trial(override(alone, {"attack.families": families, **few}), tmp_path / "trial")
    assert sorted(loaded) == ["pretrained", "random"]
