"""Models that a sweep runs in addition to sampled points: references, variants, and given points."""

from __future__ import annotations

from typing import Any

from sdm_ray.config import DistilSettings, EraseSettings, Method, SweepSettings, TermSettings, TrialSettings, override
from sdm_ray.config.space import CategoricalDistribution
from sdm_ray.core.errors import UsageError
from sdm_ray.core.metric_names import Metric

_PAPER: dict[str, Any] = {
    "train.method": "mlac",
    "train.blocking.harmful_adapted_calibrated": 1.0,
    "train.learning_rate": 1e-5,
    "train.num_outer_steps": 50_000,
    "train.desired_batch_size": 20,
    "train.harmful_batch_size": 20,
    "train.gradient_clip": 10.0,
    "train.adversary.num_steps": 16,
    "train.adversary.optimizers": ["adam"],
    "train.adversary.learning_rate_mode": "meta_learned",
    "train.adversary.learning_rate_initial": 3e-4,
    "train.adversary.batch_sizes": [8, 16, 24],
    "train.adversary.gradient_clip": 100.0,
    "train.adversary.pool.size": 0,
}
KNOWN_POINTS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "paper_variant": _PAPER | {"train.learning_rate": 1e-4, "train.adversary.batch_sizes": [12, 24, 48]},
}
"""Settings of Henderson et al., arXiv 2211.14946: their best variant (calibrated, weight 1, K = 16), and a variant with
a larger outer learning rate and larger inner batches."""


def first_points(settings: SweepSettings) -> list[dict[str, Any]]:
    """Points that are evaluated before the sampler is used: those of the sweep file, then published ones.

    Raises:
        UsageError: if the space contains no setting of a published point.
    """
    points = [dict(point) for point in settings.search.points]
    for name in settings.search.known_points:
        point = {path: value for path, value in KNOWN_POINTS[name].items() if path in settings.space}
        if not point:
            raise UsageError(
                f"search.known_points: the space searches nothing of {name!r}, which sets "
                f"{', '.join(KNOWN_POINTS[name])}; leave it out"
            )
        points.append(point)
    return points


def axes(settings: SweepSettings) -> dict[str, Any]:
    """Keyword arguments of `frontier.point_from_result`: the first objective of each direction, and the others."""
    up = [objective.metric for objective in settings.objectives if objective.direction == "maximize"]
    down = [objective.metric for objective in settings.objectives if objective.direction == "minimize"]
    further = dict.fromkeys(up[1:], -1.0) | dict.fromkeys(down[1:], 1.0)
    drawn = {"desired_metric": (up or [str(Metric.DESIRED_ACCURACY)])[0]}
    drawn["harmful_metric"] = (down or [str(Metric.HARMFUL_WORST_ACCURACY)])[0]
    return {**drawn, "further": further}


def ordered_references(settings: SweepSettings) -> list[str]:
    """Reference methods, with `tuned` first because feasibility is relative to it, then variants."""
    return [*sorted(dict.fromkeys(settings.references), key=lambda method: method != "tuned"), *settings.variants]


def reference_settings(settings: SweepSettings, name: str) -> TrialSettings:
    """Settings of a reference, by the name of its method or variant.

    Raises:
        UsageError: if the settings of a variant are invalid.
        ValueError: if the settings are invalid for the method.
    """
    if name in settings.variants:
        return override(settings.trial, settings.variants[name])
    method: Method = name  # type: ignore[assignment]
    return settings.trial.model_copy(update={"train": settings.trial.train.for_method(method)})


def erasures(settings: SweepSettings) -> list[EraseSettings]:
    """Erasure settings of references, variants and the search; for a searched setting both bounds, or all choices.

    Requires a sweep that passed `check_sweep`, so that all of them are valid.
    """
    found = [reference_settings(settings, name).train.erase for name in ordered_references(settings)]
    own = settings.trial.train.erase.model_dump()
    own["num_directions"] = own["num_directions"] or (0 if own["num_products"] else 1)
    return found + [EraseSettings.model_validate({**own, name: value}) for name, value in _searched(settings, "erase")]


def distillations(settings: SweepSettings) -> list[DistilSettings]:
    """Distillation settings of references, variants and the search; of the search only general texts and steps."""
    found = [reference_settings(settings, name).train.distil for name in ordered_references(settings)]
    own = settings.trial.train.distil.model_dump()
    own["num_steps"] = own["num_steps"] or 1
    for name, value in _searched(settings, "distil"):
        part, _, rest = name.partition(".")
        if part == "general":
            value = {**own["general"], rest: value} if rest else value
        if part in ("general", "num_steps"):
            found.append(DistilSettings.model_validate({**own, part: value}))
    return found


def terms(settings: SweepSettings) -> list[tuple[set[str], TermSettings]]:
    """Which blocking terms references, variants and the search compute, and their settings: of a searched setting the
    ends of its range, or all choices."""
    trained = [reference_settings(settings, name).train for name in ordered_references(settings)]
    found = [(set(one.blocking.weights()), one.terms) for one in trained]
    own, names = settings.trial.train.terms, set(settings.trial.train.blocking.weights())
    names |= {name for name, _ in _searched(settings, "blocking")}
    values = [{}, *({name: value} for name, value in _searched(settings, "terms"))]
    return found + [(names, TermSettings.model_validate(own.model_dump() | value)) for value in values]


def _searched(settings: SweepSettings, part: str) -> list[tuple[str, Any]]:
    """Searched settings below `train.PART`, each with the bounds of its range or all of its choices."""
    prefix, found = f"train.{part}.", list[tuple[str, Any]]()
    for path, distribution in settings.space.items():
        if path.startswith(prefix):
            if isinstance(distribution, CategoricalDistribution):
                values = distribution.choices
            else:
                values = (distribution.low, distribution.high)
            found += [(path.removeprefix(prefix), value) for value in values]
    return found
