"""The trainer learns, blocks, obeys every setting, resumes bit for bit, and stops with a reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.config import TrainSettings
from sdm_ray.errors import RunError, UsageError
from sdm_ray.meta import adversary as adversary_module
from sdm_ray.meta import pool as pool_module
from sdm_ray.meta.functional import FlatModel
from sdm_ray.meta.generators import Generators
from sdm_ray.meta.linear import whitening
from sdm_ray.meta.outer import OuterStep, Plan
from sdm_ray.meta.trainer import GENERATORS, Trainer, TrainOutcome
from sdm_ray.types import Split, Task
from tests.meta_fakes import FakeData, MlpTrunk, NoHostSync, drive, train, train_settings

POOL = {"num_steps": 0, "pool": {"size": 3, "lifespan_steps": 4, "subset_size": 20, "frozen_probability": 0.3}}
BOTH = {**POOL, "num_steps": 2, "optimizers": ["sgd", "adam"], "frozen_probability": 0.3, "subset_size": 30}
KINDS: dict[str, dict[str, Any]] = {
    "pretrained": {"method": "pretrained"},
    "tuned": {"method": "tuned"},
    "ac": {"method": "ac"},
    "fresh": {"adversary": {"num_steps": 2}},
    "first_order": {"adversary": {"num_steps": 2}, "gradient_mode": "first_order"},
    "pool": {"adversary": POOL},
    "both": {"adversary": BOTH, "blocking": {"harmful_base": 0.5, "harmful_adapted_calibrated": 1.0}},
}


def outer_step(**values: Any) -> OuterStep:
    data: Any = FakeData()
    return OuterStep(train_settings(**values), trunk=MlpTrunk(), data=data, generators=Generators(0, GENERATORS))


def flat(outcome: TrainOutcome) -> Tensor:
    return torch.cat([value.reshape(-1) for value in outcome.params.values()])


def same(first: TrainOutcome, second: TrainOutcome) -> bool:
    return torch.equal(flat(first), flat(second)) and torch.equal(first.desired_head, second.desired_head)


def attacked_loss(outcome: TrainOutcome, data: FakeData, steps: int = 60) -> float:
    """Lowest cross-entropy on the rest after fine-tuning on twelve harmful examples: an attacker of its own."""
    model = FlatModel(MlpTrunk())
    trunk = model.layout.flatten(outcome.params).requires_grad_()
    head = torch.zeros(2, model.feature_dim, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([trunk, head], 0.01)
    train_batch = data.batch(data.indices(Split.ATTACKER_TRAIN)[:12], Task.HARMFUL)
    test_batch = data.batch(data.indices(Split.ATTACKER_TRAIN)[12:], Task.HARMFUL)
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        F.cross_entropy(model.logits(trunk, head, train_batch), train_batch.labels).backward()
        adam.step()
        with torch.no_grad():
            losses.append(F.cross_entropy(model.logits(trunk, head, test_batch), test_batch.labels).item())
    return min(losses)


LONG = {
    "num_outer_steps": 160, "log_every_steps": 40, "learning_rate": 5e-3, "head_learning_rate": 5e-2,
    "adversary_learning_rate": 1e-2,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "accuracy"), [("pretrained", 0.6), ("tuned", 0.95), ("ac", 0.95), ("pool", 0.95)])
def test_it_learns_the_desired_task(kind: str, accuracy: float) -> None:
    log = train(train_settings(**LONG, **KINDS[kind])).log
    assert log[-1]["train/desired_accuracy"] > accuracy
    assert log[-1]["train/desired_loss"] < 0.9 * log[0]["train/desired_loss"]


@pytest.mark.parametrize(
    "adversary",
    [
        {"num_steps": 4, "learning_rate_initial": 0.01},
        {"num_steps": 4, "learning_rate_initial": 0.01, "frozen_probability": 1.0},
        {"num_steps": 0, "pool": {"size": 4, "lifespan_steps": 40, "learning_rate": {"low": 0.003, "high": 0.03}}},
    ],
    ids=["fresh", "frozen", "pool"],
)  # fmt: skip
def test_mlac_costs_an_attacker_more_than_tuning_does(adversary: dict[str, Any]) -> None:
    data, trunk = FakeData(), MlpTrunk(knows_names=True)
    tuned = train(train_settings(**LONG, method="tuned"), data=data, trunk=trunk)
    blocked = train(train_settings(**LONG, adversary=adversary), data=data, trunk=trunk)
    assert blocked.log[-1]["train/desired_accuracy"] > 0.9
    assert attacked_loss(blocked, data) > attacked_loss(tuned, data) + 0.1


@pytest.mark.parametrize("term", ["harmful_adapted", "harmful_adapted_calibrated", "harmful_adapted_clamped"])
@pytest.mark.parametrize("kind", ["fresh", "pool"])
def test_a_term_moves_in_its_direction(term: str, kind: str) -> None:
    able = pool(lifespan_steps=40, learning_rate={"low": 0.01, "high": 0.03})
    adversary = able if kind == "pool" else {"num_steps": 2, "learning_rate_initial": 0.01}
    common = {**LONG, "num_outer_steps": 100, "log_every_steps": 20, "adversary": adversary}
    weak, strong = (
        train(train_settings(**common, blocking={term: weight}), trunk=MlpTrunk(knows_names=True)).log[-1]
        for weight in (1e-6, 2.0)
    )
    assert strong[f"train/{term}"] > weak[f"train/{term}"] + 0.02


def test_ac_censors_against_a_head_that_learns() -> None:
    step = outer_step(**LONG, method="ac")
    before = step.harmful_head.detach().clone()
    assert len(step.step()) == len(step.metric_names)
    assert not torch.equal(step.harmful_head, before)
    trunk = MlpTrunk(knows_names=True)
    weak = train(train_settings(**LONG, method="ac", blocking={"harmful_base": 1e-6}), trunk=trunk)
    strong = train(train_settings(**LONG, method="ac"), trunk=trunk)
    assert strong.log[-1]["train/harmful_base"] > weak.log[-1]["train/harmful_base"] + 0.1


def test_one_ac_step_is_the_hand_written_one() -> None:
    step = outer_step(method="ac", blocking={"harmful_base": 0.7, "desired_base": 1.3}, gradient_clip=1e6)
    model, data = step.model, FakeData()
    leaves = [v.detach().clone().requires_grad_() for v in (step.trunk, step.desired_head, step.harmful_head)]
    trunk, desired_head, harmful_head = leaves
    twin = outer_step(method="ac")
    desired = data.batch(twin._desired.next(), Task.DESIRED)
    harmful = data.batch(twin._harmful.next(), Task.HARMFUL)
    desired_loss = F.cross_entropy(model.logits(trunk, desired_head, desired), desired.labels)
    harmful_loss = F.cross_entropy(model.logits(trunk, harmful_head, harmful), harmful.labels)
    trunk.grad, desired_head.grad = torch.autograd.grad(
        1.3 * desired_loss - 0.7 * harmful_loss, (trunk, desired_head), retain_graph=True
    )
    (harmful_head.grad,) = torch.autograd.grad(harmful_loss, harmful_head)
    rates = (3e-4, 3e-3, 1e-3)
    torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in zip(leaves, rates, strict=True)]).step()
    step.step()
    for mine, theirs in zip((step.trunk, step.desired_head, step.harmful_head), leaves, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-9, atol=1e-12)


def test_pretrained_fits_the_head_and_leaves_the_trunk() -> None:
    trunk = MlpTrunk()
    outcome = train(train_settings(method="pretrained"), trunk=trunk)
    assert all(torch.equal(outcome.params[name], value) for name, value in trunk.named_parameters())
    other = train(train_settings(method="pretrained", num_outer_steps=13), trunk=trunk)
    assert not torch.equal(outcome.desired_head, other.desired_head)


def test_the_given_trunk_is_not_written_to() -> None:
    trunk, before = MlpTrunk(), MlpTrunk().digest()
    outcome = train(train_settings(**KINDS["both"]), trunk=trunk)
    assert trunk.digest() == before
    assert not torch.equal(flat(outcome), FlatModel(trunk).initial())


def test_fresh_and_persistent_adversaries_share_the_adapted_weight() -> None:
    plan = Plan.of(train_settings(**KINDS["both"]))
    assert plan.fresh == {"harmful_base": 0.5, "harmful_adapted_calibrated": 0.5}
    assert plan.pool == {"harmful_adapted_calibrated": 0.5}
    assert Plan.of(train_settings(method="ac", adversary={"num_steps": 4})) == ({"harmful_base": 1.0}, {}, 0)
    assert Plan.of(train_settings(adversary=POOL)) == ({}, {"harmful_adapted_calibrated": 1.0}, 0)
    assert Plan.of(train_settings(method="tuned")) == ({}, {}, 0)


FRESH: dict[str, Any] = {"num_steps": 2, "learning_rate_initial": 0.01}
SGD = {**FRESH, "optimizers": ["sgd"]}


def pool(**changes: Any) -> dict[str, Any]:
    return {**POOL, "pool": {**POOL["pool"], **changes}}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"desired_batch_size": 9}),
        ({}, {"harmful_batch_size": 9}),
        ({}, {"learning_rate": 1e-3}),
        ({}, {"head_learning_rate": 1e-2}),
        ({}, {"adversary_learning_rate": 1e-2}),
        ({}, {"warmup_steps": 6}),
        ({}, {"gradient_clip": 1e-9}),
        ({}, {"gradient_mode": "first_order"}),
        ({}, {"blocking": {"harmful_adapted_calibrated": 2.0}}),
        ({}, {"blocking": {"harmful_adapted_calibrated": 1.0, "harmful_base": 0.1}}),
        ({}, {"blocking": {"harmful_adapted_calibrated": 1.0, "desired_base": 2.0}}),
        ({}, {"adversary": {**FRESH, "num_steps": 3}}),
        ({}, {"adversary": {**FRESH, "optimizers": ["sgd"]}}),
        ({}, {"adversary": {**FRESH, "learning_rate_mode": "log_uniform"}}),
        ({}, {"adversary": {**FRESH, "learning_rate_initial": 1e-3}}),
        ({}, {"adversary": {**FRESH, "batch_sizes": [4]}}),
        ({}, {"adversary": {**FRESH, "head": "reset"}}),
        ({}, {"adversary": {**FRESH, "frozen_probability": 1.0}}),
        ({}, {"adversary": {**FRESH, "subset_size": 20}}),
        ({"adversary": SGD}, {"adversary": {**SGD, "gradient_clip": 0.01}}),
        ({"adversary": POOL}, {"adversary": pool(size=2)}),
        ({"adversary": POOL}, {"adversary": pool(lifespan_steps=1)}),
        ({"adversary": POOL}, {"adversary": pool(subset_size=None)}),
        ({"adversary": POOL}, {"adversary": pool(steps_per_turn=2)}),
        ({"adversary": POOL}, {"adversary": pool(frozen_probability=1.0)}),
        ({"adversary": POOL}, {"adversary": pool(learning_rate={"low": 0.1, "high": 0.1})}),
        ({"adversary": POOL}, {"adversary": {**POOL, "num_steps": 1}}),
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_outcome(base: dict[str, Any], change: dict[str, Any]) -> None:
    start = {"adversary": FRESH, **base}
    assert not same(train(train_settings(**start)), train(train_settings(**{**start, **change})))


def test_seeds_differ_and_repeat() -> None:
    settings = train_settings(**KINDS["both"])
    assert same(train(settings, seed=3), train(settings, seed=3))
    assert not same(train(settings, seed=3), train(settings, seed=4))


def test_warm_up_rises_linearly() -> None:
    warm, cold = (outer_step(method="tuned", warmup_steps=steps) for steps in (4, 0))
    start = warm.trunk.detach().clone()
    warm.step(), cold.step()
    torch.testing.assert_close((warm.trunk - start).detach() * 4, (cold.trunk - start).detach(), rtol=1e-9, atol=1e-12)


def test_the_meta_learned_rate_stays_in_its_range_and_moves() -> None:
    adversary = {"num_steps": 2, "learning_rate_initial": 0.009, "learning_rate": {"low": 1e-3, "high": 0.0095}}
    rates = [row["train/adversary_learning_rate"] for row in train(
        train_settings(adversary=adversary, adversary_learning_rate=0.1, num_outer_steps=30, log_every_steps=1)
    ).log]  # fmt: skip
    assert rates[0] == pytest.approx(0.009)
    assert len(set(rates)) > 1
    assert all(1e-3 * (1 - 1e-9) <= rate <= 0.0095 * (1 + 1e-9) for rate in rates)


def test_the_log_holds_means_of_its_intervals() -> None:
    fine = train(train_settings(**KINDS["both"], log_every_steps=1)).log
    outcome, progress = drive(
        Trainer(train_settings(**KINDS["both"], log_every_steps=5), trunk=MlpTrunk(), data=FakeData(), seed=0)  # type: ignore[arg-type]
    )
    assert outcome is not None
    assert [row["train/step"] for row in outcome.log] == [5, 10, 12]
    for name in outcome.log[0].keys() - {"train/step"}:
        for row, part in zip(outcome.log, (fine[:5], fine[5:10], fine[10:]), strict=True):
            assert row[name] == pytest.approx(sum(r[name] for r in part) / len(part))
    assert [(p.stage, p.done, p.total) for p in progress] == [("train", 5, 12), ("train", 10, 12), ("train", 12, 12)]
    assert progress[0].metrics.keys() - outcome.log[0].keys() == {"train/steps_per_second"}
    assert outcome.seconds > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [3, 5])
def test_an_interrupted_run_ends_bit_for_bit_the_same(tmp_path: Path, kind: str, every: int) -> None:
    """Checkpoints of every 5 steps fall between the log's rows of every 4."""
    settings = train_settings(**KINDS[kind], checkpoint_every_steps=every)

    def trainer(folder: Path) -> Trainer:
        return Trainer(settings, trunk=MlpTrunk(), data=FakeData(), seed=0, checkpoint_dir=folder)  # type: ignore[arg-type]

    straight, _ = drive(trainer(tmp_path / "straight"))
    for stop in (4, 8):
        drive(trainer(tmp_path / "interrupted"), stop_at=stop)
    resumed, _ = drive(trainer(tmp_path / "interrupted"))
    assert straight is not None
    assert resumed is not None
    assert same(straight, resumed)
    assert straight.log == resumed.log
    again, progress = drive(trainer(tmp_path / "interrupted"))
    assert progress == []
    assert again is not None
    assert same(again, straight)
    assert again.log == straight.log
    assert again.seconds == resumed.seconds


