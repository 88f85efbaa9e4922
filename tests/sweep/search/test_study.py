"""Optuna's side: every trial is told what it was, also after a driver died."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from pathlib import Path

import numpy as np
import optuna
import pytest

from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.sweep.search.study import SearchStudy, make_sampler
from sdm_ray.sweep.state.ledger import Entry
from sdm_ray.sweep.state.state import SweepState
from tests.fakes import sweep as sweep_fakes

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_study(folder: Path, *, create: bool = True, **changes: object) -> SearchStudy:
    settings = sweep_fakes.settings(folder, **changes)
    return SearchStudy.open(settings, storage=f"sqlite:///{folder}/optuna.db", name="study", create=create)


def stored(folder: Path) -> optuna.Study:
    return optuna.load_study(storage=f"sqlite:///{folder}/optuna.db", study_name="study")


def states(folder: Path) -> list[str]:
    """Optuna's state of every trial, by number."""
    return [trial.state.name for trial in stored(folder).trials]


def test_ends_are_told_as_what_they_are(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    numbers = [study.ask()[0] for _ in range(4)]
    study.tell(numbers[0], [0.9, 0.6], violations={"desired": -0.1})
    study.tell(numbers[1], [0.95, 0.5], violations={"desired": 0.2})
    study.fail(numbers[2])
    study.tell(numbers[3], [0.8, 0.7], violations={"desired": -0.1})
    assert states(tmp_path) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    best = [trial.number for trial in stored(tmp_path).best_trials]
    assert best == [0], "trial 1 dominates all but is infeasible, trial 3 is dominated"


def test_objectives_have_names_and_trials_notes(tmp_path: Path) -> None:
    """For dashboards; the objectives of a study of before get theirs when it is opened again."""
    study = open_study(tmp_path)
    number, _ = study.ask()
    study.note(number, {"trial": "t0000"})
    study.note(number, {"trial": "t0000", "mlflow_url": "http://host/#/run"})
    study.tell(number, [0.9, 0.6], violations={})
    study.note(number, {"trial": "another"})
    names = ["desired/accuracy", "harmful/worst_accuracy"]
    assert stored(tmp_path).metric_names == names
    assert stored(tmp_path).trials[0].user_attrs == {"trial": "t0000", "mlflow_url": "http://host/#/run"}
    before = stored(tmp_path)
    before._storage.set_study_system_attr(before._study_id, "study:metric_names", None)
    assert stored(tmp_path).metric_names is None
    open_study(tmp_path, create=False)
    assert stored(tmp_path).metric_names == names


def test_telling_twice_changes_nothing(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    number, _ = study.ask()
    study.tell(number, [0.9, 0.6], violations={})
    study.tell(number, [0.1, 0.1], violations={})
    study.fail(number)
    assert stored(tmp_path).trials[0].values == [0.9, 0.6]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "qmc", "random"])
def test_a_trial_without_objectives_is_told_as_infeasible(tmp_path: Path, sampler: str) -> None:
    """Half of the trials stop early: the search goes on, and no stopped one is among the best."""
    study = open_study(tmp_path, search__sampler=sampler, search__num_startup_trials=2)
    for index in range(12):
        number, params = study.ask()
        if index % 2:
            study.tell(number, [0.9, params[sweep_fakes.WEIGHT]], violations={})
        else:
            study.stop(number, violations={"desired": 1.0})
            study.stop(number, violations={"desired": 1.0})
    assert states(tmp_path) == ["PRUNED", "COMPLETE"] * 6
    trials = stored(tmp_path).trials
    assert [bool(trial.constraints) for trial in trials] == [True, False] * 6
    assert all(trial.number % 2 for trial in stored(tmp_path).best_trials)


def test_optuna_hears_of_stopped_trials_once_feasibility_is_known(tmp_path: Path) -> None:
    from sdm_ray.sweep.tune.searcher import report_to_optuna

    study = open_study(tmp_path, search__max_desired_drop=0.02)
    state = SweepState(sweep_fakes.settings(tmp_path, search__max_desired_drop=0.02))
    number, params = study.ask()
    state.start(Entry("t0000", "search", "mlac", number, params))
    stopped = TrialResult(
        trial_id="t0000", config_hash="0", method="mlac", seed=0, status=Status.INFEASIBLE, metrics={},
        output_dir=tmp_path, error="training stopped",
    )  # fmt: skip
    state.finish(stopped)
    unreported = [stopped]
    report_to_optuna(state, study, unreported)
    assert states(tmp_path) == ["RUNNING"]
    state.start(Entry("tuned", "reference", "tuned"))
    measures = sweep_fakes.measures(state.settings.trial)
    state.finish(dataclasses.replace(stopped, trial_id="tuned", status=Status.COMPLETE, metrics=measures))
    report_to_optuna(state, study, unreported)
    assert states(tmp_path) == ["PRUNED"]
    assert unreported == []


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "qmc", "random"])
def test_a_new_driver_goes_on(tmp_path: Path, sampler: str) -> None:
    """It adopts a running trial, fails what nobody runs, and does not draw the first points again."""
    first = open_study(tmp_path, search__sampler=sampler)
    asked = [first.ask() for _ in range(3)]
    second = open_study(tmp_path, create=False, search__sampler=sampler)
    assert second.reconcile({asked[0][0]}) == 2
    second.tell(asked[0][0], [0.9, 0.6], violations={"desired": 0.5})
    assert states(tmp_path) == ["COMPLETE", "FAIL", "FAIL"]
    assert stored(tmp_path).trials[0].system_attrs, "the adopted trial carries its constraint"
    number, params = second.ask()
    assert number == 3
    assert params not in [values for _, values in asked]


