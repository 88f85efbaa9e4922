"""Shrink, perturb and distil: trained weights are mixed with fresh ones, then the trained model is distilled into them.

Shrink and perturb is by Ash and Adams (arXiv 1910.08475); distilling an unlearned model into a damaged copy of itself,
so that hidden knowledge is not passed on, by Lee et al. (arXiv 2506.06278). Weights that the distillation texts never
touch, such as embeddings of absent names, remain the initial mixture: only the share alpha of them is gone. Anyone who
knows the seed can reproduce the fresh weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from sdm_ray.config import DistilSettings
from sdm_ray.config.distil import Alphas
from sdm_ray.core.errors import UsageError
from sdm_ray.core.seeds import derived_seed, seeded
from sdm_ray.core.types import Params
from sdm_ray.data.general import GeneralText
from sdm_ray.data.sampler import EpochSampler
from sdm_ray.meta.objectives.distil import hidden_loss, output_loss, pooled_loss
from sdm_ray.models.encoder import Trunk, fresh_params, params_digest
from sdm_ray.models.heads import init_head, logits
from sdm_ray.models.interface import TrunkLike

OUTPUTS, FEATURES = "distil_outputs", "distil_features"
"""Names of the parts of the loss in metrics."""


class Model(NamedTuple):
    """Weights of a trunk and its desired head."""

    params: Params
    head: Tensor
    """(C, D)."""

    def digest(self) -> str:
        """SHA-256 (hex) of both."""
        return params_digest(self.params | {"desired_head": self.head})


def alpha_of(depth: int, num_depths: int, alphas: Alphas) -> float:
    """Share of fresh initialisation at a depth of a trunk (`TrunkLike.depth_of`).

    `lower` is the first half of the depths above the embeddings, rounded down.
    """
    if depth == 0:
        return alphas.embedding
    return alphas.lower if depth <= (num_depths - 1) // 2 else alphas.upper


def perturbed(trunk: TrunkLike, teacher: Model, alphas: Alphas, seed: int) -> Model:
    """A teacher's weights, scaled by (1 - alpha), plus alpha times fresh weights.

    Args:
        trunk: the architecture.
        teacher: the model; it is not modified.
        alphas: shares by depth; the head has that of the upper layers. 0 gives exactly the teacher's weights and 1
            exactly the fresh ones.
        seed: seed of the fresh weights.

    Raises:
        UsageError: if the trunk is not a text encoder.
    """
    if not isinstance(trunk, Trunk):
        raise UsageError(
            f"train.distil needs an encoder of texts, got {type(trunk).__name__}; set train.distil.num_steps to 0"
        )
    fresh = fresh_params(trunk, derived_seed(seed, "distil"))
    params = {
        name: _mixed(value, fresh[name], alpha_of(trunk.depth_of(name), trunk.num_depths, alphas))
        for name, value in teacher.params.items()
    }
    num_classes, width = teacher.head.shape
    head = init_head(width, num_classes, seeded(seed, "distil", "head"))
    return Model(params, _mixed(teacher.head, head, alphas.upper))


def _mixed(value: Tensor, fresh: Tensor, alpha: float) -> Tensor:
    return (1 - alpha) * value.detach() + alpha * fresh.to(value)


class Distillation:
    """A teacher, its student, and the loss between them on batches of texts.

    Args:
        settings: weights, temperature, features and batch sizes are used.
        trunk: the architecture of both; not modified.
        teacher: not modified.
        student: initial weights of the student.
        desired: desired texts.
        general: general texts; None uses desired texts only.
        seed: seed of the order of texts.
    """

    def __init__(
        self,
        settings: DistilSettings,
        *,
        trunk: Trunk,
        teacher: Model,
        student: Model,
        desired: GeneralText,
        general: GeneralText | None,
        seed: int,
    ) -> None:
        self._settings, self._trunk = settings, trunk
        self.teacher, self.student = teacher, student
        self._texts: list[tuple[GeneralText, EpochSampler, float]] = []
        sizes = (settings.desired_batch_size, settings.general_batch_size)
        for index, (text, size) in enumerate(zip((desired, general), sizes, strict=True)):
            if text is not None and size:
                sampler = EpochSampler(torch.arange(len(text)), size, seeded(seed, "distil", "texts", index))
                self._texts.append((text, sampler, settings.general_weight if index else 1.0))
        self.texts_per_step = sum(sizes[: len(self._texts)])
        weights = {OUTPUTS: settings.output_weight, FEATURES: settings.feature_weight}
        self._weights = {name: weight for name, weight in weights.items() if weight}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Parts of the loss with a positive weight."""
        return tuple(self._weights)

    def gradient(self, params: Params, head: Tensor, flat: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Gradient of the loss on the next batch of desired and general texts.

        Args:
            params: the student's trunk, as differentiable views of `flat`.
            head: (C, D) its desired head, which requires gradients.
            flat: (P,) leaf that requires gradients.

        Returns:
            (P,) and (C, D) weighted gradients, the latter None if no outputs are used, and each part of the loss by
            name (0-d, detached), its weighted mean over both kinds of texts.
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in self._weights}
        shares = []
        for text, sampler, weight in self._texts:
            found = self._parts(params, head, text.batch(sampler.next()))
            shares.append(weight)
            for name in parts:
                parts[name].append(weight * found[name])
        sums = {name: torch.stack(values).sum() for name, values in parts.items()}
        loss = torch.stack([self._weights[name] * value for name, value in sums.items()]).sum()
        trunk, last = torch.autograd.grad(loss, (flat, head), allow_unused=True)
        return trunk, last, {name: value.detach() / sum(shares) for name, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """State that the next batch depends on."""
        return {
            str(index): {"text": text.digest, "sampler": sampler.state_dict()}
            for index, (text, sampler, _) in enumerate(self._texts)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`.

        Raises:
            UsageError: if the state belongs to other texts.
        """
        for index, (text, sampler, _) in enumerate(self._texts):
            if state[str(index)]["text"] != text.digest:
                raise UsageError(
                    "train.distil.general.source: its texts are not those that the checkpoint was distilled on; "
                    "restore them, or remove the checkpoint to distil from the start"
                )
            sampler.load_state_dict(state[str(index)]["sampler"])

    def _parts(self, params: Params, head: Tensor, inputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            theirs, their_states = self._features(self.teacher.params, inputs)
            their_scores = logits(theirs, self.teacher.head)
        ours, our_states = self._features(params, inputs)
        found = {}
        if OUTPUTS in self._weights:
            found[OUTPUTS] = output_loss(logits(ours, head), their_scores, self._settings.temperature)
        if our_states is not None and their_states is not None:
            found[FEATURES] = hidden_loss(our_states, their_states, inputs[1])
        elif FEATURES in self._weights:
            found[FEATURES] = pooled_loss(ours, theirs)
        return found

    def _features(self, params: Params, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """(B, D) features and, if requested, (H, B, L, D) hidden states."""
        if self._settings.features == "hidden_states" and FEATURES in self._weights:
            features, states = functional_call(self._trunk, params, inputs, {"hidden_states": True})
            return features, states
        options = {"shortcut": True} if self._trunk.has_shortcut else {}
        return functional_call(self._trunk, params, inputs, options), None


__all__ = ["FEATURES", "OUTPUTS", "Distillation", "Model", "alpha_of", "perturbed"]
