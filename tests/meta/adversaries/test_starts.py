"""Adversaries that start from edited weights: which weights these are, and what gradient they leave."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from sdm_ray.attack.families.base import Attacker
from sdm_ray.attack.families.edits import Editor
from sdm_ray.attack.families.knowledge import Knowledge
from sdm_ray.config import TrainSettings
from sdm_ray.config.starts import ATTACK_EDITS, StartKind, StartSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Split, Task
from sdm_ray.meta.adversaries.benign import BenignFirst
from sdm_ray.meta.adversaries.few_shot import FewShot
from sdm_ray.meta.adversaries.fresh import MetaParameters, Simulator
from sdm_ray.meta.adversaries.pool import AdversaryPool
from sdm_ray.meta.adversaries.starts import StartMap, Starts
from sdm_ray.meta.inner import flat_model
from sdm_ray.meta.inner.adversary import Adversary
from sdm_ray.meta.inner.episode import Execution
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.loop import STRATEGIES, meta_gradients
from sdm_ray.meta.inner.problems import EvaluationBatch
from sdm_ray.meta.outer.step import OuterStep
from sdm_ray.meta.trainer import GENERATORS
from tests.fakes.meta import VOCABULARY_SIZE, FakeData, MlpTrunk, adversary_of, episode_of, start_of, train_settings

WEIGHTS = {"harmful_adapted": 1.0}
AMOUNTS: dict[StartKind, float] = {
    "rescaled": 0.75, "redrawn_layers": 1.0, "pruned": 0.3, "interpolated": 0.25, "noise": 0.1,
    "benign_first": 3.0,
}  # fmt: skip
FROZEN = ("redrawn_layers", "pruned")
"""Starts some of whose weights do not depend on the trunk."""


def redraw(seed: int) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in MlpTrunk(seed=seed % 1000 + 1).named_parameters()}


def starts_of(model: FlatModel, seed: int = 0, **settings: Any) -> Starts:
    data = FakeData()
    training = TrainSettings.model_validate({"adversary": {"starts": settings}})
    return Starts(
        training.adversary.starts,
        model=model,
        generator=torch.Generator().manual_seed(seed),
        public=FlatModel(MlpTrunk(seed=7)).initial(),
        redraw=redraw,
        benign=BenignFirst(training, model=model, data=data, indices=data.indices(Split.META_TRAIN)),
    )


def only(kind: StartKind) -> dict[str, Any]:
    return {"released": 0.0, kind: 1.0}


def edited(kind: StartKind, model: FlatModel, trunk: Tensor, seed: int = 5) -> StartMap:
    adversary = adversary_of(start=kind, start_amount=AMOUNTS[kind], start_seed=seed)
    found = starts_of(model, **only(kind)).map(adversary, trunk)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", sorted(set(AMOUNTS) - {"noise", "benign_first"}))
def test_a_start_is_the_attacks_edit(kind: StartKind) -> None:
    trunk, model = MlpTrunk(), FlatModel(MlpTrunk())
    params = {name: value.detach() for name, value in trunk.named_parameters()}
    public = {name: value.detach() for name, value in MlpTrunk(seed=7).named_parameters()}
    knowledge = Knowledge(public=public, redraw=lambda seed: redraw(5))
    data: Any = None
    editor = Editor(trunk, params, data, knowledge, 0, lambda weights, steps: weights)
    theirs = editor.edited(Attacker(family="any", num_examples=4, edit=ATTACK_EDITS[kind], amount=AMOUNTS[kind]))
    initial = model.initial()
    mine = edited(kind, model, initial)
    start = mine.factor * initial + mine.shift
    torch.testing.assert_close(start, model.layout.flatten(theirs), rtol=1e-12, atol=1e-12)
    assert not torch.equal(start, initial)


def test_noise_has_the_size_that_the_settings_say_and_is_drawn_by_seed() -> None:
    model = FlatModel(MlpTrunk(width=40))
    trunk = model.initial()
    noise = edited("noise", model, trunk)
    assert torch.equal(noise.factor, torch.ones_like(trunk))
    sizes = zip(model.layout.pieces(noise.shift), model.layout.pieces(trunk), strict=True)
    for drawn, value in sizes:
        assert (drawn.std() / value.square().mean().sqrt()).item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(noise.shift, edited("noise", model, trunk).shift)
    assert not torch.equal(noise.shift, edited("noise", model, trunk, seed=6).shift)


def test_starts_are_sampled_by_weight_and_none_takes_a_draw_where_all_are_released() -> None:
    model, one = FlatModel(MlpTrunk()), adversary_of()
    starts = starts_of(model, released=1.0, pruned=2.0, noise=1.0, noise_scales=[0.5, 0.7])
    drawn = [starts.draw(one) for _ in range(800)]
    shares = {kind: count / 800 for kind, count in Counter(each.start for each in drawn).items()}
    assert shares == pytest.approx({"released": 0.25, "pruned": 0.5, "noise": 0.25}, abs=0.06)
    amounts = {kind: {each.start_amount for each in drawn if each.start == kind} for kind in shares}
    assert amounts == {"released": {0.0}, "pruned": {0.1, 0.3, 0.5}, "noise": {0.5, 0.7}}
    assert len({each.start_seed for each in drawn}) == 800
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert Starts(StartSettings(), model=model, generator=generator).draw(one) is one
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize("mode", ["unrolled", "adjoint", "adjoint_stored"])
@pytest.mark.parametrize("kind", sorted(AMOUNTS))
@pytest.mark.parametrize("adaptation", ["full", "head", "lora"])
def test_the_gradient_through_a_start_is_that_of_finite_differences(
    mode: str, kind: StartKind, adaptation: str
) -> None:
    """Masks, scales and draws are fixed, as in the definition of the gradient."""
    model = FlatModel(MlpTrunk())
    start = start_of(model, learned=False)
    factor, shift = (value[None] for value in edited(kind, model, start.trunk[0]))
    episode = episode_of(mode=mode, optimizer="sgd", adaptation=adaptation, rank=2 if adaptation == "lora" else 0)
    direction = torch.randn(start.trunk.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def gradients(step: float) -> Any:
        moved = (start.trunk.detach() + step * direction).requires_grad_()
        placed = start._replace(trunk=moved, factor=factor, displacement=shift)
        return meta_gradients(model, placed, episode, WEIGHTS)

    found, size = gradients(0.0), 1e-5
    values = [gradients(sign * size).values["harmful_adapted"] for sign in (1, -1)]
    slope = -(values[0] - values[1]) / (2 * size)  # the term is maximised
    assert (found.trunk * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-10)
    assert found.trunk.abs().max() > 0


@pytest.mark.parametrize("mode", sorted(STRATEGIES))
@pytest.mark.parametrize("kind", FROZEN)
def test_no_gradient_reaches_weights_that_were_pruned_or_drawn_anew(mode: str, kind: StartKind) -> None:
    model = FlatModel(MlpTrunk())
    start = start_of(model)
    factor, shift = (value[None] for value in edited(kind, model, start.trunk[0]))
    found = meta_gradients(
        model,
        start._replace(factor=factor, displacement=shift),
        episode_of(mode=mode, truncation_steps=1),
        WEIGHTS,
    )
    assert not found.trunk[factor == 0].any()
    assert found.trunk[factor != 0].any()


def options_of(kind: StartKind, **adversary: Any) -> dict[str, Any]:
    data = FakeData()
    indices = data.indices(Split.META_TRAIN)
    values = {"num_steps": 2, "optimizers": ["sgd"], "batch_sizes": [5], **adversary}
    model = FlatModel(MlpTrunk())
    return {
        "settings": TrainSettings.model_validate({"adversary": values, "gradient_mode": "adjoint"}),
        "model": model,
        "data": data,
        "indices": indices,
        "few_shot": FewShot(indices, data.labels_host(Task.HARMFUL)[indices]),
        "generator": torch.Generator().manual_seed(0),
        "execution": Execution(),
        "starts": starts_of(model, **only(kind)),
    }


INDICES = torch.arange(6)


def rolled_out(options: dict[str, Any], *, takes_steps: bool = True) -> tuple[Tensor, Tensor, list[Adversary]]:
    """Gradient and loss of fresh adversaries that start from `options["starts"]`, and these."""
    model, simulator = options["model"], Simulator(task=Task.HARMFUL, **options)
    drawn = simulator.draw(0, takes_steps=takes_steps)
    head = torch.ones(2, model.feature_dim, dtype=torch.float64)
    parameters = MetaParameters(model.initial(), head, torch.tensor(-3.0, dtype=torch.float64))
    evaluation = (EvaluationBatch(options["data"].batch(INDICES, Task.HARMFUL), None),)
    weights = WEIGHTS if takes_steps else {"harmful_base": 1.0}
    (group,) = simulator.roll_out(drawn, parameters, evaluation, INDICES, weights, takes_steps=takes_steps)
    return group.found.trunk[0], next(iter(group.found.values.values())), drawn


@pytest.mark.parametrize("kind", sorted(AMOUNTS))
def test_fresh_adversaries_start_there(kind: StartKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the embedding's rows restricted to those that occur, as without an edit."""
    monkeypatch.setattr(flat_model, "ROW_MULTIPLE", 1)
    gradient, loss, (adversary,) = rolled_out(options_of(kind))
    assert adversary.start == kind
    assert f"{kind.replace('_', ' ')} start of {adversary.start_amount:.3g}" in adversary.describe()
    plain = options_of(kind) | {"starts": None}
    assert loss.item() != rolled_out(plain)[1].item()
    moved = options_of(kind)
    model, found = moved["model"], starts_of(moved["model"], **only(kind)).map(adversary, moved["model"].initial())
    assert found is not None
    start = found.factor * model.initial() + found.shift
    with torch.no_grad():
        for name, value in model.layout.unflatten(start).items():
            dict(model.trunk.named_parameters())[name].copy_(value)
    there, same, _ = rolled_out(moved | {"starts": None})
    torch.testing.assert_close(loss, same)
    torch.testing.assert_close(gradient, there * found.factor)


