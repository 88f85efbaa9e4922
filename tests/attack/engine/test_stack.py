"""Stacked fine-tuning equals one `torch.optim` fine-tune after the other."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sdm_ray.attack.engine.executor as execute_module
import sdm_ray.attack.engine.stack as batch_module
from sdm_ray.attack.engine.executor import Executor
from sdm_ray.attack.engine.optim import OPTIMIZERS, SCALE_FREE, rate_factors
from sdm_ray.attack.engine.plan import Plan
from sdm_ray.attack.engine.rows import Rows
from sdm_ray.attack.engine.scoring import forward_options, trunk_features
from sdm_ray.attack.engine.stack import HEAD, Trained, train_heads, train_stack
from sdm_ray.attack.families import Attacker
from sdm_ray.attack.families.lora import ALPHA
from sdm_ray.core.types import Split, Task
from sdm_ray.models.heads import logits
from sdm_ray.models.packing import token_places
from sdm_ray.models.trunk import Trunk
from tests.fakes.attack_world import VOCABULARY, FakeData, TinyTrunk, params_of, quick
from tests.fakes.files import tiny_config


def attackers(**changes: Any) -> list[Attacker]:
    """Different n, learning rate, steps and seeds; one batch size, longest first."""
    shapes = [(40, 3e-3, 23, 0), (20, 1e-2, 17, 1), (20, 1e-3, 17, 0), (9, 3e-2, 4, 2)]
    return [
        Attacker(
            family="fine_tune",
            num_examples=n,
            learning_rate=rate,
            num_steps=steps,
            batch_size=8,
            seed_index=seed,
            **changes,
        )
        for n, rate, steps, seed in shapes
    ]


def make_trunk(kind: str) -> nn.Module:
    if kind == "tiny":
        return TinyTrunk(dtype=torch.float64)
    from transformers import AutoModelForSequenceClassification

    config = tiny_config(kind, vocab_size=VOCABULARY, attn_implementation="eager")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Trunk(AutoModelForSequenceClassification.from_config(config), "native").double()


def serial(trunk: nn.Module, data: FakeData, plan: Plan, index: int) -> tuple[nn.Module, Tensor]:
    """The straightforward way: a copy of the model, a parameter for the head, an optimiser of `torch.optim`."""
    attacker, model = plan.attackers[index], copy.deepcopy(trunk)
    head = nn.Parameter(plan.heads[index].clone())
    for name, value in model.named_parameters():
        deep = attacker.depth == 0 or trunk.depth_of(name) >= attacker.depth  # type: ignore[operator]
        value.requires_grad_(not attacker.frozen and deep)
    trained = [head, *(value for value in model.parameters() if value.requires_grad)]
    optimizer = THEIRS[attacker.optimizer](trained, lr=attacker.learning_rate)
    factors = rate_factors(attacker.schedule, attacker.num_steps)
    options = forward_options(model)
    for positions, factor in zip(plan.orders[index], factors, strict=True):
        batch = data.batch(plan.subsets[index][positions], Task.HARMFUL)
        optimizer.param_groups[0]["lr"] = attacker.learning_rate * factor
        optimizer.zero_grad()
        F.cross_entropy(model(batch.input_ids, batch.attention_mask, **options) @ head.T, batch.labels).backward()
        for value in trained:  # ours has a gradient of zero where theirs has none
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad
        optimizer.step()
    return model, head.detach()


def prepared(kind: str, **changes: Any) -> tuple[nn.Module, FakeData, Executor, Plan]:
    trunk, data = make_trunk(kind), FakeData()
    executor = Executor(trunk, params_of(trunk), data, quick(), Task.HARMFUL)  # type: ignore[arg-type]
    return trunk, data, executor, executor.plan(attackers(**changes))


class Lion(torch.optim.Optimizer):
    """Chen et al., arXiv 2302.06675, algorithm 2, without weight decay."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for value in group["params"]:
                mean = self.state[value].setdefault("mean", torch.zeros_like(value))
                with torch.no_grad():
                    value -= group["lr"] * torch.sign(0.9 * mean + 0.1 * value.grad)
                    mean.copy_(0.99 * mean + 0.01 * value.grad)


THEIRS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "momentum": lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "adadelta": torch.optim.Adadelta,
    "adafactor": torch.optim.Adafactor,
    "lion": Lion,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(4, 5), (5,)])