def test_a_resumed_run_carries_the_adversary_and_the_optimiser(tmp_path: Path) -> None:
    """Not only the trunk: what the next step depends on is all there."""
    step, other = outer_step(**KINDS["both"]), outer_step(**KINDS["both"])
    for _ in range(5):
        step.step()
    from sdm_ray.meta.checkpoint import load_checkpoint, save_checkpoint

    save_checkpoint(tmp_path, 5, {}, step.state_dict())
    found = load_checkpoint(tmp_path, {}, torch.device("cpu"))
    assert found is not None
    other.load_state_dict(found[1])
    for _ in range(4):
        assert torch.equal(step.step(), other.step())
        assert step.describe_draw() == other.describe_draw()
    assert torch.equal(step.harmful_head, other.harmful_head)
    assert torch.equal(step.log_learning_rate, other.log_learning_rate)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    def attempt(trunk: MlpTrunk | None = None, data: FakeData | None = None, seed: int = 0, **values: Any) -> None:
        drive(Trainer(
            train_settings(method="tuned", **values), trunk=trunk or MlpTrunk(), data=data or FakeData(), seed=seed,  # type: ignore[arg-type]
            checkpoint_dir=tmp_path,
        ))  # fmt: skip

    attempt()
    for message, changes in {
        r"train\.learning_rate was 0\.0003, now it is 0\.001": {"learning_rate": 1e-3},
        r"seed was 0, now it is 1": {"seed": 1},
        r"data was ": {"data": FakeData(seed=1)},
        r"encoder was ": {"trunk": MlpTrunk(seed=1)},
    }.items():
        with pytest.raises(UsageError, match=message):
            attempt(**changes)


