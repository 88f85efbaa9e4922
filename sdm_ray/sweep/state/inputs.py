"""Data and encoder of a sweep's trials: equal wherever neither is searched, or their numbers mean different things."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sdm_ray.core.result import Status, other_inputs
from sdm_ray.sweep.state.ledger import Entry

_OWN = ("data", "encoder", "seed", "modules")
"""Sections whose change by a trial's params gives it inputs of its own."""
_UNTRAINED = ("random", "scratch")
"""Methods whose encoder is drawn from a seed."""


def shared_inputs(entry: Entry) -> dict[str, str]:
    """Digests, from a trial's result, of what it reads as all others do; empty where it has none or failed."""
    if entry.result is None or entry.result.status is Status.FAILED:
        return {}
    if any(path.split(".")[0] in _OWN for path in entry.params):
        return {}
    provenance = entry.result.provenance
    drawn = entry.result.method in _UNTRAINED or provenance.get("encoder_name") == "mlp"
    return {name: provenance[name] for name in (("data",) if drawn else ("data", "encoder")) if name in provenance}


def inputs_problem(entries: Iterable[Entry], now: Mapping[str, str]) -> str | None:
    """Which trial was measured on other data or with another encoder than those of now; None where none was."""
    for entry in entries:
        problem = other_inputs(shared_inputs(entry), now)
        if problem is not None:
            return f"when {entry.trial_id} was measured, {problem}"
    return None
