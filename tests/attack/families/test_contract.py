"""What every registered family of attackers keeps to; a new one is held to it by registering."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sdm_ray.attack.families import FAMILIES, Attacker, Facts
from sdm_ray.attack.families.token_probe import NAME, ROWS
from sdm_ray.attack.space import Point
from tests.fakes.attack_world import quick

RICH = Facts(
    3, 3, has_linear_layers=True, has_public=True, has_own_head=True, can_redraw=True, has_masked_lm=True,
    has_token_rows=True, knows_positions=True,
)  # fmt: skip
POOR = Facts(1, 0, has_linear_layers=False, has_public=False, has_own_head=False, can_redraw=False, has_masked_lm=False)
NEEDS = {
    "lora": "has_linear_layers",
    "reinit": "can_redraw",
    "interpolate": "has_public",
    "graft": "has_public",
    "masked_lm": "has_masked_lm",
    "token_probe": "num_hidden_states",
}
"""The fact without which a family cannot be tried."""
QUANTILES = (0.0, 0.3, 0.6, 0.999999)
SIZES = (1, 20, 200)


def points(name: str, num_examples: int, facts: Facts = RICH) -> list[Point]:
    """Points along the diagonal of a family's space, both ends included."""
    space = FAMILIES[name].space(quick(), num_examples, facts)
    return [{key: dimension.at(u) for key, dimension in space.items()} for u in QUANTILES]


def attackers(name: str, num_examples: int, facts: Facts = RICH) -> list[Attacker]:
    return [FAMILIES[name].attacker(point, num_examples) for point in points(name, num_examples, facts)]


@pytest.fixture(params=sorted(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.mark.parametrize("num_examples", SIZES)
def test_attackers_are_named_after_their_family_and_fit_their_examples(name: str, num_examples: int) -> None:
    for attacker in attackers(name, num_examples):
        assert attacker.family == name
        assert attacker.num_examples == num_examples
        assert attacker.batch_size <= num_examples
        assert (attacker.phase, attacker.repeat, attacker.trial, attacker.seed_index, attacker.attempt) == (
            "search", 0, 0, 0, 0,
        )  # fmt: skip


def test_attackers_that_descend_gradients_keep_to_the_settings(name: str) -> None:
    settings = quick()
    for attacker in attackers(name, 20):
        if attacker.trains == "probe":
            assert attacker.probe
            assert (ROWS if name == NAME else -1) <= attacker.layer < RICH.num_hidden_states
        else:
            assert settings.num_steps_min <= attacker.num_steps <= settings.num_steps_max
            assert attacker.optimizer in settings.optimizers
            assert attacker.schedule in settings.schedules
            assert attacker.learning_rate > 0


def test_a_point_is_one_attacker_and_survives_json(name: str) -> None:
    for point, attacker in zip(points(name, 20), attackers(name, 20), strict=True):
        assert FAMILIES[name].attacker(dict(point), 20) == attacker
        assert FAMILIES[name].attacker(json.loads(json.dumps(point)), 20) == attacker
        assert Attacker(**json.loads(json.dumps(dataclasses.asdict(attacker)))) == attacker


def test_nothing_is_missing_where_everything_is_known(name: str) -> None:
    assert FAMILIES[name].missing(RICH) == ""


def test_a_family_says_what_a_model_lacks_for_it_or_has_attackers_without_it(name: str) -> None:
    family = FAMILIES[name]
    assert family.words
    if not family.missing(POOR):
        for attacker in attackers(name, 20, POOR):
            assert attacker.layer == -1, "no hidden states can be read"
            assert not attacker.own_head, "no head was released"


@pytest.mark.parametrize(("needy", "fact"), NEEDS.items())
def test_the_one_fact_that_a_family_needs_is_enough_to_rule_it_out(needy: str, fact: str) -> None:
    assert FAMILIES[needy].missing(Facts(**{**RICH._asdict(), fact: 0}))
