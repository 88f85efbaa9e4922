"""Tiny trunks of every architecture in float64, with biases and norms that are not what they are initialised to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from sdm_ray.models.trunk import Pooling, Trunk
from tests.fakes import files as helpers


def make_trunk(kind: str, pooling: Pooling = "native", *, seed: int = 0, **changes: Any) -> Trunk:
    """A trunk with random weights; changes are fields of the configuration."""
    family = AutoModelForSequenceClassification if pooling == "native" else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.from_config(helpers.tiny_config(kind, **changes), attn_implementation="eager")
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.normal_(0.5, 0.3)
    return Trunk(model, pooling).double()


def padded_tokens(*shape: int, seed: int = 0, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens (..., 4, 10), of which two rows end in padding after the 6th and the 3rd token."""
    ids = torch.randint(5, len(helpers.VOCABULARY), (*shape, 4, 10), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[..., 1, 6:] = 0
    mask[..., 2, 3:] = 0
    return torch.where(mask == 1, ids, padding), mask
