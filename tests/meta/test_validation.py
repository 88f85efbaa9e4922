"""Validation holds examples out, measures the desired task on them, and stops a training that loses it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.config import TrainSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.types import Split, Task
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.outer.trajectory import evaluated_steps_of
from sdm_ray.meta.trainer import Trainer, TrainOutcome
from sdm_ray.meta.validation import Validation, split_meta_train
from tests.fakes.meta import FakeData, MlpTrunk, drive, train_settings

ACCURACY, LOSS = "validation/desired_accuracy", "validation/desired_loss"
ADVERSARY = {"num_steps": 2, "pool": {"size": 2, "lifespan_steps": 4, "subset_size": 20}}


def world() -> Any:
    return FakeData()


def settings(every_steps: int = 3, *, method: str = "tuned", **values: Any) -> TrainSettings:
    validation = {"every_steps": every_steps, **values.pop("validation", {})}
    return train_settings(method=method, validation=validation, **values)


def trainer(chosen: TrainSettings, folder: Path | None = None, data: Any = None) -> Trainer:
    return Trainer(chosen, trunk=MlpTrunk(), data=data or world(), seed=0, checkpoint_dir=folder)


def finish(chosen: TrainSettings, folder: Path | None = None) -> TrainOutcome:
    outcome, _ = drive(trainer(chosen, folder))
    assert outcome is not None
    return outcome


def flat(outcome: TrainOutcome) -> Tensor:
    return torch.cat([value.reshape(-1) for value in outcome.params.values()])


def test_the_split_is_a_partition_that_no_seed_moves() -> None:
    data = world()
    rest, held = split_meta_train(data, settings(validation={"fraction": 0.25}))
    assert len(held) == 30
    assert torch.equal(torch.cat([rest, held]).sort().values, data.indices(Split.META_TRAIN))
    assert torch.equal(rest, rest.sort().values)
    again = split_meta_train(world(), settings(method="mlac", validation={"fraction": 0.25}, learning_rate=0.1))
    assert torch.equal(again[1], held)
    assert not torch.equal(held, held[0] + torch.arange(30)), "spread over the data, which may be sorted"


def test_without_validation_everything_is_trained_on() -> None:
    rest, held = split_meta_train(world(), train_settings(method="tuned"))
    assert torch.equal(rest, world().indices(Split.META_TRAIN))
    assert len(held) == 0
    assert not any(name.startswith("validation/") for row in finish(train_settings(method="tuned")).log for name in row)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"fraction": 1.0}, r"train\.validation\.fraction is 1, which holds out 120 of 120"),
        ({"fraction": 0.001}, r"train\.validation\.fraction is 0\.001, which holds out 0 of 120"),
        ({"every_steps": 0, "min_desired_accuracy": 0.5}, r"set train\.validation\.every_steps above 0"),
    ],
)
def test_a_validation_that_cannot_work_is_refused(validation: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trainer(settings(validation=validation))


@pytest.mark.parametrize("method", ["pretrained", "tuned", "ac", "mlac"])
def test_what_is_held_out_is_never_trained_on(method: str) -> None:
    data = world()
    extra: dict[str, Any] = {"adversary": ADVERSARY} if method == "mlac" else {}
    chosen = settings(2, method=method, validation={"fraction": 0.5}, **extra)
    work = trainer(chosen, data=data)
    _, held = split_meta_train(data, chosen)
    work._validation.measure = lambda *args: {ACCURACY: 1.0, LOSS: 0.0}  # type: ignore[method-assign]
    outcome, _ = drive(work)
    assert outcome is not None
    used = {int(index) for indices, _ in data.batches for index in indices.flatten()}
    assert used
    assert not used & set(held.tolist())


def test_it_measures_accuracy_and_loss_on_all_that_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks that do not divide it, against one batch."""
    monkeypatch.setattr("sdm_ray.meta.validation.BATCH_SIZE", 7)
    data, model = world(), FlatModel(MlpTrunk())
    chosen = settings(validation={"fraction": 0.25})
    _, held = split_meta_train(data, chosen)
    head = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Validation(data, held, chosen).measure(model, model.initial(), head)
    batch = data.batch(held, Task.DESIRED)
    scores = model.logits(model.initial(), head, batch)
    assert found[ACCURACY] == pytest.approx(float((scores.argmax(-1) == batch.labels).double().mean()))
    assert found[LOSS] == pytest.approx(float(F.cross_entropy(scores, batch.labels)))


