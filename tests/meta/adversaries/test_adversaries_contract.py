"""What every kind of simulated adversary must do; a new kind gets these tests by its entry in `KINDS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sdm_ray.config import AdversarySettings, TrainSettings
from sdm_ray.core.types import Split, Task
from sdm_ray.meta.adversaries.distribution import HeadKinds
from sdm_ray.meta.adversaries.few_shot import FewShot
from sdm_ray.meta.adversaries.fresh import MetaParameters, Simulator
from sdm_ray.meta.adversaries.pool import AdversaryPool
from sdm_ray.meta.inner.episode import Execution
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.problems import EvaluationBatch
from tests.fakes.meta import FakeData, MlpTrunk

WEIGHTS = {"harmful_adapted_calibrated": 1.0}
INDICES = torch.arange(6)
ADVERSARY = {
    "optimizers": ["sgd", "momentum", "adam"], "num_adversaries": 2, "num_steps": 2, "num_steps_min": 1,
    "head": "mixture", "learning_rate_mode": "log_uniform", "subset_size": 20, "batch_sizes": [5],
    "frozen_probability": 0.3, "pool": {"size": 3, "lifespan_steps": 3, "subset_size": 20, "steps_per_turn": 2},
}  # fmt: skip


class Turn(NamedTuple):
    """What one outer step takes from adversaries of a kind."""

    trunk: Tensor
    value: Tensor
    described: str


class Kind(NamedTuple):
    """Adversaries of one kind: their turn at a trunk, and their state."""

    turn: Callable[[Tensor], Turn]
    state_dict: Callable[[], Any]
    load_state_dict: Callable[[Any], None]


def fresh(options: dict[str, Any], data: FakeData) -> Kind:
    simulator = Simulator(task=Task.HARMFUL, **options)
    outer = data.batch(INDICES, Task.HARMFUL)

    def turn(trunk: Tensor) -> Turn:
        head = torch.ones(2, options["model"].feature_dim, dtype=torch.float64)
        parameters = MetaParameters(trunk, head, torch.tensor(-3.0, dtype=torch.float64))
        evaluation = (EvaluationBatch(outer, None),)
        groups = simulator.roll_out(simulator.draw(0), parameters, evaluation, INDICES, WEIGHTS)
        values = [group.found.values["harmful_adapted_calibrated"] * group.share for group in groups]
        trunks = torch.stack([group.found.trunk[0] for group in groups])
        return Turn(trunks.sum(0), torch.stack(values).sum(), " and ".join(group.draw for group in groups))

    return Kind(turn, simulator.state_dict, simulator.load_state_dict)


def persistent(options: dict[str, Any], data: FakeData) -> Kind:
    pool = AdversaryPool(**options)
    pool.start(options["model"].initial())
    outer = data.batch(INDICES, Task.HARMFUL)

    def turn(trunk: Tensor) -> Turn:
        found = pool.turn(trunk, outer, INDICES, WEIGHTS)
        return Turn(found.trunk, found.values["harmful_adapted_calibrated"], found.draw)

    return Kind(turn, pool.state_dict, pool.load_state_dict)


def on_tokens(kind: Callable[..., Kind], options: dict[str, Any], data: FakeData) -> Kind:
    settings = AdversarySettings.model_validate({"head_kinds": ["attention", "max"]})
    heads = HeadKinds(settings, trunk=options["model"].trunk, generator=options["generator"])
    return kind({**options, "head_kinds": heads}, data)


KINDS = {"fresh": fresh, "persistent": persistent}
KINDS |= {f"{name}, heads on tokens": partial(on_tokens, kind) for name, kind in KINDS.items()}
pytestmark = pytest.mark.parametrize("kind", sorted(KINDS))


def make(kind: str, seed: int = 0) -> tuple[Kind, torch.Generator]:
    data, generator = FakeData(), torch.Generator().manual_seed(seed)
    indices = data.indices(Split.META_TRAIN)
    options = {
        "settings": TrainSettings.model_validate({"adversary": ADVERSARY, "gradient_mode": "adjoint"}),
        "model": FlatModel(MlpTrunk()),
        "data": data,
        "indices": indices,
        "few_shot": FewShot(indices, data.labels_host(Task.HARMFUL)[indices]),
        "generator": generator,
        "execution": Execution(),
    }
    return KINDS[kind](options, data), generator


def trunk_at(step: int) -> Tensor:
    """The trunk that moves under the adversaries."""
    return FlatModel(MlpTrunk()).initial() * (1 + 0.01 * step)


def test_a_turn_gives_a_finite_gradient_and_describes_its_adversaries(kind: str) -> None:
    turn = make(kind)[0].turn(trunk_at(0))
    assert turn.trunk.shape == trunk_at(0).shape
    assert turn.trunk.isfinite().all()
    assert turn.trunk.abs().max() > 0
    assert turn.value.isfinite()
    assert f"{kind.split(',')[0]} adversary (" in turn.described
    assert ("tokens" in kind) == any(f"fresh {one} head" in turn.described for one in ("attention", "max"))


def test_the_trunk_is_not_written_to(kind: str) -> None:
    adversaries, trunk = make(kind)[0], trunk_at(0)
    for _ in range(3):
        adversaries.turn(trunk)
    assert torch.equal(trunk, trunk_at(0))


def test_equal_seeds_give_equal_turns_and_other_seeds_others(kind: str) -> None:
    first, second, other = ([make(kind, seed)[0].turn(trunk_at(0))] for seed in (0, 0, 1))
    assert torch.equal(first[0].trunk, second[0].trunk)
    assert first[0].described == second[0].described
    assert not torch.equal(first[0].trunk, other[0].trunk)


def test_interrupted_adversaries_go_on_bit_for_bit(kind: str) -> None:
    straight, generator = make(kind)
    for step in range(4):
        straight.turn(trunk_at(step))
    state, drawn = straight.state_dict(), generator.get_state()
    state = {name: [dict(one) for one in value] if name == "members" else value for name, value in state.items()}
    expected = [straight.turn(trunk_at(step)) for step in range(4, 9)]

    resumed, generator = make(kind)
    resumed.load_state_dict(state)
    generator.set_state(drawn)
    for step, theirs in enumerate(expected, 4):
        mine = resumed.turn(trunk_at(step))
        assert torch.equal(mine.trunk, theirs.trunk)
        assert mine.described == theirs.described


def test_descending_the_gradient_raises_what_the_blocking_term_measures(kind: str) -> None:
    """The gradient is that of the blocking loss, whose term is maximised."""
    turn = make(kind)[0].turn(trunk_at(0))
    moved = trunk_at(0) - 1e-3 * turn.trunk / turn.trunk.norm()
    assert make(kind)[0].turn(moved).value > turn.value