def test_optimisers_equal_torch(name: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    rates = torch.tensor([1e-3, 1e-2, 0.5], dtype=torch.float64)
    grads = [torch.randn(3, *shape, generator=generator, dtype=torch.float64) * 10.0**-k for k in range(12)]
    grads[3][:, 0] = 0.0
    params = {"w": start.clone()}
    state = OPTIMIZERS[name].init(params)
    for step, grad in enumerate(grads, 1):
        OPTIMIZERS[name].update_(params, state, {"w": grad}, rates, step)
    for i in range(3):
        wanted = nn.Parameter(start[i].clone())
        optimizer = THEIRS[name]([wanted], lr=float(rates[i]))
        for grad in grads:
            wanted.grad = grad[i].clone()
            optimizer.step()
        torch.testing.assert_close(params["w"][i] - start[i], wanted.detach() - start[i], rtol=0, atol=1e-10)


STACKS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in ("tiny", "bert", "electra", "modernbert")),
    *(("bert", {"optimizer": name}) for name in OPTIMIZERS if name != "adam"),
    *(("bert", {"schedule": name}) for name in ("warmup", "cosine", "linear")),
    *(("bert", {"trains": "upper", "depth": depth}) for depth in (1, 2)),
]


@pytest.mark.parametrize(("kind", "changes"), STACKS, ids=str)
def test_stack_equals_serial(kind: str, changes: dict[str, Any]) -> None:
    """Parameters to 1e-8 and equal predictions; ModernBERT rotates in float32 whatever its type, hence 1e-4 there."""
    trunk, data, executor, plan = prepared(kind, **changes)
    trained, curves = executor.train(plan)
    tolerance = 1e-4 if kind == "modernbert" else 1e-8
    assert (trunk.embedding_name is None) == (kind == "tiny")
    scores = trained.logits(executor.val)
    for i in range(len(plan.attackers)):
        model, head = serial(trunk, data, plan, i)
        params, heads = trained.params(slice(i, i + 1))
        torch.testing.assert_close(heads[0], head, rtol=0, atol=tolerance)
        for name, wanted in model.named_parameters():
            if name not in params:
                assert torch.equal(wanted, dict(trunk.named_parameters())[name]), "below the depth nothing moves"
                continue
            if name.endswith("key.bias") and plan.attackers[i].optimizer in SCALE_FREE:
                continue  # its gradient is rounding alone, which these optimisers blow up; no output needs it
            torch.testing.assert_close(
                params[name][0], wanted.detach(), rtol=0, atol=tolerance, msg=lambda m, n=name: n + m
            )
        with torch.no_grad():
            ids = data.batch(executor.val.indices, Task.HARMFUL)
            expected = model(ids.input_ids, ids.attention_mask) @ head.T
        torch.testing.assert_close(scores[i], expected, rtol=0, atol=tolerance * 10)
        assert torch.equal(scores[i].argmax(-1), expected.argmax(-1))
    assert curves.losses.shape == (plan.attackers[0].num_steps, len(plan.attackers))


def test_scoring_in_groups_equals_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, executor, plan = prepared("bert")
    trained, _ = executor.train(plan)
    alone = trained.logits(executor.val)
    monkeypatch.setitem(batch_module.ATTACKERS_PER_SCORING, "cpu", 3)
    torch.testing.assert_close(trained.logits(executor.val), alone, rtol=0, atol=1e-12)


def test_occurring_rows_equal_all_rows() -> None:
    trunk, data, executor, plan = prepared("bert")
    restricted, _ = executor.train(plan)
    model = dataclasses.replace(executor.models.of(plan.attackers, executor.editor), embedding=None)
    everything, _ = train_stack(model, data, Task.HARMFUL, plan, executor.val)  # type: ignore[arg-type]
    assert restricted._stacked[trunk.embedding_name].shape[1] < VOCABULARY  # type: ignore[index]
    left, right = restricted.params(slice(None))[0], everything.params(slice(None))[0]
    for name in right:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=1e-12)


def test_rows_survive_the_round_trip() -> None:
    embedding = torch.randn(50, 3)
    ids = torch.tensor([[4, 4, 49], [0, 7, 8]])
    rows = Rows.of(ids, 50)
    taken = rows.take(embedding)
    assert torch.equal(rows.restore(embedding, taken, slice(None)), embedding.expand(2, -1, -1))
    moved = rows.restore(embedding, taken + rows.used[..., None], slice(None))
    for i in range(2):
        changed = (moved[i] != embedding).any(-1).nonzero().flatten()
        assert changed.tolist() == sorted(set(ids[i].tolist()))
        assert torch.equal(taken[i][rows.localise(ids)[i]], embedding[ids[i]])


def test_fixed_tokens_keep_their_place_though_they_do_not_occur() -> None:
    ids = torch.tensor([[0, 5, 9], [7, 7, 2]])
    rows = Rows.of(ids, 50, 2)
    assert rows.tokens[:, :4].tolist() == [[0, 1, 5, 9], [0, 1, 2, 7]]
    assert rows.localise(ids).tolist() == [[0, 2, 3], [3, 3, 2]]


