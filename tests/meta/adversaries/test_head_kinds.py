"""What adversaries' heads read: how kinds are sampled, which adversaries have them, and where they cannot be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdm_ray.config import AdversarySettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Split, Task
from sdm_ray.meta.adversaries import fresh
from sdm_ray.meta.adversaries.distribution import HeadKinds
from sdm_ray.meta.adversaries.few_shot import FewShot
from sdm_ray.meta.adversaries.pool import AdversaryPool
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.outer.step import OuterStep
from sdm_ray.meta.trainer import GENERATORS
from sdm_ray.models.trunk import params_digest
from tests.fakes.meta import FakeData, MlpTrunk, adversary_of, interrupted_and_straight, train_settings

FRESH: dict[str, Any] = {"num_steps": 2, "batch_sizes": [4], "num_adversaries": 3}
POOL: dict[str, Any] = {
    "num_steps": 0, "batch_sizes": [4],
    "pool": {"size": 3, "lifespan_steps": 4, "subset_size": 20, "frozen_probability": 0.4},
}  # fmt: skip


def outer_step(trunk: Any = None, **values: Any) -> OuterStep:
    settings = train_settings(**values)
    return OuterStep(settings, trunk=trunk or MlpTrunk(), data=FakeData(), generators=Generators(0, GENERATORS))


def test_kinds_are_sampled_uniformly_and_heads_that_read_tokens_are_fresh() -> None:
    settings = AdversarySettings.model_validate({"head_kinds": ["pooled", "attention", "max"]})
    kinds = HeadKinds(settings, trunk=MlpTrunk(), generator=torch.Generator().manual_seed(0))
    drawn = [kinds.draw(adversary_of()) for _ in range(600)]
    shares = {kind: count / 600 for kind, count in Counter(one.head_kind for one in drawn).items()}
    assert shares == pytest.approx(dict.fromkeys(("pooled", "attention", "max"), 1 / 3), abs=0.06)
    assert all(one.reset_head == (one.head_kind != "pooled") for one in drawn)
    assert len({one.shape() for one in drawn}) == 3, "one batch has heads of one kind"


@pytest.mark.parametrize("kind", ["attention", "max"])
@pytest.mark.parametrize("adversary", [FRESH, POOL], ids=["fresh", "pool"])
def test_an_outer_step_has_such_adversaries(adversary: dict[str, Any], kind: str) -> None:
    step = outer_step(adversary={**adversary, "head_kinds": [kind]})
    before = step.trunk.detach().clone()
    step.step()
    assert f"fresh {kind} head" in step.describe_draw()
    assert "meta-learned head" not in step.describe_draw()
    assert step.trunk.isfinite().all()
    plain = outer_step(adversary=adversary)
    plain.step()
    assert not torch.equal(step.trunk, before)
    assert not torch.equal(step.trunk, plain.trunk)


def test_a_batch_of_adversaries_has_heads_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where adversaries of one shape run as one batch, edited starts included."""
    monkeypatch.setattr(fresh, "BATCHING", ("cpu",))
    starts = {"released": 0.0, "benign_first": 1.0, "benign_first_steps": [2]}
    adversary = {**FRESH, "num_adversaries": 8, "head_kinds": ["pooled", "attention", "max"], "starts": starts}
    step = outer_step(adversary=adversary)
    step.step()
    groups = step.describe_draw().split(" and ")
    read = [
        {kind for kind in ("fresh attention", "fresh max", "meta-learned head") if kind in group} for group in groups
    ]
    assert sorted(map(sorted, read)) == [["fresh attention"], ["fresh max"], ["meta-learned head"]]
    assert step.trunk.isfinite().all()


def test_other_draws_stay_those_of_pooled_heads() -> None:
    """Kinds have a generator of their own; optimisers and rates of a step are drawn before its heads."""
    described = []
    for kinds in (["pooled"], ["pooled", "attention"]):
        step = outer_step(adversary={**FRESH, "head": "reset", "head_kinds": kinds, "optimizers": ["sgd", "adam"]})
        step.step()
        described.append(step.describe_draw())
    assert described[1].replace("attention ", "") == described[0]
    assert described[1] != described[0]


