"""The `retain_*` terms, which keep the un-adapted model a general encoder: their values, gradient and random draws.

`retain_mlm` and `retain_distill` are computed on general text, `retain_representation` on the outer desired batch. The
original encoder is the trunk that training starts from; its parameters are never modified.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdm_ray.config import EncoderSettings, RetainSettings, SyntheticWorld, TrainSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.types import Batch, Params
from sdm_ray.data.general import GeneralText, load_general_text, meta_training_text
from sdm_ray.data.interface import Dataset
from sdm_ray.data.sampler import EpochSampler
from sdm_ray.meta.inner.flat_model import FlatModel, TrunkLike
from sdm_ray.meta.objectives import TERMS, weighted_sum
from sdm_ray.models.corruption import corrupt
from sdm_ray.models.masked_lm import MaskedLmHead, load_masked_lm, word_embedding_name
from sdm_ray.models.trunk import Trunk

ON_DESIRED_BATCH = ("retain_representation",)
"""Terms that are computed on the outer desired batch instead of general text."""


class GeneralSources(NamedTuple):
    """Inputs of the `retain_*` terms besides trunk and data."""

    text: GeneralText | None = None
    """General text; None uses the meta-training texts."""
    masked_lm: MaskedLmHead | None = None
    """Masked-LM head; None if no term needs it."""


def load_general_sources(
    settings: TrainSettings,
    encoder: EncoderSettings,
    *,
    trunk: Trunk,
    tokenizer: Any,
    world: SyntheticWorld,
    max_length: int,
    device: torch.device | str,
    cache_dir: Path,
) -> GeneralSources | None:
    """Load the general text and the masked-LM head that the terms of positive weight need; None if they need neither.

    Args:
        settings: the training settings.
        encoder: settings of the encoder that is trained.
        trunk: that encoder, loaded.
        tokenizer: its fast tokenizer.
        world: the synthetic world.
        max_length: longer texts are truncated to this many tokens, or to the encoder's own limit if that is lower.
        device: device of the batches.
        cache_dir: folder of the built-in encoder.

    Raises:
        UsageError: for text or an encoder that cannot be used; see `load_general_text`, `load_masked_lm`.
        RunError: when a hub cannot be reached.
    """
    weights = settings.blocking.weights()
    text = head = None
    if weights.keys() & {"retain_mlm", "retain_distill"} and settings.retain.source is not None:
        reach = min(max_length, trunk.max_length)
        text = load_general_text(
            settings.retain,
            tokenizer,
            world=world,
            max_length=reach,
            device=device,
            scrubbed=settings.retain.scrub != "none",
            keep_names=settings.retain.scrub == "words",
        )
        trunk.check_data(text.width, text.max_id)
    if "retain_mlm" in weights:
        head = load_masked_lm(encoder, tokenizer, cache_dir=cache_dir, world=world)
    return None if text is None and head is None else GeneralSources(text, head)


class Retention:
    """The weighted gradient of the `retain_*` terms at a trunk, and the sampler of general text.

    Args:
        weights: positive weight by term; only terms that read `masked_lm` or `hidden_states`.
        settings: batch size, number of texts and fraction of predicted tokens are used.
        model: the trunk as a function of its parameters.
        trunk: the original encoder, a text encoder whose `forward` returns hidden states.
        sources: general text and masked-LM head; None for neither.
        data: supplies the general text if `sources` has none.
        indices: (N,) host indices of meta-training.
        generator: CPU generator of all draws.

    Raises:
        UsageError: for a trunk without hidden states, or `retain_mlm` without a head.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        settings: RetainSettings,
        *,
        model: FlatModel,
        trunk: TrunkLike,
        sources: GeneralSources | None,
        data: Dataset,
        indices: Tensor,
        generator: torch.Generator,
    ) -> None:
        assert isinstance(trunk, nn.Module)
        text, head = sources or GeneralSources()
        _check(weights, trunk, head)
        self._weights, self._settings = dict(weights), settings
        self._model, self._trunk, self._generator = model, trunk, generator
        self._text: GeneralText | None = None
        self.num_texts = 0
        """General texts of the last step."""
        if weights.keys() - set(ON_DESIRED_BATCH):
            if text is None:
                text = meta_training_text(data, indices, settings.max_texts, scrubbed=settings.scrub == "all")
            self._text = text
            self._sampler = EpochSampler(torch.arange(len(self._text)), settings.batch_size, generator)
        if "retain_mlm" in weights:
            assert isinstance(trunk, Trunk)
            assert head is not None
            self._embedding_name: str = word_embedding_name(trunk)
            self._head: MaskedLmHead = head.to(data.device, trunk.dtype)

    def gradient(self, trunk: Tensor, desired: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw a batch of general text and compute the gradient of the weighted sum of the terms.

        Args:
            trunk: (P,) the trunk's parameters; they are not modified.
            desired: the outer desired batch.

        Returns:
            (P,) the weighted gradient, and the unweighted value of every term (0-d, detached) by name.
        """
        texts = None if self._text is None else self._sampler.next()
        self.num_texts = 0 if texts is None else len(texts)
        point = trunk.detach().requires_grad_()
        gradient, values = torch.zeros_like(point), {}
        for name in self._weights:
            value = self._value(name, self._model.layout.unflatten(point), texts, desired)
            # One term at a time, so that memory holds one graph.
            (part,) = torch.autograd.grad(weighted_sum({name: value}, self._weights), point)
            gradient += part
            values[name] = value.detach()
        return gradient, values

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next batch depends on."""
        if self._text is None:
            return {}
        return {"text": self._text.digest, "sampler": self._sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            UsageError: if the general text has changed since.
        """
        if self._text is None:
            return
        if state["text"] != self._text.digest:
            raise UsageError(
                "train.retain.source: its text is not the one that the checkpoint was trained with; restore it, or "
                "remove the checkpoint to train from the start"
            )
        self._sampler.load_state_dict(state["sampler"])

    def _value(self, name: str, params: Params, texts: Tensor | None, desired: Batch) -> Tensor:
        function = TERMS[name].function
        if name in ON_DESIRED_BATCH:
            inputs = desired.inputs
        else:
            assert self._text is not None
            assert texts is not None
            if TERMS[name].reads == "masked_lm":
                return function(*self._predicted(self._text, params, texts))
            inputs = self._text.batch(texts)
        with torch.no_grad():
            _, reference = self._trunk(*inputs, hidden_states=True)
        return function(self._hidden(params, inputs), reference, inputs[1])

    def _predicted(self, text: GeneralText, params: Params, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Corrupt texts; logits (N, V) and labels (N,) of the N tokens to predict."""
        corrupted = corrupt(
            text.host_ids(texts),
            self._head.special,
            mask_id=self._head.mask_id,
            share=self._settings.mask_share,
            generator=self._generator,
        )
        input_ids, positions, labels = (text.send(value) for value in corrupted)
        hidden = self._hidden(params, (input_ids, text.batch(texts)[1]))[-1].flatten(0, 1)[positions]
        return self._head(hidden, params[self._embedding_name]), labels

    def _hidden(self, params: Params, inputs: tuple[Tensor, ...]) -> Tensor:
        """Hidden states (H, B, L, D)."""
        hidden: Tensor = functional_call(self._trunk, params, inputs, {"hidden_states": True})[1]
        return hidden


def check_hidden_states(named: str, trunk: TrunkLike | nn.Module) -> None:
    """Refuse an encoder without hidden states for a term that reads them.

    Raises:
        UsageError: saying which setting to change.
    """
    if "hidden_states" not in inspect.signature(trunk.forward).parameters:
        raise UsageError(
            f"train.blocking.{named} needs an encoder of texts with hidden states, got {type(trunk).__name__}; "
            "set its weight to 0"
        )


def _check(weights: Mapping[str, float], trunk: nn.Module, head: MaskedLmHead | None) -> None:
    assert all(TERMS[name].reads in ("masked_lm", "hidden_states") for name in weights), weights
    check_hidden_states(", ".join(weights), trunk)
    if "retain_mlm" in weights and head is None:
        raise UsageError(
            "train.blocking.retain_mlm needs the encoder's masked-LM head: give the trainer one, or set it to 0"
        )
