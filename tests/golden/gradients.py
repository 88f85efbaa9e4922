"""Meta-gradients of single episodes, calibration, and every blocking term."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdm_ray.meta.inner.episode import Execution, MetaGradients
from sdm_ray.meta.inner.flat_model import FlatModel
from sdm_ray.meta.inner.loop import evaluate, meta_gradients
from sdm_ray.meta.inner.problems import EvaluationBatch
from sdm_ray.meta.objectives import TERMS, Trajectory, step_losses, weighted_sum
from sdm_ray.meta.objectives.calibration import calibrated_cross_entropy
from tests.fakes.meta import MlpTrunk, bert_trunk, episode_of, random_batch, start_of
from tests.golden import pins

MODES = ("auto", "unrolled", "adjoint_stored", "adjoint", "truncated", "first_order")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")
SCHEDULES = ("constant", "warmup", "linear", "cosine")
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "head": {"adaptation": "head"},
    "partial": {"adaptation": "partial", "depth": 1},
    "lora": {"adaptation": "lora", "rank": 2},
}
WEIGHTS = {
    "harmful_base": 0.3, "harmful_adapted_calibrated": 1.0, "harmful_adapted_entropy": 0.5,
    "harmful_adapted_uniform": 0.4, "adapted_grad_norm": 0.7, "mutual_information": 0.6,
}  # fmt: skip
DESIRED_WEIGHTS = {"desired_adapted": 0.7, "desired_adapted_harmful": 0.4}
OTHERS: dict[str, dict[str, Any]] = {
    "without-steps": {"num_steps": 0, "weights": {"harmful_base": 0.3}},
    "some-moments": {"evaluated_steps": (0, 2)},
    "last-moment": {"evaluated_steps": (3,), "weights": {"harmful_adapted": 1.0}},
    "clipped": {"gradient_clip": 0.2},
    "noise": {"noise": (0.1, 0.2)},
    "noise-lora": {"noise": (0.1, 0.2), "adaptation": "lora", "rank": 2},
    "given-adversary": {"learned": False},
    "desired": {"weights": DESIRED_WEIGHTS, "aside": True},
    "desired-unrolled": {"weights": DESIRED_WEIGHTS, "aside": True, "mode": "unrolled"},
}


def episode(trunk: Callable[[Path], Any], folder: Path, **changes: Any) -> dict[str, Any]:
    """What one episode of two adversaries asks of the outer step."""
    model = FlatModel(trunk(folder))
    weights, learned = changes.pop("weights", WEIGHTS), changes.pop("learned", True)
    evaluation = None
    if changes.pop("aside", False):
        fixed = torch.linspace(-1, 1, 2 * model.feature_dim, dtype=torch.float64).view(2, -1)
        evaluation = (EvaluationBatch(random_batch(6, seed=3), None), EvaluationBatch(random_batch(4, seed=4), fixed))
    options = {"rows": False, "compiled": False} | {name: changes.pop(name, False) for name in ("rows", "compiled")}
    made = episode_of(count=2, evaluation=evaluation, **{"mode": "adjoint", "truncation_steps": 2, **changes})
    if options["rows"]:
        batches = [*made.data.inner, *(one.batch for one in made.data.evaluation)]
        occurring = torch.cat([batch.inputs[0].flatten() for batch in batches]).unique()
        made = made._replace(rows=model.plan_rows(occurring, torch.device("cpu")))
    found = meta_gradients(
        model,
        start_of(model, count=2, learned=learned),
        made,
        weights,
        predictors=predictors(model, len(made.data.inner)),
        execution=Execution(compiled=options["compiled"]),
    )
    return of_gradients(found)


def of_gradients(found: MetaGradients) -> dict[str, Any]:
    """The parts of meta-gradients that are pinned."""
    return {
        "losses": step_losses(found.trajectory).tolist(),
        "terms": {name: value.item() for name, value in found.values.items()},
        "trunk": found.trunk,
        "head": found.head,
        "log_learning_rate": found.log_learning_rate,
        "predictors": found.predictors,
        "fixed_head": found.fixed_head,
        "final": found.final,
        "moments": pins.of_values(list(found.final_state.moments)),
    }


def predictors(model: FlatModel, num_steps: int) -> Tensor:
    """Linear predictors for the mutual information."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn(num_steps + 1, 2, model.feature_dim, generator=generator, dtype=torch.float64)


def compiled(folder: Path, **changes: Any) -> dict[str, Any]:
    """The step functions of the compiled modes, run without a compiler: the mathematics alone is pinned."""
    with torch.compiler.set_stance("force_eager"):
        return episode(mlp, folder, compiled=True, **changes)


def looked_on(folder: Path) -> dict[str, Any]:
    """What is seen of adversaries without a gradient."""
    model = FlatModel(MlpTrunk())
    found = evaluate(model, start_of(model, count=2), episode_of(count=2, optimizer="rmsprop"))
    return {"losses": step_losses(found).tolist(), "logits": found.logits, "features": found.features}


def term(name: str, folder: Path) -> dict[str, Any]:
    """Value of a blocking term, and the gradient that the trunk descends."""
    leaf, function = term_case(name)
    value = function(leaf.requires_grad_())
    (gradient,) = torch.autograd.grad(weighted_sum({name: value}, {name: 2.0}), leaf)
    return {"value": value.item(), "gradient": gradient}


