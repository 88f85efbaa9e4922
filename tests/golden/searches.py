"""What a search proposes and how a sweep judges, without Ray; frontiers and what is selected of them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from sdm_ray.config import SweepSettings, TrialSettings, content_hash, override, parse_settings
from sdm_ray.core.metric_names import Metric
from sdm_ray.core.result import Status, TrialResult
from sdm_ray.frontier.details import Extras
from sdm_ray.frontier.points import Point, compare, hypervolume, near_front, pareto_front
from sdm_ray.frontier.select import select
from sdm_ray.frontier.tables import read_tables, write_tables
from sdm_ray.sweep.cluster.worker import Job
from sdm_ray.sweep.search.study import SearchStudy, open_storage
from sdm_ray.sweep.state.recorder import Recorder
from sdm_ray.sweep.tune.jobs import JOB, JobMaker
from sdm_ray.sweep.tune.searcher import SweepSearcher
from tests.fakes import sweep as sweep_fakes
from tests.golden import pins

SAMPLERS = ("tpe", "nsga2", "nsga3", "qmc", "random")
SPACE: dict[str, Any] = {
    sweep_fakes.RATE: {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    sweep_fakes.WEIGHT: {"type": "float", "low": 0.1, "high": 4.0},
    "train.adversary.num_steps": {"type": "int", "low": 1, "high": 8},
    "train.adversary.optimizers": {"type": "categorical", "choices": [["adam"], ["sgd", "adam"]]},
    "train.gradient_mode": {"type": "categorical", "choices": ["adjoint", "truncated"]},
    "train.truncation_steps": {"type": "int", "low": 1, "high": 4, "when": {"train.gradient_mode": "truncated"}},
}
POINTS = [{sweep_fakes.RATE: 1e-3, sweep_fakes.WEIGHT: 3.0}, {sweep_fakes.WEIGHT: 1.0}]
SWEEPS: dict[str, dict[str, Any]] = {
    "plain": {"search": {"num_trials": 6, "sampler": "tpe", "num_startup_trials": 3}},
    "constrained": {
        "search": {
            "num_trials": 8, "sampler": "tpe", "num_startup_trials": 3, "max_desired_drop": 0.06, "points": POINTS,
        },
    },
    "seeds-and-final": {
        "search": {"num_trials": 4, "sampler": "nsga2", "num_seeds": 2},
        "references": ["tuned", "random"],
        "final": {"num_points": 2},
    },
    "variants": {
        "search": {"num_trials": 0, "num_seeds": 2},
        "space": {},
        "references": ["tuned"],
        "variants": {"weak": {sweep_fakes.WEIGHT: 0.5}, "strong": {sweep_fakes.WEIGHT: 3.0}},
    },
}  # fmt: skip


def sweep(folder: Path, **changes: Any) -> SweepSettings:
    """A small sweep over real, whole-number, categorical and conditional settings."""
    document = {"name": "golden", "output_dir": str(folder), "space": SPACE, "tracking": {"enabled": False}}
    return parse_settings(SweepSettings, {**document, **changes})


def proposals(sampler: str, folder: Path, counts: tuple[int, int] = (9, 3)) -> dict[str, Any]:
    """The points of a sampler, told of analytic results, failures and infeasible trials; then those after a restart."""
    settings = sweep(folder, search={"sampler": sampler, "num_trials": sum(counts), "num_startup_trials": 4}, seed=3)
    storage = storage_in(fresh(folder, f"study-{sampler}"))
    points = []
    for restart, count in enumerate(counts):
        study = SearchStudy.open(settings, storage=storage, name="study", create=not restart)
        for index in range(count):
            number, params = study.ask(POINTS[0] if (restart, index) == (0, 0) else None)
            points.append(params)
            answer(study, number, params)
    return {"points": points, "states": states(storage), "importances": study.importances(["desired", "harmful"])}


def states(storage: str) -> list[str]:
    """Optuna's state of every trial, by number."""
    return [trial.state.name for trial in optuna.load_study(study_name="study", storage=open_storage(storage)).trials]


def answer(study: SearchStudy, number: int, params: dict[str, Any]) -> None:
    """Tell a study how a trial ended: every fifth failed, every seventh was stopped."""
    if number % 5 == 3:
        study.fail(number)
    elif number % 7 == 5:
        study.stop(number, violations={"desired": 1.0})
    else:
        weight, steps = params[sweep_fakes.WEIGHT], params["train.adversary.num_steps"]
        values = [0.96 - 0.03 * weight - 0.001 * steps, 0.8 - 0.06 * weight]
        study.tell(number, values, violations={"desired": 0.9 - values[0]})


