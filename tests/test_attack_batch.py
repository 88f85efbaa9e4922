"""Stacked fine-tuning equals one `torch.optim` fine-tune after the other."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sdm_ray.attack.batch as batch_module
from sdm_ray.attack.batch import HEAD, Plan, Trained, train_full, train_heads
from sdm_ray.attack.execute import Executor
from sdm_ray.attack.families import Attacker
from sdm_ray.attack.optim import adam_init, adam_update_
from sdm_ray.attack.rows import Rows
from sdm_ray.attack.views import trunk_features
from sdm_ray.models.heads import logits
from sdm_ray.models.trunk import Trunk
from sdm_ray.types import Split, Task
from tests.attack_world import VOCABULARY, FakeData, TinyTrunk, params_of, quick
from tests.helpers import tiny_config


def attackers(*, frozen: bool = False) -> list[Attacker]:
    """Different n, learning rate, steps and seeds; one batch size, longest first."""
    shapes = [(40, 3e-3, 23, 0), (20, 1e-2, 17, 1), (20, 1e-3, 17, 0), (9, 3e-2, 4, 2)]
    return [
        Attacker(
            family="fine_tune",
            num_examples=n,
            learning_rate=rate,
            num_steps=steps,
            batch_size=8,
            frozen=frozen,
            seed_index=seed,
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
    """The straightforward way: a copy of the model, a parameter for the head, `torch.optim.Adam`."""
    attacker, model = plan.attackers[index], copy.deepcopy(trunk)
    head = nn.Parameter(plan.heads[index].clone())
    model.requires_grad_(not attacker.frozen)
    trained = [head] if attacker.frozen else [head, *model.parameters()]
    optimizer = torch.optim.Adam(trained, lr=attacker.learning_rate)
    for positions in plan.orders[index]:
        batch = data.batch(plan.subsets[index][positions], Task.HARMFUL)
        optimizer.zero_grad()
        F.cross_entropy(model(batch.input_ids, batch.attention_mask) @ head.T, batch.labels).backward()
        optimizer.step()
    return model, head.detach()


def prepared(kind: str, *, frozen: bool = False) -> tuple[nn.Module, FakeData, Executor, Plan]:
    trunk, data = make_trunk(kind), FakeData()
    executor = Executor(trunk, params_of(trunk), data, quick(), Task.HARMFUL)  # type: ignore[arg-type]
    return trunk, data, executor, executor._plan(attackers(frozen=frozen))


def test_adam_equals_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    rates = torch.tensor([1e-3, 1e-2, 0.5], dtype=torch.float64)
    grads = [torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) * 10.0**-k for k in range(12)]
    grads[3][:, 0] = 0.0
    params = {"w": start.clone()}
    state = adam_init(params)
    for step, grad in enumerate(grads, 1):
        adam_update_(params, state, {"w": grad}, rates, step)
    for i in range(3):
        wanted = nn.Parameter(start[i].clone())
        optimizer = torch.optim.Adam([wanted], lr=float(rates[i]))
        for grad in grads:
            wanted.grad = grad[i].clone()
            optimizer.step()
        torch.testing.assert_close(params["w"][i] - start[i], wanted.detach() - start[i], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["tiny", "bert", "electra", "modernbert"])
def test_stack_equals_serial(kind: str) -> None:
    """Parameters to 1e-8 and equal predictions; ModernBERT rotates in float32 whatever its type, hence 1e-4 there."""
    trunk, data, executor, plan = prepared(kind)
    trained, losses = executor._train_full(plan)
    tolerance = 1e-4 if kind == "modernbert" else 1e-8
    assert (executor._embedding is None) == (kind == "tiny")
    scores = trained.logits(executor.val)
    for i in range(len(plan.attackers)):
        model, head = serial(trunk, data, plan, i)
        params, heads = trained.params(slice(i, i + 1))
        torch.testing.assert_close(heads[0], head, rtol=0, atol=tolerance)
        for name, wanted in model.named_parameters():
            torch.testing.assert_close(
                params[name][0], wanted.detach(), rtol=0, atol=tolerance, msg=lambda m, n=name: n + m
            )
        with torch.no_grad():
            ids = data.batch(executor.val.indices, Task.HARMFUL)
            expected = model(ids.input_ids, ids.attention_mask) @ head.T
        torch.testing.assert_close(scores[i], expected, rtol=0, atol=tolerance * 10)
        assert torch.equal(scores[i].argmax(-1), expected.argmax(-1))
    assert losses.shape == (len(plan.attackers),)


def test_scoring_in_groups_equals_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, executor, plan = prepared("bert")
    trained, _ = executor._train_full(plan)
    alone = trained.logits(executor.val)
    monkeypatch.setitem(batch_module.ATTACKERS_PER_SCORING, "cpu", 3)
    torch.testing.assert_close(trained.logits(executor.val), alone, rtol=0, atol=1e-12)


def test_occurring_rows_equal_all_rows() -> None:
    trunk, data, executor, plan = prepared("bert")
    restricted, _ = executor._train_full(plan)
    everything, _ = train_full(trunk, params_of(trunk), None, data, Task.HARMFUL, plan)  # type: ignore[arg-type]
    assert restricted._stacked[executor._embedding].shape[1] < VOCABULARY  # type: ignore[index]
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
    restricted, _ = executor._train_full(plan)
    everything, _ = train_full(trunk, params_of(trunk), None, data, Task.HARMFUL, plan)  # type: ignore[arg-type]
    assert restricted._stacked[executor._embedding].shape[1] < VOCABULARY  # type: ignore[index]
    left, right = restricted.params(slice(None))[0], everything.params(slice(None))[0]
    for name in right:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=1e-9)


def test_heads_equal_serial() -> None:
    trunk, data, executor, plan = prepared("bert", frozen=True)
    heads, _ = executor._train_heads(plan)
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
    calm = executor._train_full(plan)[0]
    mixed = executor._train_full(executor._plan(wild))[0]
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


@pytest.mark.parametrize("frozen", [False, True])
def test_steps_never_read_from_the_device(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the steps read no more: what is read is read before the first step."""
    monkeypatch.setattr(Plan, "indices", _without_mode(Plan.indices))
    monkeypatch.setattr(batch_module, "tight_batch", _without_mode(batch_module.tight_batch))
    _, _, executor, _ = prepared("bert")
    reads = []
    for steps in (5, 20):
        stack = [Attacker(**{**a.__dict__, "num_steps": steps}) for a in attackers(frozen=frozen)]
        plan = executor._plan(stack)
        with _CountReads() as counter:
            (executor._train_heads if frozen else executor._train_full)(plan)
        reads.append(counter.reads)
    assert reads[0] == reads[1]


def _without_mode(function: Any) -> Any:
    """Host-side planning may look at host tensors: it runs outside the guard."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            return function(*args, **kwargs)

    return run


def test_trained_reports_the_plans_shapes() -> None:
    _, data, executor, plan = prepared("tiny")
    trained, _ = executor._train_full(plan)
    assert isinstance(trained, Trained)
    assert trained._stacked[HEAD].shape == (4, 2, 8)
    assert trained.logits(executor.test).shape == (4, len(data.indices(Split.TEST)), 2)
    features = torch.randn(30, 8, dtype=torch.float64)
    heads, _ = train_heads(
        features, torch.zeros(30, dtype=torch.long), plan, [torch.arange(a.num_examples) % 30 for a in plan.attackers]
    )
    assert heads.shape == (4, 2, 8)