def test_rows_appear_at_their_steps_and_join_those_of_the_log() -> None:
    """Every 3 steps beside rows of every 4, and the last step's."""
    chosen = settings(3)
    outcome, progress = drive(trainer(chosen))
    assert outcome is not None
    assert [row["train/step"] for row in outcome.log] == [3, 4, 6, 8, 9, 12]
    assert [ACCURACY in row for row in outcome.log] == [True, False, True, False, True, True]
    assert ["train/desired_loss" in row for row in outcome.log] == [False, True, False, True, False, True]
    assert [p.done for p in progress] == [3, 4, 6, 8, 9, 12]
    assert ACCURACY in progress[0].metrics


def test_validation_moves_nothing_but_what_is_trained_on() -> None:
    """Measuring more often ends with the same model."""
    often, seldom = finish(settings(1)), finish(settings(6))
    assert torch.equal(flat(often), flat(seldom))
    assert [row[LOSS] for row in often.log if row["train/step"] == 12] == [seldom.log[-1][LOSS]]
    assert not torch.equal(flat(often), flat(finish(train_settings(method="tuned"))))


def test_the_desired_task_is_learned_on_what_is_held_out() -> None:
    chosen = settings(
        40, num_outer_steps=160, log_every_steps=40, learning_rate=5e-3, head_learning_rate=5e-2, method="tuned",
        validation={"min_desired_accuracy": 0.9, "patience": 3},
    )  # fmt: skip
    outcome = finish(chosen)
    assert outcome.stopped is None
    assert outcome.log[-1][ACCURACY] > 0.9


@pytest.mark.parametrize(
    ("accuracies", "patience", "stops_after"),
    [([0.1], 0, 1), ([0.1] * 3, 2, 3), ([0.1, 0.9, 0.1, 0.1], 1, 4), ([0.1, 0.9, 0.1, 0.5], 1, None)],
)
def test_patience_counts_misses_in_a_row(accuracies: list[float], patience: int, stops_after: int | None) -> None:
    chosen = settings(validation={"min_desired_accuracy": 0.5, "patience": patience})
    validation = Validation(world(), torch.arange(9), chosen)
    sentences = [validation.judge(3 * (index + 1), accuracy) for index, accuracy in enumerate(accuracies)]
    first = next((index + 1 for index, sentence in enumerate(sentences) if sentence), None)
    assert first == stops_after


BOUND = {"min_desired_accuracy": 1.0, "patience": 1, "fraction": 0.5}


def test_a_training_below_the_bound_stops_and_says_why(tmp_path: Path) -> None:
    outcome, progress = drive(trainer(settings(3, validation=BOUND), tmp_path))
    assert outcome is not None
    assert outcome.stopped is not None
    accuracy = outcome.log[-1][ACCURACY]
    assert outcome.stopped == (
        f"training stopped at outer step 6: the desired accuracy on held-out examples is {accuracy:.4f}, below "
        "train.validation.min_desired_accuracy 1 in 2 validations in a row"
    )
    assert [row["train/step"] for row in outcome.log] == [3, 4, 6]
    assert "train/desired_loss" in outcome.log[-1], "the open interval is closed"
    assert progress[-1].done == 6
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000006"]
    again, more = drive(trainer(settings(3, validation=BOUND), tmp_path))
    assert again is not None
    assert more == [], "it stays stopped"
    assert (again.stopped, again.log) == (outcome.stopped, outcome.log)
    assert torch.equal(flat(again), flat(outcome))


@pytest.mark.parametrize("method", ["pretrained", "random"])
def test_references_whose_encoder_stands_still_are_not_stopped(method: str) -> None:
    outcome = finish(settings(3, method=method, validation={**BOUND, "patience": 0}))
    assert outcome.stopped is None
    assert outcome.log[-1]["train/step"] == 12


@pytest.mark.parametrize("stop_at", [3, 5, 6, 8])
def test_patience_and_trajectory_survive_an_interruption(tmp_path: Path, stop_at: int) -> None:
    chosen = settings(
        2, method="mlac", adversary=ADVERSARY, log_every_steps=1, checkpoint_every_steps=1,
        validation={**BOUND, "patience": 3},
    )  # fmt: skip
    straight = finish(chosen)
    assert drive(trainer(chosen, tmp_path), stop_at=stop_at)[0] is None or stop_at == 8
    resumed = finish(chosen, tmp_path)
    assert straight.stopped is not None
    assert "at outer step 8" in straight.stopped
    assert (resumed.stopped, resumed.log) == (straight.stopped, straight.log)
    assert resumed.trajectory_start == straight.trajectory_start
    assert resumed.trajectory_end == straight.trajectory_end


