"""The search space: what is refused before a sweep starts, and what Optuna gets to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from sdm_ray.config import SweepSettings, parse_settings
from sdm_ray.errors import UsageError
from sdm_ray.sweep.space import Space, check_sweep, ordered_references, stored_by_index
from tests import sweep_fakes


def sweep(space: dict[str, Any], **more: Any) -> SweepSettings:
    return parse_settings(SweepSettings, {"space": space, **more})


def real(low: float, high: float) -> dict[str, Any]:
    return {"type": "float", "low": low, "high": high}


def choices(*values: Any) -> dict[str, Any]:
    return {"type": "categorical", "choices": list(values)}


REFUSED = {
    "empty": ({}, {}, "space is empty"),
    "unknown path": ({"train.lerning_rate": real(0.1, 1)}, {}, "did you mean"),
    "unknown section": ({"train.learning_rate.low": real(0.1, 1)}, {}, "unknown setting 'train.learning_rate.low'"),
    "low bound": ({"train.learning_rate": real(-1, 1)}, {}, "train.learning_rate = -1.0 is not allowed"),
    "high bound": ({"train.adversary.frozen_probability": real(0, 2)}, {}, "frozen_probability = 2.0"),
    "choice": ({"train.method": choices("mlac", "magic")}, {}, "train.method = 'magic'"),
    "reals for a whole number": ({"train.adversary.num_steps": real(1, 4)}, {}, "train.adversary.num_steps = 2."),
    "endless": ({"train.learning_rate": real(0.1, float("inf"))}, {}, "finite"),
    "overlap": ({"train.adversary": choices({}), "train.adversary.num_steps": choices(2)}, {}, "search one of them"),
    "name": ({"name": choices("a", "b")}, {}, "only a name"),
    "runtime": ({"runtime.num_threads": choices(1, 2)}, {}, "does not change a result"),
    "metric": (
        {"train.learning_rate": real(0.1, 1)},
        {"objectives": [{"metric": "desired/acuracy", "direction": "maximize"}]},
        "unknown metric 'desired/acuracy'",
    ),
    "size that is not attacked": (
        {"train.learning_rate": real(0.1, 1)},
        {"objectives": [{"metric": "harmful/n7/accuracy", "direction": "minimize"}]},
        "harmful/n20/accuracy",
    ),
    "floor without tuned": (
        {"train.learning_rate": real(0.1, 1)},
        {"references": ["random"], "search": {"max_desired_drop": 0.02}},
        "add 'tuned'",
    ),
    "point outside the space": (
        {"train.learning_rate": real(0.1, 1)},
        {"search": {"points": [{"train.warmup_steps": 1}]}},
        "train.warmup_steps",
    ),
    "point outside its range": (
        {"train.learning_rate": real(0.1, 1)},
        {"search": {"points": [{"train.learning_rate": 2}]}},
        "must lie in",
    ),
    "point that is no choice": (
        {"train.method": choices("mlac")},
        {"search": {"points": [{"train.method": "ac"}]}},
        "none of the choices",
    ),
    "hidden device": (
        {"train.learning_rate": real(0.1, 1)},
        {"trial": {"runtime": {"device": "cuda"}}},
        "gpus_per_trial is 0",
    ),
}


@pytest.mark.parametrize(("space", "more", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(space: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check_sweep(sweep(space, **more))
    assert message in str(refusal.value)


def test_values_that_are_valid_only_together_are_allowed() -> None:
    """A weight of 0 is refused alone (mlac needs a term) but not beside another weight that is searched too."""
    weights = {f"train.blocking.harmful_adapted{kind}": real(0, 2) for kind in ("_calibrated", "_clamped")}
    check_sweep(sweep(weights))
    with pytest.raises(UsageError, match="needs a blocking term besides harmful_base"):
        check_sweep(sweep({"train.blocking.harmful_adapted_calibrated": real(0, 2)}))


def test_every_kind_of_value_reaches_the_settings(tmp_path: Path) -> None:
    space = Space(
        sweep(
            {
                "train.learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
                "train.adversary.num_steps": {"type": "int", "low": 1, "high": 8, "log": True},
                "train.adversary.head": choices("reset", "meta_learned"),
                "train.adversary.batch_sizes": choices([8], [8, 16]),
                "train.adversary.subset_size": choices(None, 20),
            }
        ).space
    )
    study = optuna.create_study(storage=optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/optuna.db"))
    point = {"train.adversary.batch_sizes": [8, 16], "train.adversary.subset_size": None, "train.learning_rate": 1e-3}
    study.enqueue_trial(space.encode(point))
    values = space.suggest(study.ask())
    assert {path: values[path] for path in point} == point
    assert isinstance(values["train.adversary.num_steps"], int)
    for _ in range(5):
        assert space.suggest(study.ask())["train.adversary.batch_sizes"] in ([8], [8, 16])


def test_choices_that_compare_equal_stay_apart() -> None:
    assert stored_by_index((True, 1))
    assert stored_by_index(([1], [2]))
    assert not stored_by_index((None, 1, "a", 0.5))


def test_tuned_is_the_first_reference(tmp_path: Path) -> None:
    settings = sweep_fakes.settings(tmp_path, references="[random, ac, tuned, ac]")
    assert ordered_references(settings) == ["tuned", "random", "ac"]