def test_the_unadapted_model_is_not_edited() -> None:
    _, loss, (adversary,) = rolled_out(options_of("pruned"), takes_steps=False)
    assert adversary.start == "released"
    torch.testing.assert_close(loss, rolled_out(options_of("pruned") | {"starts": None}, takes_steps=False)[1])


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("frozen", [0.0, 1.0])
def test_persistent_adversaries_keep_what_an_edit_cut_off_from_the_trunk(second_order: bool, frozen: float) -> None:
    """Whatever the upper weights become, a member whose upper weights were drawn anew goes on from its own."""
    turns = {}
    for scale in (1.0, 3.0):
        pool = {
            "size": 1, "lifespan_steps": 50, "subset_size": 20, "second_order": second_order,
            "frozen_probability": frozen,
        }  # fmt: skip
        options = options_of("redrawn_layers", pool=pool)
        adversaries, model = AdversaryPool(**options), options["model"]
        trunk, outer = model.initial(), options["data"].batch(INDICES, Task.HARMFUL)
        adversaries.start(trunk)
        first = adversaries.turn(trunk, outer, INDICES, WEIGHTS)
        assert "redrawn layers start of 1" in first.draw
        layers = model.layout.unflatten(trunk)
        layers["weight"].mul_(scale)
        turns[scale] = adversaries.turn(trunk, outer, INDICES, WEIGHTS)
        gradient = model.layout.unflatten(turns[scale].trunk)
        assert not gradient["weight"].any()
        assert gradient["embedding"].any()
    assert torch.equal(turns[1.0].trunk, turns[3.0].trunk)
    assert turns[1.0].values == turns[3.0].values


