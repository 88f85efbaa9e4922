"""What surrounds a trial in its process, and is no setting of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sdm_ray.attack.space import SAMPLERS
from sdm_ray.core.cache import SharedCache

if TYPE_CHECKING:
    from sdm_ray.attack.space import SamplerFactory


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """What a trial may use; by default what works without Ray and Optuna."""

    samplers: Mapping[str, SamplerFactory] = field(default_factory=lambda: SAMPLERS)
    """Samplers of an attack's search points, by the name that `attack.sampler` gives."""
    shared: SharedCache | None = None
    """Cache entries that machines share; None where each has its own."""


ALONE = TrialContext()
"""A trial by itself."""
