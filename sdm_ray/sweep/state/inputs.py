"""Checks that trials use the same data and encoder, unless these are searched; else results are not comparable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sdm_ray.core.result import Status, other_inputs
from sdm_ray.sweep.state.ledger import Entry

_OWN = ("data", "encoder", "seed", "modules")
"""Settings sections that affect a trial's inputs: a trial whose params change one is not compared."""
_UNTRAINED = ("random", "scratch")
"""Methods whose encoder is initialised from a seed."""


def shared_inputs(entry: Entry) -> dict[str, str]:
    """Digests of the inputs that a trial shares with all others, from its result; empty if it has none or failed."""
    if entry.result is None or entry.result.status is Status.FAILED:
        return {}
    if any(path.split(".")[0] in _OWN for path in entry.params):
        return {}
    provenance = entry.result.provenance
    drawn = entry.result.method in _UNTRAINED or provenance.get("encoder_name") == "mlp"
    return {name: provenance[name] for name in (("data",) if drawn else ("data", "encoder")) if name in provenance}


def inputs_problem(entries: Iterable[Entry], now: Mapping[str, str]) -> str | None:
    """Message that names a trial that used other data or another encoder than the current ones; None if none did."""
    for entry in entries:
        problem = other_inputs(shared_inputs(entry), now)
        if problem is not None:
            return f"when {entry.trial_id} was measured, {problem}"
    return None
