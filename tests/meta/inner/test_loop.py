"""Meta-gradients: against finite differences, `higher`, `torchopt` and hand-written references, and each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sdm_ray.core.types import Batch
from sdm_ray.meta.inner import flat_model as functional_module
from sdm_ray.meta.inner.episode import FROZEN_RATE_FACTOR, Episode, MetaGradients, Start
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.loop import evaluate, meta_gradients
from sdm_ray.meta.inner.optim import ADAM_EPS, rate_factors
from sdm_ray.meta.objectives import Trajectory, step_losses
from tests.fakes.files import NoHostSync
from tests.fakes.meta import MlpTrunk, bert_trunk, episode_of, start_of

WEIGHTS = {"harmful_adapted_calibrated": 1.0, "harmful_base": 0.3}
ALL_WEIGHTS = {
    "harmful_base": 0.3, "harmful_adapted_calibrated": 1.0, "harmful_adapted_entropy": 0.5,
    "harmful_adapted_uniform": 0.4, "adapted_grad_norm": 0.7, "mutual_information": 0.6,
}  # fmt: skip
EXACT = ("unrolled", "adjoint", "adjoint_stored")
KINDS: list[dict[str, Any]] = [
    {"adaptation": "full"},
    {"adaptation": "head"},
    {"adaptation": "partial", "depth": 1},
    {"adaptation": "lora", "rank": 2},
]


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> Any:
    return bert_trunk(bert_folder)


@pytest.fixture(params=["mlp", "bert"])
def trunk(request: pytest.FixtureRequest, bert: Any) -> Any:
    return MlpTrunk() if request.param == "mlp" else bert


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def gradients_of(found: MetaGradients) -> dict[str, Tensor]:
    named = {"trunk": found.trunk, "head": found.head, "log_learning_rate": found.log_learning_rate}
    return {name: value for name, value in named.items() if value is not None}


def assert_equal_gradients(ours: MetaGradients, theirs: MetaGradients, tolerance: float) -> None:
    mine, other = gradients_of(ours), gradients_of(theirs)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert (value - other[name]).norm() <= tolerance * other[name].norm() + 1e-14, name


def predictors_of(model: FlatModel, num_steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(num_steps + 1, 2, model.feature_dim, generator=generator, dtype=torch.float64)


def blocking_of(found: MetaGradients, weights: dict[str, float]) -> float:
    minimised = {"adapted_grad_norm", "mutual_information", "harmful_adapted_uniform", "harmful_adapted_inverse"}
    return sum(w * (1 if name in minimised else -1) * found.values[name].item() for name, w in weights.items())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd"},
        {"optimizer": "momentum", "schedule": "cosine"},
        {"optimizer": "adamw", "schedule": "warmup"},
        {"optimizer": "rmsprop"},
        {"optimizer": "sgd", "gradient_clip": 0.2},
        {"num_steps": 0},
        *KINDS[1:],
        {"adaptation": "head", "optimizer": "momentum"},
    ],
    ids=str,
)
def test_gradients_equal_finite_differences(trunk: Any, changes: dict[str, Any]) -> None:
    model, episode = FlatModel(trunk), episode_of(**changes)
    start, weights = start_of(model, rate=0.02), ALL_WEIGHTS if episode.data.inner else {"harmful_base": 0.3}
    predictors = predictors_of(model, len(episode.data.inner))
    ours = {
        mode: gradients_of(meta_gradients(model, start, episode._replace(mode=mode), weights, predictors=predictors))
        for mode in ("unrolled", "adjoint")
    }
    forward = episode._replace(mode="first_order")  # the cheapest of those that go through the same models

    def losses(moved: Start) -> tuple[float, float]:
        found = meta_gradients(model, moved, forward, weights, predictors=predictors)
        return blocking_of(found, weights), step_losses(found.trajectory).mean().item()

    assert ours["unrolled"].keys() == ours["adjoint"].keys()
    for name, gradient in ours["unrolled"].items():
        # Along the gradient, so that embedding rows that do not occur, where Adam's slope is a definition, stay put.
        direction = gradient / gradient.norm()
        size = 1e-7  # Adam turns round where a gradient crosses 0
        ends = [
            losses(start._replace(**{name: (getattr(start, name) + sign * size * direction).detach().requires_grad_()}))
            for sign in (1, -1)
        ]
        which = 0 if name == "trunk" else 1
        expected = (ends[0][which] - ends[1][which]) / (2 * size)
        for mode, gradients in ours.items():
            assert (gradients[name] * direction).sum().item() == pytest.approx(expected, rel=5e-4), (mode, name)


OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")


@pytest.mark.parametrize(
    ("trunk", "clip", "optimizer", "kind"),
    [
        *(("mlp", clip, optimizer, kind) for clip in (100.0, 0.3) for optimizer in OPTIMIZERS for kind in KINDS),
        # What an optimiser does is the same for every trunk: each is tried on the larger one once, and each kind too.
        *(("bert", 0.3, optimizer, KINDS[index % len(KINDS)]) for index, optimizer in enumerate(OPTIMIZERS)),
        *(("bert", 0.3, "adam", kind) for index, kind in enumerate(KINDS) if index != 2),
    ],
    ids=str,
    indirect=["trunk"],
)
def test_adjoint_equals_unrolled(trunk: Any, optimizer: str, kind: dict[str, Any], clip: float) -> None:
    model = FlatModel(trunk)
    found = {
        mode: meta_gradients(
            model,
            start_of(model, count=2),
            episode_of(mode=mode, optimizer=optimizer, gradient_clip=clip, count=2, truncation_steps=3, **kind),
            ALL_WEIGHTS,
            predictors=predictors_of(model, 3),
        )
        for mode in (*EXACT, "truncated")
    }
    for mode in ("adjoint", "adjoint_stored", "truncated"):
        assert_equal_gradients(found[mode], found["unrolled"], 1e-8)
        torch.testing.assert_close(found[mode].values, found["unrolled"].values)
        assert found[mode].predictors is not None
        torch.testing.assert_close(found[mode].predictors, found["unrolled"].predictors)
    for name, value in gradients_of(found["adjoint"]).items():
        assert torch.equal(value, gradients_of(found["adjoint_stored"])[name]), "keeping graphs changes no bit"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    optimizer=st.sampled_from(["sgd", "momentum", "adam", "adamw", "rmsprop"]),
    kind=st.sampled_from(KINDS),
    schedule=st.sampled_from(["constant", "warmup", "linear", "cosine"]),
    clip=st.floats(0.05, 10),
    rate=st.floats(1e-4, 0.05),
    num_steps=st.integers(1, 4),
    count=st.integers(1, 3),
    learned=st.booleans(),
    noise=st.booleans(),
    data=st.data(),
)
def test_adjoint_equals_unrolled_for_any_configuration(
    optimizer: str, kind: dict[str, Any], schedule: str, clip: float, rate: float, num_steps: int, count: int,
    learned: bool, noise: bool, data: st.DataObject,
) -> None:  # fmt: skip
    moments = tuple(sorted(data.draw(st.sets(st.integers(0, num_steps), min_size=1))))
    names = sorted(data.draw(st.sets(st.sampled_from(sorted(ALL_WEIGHTS)), min_size=1)))
    weights, model = {name: ALL_WEIGHTS[name] for name in names}, FlatModel(MlpTrunk())
    found = [
        meta_gradients(
            model,
            start_of(model, rate=rate, count=count, learned=learned),
            episode_of(
                mode=mode, optimizer=optimizer, schedule=schedule, gradient_clip=clip, num_steps=num_steps,
                count=count, evaluated_steps=moments, noise=(0.1,) * count if noise else (), **kind,
            ),
            weights,
            predictors=predictors_of(model, num_steps),
        )
        for mode in ("unrolled", "adjoint")
    ]  # fmt: skip
    assert_equal_gradients(found[1], found[0], 1e-8)


class Joint(nn.Module):
    """Trunk and head as one module, as other packages want it."""

    def __init__(self, trunk: Any, head: Tensor) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Parameter(head.detach().clone())
        self.zero_grad()  # several tests share the trunk

    def forward(self, batch: Batch) -> Tensor:
        return self.trunk(*batch.inputs) @ self.head.T

    def flat_gradients(self, model: FlatModel) -> tuple[Tensor, Tensor]:
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.trunk.named_parameters()}
        assert self.head.grad is not None
        return model.layout.flatten(grads), self.head.grad


def step_of(episode: Episode, index: int) -> Batch:
    return episode.data.inner[index].at(0)


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_exact_modes_equal_higher(trunk: Any, optimizer: str, mode: str) -> None:
    import higher

    rate, episode = 0.01, episode_of(optimizer=optimizer, mode=mode)
    model = FlatModel(trunk)
    start, outer = start_of(model, rate=rate), episode.data.evaluation[0].batch
    ours = meta_gradients(model, start, episode, {"harmful_adapted": 1.0})
    joint = Joint(trunk, start.head[0])
    theirs = {
        "sgd": lambda p: torch.optim.SGD(p, rate),
        "momentum": lambda p: torch.optim.SGD(p, rate, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, rate),
    }[optimizer](joint.parameters())
    with higher.innerloop_ctx(joint, theirs, copy_initial_weights=False) as (functional, inner_optimizer):
        outputs = [functional(outer)]
        for index in range(3):
            batch = step_of(episode, index)
            # `higher` adds eps before the bias correction; this eps gives it the update of torch.optim.Adam.
            eps = {"eps": [ADAM_EPS * math.sqrt(1 - 0.999 ** (index + 1))]} if optimizer == "adam" else None
            inner_optimizer.step(F.cross_entropy(functional(batch), batch.labels), override=eps)
            outputs.append(functional(outer))
        torch.stack([F.cross_entropy(z, outer.labels) for z in outputs]).mean().backward()
    trunk_gradient, head_gradient = joint.flat_gradients(model)
    torch.testing.assert_close(ours.trajectory.logits, torch.stack(outputs).detach(), rtol=0, atol=1e-10)
    assert relative(-ours.trunk[0], trunk_gradient) < 1e-8
    assert ours.head is not None
    assert relative(ours.head[0], head_gradient) < 1e-8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["unrolled", "adjoint"])
def test_exact_modes_equal_torchopt(trunk: Any, mode: str) -> None:
    import torchopt

    rate, episode = 0.01, episode_of(mode=mode)
    model = FlatModel(trunk)
    start, outer = start_of(model, rate=rate), episode.data.evaluation[0].batch
    ours = meta_gradients(model, start, episode, {"harmful_adapted": 1.0})
    flat, head = start.trunk[0].detach().clone().requires_grad_(), start.head[0].detach().clone().requires_grad_()
    # Its bias correction is float32, and without eps_root its derivative is NaN where the second moment is 0.
    adam = torchopt.adam(rate, eps_root=1e-24, moment_requires_grad=False)
    params: tuple[Tensor, ...] = (flat, head)
    state = adam.init(params)
    outputs = [model.logits(*params, outer)]
    for index in range(3):
        batch = step_of(episode, index)
        grads = torch.autograd.grad(
            F.cross_entropy(model.logits(*params, batch), batch.labels), params, create_graph=True
        )
        updates, state = adam.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
        outputs.append(model.logits(*params, outer))
    loss = torch.stack([F.cross_entropy(z, outer.labels) for z in outputs]).mean()
    theirs = torch.autograd.grad(loss, (flat, head))
    assert relative(-ours.trunk[0], theirs[0]) < 1e-4
    assert ours.head is not None
    assert relative(ours.head[0], theirs[1]) < 1e-4


def truncated_reference(model: FlatModel, start: Start, episode: Episode, last: int) -> list[Tensor]:
    """Autograd through the last updates; what came before is a displacement that grows with the learning rate."""
    rate = start.log_learning_rate.detach().clone().requires_grad_()
    trunk, head = (value[0].detach().clone().requires_grad_() for value in (start.trunk, start.head))
    outer, num_steps = episode.data.evaluation[0].batch, len(episode.data.inner)
    params: tuple[Tensor, ...] = (trunk, head)
    outputs = [model.logits(*params, outer)]
    for index in range(num_steps):
        batch = step_of(episode, index)
        loss = F.cross_entropy(model.logits(*params, batch), batch.labels)
        grads = torch.autograd.grad(loss, params, create_graph=index >= num_steps - last)
        moved = [p - rate.exp() * g for p, g in zip(params, grads, strict=True)]
        if index < num_steps - last:
            moves = [(m - p0).detach() / rate.exp().detach() for m, p0 in zip(moved, (trunk, head), strict=True)]
            moved = [p0 + rate.exp() * move for p0, move in zip((trunk, head), moves, strict=True)]
            params = tuple(m if index == num_steps - last - 1 else m.detach().requires_grad_() for m in moved)
            outputs.append(model.logits(*moved, outer))
        else:
            params = tuple(moved)
            outputs.append(model.logits(*params, outer))
    loss = torch.stack([F.cross_entropy(z, outer.labels) for z in outputs]).mean()
    return list(torch.autograd.grad(loss, (trunk, head, rate)))


@pytest.mark.parametrize("last", [0, 1, 2, 3, 4])
def test_truncation_differentiates_the_last_updates(trunk: Any, last: int) -> None:
    model = FlatModel(trunk)
    start, episode = start_of(model), episode_of(optimizer="sgd", num_steps=4, mode="truncated", truncation_steps=last)
    ours = meta_gradients(model, start, episode, {"harmful_adapted": 1.0})
    expected = truncated_reference(model, start, episode, last)
    assert ours.head is not None
    assert ours.log_learning_rate is not None
    for mine, theirs in zip((-ours.trunk[0], ours.head[0], ours.log_learning_rate), expected, strict=True):
        assert relative(mine, theirs) < 1e-8


def test_truncation_to_nothing_is_first_order_and_to_everything_is_exact() -> None:
    def of(**changes: Any) -> MetaGradients:
        model = FlatModel(MlpTrunk())
        return meta_gradients(model, start_of(model), episode_of(**changes), WEIGHTS)

    assert_equal_gradients(of(mode="truncated", truncation_steps=0), of(mode="first_order"), 1e-12)
    assert_equal_gradients(of(mode="truncated", truncation_steps=9), of(mode="unrolled"), 1e-8)
    assert relative(of(mode="first_order").trunk, of(mode="unrolled").trunk) > 0.01


def first_order_reference(model: FlatModel, start: Start, episode: Episode, frozen: bool) -> list[Tensor]:
    """torch.optim steps on copies; the gradients at every adapted model are added up."""
    trunk, head = (value[0].detach().clone().requires_grad_() for value in (start.trunk, start.head))
    params, outer = [head] if frozen else [trunk, head], episode.data.evaluation[0].batch
    rate = math.exp(start.log_learning_rate.item()) * (FROZEN_RATE_FACTOR if frozen else 1)
    adam = torch.optim.Adam(params, rate)
    points = [(trunk.detach().clone(), head.detach().clone())]
    for index in range(3):
        adam.zero_grad()
        batch = step_of(episode, index)
        F.cross_entropy(model.logits(trunk, head, batch), batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(params, episode.gradient_clip)
        adam.step()
        points.append((trunk.detach().clone(), head.detach().clone()))
    totals = [torch.zeros_like(value[0]) for value in start[:3]]
    for theta, w in points:
        theta.requires_grad_(), w.requires_grad_()
        loss = F.cross_entropy(model.logits(theta, w, outer), outer.labels)
        own = torch.autograd.grad(loss, (theta, w))
        totals[0] -= own[0] / 4
        totals[1] += own[1] / 4
        slope = ((w.detach() - points[0][1]) * own[1]).sum() + ((theta.detach() - points[0][0]) * own[0]).sum()
        totals[2] += slope / 4
    return totals


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("clip", [100.0, 0.1])
def test_first_order_applies_the_gradients_at_the_adapted_models(trunk: Any, frozen: bool, clip: float) -> None:
    model = FlatModel(trunk)
    kind = "head" if frozen else "full"
    start, episode = start_of(model), episode_of(mode="first_order", adaptation=kind, gradient_clip=clip)
    ours = meta_gradients(model, start, episode, {"harmful_adapted": 1.0})
    expected = first_order_reference(model, start, episode, frozen)
    for mine, theirs in zip((ours.trunk[0], ours.head, ours.log_learning_rate), expected, strict=True):
        assert mine is not None
        assert relative(mine, theirs) < 1e-8


@pytest.mark.parametrize("mode", [*EXACT, "first_order"])
def test_several_adversaries_as_one_batch_equal_one_after_the_other(trunk: Any, mode: str) -> None:
    model = FlatModel(trunk)
    start, episode = start_of(model, count=3), episode_of(count=3, mode=mode)
    together = meta_gradients(model, start, episode, WEIGHTS)
    trunk_sum = torch.zeros_like(together.trunk)
    for index in range(3):
        alone = Start(start.trunk, *(v[index : index + 1].detach().requires_grad_() for v in start[1:3]))
        inner = tuple(batch.at(slice(index, index + 1)) for batch in episode.data.inner)
        one = meta_gradients(model, alone, episode._replace(data=episode.data._replace(inner=inner)), WEIGHTS)
        assert one.head is not None
        assert together.head is not None
        trunk_sum += one.trunk
        torch.testing.assert_close(together.head[index], one.head[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(together.trunk, trunk_sum, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", [*EXACT, "first_order"])
def test_several_trunks_as_one_batch_keep_their_gradients_apart(mode: str) -> None:
    """Several training seeds run as one batch: every start has a trunk of its own."""
    model = FlatModel(MlpTrunk())
    trunks = torch.stack([FlatModel(MlpTrunk(seed=seed)).initial() for seed in (1, 2)])
    start = start_of(model, count=2)._replace(trunk=trunks.requires_grad_())
    episode = episode_of(count=2, mode=mode)
    together = meta_gradients(model, start, episode, WEIGHTS)
    for index in range(2):
        alone = Start(*(v[index : index + 1].detach().requires_grad_() for v in start[:3]))
        inner = tuple(batch.at(slice(index, index + 1)) for batch in episode.data.inner)
        one = meta_gradients(model, alone, episode._replace(data=episode.data._replace(inner=inner)), WEIGHTS)
        torch.testing.assert_close(together.trunk[index], one.trunk[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_that_do_not_occur_change_nothing(
    trunk: Any, optimizer: str, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional_module, "ROW_MULTIPLE", 4)
    model = FlatModel(trunk)
    start, episode = start_of(model), episode_of(mode="adjoint", optimizer=optimizer, **kind)
    batches = [*episode.data.inner, *(one.batch for one in episode.data.evaluation)]
    occurring = torch.cat([batch.inputs[0].flatten() for batch in batches]).unique()
    rows = model.plan_rows(occurring, torch.device("cpu"))
    full = meta_gradients(model, start, episode, ALL_WEIGHTS, predictors=predictors_of(model, 3))
    some = meta_gradients(
        model, start, episode._replace(rows=rows), ALL_WEIGHTS, predictors=predictors_of(model, 3)
    )  # fmt: skip
    assert len(rows.tokens) < model.layout.shapes[model.layout.names.index(model.trunk.embedding_name)][0]
    assert_equal_gradients(some, full, 1e-12)


def test_evaluating_some_steps_estimates_evaluating_all_without_bias() -> None:
    """The mean over all subsets of steps is the value at all steps."""
    model = FlatModel(MlpTrunk())
    start = start_of(model)
    everything = meta_gradients(model, start, episode_of(mode="adjoint"), {"harmful_adapted_calibrated": 1.0})
    parts = [
        meta_gradients(
            model, start, episode_of(mode="adjoint", evaluated_steps=pair), {"harmful_adapted_calibrated": 1.0}
        )
        for pair in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    ]
    torch.testing.assert_close(torch.stack([part.trunk for part in parts]).mean(0), everything.trunk)
    mean_head = torch.stack([part.head for part in parts if part.head is not None]).mean(0)
    torch.testing.assert_close(mean_head, everything.head)


def test_the_learning_rate_follows_its_schedule() -> None:
    model = FlatModel(MlpTrunk())
    start = start_of(model, rate=0.05)
    found = meta_gradients(model, start, episode_of(optimizer="sgd", schedule="linear"), WEIGHTS)
    trunk, head = (value[0].detach().clone().requires_grad_() for value in (start.trunk, start.head))
    episode = episode_of()
    for index, factor in enumerate(rate_factors("linear", 3)):
        batch = step_of(episode, index)
        grads = torch.autograd.grad(F.cross_entropy(model.logits(trunk, head, batch), batch.labels), (trunk, head))
        trunk, head = (
            (value - 0.05 * factor * g).detach().requires_grad_() for value, g in zip((trunk, head), grads, strict=True)
        )
    torch.testing.assert_close(found.final[0], torch.cat([trunk.detach(), head.detach().flatten()]))


def test_the_clip_is_active() -> None:
    model = FlatModel(MlpTrunk())
    clipped, free = (
        meta_gradients(model, start_of(model), episode_of(optimizer="sgd", gradient_clip=clip), WEIGHTS)
        for clip in (1e-3, 100.0)
    )
    assert (clipped.trajectory.logits[-1] - clipped.trajectory.logits[0]).abs().max() < 1e-2
    assert not torch.allclose(clipped.trajectory.logits, free.trajectory.logits)


def test_a_frozen_adversary_moves_the_head_alone_at_ten_times_the_rate() -> None:
    model, episode = FlatModel(MlpTrunk()), episode_of(adaptation="head", optimizer="sgd")
    start = start_of(model, rate=0.05)
    found = meta_gradients(model, start, episode, WEIGHTS)
    head, outer = start.head[0].detach().clone().requires_grad_(), episode.data.evaluation[0].batch
    batch = step_of(episode, 0)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model.logits(start.trunk[0], head, batch), batch.labels), head)
    expected = model.logits(start.trunk[0], head - 0.5 * gradient, outer)
    torch.testing.assert_close(found.trajectory.logits[1], expected.detach())


def test_a_partly_frozen_adversary_leaves_the_lower_blocks() -> None:
    model = FlatModel(MlpTrunk())
    start = start_of(model)
    found = meta_gradients(model, start, episode_of(adaptation="partial", depth=1), WEIGHTS)
    lower = model.layout.sizes[0]
    assert found.final.shape[1] == model.layout.numel - lower + start.head[0].numel()
    assert found.trunk[0, :lower].abs().max() > 0, "the frozen part is defended all the same"


def test_low_rank_factors_start_at_the_model_itself_and_change_it() -> None:
    model = FlatModel(MlpTrunk())
    start, episode = start_of(model), episode_of(adaptation="lora", rank=1)
    found = meta_gradients(model, start, episode, WEIGHTS)
    plain = meta_gradients(model, start, episode_of(num_steps=0), {"harmful_base": 1.0})
    torch.testing.assert_close(found.trajectory.logits[0], plain.trajectory.logits[0])
    assert found.final.shape[1] == (6 + 6) * 1 + start.head[0].numel()
    other = meta_gradients(model, start, episode_of(adaptation="lora", rank=1, seed=6), WEIGHTS)
    assert not torch.equal(found.final, other.final)


def test_parameter_noise_is_relative_to_each_parameter_and_drawn_by_seed() -> None:
    model = FlatModel(MlpTrunk(width=40))
    start, episode = start_of(model, count=2), episode_of(num_steps=0, count=2, noise=(0.0, 0.5))
    from sdm_ray.meta.inner.episode import parameter_noise

    noise = parameter_noise(model, start.trunk, episode.noise, 3)
    assert noise[0].abs().max() == 0
    for value, part in zip(start.trunk[0].split(model.layout.sizes), noise[1].split(model.layout.sizes), strict=True):
        assert part.std().item() == pytest.approx(0.5 * value.square().mean().sqrt().item(), rel=0.1)
    assert torch.equal(noise, parameter_noise(model, start.trunk, episode.noise, 3))
    assert not torch.equal(noise, parameter_noise(model, start.trunk, episode.noise, 4))


def test_trunk_and_adversary_follow_different_losses() -> None:
    """The adversary's gradients do not depend on the blocking term; the trunk's do."""
    model = FlatModel(MlpTrunk())
    for mode in ("unrolled", "adjoint", "first_order"):
        start, episode = start_of(model), episode_of(mode=mode)
        calibrated = meta_gradients(model, start, episode, {"harmful_adapted_calibrated": 1.0})
        clamped = meta_gradients(model, start, episode, {"harmful_adapted_clamped": 1.0})
        assert relative(calibrated.trunk, clamped.trunk) > 0.01
        for name in ("head", "log_learning_rate"):
            torch.testing.assert_close(getattr(calibrated, name), getattr(clamped, name))


@pytest.mark.parametrize("num_steps", [3, 0])
def test_one_backward_pass_serves_both_where_the_losses_are_proportional(num_steps: int) -> None:
    model = FlatModel(MlpTrunk())
    start, episode = start_of(model), episode_of(num_steps=num_steps, mode="adjoint")
    once = meta_gradients(model, start, episode, {"harmful_adapted": 0.7})
    # A vanishing second term forces the general way.
    twice = meta_gradients(model, start, episode, {"harmful_adapted": 0.7, "harmful_adapted_clamped": 1e-300})
    torch.testing.assert_close(once.trunk, twice.trunk)
    torch.testing.assert_close(once.head, twice.head)


@pytest.mark.parametrize("mode", ["adjoint", "adjoint_stored", "first_order", "truncated"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_inner_loop_never_waits_for_the_device(mode: str, kind: dict[str, Any]) -> None:
    model, episode = FlatModel(MlpTrunk()), episode_of(mode=mode, count=2, truncation_steps=1, **kind)
    start = start_of(model, count=2)
    with NoHostSync():
        meta_gradients(model, start, episode, ALL_WEIGHTS, predictors=predictors_of(model, 3))


def test_an_adversary_goes_on_from_where_it_stands() -> None:
    """Two steps and then one more are three steps: displacement, head and optimiser state are handed on."""
    model = FlatModel(MlpTrunk())
    start, whole = start_of(model, learned=False), episode_of(mode="adjoint")
    straight = meta_gradients(model, start, whole, WEIGHTS)
    first = whole._replace(data=whole.data._replace(inner=whole.data.inner[:2]), evaluated_steps=(2,))
    half = meta_gradients(model, start, first, WEIGHTS)
    size = start.head[0].numel()
    later = start._replace(
        displacement=half.final[:, :-size] - start.trunk.detach(),
        head=half.final[:, -size:].view_as(start.head),
        state=half.final_state,
    )
    rest = whole._replace(data=whole.data._replace(inner=whole.data.inner[2:]), evaluated_steps=(1,))
    end = meta_gradients(model, later, rest, WEIGHTS)
    torch.testing.assert_close(end.final, straight.final, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(end.trajectory.logits[-1], straight.trajectory.logits[-1], rtol=1e-10, atol=1e-12)


def test_trajectories_name_their_evaluated_steps() -> None:
    model = FlatModel(MlpTrunk())
    found = meta_gradients(
        model, start_of(model, count=2), episode_of(count=2, evaluated_steps=(1, 3), mode="adjoint"), WEIGHTS
    )
    assert isinstance(found.trajectory, Trajectory)
    assert found.trajectory.steps == (1, 3, 1, 3)
    assert found.trajectory.logits.shape == (4, 6, 2)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_evaluating_without_gradients_gives_what_the_gradients_are_taken_of(trunk: Any, kind: dict[str, Any]) -> None:
    model, episode = FlatModel(trunk), episode_of(**kind)
    start = start_of(model, rate=0.02)
    found = evaluate(model, start, episode)
    expected = meta_gradients(model, start, episode, WEIGHTS).trajectory
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.features, expected.features)
    assert found.steps == expected.steps == tuple(episode.evaluated_steps)
    assert not found.logits.requires_grad


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_dropout_masks_are_the_same_on_the_way_back(kind: dict[str, Any], bert: Any) -> None:
    """A step that is computed again meets the masks that it met before; every step has its own."""
    model = FlatModel(bert)
    start = start_of(model, count=2)
    found = {
        mode: meta_gradients(model, start, episode_of(mode=mode, dropout=True, count=2, **kind), WEIGHTS)
        for mode in EXACT
    }
    assert_equal_gradients(found["adjoint"], found["unrolled"], 1e-8)
    assert_equal_gradients(found["adjoint_stored"], found["unrolled"], 1e-8)
    without = meta_gradients(model, start, episode_of(mode="adjoint", count=2, **kind), WEIGHTS)
    assert relative(found["adjoint"].trunk, without.trunk) > 1e-3