def test_a_point_that_was_only_enqueued_before_a_kill_hinders_nothing(tmp_path: Path) -> None:
    first = open_study(tmp_path)
    number, _ = first.ask()
    stored(tmp_path).enqueue_trial({sweep_fakes.RATE: 1e-3})
    second = open_study(tmp_path, create=False)
    assert second.reconcile({number}) == 1
    assert states(tmp_path) == ["RUNNING", "FAIL"]
    assert second.ask()[0] == 2


def test_a_storage_that_fails_is_a_sentence_with_its_name(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        database.execute("DROP TABLE study_user_attributes")
    with pytest.raises(RunError, match=r"^Optuna's storage sqlite:///.*/optuna\.db: no such table: study_user_\w+$"):
        study.note_sweep({"a": "b"})


def test_point_is_asked_for_at_once_and_completed(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    _, params = study.ask({sweep_fakes.RATE: 1e-3})
    assert params[sweep_fakes.RATE] == 1e-3
    assert 0.1 <= params[sweep_fakes.WEIGHT] <= 4
    assert study.ask()[1][sweep_fakes.RATE] != 1e-3


def test_same_seed_same_search(tmp_path: Path) -> None:
    searches = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        study = open_study(tmp_path / name)
        searches.append([study.ask()[1] for _ in range(3)])
    assert searches[0] == searches[1]
    other = make_sampler(sweep_fakes.settings(tmp_path).search, seed=1)
    assert isinstance(other, optuna.samplers.RandomSampler)


def test_wrong_storages_are_refused(tmp_path: Path) -> None:
    settings = sweep_fakes.settings(tmp_path)
    with pytest.raises(UsageError, match="cannot be used"):
        SearchStudy.open(settings, storage="sqlite:////nowhere/optuna.db", name="study", create=True)
    open_study(tmp_path)
    with pytest.raises(UsageError, match="does not hold study 'other'"):
        SearchStudy.open(settings, storage=f"sqlite:///{tmp_path}/optuna.db", name="other", create=False)
    with pytest.raises(UsageError, match="other objectives"):
        open_study(tmp_path, create=False, objectives="[{metric: desired/loss, direction: minimize}]")


def test_journal_storage_goes_on_too(tmp_path: Path) -> None:
    settings, storage = sweep_fakes.settings(tmp_path), f"journal://{tmp_path}/optuna.log"
    first = SearchStudy.open(settings, storage=storage, name="study", create=True)
    number, _ = first.ask()
    second = SearchStudy.open(settings, storage=storage, name="study", create=False)
    assert second.pending() == {number}
    second.tell(number, [0.9, 0.5], violations={"desired": -0.1})
    third = SearchStudy.open(settings, storage=storage, name="study", create=False)
    assert third.pending() == set(), "its end is stored"
    with pytest.raises(UsageError, match="there is no folder /nowhere"):
        SearchStudy.open(settings, storage="journal:///nowhere/optuna.log", name="study", create=True)


def test_earlier_results_that_this_space_could_have_drawn_are_learnt(tmp_path: Path) -> None:
    study = open_study(tmp_path, search__sampler="tpe", search__num_startup_trials=1)
    good = {sweep_fakes.RATE: 1e-3, sweep_fakes.WEIGHT: 2.0}
    results = [
        (good, [0.9, 0.5], {"desired": 0.3}),
        (good | {sweep_fakes.WEIGHT: 99.0}, [0.9, 0.5], {}),
        ({sweep_fakes.RATE: 1e-3}, [0.9, 0.5], {}),
    ]
    assert study.learn(results) == 1
    (trial,) = stored(tmp_path).trials
    assert (trial.params, trial.values, trial.constraints) == (good, [0.9, 0.5], {"desired": 0.3})
    assert stored(tmp_path).best_trials == []
    assert study.ask()[0] == 1


def test_importances_name_what_decides_an_objective(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for index in range(24):
        number, params = study.ask()
        study.tell(number, [params[sweep_fakes.WEIGHT], params[sweep_fakes.RATE]], violations={})
        if index == 5:
            assert study.importances(["up", "down"]) == {}, "too few to say anything"
    found = study.importances(["up", "down"])
    assert found["up"][sweep_fakes.WEIGHT] > 0.7
    assert found["down"][sweep_fakes.RATE] > 0.7
    assert sum(found["up"].values()) == pytest.approx(1)


def test_two_points_alike_do_not_decide_importances(tmp_path: Path) -> None:
    """The two best of 24 share their learning rate by chance; what decides is the weight."""
    study = open_study(tmp_path)
    rates = [2e-4, 2.1e-4, *np.geomspace(1e-5, 1e-2, 22)[np.random.default_rng(0).permutation(22)].tolist()]
    results = [
        ({sweep_fakes.WEIGHT: weight, sweep_fakes.RATE: rate}, [0.5, weight], {})
        for weight, rate in zip(np.linspace(0.1, 4.0, 24).tolist(), rates, strict=True)
    ]
    assert study.learn(results) == 24
    assert study.importances(["up", "down"])["down"][sweep_fakes.WEIGHT] > 0.8
