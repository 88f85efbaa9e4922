"""The outer optimiser is torch's, exactly, with any class and schedule; mistakes are refused before training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdm_ray.config import TrainSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Params
from sdm_ray.meta.checkpoint import load_checkpoint, save_checkpoint
from sdm_ray.meta.outer.optimizer import Group, OuterOptimizer, check_optimizer
from tests.fakes.files import NoHostSync

SHAPES = {"embedding.weight": (6, 4), "weight": (4, 4), "bias": (4,)}
SIZE = 44
RATES = (1e-2, 1e-1, 1e-3)
STEPS = 30


def settings(**values: Any) -> TrainSettings:
    rate = {"learning_rate": RATES[0], "num_outer_steps": STEPS}
    return TrainSettings.model_validate({"method": "tuned", **rate, **values})


def views(flat: Tensor) -> Params:
    pieces = flat.split([torch.Size(shape).numel() for shape in SHAPES.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(SHAPES.items(), pieces, strict=True)}


def leaves(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A trunk, a desired head, a harmful head and the logarithm of a learning rate."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((SIZE,), (3, 4), (2, 4))]
    return [value.requires_grad_() for value in [*values, torch.tensor(-8.0, dtype=dtype)]]


def groups(params: list[Tensor], clip: float | None = 3.0) -> list[Group]:
    trunk, head, *learned = params
    return [Group([trunk], RATES[0], clip, views), Group([head], RATES[1], None), Group(learned, RATES[2], None)]


def gradients(params: list[Tensor], *, seed: int = 1) -> Iterator[list[Tensor]]:
    """Gradients of both sides of the bound that they are clipped to."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        scale = torch.rand((), generator=generator, dtype=params[0].dtype)
        yield [torch.randn(p.shape, generator=generator, dtype=p.dtype) * scale for p in params]


def run(optimizer: OuterOptimizer, params: list[Tensor], source: Iterator[list[Tensor]], steps: int) -> None:
    for _ in range(steps):
        trunk, head, *learned = next(source)
        optimizer.step([[trunk], [head], list(learned)])
    assert all(param.isfinite().all() for param in params)


def trained(steps: int = STEPS, clip: float | None = 3.0, **values: Any) -> list[Tensor]:
    params = leaves()
    run(OuterOptimizer(groups(params, clip), settings(**values)), params, gradients(params), steps)
    return [param.detach() for param in params]


def equal(mine: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_the_default_is_fused_adam_bit_for_bit(warmup_steps: int) -> None:
    params = leaves()
    trunk, head, *learned = params
    adam = torch.optim.Adam(
        [{"params": part, "lr": rate} for part, rate in zip(([trunk], [head], learned), RATES, strict=True)], fused=True
    )
    source, norms = gradients(params), []
    for step in range(1, STEPS + 1):
        for param, gradient in zip(params, next(source), strict=True):
            param.grad = gradient
        norms.append(torch.linalg.vector_norm(trunk.grad))
        torch.nn.utils.clip_grad_norm_([trunk], 3.0)
        for group, rate in zip(adam.param_groups, RATES, strict=True):
            group["lr"] = rate * (min(1.0, step / warmup_steps) if warmup_steps else 1.0)
        adam.step()
    assert min(norms) < 3.0 < max(norms)
    assert equal(trained(warmup_steps=warmup_steps), [param.detach() for param in params])


def test_the_norm_is_the_first_groups_before_clipping() -> None:
    params = leaves()
    optimizer = OuterOptimizer(groups(params), settings())
    gradient = torch.full((SIZE,), 2.0)
    norm = optimizer.step([[gradient], [torch.ones(3, 4)], [None, None]])
    assert torch.equal(norm, torch.linalg.vector_norm(gradient))


def test_none_leaves_a_parameter_where_it_is() -> None:
    params = leaves()
    before = [param.detach().clone() for param in params]
    optimizer = OuterOptimizer(groups(params), settings())
    optimizer.step([[torch.ones(SIZE)], [torch.ones(3, 4)], [None, torch.ones(())]])
    assert [torch.equal(a, b) for a, b in zip(params, before, strict=True)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"amsgrad": True, "betas": [0.8, 0.95]}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("RMSprop", {"centered": True}),
        ("Adafactor", {"d": 2.0}),
        ("NAdam", {}),
        ("RAdam", {"weight_decay": 0.1}),
        ("Adagrad", {}),
        ("Adadelta", {}),
        ("Adamax", {}),
        ("ASGD", {"t0": 5}),
        ("Rprop", {}),
    ],
)
def test_any_class_follows_torch_on_the_models_own_tensors(name: str, options: dict[str, Any]) -> None:
    """Adafactor couples the elements of a matrix, so that one flat vector would not do for it."""
    params = leaves()
    trunk, head, rest, scalar = params
    tensors = [value.detach().clone().requires_grad_() for value in views(trunk).values()]
    own = {"weight_decay": 0.0}
    parts: list[dict[str, Any]] = [{"params": tensors}, {"params": [head], "lr": RATES[1]}]
    parts += [{"params": [rest], "lr": RATES[2]}, {"params": [scalar], "lr": RATES[2], **own}]
    reference = getattr(torch.optim, name)(parts, lr=RATES[0], **options)
    source = gradients(params)
    for _ in range(STEPS):
        trunk_gradient, *others = next(source)
        pairs = [*zip(tensors, views(trunk_gradient).values(), strict=True), *zip(params[1:], others, strict=True)]
        for param, gradient in pairs:
            param.grad = gradient
        reference.step()
    mine = trained(clip=None, optimizer=name, optimizer_options=options)
    theirs = [torch.cat([value.detach().reshape(-1) for value in tensors]), *(value.detach() for value in params[1:])]
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-7)


