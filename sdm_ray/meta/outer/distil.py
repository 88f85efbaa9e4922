"""Shrink, perturb and distil: a trained model's weights are mixed with fresh ones, and what it computes is taught anew.

Shrinking towards a fresh draw is that of Ash and Adams (arXiv 1910.08475); distilling a model that refuses into a
damaged copy of itself, so that what it only hides is not passed on, is that of Lee et al. (arXiv 2506.06278). Whatever
the texts of the distillation do not touch, such as the embeddings of names that no text holds, stays the mixture that
it was: only the share alpha of it is gone. Whoever knows the seed can draw the same fresh weights.
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
"""The parts of the loss, as metrics name them."""


class Model(NamedTuple):
    """Weights of a trunk with its desired head."""

    params: Params
    head: Tensor
    """(C, D)."""

    def digest(self) -> str:
        """SHA-256 (hex) of both."""
        return params_digest(self.params | {"desired_head": self.head})


def alpha_of(depth: int, num_depths: int, alphas: Alphas) -> float:
    """The share of fresh initialisation at a depth of a trunk (`TrunkLike.depth_of`).

    Lower is the first half of the depths above the embeddings, rounded down.
    """
    if depth == 0:
        return alphas.embedding
    return alphas.lower if depth <= (num_depths - 1) // 2 else alphas.upper


def perturbed(trunk: TrunkLike, teacher: Model, alphas: Alphas, seed: int) -> Model:
    """A teacher's weights, each shrunk by (1 - alpha) and with alpha times a fresh draw added.

    Args:
        trunk: the architecture.
        teacher: the model; it is not written to.
        alphas: shares by depth; the head counts to the upper ones. 0 gives the teacher's weights and 1 the fresh ones,
            to the bit.
        seed: of the draw.

    Raises:
        UsageError: for what is no encoder of texts.
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
    """A teacher, the student that it is distilled into, and the loss between them on batches of texts.

    Args:
        settings: weights, temperature, features and batch sizes are used.
        trunk: the architecture of both; not written to.
        teacher: not written to.
        student: where the student starts.
        desired: desired texts.
        general: general texts; None distils on desired texts alone.
        seed: of the order of texts.
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
        """Parts of the loss that have a weight."""
        return tuple(self._weights)

    def gradient(self, params: Params, head: Tensor, flat: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """The loss's gradient on the next batch of desired and of general texts.

        Args:
            params: the student's trunk, as differentiable views of `flat`.
            head: (C, D) its desired head, which requires gradients.
            flat: (P,) leaf that requires gradients.

        Returns:
            (P,) and (C, D) weighted gradients, the latter None where no outputs are read, and each part (0-d,
            detached), its mean over both kinds of texts by their weights, by name.
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
        """Everything that the next batch depends on."""
        return {
            str(index): {"text": text.digest, "sampler": sampler.state_dict()}
            for index, (text, sampler, _) in enumerate(self._texts)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            UsageError: when that was with other texts.
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
        """(B, D) features and, where they are asked for, (H, B, L, D) hidden states."""
        if self._settings.features == "hidden_states" and FEATURES in self._weights:
            features, states = functional_call(self._trunk, params, inputs, {"hidden_states": True})
            return features, states
        options = {"shortcut": True} if self._trunk.has_shortcut else {}
        return functional_call(self._trunk, params, inputs, options), None


__all__ = ["FEATURES", "OUTPUTS", "Distillation", "Model", "alpha_of", "perturbed"]
