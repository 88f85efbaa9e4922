"""The outer optimiser: a class of torch over groups with their own learning rates, warm-up, schedule and clipping."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from sdm_ray.config import TrainSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Params
from sdm_ray.meta.outer.schedule import Schedule, check_options, classes_of, unknown

ELEMENTWISE = frozenset(
    {"ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"}
)
"""Elementwise optimisers: they get one flat vector, which gives the same update faster. The others get the separate
tensors."""
MATRICES_ONLY = frozenset({"Muon"})
"""Optimisers that take matrices only; embeddings, vectors, heads and the adversary's parameters get AdamW."""


class Group(NamedTuple):
    """Parameters that share a learning rate."""

    params: list[Tensor]
    """Leaf tensors; may be empty."""
    learning_rate: float
    """After warm-up."""
    gradient_clip: float | None
    """Norm that the group's gradient is clipped to."""
    views: Callable[[Tensor], Params] | None = None
    """The tensors of the model as named views into each of `params` (and into its gradient), where these are flat
    vectors of them."""


class Rated(NamedTuple):
    """A tensor that an optimiser updates."""

    learning_rate: float
    piece: Tensor


class OuterOptimizer:
    """Any optimiser of `torch.optim` that needs gradients alone, with any schedule of torch after a linear warm-up.

    It does not synchronise with the device, unless the class of torch does (Adafactor). Scalars get no weight decay:
    none of them is a weight.

    Args:
        groups: the first one's gradient norm is reported, and it holds the weights of the model.
        settings: optimiser, schedule, warm-up and number of steps.

    Raises:
        UsageError: for an optimiser or schedule that does not exist, does not take its options or cannot be used here.
    """

    def __init__(self, groups: list[Group], settings: TrainSettings) -> None:
        self._groups = groups
        kind = _optimizer_class(settings)
        self._split = settings.optimizer not in ELEMENTWISE
        self._pieces = [_pieces(group, [p.detach() for p in group.params], self._split) for group in groups]
        shares = self._shares(settings)
        options = _working_options(kind, settings, shares[0])
        self._schedule = Schedule(settings, kind, settings.optimizer_options)
        self._optimizers = [_build(kind, shares[0], options)]
        if len(shares) > 1:
            self._optimizers.append(_build(AdamW, shares[1], {}))
        self._rates = [[values["lr"] for values in optimizer.param_groups] for optimizer in self._optimizers]

    def step(self, gradients: list[list[Tensor | None]]) -> Tensor:
        """Apply gradients, one list for each group; None leaves a parameter where it is.

        Returns:
            0-d norm of the first group's gradient before clipping.
        """
        norm = global_norm([grad for grad in gradients[0] if grad is not None])
        for group, pieces, grads in zip(self._groups, self._pieces, gradients, strict=True):
            clipped = clip(grads, group.gradient_clip)
            for piece, grad in zip(pieces, _pieces(group, clipped, self._split), strict=True):
                piece.grad = grad
        factor, cycled = self._schedule.factor, self._schedule.cycled
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for values, rate in zip(optimizer.param_groups, rates, strict=True):
                values["lr"] = rate * factor
                if optimizer is self._optimizers[0]:
                    values.update(cycled)
            optimizer.step()
            optimizer.zero_grad()
        self._schedule.advance()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Steps done and what the optimiser keeps of each parameter, by the parameter's position."""
        kept = {str(index): dict(optimizer.state.get(piece, {})) for index, piece, optimizer in self._owned()}
        return {"count": self._schedule.count, "state": {index: values for index, values in kept.items() if values}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        What the optimiser keeps is put back as it was: `Optimizer.load_state_dict` would cast it to the parameters'
        type and move it to their device.
        """
        self._schedule.load_count(state["count"])
        for index, piece, optimizer in self._owned():
            optimizer.state[piece].clear()
            optimizer.state[piece].update(state["state"].get(str(index), {}))

    def _owned(self) -> Iterator[tuple[int, Tensor, Optimizer]]:
        """Position, tensor and optimiser of every parameter."""
        owned = [
            (piece, optimizer)
            for optimizer in self._optimizers
            for values in optimizer.param_groups
            for piece in values["params"]
        ]
        return ((index, piece, optimizer) for index, (piece, optimizer) in enumerate(owned))

    def _shares(self, settings: TrainSettings) -> list[list[Rated]]:
        """Tensors of the chosen optimiser and, where it does not take all, those of AdamW."""
        rated = [
            Rated(group.learning_rate, piece)
            for group, pieces in zip(self._groups, self._pieces, strict=True)
            for piece in pieces
        ]
        if settings.optimizer not in MATRICES_ONLY:
            return [rated]
        matrices = _hidden_matrices(self._groups[0], self._pieces[0])
        shares = [[one for one in rated if (id(one.piece) in matrices) == wanted] for wanted in (True, False)]
        if not shares[0]:
            raise UsageError(
                f"train.optimizer {settings.optimizer!r} moves matrices of the encoder, but method "
                f"{settings.method!r} trains none; choose another optimiser"
            )
        return shares if shares[1] else shares[:1]


def check_optimizer(settings: TrainSettings) -> None:
    """Refuse an outer optimiser or schedule that cannot work, before anything is loaded.

    Raises:
        UsageError: as `OuterOptimizer`.
    """
    if settings.optimizer in MATRICES_ONLY and settings.method in ("pretrained", "random"):
        return
    OuterOptimizer([Group([torch.zeros(2, 2)], settings.learning_rate, None)], settings)


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """0-d Euclidean norm of tensors taken together."""
    norms: list[Tensor] = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    if len(norms) > 1:
        norms = [torch.linalg.vector_norm(torch.stack(norms))]
    return norms[0]


def clip(gradients: Sequence[Tensor | None], max_norm: float | None) -> list[Tensor | None]:
    """Gradients scaled so that their joint norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_` does.

    There is no branch on the norm's value.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if max_norm is None or not present:
        return list(gradients)
    scale = (max_norm / (global_norm(present) + 1e-6)).clamp(max=1.0)
    return [None if gradient is None else gradient * scale for gradient in gradients]


def _pieces(group: Group, values: Sequence[Tensor | None], split: bool) -> list[Any]:
    """The parameters (or their gradients) as the optimiser sees them."""
    if not split or group.views is None:
        return list(values)
    return [piece for value in values if value is not None for piece in group.views(value).values()]


def _hidden_matrices(group: Group, pieces: list[Tensor]) -> set[int]:
    """Identities of the matrices that are no embeddings."""
    views = group.views
    names = [""] * len(pieces) if views is None else [name for param in group.params for name in views(param)]
    return {id(piece) for name, piece in zip(names, pieces, strict=True) if piece.dim() == 2 and "embed" not in name}


def _optimizer_class(settings: TrainSettings) -> type[Optimizer]:
    name, known = settings.optimizer, classes_of(torch.optim, Optimizer, without=("Optimizer",))
    if name not in known:
        raise UsageError(unknown("train.optimizer", name, "torch.optim", known))
    kind: type[Optimizer] = known[name]
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UsageError(
            f"train.optimizer {name!r} cannot be used: it evaluates the loss again; choose another, as Adam"
        )
    check_options("train.optimizer_options", kind, settings.optimizer_options, fixed=("params", "lr"))
    return kind


def _working_options(kind: type[Optimizer], settings: TrainSettings, share: list[Rated]) -> dict[str, Any]:
    """The first options with which a step on small stand-in tensors succeeds; `fused` is tried first."""
    given = settings.optimizer_options
    choices = [given]
    if "fused" in inspect.signature(kind).parameters and not given.keys() & {"fused", "foreach", "differentiable"}:
        choices.insert(0, {**given, "fused": True})
    problem: Exception | None = None
    for options in choices:
        try:
            _rehearse(kind, share, options)
        except Exception as error:  # whatever a class of torch makes of options that it cannot use
            problem = error
            continue
        return options
    words = " ".join(str(problem).split()) or type(problem).__name__
    raise UsageError(f"train.optimizer {settings.optimizer!r} with {given} cannot be used: {words}")


def _rehearse(kind: type[Optimizer], share: list[Rated], options: dict[str, Any]) -> None:
    stand_ins = [
        Rated(rate, torch.zeros([min(2, size) for size in piece.shape], dtype=piece.dtype, device=piece.device))
        for rate, piece in share
    ]
    optimizer = _build(kind, stand_ins, options)
    for stand_in in stand_ins:
        stand_in.piece.grad = torch.ones_like(stand_in.piece)
    optimizer.step()


def _build(kind: type[Optimizer], share: list[Rated], options: dict[str, Any]) -> Optimizer:
    """The optimiser; consecutive tensors with one learning rate share a parameter group."""
    decays = "weight_decay" in inspect.signature(kind).parameters
    groups = []
    for (rate, is_scalar), members in groupby(share, lambda one: (one.learning_rate, one.piece.dim() == 0)):
        own = {"weight_decay": 0.0} if decays and is_scalar else {}
        groups.append({"params": [one.piece for one in members], "lr": rate, **own})
    return kind(groups, **options)