def driven(changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A whole sweep with analytic trials, through the objects that Ray Tune would drive."""
    home = fresh(folder, f"sweep-{len(list(folder.glob('sweep-*')))}")
    settings = sweep(home, **changes)
    recorder = Recorder.open(settings, home, concurrency=2)
    state = recorder.state
    study = SearchStudy.open(settings, storage=storage_in(home), name="study", create=True)
    said: list[str] = []
    searcher = SweepSearcher(
        recorder,
        study,
        JobMaker(
            settings=settings,
            folder=home,
            trial_function="tests.fakes.sweep:smooth",
            final_function="tests.fakes.sweep:final",
        ),
        on_result=lambda result: None,
        unreported=[],
        stop=said.append,
        announce=said.append,
    )
    jobs = list(handed_out(searcher))
    assert searcher.error is None, searcher.error
    return {
        "jobs": jobs,
        "said": said,
        "results": [[result.trial_id, str(result.status), result.metrics] for result in state.results()],
        "points": [in_short(point) for point in state.judgement.points()],
        "front": [point.trial_id for point in state.judgement.front()],
        "infeasible": state.judgement.infeasible(),
        "floor": state.judgement.desired_floor,
        "states": states(storage_in(home)),
    }


def handed_out(searcher: SweepSearcher) -> Any:
    """Trials in the order in which a sweep hands them out, each ended before the next one."""
    for index in range(100):
        config = searcher.suggest(f"tune-{index}")
        if not isinstance(config, dict):
            assert config == searcher.FINISHED, config
            return
        job = Job.from_json(config[JOB])
        trial = override(parse_settings(TrialSettings, job.settings), job.params)
        seed, source = trial.seed, job.source
        digest = pins.PREFIX + content_hash(trial)  # of sampled numbers, whose last bit depends on the processor
        yield [job.trial_id, digest, trial.attack.seed, seed, source, job.trial_function, job.params]
        result = TrialResult(
            trial_id=job.trial_id,
            config_hash=content_hash(trial),
            method=trial.train.method,
            seed=seed,
            status=Status.COMPLETE,
            metrics=sweep_fakes.measures(trial) | {str(Metric.AUDIT_PASSED): 1.0},
            output_dir=Path(job.output_dir),
        )
        result.metrics[str(Metric.HARMFUL_WORST_ACCURACY)] += 0.01 * seed
        searcher.on_trial_complete(f"tune-{index}", {"result": json.dumps(result.to_dict())})


def in_short(point: Point) -> list[Any]:
    """A point of a sweep."""
    return [
        point.trial_id,
        point.method,
        point.desired,
        point.harmful,
        point.feasible,
        point.is_reference,
        point.superseded,
    ]


def frontier(folder: Path) -> dict[str, Any]:
    """Front, neighbours, hypervolume, selection and tables of a fixed cloud of points."""
    points, others = cloud(40, seed=0), cloud(25, seed=1)
    home = fresh(folder, "tables")
    extras = Extras(importances={"desired": {"train.learning_rate": 0.7, "seed": 0.3}})
    table, document = write_tables(points, home, extras=extras)
    assert table.exists()
    assert [in_short(point) for point in read_tables(home)][5:] == [in_short(point) for point in points][5:]
    chosen = {
        "constrained": select(points, rule="constrained", min_desired=0.7),
        "unbounded": select(points),
        "knee": select(points, rule="knee"),
        "weighted": select(points, rule="weighted", desired_weight=0.7),
        "trial": select(points, rule="trial", trial_id="p07"),
    }
    return {
        "front": [point.trial_id for point in pareto_front(points)],
        "near": [point.trial_id for point in near_front(points)],
        "hypervolume": hypervolume(points),
        "reference": hypervolume(points, (0.5, 0.9)),
        "compare": list(compare(points, others)),
        "chosen": {name: point.trial_id for name, point in chosen.items()},
        "document": pins.of_values(json.loads(document.read_text(encoding="utf-8"))),
        "three": [point.trial_id for point in pareto_front([with_cost(point) for point in points])],
    }


def cloud(count: int, seed: int) -> list[Point]:
    """Random points, some of them infeasible, references, superseded, unmeasured or with intervals."""
    source = random.Random(seed)
    points = []
    for index in range(count):
        desired, harmful = round(source.random(), 3), round(source.random(), 3)
        points.append(
            Point(
                trial_id=f"p{index:02d}",
                method="mlac",
                desired=math.nan if index == 4 else desired,
                harmful=harmful,
                feasible=index % 9 != 0,
                is_reference=index % 11 == 2,
                superseded=index % 13 == 6,
                params={"train.learning_rate": 10.0**-index},
                metrics={"desired/accuracy": desired},
                harmful_interval=(harmful - 0.2, harmful + 0.2) if index % 2 else None,
            )
        )
    return points


def with_cost(point: Point) -> Point:
    """A point with a third objective."""
    return replace(point, further={"cost": (point.desired * 7) % 1 if point.desired == point.desired else 0.5})


def storage_in(folder: Path) -> str:
    """A storage that is faster than sqlite."""
    return f"journal://{folder}/optuna.log"


def fresh(folder: Path, name: str) -> Path:
    """A new folder."""
    path = folder / name
    path.mkdir(parents=True)
    return path


optuna.logging.set_verbosity(optuna.logging.WARNING)
CASES: dict[str, Callable[[Path], Any]] = {
    **{f"sampler/{name}": partial(proposals, name) for name in SAMPLERS},
    **{f"sweep/{name}": partial(driven, changes) for name, changes in SWEEPS.items()},
    "frontier": frontier,
}
GAUSSIAN: dict[str, Callable[[Path], Any]] = {"sampler/gp": partial(proposals, "gp", counts=(5, 2))}