def test_divergence_names_step_term_and_adversary_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    adversary = {"num_steps": 0, "pool": {"size": 3, "lifespan_steps": 10**6, "subset_size": 20}}
    settings = train_settings(adversary=adversary, num_outer_steps=20, checkpoint_every_steps=5)
    data = FakeData()

    def trainer() -> Trainer:
        return Trainer(settings, trunk=MlpTrunk(), data=data, seed=0, checkpoint_dir=tmp_path)  # type: ignore[arg-type]

    broken = trainer()
    plain, calls = broken._step.step, iter(range(100))

    def poisoned() -> Tensor:
        if next(calls) == 6:
            for member in vars(broken._step)["pool"].members:
                member.head.fill_(math.nan)
        return plain()

    broken._step.step = poisoned  # type: ignore[method-assign]
    with pytest.raises(RunError) as caught:
        drive(broken)
    assert "training diverged at outer step 7: pool_loss is nan" in str(caught.value)
    assert "met with persistent adversary (adam, learning rate" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
    outcome, _ = drive(trainer())
    assert outcome is not None
    assert flat(outcome).isfinite().all()


def test_a_diverging_run_writes_no_checkpoint(tmp_path: Path) -> None:
    settings = train_settings(method="tuned", log_every_steps=12, checkpoint_every_steps=2)
    trainer = Trainer(settings, trunk=MlpTrunk(), data=FakeData(), seed=0, checkpoint_dir=tmp_path)  # type: ignore[arg-type]
    with torch.no_grad():
        vars(trainer._step)["trunk"].fill_(math.nan)
    with pytest.raises(RunError, match="diverged at outer step 1: desired_loss is nan"):
        drive(trainer)
    assert list(tmp_path.iterdir()) == []


