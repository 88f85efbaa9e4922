"""Reproduction of published comparisons: fixed models under fixed attackers, with a verdict on each claim."""

from sdm_ray.reproduce.claims import Finding, judge
from sdm_ray.reproduce.measured import Measured, read_measured
from sdm_ray.reproduce.suites import SUITES, Suite, suite_settings
from sdm_ray.reproduce.write import write_reproduction

__all__ = [
    "SUITES", "Finding", "Measured", "Suite", "judge", "read_measured", "suite_settings", "write_reproduction",
]  # fmt: skip
