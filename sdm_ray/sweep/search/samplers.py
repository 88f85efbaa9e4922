"""Samplers for the search points of an attack, including Optuna's."""

from __future__ import annotations

from collections.abc import Mapping

from sdm_ray.attack.space import SAMPLERS, Sampler, SamplerFactory, Space


def attack_samplers() -> Mapping[str, SamplerFactory]:
    """Sampler factories by `attack.sampler`; Optuna is imported when its sampler is first created."""
    return {**SAMPLERS, "tpe": _tpe}


def _tpe(space: Space, seed: int) -> Sampler:
    from sdm_ray.sweep.search.attack_sampler import TpeSampler

    return TpeSampler(space, seed)