@pytest.mark.parametrize("kind", sorted(AMOUNTS))
def test_a_member_that_stores_the_rows_of_its_subset_takes_the_turns_of_one_that_stores_all(
    kind: StartKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the outer batch that the subset lacks are edited too."""
    monkeypatch.setattr(flat_model, "ROW_MULTIPLE", 1)
    turns: dict[bool, list[Any]] = {}
    for restricted in (True, False):
        options = options_of(kind, pool={"size": 1, "lifespan_steps": 50, "subset_size": 4, "frozen_probability": 0.0})
        if not restricted:
            monkeypatch.setattr(AdversaryPool, "_member_rows", lambda *given: None)
        adversaries, trunk = AdversaryPool(**options), options["model"].initial()
        adversaries.start(trunk)
        rows = adversaries.members[0].rows
        assert (len(rows.tokens) if rows else VOCABULARY_SIZE) < VOCABULARY_SIZE or not restricted
        outer = options["data"].batch(INDICES, Task.HARMFUL)
        turns[restricted] = [adversaries.turn(trunk * scale, outer, INDICES, WEIGHTS) for scale in (1.0, 1.1, 0.9)]
    for mine, theirs in zip(turns[True], turns[False], strict=True):
        torch.testing.assert_close(mine.trunk, theirs.trunk, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(mine.values, theirs.values)


@pytest.mark.parametrize("frozen", [0.0, 1.0])
@pytest.mark.parametrize("kind", sorted(AMOUNTS))
def test_a_pool_of_edited_starts_goes_on_bit_for_bit(kind: StartKind, frozen: float) -> None:
    def made() -> tuple[AdversaryPool, dict[str, Any]]:
        pool = {"size": 2, "lifespan_steps": 6, "subset_size": 20, "frozen_probability": frozen}
        options = options_of(kind, pool=pool)
        members = AdversaryPool(**options)
        members.start(options["model"].initial())
        return members, options

    straight, options = made()
    trunk, outer = options["model"].initial(), options["data"].batch(INDICES, Task.HARMFUL)
    straight.turn(trunk, outer, INDICES, WEIGHTS)
    state, drawn = straight.state_dict(), options["generator"].get_state()
    expected = straight.turn(trunk * 1.1, outer, INDICES, WEIGHTS)
    resumed, options = made()
    resumed.load_state_dict(state)
    options["generator"].set_state(drawn)
    found = resumed.turn(trunk * 1.1, outer, INDICES, WEIGHTS)
    assert torch.equal(found.trunk, expected.trunk)
    assert found.draw == expected.draw


def test_layers_that_cannot_be_drawn_anew_are_refused_before_training() -> None:
    settings = train_settings(adversary={"num_steps": 2, "starts": {"redrawn_layers": 0.5}})
    said = r"train\.adversary\.starts\.redrawn_layers is 0\.5, but needs fresh weights, .*; set it to 0"
    with pytest.raises(UsageError, match=said):
        OuterStep(settings, trunk=MlpTrunk(), data=FakeData(), generators=Generators(0, GENERATORS))


def test_layers_of_a_single_block_are_not_drawn_anew() -> None:
    trunk = MlpTrunk()
    trunk.num_depths = 1
    with pytest.raises(UsageError, match=r"redrawn_layers is 0\.5, but needs more than one block in this encoder"):
        starts_of(FlatModel(trunk), redrawn_layers=0.5)


def test_a_real_encoder_is_drawn_anew(encoder_folder: Any) -> None:
    from sdm_ray.config import EncoderSettings
    from sdm_ray.models.encoder import load_trunk

    trunk: Any = load_trunk(EncoderSettings(name=str(encoder_folder)), cache_dir=encoder_folder.parent)
    starts = {"released": 0.0, "redrawn_layers": 1.0}
    settings = train_settings(adversary={"num_steps": 1, "starts": starts})
    step = OuterStep(settings, trunk=trunk, data=FakeData(), generators=Generators(0, GENERATORS))
    step.step()
    assert "redrawn layers start of 1" in step.describe_draw()
    assert all(value.isfinite().all() for value in step.params().values())


def test_a_state_from_before_starts_is_read() -> None:
    generators = Generators(0, GENERATORS)
    state = {name: value for name, value in generators.state_dict().items() if "starts" not in name}
    fresh = generators["starts"].get_state()
    generators.load_state_dict(state)
    assert torch.equal(generators["starts"].get_state(), fresh)
