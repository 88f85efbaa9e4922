"""The noising loss of RepNoise, representation noising (Rosati et al., arXiv 2405.14577).

The paper adds it to the retained loss (`desired_base`, `retain_*`) and to an ascent on the harmful loss
(`harmful_base`). Its ascent reads the logarithm of the harmful loss, averaged over the outputs of every layer; ours is
the harmful loss of the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdm_ray.meta.objectives.losses import full_precision
from sdm_ray.meta.objectives.registry import blocking_term

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Widths of the Gaussian kernels, as multiples of the mean squared distance of two samples."""


@blocking_term("representation_noise", reads="harmful_hidden", maximised=False)
def representation_noise(hidden: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Mean over layers of the squared maximum mean discrepancy of harmful texts' hidden states from Gaussian noise.

    A text's states, one after the other and zero on padding, are one sample. The discrepancy is the biased estimate,
    summed over the kernels of `WIDTHS`; their scale counts as a constant.

    Args:
        hidden: (H, B, L, D) hidden states of the harmful batch.
        noise: (H, B, L, D) samples of a standard normal distribution.
        mask: (B, L), 1 on tokens and 0 on padding.
    """
    keep = mask[..., None].to(hidden.dtype)
    return _discrepancies((hidden * keep).flatten(2), (noise * keep).flatten(2)).mean()


def _discrepancies(samples: Tensor, others: Tensor) -> Tensor:
    """(H,) squared discrepancies of samples (H, B, N) from others (H, B, N)."""
    both, count = full_precision(torch.cat([samples, others], dim=1)), samples.shape[1]
    products = both @ both.mT
    sizes = products.diagonal(dim1=-2, dim2=-1)
    own = torch.eye(2 * count, dtype=torch.bool, device=both.device)
    distances = (sizes[:, :, None] + sizes[:, None] - 2 * products).clamp_min(0).masked_fill(own, 0)
    mean = distances.detach().sum((1, 2), keepdim=True) / (2 * count * (2 * count - 1))
    mean = mean.clamp_min(torch.finfo(mean.dtype).tiny)
    kernels = torch.stack([(-distances / (width * mean)).exp() for width in WIDTHS]).sum(0)
    signs = torch.where(torch.arange(2 * count, device=both.device) < count, 1.0, -1.0).to(kernels.dtype)
    return torch.einsum("hij,i,j->h", kernels, signs, signs) / count**2
