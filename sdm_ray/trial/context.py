"""The environment of a trial in its process, apart from its settings."""

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
    """Services that a trial may use; the defaults work without Ray and Optuna."""

    samplers: Mapping[str, SamplerFactory] = field(default_factory=lambda: SAMPLERS)
    """Samplers of an attack's search points, by the name that `attack.sampler` gives."""
    shared: SharedCache | None = None
    """Cache entries that machines share; None where each has its own."""


ALONE = TrialContext()
"""The context of a trial outside a sweep."""
