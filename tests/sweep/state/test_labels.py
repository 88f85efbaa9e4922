"""How trials are called in a tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdm_ray.sweep.state.labels import MAX_NAME, run_name, run_params, short_names
from sdm_ray.sweep.state.ledger import Entry
from tests.fakes import sweep as sweep_fakes
from tests.fakes.sweep import RATE, WEIGHT

MAP = "train.embedding_map_learning_rate"


def test_short_names_are_different() -> None:
    paths = [RATE, MAP, WEIGHT, "train.adversary.pool.subset_size", "train.num_outer_steps", "train.x.size", "a.b.size"]
    assert list(short_names(paths).values()) == ["rate", "map", "weight", "subset", "outer", "train.x.size", "a.b.size"]
    terms = [WEIGHT, "train.blocking.harmful_adapted_clamped", "train.blocking.retain_mlm"]
    assert list(short_names(terms).values()) == ["calibrated", "clamped", "retain mlm"]


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({WEIGHT: 3.14159, MAP: 0.003, RATE: 3e-4}, "t0005 · weight 3.1 · map 0.003"),
        ({"train.method": "ac", "train.sizes": [8, 16]}, "t0005 · method ac · sizes 8+16"),
        ({}, "t0005"),
    ],
)  # fmt: skip
def test_a_name_says_what_differs_from_the_sweeps_own_settings(
    tmp_path: Path, params: dict[str, Any], name: str
) -> None:
    settings = sweep_fakes.settings(tmp_path)
    assert settings.trial.train.learning_rate == 3e-4, "what does not differ is not named"
    assert run_name(settings, Entry("t0005", "search", "mlac", 5, params)) == name


def test_a_name_fits_into_a_legend(tmp_path: Path) -> None:
    params = {WEIGHT: 3.0, **{f"train.something_long_{letter}": 1.5 for letter in "abcdef"}}
    name = run_name(sweep_fakes.settings(tmp_path), Entry("t0005", "search", "mlac", 5, params))
    assert len(name) <= MAX_NAME
    assert name.startswith("t0005 · weight 3 · something long a 1.5")


def test_references_have_the_params_that_are_searched(tmp_path: Path) -> None:
    settings = sweep_fakes.settings(tmp_path, variants="{low: {train.learning_rate: 0.001}}")
    tuned = run_params(settings, Entry("tuned", "reference", "tuned"))
    assert tuned == {"train.method": "tuned", RATE: settings.trial.train.learning_rate, WEIGHT: 0.0}
    assert run_params(settings, Entry("low", "reference", "mlac", params={RATE: 1e-3}))[RATE] == 1e-3
    assert run_params(settings, Entry("random", "reference", "random")) == {"train.method": "random"}
    final = Entry("tuned-final", "final", "tuned", point="tuned-final")
    assert run_params(settings, final) == tuned
    searched = Entry("t0000", "search", "mlac", 0, {WEIGHT: 2.0})
    assert run_params(settings, searched) == {"train.method": "mlac", WEIGHT: 2.0}
