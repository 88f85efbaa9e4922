"""Details of a point beyond its numbers: why it is on or off the front, and where its model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdm_ray.core.files import MALFORMED


@dataclass(frozen=True, kw_only=True)
class Details:
    """Details of one point; empty if unknown."""

    reason: str = ""
    """Why it is excluded from the frontier."""
    failed: dict[str, str] = field(default_factory=dict)
    """Observations of failed checks of the audit, by name."""
    uninformative: dict[str, str] = field(default_factory=dict)
    """Observations of checks that a reference fails too."""
    model: str = ""
    """Folder of the released model, relative to the sweep's folder."""
    run: str = ""
    """Id of its MLflow run."""
    run_url: str = ""
    """Page of its MLflow run."""
    found: dict[str, dict[str, float]] = field(default_factory=dict)
    """Harmful test accuracy by attack family and number of labelled examples (as text), if measured."""

    def to_json(self) -> dict[str, Any]:
        """Non-empty fields as plain values."""
        return {name: value for name, value in vars(self).items() if value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Details:
        """Inverse of `to_json`.

        Raises:
            TypeError: for an unknown name.
        """
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Additional contents of `frontier.json` and the page, besides the points."""

    importances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Importance of each searched setting for a good value of an objective, as shares, by objective."""
    details: Mapping[str, Details] = field(default_factory=dict)
    """Details by point id."""


def read_details(values: Any) -> dict[str, Details]:
    """Read details by point from the values of `to_json`; unreadable ones are left out."""
    found: dict[str, Details] = {}
    for name, one in (values if isinstance(values, dict) else {}).items():
        try:
            found[name] = Details.from_json(one)
        except MALFORMED:
            continue
    return found