def term_case(name: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A random tensor that a term is a function of, and the term as that function."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    chosen, labels = TERMS[name], torch.tensor([0, 2, 1, 1, 0])
    if chosen.reads == "predicted":
        scores, linear = draw(4, 5, 3), draw(4, 3, 3)
        return draw(4, 5, 3), lambda x: chosen.function(trajectory(scores, labels, x), linear)
    if chosen.reads == "inner_gradient":
        return draw(2, 7), chosen.function
    if chosen.reads == "gradients":
        other = draw(7)
        return draw(7), lambda x: chosen.function(x, other)
    if chosen.reads == "masked_lm":
        return draw(5, 3), lambda x: chosen.function(x, labels)
    if chosen.reads == "weights":
        other = draw(7)
        return draw(7), lambda x: chosen.function(x, other, None)
    if chosen.reads == "harmful_step":
        return draw(2), lambda x: chosen.function(*x)
    if chosen.reads == "desired_after_step":
        return draw(4, 5, 3), lambda x: chosen.function(trajectory(x, labels), 1)
    if chosen.reads in ("hidden_states", "harmful_hidden"):
        other, mask = draw(3, 2, 4, 6), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        return draw(3, 2, 4, 6), lambda x: chosen.function(x, other, mask)
    return draw(4, 5, 3), lambda x: chosen.function(trajectory(x, labels))


def regression_term(name: str, folder: Path) -> dict[str, Any]:
    """A term that also takes the scores of a regression."""
    labels = torch.tensor([1.0, -2.0, 2.0, 0.5]).double()
    scores = torch.randn(3, 4, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    value = TERMS[name].function(trajectory(scores, labels))
    (gradient,) = torch.autograd.grad(value, scores)
    return {"value": value.item(), "gradient": gradient}


def trajectory(logits: Tensor, labels: Tensor, features: Tensor | None = None) -> Trajectory:
    """Moments 0, 1, ... of one adversary."""
    features = logits.new_zeros(*logits.shape[:2], 3) if features is None else features
    return Trajectory(logits, features, labels, tuple(range(len(logits))))


def calibration(num_classes: int, dtype: torch.dtype, folder: Path) -> dict[str, Any]:
    """Calibrated losses of random, nearly collinear, separable and flipped logits."""
    generator = torch.Generator().manual_seed(num_classes)
    labels = torch.arange(20) % num_classes
    onehot = torch.nn.functional.one_hot(labels, num_classes).double()
    noise = torch.randn(4, 20, num_classes, generator=generator, dtype=torch.float64)
    line = torch.linspace(-1, 1, num_classes, dtype=torch.float64)
    logits = torch.stack([noise[0], noise[1, :, :1] * line + 1e-4 * noise[1], 3 * onehot + noise[2], noise[3] - onehot])
    logits = logits.to(dtype).requires_grad_()
    values = calibrated_cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    return {"values": values.tolist(), "gradient": gradient}


def mlp(folder: Path) -> MlpTrunk:
    """The trunk of two layers."""
    return MlpTrunk()


def bert(folder: Path) -> Any:
    """The tiny BERT in float64."""
    return bert_trunk(folder / "bert")


def _cases() -> dict[str, Callable[[Path], Any]]:
    cases: dict[str, Callable[[Path], Any]] = {
        f"mlp/{mode}/{optimizer}/{name}": partial(episode, mlp, mode=mode, optimizer=optimizer, **kind)
        for mode in MODES
        for optimizer in (OPTIMIZERS if mode != "auto" else OPTIMIZERS[:1])
        for name, kind in KINDS.items()
    }
    for schedule in SCHEDULES:
        for optimizer in ("sgd", "adam"):
            changes = {"schedule": schedule, "optimizer": optimizer, "num_steps": 5, "evaluated_steps": (0, 2, 5)}
            cases[f"schedule/{schedule}/{optimizer}"] = partial(episode, mlp, **changes)
    for name, kind in KINDS.items():
        cases[f"rows/{name}"] = partial(episode, mlp, rows=True, **kind)
        cases[f"compiled/{name}"] = partial(compiled, **kind)
        cases |= {f"bert/{mode}/adam/{name}": partial(episode, bert, mode=mode, **kind) for mode in MODES[1:]}
    cases |= {f"bert/adjoint/{optimizer}/full": partial(episode, bert, optimizer=optimizer) for optimizer in OPTIMIZERS}
    cases |= {
        "bert/rows": partial(episode, bert, rows=True),
        "bert/rows/lora": partial(episode, bert, rows=True, **KINDS["lora"]),
    }
    cases |= {
        f"bert/dropout/{mode}": partial(episode, bert, dropout=True, mode=mode) for mode in ("adjoint", "unrolled")
    }
    cases |= {f"compiled/{mode}": partial(compiled, mode=mode) for mode in ("auto", "truncated", "first_order")}
    cases |= {f"compiled/rows/{name}": partial(compiled, rows=True, **kind) for name, kind in KINDS.items()}
    cases |= {f"other/{name}": partial(episode, mlp, **changes) for name, changes in OTHERS.items()}
    cases["look-on"] = looked_on
    cases |= {f"term/{name}": partial(term, name) for name in sorted(TERMS)}
    names = ("harmful_base", "harmful_adapted", "harmful_adapted_calibrated")
    cases |= {f"term/regression/{name}": partial(regression_term, name) for name in names}
    return cases


CASES = _cases()
CALIBRATIONS: dict[str, Callable[[Path], Any]] = {
    f"{num_classes}-classes/{str(dtype).removeprefix('torch.')}": partial(calibration, num_classes, dtype)
    for num_classes in (2, 3, 5)
    for dtype in (torch.float32, torch.float64)
}
