"""The search space: what is refused before a sweep starts, and what Optuna gets to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from sdm_ray.config import SweepSettings, TrialSettings, load_settings, override, parse_settings
from sdm_ray.core.errors import UsageError
from sdm_ray.sweep.search.check import check_sweep
from sdm_ray.sweep.search.models import (
    KNOWN_POINTS,
    distillations,
    erasures,
    first_points,
    ordered_references,
    reference_settings,
    terms,
)
from sdm_ray.sweep.search.space import Space, stored_by_index
from tests.fakes import sweep as sweep_fakes


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
    "metric twice": (
        {"train.learning_rate": real(0.1, 1)},
        {"objectives": [{"metric": "desired/accuracy", "direction": way} for way in ("maximize", "minimize")]},
        "metric 'desired/accuracy' stands there 2 times; drop all but one",
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
    "condition on what is not searched": (
        {"train.learning_rate": real(0.1, 1) | {"when": {"train.method": "mlac"}}},
        {},
        "depends on train.method, which the space does not search",
    ),
    "condition on a real number": (
        {
            "train.learning_rate": real(0.1, 1),
            "train.head_learning_rate": real(0.1, 1) | {"when": {"train.learning_rate": 1}},
        },
        {},
        "a real number",
    ),
    "condition that never holds": (
        {"train.method": choices("mlac"), "train.learning_rate": real(0.1, 1) | {"when": {"train.method": "ac"}}},
        {},
        "which it never is",
    ),
    "conditions in a circle": (
        {
            "train.method": choices("mlac") | {"when": {"train.adversary.num_steps": 1}},
            "train.adversary.num_steps": {"type": "int", "low": 1, "high": 2, "when": {"train.method": "mlac"}},
        },
        {},
        "in a circle",
    ),
    "value that is invalid where it is searched": (
        {
            "train.adversary.pool.size": choices(0, 4),
            "train.adversary.pool.frozen_probability": real(0, 2) | {"when": {"train.adversary.pool.size": 4}},
        },
        {},
        "frozen_probability = 2.0 is not allowed",
    ),
    "published point outside the range": (
        {"train.learning_rate": real(0.1, 1)},
        {"search": {"known_points": ["paper"]}},
        "train.learning_rate = 1e-05 must lie in",
    ),
    "published point of nothing that is searched": (
        {"train.head_learning_rate": real(0.1, 1)},
        {"search": {"known_points": ["paper"]}},
        "searches nothing of 'paper'",
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


def test_what_adversaries_start_from_is_searched() -> None:
    shares = [[0.1], [0.3, 0.5]]
    check_sweep(
        sweep(
            {
                "train.adversary.starts.pruned": real(0, 2),
                "train.adversary.starts.pruned_shares": {"type": "categorical", "choices": shares},
                "train.adversary.starts.benign_first": real(0, 2),
                "train.adversary.starts.benign_first_steps": {"type": "categorical", "choices": [[10], [50, 200]]},
                "train.adversary.head_kinds": {"type": "categorical", "choices": [["pooled"], ["attention", "max"]]},
            }
        )
    )
    with pytest.raises(UsageError, match="starts"):
        check_sweep(sweep({"train.adversary.starts.pruned": real(-1, 2)}))


def test_published_terms_and_their_settings_are_searched() -> None:
    check_sweep(
        sweep(
            {
                "train.blocking.harmful_reduction": real(0, 20),
                "train.terms.harmful_reduction_step": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
                "train.terms.representation_noise_layers": {"type": "categorical", "choices": [[], [1, 2]]},
            }
        )
    )
    with pytest.raises(UsageError, match="collapse_step"):
        check_sweep(sweep({"train.terms.collapse_step": real(0, 1)}))


def test_terms_of_variants_and_of_the_search_are_known_beforehand() -> None:
    """So that a class or a layer that is not there is refused before the first trial."""
    settings = sweep(
        {
            "train.blocking.collapse": real(0, 2),
            "train.terms.collapse_class": {"type": "int", "low": 0, "high": 9},
        },
        variants={"noise": {"train.terms.representation_noise_layers": [7], "train.blocking.representation_noise": 1}},
        references=[],
    )
    found = terms(settings)
    own = set(settings.trial.train.blocking.weights())
    assert found[0][0] == own | {"representation_noise"}
    assert found[0][1].representation_noise_layers == (7,)
    assert [(names, one.collapse_class) for names, one in found[1:]] == [(own | {"collapse"}, n) for n in (0, 0, 9)]


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


def test_variants_follow_the_references_with_their_own_settings(tmp_path: Path) -> None:
    variants = {
        "k-four": {"train.adversary.num_steps": 4, "train.blocking": {"harmful_adapted": 2}},
        "plain": {"train.method": "tuned", "train.blocking": {}},
    }
    settings = sweep_fakes.settings(tmp_path, references="[random, tuned]", variants=variants)
    check_sweep(settings)
    assert ordered_references(settings) == ["tuned", "random", "k-four", "plain"]
    four = reference_settings(settings, "k-four").train
    assert (four.method, four.adversary.num_steps, four.blocking.weights()) == ("mlac", 4, {"harmful_adapted": 2.0})
    assert reference_settings(settings, "plain").train.method == "tuned"


def test_erasure_is_a_reference_and_is_searched(tmp_path: Path) -> None:
    settings = sweep_fakes.settings(
        tmp_path,
        references="[tuned, erase]",
        variants={"ten": {"train.method": "erase", "train.blocking": {}, "train.erase.num_directions": 10}},
        space={
            "train.erase.num_directions": {"type": "int", "low": 0, "high": 16},
            "train.erase.estimator": choices("means", "leace"),
        },
    )
    check_sweep(settings)
    own = reference_settings(settings, "erase").train
    assert (own.method, own.erase.num_directions, own.blocking.weights()) == ("erase", 6, {})
    assert reference_settings(settings, "tuned").train.erase.num_directions == 0
    wanted = [(one.num_directions, one.estimator) for one in erasures(settings)]
    assert wanted == [
        (0, "means"),
        (6, "means"),
        (10, "means"),
        (0, "means"),
        (16, "means"),
        (1, "means"),
        (1, "leace"),
    ]
    refused = {"train.erase.num_directions": {"type": "int", "low": -1, "high": 16}}
    with pytest.raises(UsageError, match=r"train\.erase\.num_directions = -1"):
        check_sweep(sweep_fakes.settings(tmp_path, space=refused))


def test_distillation_is_a_reference_and_is_searched(tmp_path: Path) -> None:
    alpha, by_depth = "train.distil.alpha", "train.distil.alpha_by_depth.upper"
    erasing = {"train.method": "erase", "train.blocking": {}, "train.erase.num_directions": 6}
    settings = sweep_fakes.settings(
        tmp_path,
        references="[tuned, distil, distilled_scratch]",
        variants={"last": erasing | {"train.distil.num_steps": 5}},
        space={
            "train.distil.num_steps": {"type": "int", "low": 0, "high": 900},
            alpha: {"type": "float", "low": 0.0, "high": 1.0},
            by_depth: {"type": "float", "low": 0.0, "high": 1.0},
            "train.distil.scrub": choices("none", "all"),
            "train.distil.general.source": choices("pretraining", "texts.csv"),
        },
    )
    check_sweep(settings)
    trains = {name: reference_settings(settings, name).train for name in ordered_references(settings)}
    assert {name: (one.distil.num_steps, *one.distil.alphas()) for name, one in trains.items()} == {
        "tuned": (0, 0.5, 0.5, 0.5),
        "distil": (600, 0.5, 0.5, 0.5),
        "distilled_scratch": (600, 1.0, 1.0, 1.0),
        "last": (5, 0.5, 0.5, 0.5),
    }
    found = [(one.num_steps, one.general.source) for one in distillations(settings)]
    assert found == [(0, None), (600, None), (600, None), (5, None), (0, None), (900, None),
                     (1, "pretraining"), (1, "texts.csv")]  # fmt: skip
    refused = {alpha: {"type": "float", "low": 0.0, "high": 1.5}}
    with pytest.raises(UsageError, match=r"train\.distil\.alpha = 1\.5"):
        check_sweep(sweep_fakes.settings(tmp_path, space=refused))


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ("{k: {train.adversary.nmu_steps: 4}}", "variants.k: unknown setting"),
        ("{k: {attack.num_rerun_seeds: 4}}", "variants.k: attack.num_rerun_seeds cannot be changed"),
        ("{k: {seed: 4}}", "variants.k: seed cannot be changed"),
        ("{k: {train.method: ac}}", "variants.k: .*'ac' uses blocking.harmful_base alone"),
    ],
)
def test_a_variant_that_means_nothing_is_refused(tmp_path: Path, variants: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_sweep(sweep_fakes.settings(tmp_path, trial__train__blocking="{harmful_adapted: 1}", variants=variants))


@pytest.mark.parametrize("name", ["tuned", "t0001", "T", "a_b", "a-s1", "a-final", "tuned-s1", "a/b", "1a", ""])
def test_a_variant_cannot_take_the_name_of_a_trial(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a variant"):
        sweep_fakes.settings(tmp_path, variants=f"{{'{name}': {{train.adversary.num_steps: 4}}}}")


def test_a_sweep_without_points_needs_references_or_variants_and_no_space(tmp_path: Path) -> None:
    check_sweep(sweep_fakes.settings(tmp_path, search__num_trials=0, space="{}"))
    with pytest.raises(UsageError, match="there is nothing to run"):
        check_sweep(sweep_fakes.settings(tmp_path, search__num_trials=0, space="{}", references="[]"))


def test_a_conditional_setting_is_searched_only_beside_the_values_that_it_names() -> None:
    steps, size, life = (f"train.adversary.{name}" for name in ("num_steps", "pool.size", "pool.lifespan_steps"))
    settings = sweep(
        {
            # Before its parent in the file, and with a parent that is conditional itself.
            life: {"type": "int", "low": 50, "high": 90, "when": {size: [2, 4]}},
            size: choices(1, 2, 4) | {"when": {steps: 0}},
            steps: choices(0, 8),
        }
    )
    check_sweep(settings)
    space, study = Space(settings.space), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(40):
        values = space.suggest(study.ask())
        assert (size in values) == (values[steps] == 0)
        assert (life in values) == (values.get(size) in (2, 4))
        seen.add(tuple(values))
    assert seen == {(steps,), (size, steps), (life, size, steps)}
    assert space.active({life: 60, size: 1, steps: 0}) == {size: 1, steps: 0}


def test_published_points_follow_those_of_the_file_and_set_what_is_searched() -> None:
    settings = sweep(
        {"train.learning_rate": real(1e-6, 1), "train.adversary.batch_sizes": choices([8, 16, 24], [12, 24, 48])},
        search={"points": [{"train.learning_rate": 0.5}], "known_points": ["paper", "paper_variant"]},
    )
    check_sweep(settings)
    assert first_points(settings) == [
        {"train.learning_rate": 0.5},
        {"train.learning_rate": 1e-5, "train.adversary.batch_sizes": [8, 16, 24]},
        {"train.learning_rate": 1e-4, "train.adversary.batch_sizes": [12, 24, 48]},
    ]


def test_published_points_are_valid_settings() -> None:
    for point in KNOWN_POINTS.values():
        override(TrialSettings(), point)


@pytest.mark.parametrize("path", sorted(Path("sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_could_start(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    if "space" in document:
        check_sweep(load_settings(SweepSettings, path))


def test_what_trials_report_can_be_optimised() -> None:
    """Benign tasks by their names in the data, and everything at an n that is attacked."""
    attack = {"num_examples": [20], "benign_num_examples": [50]}
    names = ("benign/origin/n50/accuracy", "kept/benign/origin", "utility/n20/desired_accuracy", "cost/train_flops")
    for name in names:
        objectives = [{"metric": name, "direction": "maximize"}]
        check_sweep(sweep({"train.learning_rate": real(0.1, 1)}, trial={"attack": attack}, objectives=objectives))
    unknown = [{"metric": "benign/origin/n20/accuracy", "direction": "maximize"}]
    refused = sweep({"train.learning_rate": real(0.1, 1)}, trial={"attack": attack}, objectives=unknown)
    with pytest.raises(UsageError, match=r"did you mean 'benign/origin/n50/accuracy'"):
        check_sweep(refused)


def test_steps_are_kept() -> None:
    """In what is sampled, in what Optuna stores, and in points that are given."""
    ranges = {
        "train.adversary.frozen_probability": real(0.1, 0.7) | {"step": 0.2},
        "train.adversary.num_steps": {"type": "int", "low": 2, "high": 10, "step": 4},
        "train.num_outer_steps": real(10, 30) | {"step": 10},
    }
    settings = sweep(ranges)
    check_sweep(settings)
    space = Space(settings.space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sampled = [space.suggest(study.ask()) for _ in range(40)]
    grids = ([0.1, 0.3, 0.5, 0.7], [2, 6, 10], [10, 20, 30])
    for path, grid in zip(ranges, grids, strict=True):
        assert sorted({round(values[path], 9) for values in sampled}) == grid
    assert [distribution.step for distribution in space.stored().values()] == [0.2, 4, 10]
    assert space.encode({"train.adversary.frozen_probability": 0.7}) == {"train.adversary.frozen_probability": 0.7}
    for path, value in (("train.adversary.num_steps", 4), ("train.adversary.frozen_probability", 0.2)):
        with pytest.raises(UsageError, match=rf"{path} = {value} must be .* plus whole steps of"):
            space.encode({path: value})
    child = {"train.learning_rate": real(0.1, 1) | {"when": {"train.adversary.num_steps": 4}}}
    with pytest.raises(UsageError, match=r"num_steps = 4, which it never is"):
        check_sweep(sweep({**ranges, **child}))


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("float", {"low": 0, "high": 1, "step": 0.3}, r"high (1) must be low (0) plus whole steps of 0.3; 0.9 is the"),
        ("int", {"low": 1, "high": 8, "step": 2}, r"high (8) must be low (1) plus whole steps of 2; 7 is the last one"),
        ("int", {"low": 1, "high": 9, "step": 2, "log": True}, "step (2) and log exclude each other"),
        ("float", {"low": 1, "high": 2, "step": 0}, "step: got 0"),
        ("int", {"low": 1, "high": 2, "step": 0.5}, "step: got 0.5"),
    ],
)
def test_steps_that_do_not_fit_are_refused(kind: str, shape: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        sweep({"seed": {"type": kind, **shape}})
    assert message in str(caught.value)