def test_muon_moves_the_hidden_matrices_and_adamw_the_rest() -> None:
    params = leaves()
    rest = [*(value.detach().clone() for value in views(params[0]).values()), *params[1:]]
    matrix = rest.pop(1)
    rates = (RATES[0], RATES[0], RATES[1], RATES[2])
    muon = torch.optim.Muon([matrix], lr=RATES[0], momentum=0.8)
    parts = [{"params": [p], "lr": lr} for p, lr in zip(rest[:-1], rates, strict=True)]
    adamw = torch.optim.AdamW([*parts, {"params": [rest[-1]], "lr": RATES[2], "weight_decay": 0.0}])
    source = gradients(params)
    for _ in range(5):
        trunk_gradient, *others = next(source)
        embedding, matrix.grad, bias = views(trunk_gradient).values()
        for param, gradient in zip(rest, (embedding, bias, *others), strict=True):
            param.grad = gradient
        muon.step(), adamw.step()
    mine = trained(5, None, optimizer="Muon", optimizer_options={"momentum": 0.8})
    torch.testing.assert_close(views(mine[0])["weight"], matrix)
    torch.testing.assert_close(views(mine[0])["embedding.weight"], rest[0])
    torch.testing.assert_close(mine[3], rest[-1].detach())


def test_weight_decay_spares_scalars() -> None:
    strong = {"optimizer": "AdamW", "optimizer_options": {"weight_decay": 5.0}}
    plain, decayed = trained(optimizer="AdamW", optimizer_options={"weight_decay": 0.0}), trained(**strong)
    assert [torch.equal(a, b) for a, b in zip(plain, decayed, strict=True)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CosineAnnealingLR", {"T_max": 25, "eta_min": 1e-4}),
        ("OneCycleLR", {"max_lr": 0.05, "total_steps": 40}),
        ("StepLR", {"step_size": 5, "gamma": 0.5}),
        ("MultiStepLR", {"milestones": [3, 9]}),
        ("CosineAnnealingWarmRestarts", {"T_0": 6}),
        ("CyclicLR", {"base_lr": 1e-3, "max_lr": 1e-2, "step_size_up": 4}),
        ("ExponentialLR", {"gamma": 0.9}),
    ],
)
def test_a_schedule_follows_torch_after_the_warm_up(name: str, options: dict[str, Any]) -> None:
    """The other learning rates, and Adam's first decay rate, follow in proportion and as they are."""
    model = leaves()[0]
    adam = torch.optim.Adam([model], RATES[0])
    scheduler = getattr(torch.optim.lr_scheduler, name)(adam, **options)
    expected = [(adam.param_groups[0]["lr"] * warmth, adam.param_groups[0]["betas"]) for warmth in (0.25, 0.5, 0.75)]
    model.grad = torch.zeros(SIZE)
    for _ in range(STEPS - 3):
        expected.append((adam.param_groups[0]["lr"], adam.param_groups[0]["betas"]))
        adam.step()
        scheduler.step()
    params = leaves()
    optimizer = OuterOptimizer(groups(params), settings(schedule=name, schedule_options=options, warmup_steps=4))
    source = gradients(params)
    for rate, betas in expected:
        run(optimizer, params, source, 1)
        used = optimizer._optimizers[0].param_groups
        assert [group["lr"] for group in used][:2] == pytest.approx([rate, rate * 10], rel=1e-9, abs=1e-12)
        assert used[0]["betas"] == betas


