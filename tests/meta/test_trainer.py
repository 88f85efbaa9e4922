"""The trainer learns, blocks, obeys every setting, resumes bit for bit, and stops with a reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sdm_ray.config import TrainSettings
from sdm_ray.core.errors import RunError, UsageError
from sdm_ray.core.seeds import Generators
from sdm_ray.core.types import Split, Task
from sdm_ray.meta.adversaries import distribution as adversary_module
from sdm_ray.meta.adversaries import fresh as simulator_module
from sdm_ray.meta.adversaries import pool as pool_module
from sdm_ray.meta.adversaries import starts as starts_module
from sdm_ray.meta.adversaries.few_shot import FewShot
from sdm_ray.meta.adversaries.fresh import Simulator
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.objectives import TERMS
from sdm_ray.meta.outer.linear import whitening
from sdm_ray.meta.outer.step import OuterStep, Plan
from sdm_ray.meta.trainer import GENERATORS, Trainer, TrainOutcome
from tests.fakes.files import NoHostSync
from tests.fakes.meta import FakeData, MlpTrunk, drive, train, train_settings

POOL = {"num_steps": 0, "pool": {"size": 3, "lifespan_steps": 4, "subset_size": 20, "frozen_probability": 0.3}}
BOTH = {**POOL, "num_steps": 2, "optimizers": ["sgd", "adam"], "frozen_probability": 0.3, "subset_size": 30}
VARIED = {
    "num_adversaries": 3, "num_steps": 3, "num_steps_min": 1, "growing_steps": 6,
    "optimizers": ["sgd", "momentum", "adam", "adamw", "rmsprop"], "learning_rate_schedules": ["warmup", "cosine"],
    "head": "mixture", "frozen_probability": 0.2, "partly_frozen_probability": 0.2, "lora_probability": 0.2,
    "lora_ranks": [1, 2], "parameter_noise": 0.1, "batch_sizes": [4],
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "pretrained": {"method": "pretrained"},
    "tuned": {"method": "tuned"},
    "ac": {"method": "ac"},
    "fresh": {"adversary": {"num_steps": 2}},
    "first_order": {"adversary": {"num_steps": 2}, "gradient_mode": "first_order"},
    "pool": {"adversary": POOL},
    "both": {"adversary": BOTH, "blocking": {"harmful_base": 0.5, "harmful_adapted_calibrated": 1.0}},
    "everything": {
        "adversary": {**VARIED, "pool": {**POOL["pool"], "second_order": True, "steps_per_turn": 2}},
        "gradient_mode": "adjoint", "outer_steps": "sampled", "num_outer_evaluations": 2, "accumulation_steps": 2,
        "blocking": {
            "harmful_base": 0.1, "harmful_adapted_entropy": 1.0, "adapted_grad_norm": 0.1, "desired_adapted": 0.2,
            "desired_adapted_harmful": 0.2, "mutual_information": 0.3, "gradient_coupling": 0.1,
        },
        "optimizer": "AdamW", "optimizer_options": {"weight_decay": 0.1}, "schedule": "CosineAnnealingLR",
        "schedule_options": {"T_max": 12},
    },
    "starts": {
        "adversary": {**BOTH, "starts": {"rescaled": 1.0, "pruned": 1.0, "interpolated": 1.0, "noise": 1.0}},
    },
}  # fmt: skip


def outer_step(**values: Any) -> OuterStep:
    data = FakeData()
    return OuterStep(train_settings(**values), trunk=MlpTrunk(), data=data, generators=Generators(0, GENERATORS))


def text_world(folder: Path, data_settings: Any) -> tuple[Any, Any]:
    """A small encoder of a folder and the biographies, as a trial has them."""
    from sdm_ray.config import EncoderSettings
    from sdm_ray.data.device import DeviceData
    from sdm_ray.data.tokenized import prepare
    from sdm_ray.models.encoder import load_tokenizer, load_trunk, tokenizer_digest

    encoder, cache = EncoderSettings(name=str(folder)), folder.parent
    tokenizer = load_tokenizer(encoder, cache_dir=cache)
    data = DeviceData(prepare(data_settings, tokenizer, tokenizer_digest(tokenizer), cache), "cpu")
    return load_trunk(encoder, cache_dir=cache), data


@cache
def trained(settings: str, knows_names: bool = False) -> TrainOutcome:
    """What several tests compare with: the same training (settings in JSON) is run once."""
    return train(TrainSettings.model_validate_json(settings), trunk=MlpTrunk(knows_names=knows_names))


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
    tuned = trained(train_settings(**LONG, method="tuned").model_dump_json(), knows_names=True)
    blocked = train(train_settings(**LONG, adversary=adversary), data=data, trunk=trunk)
    assert blocked.log[-1]["train/desired_accuracy"] > 0.9
    assert attacked_loss(blocked, data) > attacked_loss(tuned, data) + 0.1


ANY_ADVERSARY = [
    "harmful_adapted", "harmful_adapted_calibrated", "harmful_adapted_clamped", "harmful_adapted_entropy",
    "harmful_adapted_inverse", "harmful_adapted_uniform",
]  # fmt: skip
FRESH_ALONE = [
    "adapted_grad_norm", "desired_adapted", "desired_adapted_harmful", "mutual_information", "gradient_coupling",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "term"),
    [*(("pool", term) for term in ANY_ADVERSARY), *(("fresh", term) for term in [*ANY_ADVERSARY, *FRESH_ALONE])],
)
def test_a_term_moves_in_its_direction(term: str, kind: str) -> None:
    """Against training that all but ignores the terms."""
    able = pool(lifespan_steps=40, learning_rate={"low": 0.01, "high": 0.03})
    adversary = able if kind == "pool" else {"num_steps": 2, "learning_rate_initial": 0.01}
    steps = 40 if kind == "pool" else 60
    common = {**LONG, "num_outer_steps": steps, "log_every_steps": 20, "adversary": adversary, "learning_rate": 1e-2}
    every = dict.fromkeys(ANY_ADVERSARY if kind == "pool" else [*ANY_ADVERSARY, *FRESH_ALONE], 1e-6)
    weak = trained(train_settings(**common, blocking=every).model_dump_json(), knows_names=True).log[-1]
    strong = train(train_settings(**common, blocking={term: 2.0}), trunk=MlpTrunk(knows_names=True)).log[-1]
    change = strong[f"train/{term}"] - weak[f"train/{term}"]
    least = 0.004 if term == "desired_adapted" else 0.02  # the desired loss itself pulls it down already
    assert (change if TERMS[term].maximised else -change) > least


@pytest.mark.parametrize("term", ["retain_distill", "retain_representation"])
def test_retention_keeps_the_model_near_the_original(term: str, bert_folder: Path, data_settings: Any) -> None:
    trunk, data = text_world(bert_folder, data_settings)
    common = {**LONG, "num_outer_steps": 40, "log_every_steps": 10, "method": "mlac"}
    weak, strong = (
        train(train_settings(**common, blocking={term: weight}), trunk=trunk, data=data).log[-1][f"train/{term}"]
        for weight in (1e-6, 20.0)
    )
    assert 0 <= strong < 0.5 * weak


def test_a_term_of_ones_own_blocks_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_terms.py").write_text(
        "from sdm_ray.meta.objectives import blocking_term\n\n\n"
        "@blocking_term('logit_size', reads='harmful_adapted', maximised=False)\n"
        "def logit_size(trajectory):\n    return trajectory.logits.square().mean()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    common = {
        **LONG,
        "num_outer_steps": 40,
        "log_every_steps": 20,
        "term_modules": ["my_terms"],
        "adversary": {"num_steps": 2, "learning_rate_initial": 0.01},
    }
    weak, strong = (
        train(train_settings(**common, blocking={"custom": {"logit_size": weight}})).log[-1]["train/logit_size"]
        for weight in (1e-6, 10.0)
    )
    TERMS.pop("logit_size")
    assert strong < 0.7 * weak


def test_ac_censors_against_a_head_that_learns() -> None:
    step = outer_step(**LONG, method="ac")
    before = step.learned.harmful_head.detach().clone()
    assert len(step.step()) == len(step.metric_names)
    assert not torch.equal(step.learned.harmful_head, before)
    trunk = MlpTrunk(knows_names=True)
    weak = train(train_settings(**LONG, method="ac", blocking={"harmful_base": 1e-6}), trunk=trunk)
    strong = train(train_settings(**LONG, method="ac"), trunk=trunk)
    assert strong.log[-1]["train/harmful_base"] > weak.log[-1]["train/harmful_base"] + 0.1


def test_one_ac_step_is_the_hand_written_one() -> None:
    step = outer_step(method="ac", blocking={"harmful_base": 0.7, "desired_base": 1.3}, gradient_clip=1e6)
    model, data = step.model, FakeData()
    leaves = [v.detach().clone().requires_grad_() for v in (step.trunk, step.desired_head, step.learned.harmful_head)]
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
    for mine, theirs in zip((step.trunk, step.desired_head, step.learned.harmful_head), leaves, strict=True):
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
    censoring = Plan.of(train_settings(method="ac", adversary={"num_steps": 4}))
    assert (censoring.fresh, censoring.num_steps) == ({"harmful_base": 1.0}, 0)
    alone = Plan.of(train_settings(adversary=POOL))
    assert (alone.fresh, alone.pool, alone.num_steps) == ({}, {"harmful_adapted_calibrated": 1.0}, 0)
    assert Plan.of(train_settings(method="tuned")).terms() == []


def test_terms_are_read_where_they_can_be() -> None:
    """Terms of inner steps go to fresh adversaries alone, terms of the desired task to adversaries of their own."""
    blocking = {
        "harmful_adapted": 1.0, "adapted_grad_norm": 0.5, "desired_adapted": 0.25, "gradient_coupling": 2.0,
        "retain_distill": 3.0,
    }  # fmt: skip
    plan = Plan.of(train_settings(adversary=BOTH, blocking=blocking))
    assert plan.fresh == {"harmful_adapted": 0.5, "adapted_grad_norm": 0.5}
    assert plan.pool == {"harmful_adapted": 0.5}
    assert plan.desired == {"desired_adapted": 0.25}
    assert plan.gradients == {"gradient_coupling": 2.0}
    assert plan.retention == {"retain_distill": 3.0}


FRESH: dict[str, Any] = {"num_steps": 2, "learning_rate_initial": 0.01}
SGD = {**FRESH, "optimizers": ["sgd"]}


def starting(**starts: Any) -> dict[str, Any]:
    return {"adversary": {**FRESH, "starts": {"released": 0.0, **starts}}}


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
        ({}, {"optimizer": "RMSprop"}),
        ({}, {"optimizer_options": {"betas": [0.5, 0.9]}}),
        ({}, {"schedule": "StepLR", "schedule_options": {"step_size": 3}}),
        ({}, {"accumulation_steps": 2}),
        ({}, {"gradient_mode": "truncated", "truncation_steps": 1}),
        ({}, {"outer_steps": "last"}),
        ({}, {"outer_steps": "sampled", "num_outer_evaluations": 2}),
        ({}, {"validation": {"every_steps": 4, "fraction": 0.3}}),
        ({}, {"adversary": {**FRESH, "num_adversaries": 2}}),
        ({}, {"adversary": {**FRESH, "num_steps_min": 1}}),
        ({}, {"adversary": {**FRESH, "growing_steps": 8}}),
        ({}, {"adversary": {**FRESH, "learning_rate_mode": "fixed"}}),
        ({}, {"adversary": {**FRESH, "learning_rate_schedules": ["linear"]}}),
        ({}, {"adversary": {**FRESH, "head": "mixture"}}),
        ({}, {"adversary": {**FRESH, "partly_frozen_probability": 1.0}}),
        ({}, {"adversary": {**FRESH, "lora_probability": 1.0}}),
        ({}, {"adversary": {**FRESH, "parameter_noise": 0.5}}),
        *(({"adversary": FRESH}, starting(**{k: 1.0})) for k in ("rescaled", "pruned", "interpolated", "noise")),
        (starting(pruned=1.0), starting(pruned=1.0, released=1.0)),
        (starting(rescaled=1.0), starting(rescaled=1.0, rescaled_exponents=[0.5])),
        (starting(pruned=1.0), starting(pruned=1.0, pruned_shares=[0.8])),
        (starting(interpolated=1.0), starting(interpolated=1.0, interpolated_shares=[0.9])),
        (starting(noise=1.0), starting(noise=1.0, noise_scales=[0.2])),
        ({"adversary": POOL}, {"adversary": {**POOL, "starts": {"pruned": 9.0}}}),
        (
            {"adversary": {**FRESH, "head": "mixture"}},
            {"adversary": {**FRESH, "head": "mixture", "head_reset_probability": 0.0}},
        ),
        (
            {"adversary": {**FRESH, "lora_probability": 1.0, "lora_ranks": [1]}},
            {"adversary": {**FRESH, "lora_probability": 1.0, "lora_ranks": [2]}},
        ),
        ({"adversary": POOL}, {"adversary": pool(second_order=True, steps_per_turn=2)}),
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
    start = {"adversary": FRESH, "num_outer_steps": 5, **base}
    plain = trained(train_settings(**start).model_dump_json())
    assert not same(plain, train(train_settings(**{**start, **change})))


def test_bfloat16_runs_first_derivatives_alone() -> None:
    """It changes what is differentiated once; the curvature of an inner loop stays as it is in float32."""
    trunk = MlpTrunk(dtype=torch.float32)
    plain, mixed = (
        train(train_settings(precision=precision, adversary=FRESH), trunk=trunk)
        for precision in ("float32", "bfloat16")
    )
    assert not same(plain, mixed)
    assert (flat(plain) - flat(mixed)).norm() < 0.1 * (flat(plain) - FlatModel(trunk).initial()).norm()
    assert all(value.dtype == torch.float32 for value in mixed.params.values())


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
        Trainer(train_settings(**KINDS["both"], log_every_steps=5), trunk=MlpTrunk(), data=FakeData(), seed=0)
    )
    assert outcome is not None
    assert [row["train/step"] for row in outcome.log] == [5, 10, 12]
    for name in outcome.log[0].keys() - {"train/step"}:
        for row, part in zip(outcome.log, (fine[:5], fine[5:10], fine[10:]), strict=True):
            assert row[name] == pytest.approx(sum(r[name] for r in part) / len(part))
    assert [(p.stage, p.done, p.total) for p in progress] == [("train", 5, 12), ("train", 10, 12), ("train", 12, 12)]
    costs = {"train/steps_per_second", "train/seconds_left", "cost/memory_bytes"}
    assert progress[0].metrics.keys() - outcome.log[0].keys() == costs
    assert outcome.seconds > 0


@pytest.mark.parametrize(("kind", "every"), [*((kind, 3) for kind in KINDS if kind != "both"), ("both", 5)])
def test_an_interrupted_run_ends_bit_for_bit_the_same(tmp_path: Path, kind: str, every: int) -> None:
    """Checkpoints of every 3 or 5 steps fall between the log's rows of every 4."""
    # The dearest kind needs no more than both stops and a few steps after them.
    values = {**KINDS[kind], "num_outer_steps": 7 if kind == "everything" else 12}
    settings = train_settings(**values, checkpoint_every_steps=every)

    def trainer(folder: Path) -> Trainer:
        return Trainer(settings, trunk=MlpTrunk(), data=FakeData(), seed=0, checkpoint_dir=folder)

    straight = trained(train_settings(**values).model_dump_json())
    for stop in (4,) if kind == "everything" else (4, 8):
        drive(trainer(tmp_path / "interrupted"), stop_at=stop)
    resumed, _ = drive(trainer(tmp_path / "interrupted"))
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
    assert torch.equal(step.learned.harmful_head, other.learned.harmful_head)
    assert torch.equal(step.learned.log_learning_rate, other.learned.log_learning_rate)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    def attempt(trunk: MlpTrunk | None = None, data: FakeData | None = None, seed: int = 0, **values: Any) -> None:
        drive(Trainer(
            train_settings(method="tuned", **values), trunk=trunk or MlpTrunk(), data=data or FakeData(), seed=seed,
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
        return Trainer(settings, trunk=MlpTrunk(), data=data, seed=0, checkpoint_dir=tmp_path)

    broken = trainer()
    plain, calls = broken._step.step, iter(range(100))

    def poisoned() -> Tensor:
        if next(calls) == 6:
            for member in vars(broken._step)["adversaries"].pool.members:
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
    trainer = Trainer(settings, trunk=MlpTrunk(), data=FakeData(), seed=0, checkpoint_dir=tmp_path)
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
        modules = (
            (adversary_module, ("uniform", "whole_number")), (pool_module, ("whole_number",)),
            (simulator_module, ("whole_number",)), (starts_module, ("uniform", "whole_number")),
            (Simulator, ("_evaluated_steps",)),
        )  # fmt: skip
        for module, names in modules:
            for name in names:
                patch.setattr(module, name, allowed(getattr(module, name)))
        patch.setattr(FewShot, "draw", allowed(FewShot.draw))
        yield


@pytest.mark.parametrize("kind", ["tuned", "ac", "fresh", "first_order", "pool", "both", "everything", "starts"])
def test_no_outer_step_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = outer_step(**KINDS[kind])
    with _host_draws_allowed(monkeypatch), NoHostSync():
        for _ in range(6):
            step.step()


@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_settings_of_every_method_train_on_the_real_pipeline(
    family: str, encoder_folder: Path, bert_folder: Path, data_settings: Any
) -> None:
    trunk, data = text_world(encoder_folder if family == "modernbert" else bert_folder, data_settings)
    for values in KINDS.values() if family == "modernbert" else (KINDS["tuned"], KINDS["everything"]):
        settings: TrainSettings = train_settings(**values, num_outer_steps=1)
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