def test_a_trajectory_is_measured_before_the_first_step_and_after_the_last() -> None:
    work = trainer(settings(method="mlac", adversary=ADVERSARY))
    before = work._step.probe()
    outcome, _ = drive(work)
    assert outcome is not None
    assert before is not None
    assert outcome.trajectory_start == before
    assert outcome.trajectory_end == work._step.probe()
    assert list(before) == list(outcome.trajectory_end or {}) == [0, 1, 2]
    tuned = finish(settings(method="tuned"))
    assert (tuned.trajectory_start, tuned.trajectory_end) == (None, None)


@pytest.mark.parametrize(
    ("num_steps", "moments"), [(0, (0,)), (1, (0, 1)), (16, tuple(range(17))), (50, (*range(0, 50, 4), 50))]
)
def test_long_trajectories_are_watched_at_evenly_spaced_steps(num_steps: int, moments: tuple[int, ...]) -> None:
    assert evaluated_steps_of(num_steps) == moments


def test_a_trajectory_is_the_same_wherever_else_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    work = trainer(settings(method="mlac", adversary={"num_steps": 50}))
    spaced = work._step.probe()
    monkeypatch.setattr("sdm_ray.meta.outer.trajectory.MOST_INTERVALS", 50)
    every = work._step.probe()
    assert spaced is not None
    assert every is not None
    assert (tuple(spaced), tuple(every)) == ((*range(0, 50, 4), 50), tuple(range(51)))
    assert spaced == {step: every[step] for step in spaced}


def test_what_a_machine_takes_is_in_the_progress_and_not_in_the_log() -> None:
    outcome, progress = drive(trainer(train_settings(method="tuned")))
    assert outcome is not None
    costs = {"train/steps_per_second", "train/seconds_left", "cost/memory_bytes"}
    assert all(p.metrics.keys() - row.keys() == costs for p, row in zip(progress, outcome.log, strict=True))
    assert not costs & set(outcome.log[0])
    first, last = progress[0].metrics, progress[-1].metrics
    assert first["train/seconds_left"] == pytest.approx(8 / first["train/steps_per_second"])
    assert last["train/seconds_left"] == 0
    assert 2**24 < last["cost/memory_bytes"] < 2**40


def test_weights_that_are_not_finite_are_never_a_checkpoint(tmp_path: Path) -> None:
    """The metrics of a step are those of the weights before it, so they may still look well."""
    work = trainer(train_settings(method="tuned", checkpoint_every_steps=2), tmp_path)
    plain, calls = work._step.step, iter(range(100))

    def poisoned() -> Tensor:
        values = plain()
        if next(calls) == 3:
            with torch.no_grad():
                work._step.desired_head[0, 0] = math.nan
        return values

    work._step.step = poisoned  # type: ignore[method-assign]
    with pytest.raises(RunError, match="training diverged at outer step 4: weights are not finite"):
        drive(work)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]


def test_a_held_out_loss_that_is_not_finite_is_a_divergence() -> None:
    work = trainer(settings(3))
    work._validation.measure = lambda *args: {ACCURACY: 0.5, LOSS: math.inf}  # type: ignore[method-assign]
    with pytest.raises(RunError, match="diverged at outer step 3: validation/desired_loss is inf"):
        drive(work)


def test_a_divergence_names_its_adversary_after_a_resume_too(tmp_path: Path) -> None:
    """The interval began before the interruption, with draws that the checkpoint holds."""
    chosen = settings(
        0, method="mlac", adversary=ADVERSARY, log_every_steps=12, checkpoint_every_steps=5, learning_rate=1e-3
    )
    first = trainer(chosen, tmp_path)
    original, calls = first._step.step, iter(range(100))

    def killed() -> Tensor:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return original()

    first._step.step = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        drive(first)
    resumed = trainer(chosen, tmp_path)
    work = resumed.iterate()
    resumed._resume()
    assert resumed._log._draws == first._log._draws[:5]
    assert all(resumed._log._draws)
    resumed._log._buffer[2, 0] = math.nan
    with pytest.raises(RunError) as caught:
        resumed._log.check()
    assert f"at outer step 3: desired_loss is nan, met with {first._log._draws[2]}" in str(caught.value)
    work.close()