RESUMED = [
    ("Adam", {}, "CosineAnnealingLR", {"T_max": STEPS}),
    ("AdamW", {"amsgrad": True}, "OneCycleLR", {"max_lr": 0.05, "total_steps": STEPS}),
    ("SGD", {"momentum": 0.9}, "CyclicLR", {"base_lr": 1e-3, "max_lr": 1e-2}),
    ("SGD", {}, "constant", {}),
    ("RMSprop", {"momentum": 0.5}, "StepLR", {"step_size": 7}),
    ("Adafactor", {}, "CosineAnnealingLR", {"T_max": STEPS}),
    ("NAdam", {}, "OneCycleLR", {"max_lr": 0.05, "total_steps": STEPS}),
    ("RAdam", {}, "StepLR", {"step_size": 7}),
    ("ASGD", {}, "MultiStepLR", {"milestones": [4, 20]}),
    ("Muon", {}, "CosineAnnealingWarmRestarts", {"T_0": 9}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("optimizer", "options", "schedule", "schedule_options"), RESUMED)
def test_a_checkpoint_continues_bit_for_bit(
    optimizer: str,
    options: dict[str, Any],
    schedule: str,
    schedule_options: dict[str, Any],
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    """Interrupted during the warm-up and after it: the state passes through the files of a checkpoint."""
    chosen = settings(
        optimizer=optimizer, optimizer_options=options, schedule=schedule, schedule_options=schedule_options,
        warmup_steps=6,
    )  # fmt: skip
    straight, broken = leaves(dtype), leaves(dtype)
    run(OuterOptimizer(groups(straight), chosen), straight, gradients(straight), STEPS)
    source, current, done = gradients(broken), OuterOptimizer(groups(broken), chosen), 0
    for stop in (3, 14, STEPS):
        run(current, broken, source, stop - done)
        done = stop
        save_checkpoint(tmp_path, stop, {}, {"optimizer": current.state_dict()})
        found = load_checkpoint(tmp_path, {}, torch.device("cpu"))
        assert found is not None
        broken = [param.detach().clone().requires_grad_() for param in broken]
        current = OuterOptimizer(groups(broken), chosen)
        current.load_state_dict(found[1]["optimizer"])
    assert equal(straight, broken)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "Adma"}, r"train\.optimizer: torch\.optim has no 'Adma'.*did you mean 'Adam"),
        ({"optimizer": "Optimizer"}, r"train\.optimizer: torch\.optim has no 'Optimizer'"),
        ({"optimizer": "LBFGS"}, r"train\.optimizer 'LBFGS' cannot be used: it evaluates the loss again"),
        ({"optimizer": "SparseAdam"}, r"train\.optimizer 'SparseAdam' .* does not support dense gradients"),
        ({"optimizer_options": {"momentum": 0.9}}, r"train\.optimizer_options\.momentum: Adam .* it takes: betas, eps"),
        ({"optimizer_options": {"lr": 0.9}}, r"train\.optimizer_options\.lr: Adam takes no such option here"),
        ({"optimizer_options": {"betas": 3}}, r"train\.optimizer 'Adam' with \{'betas': 3\} cannot be used"),
        ({"optimizer_options": {"eps": -1.0}}, r"train\.optimizer 'Adam' with .* Invalid epsilon value: -1\.0"),
        ({"schedule": "Cosine"}, r"train\.schedule: .* has no 'Cosine'.* it has: ConstantLR, .*constant"),
        ({"schedule": "LRScheduler"}, r"train\.schedule: .* has no 'LRScheduler'"),
        ({"schedule": "ReduceLROnPlateau"}, r"train\.schedule 'ReduceLROnPlateau' cannot be used: it waits for a met"),
        ({"schedule": "LambdaLR"}, r"train\.schedule 'LambdaLR' cannot be used: it takes functions"),
        ({"schedule": "SequentialLR"}, r"train\.schedule 'SequentialLR' cannot be used: it takes other schedules"),
        ({"schedule": "StepLR"}, r"train\.schedule_options must give step_size"),
        ({"schedule_options": {"gamma": 1}}, r"train\.schedule_options .* train\.schedule is 'constant'"),
        (
            {"schedule": "CosineAnnealingLR", "schedule_options": {"t_max": 1}},
            r"train\.schedule_options\.t_max: CosineAnnealingLR takes no such option here; it takes: T_max, eta_min",
        ),
        (
            {"schedule": "OneCycleLR", "schedule_options": {"max_lr": 0.1, "total_steps": 20}},
            r"train\.schedule 'OneCycleLR' .* fails after step 21 of 30: Tried to step",
        ),
        (
            {"schedule": "OneCycleLR", "schedule_options": {"max_lr": 0.1, "total_steps": 40}, "optimizer": "Adagrad"},
            r"train\.schedule 'OneCycleLR' .* must support momentum",
        ),
        (
            {"schedule": "ExponentialLR", "schedule_options": {"gamma": -1.0}},
            r"train\.schedule 'ExponentialLR' gives a learning rate of -0\.01 at step 2",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence_before_training(values: dict[str, Any], message: str) -> None:
    for attempt in (check_optimizer, lambda chosen: OuterOptimizer(groups(leaves()), chosen)):
        with pytest.raises(UsageError, match=message) as caught:
            attempt(settings(**values))
        assert "\n" not in str(caught.value)


def test_muon_has_nothing_to_do_where_only_the_head_learns() -> None:
    with pytest.raises(UsageError, match=r"train\.optimizer 'Muon' moves matrices of the encoder"):
        OuterOptimizer([Group([torch.zeros(8)], 0.1, None)], settings(optimizer="Muon"))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop"])
def test_no_step_waits_for_the_device(name: str) -> None:
    params = leaves()
    chosen = settings(optimizer=name, schedule="CosineAnnealingLR", schedule_options={"T_max": 9}, warmup_steps=2)
    optimizer, source = OuterOptimizer(groups(params), chosen), gradients(params)
    values = [next(source) for _ in range(6)]
    with NoHostSync():
        for trunk, head, *learned in values:
            optimizer.step([[trunk], [head], list(learned)])