def test_texts_without_padding_keep_their_positions_where_these_are_told_from_token_ids() -> None:
    # RoBERTa numbers positions by `input_ids != padding_idx`, whatever token a restricted embedding has in that row.
    trunk, data, executor, plan = prepared("roberta")
    data.ids[data.ids == 0] = 7
    data.lengths.fill_(data.ids.shape[1])
    restricted, _ = executor.train(plan)
    model = dataclasses.replace(executor.models.of(plan.attackers, executor.editor), embedding=None)
    everything, _ = train_stack(model, data, Task.HARMFUL, plan, executor.val)  # type: ignore[arg-type]
    assert restricted._stacked[trunk.embedding_name].shape[1] < VOCABULARY  # type: ignore[index]
    left, right = restricted.params(slice(None))[0], everything.params(slice(None))[0]
    for name in right:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=1e-9)


def test_heads_equal_serial() -> None:
    trunk, data, executor, plan = prepared("bert", trains="head")
    heads, _ = executor.frozen.train_heads(plan)
    for i in range(len(plan.attackers)):
        model, head = serial(trunk, data, plan, i)
        torch.testing.assert_close(heads[i], head, rtol=0, atol=1e-8)
        for name, value in model.named_parameters():
            assert torch.equal(value, dict(trunk.named_parameters())[name])
    features = trunk_features(trunk, params_of(trunk), executor.val)
    outcome = executor._run_stack(plan.attackers, with_test=False)[1]
    assert outcome.val_logits is not None
    torch.testing.assert_close(outcome.val_logits, logits(features, heads[1]), rtol=0, atol=1e-10)


def test_a_diverging_attacker_leaves_the_others_alone() -> None:
    _, _, executor, plan = prepared("bert")
    wild = list(plan.attackers)
    wild[1] = Attacker(**{**wild[1].__dict__, "learning_rate": 1e200})
    calm = executor.train(plan)[0]
    mixed = executor.train(executor.plan(wild))[0]
    assert mixed.finite().tolist() == [True, False, True, True]
    for i in (0, 2, 3):
        for name, value in calm._stacked.items():
            assert torch.equal(value[i], mixed._stacked[name][i])


class _CountReads(TorchDispatchMode):
    """Counts operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten._unique2):
            self.reads[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("trains", ["full", "head"])
def test_steps_never_read_from_the_device(trains: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the steps read no more: what is read is read before the first step."""
    monkeypatch.setattr(Plan, "indices", _without_mode(Plan.indices))
    monkeypatch.setattr(batch_module, "tight_batch", _without_mode(batch_module.tight_batch))
    _, _, executor, _ = prepared("bert")
    reads = []
    for steps in (5, 5, 20):  # once to fill what is kept
        stack = [Attacker(**{**a.__dict__, "num_steps": steps}) for a in attackers(trains=trains)]
        plan = executor.plan(stack)
        with _CountReads() as counter:
            (executor.frozen.train_heads if trains == "head" else executor.train)(plan)
        reads.append(counter.reads)
    assert reads[1] == reads[2]


