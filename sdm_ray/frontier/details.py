"""What a person wants to know of one point beyond its numbers: why it stands where it does, and where its model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdm_ray.core.files import MALFORMED


@dataclass(frozen=True, kw_only=True)
class Details:
    """Of one point; empty where nothing is known."""

    reason: str = ""
    """Why it is kept off the frontier."""
    failed: dict[str, str] = field(default_factory=dict)
    """What failed checks of the audit saw, by name."""
    uninformative: dict[str, str] = field(default_factory=dict)
    """The same of checks that a reference fails too."""
    model: str = ""
    """Folder of the released model, from the sweep's folder on."""
    run: str = ""
    """Id of its MLflow run."""
    run_url: str = ""
    """Page of that run."""
    found: dict[str, dict[str, float]] = field(default_factory=dict)
    """Harmful accuracy on test data by attack family and number of labelled examples (as text), where measured."""

    def to_json(self) -> dict[str, Any]:
        """What is not empty, as plain values."""
        return {name: value for name, value in vars(self).items() if value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Details:
        """The inverse of `to_json`.

        Raises:
            TypeError: for a name that is not known.
        """
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What goes with the points of a sweep into `frontier.json` and the page."""

    importances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Shares of the searched settings in whether an objective gets good, by objective."""
    details: Mapping[str, Details] = field(default_factory=dict)
    """By the ids of points."""


def read_details(values: Any) -> dict[str, Details]:
    """Details by point, from what `to_json` gave for each; those that cannot be read are left out."""
    found: dict[str, Details] = {}
    for name, one in (values if isinstance(values, dict) else {}).items():
        try:
            found[name] = Details.from_json(one)
        except MALFORMED:
            continue
    return found