def test_adaptations_to_the_desired_task_and_the_unadapted_model_keep_pooled_heads() -> None:
    step = outer_step(
        adversary={**FRESH, "head_kinds": ["attention"]}, blocking={"desired_adapted": 1.0, "harmful_base": 1.0}
    )
    step.step()
    assert "adaptation to the desired task" in step.describe_draw()
    assert "attention" not in step.describe_draw()


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Fresh ones: tests/meta/adversaries/test_adversaries_contract.py."""
    pool = {**POOL["pool"], "second_order": True, "steps_per_turn": 2}
    values = {**POOL, "head_kinds": ["pooled", "attention", "max"], "pool": pool}
    settings = train_settings(adversary=values, gradient_mode="adjoint")
    resumed, straight = interrupted_and_straight(settings, MlpTrunk, tmp_path)
    assert all(torch.equal(resumed.params[name], straight.params[name]) for name in straight.params)


def test_a_member_from_before_heads_read_tokens_has_a_pooled_one() -> None:
    step = outer_step(adversary=POOL)
    step.step()
    state = step.adversaries.state_dict()
    for member in state["pool"]["members"]:
        del member["adversary"]["head_kind"]
    step.adversaries.load_state_dict(state)
    assert {member.adversary.head_kind for member in step.adversaries.pool.members} == {"pooled"}


def test_a_members_query_moves_and_is_stored() -> None:
    data, generator = FakeData(), torch.Generator().manual_seed(0)
    settings, model = train_settings(adversary={**POOL, "head_kinds": ["attention"]}), FlatModel(MlpTrunk())
    indices = data.indices(Split.META_TRAIN)
    pool = AdversaryPool(
        settings,
        model=model,
        data=data,
        indices=indices,
        few_shot=FewShot(indices, data.labels_host(Task.HARMFUL)[indices]),
        generator=generator,
        head_kinds=HeadKinds(settings.adversary, trunk=model.trunk, generator=generator),
    )
    pool.start(model.initial())
    before = pool.members[0].head.clone()
    assert before.shape == (3, 6)
    outer = data.batch(torch.arange(6), Task.HARMFUL)
    pool.turn(model.initial(), outer, torch.arange(6), {"harmful_adapted": 1.0})
    assert (pool.members[0].head != before).all(1).all()


def test_a_meta_learned_head_that_nobody_starts_from_is_not_trained() -> None:
    """A term that reads it has it fitted to the un-adapted model, as with heads that are all drawn anew."""
    for kinds, trained in ((["attention"], False), (["pooled", "attention"], True)):
        step = outer_step(adversary={**FRESH, "head_kinds": kinds})
        assert step.learned.harmful_head.requires_grad == trained
    step = outer_step(
        adversary={**FRESH, "head_kinds": ["max"]}, blocking={"harmful_reduction": 1.0, "harmful_adapted": 1.0}
    )
    assert step.learned.fits_head


class Pooling(nn.Module):
    """A trunk of texts that gives its features alone."""

    embedding_name: str | None = None
    fixed_ids, num_depths, feature_dim = 0, 1, 6
    has_shortcut = has_dropout = has_packing = False

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(MlpTrunk().embedding.detach().clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return nn.functional.embedding(input_ids, self.table).mean(-2)

    def depth_of(self, name: str) -> int:
        return 0

    def digest(self) -> str:
        return params_digest(dict(self.named_parameters()))


@pytest.mark.parametrize("adversary", [FRESH, POOL], ids=["fresh", "pool"])
def test_an_encoder_without_token_states_is_refused(adversary: dict[str, Any]) -> None:
    said = r"train\.adversary\.head_kinds has 'max', .* but Pooling gives none; set it to \[pooled\]"
    with pytest.raises(UsageError, match=said):
        outer_step(Pooling(), adversary={**adversary, "head_kinds": ["pooled", "max"]})
    outer_step(Pooling(), adversary=adversary).step()
