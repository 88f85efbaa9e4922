"""The samplers of an attack's search points, Optuna's among them."""

from __future__ import annotations

from collections.abc import Mapping

from sdm_ray.attack.space import SAMPLERS, Sampler, SamplerFactory, Space


def attack_samplers() -> Mapping[str, SamplerFactory]:
    """Samplers by the name that `attack.sampler` gives; Optuna is imported when its sampler is first asked for."""
    return {**SAMPLERS, "tpe": _tpe}


def _tpe(space: Space, seed: int) -> Sampler:
    from sdm_ray.sweep.search.attack_sampler import TpeSampler

    return TpeSampler(space, seed)
