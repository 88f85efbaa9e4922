"""A dry run: one forward and backward pass with the real encoder on two texts, before hours of training."""

from __future__ import annotations

import torch
from torch.func import functional_call

from sdm_ray.config import TrialSettings
from sdm_ray.core.errors import UsageError
from sdm_ray.core.hub import brief
from sdm_ray.core.types import Split, Task
from sdm_ray.models.encoder import Trunk
from sdm_ray.models.interface import as_module
from sdm_ray.trial.workspace import Workspace

NUM_TEXTS = 2
FAULTS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, NotImplementedError)
"""Exceptions raised by architectures whose shapes or outputs do not fit a text encoder."""


def dry_pass(work: Workspace, trunk: object, settings: TrialSettings) -> None:
    """Run each operation of training and attack once with an encoder, with its real weights and widths.

    Covers features of the longest texts, all hidden states, gradients, and second-order gradients for the method mlac.

    Args:
        work: the data.
        trunk: the encoder on the data's device; nothing is run if it is not a `Trunk`, for example for vectors.
        settings: the trial.

    Raises:
        UsageError: if one of them fails, has a wrong shape, or is not finite.
    """
    if not isinstance(trunk, Trunk):
        return
    name = settings.encoder.name
    rows = work.data.indices(Split.META_TRAIN)[:NUM_TEXTS]
    batch = work.data.batch(rows, Task.DESIRED, pad_to=work.data.width)
    params = {key: value.detach().requires_grad_() for key, value in trunk.named_parameters()}
    try:
        features, hidden = functional_call(as_module(trunk), params, batch.inputs, {"hidden_states": True})
        wanted = (len(rows), trunk.feature_dim), (len(rows), work.data.width)
        if (tuple(features.shape), tuple(hidden.shape[1:3])) != wanted:
            raise ValueError(f"features are {tuple(features.shape)} and hidden states {tuple(hidden.shape)}")
        twice = settings.train.method == "mlac"
        values = list(params.values())
        grads = torch.autograd.grad(features.square().mean(), values, create_graph=twice, allow_unused=True)
        if twice:
            total = sum(grad.square().sum() for grad in grads if grad is not None)
            assert isinstance(total, torch.Tensor)
            torch.autograd.grad(total, values, allow_unused=True)
        broken = not bool(features.isfinite().all()) or any(
            not bool(grad.isfinite().all()) for grad in grads if grad is not None
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except FAULTS as error:
        raise UsageError(
            f"encoder.name {name!r}: a first pass over {len(rows)} texts of {work.data.width} tokens fails "
            f"({type(error).__name__}: {brief(error)}), so it cannot be trained; take another encoder, or another "
            "encoder.pooling"
        ) from error
    if broken:
        raise UsageError(
            f"encoder.name {name!r}: a first pass over {len(rows)} texts of {work.data.width} tokens gives features or "
            "gradients that are NaN or infinite, so it cannot be trained; take another copy of it"
        )
