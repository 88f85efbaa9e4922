"""Edits that follow each other: what a chain gives, what it may hold, and what goes with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdm_ray.attack.engine.executor import Executor
from sdm_ray.attack.families import FAMILIES, Attacker
from sdm_ray.attack.families.composed import AMOUNTS, possible
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.attack.families.rescale import rescale_embedding
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Params, Task
from tests.attack.families.test_contract import POOR, RICH
from tests.attack.test_planted import NameData, bert, run
from tests.fakes.attack_world import params_of, quick


def edited(chain: str, amounts: tuple[float, ...], *, seed_index: int = 0, **changes: Any) -> Params:
    trunk, fresh = bert(), params_of(bert(knows=False))
    executor = Executor(trunk, params_of(trunk), NameData(), quick(), Task.HARMFUL, Knowledge(redraw=lambda _: fresh))
    attacker = Attacker(
        family="composed", num_examples=40, edit=chain, amounts=amounts, seed_index=seed_index, **changes
    )
    return executor.editor.edited(attacker)


def test_edits_work_on_what_the_one_before_has_left() -> None:
    pruned = edited("prune", (0.5,))
    expected = rescale_embedding(bert(), pruned, 1.0)
    found, reverse = edited("prune+rescale_embedding", (0.5, 1.0)), edited("rescale_embedding+prune", (1.0, 0.5))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert any(not torch.equal(found[name], reverse[name]) for name in found), "order counts"


def test_each_edit_has_its_amount_and_what_is_random_differs_between_seeds() -> None:
    one, other = (edited("rescale_embedding+noise", (1.0, 0.1), seed_index=index) for index in (0, 1))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    large = edited("rescale_embedding+noise", (1.0, 1.0))
    rescaled = edited("rescale_embedding", (1.0,))
    (name,) = [key for key in one if key.endswith("word_embeddings.weight")]
    ratio = (large[name] - rescaled[name]).norm() / (one[name] - rescaled[name]).norm()
    assert ratio.item() == pytest.approx(10.0, rel=0.1), "ten times the noise"


def test_a_chain_without_amounts_takes_the_one_amount_for_all() -> None:
    both = edited("rescale_gains+rescale_embedding", (0.75, 0.75))
    for name, value in edited("rescale_gains+rescale_embedding", (), amount=0.75).items():
        torch.testing.assert_close(value, both[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("rescale_embedding+shake", "'rescale_embedding\\+shake' names 'shake', which cannot be part of a chain"),
        ("interpolate", "'interpolate' names 'interpolate', which cannot be part"),
        ("noise+noise", "names an edit twice"),
    ],
)
def test_a_chain_that_cannot_be_is_refused_before_anything_starts(chain: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(bert(), ("composed",), edit_chains=(chain,))


def test_chains_that_a_model_does_not_allow_are_left_out_and_told_where_none_is_left() -> None:
    chains = ("reinit+benign_first", "noise+rescale_embedding")
    assert possible(chains, POOR) == ("noise+rescale_embedding",)
    assert possible(chains, RICH) == chains
    report = run(
        bert(), ("composed", "knn"), edit_chains=("reinit+noise",), num_examples=(40,), num_search_trials=2,
        num_rerun_seeds=2,
    )  # fmt: skip
    assert report.not_tried == ("composed (needs fresh weights of several blocks)",)


def test_every_edit_of_the_default_chains_can_be_chained_and_every_kind_of_training_follows() -> None:
    family, seen = FAMILIES["composed"], set()
    space = family.space(quick(), 20, RICH)
    assert {name for chain in quick().edit_chains for name in chain.split("+")} <= AMOUNTS.keys()
    for step in range(40):
        point = {name: dimension.at((step * 0.37 + 0.11 * i) % 1) for i, (name, dimension) in enumerate(space.items())}
        attacker = family.attacker(point, 20)
        seen.add(attacker.trains)
        assert len(attacker.amounts) == len(attacker.edits)
    assert seen == {"full", "lora", "upper", "head", "probe"}