def _without_mode(function: Any) -> Any:
    """Host-side planning may look at host tensors: it runs outside the guard."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            return function(*args, **kwargs)

    return run


def test_trained_reports_the_plans_shapes() -> None:
    _, data, executor, plan = prepared("tiny")
    trained, _ = executor.train(plan)
    assert isinstance(trained, Trained)
    assert trained._stacked[HEAD].shape == (4, 2, 8)
    assert trained.logits(executor.test).shape == (4, len(data.indices(Split.TEST)), 2)
    features = torch.randn(30, 8, dtype=torch.float64)
    heads, _ = train_heads(
        features,
        torch.zeros(30, dtype=torch.long),
        plan,
        [torch.arange(a.num_examples) % 30 for a in plan.attackers],
        features,
    )
    assert heads.shape == (4, 2, 8)


def test_low_rank_factors_equal_peft_and_the_trunk_stands_still() -> None:
    """Stacked factors against one peft model at a time, trained by `torch.optim`."""
    from peft import LoraConfig, inject_adapter_in_model

    trunk, data, executor, plan = prepared("bert", trains="lora", rank=3)
    trained, _ = executor.train(plan)
    scores, start = trained.logits(executor.val), executor.models.of(plan.attackers, executor.editor).own
    for i, attacker in enumerate(plan.attackers):
        model: Any = copy.deepcopy(trunk)
        config = LoraConfig(
            r=3,
            lora_alpha=ALPHA,
            target_modules=[n for n, m in model.hf_model.named_modules() if isinstance(m, nn.Linear)],
        )
        inject_adapter_in_model(config, model.hf_model)
        factors = {name: value for name, value in model.named_parameters() if ".lora_" in name}
        with torch.no_grad():
            for name, value in factors.items():
                value.data = start[name.replace(".default.", ".attack.")][i].clone()
        head = nn.Parameter(plan.heads[i].clone())
        optimizer = torch.optim.Adam([head, *factors.values()], lr=attacker.learning_rate)
        for positions in plan.orders[i]:
            batch = data.batch(plan.subsets[i][positions], Task.HARMFUL)
            optimizer.zero_grad()
            F.cross_entropy(model(batch.input_ids, batch.attention_mask) @ head.T, batch.labels).backward()
            optimizer.step()
        with torch.no_grad():
            ids = data.batch(executor.val.indices, Task.HARMFUL)
            expected = model(ids.input_ids, ids.attention_mask) @ head.T
        torch.testing.assert_close(scores[i], expected, rtol=0, atol=1e-7)
    assert not torch.allclose(scores[0], scores[1])


def test_a_rerun_is_scored_on_its_way_as_if_it_had_ended_there() -> None:
    _, _, executor, plan = prepared("bert", phase="rerun")
    assert plan.evaluated_steps[0], "re-runs are looked at before their end"
    _, curves = executor.train(plan)
    for i, attacker in enumerate(plan.attackers):
        for step, seen in zip(plan.evaluated_steps[i], curves.scored[i], strict=True):
            short = executor.plan([dataclasses.replace(attacker, num_steps=step, schedule="constant")])
            stopped, _ = executor.train(dataclasses.replace(short, evaluated_steps=((),)))
            torch.testing.assert_close(seen, stopped.logits(executor.val)[0], rtol=0, atol=1e-10)


def test_a_stack_that_takes_too_long_is_given_up() -> None:
    trunk, data = make_trunk("tiny"), FakeData()
    executor = Executor(trunk, params_of(trunk), data, quick(timeout_seconds=1e-9), Task.HARMFUL)  # type: ignore[arg-type]
    (outcome,) = (o for outcomes in executor.run(attackers()[:1], with_test=False) for o in outcomes)
    assert (outcome.status, outcome.error) == ("crashed", "timed out")


class Clock:
    """Moves on by a second whenever it is read, which every step of a stack does."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_timeout_takes_a_bounded_time_and_spares_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four attackers of 23, 17, 17 and 4 steps have 16 s: only the last is done within its quarter of them."""
    trunk, data, limit = make_trunk("tiny"), FakeData(), 16.0
    executor = Executor(trunk, params_of(trunk), data, quick(timeout_seconds=limit), Task.HARMFUL)  # type: ignore[arg-type]
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    found = [o for outcomes in executor.run(attackers(), with_test=False) for o in outcomes]
    assert [(o.status, o.timed_out) for o in found] == [("crashed", True)] * 3 + [("ok", False)]
    num_stacks = 1 + len(found)
    assert clock.now <= 2 * limit + 6 * num_stacks, "some readings are at the beginning and the end of a stack"
    unlimited = Executor(trunk, params_of(trunk), data, quick(), Task.HARMFUL)  # type: ignore[arg-type]
    ((whole,),) = unlimited.run(attackers()[-1:], with_test=False)
    assert torch.equal(whole.val_logits, found[-1].val_logits)  # type: ignore[arg-type]


def test_crashes_share_the_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of a stack that crashes have its time between them."""
    trunk, data = make_trunk("tiny"), FakeData()
    executor = Executor(trunk, params_of(trunk), data, quick(timeout_seconds=64.0), Task.HARMFUL)  # type: ignore[arg-type]
    allowed: list[tuple[int, float]] = []

    def crash(model: Any, data: Any, task: Any, plan: Plan, val: Any) -> Any:
        assert plan.deadline is not None
        allowed.append((len(plan.attackers), round(plan.deadline - time.perf_counter())))
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(execute_module, "train_stack", crash)
    outcomes = [o for part in executor.run(attackers(), with_test=False) for o in part]
    assert all(o.status == "crashed" and not o.timed_out for o in outcomes)
    assert allowed == [(4, 64), (2, 32), (1, 16), (1, 16), (2, 32), (1, 16), (1, 16)]


def test_packed_texts_train_as_padded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, executor, plan = prepared("bert")
    counted: list[int] = []

    def spied(mask: Tensor, count: int) -> Tensor:
        counted.append(count)
        return token_places(mask, count)

    monkeypatch.setattr(batch_module, "token_places", spied)
    ends = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(batch_module, "PACKING_SHARE", share)
        counted.clear()
        ends.append(executor.train(plan)[0].params(slice(0, 4)))
        assert bool(counted) == (share > 0)
    for name, wanted in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(ends[1][1], ends[0][1], rtol=0, atol=1e-10)