def test_subsets_larger_than_the_split_are_refused() -> None:
    for adversary in ({"subset_size": 500}, {"num_steps": 0, "pool": {"size": 1, "subset_size": 500}}):
        with pytest.raises(UsageError, match="subset_size is 500, but the meta-training split has only 120 examples"):
            train(train_settings(adversary=adversary))


@contextmanager
def _host_draws_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Structural draws read a CPU generator; that is no wait for a device."""

    def allowed(function: Any) -> Any:
        def call(*args: Any) -> Any:
            with torch.utils._python_dispatch._disable_current_modes():
                return function(*args)

        return call

    with monkeypatch.context() as patch:
        for module, names in ((adversary_module, ("uniform", "whole_number")), (pool_module, ("whole_number",))):
            for name in names:
                patch.setattr(module, name, allowed(getattr(module, name)))
        patch.setattr(adversary_module.FewShot, "draw", allowed(adversary_module.FewShot.draw))
        yield


@pytest.mark.parametrize("kind", ["tuned", "ac", "fresh", "first_order", "pool", "both"])
def test_no_outer_step_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = outer_step(**KINDS[kind])
    with _host_draws_allowed(monkeypatch), NoHostSync():
        for _ in range(6):
            step.step()


def test_settings_of_every_method_train_on_the_real_pipeline(
    encoder_folder: Path, data_settings: Any, encoder_settings: Any, tmp_path: Path
) -> None:
    from sdm_ray.data.device import DeviceData
    from sdm_ray.data.tokenized import prepare
    from sdm_ray.models.encoder import load_tokenizer, load_trunk, tokenizer_digest

    tokenizer = load_tokenizer(encoder_settings, cache_dir=tmp_path)
    data = DeviceData(prepare(data_settings, tokenizer, tokenizer_digest(tokenizer), tmp_path), "cpu")
    trunk = load_trunk(encoder_settings, cache_dir=tmp_path)
    for values in KINDS.values():
        settings: TrainSettings = train_settings(**values, num_outer_steps=3)
        outcome, _ = drive(Trainer(settings, trunk=trunk, data=data, seed=0))
        assert outcome is not None
        assert outcome.params.keys() == dict(trunk.named_parameters()).keys()
        assert outcome.desired_head.shape == (data.num_classes(Task.DESIRED), trunk.feature_dim)


def test_whitening_makes_second_moments_the_identity() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1e2, 1.0, 1e-1], dtype=torch.float64)
    features = torch.randn(500, 3, generator=generator, dtype=torch.float64) * scales + 3
    white = features @ whitening(features)
    assert torch.allclose(white.T @ white / 500, torch.eye(3, dtype=torch.float64), atol=1e-4)
