"""Samplers by name and options: what is refused, what they are by default, and what an old sweep keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from sdm_ray.config import SearchSettings, SweepSettings, content_hash, parse_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.sweep.opening import open_study
from sdm_ray.sweep.search.check import check_sweep
from sdm_ray.sweep.search.makers import CLASSES, check_options
from sdm_ray.sweep.search.study import SearchStudy, make_sampler
from sdm_ray.sweep.state.ledger import FILE
from sdm_ray.sweep.state.recorder import Recorder
from tests.fakes import sweep as sweep_fakes

optuna.logging.set_verbosity(optuna.logging.WARNING)


def search(sampler: str, **options: Any) -> SearchSettings:
    return SearchSettings.model_validate({"sampler": sampler, "sampler_options": options})


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("tpe", {"multivariat": True}, r"'tpe' has no option 'multivariat', it takes .*did you mean 'multivariate'"),
        ("tpe", {"multivariate": "yes"}, r"sampler_options\.multivariate: got 'yes', should be bool or null"),
        ("tpe", {"n_ei_candidates": True}, r"n_ei_candidates: got True, should be int"),
        ("tpe", {"n_startup_trials": 3}, r"n_startup_trials is set by search\.num_startup_trials; leave it out"),
        ("tpe", {"seed": 3}, r"seed is set by seed"),
        ("tpe", {"gamma": 3}, r"has no option 'gamma'"),
        ("tpe", {"multivariate": False, "group": True}, r"'tpe' refuses \{'multivariate': False, .*group"),
        ("nsga2", {"crossover_prob": 2.0}, r"'nsga2' refuses .*crossover_prob"),
        ("nsga2", {"group": True}, r"'nsga2' has no option 'group'"),
        ("qmc", {"qmc_type": 3}, r"qmc_type: got 3, should be str"),
        ("random", {"multivariate": True}, r"has no option 'multivariate', it takes none"),
    ],
)
def test_options_that_a_sampler_does_not_take_are_refused(
    sampler: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        check_options(search(sampler, **options))
    sweep = sweep_fakes.settings(tmp_path, search__sampler=sampler, search__sampler_options=json.dumps(options))
    with pytest.raises(UsageError, match=message):
        check_sweep(sweep)


@pytest.mark.parametrize("sampler", CLASSES)
def test_options_that_it_takes_reach_it(sampler: str) -> None:
    options = {
        "tpe": {"n_ei_candidates": 3}, "nsga2": {"population_size": 7},
        "nsga3": {"population_size": 9}, "gp": {"deterministic_objective": True}, "qmc": {"qmc_type": "halton"},
        "random": {},
    }[sampler]  # fmt: skip
    check_options(search(sampler, **options))
    made = make_sampler(search(sampler, **options), seed=0)
    assert type(made).__name__ == CLASSES[sampler]
    if options:
        name, value = next(iter(options.items()))
        kept = vars(made).get(f"_{name}", vars(made).get("_deterministic"))
        assert kept == value


def points(sampler: optuna.samplers.BaseSampler) -> list[dict[str, Any]]:
    """What a sampler proposes in a conditional space with two objectives."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            x += trial.suggest_float("z", 0, 1)
        return x * y, x + y

    study.optimize(objective, n_trials=14)
    return [trial.params for trial in study.trials]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_tpe_models_settings_together_and_branches_apart() -> None:
    seed = int(np.random.SeedSequence([5, 0]).generate_state(1)[0])

    def theirs(**options: Any) -> list[dict[str, Any]]:
        return points(optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, **options))

    ours = points(make_sampler(search("tpe"), seed=5))
    assert ours == theirs(multivariate=True, group=True)
    assert ours != theirs()
    assert points(make_sampler(search("tpe", multivariate=False), seed=5)) == theirs()


def told(study: SearchStudy, count: int) -> list[dict[str, Any]]:
    """The points that a study asks for, told of what they measure."""
    asked = []
    for _ in range(count):
        number, params = study.ask()
        study.tell(number, [params[sweep_fakes.WEIGHT], params[sweep_fakes.RATE]], violations={})
        asked.append(params)
    return asked


@pytest.mark.parametrize(
    ("began", "lost"), [("now", False), ("before options were recorded", False), ("with other options", False),
                        ("before options were recorded", True)],
)  # fmt: skip
def test_a_sweep_goes_on_with_the_options_that_it_began_with(tmp_path: Path, began: str, lost: bool) -> None:
    """Though its Optuna study is lost: the ledger has them."""
    storage = {} if lost else {"storage": f"journal://{tmp_path}/optuna.log"}
    settings = sweep_fakes.settings(tmp_path, search__sampler="tpe", search__num_startup_trials=2, **storage)
    recorder = Recorder.open(settings, tmp_path)
    told(open_study(recorder, tmp_path, print), 3)
    recorder.ledger.close()
    ledger, options = tmp_path / FILE, {"multivariate": True, "group": True}
    event = json.loads(ledger.read_text())
    assert event["sampler_options"] == options
    if began.startswith("before"):
        del event["sampler_options"]
        options = {}
    elif began.startswith("with"):
        event["sampler_options"] = options = {"n_ei_candidates": 2}
    ledger.write_text(json.dumps(event) + "\n")
    if lost:
        (tmp_path / "optuna.db").unlink()
    recorder = Recorder.open(settings, tmp_path)
    sampler = vars(open_study(recorder, tmp_path, print)._study.sampler)
    recorder.ledger.close()
    assert sampler["_n_ei_candidates"] == options.get("n_ei_candidates", 24)
    assert sampler["_group"] == options.get("group", False)
    assert sampler["_multivariate"] == options.get("multivariate")


def test_options_change_nothing_about_hashes_of_sweeps_without_them() -> None:
    plain = parse_settings(SweepSettings, {"space": {"seed": {"type": "int", "low": 1, "high": 9}}})
    stepped = parse_settings(SweepSettings, {"space": {"seed": {"type": "int", "low": 1, "high": 9, "step": 2}}})
    assert "sampler_options" not in plain.identity()["search"]
    assert "step" not in plain.identity()["space"]["seed"]
    assert content_hash(stepped) != content_hash(plain)
