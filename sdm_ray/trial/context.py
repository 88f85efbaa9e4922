"""Environment of a trial in its process, apart from its settings."""

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
    """Services for a trial; the defaults work without Ray and Optuna."""

    samplers: Mapping[str, SamplerFactory] = field(default_factory=lambda: SAMPLERS)
    """Samplers of an attack's search points, by the names that `attack.sampler` takes."""
    shared: SharedCache | None = None
    """Cache entries shared between machines; None if every machine has its own."""


ALONE = TrialContext()
"""Context of a trial outside a sweep."""
